//! Whole transfers that go well.

mod exec_support;

use exec_support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use weightsync::device::fence::Fence;
use weightsync::device::host::HostDevice;
use weightsync::device::{Device, MemoryRange, Task, Work};
use weightsync::exec::*;
use weightsync::{Result, Status};

#[test]
fn three_versions_in_a_row_arrive() {
    for carrier in carriers() {
        for shape in [Shape::Apart, Shape::Colocated, Shape::Forwarded] {
            let world = World::new(carrier, shape, 4);
            world.run(|rig| {
                for version in 1..=3 {
                    assert_eq!(rig.sync(&options(version)), Ok(State::Done));
                    let outcome = rig.request.outcome();
                    assert_eq!(outcome, Some((Outcome::Complete, Outcome::Complete)));
                    if let Some(d) = rig.destination() {
                        assert_eq!(d.now(), d.expected(version), "{carrier:?} {shape:?}");
                    }
                    assert_eq!(rig.request.steps_done(), 4);
                }
            });
        }
    }
}

#[test]
fn verified_versions_publish_digests_and_tell_when_nothing_changed() {
    for carrier in carriers() {
        for shape in [Shape::Apart, Shape::Colocated, Shape::Forwarded] {
            let world = World::new(carrier, shape, 3);
            let reports = world.run(|rig| {
                let mut reports = Vec::new();
                for (version, stored) in [(1, 1), (2, 2), (3, 2), (4, 1)] {
                    rig.store(stored);
                    let o = RequestOptions {
                        flags: FLAG_VERIFY,
                        ..options(version)
                    };
                    rig.request.submit(&o).unwrap();
                    assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
                    reports.push(rig.request.report());
                }
                reports
            });
            for r in &reports {
                let unchanged: Vec<_> = r.iter().map(|r| r.is_unchanged).collect();
                assert_eq!(unchanged, [None, Some(false), Some(true), Some(false)]);
                assert!(r.iter().all(|r| r.is_verified && r.digests.len() == 2));
                assert_eq!(r[0].digests, r[3].digests);
                assert_ne!(r[0].digests, r[1].digests);
                for (mine, first) in r.iter().zip(&reports[0]) {
                    assert_eq!(mine.digests, first.digests, "the same on every rank");
                }
            }
        }
    }
}

#[test]
fn a_dry_run_agrees_and_moves_nothing() {
    let world = World::new(Carrier::Loopback, Shape::Apart, 3);
    world.run(|rig| {
        let before = rig.snapshot();
        rig.store(1);
        let o = RequestOptions {
            flags: FLAG_DRY_RUN,
            ..options(1)
        };
        rig.request.submit(&o).unwrap();
        assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
        assert_eq!(rig.snapshot(), before);
        let outcome = rig.request.outcome();
        assert_eq!(outcome, Some((Outcome::Untouched, Outcome::Untouched)));
        let report = rig.request.report();
        assert!(report.is_dry_run && report.bytes_sent + report.bytes_received > 0);
        assert_eq!(rig.sync(&options(2)), Ok(State::Done));
    });
}

#[test]
fn a_report_is_json_with_every_number() {
    let world = World::new(Carrier::Staged, Shape::Apart, 3);
    let reports = world.run(|rig| {
        rig.sync(&options(7)).unwrap();
        rig.request.report()
    });
    for r in &reports {
        let json = serde_json::to_value(r).unwrap();
        assert_eq!(json["version"], 7);
        assert_eq!(json["state"], "done");
        assert_eq!(json["rank_outcome"], "complete");
        assert_eq!(json["steps_done"], 3);
        assert!(json["times"]["move_ns"].as_u64().unwrap() > 0);
    }
    let sent: u64 = reports.iter().map(|r| r.bytes_sent).sum();
    let received: u64 = reports.iter().map(|r| r.bytes_received).sum();
    // Both copies of 8 x 16 elements of 4 bytes; packed messages are padded.
    assert_eq!(sent, received);
    assert!(sent >= 2 * 8 * 16 * 4);
}

#[test]
fn buffers_may_move_between_versions() {
    let world = World::new(Carrier::Loopback, Shape::Apart, 2);
    world.run(|rig| {
        rig.sync(&options(1)).unwrap();
        let Some(d) = rig.destination() else {
            rig.sync(&options(2)).unwrap();
            return;
        };
        let before = d.now();
        let ranges: Vec<_> = d.buffers.iter().map(|b| b.get()).collect();
        let other: Vec<Vec<u8>> = ranges.iter().map(|b| vec![OLD; b.len()]).collect();
        for (name, bytes) in ["a.weight", "b.weight"].iter().zip(&other) {
            let range = weightsync::device::MemoryRange {
                address: bytes.as_ptr().expose_provenance(),
                bytes: bytes.len() as u64,
            };
            let side = weightsync::plan::program::Side::Destination;
            let memory = weightsync::layout::view::Memory::Host;
            rig.session.bind(side, name, range, memory).unwrap();
        }
        rig.sync(&options(2)).unwrap();
        let d = rig.destination().unwrap();
        assert_eq!(d.now(), before, "the old buffers are left alone");
        assert_eq!(std::hint::black_box(&other), &d.expected(2));
    });
}

#[test]
fn plans_for_some_and_for_all_ranks_take_turns() {
    for carrier in carriers() {
        let world = World::new(carrier, Shape::Apart, 2);
        let some = Shape::Half.plan_in(3, carrier.memory());
        world.run(|rig| {
            let slot = rig.session.load(some.clone()).unwrap();
            let request = Request::new(&rig.session, slot).unwrap();
            for version in 1..=6 {
                rig.store(version);
                let is_for_all = version % 3 == 0;
                let turn = if is_for_all { &rig.request } else { &request };
                turn.submit(&options(version)).unwrap();
                assert_eq!(turn.wait(20 * SECOND), Ok(State::Done));
                let complete = (Outcome::Complete, Outcome::Complete);
                assert_eq!(turn.outcome(), Some(complete));
                if let Some(d) = rig.destination() {
                    // Ranks 4 and 5 have no part in the plan for some.
                    let has_part = is_for_all || rig.rank < 4;
                    let held = if has_part { version } else { version / 3 * 3 };
                    if held > 0 {
                        assert_eq!(d.now(), d.expected(held), "rank {}", rig.rank);
                    }
                }
            }
        });
    }
}

#[test]
fn many_versions_in_a_row_arrive() {
    let cases = [
        (Carrier::Loopback, Shape::Apart),
        (Carrier::Staged, Shape::Colocated),
        (Carrier::Loopback, Shape::Wide),
        (Carrier::Loopback, Shape::Forwarded),
        (Carrier::Staged, Shape::Forwarded),
        (Carrier::Shm, Shape::Forwarded),
        (Carrier::Nccl, Shape::Apart),
        (Carrier::Nccl, Shape::Forwarded),
    ];
    let here = carriers();
    for (carrier, shape) in cases.into_iter().filter(|(c, _)| here.contains(c)) {
        let world = World::new(carrier, shape, 3);
        world.run(|rig| {
            for version in 1..=100 {
                let o = RequestOptions {
                    flags: if version % 3 == 0 { FLAG_VERIFY } else { 0 },
                    ..options(version)
                };
                assert_eq!(rig.sync(&o), Ok(State::Done));
                if let Some(d) = rig.destination() {
                    assert_eq!(d.now(), d.expected(version), "{carrier:?} {shape:?}");
                }
            }
        });
    }
}

#[test]
fn nobody_needs_to_wait_for_a_request_to_go_on() {
    let world = World::new(Carrier::Staged, Shape::Apart, 3);
    world.run(|rig| {
        rig.store(1);
        rig.request.prepare(&options(1)).unwrap();
        assert!(eventually(|| rig.request.test() == Ok(State::Ready)));
        rig.request.start().unwrap();
        // Only looked at, never waited for; and by half of the ranks only once.
        if rig.rank % 2 == 0 {
            assert!(eventually(|| rig.request.test() == Ok(State::Done)));
        } else {
            assert!(eventually(|| rig.request.outcome().is_some()));
        }
        assert_eq!(rig.request.steps_done(), 3);
    });
}

/// A host device that, once told to, gets one digest wrong.
#[derive(Debug)]
struct Liar {
    device: HostDevice,
    lies: AtomicBool,
}

impl Device for Liar {
    fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        self.device.allocate(bytes)
    }

    fn free(&self, range: MemoryRange) {
        self.device.free(range);
    }

    fn enqueue(&self, work: Work, after: &Fence) -> Result<Fence> {
        let binding = work.binding.clone();
        let is_digest = work.task == Task::DigestDestination;
        let done = self.device.enqueue(work, after)?;
        if is_digest && self.lies.load(Ordering::Relaxed) {
            assert!(done.wait(Duration::from_secs(10)));
            binding.sums.held[1].fetch_add(1, Ordering::Relaxed);
        }
        Ok(done)
    }
}

#[test]
fn a_wrong_digest_tears_and_names_the_tensor() {
    let liar = Arc::new(Liar {
        device: HostDevice::new().unwrap(),
        lies: AtomicBool::new(true),
    });
    let mut world = World::new(Carrier::Loopback, Shape::Apart, 3);
    world.devices.insert(4, liar.clone());
    world.run(|rig| {
        let o = |version| RequestOptions {
            flags: FLAG_VERIFY,
            ..options(version)
        };
        let result = rig.sync(&o(1));
        let e = failure(&result);
        assert_eq!(e.status, Status::ChecksumMismatch, "{e}");
        assert!(e.message.contains("b.weight"), "{e}");
        assert!(!e.message.contains("a.weight"), "{e}");
        // Copies of ranks described one by one are compared in total only.
        let expected = match rig.rank {
            0 | 1 => (Outcome::Complete, Outcome::Torn),
            _ => (Outcome::Torn, Outcome::Torn),
        };
        assert_eq!(rig.request.outcome(), Some(expected));
        liar.lies.store(false, Ordering::Relaxed);
        assert_eq!(rig.sync(&o(2)), Ok(State::Done));
        assert_eq!(
            rig.request.outcome(),
            Some((Outcome::Complete, Outcome::Complete))
        );
    });
}

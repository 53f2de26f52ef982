//! Everything that can go wrong with a rank, at every step and in every state:
//! every other rank returns in time, names the culprit, and tells the truth
//! about its memory.

mod exec_support;

use exec_support::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use weightsync::device::deferred::DeferredDevice;
use weightsync::exec::endpoint::Fault as ControlFault;
use weightsync::exec::*;
use weightsync::transport::FaultKind;
use weightsync::{Rank, Result, Status};

const STEPS: u32 = 3;
/// The stall deadline of transfers that are meant to stall.
const STALL: u64 = 600 * MS;
/// The agree deadline of agreements that are meant to fail.
const AGREE: u64 = 500 * MS;
/// How much later than its deadline a rank may return: settling takes up to
/// 0.8 s, and the machine that runs the tests may be busy.
const MARGIN: Duration = Duration::from_millis(8000);

/// The coordinator, another source, and a first and a last rank of a copy.
const VICTIMS: [u32; 4] = [0, 1, 2, 5];

/// How one rank's request ended.
struct Ending {
    result: Result<State>,
    verdict: Verdict,
    took: Duration,
}

fn short(version: u64) -> RequestOptions {
    RequestOptions {
        version,
        agree_deadline_ns: AGREE,
        stall_deadline_ns: STALL,
        flags: 0,
    }
}

/// Runs `script` as one request of `version` and takes note of its end.
fn ending(
    world: &World,
    rig: &mut Rig,
    version: u64,
    script: impl FnOnce(&mut Rig) -> Result<State>,
) -> Ending {
    rig.store(version);
    let before = rig.snapshot();
    let start = Instant::now();
    let result = script(rig);
    let took = start.elapsed();
    Ending {
        result,
        verdict: rig.verdict(world, version, &before),
        took,
    }
}

/// Every rank but the victim failed in time with this status and culprit, and
/// outcomes are true.
fn check(endings: Vec<Ending>, victim: u32, status: Status, limit: Duration, what: &str) {
    for (rank, e) in endings.iter().enumerate() {
        if rank as u32 == victim {
            continue;
        }
        let error = match &e.result {
            Ok(state) => panic!("{what}: rank {rank} ended as {state:?}"),
            Err(error) => error,
        };
        assert_eq!(error.status, status, "{what}: rank {rank}: {error}");
        assert_eq!(
            error.rank,
            Some(Rank(victim)),
            "{what}: rank {rank}: {error}"
        );
        assert!(
            e.took < limit + MARGIN,
            "{what}: rank {rank} took {:?}",
            e.took
        );
        let Some((own, _)) = e.verdict.outcome else {
            panic!("{what}: rank {rank} has no outcome");
        };
        if e.verdict.copy.is_none() {
            assert_ne!(own, Outcome::Torn, "{what}: rank {rank} only sends");
        }
    }
    let verdicts: Vec<Verdict> = endings.into_iter().map(|e| e.verdict).collect();
    check_verdicts(&verdicts, what);
}

/// Runs all cases at once: most of their time they wait for deadlines.
fn all_at_once<T: Send>(cases: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let run = &run;
            scope.spawn(move || run(case));
        }
    });
}

/// Every victim at every step.
fn victims_and_steps() -> impl Iterator<Item = (u32, u32)> {
    VICTIMS
        .into_iter()
        .flat_map(|v| (0..STEPS).map(move |s| (v, s)))
}

/// Every victim, near and far.
fn carriers_and_victims() -> Vec<(Carrier, u32)> {
    let carriers = near_and_far().into_iter();
    carriers
        .flat_map(|c| VICTIMS.map(|victim| (c, victim)))
        .collect()
}

/// Ranks that have failed can always meet again.
fn works_again(carrier: Carrier) {
    let world = World::new(carrier, Shape::Apart, STEPS);
    world.run(|rig| assert_eq!(rig.sync(&options(9)), Ok(State::Done)));
}

// --- while bytes move ------------------------------------------------------

fn stall_at_every_step(carrier: Carrier) {
    for victim in VICTIMS {
        for step in 0..STEPS {
            let what = format!("{carrier:?}: rank {victim} stalls at step {step}");
            let world = World::new(carrier, Shape::Apart, STEPS);
            world.inject(victim, step, FaultKind::Stall);
            let endings = world.run(|rig| {
                ending(&world, rig, 1, |rig| {
                    rig.request.submit(&RequestOptions {
                        agree_deadline_ns: 20 * SECOND,
                        ..short(1)
                    })?;
                    rig.request.wait(60 * SECOND)
                })
            });
            let limit = Duration::from_nanos(STALL);
            check(endings, victim, Status::Stalled, limit, &what);
        }
    }
    works_again(carrier);
}

#[test]
fn a_rank_that_stalls_at_any_step_is_named() {
    stall_at_every_step(Carrier::Loopback);
}

#[test]
fn a_rank_that_stalls_at_any_step_is_named_when_staged() {
    stall_at_every_step(Carrier::Staged);
}

#[test]
fn a_rank_that_stalls_at_any_step_is_named_over_shm() {
    stall_at_every_step(Carrier::Shm);
}

#[test]
fn a_rank_that_stalls_at_any_step_is_named_on_gpus() {
    stall_at_every_step(Carrier::GpuStaged);
}

#[test]
fn a_rank_that_stalls_at_any_step_is_named_over_nccl() {
    stall_at_every_step(Carrier::Nccl);
}

fn die_at_every_step(carrier: Carrier) {
    for victim in VICTIMS {
        for step in 0..STEPS {
            let what = format!("{carrier:?}: rank {victim} dies at step {step}");
            let world = World::new(carrier, Shape::Apart, STEPS);
            world.inject(victim, step, FaultKind::Die);
            let endings = world.run(|rig| {
                ending(&world, rig, 1, |rig| {
                    rig.request.submit(&options(1))?;
                    if rig.rank == victim {
                        // Its data plane is dead; now the rest of it dies.
                        std::thread::sleep(Duration::from_millis(30));
                        rig.endpoint.inject(ControlFault::Die);
                    }
                    rig.request.wait(60 * SECOND)
                })
            });
            check(endings, victim, Status::PeerLost, Duration::ZERO, &what);
        }
    }
    works_again(carrier);
}

#[test]
fn a_rank_that_dies_at_any_step_is_named() {
    die_at_every_step(Carrier::Loopback);
}

#[test]
fn a_rank_that_dies_at_any_step_is_named_when_staged() {
    die_at_every_step(Carrier::Staged);
}

#[test]
fn a_rank_that_dies_at_any_step_is_named_over_shm() {
    die_at_every_step(Carrier::Shm);
}

#[test]
fn a_rank_that_dies_at_any_step_is_named_on_gpus() {
    die_at_every_step(Carrier::Gpu);
}

#[test]
fn a_rank_that_dies_at_any_step_is_named_over_nccl() {
    die_at_every_step(Carrier::Nccl);
}

#[test]
fn who_has_received_nothing_is_untouched() {
    all_at_once(carriers(), |carrier| {
        let what = format!("{carrier:?}: no source sends anything");
        let world = World::new(carrier, Shape::Apart, STEPS);
        for source in [0, 1] {
            world.inject(source, 0, FaultKind::Stall);
        }
        let endings = world.run(|rig| {
            ending(&world, rig, 1, |rig| {
                rig.request.submit(&RequestOptions {
                    agree_deadline_ns: 20 * SECOND,
                    ..short(1)
                })?;
                rig.request.wait(60 * SECOND)
            })
        });
        for e in &endings {
            assert_eq!(failure(&e.result).status, Status::Stalled, "{what}");
            // What NCCL receives in place it may write at any time.
            let kept = match carrier {
                Carrier::Nccl => Outcome::Torn,
                _ => Outcome::Untouched,
            };
            let is_destination = e.verdict.copy.is_some();
            assert!(!is_destination || e.verdict.is_old, "{what}");
            let claims = e.verdict.outcome == Some((kept, kept));
            assert!(!is_destination || claims, "{what}");
        }
        let verdicts: Vec<Verdict> = endings.into_iter().map(|e| e.verdict).collect();
        check_verdicts(&verdicts, &what);
    });
}

/// Runs a transfer in which one device makes so many tasks and then hangs.
fn hang_after(victim: u32, tasks: usize) -> Vec<Ending> {
    let mut world = World::new(Carrier::Staged, Shape::Apart, STEPS);
    // After that nobody pumps it, not even after the abort.
    let hangs = Arc::new(DeferredDevice::new());
    world.devices.insert(victim, hangs.clone());
    world.run(|rig| {
        ending(&world, rig, 1, |rig| {
            rig.request.submit(&RequestOptions {
                agree_deadline_ns: 20 * SECOND,
                ..short(1)
            })?;
            // One move poisons, the next one packs or unpacks.
            let mut moves = 2 * tasks * usize::from(rig.rank == victim);
            while moves > 0 && rig.request.test().is_ok_and(|s| s == State::Running) {
                moves -= hangs.pump(1);
                std::thread::sleep(Duration::from_micros(100));
            }
            rig.request.wait(60 * SECOND)
        })
    })
}

#[test]
fn a_device_that_hangs_after_any_task_is_its_ranks_fault() {
    all_at_once(VICTIMS, |victim| {
        let mut tasks = 0;
        loop {
            let what = format!("the device of rank {victim} hangs after {tasks} tasks");
            let endings = hang_after(victim, tasks);
            // It had no more to do.
            if tasks > 0 && endings.iter().all(|e| e.result == Ok(State::Done)) {
                break;
            }
            let (rank, _) = endings[victim as usize].verdict.outcome.unwrap();
            // What a hanging queue may still write, nobody knows.
            let expected = if victim < 2 {
                Outcome::Untouched
            } else {
                Outcome::Torn
            };
            assert_eq!(rank, expected, "{what}");
            let limit = Duration::from_nanos(STALL);
            check(endings, victim, Status::Stalled, limit, &what);
            tasks += 1;
        }
    });
}

#[test]
fn a_process_that_is_stopped_at_any_step_is_named() {
    for carrier in carriers() {
        all_at_once(victims_and_steps(), |(victim, step)| {
            let what = format!("{carrier:?}: rank {victim} is stopped at step {step}");
            let world = World::new(carrier, Shape::Apart, STEPS);
            world.inject(victim, step, FaultKind::Die);
            let endings = world.run(|rig| {
                ending(&world, rig, 1, |rig| {
                    rig.request.submit(&RequestOptions {
                        agree_deadline_ns: 20 * SECOND,
                        ..short(1)
                    })?;
                    if rig.rank == victim {
                        std::thread::sleep(Duration::from_millis(30));
                        rig.endpoint.inject(ControlFault::Freeze);
                        std::thread::sleep(Duration::from_nanos(STALL) + MARGIN / 2);
                        rig.endpoint.inject(ControlFault::None);
                    }
                    rig.request.wait(60 * SECOND)
                })
            });
            let limit = Duration::from_nanos(STALL);
            check(endings, victim, Status::Stalled, limit, &what);
        });
    }
}

#[test]
fn a_delay_within_the_deadline_is_no_fault() {
    for carrier in carriers() {
        for (victim, step) in victims_and_steps() {
            let world = World::new(carrier, Shape::Apart, STEPS);
            world.inject(victim, step, FaultKind::Delay(Duration::from_millis(100)));
            world.run(|rig| {
                let o = RequestOptions {
                    stall_deadline_ns: 4 * SECOND,
                    ..options(1)
                };
                assert_eq!(rig.sync(&o), Ok(State::Done));
                let outcome = rig.request.outcome();
                assert_eq!(outcome, Some((Outcome::Complete, Outcome::Complete)));
            });
        }
    }
}

#[test]
fn an_abort_from_another_thread_at_any_step_is_reported_by_all() {
    for carrier in carriers() {
        for aborter in [0, 1, 4] {
            for step in 0..STEPS {
                let what = format!("{carrier:?}: rank {aborter} aborts at step {step}");
                let world = World::new(carrier, Shape::Apart, STEPS);
                // Holds the transfer where it is.
                world.inject(1, step, FaultKind::Stall);
                let endings = world.run(|rig| {
                    ending(&world, rig, 1, |rig| {
                        rig.request.submit(&options(1))?;
                        if rig.rank != aborter {
                            return rig.request.wait(60 * SECOND);
                        }
                        std::thread::scope(|scope| {
                            scope.spawn(|| {
                                std::thread::sleep(Duration::from_millis(30));
                                rig.session.abort("the trainer has diverged");
                                rig.session.abort("and again");
                            });
                            let result = rig.request.wait(60 * SECOND);
                            assert!(failure(&result).message.contains("diverged"));
                            result
                        })
                    })
                });
                check(endings, aborter, Status::Aborted, Duration::ZERO, &what);
            }
        }
        works_again(carrier);
    }
}

#[test]
fn ranks_of_a_colocated_copy_fail_alike() {
    for (kind, status) in [
        (FaultKind::Stall, Status::Stalled),
        (FaultKind::Die, Status::PeerLost),
    ] {
        for victim in [1, 3] {
            for step in 0..STEPS {
                let what = format!("colocated: {kind:?} of rank {victim} at step {step}");
                let world = World::new(Carrier::Staged, Shape::Colocated, STEPS);
                world.inject(victim, step, kind);
                let endings = world.run(|rig| {
                    ending(&world, rig, 1, |rig| {
                        rig.request.submit(&RequestOptions {
                            agree_deadline_ns: 20 * SECOND,
                            ..short(1)
                        })?;
                        if rig.rank == victim && kind == FaultKind::Die {
                            std::thread::sleep(Duration::from_millis(30));
                            rig.endpoint.inject(ControlFault::Die);
                        }
                        rig.request.wait(60 * SECOND)
                    })
                });
                check(endings, victim, status, Duration::from_nanos(STALL), &what);
            }
        }
    }
}

/// A source, a rank that forwards to its copy, and one of the other copy.
const FORWARDED_VICTIMS: [u32; 3] = [1, 2, 5];

/// Who is named. Where only the two ranks of a copy are left, a kernel of NCCL
/// that spins does not tell which of them is to blame: it is the lower one.
fn named(carrier: Carrier, kind: FaultKind, victim: u32, step: u32) -> u32 {
    let is_told_apart = carrier != Carrier::Nccl || kind == FaultKind::Die || step < STEPS - 1;
    if is_told_apart { victim } else { victim & !1 }
}

/// Sources have nothing to do in the last step, in which bytes are forwarded.
fn forwarded_faults(carrier: Carrier, kind: FaultKind, status: Status) {
    for victim in FORWARDED_VICTIMS {
        for step in 0..STEPS - u32::from(victim < 2) {
            let what = format!("{carrier:?}, two stages: {kind:?} of rank {victim} at step {step}");
            let world = World::new(carrier, Shape::Forwarded, STEPS);
            world.inject(victim, step, kind);
            let endings = world.run(|rig| {
                ending(&world, rig, 1, |rig| {
                    rig.request.submit(&RequestOptions {
                        agree_deadline_ns: 20 * SECOND,
                        ..short(1)
                    })?;
                    if rig.rank == victim && kind == FaultKind::Die {
                        std::thread::sleep(Duration::from_millis(30));
                        rig.endpoint.inject(ControlFault::Die);
                    }
                    rig.request.wait(60 * SECOND)
                })
            });
            let culprit = named(carrier, kind, victim, step);
            check(endings, culprit, status, Duration::from_nanos(STALL), &what);
        }
    }
}

#[test]
fn a_rank_that_stalls_while_others_forward_is_named() {
    forwarded_faults(Carrier::Loopback, FaultKind::Stall, Status::Stalled);
}

#[test]
fn a_rank_that_stalls_while_others_forward_is_named_when_staged() {
    forwarded_faults(Carrier::Staged, FaultKind::Stall, Status::Stalled);
}

#[test]
fn a_rank_that_stalls_while_others_forward_is_named_over_nccl() {
    forwarded_faults(Carrier::Nccl, FaultKind::Stall, Status::Stalled);
}

#[test]
fn a_rank_that_dies_while_others_forward_is_named() {
    for carrier in carriers() {
        forwarded_faults(carrier, FaultKind::Die, Status::PeerLost);
    }
}

// --- before bytes move -----------------------------------------------------

#[test]
fn a_rank_that_died_before_the_agreement_is_named() {
    for (carrier, victim) in carriers_and_victims() {
        let what = format!("{carrier:?}: rank {victim} died before");
        let world = World::new(carrier, Shape::Apart, STEPS);
        let gate = Gate::new(6);
        let endings = world.run(|rig| {
            gate.wait();
            if rig.rank == victim {
                rig.endpoint.inject(ControlFault::Die);
            }
            assert!(rig.rank == victim || eventually(|| rig.endpoint.abort_reason().is_some()));
            gate.wait();
            rig.sync(&options(1))
                .map_err(|e| (e, rig.request.outcome()))
        });
        for (rank, ending) in endings.iter().enumerate() {
            let (error, outcome) = ending.as_ref().unwrap_err();
            assert_eq!(outcome, &None, "{what}: nothing was begun");
            if rank as u32 != victim {
                assert_eq!(error.status, Status::PeerLost, "{what}: {error}");
                assert_eq!(error.rank, Some(Rank(victim)), "{what}: {error}");
            }
        }
    }
}

#[test]
fn a_rank_that_dies_while_others_agree_is_named() {
    for (carrier, victim) in carriers_and_victims() {
        let what = format!("{carrier:?}: rank {victim} dies in the agreement");
        let world = World::new(carrier, Shape::Apart, STEPS);
        let endings = world.run(|rig| {
            ending(&world, rig, 1, |rig| {
                if rig.rank == victim {
                    std::thread::sleep(Duration::from_millis(50));
                    rig.endpoint.inject(ControlFault::Die);
                    return Ok(State::Idle);
                }
                rig.request.submit(&options(1))?;
                rig.request.wait(60 * SECOND)
            })
        });
        for e in &endings {
            if let Some((rank, copy)) = e.verdict.outcome {
                assert_eq!(rank, Outcome::Untouched);
                // Whoever is cut off from the coordinator cannot know.
                let known = if victim == 0 {
                    Outcome::Torn
                } else {
                    Outcome::Untouched
                };
                assert_eq!(copy, known, "{what}: rank {}", e.verdict.rank);
            }
        }
        check(endings, victim, Status::PeerLost, Duration::ZERO, &what);
    }
}

// --- agreed, and not started -----------------------------------------------

/// Everybody is READY; then the victim does something else than to start.
fn ready_then(
    carrier: Carrier,
    victim: u32,
    status: Status,
    what: &str,
    act: impl Fn(&mut Rig) + Sync,
) {
    let world = World::new(carrier, Shape::Apart, STEPS);
    let gate = Gate::new(6);
    let endings = world.run(|rig| {
        ending(&world, rig, 1, |rig| {
            let o = RequestOptions {
                agree_deadline_ns: 20 * SECOND,
                ..short(1)
            };
            rig.request.prepare(&o)?;
            assert_eq!(rig.request.wait_ready(20 * SECOND), Ok(State::Ready));
            gate.wait();
            if rig.rank == victim {
                act(rig);
                return Ok(State::Ready);
            }
            let started = rig.request.start();
            let ended = rig.request.wait(60 * SECOND);
            started.and(ended)
        })
    });
    check(endings, victim, status, Duration::from_nanos(STALL), what);
}

#[test]
fn a_rank_that_agreed_and_never_starts_is_named() {
    for (carrier, victim) in carriers_and_victims() {
        let what = format!("{carrier:?}: rank {victim} never starts");
        ready_then(carrier, victim, Status::Stalled, &what, |rig| {
            // READY is not waited for; what ends it is the others' deadline.
            assert!(
                eventually(|| rig.request.state() == State::Failed),
                "{what}"
            );
            let e = rig.request.start().unwrap_err();
            assert_eq!(e.status, Status::Stalled, "{what}: {e}");
            assert_eq!(rig.request.outcome().unwrap().0, Outcome::Untouched);
        });
    }
}

#[test]
fn a_rank_that_agreed_and_died_is_named() {
    for (carrier, victim) in carriers_and_victims() {
        let what = format!("{carrier:?}: rank {victim} dies when ready");
        ready_then(carrier, victim, Status::PeerLost, &what, |rig| {
            rig.endpoint.inject(ControlFault::Die);
        });
    }
}

#[test]
fn a_request_that_is_destroyed_when_ready_aborts_all() {
    for (carrier, victim) in carriers_and_victims() {
        let what = format!("{carrier:?}: rank {victim} destroys its request when ready");
        ready_then(carrier, victim, Status::Aborted, &what, |rig| {
            rig.request = Request::new(&rig.session, rig.slot).unwrap();
        });
    }
}

#[test]
fn a_session_that_is_destroyed_when_ready_aborts_all() {
    let what = "a session is destroyed when ready";
    ready_then(Carrier::Loopback, 4, Status::Aborted, what, |rig| {
        let options = SessionOptions::default();
        let device = std::sync::Arc::new(weightsync::device::host::HostDevice::new().unwrap());
        rig.session = Session::new(&rig.endpoint, device, options).unwrap();
        assert!(rig.request.prepare(&short(2)).is_err());
    });
}

#[test]
fn agreeing_early_and_starting_late_is_no_fault() {
    let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
    let gate = Gate::new(6);
    world.run(|rig| {
        rig.store(1);
        let o = RequestOptions {
            agree_deadline_ns: 20 * SECOND,
            ..short(1)
        };
        rig.request.prepare(&o).unwrap();
        assert_eq!(rig.request.wait_ready(20 * SECOND), Ok(State::Ready));
        gate.wait();
        std::thread::sleep(Duration::from_nanos(STALL * 2));
        gate.wait();
        rig.request.start().unwrap();
        assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
    });
}

// --- settling --------------------------------------------------------------

#[test]
fn a_rank_that_dies_while_settling_is_named() {
    for carrier in carriers() {
        for victim in [0, 3, 4] {
            let what = format!("{carrier:?}: rank {victim} dies while settling");
            let world = World::new(carrier, Shape::Apart, STEPS);
            // Keeps the sources, and so everybody's outcome, waiting.
            world.inject(5, STEPS - 1, FaultKind::Stall);
            // All of copy 0 have moved everything before one dies, however slow the
            // machine is; rank 0, a source, dies whenever it wants.
            let waited_for = BTreeSet::from([2, 3, victim]);
            let settling = AtomicUsize::new(0);
            let endings = world.run(|rig| {
                ending(&world, rig, 1, |rig| {
                    rig.request.submit(&options(1))?;
                    if victim != 0 && waited_for.contains(&rig.rank) {
                        let settles = || rig.request.state() == State::Settling;
                        assert!(eventually(settles), "{what}: rank {}", rig.rank);
                        settling.fetch_add(1, Ordering::SeqCst);
                    }
                    if rig.rank == victim {
                        let all_settle = || settling.load(Ordering::SeqCst) == waited_for.len();
                        assert!(victim == 0 || eventually(all_settle), "{what}");
                        // Until the coordinator has heard of it.
                        std::thread::sleep(Duration::from_millis(200));
                        rig.endpoint.inject(ControlFault::Die);
                    }
                    rig.request.wait(60 * SECOND)
                })
            });
            let copies: Vec<_> = endings.iter().map(|e| e.verdict.outcome).collect();
            if victim != 0 {
                // All ranks of copy 0 had said that they were complete.
                let complete = Some((Outcome::Complete, Outcome::Complete));
                assert_eq!(copies[2], complete, "{what}");
                assert_eq!(copies[5].unwrap().1, Outcome::Torn, "{what}");
            }
            check(endings, victim, Status::PeerLost, Duration::ZERO, &what);
        }
    }
}

// --- ranks between others and the coordinator ------------------------------

#[test]
fn a_relay_that_is_stopped_is_named_and_not_those_below_it() {
    let what = "rank 1, a relay, is stopped";
    let world = World::new(Carrier::Loopback, Shape::Wide, STEPS);
    world.inject(1, 1, FaultKind::Die);
    let endings = world.run(|rig| {
        ending(&world, rig, 1, |rig| {
            rig.request.submit(&RequestOptions {
                agree_deadline_ns: 20 * SECOND,
                stall_deadline_ns: 2 * STALL,
                ..options(1)
            })?;
            if rig.rank == 1 {
                std::thread::sleep(Duration::from_millis(30));
                rig.endpoint.inject(ControlFault::Freeze);
                std::thread::sleep(Duration::from_nanos(2 * STALL) + MARGIN / 2);
                rig.endpoint.inject(ControlFault::None);
            }
            rig.request.wait(60 * SECOND)
        })
    });
    let limit = Duration::from_nanos(2 * STALL);
    check(endings, 1, Status::Stalled, limit, what);
}

#[test]
fn a_relay_that_dies_is_named_above_and_below() {
    for victim in [1, 2, 13] {
        let what = format!("rank {victim} of 18 dies");
        let world = World::new(Carrier::Loopback, Shape::Wide, STEPS);
        world.inject(victim, 1, FaultKind::Die);
        let endings = world.run(|rig| {
            ending(&world, rig, 1, |rig| {
                rig.request.submit(&options(1))?;
                if rig.rank == victim {
                    std::thread::sleep(Duration::from_millis(30));
                    rig.endpoint.inject(ControlFault::Die);
                }
                rig.request.wait(60 * SECOND)
            })
        });
        check(endings, victim, Status::PeerLost, Duration::ZERO, &what);
    }
}

#[test]
fn a_late_rank_behind_a_relay_is_named_and_a_frozen_relay_too() {
    for (victim, kind) in [(14, ControlFault::None), (1, ControlFault::Freeze)] {
        let what = format!("rank {victim} of 18: {kind:?}");
        let world = World::new(Carrier::Loopback, Shape::Wide, STEPS);
        let gate = Gate::new(18);
        world.run(|rig| {
            // The relay agrees, and is frozen before those below it do.
            let is_below = (9..17).contains(&rig.rank);
            let is_frozen = kind == ControlFault::Freeze;
            let o = RequestOptions {
                agree_deadline_ns: 3 * AGREE,
                ..options(1)
            };
            if !(is_frozen && is_below) && rig.rank != 14 {
                rig.request.prepare(&o).unwrap();
            }
            gate.wait();
            if rig.rank == victim && is_frozen {
                std::thread::sleep(Duration::from_millis(50));
                rig.endpoint.inject(ControlFault::Freeze);
            }
            gate.wait();
            if is_frozen && is_below && rig.rank != 14 {
                rig.request.prepare(&o).unwrap();
            }
            if rig.rank != victim && rig.rank != 14 {
                let e = rig.request.wait_ready(20 * SECOND).unwrap_err();
                assert_eq!(e.status, Status::AgreementTimeout, "{what}: {e}");
                assert_eq!(e.rank, Some(Rank(victim)), "{what}: rank {}: {e}", rig.rank);
            }
            gate.wait();
            rig.endpoint.inject(ControlFault::None);
        });
    }
}

#[test]
fn eighteen_ranks_do_three_versions() {
    let world = World::new(Carrier::Staged, Shape::Wide, STEPS);
    world.run(|rig| {
        for version in 1..=3 {
            let o = RequestOptions {
                flags: FLAG_VERIFY,
                ..options(version)
            };
            assert_eq!(rig.sync(&o), Ok(State::Done));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version));
            }
        }
    });
}

// --- leaving ---------------------------------------------------------------

#[test]
fn a_rank_that_has_left_is_named_by_the_next_request() {
    let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
    for victim in [0, 5] {
        let gate = Gate::new(6);
        let world = World::new(world.carrier, world.shape, world.steps);
        let plan = world.shape.plan(STEPS);
        let endpoints = meet(6, |r| world.bootstrap(r)).unwrap();
        std::thread::scope(|scope| {
            for endpoint in endpoints {
                let (gate, world, plan) = (&gate, &world, &plan);
                scope.spawn(move || {
                    let mut rig = world.rig(endpoint, &|_| plan.clone());
                    assert_eq!(rig.sync(&options(1)), Ok(State::Done));
                    gate.wait();
                    if rig.rank == victim {
                        let Rig {
                            endpoint,
                            session,
                            request,
                            ..
                        } = rig;
                        drop((request, session, endpoint));
                        gate.wait();
                        gate.wait();
                        return;
                    }
                    gate.wait();
                    std::thread::sleep(Duration::from_millis(50));
                    let reason = rig.endpoint.abort_reason();
                    assert_eq!(reason, None, "leaving when nothing runs is no fault");
                    let result = rig.sync(&options(2));
                    let e = failure(&result);
                    assert_eq!(
                        (e.status, e.rank),
                        (Status::PeerLost, Some(Rank(victim))),
                        "{e}"
                    );
                    rig.rank = victim;
                    gate.wait();
                });
            }
        });
    }
}

#[test]
fn leaving_together_waits_for_all_and_is_bounded() {
    let endpoints = meet_loopback(12);
    std::thread::scope(|scope| {
        for e in &endpoints {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(u64::from(e.rank().0) * 5));
                assert_eq!(e.finalize(20 * SECOND), Ok(()));
            });
        }
    });
}

#[test]
fn who_does_not_leave_is_named_and_may_be_waited_for_again() {
    for late in [0, 2] {
        let endpoints = meet_loopback(3);
        let gate = Gate::new(3);
        std::thread::scope(|scope| {
            for e in &endpoints {
                let gate = &gate;
                scope.spawn(move || {
                    if e.rank().0 != late {
                        let error = e.finalize(500 * MS).unwrap_err();
                        assert_eq!(error.status, Status::MeetTimeout);
                        assert_eq!(error.rank, Some(Rank(late)), "{error}");
                    }
                    gate.wait();
                    assert_eq!(e.finalize(20 * SECOND), Ok(()));
                });
            }
        });
    }
}

#[test]
fn a_session_ends_politely_when_nothing_runs() {
    let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
    world.run(|rig| {
        assert_eq!(rig.sync(&options(1)), Ok(State::Done));
        assert_eq!(rig.session.finalize(SECOND), Ok(()));
        let e = rig.request.prepare(&options(2)).unwrap_err();
        assert_eq!(e.status, Status::InvalidState);
        assert_eq!(rig.endpoint.finalize(20 * SECOND), Ok(()));
    });
}

// --- what callers may get wrong --------------------------------------------

#[test]
fn calls_in_the_wrong_state_change_nothing() {
    let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
    let gate = Gate::new(6);
    world.run(|rig| {
        let status = |r: Result<()>| r.unwrap_err().status;
        assert_eq!(status(rig.request.start()), Status::InvalidState);
        assert_eq!(rig.request.test(), Ok(State::Idle));
        assert_eq!(rig.request.wait(SECOND), Ok(State::Idle));
        let unknown = RequestOptions {
            flags: 1 << 9,
            ..options(1)
        };
        assert_eq!(status(rig.request.prepare(&unknown)), Status::Unsupported);
        gate.wait();
        rig.request.prepare(&options(1)).unwrap();
        let second = Request::new(&rig.session, rig.slot).unwrap();
        assert_eq!(status(second.prepare(&options(1))), Status::Busy);
        assert_eq!(status(rig.request.prepare(&options(1))), Status::Busy);
        assert_eq!(status(rig.session.unload(rig.slot)), Status::Busy);
        for held in &rig.held {
            let range = held.buffers[0].range();
            let memory = weightsync::layout::view::Memory::Host;
            let rebind = rig.session.bind(held.side, "a.weight", range, memory);
            assert_eq!(status(rebind), Status::Busy);
        }
        rig.request.wait_ready(20 * SECOND).unwrap();
        rig.request.start().unwrap();
        assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
        assert_eq!(status(rig.request.start()), Status::InvalidState);
        assert_eq!(rig.request.wait(0), Ok(State::Done));
    });
}

#[test]
fn missing_and_short_buffers_are_all_named() {
    use weightsync::device::MemoryRange;
    use weightsync::device::host::HostDevice;
    use weightsync::layout::view::Memory;
    use weightsync::plan::program::Side;
    let endpoints = meet_loopback(6);
    let device = std::sync::Arc::new(HostDevice::new().unwrap());
    let session = Session::new(&endpoints[0], device, SessionOptions::default()).unwrap();
    let plan = Shape::Apart.plan(STEPS);
    let e = session.load(plan.clone()).unwrap_err();
    assert_eq!(e.status, Status::BufferMismatch);
    assert!(
        e.message.contains("a.weight") && e.message.contains("b.weight"),
        "{e}"
    );
    let memory = vec![0u8; 1000];
    let range = |bytes| MemoryRange {
        address: memory.as_ptr().expose_provenance(),
        bytes,
    };
    session
        .bind(Side::Source, "a.weight", range(96), Memory::Host)
        .unwrap();
    session
        .bind(Side::Source, "unknown", range(1), Memory::Host)
        .unwrap();
    session
        .bind(Side::Source, "b.weight", range(159), Memory::Host)
        .unwrap();
    let e = session.load(plan.clone()).unwrap_err();
    assert_eq!(e.status, Status::BufferMismatch);
    assert!(
        e.message.contains("159") && e.message.contains("160"),
        "{e}"
    );
    session
        .bind(Side::Source, "b.weight", range(160), Memory::Device(0))
        .unwrap();
    let e = session.load(plan.clone()).unwrap_err();
    assert_eq!(e.status, Status::BufferMismatch);
    session
        .bind(Side::Source, "b.weight", range(160), Memory::Host)
        .unwrap();
    let slot = session.load(plan).unwrap();
    session
        .bind(Side::Source, "b.weight", range(3), Memory::Host)
        .unwrap();
    let request = Request::new(&session, slot).unwrap();
    let e = request.prepare(&options(1)).unwrap_err();
    assert_eq!(e.status, Status::BufferMismatch);
    assert_eq!(request.state(), State::Idle);
    session.unload(slot).unwrap();
    let e = request.prepare(&options(1)).unwrap_err();
    assert_eq!(e.status, Status::NotFound);
    let e = session
        .bind(Side::Source, "", range(3), Memory::Host)
        .unwrap_err();
    assert_eq!(e.status, Status::LimitExceeded);
    let wild = MemoryRange {
        address: usize::MAX - 2,
        bytes: 9,
    };
    let e = session
        .bind(Side::Source, "x", wild, Memory::Host)
        .unwrap_err();
    assert_eq!(e.status, Status::InvalidArgument);
}

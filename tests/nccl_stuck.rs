//! What nobody can end, memory that is not what it is said to be, and streams of
//! two ends that are let go: the ways in which a GPU hangs or breaks for good.

mod exec_support;

use exec_support::fake_gpu::nccl::{self as fake, Wrong, alone, calls, inject};
use exec_support::*;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use weightsync::device::MemoryRange;
use weightsync::device::cuda::channel::{ChannelOptions, ChannelReceiver, ChannelSender};
use weightsync::device::cuda::queue::CudaQueue;
use weightsync::device::fence::{AbortCell, Fence, Timeline};
use weightsync::exec::*;
use weightsync::layout::view::Memory;
use weightsync::plan::program::Side;
use weightsync::transport::Bootstrap;
use weightsync::transport::nccl::{
    CommLimits, CommSource, NcclBootstrap, NcclOptions, OnAbort, Remains,
};
use weightsync::{Error, Status};

const LONG: Duration = Duration::from_secs(20);

/// Runs a case of this program in a process of its own, so that what hangs there
/// is a failure here; what it says.
fn run_case(case: &str, environment: &[(&str, &str)]) -> String {
    // The stand-ins are built before the clock runs.
    drop(alone());
    fake::nccl_old();
    fake::nccl_without_revoke();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", case, "--ignored", "--nocapture"])
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let is_late = child.try_wait().unwrap().is_none();
    if is_late {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!is_late, "{case} hangs: {said}");
    assert!(output.status.success(), "{case}: {said}");
    said
}

/// Runs a version that stalls, on every rank, and then drops everything; the
/// longest that took.
fn stalls_and_closes(world: &World) -> Duration {
    let longest = Mutex::new(Duration::ZERO);
    let endpoints = meet(world.shape.rank_count(), |r| world.bootstrap(r)).unwrap();
    std::thread::scope(|scope| {
        for endpoint in endpoints {
            let longest = &longest;
            scope.spawn(move || {
                let rig = world.rig(endpoint, &|_| world.plan(world.steps));
                rig.store(1);
                let o = RequestOptions {
                    stall_deadline_ns: 300 * MS,
                    ..options(1)
                };
                let submitted = rig.request.submit(&o);
                let ended = submitted.and_then(|()| rig.request.wait(20 * SECOND).map(drop));
                assert_eq!(ended.unwrap_err().status, Status::Stalled);
                let before = Instant::now();
                drop(rig);
                let mut longest = longest.lock().unwrap();
                *longest = before.elapsed().max(*longest);
            });
        }
    });
    longest.into_inner().unwrap()
}

#[test]
#[ignore = "a process of the test below"]
fn as_owner_that_does_not_abort() {
    let _alone = alone();
    let lent = lend(4);
    let mut world = World::new(Carrier::Nccl, Shape::Half, 3);
    world.bootstraps = Some(Box::new(move |rank| {
        let source = CommSource::Direct {
            comm: lent[rank as usize],
            on_abort: OnAbort::default(),
        };
        Box::new(fake::bootstrap_with(rank, source))
    }));
    inject(1, 1, Wrong::Hang, 0);
    let longest = stalls_and_closes(&world);
    println!("closed in {longest:?}");
    assert!(longest < Duration::from_secs(8), "{longest:?}");
    // The kernels still run: the process could not end by itself.
    std::process::exit(0);
}

/// An old NCCL cannot revoke, and the owner of the communicator does nothing.
#[test]
fn a_session_is_destroyed_although_its_kernels_go_on() {
    let old = [("FAKE_NCCL_TEST_OLD", "1")];
    let said = run_case("as_owner_that_does_not_abort", &old);
    assert!(said.contains("closed in"), "{said}");
}

#[test]
#[ignore = "a process of the test below"]
fn as_split_that_a_rank_fails() {
    let _alone = alone();
    let lent = lend(4);
    fake::fail("ncclCommSplit", 4, 4);
    let begun = Instant::now();
    let split = |rank: u32| -> Box<dyn Bootstrap> {
        let comm = lent[rank as usize];
        Box::new(fake::bootstrap_with(rank, CommSource::Split { comm }))
    };
    let errors: Vec<Error> = meet_each(20 * SECOND, 4, split)
        .into_iter()
        .map(|met| met.1.unwrap_err())
        .collect();
    assert!(begun.elapsed() < Duration::from_secs(10), "{errors:?}");
    for e in &errors {
        assert!(e.message.contains("ncclCommSplit"), "{errors:?}");
    }
    let mut named = errors.iter().filter_map(|e| e.rank);
    let first = named.next();
    assert!(
        first.is_some() && named.all(|r| Some(r) == first),
        "{errors:?}"
    );
    std::process::exit(0);
}

/// A blocking parent keeps three ranks inside NCCL, for the fourth does not come.
#[test]
fn a_split_that_a_rank_fails_ends_for_all() {
    run_case("as_split_that_a_rank_fails", &[]);
}

#[test]
#[ignore = "a process of the test below"]
fn as_nccl_that_cannot_abort() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Half, 3);
    inject(1, 1, Wrong::Hang, 0);
    for nth in 1..=4 {
        fake::fail("ncclCommAbort", nth, 3);
    }
    let longest = stalls_and_closes(&world);
    println!("closed in {longest:?}");
    assert!(longest < Duration::from_secs(8), "{longest:?}");
    std::process::exit(0);
}

#[test]
fn a_session_is_destroyed_although_nccl_fails_to_abort() {
    let said = run_case("as_nccl_that_cannot_abort", &[]);
    assert!(said.contains("closed in"), "{said}");
}

/// Communicators of the caller's, a GPU each.
fn lend(count: u32) -> Vec<usize> {
    use nccl_sys::{ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId};
    let search = nccl_sys::Search {
        asked: Some(nccl_sys::Asked {
            by: "the test".into(),
            path: fake::library(),
        }),
        only_loaded: false,
    };
    // SAFETY: the stand-in, built from the sources beside us.
    let nccl = unsafe { nccl_sys::load(&search) }.unwrap();
    let nccl: &'static nccl_sys::Library = Box::leak(Box::new(nccl));
    let mut id = ncclUniqueId::from_bytes([0; 128]);
    // SAFETY: a place for an id.
    unsafe { (nccl.api.ncclGetUniqueId)(&mut id) };
    let id = id.to_bytes();
    let join = move |rank: u32| {
        let device = exec_support::fake_gpu::device_of(rank);
        let _current = device.gpu().enter().unwrap();
        let (mut comm, mut config) = (ncclComm_t::NULL, ncclConfig_t::default());
        let id = ncclUniqueId::from_bytes(id);
        // SAFETY: places for what is written.
        let result = unsafe {
            let (n, rank) = (count as i32, rank as i32);
            (nccl.api.ncclCommInitRankConfig)(&mut comm, n, id, rank, &mut config)
        };
        assert_eq!(result, ncclResult_t::SUCCESS);
        comm.0.expose_provenance()
    };
    let threads: Vec<_> = (0..count)
        .map(|rank| std::thread::spawn(move || join(rank)))
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

// --- rebuilding --------------------------------------------------------------

fn rebuild_after_a_loss() -> (u64, u64) {
    let rebuildable = |rank| NcclOptions {
        is_rebuildable: true,
        ..fake::options(rank, CommSource::Own { id: None })
    };
    let mut world = World::new(Carrier::Nccl, Shape::Apart, 2);
    world.bootstraps = Some(Box::new(move |rank| {
        Box::new(NcclBootstrap::new(rank == 0, rebuildable(rank)).unwrap())
    }));
    inject(4, 1, Wrong::Hang, 0);
    let remains = Mutex::new(BTreeMap::new());
    world.run(|rig| {
        rig.store(1);
        let o = RequestOptions {
            stall_deadline_ns: 300 * MS,
            ..options(1)
        };
        let submitted = rig.request.submit(&o);
        let ended = submitted.and_then(|()| rig.request.wait(20 * SECOND).map(drop));
        assert_eq!(ended.unwrap_err().status, Status::Stalled);
        let transport = rig.endpoint.transport().unwrap();
        let mine = Remains::of(&*transport).unwrap();
        remains.lock().unwrap().insert(rig.rank, mine);
    });
    fake::heal();
    let remains = remains.into_inner().unwrap();
    let (shrunk, made) = (calls("ncclCommShrink"), calls("ncclCommInitRankConfig"));
    let mut world = World::new(Carrier::Nccl, Shape::Half, 3);
    world.bootstraps = Some(Box::new(move |rank| {
        let from = remains[&rank].clone();
        Box::new(fake::bootstrap_with(rank, CommSource::Rebuilt { from }))
    }));
    world.run(|rig| {
        assert_eq!(rig.sync(&options(1)), Ok(State::Done));
        if let Some(d) = rig.destination() {
            assert_eq!(d.now(), d.expected(1));
        }
    });
    (
        calls("ncclCommShrink") - shrunk,
        calls("ncclCommInitRankConfig") - made,
    )
}

#[test]
#[ignore = "a process of the test below"]
fn as_nccl_without_revoke() {
    let _alone = alone();
    // An abort frees the communicator: there is nothing to shrink.
    assert_eq!(rebuild_after_a_loss(), (0, 4));
}

#[test]
fn survivors_rebuild_by_an_id_where_nccl_shrinks_and_does_not_revoke() {
    let shrinks_only = [("FAKE_NCCL_TEST_NO_REVOKE", "1")];
    run_case("as_nccl_without_revoke", &shrinks_only);
}

#[test]
fn survivors_shrink_once_the_revocation_is_over() {
    let _alone = alone();
    assert_eq!(rebuild_after_a_loss(), (4, 0));
}

#[test]
fn a_minimum_of_thread_blocks_needs_a_maximum() {
    let _alone = alone();
    let limits = |ctas_min, ctas_max| NcclOptions {
        limits: CommLimits {
            ctas_min,
            ctas_max,
            ..CommLimits::default()
        },
        ..fake::options(0, CommSource::Own { id: None })
    };
    for (min, max) in [(2, 0), (3, 2)] {
        let e = NcclBootstrap::new(true, limits(min, max)).unwrap_err();
        assert_eq!(e.status, Status::InvalidArgument, "{min} {max}");
        assert!(e.message.contains(&format!("at least {min}")), "{e}");
    }
    NcclBootstrap::new(true, limits(2, 2)).unwrap();
}

// --- memory that is not what it is said to be --------------------------------

/// Pageable memory of a test.
fn pageable(bytes: u64) -> (Vec<u8>, MemoryRange) {
    let memory = vec![7u8; bytes as usize];
    let range = MemoryRange {
        address: memory.as_ptr().expose_provenance(),
        bytes,
    };
    (memory, range)
}

#[test]
fn host_memory_bound_as_a_gpus_is_refused() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Half, 3);
    world.run(|rig| {
        let Some(source) = rig.source() else { return };
        let bytes = source.buffers[0].range().bytes;
        let (_memory, range) = pageable(bytes);
        let gpu = fake::gpu_of(rig.rank);
        rig.session
            .bind(Side::Source, "a.weight", range, Memory::Device(gpu))
            .unwrap();
        let e = rig.session.load(world.plan(3)).unwrap_err();
        assert_eq!(e.status, Status::BufferMismatch, "{e}");
        assert!(e.message.contains("\"a.weight\" (source)"), "{e}");
        // The plan that was loaded before looks again, too.
        let e = rig.request.prepare(&options(1)).unwrap_err();
        assert_eq!(e.status, Status::BufferMismatch, "{e}");
    });
}

#[test]
fn pinned_memory_is_really_pinned_and_stays_so() {
    let _alone = alone();
    let mut world = World::new(Carrier::Nccl, Shape::Half, 3);
    world.host_sources = true;
    world.run(|rig| {
        let Some(source) = rig.source() else { return };
        let bytes = source.buffers[0].range().bytes;
        let bind = |range, memory| {
            let bound = rig.session.bind(Side::Source, "a.weight", range, memory);
            bound.unwrap();
        };
        let (_memory, range) = pageable(bytes);
        bind(range, Memory::PinnedHost);
        let e = rig.session.load(world.plan(3)).unwrap_err();
        assert!(e.message.contains("pageable host memory"), "{e}");

        let device = world.gpu(rig.rank).unwrap();
        let pinned = MemoryRange {
            address: device.gpu().allocate_pinned(bytes).unwrap(),
            bytes,
        };
        bind(pinned, Memory::PinnedHost);
        let slot = rig.session.load(world.plan(3)).unwrap();
        // The program reads it where it lies; the other one has it staged.
        bind(range, Memory::Host);
        let request = Request::new(&rig.session, slot).unwrap();
        let e = request.prepare(&options(1)).unwrap_err();
        assert_eq!(e.status, Status::BufferMismatch, "{e}");
        assert!(e.message.contains("load the plan again"), "{e}");
    });
}

// --- both ends of a channel --------------------------------------------------

/// The sender has less to send than the receiver waits for, and begins only
/// when it is aborted: its stream then lowers the word that has let the
/// receiver go.
#[test]
fn a_stream_that_was_let_go_does_not_hold_up_the_other() {
    let _alone = alone();
    let device = exec_support::fake_gpu::device();
    // A queue that hangs would hang when it is dropped.
    let queue = || -> &CudaQueue { Box::leak(Box::new(CudaQueue::new(device.gpu()).unwrap())) };
    let (sending, receiving) = (queue(), queue());
    let cut = ChannelOptions {
        slot_count: 2,
        slot_bytes: 4096,
    };
    for round in 0..3 {
        let (ours, theirs) = (Arc::<AbortCell>::default(), Arc::<AbortCell>::default());
        let sender = ChannelSender::new(device.gpu(), cut, &ours).unwrap();
        let receiver = ChannelReceiver::new(device.gpu(), &sender.offer(), &theirs).unwrap();
        let run = |slots: u64| {
            let bytes = slots * cut.slot_bytes;
            exec_support::fake_gpu::GpuMemory::new(&device, bytes, 1)
        };
        let (few, many) = (run(25), run(60));
        let never = Fence::new(&Arc::<Timeline>::default(), 1);
        let received = receiver.receive(receiving, many.range(), &Fence::default());
        let sent = sender.send(sending, few.range(), &never).unwrap();
        let received = received.unwrap();
        assert!(!received.wait(Duration::from_millis(20)));
        ours.set(Error::new(Status::Aborted, "test"));
        assert!(sent.wait(LONG), "round {round}");
        assert!(received.wait(LONG), "round {round}");
    }
}

#[test]
fn staging_is_freed_when_nobody_has_it_open() {
    let _alone = alone();
    let device = exec_support::fake_gpu::device();
    let abort = Arc::<AbortCell>::default();
    let cut = ChannelOptions::default();
    let staging = cut.slot_bytes as usize * cut.slot_count as usize;
    let before = exec_support::fake_gpu::allocated();
    let more = || exec_support::fake_gpu::allocated() - before;
    let sender = ChannelSender::new(device.gpu(), cut, &abort).unwrap();
    let receiver = ChannelReceiver::new(device.gpu(), &sender.offer(), &abort).unwrap();
    drop(sender);
    assert_eq!(more(), staging, "the receiver has it open");
    drop(receiver);
    // The next channel finds what is left.
    drop(ChannelSender::new(device.gpu(), cut, &abort).unwrap());
    assert_eq!(more(), 0);
}

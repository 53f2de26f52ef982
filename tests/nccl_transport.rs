//! Transfers through NCCL: whole ones, and those that go wrong. On the stand-in
//! NCCL, with ranks as threads and a GPU for each.

mod exec_support;

use exec_support::address::free_address;
use exec_support::fake_gpu::nccl::{self as fake, Wrong, alone, calls, inject};
use exec_support::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use weightsync::exec::*;
use weightsync::transport::Bootstrap;
use weightsync::transport::nccl::{CommSource, IpcScope, NcclBootstrap, NcclOptions, Remains};
use weightsync::{Error, Rank, Status};

/// How long a step may take where it is the deadline that ends it; else it is
/// something else that does, long before.
const SOON: u64 = 600 * MS;
const LATE: u64 = 20 * SECOND;

fn within(stall_deadline_ns: u64, version: u64) -> RequestOptions {
    RequestOptions {
        stall_deadline_ns,
        ..options(version)
    }
}

fn sync_all(world: &World, versions: u64) {
    world.run(|rig| {
        for version in 1..=versions {
            assert_eq!(rig.sync(&options(version)), Ok(State::Done));
            let outcome = rig.request.outcome();
            assert_eq!(outcome, Some((Outcome::Complete, Outcome::Complete)));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version));
            }
        }
    });
}

#[test]
fn versions_arrive_and_a_step_is_one_group() {
    let _alone = alone();
    for shape in [Shape::Apart, Shape::Colocated] {
        let (steps, versions) = (3, 3);
        let world = World::new(Carrier::Nccl, shape, steps);
        let before = calls("ncclGroupEnd");
        sync_all(&world, versions);
        let groups = calls("ncclGroupEnd") - before;
        // One for the warm-up of every rank, then at most one a step.
        let ranks = u64::from(shape.rank_count());
        let most = ranks * (1 + versions * u64::from(steps));
        assert!(groups <= most, "{shape:?}: {groups} groups, {most} at most");
        assert!(groups > ranks, "{groups}");
    }
    assert!(eventually(|| fake::comms() == 0));
}

#[test]
fn sources_on_the_host_are_staged() {
    let _alone = alone();
    let mut world = World::new(Carrier::Nccl, Shape::Half, 3);
    world.host_sources = true;
    sync_all(&world, 2);
}

/// Everything here once more with an NCCL that has what 2.18 has.
#[test]
fn the_same_with_an_old_nccl() {
    if std::env::var_os("FAKE_NCCL_TEST_OLD").is_some() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--test-threads", "1"])
        .env("FAKE_NCCL_TEST_OLD", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

fn is_old() -> bool {
    std::env::var_os("FAKE_NCCL_TEST_OLD").is_some()
}

/// The failures of ranks that try to meet.
fn meeting(count: u32, options: impl Fn(u32) -> NcclOptions) -> Error {
    let bootstrap = |rank: u32| {
        let made = NcclBootstrap::new(rank == 0, options(rank)).unwrap();
        Box::new(made) as Box<dyn Bootstrap>
    };
    meet(count, bootstrap).unwrap_err()
}

#[test]
fn ranks_with_other_versions_do_not_begin() {
    let _alone = alone();
    let before = calls("ncclCommInitRankConfig");
    let e = meeting(3, |rank| NcclOptions {
        library: Some(match rank {
            2 => fake::nccl_old(),
            _ => fake::nccl(),
        }),
        ..fake::options(rank, CommSource::Own { id: None })
    });
    assert_eq!(e.status, Status::VersionMismatch, "{e}");
    assert_eq!(e.rank.map(|r| r.0), Some(2));
    assert!(
        e.message.contains("2.30.7") && e.message.contains("2.18.5"),
        "{e}"
    );
    assert_eq!(calls("ncclCommInitRankConfig"), before);
}

#[test]
fn two_ranks_on_one_gpu_are_named() {
    let _alone = alone();
    let e = meeting(3, |rank| NcclOptions {
        device: Some(rank % 2),
        ipc: IpcScope::Off,
        ..fake::options(rank, CommSource::Own { id: None })
    });
    assert_eq!(e.status, Status::Unsupported, "{e}");
    assert!(e.message.contains("ranks 0 and 2 are both on GPU"), "{e}");
}

fn own_bootstrap(rank: u32) -> Box<dyn Bootstrap> {
    Box::new(fake::bootstrap_with(rank, CommSource::Own { id: None }))
}

/// Copies of the first exchange are on the stream when its group is refused.
/// The others hear of it, whose exchange would never end.
#[test]
fn a_first_exchange_that_fails_is_told_and_leaves_the_gpu_in_order() {
    let _alone = alone();
    for nth in [1, 2, 5] {
        fake::fail("ncclSend", nth, 4);
        let begun = Instant::now();
        let errors: Vec<Error> = meet_each(20 * SECOND, 3, own_bootstrap)
            .into_iter()
            .map(|met| met.1.unwrap_err())
            .collect();
        assert!(begun.elapsed() < Duration::from_secs(10), "{errors:?}");
        for e in &errors {
            assert!(e.message.contains("ncclSend"), "{errors:?}");
        }
        let named: Vec<_> = errors.iter().filter_map(|e| e.rank).collect();
        assert!(named.len() == 2 && named[0] == named[1], "{errors:?}");
    }
    sync_all(&World::new(Carrier::Nccl, Shape::Half, 2), 1);
}

#[test]
fn an_abort_ends_a_first_exchange_that_hangs() {
    let _alone = alone();
    inject(1, 0, Wrong::Hang, 0);
    let begun = Instant::now();
    let before = calls("ncclGroupEnd");
    let met = meet_with(20 * SECOND, 3, own_bootstrap, |rank, endpoint| {
        if rank == 2 {
            assert!(eventually(|| calls("ncclGroupEnd") == before + 3));
            endpoint.abort("the user is impatient");
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
    for (_, result) in met {
        let e = result.unwrap_err();
        assert_eq!((e.status, e.rank), (Status::Aborted, Some(Rank(2))), "{e}");
        assert!(e.message.contains("the user is impatient"), "{e}");
    }
    fake::heal();
    sync_all(&World::new(Carrier::Nccl, Shape::Half, 2), 1);
}

#[test]
fn no_library_and_no_gpu_are_said() {
    let _alone = alone();
    let own = || CommSource::Own { id: None };
    let missing = NcclOptions {
        library: Some(PathBuf::from("/nowhere/libnccl.so.2")),
        ..fake::options(0, own())
    };
    let e = NcclBootstrap::new(true, missing).unwrap_err();
    assert_eq!(e.status, Status::LibraryNotFound);
    assert!(e.message.contains("/nowhere/libnccl.so.2"), "{e}");

    let none = NcclOptions {
        device: Some(99),
        ..fake::options(0, own())
    };
    let e = NcclBootstrap::new(true, none).unwrap_err();
    assert!(e.message.contains("no GPU 99"), "{e}");

    let e = NcclBootstrap::new(true, fake::options(0, CommSource::Split { comm: 0 }));
    assert_eq!(e.unwrap_err().status, Status::InvalidArgument);
}

/// Runs a version that goes wrong on `victim`; every rank ends soon, tells the
/// truth about its memory, and refuses to go on.
fn fails(world: &World, stall_ns: u64, what: &str, strike: impl Fn(&mut Rig) + Sync) -> Vec<Error> {
    let begun = Instant::now();
    let ended: Vec<(Verdict, Error)> = world.run(|rig| {
        let before = rig.snapshot();
        rig.store(1);
        let submitted = rig.request.submit(&within(stall_ns, 1));
        strike(rig);
        let e = submitted
            .and_then(|()| rig.request.wait(20 * SECOND).map(drop))
            .unwrap_err();
        let again = rig.request.prepare(&options(2)).unwrap_err();
        assert!(again.status.is_transport_lost(), "{what}: {again}");
        // What runs on is to be seen in memory.
        std::thread::sleep(Duration::from_millis(20));
        (rig.verdict(world, 1, &before), e)
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
    let (verdicts, errors): (Vec<_>, Vec<_>) = ended.into_iter().unzip();
    check_verdicts(&verdicts, what);
    errors
}

#[test]
fn a_kernel_that_hangs_is_stopped_at_any_step() {
    let _alone = alone();
    for victim in [0, 2, 3] {
        for step in 0..3 {
            fake::heal();
            let world = World::new(Carrier::Nccl, Shape::Half, 3);
            inject(victim, step + 1, Wrong::Hang, 0);
            let what = format!("rank {victim} hangs at step {step}");
            let errors = fails(&world, SOON, &what, |_| ());
            for e in &errors {
                assert_eq!(e.status, Status::Stalled, "{what}: {e}");
                assert_eq!(e.rank.map(|r| r.0), Some(victim), "{what}: {e}");
            }
            // Whoever waits for it says for what.
            let step = format!("step {} of 3, exchanging with", step + 1);
            let says = |e: &Error, whom: &str| {
                e.message.contains(&format!("{step} {whom}: \"")) && e.message.contains(".weight\"")
            };
            assert!(says(&errors[victim as usize], "others"), "{errors:?}");
            let others = errors.iter().filter(|e| says(e, &format!("rank {victim}")));
            assert!(others.count() > 0, "{what}: {errors:?}");
        }
    }
    assert!(eventually(|| fake::comms() == 0));
}

/// What is packed lies in staging until it is unpacked, and no step has come so
/// far.
#[test]
fn packed_bytes_that_have_not_all_come_leave_memory_untouched() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Half, 3);
    let memory = Carrier::Nccl.memory();
    let packed = Shape::Half.plan_with(3, &|_| memory, 1 << 30);
    for source in [0, 1] {
        inject(source, 1, Wrong::Hang, 0);
    }
    let ended = world.run_with(
        |_| packed.clone(),
        |rig| {
            let before = rig.snapshot();
            rig.store(1);
            let submitted = rig.request.submit(&within(SOON, 1));
            let ended = submitted.and_then(|()| rig.request.wait(20 * SECOND).map(drop));
            assert_eq!(ended.unwrap_err().status, Status::Stalled);
            rig.verdict(&world, 1, &before)
        },
    );
    for v in ended.iter().filter(|v| v.copy.is_some()) {
        let untouched = Some((Outcome::Untouched, Outcome::Untouched));
        assert_eq!(v.outcome, untouched, "rank {}", v.rank);
    }
    check_verdicts(&ended, "packed");
}

#[test]
fn an_error_of_nccl_reaches_every_rank() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Apart, 2);
    inject(3, 1, Wrong::Error, 6);
    for e in fails(&world, LATE, "rank 3 fails", |_| ()) {
        assert_eq!(e.status, Status::PeerLost, "{e}");
        assert!(e.message.contains("ncclRemoteError"), "{e}");
    }
}

#[test]
fn an_abort_from_another_thread_ends_the_transfer() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Apart, 2);
    inject(0, 1, Wrong::Hang, 0);
    let errors = fails(&world, LATE, "abort", |rig| {
        if rig.rank == 4 {
            let endpoint = rig.endpoint.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                endpoint.abort("the user is impatient");
            });
        }
    });
    for e in errors {
        assert_eq!(e.status, Status::Aborted, "{e}");
        assert_eq!(e.message, "the user is impatient");
    }
}

#[test]
fn a_late_kernel_is_no_failure() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Half, 2);
    inject(1, 1, Wrong::Delay, 100);
    sync_all(&world, 1);
}

/// Communicators of the caller's, made as PyTorch or vLLM would.
struct Lent {
    comms: Vec<usize>,
}

impl Lent {
    fn new(count: u32) -> Lent {
        let nccl = api();
        let mut id = nccl_sys::ncclUniqueId::from_bytes([0; 128]);
        // SAFETY: a place for an id.
        unsafe { (nccl.ncclGetUniqueId)(&mut id) };
        let id = id.to_bytes();
        let join = move |rank: u32| {
            let device = fake_gpu::device_of(rank);
            let _current = device.gpu().enter().unwrap();
            let mut comm = nccl_sys::ncclComm_t::NULL;
            let mut config = nccl_sys::ncclConfig_t::default();
            let id = nccl_sys::ncclUniqueId::from_bytes(id);
            // SAFETY: places for what is written.
            let result = unsafe {
                let (n, rank) = (count as i32, rank as i32);
                (api().ncclCommInitRankConfig)(&mut comm, n, id, rank, &mut config)
            };
            assert_eq!(result, nccl_sys::ncclResult_t::SUCCESS);
            comm.0.expose_provenance()
        };
        let threads: Vec<_> = (0..count)
            .map(|rank| std::thread::spawn(move || join(rank)))
            .collect();
        Lent {
            comms: threads.into_iter().map(|t| t.join().unwrap()).collect(),
        }
    }

    fn free(self) {
        for comm in self.comms {
            // SAFETY: live, and not used after.
            unsafe { (api().ncclCommAbort)(handle(comm)) };
        }
    }
}

fn handle(comm: usize) -> nccl_sys::ncclComm_t {
    nccl_sys::ncclComm_t(std::ptr::with_exposed_provenance_mut(comm))
}

fn api() -> &'static nccl_sys::Api {
    static API: std::sync::OnceLock<nccl_sys::Library> = std::sync::OnceLock::new();
    let load = || {
        let search = nccl_sys::Search {
            asked: Some(nccl_sys::Asked {
                by: "the test".into(),
                path: fake::library(),
            }),
            only_loaded: false,
        };
        // SAFETY: the stand-in, built from the sources beside us.
        unsafe { nccl_sys::load(&search) }.unwrap()
    };
    &API.get_or_init(load).api
}

/// A world whose ranks borrow their communicators.
fn borrowing(shape: Shape, source: impl Fn(u32) -> CommSource + Send + Sync + 'static) -> World {
    let mut world = World::new(Carrier::Nccl, shape, 3);
    world.bootstraps = Some(Box::new(move |rank| {
        Box::new(fake::bootstrap_with(rank, source(rank)))
    }));
    world
}

#[test]
fn a_borrowed_communicator_is_split_and_left_alone() {
    let _alone = alone();
    let lent = Lent::new(4);
    let comms = lent.comms.clone();
    let world = borrowing(Shape::Half, move |rank| CommSource::Split {
        comm: comms[rank as usize],
    });
    let before = calls("ncclCommSplit");
    sync_all(&world, 2);
    assert_eq!(calls("ncclCommSplit") - before, 4);
    // Ours are freed, the caller's are not.
    assert!(eventually(|| fake::comms() == 4));
    lent.free();
}

#[test]
fn a_borrowed_communicator_is_used_directly() {
    let _alone = alone();
    let lent = Lent::new(5);
    let comms = lent.comms.clone();
    // The caller's ranks are turned round, and one is not ours.
    let world = borrowing(Shape::Half, move |rank| CommSource::Direct {
        comm: comms[rank as usize],
        on_abort: Default::default(),
    });
    sync_all(&world, 2);
    assert_eq!(fake::comms(), 5);
    lent.free();
}

#[test]
fn a_direct_communicator_is_revoked_or_its_owner_told() {
    let _alone = alone();
    let lent = Lent::new(4);
    let comms = lent.comms.clone();
    let (before_aborts, before_revokes) = (calls("ncclCommAbort"), calls("ncclCommRevoke"));
    let told = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let theirs = told.clone();
    let world = borrowing(Shape::Half, move |rank| {
        let (comm, told) = (comms[rank as usize], theirs.clone());
        CommSource::Direct {
            comm,
            on_abort: weightsync::transport::nccl::OnAbort::new(move |reason| {
                assert_eq!(reason.status, Status::Stalled);
                told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                // SAFETY: the owner's own, at the time it was asked to.
                unsafe { (api().ncclCommAbort)(handle(comm)) };
            }),
        }
    });
    inject(1, 1, Wrong::Hang, 0);
    fails(&world, SOON, "a direct communicator", |_| ());
    let told = told.load(std::sync::atomic::Ordering::Relaxed);
    if is_old() {
        assert_eq!(told, 4);
    } else {
        assert_eq!(told, 0);
        assert_eq!(calls("ncclCommRevoke") - before_revokes, 4);
        assert_eq!(calls("ncclCommAbort"), before_aborts);
        lent.free();
    }
}

/// A transport that keeps what its survivors need.
fn rebuildable(rank: u32) -> Box<dyn Bootstrap> {
    let options = NcclOptions {
        is_rebuildable: true,
        ..fake::options(rank, CommSource::Own { id: None })
    };
    Box::new(NcclBootstrap::new(rank == 0, options).unwrap())
}

#[test]
fn survivors_rebuild_their_transport() {
    let _alone = alone();
    let mut world = World::new(Carrier::Nccl, Shape::Apart, 2);
    world.bootstraps = Some(Box::new(rebuildable));
    inject(4, 1, Wrong::Hang, 0);
    let remains = Mutex::new(BTreeMap::new());
    fails(&world, SOON, "rank 4 is lost", |rig| {
        let transport = rig.endpoint.transport().unwrap();
        let mine = Remains::of(&*transport).unwrap();
        remains.lock().unwrap().insert(rig.rank, mine);
    });
    fake::heal();

    // Ranks 4 and 5 do not come back.
    let remains = remains.into_inner().unwrap();
    let (shrunk, made) = (calls("ncclCommShrink"), calls("ncclCommInitRankConfig"));
    let world = borrowing(Shape::Half, move |rank| CommSource::Rebuilt {
        from: remains[&rank].clone(),
    });
    sync_all(&world, 2);
    let shrunk = calls("ncclCommShrink") - shrunk;
    let made = calls("ncclCommInitRankConfig") - made;
    match is_old() {
        // From a unique id.
        true => assert_eq!((shrunk, made), (0, 4)),
        false => assert_eq!((shrunk, made), (4, 0)),
    }
    drop(world);
    assert!(eventually(|| fake::comms() == 0));
}

/// One rank of its own process, for tests in which a process dies.
#[test]
#[ignore = "a process of the tests below"]
fn as_process() {
    let Ok(rank) = std::env::var("NCCL_TEST_RANK") else {
        return;
    };
    let rank: u32 = rank.parse().unwrap();
    let address = std::env::var("NCCL_TEST_ADDRESS").unwrap();
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Half, 3);
    let ranks = RankSet::count(4).unwrap();
    let endpoint = Endpoint::new(Rank(rank), ranks, world.bootstrap(rank)).unwrap();
    if let Err(e) = endpoint.rendezvous(&address, b"a token of the test", 20 * SECOND) {
        return println!("rank {rank}: {:?} blames {:?}", e.status, e.rank);
    }
    let rig = world.rig(endpoint, &|_| world.plan(3));
    let before = rig.snapshot();
    rig.store(1);
    let done = rig
        .request
        .submit(&options(1))
        .and_then(|()| rig.request.wait(20 * SECOND).map(drop));
    let verdict = rig.verdict(&world, 1, &before);
    check_verdicts(&[verdict], "a process died");
    match done {
        Ok(()) => println!("rank {rank}: complete"),
        Err(e) => println!("rank {rank}: {:?} blames {:?}", e.status, e.rank),
    }
}

#[test]
fn a_process_that_dies_is_named_and_the_others_end() {
    let moments = [
        (0, "while the ranks meet"),
        (1, "in the first step"),
        (3, "in the last"),
    ];
    for (group, is_in) in moments {
        for notices in ["hang", "error"] {
            let what = format!("dies {is_in}, noticed by {notices}");
            let address = free_address();
            let spawn = |rank: u32| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "as_process", "--ignored", "--nocapture"])
                    .env("NCCL_TEST_RANK", rank.to_string())
                    .env("NCCL_TEST_ADDRESS", &address)
                    .env("FAKE_NCCL_FAULT", format!("2:{group}:die"))
                    .env("FAKE_NCCL_PEER_DEATH", notices)
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            };
            let begun = Instant::now();
            let processes: Vec<_> = (0..4).map(spawn).collect();
            for (rank, process) in processes.into_iter().enumerate() {
                let output = process.wait_with_output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                if rank == 2 {
                    assert!(!output.status.success(), "{what}: it lives");
                    continue;
                }
                assert!(output.status.success(), "{what}: rank {rank}: {said}");
                // NCCL may notice first; it does not say who it was.
                let is_named = said.contains("PeerLost blames Some(Rank(2))");
                let is_noticed = notices == "error" && said.contains("PeerLost");
                assert!(is_named || is_noticed, "{what}: {said}");
            }
            assert!(begun.elapsed() < Duration::from_secs(15), "{what}");
        }
    }
}

//! Transfers through NCCL: whole ones, and those that go wrong. On the stand-in
//! NCCL, with ranks as threads and a GPU for each.

mod exec_support;

use exec_support::fake_gpu::nccl::{self as fake, Wrong, alone, calls, inject};
use exec_support::*;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use weightsync::exec::*;
use weightsync::transport::nccl::{CommSource, NcclBootstrap, NcclOptions};
use weightsync::{Error, Status};

fn short(version: u64) -> RequestOptions {
    RequestOptions {
        stall_deadline_ns: 300 * MS,
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
        Box::new(made) as Box<dyn weightsync::transport::Bootstrap>
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
        ..fake::options(rank, CommSource::Own { id: None })
    });
    assert_eq!(e.status, Status::Unsupported, "{e}");
    assert!(e.message.contains("ranks 0 and 2 are both on GPU"), "{e}");
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
fn fails(world: &World, what: &str, strike: impl Fn(&mut Rig) + Sync) -> Vec<Error> {
    let begun = Instant::now();
    let ended: Vec<(Verdict, Error)> = world.run(|rig| {
        let before = rig.snapshot();
        rig.store(1);
        let submitted = rig.request.submit(&short(1));
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
            for e in fails(&world, &what, |_| ()) {
                assert_eq!(e.status, Status::Stalled, "{what}: {e}");
            }
        }
    }
    assert!(eventually(|| fake::comms() == 0));
}

#[test]
fn an_error_of_nccl_reaches_every_rank() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Apart, 2);
    inject(3, 1, Wrong::Error, 6);
    for e in fails(&world, "rank 3 fails", |_| ()) {
        assert_eq!(e.status, Status::PeerLost, "{e}");
        assert!(e.message.contains("ncclRemoteError"), "{e}");
    }
}

#[test]
fn an_abort_from_another_thread_ends_the_transfer() {
    let _alone = alone();
    let world = World::new(Carrier::Nccl, Shape::Apart, 2);
    inject(0, 1, Wrong::Hang, 0);
    let errors = fails(&world, "abort", |rig| {
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
    fails(&world, "a direct communicator", |_| ());
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

//! Several ranks on a GPU, of which NCCL takes one: bytes to and from the others
//! go through GPU memory that processes export to each other. On the stand-in,
//! with two GPUs for four ranks:
//!
//! ```text
//!   GPU 0   rank 0 (source), rank 2 (destination)
//!   GPU 1   rank 1 (source), rank 3 (destination)
//! ```
//!
//! And with two ranks to a GPU, each GPU in a host of its own. `tests/gpu/nccl`
//! names those that run on a real GPU too.

mod exec_support;

use exec_support::address::free_address;
use exec_support::fake_gpu::nccl::{self as fake, alone, calls, spread_over};
use exec_support::*;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weightsync::device::cuda::CudaDevice;
use weightsync::device::cuda::place::is_exportable;
use weightsync::exec::*;
use weightsync::transport::nccl::{IpcScope, NcclOptions};
use weightsync::{Rank, Status};

const GPUS: u32 = 2;
const TOKEN: &[u8] = b"a token of the test";

/// Ranks on shared GPUs, with a choice of IPC.
fn world(shape: Shape, ipc: IpcScope) -> World {
    World::over_nccl(shape, 3, move |_, options| NcclOptions { ipc, ..options })
}

fn begin() -> impl Drop {
    let guard = alone();
    spread_over(if fake_gpu::is_real() { 1 } else { GPUS });
    guard
}

/// NCCL ranks that this process has made, as far as the stand-in can tell.
fn made() -> Option<u64> {
    (!fake_gpu::is_real()).then(|| calls("ncclCommInitRankConfig"))
}

/// Three versions arrive in all destinations, digests too.
fn every_byte(world: &World, what: &str) {
    world.run(|rig| {
        for version in 1..=3 {
            let o = RequestOptions {
                flags: FLAG_VERIFY,
                ..options(version)
            };
            assert_eq!(rig.sync(&o), Ok(State::Done), "{what}");
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version), "{what}");
            }
        }
    });
}

#[test]
fn ranks_that_share_gpus_exchange_every_byte() {
    let _alone = begin();
    for ipc in [IpcScope::Needed, IpcScope::Device, IpcScope::Domain] {
        for shape in [Shape::Half, Shape::Colocated, Shape::Forwarded] {
            let world = world(shape, ipc);
            let before = made();
            every_byte(&world, &format!("{ipc:?} {shape:?}"));
            // One NCCL rank per GPU.
            let made = before.map(|before| before + u64::from(GPUS));
            assert_eq!(self::made(), made, "{ipc:?} {shape:?}");
        }
    }
    assert!(fake_gpu::is_real() || eventually(|| fake::comms() == 0));
}

#[test]
fn a_domain_needs_no_message_of_nccl() {
    let _alone = begin();
    let world = world(Shape::Half, IpcScope::Domain);
    // The warm-up: every NCCL rank to every other and itself.
    let before = calls("ncclSend");
    world.run(|rig| assert_eq!(rig.sync(&options(1)), Ok(State::Done)));
    assert_eq!(calls("ncclSend") - before, u64::from(GPUS * GPUS));
}

#[test]
fn without_ipc_the_two_ranks_of_a_gpu_are_named() {
    let _alone = begin();
    let world = world(Shape::Half, IpcScope::Off);
    let e = meet(4, |rank| world.bootstrap(rank)).unwrap_err();
    assert_eq!(e.status, Status::Unsupported, "{e}");
    assert!(e.message.contains("ranks 0 and 2 are both on GPU"), "{e}");
}

/// Memory as of torch's expandable segments and of vLLM's sleep mode.
#[test]
fn memory_that_cannot_be_exported_is_exchanged_all_the_same() {
    let _alone = begin();
    let world = world(Shape::Half, IpcScope::Needed);
    world.run(|rig| {
        rig.store(1);
        let vmm = |device: &CudaDevice, bytes: u64| {
            let _current = device.gpu().enter().unwrap();
            let address = fake_gpu::allocate_vmm(bytes as usize);
            assert!(!is_exportable(device.gpu(), address).unwrap());
            address
        };
        rig.in_memory_of(&world, vmm, || {
            rig.request.submit(&options(1)).unwrap();
            assert_eq!(rig.request.wait(60 * SECOND), Ok(State::Done));
        });
        if let Some(d) = rig.destination() {
            assert_eq!(d.now(), d.expected(1));
        }
    });
}

// --- lending -----------------------------------------------------------------

/// Ranks on shared GPUs that read each other's buffers, in slots of `slot_bytes`
/// what they cannot read.
fn lending(shape: Shape, ipc: IpcScope, slot_bytes: u32) -> World {
    World::over_nccl(shape, 3, move |_, options| NcclOptions {
        ipc,
        slot_bytes,
        is_lending: true,
        ..options
    })
}

#[test]
fn buffers_that_are_lent_are_read_where_they_lie() {
    let _alone = begin();
    for ipc in [IpcScope::Device, IpcScope::Domain] {
        for shape in [Shape::Half, Shape::Colocated, Shape::Forwarded] {
            every_byte(&lending(shape, ipc, 16), &format!("{ipc:?} {shape:?}"));
        }
    }
}

/// Each copy of the same bytes goes into a slot and out of it; what is lent is
/// copied once.
#[test]
fn what_is_lent_is_copied_once() {
    let _alone = begin();
    let copies = |world: World| {
        let before = fake_gpu::calls("cudaMemcpyAsync");
        world.run(|rig| assert_eq!(rig.sync(&options(1)), Ok(State::Done)));
        fake_gpu::calls("cudaMemcpyAsync") - before
    };
    let staged = copies(world(Shape::Half, IpcScope::Domain));
    let lent = copies(lending(Shape::Half, IpcScope::Domain, 0));
    assert!(
        lent < staged,
        "{lent} copies of what is lent, {staged} otherwise"
    );
}

/// Plans with other steps, of the same buffers.
#[test]
fn loans_of_plans_that_take_turns_are_not_mixed_up() {
    let _alone = begin();
    let world = lending(Shape::Half, IpcScope::Domain, 16);
    world.run(|rig| {
        let slots = [1, 2, 5].map(|steps| rig.session.load(world.plan(steps)).unwrap());
        let requests = slots.map(|slot| Request::new(&rig.session, slot).unwrap());
        for version in 1..=9 {
            rig.store(version);
            let request = &requests[version as usize % 3];
            request.submit(&options(version)).unwrap();
            assert_eq!(request.wait(60 * SECOND), Ok(State::Done));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version), "version {version}");
            }
        }
    });
}

/// Bound anew for a version: memory that can be read, then some that cannot, and
/// back.
#[test]
fn loans_follow_the_buffers_that_are_bound() {
    let _alone = begin();
    let world = lending(Shape::Half, IpcScope::Domain, 16);
    let plain = |device: &CudaDevice, bytes: u64| device.gpu().allocate(bytes).unwrap();
    let vmm = |device: &CudaDevice, bytes: u64| {
        let _current = device.gpu().enter().unwrap();
        fake_gpu::allocate_vmm(bytes as usize)
    };
    world.run(|rig| {
        for version in 1..=4 {
            rig.store(version);
            let request = || {
                rig.request.submit(&options(version)).unwrap();
                assert_eq!(rig.request.wait(60 * SECOND), Ok(State::Done));
            };
            match version % 2 {
                0 => rig.in_memory_of(&world, vmm, request),
                _ => rig.in_memory_of(&world, plain, request),
            }
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version));
            }
        }
    });
}

// --- hosts -------------------------------------------------------------------

/// Two ranks on the GPU of every host: the even ones are NCCL's.
fn on_hosts(shape: Shape, slot_bytes: u32) -> World {
    World::over_nccl(shape, 3, move |rank, options| NcclOptions {
        device: Some(rank / 2),
        host: Some([rank as u8 / 2; 16]),
        slot_bytes,
        ..options
    })
}

/// Sources 0 and 1 on one host, destinations on others: every second message
/// is from or to a rank that NCCL does not know, or both.
#[test]
fn endpoints_carry_what_their_guests_exchange_with_other_hosts() {
    let _alone = begin();
    for slot_bytes in [16, 80, 4096, 0] {
        for shape in [
            Shape::Half,
            Shape::Apart,
            Shape::Colocated,
            Shape::Forwarded,
            Shape::Wide,
        ] {
            let what = format!("{slot_bytes} {shape:?}");
            every_byte(&on_hosts(shape, slot_bytes), &what);
        }
    }
    assert!(eventually(|| fake::comms() == 0));
}

/// Of three NCCL ranks, one for each host, the last hangs in the group of a step
/// or in one of those that carry. All ranks name it, guests too.
#[test]
fn an_endpoint_that_hangs_is_named() {
    let _alone = begin();
    // Of all steps; the first group is the warm-up.
    for group in 1..=8 {
        fake::heal();
        let world = on_hosts(Shape::Apart, 0);
        fake::inject(2, group, fake::Wrong::Hang, 0);
        world.run(|rig| {
            let before = rig.snapshot();
            rig.store(1);
            let o = RequestOptions {
                stall_deadline_ns: SECOND,
                ..options(1)
            };
            rig.request.submit(&o).unwrap();
            let e = rig.request.wait(20 * SECOND).map(drop).unwrap_err();
            assert_eq!(e.status, Status::Stalled, "{group}: {e}");
            assert_eq!(e.rank, Some(Rank(4)), "{group}: {e}");
            std::thread::sleep(Duration::from_millis(20));
            check_verdicts(&[rig.verdict(&world, 1, &before)], "hang");
        });
    }
    fake::heal();
}

#[test]
fn slots_of_other_sizes_are_refused() {
    let _alone = begin();
    let worlds = [16, 32].map(|bytes| on_hosts(Shape::Half, bytes));
    let other = |rank: u32| worlds[usize::from(rank == 3)].bootstrap(rank);
    let e = meet(4, other).unwrap_err();
    assert_eq!(e.rank, Some(Rank(3)), "{e}");
    assert!(e.message.contains("slots of 16 bytes, rank 3 of 32"), "{e}");
}

// --- processes ---------------------------------------------------------------

/// One rank in its own process: a version, then another in which what the
/// environment says goes wrong.
#[test]
#[ignore = "a process of the tests below"]
fn as_process() {
    let Ok(rank) = std::env::var("COLOCATED_RANK") else {
        return;
    };
    let rank: u32 = rank.parse().unwrap();
    let wrong = std::env::var("COLOCATED_WRONG").unwrap();
    let address = std::env::var("COLOCATED_ADDRESS").unwrap();
    let _alone = begin();
    let world = match std::env::var("COLOCATED_ON").as_deref() {
        Ok("hosts") => on_hosts(Shape::Half, 80),
        Ok("loan") => lending(Shape::Half, IpcScope::Domain, 16),
        _ => world(Shape::Half, IpcScope::Needed),
    };
    let culprit: u32 = std::env::var("COLOCATED_CULPRIT").unwrap().parse().unwrap();
    let ranks = RankSet::count(4).unwrap();
    let endpoint = Endpoint::new(Rank(rank), ranks, world.bootstrap(rank)).unwrap();
    endpoint.rendezvous(&address, TOKEN, 60 * SECOND).unwrap();
    let rig = world.rig(endpoint, &|_| world.plan(3));
    rig.sync(&options(1)).unwrap();
    if let Some(d) = rig.destination() {
        assert_eq!(d.now(), d.expected(1));
    }
    println!("rank {rank}: first version complete");
    if wrong == "nothing" {
        return;
    }
    let before = rig.snapshot();
    rig.store(2);
    rig.request.prepare(&options(2)).unwrap();
    // Whoever goes may do so before the others know that all are ready.
    let ready = rig.request.wait_ready(20 * SECOND);
    // The others wait for bytes of this rank, in streams.
    match &*wrong {
        _ if rank != culprit => {}
        "die" => std::process::abort(),
        _ => {
            std::thread::sleep(Duration::from_millis(100));
            rig.endpoint.abort("the user is impatient");
        }
    }
    let started = ready.and_then(|_| rig.request.start());
    let ended = started.and_then(|()| rig.request.wait(20 * SECOND).map(drop));
    let verdict = rig.verdict(&world, 2, &before);
    check_verdicts(&[verdict], &wrong);
    println!("rank {rank}: {:?}", ended.unwrap_err().status);
    // Everything is given back without waiting for anybody.
    let begun = Instant::now();
    drop(rig);
    assert!(begun.elapsed() < Duration::from_secs(10));
    println!("rank {rank}: closed");
}

/// What the four processes do: where they are, and what one of them does wrong.
#[derive(Clone, Copy)]
struct Play {
    on: &'static str,
    wrong: &'static str,
    culprit: u32,
}

fn spawn_all(play: Play) -> Vec<Child> {
    let address = free_address();
    let spawn = |rank: u32| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_process", "--ignored", "--nocapture"])
            .env("COLOCATED_RANK", rank.to_string())
            .env("COLOCATED_ON", play.on)
            .env("COLOCATED_WRONG", play.wrong)
            .env("COLOCATED_CULPRIT", play.culprit.to_string())
            .env("COLOCATED_ADDRESS", &address)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..4).map(spawn).collect()
}

fn run_all(play: Play, check: impl Fn(u32, bool, &str)) {
    // The stand-ins are built before four processes want to.
    drop(begin());
    let processes = spawn_all(play);
    for (rank, process) in (0..).zip(processes) {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("first version complete"), "{rank}: {said}");
        check(rank, output.status.success(), &said);
    }
}

fn run_without_fault(on: &'static str) {
    let play = Play {
        on,
        wrong: "nothing",
        culprit: 0,
    };
    run_all(play, |rank, is_fine, said| {
        assert!(is_fine, "{rank}: {said}");
    });
}

fn run_with_abort(on: &'static str, culprit: u32) {
    let play = Play {
        on,
        wrong: "abort",
        culprit,
    };
    run_all(play, |rank, is_fine, said| {
        assert!(is_fine && said.contains("Aborted"), "{rank}: {said}");
        assert!(said.contains("closed"), "{rank}: {said}");
    });
}

fn run_with_death(on: &'static str, culprit: u32) {
    let play = Play {
        on,
        wrong: "die",
        culprit,
    };
    run_all(play, |rank, is_fine, said| {
        if rank == culprit {
            return assert!(!is_fine, "{said}");
        }
        assert!(is_fine && said.contains("PeerLost"), "{rank}: {said}");
        assert!(said.contains("closed"), "{rank}: {said}");
    });
}

#[test]
fn processes_that_share_gpus_exchange_every_byte() {
    run_without_fault("gpus");
}

#[test]
fn processes_on_two_hosts_exchange_every_byte() {
    run_without_fault("hosts");
}

#[test]
fn processes_read_what_others_lend() {
    run_without_fault("loan");
}

#[test]
fn an_abort_ends_the_streams_of_all_processes() {
    run_with_abort("gpus", 2);
}

#[test]
fn an_abort_ends_loans() {
    run_with_abort("loan", 0);
    run_with_abort("loan", 3);
}

/// A source that is a guest, and an endpoint that carries for a destination.
#[test]
fn an_abort_ends_the_streams_of_guests_and_endpoints() {
    run_with_abort("hosts", 1);
    run_with_abort("hosts", 2);
}

#[test]
fn a_process_that_dies_keeps_nobody_waiting() {
    run_with_death("gpus", 2);
}

#[test]
fn whoever_dies_with_a_loan_keeps_nobody_waiting() {
    for culprit in 0..4 {
        run_with_death("loan", culprit);
    }
}

#[test]
fn a_guest_or_an_endpoint_that_dies_keeps_nobody_waiting() {
    for culprit in 0..4 {
        run_with_death("hosts", culprit);
    }
}

#[test]
#[ignore = "a process of the test below"]
fn on_parts() {
    let _alone = alone();
    let world = world(Shape::Half, IpcScope::Off);
    world.run(|rig| assert_eq!(rig.sync(&options(1)), Ok(State::Done)));
}

/// Parts of a GPU (MIG) have one PCI address, and are GPUs of their own.
#[test]
fn ranks_on_parts_of_a_gpu_are_not_on_one() {
    drop(begin());
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "on_parts", "--ignored", "--nocapture"])
        .env("FAKE_GPU_MIG", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}");
}

//! Ranks as threads: random worlds, deferred devices, aborts and faults.

mod transport_support;

use std::sync::Arc;
use std::time::{Duration, Instant};
use transport_support::Random;
use transport_support::world::*;
use weightsync::device::deferred::DeferredDevice;
use weightsync::device::fence::Timeline;
use weightsync::device::host::HostDevice;
use weightsync::device::{Device, MemoryRange, fence::Fence};
use weightsync::transport::loopback::{LoopbackHub, LoopbackTransport};
use weightsync::transport::{Fault, FaultKind, Transport};
use weightsync::{Error, Rank, Status};

fn soon() -> Instant {
    Instant::now() + LONG
}

fn attach_all(hub: &Arc<LoopbackHub>, ranks: u32) -> Vec<Arc<LoopbackTransport>> {
    (0..ranks).map(|r| hub.attach(Rank(r)).unwrap()).collect()
}

fn run(world: &World, hub: &Arc<LoopbackHub>, devices: &[Arc<dyn Device>], versions: u64) {
    let transports: Vec<Arc<dyn Transport>> = attach_all(hub, world.ranks)
        .into_iter()
        .map(|t| t as Arc<dyn Transport>)
        .collect();
    run_world(world, &transports, devices, versions);
    for (transport, program) in transports.iter().zip(&world.programs) {
        let done = transport.progress();
        assert_eq!(done.bytes_sent, versions * program.bytes_sent);
        assert_eq!(done.bytes_received, versions * program.bytes_received);
    }
}

fn host_devices(ranks: u32) -> Vec<Arc<dyn Device>> {
    (0..ranks)
        .map(|_| Arc::new(HostDevice::new().unwrap()) as Arc<dyn Device>)
        .collect()
}

fn deferred_devices(ranks: u32, seed: u64) -> Vec<Arc<dyn Device>> {
    (0..u64::from(ranks))
        .map(|r| Arc::new(DeferredDevice::pumped(seed * 97 + r).unwrap()) as Arc<dyn Device>)
        .collect()
}

#[test]
fn random_worlds_arrive() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let ranks = random.range(1, 5) as u32;
        let world = World::random(seed, ranks, random.range(1, 5) as u32);
        run(&world, &LoopbackHub::new(ranks), &host_devices(ranks), 3);
    }
}

#[test]
fn random_worlds_arrive_through_staging() {
    for seed in 100..130 {
        let mut random = Random(seed);
        let ranks = random.range(2, 5) as u32;
        let world = World::random(seed, ranks, random.range(1, 5) as u32);
        run(&world, &LoopbackHub::staged(ranks), &host_devices(ranks), 2);
    }
}

#[test]
fn nobody_reads_before_the_fence_of_a_deferred_device() {
    for seed in 200..230 {
        let mut random = Random(seed);
        let ranks = random.range(2, 4) as u32;
        let world = World::random(seed, ranks, random.range(1, 6) as u32);
        let devices = deferred_devices(ranks, seed);
        run(&world, &LoopbackHub::staged(ranks), &devices, 3);
    }
}

#[test]
fn large_messages_cross_chunks() {
    let world = World::stream(5 << 20, 3 << 10, 64, 3);
    run(&world, &LoopbackHub::new(2), &host_devices(2), 2);
    run(&world, &LoopbackHub::staged(2), &host_devices(2), 2);
}

/// Two ranks, bound and connected, and a request enqueued on both after
/// fences that the test advances.
struct Pair {
    transports: Vec<Arc<LoopbackTransport>>,
    memory: Vec<RankMemory>,
    bindings: Vec<Arc<weightsync::device::Binding>>,
    world: World,
}

impl Pair {
    fn new(world: World, hub: &Arc<LoopbackHub>) -> Pair {
        let transports = attach_all(hub, world.ranks);
        let mut memory: Vec<_> = (0..world.ranks).map(|r| world.memory(r, 1)).collect();
        let bindings: Vec<_> = transports
            .iter()
            .zip(&mut memory)
            .map(|(t, m)| world.bind(t.rank().0, m, MemoryRange::EMPTY, t.abort_cell()))
            .collect();
        for (t, b) in transports.iter().zip(&bindings) {
            t.connect(b, soon()).unwrap();
        }
        Pair {
            transports,
            memory,
            bindings,
            world,
        }
    }

    fn enqueue(&self, rank: usize, sequence: u64, after: &Fence) -> Vec<Fence> {
        (0..self.world.steps)
            .map(|step| {
                self.transports[rank]
                    .enqueue(&self.bindings[rank], step, sequence, after)
                    .unwrap()
            })
            .collect()
    }
}

#[test]
fn a_sender_is_done_only_when_its_receiver_has_copied() {
    let pair = Pair::new(World::stream(1 << 16, 1 << 10, 0, 2), &LoopbackHub::new(2));
    let sent = pair.enqueue(0, 1, &Fence::default());
    assert!(!sent[0].wait(Duration::from_millis(50)));
    let gate = Arc::new(Timeline::default());
    let received = pair.enqueue(1, 1, &Fence::new(&gate, 1));
    assert!(!sent[0].wait(Duration::from_millis(50)));
    assert!(!pair.bindings[1].marks.has_written(1));
    gate.advance(1);
    assert!(wait_all(&sent, LONG) && wait_all(&received, LONG));
    assert_eq!(pair.memory[1].target.bytes(), pair.world.expected(1, 1));
}

#[test]
fn source_bytes_are_not_read_before_the_senders_fence() {
    let mut pair = Pair::new(World::stream(1 << 16, 1 << 10, 0, 1), &LoopbackHub::new(2));
    let gate = Arc::new(Timeline::default());
    pair.memory[0].source.bytes_mut().fill(0);
    let sent = pair.enqueue(0, 1, &Fence::new(&gate, 1));
    let received = pair.enqueue(1, 1, &Fence::default());
    std::thread::sleep(Duration::from_millis(30));
    pair.memory[0].refill(0, 1);
    gate.advance(1);
    assert!(wait_all(&sent, LONG) && wait_all(&received, LONG));
    assert_eq!(pair.memory[1].target.bytes(), pair.world.expected(1, 1));
}

#[test]
fn after_an_abort_every_fence_is_reached_and_nothing_more_is_touched() {
    for delay in [0, 50, 200, 1000, 3000] {
        let world = World::stream(64 << 20, 1 << 20, 0, 8);
        let mut pair = Pair::new(world, &LoopbackHub::new(2));
        let sent = pair.enqueue(0, 1, &Fence::default());
        let received = pair.enqueue(1, 1, &Fence::default());
        std::thread::sleep(Duration::from_micros(delay));
        let t = &pair.transports[0];
        t.abort_cell()
            .set(Error::new(Status::ChecksumMismatch, "the true reason").by(Rank(7)));
        t.wake();
        assert!(wait_all(&sent, LONG));
        // The sender's memory may go now. Its peer must not read it.
        let memory = std::mem::replace(&mut pair.memory[0].source, super_small());
        drop(memory);
        assert!(wait_all(&received, LONG));
        let reason = pair.transports[1].abort_cell().reason().unwrap();
        assert_eq!(reason.status, Status::ChecksumMismatch);
        assert_eq!(reason.rank, Some(Rank(7)));
        let now = pair.memory[1].target.bytes().to_vec();
        let late = pair.enqueue(1, 2, &Fence::default());
        assert!(wait_all(&late, LONG));
        assert!(pair.memory[1].target.bytes() == now);
    }
}

fn super_small() -> transport_support::Memory {
    transport_support::Memory::new(8)
}

#[test]
fn a_rank_that_leaves_in_mid_transfer_is_named() {
    let mut pair = Pair::new(World::stream(1 << 20, 1 << 10, 0, 4), &LoopbackHub::new(2));
    let received = pair.enqueue(1, 1, &Fence::default());
    let sender = pair.transports.remove(0);
    drop(sender);
    assert!(wait_all(&received, LONG));
    let reason = pair.transports[0].abort_cell().reason().unwrap();
    assert_eq!(
        (reason.status, reason.rank),
        (Status::PeerLost, Some(Rank(0)))
    );
    assert!(!pair.bindings[1].marks.has_written(1));
}

#[test]
fn a_rank_that_leaves_when_all_is_done_harms_nobody() {
    let mut pair = Pair::new(World::stream(1 << 20, 1 << 10, 0, 4), &LoopbackHub::new(2));
    let received = pair.enqueue(1, 1, &Fence::default());
    let sent = pair.enqueue(0, 1, &Fence::default());
    assert!(wait_all(&received, LONG) && wait_all(&sent, LONG));
    drop(pair.transports.remove(0));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(pair.transports[0].abort_cell().reason(), None);
    // Only whoever wants something of it learns that it is gone.
    let again = pair.transports[0]
        .enqueue(&pair.bindings[1], 0, 2, &Fence::default())
        .unwrap();
    assert!(again.wait(LONG));
    let reason = pair.transports[0].abort_cell().reason().unwrap();
    assert_eq!(
        (reason.status, reason.rank),
        (Status::PeerLost, Some(Rank(0)))
    );
}

#[test]
fn messages_that_differ_are_a_protocol_error_with_the_numbers() {
    let hub = LoopbackHub::new(2);
    let pair = Pair::new(World::stream(1 << 16, 1 << 10, 0, 2), &hub);
    let other = World::stream(1 << 15, 1 << 10, 0, 2);
    let mut memory = other.memory(1, 1);
    let abort = pair.transports[1].abort_cell();
    let binding = other.bind(1, &mut memory, MemoryRange::EMPTY, abort);
    let sent = pair.enqueue(0, 1, &Fence::default());
    let received = pair.transports[1]
        .enqueue(&binding, 0, 1, &Fence::default())
        .unwrap();
    assert!(received.wait(LONG) && wait_all(&sent, LONG));
    for t in &pair.transports {
        let e = t.abort_cell().reason().unwrap();
        assert_eq!((e.status, e.rank), (Status::Protocol, Some(Rank(0))));
        for number in ["32768", "16384", "step 0"] {
            assert!(e.message.contains(number), "{e}");
        }
    }
    assert!(memory.target.bytes().iter().all(|&b| b == 0x5a));
}

#[test]
fn a_delayed_rank_is_only_late() {
    let hub = LoopbackHub::new(2);
    let pair = Pair::new(World::stream(1 << 16, 1 << 10, 0, 4), &hub);
    let kind = FaultKind::Delay(Duration::from_millis(60));
    hub.inject(Fault {
        rank: Rank(1),
        step: 2,
        kind,
    });
    let start = Instant::now();
    let sent = pair.enqueue(0, 1, &Fence::default());
    let received = pair.enqueue(1, 1, &Fence::default());
    assert!(wait_all(&sent, LONG) && wait_all(&received, LONG));
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(pair.memory[1].target.bytes(), pair.world.expected(1, 1));
}

#[test]
fn a_fault_at_every_step_stops_exactly_there() {
    const STEPS: u32 = 5;
    for step in 0..u64::from(STEPS) {
        for rank in [0, 1] {
            for kind in [FaultKind::Stall, FaultKind::Die] {
                let hub = LoopbackHub::new(2);
                let mut pair = Pair::new(World::stream(1 << 16, 1 << 10, 0, STEPS), &hub);
                hub.inject(Fault {
                    rank: Rank(rank),
                    step,
                    kind,
                });
                let sent = pair.enqueue(0, 1, &Fence::default());
                let received = pair.enqueue(1, 1, &Fence::default());
                if step > 0 {
                    assert!(received[step as usize - 1].wait(LONG));
                    assert!(sent[step as usize - 1].wait(LONG));
                }
                assert!(!received[step as usize].wait(Duration::from_millis(10)));
                assert!(!sent[step as usize].is_reached());
                // Silence: nobody is told. The watchdog of the other rank acts.
                let other = 1 - rank as usize;
                assert_eq!(pair.transports[other].abort_cell().reason(), None);
                let stalled = Error::new(Status::Stalled, "watchdog").by(Rank(rank));
                pair.transports[other].abort_cell().set(stalled);
                pair.transports[other].wake();
                let fences = [&sent, &received];
                assert!(wait_all(fences[other], LONG));
                if kind == FaultKind::Stall {
                    assert!(wait_all(fences[rank as usize], LONG));
                } else {
                    assert!(!fences[rank as usize][step as usize].is_reached());
                    pair.transports.remove(rank as usize);
                    assert!(wait_all(fences[rank as usize], LONG));
                }
            }
        }
    }
}

#[test]
fn ranks_that_rebuild_their_transports_meet_again_by_key() {
    let world = World::stream(1 << 16, 1 << 10, 0, 2);
    let key = 0x1234_5678;
    let hub = LoopbackHub::by_key(key, 2).unwrap();
    assert!(Arc::ptr_eq(&hub, &LoopbackHub::by_key(key, 2).unwrap()));
    let e = LoopbackHub::by_key(key, 3).unwrap_err();
    assert_eq!(e.status, Status::InvalidArgument);
    let broken = Pair::new(world.clone(), &hub);
    broken.transports[0]
        .abort_cell()
        .set(Error::new(Status::Aborted, "test"));
    broken.transports[0].wake();
    let fences = broken.enqueue(1, 1, &Fence::default());
    assert!(wait_all(&fences, LONG));
    let again = LoopbackHub::by_key(key, 2).unwrap();
    assert!(!Arc::ptr_eq(&hub, &again));
    let pair = Pair::new(world, &again);
    let sent = pair.enqueue(0, 1, &Fence::default());
    let received = pair.enqueue(1, 1, &Fence::default());
    assert!(wait_all(&sent, LONG) && wait_all(&received, LONG));
    assert_eq!(pair.memory[1].target.bytes(), pair.world.expected(1, 1));
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let hub = LoopbackHub::new(2);
    let transport = hub.attach(Rank(0)).unwrap();
    assert_eq!(hub.attach(Rank(0)).unwrap_err().status, Status::Busy);
    assert_eq!(
        hub.attach(Rank(2)).unwrap_err().status,
        Status::InvalidArgument
    );
    let world = World::stream(1 << 16, 1 << 10, 0, 2);
    let mut memory = world.memory(0, 1);
    let binding = world.bind(0, &mut memory, MemoryRange::EMPTY, transport.abort_cell());
    let at = Instant::now() + Duration::from_millis(20);
    let e = transport.connect(&binding, at).unwrap_err();
    assert_eq!((e.status, e.rank), (Status::MeetTimeout, Some(Rank(1))));
    let e = transport
        .enqueue(&binding, 2, 1, &Fence::default())
        .unwrap_err();
    assert_eq!(e.status, Status::Internal);
}

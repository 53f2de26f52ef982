//! A warm request allocates nothing, in any thread.

mod transport_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use transport_support::world::{LONG, RankMemory, World};
use weightsync::Rank;
use weightsync::device::fence::Fence;
use weightsync::device::host::HostDevice;
use weightsync::device::{Binding, Device, MemoryRange, Task, Work};
use weightsync::transport::Transport;
use weightsync::transport::loopback::LoopbackHub;
use weightsync::transport::shm::ShmTransport;

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator, and a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Everything that one rank needs for a request.
struct Seat {
    transport: Arc<dyn Transport>,
    device: HostDevice,
    binding: Arc<Binding>,
    fences: Vec<Fence>,
    moved: Vec<Fence>,
    _memory: RankMemory,
}

impl Seat {
    fn new(world: &World, transport: Arc<dyn Transport>) -> Seat {
        let rank = transport.rank().0;
        let device = HostDevice::new().unwrap();
        let mut memory = world.memory(rank, 1);
        let staging = match transport.gathers() {
            true => MemoryRange::EMPTY,
            false => {
                let bytes = world.programs[rank as usize].staging_bytes;
                device.allocate(bytes).unwrap()
            }
        };
        let binding = world.bind(rank, &mut memory, staging, transport.abort_cell());
        transport.connect(&binding, Instant::now() + LONG).unwrap();
        Seat {
            transport,
            device,
            binding,
            fences: Vec::with_capacity(64),
            moved: Vec::with_capacity(64),
            _memory: memory,
        }
    }

    /// As a session does it: pack, move, unpack, local copies, digests.
    fn enqueue(&mut self, sequence: u64) {
        let work = |task| Work {
            binding: self.binding.clone(),
            task,
            sequence,
        };
        let steps = self.binding.program.steps.len() as u32;
        let is_staged = !self.transport.gathers();
        self.fences.clear();
        self.moved.clear();
        for step in 0..steps {
            let mut after = Fence::default();
            if is_staged {
                // One step at a time is enough here.
                after = match step {
                    0 => Fence::default(),
                    _ => self.fences[self.fences.len() - 1].clone(),
                };
                after = self
                    .device
                    .enqueue(work(Task::Pack { step }), &after)
                    .unwrap();
            }
            let there = self
                .transport
                .enqueue(&self.binding, step, sequence, &after)
                .unwrap();
            self.moved.push(there);
            let there = &self.moved[step as usize];
            self.fences.push(
                self.device
                    .enqueue(work(Task::Local { step }), there)
                    .unwrap(),
            );
            if is_staged {
                self.fences.push(
                    self.device
                        .enqueue(work(Task::Unpack { step }), there)
                        .unwrap(),
                );
            }
        }
        for task in [Task::DigestSource, Task::DigestDestination, Task::Fill] {
            let after = Fence::default();
            self.fences
                .push(self.device.enqueue(work(task), &after).unwrap());
        }
    }

    fn wait(&self) {
        assert!(self.fences.iter().chain(&self.moved).all(|f| f.wait(LONG)));
        assert!(!self.transport.abort_cell().is_set());
    }
}

fn allocations_when_warm(world: &World, transports: Vec<Arc<dyn Transport>>) -> u64 {
    let mut seats: Vec<_> = transports
        .into_iter()
        .map(|t| Seat::new(world, t))
        .collect();
    let mut request = |sequence| {
        seats.iter_mut().for_each(|s| s.enqueue(sequence));
        seats.iter().for_each(Seat::wait);
    };
    (1..=50).for_each(&mut request);
    let before = COUNT.load(Ordering::Relaxed);
    (51..=250).for_each(&mut request);
    COUNT.load(Ordering::Relaxed) - before
}

#[test]
fn a_warm_request_allocates_nothing() {
    for seed in 0..4 {
        let world = World::random(seed, 3, 4);
        for hub in [LoopbackHub::new(3), LoopbackHub::staged(3)] {
            let all = (0..3)
                .map(|r| hub.attach(Rank(r)).unwrap() as Arc<dyn Transport>)
                .collect();
            assert_eq!(allocations_when_warm(&world, all), 0, "loopback");
        }
        let all: Vec<_> = (0..3)
            .map(|r| ShmTransport::new(Rank(r)).unwrap())
            .collect();
        let addresses: Vec<_> = all.iter().map(|t| (t.rank(), t.address())).collect();
        for t in &all {
            t.set_peers(addresses.clone()).unwrap();
        }
        let all = all.into_iter().map(|t| t as Arc<dyn Transport>).collect();
        assert_eq!(allocations_when_warm(&world, all), 0, "shm");
    }
}

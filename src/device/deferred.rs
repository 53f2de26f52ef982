//! A device for tests: nothing happens until it is told so.
//!
//! The host device is so quick that code which forgets a fence would still
//! find its bytes. Here it finds poison:
//!
//! ```text
//!   enqueue(pack 0)      nothing
//!   pump(1)              its fence's `after` is reached: staging is poisoned
//!   pump(1)              packed; the fence is reached
//!   pump(1)              unpack: scattered, then the slots are poisoned
//! ```
//!
//! Memory is full of poison when it is allocated, outgoing staging becomes
//! poison again before it is packed anew, incoming staging once it is
//! unpacked. Each `pump` does as many such moves as it is told, or a thread
//! pumps after random delays. It is part of the library so that tests of
//! bindings and of other crates can use it; nothing else should.

use super::fence::{Fence, Timeline};
use super::pages::Pages;
use super::{Device, MemoryRange, Task, Work, host, work};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Tasks that wait without the queue having to grow.
const QUEUE_CAPACITY: usize = 256;

/// The byte that unwritten memory is full of.
pub const POISON: u8 = 0xcb;

/// A device on which nothing happens by itself.
#[derive(Debug)]
pub struct DeferredDevice {
    shared: Arc<Shared>,
    pump: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    timeline: Arc<Timeline>,
    pages: Pages,
    is_closing: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Item>,
    enqueued: u64,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            items: VecDeque::with_capacity(QUEUE_CAPACITY),
            enqueued: 0,
        }
    }
}

#[derive(Debug)]
struct Item {
    work: Work,
    after: Fence,
    value: u64,
    is_poisoned: bool,
}

impl DeferredDevice {
    /// A device that only moves when [`pump`](DeferredDevice::pump) is called.
    pub fn new() -> DeferredDevice {
        DeferredDevice {
            shared: Arc::default(),
            pump: None,
        }
    }

    /// A device with a thread that pumps after random delays of up to a
    /// quarter of a millisecond, the same ones for the same seed.
    pub fn pumped(seed: u64) -> Result<DeferredDevice> {
        let shared: Arc<Shared> = Arc::default();
        let theirs = shared.clone();
        let pump = std::thread::Builder::new()
            .name("wsync-pump".into())
            .spawn(move || theirs.pump_randomly(seed))
            .map_err(|e| Error::os("starting the pump thread", &e))?;
        Ok(DeferredDevice {
            shared,
            pump: Some(pump),
        })
    }

    /// Makes up to `moves` moves; returns how many were possible. An item whose
    /// `after` is not reached blocks the queue, as on a real device.
    pub fn pump(&self, moves: usize) -> usize {
        let mut queue = self.shared.lock();
        (0..moves)
            .take_while(|_| self.shared.step(&mut queue))
            .count()
    }

    /// Items that are enqueued and not done.
    pub fn waiting(&self) -> usize {
        self.shared.lock().items.len()
    }
}

impl Default for DeferredDevice {
    fn default() -> DeferredDevice {
        DeferredDevice::new()
    }
}

impl Device for DeferredDevice {
    fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        let range = self.shared.pages.allocate(bytes)?;
        poison(range);
        Ok(range)
    }

    fn free(&self, range: MemoryRange) {
        self.shared.pages.free(range);
    }

    fn enqueue(&self, work: Work, after: &Fence) -> Result<Fence> {
        work::check(&work)?;
        let mut queue = self.shared.lock();
        queue.enqueued += 1;
        let value = queue.enqueued;
        queue.items.push_back(Item {
            work,
            after: after.clone(),
            value,
            is_poisoned: false,
        });
        Ok(Fence::new(&self.shared.timeline, value))
    }
}

impl Drop for DeferredDevice {
    /// Aborts what was never pumped.
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Release);
        if let Some(pump) = self.pump.take() {
            // Its end is all we wait for.
            let _ = pump.join();
        }
        let mut queue = self.shared.lock();
        for item in queue.items.drain(..) {
            item.work.binding.abort.set(host::closed());
        }
        self.shared.timeline.advance(queue.enqueued);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one move at the head of the queue; false if none is possible.
    fn step(&self, queue: &mut Queue) -> bool {
        let Some(item) = queue.items.front_mut() else {
            return false;
        };
        if !item.work.binding.abort.is_set() {
            if !item.after.is_reached() {
                return false;
            }
            if !item.is_poisoned {
                item.is_poisoned = true;
                poison_outgoing(&item.work);
                return true;
            }
            work::run(&item.work);
            poison_incoming(&item.work);
        }
        let value = item.value;
        queue.items.pop_front();
        self.timeline.advance(value);
        true
    }

    fn pump_randomly(&self, seed: u64) {
        let mut state = seed;
        while !self.is_closing.load(Ordering::Acquire) {
            // The step of a splitmix generator is enough to vary delays.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let random = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
            std::thread::sleep(Duration::from_micros(random % 250));
            let mut queue = self.lock();
            for _ in 0..random % 3 + 1 {
                self.step(&mut queue);
            }
        }
    }
}

/// Poisons what a pack is about to write.
fn poison_outgoing(work: &Work) {
    let program = &work.binding.program;
    if let Task::Pack { step } = work.task {
        let packs = program.packs_of(&program.steps[step as usize]);
        packs.for_each(|m| poison(work::staged(&work.binding, m)));
    }
}

/// Poisons what an unpack has read.
fn poison_incoming(work: &Work) {
    let program = &work.binding.program;
    if let Task::Unpack { step } = work.task {
        let unpacks = program.unpacks_of(&program.steps[step as usize]);
        unpacks.for_each(|m| poison(work::staged(&work.binding, m)));
    }
}

fn poison(range: MemoryRange) {
    let start: *mut u8 = with_exposed_provenance_mut(range.address);
    // SAFETY: memory that was just allocated, or staging that `Binding::new`
    // checked and that is ours until the fence of the work is reached.
    unsafe { start.write_bytes(POISON, range.bytes as usize) };
}

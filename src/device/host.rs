//! Host memory, and one thread that works on it.
//!
//! ```text
//!   enqueue ──► queue ──► wsync-device: wait for `after`, work, advance
//!                                                              │
//!   fence  ◄──────────────── timeline ◄────────────────────────┘
//! ```
//!
//! Work whose abort word is set is skipped and its fence reached, also while
//! it waits for a fence that will never come.

use super::fence::{Fence, Timeline};
use super::pages::Pages;
use super::{Device, MemoryRange, Work, work};
use crate::error::{Error, Result, Status};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Items that fit into the queue before it grows.
const QUEUE_CAPACITY: usize = 256;

/// How often a wait for a fence looks at the abort word.
const LOOK: Duration = Duration::from_millis(10);

/// Ordinary memory of this process.
#[derive(Debug)]
pub struct HostDevice {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    timeline: Arc<Timeline>,
    pages: Pages,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Item>,
    enqueued: u64,
    is_closing: bool,
}

#[derive(Debug)]
struct Item {
    work: Work,
    after: Fence,
    value: u64,
}

impl HostDevice {
    /// A device and its thread.
    pub fn new() -> Result<HostDevice> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                items: VecDeque::with_capacity(QUEUE_CAPACITY),
                enqueued: 0,
                is_closing: false,
            }),
            filled: Condvar::new(),
            timeline: Arc::default(),
            pages: Pages::default(),
        });
        let theirs = shared.clone();
        let worker = std::thread::Builder::new()
            .name("wsync-device".into())
            .spawn(move || theirs.work())
            .map_err(|e| Error::os("starting the device thread", &e))?;
        Ok(HostDevice {
            shared,
            worker: Some(worker),
        })
    }
}

impl Device for HostDevice {
    fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        self.shared.pages.allocate(bytes)
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
        });
        drop(queue);
        self.shared.filled.notify_one();
        Ok(Fence::new(&self.shared.timeline, value))
    }
}

impl Drop for HostDevice {
    /// Ends the thread. Work that is still waiting is aborted: its fences are
    /// reached, and its binding says why.
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.filled.notify_one();
        if let Some(worker) = self.worker.take() {
            // The thread catches the panics of its work; its end is all we
            // wait for.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: one item after the other, until closed and empty.
    fn work(&self) {
        while let Some(item) = self.next() {
            let value = item.value;
            self.run(&item);
            drop(item);
            self.timeline.advance(value);
        }
    }

    fn next(&self) -> Option<Item> {
        let mut queue = self.lock();
        loop {
            if let Some(item) = queue.items.pop_front() {
                return Some(item);
            }
            if queue.is_closing {
                return None;
            }
            queue = self
                .filled
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, item: &Item) {
        let abort = &item.work.binding.abort;
        while !item.after.wait(LOOK) {
            if self.lock().is_closing {
                abort.set(closed());
            }
            if abort.is_set() {
                return;
            }
        }
        if abort.is_set() {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| work::run(&item.work))).is_err() {
            abort.set(Error::internal(format!("{:?} panicked", item.work.task)));
        }
    }
}

/// Why work of a closed device was not done.
pub(super) fn closed() -> Error {
    Error::new(
        Status::Aborted,
        "the device was closed while it had work to do",
    )
}

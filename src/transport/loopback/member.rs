//! What the other ranks see of one: its inbox, its abort word, and who reads
//! its memory right now.

use super::NOBODY;
use crate::device::Binding;
use crate::device::fence::{AbortCell, Watch};
use crate::error::{Error, Result, Status};
use crate::plan::program::{Direction, Program};
use crate::rank::Rank;
use crate::transport::queue::{QUEUE_CAPACITY, StepQueue, lock};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;

/// What the other ranks see of one.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) rank: Rank,
    pub(super) abort: Arc<AbortCell>,
    pub(super) queue: StepQueue,
    /// Steps that have begun and are not finished, oldest first.
    pub(super) flight: Mutex<VecDeque<Flight>>,
    pub(super) inbox: Mutex<Inbox>,
    /// Ranks we have exchanged, or may exchange, messages with.
    pub(super) peers: Mutex<Vec<Rank>>,
    pub(super) thread: OnceLock<Thread>,
    /// Peers that are copying from our memory right now.
    pub(super) holders: AtomicU32,
    pub(super) is_closing: AtomicBool,
    /// A fault has this rank behave as if its process were gone.
    pub(super) is_dead: AtomicBool,
    pub(super) bytes_sent: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    /// The peer whose message we wait for, or `NOBODY`.
    pub(super) waits_for: AtomicU32,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) value: u64,
    pub(super) sends_left: u32,
    pub(super) has_received: bool,
}

/// A message that waits for its receiver.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) sender: Arc<Member>,
    pub(super) binding: Arc<Binding>,
    /// In [`crate::plan::program::Program::messages`].
    pub(super) message: u32,
    /// The sender's step, by its value on the sender's timeline.
    pub(super) ticket: u64,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// By sender, in the order sent.
    pub(super) posted: HashMap<Rank, VecDeque<Posted>>,
    /// Why nothing is taken any more.
    pub(super) closed: Option<Error>,
}

impl Member {
    pub(super) fn new(rank: Rank) -> Arc<Member> {
        Arc::new(Member {
            rank,
            abort: Arc::default(),
            queue: StepQueue::new(),
            flight: Mutex::new(VecDeque::with_capacity(QUEUE_CAPACITY)),
            inbox: Mutex::default(),
            peers: Mutex::default(),
            thread: OnceLock::new(),
            holders: AtomicU32::new(0),
            is_closing: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            waits_for: AtomicU32::new(NOBODY),
        })
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Counts the caller in as a reader of our memory; `None` if we have
    /// stopped. The order (count, then look) pairs with that of
    /// [`Member::await_holders`] (stopped, then look at the count): one of the
    /// two sees the other.
    pub(super) fn hold(&self) -> Option<Hold<'_>> {
        self.holders.fetch_add(1, Ordering::SeqCst);
        let hold = Hold(self);
        fence(Ordering::SeqCst);
        (!self.queue.is_stopped()).then_some(hold)
    }

    /// Waits for the peers that read our memory. The queue has stopped, so no
    /// more begin, and each reads at most one chunk.
    pub(super) fn await_holders(&self) {
        fence(Ordering::SeqCst);
        while self.holders.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    /// Why we have stopped, as our peers shall report it.
    pub(super) fn reason(&self) -> Error {
        self.abort.reason().unwrap_or_else(|| self.lost())
    }

    pub(super) fn lost(&self) -> Error {
        Error::new(
            Status::PeerLost,
            format!(
                "rank {} left after {} of the {} steps it was given",
                self.rank,
                self.queue.done(),
                self.queue.enqueued()
            ),
        )
        .by(self.rank)
    }

    /// Stops this rank for `reason`, unless a fault has it dead to the world.
    pub(super) fn abort_for(&self, reason: Error) {
        if !self.is_dead.load(Ordering::Acquire) {
            self.abort.set(reason);
            self.wake();
        }
    }

    /// A receiver has copied `messages` of the step `ticket`.
    pub(super) fn copied(&self, ticket: u64, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        let mut flight = lock(&self.flight);
        if let Some(step) = flight.iter_mut().find(|s| s.value == ticket) {
            step.sends_left -= 1;
        }
        self.settle(&mut flight);
    }

    /// Takes finished steps off the front and says so.
    pub(super) fn settle(&self, flight: &mut VecDeque<Flight>) {
        while let Some(step) = flight.front() {
            if step.sends_left > 0 || !step.has_received {
                return;
            }
            let value = step.value;
            flight.pop_front();
            self.queue.timeline.advance(value);
        }
    }

    /// Makes room for everything that may wait for us while a program runs: how
    /// much does depends on who is faster. `counts` is used again and again.
    pub(super) fn expect(&self, program: &Program, counts: &mut HashMap<Rank, usize>) {
        counts.clear();
        let messages = program.messages.iter();
        for m in messages.filter(|m| m.direction == Direction::Receive) {
            *counts.entry(m.peer).or_default() += 1;
        }
        let mut inbox = lock(&self.inbox);
        for (&peer, &count) in counts.iter() {
            let waiting = inbox.posted.entry(peer).or_default();
            waiting.reserve(count.saturating_sub(waiting.len()));
        }
    }

    /// Puts a message into the inbox; fails with why it is closed.
    pub(super) fn post(&self, posted: Posted) -> Result<()> {
        let mut inbox = lock(&self.inbox);
        if let Some(reason) = &inbox.closed {
            return Err(reason.clone());
        }
        let from = posted.sender.rank;
        inbox.posted.entry(from).or_default().push_back(posted);
        Ok(())
    }

    /// The next message from `from`.
    pub(super) fn take(&self, from: Rank) -> Option<Posted> {
        lock(&self.inbox).posted.get_mut(&from)?.pop_front()
    }

    /// Forgets the messages that wait and returns their senders. Refuses
    /// further ones if there is a reason; else they wait for ever.
    pub(super) fn close_inbox(&self, reason: Option<&Error>) -> Vec<Arc<Member>> {
        let mut inbox = lock(&self.inbox);
        inbox.closed = reason.cloned();
        let waiting = std::mem::take(&mut inbox.posted);
        drop(inbox);
        waiting
            .into_values()
            .filter_map(|mut posted| posted.pop_front())
            .map(|posted| posted.sender)
            .collect()
    }
}

impl Watch for Member {
    fn moved(&self) {
        self.wake();
    }
}

/// A promise that a member's fences are not reached as an abort.
pub(super) struct Hold<'a>(pub(super) &'a Member);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, Ordering::SeqCst);
    }
}

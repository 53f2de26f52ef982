//! What a rank and another of its host exchange in a step, through channels.

use super::lending::{Borrower, Loans};
use super::link::Link;
use crate::device::cuda::channel::{Claim, after_run};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::Enqueue;
use crate::device::{Binding, MemoryRange};
use crate::error::{Error, Result, Status};
use crate::plan::program::{Direction, Message};
use crate::rank::Rank;
use std::sync::Arc;

/// The messages of a step, and where they are.
#[derive(Clone, Copy)]
pub(super) struct Exchange<'a> {
    pub binding: &'a Binding,
    pub messages: &'a [Message],
    pub step: u32,
    pub slot_bytes: u64,
}

impl<'a> Exchange<'a> {
    /// The messages to or from a rank, with their numbers.
    fn of(self, peer: Rank, way: Direction) -> impl Iterator<Item = (u32, &'a Message)> {
        let is_of = move |m: &&Message| m.peer == peer && m.direction == way;
        (0..).zip(self.messages.iter().filter(is_of))
    }
}

/// A peer, and how far the step that is being enqueued has come.
#[derive(Debug)]
pub(super) struct Route {
    pub link: Link,
    /// For the buffers that are bound now.
    pub lent: Arc<Loans>,
    borrower: Borrower,
    /// What is borrowed in the plan of the step.
    borrowed: Arc<Loans>,
    /// The slot that stands for what the step lends.
    claim: Option<Claim>,
    sent: Cursor,
    received: Cursor,
}

impl Route {
    pub(super) fn new(link: Link) -> Route {
        Route {
            link,
            lent: Arc::default(),
            borrower: Borrower::default(),
            borrowed: Arc::default(),
            claim: None,
            sent: Cursor::default(),
            received: Cursor::default(),
        }
    }

    /// A step begins.
    pub(super) fn begin(
        &mut self,
        step: Exchange<'_>,
        (gpu, me, plan): (&Arc<Gpu>, Rank, u128),
    ) -> Result<()> {
        self.sent = Cursor::default();
        self.received = Cursor::default();
        self.claim = None;
        let mut received = step.of(self.link.peer, Direction::Receive);
        self.link.check(received.any(|(_, m)| m.bytes > 0))?;
        // In any step, so that what is to be opened is opened in the first.
        self.borrowed = match self.link.board() {
            Some(board) => self
                .borrower
                .look(gpu, (self.link.peer, board), (me, plan))?,
            None => self.borrower.nothing(),
        };
        Ok(())
    }

    pub(super) fn is_of(&self, m: &Message, direction: Direction) -> bool {
        m.peer == self.link.peer && m.direction == direction && m.bytes > 0
    }

    /// Says that what is lent in this step can be read.
    pub(super) fn lend(&mut self, queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<()> {
        if !self.lent.is_in(step.step) {
            return Ok(());
        }
        let claim = self.link.sender()?.claim(queue)?;
        self.claim = Some(claim);
        claim.give(queue)
    }

    /// Reads what the peer lends in this step.
    pub(super) fn borrow(&mut self, queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<()> {
        let loans = &self.borrowed;
        if !loans.is_in(step.step) {
            return Ok(());
        }
        let claim = self.link.receiver()?.claim(queue)?;
        for (number, m) in step.of(self.link.peer, Direction::Receive) {
            let Some(from) = loans.get(step.step, number) else {
                continue;
            };
            if from.bytes != m.bytes {
                let text = format!(
                    "rank {} lends {} bytes for message {number} of step {}, which has {}",
                    self.link.peer, from.bytes, step.step, m.bytes
                );
                return Err(Error::new(Status::Protocol, text).by(self.link.peer));
            }
            queue.copy(step.binding.contiguous(m), from.address, m.bytes)?;
        }
        claim.give(queue)
    }

    /// Waits until the peer has read what this step lends.
    pub(super) fn take_back(&mut self, queue: &Enqueue<'_>) -> Result<()> {
        match self.claim.take() {
            Some(claim) => claim.await_return(queue),
            None => Ok(()),
        }
    }

    /// Sends the next slot; false if nothing is left of the step.
    pub(super) fn send(&mut self, queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<bool> {
        let of = (self.link.peer, Direction::Send, &*self.lent);
        let Some(mut runs) = self.sent.next_slot(step, of) else {
            return Ok(false);
        };
        self.link.sender()?.put(queue, &mut runs).map(|()| true)
    }

    pub(super) fn receive(&mut self, queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<bool> {
        let of = (self.link.peer, Direction::Receive, &*self.borrowed);
        let Some(mut runs) = self.received.next_slot(step, of) else {
            return Ok(false);
        };
        self.link.receiver()?.take(queue, &mut runs).map(|()| true)
    }
}

/// Which messages: to or from whom, and not those that are lent.
type Which<'a> = (Rank, Direction, &'a Loans);

/// A place in the messages of a step.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    message: usize,
    /// Of the message, among those of its rank and direction.
    number: u32,
    /// Bytes of it that are done.
    done: u64,
}

impl Cursor {
    /// The runs of the next slot; `None` if nothing is left.
    fn next_slot<'a>(&'a mut self, step: Exchange<'a>, which: Which<'a>) -> Option<Runs<'a>> {
        self.seek(step, which)?;
        Some(Runs {
            cursor: self,
            step,
            which,
            at: 0,
        })
    }

    /// Goes to the next message that has bytes left.
    fn seek<'m>(
        &mut self,
        step: Exchange<'m>,
        (peer, way, lent): Which<'_>,
    ) -> Option<&'m Message> {
        loop {
            let m = step.messages.get(self.message)?;
            let is_of = m.peer == peer && m.direction == way;
            let is_lent = || lent.get(step.step, self.number).is_some();
            if is_of && self.done < m.bytes && !is_lent() {
                return Some(m);
            }
            *self = Cursor {
                message: self.message + 1,
                number: self.number + u32::from(is_of),
                done: 0,
            };
        }
    }
}

/// What goes through one slot: runs of memory, cut alike on both ends.
struct Runs<'a> {
    cursor: &'a mut Cursor,
    step: Exchange<'a>,
    which: Which<'a>,
    /// Bytes of the slot that are taken.
    at: u64,
}

impl Iterator for Runs<'_> {
    type Item = MemoryRange;

    fn next(&mut self) -> Option<MemoryRange> {
        let room = self
            .step
            .slot_bytes
            .checked_sub(self.at)
            .filter(|r| *r > 0)?;
        let m = self.cursor.seek(self.step, self.which)?;
        let done = self.cursor.done;
        let bytes = (m.bytes - done).min(room);
        self.cursor.done += bytes;
        self.at = after_run(self.at, bytes);
        Some(MemoryRange {
            address: self.step.binding.contiguous(m) + done as usize,
            bytes,
        })
    }
}

//! The messages of one pair, step and direction as one run of bytes.
//!
//! ```text
//!   message 0        message 1   message 2
//!   ██████████████·· ████··      ████████████      16-byte aligned
//!   └── slot ──┘└── slot ──┘└── slot ──┘           cut wherever a slot ends
//! ```
//!
//! Both ends compute the same layout from their own programs, so that slots
//! need no more than a label to be checked against.

use crate::device::Binding;
use crate::device::copy::{Halt, MessageCursor, Stop};
use crate::plan::program::{Direction, Message};
use crate::rank::Rank;

/// Messages start at multiples of this: no slot cuts an element that is
/// converted, as slots are multiples of it too.
const ALIGN: u64 = 16;

/// How far the messages of one pair, step and direction have come.
#[derive(Debug)]
pub(super) struct Stream {
    pub peer: Rank,
    pub direction: Direction,
    /// Range in the program's messages that is still ahead; those of other
    /// pairs and directions in it are skipped.
    next: u32,
    end: u32,
    current: Option<(u32, MessageCursor)>,
    /// Messages begun.
    pub begun: u32,
    /// Bytes behind us.
    pub at: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Stream {
    /// A stream over the messages `first..` of a program; more are added.
    pub(super) fn new(peer: Rank, direction: Direction, first: u32) -> Stream {
        Stream {
            peer,
            direction,
            next: first,
            end: first,
            current: None,
            begun: 0,
            at: 0,
            total: 0,
        }
    }

    /// Adds the message `index`.
    pub(super) fn add(&mut self, index: u32, message: &Message) {
        self.end = index + 1;
        self.total += message.bytes.next_multiple_of(ALIGN);
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == self.total
    }

    /// Gathers up to `room` bytes into a slot; returns how many.
    ///
    /// # Safety
    ///
    /// `slot` is writable for `room` bytes, and nobody else's for now.
    pub(super) unsafe fn fill(
        &mut self,
        binding: &Binding,
        slot: *mut u8,
        room: u64,
        stop: Stop<'_>,
    ) -> Result<u64, Halt> {
        let bytes = room.min(self.total - self.at);
        let mut done = 0;
        while done < bytes {
            let (message, n, pad) = self.cut(binding, bytes - done)?;
            // SAFETY: `n + pad` bytes fit into what is left of the slot.
            unsafe {
                let to = slot.add(done as usize);
                self.cursor()?.gather(binding, message, to, n, stop)?;
                to.add(n as usize).write_bytes(0, pad as usize);
            }
            self.pass(message, n + pad);
            done += n + pad;
        }
        Ok(bytes)
    }

    /// Scatters `bytes` bytes of a slot.
    ///
    /// # Safety
    ///
    /// `slot` is readable for `bytes` bytes, which are not more than are ahead.
    pub(super) unsafe fn drain(
        &mut self,
        binding: &Binding,
        slot: *const u8,
        bytes: u64,
        stop: Stop<'_>,
    ) -> Result<(), Halt> {
        let mut done = 0;
        while done < bytes {
            let (message, n, pad) = self.cut(binding, bytes - done)?;
            // SAFETY: `n` bytes are left of the slot.
            unsafe {
                let from = slot.add(done as usize);
                self.cursor()?.scatter(binding, message, from, n, stop)?;
            }
            self.pass(message, n + pad);
            done += n + pad;
        }
        Ok(())
    }

    /// The message we are in, how many of its bytes come next, and how many
    /// bytes of padding after them.
    fn cut<'b>(
        &mut self,
        binding: &'b Binding,
        room: u64,
    ) -> Result<(&'b Message, u64, u64), Halt> {
        let messages = &binding.program.messages;
        while self.current.is_none() {
            if self.next >= self.end {
                return Err(Halt::Mismatch { at: self.at });
            }
            let message = &messages[self.next as usize];
            if message.peer == self.peer && message.direction == self.direction {
                self.begun += 1;
                if message.bytes > 0 {
                    self.current = Some((self.next, MessageCursor::new(message)));
                }
            }
            self.next += 1;
        }
        let Some((index, cursor)) = &self.current else {
            return Err(Halt::Mismatch { at: self.at });
        };
        let message = &messages[*index as usize];
        let left = message.bytes - cursor.at();
        let n = left.min(room);
        let pad = if n == left {
            message.bytes.next_multiple_of(ALIGN) - message.bytes
        } else {
            0
        };
        Ok((message, n, pad.min(room - n)))
    }

    fn cursor(&mut self) -> Result<&mut MessageCursor, Halt> {
        match &mut self.current {
            Some((_, cursor)) => Ok(cursor),
            None => Err(Halt::Mismatch { at: self.at }),
        }
    }

    fn pass(&mut self, message: &Message, bytes: u64) {
        self.at += bytes;
        let is_over = |c: &MessageCursor| c.at() == message.bytes;
        if self.current.as_ref().is_some_and(|(_, c)| is_over(c)) {
            self.current = None;
        }
    }
}

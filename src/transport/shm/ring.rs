//! The ring of one ordered pair: slots in shared memory, one writer, one
//! reader.
//!
//! ```text
//!   head page   published ──┐        ┌── consumed      (each on its own line)
//!               headers [0] [1] [2] [3] ...            {sequence, step, ..}
//!   data        slot 0 | slot 1 | slot 2 | slot 3 ...  (whole pages)
//! ```
//!
//! The writer fills slot `published % slots`, then adds one to `published`; the
//! reader empties slot `consumed % slots`, then adds one to `consumed`. Each
//! keeps its own count to itself and believes the other's only in bounds.

use super::sys::{Mapping, memfd};
use crate::error::{Error, Result, Status};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Slots of the largest ring.
pub(super) const SLOT_COUNT_MAX: u32 = 64;
/// Bytes of the smallest slot; slots are multiples of it.
const SLOT_BYTES_MIN: u64 = 4096;
/// Bytes of the largest slot.
pub(super) const SLOT_BYTES_MAX: u64 = 64 << 20;
/// Bytes before the first slot.
const HEAD_BYTES: u64 = 8192;

/// How large a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub slots: u32,
    pub slot_bytes: u32,
}

impl Shape {
    /// The largest ring of at most `slots` slots of at most `slot_bytes` that
    /// stays inside `budget`, if any does.
    pub(super) fn fit(budget: u64, slots: u32, slot_bytes: u64) -> Option<Shape> {
        let room = budget.checked_sub(HEAD_BYTES)?;
        let most = slots.clamp(2, SLOT_COUNT_MAX);
        let slots = u64::from(most).min(room / SLOT_BYTES_MIN);
        if slots < 2 {
            return None;
        }
        let slot_bytes = slot_bytes.clamp(SLOT_BYTES_MIN, SLOT_BYTES_MAX);
        let slot_bytes = slot_bytes.min(room / slots) / SLOT_BYTES_MIN * SLOT_BYTES_MIN;
        Some(Shape {
            slots: slots as u32,
            slot_bytes: slot_bytes as u32,
        })
    }

    /// Refuses shapes that we would never make.
    pub(super) fn check(self) -> Result<Shape> {
        let bytes = u64::from(self.slot_bytes);
        let is_sane = (2..=SLOT_COUNT_MAX).contains(&self.slots)
            && (SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&bytes)
            && bytes % SLOT_BYTES_MIN == 0;
        if is_sane {
            return Ok(self);
        }
        Err(Error::new(
            Status::Protocol,
            format!("a ring of {} slots of {bytes} bytes", self.slots),
        ))
    }

    /// Bytes of shared memory.
    pub(super) fn bytes(self) -> u64 {
        HEAD_BYTES + u64::from(self.slots) * u64::from(self.slot_bytes)
    }
}

/// A counter on a cache line of its own.
#[repr(C, align(128))]
struct Line(AtomicU64);

#[repr(C)]
struct SlotHead {
    sequence: AtomicU64,
    request: AtomicU64,
    at: AtomicU64,
    total: AtomicU64,
    step: AtomicU32,
    message: AtomicU32,
    bytes: AtomicU32,
    reserved: AtomicU32,
}

#[repr(C)]
struct Head {
    published: Line,
    consumed: Line,
    slots: [SlotHead; SLOT_COUNT_MAX as usize],
}

const _: () = assert!(size_of::<Head>() <= HEAD_BYTES as usize);

/// What a slot says about its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// Of the sender's request.
    pub request: u64,
    pub step: u32,
    /// Messages of this pair and step that were begun before this slot.
    pub message: u32,
    /// Bytes of this pair and step before this slot.
    pub at: u64,
    /// Bytes of this pair and step in all.
    pub total: u64,
    pub bytes: u32,
}

/// One end of a ring.
#[derive(Debug)]
pub(super) struct Ring {
    map: Mapping,
    shape: Shape,
    /// Slots that this end is done with. Only its progress thread counts.
    done: AtomicU64,
}

impl Ring {
    pub(super) fn create(shape: Shape) -> Result<(Ring, OwnedFd)> {
        let fd = memfd(shape.bytes())?;
        Ok((Ring::open(&fd, shape)?, fd))
    }

    pub(super) fn open(fd: &OwnedFd, shape: Shape) -> Result<Ring> {
        Ok(Ring {
            map: Mapping::new(fd, shape.bytes())?,
            shape,
            done: AtomicU64::new(0),
        })
    }

    fn head(&self) -> &Head {
        // SAFETY: a head is atomics only.
        unsafe { self.map.head() }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn index(&self) -> usize {
        (self.done() % u64::from(self.shape.slots)) as usize
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        u64::from(self.shape.slot_bytes)
    }

    /// The slot at hand: the writer's next free, or the reader's next full one.
    pub(super) fn slot(&self) -> *mut u8 {
        let offset = HEAD_BYTES + self.index() as u64 * self.slot_bytes();
        self.map.at(offset as usize)
    }

    /// Writer: true if a slot is free.
    pub(super) fn has_room(&self) -> Result<bool> {
        let consumed = self.head().consumed.0.load(Ordering::Acquire);
        match self.done().checked_sub(consumed) {
            Some(full) if full <= u64::from(self.shape.slots) => {
                Ok(full < u64::from(self.shape.slots))
            }
            _ => Err(self.broken("consumed", consumed)),
        }
    }

    /// Writer: hands the slot at hand over to the reader.
    pub(super) fn publish(&self, label: Label) {
        let head = &self.head().slots[self.index()];
        let next = self.done() + 1;
        head.sequence.store(next, Ordering::Relaxed);
        head.request.store(label.request, Ordering::Relaxed);
        head.at.store(label.at, Ordering::Relaxed);
        head.total.store(label.total, Ordering::Relaxed);
        head.step.store(label.step, Ordering::Relaxed);
        head.message.store(label.message, Ordering::Relaxed);
        head.bytes.store(label.bytes, Ordering::Relaxed);
        self.done.store(next, Ordering::Relaxed);
        self.head().published.0.store(next, Ordering::Release);
    }

    /// Reader: what the next full slot says, if there is one.
    pub(super) fn next(&self) -> Result<Option<Label>> {
        let published = self.head().published.0.load(Ordering::Acquire);
        match published.checked_sub(self.done()) {
            Some(0) => return Ok(None),
            Some(full) if full <= u64::from(self.shape.slots) => {}
            _ => return Err(self.broken("published", published)),
        }
        let head = &self.head().slots[self.index()];
        let sequence = head.sequence.load(Ordering::Relaxed);
        if sequence != self.done() + 1 {
            return Err(self.broken("numbered", sequence));
        }
        Ok(Some(Label {
            request: head.request.load(Ordering::Relaxed),
            at: head.at.load(Ordering::Relaxed),
            total: head.total.load(Ordering::Relaxed),
            step: head.step.load(Ordering::Relaxed),
            message: head.message.load(Ordering::Relaxed),
            bytes: head.bytes.load(Ordering::Relaxed),
        }))
    }

    /// Reader: gives the slot at hand back to the writer.
    pub(super) fn release(&self) {
        let next = self.done() + 1;
        self.done.store(next, Ordering::Relaxed);
        self.head().consumed.0.store(next, Ordering::Release);
    }

    fn broken(&self, what: &str, count: u64) -> Error {
        Error::new(
            Status::Protocol,
            format!(
                "the ring is damaged: slot {count} {what}, {} done here, {} slots",
                self.done(),
                self.shape.slots
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(step: u32) -> Label {
        Label {
            request: 1,
            step,
            message: 2,
            at: 3,
            total: 4,
            bytes: 5,
        }
    }

    #[test]
    fn shapes_stay_inside_the_budget() {
        for budget in [
            0,
            8192,
            16383,
            16384,
            16385,
            50_000,
            1 << 20,
            9 << 20,
            1 << 40,
        ] {
            match Shape::fit(budget, 8, 1 << 20) {
                Some(shape) => {
                    assert!(shape.bytes() <= budget, "{shape:?} in {budget}");
                    shape.check().unwrap();
                }
                None => assert!(budget < 16384),
            }
        }
        let whole = Shape::fit(1 << 40, 8, 1 << 20).unwrap();
        assert_eq!((whole.slots, whole.slot_bytes), (8, 1 << 20));
    }

    #[test]
    fn slots_go_round() {
        let shape = Shape::fit(1 << 20, 3, 4096).unwrap();
        let (writer, fd) = Ring::create(shape).unwrap();
        let reader = Ring::open(&fd, shape).unwrap();
        for round in 0..10 {
            for i in 0..3 {
                assert!(writer.has_room().unwrap());
                // SAFETY: the slot is free and ours.
                unsafe { writer.slot().write(i) };
                writer.publish(label(round));
            }
            assert!(!writer.has_room().unwrap());
            for i in 0..3 {
                assert_eq!(reader.next().unwrap(), Some(label(round)));
                // SAFETY: the slot is full and ours.
                assert_eq!(unsafe { reader.slot().read() }, i);
                reader.release();
            }
            assert_eq!(reader.next().unwrap(), None);
        }
    }

    #[test]
    fn counts_out_of_bounds_are_a_protocol_error() {
        let shape = Shape::fit(1 << 20, 4, 4096).unwrap();
        let (ring, fd) = Ring::create(shape).unwrap();
        let other = Ring::open(&fd, shape).unwrap();
        ring.head().published.0.store(5, Ordering::Release);
        assert_eq!(other.next().unwrap_err().status, Status::Protocol);
        ring.head().published.0.store(1, Ordering::Release);
        assert_eq!(other.next().unwrap_err().status, Status::Protocol);
        ring.head().consumed.0.store(1, Ordering::Release);
        assert_eq!(ring.has_room().unwrap_err().status, Status::Protocol);
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let shape = Shape::fit(1 << 20, 4, 4096).unwrap();
        let (_ring, fd) = Ring::create(shape).unwrap();
        let larger = Shape { slots: 5, ..shape };
        assert_eq!(
            Ring::open(&fd, larger).unwrap_err().status,
            Status::Protocol
        );
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let e = memfd(1 << 50).unwrap_err();
        assert_eq!(e.status, Status::OutOfMemory, "{e}");
    }
}

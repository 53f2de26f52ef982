//! Where bytes live and how they are copied.
//!
//! A [`Device`] takes work and returns [`Fence`]s; it never waits. Work on one
//! device runs in the order it was enqueued, each item not before the fence
//! it names:
//!
//! ```text
//!   pack(step 0) ──► fence ──► transport ──► fence ──► unpack(step 0)
//!   pack(step 1) ──► ...
//! ```
//!
//! Only `test`, `wait` and the watchdog look at a fence.

pub mod copy;
pub mod cuda;
pub mod deferred;
pub mod digest;
pub mod fence;
pub mod host;

pub(crate) mod available;
pub(crate) mod cast;
pub(crate) mod check;
mod pages;
mod stream;
mod walk;
pub(crate) mod work;

use crate::error::{Error, Result, Status};
use crate::layout::view::Memory;
use crate::plan::program::{BufferSlot, Message, Program, Region};
use copy::End;
use fence::{AbortCell, Fence};
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A range of caller or session memory. Whoever makes one promises that it
/// stays valid, and is not used otherwise, while a request that uses it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    pub address: usize,
    pub bytes: u64,
}

impl MemoryRange {
    /// No memory at all.
    pub const EMPTY: MemoryRange = MemoryRange {
        address: 0,
        bytes: 0,
    };
}

/// A program with its memory: what transports and devices work on. Made when
/// a plan is loaded; immutable but for marks and sums.
///
/// [`Binding::new`] is the only way to make one: it checks that every region
/// of the program lies inside the memory that is bound to its slot, which is
/// what the copies rely on.
#[derive(Debug)]
pub struct Binding {
    pub program: Arc<Program>,
    /// By buffer slot.
    pub memory: Vec<MemoryRange>,
    pub staging: MemoryRange,
    pub relay: MemoryRange,
    pub abort: Arc<AbortCell>,
    pub marks: Marks,
    /// Per tensor digest sums, written by `Task::Digest*`.
    pub sums: Arc<DigestSums>,
    checked: check::Checked,
    /// Different for every binding of the process.
    id: u64,
    /// Where the memory is not the host's: who copies in it.
    mover: OnceLock<Arc<dyn Mover>>,
}

impl Binding {
    /// Binds `program` to memory: one range per slot, `staging` for packed
    /// messages (empty where the transport gathers), `relay` for bytes to be
    /// forwarded. Fails with `BufferMismatch` where a region would leave its
    /// range, and with `Internal` where the program contradicts itself.
    pub fn new(
        program: Arc<Program>,
        memory: Vec<MemoryRange>,
        staging: MemoryRange,
        relay: MemoryRange,
        abort: Arc<AbortCell>,
    ) -> Result<Binding> {
        let checked = check::check(&program, &memory, staging, relay)?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let sums = Arc::new(DigestSums::new(program.tensors.len()));
        Ok(Binding {
            program,
            memory,
            staging,
            relay,
            abort,
            marks: Marks::default(),
            sums,
            checked,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            mover: OnceLock::new(),
        })
    }

    /// Who copies in memory that is not the host's; set by [`Device::prepare`].
    pub fn mover(&self) -> Option<&Arc<dyn Mover>> {
        self.mover.get()
    }

    /// True if request `sequence` may have written destination memory.
    pub fn has_written(&self, sequence: u64) -> bool {
        let on_device = self.mover.get().map_or(0, |m| m.first_write());
        self.marks.has_written(sequence) || on_device >= sequence
    }

    /// Different for every binding of the process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Where a message lies in one piece: its direct region, or staging.
    pub(crate) fn contiguous(&self, message: &Message) -> usize {
        match self.program.pieces_of(message) {
            [piece] if message.is_direct => self.address(&piece.region),
            _ => work::staged(self, message).address,
        }
    }

    /// True if packed messages have their place in staging.
    pub fn is_staged(&self) -> bool {
        self.checked.is_staged
    }

    /// Address of the first element of a region.
    pub(crate) fn address(&self, region: &Region) -> usize {
        let range = match region.slot {
            BufferSlot::RELAY => self.relay,
            BufferSlot(slot) => self.memory[slot as usize],
        };
        range.address + region.offset as usize
    }
}

/// What the memory's owner can say about a request's progress. Values are the
/// request's sequence number, so nothing needs resetting.
#[derive(Debug, Default)]
pub struct Marks {
    /// The last request that may have written destination memory.
    pub first_write: AtomicU64,
    /// Steps finished by the running request.
    pub steps_done: AtomicU64,
}

impl Marks {
    /// Records, before the first write of request `sequence`, that destination
    /// memory may change from now on.
    pub fn write_begins(&self, sequence: u64) {
        self.first_write.fetch_max(sequence, Ordering::Release);
    }

    /// True if request `sequence` may have written destination memory.
    pub fn has_written(&self, sequence: u64) -> bool {
        self.first_write.load(Ordering::Acquire) >= sequence
    }
}

/// Sums mod 2^64 of `mix(canonical flat index, bits)`, by tensor of the plan.
#[derive(Debug, Default)]
pub struct DigestSums {
    /// Source elements, each once over all ranks (lowest holder counts).
    pub once: Vec<AtomicU64>,
    /// Source elements, weighted by how many ranks of a copy receive them.
    pub sent: Vec<AtomicU64>,
    /// Destination elements of this rank, all of them.
    pub held: Vec<AtomicU64>,
}

impl DigestSums {
    /// Sums of zero for `tensors` tensors.
    pub fn new(tensors: usize) -> DigestSums {
        let zeros = || (0..tensors).map(|_| AtomicU64::new(0)).collect();
        DigestSums {
            once: zeros(),
            sent: zeros(),
            held: zeros(),
        }
    }
}

/// What a device can be asked to do with a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Gather the outgoing packed messages of a step into staging.
    Pack { step: u32 },
    /// Scatter the incoming packed messages of a step from staging.
    Unpack { step: u32 },
    /// Do the local copies of a step.
    Local { step: u32 },
    /// Zero the destination padding.
    Fill,
    /// Sum source elements.
    DigestSource,
    /// Sum destination elements.
    DigestDestination,
}

/// One item of work.
#[derive(Clone, Debug)]
pub struct Work {
    pub binding: Arc<Binding>,
    pub task: Task,
    /// Sequence number of the request, for marks.
    pub sequence: u64,
}

/// Copies between bindings in memory that the host cannot touch. For transports
/// that move bytes with the processor's help elsewhere.
pub trait Mover: Any + Send + Sync + std::fmt::Debug {
    /// Copies one message from a peer's memory to ours: region to region, or
    /// if `is_staged` between the places where it lies in one piece. Never
    /// waits; allocates only for a pair of bindings that it has not seen.
    /// Marks the first write of request `sequence`.
    fn copy_message(
        self: Arc<Self>,
        from: End<'_>,
        to: End<'_>,
        sequence: u64,
        is_staged: bool,
    ) -> Result<Fence>;

    /// The last request that may have written destination memory, as the
    /// device says.
    fn first_write(&self) -> u64;
}

/// Memory of one kind and the queue that works on it. Thread safe.
pub trait Device: Send + Sync + std::fmt::Debug {
    /// Memory for staging or relay; freed with the device.
    fn allocate(&self, bytes: u64) -> Result<MemoryRange>;

    /// Gives back what `allocate` gave.
    fn free(&self, range: MemoryRange);

    /// Gets ready to work on `binding`, before its first work; may allocate.
    /// Fails with `BufferMismatch` where memory is none that the device
    /// reaches.
    fn prepare(&self, binding: &Binding) -> Result<()> {
        let _ = binding;
        Ok(())
    }

    /// Refuses memory that is bound as what it is not, where that would be found
    /// out only by a GPU that faults.
    fn check_memory(&self, range: MemoryRange, memory: Memory) -> Result<()> {
        let _ = (range, memory);
        Ok(())
    }

    /// Refuses a stream of the caller's that no transfer can be ordered with.
    fn check_stream(&self, stream: usize) -> Result<()> {
        match stream {
            0 => Ok(()),
            _ => Err(no_stream()),
        }
    }

    /// The point that the caller's `stream` has come to: a fence that is
    /// reached when everything is done that was put there so far.
    fn enter(&self, stream: usize) -> Result<Fence> {
        self.check_stream(stream).map(|()| Fence::default())
    }

    /// Has the caller's `stream` go on only when `until` are reached, or the
    /// abort word is set. Never waits.
    fn leave(&self, stream: usize, until: &[Fence], abort: &Arc<AbortCell>) -> Result<()> {
        let _ = (until, abort);
        self.check_stream(stream)
    }

    /// True if source memory on the host has to be copied before a transport
    /// may read it.
    fn stages_host(&self) -> bool {
        false
    }

    /// Adds work to the queue; it starts after `after` and in queue order.
    /// Never waits, never allocates once warm. After an abort the work is
    /// skipped and its fence reached.
    fn enqueue(&self, work: Work, after: &Fence) -> Result<Fence>;
}

fn no_stream() -> Error {
    Error::new(
        Status::Unsupported,
        "a stream was given, and no buffer of this session is on a GPU",
    )
}

//! What one rank does: the part of a plan that is derived for it alone.
//!
//! A program is a list of *steps*. A step holds messages (to and from peers)
//! and local copies; a message holds pieces, each a strided region of local
//! memory and its place in the message:
//!
//! ```text
//!   step 3 ─ send to 12   bytes 0..4096  direct: contiguous in "w1", no copy
//!          ─ send to 12   bytes 0..640   packed: 5 pieces, 16-byte aligned
//!          ─ receive from 7 ...
//! ```
//!
//! Sender and receiver derive the same messages in the same order, each with
//! its own regions. Memory is named by slots; pointers are bound later.

use crate::layout::BufferKey;
use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Tensor, TensorIndex};
use crate::plan::piece::flat_boxes;
use crate::rank::Rank;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// Source (training) or destination (inference).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Source,
    Destination,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Source => "source",
            Side::Destination => "destination",
        })
    }
}

/// A local buffer the program touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferUse {
    pub side: Side,
    pub key: BufferKey,
}

/// Index into [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferSlot(pub u32);

impl BufferSlot {
    /// Memory that the session owns: bytes received to be forwarded later.
    pub const RELAY: BufferSlot = BufferSlot(u32::MAX);
}

/// One loop of a strided region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Loop {
    pub count: u64,
    /// Bytes between iterations.
    pub stride: i64,
}

/// A strided region of local memory: `loops` (outermost first) around runs of
/// `run` contiguous elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    pub slot: BufferSlot,
    /// Bytes from the start of the buffer.
    pub offset: u64,
    /// Dtype in memory.
    pub dtype: Dtype,
    /// Contiguous elements of the innermost run; at least 1.
    pub run: u64,
    /// Range in [`Program::loops`].
    pub loops: (u32, u32),
}

/// One region's place in a message. The elements of the region, in order, are
/// the wire elements at `at..at + bytes` of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub tensor: TensorIndex,
    /// The box that it is a part of, in [`Program::boxes`]; with how many
    /// elements of it before the first one of the piece, in row-major order.
    /// [`Program::boxes_of`] says which boxes that makes it.
    pub within: u32,
    pub first: u64,
    pub region: Region,
    /// Bytes from the start of the message; a multiple of 16 where a box of a
    /// packed one begins.
    pub at: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Dtype on the wire.
    pub wire: Dtype,
}

impl Piece {
    /// True if it is one contiguous run that needs no conversion.
    pub fn is_direct(&self) -> bool {
        self.region.dtype == self.wire && self.region.loops.0 == self.region.loops.1
    }
}

/// Which way a message goes, seen from the program's rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Send,
    Receive,
}

/// One message of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub peer: Rank,
    pub direction: Direction,
    /// Stage of the route: 0 for direct, 1 for a forward.
    pub stage: u32,
    pub bucket: u32,
    /// Bytes on the wire, gaps of alignment included.
    pub bytes: u64,
    /// Range in [`Program::pieces`].
    pub pieces: (u32, u32),
    /// True if our side is one contiguous run that needs no conversion: the
    /// transport may read or write it in place.
    pub is_direct: bool,
    /// True if an earlier message of the step sends the same to another rank:
    /// it is in staging already, and is not packed again.
    pub is_packed_before: bool,
    /// Where the message lies in this rank's staging, unless `is_direct`.
    pub staging: u64,
}

impl Message {
    /// Bucket `b` of stage `s` travels in step `b + s`.
    pub fn step(&self) -> u32 {
        self.bucket.saturating_add(self.stage)
    }
}

/// A copy within the rank: source region to destination region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalCopy {
    pub tensor: TensorIndex,
    pub bounds: IndexBox,
    pub source: Region,
    pub destination: Region,
    /// Bytes written at the destination.
    pub bytes: u64,
}

/// A region whose elements enter a digest: the sum mod 2^64 of
/// `mix(canonical flat index, bits in digest dtype)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestItem {
    pub tensor: TensorIndex,
    pub bounds: IndexBox,
    pub region: Region,
    /// The dtype the destination stores; values are converted to it first.
    pub dtype: Dtype,
    /// Source items: counts in the published digest (one holder does).
    pub is_once: bool,
    /// Source items: how often the destination holds these elements, per copy
    /// where all copies are alike, else in all.
    pub weight: u64,
}

/// What one end of a pair means to send to, or receive from, the other in one
/// stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairHash {
    pub peer: Rank,
    pub direction: Direction,
    pub hash: u128,
}

/// The messages and local copies of one step, as ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Step {
    /// Range in [`Program::messages`]: by peer, then order within the pair.
    pub messages: (u32, u32),
    /// Range in [`Program::locals`].
    pub locals: (u32, u32),
    /// Staging this step uses, in bytes.
    pub staging_bytes: u64,
}

/// Everything one rank does for one execution of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    pub rank: Rank,
    pub buffers: Vec<BufferUse>,
    pub loops: Vec<Loop>,
    /// What pieces are parts of: as many tensors have boxes alike, they are few.
    pub boxes: Vec<IndexBox>,
    pub pieces: Vec<Piece>,
    pub messages: Vec<Message>,
    pub locals: Vec<LocalCopy>,
    /// Destination padding to be zeroed, if the layout asks for it.
    pub fills: Vec<Region>,
    pub steps: Vec<Step>,
    /// Every canonical tensor of the plan, by [`TensorIndex`].
    pub tensors: Arc<[Tensor]>,
    pub digest_source: Vec<DigestItem>,
    pub digest_destination: Vec<DigestItem>,
    /// Staging to allocate: two steps in flight, both directions.
    pub staging_bytes: u64,
    /// Relay memory to allocate, for plans with forwards.
    pub relay_bytes: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub bytes_local: u64,
    /// Sum over sent pair lists minus received ones, of their hashes, mod
    /// 2^128: zero in total over all ranks of a consistent plan.
    pub pair_balance: u128,
    /// The hashes that make it up, to tell which pair differs.
    pub pairs: Vec<PairHash>,
}

impl Program {
    /// True if the rank takes no part.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.locals.is_empty()
    }

    pub fn messages_of(&self, step: &Step) -> &[Message] {
        &self.messages[range(step.messages)]
    }

    /// What is packed into staging before a step is sent.
    pub fn packs_of(&self, step: &Step) -> impl Iterator<Item = &Message> {
        let sent = self.staged_of(step, Direction::Send);
        sent.filter(|m| !m.is_packed_before)
    }

    /// What is unpacked from staging when a step has come.
    pub fn unpacks_of(&self, step: &Step) -> impl Iterator<Item = &Message> {
        self.staged_of(step, Direction::Receive)
    }

    fn staged_of(&self, step: &Step, direction: Direction) -> impl Iterator<Item = &Message> {
        let messages = self.messages_of(step).iter();
        messages.filter(move |m| m.direction == direction && !m.is_direct)
    }

    pub fn locals_of(&self, step: &Step) -> &[LocalCopy] {
        &self.locals[range(step.locals)]
    }

    pub fn pieces_of(&self, message: &Message) -> &[Piece] {
        &self.pieces[range(message.pieces)]
    }

    /// The elements of its tensor that a piece carries: boxes, in the piece's
    /// order.
    pub fn boxes_of(&self, piece: &Piece) -> SmallVec<[IndexBox; 1]> {
        let within = &self.boxes[piece.within as usize];
        let count = piece.bytes / piece.wire.bytes();
        let mut boxes = SmallVec::new();
        flat_boxes(within, piece.first, piece.first + count, &mut |b| {
            boxes.push(b.clone());
        });
        boxes
    }

    pub fn loops_of(&self, region: &Region) -> &[Loop] {
        &self.loops[range(region.loops)]
    }

    /// Elements of a region.
    pub fn elements(&self, region: &Region) -> u64 {
        region.run
            * self
                .loops_of(region)
                .iter()
                .map(|l| l.count)
                .product::<u64>()
    }

    /// Memory to allocate beside the bound buffers, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.staging_bytes + self.relay_bytes
    }

    /// True if a message is written to anything but relay memory.
    pub fn keeps(&self, message: &Message) -> bool {
        let mut pieces = self.pieces_of(message).iter();
        pieces.any(|p| p.region.slot != BufferSlot::RELAY)
    }

    /// True if the rank sends what it has received before.
    pub fn forwards(&self) -> bool {
        let mut messages = self.messages.iter();
        messages.any(|m| m.direction == Direction::Send && m.stage > 0)
    }

    /// Every rank this one sends to or receives from, ascending.
    pub fn peers(&self) -> Vec<Rank> {
        // Messages of a step are by peer.
        let by_peer = self.messages.chunk_by(|a, b| a.peer == b.peer);
        let mut peers: Vec<Rank> = by_peer.map(|of| of[0].peer).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

fn range(r: (u32, u32)) -> Range<usize> {
    r.0 as usize..r.1 as usize
}

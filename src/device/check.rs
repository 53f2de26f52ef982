//! What a program must satisfy before its bytes are touched.
//!
//! A program comes from our planner, its memory from the caller. Both are
//! looked at once, when they are bound; the copies then rely on it:
//!
//! ```text
//!   slot memory  [0 ........................ bytes)
//!   region            [lo ......... hi)              must lie inside
//! ```

use super::MemoryRange;
use crate::error::{Error, Result, Status};
use crate::layout::dtype::Dtype;
use crate::limits::{DIM_COUNT_MAX, RANK_COUNT_MAX};
use crate::plan::program::{
    BufferSlot, DigestItem, LocalCopy, Loop, Message, Piece, Program, Region,
};

use rustc_hash::FxHashSet;
/// Bytes of the largest element that the copies and digests take.
const ELEMENT_BYTES_MAX: u64 = 256;

/// Proof that [`check`] has passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    pub(super) is_staged: bool,
}

/// Checks every region, message and digest item of `program` against the
/// memory bound to it.
pub(super) fn check(
    program: &Program,
    memory: &[MemoryRange],
    staging: MemoryRange,
    relay: MemoryRange,
) -> Result<Checked> {
    if memory.len() != program.buffers.len() {
        return Err(Error::internal(format!(
            "the program names {} buffers and {} are bound",
            program.buffers.len(),
            memory.len()
        )));
    }
    for (what, range) in memory
        .iter()
        .map(|m| ("a buffer", m))
        .chain([("staging", &staging), ("relay memory", &relay)])
    {
        check_range(what, range)?;
    }
    let check = Check {
        program,
        memory,
        staging,
        relay,
        is_staged: staging.bytes > 0,
    };
    check.steps()?;
    for message in &program.messages {
        check.message(message)?;
    }
    for local in &program.locals {
        check.local(local)?;
    }
    for fill in &program.fills {
        check.region("padding", fill)?;
    }
    for item in program
        .digest_source
        .iter()
        .chain(&program.digest_destination)
    {
        check.digest(item)?;
    }
    Ok(Checked {
        is_staged: check.is_staged,
    })
}

/// Refuses null addresses and ranges that leave the address space.
fn check_range(what: &str, range: &MemoryRange) -> Result<()> {
    let end = (range.address as u64).checked_add(range.bytes);
    if range.bytes > 0 && (range.address == 0 || end.is_none_or(|e| e > isize::MAX as u64)) {
        return Err(Error::invalid(format!(
            "{what} of {} bytes at address {:#x} is not a memory range",
            range.bytes, range.address
        )));
    }
    Ok(())
}

struct Check<'a> {
    program: &'a Program,
    memory: &'a [MemoryRange],
    staging: MemoryRange,
    relay: MemoryRange,
    is_staged: bool,
}

impl Check<'_> {
    fn steps(&self) -> Result<()> {
        let p = self.program;
        for (i, step) in p.steps.iter().enumerate() {
            let inside = is_inside(step.messages, p.messages.len())
                && is_inside(step.locals, p.locals.len());
            if !inside {
                return Err(broken(format!("step {i} names what does not exist")));
            }
            let place = |m: &Message| (m.pieces, m.bytes, m.staging);
            let packed: FxHashSet<_> = p.packs_of(step).map(place).collect();
            let mut again = p.messages_of(step).iter().filter(|m| m.is_packed_before);
            if let Some(m) = again.find(|m| !packed.contains(&place(m))) {
                return Err(broken(format!(
                    "a message of step {i} to rank {} is said to be packed and is not",
                    m.peer
                )));
            }
            if let Some(m) = p.messages_of(step).iter().find(|m| m.step() as usize != i) {
                return Err(broken(format!(
                    "a message of step {} is in step {i}",
                    m.step()
                )));
            }
        }
        Ok(())
    }

    fn message(&self, m: &Message) -> Result<()> {
        let what = || format!("a message of step {} with rank {}", m.step(), m.peer);
        if m.peer.0 >= RANK_COUNT_MAX || !is_inside(m.pieces, self.program.pieces.len()) {
            return Err(broken(format!("{} names what does not exist", what())));
        }
        let mut at = 0;
        for piece in self.program.pieces_of(m) {
            let end = piece.at.checked_add(piece.bytes);
            match end {
                Some(end) if piece.at >= at && end <= m.bytes => at = end,
                _ => return Err(broken(format!("{}: pieces overlap or leave it", what()))),
            }
            self.piece(piece)?;
        }
        if m.is_direct && !self.is_contiguous(m) {
            return Err(broken(format!("{} is direct but not contiguous", what())));
        }
        if self.is_staged && !m.is_direct {
            let end = m.staging.checked_add(m.bytes);
            if end.is_none_or(|end| end > self.staging.bytes) {
                return Err(Error::new(
                    Status::StagingTooSmall,
                    format!(
                        "{} needs staging up to byte {}, {} are there",
                        what(),
                        m.staging.saturating_add(m.bytes),
                        self.staging.bytes
                    ),
                ));
            }
        }
        Ok(())
    }

    /// True if the message is one run of memory in its wire dtype.
    fn is_contiguous(&self, m: &Message) -> bool {
        let [piece] = self.program.pieces_of(m) else {
            return false;
        };
        let step = |l: &Loop, run: u64| l.count == 1 || l.stride == run as i64;
        let mut run = piece.region.run * piece.wire.bytes();
        let is_dense = self.program.loops_of(&piece.region).iter().rev().all(|l| {
            let ok = step(l, run);
            run *= l.count;
            ok
        });
        piece.at == 0 && piece.bytes == m.bytes && piece.region.dtype == piece.wire && is_dense
    }

    fn piece(&self, piece: &Piece) -> Result<()> {
        let elements = self.region("a piece", &piece.region)?;
        let wire = piece.wire.bytes();
        if elements.checked_mul(wire) != Some(piece.bytes) {
            return Err(broken(format!(
                "a piece of {} bytes has {elements} elements of {}",
                piece.bytes, piece.wire
            )));
        }
        if piece.region.dtype != piece.wire && !piece.at.is_multiple_of(wire) {
            return Err(broken(format!(
                "a piece that is converted starts at byte {}, inside an element of {}",
                piece.at, piece.wire
            )));
        }
        castable(piece.region.dtype, piece.wire)
    }

    fn local(&self, local: &LocalCopy) -> Result<()> {
        let source = self.region("the source of a local copy", &local.source)?;
        let destination = self.region("the destination of a local copy", &local.destination)?;
        if source != destination {
            return Err(broken(format!(
                "a local copy reads {source} elements and writes {destination}"
            )));
        }
        castable(local.source.dtype, local.destination.dtype)
    }

    fn digest(&self, item: &DigestItem) -> Result<()> {
        let elements = self.region("a digest item", &item.region)?;
        let Some(tensor) = self.program.tensors.get(item.tensor.index()) else {
            return Err(broken(format!("there is no tensor {}", item.tensor.0)));
        };
        let is_inside = tensor.shape.len() == item.bounds.spans().len()
            && tensor
                .shape
                .iter()
                .zip(item.bounds.spans())
                .all(|(&n, s)| s.lo <= s.hi && s.hi <= n);
        if !is_inside || item.bounds.elements() != elements {
            return Err(broken(format!(
                "tensor \"{}\": a digest of {} over {elements} elements",
                tensor.name, item.bounds
            )));
        }
        castable(item.region.dtype, item.dtype)
    }

    /// Checks that a region lies inside its memory; returns its elements.
    fn region(&self, what: &str, region: &Region) -> Result<u64> {
        let range = match region.slot {
            BufferSlot::RELAY => self.relay,
            BufferSlot(slot) => match self.memory.get(slot as usize) {
                Some(range) => *range,
                None => return Err(broken(format!("{what} names buffer slot {slot}"))),
            },
        };
        if !is_inside(region.loops, self.program.loops.len()) {
            return Err(broken(format!("{what} names loops that do not exist")));
        }
        let loops = self.program.loops_of(region);
        let (Some((lo, hi)), Some(elements)) = (extent(region, loops), elements(region, loops))
        else {
            return Err(broken(format!("{what} has no or too many elements")));
        };
        if lo < 0 || hi > i128::from(range.bytes) {
            return Err(Error::new(
                Status::BufferMismatch,
                format!(
                    "{what} covers bytes {lo} to {hi} of a buffer of {} bytes",
                    range.bytes
                ),
            ));
        }
        Ok(elements)
    }
}

/// The bytes `[lo, hi)` of the buffer that a region touches.
fn extent(region: &Region, loops: &[Loop]) -> Option<(i128, i128)> {
    if loops.len() > DIM_COUNT_MAX || region.dtype.bytes() > ELEMENT_BYTES_MAX {
        return None;
    }
    let mut lo = i128::from(region.offset);
    let run = region.run.checked_mul(region.dtype.bytes())?;
    let mut hi = lo + i128::from(run);
    for l in loops {
        let reach = i128::from(l.count.checked_sub(1)?).checked_mul(i128::from(l.stride))?;
        lo = lo.checked_add(reach.min(0))?;
        hi = hi.checked_add(reach.max(0))?;
    }
    Some((lo, hi))
}

/// Elements of a region; `None` if there are none or too many.
fn elements(region: &Region, loops: &[Loop]) -> Option<u64> {
    let n = loops
        .iter()
        .try_fold(region.run, |n, l| n.checked_mul(l.count))?;
    let bytes = n.checked_mul(region.dtype.bytes())?;
    (bytes > 0).then_some(n)
}

fn is_inside(range: (u32, u32), len: usize) -> bool {
    range.0 <= range.1 && range.1 as usize <= len
}

fn castable(from: Dtype, to: Dtype) -> Result<()> {
    if from.converts_to(to) {
        return Ok(());
    }
    Err(Error::new(
        Status::Unsupported,
        format!("no conversion from {from} to {to}"),
    ))
}

fn broken(message: String) -> Error {
    Error::internal(format!("broken program: {message}"))
}

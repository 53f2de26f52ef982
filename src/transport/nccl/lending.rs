//! Buffers that other ranks of the host read where they lie.
//!
//! What goes through a channel is copied twice, into a slot and out of it. A
//! contiguous message whose memory CUDA can export need not be: its sender
//! *lends* it, and the receiver copies from there, once.
//!
//! ```text
//!   prepare   sender    list of loans on its board, for the buffers bound now
//!   step      sender    until its bytes are ready   sent = n        until read >= n
//!             receiver  until sent >= n             copy, read = n
//! ```
//!
//! A rank posts its list before it agrees to a request, and the others read it
//! once all have agreed; the next list comes with the next request. So a list
//! is never read while it is written. Where a loan was announced both ends leave
//! its message out of the slots.

use super::board::{Board, PeerBoard};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::ipc::{EXPORTED_BYTES, Exported, Opened};
use crate::device::{Binding, MemoryRange};
use crate::error::{Error, Result};
use crate::plan::program::{BufferSlot, Direction};
use crate::rank::Rank;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of a loan on a board.
pub(super) const LOAN_BYTES: usize = 128;
const _: () = assert!(EXPORTED_BYTES + 8 + 3 * 4 <= LOAN_BYTES);

/// Which message of a step: its number among those from one rank to another.
type Place = (u32, u32);

/// The messages from one rank to another that are lent.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Ascending; where the bytes are, for whoever reads them.
    by_place: Vec<(Place, MemoryRange)>,
}

impl Loans {
    pub(super) fn get(&self, step: u32, number: u32) -> Option<MemoryRange> {
        let found = self.by_place.binary_search_by_key(&(step, number), |l| l.0);
        found.ok().map(|i| self.by_place[i].1)
    }

    /// True if any message of the step is lent.
    pub(super) fn is_in(&self, step: u32) -> bool {
        let from = self.by_place.partition_point(|l| l.0 < (step, 0));
        self.by_place.get(from).is_some_and(|l| l.0.0 == step)
    }
}

/// Loans as they stand on a board.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Posted {
    exported: Exported,
    /// Of the bytes, in the lender's process.
    address: u64,
    to: Rank,
    place: Place,
}

impl Posted {
    fn to_bytes(&self) -> [u8; LOAN_BYTES] {
        let mut out = [0; LOAN_BYTES];
        let (exported, rest) = out.split_at_mut(EXPORTED_BYTES);
        exported.copy_from_slice(&self.exported.to_bytes());
        rest[..8].copy_from_slice(&self.address.to_le_bytes());
        rest[8..12].copy_from_slice(&self.to.0.to_le_bytes());
        rest[12..16].copy_from_slice(&self.place.0.to_le_bytes());
        rest[16..20].copy_from_slice(&self.place.1.to_le_bytes());
        out
    }

    fn from_bytes(bytes: &[u8; LOAN_BYTES]) -> Posted {
        let mut exported = [0; EXPORTED_BYTES];
        exported.copy_from_slice(&bytes[..EXPORTED_BYTES]);
        let rest = &bytes[EXPORTED_BYTES..];
        let word =
            |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        Posted {
            exported: Exported::from_bytes(&exported),
            address: u64::from(word(0)) | u64::from(word(4)) << 32,
            to: Rank(word(8)),
            place: (word(12), word(16)),
        }
    }
}

/// What this rank lends.
#[derive(Debug, Default)]
pub(super) struct Lender {
    /// Of the last list; 0 before the first.
    epoch: u64,
    /// Whose buffers the list is of.
    binding: Option<u64>,
}

impl Lender {
    /// True if the list on the board is of this binding.
    pub(super) fn is_of(&self, binding: &Binding) -> bool {
        self.binding == Some(binding.id())
    }

    /// Lends what the messages of `binding` to `ranks` allow, and posts the list.
    pub(super) fn post(
        &mut self,
        gpu: &Gpu,
        board: &Board,
        binding: &Binding,
        ranks: &[Rank],
    ) -> Result<HashMap<Rank, Loans>> {
        let posted = lendable(gpu, binding, ranks)?;
        self.epoch += 1;
        let bytes: Vec<u8> = posted.iter().flat_map(Posted::to_bytes).collect();
        board.lend(self.epoch, posted.len(), &bytes)?;
        self.binding = Some(binding.id());
        let mut loans: HashMap<Rank, Loans> = HashMap::new();
        for p in posted {
            let range = MemoryRange {
                address: p.address as usize,
                bytes: p.exported.bytes(),
            };
            loans
                .entry(p.to)
                .or_default()
                .by_place
                .push((p.place, range));
        }
        Ok(loans)
    }
}

/// The messages whose bytes lie in one piece in a buffer that can be exported.
fn lendable(gpu: &Gpu, binding: &Binding, ranks: &[Rank]) -> Result<Vec<Posted>> {
    let program = &binding.program;
    let mut buffers: HashMap<BufferSlot, Option<Exported>> = HashMap::new();
    let mut posted = Vec::new();
    for (step, of_step) in (0..).zip(&program.steps) {
        let mut numbers: HashMap<Rank, u32> = HashMap::new();
        let messages = program.messages_of(of_step).iter();
        for m in messages.filter(|m| m.direction == Direction::Send && ranks.contains(&m.peer)) {
            let number = numbers.entry(m.peer).or_default();
            let place = (step, *number);
            *number += 1;
            let [piece] = program.pieces_of(m) else {
                continue;
            };
            let slot = piece.region.slot;
            if !m.is_direct || m.bytes == 0 || slot == BufferSlot::RELAY {
                continue;
            }
            let whole = binding.memory[slot.0 as usize];
            let exported = match buffers.get(&slot) {
                Some(exported) => *exported,
                None => *buffers.entry(slot).or_insert(Exported::new(gpu, whole)?),
            };
            let address = binding.contiguous(m);
            let part = exported.and_then(|e| e.part((address - whole.address) as u64, m.bytes));
            posted.extend(part.map(|exported| Posted {
                exported,
                address: address as u64,
                to: m.peer,
                place,
            }));
        }
    }
    Ok(posted)
}

/// What this rank may read of one other.
#[derive(Debug, Default)]
pub(super) struct Borrower {
    /// Of the list that was read last.
    epoch: u64,
    loans: Loans,
    /// Allocations of the lender's.
    opened: Vec<Opened>,
}

impl Borrower {
    pub(super) fn loans(&self) -> &Loans {
        &self.loans
    }

    /// Takes over the list of `lender`, if there is a new one. Nothing in a
    /// stream reads what the one before lent.
    pub(super) fn look(
        &mut self,
        gpu: &Arc<Gpu>,
        (lender, board): (Rank, &PeerBoard),
        me: Rank,
    ) -> Result<()> {
        let Some((epoch, count)) = board.lends()? else {
            return Ok(());
        };
        if epoch == self.epoch {
            return Ok(());
        }
        let posted = board.loans(count)?;
        let (bytes, _) = posted.as_chunks::<LOAN_BYTES>();
        let posted = bytes.iter().map(Posted::from_bytes);
        let posted: Vec<Posted> = posted.filter(|p| p.to == me).collect();
        self.opened
            .retain(|o| posted.iter().any(|p| o.is_of(&p.exported)));
        let mut by_place = Vec::with_capacity(posted.len());
        for p in &posted {
            let range = self.range(gpu, p).map_err(|e| {
                let message = format!("opening a buffer that rank {lender} lends: {}", e.message);
                Error { message, ..e }.by(lender)
            })?;
            by_place.push((p.place, range));
        }
        self.loans = Loans { by_place };
        self.epoch = epoch;
        Ok(())
    }

    /// Where a loan is in this process.
    fn range(&mut self, gpu: &Arc<Gpu>, p: &Posted) -> Result<MemoryRange> {
        if p.exported.is_ours() {
            return Ok(MemoryRange {
                address: p.address as usize,
                bytes: p.exported.bytes(),
            });
        }
        if let Some(opened) = self.opened.iter().find(|o| o.is_of(&p.exported)) {
            return Ok(opened.range_of(&p.exported));
        }
        let opened = Opened::new(gpu, &p.exported)?;
        let range = opened.range();
        self.opened.push(opened);
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loans_are_found_by_step_and_number() {
        let at = |address| MemoryRange { address, bytes: 1 };
        let loans = Loans {
            by_place: vec![((0, 2), at(5)), ((3, 0), at(6)), ((3, 1), at(7))],
        };
        assert_eq!(loans.get(3, 1), Some(at(7)));
        assert_eq!((loans.get(0, 0), loans.get(4, 0)), (None, None));
        assert_eq!(
            [0, 1, 2, 3, 4].map(|s| loans.is_in(s)),
            [true, false, false, true, false]
        );
    }

    #[test]
    fn loans_come_back_as_they_were_posted() {
        let posted = Posted {
            exported: Exported::from_bytes(&std::array::from_fn(|i| match i {
                84.. => 0,
                i => i as u8,
            })),
            address: 0x1234_5678_9abc,
            to: Rank(7),
            place: (3, 11),
        };
        assert_eq!(Posted::from_bytes(&posted.to_bytes()), posted);
    }
}

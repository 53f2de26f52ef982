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
//! is never read while it is written. It names its plan, so that nobody takes it
//! for one of a plan in which its rank has no part. Where a loan was announced both
//! ends leave its message out of the slots.

use super::board::{Board, PeerBoard};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::ipc::{EXPORTED_BYTES, Exported, Opened};
use crate::device::{Binding, MemoryRange};
use crate::error::{Error, Result};
use crate::plan::program::Direction;
use crate::rank::Rank;
use std::sync::Arc;

/// Bytes of a loan on a board.
pub(super) const LOAN_BYTES: usize = 128;
const _: () = assert!(EXPORTED_BYTES + 8 + 3 * 4 <= LOAN_BYTES);

/// Plans whose lists are kept at a time.
const LIST_COUNT_MAX: usize = 64;

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

/// What this rank lends in a plan, and whose buffers these are.
#[derive(Debug)]
pub(super) struct Lent {
    plan: u128,
    binding: u64,
    epoch: u64,
    bytes: Vec<u8>,
    by_rank: Vec<(Rank, Arc<Loans>)>,
}

impl Lent {
    /// What is lent to one rank.
    pub(super) fn to(&self, rank: Rank) -> Arc<Loans> {
        let found = self.by_rank.iter().find(|(to, _)| *to == rank);
        found.map(|(_, loans)| loans.clone()).unwrap_or_default()
    }
}

/// What this rank lends.
#[derive(Debug, Default)]
pub(super) struct Lender {
    /// A list for each of the last plans, the oldest first.
    lists: Vec<Lent>,
    /// Of the list that was made last; 0 before the first.
    epoch: u64,
    /// Whose buffers are in the list on the board.
    on_board: Option<u64>,
}

impl Lender {
    /// True if the list on the board is of this binding.
    pub(super) fn is_of(&self, binding: &Binding) -> bool {
        self.on_board == Some(binding.id())
    }

    /// Lends what the messages of `binding` to `ranks` allow, and posts the list;
    /// `None` if it is there already. Plans that take turns keep theirs.
    pub(super) fn post(
        &mut self,
        gpu: &Gpu,
        board: &Board,
        (binding, plan): (&Binding, u128),
        ranks: impl Iterator<Item = Rank>,
    ) -> Result<Option<&Lent>> {
        if self.is_of(binding) {
            return Ok(None);
        }
        self.on_board = None;
        let is_kept = |list: &Lent| (list.plan, list.binding) == (plan, binding.id());
        if !self.lists.iter().any(is_kept) {
            let posted = lendable(gpu, binding, &ranks.collect::<Vec<_>>());
            self.lists.retain(|list| list.plan != plan);
            forget_oldest(&mut self.lists);
            self.epoch += 1;
            self.lists.push(listed(posted, (binding, plan), self.epoch));
        }
        let Some(list) = self.lists.iter().find(|list| is_kept(list)) else {
            return Ok(None);
        };
        board.lend((list.epoch, plan), &list.bytes)?;
        self.on_board = Some(list.binding);
        Ok(Some(list))
    }
}

/// Has room for one list more. Plans come and go, and nobody says which are gone;
/// a list that is needed after all is made and read anew.
fn forget_oldest<T>(lists: &mut Vec<T>) {
    let excess = (lists.len() + 1).saturating_sub(LIST_COUNT_MAX);
    lists.drain(..excess);
}

fn listed(mut posted: Vec<Posted>, (binding, plan): (&Binding, u128), epoch: u64) -> Lent {
    let mut bytes = Vec::with_capacity(posted.len() * LOAN_BYTES);
    posted.iter().for_each(|p| bytes.extend(p.to_bytes()));
    posted.sort_unstable_by_key(|p| (p.to, p.place));
    let range = |p: &Posted| MemoryRange {
        address: p.address as usize,
        bytes: p.exported.bytes(),
    };
    let to_one = |run: &[Posted]| {
        let by_place = run.iter().map(|p| (p.place, range(p))).collect();
        (run[0].to, Arc::new(Loans { by_place }))
    };
    Lent {
        plan,
        binding: binding.id(),
        epoch,
        bytes,
        by_rank: posted.chunk_by(|a, b| a.to == b.to).map(to_one).collect(),
    }
}

/// The messages whose bytes lie in one piece in a buffer that can be exported.
fn lendable(gpu: &Gpu, binding: &Binding, ranks: &[Rank]) -> Vec<Posted> {
    let program = &binding.program;
    // What CUDA does not export, for whatever reason, goes through slots.
    let export = |range: &MemoryRange| match range.bytes {
        0 => None,
        _ => Exported::new(gpu, *range).unwrap_or(None),
    };
    let buffers: Vec<Option<Exported>> = binding.memory.iter().map(export).collect();
    let mut posted = Vec::new();
    for (step, of_step) in (0..).zip(&program.steps) {
        // Messages come by peer.
        let by_peer = program
            .messages_of(of_step)
            .chunk_by(|a, b| a.peer == b.peer);
        for to_peer in by_peer.filter(|run| ranks.contains(&run[0].peer)) {
            let sent = to_peer.iter().filter(|m| m.direction == Direction::Send);
            for (number, m) in (0..).zip(sent) {
                let [piece] = program.pieces_of(m) else {
                    continue;
                };
                let slot = piece.region.slot.0 as usize;
                // Bytes to be forwarded are in none of the caller's buffers.
                let Some(Some(buffer)) = buffers.get(slot).filter(|_| m.is_direct && m.bytes > 0)
                else {
                    continue;
                };
                let address = binding.contiguous(m);
                let at = (address - binding.memory[slot].address) as u64;
                posted.extend(buffer.part(at, m.bytes).map(|exported| Posted {
                    exported,
                    address: address as u64,
                    to: m.peer,
                    place: (step, number),
                }));
            }
        }
    }
    posted
}

/// What this rank may read of one other.
#[derive(Debug, Default)]
pub(super) struct Borrower {
    /// The last list of each of the last plans, the oldest first.
    lists: Vec<Borrowed>,
    /// Allocations of the lender's.
    opened: Vec<Opened>,
    nothing: Arc<Loans>,
}

#[derive(Debug)]
struct Borrowed {
    plan: u128,
    epoch: u64,
    loans: Arc<Loans>,
    allocations: Vec<Exported>,
}

impl Borrower {
    /// What whoever lends nothing lends.
    pub(super) fn nothing(&self) -> Arc<Loans> {
        self.nothing.clone()
    }

    /// What `lender` lends to rank `me` in `plan`. If its list is a new one, nothing
    /// in a stream reads what the one before lent.
    pub(super) fn look(
        &mut self,
        gpu: &Arc<Gpu>,
        (lender, board): (Rank, &PeerBoard),
        (me, plan): (Rank, u128),
    ) -> Result<Arc<Loans>> {
        // The list of another plan: this one has nothing of the lender's.
        let head = board.lends()?.filter(|head| head.plan == plan);
        let Some(head) = head else {
            return Ok(self.nothing());
        };
        let is_known = |list: &&Borrowed| (list.plan, list.epoch) == (plan, head.epoch);
        if let Some(list) = self.lists.iter().find(is_known) {
            return Ok(list.loans.clone());
        }
        let bytes = board.loans(head.count)?;
        let (posted, _) = bytes.as_chunks::<LOAN_BYTES>();
        let posted = posted.iter().map(Posted::from_bytes);
        let posted: Vec<Posted> = posted.filter(|p| p.to == me).collect();
        self.lists.retain(|list| list.plan != plan);
        forget_oldest(&mut self.lists);
        let of_others = self.lists.iter().flat_map(|list| &list.allocations);
        let used: Vec<&Exported> = of_others
            .chain(posted.iter().map(|p| &p.exported))
            .collect();
        self.opened.retain(|o| used.iter().any(|e| o.is_of(e)));
        let mut by_place = Vec::with_capacity(posted.len());
        for p in &posted {
            let range = self.range(gpu, p).map_err(|e| {
                let message = format!("opening a buffer that rank {lender} lends: {}", e.message);
                Error { message, ..e }.by(lender)
            })?;
            by_place.push((p.place, range));
        }
        let loans = Arc::new(Loans { by_place });
        self.lists.push(Borrowed {
            plan,
            epoch: head.epoch,
            loans: loans.clone(),
            allocations: posted.iter().map(|p| p.exported).collect(),
        });
        Ok(loans)
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
    fn lists_do_not_pile_up() {
        let mut lists: Vec<usize> = (0..LIST_COUNT_MAX - 1).collect();
        forget_oldest(&mut lists);
        assert_eq!(lists.len(), LIST_COUNT_MAX - 1);
        lists.push(LIST_COUNT_MAX);
        forget_oldest(&mut lists);
        assert_eq!((lists.len(), lists[0]), (LIST_COUNT_MAX - 1, 1));
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

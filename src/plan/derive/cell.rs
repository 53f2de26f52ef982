//! A cell as one rank sees it: where it lies here, who holds and who needs it.

use super::route::{Here, There};
use super::view::{OwnView, PeerView, explicit_own, is_stored_alike, slice_view};
use super::walk::Walk;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::dtype::Dtype;
use crate::layout::tensor::IndexBox;
use crate::plan::cells::{HolderSet, StagedSlice};
use crate::plan::piece::{contiguous_from, elements_from, loops_of};
use crate::plan::program::{Direction, Loop};
use crate::plan::tables::{PlacementRef, PlanTensor, placement};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

/// Alignment of cuts inside large items, in wire bytes.
const ALIGN_BYTES: u64 = 16;
/// Items below this size are cut at any whole granule.
const ALIGNED_ITEM_BYTES_MIN: u64 = 1024;
/// Rows of an item that is cut between them: a share is off by at most one.
const ROWS_MIN: u64 = 1024;

/// A cell of one class, seen from this rank.
#[derive(Clone, Debug)]
pub struct Cell {
    pub bounds: IndexBox,
    pub bytes: u64,
    /// No cut falls inside this many wire bytes.
    pub unit: u64,
    pub wire: Dtype,
    pub own: OwnView,
    pub holders: HolderSet,
    pub needers: Needers,
    /// How the first rank at the other end stores it, per holder slice (when
    /// receiving) or of the one needer (when sending).
    pub peers: SmallVec<[PeerView; 1]>,
    /// All needers store it as the first one does.
    pub are_needers_alike: bool,
    /// All ranks of the other side store it as the first one there does.
    pub is_alike_across: bool,
    /// Where it begins in our buffer, in bytes.
    pub offset: u64,
    /// From which axis on it is one run at our end, and elements of such a run.
    pub run_axis: usize,
    pub run: u64,
    /// Elements of a run at the first rank of the other end; 0 where a
    /// conversion stands between.
    pub run_across: u64,
    /// The loops around the runs of all of it; nothing where it lies in several
    /// buffers.
    pub loops: Option<SmallVec<[Loop; 8]>>,
    /// Of the bounds, as pairs are compared by them.
    pub hash: u128,
}

impl Cell {
    /// The dtype in which a stretch of it travels. Between ranks that store it
    /// alike that is what they store, unless the first sender had less.
    pub fn wire_of(&self, here: Here, there: There) -> Dtype {
        let is_alike = (here, there) == (Here::Buffer, There::Alike);
        match is_alike && self.own.dtype.bytes() <= self.wire.bytes() {
            true => self.own.dtype,
            false => self.wire,
        }
    }

    /// Where an element lies in our buffer, in bytes, and on axis 0.
    pub fn locate(&self, element: u64) -> (u64, u64) {
        if element == 0 {
            return (self.offset, self.bounds.lead());
        }
        let (mut run, inside) = (element / self.run, element % self.run);
        let mut at = self.offset + inside * self.own.dtype.bytes();
        let mut lead = 0;
        for axis in (0..self.run_axis).rev() {
            let size = self.bounds.0[axis].len();
            at = at.wrapping_add_signed((run % size) as i64 * self.own.strides[axis]);
            lead = run % size;
            run /= size;
        }
        (at, self.bounds.lead() + lead)
    }

    /// Where it is cut that is to be cut at a byte: in front of the unit that the
    /// byte is in, or at the end.
    pub fn cut_at(&self, byte: u64) -> u64 {
        match byte >= self.bytes {
            true => self.bytes,
            false => byte / self.unit * self.unit,
        }
    }

    /// True if all ranks that may be at the other end store it in one way.
    pub fn is_alike(&self, there: There) -> bool {
        match there {
            There::Across => self.is_alike_across,
            There::Alike => self.are_needers_alike,
            There::Relay => true,
        }
    }
}

/// Elements of the runs that are one in memory and on the wire; 0 where a
/// conversion stands between.
pub fn run_elements(bounds: &IndexBox, wire: Dtype, strides: &[i64], dtype: Dtype) -> u64 {
    match dtype == wire {
        true => elements_from(bounds, contiguous_from(bounds, strides, dtype.bytes())),
        false => 0,
    }
}

/// 128 bits of the bounds of a box.
pub fn hash_of(bounds: &IndexBox) -> u128 {
    let mut text: SmallVec<[u8; 128]> = SmallVec::new();
    for s in bounds.spans() {
        text.extend_from_slice(&s.lo.to_le_bytes());
        text.extend_from_slice(&s.hi.to_le_bytes());
    }
    xxh3_128(&text)
}

/// Who needs a cell: a placement of the tensor, or one of its explicit boxes.
#[derive(Clone, Debug)]
pub enum Needers {
    Slice(StagedSlice),
    Listed(u32),
}

impl Needers {
    /// Which of the tensor's demands, in their order: placements, then explicit
    /// boxes.
    pub fn demand(&self) -> (bool, u32) {
        match self {
            Needers::Slice(s) => (false, s.placement),
            Needers::Listed(j) => (true, *j),
        }
    }
}

impl<'a> Walk<'a> {
    /// A cell of a tensor, which lies in a view of ours.
    pub fn cell(
        &self,
        tensor: &'a PlanTensor,
        bounds: IndexBox,
        own: OwnView,
        needers: Needers,
    ) -> Result<Cell> {
        let holders = self.splitter(tensor).holders(&bounds);
        let are_needers_alike = self.are_needers_alike(tensor, &needers);
        let (needed, peers, is_alike_across) = match self.direction {
            Direction::Send => {
                let there = self.needer_view(tensor, &needers)?;
                let dtype = there.dtype;
                (dtype, [there].into_iter().collect(), are_needers_alike)
            }
            Direction::Receive => (
                own.dtype,
                self.holder_views(tensor, &holders),
                self.are_holders_alike(tensor, &holders),
            ),
        };
        let wire = self.wire(tensor, needed)?;
        let bytes = bounds.elements() * wire.bytes();
        let axis = contiguous_from(&bounds, &own.strides, own.dtype.bytes());
        let across = |p: &PeerView| run_elements(&bounds, wire, &p.strides, p.dtype);
        let loops = || {
            let mut loops = SmallVec::new();
            loops_of(&bounds, &own.strides, own.dtype.bytes(), &mut loops);
            loops
        };
        Ok(Cell {
            unit: cut_unit(&bounds, &tensor.granule, wire, bytes),
            offset: own.offset_of(&bounds),
            run_axis: axis,
            run: elements_from(&bounds, axis),
            run_across: peers.first().map_or(0, across),
            loops: own.split.is_none().then(loops),
            hash: hash_of(&bounds),
            bounds,
            bytes,
            wire,
            own,
            holders,
            needers,
            peers,
            are_needers_alike,
            is_alike_across,
        })
    }

    /// The dtype in which a tensor travels that is needed as `needed`.
    fn wire(&self, tensor: &PlanTensor, needed: Dtype) -> Result<Dtype> {
        let held = tensor.source_dtype;
        if held.converts_to(needed) {
            return Ok(Dtype::wire(held, needed));
        }
        Err(Error::layout(format!(
            "tensor \"{}\" is {held} on the source and {needed} on the destination; \
             only f32, f16 and bf16 convert into each other",
            self.name(tensor),
        )))
    }

    /// How the needers of a demand store it: alike on all of a slice.
    fn needer_view(&self, tensor: &PlanTensor, needers: &Needers) -> Result<PeerView> {
        let layout = self.inputs.destination;
        match needers {
            Needers::Slice(s) => {
                let (part, p) = placement(layout, tensor.needers[s.placement as usize]);
                Ok(slice_view(layout, part, p, &s.slice))
            }
            Needers::Listed(j) => {
                let e = &tensor.explicit_needers[*j as usize];
                let (rank, view) = e.ranks[0];
                let own = explicit_own(layout, rank, view)?;
                Ok(PeerView {
                    strides: own.strides,
                    dtype: own.dtype,
                })
            }
        }
    }

    fn holder_views(&self, tensor: &PlanTensor, holders: &HolderSet) -> SmallVec<[PeerView; 1]> {
        let layout = self.inputs.source;
        let view = |s: &StagedSlice| {
            let (part, p) = placement(layout, tensor.holders[s.placement as usize]);
            slice_view(layout, part, p, &s.slice)
        };
        holders.slices.iter().map(view).collect()
    }

    fn are_needers_alike(&self, tensor: &PlanTensor, needers: &Needers) -> bool {
        match needers {
            Needers::Slice(s) => is_slice_alike(self.inputs.destination, &tensor.needers, s),
            Needers::Listed(_) => true,
        }
    }

    fn are_holders_alike(&self, tensor: &PlanTensor, holders: &HolderSet) -> bool {
        match holders.slices.as_slice() {
            [one] if holders.listed.is_empty() => {
                is_slice_alike(self.inputs.source, &tensor.holders, one)
            }
            _ => false,
        }
    }
}

/// True if the ranks of a slice store their placement alike.
fn is_slice_alike(layout: &Layout, refs: &[PlacementRef], s: &StagedSlice) -> bool {
    let (part, p) = placement(layout, refs[s.placement as usize]);
    is_stored_alike(part, p, &s.slice)
}

/// Wire bytes that no cut may split: whole granules, and 16-byte steps where
/// the item is large enough. An item of many rows is cut between rows, so that
/// what lies between two cuts is one box.
pub fn cut_unit(bounds: &IndexBox, granule: &[u64], wire: Dtype, bytes: u64) -> u64 {
    let row = |axis: usize| elements_from(bounds, axis + 1) * wire.bytes();
    let first = granule.iter().position(|&g| g > 1);
    let unit = first.map_or(wire.bytes(), |d| granule[d] * row(d));
    if bytes < ALIGNED_ITEM_BYTES_MIN {
        return unit;
    }
    let unit = lcm(unit, ALIGN_BYTES);
    let rows = (0..bounds.0.len()).map(|axis| lcm(unit, row(axis)));
    let rows = rows.filter(|r| *r <= bytes / ROWS_MIN);
    rows.max().unwrap_or(unit)
}

/// Saturates: what large cells have in common may be beyond them.
fn lcm(a: u64, b: u64) -> u64 {
    let mut gcd = (a, b);
    while gcd.1 != 0 {
        gcd = (gcd.1, gcd.0 % gcd.1);
    }
    (a / gcd.0).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tensor::Span;

    fn unit(shape: &[u64], granule: &[u64]) -> u64 {
        let bounds = IndexBox(shape.iter().map(|&n| Span::new(0, n)).collect());
        let bytes = bounds.elements() * 2;
        cut_unit(&bounds, granule, Dtype::BF16, bytes)
    }

    #[test]
    fn items_of_many_rows_are_cut_between_rows() {
        assert_eq!(unit(&[4096, 512], &[1, 1]), 1024);
        assert_eq!(unit(&[4, 4096, 512], &[1, 1, 1]), 1024);
        // Of two axes with many rows each the outer one counts.
        assert_eq!(unit(&[2048, 2, 8], &[1, 1, 1]), 32);
    }

    #[test]
    fn items_of_few_rows_are_cut_at_sixteen_bytes_and_small_ones_anywhere() {
        assert_eq!(unit(&[64, 512], &[1, 1]), 16);
        assert_eq!(unit(&[16, 16], &[1, 1]), 2);
    }

    #[test]
    fn rows_that_do_not_end_at_sixteen_bytes_are_taken_together() {
        // 18-byte rows end together with 16-byte steps every 8 rows.
        assert_eq!(unit(&[65536, 9], &[1, 1]), 144);
        // And where 8 of them are more than a thousandth, not at all.
        assert_eq!(unit(&[4096, 9], &[1, 1]), 16);
    }

    #[test]
    fn granules_stay_whole() {
        assert_eq!(unit(&[4096, 512], &[128, 1]), 128 * 1024);
        assert_eq!(unit(&[1 << 20, 512], &[128, 1]), 128 * 1024);
        assert_eq!(unit(&[4096, 512], &[1, 128]), 1024);
    }
}

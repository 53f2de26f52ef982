//! Intersection: the cells of a box, each with who holds it and who needs it.
//!
//! A cell is a box that no cut of the source and no cut of the needing
//! placement crosses. Symbolic cuts are intersected in closed form, axis by
//! axis (a merge of sorted bounds, cost = output); explicit boxes split what
//! is left. Both ends split the *needed* box by the same rule, so sender and
//! receiver see the same cells.

use super::tables::{ExplicitBox, PlanTensor, placement};
use crate::layout::Layout;
use crate::layout::mesh::MeshSlice;
use crate::layout::tensor::{IndexBox, Span};
use crate::rank::Rank;
use smallvec::SmallVec;

/// A slice of holders or needers, before the stage of a tensor is known.
#[derive(Clone, Debug)]
pub struct StagedSlice {
    pub slice: MeshSlice,
    /// Which placement of the tensor it comes from.
    pub placement: u32,
    pub stage_axis: Option<u8>,
}

impl StagedSlice {
    /// The slice at a stage.
    pub fn at(&self, stage: Option<u32>) -> MeshSlice {
        let mut s = self.slice.clone();
        if let (Some(axis), Some(stage)) = (self.stage_axis, stage) {
            s.ranges[axis as usize] = (stage, stage + 1);
        }
        s
    }
}

/// The ranks that hold a cell, as far as the class of the tensor tells.
#[derive(Clone, Debug, Default)]
pub struct HolderSet {
    pub slices: SmallVec<[StagedSlice; 1]>,
    /// Explicitly described ranks and their views, ascending.
    pub listed: Vec<(Rank, u32)>,
}

/// Splits boxes of one tensor by everything the source says about it.
pub struct Splitter<'a> {
    pub source: &'a Layout,
    pub destination: &'a Layout,
    pub tensor: &'a PlanTensor,
}

impl Splitter<'_> {
    fn shape(&self) -> &[u64] {
        &self.destination.tensors()[self.tensor.destination.index()].shape
    }

    /// The cells of a needed box `bounds`, or of the part of it inside
    /// `within`, sorted by start.
    pub fn cells(&self, bounds: &IndexBox, within: Option<&IndexBox>) -> Vec<IndexBox> {
        let range = match within {
            Some(w) => bounds.intersect(w),
            None => bounds.clone(),
        };
        if range.is_empty() {
            return Vec::new();
        }
        if self.tensor.explicit_holders.is_empty() {
            return self.grid(&range, None);
        }
        // Explicit boxes split from the needed box down, whoever asks.
        let mut out = Vec::new();
        let holders: Vec<&ExplicitBox> = self.tensor.explicit_holders.iter().collect();
        for cell in self.grid(bounds, None) {
            split_by(&cell, &range, &holders, &mut out);
        }
        out.retain(|c| range.contains(c));
        out.sort();
        out
    }

    /// The product grid of all symbolic source bounds inside `range` and, if
    /// given, of the bounds of needing placement `needer`.
    pub fn grid(&self, range: &IndexBox, needer: Option<usize>) -> Vec<IndexBox> {
        let mut axes: SmallVec<[SmallVec<[u64; 16]>; 4]> = SmallVec::new();
        for (dim, span) in range.spans().iter().enumerate() {
            let mut bounds: SmallVec<[u64; 16]> = SmallVec::new();
            bounds.push(span.lo);
            for r in &self.tensor.holders {
                let (part, p) = placement(self.source, *r);
                let rule = part.rule(p);
                rule.bounds_within(part.mesh(rule), dim, self.shape()[dim], *span, &mut bounds);
            }
            if let Some(j) = needer {
                let (part, p) = placement(self.destination, self.tensor.needers[j]);
                let rule = part.rule(p);
                rule.bounds_within(part.mesh(rule), dim, self.shape()[dim], *span, &mut bounds);
            }
            bounds.push(span.hi);
            bounds.sort_unstable();
            bounds.dedup();
            axes.push(bounds);
        }
        product(&axes)
    }

    /// The needed boxes of placement `needer` that overlap `held`.
    pub fn needed_boxes(&self, needer: usize, held: &IndexBox) -> Vec<IndexBox> {
        let (part, p) = placement(self.destination, self.tensor.needers[needer]);
        let rule = part.rule(p);
        let mesh = part.mesh(rule);
        let mut axes: SmallVec<[SmallVec<[u64; 16]>; 4]> = SmallVec::new();
        for (dim, span) in held.spans().iter().enumerate() {
            let size = self.shape()[dim];
            let first = rule.span_at(mesh, dim, size, span.lo);
            let last = rule.span_at(mesh, dim, size, span.hi - 1);
            let wide = Span::new(first.lo, last.hi);
            let mut bounds: SmallVec<[u64; 16]> = SmallVec::new();
            bounds.push(wide.lo);
            rule.bounds_within(mesh, dim, size, wide, &mut bounds);
            bounds.push(wide.hi);
            bounds.sort_unstable();
            bounds.dedup();
            axes.push(bounds);
        }
        product(&axes)
    }

    /// The cells of all that placement `needer` needs of `bounds`.
    pub fn demanded(&self, needer: usize, bounds: &IndexBox) -> Vec<IndexBox> {
        if self.tensor.explicit_holders.is_empty() {
            return self.grid(bounds, Some(needer));
        }
        let needed = self.needed_boxes(needer, bounds);
        needed.iter().flat_map(|b| self.cells(b, None)).collect()
    }

    /// Who holds a cell.
    pub fn holders(&self, cell: &IndexBox) -> HolderSet {
        let mut set = HolderSet::default();
        for (i, r) in self.tensor.holders.iter().enumerate() {
            let (part, p) = placement(self.source, *r);
            let rule = part.rule(p);
            set.slices.push(StagedSlice {
                slice: rule.holders(r.part, part.mesh(rule), None, self.shape(), |d| {
                    cell.0[d].lo
                }),
                placement: i as u32,
                stage_axis: rule.stage_axis,
            });
        }
        for e in &self.tensor.explicit_holders {
            if e.bounds.contains(cell) {
                set.listed.extend(&e.ranks);
            }
        }
        set.listed.sort_unstable();
        set.listed.dedup_by_key(|e| e.0);
        set
    }

    /// Who needs a cell through placement `needer`.
    pub fn needers(&self, needer: usize, cell: &IndexBox) -> StagedSlice {
        let r = self.tensor.needers[needer];
        let (part, p) = placement(self.destination, r);
        let rule = part.rule(p);
        StagedSlice {
            slice: rule.holders(r.part, part.mesh(rule), None, self.shape(), |d| {
                cell.0[d].lo
            }),
            placement: needer as u32,
            stage_axis: rule.stage_axis,
        }
    }
}

/// Every box of a grid given by the bounds of each axis, sorted by start.
fn product(axes: &[SmallVec<[u64; 16]>]) -> Vec<IndexBox> {
    let count: usize = axes.iter().map(|b| b.len() - 1).product();
    let mut out = Vec::with_capacity(count);
    let mut at: SmallVec<[usize; 8]> = axes.iter().map(|_| 0).collect();
    for _ in 0..count {
        out.push(IndexBox(
            axes.iter()
                .zip(&at)
                .map(|(b, &i)| Span::new(b[i], b[i + 1]))
                .collect(),
        ));
        for d in (0..axes.len()).rev() {
            at[d] += 1;
            if at[d] + 1 < axes[d].len() {
                break;
            }
            at[d] = 0;
        }
    }
    out
}

/// Splits `cell` until every box either contains a piece or misses it; pieces
/// outside of `range` are left out.
fn split_by(cell: &IndexBox, range: &IndexBox, boxes: &[&ExplicitBox], out: &mut Vec<IndexBox>) {
    if !cell.overlaps(range) {
        return;
    }
    let near: Vec<&ExplicitBox> = boxes
        .iter()
        .copied()
        .filter(|e| e.bounds.overlaps(cell))
        .collect();
    let Some(e) = near.iter().find(|e| !e.bounds.contains(cell)) else {
        out.push(cell.clone());
        return;
    };
    for (d, span) in cell.spans().iter().enumerate() {
        let b = e.bounds.0[d];
        let at = if span.lo < b.lo && b.lo < span.hi {
            b.lo
        } else if span.lo < b.hi && b.hi < span.hi {
            b.hi
        } else {
            continue;
        };
        let (mut low, mut high) = (cell.clone(), cell.clone());
        low.0[d].hi = at;
        high.0[d].lo = at;
        split_by(&low, range, &near, out);
        split_by(&high, range, &near, out);
        return;
    }
}

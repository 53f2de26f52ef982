//! Intersection: the cells of a box, each with who holds it and who needs it.
//!
//! A cell is a box that no cut of the source and no cut of the needing
//! placement crosses. Symbolic cuts are intersected in closed form, axis by
//! axis (a merge of sorted bounds, cost = output); explicit boxes split what
//! is left. Both ends split the *needed* box by the same rule, so sender and
//! receiver see the same cells.

use super::boxes::ExplicitBoxes;
use super::tables::{PlanTensor, placement};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::mesh::MeshSlice;
use crate::layout::tensor::{IndexBox, Span};
use crate::limits::CELL_COUNT_MAX;
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
        if let Some((axis, range)) = self.staged(stage) {
            s.ranges[axis] = range;
        }
        s
    }

    /// The axis whose range is another one at a stage, and that range.
    pub fn staged(&self, stage: Option<u32>) -> Option<(usize, (u32, u32))> {
        let (axis, stage) = (self.stage_axis?, stage?);
        Some((axis as usize, (stage, stage + 1)))
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

    /// The cells of a needed box `bounds`, or of the part of it inside the held
    /// box `within`, sorted by start.
    pub fn cells(&self, bounds: &IndexBox, within: Option<&IndexBox>) -> Result<Vec<IndexBox>> {
        let range = match within {
            Some(w) => bounds.intersect(w),
            None => bounds.clone(),
        };
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if self.tensor.explicit_holders.is_empty() {
            return self.grid(&range, None);
        }
        // Explicit boxes split from the needed box down, whoever asks.
        let mut slabs = Slabs::new(&self.tensor.explicit_holders, &range);
        for mut cell in self.grid(bounds, None)? {
            if cell.overlaps(&range) {
                slabs.split(&mut cell);
                self.check_count(slabs.out.len() as u64)?;
            }
        }
        let mut out = slabs.out;
        out.sort_unstable();
        Ok(out)
    }

    /// Refuses cuts that leave too many cells to plan for.
    fn check_count(&self, count: u64) -> Result<()> {
        if count <= CELL_COUNT_MAX {
            return Ok(());
        }
        let tensor = &self.destination.tensors()[self.tensor.destination.index()];
        Err(Error::limit(format!(
            "tensor \"{}\": the cuts of both sides divide one box into {count} cells or more; at most \
             {CELL_COUNT_MAX} are allowed; cut it into fewer blocks",
            tensor.name
        )))
    }

    /// The product grid of all symbolic source bounds inside `range` and, if
    /// given, of the bounds of needing placement `needer`.
    pub fn grid(&self, range: &IndexBox, needer: Option<usize>) -> Result<Vec<IndexBox>> {
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
        self.product(&axes)
    }

    /// The needed boxes of placement `needer` that overlap `held`.
    pub fn needed_boxes(&self, needer: usize, held: &IndexBox) -> Result<Vec<IndexBox>> {
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
        self.product(&axes)
    }

    /// The cells of all that placement `needer` needs of `bounds`.
    pub fn demanded(&self, needer: usize, bounds: &IndexBox) -> Result<Vec<IndexBox>> {
        if self.tensor.explicit_holders.is_empty() {
            return self.grid(bounds, Some(needer));
        }
        let mut cells = Vec::new();
        for needed in self.needed_boxes(needer, bounds)? {
            cells.extend(self.cells(&needed, None)?);
        }
        Ok(cells)
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
        let explicit = &self.tensor.explicit_holders;
        for e in explicit.near(cell).into_iter().map(|i| &explicit[i]) {
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

    /// Every box of a grid given by the bounds of each axis, sorted by start.
    fn product(&self, axes: &[SmallVec<[u64; 16]>]) -> Result<Vec<IndexBox>> {
        let counts = axes.iter().map(|b| b.len() as u64 - 1);
        let count = counts.fold(1, u64::saturating_mul);
        self.check_count(count)?;
        let mut out = Vec::with_capacity(count as usize);
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
        Ok(out)
    }
}

/// Cuts boxes into slabs, axis by axis, wherever an explicit box starts or
/// ends. Within one slab only the boxes that span it matter for the axes that
/// are left, so that cuts of different places do not cross each other:
///
/// ```text
///   ┌─────┬─────┐      first the axis with the most starts,
///   │  a  │     │      then the others within each slab
///   ├──┬──┤  c  │
///   │  │  │     │
///   └──┴──┴─────┘
/// ```
///
/// What is cut where does not depend on `range`: whoever asks for a part sees
/// the cells of the whole.
struct Slabs<'a> {
    boxes: &'a ExplicitBoxes,
    /// The axes in the order in which they are cut.
    axes: SmallVec<[usize; 8]>,
    /// A union of cells; the others are left out.
    range: &'a IndexBox,
    out: Vec<IndexBox>,
}

impl<'a> Slabs<'a> {
    fn new(boxes: &'a ExplicitBoxes, range: &'a IndexBox) -> Slabs<'a> {
        let first = boxes.axis();
        let rest = (0..range.0.len()).filter(|&a| a != first);
        Slabs {
            boxes,
            axes: (0..range.0.len().min(1))
                .map(|_| first)
                .chain(rest)
                .collect(),
            range,
            out: Vec::new(),
        }
    }

    /// Adds the cells of `cell` inside the range.
    fn split(&mut self, cell: &mut IndexBox) {
        // Along the first axis only what is near the range matters; along the
        // others every box that spans the same slab does.
        let mut near = cell.clone();
        if let Some(&axis) = self.axes.first() {
            near.0[axis] = near.0[axis].intersect(self.range.0[axis]);
        }
        let boxes: &'a ExplicitBoxes = self.boxes;
        let found = boxes.near(&near);
        let found: Vec<&IndexBox> = found.iter().map(|&i| &boxes[i].bounds).collect();
        self.cut(cell, 0, &found);
    }

    fn cut(&mut self, cell: &mut IndexBox, level: usize, boxes: &[&'a IndexBox]) {
        let axis = match self.axes.get(level) {
            _ if self.out.len() as u64 > CELL_COUNT_MAX => return,
            Some(&axis) if boxes.iter().any(|b| !b.contains(cell)) => axis,
            _ => {
                if self.range.contains(cell) {
                    self.out.push(cell.clone());
                }
                return;
            }
        };
        let whole = cell.0[axis];
        let range = whole.intersect(self.range.0[axis]);
        let mut sorted = boxes.to_vec();
        sorted.sort_by_key(|b| b.0[axis].lo);
        let ends = sorted.iter().flat_map(|b| [b.0[axis].lo, b.0[axis].hi]);
        let inside = ends.filter(|&x| range.lo < x && x < range.hi);
        let mut bounds: Vec<u64> = inside.chain([range.lo, range.hi]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let mut next = sorted.into_iter().peekable();
        let mut active: Vec<&'a IndexBox> = Vec::new();
        for slab in bounds.windows(2).map(|w| Span::new(w[0], w[1])) {
            active.retain(|b| b.0[axis].hi > slab.lo);
            while let Some(b) = next.next_if(|b| b.0[axis].lo <= slab.lo) {
                if b.0[axis].hi > slab.lo {
                    active.push(b);
                }
            }
            cell.0[axis] = slab;
            self.cut(cell, level + 1, &active);
        }
        cell.0[axis] = whole;
    }
}

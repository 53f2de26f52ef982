//! What both layouts say about each tensor, joined by name and grouped into
//! classes.
//!
//! Tensors that are cut and stored alike on both sides (every `q_proj` of a
//! model) form a *class*: everything but the stage, the name and the buffer is
//! computed once per class. A model of a thousand tensors has some twenty.

use super::boxes::{ExplicitBox, ExplicitBoxes};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::dtype::Dtype;
use crate::layout::placement::{Part, Placement};
use crate::layout::tensor::{Dims, IndexBox, Tensor, TensorIndex};
use crate::layout::view::{Strides, View};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// A placement of a tensor: part and index within the part's placements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementRef {
    pub part: u16,
    pub placement: u32,
}

pub type Refs = SmallVec<[PlacementRef; 2]>;

/// What a walk looks at of every tensor. By itself, as walks take much less time
/// over what lies together.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Which of [`Tables::kinds`] it is of.
    pub kind: u32,
    /// Buffer of its first placement on each side, if it has one.
    pub buffers: [u32; 2],
}

/// One tensor that moves.
#[derive(Clone, Debug)]
pub struct PlanTensor {
    pub source: TensorIndex,
    pub destination: TensorIndex,
    pub class: u32,
    /// Dtype in which the source stores it.
    pub source_dtype: Dtype,
    pub granule: Dims,
    /// Symbolic placements on both sides, in order of part and placement.
    pub holders: Refs,
    pub needers: Refs,
    /// Explicit boxes on both sides, sorted by box.
    pub explicit_holders: ExplicitBoxes,
    pub explicit_needers: ExplicitBoxes,
}

/// The tensors of a plan, sorted by name, with the classes they form.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub tensors: Vec<PlanTensor>,
    /// Of the tensors.
    pub glances: Vec<Glance>,
    pub kinds: Vec<Kind>,
    /// The tensors in one destination copy.
    pub copy_bytes: u64,
}

/// Tensors of one class in the same stages: whatever is found of the first one
/// holds for all. A tensor described view by view is a kind of its own.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Index of the first.
    pub first: u32,
    pub count: u64,
}

impl Tables {
    /// Joins the layouts over the destination's names that `keep` accepts.
    pub fn join(
        source: &Layout,
        destination: &Layout,
        keep: impl Fn(&str) -> bool,
    ) -> Result<Tables> {
        let mut joint = Joint::of(source, destination);
        joint.tables.tensors.reserve(destination.tensors().len());
        for (i, tensor) in destination.tensors().iter().enumerate() {
            let index = TensorIndex(i as u32);
            let needers = joint.needers.next(index);
            let is_listed = joint.needed.get(i).is_some_and(|b| !b.is_empty());
            if (is_listed || !needers.is_empty()) && keep(&tensor.name) {
                joint.add(index, needers)?;
            }
        }
        let mut tables = joint.tables;
        tables.copy_bytes = tables.copy_bytes(destination);
        Ok(tables)
    }

    /// Saturates.
    fn copy_bytes(&self, destination: &Layout) -> u64 {
        let bytes = |t: &PlanTensor| {
            let tensor = &destination.tensors()[t.destination.index()];
            let elements: u128 = tensor.shape.iter().map(|&n| u128::from(n)).product();
            elements * u128::from(tensor.dtype.bytes())
        };
        let all: u128 = self.tensors.iter().map(bytes).sum();
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

/// Tables while tensor after tensor joins them.
struct Joint<'a> {
    source: &'a Layout,
    destination: &'a Layout,
    tables: Tables,
    classes: FxHashMap<ClassKey, u32>,
    kinds: FxHashMap<(u32, Stages), u32>,
    /// Explicit boxes of both sides, by tensor.
    held: Vec<ExplicitBoxes>,
    needed: Vec<ExplicitBoxes>,
    names: Names<'a>,
    needers: Walker<'a>,
}

impl<'a> Joint<'a> {
    fn of(source: &'a Layout, destination: &'a Layout) -> Joint<'a> {
        Joint {
            source,
            destination,
            tables: Tables::default(),
            classes: FxHashMap::default(),
            kinds: FxHashMap::default(),
            held: explicit_boxes(source),
            needed: explicit_boxes(destination),
            names: Names::of(source),
            needers: Walker::of(destination),
        }
    }

    /// Adds a tensor of the destination, which comes after those added before.
    fn add(&mut self, index: TensorIndex, needers: Refs) -> Result<()> {
        let tensor = &self.destination.tensors()[index.index()];
        let Some(held) = self.names.find(self.destination, index) else {
            return Err(Error::layout(format!(
                "tensor \"{}\" is needed by the destination and unknown to the source",
                tensor.name
            )));
        };
        let twin = &self.source.tensors()[held.index()];
        same_shape(twin, tensor)?;
        let holders = placement_refs(self.source, held);
        let explicit_holders = boxes_of(&self.held, held.index());
        let pairs = tensor.granule.iter().zip(&twin.granule);
        let mut found = PlanTensor {
            source: held,
            destination: index,
            class: 0,
            source_dtype: one_dtype(self.source, twin, &holders, &explicit_holders)?,
            granule: pairs.map(|(a, b)| *a.max(b)).collect(),
            holders,
            needers,
            explicit_holders,
            explicit_needers: boxes_of(&self.needed, index.index()),
        };
        found.class = self.class_of(&found);
        let kind = self.kind_of(&found);
        let buffers = [
            first_buffer(self.source, &found.holders),
            first_buffer(self.destination, &found.needers),
        ];
        let tables = &mut self.tables;
        tables.glances.push(Glance { kind, buffers });
        tables.kinds[kind as usize].count += 1;
        tables.tensors.push(found);
        Ok(())
    }

    fn class_of(&mut self, found: &PlanTensor) -> u32 {
        let [source, destination] = [self.source, self.destination];
        let tensor = &destination.tensors()[found.destination.index()];
        let twin = &source.tensors()[found.source.index()];
        let key = ClassKey {
            shape: tensor.shape.clone(),
            granule: found.granule.clone(),
            dtypes: [twin.dtype, tensor.dtype],
            sides: [
                stored(source, &found.holders),
                stored(destination, &found.needers),
            ],
        };
        let next = self.classes.len() as u32;
        *self.classes.entry(key).or_insert(next)
    }

    /// The kind of a tensor whose class is known; a new one if it is its first.
    fn kind_of(&mut self, found: &PlanTensor) -> u32 {
        let next = self.tables.kinds.len() as u32;
        let kind = match found.is_listed() {
            true => next,
            false => {
                let stages = found.stages(self.source, self.destination);
                *self.kinds.entry((found.class, stages)).or_insert(next)
            }
        };
        if kind == next {
            let first = self.tables.tensors.len() as u32;
            self.tables.kinds.push(Kind { first, count: 0 });
        }
        kind
    }
}

/// Those of a tensor; none where a layout has none at all.
fn boxes_of(all: &[ExplicitBoxes], tensor: usize) -> ExplicitBoxes {
    all.get(tensor).cloned().unwrap_or_default()
}

impl PlanTensor {
    /// True if some rank described view by view holds or needs it.
    fn is_listed(&self) -> bool {
        !self.explicit_holders.is_empty() || !self.explicit_needers.is_empty()
    }

    /// The stages of its placements, on both sides.
    fn stages(&self, source: &Layout, destination: &Layout) -> Stages {
        let of = |layout, r| placement(layout, r).1.stage.unwrap_or(u32::MAX);
        let held = self.holders.iter().map(|r| of(source, *r));
        let needed = self.needers.iter().map(|r| of(destination, *r));
        held.chain(needed).collect()
    }
}

/// The dtype in which all holders store a tensor.
fn one_dtype(
    layout: &Layout,
    tensor: &Tensor,
    refs: &[PlacementRef],
    explicit: &[ExplicitBox],
) -> Result<Dtype> {
    let symbolic = refs.iter().map(|r| {
        let (part, p) = placement(layout, *r);
        part.rule(p).stored_dtype(tensor)
    });
    let mut all = symbolic.chain(explicit.iter().map(|e| e.dtype));
    let Some(first) = all.next() else {
        return Err(Error::layout(format!(
            "tensor \"{}\" is named by the source and held by none of its ranks",
            tensor.name
        )));
    };
    match all.find(|d| *d != first) {
        None => Ok(first),
        Some(other) => Err(Error::layout(format!(
            "tensor \"{}\" is stored as {first} by one source rank and as {other} by another",
            tensor.name
        ))),
    }
}

fn same_shape(source: &Tensor, destination: &Tensor) -> Result<()> {
    if source.shape == destination.shape {
        return Ok(());
    }
    let name = &destination.name;
    if source.shape.len() != destination.shape.len() {
        return Err(Error::layout(format!(
            "tensor \"{name}\" has shape {:?} on the source and {:?} on the destination",
            source.shape.as_slice(),
            destination.shape.as_slice()
        )));
    }
    let pairs = source.shape.iter().zip(&destination.shape);
    let (axis, (a, b)) = pairs
        .enumerate()
        .find(|(_, (a, b))| a != b)
        .unwrap_or((0, (&0, &0)));
    Err(Error::layout(format!(
        "tensor \"{name}\": axis {axis} has {a} indices on the source and {b} on the destination"
    )))
}

fn placement_refs(layout: &Layout, tensor: TensorIndex) -> Refs {
    let mut refs = Refs::new();
    for (p, part) in layout.parts().iter().enumerate() {
        let first = part.placements.partition_point(|x| x.tensor < tensor);
        push_refs(p, part, first, tensor, &mut refs);
    }
    refs
}

/// The buffer of the first of some placements; 0 if there are none.
fn first_buffer(layout: &Layout, refs: &[PlacementRef]) -> u32 {
    refs.first().map_or(0, |r| placement(layout, *r).1.buffer)
}

/// Adds those of a tensor, the first of which is at `first` if there is one.
fn push_refs(part: usize, of: &Part, first: usize, tensor: TensorIndex, out: &mut Refs) {
    let own = of.placements[first..].iter();
    let count = own.take_while(|x| x.tensor == tensor).count();
    out.extend((first..first + count).map(|i| PlacementRef {
        part: part as u16,
        placement: i as u32,
    }));
}

/// Placements of tensor after tensor, in their order.
struct Walker<'a> {
    layout: &'a Layout,
    /// The next placement of each part.
    next: SmallVec<[usize; 4]>,
}

impl<'a> Walker<'a> {
    fn of(layout: &'a Layout) -> Walker<'a> {
        Walker {
            layout,
            next: layout.parts().iter().map(|_| 0).collect(),
        }
    }

    /// Those of `tensor`, which comes after the one asked for before.
    fn next(&mut self, tensor: TensorIndex) -> Refs {
        let mut refs = Refs::new();
        for (p, part) in self.layout.parts().iter().enumerate() {
            let before = refs.len();
            push_refs(p, part, self.next[p], tensor, &mut refs);
            self.next[p] += refs.len() - before;
        }
        refs
    }
}

/// Finds tensors of a layout by names that ascend, which most often are its own
/// in the same order.
struct Names<'a> {
    layout: &'a Layout,
    next: usize,
}

impl<'a> Names<'a> {
    fn of(layout: &'a Layout) -> Names<'a> {
        Names { layout, next: 0 }
    }

    fn find(&mut self, other: &Layout, tensor: TensorIndex) -> Option<TensorIndex> {
        let name = &other.tensors()[tensor.index()].name;
        let is_next = self.layout.tensors().get(self.next).map(|t| &t.name) == Some(name);
        let found = match is_next {
            true => Some(TensorIndex(self.next as u32)),
            false => self.layout.find_counterpart(other, tensor),
        };
        self.next = found.map_or(self.next, |t| t.index() + 1);
        found
    }
}

/// Distinct explicit boxes of every tensor of a layout. Messages depend on
/// strides, so ranks that store a box otherwise have a box of their own.
fn explicit_boxes(layout: &Layout) -> Vec<ExplicitBoxes> {
    if layout.explicit().is_empty() {
        return Vec::new();
    }
    /// By box, dtype, how many of them a rank has, and strides: who, and in
    /// which view.
    type Holders = BTreeMap<(IndexBox, Dtype, u32, Strides), Vec<(Rank, u32)>>;
    let mut by_tensor: Vec<Holders> = vec![BTreeMap::new(); layout.tensors().len()];
    for r in layout.explicit() {
        let mut last: Option<(&View, u32)> = None;
        for (i, v) in r.views.iter().enumerate() {
            // A second view of the same box is a demand of its own.
            let again = match last {
                Some((w, n)) if w.tensor == v.tensor && w.bounds == v.bounds => n + 1,
                _ => 0,
            };
            last = Some((v, again));
            if !v.bounds.is_empty() {
                by_tensor[v.tensor.index()]
                    .entry((v.bounds.clone(), v.dtype, again, v.strides.clone()))
                    .or_default()
                    .push((r.rank, i as u32));
            }
        }
    }
    by_tensor
        .into_iter()
        .map(|m| {
            let boxes = m
                .into_iter()
                .map(|((bounds, dtype, _, _), ranks)| ExplicitBox {
                    bounds,
                    dtype,
                    ranks,
                });
            ExplicitBoxes::new(boxes.collect())
        })
        .collect()
}

#[derive(PartialEq, Eq, Hash)]
struct ClassKey {
    shape: Dims,
    granule: Dims,
    dtypes: [Dtype; 2],
    sides: [Stored; 2],
}

/// Stages of the placements of a tensor.
type Stages = SmallVec<[u32; 4]>;

/// Per placement: part, rule, kind of its buffer, member.
type Stored = SmallVec<[(u16, u32, u32, u16); 2]>;

/// What counts of where a tensor is stored.
fn stored(layout: &Layout, refs: &[PlacementRef]) -> Stored {
    refs.iter()
        .map(|r| {
            let p = placement(layout, *r).1;
            let kind = layout.buffer_kinds()[r.part as usize][p.buffer as usize];
            (r.part, p.rule, kind, p.member)
        })
        .collect()
}

/// The part and placement a reference names.
pub fn placement(layout: &Layout, r: PlacementRef) -> (&Part, &Placement) {
    let part = &layout.parts()[r.part as usize];
    (part, &part.placements[r.placement as usize])
}

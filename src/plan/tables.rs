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
    pub holders: Vec<PlacementRef>,
    pub needers: Vec<PlacementRef>,
    /// Explicit boxes on both sides, sorted by box.
    pub explicit_holders: ExplicitBoxes,
    pub explicit_needers: ExplicitBoxes,
}

/// The tensors of a plan, sorted by name, with the classes they form.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub tensors: Vec<PlanTensor>,
    pub class_count: u32,
    /// What a rank has to move: the tensors' bytes in all copies, spread evenly
    /// over the ranks of the larger side.
    pub rank_bytes_mean: u64,
}

impl Tables {
    /// Joins the layouts over the destination's names that `keep` accepts.
    pub fn join(
        source: &Layout,
        destination: &Layout,
        keep: impl Fn(&str) -> bool,
    ) -> Result<Tables> {
        let mut tables = Tables::default();
        let mut classes: FxHashMap<ClassKey, u32> = FxHashMap::default();
        let signatures = [Signatures::of(source), Signatures::of(destination)];
        let held = explicit_boxes(source);
        let needed = explicit_boxes(destination);
        for (i, tensor) in destination.tensors().iter().enumerate() {
            let needers = placement_refs(destination, TensorIndex(i as u32));
            let explicit_needers = needed[i].clone();
            if !keep(&tensor.name) || (needers.is_empty() && explicit_needers.is_empty()) {
                continue;
            }
            let found = source.find_counterpart(destination, TensorIndex(i as u32));
            let Some(s) = found else {
                return Err(Error::layout(format!(
                    "tensor \"{}\" is needed by the destination and unknown to the source",
                    tensor.name
                )));
            };
            let twin = &source.tensors()[s.index()];
            same_shape(twin, tensor)?;
            let holders = placement_refs(source, s);
            let key = ClassKey {
                shape: tensor.shape.clone(),
                granule: tensor
                    .granule
                    .iter()
                    .zip(&twin.granule)
                    .map(|(a, b)| *a.max(b))
                    .collect(),
                dtypes: [twin.dtype, tensor.dtype],
                sides: [
                    signatures[0].of_placements(source, &holders),
                    signatures[1].of_placements(destination, &needers),
                ],
            };
            let granule = key.granule.clone();
            let next = classes.len() as u32;
            let class = *classes.entry(key).or_insert(next);
            tables.tensors.push(PlanTensor {
                source: s,
                destination: TensorIndex(i as u32),
                class,
                source_dtype: one_dtype(source, twin, &holders, &held[s.index()])?,
                granule,
                holders,
                needers,
                explicit_holders: held[s.index()].clone(),
                explicit_needers,
            });
        }
        tables.class_count = classes.len() as u32;
        tables.rank_bytes_mean = tables.rank_bytes_mean(source, destination);
        Ok(tables)
    }

    fn rank_bytes_mean(&self, source: &Layout, destination: &Layout) -> u64 {
        let bytes = |t: &PlanTensor| {
            let tensor = &destination.tensors()[t.destination.index()];
            let elements: u128 = tensor.shape.iter().map(|&n| u128::from(n)).product();
            elements * u128::from(tensor.dtype.bytes())
        };
        let copy: u128 = self.tensors.iter().map(bytes).sum();
        let ranks = source.rank_count().max(destination.rank_count()).max(1);
        let mean = copy * u128::from(destination.copy_count()) / u128::from(ranks);
        u64::try_from(mean).unwrap_or(u64::MAX)
    }

    /// One tensor of each class and stages, by index, and how many there are.
    /// Explicit tensors stand for themselves.
    pub fn kinds(&self, source: &Layout, destination: &Layout) -> Vec<(usize, u64)> {
        let mut kinds: BTreeMap<(u32, Vec<u32>), (usize, u64)> = BTreeMap::new();
        for (i, t) in self.tensors.iter().enumerate() {
            let is_regular = t.explicit_holders.is_empty() && t.explicit_needers.is_empty();
            let class = match is_regular {
                true => t.class,
                false => u32::MAX - i as u32,
            };
            let key = (class, t.stages(source, destination));
            kinds.entry(key).or_insert((i, 0)).1 += 1;
        }
        kinds.into_values().collect()
    }
}

impl PlanTensor {
    /// The stages of its placements, on both sides.
    fn stages(&self, source: &Layout, destination: &Layout) -> Vec<u32> {
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

fn placement_refs(layout: &Layout, tensor: TensorIndex) -> Vec<PlacementRef> {
    let mut refs = Vec::new();
    for (p, part) in layout.parts().iter().enumerate() {
        let first = part.placements.partition_point(|x| x.tensor < tensor);
        let n = part.placements_of(tensor).len();
        refs.extend((first..first + n).map(|i| PlacementRef {
            part: p as u16,
            placement: i as u32,
        }));
    }
    refs
}

/// Distinct explicit boxes of every tensor of a layout. Messages depend on
/// strides, so ranks that store a box otherwise have a box of their own.
fn explicit_boxes(layout: &Layout) -> Vec<ExplicitBoxes> {
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

/// Per placement: part, rule, signature of its buffer, member.
type Stored = SmallVec<[(u16, u32, u32, u16); 2]>;

/// Numbers that are equal for buffers of equal structure.
struct Signatures {
    by_part: Vec<Vec<u32>>,
}

impl Signatures {
    fn of(layout: &Layout) -> Signatures {
        let mut known: FxHashMap<Vec<u64>, u32> = FxHashMap::default();
        let mut key = Vec::new();
        let mut by_part = Vec::new();
        for part in layout.parts() {
            let mut numbers = Vec::with_capacity(part.buffers.len());
            for b in &part.buffers {
                key.clear();
                key.push(u64::from(b.shared_dims));
                for &m in &b.members {
                    let p: &Placement = part.member(m);
                    key.push(u64::from(p.rule));
                    key.push(layout.tensors()[p.tensor.index()].dtype.bytes());
                    key.extend(&layout.tensors()[p.tensor.index()].shape);
                    key.push(u64::MAX);
                }
                let next = known.len() as u32;
                numbers.push(match known.get(&key) {
                    Some(&number) => number,
                    None => *known.entry(key.clone()).or_insert(next),
                });
            }
            by_part.push(numbers);
        }
        Signatures { by_part }
    }

    fn of_placements(&self, layout: &Layout, refs: &[PlacementRef]) -> Stored {
        refs.iter()
            .map(|r| {
                let p = placement(layout, *r).1;
                let signature = self.by_part[r.part as usize][p.buffer as usize];
                (r.part, p.rule, signature, p.member)
            })
            .collect()
    }
}

/// The part and placement a reference names.
pub fn placement(layout: &Layout, r: PlacementRef) -> (&Part, &Placement) {
    let part = &layout.parts()[r.part as usize];
    (part, &part.placements[r.placement as usize])
}

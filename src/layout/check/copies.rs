//! A copy is what serves: does each hold all of every tensor that it holds at
//! all?
//!
//! ```text
//!   copies by "dp"        cut by "tp" only       cut by "tp" and "dp"
//!   copy 0: ranks 0 1     [a b]  all of it       [a b . .]  half of it:
//!   copy 1: ranks 2 3     [a b]  all of it       [. . c d]  neither can serve alone
//! ```
//!
//! A copy that has nothing of a tensor is taken at its word: replicas may
//! differ, by a draft model for instance.

use super::cover::{Uncovered, uncovered};
use super::{Finding, FindingKind, Findings, Side, first_difference};
use crate::layout::Layout;
use crate::layout::placement::{CopyAxes, Part, Rule};
use crate::layout::tensor::{IndexBox, Tensor};
use crate::rank::Rank;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// A copy that has only some of what a rule cuts.
struct Partial {
    copy: u32,
    lowest: Rank,
    has: usize,
    of: usize,
    /// The tensor axis that is cut so.
    axis: Option<u8>,
    /// The mesh axes that split it over copies.
    axes: Vec<String>,
}

/// Looks at every copy of a destination.
pub(super) fn check_copies(layout: &Layout, steps: &mut u64, out: &mut Findings) {
    for part in layout.parts() {
        check_part(part, layout.tensors(), out);
    }
    check_explicit(layout, steps, out);
}

fn check_part(part: &Part, tensors: &[Tensor], out: &mut Findings) {
    let Some(copies) = part.copies.as_ref().filter(|_| part.copy_count() > 1) else {
        return;
    };
    let mut by_rule: BTreeMap<u32, Option<Partial>> = BTreeMap::new();
    for p in &part.placements {
        let found = by_rule
            .entry(p.rule)
            .or_insert_with(|| partial(part, copies, p.rule));
        let Some(found) = found else { continue };
        let tensor = &tensors[p.tensor.index()];
        let Partial {
            copy,
            lowest,
            has,
            of,
            axis,
            axes,
        } = found;
        let axes = axes.join("\" and \"");
        out.push(Finding {
            kind: FindingKind::CopyIncomplete,
            side: Some(Side::Destination),
            tensor: tensor.name.clone(),
            axis: *axis,
            rank: Some(*lowest),
            bytes: 0,
            message: format!(
                "tensor \"{}\" of the destination: copy {copy}, from rank {lowest} on, holds {has} \
                 of its {of} parts, and a copy is what serves: take mesh axis \"{axes}\" out of \
                 \"copies\", or cut the tensor along other mesh axes",
                tensor.name
            ),
        });
    }
}

/// The first copy that has not all of what a rule cuts, if there is one.
fn partial(part: &Part, copies: &CopyAxes, rule: u32) -> Option<Partial> {
    let placements = part.placements.iter().filter(|p| p.rule == rule);
    let stages: BTreeSet<Option<u32>> = placements.map(|p| p.stage).collect();
    let rule = &part.rules[rule as usize];
    let mesh = part.mesh(rule);
    if rule.mesh == copies.mesh && split_by(rule, copies).next().is_none() {
        return None;
    }
    // What each copy has: one key per part and stage.
    type Key = SmallVec<[u64; 4]>;
    let mut held = vec![BTreeSet::<Key>::new(); part.copy_count() as usize];
    let mut lowest = vec![u32::MAX; held.len()];
    for position in 0..part.ranks.count() {
        let copy = part.copy_at(position) as usize;
        lowest[copy] = lowest[copy].min(position);
        let coords = mesh.coords(position);
        let stage = rule.stage_axis.map(|a| coords[a as usize]);
        if rule.stage_axis.is_some() && !stages.contains(&stage) {
            continue;
        }
        let cuts = rule.cuts.iter().map(|c| c.part_at(mesh, &coords));
        held[copy].insert(stage.map(u64::from).into_iter().chain(cuts).collect());
    }
    let all: BTreeSet<&Key> = held.iter().flatten().collect();
    let copy = held.iter().position(|keys| keys.len() < all.len())?;
    let numbers: BTreeSet<u8> = split_by(rule, copies).collect();
    let mut cuts = rule.cuts.iter();
    let split = cuts.find(|c| c.axes.iter().any(|a| numbers.contains(a)));
    let mut axes: Vec<String> = split_by(rule, copies)
        .map(|a| mesh.axes[a as usize].name.clone())
        .collect();
    if axes.is_empty() {
        let mesh = &part.meshes[copies.mesh as usize];
        let named = copies.axes.iter();
        axes.extend(named.map(|a| mesh.axes[*a as usize].name.clone()));
    }
    Some(Partial {
        copy: copy as u32,
        lowest: part.ranks.rank(lowest[copy]),
        has: held[copy].len(),
        of: all.len(),
        axis: split.or(rule.cuts.first()).map(|c| c.dim),
        axes,
    })
}

/// Mesh axes by which a rule cuts, or places stages, and which number copies.
fn split_by<'a>(rule: &'a Rule, copies: &'a CopyAxes) -> impl Iterator<Item = u8> + 'a {
    let cut = rule.cuts.iter().flat_map(|c| &c.axes).copied();
    let used: BTreeSet<u8> = cut.chain(rule.stage_axis).collect();
    let same_mesh = rule.mesh == copies.mesh;
    used.into_iter()
        .filter(move |a| same_mesh && copies.axes.contains(a))
}

fn check_explicit(layout: &Layout, steps: &mut u64, out: &mut Findings) {
    // By tensor: what each copy has, and its lowest rank with any of it.
    type Held<'a> = BTreeMap<u32, (Rank, BTreeSet<&'a IndexBox>)>;
    let mut by_tensor: BTreeMap<usize, Held<'_>> = BTreeMap::new();
    for r in layout.explicit() {
        for v in r.views.iter().filter(|v| !v.bounds.is_empty()) {
            let held = by_tensor.entry(v.tensor.index()).or_default();
            let first = || (r.rank, BTreeSet::new());
            held.entry(r.copy).or_insert_with(first).1.insert(&v.bounds);
        }
    }
    for (t, held) in by_tensor.iter().filter(|(_, held)| held.len() > 1) {
        let tensor = &layout.tensors()[*t];
        let whole = IndexBox::whole(&tensor.shape);
        let every: BTreeSet<&IndexBox> = held.values().flat_map(|h| &h.1).copied().collect();
        let Some(outside) = uncovered(&whole, every.iter().copied(), steps) else {
            return;
        };
        for (copy, (rank, boxes)) in held.iter().filter(|(_, h)| h.1.len() < every.len()) {
            let Some(left) = uncovered(&whole, boxes.iter().copied(), steps) else {
                return;
            };
            let Uncovered { elements, first } = left;
            if elements > outside.elements {
                let bytes = (elements - outside.elements) * tensor.dtype.bytes();
                out.push(incomplete(tensor, *copy, *rank, bytes, first));
            }
        }
    }
}

fn incomplete(
    tensor: &Tensor,
    copy: u32,
    rank: Rank,
    bytes: u64,
    first: Option<IndexBox>,
) -> Finding {
    let whole = IndexBox::whole(&tensor.shape);
    let axis = first.as_ref().and_then(|b| first_difference(b, &whole));
    let such = first.map_or(String::new(), |b| format!(", such as in {b}"));
    Finding {
        kind: FindingKind::CopyIncomplete,
        side: Some(Side::Destination),
        tensor: tensor.name.clone(),
        axis,
        rank: Some(rank),
        bytes,
        message: format!(
            "tensor \"{}\" of the destination: the ranks of copy {copy}, from rank {rank} on, lack \
             {bytes} bytes of it that another copy has{such}, and a copy is what serves: give \
             ranks that serve together one copy number",
            tensor.name
        ),
    }
}

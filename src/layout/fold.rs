//! The same placements, told in other tensors, rule by rule: what
//! [`recast`](super::recast) does rank by rank and box by box, as long as the
//! description it started from.
//!
//! ```text
//!   stored   experts.0.up_proj [r, c]  Shard(0) ┐        canonical  up_proj [e, r, c]
//!            experts.1.up_proj [r, c]  Shard(0) ├─ as ─► cut along r, one buffer
//!            ..                                 ┘        per e: experts.{global}.up_proj
//! ```
//!
//! It works where each stored axis that is cut is an axis of the canonical
//! tensor, and where stored tensors that make up one are placed alike.

use super::cut::Cut;
use super::placement::{Buffer, Part, Placement, Rule};
use super::tensor::{Tensor, TensorIndex};
use super::{Layout, LayoutSpec};
use std::collections::HashSet;

/// `stored` in the tensors of `template`, a layout of one rank in which every
/// buffer is a stored tensor; `None` where rules cannot say it.
pub(super) fn fold(stored: &Layout, template: &Layout) -> Option<LayoutSpec> {
    let [model] = template.parts() else {
        return None;
    };
    if template.rank_count() != 1 || !stored.explicit().is_empty() {
        return None;
    }
    let mut spec = LayoutSpec {
        tensors: template.tensors().to_vec(),
        aliases: template.spec().aliases.clone(),
        marks: template.spec().marks.clone(),
        ..LayoutSpec::default()
    };
    spec.marks.extend(&stored.spec().marks);
    let mut known = HashSet::new();
    for part in stored.parts() {
        let mut fold = Fold {
            stored: stored.tensors(),
            part,
            model,
            canonical: template.tensors(),
            folded: like(part),
        };
        for buffer in &model.buffers {
            known.extend(fold.buffer(buffer)?);
        }
        spec.parts.push(fold.folded);
    }
    // A copy of another tensor under a name of its own has no place here.
    let is_told = |t: &Tensor| known.contains(&t.name) || template.resolve_alias(&t.name) != t.name;
    stored.tensors().iter().all(is_told).then_some(spec)
}

/// A part over the same ranks, with nothing in it.
fn like(part: &Part) -> Part {
    Part {
        ranks: part.ranks.clone(),
        meshes: part.meshes.clone(),
        copies: part.copies.clone(),
        padding: part.padding,
        rules: Vec::new(),
        placements: Vec::new(),
        spacers: Vec::new(),
        buffers: Vec::new(),
    }
}

struct Fold<'a> {
    stored: &'a [Tensor],
    part: &'a Part,
    /// Where the canonical tensors lie among the stored ones.
    model: &'a Part,
    canonical: &'a [Tensor],
    folded: Part,
}

impl<'a> Fold<'a> {
    /// Adds what the part holds of one buffer of the template; the names of
    /// the stored tensors it is, none where the part holds none of them.
    fn buffer(&mut self, buffer: &Buffer) -> Option<Vec<String>> {
        let members: Vec<&Placement> = buffer
            .members
            .iter()
            .map(|m| self.model.member(*m))
            .collect();
        let names = self.names(buffer, &members);
        let Some(held) = names.iter().find(|n| self.find(n).is_some()) else {
            return Some(Vec::new());
        };
        let (tensor, like) = self.plain(held)?;
        let is_split = self.model.rule(members[0]).split.is_some();
        for name in &names {
            let (t, p) = self.plain(name)?;
            let is_alike = (&t.shape, t.dtype, p.rule) == (&tensor.shape, tensor.dtype, like.rule);
            let own = &self.part.buffers[p.buffer as usize];
            if !is_alike || own.members.len() != 1 || (is_split && own.name != *name) {
                return None;
            }
        }
        let rules = members
            .iter()
            .map(|m| self.rule(m, members.len(), buffer.shared_dims, tensor, like))
            .collect::<Option<Vec<Rule>>>()?;
        let own = &self.part.buffers[like.buffer as usize];
        let name = if is_split { &buffer.name } else { &own.name };
        self.add(name.clone(), own, &members, rules, buffer.shared_dims);
        Some(names)
    }

    /// The stored tensors that a buffer of the template stands for.
    fn names(&self, buffer: &Buffer, members: &[&Placement]) -> Vec<String> {
        let first = members[0];
        let Some(axis) = self.model.rule(first).split else {
            return vec![buffer.name.clone()];
        };
        let count = self.canonical[first.tensor.index()].shape[axis as usize];
        let name = |i: u64| {
            let i = i.to_string();
            buffer.name.replace("{global}", &i).replace("{local}", &i)
        };
        (0..count).map(name).collect()
    }

    /// A stored tensor of which the part holds something, and where.
    fn find(&self, name: &str) -> Option<(&'a Tensor, &'a [Placement])> {
        let found = self.stored.binary_search_by(|t| t.name.as_str().cmp(name));
        let n = found.ok()?;
        let placed = self.part.placements_of(TensorIndex(n as u32));
        (!placed.is_empty()).then_some((&self.stored[n], placed))
    }

    /// The same, if it is placed once, and plainly.
    fn plain(&self, name: &str) -> Option<(&'a Tensor, &'a Placement)> {
        let (tensor, placed) = self.find(name)?;
        let [one] = placed else { return None };
        let rule = self.part.rule(one);
        let is_plain = one.stage.is_none()
            && rule.order.is_empty()
            && rule.padded == 0
            && rule.split.is_none()
            && rule.grouped.is_none()
            && rule.conversion.is_none();
        is_plain.then_some((tensor, one))
    }

    /// How a canonical tensor is placed if the stored one that has it, by
    /// itself or as one of several, is placed as `like`.
    fn rule(
        &self,
        member: &Placement,
        member_count: usize,
        shared_dims: u8,
        stored: &Tensor,
        like: &Placement,
    ) -> Option<Rule> {
        let model = self.model.rule(member);
        let canonical = &self.canonical[member.tensor.index()].shape;
        let is_plain =
            model.cuts.is_empty() && model.grouped.is_none() && model.conversion.is_none();
        let order: Vec<u8> = (model.memory_order(canonical.len()).into_iter())
            .filter(|axis| model.split != Some(*axis))
            .collect();
        let elements: u64 = order.iter().map(|&a| canonical[a as usize]).product();
        if !is_plain || elements * member_count as u64 != stored.shape.iter().product::<u64>() {
            return None;
        }
        // Stored axes that are axes of the canonical tensor come first.
        let same = (order.iter().zip(&stored.shape))
            .take_while(|&(&a, &n)| canonical[a as usize] == n)
            .count();
        let same = match member_count {
            1 => same,
            _ => same.min(usize::from(shared_dims)),
        };
        let rule = self.part.rule(like);
        let cut = |c: &Cut| {
            let dim = usize::from(c.dim);
            (dim < same).then(|| Cut {
                dim: order[dim],
                ..c.clone()
            })
        };
        Some(Rule {
            mesh: rule.mesh,
            stage_axis: None,
            cuts: rule.cuts.iter().map(cut).collect::<Option<_>>()?,
            dtype: Some(rule.stored_dtype(stored)),
            order: model.order.clone(),
            padded: 0,
            split: model.split,
            grouped: None,
            conversion: None,
        })
    }

    fn add(
        &mut self,
        name: String,
        own: &Buffer,
        members: &[&Placement],
        rules: Vec<Rule>,
        shared_dims: u8,
    ) {
        let part = &mut self.folded;
        let buffer = part.buffers.len() as u32;
        let first = part.placements.len() as u32;
        for ((place, member), rule) in (0..).zip(members).zip(rules) {
            let known = part.rules.iter().position(|r| *r == rule);
            let number = known.unwrap_or_else(|| {
                part.rules.push(rule);
                part.rules.len() - 1
            });
            part.placements.push(Placement {
                tensor: member.tensor,
                rule: number as u32,
                stage: None,
                buffer,
                member: place,
            });
        }
        part.buffers.push(Buffer {
            name,
            memory: own.memory,
            shared_dims,
            members: (first..part.placements.len() as u32).collect(),
        });
    }
}

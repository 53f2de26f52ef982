//! A layout with some of its tensors left out, and nothing moved.
//!
//! Where a fused buffer keeps only some members, the others stay as
//! *spacers*: they take their room, and nobody holds or needs them.
//!
//! ```text
//!   whole       [ q rows | k rows | v rows ]
//!   only k, v   [ ······ | k rows | v rows ]    k starts where it did
//! ```

use super::placement::{Buffer, Part, Placement};
use super::tensor::{Tensor, TensorIndex};
use super::{Layout, LayoutSpec};
use crate::error::Result;
use std::collections::BTreeSet;

impl Layout {
    /// The layout of the tensors whose name, or one of whose aliases, `keep`
    /// accepts. Ranks, copies and the places of what is kept stay as they are.
    pub fn restrict(&self, keep: impl Fn(&str) -> bool) -> Result<Layout> {
        let spec = self.spec();
        let mut is_kept: Vec<bool> = spec.tensors.iter().map(|t| keep(&t.name)).collect();
        for (alias, name) in &spec.aliases {
            if let Some(t) = self.find_tensor(name) {
                is_kept[t.index()] |= keep(alias);
            }
        }
        Layout::new(spec.keep(&is_kept))
    }

    /// True if some rank holds, or needs, a piece of this tensor. Others are
    /// only declared, or take room in fused buffers.
    pub fn is_placed(&self, tensor: TensorIndex) -> bool {
        let in_part = |p: &Part| !p.placements_of(tensor).is_empty();
        let views = || self.explicit().iter().flat_map(|r| &r.views);
        self.parts().iter().any(in_part) || views().any(|v| v.tensor == tensor)
    }
}

impl LayoutSpec {
    /// The same less the tensors that `is_kept`, one for each, does not keep.
    /// Their members of fused buffers that stay are spacers.
    pub(super) fn keep(&self, is_kept: &[bool]) -> LayoutSpec {
        let mut parts: Vec<Part> = self.parts.iter().map(|p| narrow(p, is_kept)).collect();
        let mut explicit = self.explicit.clone();
        for r in &mut explicit {
            r.views.retain(|v| is_kept[v.tensor.index()]);
        }
        let mut stays = is_kept.to_vec();
        for p in parts.iter().flat_map(|p| &p.spacers) {
            stays[p.tensor.index()] = true;
        }
        let (tensors, numbers) = compact(&self.tensors, &stays);
        for p in &mut parts {
            for x in p.placements.iter_mut().chain(&mut p.spacers) {
                x.tensor = numbers[x.tensor.index()];
            }
        }
        for v in explicit.iter_mut().flat_map(|r| &mut r.views) {
            v.tensor = numbers[v.tensor.index()];
        }
        let is_left_out: BTreeSet<&str> = self
            .tensors
            .iter()
            .zip(is_kept)
            .filter(|(_, is_kept)| !**is_kept)
            .map(|(t, _)| t.name.as_str())
            .collect();
        let aliases = self.aliases.iter();
        let aliases = aliases.filter(|(_, name)| !is_left_out.contains(name.as_str()));
        LayoutSpec {
            tensors,
            aliases: aliases.cloned().collect(),
            parts,
            explicit,
            marks: self.marks.clone(),
        }
    }
}

/// The tensors that stay, and the new number of each old one that does.
fn compact(tensors: &[Tensor], stays: &[bool]) -> (Vec<Tensor>, Vec<TensorIndex>) {
    let mut numbers = Vec::with_capacity(tensors.len());
    let mut out = Vec::new();
    for (t, &stays) in tensors.iter().zip(stays) {
        numbers.push(TensorIndex(out.len() as u32));
        if stays {
            out.push(t.clone());
        }
    }
    (out, numbers)
}

/// The part with only the buffers in which something is kept.
fn narrow(part: &Part, is_kept: &[bool]) -> Part {
    let real = part.placements.len() as u32;
    let is_real = |m: u32| m < real && is_kept[part.member(m).tensor.index()];
    let kept: Vec<&Buffer> = part
        .buffers
        .iter()
        .filter(|b| b.members.iter().any(|&m| is_real(m)))
        .collect();
    let mut placements: Vec<Placement> = Vec::new();
    let mut spacers: Vec<Placement> = Vec::new();
    for (i, b) in kept.iter().enumerate() {
        for &m in &b.members {
            let list = if is_real(m) {
                &mut placements
            } else {
                &mut spacers
            };
            list.push(Placement {
                buffer: i as u32,
                ..part.member(m).clone()
            });
        }
    }
    let mut buffers: Vec<Buffer> = kept.into_iter().cloned().collect();
    for (n, p) in placements.iter().chain(&spacers).enumerate() {
        buffers[p.buffer as usize].members[p.member as usize] = n as u32;
    }
    Part {
        ranks: part.ranks.clone(),
        meshes: part.meshes.clone(),
        copies: part.copies.clone(),
        padding: part.padding,
        rules: part.rules.clone(),
        placements,
        spacers,
        buffers,
    }
}

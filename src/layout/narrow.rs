//! A layout with some of its copies, or of its indices, left out.
//!
//! ```text
//!   copies 0 1 2 3, only 1 and 3      ranks of 1 and 3 stay, numbered 0 and 1
//!   experts 0..8, only 2..4           boxes shrink; buffers stay as they are
//! ```

use super::placement::{CopyAxes, Part};
use super::tensor::Span;
use super::view::View;
use super::{Layout, LayoutSpec};
use crate::error::{Error, Result, Status};
use crate::layout::mesh::{Mesh, MeshAxis, RankList};

impl Layout {
    /// The layout of these copies; they are numbered anew, in their order.
    /// Ranks of the others are left out.
    pub fn only_copies(&self, copies: &[u32]) -> Result<Layout> {
        let count = self.copy_count();
        if let Some(&copy) = copies.iter().find(|&&c| c >= count) {
            return Err(Error::new(
                Status::NotFound,
                format!("there is no copy {copy}; the layout has {count}"),
            ));
        }
        let mut spec = LayoutSpec {
            parts: Vec::new(),
            explicit: Vec::new(),
            ..self.spec.clone()
        };
        for (i, part) in self.parts().iter().enumerate() {
            let (lo, hi) = (self.copy_base[i], self.copy_base[i + 1]);
            if (lo..hi).all(|c| copies.contains(&c)) {
                spec.parts.push(part.clone());
                continue;
            }
            for copy in (lo..hi).filter(|c| copies.contains(c)) {
                match one_copy(part, copy - lo) {
                    Some(part) => spec.parts.push(part),
                    None => return self.only_copies_by_view(copies),
                }
            }
        }
        let chosen = self.explicit().iter().filter(|r| {
            let copy = self.copy_of(r.rank);
            copy.is_some_and(|c| copies.contains(&c))
        });
        spec.explicit = chosen.cloned().collect();
        Layout::new(spec)
    }

    /// The same where a mesh does not tell copies apart.
    fn only_copies_by_view(&self, copies: &[u32]) -> Result<Layout> {
        let mut spec = self.to_views()?.spec().clone();
        let chosen = |rank| self.copy_of(rank).is_some_and(|c| copies.contains(&c));
        spec.explicit.retain(|r| chosen(r.rank));
        Layout::new(spec)
    }

    /// The layout of some indices of the first axis of some tensors: `keep`
    /// gives their ranges, or `None` for all. Ranks are described view by view.
    pub fn clip(&self, keep: impl Fn(&str) -> Option<Vec<Span>>) -> Result<Layout> {
        let mut spec = self.to_views()?.spec().clone();
        let kept: Vec<Option<Vec<Span>>> = spec.tensors.iter().map(|t| keep(&t.name)).collect();
        for rank in &mut spec.explicit {
            let views = std::mem::take(&mut rank.views);
            for v in views {
                match &kept[v.tensor.index()] {
                    None => rank.views.push(v),
                    Some(ranges) => rank
                        .views
                        .extend(ranges.iter().filter_map(|r| part_of(&v, *r))),
                }
            }
        }
        Layout::new(spec)
    }
}

/// The part of a view with first indices in `range`.
fn part_of(v: &View, range: Span) -> Option<View> {
    let &own = v.bounds.spans().first()?;
    let both = own.intersect(range);
    if both.is_empty() {
        return None;
    }
    let mut part = v.clone();
    part.bounds.0[0] = both;
    let ahead = (both.lo - own.lo) as i64 * v.strides[0];
    part.offset = v.offset.wrapping_add_signed(ahead);
    Some(part)
}

/// The ranks of one copy as a part of their own; `None` where a rule cuts
/// over an axis that tells the copies apart.
fn one_copy(part: &Part, copy: u32) -> Option<Part> {
    let positions: Vec<u32> = (0..part.ranks.count())
        .filter(|&p| part.copy_at(p) == copy)
        .collect();
    let mut meshes = Vec::with_capacity(part.meshes.len());
    for (m, mesh) in part.meshes.iter().enumerate() {
        let narrow = narrow_mesh(mesh, &positions)?;
        for (axis, (old, new)) in mesh.axes.iter().zip(&narrow.axes).enumerate() {
            let uses = |r: &super::placement::Rule| {
                let axis = axis as u8;
                r.mesh as usize == m
                    && (r.stage_axis == Some(axis) || r.cuts.iter().any(|c| c.axes.contains(&axis)))
            };
            if old.size != new.size && part.rules.iter().any(uses) {
                return None;
            }
        }
        meshes.push(narrow);
    }
    Some(Part {
        ranks: RankList::List(positions.iter().map(|&p| part.ranks.rank(p)).collect()),
        meshes,
        copies: None::<CopyAxes>,
        ..part.clone()
    })
}

/// The mesh of some positions, if these are a block of it.
fn narrow_mesh(mesh: &Mesh, positions: &[u32]) -> Option<Mesh> {
    let mut ranges: Vec<(u32, u32)> = vec![(u32::MAX, 0); mesh.axes.len()];
    for &p in positions {
        for (range, &c) in ranges.iter_mut().zip(&mesh.coords(p)) {
            *range = (range.0.min(c), range.1.max(c + 1));
        }
    }
    let axis = |(a, &(lo, hi)): (&MeshAxis, &(u32, u32))| MeshAxis {
        name: a.name.clone(),
        size: hi - lo,
    };
    let narrow = Mesh {
        name: mesh.name.clone(),
        axes: mesh.axes.iter().zip(&ranges).map(axis).collect(),
    };
    (narrow.size() == positions.len() as u64).then_some(narrow)
}

//! The same bytes, told in other tensors.
//!
//! A checkpoint, an FSDP trainer or a flat parameter speaks of tensors as they
//! are *stored*; layouts speak of canonical ones. A [`Window`] says where a
//! box of a canonical tensor lies among the elements of a stored one, and a
//! part of the stored tensor becomes boxes of the canonical one:
//!
//! ```text
//!   stored   q_proj.weight [16, 4]      canonical  q [group 2, row 8, 4]
//!   held     rows 4..12                 becomes    {[0,1) [4,8) ..} {[1,2) [0,4) ..}
//! ```
//!
//! A range of rows, or a flat range, is at most `2 * axes - 1` boxes.

use super::fold::fold;
use super::tensor::{IndexBox, Span, TensorIndex};
use super::view::{NamedBuffer, RankViews, View};
use super::{Layout, LayoutSpec};
use crate::error::{Error, Result};
use crate::limits::VIEW_COUNT_MAX;
use smallvec::SmallVec;
use std::collections::HashMap;

/// Where the elements of a box lie among those of another tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub tensor: TensorIndex,
    pub bounds: IndexBox,
    /// Elements before the first one of the box.
    pub offset: u64,
    /// Elements between neighbours, one per axis of the box.
    pub strides: SmallVec<[u64; 4]>,
}

/// A box of a window, and the stored element it starts at, one index per axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub bounds: IndexBox,
    pub start: SmallVec<[u64; 4]>,
}

/// The stored axis that an axis of a window runs along, and its step there.
#[derive(Clone, Copy, Debug)]
struct Digit {
    /// The axis of the window.
    dim: usize,
    along: usize,
    count: u64,
    step: u64,
}

/// How the axes of a window run along those of the stored tensor.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    bounds: IndexBox,
    /// Sorted by stored axis, then by step, the longest first.
    digits: Vec<Digit>,
    /// The stored index of the first element of the window.
    base: SmallVec<[u64; 4]>,
}

impl Grid {
    /// Reads the axes of a window off its strides; `None` where one of them
    /// runs across stored axes, or two overlap.
    pub(super) fn new(window: &Window, shape: &[u64]) -> Option<Grid> {
        let mut steps: SmallVec<[u64; 4]> = SmallVec::from_elem(1, shape.len());
        for i in (1..shape.len()).rev() {
            steps[i - 1] = steps[i].checked_mul(shape[i].max(1))?;
        }
        let mut rest = window.offset;
        let base: SmallVec<[u64; 4]> = steps
            .iter()
            .map(|s| {
                let at = rest / s;
                rest %= s;
                at
            })
            .collect();
        let mut digits = Vec::with_capacity(window.strides.len());
        for (dim, (s, &stride)) in window
            .bounds
            .spans()
            .iter()
            .zip(&window.strides)
            .enumerate()
        {
            if s.len() <= 1 {
                continue;
            }
            let along = steps.iter().position(|step| stride >= *step)?;
            if stride % steps[along] != 0 {
                return None;
            }
            digits.push(Digit {
                dim,
                along,
                count: s.len(),
                step: stride / steps[along],
            });
        }
        digits.sort_by_key(|d| (d.along, std::cmp::Reverse(d.step)));
        let grid = Grid {
            bounds: window.bounds.clone(),
            digits,
            base,
        };
        grid.fits(shape).then_some(grid)
    }

    /// True if no two elements coincide and none leaves its axis.
    fn fits(&self, shape: &[u64]) -> bool {
        (0..shape.len()).all(|along| {
            let digits = self.along(along);
            let apart = (0..digits.len()).all(|i| reach(&digits[i + 1..]) < digits[i].step);
            apart && self.base[along] + reach(digits) < shape[along].max(1)
        })
    }

    fn along(&self, axis: usize) -> &[Digit] {
        let from = self.digits.partition_point(|d| d.along < axis);
        let count = self.digits[from..].partition_point(|d| d.along == axis);
        &self.digits[from..from + count]
    }

    /// Stored strides become strides of the window's axes.
    pub(super) fn strides(&self, stored: &[i64]) -> SmallVec<[i64; 4]> {
        let mut out: SmallVec<[i64; 4]> = SmallVec::from_elem(0, self.bounds.spans().len());
        for d in &self.digits {
            out[d.dim] = d.step as i64 * stored[d.along];
        }
        // An axis of one index never steps; any stride will do.
        out
    }

    /// The boxes of the window that lie in `held` of the stored tensor.
    pub(super) fn within(&self, held: &IndexBox) -> Vec<Found> {
        let mut found = vec![Found {
            bounds: self.bounds.clone(),
            start: self.base.clone(),
        }];
        for (axis, span) in held.spans().iter().enumerate() {
            let base = self.base[axis];
            let digits = self.along(axis);
            let mut boxes = Vec::new();
            let lo = span.lo.saturating_sub(base);
            let hi = span.hi.saturating_sub(base);
            if lo < hi {
                range(digits, lo, hi, &mut SmallVec::new(), &mut boxes);
            }
            let narrow = |f: &Found, spans: &SmallVec<[Span; 4]>| {
                let mut f = f.clone();
                for (d, s) in digits.iter().zip(spans) {
                    let from = self.bounds.0[d.dim].lo;
                    f.bounds.0[d.dim] = Span::new(from + s.lo, from + s.hi);
                    f.start[axis] += s.lo * d.step;
                }
                f
            };
            found = found
                .iter()
                .flat_map(|f| boxes.iter().map(move |b| (f, b)))
                .map(|(f, b)| narrow(f, b))
                .collect();
        }
        found
    }
}

/// The largest sum of steps.
fn reach(digits: &[Digit]) -> u64 {
    digits.iter().fold(0u64, |a, d| {
        a.saturating_add((d.count - 1).saturating_mul(d.step))
    })
}

/// The digits whose sum of steps is in `lo..hi`, as boxes in ascending order.
fn range(
    digits: &[Digit],
    lo: u64,
    hi: u64,
    path: &mut SmallVec<[Span; 4]>,
    out: &mut Vec<SmallVec<[Span; 4]>>,
) {
    let Some((d, inner)) = digits.split_first() else {
        if lo == 0 && hi > 0 {
            out.push(path.clone());
        }
        return;
    };
    let last = reach(inner);
    let first = lo.saturating_sub(last).div_ceil(d.step);
    let end = hi.div_ceil(d.step).min(d.count);
    let is_whole = |c: u64| lo <= c * d.step && c * d.step + last < hi;
    let mut c = first;
    while c < end {
        if is_whole(c) {
            let mut to = c + 1;
            // Whole up to the last one that ends before `hi`.
            if let Some(room) = hi.checked_sub(last + 1) {
                to = (room / d.step + 1).min(end).max(to);
            }
            path.push(Span::new(c, to));
            path.extend(inner.iter().map(|d| Span::new(0, d.count)));
            out.push(path.clone());
            path.truncate(path.len() - 1 - inner.len());
            c = to;
            continue;
        }
        path.push(Span::new(c, c + 1));
        let at = c * d.step;
        range(inner, lo.saturating_sub(at), hi - at, path, out);
        path.pop();
        c += 1;
    }
}

impl Layout {
    /// Every rank view by view, as a program that knows only its memory would
    /// describe it.
    pub fn to_views(&self) -> Result<Layout> {
        let mut spec = LayoutSpec {
            tensors: self.tensors().to_vec(),
            aliases: self.spec().aliases.clone(),
            marks: self.spec().marks.clone(),
            ..LayoutSpec::default()
        };
        let mut count = 0;
        for rank in self.ranks() {
            let views = rank_views(self, rank)?;
            count += views.views.len();
            if count > VIEW_COUNT_MAX {
                return Err(too_many());
            }
            spec.explicit.push(views);
        }
        Layout::new(spec)
    }

    /// The same memory in the tensors of `template`: a layout of one rank in
    /// which every buffer is a tensor of this layout, stored without gaps.
    ///
    /// Rules stay rules where they can say it; otherwise ranks are described
    /// view by view. Tensors that are copies of others by the template's
    /// aliases are left out; marks are those of both. Fails where a tensor is
    /// not a buffer of the template, or has another size there.
    pub fn recast(&self, template: &Layout) -> Result<Layout> {
        match fold(self, template) {
            Some(spec) => Layout::new(spec),
            None => self.recast_views(template),
        }
    }

    fn recast_views(&self, template: &Layout) -> Result<Layout> {
        let stored = Stored::of(template)?;
        let grids = self
            .tensors()
            .iter()
            .map(|t| stored.grids(t.name.as_str(), &t.shape, template))
            .collect::<Result<Vec<Vec<(TensorIndex, Grid)>>>>()?;
        let mut spec = LayoutSpec {
            tensors: template.tensors().to_vec(),
            aliases: template.spec().aliases.clone(),
            marks: template.spec().marks.clone(),
            ..LayoutSpec::default()
        };
        spec.marks.extend(&self.spec().marks);
        let mut count = 0;
        for rank in self.ranks() {
            let mut all = rank_views(self, rank)?;
            let mut views = Vec::with_capacity(all.views.len());
            for v in &all.views {
                for (tensor, grid) in &grids[v.tensor.index()] {
                    views.extend(cut(v, *tensor, grid));
                }
            }
            all.views = views;
            count += all.views.len();
            if count > VIEW_COUNT_MAX {
                return Err(too_many());
            }
            spec.explicit.push(all);
        }
        Layout::new(spec)
    }
}

fn too_many() -> Error {
    Error::limit(format!(
        "the ranks hold more than {VIEW_COUNT_MAX} boxes between them"
    ))
}

/// The part of a view that lies in a window, as views of the window's tensor.
fn cut(v: &View, tensor: TensorIndex, grid: &Grid) -> Vec<View> {
    let strides = grid.strides(&v.strides);
    let place = |f: &Found| {
        let ahead: i64 = f
            .start
            .iter()
            .zip(v.bounds.spans())
            .zip(&v.strides)
            .map(|((at, s), stride)| (at - s.lo) as i64 * stride)
            .sum();
        v.offset.wrapping_add_signed(ahead)
    };
    let found = grid.within(&v.bounds);
    let view = |f: Found| View {
        tensor,
        offset: place(&f),
        bounds: f.bounds,
        buffer: v.buffer,
        strides: strides.clone(),
        dtype: v.dtype,
        conversion: v.conversion.clone(),
    };
    found.into_iter().map(view).collect()
}

/// Everything one rank holds, with numbered buffers.
fn rank_views(layout: &Layout, rank: crate::rank::Rank) -> Result<RankViews> {
    let mut numbers = HashMap::new();
    let mut buffers: Vec<NamedBuffer> = Vec::new();
    let mut views = Vec::new();
    for v in layout.views(rank) {
        let buffer = match numbers.get(&v.buffer) {
            Some(&n) => n,
            None => {
                let b = layout
                    .buffer(rank, v.buffer)
                    .ok_or_else(|| Error::internal("a view is in no buffer"))?;
                let n = buffers.len() as u32;
                numbers.insert(v.buffer, n);
                buffers.push(b);
                n
            }
        };
        views.push(View {
            tensor: v.tensor,
            bounds: v.bounds,
            buffer,
            offset: v.offset,
            strides: v.strides,
            dtype: v.dtype,
            conversion: v.conversion,
        });
    }
    Ok(RankViews {
        rank,
        copy: layout.copy_of(rank).unwrap_or(0),
        buffers,
        views,
    })
}

/// The windows of a template, by the stored tensor they look into.
struct Stored {
    windows: HashMap<String, (u64, Vec<Window>)>,
}

impl Stored {
    fn of(template: &Layout) -> Result<Stored> {
        let ranks = template.ranks();
        let &[rank] = ranks.as_slice() else {
            return Err(Error::invalid(format!(
                "a layout of stored tensors has one rank, not {}",
                ranks.len()
            )));
        };
        let mut windows: HashMap<String, (u64, Vec<Window>)> = HashMap::new();
        for v in template.views(rank) {
            let buffer = template
                .buffer(rank, v.buffer)
                .ok_or_else(|| Error::internal("a view is in no buffer"))?;
            let element = v.dtype.bytes();
            let entry = windows
                .entry(buffer.name)
                .or_insert((buffer.bytes / element, Vec::new()));
            entry.1.push(Window {
                tensor: v.tensor,
                bounds: v.bounds,
                offset: v.offset / element,
                strides: v.strides.iter().map(|s| *s as u64 / element).collect(),
            });
        }
        Ok(Stored { windows })
    }

    /// How the canonical tensors lie in the stored one called `name`.
    fn grids(
        &self,
        name: &str,
        shape: &[u64],
        template: &Layout,
    ) -> Result<Vec<(TensorIndex, Grid)>> {
        // A copy of another tensor under a name of its own.
        if template.resolve_alias(name) != name {
            return Ok(Vec::new());
        }
        let Some((elements, windows)) = self.windows.get(name) else {
            return Err(Error::layout(format!(
                "tensor \"{name}\" is not one of the model's; it has {} stored tensors",
                self.windows.len()
            )));
        };
        let own: u64 = shape.iter().product();
        if own != *elements {
            return Err(Error::layout(format!(
                "tensor \"{name}\" has {own} elements (shape {shape:?}) and {elements} in the model"
            )));
        }
        let grid = |w: &Window| {
            Grid::new(w, shape).map(|g| (w.tensor, g)).ok_or_else(|| {
                let t = &template.tensors()[w.tensor.index()];
                Error::layout(format!(
                    "tensor \"{name}\" of shape {shape:?} does not lie along the axes of \"{}\" \
                     {:?}",
                    t.name,
                    t.shape.as_slice()
                ))
            })
        };
        windows.iter().map(grid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(shape: &[u64], strides: &[u64], offset: u64) -> Window {
        Window {
            tensor: TensorIndex(0),
            bounds: IndexBox::whole(shape),
            offset,
            strides: strides.into(),
        }
    }

    fn of(ranges: &[(u64, u64)]) -> IndexBox {
        IndexBox(ranges.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect())
    }

    /// The elements of a window in a box of the stored tensor, one by one.
    fn naive(w: &Window, shape: &[u64], held: &IndexBox) -> Vec<(Vec<u64>, Vec<u64>)> {
        let mut out = Vec::new();
        let dims: Vec<u64> = w.bounds.spans().iter().map(|s| s.len()).collect();
        for flat in 0..dims.iter().product() {
            let (mut rest, mut at) = (flat, vec![0; dims.len()]);
            for d in (0..dims.len()).rev() {
                at[d] = rest % dims[d];
                rest /= dims[d];
            }
            let place: u64 = at.iter().zip(&w.strides).map(|(a, s)| a * s).sum();
            let (mut rest, mut stored) = (w.offset + place, vec![0; shape.len()]);
            for i in (0..shape.len()).rev() {
                stored[i] = rest % shape[i];
                rest /= shape[i];
            }
            let inside = stored
                .iter()
                .zip(held.spans())
                .all(|(x, s)| s.lo <= *x && *x < s.hi);
            if inside {
                out.push((at, stored));
            }
        }
        out
    }

    /// The same, read off the boxes that were found.
    fn spelled(grid: &Grid, found: &[Found], rank: usize) -> Vec<(Vec<u64>, Vec<u64>)> {
        let unit: Vec<Vec<i64>> = (0..rank)
            .map(|i| (0..rank).map(|j| i64::from(i == j)).collect())
            .collect();
        let mut out = Vec::new();
        for f in found {
            let dims: Vec<u64> = f.bounds.spans().iter().map(|s| s.len()).collect();
            for flat in 0..dims.iter().product() {
                let (mut rest, mut at) = (flat, vec![0; dims.len()]);
                for d in (0..dims.len()).rev() {
                    at[d] = rest % dims[d];
                    rest /= dims[d];
                }
                let stored: Vec<u64> = (0..rank)
                    .map(|i| {
                        let strides = grid.strides(&unit[i]);
                        let ahead: i64 = at.iter().zip(&strides).map(|(a, s)| *a as i64 * s).sum();
                        f.start[i] + ahead as u64
                    })
                    .collect();
                let global = at
                    .iter()
                    .zip(f.bounds.spans())
                    .map(|(a, s)| a + s.lo)
                    .collect();
                out.push((global, stored));
            }
        }
        out.sort_unstable();
        out
    }

    #[test]
    fn every_box_of_a_stored_tensor_becomes_boxes_of_the_canonical_one() {
        let cases = [
            // Heads: rows are group, row, and columns stay.
            (vec![12, 3], window(&[2, 6, 3], &[18, 3, 1], 0)),
            (vec![12, 3], window(&[2, 3, 2, 3], &[18, 6, 3, 1], 0)),
            // One of two interleaved along the last axis, transposed.
            (vec![4, 3, 8], window(&[4, 4, 3], &[24, 2, 8], 1)),
            // One expert of many, and the same shape.
            (vec![6, 4], window(&[1, 6, 4], &[99, 4, 1], 0)),
            (vec![6, 4], window(&[6, 4], &[4, 1], 0)),
            // A part of the rows; a flat range.
            (vec![10, 2], window(&[2, 2, 2], &[4, 2, 1], 6)),
            (vec![24], window(&[2, 3, 4], &[12, 4, 1], 0)),
        ];
        for (shape, w) in cases {
            let grid = Grid::new(&w, &shape).unwrap();
            let mut all = vec![vec![]];
            for &n in &shape {
                let spans: Vec<(u64, u64)> = (0..n)
                    .flat_map(|lo| (lo + 1..=n).map(move |hi| (lo, hi)))
                    .step_by(if shape.len() > 2 { 3 } else { 1 })
                    .collect();
                all = all
                    .iter()
                    .flat_map(|v: &Vec<(u64, u64)>| {
                        spans.iter().map(move |s| [v.as_slice(), &[*s]].concat())
                    })
                    .collect();
            }
            for held in all {
                let held = of(&held);
                let found = grid.within(&held);
                let mut want = naive(&w, &shape, &held);
                want.sort_unstable();
                assert_eq!(
                    spelled(&grid, &found, shape.len()),
                    want,
                    "{shape:?} {held}"
                );
                assert!(
                    found.len() < 2 * w.strides.len().max(1),
                    "{held}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn what_runs_across_stored_axes_is_refused() {
        assert!(Grid::new(&window(&[6], &[1], 0), &[2, 3]).is_none());
        assert!(Grid::new(&window(&[2, 3], &[2, 1], 0), &[6]).is_none());
        assert!(Grid::new(&window(&[2, 3], &[3, 1], 1), &[6]).is_none());
    }
}

//! Layouts of single ranks, described view by view, and putting them together.
//!
//! ```text
//!   rank 0: views ─► layout ─► blob ─┐
//!   rank 1: views ─► layout ─► blob ─┼─► merge ─► the layout of one side
//!   rank 2: views ─► layout ─► blob ─┘
//! ```

use super::canonical::check_same;
use super::dtype::Dtype;
use super::tensor::{IndexBox, Span, Tensor, TensorIndex};
use super::view::{Memory, NamedBuffer, RankViews, View};
use super::{Layout, LayoutSpec};
use crate::error::{Error, Result};
use crate::rank::Rank;
use std::collections::HashMap;

impl Layout {
    /// The layout of one rank. Views name tensors and buffers by their
    /// positions in the lists given; `copy` labels the replica it belongs to.
    pub fn from_views(
        rank: Rank,
        copy: u32,
        tensors: Vec<Tensor>,
        buffers: Vec<NamedBuffer>,
        views: Vec<View>,
    ) -> Result<Layout> {
        Layout::new(LayoutSpec {
            tensors,
            explicit: vec![RankViews {
                rank,
                copy,
                buffers,
                views,
            }],
            ..LayoutSpec::default()
        })
    }

    /// One layout with everything that the given ones describe.
    ///
    /// A tensor that several name must be the same in all; a rank may be in
    /// one only.
    pub fn merge(layouts: &[&Layout]) -> Result<Layout> {
        let mut merged = LayoutSpec::default();
        let mut known: HashMap<&str, (TensorIndex, usize)> = HashMap::new();
        for (i, layout) in layouts.iter().enumerate() {
            let spec = layout.spec();
            let mut numbers = Vec::with_capacity(spec.tensors.len());
            for t in &spec.tensors {
                let next = (TensorIndex(merged.tensors.len() as u32), i);
                let &mut (n, first) = known.entry(&t.name).or_insert(next);
                if first == i {
                    merged.tensors.push(t.clone());
                } else {
                    let there = whose(layouts[first]);
                    check_same(&merged.tensors[n.index()], t, &whose(layout), &there)?;
                }
                numbers.push(n);
            }
            merged.aliases.extend(spec.aliases.iter().cloned());
            merged.marks.extend(&spec.marks);
            merged.parts.extend(spec.parts.iter().cloned());
            merged.explicit.extend(spec.explicit.iter().cloned());
            renumber(&mut merged, spec, &numbers);
        }
        Layout::new(merged)
    }
}

/// What a message calls a layout among several.
fn whose(layout: &Layout) -> String {
    match (layout.index.ranks().next(), layout.rank_count()) {
        (None, _) => "the layout without ranks".into(),
        (Some(rank), 1) => format!("the layout of rank {rank}"),
        (Some(rank), n) => format!("the layout of rank {rank} and {} more", n - 1),
    }
}

/// Gives the parts and explicit ranks just added their new tensor numbers.
fn renumber(merged: &mut LayoutSpec, added: &LayoutSpec, numbers: &[TensorIndex]) {
    let parts = merged.parts.len() - added.parts.len();
    for p in &mut merged.parts[parts..] {
        for placement in p.placements.iter_mut().chain(&mut p.spacers) {
            placement.tensor = numbers[placement.tensor.index()];
        }
        let conversions = p.rules.iter_mut().filter_map(|r| r.conversion.as_mut());
        for c in conversions.flat_map(|c| &mut c.companions) {
            *c = numbers[c.index()];
        }
    }
    let explicit = merged.explicit.len() - added.explicit.len();
    for v in merged.explicit[explicit..]
        .iter_mut()
        .flat_map(|r| &mut r.views)
    {
        v.tensor = numbers[v.tensor.index()];
        for c in v.conversion.iter_mut().flat_map(|c| &mut c.companions) {
            *c = numbers[c.index()];
        }
    }
}

/// Describes one rank view by view.
///
/// ```
/// use weightsync::layout::dtype::Dtype;
/// use weightsync::layout::tensor::Tensor;
/// use weightsync::layout::view::Memory;
/// use weightsync::layout::views::ExplicitBuilder;
/// use weightsync::Rank;
///
/// let mut b = ExplicitBuilder::new(Rank(3), 0);
/// let w = b.tensor(Tensor::new("w", &[8, 4], Dtype::BF16)?);
/// let buffer = b.buffer("w", 32, Memory::Host);
/// b.contiguous(w, &[(4, 8), (0, 4)], buffer, 0)?;
/// let layout = b.build()?;
/// assert_eq!(layout.views(Rank(3)).len(), 1);
/// # Ok::<(), weightsync::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExplicitBuilder {
    tensors: Vec<Tensor>,
    aliases: Vec<(String, String)>,
    rank: RankViews,
}

impl ExplicitBuilder {
    /// An empty description of `rank`, of the replica labelled `copy`.
    pub fn new(rank: Rank, copy: u32) -> ExplicitBuilder {
        ExplicitBuilder {
            tensors: Vec::new(),
            aliases: Vec::new(),
            rank: RankViews {
                rank,
                copy,
                buffers: Vec::new(),
                views: Vec::new(),
            },
        }
    }

    /// Declares a tensor.
    pub fn tensor(&mut self, tensor: Tensor) -> TensorIndex {
        self.tensors.push(tensor);
        TensorIndex(self.tensors.len() as u32 - 1)
    }

    /// Declares that `alias` means the same values as the tensor `name`.
    pub fn alias(&mut self, alias: impl Into<String>, name: impl Into<String>) {
        self.aliases.push((alias.into(), name.into()));
    }

    /// Adds a buffer.
    pub fn buffer(&mut self, name: impl Into<String>, bytes: u64, memory: Memory) -> u32 {
        self.rank.buffers.push(NamedBuffer {
            name: name.into(),
            bytes,
            memory,
        });
        self.rank.buffers.len() as u32 - 1
    }

    /// Adds a view of the ranges `[lo, hi)` with one byte stride per axis.
    pub fn strided(
        &mut self,
        tensor: TensorIndex,
        ranges: &[(u64, u64)],
        buffer: u32,
        offset: u64,
        strides: &[i64],
        dtype: Dtype,
    ) {
        self.rank.views.push(View {
            tensor,
            bounds: bounds(ranges),
            buffer,
            offset,
            strides: strides.into(),
            dtype,
            conversion: None,
        });
    }

    /// Adds a view that is stored row-major without gaps, in the tensor's dtype.
    pub fn contiguous(
        &mut self,
        tensor: TensorIndex,
        ranges: &[(u64, u64)],
        buffer: u32,
        offset: u64,
    ) -> Result<()> {
        let Some(t) = self.tensors.get(tensor.index()) else {
            return Err(Error::invalid(format!(
                "tensor number {} is out of range; {} are declared",
                tensor.0,
                self.tensors.len()
            )));
        };
        let dtype = t.dtype;
        let Some(strides) = bounds(ranges).contiguous_strides(dtype.bytes()) else {
            return Err(Error::limit(format!(
                "tensor \"{}\": the box {} exceeds 2^63 bytes",
                t.name,
                bounds(ranges)
            )));
        };
        self.strided(tensor, ranges, buffer, offset, &strides, dtype);
        Ok(())
    }

    /// The layout of this rank, checked.
    pub fn build(self) -> Result<Layout> {
        Layout::new(LayoutSpec {
            tensors: self.tensors,
            aliases: self.aliases,
            explicit: vec![self.rank],
            ..LayoutSpec::default()
        })
    }
}

fn bounds(ranges: &[(u64, u64)]) -> IndexBox {
    IndexBox(ranges.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect())
}

//! Flat parameters: the parameters of one FSDP unit, flattened, one after the
//! other, chunked over ranks.
//!
//! ```text
//!   flat      | q_proj        | k_proj | up_proj          |pad|
//!   rank 0    |==========|
//!   rank 1               |==========|                            chunks of
//!   rank 2                          |==========|                 ceil(n / 4)
//!   rank 3                                     |==========|
//! ```
//!
//! A chunk holds a flat range of a parameter: at most `2 * axes - 1` boxes.

use super::doc::FlatDoc;
use super::grid::{Grid, Grids};
use crate::error::{Error, Result};
use crate::layout::recast::{Grid as Axes, Window};
use crate::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use crate::layout::view::{Memory, NamedBuffer, RankViews, View};
use crate::layout::{Layout, LayoutSpec};
use crate::limits::{TENSOR_BYTES_MAX, VIEW_COUNT_MAX};
use crate::rank::Rank;
use std::collections::BTreeMap;

/// Adds flat parameters to what is sharded tensor by tensor; all ranks are
/// described view by view then.
pub(super) fn with_flat(sharded: LayoutSpec, flat: &[FlatDoc], grids: &Grids) -> Result<Layout> {
    let plain = Layout::new(sharded)?.to_views()?;
    let mut spec = plain.spec().clone();
    let mut ranks: BTreeMap<Rank, RankViews> =
        spec.explicit.drain(..).map(|r| (r.rank, r)).collect();
    for doc in flat {
        add(doc, grids, &mut spec.tensors, &mut ranks).map_err(|e| Error {
            message: format!(
                "DTensor file, flat parameter \"{}\": {}",
                doc.name, e.message
            ),
            ..e
        })?;
    }
    let views: usize = ranks.values().map(|r| r.views.len()).sum();
    if views > VIEW_COUNT_MAX {
        return Err(Error::limit(format!(
            "the DTensor file describes {views} boxes; at most {VIEW_COUNT_MAX} are allowed"
        )));
    }
    spec.explicit = ranks.into_values().collect();
    Layout::new(spec)
}

/// A parameter and the flat range it fills.
struct Member {
    tensor: TensorIndex,
    axes: Axes,
    range: Span,
}

fn add(
    doc: &FlatDoc,
    grids: &Grids,
    tensors: &mut Vec<Tensor>,
    ranks: &mut BTreeMap<Rank, RankViews>,
) -> Result<()> {
    let grid = grids.find(doc.mesh.as_deref())?;
    let (stride, count) = dimension(doc, grid)?;
    let (members, elements) = members(doc, tensors)?;
    let chunk = elements.div_ceil(count);
    let bytes = doc.dtype.0.bytes();
    for (position, &r) in grid.ranks.iter().enumerate() {
        let k = (position as u64 / stride) % count;
        let held = Span::new((k * chunk).min(elements), ((k + 1) * chunk).min(elements));
        let rank = ranks.entry(Rank(r)).or_insert_with(|| RankViews {
            rank: Rank(r),
            copy: 0,
            buffers: Vec::new(),
            views: Vec::new(),
        });
        let buffer = rank.buffers.len() as u32;
        rank.buffers.push(NamedBuffer {
            name: doc.name.clone(),
            bytes: chunk * bytes,
            memory: Memory::Host,
        });
        for m in &members {
            let part = held.intersect(m.range);
            if part.is_empty() {
                continue;
            }
            let inside = Span::new(part.lo - m.range.lo, part.hi - m.range.lo);
            for f in m.axes.within(&IndexBox([inside].into_iter().collect())) {
                rank.views.push(View {
                    tensor: m.tensor,
                    bounds: f.bounds,
                    buffer,
                    offset: (m.range.lo + f.start[0] - held.lo) * bytes,
                    strides: m.axes.strides(&[bytes as i64]),
                    dtype: doc.dtype.0,
                    conversion: None,
                });
            }
        }
    }
    Ok(())
}

/// Step and size of the mesh dimension that the parameter is chunked over.
fn dimension(doc: &FlatDoc, grid: &Grid) -> Result<(u64, u64)> {
    let at = match &doc.over {
        Some(name) => grid.names.iter().position(|n| n == name),
        None => Some(0).filter(|_| grid.sizes.len() == 1),
    };
    let Some(at) = at else {
        return Err(Error::layout(format!(
            "\"over\" names one dimension of mesh \"{}\", which has {}",
            grid.name,
            grid.names.join(", ")
        )));
    };
    let inner = &grid.sizes[at + 1..];
    let stride = inner.iter().map(|&n| u64::from(n)).product();
    Ok((stride, u64::from(grid.sizes[at])))
}

/// The parameters with their flat ranges, and how many elements there are.
fn members(doc: &FlatDoc, tensors: &mut Vec<Tensor>) -> Result<(Vec<Member>, u64)> {
    let mut at = 0u64;
    let mut out = Vec::with_capacity(doc.parameters.len());
    for p in &doc.parameters {
        let tensor = Tensor::new(p.name.clone(), &p.shape, doc.dtype.0)?;
        let elements: u64 = p.shape.iter().product();
        let lo = p.offset.unwrap_or(at);
        if lo < at {
            return Err(Error::layout(format!(
                "parameter \"{}\" starts at {lo}, inside the one before, which ends at {at}",
                p.name
            )));
        }
        let Some(hi) = lo.checked_add(elements) else {
            return Err(Error::limit(format!("parameter \"{}\" is too far", p.name)));
        };
        let mut strides: Vec<u64> = vec![1; p.shape.len()];
        for i in (1..p.shape.len()).rev() {
            strides[i - 1] = strides[i] * p.shape[i];
        }
        let window = Window {
            tensor: TensorIndex(tensors.len() as u32),
            bounds: IndexBox::whole(&p.shape),
            offset: 0,
            strides: strides.as_slice().into(),
        };
        let axes = Axes::new(&window, &[elements])
            .ok_or_else(|| Error::internal("a row-major tensor is flat"))?;
        out.push(Member {
            tensor: window.tensor,
            axes,
            range: Span::new(lo, hi),
        });
        tensors.push(tensor);
        at = hi;
    }
    let elements = doc.elements.unwrap_or(at);
    if elements < at {
        return Err(Error::layout(format!(
            "has {elements} elements, but its parameters end at {at}"
        )));
    }
    if elements > TENSOR_BYTES_MAX / doc.dtype.0.bytes() {
        return Err(Error::limit(format!(
            "has {elements} elements; at most {TENSOR_BYTES_MAX} bytes are allowed"
        )));
    }
    Ok((out, elements))
}

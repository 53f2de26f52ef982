//! Views that a file spells out rank by rank.

use super::doc::{ExplicitDoc, ViewDoc};
use super::fault::{Read, Within, fault};
use super::names::Names;
use crate::error::{Error, Result};
use crate::layout::tensor::{IndexBox, Span};
use crate::layout::view::{Memory, NamedBuffer, RankViews, Strides, View};
use crate::rank::Rank;
use std::collections::HashMap;

pub(super) fn read_explicit(doc: ExplicitDoc, names: &Names) -> Read<RankViews> {
    let buffers: Vec<NamedBuffer> = doc
        .buffers
        .into_iter()
        .map(|b| NamedBuffer {
            name: b.name,
            bytes: b.bytes,
            memory: b.memory.map(Memory::from).unwrap_or_default(),
        })
        .collect();
    let numbers: HashMap<&str, u32> = buffers
        .iter()
        .zip(0..)
        .map(|(b, i)| (b.name.as_str(), i))
        .collect();
    let views = doc
        .views
        .into_iter()
        .enumerate()
        .map(|(i, v)| read_view(v, &numbers, names).within(|| format!("views[{i}]")))
        .collect::<Read<Vec<View>>>()?;
    Ok(RankViews {
        rank: Rank(doc.rank),
        copy: doc.copy,
        buffers,
        views,
    })
}

fn read_view(v: ViewDoc, buffers: &HashMap<&str, u32>, names: &Names) -> Read<View> {
    let Some(tensor) = names.find(&v.tensor) else {
        return fault(
            "tensor",
            format!(
                "tensor \"{}\" is not declared; add it, with \"shape\" and \"dtype\", to \"tensors\"",
                v.tensor
            ),
        );
    };
    let Some(&buffer) = buffers.get(v.buffer.as_str()) else {
        return fault("buffer", format!("the rank has no buffer \"{}\"", v.buffer));
    };
    let dtype = v.dtype.map_or(names.tensors[tensor.index()].dtype, |d| d.0);
    let bounds = IndexBox(v.bounds.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect());
    let strides = match v.strides {
        Some(s) => s.into_iter().collect(),
        None => contiguous(&bounds, dtype.bytes()).within(|| "box".into())?,
    };
    Ok(View {
        tensor,
        bounds,
        buffer,
        offset: v.offset,
        strides,
        dtype,
        conversion: None,
    })
}

/// Strides of a box that is stored row-major without gaps.
fn contiguous(bounds: &IndexBox, element: u64) -> Result<Strides> {
    bounds.contiguous_strides(element).ok_or_else(|| {
        Error::limit(format!(
            "box {bounds} of {element}-byte elements exceeds 2^63 bytes"
        ))
    })
}

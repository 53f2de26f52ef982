//! Checkpoints as a side by themselves: whoever maps their files holds their
//! tensors.
//!
//! ```text
//!   model-00001-of-00003.safetensors   rank 0   one buffer: the file
//!   model-00002-of-00003.safetensors   rank 1   views at the offsets that
//!   model-00003-of-00003.safetensors   rank 0   its header gives
//! ```
//!
//! Only headers are read; the bytes stay where they are. Tensors have the
//! names and shapes of the files; [`Layout::recast`] tells the same in a
//! model's canonical ones.

use super::dtype::Dtype;
use super::tensor::{IndexBox, Tensor, TensorIndex};
use super::view::{Memory, NamedBuffer, RankViews, View};
use super::{Layout, LayoutSpec};
use crate::error::{Error, Result};
use crate::limits::FILE_BYTES_MAX;
use crate::rank::Rank;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes before the header: its length.
const PREFIX_BYTES: u64 = 8;

/// One file of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct SafetensorsFile<'a> {
    /// The name of its buffer.
    pub name: &'a str,
    /// The start of the file, up to and with its header, or more.
    pub start: &'a [u8],
    /// Bytes of the whole file.
    pub bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorDoc {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A tensor of a file, and where it starts in it.
struct Stored {
    tensor: Tensor,
    offset: u64,
}

impl Layout {
    /// The layout of readers of a checkpoint: file `i` is held by rank
    /// `first_rank + i mod ranks`.
    pub fn from_safetensors(
        files: &[SafetensorsFile<'_>],
        first_rank: u32,
        ranks: u32,
    ) -> Result<Layout> {
        let ranks = ranks.clamp(1, files.len().max(1) as u32);
        let mut spec = LayoutSpec::default();
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for i in 0..ranks {
            let rank = first_rank.checked_add(i).map(Rank);
            spec.explicit.push(RankViews {
                rank: rank.ok_or_else(|| Error::limit(format!("rank {first_rank} + {i}")))?,
                copy: 0,
                buffers: Vec::new(),
                views: Vec::new(),
            });
        }
        for (i, file) in files.iter().enumerate() {
            let holder = &mut spec.explicit[i % ranks as usize];
            let buffer = holder.buffers.len() as u32;
            holder.buffers.push(NamedBuffer {
                name: file.name.into(),
                bytes: file.bytes,
                memory: Memory::Host,
            });
            for stored in read_header(file).map_err(|e| of_file(file, e))? {
                if let Some(other) = seen.insert(stored.tensor.name.clone(), file.name) {
                    let what = format!("tensor \"{}\" is in {other} too", stored.tensor.name);
                    return Err(of_file(file, Error::corrupt(what)));
                }
                let bounds = IndexBox::whole(&stored.tensor.shape);
                let strides = bounds.contiguous_strides(stored.tensor.dtype.bytes());
                holder.views.push(View {
                    tensor: TensorIndex(spec.tensors.len() as u32),
                    bounds,
                    buffer,
                    offset: stored.offset,
                    strides: strides.ok_or_else(|| Error::limit("a tensor is too large"))?,
                    dtype: stored.tensor.dtype,
                    conversion: None,
                });
                spec.tensors.push(stored.tensor);
            }
        }
        Layout::new(spec)
    }
}

fn of_file(file: &SafetensorsFile<'_>, e: Error) -> Error {
    Error {
        message: format!("{}: {}", file.name, e.message),
        ..e
    }
}

fn read_header(file: &SafetensorsFile<'_>) -> Result<Vec<Stored>> {
    let short = || Error::corrupt("is no safetensors file: it ends in its header");
    let prefix = file.start.first_chunk::<8>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*prefix);
    if length > FILE_BYTES_MAX as u64 {
        return Err(Error::limit(format!(
            "its header has {length} bytes; at most {FILE_BYTES_MAX} are allowed"
        )));
    }
    let base = PREFIX_BYTES + length;
    let text = file.start.get(PREFIX_BYTES as usize..base as usize);
    let header: BTreeMap<String, Value> = serde_json::from_slice(text.ok_or_else(short)?)
        .map_err(|e| Error::corrupt(format!("its header is not as it should be: {e}")))?;
    let mut out = Vec::with_capacity(header.len());
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let bad = |what: &str| Error::corrupt(format!("tensor \"{name}\" {what}"));
        let doc: TensorDoc = serde_json::from_value(value)
            .map_err(|e| bad(&format!("is not as it should be: {e}")))?;
        let dtype = dtype_of(&doc.dtype)
            .ok_or_else(|| bad(&format!("has dtype {}, which is unknown", doc.dtype)))?;
        let tensor = Tensor::new(name.clone(), &doc.shape, dtype)?;
        let (lo, hi) = doc.data_offsets;
        let fits = hi.checked_add(base).is_some_and(|end| end <= file.bytes);
        if lo > hi || !fits || hi - lo != tensor.bytes() {
            return Err(bad(&format!(
                "of {} bytes lies at {lo} to {hi} of {} bytes",
                tensor.bytes(),
                file.bytes.saturating_sub(base)
            )));
        }
        out.push(Stored {
            tensor,
            offset: base + lo,
        });
    }
    Ok(out)
}

/// The dtype with this name in a safetensors file.
fn dtype_of(name: &str) -> Option<Dtype> {
    let own = match name {
        "BOOL" => "bool",
        "F8_E5M2" => "f8e5m2",
        "F8_E4M3" => "f8e4m3fn",
        "F8_E8M0" => "f8e8m0fnu",
        "U8" | "I8" | "I16" | "U16" | "F16" | "BF16" | "I32" | "U32" | "F32" | "F64" | "I64"
        | "U64" => return Dtype::from_name(&name.to_ascii_lowercase()).ok(),
        _ => return None,
    };
    Dtype::from_name(own).ok()
}

//! A safetensors file, mapped into memory.

use super::check::of_file;
use memmap2::Mmap;
use safetensors::tensor::{Dtype as Stored, Metadata, SafeTensors};
use std::fs::File;
use std::path::Path;
use weightsync::layout::Layout;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{Tensor, TensorIndex};
use weightsync::{Error, Result};

/// Bytes before the header: its length.
const PREFIX: usize = 8;

/// A checkpoint that can be read at any place.
#[derive(Debug)]
pub struct Checkpoint {
    map: Mmap,
    header: Metadata,
    /// Where the values begin.
    base: usize,
}

impl Checkpoint {
    /// Maps a file and reads its header; the error names the file.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let failed = |e| Error::os(format_args!("cannot read {}", path.display()), &e);
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the mapping is private to us and only read. Whoever changes
        // or truncates the file meanwhile gets wrong values or SIGBUS, as with
        // every reader that maps.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let (length, header) = SafeTensors::read_metadata(&map)
            .map_err(|e| of_file(path, Error::corrupt(format!("is no safetensors file: {e}"))))?;
        Ok(Checkpoint {
            base: PREFIX + length,
            map,
            header,
        })
    }

    /// How many tensors it has.
    pub fn tensor_count(&self) -> usize {
        self.header.tensors().len()
    }

    /// The values of a tensor of `layout`, found under its name or an alias.
    /// The shape may be another one with as many elements.
    pub fn values(&self, layout: &Layout, tensor: TensorIndex) -> Result<&[u8]> {
        let t = &layout.tensors()[tensor.index()];
        let mut names = std::iter::once(t.name.as_str()).chain(layout.aliases_of(&t.name));
        let Some(info) = names.find_map(|n| self.header.info(n)) else {
            return Err(Error::layout(format!(
                "tensor \"{}\" is not in the checkpoint, which has {} tensors",
                t.name,
                self.tensor_count()
            )));
        };
        check_dtype(t, info.dtype)?;
        let have: usize = info.shape.iter().product();
        let want: u64 = t.shape.iter().product();
        if have as u64 != want {
            return Err(Error::layout(format!(
                "tensor \"{}\" has {have} elements in the checkpoint (shape {:?}) and {want} in the layout (shape {:?})",
                t.name,
                info.shape,
                t.shape.as_slice()
            )));
        }
        let (lo, hi) = info.data_offsets;
        let bytes = self.map.get(self.base + lo..self.base + hi);
        bytes
            .filter(|b| b.len() as u64 == t.bytes())
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "tensor \"{}\" does not lie inside the checkpoint",
                    t.name
                ))
            })
    }
}

fn check_dtype(t: &Tensor, stored: Stored) -> Result<()> {
    if dtype_of(stored) == Some(t.dtype) {
        return Ok(());
    }
    Err(Error::layout(format!(
        "tensor \"{}\" is {stored:?} in the checkpoint and {} in the layout; \
         the layout's \"dtype\" is that of the checkpoint, \"stored\" may differ",
        t.name, t.dtype
    )))
}

/// The layout's word for a safetensors type.
fn dtype_of(stored: Stored) -> Option<Dtype> {
    let name = match stored {
        Stored::BOOL => "bool",
        Stored::U8 => "u8",
        Stored::I8 => "i8",
        Stored::F8_E5M2 => "f8e5m2",
        Stored::F8_E4M3 => "f8e4m3fn",
        Stored::F8_E8M0 => "f8e8m0fnu",
        Stored::I16 => "i16",
        Stored::U16 => "u16",
        Stored::F16 => "f16",
        Stored::BF16 => "bf16",
        Stored::I32 => "i32",
        Stored::U32 => "u32",
        Stored::F32 => "f32",
        Stored::F64 => "f64",
        Stored::I64 => "i64",
        Stored::U64 => "u64",
        _ => return None,
    };
    Dtype::from_name(name).ok()
}

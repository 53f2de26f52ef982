//! What every element must be: from a checkpoint, or made up from its place.
//!
//! A made-up value depends on the name of its tensor, its position in it and
//! the version, so that an element in a wrong place, or of an old version, is
//! seen. None of them is zero, infinite or NaN.

use super::checkpoint::{Checkpoint, Stored};
use half::{bf16, f16};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::TensorIndex;
use weightsync::{Error, Result};

/// Where values come from, as it is told to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Generated,
    Checkpoint {
        /// A file, or a directory with several.
        path: PathBuf,
        /// The `config.json` of its model, where it is not beside it.
        config: Option<PathBuf>,
    },
}

/// Where values come from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Reference {
    Generated,
    Checkpoint(Checkpoint),
}

/// The canonical values of one tensor in one version.
#[derive(Clone, Debug)]
pub enum Values<'a> {
    Generated(u64),
    Stored(Stored<'a>),
}

impl Reference {
    /// Opens the checkpoint, if there is one.
    pub fn open(origin: &Origin) -> Result<Reference> {
        Ok(match origin {
            Origin::Generated => Reference::Generated,
            Origin::Checkpoint { path, config } => {
                Reference::Checkpoint(Checkpoint::open(path, config.as_deref())?)
            }
        })
    }

    /// The file of a checkpoint that is the whole of a buffer.
    pub fn file(&self, name: &str, bytes: u64) -> Option<&Arc<Mmap>> {
        match self {
            Reference::Generated => None,
            Reference::Checkpoint(c) => c.file(name, bytes),
        }
    }

    /// The values of a tensor of `layout`, which is the source's.
    pub fn values(&self, layout: &Layout, tensor: TensorIndex, version: u64) -> Result<Values<'_>> {
        match self {
            Reference::Generated => {
                let t = &layout.tensors()[tensor.index()];
                if t.dtype != Dtype::BF16 {
                    return Err(Error::internal("made-up values are bf16"));
                }
                let seed = xxhash_rust::xxh3::xxh3_64_with_seed(t.name.as_bytes(), version);
                Ok(Values::Generated(seed))
            }
            Reference::Checkpoint(c) => Ok(Values::Stored(c.values(layout, tensor)?)),
        }
    }
}

impl Values<'_> {
    /// Puts the elements from `first` on into `out`, which is a whole number
    /// of elements long.
    pub fn read(&self, first: u64, element: u64, out: &mut [u8]) {
        match self {
            Values::Generated(seed) => {
                for (i, two) in (first..).zip(out.chunks_exact_mut(2)) {
                    two.copy_from_slice(&made_up(*seed, i).to_le_bytes());
                }
            }
            Values::Stored(all) => {
                let from = (first * element) as usize;
                out.copy_from_slice(&all.bytes()[from..from + out.len()]);
            }
        }
    }
}

/// A bf16 between 2^-15 and 2 in magnitude.
fn made_up(seed: u64, index: u64) -> u16 {
    let mut x = (index ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 32;
    let exponent = 112 + ((x >> 16) & 15) as u16;
    (x as u16 & 0x807f) | (exponent << 7)
}

/// Takes elements from one stored type to the next, all along `chain`.
pub fn convert(chain: &[Dtype], values: &mut Vec<u8>, spare: &mut Vec<u8>) {
    for pair in chain.windows(2).filter(|p| p[0] != p[1]) {
        cast(pair[0], pair[1], values, spare);
        std::mem::swap(values, spare);
    }
}

/// One element at a time, by way of f32, as the crate `half` rounds.
fn cast(from: Dtype, to: Dtype, values: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for element in values.chunks_exact(from.bytes() as usize) {
        let wide = match (from, element) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("only f32, f16 and bf16 convert"),
        };
        match to {
            Dtype::F32 => out.extend(wide.to_le_bytes()),
            Dtype::BF16 => out.extend(bf16::from_f32(wide).to_le_bytes()),
            _ => out.extend(f16::from_f32(wide).to_le_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_values_are_finite_and_never_zero() {
        for i in 0..100_000 {
            let x = bf16::from_bits(made_up(7, i)).to_f32();
            assert!(
                x.is_finite() && x.abs() >= 1.0 / 32768.0 && x.abs() < 2.0,
                "{x}"
            );
        }
    }

    #[test]
    fn values_follow_the_chain() {
        let mut values = 1.000_001f32.to_le_bytes().to_vec();
        let mut spare = Vec::new();
        convert(
            &[Dtype::F32, Dtype::BF16, Dtype::BF16, Dtype::F32],
            &mut values,
            &mut spare,
        );
        assert_eq!(values, 1.0f32.to_le_bytes());
    }
}

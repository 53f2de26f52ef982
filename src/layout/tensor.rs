//! Canonical tensors and boxes in them.
//!
//! A canonical tensor is the smallest unfused tensor that both sides talk
//! about: `q_proj`, not `qkv`; all experts of one layer and projection are one
//! tensor `[expert, rows, cols]`. A *box* is a product of half-open ranges:
//!
//! ```text
//!            cols 0      4      8
//!   rows 0      ┌──────┬──────┐
//!               │      │██████│   box { [0,2), [4,8) }
//!        2      ├──────┼──────┤
//!               │      │      │
//!        4      └──────┴──────┘
//! ```

use super::dtype::Dtype;
use crate::error::{Error, Result};
use crate::limits::{DIM_COUNT_MAX, NAME_BYTES_MAX, TENSOR_BYTES_MAX};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// One number per axis.
pub type Dims = SmallVec<[u64; 4]>;

/// The position of a tensor in its layout's table, which is sorted by name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct TensorIndex(pub u32);

impl TensorIndex {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A half-open range `[lo, hi)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    pub lo: u64,
    pub hi: u64,
}

impl Span {
    pub const fn new(lo: u64, hi: u64) -> Span {
        Span { lo, hi }
    }

    pub const fn len(self) -> u64 {
        self.hi.saturating_sub(self.lo)
    }

    pub const fn is_empty(self) -> bool {
        self.hi <= self.lo
    }

    pub fn intersect(self, other: Span) -> Span {
        Span::new(self.lo.max(other.lo), self.hi.min(other.hi))
    }

    pub const fn contains(self, other: Span) -> bool {
        self.lo <= other.lo && other.hi <= self.hi
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{},{})", self.lo, self.hi)
    }
}

/// A product of half-open ranges, one per axis of its tensor.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IndexBox(pub SmallVec<[Span; 4]>);

impl Clone for IndexBox {
    /// As one copy: programs hold a box per piece, and the derived way goes
    /// span by span.
    fn clone(&self) -> IndexBox {
        IndexBox(SmallVec::from_slice(&self.0))
    }
}

impl IndexBox {
    /// The box that covers a whole shape.
    pub fn whole(shape: &[u64]) -> IndexBox {
        IndexBox(shape.iter().map(|&n| Span::new(0, n)).collect())
    }

    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    /// Where it begins on axis 0; 0 without axes.
    pub fn lead(&self) -> u64 {
        self.0.first().map_or(0, |s| s.lo)
    }

    /// Number of elements; 0 where any range is empty.
    pub fn elements(&self) -> u64 {
        self.0.iter().map(|s| s.len()).product()
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().any(|s| s.is_empty())
    }

    pub fn intersect(&self, other: &IndexBox) -> IndexBox {
        IndexBox(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(a, b)| a.intersect(*b))
                .collect(),
        )
    }

    pub fn contains(&self, other: &IndexBox) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a.contains(*b))
    }

    pub fn overlaps(&self, other: &IndexBox) -> bool {
        !self.intersect(other).is_empty()
    }
}

impl IndexBox {
    /// Byte strides of the box stored row-major without gaps; `None` if its
    /// bytes exceed the address range.
    pub fn contiguous_strides(&self, element: u64) -> Option<SmallVec<[i64; 4]>> {
        let mut strides: SmallVec<[i64; 4]> = self.0.iter().map(|_| 0).collect();
        let mut step = i64::try_from(element).ok()?;
        for (stride, s) in strides.iter_mut().zip(&self.0).rev() {
            *stride = step;
            step = step.checked_mul(i64::try_from(s.len().max(1)).ok()?)?;
        }
        Some(strides)
    }
}

impl std::fmt::Display for IndexBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("{")?;
        for (i, s) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{s}")?;
        }
        f.write_str("}")
    }
}

/// A canonical tensor: what both sides mean by a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    pub shape: Dims,
    pub dtype: Dtype,
    /// Per axis, the number of indices that no cut may split; 1 is no limit.
    pub granule: Dims,
}

impl Tensor {
    /// A tensor without granules, checked against the limits.
    pub fn new(name: impl Into<String>, shape: &[u64], dtype: Dtype) -> Result<Tensor> {
        let t = Tensor {
            name: name.into(),
            shape: shape.into(),
            dtype,
            granule: shape.iter().map(|_| 1).collect(),
        };
        t.validate()?;
        Ok(t)
    }

    /// Bytes of the whole tensor in its canonical dtype.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bytes()
    }

    /// Checks name, axes, extents, granules and size.
    pub fn validate(&self) -> Result<()> {
        self.validate_size()?;
        match self.granule_faults().next() {
            None => Ok(()),
            Some((_, text)) => Err(Error::layout(format!("tensor \"{}\": {text}", self.name))),
        }
    }

    /// The axes whose granule does not fit, and why.
    pub(super) fn granule_faults(&self) -> impl Iterator<Item = (usize, String)> + '_ {
        let axes = self.shape.iter().zip(&self.granule).enumerate();
        axes.filter_map(|(axis, (&n, &g))| match g {
            0 => Some((
                axis,
                format!("the granule of axis {axis} is 0; 1 means no limit"),
            )),
            _ if n % g != 0 => Some((
                axis,
                format!("axis {axis} has {n} indices, not a multiple of its granule {g}"),
            )),
            _ => None,
        })
    }

    /// Checks all but whether granules fit.
    pub(super) fn validate_size(&self) -> Result<()> {
        let name = &self.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::limit(format!(
                "a tensor name has {} bytes; 1 to {NAME_BYTES_MAX} are allowed",
                name.len()
            )));
        }
        if self.shape.len() > DIM_COUNT_MAX {
            return Err(Error::limit(format!(
                "tensor \"{name}\" has {} axes; at most {DIM_COUNT_MAX} are allowed",
                self.shape.len()
            )));
        }
        if self.granule.len() != self.shape.len() {
            return Err(Error::layout(format!(
                "tensor \"{name}\" has {} axes and {} granules",
                self.shape.len(),
                self.granule.len()
            )));
        }
        // An extent of 0 counts as 1, so that no product of some extents overflows.
        let bytes = self
            .shape
            .iter()
            .try_fold(self.dtype.bytes(), |a, &n| a.checked_mul(n.max(1)));
        match bytes {
            Some(b) if b <= TENSOR_BYTES_MAX => Ok(()),
            _ => Err(Error::limit(format!(
                "tensor \"{name}\" with shape {:?} exceeds {TENSOR_BYTES_MAX} bytes",
                self.shape.as_slice()
            ))),
        }
    }
}

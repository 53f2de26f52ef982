//! Affine maps from boxes of canonical tensors to local memory.
//!
//! A view says: element `(i0, i1, ..)` of the box lies in `buffer` at
//! `offset + (i0 - lo0) * strides[0] + (i1 - lo1) * strides[1] + ..` bytes. It
//! is the only thing the planner needs to know about a rank. Fused, stacked,
//! interleaved and transposed storage are all just views.

use super::dtype::Dtype;
use super::tensor::{Dims, IndexBox, TensorIndex};
use crate::rank::Rank;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Where a buffer lives.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
pub enum Memory {
    #[default]
    Host,
    /// Page-locked host memory, as a GPU's copy engine likes it.
    PinnedHost,
    /// Memory of GPU `n` of this process.
    Device(u32),
}

/// A change of values on the way between a view and the wire, beyond the
/// casts that differing dtypes imply.
///
/// The set of kinds is closed, and empty today: every layout with a conversion
/// is refused, whatever its kind. The type is a place kept in layouts, blobs and
/// plans, so that block quantisation needs no new format. Casts between f32,
/// bf16 and f16 need none: they follow from [`View::dtype`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conversion {
    pub kind: u32,
    /// Per axis, the block that is converted as a whole.
    pub granule: Dims,
    /// Views that are written in the same step, such as block scales.
    pub companions: Vec<TensorIndex>,
}

/// Byte strides, one per axis.
pub type Strides = SmallVec<[i64; 4]>;

/// One box of one tensor in one local buffer. `B` names the buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View<B = u32> {
    pub tensor: TensorIndex,
    pub bounds: IndexBox,
    pub buffer: B,
    /// Bytes from the start of the buffer to the first element of the box.
    pub offset: u64,
    /// Bytes between neighbours along each axis.
    pub strides: Strides,
    pub dtype: Dtype,
    pub conversion: Option<Conversion>,
}

impl<B> View<B> {
    /// The bytes of the buffer that the view touches, `[lo, hi)`; `None` if
    /// the arithmetic leaves the address range.
    pub fn extent(&self) -> Option<(u64, u64)> {
        let mut lo = i128::from(self.offset);
        let mut hi = lo + i128::from(self.dtype.bytes());
        if self.bounds.is_empty() {
            return Some((self.offset, self.offset));
        }
        for (s, &stride) in self.bounds.spans().iter().zip(&self.strides) {
            let reach = i128::from(s.len() - 1) * i128::from(stride);
            if reach < 0 {
                lo = lo.checked_add(reach)?;
            } else {
                hi = hi.checked_add(reach)?;
            }
        }
        Some((u64::try_from(lo).ok()?, u64::try_from(hi).ok()?))
    }
}

/// A named local memory range of a rank that is described view by view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedBuffer {
    pub name: String,
    pub bytes: u64,
    pub memory: Memory,
}

/// Everything that one explicitly described rank holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankViews {
    pub rank: Rank,
    /// The caller's label of the copy (the replica) this rank belongs to.
    pub copy: u32,
    /// Sorted by name.
    pub buffers: Vec<NamedBuffer>,
    /// Sorted by tensor, then box start; `buffer` indexes `buffers`.
    pub views: Vec<View>,
}

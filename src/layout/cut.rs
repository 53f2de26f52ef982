//! How an axis of a tensor is cut over axes of a mesh, in closed form.
//!
//! A cut divides a range over `n` consecutive positions. Nothing here ever
//! walks over ranks: which part lies where, and which parts touch a range, is
//! arithmetic.
//!
//! ```text
//!   even    [0,8) over 4   |00|11|22|33|
//!   floor   [0,7) over 3   |00|11|222|      bounds floor(i*7/3)
//!   ceil    [0,7) over 3   |000|111|2|      chunks of ceil(7/3), as torch.chunk
//!   chunk   [0,7) over 3   |0000|111|       chunks of a given size
//!   at      [0,7) over 3   |0|1111|22|      bounds given
//!   blocks  [0,8) over 2   |0|1|0|1|        2 blocks per part, as an interleaved gate/up
//! ```

use super::tensor::Span;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// The rule that places the bounds of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CutKind {
    /// Equal parts; the range must divide.
    Even,
    /// Bounds at `floor(i * size / n)`.
    Floor,
    /// Chunks of `ceil(size / n)`, the last ones shorter or empty.
    Ceil,
    /// Chunks of this many indices, the last ones shorter or empty.
    Chunk(u64),
    /// The `n + 1` bounds themselves.
    At(Vec<u64>),
    /// Equal blocks dealt round-robin, this many to each part.
    Blocks(u32),
}

/// One cut of one tensor axis over mesh axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cut {
    /// The tensor axis.
    pub dim: u8,
    /// Mesh axes, outermost first; their coordinates are flattened.
    pub axes: SmallVec<[u8; 4]>,
    pub kind: CutKind,
    /// Number of parts where it is smaller than the product of the axes:
    /// neighbours then hold the same part, as KV heads when TP exceeds them.
    pub parts: Option<u32>,
}

impl CutKind {
    /// The bound between part `i - 1` and part `i` of `size` indices over `n`
    /// parts, relative to the start of the range. Not for `Blocks`.
    pub fn bound(&self, size: u64, n: u64, i: u64) -> u64 {
        match self {
            CutKind::Even => size / n * i,
            CutKind::Floor => (u128::from(size) * u128::from(i) / u128::from(n)) as u64,
            CutKind::Ceil => (size.div_ceil(n)).saturating_mul(i).min(size),
            CutKind::Chunk(c) => c.saturating_mul(i).min(size),
            CutKind::At(b) => b.get(i as usize).copied().unwrap_or(size).min(size),
            CutKind::Blocks(k) => size / (n * u64::from(*k)) * i,
        }
    }

    /// Number of slabs into which the range falls: parts, or blocks.
    pub fn slabs(&self, n: u64) -> u64 {
        match self {
            CutKind::Blocks(k) => n * u64::from(*k),
            _ => n,
        }
    }

    /// Slab `j` relative to the start of the range.
    pub fn slab(&self, size: u64, n: u64, j: u64) -> Span {
        Span::new(self.bound(size, n, j), self.bound(size, n, j + 1))
    }

    /// The part that owns slab `j`.
    pub fn owner(&self, n: u64, j: u64) -> u64 {
        match self {
            CutKind::Blocks(_) => j % n,
            _ => j,
        }
    }

    /// The slab that contains index `x < size`.
    pub fn slab_of(&self, size: u64, n: u64, x: u64) -> u64 {
        let slabs = self.slabs(n);
        match self {
            CutKind::Even => (x / (size / n).max(1)).min(n - 1),
            CutKind::Ceil => (x / size.div_ceil(n).max(1)).min(n - 1),
            CutKind::Chunk(c) => (x / (*c).max(1)).min(n - 1),
            CutKind::Blocks(k) => (x / (size / (n * u64::from(*k))).max(1)).min(slabs - 1),
            // The last slab that starts at or before x and is not empty.
            CutKind::Floor => {
                let mut j = (u128::from(x) * u128::from(n) / u128::from(size.max(1))) as u64;
                while j + 1 < n && self.bound(size, n, j + 1) <= x {
                    j += 1;
                }
                while j > 0 && self.bound(size, n, j) > x {
                    j -= 1;
                }
                j
            }
            CutKind::At(b) => {
                let after = b.partition_point(|&v| v <= x) as u64;
                after.saturating_sub(1).min(n - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(size: u64, n: u64) -> Vec<CutKind> {
        let mut v = vec![
            CutKind::Floor,
            CutKind::Ceil,
            CutKind::Chunk(size.div_ceil(n) + 1),
        ];
        if size.is_multiple_of(n) {
            v.push(CutKind::Even);
        }
        if size.is_multiple_of(2 * n) && size > 0 {
            v.push(CutKind::Blocks(2));
        }
        let mut at: Vec<u64> = (0..=n).map(|i| (i * i * size) / (n * n)).collect();
        at[n as usize] = size;
        v.push(CutKind::At(at));
        v
    }

    #[test]
    fn slabs_tile_the_range_and_every_index_is_found() {
        for size in 1..40 {
            for n in 1..9 {
                for kind in kinds(size, n) {
                    let mut at = 0;
                    for j in 0..kind.slabs(n) {
                        let s = kind.slab(size, n, j);
                        assert_eq!(s.lo, at, "{kind:?} {size} over {n}");
                        at = s.hi;
                        for x in s.lo..s.hi {
                            assert_eq!(kind.slab_of(size, n, x), j, "{kind:?} {size}/{n} at {x}");
                        }
                    }
                    assert_eq!(at, size, "{kind:?} {size} over {n}");
                }
            }
        }
    }
}

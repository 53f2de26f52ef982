//! A cell as one rank sees it: where it lies here, who holds and who needs it.

use super::view::{OwnView, PeerView};
use crate::layout::dtype::Dtype;
use crate::layout::tensor::IndexBox;
use crate::plan::cells::{HolderSet, StagedSlice};
use crate::plan::piece::elements_from;
use smallvec::SmallVec;

/// Alignment of cuts inside large items, in wire bytes.
const ALIGN_BYTES: u64 = 16;
/// Items below this size are cut at any whole granule.
const ALIGNED_ITEM_BYTES_MIN: u64 = 1024;

/// A cell of one class, seen from this rank.
#[derive(Clone, Debug)]
pub struct Cell {
    pub bounds: IndexBox,
    pub bytes: u64,
    /// No cut falls inside this many wire bytes.
    pub unit: u64,
    pub wire: Dtype,
    pub own: OwnView,
    pub holders: HolderSet,
    pub needers: Needers,
    /// How the first rank at the other end stores it, per holder slice (when
    /// receiving) or of the one needer (when sending).
    pub peers: SmallVec<[PeerView; 1]>,
    /// All holders store it as the first one does; all needers do.
    pub are_holders_alike: bool,
    pub are_needers_alike: bool,
}

#[derive(Clone, Debug)]
pub enum Needers {
    Slice(StagedSlice),
    Listed(u32),
}

/// Wire bytes that no cut may split: whole granules, and 16-byte steps where
/// the item is large enough.
pub fn cut_unit(bounds: &IndexBox, granule: &[u64], wire: Dtype, bytes: u64) -> u64 {
    let first = granule.iter().position(|&g| g > 1);
    let unit = match first {
        None => wire.bytes(),
        Some(d) => granule[d] * elements_from(bounds, d + 1) * wire.bytes(),
    };
    if bytes < ALIGNED_ITEM_BYTES_MIN {
        return unit;
    }
    let mut gcd = (unit, ALIGN_BYTES);
    while gcd.1 != 0 {
        gcd = (gcd.1, gcd.0 % gcd.1);
    }
    unit / gcd.0 * ALIGN_BYTES
}

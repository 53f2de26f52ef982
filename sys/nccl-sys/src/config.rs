//! How a communicator is set up.
//!
//! NCCL takes the smaller of our size and its own, then resets every field that
//! is newer than the version we claim. So the newest layout can be handed to
//! any NCCL: an old one reads its part, a new one finds its defaults. The
//! version must be that of the *layout*, not of the library that runs.

use std::ffi::{c_char, c_int, c_uint};
use std::mem::offset_of;
use std::ptr;

/// The layout of NCCL 2.32.3.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ncclConfig_t {
    /// Never set: as `UNSET` has it, like the two after it.
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    /// 0 for a communicator whose calls return at once.
    pub blocking: c_int,
    pub cgaClusterSize: c_int,
    /// Never alone: NCCL then compares it with an unset `maxCTAs`.
    pub minCTAs: c_int,
    pub maxCTAs: c_int,
    pub netName: *const c_char,
    pub splitShare: c_int,
    pub trafficClass: c_int,
    pub commName: *const c_char,
    pub collnetEnable: c_int,
    pub CTAPolicy: c_int,
    pub shrinkShare: c_int,
    pub nvlsCTAs: c_int,
    pub nChannelsPerNetPeer: c_int,
    pub nvlinkCentricSched: c_int,
    pub graphUsageMode: c_int,
    pub numRmaCtx: c_int,
    pub maxP2pPeers: c_int,
    pub graphStreamOrdering: c_int,
    pub launchOrderImplicit: c_int,
    pub numRmaSig: c_int,
    pub rmaEagerInit: c_int,
    pub hostCftMode: c_int,
    pub nvlsHostMode: c_int,
}

const MAGIC: c_uint = 0xcafe_beef;
/// The release whose layout is declared here.
const LAYOUT_VERSION: c_uint = 23203;
/// What an integer is where nothing is asked for.
const UNSET: c_int = c_int::MIN;

impl ncclConfig_t {
    /// Nothing is asked for.
    pub const UNSET: ncclConfig_t = ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: MAGIC,
        version: LAYOUT_VERSION,
        blocking: UNSET,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
        graphUsageMode: UNSET,
        numRmaCtx: UNSET,
        maxP2pPeers: UNSET,
        graphStreamOrdering: UNSET,
        launchOrderImplicit: UNSET,
        numRmaSig: UNSET,
        rmaEagerInit: UNSET,
        hostCftMode: UNSET,
        nvlsHostMode: UNSET,
    };
}

impl Default for ncclConfig_t {
    fn default() -> ncclConfig_t {
        ncclConfig_t::UNSET
    }
}

/// A field that not every release has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigField {
    pub name: &'static str,
    /// The first release that reads it, as `ncclGetVersion` counts.
    pub since: c_int,
    pub offset: usize,
    pub bytes: usize,
}

macro_rules! fields {
    ($($since:literal: $($name:ident)*;)*) => {
        /// Every field that a caller may set, in the order of memory.
        pub const CONFIG_FIELDS: &[ConfigField] = &[$($(ConfigField {
            name: stringify!($name),
            since: $since,
            offset: offset_of!(ncclConfig_t, $name),
            bytes: size_of_field(|c| &raw const c.$name),
        },)*)*];
    };
}

const fn size_of_field<T>(_: fn(&ncclConfig_t) -> *const T) -> usize {
    size_of::<T>()
}

fields! {
    21400: blocking;
    21700: cgaClusterSize minCTAs maxCTAs netName;
    21800: splitShare;
    22600: trafficClass;
    22700: commName collnetEnable CTAPolicy shrinkShare nvlsCTAs;
    22800: nChannelsPerNetPeer nvlinkCentricSched;
    22900: graphUsageMode numRmaCtx;
    23000: maxP2pPeers graphStreamOrdering;
    23100: launchOrderImplicit numRmaSig rmaEagerInit hostCftMode nvlsHostMode;
}

// The layout, and what earlier releases take for it.
const _: () = {
    assert!(size_of::<ncclConfig_t>() == 120);
    assert!(offset_of!(ncclConfig_t, magic) == 8);
    assert!(offset_of!(ncclConfig_t, version) == 12);
    assert!(offset_of!(ncclConfig_t, blocking) == 16);
    assert!(offset_of!(ncclConfig_t, netName) == 32);
    assert!(offset_of!(ncclConfig_t, splitShare) == 40);
    assert!(offset_of!(ncclConfig_t, trafficClass) == 44);
    assert!(offset_of!(ncclConfig_t, commName) == 48);
    assert!(offset_of!(ncclConfig_t, nChannelsPerNetPeer) == 72);
    assert!(offset_of!(ncclConfig_t, graphUsageMode) == 80);
    assert!(offset_of!(ncclConfig_t, maxP2pPeers) == 88);
    assert!(offset_of!(ncclConfig_t, launchOrderImplicit) == 96);
    assert!(offset_of!(ncclConfig_t, nvlsHostMode) == 112);
};

#[cfg(test)]
mod tests {
    use super::*;

    /// `sizeof(ncclConfig_t)` of a release.
    fn size_at(version: c_int) -> usize {
        let fields = CONFIG_FIELDS.iter().filter(|f| f.since <= version);
        let end = fields.map(|f| f.offset + f.bytes).max().unwrap();
        end.next_multiple_of(8)
    }

    #[test]
    fn sizes_are_those_of_the_headers() {
        let sizes = [
            (21700, 40),
            (21805, 48),
            (22602, 48),
            (22707, 72),
            (22809, 80),
            (22907, 88),
            (23007, 96),
            (23203, 120),
        ];
        for (version, size) in sizes {
            assert_eq!(size_at(version), size, "{version}");
        }
    }

    #[test]
    fn fields_lie_side_by_side_in_order_of_age() {
        let mut end = 16;
        for f in CONFIG_FIELDS {
            assert_eq!(f.offset, end, "{}", f.name);
            end += f.bytes;
        }
        assert!(CONFIG_FIELDS.is_sorted_by_key(|f| f.since));
    }
}

//! Rank mappings: who sends to whom, from sizes and devices alone.

use super::args::{self, plain_struct};
use super::handle::{self, Handle, shared};
use super::out::{Buffer, Out, TextBuffer};
use super::types::{wsync_error, wsync_rank_list, wsync_status};
use super::{guard, guard_value};
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::plan::mapping::{
    self, DestinationSizes, Mapping, MappingSpec, Moved, Pair, PeerLists, RankLists, Regroup, Seat,
    SourceSizes,
};
use crate::rank::Rank;
use serde::Serialize;
use std::ffi::c_char;
use std::sync::OnceLock;

/// Who sends to whom, as two-stage weight synchronisation maps ranks, without
/// looking at a tensor. Immutable; may be used by any number of threads.
///
/// Ranks are numbered source first: source actor k is rank k, destination
/// actor k is rank source_device_count + k.
///
/// wsync_mapping_create, wsync_mapping_pairs, wsync_mapping_sends,
/// wsync_mapping_receives, wsync_mapping_loads, wsync_mapping_moved,
/// wsync_mapping_group_size, wsync_mapping_regroup_kind,
/// wsync_mapping_regroup_count, wsync_mapping_regroup_at,
/// wsync_mapping_report, wsync_mapping_destroy.
///
/// Since: 0.1
pub struct wsync_mapping {
    _opaque: [u8; 0],
}

/// What a mapping handle holds.
pub(super) struct MappingObject {
    mapping: Mapping,
    routed: Vec<Pair>,
    regroup_groups: Vec<Vec<Rank>>,
    regroup: Option<Regroup>,
    /// Ranks of both sides.
    rank_count: usize,
    /// The lists as their ranks see them, each made when it is first asked for.
    peers: [OnceLock<Peers>; LIST_COUNT],
}

/// One list of pairs from both ends.
struct Peers {
    sends: PeerLists,
    receives: PeerLists,
}

/// Values of wsync_mapping_list, which start at 1.
const LIST_COUNT: usize = 4;

impl Handle for wsync_mapping {
    type Value = MappingObject;
    const MAGIC: u64 = 0x7773_796e_6d61_7001;
    const NOUN: &'static str = "mapping";
    const SURVIVES_FORK: bool = true;
}

/// How ranks are mapped.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_mapping_kind {
    /// Destination TP is a multiple of source TP: pairs, then forwards inside
    /// each replica.
    WSYNC_MAPPING_KIND_TWO_STAGE = 1,
    /// One TP divides the other: pairs alone.
    WSYNC_MAPPING_KIND_SINGLE_STAGE = 2,
    /// Mixture of experts: routed experts are regrouped inside the source.
    WSYNC_MAPPING_KIND_EXPERT = 3,
}

/// Flags of wsync_mapping_options.
///
/// Models are colocated if any device is on both sides, unless COLOCATED or
/// APART says what they are. If the source TP is odd, mappings of the kinds
/// SINGLE_STAGE and EXPERT give source copies to the replicas of colocated
/// models from the last copy to the first; nothing else follows from it.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_mapping_flag {
    /// The models are colocated, whatever the devices say.
    WSYNC_MAPPING_FLAG_COLOCATED = 1,
    /// Pairs within one device are as good as any other.
    WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE = 2,
    /// The destination of an expert mapping is vLLM, not Megatron.
    WSYNC_MAPPING_FLAG_VLLM = 4,
    /// The models are not colocated, whatever the devices say.
    WSYNC_MAPPING_FLAG_APART = 8,
}

/// A list of pairs inside a mapping.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_mapping_list {
    /// Stage 1, source to destination, in the order of the sends.
    WSYNC_MAPPING_LIST_PAIRS = 1,
    /// Stage 2, within the destination, in the order of the sends. Empty
    /// unless the mapping has two stages.
    WSYNC_MAPPING_LIST_FORWARDS = 2,
    /// Routed experts alone; empty if they travel with the rest.
    WSYNC_MAPPING_LIST_ROUTED = 3,
    /// Pairs of stage 1 within one device: two ranks that exchange a message
    /// inside it, or one rank of a plan, which copies locally.
    WSYNC_MAPPING_LIST_SAME_DEVICE = 4,
}

/// How ranks bring their routed experts together before stage 1.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_regroup_kind {
    /// They do not, or a mapping of a single stage leaves it open.
    WSYNC_REGROUP_KIND_NONE = 0,
    /// Each rank ends up with the slice of one destination rank.
    WSYNC_REGROUP_KIND_ALL_TO_ALL = 1,
    /// Each rank ends up with its tensor share of all experts of the group.
    WSYNC_REGROUP_KIND_ALL_GATHER = 2,
}

/// One sender and one receiver.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct wsync_pair {
    /// The rank that has the bytes.
    pub sender: u32,
    /// The rank that gets them.
    pub receiver: u32,
}

/// How many pairs end at a destination rank.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct wsync_rank_load {
    /// The destination rank.
    pub rank: u32,
    /// Pairs that end there.
    pub pair_count: u32,
}

/// A pair of stage 1 that was moved to avoid a shared device.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct wsync_moved_pair {
    /// The rank that has the bytes.
    pub sender: u32,
    /// The rank that gets them.
    pub receiver: u32,
    /// The receiver that load balance alone would have chosen; it is on the
    /// sender's device.
    pub avoided: u32,
}

/// What a mapping is made from. Sizes of 0 are 1.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_mapping_options {
    /// sizeof(wsync_mapping_options).
    pub struct_size: usize,
    /// A wsync_mapping_kind.
    pub kind: u32,
    /// Any of wsync_mapping_flag.
    pub flags: u32,
    /// Tensor parallel.
    pub source_tp: u32,
    /// Pipeline stages.
    pub source_pp: u32,
    /// Expert parallel.
    pub source_ep: u32,
    /// Data parallel.
    pub source_dp: u32,
    /// Context parallel.
    pub source_cp: u32,
    /// Tensor parallel, of one replica.
    pub destination_tp: u32,
    /// Pipeline stages of one replica.
    pub destination_pp: u32,
    /// Expert parallel, of one replica.
    pub destination_ep: u32,
    /// Replicas of destination_tp * destination_pp * destination_ep ranks.
    pub replica_count: u32,
    /// 0.
    pub reserved: u32,
    /// Device of every source actor. Devices are numbered over all hosts.
    pub source_devices: *const u32,
    /// How many actors there are.
    pub source_device_count: usize,
    /// Device of every destination actor.
    pub destination_devices: *const u32,
    /// How many actors there are.
    pub destination_device_count: usize,
    /// One list per source copy, [PP][TP] or with all expert rows [PP][EP][TP]
    /// (a list may hold several copies, [PP][EP][CP][TP] each); none means
    /// Megatron's order, rank = t + TP*(c + CP*(e + EP*(d + DP*p))).
    pub source_ranks: *const wsync_rank_list,
    /// How many lists there are.
    pub source_list_count: usize,
    /// One list per copy that routed experts come from, [PP][EP][TP]; none
    /// means source_ranks. Of EXPERT mappings alone.
    pub expert_source_ranks: *const wsync_rank_list,
    /// How many lists there are.
    pub expert_source_list_count: usize,
    /// One list per replica, each [PP][EP][TP]; none means consecutive ranks.
    pub destination_ranks: *const wsync_rank_list,
    /// How many lists there are.
    pub destination_list_count: usize,
}

plain_struct!(wsync_mapping_options, 136, "wsync_mapping_options");

/// Maps ranks.
///
/// Errors: UNSUPPORTED for sizes that the kind cannot serve, INFEASIBLE if a
/// source rank shares its device with every candidate (KEEP_SAME_DEVICE lifts
/// that); INVALID_ARGUMENT and LIMIT_EXCEEDED. All name the numbers.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_create(
    options: *const wsync_mapping_options,
    out_mapping: *mut *mut wsync_mapping,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_mapping, "out_mapping")? };
        // SAFETY: the header asks for a struct whose struct_size is set.
        let options = unsafe { args::structure(options)? };
        // SAFETY: its lists have the counts that stand beside them.
        let spec = unsafe { spec_of(&options)? };
        out.put(MappingObject::new(options.kind, &spec)?);
        Ok(())
    })
}

/// Copies `list`, a wsync_mapping_list, to `pairs`, which holds `capacity` of
/// them. With a `capacity` of 0 only `out_count` is written: their number.
///
/// Errors: BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_pairs(
    mapping: *const wsync_mapping,
    list: u32,
    pairs: *mut wsync_pair,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` pairs.
        let out = unsafe { Buffer::new(pairs, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        let pairs: Vec<wsync_pair> = mapping.list(list)?.iter().map(pair_of).collect();
        out.write(&pairs)
    })
}

/// Copies the ranks that `rank` sends to in `list`, a wsync_mapping_list, to
/// `ranks`, which holds `capacity` of them: in the order of the sends, none if
/// `rank` takes no part. With a `capacity` of 0 only `out_count` is written.
///
/// The first call for a list costs as much as there are pairs in it, each
/// further one as much as it answers.
///
/// Errors: NOT_FOUND for a rank that the mapping does not have;
/// BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_sends(
    mapping: *const wsync_mapping,
    list: u32,
    rank: u32,
    ranks: *mut u32,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` ranks.
        let out = unsafe { Buffer::new(ranks, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        let rank = mapping.rank(rank)?;
        write_ranks(out, mapping.peers(list)?.sends.get(rank))
    })
}

/// Copies the ranks that `rank` receives from in `list`, a wsync_mapping_list,
/// to `ranks`; otherwise as wsync_mapping_sends.
///
/// Errors: NOT_FOUND for a rank that the mapping does not have;
/// BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_receives(
    mapping: *const wsync_mapping,
    list: u32,
    rank: u32,
    ranks: *mut u32,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` ranks.
        let out = unsafe { Buffer::new(ranks, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        let rank = mapping.rank(rank)?;
        write_ranks(out, mapping.peers(list)?.receives.get(rank))
    })
}

/// Copies how many pairs of `list`, a wsync_mapping_list, end at each
/// destination rank to `loads`, which holds `capacity` of them: replica by
/// replica, ranks that receive nothing included. With a `capacity` of 0 only
/// `out_count` is written.
///
/// Errors: BUFFER_TOO_SMALL; UNSUPPORTED for an unknown list.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_loads(
    mapping: *const wsync_mapping,
    list: u32,
    loads: *mut wsync_rank_load,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` loads.
        let out = unsafe { Buffer::new(loads, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        let loads = mapping.mapping.loads_by(&mapping.peers(list)?.receives);
        let loads: Vec<wsync_rank_load> = loads.into_iter().map(load_of).collect();
        out.write(&loads)
    })
}

/// Copies the pairs of stage 1 that were moved to avoid a shared device, in
/// order of choice, to `moved`, which holds `capacity` of them. With a
/// `capacity` of 0 only `out_count` is written: their number.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_moved(
    mapping: *const wsync_mapping,
    moved: *mut wsync_moved_pair,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` moved pairs.
        let out = unsafe { Buffer::new(moved, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        let moved = mapping.mapping.moved.iter().map(moved_of);
        out.write(&moved.collect::<Vec<_>>())
    })
}

/// Ranks of a weight-mapping group: destination TP / source TP in a mapping of
/// two stages, else 1. 0 if `mapping` is NULL or not a mapping.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_group_size(mapping: *const wsync_mapping) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live mapping.
        let mapping = unsafe { shared(mapping) }.ok()?;
        Some(mapping.mapping.group_size)
    })
}

/// How routed experts are regrouped, a wsync_regroup_kind; 0 also if `mapping`
/// is NULL or not a mapping.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_regroup_kind(mapping: *const wsync_mapping) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live mapping.
        let mapping = unsafe { shared(mapping) }.ok()?;
        Some(mapping.regroup_kind() as u32)
    })
}

/// Number of groups of source ranks that regroup their routed experts before
/// stage 1; 0 if `mapping` is NULL or not a mapping.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_regroup_count(mapping: *const wsync_mapping) -> usize {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live mapping.
        let mapping = unsafe { shared(mapping) }.ok()?;
        Some(mapping.regroup_groups.len())
    })
}

/// Copies the ranks of regroup group `index` to `ranks`, which holds
/// `capacity` of them. With a `capacity` of 0 only `out_count` is written.
///
/// Errors: NOT_FOUND for an index that is too large; BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_regroup_at(
    mapping: *const wsync_mapping,
    index: usize,
    ranks: *mut u32,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` ranks.
        let out = unsafe { Buffer::new(ranks, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        let groups = &mapping.regroup_groups;
        let group = groups.get(index).ok_or_else(|| {
            Error::new(
                Status::NotFound,
                format!(
                    "the mapping has {} regroup groups; index {index} is none",
                    groups.len()
                ),
            )
        })?;
        write_ranks(out, group)
    })
}

/// Writes the whole mapping as JSON, NUL-terminated: all lists of pairs, the
/// same lists as each rank sees them, loads, where ranks sit, and which pairs
/// were moved to avoid a shared device. With a `capacity`
/// of 0 only `out_needed` is written: the number of bytes, the NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_report(
    mapping: *const wsync_mapping,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live mapping.
        let mapping = unsafe { shared(mapping)? };
        out.write_json(&mapping.report())
    })
}

/// Ends the mapping. NULL is fine.
///
/// Thread safety: once, with no other call on it under way. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_mapping_destroy(mapping: *mut wsync_mapping) {
    // SAFETY: the header asks for NULL or a mapping that nobody uses any more.
    unsafe { handle::destroy(mapping) };
}

impl MappingObject {
    fn new(kind: u32, spec: &MappingSpec) -> Result<MappingObject> {
        const TWO_STAGE: u32 = wsync_mapping_kind::WSYNC_MAPPING_KIND_TWO_STAGE as u32;
        const SINGLE_STAGE: u32 = wsync_mapping_kind::WSYNC_MAPPING_KIND_SINGLE_STAGE as u32;
        const EXPERT: u32 = wsync_mapping_kind::WSYNC_MAPPING_KIND_EXPERT as u32;
        let mut routed = Vec::new();
        let mut regroup = None;
        let mut mapping = match kind {
            TWO_STAGE => mapping::two_stage(spec)?,
            SINGLE_STAGE => mapping::single_stage(spec)?,
            EXPERT => {
                let made = mapping::expert(spec)?;
                routed = made.routed;
                regroup = (!made.regroup_groups.is_empty()).then_some(made.regroup);
                Mapping {
                    regroup_groups: made.regroup_groups,
                    ..made.rest
                }
            }
            other => return Err(args::unknown("kind", other)),
        };
        Ok(MappingObject {
            routed,
            regroup_groups: std::mem::take(&mut mapping.regroup_groups),
            regroup,
            rank_count: spec.source_devices.len() + spec.destination_devices.len(),
            peers: Default::default(),
            mapping,
        })
    }

    fn list(&self, list: u32) -> Result<&[Pair]> {
        const PAIRS: u32 = wsync_mapping_list::WSYNC_MAPPING_LIST_PAIRS as u32;
        const FORWARDS: u32 = wsync_mapping_list::WSYNC_MAPPING_LIST_FORWARDS as u32;
        const ROUTED: u32 = wsync_mapping_list::WSYNC_MAPPING_LIST_ROUTED as u32;
        const SAME_DEVICE: u32 = wsync_mapping_list::WSYNC_MAPPING_LIST_SAME_DEVICE as u32;
        match list {
            PAIRS => Ok(&self.mapping.pairs),
            FORWARDS => Ok(&self.mapping.forwards),
            ROUTED => Ok(&self.routed),
            SAME_DEVICE => Ok(&self.mapping.same_device),
            other => Err(args::unknown("list", other)),
        }
    }

    /// `list` from both ends.
    fn peers(&self, list: u32) -> Result<&Peers> {
        let pairs = self.list(list)?;
        let make = || Peers {
            sends: PeerLists::by_sender(pairs),
            receives: PeerLists::by_receiver(pairs),
        };
        let kept = self.peers.get(list as usize - 1);
        let kept = kept.ok_or_else(|| args::unknown("list", list))?;
        Ok(kept.get_or_init(make))
    }

    /// `rank`, if the mapping has it.
    fn rank(&self, rank: u32) -> Result<Rank> {
        if (rank as usize) < self.rank_count {
            return Ok(Rank(rank));
        }
        let message = format!(
            "the mapping has {} ranks; rank {rank} is none of them",
            self.rank_count
        );
        Err(Error::new(Status::NotFound, message).by(Rank(rank)))
    }

    fn regroup_kind(&self) -> wsync_regroup_kind {
        match self.regroup {
            None => wsync_regroup_kind::WSYNC_REGROUP_KIND_NONE,
            Some(Regroup::AllToAll) => wsync_regroup_kind::WSYNC_REGROUP_KIND_ALL_TO_ALL,
            Some(Regroup::AllGather) => wsync_regroup_kind::WSYNC_REGROUP_KIND_ALL_GATHER,
        }
    }

    fn report(&self) -> MappingReport<'_> {
        MappingReport {
            group_size: self.mapping.group_size,
            pairs: &self.mapping.pairs,
            forwards: &self.mapping.forwards,
            routed: &self.routed,
            same_device: &self.mapping.same_device,
            moved: &self.mapping.moved,
            ranks: RankLists::new(&self.mapping, &self.routed),
            regroup: self.regroup,
            regroup_groups: &self.regroup_groups,
            sources: self
                .mapping
                .sources
                .iter()
                .map(|s| SeatReport::new(s, None))
                .collect(),
            destinations: self
                .mapping
                .destinations
                .iter()
                .map(|s| SeatReport::new(s, Some(self.mapping.slice(s))))
                .collect(),
        }
    }
}

/// The whole mapping, for JSON.
#[derive(Serialize)]
struct MappingReport<'a> {
    group_size: u32,
    pairs: &'a [Pair],
    forwards: &'a [Pair],
    routed: &'a [Pair],
    same_device: &'a [Pair],
    moved: &'a [Moved],
    #[serde(flatten)]
    ranks: RankLists,
    regroup: Option<Regroup>,
    regroup_groups: &'a [Vec<Rank>],
    sources: Vec<SeatReport>,
    destinations: Vec<SeatReport>,
}

/// Where a rank sits on its side.
#[derive(Serialize)]
struct SeatReport {
    rank: Rank,
    device: u32,
    copy: u32,
    stage: u32,
    expert: u32,
    tensor: u32,
    /// The slice of its group's weights that a destination rank keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    slice: Option<u32>,
}

impl SeatReport {
    fn new(seat: &Seat, slice: Option<u32>) -> SeatReport {
        SeatReport {
            rank: seat.rank,
            device: seat.device,
            copy: seat.copy,
            stage: seat.stage,
            expert: seat.expert,
            tensor: seat.tensor,
            slice,
        }
    }
}

fn pair_of(pair: &Pair) -> wsync_pair {
    wsync_pair {
        sender: pair.sender.0,
        receiver: pair.receiver.0,
    }
}

fn load_of((rank, pair_count): (Rank, u32)) -> wsync_rank_load {
    wsync_rank_load {
        rank: rank.0,
        pair_count,
    }
}

fn moved_of(moved: &Moved) -> wsync_moved_pair {
    wsync_moved_pair {
        sender: moved.sender.0,
        receiver: moved.receiver.0,
        avoided: moved.avoided.0,
    }
}

fn write_ranks(out: Buffer<u32>, ranks: &[Rank]) -> Result<()> {
    let ranks: Vec<u32> = ranks.iter().map(|r| r.0).collect();
    out.write(&ranks)
}

/// What the flags say of colocation; `None` if that is left to the devices.
fn colocated_of(flags: u32) -> Result<Option<bool>> {
    const COLOCATED: u32 = wsync_mapping_flag::WSYNC_MAPPING_FLAG_COLOCATED as u32;
    const APART: u32 = wsync_mapping_flag::WSYNC_MAPPING_FLAG_APART as u32;
    match (flags & COLOCATED != 0, flags & APART != 0) {
        (false, false) => Ok(None),
        (colocated, apart) if colocated != apart => Ok(Some(colocated)),
        _ => Err(Error::invalid(
            "flags has both COLOCATED and APART; models are one or the other",
        )),
    }
}

/// # Safety
///
/// Every list of `given` has the count that stands beside it.
unsafe fn spec_of(given: &wsync_mapping_options) -> Result<MappingSpec> {
    const KEEP_SAME_DEVICE: u32 = wsync_mapping_flag::WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE as u32;
    const VLLM: u32 = wsync_mapping_flag::WSYNC_MAPPING_FLAG_VLLM as u32;
    args::reserved(<wsync_mapping_options as args::Plain>::NAME, given.reserved)?;
    const COLOCATION: u32 = wsync_mapping_flag::WSYNC_MAPPING_FLAG_COLOCATED as u32
        | wsync_mapping_flag::WSYNC_MAPPING_FLAG_APART as u32;
    let unknown = given.flags & !(COLOCATION | KEEP_SAME_DEVICE | VLLM);
    if unknown != 0 {
        return Err(args::unknown("flags", unknown));
    }
    let max = RANK_COUNT_MAX as usize;
    // SAFETY: passed on; any bit pattern is a `u32`.
    let (source_devices, destination_devices) = unsafe {
        let (a, a_count) = (given.source_devices, given.source_device_count);
        let (b, b_count) = (given.destination_devices, given.destination_device_count);
        (
            args::slice(a, a_count, "source_devices", max)?.to_vec(),
            args::slice(b, b_count, "destination_devices", max)?.to_vec(),
        )
    };
    // SAFETY: passed on.
    let (source_ranks, expert_source_ranks, destination_ranks) = unsafe {
        (
            rank_lists(given.source_ranks, given.source_list_count, "source_ranks")?,
            rank_lists(
                given.expert_source_ranks,
                given.expert_source_list_count,
                "expert_source_ranks",
            )?,
            rank_lists(
                given.destination_ranks,
                given.destination_list_count,
                "destination_ranks",
            )?,
        )
    };
    Ok(MappingSpec {
        source: SourceSizes {
            tp: given.source_tp.max(1),
            pp: given.source_pp.max(1),
            ep: given.source_ep.max(1),
            dp: given.source_dp.max(1),
            cp: given.source_cp.max(1),
        },
        destination: DestinationSizes {
            tp: given.destination_tp.max(1),
            pp: given.destination_pp.max(1),
            ep: given.destination_ep.max(1),
            replicas: given.replica_count.max(1),
        },
        source_devices,
        destination_devices,
        colocated: colocated_of(given.flags)?,
        keep_same_device: given.flags & KEEP_SAME_DEVICE != 0,
        destination_is_vllm: given.flags & VLLM != 0,
        source_ranks,
        expert_source_ranks,
        destination_ranks,
    })
}

/// # Safety
///
/// `ptr` is NULL or points to `count` lists, each with its number of ranks.
pub(super) unsafe fn rank_lists(
    ptr: *const wsync_rank_list,
    count: usize,
    name: &str,
) -> Result<Option<Vec<Vec<Rank>>>> {
    let max = RANK_COUNT_MAX as usize;
    // SAFETY: passed on; any bit pattern is a list.
    let items = unsafe { args::slice(ptr, count, name, max)? };
    let lists = items.iter().map(|item| {
        // SAFETY: passed on.
        unsafe { args::ranks(item, name, max) }
    });
    let lists = lists.collect::<Result<Vec<_>>>()?;
    Ok((!lists.is_empty()).then_some(lists))
}

//! Plans: two layouts and a decision, and what every rank does about it.

use super::args::{self, plain_struct};
use super::buffers::{BufferCache, SideBuffers, buffer_info, no_buffer};
use super::handle::{self, Handle, shared};
use super::layout::wsync_layout;
use super::mapping::rank_lists;
use super::out::{Buffer, Out, StructOut, StructsOut, TextBuffer};
use super::topology::wsync_topology;
use super::types::{
    WSYNC_STEP_NONE, wsync_buffer_info, wsync_error, wsync_fingerprint, wsync_rank_list,
    wsync_status, wsync_text,
};
use super::{count_u32, guard, guard_value};
use crate::env;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::limits::{DIM_COUNT_MAX, FILE_BYTES_MAX, RANK_COUNT_MAX, TENSOR_COUNT_MAX};
use crate::log::{Level, line};
use crate::plan::decision::{
    DIRECT_BYTES_MIN_DEFAULT, Order, PlanOptions, STAGING_BYTES_DEFAULT, SourceRule, Spread,
    Strategy,
};
use crate::plan::mapping::{DestinationSizes, SourceSizes};
use crate::plan::program::BufferUse;
use crate::plan::program_info::ProgramInfo;
use crate::plan::topology::Topology;
use crate::plan::two_stage::TwoStageOptions;
use crate::plan::{Plan, Selector};
use crate::rank::Rank;
use crate::sim::{Instance, LinkedOrigin, StressOptions};
use crate::tune;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// How bytes get from one layout to the other: the two layouts and a small
/// decision. Equal wherever it is made from equal input. Immutable; may be
/// used by any number of threads.
///
/// wsync_plan_create, wsync_plan_create_from_bytes, wsync_plan_replan,
/// wsync_plan_select, wsync_plan_serialize, wsync_plan_fingerprint, wsync_plan_verify,
/// wsync_plan_rank_count, wsync_plan_ranks, wsync_plan_tensor_count,
/// wsync_plan_step_count, wsync_plan_program_info, wsync_plan_program_infos,
/// wsync_plan_buffer_count, wsync_plan_buffer_at, wsync_plan_tensor_last_step,
/// wsync_plan_rank_ops, wsync_plan_origin, wsync_plan_certificate,
/// wsync_plan_simulate, wsync_plan_report, wsync_plan_diff, wsync_plan_destroy.
///
/// Since: 0.1
pub struct wsync_plan {
    _opaque: [u8; 0],
}

/// What a plan handle holds.
pub(super) struct PlanObject {
    pub plan: Arc<Plan>,
    buffers: BufferCache,
}

impl Handle for wsync_plan {
    type Value = PlanObject;
    const MAGIC: u64 = 0x7773_796e_706c_6e01;
    const NOUN: &'static str = "plan";
    const SURVIVES_FORK: bool = true;
}

/// Which way bytes take.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_strategy {
    WSYNC_STRATEGY_DEFAULT = 0,
    /// From a holder straight to the needer.
    WSYNC_STRATEGY_DIRECT = 1,
    /// As the two-stage rank mapping says: to one member of each
    /// weight-mapping group, which forwards to the others.
    WSYNC_STRATEGY_TWO_STAGE = 2,
    /// Each byte enters an NVLink domain once; the ranks there exchange what
    /// several of them need.
    WSYNC_STRATEGY_RELAY = 3,
    /// Only some copies leave the source; the ranks that get them pass them on
    /// to the others.
    WSYNC_STRATEGY_FANOUT = 4,
    /// Whichever of these (but TWO_STAGE), with whichever source rule, spread,
    /// source relay and bucket count, is predicted to be fastest on the topology. The plan
    /// keeps what was decided.
    WSYNC_STRATEGY_AUTO = 5,
}

/// Which of several holders sends.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_source_rule {
    WSYNC_SOURCE_RULE_DEFAULT = 0,
    /// The wrap-around cut: equal loads, fewest pairs. The default.
    WSYNC_SOURCE_RULE_WRAP = 1,
    /// The holder moves on with every item: more pairs, each with a share of
    /// every tensor.
    WSYNC_SOURCE_RULE_ROTATE = 2,
}

/// How the NVLink domains of one copy pass it on to each other.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_spread {
    WSYNC_SPREAD_DEFAULT = 0,
    /// The copy is scattered over all of them, and each sends its part to all
    /// others: two hops, many peers. The default.
    WSYNC_SPREAD_SCATTER = 1,
    /// The first takes it in whole, and each passes it on to the next, bucket
    /// by bucket: as many hops as domains, one peer.
    WSYNC_SPREAD_CHAIN = 2,
}

/// Which bytes travel first.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_order {
    WSYNC_ORDER_DEFAULT = 0,
    /// A step carries the same fraction of what every pair exchanges: all
    /// links work all the time, and the layers of all stages come side by
    /// side. The default.
    WSYNC_ORDER_FRACTION = 1,
    /// A step carries the next layers: early layers are complete early
    /// (wsync_plan_tensor_last_step), and links to later ones stand idle
    /// meanwhile.
    WSYNC_ORDER_LAYER = 2,
}

/// How WSYNC_STRATEGY_TWO_STAGE maps ranks. A side whose TP is 0 is read from
/// the meshes of its layout: axis tp, the axis that numbers stages, and all
/// others as copies. Devices are those of the topology.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_two_stage_options {
    /// sizeof(wsync_two_stage_options).
    pub struct_size: usize,
    /// Not 0: pairs within one device are avoided by choosing another
    /// receiver. 0: they are as good as any other. Either way a rank that is on
    /// both sides copies locally what it has itself; two ranks of one device
    /// exchange a message, which stays inside it if the transport can do that.
    pub avoid_same_device: u32,
    /// Tensor parallel; 0 reads all sizes of this side from its layout.
    pub source_tp: u32,
    /// Sizes of 0 are 1, here and below.
    pub source_pp: u32,
    /// Expert parallel.
    pub source_ep: u32,
    /// Data parallel.
    pub source_dp: u32,
    /// Context parallel.
    pub source_cp: u32,
    /// Tensor parallel, of one replica; 0 reads all sizes of this side from its layout.
    pub destination_tp: u32,
    /// Pipeline stages of one replica.
    pub destination_pp: u32,
    /// Expert parallel, of one replica.
    pub destination_ep: u32,
    /// Replicas of destination_tp * destination_pp * destination_ep ranks.
    pub replica_count: u32,
    /// One list per source copy, each [PP][TP]; none means Megatron's order,
    /// or that of the layout.
    pub source_ranks: *const wsync_rank_list,
    /// How many lists there are.
    pub source_list_count: usize,
    /// One list per replica, each [PP][EP][TP]; none means ascending ranks, or
    /// the order of the layout.
    pub destination_ranks: *const wsync_rank_list,
    /// How many lists there are.
    pub destination_list_count: usize,
}

plain_struct!(wsync_two_stage_options, 80, "wsync_two_stage_options");

/// What a plan is made with. All of it enters the fingerprint, so it has to be
/// equal on all ranks, the variables behind defaults included.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_plan_options {
    /// sizeof(wsync_plan_options).
    pub struct_size: usize,
    /// A wsync_strategy.
    pub strategy: u32,
    /// A wsync_source_rule.
    pub source_rule: u32,
    /// Bytes of staging memory per rank, at most; 0 is WSYNC_STAGING_BYTES_MAX
    /// from the environment, or 512 MiB.
    pub staging_bytes_max: u64,
    /// Contiguous runs of at least that many bytes travel without staging; 0
    /// is WSYNC_DIRECT_BYTES_MIN from the environment, or 256 KiB.
    pub direct_bytes_min: u64,
    /// Parts that every pair's bytes are cut into; 0 is the smallest number
    /// that keeps staging inside its budget.
    pub bucket_count: u32,
    /// WSYNC_STRATEGY_FANOUT: copies that leave the source; 0 is as many as
    /// can leave while the fullest NVLink domain receives.
    pub copy_count: u32,
    /// Globs (*, ?) of source tensors that the destination may leave unused;
    /// without them an unused tensor is an error.
    pub unused_allowed: *const wsync_text,
    /// How many there are.
    pub unused_allowed_count: usize,
    /// WSYNC_STRATEGY_TWO_STAGE: how ranks are mapped; NULL reads it from the
    /// layouts.
    pub two_stage: *const wsync_two_stage_options,
    /// What stands between the ranks; NULL is the default topology.
    pub topology: *const wsync_topology,
    /// A wsync_order.
    pub order: u32,
    /// A wsync_spread, for WSYNC_STRATEGY_FANOUT.
    pub spread: u32,
    /// WSYNC_STRATEGY_RELAY and _FANOUT: not 0 lets bytes leave a source
    /// domain through the NICs of all its source ranks, whichever of them
    /// holds the bytes. Costs relay memory, which counts as staging.
    pub source_relay: u32,
    /// 0.
    pub reserved: u32,
}

plain_struct!(wsync_plan_options, 88, "wsync_plan_options");

/// What a simulation does to a plan; all 0 does nothing to it. Equal seeds
/// choose equal ranks and times.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_simulate_options {
    /// sizeof(wsync_simulate_options).
    pub struct_size: usize,
    /// Chooses stragglers and failures; the same seed chooses the same.
    pub seed: u64,
    /// Ranks whose links are slow.
    pub straggler_count: u32,
    /// Of their full speed, 1 to 100; 0 is 50.
    pub straggler_percent: u32,
    /// Ranks that stop for good at some time before the healthy end.
    pub failure_count: u32,
    /// 0.
    pub reserved: u32,
}

plain_struct!(wsync_simulate_options, 32, "wsync_simulate_options");

/// A range [first, end) of numbers.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_number_range {
    /// The first of them.
    pub first: u32,
    /// One more than the last.
    pub end: u32,
}

/// No choice: everything.
///
/// Since: 0.1
pub const WSYNC_SELECT_ANY: u32 = 0;
/// Only what has the property.
///
/// Since: 0.1
pub const WSYNC_SELECT_ONLY: u32 = 1;
/// Only what has it not.
///
/// Since: 0.1
pub const WSYNC_SELECT_WITHOUT: u32 = 2;

/// Which tensors a plan moves, and to which copies. What is left zero selects
/// all; what is given must all hold.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_selector {
    /// sizeof(wsync_selector).
    pub struct_size: usize,
    /// Any match selects; none selects all.
    pub include: *const wsync_text,
    /// How many there are.
    pub include_count: usize,
    /// Any match takes the name out again.
    pub exclude: *const wsync_text,
    /// How many there are.
    pub exclude_count: usize,
    /// Layers: the first component of a name that is a number.
    pub layers: *const wsync_number_range,
    /// How many there are.
    pub layers_count: usize,
    /// Experts: of names with a component "experts", the number after it or
    /// else the indices of the first axis.
    pub experts: *const wsync_number_range,
    /// How many there are.
    pub experts_count: usize,
    /// Destination copies; the plan numbers them anew.
    pub copies: *const u32,
    /// How many there are.
    pub copies_count: usize,
    /// WSYNC_SELECT_*: what is trained, by the "frozen" marks of both layouts.
    pub trainable: u32,
    /// WSYNC_SELECT_*: the draft model, by the "draft" marks of both layouts.
    pub draft: u32,
}

plain_struct!(wsync_selector, 96, "wsync_selector");

/// What one rank does in one execution of a plan.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_program_info {
    /// sizeof(wsync_program_info), set by the caller.
    pub struct_size: usize,
    /// Bytes sent over the transport.
    pub bytes_sent: u64,
    /// Bytes received over the transport.
    pub bytes_received: u64,
    /// Bytes copied within the rank.
    pub bytes_local: u64,
    /// Staging memory that a session allocates.
    pub staging_bytes: u64,
    /// Messages, both directions.
    pub message_count: u64,
    /// Messages that need no staging on this rank.
    pub direct_message_count: u64,
    /// Ranks it sends to or receives from.
    pub peer_count: u32,
    /// Buffers it binds.
    pub buffer_count: u32,
}

plain_struct!(wsync_program_info, 64, "wsync_program_info");

/// Plans the way from `source` to `destination`. `options` may be NULL.
///
/// Errors: LAYOUT_INVALID if a byte has no holder, or shapes or types do not
/// fit; STAGING_TOO_SMALL; both name tensor, rank and numbers. UNSUPPORTED for
/// an unknown strategy or rule.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_create(
    source: *const wsync_layout,
    destination: *const wsync_layout,
    options: *const wsync_plan_options,
    out_plan: *mut *mut wsync_plan,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_plan, "out_plan")? };
        // SAFETY: the header asks for live layouts.
        let (source, destination) = unsafe { (shared(source)?, shared(destination)?) };
        // SAFETY: the header asks for NULL or a struct whose struct_size is
        // set and whose array has the count that stands beside it.
        let (options, is_auto) = unsafe { plan_options(options)? };
        let (source, destination) = (source.layout.clone(), destination.layout.clone());
        let plan = match is_auto {
            true => tune::plan(source, destination, &options)?,
            false => Plan::create(source, destination, &options)?,
        };
        out.put(PlanObject::new(plan));
        Ok(())
    })
}

/// Makes a plan from what wsync_plan_serialize wrote, on any machine.
///
/// Errors: CORRUPT for damaged, truncated or foreign bytes; VERSION_MISMATCH
/// for a plan of another version.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_create_from_bytes(
    bytes: *const c_void,
    byte_count: usize,
    out_plan: *mut *mut wsync_plan,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_plan, "out_plan")? };
        // SAFETY: the header asks for `byte_count` readable bytes.
        let bytes = unsafe { args::bytes(bytes, byte_count, "bytes", FILE_BYTES_MAX)? };
        out.put(PlanObject::new(Plan::from_bytes(bytes)?));
        Ok(())
    })
}

/// Makes `plan` anew for sides or a topology that changed a little: a replica
/// joins or leaves, ranks are drained, experts move. The decision stays, so
/// this takes milliseconds; only how many copies leave each source group is
/// counted anew, and there are more buckets if a rank would exceed the staging
/// budget. `source`, `destination` and `topology` may be NULL: those of `plan`.
///
/// Errors: as wsync_plan_create, but that source tensors may be unused;
/// INVALID_ARGUMENT if the topology leaves ranks out.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_replan(
    plan: *const wsync_plan,
    source: *const wsync_layout,
    destination: *const wsync_layout,
    topology: *const wsync_topology,
    out_plan: *mut *mut wsync_plan,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_plan, "out_plan")? };
        // SAFETY: the header asks for a live plan.
        let plan = &unsafe { shared(plan)? }.plan;
        // SAFETY: the header asks for NULL or live layouts.
        let (source, destination) = unsafe {
            (
                layout_or(source, plan.source())?,
                layout_or(destination, plan.destination())?,
            )
        };
        let topology = match topology.is_null() {
            true => None,
            // SAFETY: the header asks for NULL or a live topology.
            false => Some(unsafe { shared(topology)? }.spec().clone()),
        };
        out.put(PlanObject::new(plan.replan(
            source,
            destination,
            topology,
        )?));
        Ok(())
    })
}

/// Makes the plan that moves only the selected tensors of `plan`, with a
/// fingerprint of its own. Selecting again narrows further.
///
/// Errors: NOT_FOUND if nothing is selected; STAGING_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_select(
    plan: *const wsync_plan,
    selector: *const wsync_selector,
    out_plan: *mut *mut wsync_plan,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_plan, "out_plan")? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        // SAFETY: the header asks for a struct whose struct_size is set and
        // whose arrays have the counts that stand beside them.
        let selector = unsafe { selector_of(selector)? };
        out.put(PlanObject::new(plan.plan.select(&selector)?));
        Ok(())
    })
}

/// Writes the plan as bytes that wsync_plan_create_from_bytes reads. With a
/// `capacity` of 0 only `out_needed` is written: the number of bytes.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_serialize(
    plan: *const wsync_plan,
    buffer: *mut c_void,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { super::out::bytes(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        out.write(&plan.plan.to_bytes()?)
    })
}

/// Writes the fingerprint of the plan. Ranks only move bytes together if
/// theirs are equal.
///
/// Errors: none but a wrong argument.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_fingerprint(
    plan: *const wsync_plan,
    out_fingerprint: *mut wsync_fingerprint,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the fingerprint.
        let out = unsafe { Out::new(out_fingerprint, "out_fingerprint")? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        out.write(wsync_fingerprint {
            bytes: plan.plan.fingerprint().to_be_bytes(),
        });
        Ok(())
    })
}

/// Derives the programs of all ranks and checks, by other means than they were
/// made with, that every destination byte is written exactly once and that
/// every message has two ends. Linear in the whole plan; every rank's own
/// program is checked anyway when it is derived.
///
/// Errors: INTERNAL names tensor, rank and numbers.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_verify(
    plan: *const wsync_plan,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        plan.plan.verify()
    })
}

/// Number of ranks of both layouts together; 0 if `plan` is NULL or not a
/// plan.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_rank_count(plan: *const wsync_plan) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live plan.
        let plan = unsafe { shared(plan) }.ok()?;
        Some(count_u32(plan.plan.ranks().len()))
    })
}

/// Copies the ranks that take part, ascending, to `ranks`, which holds
/// `capacity` of them. With a `capacity` of 0 only `out_count` is written:
/// their number.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_ranks(
    plan: *const wsync_plan,
    ranks: *mut u32,
    capacity: usize,
    out_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` ranks.
        let out = unsafe { Buffer::new(ranks, capacity, out_count, "out_count")? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        let ranks: Vec<u32> = plan.plan.participants().iter().map(|r| r.0).collect();
        out.write(&ranks)
    })
}

/// Number of canonical tensors that move; 0 if `plan` is NULL or not a plan.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_tensor_count(plan: *const wsync_plan) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live plan.
        let plan = unsafe { shared(plan) }.ok()?;
        Some(count_u32(plan.plan.tensors().len()))
    })
}

/// Number of steps of every rank's program; 0 if `plan` is NULL or not a plan.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_step_count(plan: *const wsync_plan) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live plan.
        let plan = unsafe { shared(plan) }.ok()?;
        Some(plan.plan.step_count())
    })
}

/// Writes what `rank` does; all zero if it takes no part.
///
/// Errors: NOT_FOUND if the rank is in neither layout of this plan.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_program_info(
    plan: *const wsync_plan,
    rank: u32,
    out_info: *mut wsync_program_info,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a struct whose struct_size is set.
        let out = unsafe { StructOut::new(out_info)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        out.write(&plan.plan.program_info(Rank(rank))?.into());
        Ok(())
    })
}

/// Writes what each of `rank_count` ranks does, in the order of `ranks`: what
/// wsync_plan_program_info writes of each, in less time. Up to 16 threads share
/// the work and end before the call returns. A rank may come twice. `out_infos`
/// holds as many structs, `info_stride` bytes (sizeof(wsync_program_info)) from
/// one to the next; their struct_size is written too. Without ranks both may be
/// NULL.
///
/// Errors: NOT_FOUND if one of the ranks is in neither layout of this plan;
/// LIMIT_EXCEEDED.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_program_infos(
    plan: *const wsync_plan,
    ranks: *const u32,
    rank_count: usize,
    out_infos: *mut wsync_program_info,
    info_stride: usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for `rank_count` ranks.
        let ranks = unsafe { args::slice(ranks, rank_count, "ranks", RANK_COUNT_MAX as usize)? };
        // SAFETY: the header asks for as many structs, a stride apart.
        let out = unsafe { StructsOut::new(out_infos, rank_count, info_stride)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        let ranks: Vec<Rank> = ranks.iter().map(|&r| Rank(r)).collect();
        let infos = plan.plan.program_infos(&ranks)?;
        out.write(infos.into_iter().map(wsync_program_info::from));
        Ok(())
    })
}

/// Number of buffers that `rank` binds for this plan, both sides; 0 if it
/// takes no part, or if `plan` is NULL or not a plan.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_buffer_count(plan: *const wsync_plan, rank: u32) -> usize {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live plan.
        let plan = unsafe { shared(plan) }.ok()?;
        Some(plan.buffers(Rank(rank)).ok()?.len())
    })
}

/// Side, name, size and memory of buffer `index` of `rank`: the source side
/// first, then in order of name.
///
/// Errors: NOT_FOUND if the rank has no such buffer.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_buffer_at(
    plan: *const wsync_plan,
    rank: u32,
    index: usize,
    out_info: *mut wsync_buffer_info,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a struct whose struct_size is set.
        let out = unsafe { StructOut::new(out_info)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        let buffers = plan.buffers(Rank(rank))?;
        let (side, buffer) = buffers
            .get(index)
            .ok_or_else(|| no_buffer(rank, index, buffers.len()))?;
        out.write(&buffer_info(*side, buffer));
        Ok(())
    })
}

/// Writes the last step in which `rank` gets bytes of the tensor called
/// `tensor`, or WSYNC_STEP_NONE if it gets none. Once
/// wsync_request_steps_done exceeds that step, the tensor is in place.
///
/// Errors: NOT_FOUND if the plan does not move such a tensor, or the rank is in
/// neither layout.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_tensor_last_step(
    plan: *const wsync_plan,
    rank: u32,
    tensor: *const c_char,
    out_step: *mut u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the step.
        let out = unsafe { Out::new(out_step, "out_step")? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        // SAFETY: the header asks for a NUL-terminated name.
        let tensor = unsafe { args::name(tensor, "the tensor name")? };
        let step = plan.plan.tensor_last_step(Rank(rank), tensor)?;
        out.write(step.unwrap_or(WSYNC_STEP_NONE));
        Ok(())
    })
}

/// Writes the operations of `rank`, one by one, as a JSON array,
/// NUL-terminated. With a `capacity` of 0 only `out_needed` is written: the
/// number of bytes, the NUL included.
///
/// Errors: NOT_FOUND if the rank is in neither layout; BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_rank_ops(
    plan: *const wsync_plan,
    rank: u32,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        out.write_json(&plan.plan.ops(Rank(rank))?)
    })
}

/// Writes where an element of `tensor` on destination rank `rank` comes from
/// as JSON, NUL-terminated: its hops in order, each with step, stage, bucket
/// and, at both ends, rank, buffer and byte offset; and the links that it
/// crosses on the topology that the plan was made for. `index` has one number
/// per axis of the tensor. With a `capacity` of 0 only `out_needed` is written: the
/// number of bytes, the NUL included.
///
/// Errors: NOT_FOUND if the plan does not move the tensor or the rank does not
/// receive the element; INVALID_ARGUMENT if it is outside the tensor;
/// BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_origin(
    plan: *const wsync_plan,
    rank: u32,
    tensor: *const c_char,
    index: *const u64,
    index_count: usize,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        // SAFETY: the header asks for a NUL-terminated name.
        let tensor = unsafe { args::name(tensor, "the tensor name")? };
        // SAFETY: the header asks for an array of `index_count` numbers.
        let index = unsafe { args::slice(index, index_count, "index", DIM_COUNT_MAX)? };
        let origin = plan.plan.origin(Rank(rank), tensor, index)?;
        out.write_json(&LinkedOrigin::of(origin, plan.plan.topology())?)
    })
}

/// Writes how near the plan is to what is possible as JSON, NUL-terminated:
/// lower_bound_s, predicted_s, ratio, bottleneck, links_busiest and more.
/// `topology` may be NULL: the one that the plan was made for. Derives and
/// simulates all ranks; of very many only some, and of very many messages in
/// fewer buckets, in proportion, and then is_exact is false.
/// With a `capacity` of 0 only `out_needed` is written: the number of bytes,
/// the NUL included.
///
/// Errors: INVALID_ARGUMENT if the topology leaves ranks out; LIMIT_EXCEEDED
/// for too many ranks; BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_certificate(
    plan: *const wsync_plan,
    topology: *const wsync_topology,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        // SAFETY: the header asks for NULL or a live topology.
        let topology = unsafe { topology_for(&plan.plan, topology)? };
        out.write_json(&tune::certificate(&plan.plan, &topology)?)
    })
}

/// Runs the plan in virtual time with some ranks slow and some dying, and
/// writes what came of it as JSON, NUL-terminated: healthy_ns, total_ns, the
/// ranks that were chosen, copies_complete, and who waits for whom. `topology`
/// and `options` may be NULL. With a `capacity` of 0 only `out_needed` is
/// written: the number of bytes, the NUL included.
///
/// Errors: INVALID_ARGUMENT for more stragglers and failures than ranks;
/// LIMIT_EXCEEDED for too many ranks; BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_simulate(
    plan: *const wsync_plan,
    topology: *const wsync_topology,
    options: *const wsync_simulate_options,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        // SAFETY: the header asks for NULL or a live topology.
        let topology = unsafe { topology_for(&plan.plan, topology)? };
        // SAFETY: the header asks for NULL or a struct whose struct_size is set.
        let stress = match unsafe { args::optional(options)? } {
            None => StressOptions::default(),
            Some(given) => {
                args::reserved("wsync_simulate_options", given.reserved)?;
                StressOptions {
                    seed: given.seed,
                    straggler_count: given.straggler_count,
                    straggler_percent: given.straggler_percent,
                    failure_count: given.failure_count,
                }
            }
        };
        let instance = Instance::of_plan(&plan.plan, &topology)?;
        out.write_json(&instance.stress(&plan.plan, &stress)?)
    })
}

/// Writes totals over all ranks as JSON, NUL-terminated: bytes, pairs,
/// messages, staging, the busiest ranks. With a `capacity` of 0 only
/// `out_needed` is written: the number of bytes, the NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_report(
    plan: *const wsync_plan,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        out.write_json(&plan.plan.report()?)
    })
}

/// Writes what differs between two plans as JSON, NUL-terminated: inputs,
/// decision, tensors, ranks. With a `capacity` of 0 only `out_needed` is
/// written: the number of bytes, the NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_diff(
    plan: *const wsync_plan,
    other: *const wsync_plan,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for live plans.
        let (plan, other) = unsafe { (shared(plan)?, shared(other)?) };
        out.write_json(&plan.plan.diff(&other.plan)?)
    })
}

/// Ends the plan. Sessions that have loaded it go on. NULL is fine.
///
/// Thread safety: once, with no other call on it under way. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_plan_destroy(plan: *mut wsync_plan) {
    // SAFETY: the header asks for NULL or a plan that nobody uses any more.
    unsafe { handle::destroy(plan) };
}

impl PlanObject {
    fn new(plan: Plan) -> PlanObject {
        line(
            Level::Info,
            format_args!(
                "plan {:032x} tensors {} steps {}",
                plan.fingerprint(),
                plan.tensors().len(),
                plan.step_count()
            ),
        );
        PlanObject {
            plan: Arc::new(plan),
            buffers: BufferCache::default(),
        }
    }

    fn buffers(&self, rank: Rank) -> Result<SideBuffers> {
        self.plan.check_rank(rank)?;
        self.buffers.get(rank, || {
            // As a session loads it: what a rank digests it binds, though it may send none of it.
            let program = self.plan.program_with_digests(rank)?;
            let named = |used: &BufferUse| Some((Some(used.side), self.plan.buffer(rank, used)?));
            let mut all: Vec<_> = program.buffers.iter().filter_map(named).collect();
            all.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
            Ok(all.into())
        })
    }
}

impl From<ProgramInfo> for wsync_program_info {
    fn from(info: ProgramInfo) -> wsync_program_info {
        wsync_program_info {
            struct_size: 0,
            bytes_sent: info.bytes_sent,
            bytes_received: info.bytes_received,
            bytes_local: info.bytes_local,
            staging_bytes: info.staging_bytes,
            message_count: info.messages,
            direct_message_count: info.messages_direct,
            peer_count: info.peers,
            buffer_count: info.buffers,
        }
    }
}

/// # Safety
///
/// `options` is NULL or has its struct_size set, and its array has the count
/// that stands beside it.
unsafe fn plan_options(options: *const wsync_plan_options) -> Result<(PlanOptions, bool)> {
    let mut made = PlanOptions {
        staging_bytes_max: env::staging_bytes_max()?.unwrap_or(STAGING_BYTES_DEFAULT),
        direct_bytes_min: env::direct_bytes_min()?.unwrap_or(DIRECT_BYTES_MIN_DEFAULT),
        ..PlanOptions::default()
    };
    // SAFETY: passed on.
    let Some(given) = (unsafe { args::optional(options)? }) else {
        return Ok((made, false));
    };
    let is_auto = given.strategy == wsync_strategy::WSYNC_STRATEGY_AUTO as u32;
    if !is_auto {
        made.strategy = strategy(given.strategy)?;
    }
    if !given.topology.is_null() {
        // SAFETY: the header asks for NULL or a live topology.
        made.topology = Some(unsafe { shared(given.topology)? }.spec().clone());
    }
    made.source_rule = source_rule(given.source_rule)?;
    made.bucket_count = given.bucket_count;
    made.copy_count = given.copy_count;
    made.order = order(given.order)?;
    made.spread = spread(given.spread)?;
    made.source_relay = given.source_relay != 0;
    // SAFETY: passed on.
    if let Some(two_stage) = unsafe { args::optional(given.two_stage)? } {
        // SAFETY: its lists have the counts that stand beside them.
        made.two_stage = unsafe { two_stage_options(&two_stage)? };
    }
    if given.staging_bytes_max != 0 {
        made.staging_bytes_max = given.staging_bytes_max;
    }
    if given.direct_bytes_min != 0 {
        made.direct_bytes_min = given.direct_bytes_min;
    }
    // SAFETY: passed on.
    made.unused_allowed = unsafe {
        args::texts(
            given.unused_allowed,
            given.unused_allowed_count,
            "unused_allowed",
            TENSOR_COUNT_MAX,
        )?
    };
    Ok((made, is_auto))
}

/// # Safety
///
/// `selector` has its struct_size set, and its arrays have the counts that
/// stand beside them.
unsafe fn selector_of(selector: *const wsync_selector) -> Result<Selector> {
    // SAFETY: passed on.
    let given = unsafe { args::structure(selector)? };
    // SAFETY: passed on.
    unsafe {
        Ok(Selector {
            layers: ranges(given.layers, given.layers_count, "layers")?,
            experts: ranges(given.experts, given.experts_count, "experts")?,
            copies: args::slice(given.copies, given.copies_count, "copies", TENSOR_COUNT_MAX)?
                .to_vec(),
            trainable: choice(given.trainable, "trainable")?,
            draft: choice(given.draft, "draft")?,
            include: args::texts(
                given.include,
                given.include_count,
                "include",
                TENSOR_COUNT_MAX,
            )?,
            exclude: args::texts(
                given.exclude,
                given.exclude_count,
                "exclude",
                TENSOR_COUNT_MAX,
            )?,
        })
    }
}

/// A layout, or the one that a plan has.
///
/// # Safety
///
/// `layout` is NULL or a live layout.
unsafe fn layout_or(layout: *const wsync_layout, own: &Arc<Layout>) -> Result<Arc<Layout>> {
    if layout.is_null() {
        return Ok(own.clone());
    }
    // SAFETY: passed on.
    Ok(unsafe { shared(layout)? }.layout.clone())
}

/// A topology with the ranks of a plan placed, or the plan's own.
///
/// # Safety
///
/// `topology` is NULL or a live topology.
unsafe fn topology_for(plan: &Plan, topology: *const wsync_topology) -> Result<Topology> {
    if topology.is_null() {
        return Ok(plan.topology().as_ref().clone());
    }
    // SAFETY: passed on.
    let given = unsafe { shared(topology)? };
    given.placed_for(plan.source(), plan.destination())
}

/// # Safety
///
/// `list` has `count` ranges.
unsafe fn ranges(
    list: *const wsync_number_range,
    count: usize,
    what: &str,
) -> Result<Vec<(u32, u32)>> {
    // SAFETY: passed on.
    let list = unsafe { args::slice(list, count, what, TENSOR_COUNT_MAX)? };
    Ok(list.iter().map(|r| (r.first, r.end)).collect())
}

fn choice(value: u32, what: &str) -> Result<Option<bool>> {
    match value {
        WSYNC_SELECT_ANY => Ok(None),
        WSYNC_SELECT_ONLY => Ok(Some(true)),
        WSYNC_SELECT_WITHOUT => Ok(Some(false)),
        _ => Err(Error::invalid(format!(
            "{what} is {value}; WSYNC_SELECT_ANY, _ONLY and _WITHOUT are 0, 1 and 2"
        ))),
    }
}

/// # Safety
///
/// The lists have the counts that stand beside them, and each list its number
/// of ranks.
unsafe fn two_stage_options(given: &wsync_two_stage_options) -> Result<TwoStageOptions> {
    let source = SourceSizes {
        tp: given.source_tp,
        pp: given.source_pp.max(1),
        ep: given.source_ep.max(1),
        dp: given.source_dp.max(1),
        cp: given.source_cp.max(1),
    };
    let destination = DestinationSizes {
        tp: given.destination_tp,
        pp: given.destination_pp.max(1),
        ep: given.destination_ep.max(1),
        replicas: given.replica_count.max(1),
    };
    // SAFETY: passed on.
    let (source_ranks, destination_ranks) = unsafe {
        let (a, a_count) = (given.source_ranks, given.source_list_count);
        let (b, b_count) = (given.destination_ranks, given.destination_list_count);
        (
            rank_lists(a, a_count, "source_ranks")?,
            rank_lists(b, b_count, "destination_ranks")?,
        )
    };
    Ok(TwoStageOptions {
        source: (source.tp > 0).then_some(source),
        destination: (destination.tp > 0).then_some(destination),
        source_ranks,
        destination_ranks,
        avoid_same_device: given.avoid_same_device != 0,
    })
}

fn strategy(value: u32) -> Result<Strategy> {
    const DEFAULT: u32 = wsync_strategy::WSYNC_STRATEGY_DEFAULT as u32;
    const DIRECT: u32 = wsync_strategy::WSYNC_STRATEGY_DIRECT as u32;
    const TWO_STAGE: u32 = wsync_strategy::WSYNC_STRATEGY_TWO_STAGE as u32;
    const RELAY: u32 = wsync_strategy::WSYNC_STRATEGY_RELAY as u32;
    const FANOUT: u32 = wsync_strategy::WSYNC_STRATEGY_FANOUT as u32;
    match value {
        DEFAULT | DIRECT => Ok(Strategy::Direct),
        TWO_STAGE => Ok(Strategy::TwoStage),
        RELAY => Ok(Strategy::Relay),
        FANOUT => Ok(Strategy::Fanout),
        other => Err(args::unknown("strategy", other)),
    }
}

fn order(value: u32) -> Result<Order> {
    const DEFAULT: u32 = wsync_order::WSYNC_ORDER_DEFAULT as u32;
    const FRACTION: u32 = wsync_order::WSYNC_ORDER_FRACTION as u32;
    const LAYER: u32 = wsync_order::WSYNC_ORDER_LAYER as u32;
    match value {
        DEFAULT | FRACTION => Ok(Order::Fraction),
        LAYER => Ok(Order::Layer),
        other => Err(args::unknown("order", other)),
    }
}

fn spread(value: u32) -> Result<Spread> {
    const DEFAULT: u32 = wsync_spread::WSYNC_SPREAD_DEFAULT as u32;
    const SCATTER: u32 = wsync_spread::WSYNC_SPREAD_SCATTER as u32;
    const CHAIN: u32 = wsync_spread::WSYNC_SPREAD_CHAIN as u32;
    match value {
        DEFAULT | SCATTER => Ok(Spread::Scatter),
        CHAIN => Ok(Spread::Chain),
        other => Err(args::unknown("spread", other)),
    }
}

fn source_rule(value: u32) -> Result<SourceRule> {
    const DEFAULT: u32 = wsync_source_rule::WSYNC_SOURCE_RULE_DEFAULT as u32;
    const WRAP: u32 = wsync_source_rule::WSYNC_SOURCE_RULE_WRAP as u32;
    const ROTATE: u32 = wsync_source_rule::WSYNC_SOURCE_RULE_ROTATE as u32;
    match value {
        DEFAULT | WRAP => Ok(SourceRule::Wrap),
        ROTATE => Ok(SourceRule::Rotate),
        other => Err(args::unknown("source_rule", other)),
    }
}

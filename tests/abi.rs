//! The numbers of the ABI, spelled out. A change here breaks compiled callers:
//! values and offsets are never changed, only added.

use std::mem::{align_of, offset_of, size_of};
use weightsync::capi::env::*;
use weightsync::capi::log::*;
use weightsync::capi::mapping::*;
use weightsync::capi::nccl::*;
use weightsync::capi::plan::*;
use weightsync::capi::request::*;
use weightsync::capi::session::*;
use weightsync::capi::topology::*;
use weightsync::capi::transport::*;
use weightsync::capi::types::*;
use weightsync::capi::version::*;
use weightsync::capi::views::*;

/// Size, alignment and the offset of every field of a struct.
macro_rules! layout {
    ($type:ident, $size:literal, $align:literal, { $($field:ident: $offset:literal,)* }) => {
        assert_eq!(size_of::<$type>(), $size, stringify!($type));
        assert_eq!(align_of::<$type>(), $align, stringify!($type));
        // Naming every field means that a new one does not compile unpinned.
        let _ = |s: $type| { let $type { $($field: _,)* } = s; };
        $(assert_eq!(offset_of!($type, $field), $offset, stringify!($type.$field));)*
    };
}

/// Every value of an enum; a new one does not compile unpinned.
macro_rules! values {
    ($type:ident: $int:ty, { $($name:ident = $value:literal,)* }) => {
        assert_eq!(size_of::<$type>(), size_of::<$int>(), stringify!($type));
        let _ = |e: $type| match e { $($type::$name => (),)* };
        $(assert_eq!($type::$name as $int, $value, stringify!($name));)*
    };
}

#[test]
fn values_are_pinned() {
    values!(wsync_status: i32, {
        WSYNC_OK = 0,
        WSYNC_IN_PROGRESS = 1,
        WSYNC_ERR_INVALID_ARGUMENT = -1,
        WSYNC_ERR_BAD_HANDLE = -2,
        WSYNC_ERR_BUFFER_TOO_SMALL = -3,
        WSYNC_ERR_UNSUPPORTED = -4,
        WSYNC_ERR_BUSY = -5,
        WSYNC_ERR_LIMIT_EXCEEDED = -6,
        WSYNC_ERR_NOT_FOUND = -7,
        WSYNC_ERR_INVALID_STATE = -8,
        WSYNC_ERR_PLAN_MISMATCH = -20,
        WSYNC_ERR_LAYOUT_INVALID = -21,
        WSYNC_ERR_CORRUPT = -22,
        WSYNC_ERR_VERSION_MISMATCH = -23,
        WSYNC_ERR_BUFFER_MISMATCH = -24,
        WSYNC_ERR_STAGING_TOO_SMALL = -25,
        WSYNC_ERR_CHECKSUM_MISMATCH = -26,
        WSYNC_ERR_INFEASIBLE = -27,
        WSYNC_ERR_LIBRARY_NOT_FOUND = -40,
        WSYNC_ERR_LIBRARY_TOO_OLD = -41,
        WSYNC_ERR_IO = -42,
        WSYNC_ERR_OUT_OF_MEMORY = -43,
        WSYNC_ERR_SYSTEM = -44,
        WSYNC_ERR_AGREEMENT_TIMEOUT = -60,
        WSYNC_ERR_REFUSED = -61,
        WSYNC_ERR_PEER_LOST = -80,
        WSYNC_ERR_STALLED = -81,
        WSYNC_ERR_ABORTED = -82,
        WSYNC_ERR_MEET_TIMEOUT = -83,
        WSYNC_ERR_PROTOCOL = -84,
        WSYNC_ERR_INTERNAL = -100,
        WSYNC_ERR_POISONED = -101,
    });
    values!(wsync_native_domain: u32, {
        WSYNC_NATIVE_DOMAIN_NONE = 0,
        WSYNC_NATIVE_DOMAIN_ERRNO = 1,
        WSYNC_NATIVE_DOMAIN_NCCL = 2,
        WSYNC_NATIVE_DOMAIN_CUDA = 3,
        WSYNC_NATIVE_DOMAIN_UCX = 4,
    });
    values!(wsync_side: u32, {
        WSYNC_SIDE_SOURCE = 1,
        WSYNC_SIDE_DESTINATION = 2,
    });
    values!(wsync_memory: u32, {
        WSYNC_MEMORY_HOST = 0,
        WSYNC_MEMORY_PINNED_HOST = 1,
        WSYNC_MEMORY_DEVICE = 2,
    });
    values!(wsync_dtype_code: u8, {
        WSYNC_DTYPE_CODE_INT = 0,
        WSYNC_DTYPE_CODE_UINT = 1,
        WSYNC_DTYPE_CODE_FLOAT = 2,
        WSYNC_DTYPE_CODE_BFLOAT = 4,
        WSYNC_DTYPE_CODE_COMPLEX = 5,
        WSYNC_DTYPE_CODE_BOOL = 6,
        WSYNC_DTYPE_CODE_FLOAT8_E3M4 = 7,
        WSYNC_DTYPE_CODE_FLOAT8_E4M3 = 8,
        WSYNC_DTYPE_CODE_FLOAT8_E4M3B11FNUZ = 9,
        WSYNC_DTYPE_CODE_FLOAT8_E4M3FN = 10,
        WSYNC_DTYPE_CODE_FLOAT8_E4M3FNUZ = 11,
        WSYNC_DTYPE_CODE_FLOAT8_E5M2 = 12,
        WSYNC_DTYPE_CODE_FLOAT8_E5M2FNUZ = 13,
        WSYNC_DTYPE_CODE_FLOAT8_E8M0FNU = 14,
        WSYNC_DTYPE_CODE_FLOAT6_E2M3FN = 15,
        WSYNC_DTYPE_CODE_FLOAT6_E3M2FN = 16,
        WSYNC_DTYPE_CODE_FLOAT4_E2M1FN = 17,
    });
    values!(wsync_outcome: u32, {
        WSYNC_OUTCOME_UNTOUCHED = 1,
        WSYNC_OUTCOME_COMPLETE = 2,
        WSYNC_OUTCOME_TORN = 3,
    });
    values!(wsync_state: u32, {
        WSYNC_STATE_IDLE = 0,
        WSYNC_STATE_PREPARING = 1,
        WSYNC_STATE_READY = 2,
        WSYNC_STATE_RUNNING = 3,
        WSYNC_STATE_SETTLING = 4,
        WSYNC_STATE_DONE = 5,
        WSYNC_STATE_FAILED = 6,
    });
    values!(wsync_log_level: u32, {
        WSYNC_LOG_LEVEL_OFF = 0,
        WSYNC_LOG_LEVEL_ERROR = 1,
        WSYNC_LOG_LEVEL_WARN = 2,
        WSYNC_LOG_LEVEL_INFO = 3,
        WSYNC_LOG_LEVEL_DEBUG = 4,
    });
    values!(wsync_mapping_kind: u32, {
        WSYNC_MAPPING_KIND_TWO_STAGE = 1,
        WSYNC_MAPPING_KIND_SINGLE_STAGE = 2,
        WSYNC_MAPPING_KIND_EXPERT = 3,
    });
    values!(wsync_mapping_flag: u32, {
        WSYNC_MAPPING_FLAG_COLOCATED = 1,
        WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE = 2,
        WSYNC_MAPPING_FLAG_VLLM = 4,
        WSYNC_MAPPING_FLAG_APART = 8,
    });
    values!(wsync_mapping_list: u32, {
        WSYNC_MAPPING_LIST_PAIRS = 1,
        WSYNC_MAPPING_LIST_FORWARDS = 2,
        WSYNC_MAPPING_LIST_ROUTED = 3,
        WSYNC_MAPPING_LIST_SAME_DEVICE = 4,
    });
    values!(wsync_regroup_kind: u32, {
        WSYNC_REGROUP_KIND_NONE = 0,
        WSYNC_REGROUP_KIND_ALL_TO_ALL = 1,
        WSYNC_REGROUP_KIND_ALL_GATHER = 2,
    });
    values!(wsync_strategy: u32, {
        WSYNC_STRATEGY_DEFAULT = 0,
        WSYNC_STRATEGY_DIRECT = 1,
        WSYNC_STRATEGY_TWO_STAGE = 2,
        WSYNC_STRATEGY_RELAY = 3,
        WSYNC_STRATEGY_FANOUT = 4,
        WSYNC_STRATEGY_AUTO = 5,
    });
    values!(wsync_source_rule: u32, {
        WSYNC_SOURCE_RULE_DEFAULT = 0,
        WSYNC_SOURCE_RULE_WRAP = 1,
        WSYNC_SOURCE_RULE_ROTATE = 2,
    });
    values!(wsync_spread: u32, {
        WSYNC_SPREAD_DEFAULT = 0,
        WSYNC_SPREAD_SCATTER = 1,
        WSYNC_SPREAD_CHAIN = 2,
    });
    values!(wsync_order: u32, {
        WSYNC_ORDER_DEFAULT = 0,
        WSYNC_ORDER_FRACTION = 1,
        WSYNC_ORDER_LAYER = 2,
    });
    values!(wsync_transport_kind: u32, {
        WSYNC_TRANSPORT_KIND_LOOPBACK = 1,
        WSYNC_TRANSPORT_KIND_SHM = 2,
        WSYNC_TRANSPORT_KIND_NCCL = 3,
    });
    values!(wsync_nccl_mode: u32, {
        WSYNC_NCCL_MODE_OWN = 1,
        WSYNC_NCCL_MODE_SPLIT = 2,
        WSYNC_NCCL_MODE_DIRECT = 3,
    });
    values!(wsync_nccl_ipc: u32, {
        WSYNC_NCCL_IPC_OFF = 1,
        WSYNC_NCCL_IPC_DEVICE = 2,
        WSYNC_NCCL_IPC_DOMAIN = 3,
    });
    values!(wsync_request_flag: u32, {
        WSYNC_REQUEST_FLAG_VERIFY = 1,
        WSYNC_REQUEST_FLAG_DRY_RUN = 2,
    });
}

#[test]
fn constants_are_pinned() {
    assert_eq!(WSYNC_RANK_NONE, u32::MAX);
    assert_eq!(WSYNC_STEP_NONE, u32::MAX);
    assert_eq!(WSYNC_NO_DEADLINE, u64::MAX);
    assert_eq!(WSYNC_DIM_COUNT_MAX, 8);
    assert_eq!(WSYNC_NAME_BYTES_MAX, 1024);
    assert_eq!(WSYNC_GREETING_BYTES_MAX, 512);
    assert_eq!(WSYNC_NCCL_ID_BYTES, 128);
    assert_eq!(WSYNC_SELECT_ANY, 0);
    assert_eq!(WSYNC_SELECT_ONLY, 1);
    assert_eq!(WSYNC_SELECT_WITHOUT, 2);
    assert_eq!(WSYNC_ABI_VERSION, 0);
    assert_eq!(wsync_abi_version(), WSYNC_ABI_VERSION);
    assert_eq!(wsync_version(), WSYNC_VERSION);
}

#[test]
fn structs_are_pinned() {
    layout!(wsync_error, 520, 8, {
        struct_size: 0,
        status: 8,
        native_code: 12,
        native_domain: 16,
        rank: 20,
        message: 24,
    });
    layout!(wsync_text, 16, 8, {
        ptr: 0,
        bytes: 8,
    });
    layout!(wsync_bytes, 16, 8, {
        ptr: 0,
        bytes: 8,
    });
    layout!(wsync_rank_list, 16, 8, {
        ranks: 0,
        count: 8,
    });
    layout!(wsync_dtype, 4, 2, {
        code: 0,
        bits: 1,
        lanes: 2,
    });
    layout!(wsync_fingerprint, 16, 1, {
        bytes: 0,
    });
    layout!(wsync_buffer_info, 1064, 8, {
        struct_size: 0,
        bytes: 8,
        side: 16,
        memory: 20,
        device: 24,
        name_bytes: 28,
        name: 32,
    });
    layout!(wsync_env_info, 48, 8, {
        struct_size: 0,
        name: 8,
        default_value: 16,
        value: 24,
        meaning: 32,
        is_set: 40,
        reserved: 44,
    });
    layout!(wsync_tensor, 152, 8, {
        name: 0,
        dim_count: 16,
        dtype: 20,
        shape: 24,
        granule: 88,
    });
    layout!(wsync_buffer, 32, 8, {
        name: 0,
        bytes: 16,
        memory: 24,
        device: 28,
    });
    layout!(wsync_view, 216, 8, {
        tensor: 0,
        buffer: 4,
        offset: 8,
        lo: 16,
        hi: 80,
        strides: 144,
        dtype: 208,
        reserved: 212,
    });
    layout!(wsync_alias, 32, 8, {
        alias: 0,
        name: 16,
    });
    layout!(wsync_rank_views, 112, 8, {
        struct_size: 0,
        rank: 8,
        copy: 12,
        tensors: 16,
        tensor_count: 24,
        tensor_stride: 32,
        buffers: 40,
        buffer_count: 48,
        buffer_stride: 56,
        views: 64,
        view_count: 72,
        view_stride: 80,
        aliases: 88,
        alias_count: 96,
        alias_stride: 104,
    });
    layout!(wsync_pair, 8, 4, {
        sender: 0,
        receiver: 4,
    });
    layout!(wsync_rank_load, 8, 4, {
        rank: 0,
        pair_count: 4,
    });
    layout!(wsync_moved_pair, 12, 4, {
        sender: 0,
        receiver: 4,
        avoided: 8,
    });
    layout!(wsync_mapping_options, 136, 8, {
        struct_size: 0,
        kind: 8,
        flags: 12,
        source_tp: 16,
        source_pp: 20,
        source_ep: 24,
        source_dp: 28,
        source_cp: 32,
        destination_tp: 36,
        destination_pp: 40,
        destination_ep: 44,
        replica_count: 48,
        reserved: 52,
        source_devices: 56,
        source_device_count: 64,
        destination_devices: 72,
        destination_device_count: 80,
        source_ranks: 88,
        source_list_count: 96,
        expert_source_ranks: 104,
        expert_source_list_count: 112,
        destination_ranks: 120,
        destination_list_count: 128,
    });
    layout!(wsync_two_stage_options, 80, 8, {
        struct_size: 0,
        avoid_same_device: 8,
        source_tp: 12,
        source_pp: 16,
        source_ep: 20,
        source_dp: 24,
        source_cp: 28,
        destination_tp: 32,
        destination_pp: 36,
        destination_ep: 40,
        replica_count: 44,
        source_ranks: 48,
        source_list_count: 56,
        destination_ranks: 64,
        destination_list_count: 72,
    });
    layout!(wsync_plan_options, 88, 8, {
        struct_size: 0,
        strategy: 8,
        source_rule: 12,
        staging_bytes_max: 16,
        direct_bytes_min: 24,
        bucket_count: 32,
        copy_count: 36,
        unused_allowed: 40,
        unused_allowed_count: 48,
        two_stage: 56,
        topology: 64,
        order: 72,
        spread: 76,
        source_relay: 80,
        reserved: 84,
    });
    layout!(wsync_simulate_options, 32, 8, {
        struct_size: 0,
        seed: 8,
        straggler_count: 16,
        straggler_percent: 20,
        failure_count: 24,
        reserved: 28,
    });
    layout!(wsync_host_group, 32, 8, {
        count: 0,
        gpus: 4,
        nics: 8,
        domain_hosts: 12,
        nic_bytes_per_s: 16,
        nvlink_bytes_per_s: 24,
    });
    layout!(wsync_placement_run, 24, 8, {
        ranks: 0,
        gpu: 16,
        ranks_per_gpu: 20,
    });
    layout!(wsync_speed_factor, 32, 8, {
        ranks: 0,
        nic_percent: 16,
        nvlink_percent: 20,
        is_drained: 24,
        reserved: 28,
    });
    layout!(wsync_fabric_cut, 40, 8, {
        name: 0,
        hosts: 16,
        is_by_rail: 20,
        out_bytes_per_s: 24,
        in_bytes_per_s: 32,
    });
    layout!(wsync_topology_options, 120, 8, {
        struct_size: 0,
        hosts: 8,
        host_count: 16,
        host_stride: 24,
        placement: 32,
        placement_count: 40,
        placement_stride: 48,
        speeds: 56,
        speed_count: 64,
        speed_stride: 72,
        cuts: 80,
        cut_count: 88,
        cut_stride: 96,
        latency_ns: 104,
        pack_bytes_per_s: 112,
    });
    layout!(wsync_rank_place, 80, 8, {
        struct_size: 0,
        rank: 8,
        reserved: 12,
        host: 16,
        device: 32,
        domain: 48,
        nics: 64,
        nic_count: 72,
    });
    layout!(wsync_site, 40, 8, {
        struct_size: 0,
        gpu: 8,
        host: 12,
        domain: 16,
        rail: 20,
        nic_bytes_per_s: 24,
        nvlink_bytes_per_s: 32,
    });
    layout!(wsync_number_range, 8, 4, {
        first: 0,
        end: 4,
    });
    layout!(wsync_selector, 96, 8, {
        struct_size: 0,
        include: 8,
        include_count: 16,
        exclude: 24,
        exclude_count: 32,
        layers: 40,
        layers_count: 48,
        experts: 56,
        experts_count: 64,
        copies: 72,
        copies_count: 80,
        trainable: 88,
        draft: 92,
    });
    layout!(wsync_program_info, 64, 8, {
        struct_size: 0,
        bytes_sent: 8,
        bytes_received: 16,
        bytes_local: 24,
        staging_bytes: 32,
        message_count: 40,
        direct_message_count: 48,
        peer_count: 56,
        buffer_count: 60,
    });
    layout!(wsync_transport_options, 48, 8, {
        struct_size: 0,
        kind: 8,
        rank: 12,
        ranks: 16,
        rank_count: 24,
        reserved: 28,
        ring_bytes_max: 32,
        nccl: 40,
    });
    layout!(wsync_nccl_options, 88, 8, {
        struct_size: 0,
        mode: 8,
        cta_count_min: 12,
        cta_count_max: 16,
        p2p_peer_count_max: 20,
        net_channel_count: 24,
        is_rebuildable: 28,
        comm: 32,
        id: 40,
        library: 48,
        rebuild_from: 56,
        on_abort: 64,
        on_abort_user: 72,
        ipc: 80,
        is_lending: 84,
    });
    layout!(wsync_session_options, 16, 8, {
        struct_size: 0,
        load_deadline_ns: 8,
    });
    layout!(wsync_binding, 184, 8, {
        name: 0,
        ptr: 16,
        bytes: 24,
        side: 32,
        memory: 36,
        device: 40,
        reserved: 44,
        dtype: 48,
        dim_count: 52,
        shape: 56,
        strides: 120,
    });
    layout!(wsync_request_options, 40, 8, {
        struct_size: 0,
        version: 8,
        agree_deadline_ns: 16,
        stall_deadline_ns: 24,
        flags: 32,
        reserved: 36,
    });
}

/// A value, field or initialiser of the header that no pin names could change
/// unseen. Versions are for changing.
#[test]
fn everything_in_the_header_is_pinned() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let (header, in_c, in_rust) = (
        read("include/weightsync.h"),
        read("tests/c/layout.c"),
        read("tests/abi.rs"),
    );
    let mut missing = Vec::new();
    let mut pinned = |text: &str, pin: String| {
        if !text.contains(&pin) {
            missing.push(pin);
        }
    };
    let mut pins = 0;
    let mut record: Option<&str> = None;
    for line in header.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["*", ..] => continue,
            ["typedef", "struct", name, "{"] => record = Some(name),
            [name, "=", value] if name.starts_with("WSYNC_") => {
                let value = value.trim_end_matches(',');
                pinned(&in_c, format!("VALUE({name}, {value});"));
                pinned(&in_rust, format!("        {name} = {value},"));
            }
            ["#define", name, ..] if name.ends_with("_INIT") => pinned(&in_c, name.to_string()),
            ["#define", name, _] if !name.starts_with("WSYNC_VERSION") => {
                pinned(&in_c, format!("VALUE({name}, "));
                pinned(&in_rust, format!("{name}, "));
            }
            [.., last] if line.starts_with("  ") && last.ends_with(';') => {
                let Some(name) = record else { continue };
                let field = last.trim_start_matches('*').trim_end_matches(';');
                let field = field.split('[').next().unwrap_or(field);
                let field = field
                    .trim_start_matches('(')
                    .split(')')
                    .next()
                    .unwrap_or(field);
                pinned(&in_c, format!("OFFSET({name}, {field}, "));
                pinned(&in_rust, format!("        {field}: "));
            }
            _ => {
                if let (Some(name), true) = (record, line.starts_with('}')) {
                    pinned(&in_c, format!("SIZE({name}, "));
                    pinned(&in_rust, format!("layout!({name}, "));
                    record = None;
                }
                continue;
            }
        }
        pins += 1;
    }
    assert!(pins > 300, "only {pins} things were found in the header");
    assert!(missing.is_empty(), "nobody pins {missing:#?}");
}

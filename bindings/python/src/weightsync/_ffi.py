# The header in ctypes, in its order: structures, argument types, result types.
# tests/test_drift.py compares every line with include/weightsync.h.

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

WSYNC_RANK_NONE = 4294967295
WSYNC_SELECT_ANY = 0
WSYNC_SELECT_ONLY = 1
WSYNC_SELECT_WITHOUT = 2
WSYNC_STEP_NONE = 4294967295
WSYNC_NO_DEADLINE = 18446744073709551615
WSYNC_DIM_COUNT_MAX = 8
WSYNC_NAME_BYTES_MAX = 1024
WSYNC_GREETING_BYTES_MAX = 512
WSYNC_NCCL_ID_BYTES = 128
WSYNC_VERSION = 256
WSYNC_VERSION_MAJOR = 0
WSYNC_VERSION_MINOR = 1
WSYNC_VERSION_PATCH = 0
WSYNC_ABI_VERSION = 0


class wsync_layout_p(c_void_p):
    pass


class wsync_mapping_p(c_void_p):
    pass


class wsync_plan_p(c_void_p):
    pass


class wsync_request_p(c_void_p):
    pass


class wsync_session_p(c_void_p):
    pass


class wsync_topology_p(c_void_p):
    pass


class wsync_transport_p(c_void_p):
    pass


wsync_log_fn = CFUNCTYPE(None, c_void_p, c_uint32, c_char_p)
wsync_nccl_abort_fn = CFUNCTYPE(None, c_void_p, c_char_p)


class wsync_error(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("status", c_int32),
        ("native_code", c_int32),
        ("native_domain", c_uint32),
        ("rank", c_uint32),
        ("message", c_char * 496),
    ]


class wsync_env_info(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("default_value", c_char_p),
        ("value", c_char_p),
        ("meaning", c_char_p),
        ("is_set", c_uint32),
        ("reserved", c_uint32),
    ]


class wsync_text(Structure):
    _fields_ = [
        ("ptr", c_char_p),
        ("bytes", c_size_t),
    ]


class wsync_dtype(Structure):
    _fields_ = [
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
    ]


class wsync_tensor(Structure):
    _fields_ = [
        ("name", wsync_text),
        ("dim_count", c_uint32),
        ("dtype", wsync_dtype),
        ("shape", c_uint64 * 8),
        ("granule", c_uint64 * 8),
    ]


class wsync_buffer(Structure):
    _fields_ = [
        ("name", wsync_text),
        ("bytes", c_uint64),
        ("memory", c_uint32),
        ("device", c_uint32),
    ]


class wsync_view(Structure):
    _fields_ = [
        ("tensor", c_uint32),
        ("buffer", c_uint32),
        ("offset", c_uint64),
        ("lo", c_uint64 * 8),
        ("hi", c_uint64 * 8),
        ("strides", c_int64 * 8),
        ("dtype", wsync_dtype),
        ("reserved", c_uint32),
    ]


class wsync_alias(Structure):
    _fields_ = [
        ("alias", wsync_text),
        ("name", wsync_text),
    ]


class wsync_rank_views(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("rank", c_uint32),
        ("copy", c_uint32),
        ("tensors", POINTER(wsync_tensor)),
        ("tensor_count", c_size_t),
        ("tensor_stride", c_size_t),
        ("buffers", POINTER(wsync_buffer)),
        ("buffer_count", c_size_t),
        ("buffer_stride", c_size_t),
        ("views", POINTER(wsync_view)),
        ("view_count", c_size_t),
        ("view_stride", c_size_t),
        ("aliases", POINTER(wsync_alias)),
        ("alias_count", c_size_t),
        ("alias_stride", c_size_t),
    ]


class wsync_buffer_info(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("bytes", c_uint64),
        ("side", c_uint32),
        ("memory", c_uint32),
        ("device", c_uint32),
        ("name_bytes", c_uint32),
        ("name", c_char * 1032),
    ]


class wsync_host_group(Structure):
    _fields_ = [
        ("count", c_uint32),
        ("gpus", c_uint32),
        ("nics", c_uint32),
        ("domain_hosts", c_uint32),
        ("nic_bytes_per_s", c_uint64),
        ("nvlink_bytes_per_s", c_uint64),
    ]


class wsync_rank_list(Structure):
    _fields_ = [
        ("ranks", POINTER(c_uint32)),
        ("count", c_size_t),
    ]


class wsync_placement_run(Structure):
    _fields_ = [
        ("ranks", wsync_rank_list),
        ("gpu", c_uint32),
        ("ranks_per_gpu", c_uint32),
    ]


class wsync_speed_factor(Structure):
    _fields_ = [
        ("ranks", wsync_rank_list),
        ("nic_percent", c_uint32),
        ("nvlink_percent", c_uint32),
        ("is_drained", c_uint32),
        ("reserved", c_uint32),
    ]


class wsync_fabric_cut(Structure):
    _fields_ = [
        ("name", wsync_text),
        ("hosts", c_uint32),
        ("is_by_rail", c_uint32),
        ("out_bytes_per_s", c_uint64),
        ("in_bytes_per_s", c_uint64),
    ]


class wsync_topology_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("hosts", POINTER(wsync_host_group)),
        ("host_count", c_size_t),
        ("host_stride", c_size_t),
        ("placement", POINTER(wsync_placement_run)),
        ("placement_count", c_size_t),
        ("placement_stride", c_size_t),
        ("speeds", POINTER(wsync_speed_factor)),
        ("speed_count", c_size_t),
        ("speed_stride", c_size_t),
        ("cuts", POINTER(wsync_fabric_cut)),
        ("cut_count", c_size_t),
        ("cut_stride", c_size_t),
        ("latency_ns", c_uint64),
        ("pack_bytes_per_s", c_uint64),
    ]


class wsync_rank_place(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("rank", c_uint32),
        ("reserved", c_uint32),
        ("host", wsync_text),
        ("device", wsync_text),
        ("domain", wsync_text),
        ("nics", POINTER(wsync_text)),
        ("nic_count", c_size_t),
    ]


class wsync_bytes(Structure):
    _fields_ = [
        ("ptr", c_void_p),
        ("bytes", c_size_t),
    ]


class wsync_site(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("gpu", c_uint32),
        ("host", c_uint32),
        ("domain", c_uint32),
        ("rail", c_uint32),
        ("nic_bytes_per_s", c_uint64),
        ("nvlink_bytes_per_s", c_uint64),
    ]


class wsync_mapping_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("kind", c_uint32),
        ("flags", c_uint32),
        ("source_tp", c_uint32),
        ("source_pp", c_uint32),
        ("source_ep", c_uint32),
        ("source_dp", c_uint32),
        ("source_cp", c_uint32),
        ("destination_tp", c_uint32),
        ("destination_pp", c_uint32),
        ("destination_ep", c_uint32),
        ("replica_count", c_uint32),
        ("reserved", c_uint32),
        ("source_devices", POINTER(c_uint32)),
        ("source_device_count", c_size_t),
        ("destination_devices", POINTER(c_uint32)),
        ("destination_device_count", c_size_t),
        ("source_ranks", POINTER(wsync_rank_list)),
        ("source_list_count", c_size_t),
        ("expert_source_ranks", POINTER(wsync_rank_list)),
        ("expert_source_list_count", c_size_t),
        ("destination_ranks", POINTER(wsync_rank_list)),
        ("destination_list_count", c_size_t),
    ]


class wsync_pair(Structure):
    _fields_ = [
        ("sender", c_uint32),
        ("receiver", c_uint32),
    ]


class wsync_rank_load(Structure):
    _fields_ = [
        ("rank", c_uint32),
        ("pair_count", c_uint32),
    ]


class wsync_moved_pair(Structure):
    _fields_ = [
        ("sender", c_uint32),
        ("receiver", c_uint32),
        ("avoided", c_uint32),
    ]


class wsync_two_stage_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("avoid_same_device", c_uint32),
        ("source_tp", c_uint32),
        ("source_pp", c_uint32),
        ("source_ep", c_uint32),
        ("source_dp", c_uint32),
        ("source_cp", c_uint32),
        ("destination_tp", c_uint32),
        ("destination_pp", c_uint32),
        ("destination_ep", c_uint32),
        ("replica_count", c_uint32),
        ("source_ranks", POINTER(wsync_rank_list)),
        ("source_list_count", c_size_t),
        ("destination_ranks", POINTER(wsync_rank_list)),
        ("destination_list_count", c_size_t),
    ]


class wsync_plan_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("strategy", c_uint32),
        ("source_rule", c_uint32),
        ("staging_bytes_max", c_uint64),
        ("direct_bytes_min", c_uint64),
        ("bucket_count", c_uint32),
        ("copy_count", c_uint32),
        ("unused_allowed", POINTER(wsync_text)),
        ("unused_allowed_count", c_size_t),
        ("two_stage", POINTER(wsync_two_stage_options)),
        ("topology", wsync_topology_p),
        ("order", c_uint32),
        ("spread", c_uint32),
        ("source_relay", c_uint32),
        ("reserved", c_uint32),
    ]


class wsync_number_range(Structure):
    _fields_ = [
        ("first", c_uint32),
        ("end", c_uint32),
    ]


class wsync_selector(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("include", POINTER(wsync_text)),
        ("include_count", c_size_t),
        ("exclude", POINTER(wsync_text)),
        ("exclude_count", c_size_t),
        ("layers", POINTER(wsync_number_range)),
        ("layers_count", c_size_t),
        ("experts", POINTER(wsync_number_range)),
        ("experts_count", c_size_t),
        ("copies", POINTER(c_uint32)),
        ("copies_count", c_size_t),
        ("trainable", c_uint32),
        ("draft", c_uint32),
    ]


class wsync_fingerprint(Structure):
    _fields_ = [
        ("bytes", c_uint8 * 16),
    ]


class wsync_program_info(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("bytes_sent", c_uint64),
        ("bytes_received", c_uint64),
        ("bytes_local", c_uint64),
        ("staging_bytes", c_uint64),
        ("message_count", c_uint64),
        ("direct_message_count", c_uint64),
        ("peer_count", c_uint32),
        ("buffer_count", c_uint32),
    ]


class wsync_simulate_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("seed", c_uint64),
        ("straggler_count", c_uint32),
        ("straggler_percent", c_uint32),
        ("failure_count", c_uint32),
        ("reserved", c_uint32),
    ]


class wsync_nccl_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("mode", c_uint32),
        ("cta_count_min", c_uint32),
        ("cta_count_max", c_uint32),
        ("p2p_peer_count_max", c_uint32),
        ("net_channel_count", c_uint32),
        ("is_rebuildable", c_uint32),
        ("comm", c_void_p),
        ("id", c_void_p),
        ("library", c_char_p),
        ("rebuild_from", wsync_transport_p),
        ("on_abort", wsync_nccl_abort_fn),
        ("on_abort_user", c_void_p),
        ("ipc", c_uint32),
        ("is_lending", c_uint32),
    ]


class wsync_transport_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("kind", c_uint32),
        ("rank", c_uint32),
        ("ranks", POINTER(c_uint32)),
        ("rank_count", c_uint32),
        ("reserved", c_uint32),
        ("ring_bytes_max", c_uint64),
        ("nccl", POINTER(wsync_nccl_options)),
    ]


class wsync_session_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("load_deadline_ns", c_uint64),
    ]


class wsync_binding(Structure):
    _fields_ = [
        ("name", wsync_text),
        ("ptr", c_void_p),
        ("bytes", c_uint64),
        ("side", c_uint32),
        ("memory", c_uint32),
        ("device", c_uint32),
        ("reserved", c_uint32),
        ("dtype", wsync_dtype),
        ("dim_count", c_uint32),
        ("shape", c_uint64 * 8),
        ("strides", c_int64 * 8),
    ]


class wsync_request_options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("version", c_uint64),
        ("agree_deadline_ns", c_uint64),
        ("stall_deadline_ns", c_uint64),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


error_p = POINTER(wsync_error)

# Name, result and arguments of every function.
FUNCTIONS: list[tuple[str, Any, list[Any]]] = [
    ("wsync_version", c_uint32, []),
    ("wsync_version_string", c_char_p, []),
    ("wsync_abi_version", c_uint32, []),
    ("wsync_library_file", c_char_p, []),
    ("wsync_header_check", c_int32, [c_uint32, c_uint32, POINTER(wsync_error)]),
    ("wsync_status_name", c_char_p, [c_int32]),
    ("wsync_status_is_retryable", c_int32, [c_int32]),
    ("wsync_status_is_transport_lost", c_int32, [c_int32]),
    ("wsync_set_log", c_int32, [wsync_log_fn, c_void_p, c_uint32, error_p]),
    ("wsync_env_count", c_size_t, []),
    ("wsync_env_at", c_int32, [c_size_t, POINTER(wsync_env_info), error_p]),
    (
        "wsync_layout_create_from_json",
        c_int32,
        [c_char_p, c_size_t, POINTER(wsync_layout_p), error_p],
    ),
    (
        "wsync_layout_from_model",
        c_int32,
        [
            c_char_p,
            c_size_t,
            c_char_p,
            c_char_p,
            c_size_t,
            c_uint32,
            POINTER(wsync_layout_p),
            error_p,
        ],
    ),
    (
        "wsync_layout_create_from_views",
        c_int32,
        [POINTER(wsync_rank_views), POINTER(wsync_layout_p), error_p],
    ),
    (
        "wsync_layout_create_from_bytes",
        c_int32,
        [c_void_p, c_size_t, POINTER(wsync_layout_p), error_p],
    ),
    (
        "wsync_layout_merge",
        c_int32,
        [POINTER(wsync_layout_p), c_size_t, POINTER(wsync_layout_p), error_p],
    ),
    (
        "wsync_layout_serialize",
        c_int32,
        [wsync_layout_p, c_void_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_layout_to_json",
        c_int32,
        [wsync_layout_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_layout_check",
        c_int32,
        [wsync_layout_p, wsync_layout_p, c_char_p, c_size_t, POINTER(c_size_t), POINTER(c_size_t), error_p],
    ),
    (
        "wsync_layout_check_json",
        c_int32,
        [c_char_p, c_size_t, c_char_p, c_size_t, c_char_p, c_size_t, POINTER(c_size_t), POINTER(c_size_t), error_p],
    ),
    (
        "wsync_layout_describe",
        c_int32,
        [wsync_layout_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_layout_rank_count", c_uint32, [wsync_layout_p]),
    ("wsync_layout_tensor_count", c_uint32, [wsync_layout_p]),
    ("wsync_layout_copy_count", c_uint32, [wsync_layout_p]),
    ("wsync_layout_buffer_count", c_size_t, [wsync_layout_p, c_uint32]),
    (
        "wsync_layout_buffer_at",
        c_int32,
        [wsync_layout_p, c_uint32, c_size_t, POINTER(wsync_buffer_info), error_p],
    ),
    ("wsync_layout_destroy", None, [wsync_layout_p]),
    (
        "wsync_topology_create",
        c_int32,
        [POINTER(wsync_topology_options), POINTER(wsync_topology_p), error_p],
    ),
    (
        "wsync_topology_create_from_json",
        c_int32,
        [c_char_p, c_size_t, POINTER(wsync_topology_p), error_p],
    ),
    (
        "wsync_topology_place",
        c_int32,
        [POINTER(wsync_rank_place), c_void_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_topology_create_from_places",
        c_int32,
        [
            POINTER(wsync_bytes),
            c_size_t,
            POINTER(wsync_topology_options),
            POINTER(wsync_topology_p),
            error_p,
        ],
    ),
    (
        "wsync_topology_to_json",
        c_int32,
        [wsync_topology_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_topology_site", c_int32, [wsync_topology_p, c_uint32, POINTER(wsync_site), error_p]),
    ("wsync_topology_destroy", None, [wsync_topology_p]),
    (
        "wsync_mapping_create",
        c_int32,
        [POINTER(wsync_mapping_options), POINTER(wsync_mapping_p), error_p],
    ),
    (
        "wsync_mapping_pairs",
        c_int32,
        [wsync_mapping_p, c_uint32, POINTER(wsync_pair), c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_mapping_sends",
        c_int32,
        [
            wsync_mapping_p,
            c_uint32,
            c_uint32,
            POINTER(c_uint32),
            c_size_t,
            POINTER(c_size_t),
            error_p,
        ],
    ),
    (
        "wsync_mapping_receives",
        c_int32,
        [
            wsync_mapping_p,
            c_uint32,
            c_uint32,
            POINTER(c_uint32),
            c_size_t,
            POINTER(c_size_t),
            error_p,
        ],
    ),
    (
        "wsync_mapping_loads",
        c_int32,
        [
            wsync_mapping_p,
            c_uint32,
            POINTER(wsync_rank_load),
            c_size_t,
            POINTER(c_size_t),
            error_p,
        ],
    ),
    (
        "wsync_mapping_moved",
        c_int32,
        [wsync_mapping_p, POINTER(wsync_moved_pair), c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_mapping_group_size", c_uint32, [wsync_mapping_p]),
    ("wsync_mapping_regroup_kind", c_uint32, [wsync_mapping_p]),
    ("wsync_mapping_regroup_count", c_size_t, [wsync_mapping_p]),
    (
        "wsync_mapping_regroup_at",
        c_int32,
        [wsync_mapping_p, c_size_t, POINTER(c_uint32), c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_mapping_report",
        c_int32,
        [wsync_mapping_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_mapping_destroy", None, [wsync_mapping_p]),
    (
        "wsync_plan_create",
        c_int32,
        [wsync_layout_p, wsync_layout_p, POINTER(wsync_plan_options), POINTER(wsync_plan_p), error_p],
    ),
    (
        "wsync_plan_create_from_bytes",
        c_int32,
        [c_void_p, c_size_t, POINTER(wsync_plan_p), error_p],
    ),
    (
        "wsync_plan_replan",
        c_int32,
        [
            wsync_plan_p,
            wsync_layout_p,
            wsync_layout_p,
            wsync_topology_p,
            POINTER(wsync_plan_p),
            error_p,
        ],
    ),
    (
        "wsync_plan_select",
        c_int32,
        [wsync_plan_p, POINTER(wsync_selector), POINTER(wsync_plan_p), error_p],
    ),
    (
        "wsync_plan_serialize",
        c_int32,
        [wsync_plan_p, c_void_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_plan_fingerprint", c_int32, [wsync_plan_p, POINTER(wsync_fingerprint), error_p]),
    ("wsync_plan_verify", c_int32, [wsync_plan_p, error_p]),
    ("wsync_plan_rank_count", c_uint32, [wsync_plan_p]),
    (
        "wsync_plan_ranks",
        c_int32,
        [wsync_plan_p, POINTER(c_uint32), c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_plan_tensor_count", c_uint32, [wsync_plan_p]),
    ("wsync_plan_step_count", c_uint32, [wsync_plan_p]),
    (
        "wsync_plan_program_info",
        c_int32,
        [wsync_plan_p, c_uint32, POINTER(wsync_program_info), error_p],
    ),
    (
        "wsync_plan_program_infos",
        c_int32,
        [
            wsync_plan_p,
            POINTER(c_uint32),
            c_size_t,
            POINTER(wsync_program_info),
            c_size_t,
            error_p,
        ],
    ),
    ("wsync_plan_buffer_count", c_size_t, [wsync_plan_p, c_uint32]),
    (
        "wsync_plan_buffer_at",
        c_int32,
        [wsync_plan_p, c_uint32, c_size_t, POINTER(wsync_buffer_info), error_p],
    ),
    (
        "wsync_plan_tensor_last_step",
        c_int32,
        [wsync_plan_p, c_uint32, c_char_p, POINTER(c_uint32), error_p],
    ),
    (
        "wsync_plan_rank_ops",
        c_int32,
        [wsync_plan_p, c_uint32, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_plan_origin",
        c_int32,
        [
            wsync_plan_p,
            c_uint32,
            c_char_p,
            POINTER(c_uint64),
            c_size_t,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            error_p,
        ],
    ),
    (
        "wsync_plan_certificate",
        c_int32,
        [wsync_plan_p, wsync_topology_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_plan_simulate",
        c_int32,
        [
            wsync_plan_p,
            wsync_topology_p,
            POINTER(wsync_simulate_options),
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            error_p,
        ],
    ),
    ("wsync_plan_report", c_int32, [wsync_plan_p, c_char_p, c_size_t, POINTER(c_size_t), error_p]),
    (
        "wsync_plan_diff",
        c_int32,
        [wsync_plan_p, wsync_plan_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_plan_destroy", None, [wsync_plan_p]),
    (
        "wsync_transport_nccl_id",
        c_int32,
        [c_char_p, c_void_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    ("wsync_transport_nccl_version", c_int32, [c_char_p, POINTER(c_uint32), error_p]),
    (
        "wsync_transport_create",
        c_int32,
        [POINTER(wsync_transport_options), POINTER(wsync_transport_p), error_p],
    ),
    (
        "wsync_transport_greeting",
        c_int32,
        [wsync_transport_p, c_void_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_transport_meet",
        c_int32,
        [wsync_transport_p, POINTER(wsync_bytes), c_size_t, c_uint64, error_p],
    ),
    (
        "wsync_transport_rendezvous",
        c_int32,
        [wsync_transport_p, c_char_p, c_void_p, c_size_t, c_uint64, error_p],
    ),
    ("wsync_transport_rank", c_uint32, [wsync_transport_p]),
    ("wsync_transport_rank_count", c_uint32, [wsync_transport_p]),
    ("wsync_transport_status", c_int32, [wsync_transport_p, error_p]),
    ("wsync_transport_abort", c_int32, [wsync_transport_p, c_char_p, error_p]),
    ("wsync_transport_finalize", c_int32, [wsync_transport_p, c_uint64, error_p]),
    ("wsync_transport_destroy", None, [wsync_transport_p]),
    (
        "wsync_session_create",
        c_int32,
        [wsync_transport_p, POINTER(wsync_session_options), POINTER(wsync_session_p), error_p],
    ),
    (
        "wsync_session_bind",
        c_int32,
        [wsync_session_p, c_uint32, c_char_p, c_void_p, c_uint64, c_uint32, c_uint32, error_p],
    ),
    (
        "wsync_session_bind_many",
        c_int32,
        [wsync_session_p, POINTER(wsync_binding), c_size_t, c_size_t, error_p],
    ),
    ("wsync_session_unbind", c_int32, [wsync_session_p, c_uint32, c_char_p, error_p]),
    ("wsync_session_load", c_int32, [wsync_session_p, wsync_plan_p, POINTER(c_uint32), error_p]),
    ("wsync_session_unload", c_int32, [wsync_session_p, c_uint32, error_p]),
    ("wsync_session_finalize", c_int32, [wsync_session_p, c_uint64, error_p]),
    ("wsync_session_abort", c_int32, [wsync_session_p, c_char_p, error_p]),
    ("wsync_session_destroy", None, [wsync_session_p]),
    (
        "wsync_request_create",
        c_int32,
        [wsync_session_p, c_uint32, POINTER(wsync_request_p), error_p],
    ),
    ("wsync_request_prepare", c_int32, [wsync_request_p, POINTER(wsync_request_options), error_p]),
    ("wsync_request_wait_ready", c_int32, [wsync_request_p, c_uint64, error_p]),
    ("wsync_request_start", c_int32, [wsync_request_p, c_void_p, error_p]),
    (
        "wsync_request_submit",
        c_int32,
        [wsync_request_p, POINTER(wsync_request_options), c_void_p, error_p],
    ),
    ("wsync_request_test", c_int32, [wsync_request_p, error_p]),
    ("wsync_request_wait", c_int32, [wsync_request_p, c_uint64, error_p]),
    ("wsync_request_state", c_uint32, [wsync_request_p]),
    (
        "wsync_request_outcome",
        c_int32,
        [wsync_request_p, POINTER(c_uint32), POINTER(c_uint32), error_p],
    ),
    ("wsync_request_step_count", c_uint32, [wsync_request_p]),
    ("wsync_request_steps_done", c_uint32, [wsync_request_p]),
    (
        "wsync_request_report",
        c_int32,
        [wsync_request_p, c_char_p, c_size_t, POINTER(c_size_t), error_p],
    ),
    (
        "wsync_request_tensor_digest",
        c_int32,
        [wsync_request_p, c_char_p, POINTER(c_uint64), error_p],
    ),
    ("wsync_request_destroy", None, [wsync_request_p]),
]

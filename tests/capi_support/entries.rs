//! What the arguments of every function are.

use super::*;
use std::mem::offset_of;
use weightsync::capi::env::wsync_env_info;
use weightsync::capi::plan::*;
use weightsync::capi::session::*;
use weightsync::capi::topology::*;
use weightsync::capi::types::wsync_status::*;

use Arg::*;
use Contract::{Destroy, Getter, Plain, Status};
use Noun::*;
use State::*;

type Entries = BTreeMap<&'static str, (State, Contract)>;

/// An entry for every function of the header, with arguments from `w`.
pub fn entries(w: &World<'_>) -> Entries {
    let mut e = Entries::new();
    globals(&mut e, w);
    layouts(&mut e, w);
    topologies(&mut e, w);
    mappings(&mut e);
    plans(&mut e, w);
    transports(&mut e, w);
    sessions(&mut e, w);
    requests(&mut e, w);
    e
}

fn add(e: &mut Entries, name: &'static str, state: State, contract: Contract) {
    assert!(
        e.insert(name, (state, contract)).is_none(),
        "{name} has two entries"
    );
}

/// Succeeds as often as it is called.
fn ok(args: Vec<Arg>) -> Contract {
    Status(Good::Ok, args)
}

/// Succeeds once.
fn once(args: Vec<Arg>) -> Contract {
    Status(Good::Once, args)
}

fn json() -> Arg {
    Bytes(LAYOUT.as_bytes().to_vec())
}

fn out_buffer_info() -> Arg {
    OutStruct(size_of::<wsync_buffer_info>())
}

fn globals(e: &mut Entries, w: &World<'_>) {
    for name in [
        "wsync_version",
        "wsync_version_string",
        "wsync_abi_version",
        "wsync_library_file",
        "wsync_status_name",
        "wsync_status_is_retryable",
        "wsync_status_is_transport_lost",
        "wsync_env_count",
    ] {
        add(e, name, Alone, Plain);
    }
    let args = vec![Number(0), Number(0), Err];
    add(e, "wsync_header_check", Alone, ok(args));
    let args = vec![Number(0), Number(0), Enum(0), Err];
    add(e, "wsync_set_log", Alone, ok(args));
    let last = w.lib.call_words("wsync_env_count", &[]) as usize - 1;
    let args = vec![Index(last), OutStruct(size_of::<wsync_env_info>()), Err];
    add(e, "wsync_env_at", Alone, ok(args));
}

fn layouts(e: &mut Entries, w: &World<'_>) {
    let args = vec![json(), OutHandle(Layout), Err];
    add(e, "wsync_layout_create_from_json", Alone, ok(args));
    let config = include_bytes!("../models/llama-3.1-8b.json").to_vec();
    let args = vec![
        Bytes(config),
        Name("megatron"),
        Bytes(b"tp=2".to_vec()),
        Number(0),
        OutHandle(Layout),
        Err,
    ];
    add(e, "wsync_layout_from_model", Alone, ok(args));
    let args = vec![
        Struct(bytes_of(views()), Vec::new()),
        OutHandle(Layout),
        Err,
    ];
    add(e, "wsync_layout_create_from_views", Alone, ok(args));
    let args = vec![Bytes(w.layout_bytes.clone()), OutHandle(Layout), Err];
    add(e, "wsync_layout_create_from_bytes", Alone, ok(args));
    let handles = w.layout.to_ne_bytes().to_vec();
    let args = vec![Items(handles, size_of::<usize>()), OutHandle(Layout), Err];
    add(e, "wsync_layout_merge", Alone, ok(args));
    for name in [
        "wsync_layout_serialize",
        "wsync_layout_to_json",
        "wsync_layout_describe",
    ] {
        add(e, name, Alone, ok(vec![Handle(Layout), Buffer(1), Err]));
    }
    let args = vec![
        Handle(Layout),
        OptionalHandle(Layout),
        Buffer(1),
        Out(8),
        Err,
    ];
    add(e, "wsync_layout_check", Alone, ok(args));
    let args = vec![json(), OptionalBytes, Buffer(1), Out(8), Err];
    add(e, "wsync_layout_check_json", Alone, ok(args));
    for name in [
        "wsync_layout_rank_count",
        "wsync_layout_tensor_count",
        "wsync_layout_copy_count",
        "wsync_layout_buffer_count",
    ] {
        add(e, name, Alone, Getter(Layout, 0));
    }
    let args = vec![Handle(Layout), Rank, Index(0), out_buffer_info(), Err];
    add(e, "wsync_layout_buffer_at", Alone, ok(args));
    add(e, "wsync_layout_destroy", Alone, Destroy(Layout));
}

fn optional_topology_options() -> Arg {
    let hosts = offset_of!(wsync_topology_options, host_count);
    let cuts = offset_of!(wsync_topology_options, cut_count);
    let pack = offset_of!(wsync_topology_options, pack_bytes_per_s);
    let bad = vec![
        (hosts, 1, WSYNC_ERR_INVALID_ARGUMENT),
        (cuts, u64::MAX, WSYNC_ERR_LIMIT_EXCEEDED),
        (pack, u64::MAX, WSYNC_ERR_INVALID_ARGUMENT),
    ];
    OptionalStruct(bytes_of(topology_options()), bad)
}

fn topologies(e: &mut Entries, w: &World<'_>) {
    let args = vec![optional_topology_options(), OutHandle(Topology), Err];
    add(e, "wsync_topology_create", Alone, ok(args));
    let json = Bytes(TOPOLOGY.as_bytes().to_vec());
    let args = vec![json, OutHandle(Topology), Err];
    add(e, "wsync_topology_create_from_json", Alone, ok(args));
    let nics = offset_of!(wsync_rank_place, nic_count);
    let bad = vec![
        (
            offset_of!(wsync_rank_place, reserved),
            1,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (nics, 1, WSYNC_ERR_INVALID_ARGUMENT),
        (nics, u64::MAX, WSYNC_ERR_LIMIT_EXCEEDED),
    ];
    let args = vec![Struct(bytes_of(rank_place()), bad), Buffer(1), Err];
    add(e, "wsync_topology_place", Alone, ok(args));
    let at = w.place_bytes.as_ptr().expose_provenance();
    let place = [at.to_ne_bytes(), w.place_bytes.len().to_ne_bytes()].concat();
    let args = vec![
        Items(place, size_of::<wsync_bytes>()),
        optional_topology_options(),
        OutHandle(Topology),
        Err,
    ];
    add(e, "wsync_topology_create_from_places", Alone, ok(args));
    let args = vec![Handle(Topology), Buffer(1), Err];
    add(e, "wsync_topology_to_json", Alone, ok(args));
    let site = OutStruct(size_of::<wsync_site>());
    let args = vec![Handle(Topology), Rank, site, Err];
    add(e, "wsync_topology_site", Alone, ok(args));
    add(e, "wsync_topology_destroy", Alone, Destroy(Topology));
}

fn mappings(e: &mut Entries) {
    let lists = offset_of!(wsync_mapping_options, source_list_count);
    let bad = vec![
        (
            offset_of!(wsync_mapping_options, kind),
            99,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (
            offset_of!(wsync_mapping_options, flags),
            1 << 31,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (
            offset_of!(wsync_mapping_options, reserved),
            1,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (lists, 1, WSYNC_ERR_INVALID_ARGUMENT),
        (lists, u64::MAX, WSYNC_ERR_LIMIT_EXCEEDED),
    ];
    let args = vec![
        Struct(bytes_of(mapping_options()), bad),
        OutHandle(Mapping),
        Err,
    ];
    add(e, "wsync_mapping_create", Alone, ok(args));
    let args = vec![
        Handle(Mapping),
        Enum(1),
        Buffer(size_of::<wsync_pair>()),
        Err,
    ];
    add(e, "wsync_mapping_pairs", Alone, ok(args));
    let args = vec![Handle(Mapping), Enum(1), Number(0), Buffer(4), Err];
    add(e, "wsync_mapping_sends", Alone, ok(args));
    let args = vec![Handle(Mapping), Enum(1), Number(2), Buffer(4), Err];
    add(e, "wsync_mapping_receives", Alone, ok(args));
    let args = vec![
        Handle(Mapping),
        Enum(1),
        Buffer(size_of::<wsync_rank_load>()),
        Err,
    ];
    add(e, "wsync_mapping_loads", Alone, ok(args));
    let args = vec![Handle(Mapping), Buffer(size_of::<wsync_moved_pair>()), Err];
    add(e, "wsync_mapping_moved", Alone, ok(args));
    for name in [
        "wsync_mapping_group_size",
        "wsync_mapping_regroup_kind",
        "wsync_mapping_regroup_count",
    ] {
        add(e, name, Alone, Getter(Mapping, 0));
    }
    // A mapping of two stages regroups nothing.
    let none = Good::Answers(WSYNC_ERR_NOT_FOUND);
    let args = vec![Handle(Mapping), Index(0), Buffer(4), Err];
    add(e, "wsync_mapping_regroup_at", Alone, Status(none, args));
    let args = vec![Handle(Mapping), Buffer(1), Err];
    add(e, "wsync_mapping_report", Alone, ok(args));
    add(e, "wsync_mapping_destroy", Alone, Destroy(Mapping));
}

fn plan_options() -> Arg {
    let options = wsync_plan_options {
        struct_size: size_of::<wsync_plan_options>(),
        strategy: 0,
        source_rule: 0,
        staging_bytes_max: 0,
        direct_bytes_min: 0,
        bucket_count: 0,
        copy_count: 0,
        unused_allowed: std::ptr::null(),
        unused_allowed_count: 0,
        two_stage: std::ptr::null(),
        topology: std::ptr::null(),
        order: 0,
        spread: 0,
        source_relay: 0,
        reserved: 0,
    };
    let unknown = |at| (at, 99, WSYNC_ERR_UNSUPPORTED);
    let buckets = offset_of!(wsync_plan_options, bucket_count);
    let unused = offset_of!(wsync_plan_options, unused_allowed_count);
    let bad = vec![
        unknown(offset_of!(wsync_plan_options, strategy)),
        unknown(offset_of!(wsync_plan_options, source_rule)),
        unknown(offset_of!(wsync_plan_options, order)),
        unknown(offset_of!(wsync_plan_options, spread)),
        // Goes with relay and fanout.
        (
            offset_of!(wsync_plan_options, source_relay),
            1,
            WSYNC_ERR_INVALID_ARGUMENT,
        ),
        (buckets, u64::from(u32::MAX), WSYNC_ERR_LIMIT_EXCEEDED),
        (unused, 1, WSYNC_ERR_INVALID_ARGUMENT),
        (unused, u64::MAX, WSYNC_ERR_LIMIT_EXCEEDED),
    ];
    OptionalStruct(bytes_of(options), bad)
}

fn selector() -> Arg {
    let selector = wsync_selector {
        struct_size: size_of::<wsync_selector>(),
        include: std::ptr::null(),
        include_count: 0,
        exclude: std::ptr::null(),
        exclude_count: 0,
        layers: std::ptr::null(),
        layers_count: 0,
        experts: std::ptr::null(),
        experts_count: 0,
        copies: std::ptr::null(),
        copies_count: 0,
        trainable: WSYNC_SELECT_ANY,
        draft: WSYNC_SELECT_ANY,
    };
    let layers = offset_of!(wsync_selector, layers_count);
    let copies = offset_of!(wsync_selector, copies_count);
    let draft = offset_of!(wsync_selector, draft);
    let include = offset_of!(wsync_selector, include_count);
    let exclude = offset_of!(wsync_selector, exclude_count);
    let bad = vec![
        (include, 1, WSYNC_ERR_INVALID_ARGUMENT),
        (exclude, u64::MAX, WSYNC_ERR_LIMIT_EXCEEDED),
        (layers, 1, WSYNC_ERR_INVALID_ARGUMENT),
        (copies, u64::MAX, WSYNC_ERR_LIMIT_EXCEEDED),
        (draft, 3, WSYNC_ERR_INVALID_ARGUMENT),
    ];
    Struct(bytes_of(selector), bad)
}

fn plans(e: &mut Entries, w: &World<'_>) {
    let args = vec![
        Handle(Layout),
        Handle(Layout),
        plan_options(),
        OutHandle(Plan),
        Err,
    ];
    add(e, "wsync_plan_create", Alone, ok(args));
    let args = vec![Bytes(w.plan_bytes.clone()), OutHandle(Plan), Err];
    add(e, "wsync_plan_create_from_bytes", Alone, ok(args));
    let args = vec![
        Handle(Plan),
        OptionalHandle(Layout),
        OptionalHandle(Layout),
        OptionalHandle(Topology),
        OutHandle(Plan),
        Err,
    ];
    add(e, "wsync_plan_replan", Alone, ok(args));
    let args = vec![Handle(Plan), selector(), OutHandle(Plan), Err];
    add(e, "wsync_plan_select", Alone, ok(args));
    for name in ["wsync_plan_serialize", "wsync_plan_report"] {
        add(e, name, Alone, ok(vec![Handle(Plan), Buffer(1), Err]));
    }
    let args = vec![Handle(Plan), Out(size_of::<wsync_fingerprint>()), Err];
    add(e, "wsync_plan_fingerprint", Alone, ok(args));
    add(e, "wsync_plan_verify", Alone, ok(vec![Handle(Plan), Err]));
    for name in [
        "wsync_plan_rank_count",
        "wsync_plan_tensor_count",
        "wsync_plan_step_count",
        "wsync_plan_buffer_count",
    ] {
        add(e, name, Alone, Getter(Plan, 0));
    }
    add(
        e,
        "wsync_plan_ranks",
        Alone,
        ok(vec![Handle(Plan), Buffer(4), Err]),
    );
    let info = OutStruct(size_of::<wsync_program_info>());
    let args = vec![Handle(Plan), Rank, info, Err];
    add(e, "wsync_plan_program_info", Alone, ok(args));
    let size = size_of::<wsync_program_info>();
    let ranks = Items(vec![0; 4], 4);
    let args = vec![Handle(Plan), ranks, Out(size), Number(size), Err];
    add(e, "wsync_plan_program_infos", Alone, ok(args));
    let args = vec![Handle(Plan), Rank, Index(1), out_buffer_info(), Err];
    add(e, "wsync_plan_buffer_at", Alone, ok(args));
    let args = vec![Handle(Plan), Rank, Name("w"), Out(4), Err];
    add(e, "wsync_plan_tensor_last_step", Alone, ok(args));
    let args = vec![Handle(Plan), Rank, Buffer(1), Err];
    add(e, "wsync_plan_rank_ops", Alone, ok(args));
    let index = Items(vec![0; 2 * 8], 8);
    let args = vec![Handle(Plan), Rank, Name("w"), index, Buffer(1), Err];
    add(e, "wsync_plan_origin", Alone, ok(args));
    let args = vec![Handle(Plan), Handle(Plan), Buffer(1), Err];
    add(e, "wsync_plan_diff", Alone, ok(args));
    let args = vec![Handle(Plan), OptionalHandle(Topology), Buffer(1), Err];
    add(e, "wsync_plan_certificate", Alone, ok(args));
    let simulate = wsync_simulate_options {
        struct_size: size_of::<wsync_simulate_options>(),
        seed: 0,
        straggler_count: 0,
        straggler_percent: 0,
        failure_count: 0,
        reserved: 0,
    };
    let bad = vec![
        (
            offset_of!(wsync_simulate_options, failure_count),
            9,
            WSYNC_ERR_INVALID_ARGUMENT,
        ),
        (
            offset_of!(wsync_simulate_options, straggler_percent),
            101,
            WSYNC_ERR_INVALID_ARGUMENT,
        ),
        (
            offset_of!(wsync_simulate_options, reserved),
            1,
            WSYNC_ERR_UNSUPPORTED,
        ),
    ];
    let args = vec![
        Handle(Plan),
        OptionalHandle(Topology),
        OptionalStruct(bytes_of(simulate), bad),
        Buffer(1),
        Err,
    ];
    add(e, "wsync_plan_simulate", Alone, ok(args));
    add(e, "wsync_plan_destroy", Alone, Destroy(Plan));
}

fn transports(e: &mut Entries, w: &World<'_>) {
    let count = offset_of!(wsync_transport_options, rank_count);
    let bad = vec![
        (
            offset_of!(wsync_transport_options, kind),
            99,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (
            offset_of!(wsync_transport_options, rank),
            1,
            WSYNC_ERR_INVALID_ARGUMENT,
        ),
        (
            offset_of!(wsync_transport_options, reserved),
            1,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (count, 0, WSYNC_ERR_INVALID_ARGUMENT),
        (count, u64::from(u32::MAX), WSYNC_ERR_LIMIT_EXCEEDED),
    ];
    let args = vec![
        Struct(bytes_of(transport_options()), bad),
        OutHandle(Transport),
        Err,
    ];
    add(e, "wsync_transport_create", Alone, ok(args));
    let args = vec![Handle(Transport), Buffer(1), Err];
    add(e, "wsync_transport_greeting", Alone, ok(args));
    let at = w.greeting.as_ptr().expose_provenance();
    let greeting = [at.to_ne_bytes(), w.greeting.len().to_ne_bytes()].concat();
    let greetings = Items(greeting, size_of::<wsync_bytes>());
    let args = vec![Handle(Transport), greetings, Number(usize::MAX), Err];
    add(e, "wsync_transport_meet", Alone, once(args));
    let token = Bytes(b"a token of the test".to_vec());
    let address = Name("127.0.0.1:0");
    let args = vec![
        Handle(Transport),
        address,
        token,
        Number(10_000_000_000),
        Err,
    ];
    add(e, "wsync_transport_rendezvous", Alone, once(args));
    add(
        e,
        "wsync_transport_rank",
        Alone,
        Getter(Transport, WSYNC_RANK_NONE),
    );
    add(e, "wsync_transport_rank_count", Alone, Getter(Transport, 0));
    add(
        e,
        "wsync_transport_status",
        Loaded,
        ok(vec![Handle(Transport), Err]),
    );
    let args = vec![Handle(Transport), Name("a test"), Err];
    add(e, "wsync_transport_abort", Loaded, ok(args));
    let args = vec![Handle(Transport), Number(usize::MAX), Err];
    add(e, "wsync_transport_finalize", Loaded, once(args));
    add(e, "wsync_transport_destroy", Loaded, Destroy(Transport));
    nccl(e);
}

/// Functions of a library that is not there.
fn nccl(e: &mut Entries) {
    let library = Number(c"/nowhere/libnccl.so.2".as_ptr().expose_provenance());
    let answers = |args| Status(Good::Answers(WSYNC_ERR_LIBRARY_NOT_FOUND), args);
    let args = vec![library.clone(), Buffer(1), Err];
    add(e, "wsync_transport_nccl_id", Alone, answers(args));
    let args = vec![library, Out(4), Err];
    add(e, "wsync_transport_nccl_version", Alone, answers(args));
}

fn sessions(e: &mut Entries, w: &World<'_>) {
    let options = wsync_session_options {
        struct_size: size_of::<wsync_session_options>(),
        load_deadline_ns: 0,
    };
    let options = OptionalStruct(bytes_of(options), Vec::new());
    let args = vec![Handle(Transport), options, OutHandle(Session), Err];
    add(e, "wsync_session_create", Loaded, ok(args));
    let memory = w.memory.as_ptr().expose_provenance();
    let args = vec![
        Handle(Session),
        Enum(1),
        Name("w"),
        Memory(memory),
        Number(64),
        Enum(0),
        Number(0),
        Err,
    ];
    add(e, "wsync_session_bind", Loaded, ok(args));
    let binding = w.binding(wsync_side::WSYNC_SIDE_SOURCE);
    let bindings = Strided(bytes_of(binding), size_of::<wsync_binding>());
    let args = vec![Handle(Session), bindings, Err];
    add(e, "wsync_session_bind_many", Loaded, ok(args));
    let args = vec![Handle(Session), Enum(1), Name("w"), Err];
    add(e, "wsync_session_unbind", Loaded, once(args));
    let args = vec![Handle(Session), Handle(Plan), Out(4), Err];
    add(e, "wsync_session_load", Loaded, ok(args));
    let args = vec![Handle(Session), Index(w.slot as usize), Err];
    add(e, "wsync_session_unload", Loaded, once(args));
    let args = vec![Handle(Session), Number(0), Err];
    add(e, "wsync_session_finalize", Loaded, ok(args));
    let args = vec![Handle(Session), Name("a test"), Err];
    add(e, "wsync_session_abort", Loaded, ok(args));
    add(e, "wsync_session_destroy", Loaded, Destroy(Session));
}

fn request_options_arg() -> Arg {
    let bad = vec![
        (
            offset_of!(wsync_request_options, flags),
            1 << 31,
            WSYNC_ERR_UNSUPPORTED,
        ),
        (
            offset_of!(wsync_request_options, reserved),
            1,
            WSYNC_ERR_UNSUPPORTED,
        ),
    ];
    OptionalStruct(bytes_of(request_options()), bad)
}

fn requests(e: &mut Entries, w: &World<'_>) {
    let args = vec![
        Handle(Session),
        Index(w.slot as usize),
        OutHandle(Request),
        Err,
    ];
    add(e, "wsync_request_create", Loaded, ok(args));
    let args = vec![Handle(Request), request_options_arg(), Err];
    add(e, "wsync_request_prepare", Loaded, once(args));
    let never_prepared = Good::Answers(WSYNC_ERR_INVALID_STATE);
    let args = vec![Handle(Request), Number(usize::MAX), Err];
    add(
        e,
        "wsync_request_wait_ready",
        Loaded,
        Status(never_prepared, args),
    );
    let args = vec![Handle(Request), Number(0), Err];
    add(
        e,
        "wsync_request_start",
        Loaded,
        Status(never_prepared, args),
    );
    let args = vec![Handle(Request), request_options_arg(), Number(0), Err];
    add(e, "wsync_request_submit", Loaded, once(args));
    add(
        e,
        "wsync_request_test",
        Delivered,
        ok(vec![Handle(Request), Err]),
    );
    let args = vec![Handle(Request), Number(usize::MAX), Err];
    add(e, "wsync_request_wait", Delivered, ok(args));
    let args = vec![Handle(Request), Out(4), Out(4), Err];
    add(e, "wsync_request_outcome", Delivered, ok(args));
    for name in [
        "wsync_request_state",
        "wsync_request_step_count",
        "wsync_request_steps_done",
    ] {
        add(e, name, Delivered, Getter(Request, 0));
    }
    add(
        e,
        "wsync_request_report",
        Delivered,
        ok(vec![Handle(Request), Buffer(1), Err]),
    );
    let args = vec![Handle(Request), Name("w"), Out(8), Err];
    add(e, "wsync_request_tensor_digest", Delivered, ok(args));
    add(e, "wsync_request_destroy", Delivered, Destroy(Request));
}

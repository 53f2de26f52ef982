//! A warm request through the C functions allocates nothing, in no thread.

mod alloc_support;

use alloc_support::{set_counting, take_count};
use std::ptr::{null, null_mut};
use std::sync::{Barrier, Mutex};
use weightsync::capi::layout::*;
use weightsync::capi::plan::*;
use weightsync::capi::request::*;
use weightsync::capi::session::*;
use weightsync::capi::transport::*;
use weightsync::capi::types::wsync_status::WSYNC_OK;
use weightsync::capi::types::*;

const COLUMNS: usize = 64;
const ROWS: usize = 6;

/// What the two ranks share: rank 0 sends to rank 1.
struct Meeting {
    greetings: Mutex<[Vec<u8>; 2]>,
    gate: Barrier,
}

/// Makes a call that has to work.
macro_rules! ok {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: handles are live, pointers lead to what the header asks for.
        let status = unsafe { $function($($argument,)* null_mut()) };
        assert_eq!(status, WSYNC_OK, stringify!($function));
    }};
}

fn layout(first: u32) -> *mut wsync_layout {
    let text = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": {first}, "count": 1}},
        "tensors": [{{"name": "w", "shape": [{ROWS}, {COLUMNS}], "dtype": "f32"}}]}}"#
    );
    let mut made = null_mut();
    ok!(wsync_layout_create_from_json(
        text.as_ptr().cast(),
        text.len(),
        &raw mut made
    ));
    made
}

fn plan() -> *mut wsync_plan {
    let (source, destination) = (layout(0), layout(1));
    let mut made = null_mut();
    ok!(wsync_plan_create(
        source,
        destination,
        null(),
        &raw mut made
    ));
    // SAFETY: nobody uses them any more.
    unsafe {
        wsync_layout_destroy(source);
        wsync_layout_destroy(destination);
    }
    made
}

fn transport(rank: u32, meeting: &Meeting) -> *mut wsync_transport {
    // SAFETY: integers and pointers; the header allows all zero but the size.
    let mut options: wsync_transport_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<wsync_transport_options>();
    options.kind = wsync_transport_kind::WSYNC_TRANSPORT_KIND_LOOPBACK as u32;
    options.rank = rank;
    options.rank_count = 2;
    let mut made = null_mut();
    ok!(wsync_transport_create(&raw const options, &raw mut made));
    let mut greeting = vec![0u8; WSYNC_GREETING_BYTES_MAX];
    let mut bytes = 0;
    let at = greeting.as_mut_ptr().cast();
    ok!(wsync_transport_greeting(
        made,
        at,
        greeting.len(),
        &raw mut bytes
    ));
    greeting.truncate(bytes);
    meeting.greetings.lock().unwrap()[rank as usize] = greeting;
    meeting.gate.wait();
    let all = meeting.greetings.lock().unwrap().clone();
    let all = all.each_ref().map(|g| wsync_bytes {
        ptr: g.as_ptr().cast(),
        bytes: g.len(),
    });
    ok!(wsync_transport_meet(
        made,
        all.as_ptr(),
        2,
        WSYNC_NO_DEADLINE
    ));
    made
}

/// Delivers six versions as one of two ranks; counts from the third on.
fn deliver(rank: u32, flags: u32, meeting: &Meeting) {
    let mut memory = vec![0f32; ROWS * COLUMNS];
    let (plan, transport) = (plan(), transport(rank, meeting));
    let (mut session, mut request, mut slot) = (null_mut(), null_mut(), 0);
    ok!(wsync_session_create(transport, null(), &raw mut session));
    let (side, at) = (rank + 1, memory.as_mut_ptr());
    let bytes = size_of_val(&memory[..]) as u64;
    ok!(wsync_session_bind(
        session,
        side,
        c"w".as_ptr(),
        at.cast(),
        bytes,
        0,
        0
    ));
    ok!(wsync_session_load(session, plan, &raw mut slot));
    ok!(wsync_request_create(session, slot, &raw mut request));
    for version in 1..=6u64 {
        if rank == 0 {
            memory.fill(version as f32);
        }
        let options = wsync_request_options {
            struct_size: size_of::<wsync_request_options>(),
            version,
            agree_deadline_ns: 0,
            stall_deadline_ns: 0,
            flags,
            reserved: 0,
        };
        let mut outcomes = [0u32; 2];
        let [of_rank, of_copy] = outcomes.each_mut().map(std::ptr::from_mut);
        count_from(rank, meeting, version >= 3);
        ok!(wsync_request_submit(
            request,
            &raw const options,
            null_mut()
        ));
        ok!(wsync_request_wait(request, WSYNC_NO_DEADLINE));
        ok!(wsync_request_outcome(request, of_rank, of_copy));
        count_from(rank, meeting, false);
        assert_eq!(outcomes, [wsync_outcome::WSYNC_OUTCOME_COMPLETE as u32; 2]);
        assert!(memory.iter().all(|v| *v == version as f32));
    }
    // SAFETY: nobody uses them any more.
    unsafe {
        wsync_request_destroy(request);
        wsync_session_destroy(session);
        wsync_transport_finalize(transport, WSYNC_NO_DEADLINE, null_mut());
        wsync_transport_destroy(transport);
        wsync_plan_destroy(plan);
    }
}

/// Both ranks wait for each other, and one of them sets the counter.
fn count_from(rank: u32, meeting: &Meeting, is_counting: bool) {
    meeting.gate.wait();
    if rank == 0 {
        set_counting(is_counting);
    }
    meeting.gate.wait();
}

#[test]
fn the_third_request_through_c_allocates_nothing() {
    for flags in [0, wsync_request_flag::WSYNC_REQUEST_FLAG_VERIFY as u32] {
        let meeting = Meeting {
            greetings: Mutex::default(),
            gate: Barrier::new(2),
        };
        std::thread::scope(|scope| {
            scope.spawn(|| deliver(0, flags, &meeting));
            deliver(1, flags, &meeting);
        });
        assert_eq!(take_count(), 0, "flags {flags}");
    }
}

//! Requests: one execution of a loaded plan, for one version of the weights.

use super::args::{self, plain_struct};
use super::handle::{self, Handle, exclusive, shared};
use super::out::{Out, TextBuffer};
use super::session::wsync_session;
use super::types::{wsync_error, wsync_outcome, wsync_state, wsync_status};
use super::{guard, guard_status, guard_value};
use crate::env;
use crate::error::{Error, Result, Status};
use crate::exec::{Endpoint, Outcome, PlanSlot, Request, RequestOptions, State};
use std::ffi::{c_char, c_void};

/// One execution of a loaded plan; made once and used for every version.
///
///   IDLE --prepare--> PREPARING --> READY --start--> RUNNING --> SETTLING
///     --> DONE or FAILED, either of which may be prepared again
///
/// prepare, start and submit are exclusive; everything else may be called by
/// any number of threads, during those too. Does not survive fork.
///
/// wsync_request_create, wsync_request_prepare, wsync_request_wait_ready,
/// wsync_request_start, wsync_request_submit, wsync_request_test,
/// wsync_request_wait, wsync_request_state, wsync_request_outcome,
/// wsync_request_step_count, wsync_request_steps_done, wsync_request_report,
/// wsync_request_tensor_digest, wsync_request_destroy.
///
/// Since: 0.1
pub struct wsync_request {
    _opaque: [u8; 0],
}

impl Handle for wsync_request {
    type Value = RequestObject;
    const MAGIC: u64 = 0x7773_796e_7265_7101;
    const NOUN: &'static str = "request";
    const SURVIVES_FORK: bool = false;

    fn poisoned(value: &RequestObject) {
        value
            .endpoint
            .abort("an internal error of the library, on a request");
    }
}

/// What a request handle holds.
pub(super) struct RequestObject {
    request: Request,
    endpoint: Endpoint,
}

/// Flags of wsync_request_options.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_request_flag {
    /// Compare the digests of sent and delivered bytes before it is COMPLETE.
    WSYNC_REQUEST_FLAG_VERIFY = 1,
    /// Agree and report, but move nothing.
    WSYNC_REQUEST_FLAG_DRY_RUN = 2,
}

/// What one execution is asked for. Version and flags are to be equal on all
/// ranks; of differing deadlines the shortest holds.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_request_options {
    /// sizeof(wsync_request_options).
    pub struct_size: usize,
    /// The caller's number of these weights.
    pub version: u64,
    /// Nanoseconds that the ranks have to agree; 0 is WSYNC_AGREE_DEADLINE_MS
    /// from the environment, or 60 seconds.
    pub agree_deadline_ns: u64,
    /// Nanoseconds that a running request may go without finishing a step; 0
    /// is WSYNC_STALL_DEADLINE_MS from the environment, or 30 seconds.
    pub stall_deadline_ns: u64,
    /// Any of wsync_request_flag.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

plain_struct!(wsync_request_options, 40, "wsync_request_options");

/// Makes a request for the plan in `slot` of `session`.
///
/// Errors: NOT_FOUND for an empty slot; INVALID_STATE if the session is
/// closed.
/// Thread safety: one call at a time per session. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_create(
    session: *mut wsync_session,
    slot: u32,
    out_request: *mut *mut wsync_request,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_request, "out_request")? };
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        out.put(RequestObject {
            request: Request::new(&session.session, PlanSlot(slot))?,
            endpoint: session.session.endpoint().clone(),
        });
        Ok(())
    })
}

/// Begins to agree with all ranks of the plan that this version is to move.
/// Never waits; wsync_request_wait_ready and wsync_request_state tell when it
/// is READY. No byte moves before start. `options` may be NULL.
///
/// Errors: BUFFER_MISMATCH names what is not bound, or differs from the plan;
/// BUSY while another request of the transport is under way; UNSUPPORTED for
/// unknown flags; the reason, if the transport was aborted.
/// Thread safety: one call at a time per request. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_prepare(
    request: *mut wsync_request,
    options: *const wsync_request_options,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live request.
        let request = unsafe { exclusive(request)? };
        // SAFETY: the header asks for NULL or a struct with its struct_size.
        let options = unsafe { options_of(options)? };
        request.request.prepare(&options)
    })
}

/// Waits until a request that is being prepared is READY, at most
/// `deadline_ns` nanoseconds; 0 only looks. IN_PROGRESS if it is not ready by
/// then.
///
/// Errors: AGREEMENT_TIMEOUT, PLAN_MISMATCH or REFUSED name the rank; those of
/// the transport.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_wait_ready(
    request: *const wsync_request,
    deadline_ns: u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard_status(err, || {
        // SAFETY: the header asks for a live request.
        let request = unsafe { shared(request)? };
        let state = request.request.wait_ready(deadline_ns)?;
        match state {
            State::Idle => Err(never_prepared()),
            State::Preparing => Ok(Status::InProgress),
            State::Ready | State::Running | State::Settling | State::Done | State::Failed => {
                Ok(Status::Ok)
            }
        }
    })
}

/// Starts a READY request: enqueues all its work and returns, waiting neither
/// for peers nor for a device. `stream` is a cudaStream_t of the caller's: the
/// first byte is read or written after the work that is in it now, and work
/// that it is given later comes after the transfer, which may have failed: ask
/// wsync_request_outcome before serving. NULL is the default stream where
/// buffers are on a GPU, and nothing where all are on the host. Ranks of one
/// process that exchange bytes give a stream each: in one, what the second rank
/// sends would come after all that the first receives, which waits for it.
///
/// Errors: INVALID_STATE unless READY, and for a stream that is being captured
/// into a graph; UNSUPPORTED for a stream where all buffers are on the host;
/// INVALID_ARGUMENT for one that CUDA does not know; what ended the request
/// meanwhile.
/// Thread safety: one call at a time per request. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_start(
    request: *mut wsync_request,
    stream: *mut c_void,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live request.
        let request = unsafe { exclusive(request)? };
        request.request.start_on(stream.expose_provenance())
    })
}

/// Prepares, waits until READY, and starts. Waits for peers, but no longer
/// than the agree deadline. `options` may be NULL.
///
/// Errors: those of prepare, wait_ready and start.
/// Thread safety: one call at a time per request. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_submit(
    request: *mut wsync_request,
    options: *const wsync_request_options,
    stream: *mut c_void,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live request.
        let request = unsafe { exclusive(request)? };
        // SAFETY: the header asks for NULL or a struct with its struct_size.
        let options = unsafe { options_of(options)? };
        let stream = stream.expose_provenance();
        request.request.submit_on(&options, stream)
    })
}

/// OK once the request is DONE, IN_PROGRESS before, and the error of a FAILED
/// one. Never waits. OK says that it ended well on every rank; to serve, ask
/// wsync_request_outcome.
///
/// Errors: whatever ended the request; INVALID_STATE if it was never prepared.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_test(
    request: *const wsync_request,
    err: *mut wsync_error,
) -> wsync_status {
    guard_status(err, || {
        // SAFETY: the header asks for a live request.
        let request = unsafe { shared(request)? };
        progress(request.request.test()?)
    })
}

/// Waits until the request has ended, at most `deadline_ns` nanoseconds; 0
/// only looks, WSYNC_NO_DEADLINE waits as long as the deadlines of the request
/// let it. Then like wsync_request_test. A request that is READY, and thus
/// waits to be started, is not waited for: IN_PROGRESS at once.
///
/// Errors: whatever ended the request; INVALID_STATE if it was never prepared.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_wait(
    request: *const wsync_request,
    deadline_ns: u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard_status(err, || {
        // SAFETY: the header asks for a live request.
        let request = unsafe { shared(request)? };
        progress(request.request.wait(deadline_ns)?)
    })
}

/// Where the request is, a wsync_state; IDLE also if `request` is NULL
/// or not a request.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_state(request: *const wsync_request) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live request.
        let request = unsafe { shared(request) }.ok()?;
        Some(wsync_state::from(request.request.state()) as u32)
    })
}

/// Writes what became of this rank's destination memory, and of the whole copy
/// that it belongs to (of all copies, for a rank that belongs to none), each a
/// wsync_outcome. Only a COMPLETE copy may serve the new version.
///
/// Errors: INVALID_STATE until the request has ended.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_outcome(
    request: *const wsync_request,
    out_rank_outcome: *mut u32,
    out_copy_outcome: *mut u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for places for both.
        let (rank, copy) = unsafe {
            (
                Out::new(out_rank_outcome, "out_rank_outcome")?,
                Out::new(out_copy_outcome, "out_copy_outcome")?,
            )
        };
        // SAFETY: the header asks for a live request.
        let request = unsafe { shared(request)? };
        let (of_rank, of_copy) = request.request.outcome().ok_or_else(|| {
            let state = request.request.state().name();
            Error::new(
                Status::InvalidState,
                format!("a request has an outcome once it has ended; this one is {state}"),
            )
        })?;
        rank.write(wsync_outcome::from(of_rank) as u32);
        copy.write(wsync_outcome::from(of_copy) as u32);
        Ok(())
    })
}

/// Number of steps of this rank's program; 0 if `request` is NULL or not a
/// request.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_step_count(request: *const wsync_request) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live request.
        let request = unsafe { shared(request) }.ok()?;
        Some(request.request.step_count())
    })
}

/// Number of steps that are finished on this rank; see
/// wsync_plan_tensor_last_step. 0 if `request` is NULL or not a request.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_steps_done(request: *const wsync_request) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live request.
        let request = unsafe { shared(request) }.ok()?;
        Some(request.request.steps_done())
    })
}

/// Writes everything about the current or last execution as JSON,
/// NUL-terminated: state, outcome, error, bytes, time per phase, digests. With
/// a `capacity` of 0 only `out_needed` is written: the number of bytes, the
/// NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_report(
    request: *const wsync_request,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live request.
        let request = unsafe { shared(request)? };
        out.write_json(&request.request.report())
    })
}

/// Writes the digest of the tensor called `tensor` in the version that was
/// moved last: the sum mod 2^64 of a mix of each element's index and bits,
/// whatever the layout. Equal digests of two versions mean that nothing
/// changed.
///
/// Errors: NOT_FOUND if the plan does not move such a tensor; INVALID_STATE
/// unless the last execution ended well and had WSYNC_REQUEST_FLAG_VERIFY.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_tensor_digest(
    request: *const wsync_request,
    tensor: *const c_char,
    out_digest: *mut u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the digest.
        let out = unsafe { Out::new(out_digest, "out_digest")? };
        // SAFETY: the header asks for a live request.
        let request = unsafe { shared(request)? };
        // SAFETY: the header asks for a NUL-terminated name.
        let tensor = unsafe { args::name(tensor, "the tensor name")? };
        out.write(request.request.tensor_digest(tensor)?);
        Ok(())
    })
}

/// Ends the request. One that is being prepared withdraws; one that is READY
/// aborts the transport, for peers may have started; one that is running runs
/// to its end, and the bound buffers stay in use until then. Never waits for
/// peers. NULL is fine.
///
/// Thread safety: once, with no other call on it under way. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_request_destroy(request: *mut wsync_request) {
    // SAFETY: the header asks for NULL or a request that nobody uses any more.
    unsafe { handle::destroy(request) };
}

/// # Safety
///
/// `options` is NULL or has its struct_size set.
unsafe fn options_of(options: *const wsync_request_options) -> Result<RequestOptions> {
    // SAFETY: passed on.
    let given = unsafe { args::optional(options)? };
    let mut made = RequestOptions::default();
    if let Some(given) = given {
        args::reserved(<wsync_request_options as args::Plain>::NAME, given.reserved)?;
        made.version = given.version;
        made.agree_deadline_ns = given.agree_deadline_ns;
        made.stall_deadline_ns = given.stall_deadline_ns;
        made.flags = given.flags;
    }
    if made.agree_deadline_ns == 0 {
        made.agree_deadline_ns = env::agree_deadline_ns()?.unwrap_or(0);
    }
    if made.stall_deadline_ns == 0 {
        made.stall_deadline_ns = env::stall_deadline_ns()?.unwrap_or(0);
    }
    Ok(made)
}

fn progress(state: State) -> Result<Status> {
    match state {
        State::Idle => Err(never_prepared()),
        State::Preparing | State::Ready | State::Running | State::Settling => {
            Ok(Status::InProgress)
        }
        State::Done | State::Failed => Ok(Status::Ok),
    }
}

fn never_prepared() -> Error {
    Error::new(Status::InvalidState, "the request was never prepared")
}

impl From<Outcome> for wsync_outcome {
    fn from(o: Outcome) -> wsync_outcome {
        match o {
            Outcome::Untouched => wsync_outcome::WSYNC_OUTCOME_UNTOUCHED,
            Outcome::Complete => wsync_outcome::WSYNC_OUTCOME_COMPLETE,
            Outcome::Torn => wsync_outcome::WSYNC_OUTCOME_TORN,
        }
    }
}

impl From<State> for wsync_state {
    fn from(s: State) -> wsync_state {
        match s {
            State::Idle => wsync_state::WSYNC_STATE_IDLE,
            State::Preparing => wsync_state::WSYNC_STATE_PREPARING,
            State::Ready => wsync_state::WSYNC_STATE_READY,
            State::Running => wsync_state::WSYNC_STATE_RUNNING,
            State::Settling => wsync_state::WSYNC_STATE_SETTLING,
            State::Done => wsync_state::WSYNC_STATE_DONE,
            State::Failed => wsync_state::WSYNC_STATE_FAILED,
        }
    }
}

//! Sessions: the memory of one rank, by name, and the plans it has loaded.

use super::args::{self, plain_element, plain_struct};
use super::buffers::memory;
use super::guard;
use super::handle::{self, Handle, exclusive, shared};
use super::out::Out;
use super::plan::wsync_plan;
use super::transport::wsync_transport;
use super::types::{wsync_dtype, wsync_error, wsync_side, wsync_status, wsync_text};
use crate::device::MemoryRange;
use crate::error::{Error, Result};
use crate::exec::{BufferBinding, PlanSlot, Session, SessionOptions};
use crate::layout::array::Array;
use crate::layout::dtype::Dtype;
use crate::limits::VIEW_COUNT_MAX;
use crate::plan::program::Side;
use std::ffi::{c_char, c_void};

/// One rank's buffers, bound by name, and the plans it has loaded. Exclusive:
/// one call at a time, but for abort. Does not survive fork.
///
/// wsync_session_create, wsync_session_bind, wsync_session_bind_many,
/// wsync_session_unbind, wsync_session_load, wsync_session_unload,
/// wsync_session_finalize, wsync_session_abort, wsync_session_destroy.
///
/// Since: 0.1
pub struct wsync_session {
    _opaque: [u8; 0],
}

impl Handle for wsync_session {
    type Value = SessionObject;
    const MAGIC: u64 = 0x7773_796e_7365_7301;
    const NOUN: &'static str = "session";
    const SURVIVES_FORK: bool = false;

    fn poisoned(value: &SessionObject) {
        value
            .session
            .abort("an internal error of the library, on a session");
    }
}

/// What a session handle holds.
pub(super) struct SessionObject {
    pub session: Session,
}

/// What a session is made with.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_session_options {
    /// sizeof(wsync_session_options).
    pub struct_size: usize,
    /// Nanoseconds that wsync_session_load waits for peers to be reachable; 0
    /// is 30 seconds.
    pub load_deadline_ns: u64,
}

plain_struct!(wsync_session_options, 16, "wsync_session_options");

/// A buffer and its memory.
///
/// dtype, shape and strides say how the caller sees the memory. A plan that
/// sees it otherwise is then refused: one whose views have another element
/// type, or elements that are none of the array's, or, unless the array is
/// row-major, axes in another order. Unsigned integers stand for the bits of
/// elements as wide as they are, and bytes for any. What is left 0 is not told,
/// and not compared.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_binding {
    /// The buffer's name in the layout of its side.
    pub name: wsync_text,
    /// Where it begins: the lowest byte, also of an array that runs backwards.
    /// Stays the caller's, and valid until it is unbound.
    pub ptr: *mut c_void,
    /// Its size, which is at least that of the plan's buffer.
    pub bytes: u64,
    /// A wsync_side.
    pub side: u32,
    /// A wsync_memory.
    pub memory: u32,
    /// The GPU, if memory is WSYNC_MEMORY_DEVICE.
    pub device: u32,
    /// 0.
    pub reserved: u32,
    /// The type of the elements; {0, 0, 0} if that is not told.
    pub dtype: wsync_dtype,
    /// Axes of the array, at most WSYNC_DIM_COUNT_MAX; 0 if they are not told.
    pub dim_count: u32,
    /// Elements along each axis; 0 beyond dim_count.
    pub shape: [u64; 8],
    /// Bytes between neighbours along each axis, which may be negative; all 0
    /// means without gaps, the last axis innermost.
    pub strides: [i64; 8],
}

plain_element!(wsync_binding, 48, "wsync_binding");

/// Makes a session of the transport's rank. The ranks must have met. `options`
/// may be NULL.
///
/// Errors: INVALID_STATE if they have not met; the reason, if the transport
/// was aborted.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_create(
    transport: *const wsync_transport,
    options: *const wsync_session_options,
    out_session: *mut *mut wsync_session,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_session, "out_session")? };
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { shared(transport)? };
        // SAFETY: the header asks for NULL or a struct with its struct_size.
        let options = unsafe { args::optional(options)? };
        let options = SessionOptions {
            load_deadline_ns: options.map_or(0, |o| o.load_deadline_ns),
        };
        let session = Session::open(&transport.endpoint, options)?;
        out.put(SessionObject { session });
        Ok(())
    })
}

/// Names `bytes` bytes at `ptr` as the buffer `name` of `side`, a wsync_side.
/// `memory` is a wsync_memory, and `device` the GPU where it is one. Binding a
/// name again replaces the range. The memory stays valid until the name is
/// bound again or unbound, or the session is gone, and in any case while a
/// request runs. Names that no plan knows are kept for later ones.
///
/// Errors: BUSY while a request of the session is under way; UNSUPPORTED for
/// an unknown side or memory; INVALID_ARGUMENT, LIMIT_EXCEEDED.
/// Thread safety: one call at a time per session. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_bind(
    session: *mut wsync_session,
    side: u32,
    name: *const c_char,
    ptr: *mut c_void,
    bytes: u64,
    memory: u32,
    device: u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        // SAFETY: the header asks for a NUL-terminated name.
        let name = unsafe { args::name(name, "the buffer name")? };
        let memory = self::memory(memory, device)?;
        session
            .session
            .bind(side_of(side)?, name, range(ptr, bytes), memory)
    })
}

/// Binds `binding_count` buffers in one call, all of them or none. `stride` is
/// sizeof(wsync_binding).
///
/// Errors: those of wsync_session_bind, naming the buffer; INVALID_ARGUMENT for
/// shape and strides that leave the memory.
/// Thread safety: one call at a time per session. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_bind_many(
    session: *mut wsync_session,
    bindings: *const wsync_binding,
    binding_count: usize,
    stride: usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        // SAFETY: the header asks for `binding_count` elements of `stride`.
        let bindings = unsafe { args::strided(bindings, binding_count, stride, VIEW_COUNT_MAX)? };
        let bindings = bindings.iter().map(|b| {
            // SAFETY: each name has its number of readable bytes.
            unsafe { binding_of(b) }
        });
        session
            .session
            .bind_all(&bindings.collect::<Result<Vec<_>>>()?)
    })
}

/// Forgets the buffer `name` of `side`. Plans that need it cannot be executed
/// until it is bound again.
///
/// Errors: NOT_FOUND if no such name is bound; BUSY while a request of the
/// session is under way.
/// Thread safety: one call at a time per session. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_unbind(
    session: *mut wsync_session,
    side: u32,
    name: *const c_char,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        // SAFETY: the header asks for a NUL-terminated name.
        let name = unsafe { args::name(name, "the buffer name")? };
        session.session.unbind(side_of(side)?, name)
    })
}

/// Gets ready to execute `plan`: derives this rank's program, allocates its
/// staging, and connects to its peers. Writes the number of the slot it takes.
/// The buffers that the program needs are bound before; they may be bound to
/// other memory afterwards. Other ranks need not load it at the same time.
///
/// Errors: BUFFER_MISMATCH names every buffer that is not bound, or one that is
/// too small, in other memory than planned, or an array of another form;
/// INVALID_ARGUMENT if the plan
/// needs a rank that the transport lacks; OUT_OF_MEMORY, LIMIT_EXCEEDED; the
/// reason, if the transport was aborted.
/// Thread safety: one call at a time per session. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_load(
    session: *mut wsync_session,
    plan: *const wsync_plan,
    out_slot: *mut u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the slot.
        let out = unsafe { Out::new(out_slot, "out_slot")? };
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        // SAFETY: the header asks for a live plan.
        let plan = unsafe { shared(plan)? };
        out.write(session.session.load(plan.plan.clone())?.0);
        Ok(())
    })
}

/// Forgets the plan in `slot` and gives its staging back. Its requests cannot
/// be prepared any more.
///
/// Errors: NOT_FOUND; BUSY while one of its requests is under way.
/// Thread safety: one call at a time per session. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_unload(
    session: *mut wsync_session,
    slot: u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        session.session.unload(PlanSlot(slot))
    })
}

/// The polite end: waits at most `deadline_ns` nanoseconds until no request is
/// under way, then closes the session. Does not touch the transport.
///
/// Errors: BUSY if a request is still under way then, or READY and waiting to
/// be started; the session stays open.
/// Thread safety: one call at a time per session; abort may be called
/// meanwhile. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_finalize(
    session: *mut wsync_session,
    deadline_ns: u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live session.
        let session = unsafe { exclusive(session)? };
        session.session.finalize(deadline_ns)
    })
}

/// Stops the transport of this session and everything that uses it, here and
/// on all peers, as wsync_transport_abort does.
///
/// Errors: none but a wrong argument.
/// Thread safety: any thread, at any time, during other calls on the session
/// too. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_abort(
    session: *mut wsync_session,
    reason: *const c_char,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live session.
        let session = unsafe { shared(session)? };
        // SAFETY: the header asks for a NUL-terminated reason.
        let reason = unsafe { args::name(reason, "the reason")? };
        session.session.abort(reason);
        Ok(())
    })
}

/// Ends the session; aborts the transport if one of its requests is under way.
/// Never waits for peers. NULL is fine.
///
/// Thread safety: once, with no other call on it under way. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_session_destroy(session: *mut wsync_session) {
    // SAFETY: the header asks for NULL or a session that nobody uses any more.
    unsafe { handle::destroy(session) };
}

/// The side that a number of C means.
fn side_of(side: u32) -> Result<Side> {
    const SOURCE: u32 = wsync_side::WSYNC_SIDE_SOURCE as u32;
    const DESTINATION: u32 = wsync_side::WSYNC_SIDE_DESTINATION as u32;
    match side {
        SOURCE => Ok(Side::Source),
        DESTINATION => Ok(Side::Destination),
        other => Err(args::unknown("side", other)),
    }
}

/// # Safety
///
/// The name points to its number of readable bytes, for `'a`.
unsafe fn binding_of<'a>(given: &wsync_binding) -> Result<BufferBinding<'a>> {
    args::reserved(<wsync_binding as args::Plain>::NAME, given.reserved)?;
    // SAFETY: passed on.
    let name = unsafe { args::text(&given.name, "a buffer name")? };
    Ok(BufferBinding {
        side: side_of(given.side)?,
        name,
        range: range(given.ptr, given.bytes),
        memory: memory(given.memory, given.device)?,
        array: array_of(given, name)?,
    })
}

/// What is told of the array that the memory is.
fn array_of(given: &wsync_binding, name: &str) -> Result<Option<Array>> {
    let what = format!("buffer \"{name}\"");
    let shape = args::axes(&given.shape, given.dim_count, "shape", &what)?;
    let strides = args::axes(&given.strides, given.dim_count, "strides", &what)?;
    if given.dtype == wsync_dtype::NONE {
        return match given.dim_count {
            0 => Ok(None),
            n => Err(Error::invalid(format!(
                "{what} has {n} axes and no dtype; tell it with shape and strides"
            ))),
        };
    }
    let made = Dtype::try_from(given.dtype).and_then(|dtype| {
        match strides.iter().all(|&stride| stride == 0) {
            true => Array::packed(dtype, shape),
            false => Array::new(dtype, shape, strides),
        }
    });
    made.map(Some).map_err(|e| Error {
        message: format!("{what}: {}", e.message),
        ..e
    })
}

/// Memory whose address leaves Rust's sight: devices and peers use it.
fn range(ptr: *mut c_void, bytes: u64) -> MemoryRange {
    MemoryRange {
        address: ptr.expose_provenance(),
        bytes,
    }
}

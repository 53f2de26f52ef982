//! What every noun of the header uses: statuses, errors, names, small values.
//!
//! Numbers here are the ABI: they are never changed, reused or renumbered;
//! a retired one stays as a comment. `tests/abi.rs` pins all of them.

use crate::error::{Error, Result, Status};
use crate::layout::dtype::Dtype;
use std::ffi::{c_char, c_void};

/// The result of a call.
///
/// Zero is success, positive means not finished yet, negative means failed.
/// Failures are grouped by what is damaged, which is what a caller has to
/// decide on:
///
///   -1 .. -19    nothing, the call was wrong      fix the call
///   -20 .. -39   layouts, plan, data disagree     describe or plan again
///   -40 .. -59   the environment                  fix the installation
///   -60 .. -79   this request only                try again
///   -80 .. -99   the transport                    rebuild it
///   -100 ..      our own invariants               report it, destroy the handle
///
/// Since: 0.1
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_status {
    /// Done.
    WSYNC_OK = 0,
    /// Not finished yet; nothing is wrong.
    WSYNC_IN_PROGRESS = 1,
    /// An argument is NULL, out of range, not UTF-8, or contradicts another.
    WSYNC_ERR_INVALID_ARGUMENT = -1,
    /// A handle is not one, or not of this type.
    WSYNC_ERR_BAD_HANDLE = -2,
    /// A result does not fit; ask for its size with a capacity of 0.
    WSYNC_ERR_BUFFER_TOO_SMALL = -3,
    /// This library cannot do that: an unknown flag, kind or struct tail.
    WSYNC_ERR_UNSUPPORTED = -4,
    /// Another call on the same handle, or a request, is under way.
    WSYNC_ERR_BUSY = -5,
    /// A number, a name or a size exceeds a limit of the library.
    WSYNC_ERR_LIMIT_EXCEEDED = -6,
    /// No tensor, buffer, rank or slot of that name or number.
    WSYNC_ERR_NOT_FOUND = -7,
    /// The handle is not in a state that allows the call.
    WSYNC_ERR_INVALID_STATE = -8,
    /// Ranks came with different plans, versions or flags.
    WSYNC_ERR_PLAN_MISMATCH = -20,
    /// A layout is ill-formed, or two layouts do not fit each other.
    WSYNC_ERR_LAYOUT_INVALID = -21,
    /// Serialised bytes are damaged, truncated or foreign.
    WSYNC_ERR_CORRUPT = -22,
    /// Made by a library that this one does not understand.
    WSYNC_ERR_VERSION_MISMATCH = -23,
    /// A bound buffer differs from the planned one, or is missing.
    WSYNC_ERR_BUFFER_MISMATCH = -24,
    /// The staging budget cannot hold the smallest piece.
    WSYNC_ERR_STAGING_TOO_SMALL = -25,
    /// Delivered bytes differ from the sent ones.
    WSYNC_ERR_CHECKSUM_MISMATCH = -26,
    /// The chosen strategy cannot do what was asked; another can.
    WSYNC_ERR_INFEASIBLE = -27,
    /// A library that is loaded at run time was not found.
    WSYNC_ERR_LIBRARY_NOT_FOUND = -40,
    /// It was found, and is too old.
    WSYNC_ERR_LIBRARY_TOO_OLD = -41,
    /// A file, socket or other system object failed; see native_code.
    WSYNC_ERR_IO = -42,
    /// No memory, or no space for shared memory.
    WSYNC_ERR_OUT_OF_MEMORY = -43,
    /// The operating system lacks something.
    WSYNC_ERR_SYSTEM = -44,
    /// A peer did not agree in time; no byte moved.
    WSYNC_ERR_AGREEMENT_TIMEOUT = -60,
    /// A peer refused; no byte moved.
    WSYNC_ERR_REFUSED = -61,
    /// A peer died.
    WSYNC_ERR_PEER_LOST = -80,
    /// A peer made no progress within the stall deadline.
    WSYNC_ERR_STALLED = -81,
    /// Somebody called abort.
    WSYNC_ERR_ABORTED = -82,
    /// The peers did not meet in time.
    WSYNC_ERR_MEET_TIMEOUT = -83,
    /// Bytes on the wire were not the expected ones.
    WSYNC_ERR_PROTOCOL = -84,
    /// An invariant of the library is broken. The handle is poisoned.
    WSYNC_ERR_INTERNAL = -100,
    /// An earlier internal error made this handle unusable; destroy it.
    WSYNC_ERR_POISONED = -101,
}

impl From<Status> for wsync_status {
    fn from(s: Status) -> wsync_status {
        match s {
            Status::Ok => wsync_status::WSYNC_OK,
            Status::InProgress => wsync_status::WSYNC_IN_PROGRESS,
            Status::InvalidArgument => wsync_status::WSYNC_ERR_INVALID_ARGUMENT,
            Status::BadHandle => wsync_status::WSYNC_ERR_BAD_HANDLE,
            Status::BufferTooSmall => wsync_status::WSYNC_ERR_BUFFER_TOO_SMALL,
            Status::Unsupported => wsync_status::WSYNC_ERR_UNSUPPORTED,
            Status::Busy => wsync_status::WSYNC_ERR_BUSY,
            Status::LimitExceeded => wsync_status::WSYNC_ERR_LIMIT_EXCEEDED,
            Status::NotFound => wsync_status::WSYNC_ERR_NOT_FOUND,
            Status::InvalidState => wsync_status::WSYNC_ERR_INVALID_STATE,
            Status::PlanMismatch => wsync_status::WSYNC_ERR_PLAN_MISMATCH,
            Status::LayoutInvalid => wsync_status::WSYNC_ERR_LAYOUT_INVALID,
            Status::Corrupt => wsync_status::WSYNC_ERR_CORRUPT,
            Status::VersionMismatch => wsync_status::WSYNC_ERR_VERSION_MISMATCH,
            Status::BufferMismatch => wsync_status::WSYNC_ERR_BUFFER_MISMATCH,
            Status::StagingTooSmall => wsync_status::WSYNC_ERR_STAGING_TOO_SMALL,
            Status::ChecksumMismatch => wsync_status::WSYNC_ERR_CHECKSUM_MISMATCH,
            Status::Infeasible => wsync_status::WSYNC_ERR_INFEASIBLE,
            Status::LibraryNotFound => wsync_status::WSYNC_ERR_LIBRARY_NOT_FOUND,
            Status::LibraryTooOld => wsync_status::WSYNC_ERR_LIBRARY_TOO_OLD,
            Status::Io => wsync_status::WSYNC_ERR_IO,
            Status::OutOfMemory => wsync_status::WSYNC_ERR_OUT_OF_MEMORY,
            Status::System => wsync_status::WSYNC_ERR_SYSTEM,
            Status::AgreementTimeout => wsync_status::WSYNC_ERR_AGREEMENT_TIMEOUT,
            Status::Refused => wsync_status::WSYNC_ERR_REFUSED,
            Status::PeerLost => wsync_status::WSYNC_ERR_PEER_LOST,
            Status::Stalled => wsync_status::WSYNC_ERR_STALLED,
            Status::Aborted => wsync_status::WSYNC_ERR_ABORTED,
            Status::MeetTimeout => wsync_status::WSYNC_ERR_MEET_TIMEOUT,
            Status::Protocol => wsync_status::WSYNC_ERR_PROTOCOL,
            Status::Internal => wsync_status::WSYNC_ERR_INTERNAL,
            Status::Poisoned => wsync_status::WSYNC_ERR_POISONED,
        }
    }
}

/// Where a native error code comes from.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_native_domain {
    WSYNC_NATIVE_DOMAIN_NONE = 0,
    /// An errno of the operating system.
    WSYNC_NATIVE_DOMAIN_ERRNO = 1,
    /// An ncclResult_t.
    WSYNC_NATIVE_DOMAIN_NCCL = 2,
    /// A cudaError_t.
    WSYNC_NATIVE_DOMAIN_CUDA = 3,
    /// A ucs_status_t.
    WSYNC_NATIVE_DOMAIN_UCX = 4,
}

/// Which side of a plan a buffer belongs to.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_side {
    /// Training: bytes are read.
    WSYNC_SIDE_SOURCE = 1,
    /// Inference: bytes are written.
    WSYNC_SIDE_DESTINATION = 2,
}

/// Where a buffer lives.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_memory {
    /// Ordinary host memory.
    WSYNC_MEMORY_HOST = 0,
    /// Page-locked host memory.
    WSYNC_MEMORY_PINNED_HOST = 1,
    /// Memory of the GPU whose number stands beside it.
    WSYNC_MEMORY_DEVICE = 2,
}

/// Type codes of wsync_dtype, as DLPack numbers them.
///
/// Since: 0.1
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_dtype_code {
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
}

/// What became of destination memory. Anything but COMPLETE must not serve
/// the new version; anything but UNTOUCHED must not go on serving the old one.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_outcome {
    /// Nothing was written; the old version is intact.
    WSYNC_OUTCOME_UNTOUCHED = 1,
    /// Everything was written; the new version may serve.
    WSYNC_OUTCOME_COMPLETE = 2,
    /// Something may have been written, but not everything.
    WSYNC_OUTCOME_TORN = 3,
}

/// Where a request is. It only moves down this list, until it is prepared
/// again.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_state {
    /// Never prepared.
    WSYNC_STATE_IDLE = 0,
    /// The ranks are agreeing.
    WSYNC_STATE_PREPARING = 1,
    /// All ranks agree; start may be called.
    WSYNC_STATE_READY = 2,
    /// Bytes are moving.
    WSYNC_STATE_RUNNING = 3,
    /// This rank is done; the ranks are telling each other how it ended.
    WSYNC_STATE_SETTLING = 4,
    /// Ended well.
    WSYNC_STATE_DONE = 5,
    /// Ended otherwise; test, wait and report say why.
    WSYNC_STATE_FAILED = 6,
}

/// Why a call failed. The caller owns the record, sets struct_size, and may
/// pass NULL instead.
///
/// It is written only when a call fails; status and message then belong to
/// the value that the call returned. The message is one line and names the
/// thing and the numbers.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_error {
    /// sizeof(wsync_error), set by the caller.
    pub struct_size: usize,
    /// The wsync_status that the call returned.
    pub status: i32,
    /// The error code of a foreign library, verbatim; 0 if there is none.
    pub native_code: i32,
    /// A wsync_native_domain: whose code that is.
    pub native_domain: u32,
    /// The rank that caused the failure, or WSYNC_RANK_NONE.
    pub rank: u32,
    /// A sentence for a person, NUL-terminated.
    pub message: [c_char; 496],
}

/// Text inside an array or a struct: UTF-8, not necessarily NUL-terminated.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_text {
    /// May be NULL if bytes is 0.
    pub ptr: *const c_char,
    /// Of the text, without a NUL.
    pub bytes: usize,
}

/// A range of bytes that a call reads.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_bytes {
    /// May be NULL if bytes is 0.
    pub ptr: *const c_void,
    /// How many there are at `ptr`.
    pub bytes: usize,
}

/// A list of ranks that a call reads.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_rank_list {
    /// May be NULL if count is 0.
    pub ranks: *const u32,
    /// How many there are.
    pub count: usize,
}

/// An element type, laid out like a DLDataType. One element is bits * lanes
/// bits and always whole bytes: a packed pair of 4-bit values is {17, 4, 2}.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct wsync_dtype {
    /// A wsync_dtype_code.
    pub code: u8,
    /// Bits of one lane.
    pub bits: u8,
    /// Lanes of one element, at least 1.
    pub lanes: u16,
}

impl wsync_dtype {
    /// Not told.
    pub(super) const NONE: wsync_dtype = wsync_dtype {
        code: 0,
        bits: 0,
        lanes: 0,
    };
}

impl TryFrom<wsync_dtype> for Dtype {
    type Error = Error;

    fn try_from(d: wsync_dtype) -> Result<Dtype> {
        Dtype::new(d.code, d.bits, d.lanes)
    }
}

impl From<Dtype> for wsync_dtype {
    fn from(d: Dtype) -> wsync_dtype {
        wsync_dtype {
            code: d.code,
            bits: d.bits,
            lanes: d.lanes,
        }
    }
}

/// Identifies a plan: 128 bits over its inputs, its decision and the version
/// of the planner. Printed as 32 hexadecimal digits in this byte order.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct wsync_fingerprint {
    /// To be compared and printed as they are.
    pub bytes: [u8; 16],
}

/// What a rank needs to know to allocate and bind one buffer.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_buffer_info {
    /// sizeof(wsync_buffer_info), set by the caller.
    pub struct_size: usize,
    /// Bytes that the buffer must have.
    pub bytes: u64,
    /// A wsync_side, or 0 if a layout was asked, which may serve as either.
    pub side: u32,
    /// A wsync_memory.
    pub memory: u32,
    /// The GPU, if memory is WSYNC_MEMORY_DEVICE; else 0.
    pub device: u32,
    /// Bytes of the name, without its NUL.
    pub name_bytes: u32,
    /// The name, NUL-terminated.
    pub name: [c_char; 1032],
}

/// No rank.
///
/// Since: 0.1
pub const WSYNC_RANK_NONE: u32 = 0xFFFF_FFFF;
/// No step.
///
/// Since: 0.1
pub const WSYNC_STEP_NONE: u32 = 0xFFFF_FFFF;
/// A deadline that never comes.
///
/// Since: 0.1
pub const WSYNC_NO_DEADLINE: u64 = 0xFFFF_FFFF_FFFF_FFFF;
/// Axes of a tensor, at most.
///
/// Since: 0.1
pub const WSYNC_DIM_COUNT_MAX: usize = 8;
/// Bytes of a name, at most, without a NUL.
///
/// Since: 0.1
pub const WSYNC_NAME_BYTES_MAX: usize = 1024;
/// Bytes of a greeting, at most.
///
/// Since: 0.1
pub const WSYNC_GREETING_BYTES_MAX: usize = 512;

const _: () = assert!(WSYNC_DIM_COUNT_MAX == crate::limits::DIM_COUNT_MAX);
const _: () = assert!(WSYNC_NAME_BYTES_MAX == crate::limits::NAME_BYTES_MAX);
const _: () = assert!(WSYNC_GREETING_BYTES_MAX == crate::limits::GREETING_BYTES_MAX);

//! The values that cross the boundary.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;

/// A result code. Not an enum: a later NCCL may return values that nobody
/// knows today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ncclResult_t(pub c_int);

impl ncclResult_t {
    pub const SUCCESS: ncclResult_t = ncclResult_t(0);
    pub const UNHANDLED_CUDA_ERROR: ncclResult_t = ncclResult_t(1);
    pub const SYSTEM_ERROR: ncclResult_t = ncclResult_t(2);
    pub const INTERNAL_ERROR: ncclResult_t = ncclResult_t(3);
    pub const INVALID_ARGUMENT: ncclResult_t = ncclResult_t(4);
    pub const INVALID_USAGE: ncclResult_t = ncclResult_t(5);
    pub const REMOTE_ERROR: ncclResult_t = ncclResult_t(6);
    pub const IN_PROGRESS: ncclResult_t = ncclResult_t(7);
    /// Since 2.30.
    pub const TIMEOUT: ncclResult_t = ncclResult_t(8);

    /// The name in `nccl.h`; `None` for a value that is not known here.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "ncclSuccess",
            1 => "ncclUnhandledCudaError",
            2 => "ncclSystemError",
            3 => "ncclInternalError",
            4 => "ncclInvalidArgument",
            5 => "ncclInvalidUsage",
            6 => "ncclRemoteError",
            7 => "ncclInProgress",
            8 => "ncclTimeout",
            _ => return None,
        })
    }
}

/// An element type. Only bytes travel here, so only one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ncclDataType_t(pub c_int);

pub const ncclUint8: ncclDataType_t = ncclDataType_t(1);

/// A communicator, owned by NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ncclComm_t(pub *mut c_void);

impl ncclComm_t {
    pub const NULL: ncclComm_t = ncclComm_t(std::ptr::null_mut());

    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// What the ranks of a new communicator find each other by. Passed by value.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ncclUniqueId {
    pub internal: [c_char; NCCL_UNIQUE_ID_BYTES],
}

pub const NCCL_UNIQUE_ID_BYTES: usize = 128;

impl ncclUniqueId {
    pub fn from_bytes(bytes: [u8; NCCL_UNIQUE_ID_BYTES]) -> ncclUniqueId {
        ncclUniqueId {
            internal: bytes.map(|b| b as c_char),
        }
    }

    pub fn to_bytes(self) -> [u8; NCCL_UNIQUE_ID_BYTES] {
        self.internal.map(|c| c as u8)
    }
}

impl fmt::Debug for ncclUniqueId {
    /// Says nothing: whoever has the id can join the communicator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ncclUniqueId(..)")
    }
}

const _: () = assert!(size_of::<ncclUniqueId>() == 128 && align_of::<ncclUniqueId>() == 1);
const _: () = assert!(size_of::<ncclComm_t>() == 8 && size_of::<ncclResult_t>() == 4);

/// A CUDA stream, as NCCL takes it.
pub type cudaStream_t = *mut c_void;

/// In place of a colour: the rank becomes no member of a split communicator.
pub const NCCL_SPLIT_NOCOLOR: c_int = -1;
/// Shrinking: the parent is healthy.
pub const NCCL_SHRINK_DEFAULT: c_int = 0;
/// Shrinking: the parent's operations are stopped first.
pub const NCCL_SHRINK_ABORT: c_int = 1;
/// The only flags that `ncclCommRevoke` takes.
pub const NCCL_REVOKE_DEFAULT: c_int = 0;

/// `ncclGetVersion`'s number for a release.
pub const fn version_code(major: c_int, minor: c_int, patch: c_int) -> c_int {
    if major <= 2 && minor <= 8 {
        major * 1000 + minor * 100 + patch
    } else {
        major * 10000 + minor * 100 + patch
    }
}

/// The oldest NCCL that is supported: the first with `ncclCommSplit`.
pub const VERSION_MIN: c_int = version_code(2, 18, 1);

/// `2.30.7` for 23007.
pub fn version_text(code: c_int) -> String {
    let (major, rest) = match code {
        ..10000 => (code / 1000, code % 1000),
        _ => (code / 10000, code % 10000),
    };
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_they_are_written() {
        for (code, text) in [
            (2708, "2.7.8"),
            (21805, "2.18.5"),
            (22809, "2.28.9"),
            (23203, "2.32.3"),
        ] {
            assert_eq!(version_text(code), text);
        }
        assert_eq!(version_code(2, 30, 7), 23007);
        assert_eq!(version_code(2, 7, 8), 2708);
    }

    #[test]
    fn an_id_survives_and_is_not_shown() {
        let bytes = std::array::from_fn(|i| (i * 3) as u8);
        let id = ncclUniqueId::from_bytes(bytes);
        assert_eq!(id.to_bytes(), bytes);
        assert_eq!(format!("{id:?}"), "ncclUniqueId(..)");
    }
}

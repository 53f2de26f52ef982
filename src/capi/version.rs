//! Versions, statuses by name, and what to do about a status.

use super::types::{wsync_error, wsync_status};
use super::{copies, guard};
use crate::error::{Error, Status};
use std::ffi::{CStr, c_char};

/// Version of the header: major, minor and patch, 8 bits each.
///
/// Since: 0.1
pub const WSYNC_VERSION: u32 = 0x0000_0100;
/// The major part of it.
///
/// Since: 0.1
pub const WSYNC_VERSION_MAJOR: u32 = 0;
/// The minor part of it.
///
/// Since: 0.1
pub const WSYNC_VERSION_MINOR: u32 = 1;
/// The patch part of it.
///
/// Since: 0.1
pub const WSYNC_VERSION_PATCH: u32 = 0;
/// Number of the binary interface: the digit of libweightsync.so.0. Within one
/// number, functions, enum values and trailing struct fields are only added.
///
/// Since: 0.1
pub const WSYNC_ABI_VERSION: u32 = 0;

/// A number in decimal, at compile time.
const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(n) => n,
        Err(_) => u32::MAX,
    }
}

const _: () = assert!(WSYNC_VERSION_MAJOR == number(env!("CARGO_PKG_VERSION_MAJOR")));
const _: () = assert!(WSYNC_VERSION_MINOR == number(env!("CARGO_PKG_VERSION_MINOR")));
const _: () = assert!(WSYNC_VERSION_PATCH == number(env!("CARGO_PKG_VERSION_PATCH")));
const _: () = assert!(
    WSYNC_VERSION == WSYNC_VERSION_MAJOR << 16 | WSYNC_VERSION_MINOR << 8 | WSYNC_VERSION_PATCH
);
const _: () = assert!(WSYNC_ABI_VERSION == number(env!("WSYNC_ABI")));

const VERSION_STRING: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };

/// Version of the loaded library, packed like WSYNC_VERSION.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_version() -> u32 {
    WSYNC_VERSION
}

/// Version of the loaded library as text, such as "0.1.0". Static.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_version_string() -> *const c_char {
    VERSION_STRING.as_ptr()
}

/// Number of the binary interface of the loaded library. It is to equal
/// WSYNC_ABI_VERSION; wsync_header_matches says whether it does.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_abi_version() -> u32 {
    WSYNC_ABI_VERSION
}

/// The file that the library was loaded from, or the program it is linked into;
/// empty where that is not known. Static, never NULL.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_library_file() -> *const c_char {
    copies::own_file().as_ptr()
}

/// Checks that a caller compiled with WSYNC_VERSION and WSYNC_ABI_VERSION can
/// use the loaded library: one binary interface, and nothing declared that it
/// lacks. The message says which file was loaded and what to do.
/// wsync_header_matches is the same check without a message.
///
/// Errors: VERSION_MISMATCH.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_header_check(
    header_version: u32,
    header_abi_version: u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        if header_abi_version == WSYNC_ABI_VERSION && header_version <= WSYNC_VERSION {
            return Ok(());
        }
        let (wanted, soname) = (dotted(header_version), "libweightsync.so");
        let text = format!(
            "the program was compiled for version {wanted} with binary interface \
             {header_abi_version}, and the library {} has version {} with binary interface \
             {WSYNC_ABI_VERSION}; have {soname}.{header_abi_version} of {wanted} or newer found \
             (LD_LIBRARY_PATH, rpath, ldconfig), or compile anew",
            copies::own_file().to_string_lossy(),
            dotted(WSYNC_VERSION),
        );
        Err(Error::new(Status::VersionMismatch, text))
    })
}

/// A packed version as people write it.
fn dotted(version: u32) -> String {
    let byte = |shift: u32| version >> shift & 0xff;
    format!("{}.{}.{}", byte(16), byte(8), byte(0))
}

/// Name of a status, as this header spells it less WSYNC_ and ERR_, such as
/// "BUFFER_TOO_SMALL"; "UNKNOWN" for any other number. Static, never NULL.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_status_name(status: i32) -> *const c_char {
    match Status::from_code(status) {
        Some(status) => c_name(status).as_ptr(),
        None => c"UNKNOWN".as_ptr(),
    }
}

/// 1 if the same request may be prepared again on the same transport, for the
/// failure damaged nothing else; 0 otherwise. Takes any number.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_status_is_retryable(status: i32) -> i32 {
    Status::from_code(status)
        .is_some_and(Status::is_retryable)
        .into()
}

/// 1 if the transport is lost and has to be made anew; 0 otherwise. Takes any
/// number.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_status_is_transport_lost(status: i32) -> i32 {
    Status::from_code(status)
        .is_some_and(Status::is_transport_lost)
        .into()
}

/// The name of a status with its NUL.
const fn c_name(status: Status) -> &'static CStr {
    match status {
        Status::Ok => c"OK",
        Status::InProgress => c"IN_PROGRESS",
        Status::InvalidArgument => c"INVALID_ARGUMENT",
        Status::BadHandle => c"BAD_HANDLE",
        Status::BufferTooSmall => c"BUFFER_TOO_SMALL",
        Status::Unsupported => c"UNSUPPORTED",
        Status::Busy => c"BUSY",
        Status::LimitExceeded => c"LIMIT_EXCEEDED",
        Status::NotFound => c"NOT_FOUND",
        Status::InvalidState => c"INVALID_STATE",
        Status::PlanMismatch => c"PLAN_MISMATCH",
        Status::LayoutInvalid => c"LAYOUT_INVALID",
        Status::Corrupt => c"CORRUPT",
        Status::VersionMismatch => c"VERSION_MISMATCH",
        Status::BufferMismatch => c"BUFFER_MISMATCH",
        Status::StagingTooSmall => c"STAGING_TOO_SMALL",
        Status::ChecksumMismatch => c"CHECKSUM_MISMATCH",
        Status::Infeasible => c"INFEASIBLE",
        Status::LibraryNotFound => c"LIBRARY_NOT_FOUND",
        Status::LibraryTooOld => c"LIBRARY_TOO_OLD",
        Status::Io => c"IO",
        Status::OutOfMemory => c"OUT_OF_MEMORY",
        Status::System => c"SYSTEM",
        Status::AgreementTimeout => c"AGREEMENT_TIMEOUT",
        Status::Refused => c"REFUSED",
        Status::PeerLost => c"PEER_LOST",
        Status::Stalled => c"STALLED",
        Status::Aborted => c"ABORTED",
        Status::MeetTimeout => c"MEET_TIMEOUT",
        Status::Protocol => c"PROTOCOL",
        Status::Internal => c"INTERNAL",
        Status::Poisoned => c"POISONED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::types::wsync_status;

    #[test]
    fn c_names_are_the_names_and_codes_are_the_codes() {
        for &status in Status::ALL {
            assert_eq!(c_name(status).to_str(), Ok(status.name()));
            assert_eq!(wsync_status::from(status) as i32, status.code());
        }
    }
}

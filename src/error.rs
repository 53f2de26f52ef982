//! What can go wrong, grouped by what is damaged.
//!
//! A caller decides by the *range* of a status, a person reads the message:
//!
//! | range | what is damaged | what the caller may do |
//! |---|---|---|
//! | -1..-19 | nothing: the call was wrong | fix the call |
//! | -20..-39 | layouts, plan and data disagree | describe or plan again |
//! | -40..-59 | the environment | fix the installation |
//! | -60..-79 | this request; the transport is healthy | try again |
//! | -80..-99 | the transport | rebuild it |
//! | -100.. | our own invariants | report it, destroy the handle |
//!
//! Messages are one line, start in lower case, and name the thing and the
//! numbers: `tensor "lm_head.weight": axis 0 has 4096 rows on the source and
//! 8192 on the destination`.

#![forbid(unsafe_code)]

use crate::rank::Rank;

/// The result of a call, as it crosses the C boundary. Values never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    Ok = 0,
    /// Not finished yet; nothing is wrong.
    InProgress = 1,

    InvalidArgument = -1,
    BadHandle = -2,
    BufferTooSmall = -3,
    Unsupported = -4,
    Busy = -5,
    LimitExceeded = -6,
    NotFound = -7,
    InvalidState = -8,

    /// Ranks came with different plans, versions or flags.
    PlanMismatch = -20,
    /// A layout is ill-formed, or two layouts do not fit each other.
    LayoutInvalid = -21,
    /// Serialised bytes are damaged, truncated or foreign.
    Corrupt = -22,
    /// Made by a library this one does not understand.
    VersionMismatch = -23,
    /// A bound buffer differs from the planned one.
    BufferMismatch = -24,
    /// The staging budget cannot hold the smallest piece.
    StagingTooSmall = -25,
    /// Delivered bytes differ from the sent ones.
    ChecksumMismatch = -26,
    /// The chosen strategy cannot do what was asked; another can.
    Infeasible = -27,

    LibraryNotFound = -40,
    LibraryTooOld = -41,
    Io = -42,
    OutOfMemory = -43,
    System = -44,

    /// A peer did not agree in time; no byte moved.
    AgreementTimeout = -60,
    /// A peer refused; no byte moved.
    Refused = -61,

    /// A peer died.
    PeerLost = -80,
    /// A peer made no progress within the stall deadline.
    Stalled = -81,
    /// Somebody called abort.
    Aborted = -82,
    /// The peers did not meet in time.
    MeetTimeout = -83,
    /// Bytes on the wire were not the expected ones.
    Protocol = -84,

    Internal = -100,
    /// An earlier internal error made this handle unusable.
    Poisoned = -101,
}

impl Status {
    /// Every status, for tables and tests.
    pub const ALL: &'static [Status] = &[
        Status::Ok,
        Status::InProgress,
        Status::InvalidArgument,
        Status::BadHandle,
        Status::BufferTooSmall,
        Status::Unsupported,
        Status::Busy,
        Status::LimitExceeded,
        Status::NotFound,
        Status::InvalidState,
        Status::PlanMismatch,
        Status::LayoutInvalid,
        Status::Corrupt,
        Status::VersionMismatch,
        Status::BufferMismatch,
        Status::StagingTooSmall,
        Status::ChecksumMismatch,
        Status::Infeasible,
        Status::LibraryNotFound,
        Status::LibraryTooOld,
        Status::Io,
        Status::OutOfMemory,
        Status::System,
        Status::AgreementTimeout,
        Status::Refused,
        Status::PeerLost,
        Status::Stalled,
        Status::Aborted,
        Status::MeetTimeout,
        Status::Protocol,
        Status::Internal,
        Status::Poisoned,
    ];

    /// The value that crosses the C boundary.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The status with this value, if there is one.
    pub fn from_code(code: i32) -> Option<Status> {
        Status::ALL.iter().copied().find(|s| s.code() == code)
    }

    /// A short stable name, as the C header spells it less its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::InProgress => "IN_PROGRESS",
            Status::InvalidArgument => "INVALID_ARGUMENT",
            Status::BadHandle => "BAD_HANDLE",
            Status::BufferTooSmall => "BUFFER_TOO_SMALL",
            Status::Unsupported => "UNSUPPORTED",
            Status::Busy => "BUSY",
            Status::LimitExceeded => "LIMIT_EXCEEDED",
            Status::NotFound => "NOT_FOUND",
            Status::InvalidState => "INVALID_STATE",
            Status::PlanMismatch => "PLAN_MISMATCH",
            Status::LayoutInvalid => "LAYOUT_INVALID",
            Status::Corrupt => "CORRUPT",
            Status::VersionMismatch => "VERSION_MISMATCH",
            Status::BufferMismatch => "BUFFER_MISMATCH",
            Status::StagingTooSmall => "STAGING_TOO_SMALL",
            Status::ChecksumMismatch => "CHECKSUM_MISMATCH",
            Status::Infeasible => "INFEASIBLE",
            Status::LibraryNotFound => "LIBRARY_NOT_FOUND",
            Status::LibraryTooOld => "LIBRARY_TOO_OLD",
            Status::Io => "IO",
            Status::OutOfMemory => "OUT_OF_MEMORY",
            Status::System => "SYSTEM",
            Status::AgreementTimeout => "AGREEMENT_TIMEOUT",
            Status::Refused => "REFUSED",
            Status::PeerLost => "PEER_LOST",
            Status::Stalled => "STALLED",
            Status::Aborted => "ABORTED",
            Status::MeetTimeout => "MEET_TIMEOUT",
            Status::Protocol => "PROTOCOL",
            Status::Internal => "INTERNAL",
            Status::Poisoned => "POISONED",
        }
    }

    /// True if the same request may be tried again on the same transport.
    pub const fn is_retryable(self) -> bool {
        matches!(self.code(), -79..=-60)
    }

    /// True if the transport is lost and must be rebuilt.
    pub const fn is_transport_lost(self) -> bool {
        matches!(self.code(), -99..=-80)
    }
}

/// Where a foreign error code comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NativeDomain {
    None = 0,
    Errno = 1,
    Nccl = 2,
    Cuda = 3,
    Ucx = 4,
}

/// One failure: its status, the rank it blames if it blames one, and a
/// sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub status: Status,
    /// The rank that caused it, where one did.
    pub rank: Option<Rank>,
    pub native_domain: NativeDomain,
    pub native_code: i32,
    pub message: String,
}

/// Short for a result with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a culprit.
    pub fn new(status: Status, message: impl Into<String>) -> Error {
        Error {
            status,
            rank: None,
            native_domain: NativeDomain::None,
            native_code: 0,
            message: message.into(),
        }
    }

    /// The same error, blaming `rank`.
    #[must_use]
    pub fn by(mut self, rank: Rank) -> Error {
        self.rank = Some(rank);
        self
    }

    /// An error of the operating system: `doing` says what was attempted.
    pub fn os(doing: impl std::fmt::Display, e: &std::io::Error) -> Error {
        let status = match e.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOSPC) => Status::OutOfMemory,
            _ => Status::Io,
        };
        Error {
            native_domain: NativeDomain::Errno,
            native_code: e.raw_os_error().unwrap_or(0),
            ..Error::new(status, format!("{doing}: {e}"))
        }
    }

    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Status::InvalidArgument, message)
    }

    pub fn layout(message: impl Into<String>) -> Error {
        Error::new(Status::LayoutInvalid, message)
    }

    pub fn limit(message: impl Into<String>) -> Error {
        Error::new(Status::LimitExceeded, message)
    }

    pub fn corrupt(message: impl Into<String>) -> Error {
        Error::new(Status::Corrupt, message)
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Status::Internal, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_value_and_one_name() {
        for (i, a) in Status::ALL.iter().enumerate() {
            assert_eq!(Status::from_code(a.code()), Some(*a));
            for b in &Status::ALL[i + 1..] {
                assert_ne!(a.code(), b.code());
                assert_ne!(a.name(), b.name());
            }
        }
    }

    #[test]
    fn ranges_say_what_is_damaged() {
        assert!(Status::AgreementTimeout.is_retryable());
        assert!(!Status::PeerLost.is_retryable());
        assert!(Status::PeerLost.is_transport_lost());
        assert!(!Status::Internal.is_transport_lost());
    }
}

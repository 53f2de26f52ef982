//! From a plan to moving bytes: who runs it, when, and how it ends.
//!
//! ```text
//!   Endpoint  the transport of one rank: data plane + control channel
//!      │        greeting / meet / rendezvous, abort, finalize
//!      ▼
//!   Session   buffers bound by name; loads any number of plans
//!      │        bind, load, unload
//!      ▼
//!   Request   one execution of one plan for one version; used again and again
//!               prepare ─► READY ─► start ─► test / wait ─► outcome
//! ```
//!
//! The control channel is a tree over all ranks; the lowest rank coordinates.
//! It compares what ranks come with before the first byte moves
//! (`agreement`), watches them while bytes move (`watchdog`) and says how
//! it ended for every copy ([`outcome`]). Every wait is bounded by a deadline,
//! and every failure names its culprit.
//!
//! Each rank runs at most one request at a time: the order of messages between
//! two ranks is the order of their requests, and so it is the same on both.

#![forbid(unsafe_code)]

mod agreement;
mod comparison;
mod coordinator;
mod devices;
pub mod endpoint;
mod flight;
mod landscape;
mod member;
pub mod message;
mod needs;
mod outbox;
pub mod outcome;
pub mod rank_set;
pub mod report;
pub mod request;
pub mod session;
mod shared;
mod standstill;
pub mod view;
mod watchdog;

pub use endpoint::Endpoint;
pub use outcome::Outcome;
pub use rank_set::RankSet;
pub use report::RequestReport;
pub use request::{Request, RequestOptions, State};
pub use session::{BufferBinding, PlanSlot, Session, SessionOptions};
pub use view::PlanView;

use std::time::{Duration, Instant};

/// A deadline that never comes.
pub const NO_DEADLINE: u64 = u64::MAX;
/// How long `prepare` gives peers to agree, unless told otherwise.
pub const AGREE_DEADLINE_DEFAULT_NS: u64 = 60_000_000_000;
/// How long a step may take, unless told otherwise.
pub const STALL_DEADLINE_DEFAULT_NS: u64 = 30_000_000_000;
/// How long `load` waits for peers to be reachable, unless told otherwise.
pub const LOAD_DEADLINE_DEFAULT_NS: u64 = 30_000_000_000;

/// Compare the digests of sent and delivered bytes before saying COMPLETE.
pub const FLAG_VERIFY: u32 = 1;
/// Agree and report, but move nothing.
pub const FLAG_DRY_RUN: u32 = 2;
/// Every flag that a caller may set.
pub const FLAGS_ALL: u32 = FLAG_VERIFY | FLAG_DRY_RUN;

/// The instant `ns` from now; `None` if it never comes.
pub(crate) fn instant_in(now: Instant, ns: u64) -> Option<Instant> {
    if ns == NO_DEADLINE {
        return None;
    }
    now.checked_add(Duration::from_nanos(ns))
}

/// `ns`, or the default where it is zero.
pub(crate) fn or_default(ns: u64, default: u64) -> u64 {
    if ns == 0 { default } else { ns }
}

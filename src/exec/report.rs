//! What there is to say about one execution, for people and programs.

use super::flight::FlightInner;
use super::message::NO_COPY;
use super::request::State;
use super::session::Slot;
use super::{FLAG_DRY_RUN, FLAG_VERIFY, Outcome};
use crate::error::Error;
use crate::rank::Rank;
use serde::Serialize;
use std::time::Instant;

/// Everything about one execution on one rank.
#[derive(Clone, Debug, Serialize)]
pub struct RequestReport {
    pub rank: Rank,
    /// Fingerprint of the plan, as 32 hexadecimal digits.
    pub plan: String,
    /// How many times the plan has been prepared on this transport.
    pub sequence: u64,
    pub version: u64,
    pub state: State,
    /// This rank's destination memory; set once the request has ended.
    pub rank_outcome: Option<Outcome>,
    /// The copy this rank belongs to, or all copies if it belongs to none.
    pub copy_outcome: Option<Outcome>,
    pub copy: Option<u32>,
    pub error: Option<ErrorReport>,
    pub is_dry_run: bool,
    pub is_verified: bool,
    /// True if the digests are those of the version before: nothing changed.
    pub is_unchanged: Option<bool>,
    pub step_count: u32,
    pub steps_done: u32,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub bytes_local: u64,
    pub times: Times,
    /// Bytes sent, received and copied locally, over the time from `start`
    /// until the last byte, in 10^9 bytes per second.
    pub gigabytes_per_second: Option<f64>,
    /// Published digests of the version, if it was verified.
    pub digests: Vec<TensorDigest>,
}

/// How long each part took, in nanoseconds; absent where it did not happen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Times {
    /// From `prepare` to READY.
    pub agree_ns: Option<u64>,
    /// From READY to `start`.
    pub idle_ns: Option<u64>,
    /// From `start` until every byte was in place on this rank.
    pub move_ns: Option<u64>,
    /// From then until all ranks had said so.
    pub settle_ns: Option<u64>,
    /// From `prepare` to the end.
    pub total_ns: Option<u64>,
}

/// An error, spelled out.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorReport {
    pub status: i32,
    pub name: &'static str,
    /// The culprit, where there is one.
    pub rank: Option<Rank>,
    pub message: String,
}

/// The digest of one tensor of one version.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct TensorDigest {
    pub tensor: String,
    /// 16 hexadecimal digits.
    pub digest: String,
}

impl RequestReport {
    pub(crate) fn new(slot: &Slot, inner: &FlightInner) -> RequestReport {
        let program = &slot.program;
        let bytes = program.bytes_sent + program.bytes_received + program.bytes_local;
        let times = times(inner);
        let speed = times.move_ns.filter(|_| inner.flags & FLAG_DRY_RUN == 0);
        RequestReport {
            rank: program.rank,
            plan: format!("{:032x}", slot.card.plan),
            sequence: inner.key.sequence,
            version: inner.version,
            state: inner.state,
            rank_outcome: inner.rank_outcome,
            copy_outcome: inner.copy_outcome,
            copy: Some(slot.card.copy).filter(|c| *c != NO_COPY),
            error: inner.error.as_ref().map(ErrorReport::new),
            is_dry_run: inner.flags & FLAG_DRY_RUN != 0,
            is_verified: inner.flags & FLAG_VERIFY != 0 && inner.has_digests,
            is_unchanged: inner.is_unchanged,
            step_count: program.steps.len() as u32,
            steps_done: inner.steps_done,
            bytes_sent: program.bytes_sent,
            bytes_received: program.bytes_received,
            bytes_local: program.bytes_local,
            times,
            gigabytes_per_second: speed
                .filter(|ns| *ns > 0)
                .map(|ns| bytes as f64 / ns as f64),
            digests: digests(slot, inner),
        }
    }
}

impl ErrorReport {
    fn new(e: &Error) -> ErrorReport {
        ErrorReport {
            status: e.status.code(),
            name: e.status.name(),
            rank: e.rank,
            message: e.message.clone(),
        }
    }
}

fn times(inner: &FlightInner) -> Times {
    let t = &inner.times;
    let between = |a: Option<Instant>, b: Option<Instant>| {
        let ns = b?.saturating_duration_since(a?).as_nanos();
        Some(u64::try_from(ns).unwrap_or(u64::MAX))
    };
    Times {
        agree_ns: between(t.prepared, t.ready),
        idle_ns: between(t.ready, t.started),
        move_ns: between(t.started, t.moved),
        settle_ns: between(t.moved, t.finished),
        total_ns: between(t.prepared, t.finished),
    }
}

fn digests(slot: &Slot, inner: &FlightInner) -> Vec<TensorDigest> {
    if !inner.has_digests {
        return Vec::new();
    }
    let tensors = slot.plan.tensors().iter();
    tensors
        .zip(&inner.digests)
        .map(|(t, d)| TensorDigest {
            tensor: t.name.clone(),
            digest: format!("{d:016x}"),
        })
        .collect()
}

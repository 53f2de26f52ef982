//! Plans as bytes, and what differs between two of them.
//!
//! The bytes hold the canonical inputs and the decision, nothing derived, in
//! a frame with magic, version, length and checksum. Reading them goes through
//! the same checks as making a plan, so a plan from a file is as good as one
//! made here.

use super::{Ground, OwnedBody, PLANNER_VERSION, Plan};
use crate::error::{Error, Result, Status};
use crate::layout::{Layout, frame};
use crate::limits::BUCKET_COUNT_MAX;
use serde::Serialize;
use std::sync::Arc;

/// The first bytes of a plan.
pub const PLAN_BLOB_MAGIC: [u8; 8] = *b"wsyncpln";
/// Version of the bytes of a plan.
pub const PLAN_BLOB_VERSION: u32 = 1;
const WHAT: &str = "a weightsync plan";

impl Plan {
    /// The plan as bytes, equal wherever the plan is equal.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(frame::seal(
            PLAN_BLOB_MAGIC,
            PLAN_BLOB_VERSION,
            &self.body()?,
        ))
    }

    /// The plan that [`Plan::to_bytes`] wrote, on any machine.
    ///
    /// Truncated, damaged and foreign bytes are `CORRUPT`, those of another
    /// format or planner `VERSION_MISMATCH`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan> {
        let payload = frame::open(PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, WHAT, bytes)?;
        let (body, rest): (OwnedBody, _) = postcard::take_from_bytes(payload)
            .map_err(|e| Error::corrupt(format!("{WHAT} cannot be read: {e}")))?;
        if !rest.is_empty() {
            return Err(Error::corrupt(format!(
                "{WHAT} is followed by {} bytes that are no part of it",
                rest.len()
            )));
        }
        if body.planner_version != PLANNER_VERSION {
            return Err(Error::new(
                Status::VersionMismatch,
                format!(
                    "{WHAT} was made by planner {}; this library has planner {PLANNER_VERSION}",
                    body.planner_version
                ),
            ));
        }
        let d = &body.decision;
        if d.bucket_count == 0 || d.bucket_count > BUCKET_COUNT_MAX || d.direct_bytes_min == 0 {
            return Err(Error::corrupt(format!(
                "{WHAT} has {} buckets and direct_bytes_min {}",
                d.bucket_count, d.direct_bytes_min
            )));
        }
        let source = Arc::new(Layout::new(body.source)?);
        let destination = Arc::new(Layout::new(body.destination)?);
        let ground = Ground::new(body.topology, &source, &destination)?;
        let mut plan = Plan::assemble(source, destination, body.decision, ground, body.selectors)?;
        plan.refuse_misfits()?;
        plan.seal()?;
        Ok(plan)
    }
}

/// What a second plan does otherwise than a first.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlanDiff {
    pub is_equal: bool,
    pub fingerprints: [String; 2],
    /// True where the inputs of that side differ.
    pub source_differs: bool,
    pub destination_differs: bool,
    pub decision_differs: bool,
    /// True if they select other tensors.
    pub selection_differs: bool,
    /// True if other things stand between the ranks; programs may be the same
    /// in spite of that.
    pub topology_differs: bool,
    /// Tensors that only one of the plans moves.
    pub tensors_removed: Vec<String>,
    pub tensors_added: Vec<String>,
    /// Ranks that only one of the plans involves.
    pub ranks_removed: Vec<u32>,
    pub ranks_added: Vec<u32>,
    /// Ranks of both whose program differs.
    pub ranks_changed: Vec<u32>,
}

impl Plan {
    /// What `other` does otherwise. Derives every program of both plans.
    pub fn diff(&self, other: &Plan) -> Result<PlanDiff> {
        let names =
            |p: &Plan| -> Vec<String> { p.tensors.iter().map(|t| t.name.clone()).collect() };
        let ranks = |p: &Plan| -> Vec<u32> { p.participants().iter().map(|r| r.0).collect() };
        let ground = |p: &Plan| p.topology_spec.clone().unwrap_or_default();
        let (a, b) = (names(self), names(other));
        let (r, s) = (ranks(self), ranks(other));
        let mut diff = PlanDiff {
            is_equal: self.fingerprint == other.fingerprint,
            fingerprints: [self, other].map(|p| format!("{:032x}", p.fingerprint)),
            source_differs: self.source.spec() != other.source.spec(),
            destination_differs: self.destination.spec() != other.destination.spec(),
            decision_differs: self.decision != other.decision,
            selection_differs: self.selectors != other.selectors,
            topology_differs: ground(self) != ground(other),
            tensors_removed: without(&a, &b),
            tensors_added: without(&b, &a),
            ranks_removed: without(&r, &s),
            ranks_added: without(&s, &r),
            ranks_changed: Vec::new(),
        };
        if !diff.is_equal {
            for rank in self
                .participants()
                .iter()
                .filter(|x| s.binary_search(&x.0).is_ok())
            {
                if self.ops_key(*rank)? != other.ops_key(*rank)? {
                    diff.ranks_changed.push(rank.0);
                }
            }
        }
        Ok(diff)
    }

    /// What a rank exchanges, whatever the indices of its tensors.
    fn ops_key(&self, rank: crate::rank::Rank) -> Result<Vec<u8>> {
        let ops = self.ops(rank)?;
        serde_json::to_vec(&ops).map_err(|e| Error::internal(format!("operations: {e}")))
    }
}

/// The elements of sorted `a` that sorted `b` lacks.
fn without<T: Ord + Clone>(a: &[T], b: &[T]) -> Vec<T> {
    a.iter()
        .filter(|x| b.binary_search(x).is_err())
        .cloned()
        .collect()
}

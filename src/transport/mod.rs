//! How bytes get from rank to rank.
//!
//! A [`Transport`] takes a step's messages and returns a fence; it never
//! waits. Every rank enqueues the same steps in the same order, so the n-th
//! message of a pair on one side is the n-th on the other: nothing is tagged,
//! nothing is negotiated.

pub mod loopback;
pub mod shm;

mod queue;

use crate::device::Binding;
use crate::device::fence::{AbortCell, Fence};
use crate::error::Result;
use crate::rank::Rank;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far a transport has come. For reports and for the watchdog, which sees
/// a stall where `steps_done` and the bytes stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub steps_enqueued: u64,
    pub steps_done: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// Misbehaviour for tests: `rank` does `kind` when it is about to begin its
/// `step`-th step, counted from 0 over all steps of its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub rank: Rank,
    pub step: u64,
    pub kind: FaultKind,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The rank makes no further step until it is aborted.
    Stall,
    /// The rank is gone: a process kills itself; on loopback it makes no
    /// further step, and neither hears nor tells of aborts. Only its own abort
    /// word, or dropping its transport, releases its fences.
    Die,
    /// The rank goes on after this time.
    Delay(Duration),
}

/// The data plane of one rank. Thread safe; outlives sessions.
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Short name, as the C API and the command line spell it.
    fn name(&self) -> &'static str;

    fn rank(&self) -> Rank;

    /// True if the transport reads and writes strided pieces itself. The
    /// session then neither packs nor unpacks, and no staging is allocated.
    fn gathers(&self) -> bool;

    /// Gets ready to exchange the messages of `binding` with its peers. Called
    /// once per loaded plan, before its first request; may wait until
    /// `deadline` for peers to be reachable, but not for them to load it.
    fn connect(&self, binding: &Binding, deadline: Instant) -> Result<()>;

    /// Adds the messages of one step. Source bytes may be read once `after`
    /// is reached; the returned fence is reached when every message of the
    /// step has left and arrived. Never waits, never allocates once warm.
    /// After an abort nothing is written and the fence is reached.
    fn enqueue(
        &self,
        binding: &Arc<Binding>,
        step: u32,
        sequence: u64,
        after: &Fence,
    ) -> Result<Fence>;

    /// The word that stops this rank's transport, device work and requests.
    fn abort_cell(&self) -> &Arc<AbortCell>;

    /// Wakes whatever sleeps, so that it sees the abort word.
    fn wake(&self);
    /// How far this rank has come.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}

//! How bytes get from rank to rank.
//!
//! A [`Transport`] takes a step's messages and returns a fence; it never
//! waits. Every rank enqueues the same steps in the same order, so the n-th
//! message of a pair on one side is the n-th on the other: nothing is tagged,
//! nothing is negotiated.
//!
//! Beside this data plane every rank has a small [`control`] channel to its
//! neighbours in a tree over all ranks. Both find their peers through
//! [`greeting`]s, which the caller gathers however it likes, or through the
//! built-in [`rendezvous`].

pub mod bootstrap;
pub mod control;
pub mod greeting;
pub mod host;
pub mod loopback;
pub mod nccl;
pub mod place;
pub mod rendezvous;
pub mod shm;
pub mod waits;

mod mac;
mod nics;
pub(crate) mod patience;
mod queue;

use crate::device::Binding;
use crate::device::fence::{AbortCell, Fence};
use crate::error::Result;
use crate::plan::program::Program;
use crate::rank::Rank;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use waits::Waits;

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

/// Which data plane: the same on all ranks that meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[repr(u8)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Ranks as threads of one process.
    Loopback = 1,
    /// Ranks as processes on one host.
    Shm = 2,
    Nccl = 3,
    Ucx = 4,
    /// The user's own engine.
    Custom = 5,
}

impl Kind {
    pub const ALL: &'static [Kind] = &[
        Kind::Loopback,
        Kind::Shm,
        Kind::Nccl,
        Kind::Ucx,
        Kind::Custom,
    ];

    /// Short name, as the C API and the command line spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Loopback => "loopback",
            Kind::Shm => "shm",
            Kind::Nccl => "nccl",
            Kind::Ucx => "ucx",
            Kind::Custom => "custom",
        }
    }

    pub fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|k| *k as u8 == code)
    }

    /// True if all ranks are on one host, so that the control channel can use
    /// Unix sockets.
    pub const fn is_one_host(self) -> bool {
        matches!(self, Kind::Loopback | Kind::Shm)
    }
}

/// A data plane that has an address but no peers yet: what an endpoint starts
/// from.
pub trait Bootstrap: Send + std::fmt::Debug {
    fn kind(&self) -> Kind;

    /// What peers need to reach this rank; travels in its greeting. At most
    /// [`greeting::ADDRESS_BYTES_MAX`] bytes, empty if nothing is needed.
    fn address(&self) -> &[u8];

    /// What calls a meeting off that takes long and needs every rank; `None` if
    /// meeting is over at once.
    fn abort_cell(&self) -> Option<Arc<AbortCell>> {
        None
    }

    /// Makes the transport. `peers` holds every rank, ascending, this one
    /// included, with its address; `group` is a secret that all of them share.
    fn meet(
        self: Box<Self>,
        rank: Rank,
        peers: &[(Rank, Vec<u8>)],
        group: u128,
        deadline: Instant,
    ) -> Result<Arc<dyn Transport>>;
}

/// The other ranks of a plan, as far as a transport has to know.
#[derive(Clone, Copy, Debug)]
pub struct Company<'a> {
    /// Names the plan, the same on all ranks.
    pub plan: u128,
    /// All ranks that load the plan, ascending.
    pub participants: &'a [Rank],
    /// The programs of those that are [`guests`](Transport::guests).
    pub guests: &'a [(Rank, Program)],
}

/// The data plane of one rank. Thread safe; outlives sessions.
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Short name, as the C API and the command line spell it.
    fn name(&self) -> &'static str;

    fn rank(&self) -> Rank;

    /// True if the transport reads and writes strided pieces itself. The
    /// session then neither packs nor unpacks, and no staging is allocated.
    fn gathers(&self) -> bool;

    /// The GPU that the transport moves bytes of, if it needs one: buffers on
    /// the host are then staged through it.
    fn gpu(&self) -> Option<u32> {
        None
    }

    /// The ranks whose messages may pass this one on their way.
    fn guests(&self) -> &[Rank] {
        &[]
    }

    /// Gets ready to have messages of others pass, and to have others pass those
    /// of `binding`. Called once per loaded plan, before [`connect`](Transport::connect).
    fn serve(&self, _binding: &Binding, _company: &Company<'_>) -> Result<()> {
        Ok(())
    }

    /// Gets ready to exchange the messages of `binding` with its peers. Called
    /// once per loaded plan, before its first request; may wait until
    /// `deadline` for peers to be reachable, but not for them to load it.
    fn connect(&self, binding: &Binding, deadline: Instant) -> Result<()>;

    /// Tells peers where the memory of `binding` is, if they are to know. Called
    /// for every request, before the ranks agree to it.
    fn prepare(&self, _binding: &Binding) -> Result<()> {
        Ok(())
    }

    /// Adds the messages of one step. Source bytes may be read once `after`
    /// is reached; the returned fence is reached when every message of the
    /// step has left and arrived. Steps are finished in the order in which
    /// they were enqueued. Never waits, never allocates once warm. After an
    /// abort nothing is written and the fence is reached.
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

    /// The peers that this rank's oldest unfinished message may wait for, if it
    /// waits for a peer and not for local work. When a transfer stalls, the
    /// watchdog follows these to the rank that everybody waits for.
    fn waits_for(&self) -> Waits {
        Waits::NONE
    }

    /// What a transport of the survivors can be made of once this one has
    /// failed, if it keeps anything.
    fn remains(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// How far this rank has come.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}

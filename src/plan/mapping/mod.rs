//! Who sends to whom: the rank mapping.
//!
//! A mapping is made from parallel sizes and a placement, or from explicit rank
//! lists, without looking at a single tensor. It answers, for each stage, which
//! rank sends to which other rank and in what order.
//!
//! # The idea
//!
//! Every destination rank needs the slice of each weight that its tensor
//! parallel position asks for. If the destination has `m` times the tensor
//! parallelism of the source, then `m` neighbouring destination ranks together
//! need exactly what one source rank holds. These `m` ranks are a
//! *weight-mapping group*. Each source rank sends once to one *receiver* of the
//! group (stage 1), and the receiver *forwards* to the other members what is
//! theirs (stage 2), over the fast links inside a replica:
//!
//! ```text
//!   source TP 1, PP 4            destination TP 2, one replica, m = 2
//!
//!   stage 0: rank 0 ─────────────► rank 4 ─╮  4 forwards to 5 what came
//!   stage 1: rank 1 ──────╲  ╱───►         │  from 0 and 2; 5 forwards
//!   stage 2: rank 2 ───────╳───            │  to 4 what came from 1 and 3
//!   stage 3: rank 3 ──────╱  ╲───► rank 5 ─╯
//! ```
//!
//! A balancer spreads the pipeline stages over the members of a group,
//! so that no member receives more than its share, and avoids pairs whose ends
//! sit on one device: two ranks of one device cannot meet in one communicator
//! of a collective library. Where that does not matter, because the transport
//! carries a message inside the device, or because both sides are one rank and
//! a local copy does it, [`MappingSpec::keep_same_device`] keeps such pairs.
//!
//! ```
//! use weightsync::plan::mapping::{two_stage, DestinationSizes, MappingSpec, SourceSizes};
//!
//! let spec = MappingSpec {
//!     source: SourceSizes { tp: 1, pp: 4, ..SourceSizes::ONE },
//!     destination: DestinationSizes { tp: 2, ..DestinationSizes::ONE },
//!     source_devices: vec![0, 1, 2, 3],
//!     destination_devices: vec![4, 5],
//!     ..MappingSpec::default()
//! };
//! let mapping = two_stage(&spec)?;
//! let pairs: Vec<_> = mapping.pairs.iter().map(|p| (p.sender.0, p.receiver.0)).collect();
//! assert_eq!(pairs, [(0, 4), (1, 5), (2, 4), (3, 5)]);
//! let forwards: Vec<_> = mapping.forwards.iter().map(|p| (p.sender.0, p.receiver.0)).collect();
//! assert_eq!(forwards, [(4, 5), (5, 4)]);
//! # Ok::<(), weightsync::Error>(())
//! ```
//!
//! # Variants
//!
//! | function | when | stages |
//! |---|---|---|
//! | [`two_stage`] | destination TP is `m >= 1` times source TP | pairs, then forwards |
//! | [`single_stage`] | one TP divides the other | pairs only |
//! | [`expert`] | mixture of experts, source EP >= destination EP | routed experts on their own, or with the rest |
//!
//! # Numbering
//!
//! Ranks are numbered source first: source actor `k` is rank `k`, destination
//! actor `k` is rank `source_devices.len() + k`. Without explicit lists, source
//! ranks are ordered as Megatron orders them,
//! `rank = t + TP*(c + CP*(e + EP*(d + DP*p)))`, and the ranks of a replica are
//! laid out `[PP][EP][TP]`.
//!
//! # What is accepted, and what is refused
//!
//! * *Context parallel* ranks hold equal weights, so each context index counts
//!   as one more data-parallel copy: copy `(d, c)` precedes `(d, c + 1)`.
//! * *Source expert parallel* is extra data parallelism for everything but
//!   routed experts: copy `(d, c, e)` precedes `(d, c, e + 1)`.
//! * *Destination expert parallel* is the same on the other side: in
//!   [`two_stage`] each expert row of a replica is served like a replica of its
//!   own; in [`single_stage`] expert row `f` is fed by source row `f mod EP`.
//! * *Source lists longer than one copy* are cut into consecutive copies.
//! * *More destination stages than source stages*: if one count divides the
//!   other, stages are aligned, and a source stage feeds each destination stage
//!   that lies inside it.
//! * *Destination ranks* may start anywhere: a rank's slice follows from its
//!   position in its group, never from its number.
//! * *Colocated models* (any shared device, unless [`MappingSpec::colocated`]
//!   says otherwise) take source copies from the last to the first in
//!   [`single_stage`] and [`expert`] if the source TP is odd.
//!
//! Everything else is refused, in one of three ways ([`Refusal`]): sizes that
//! this mapping cannot serve are a *constraint* ([`Status::Unsupported`]), named
//! with its numbers; a source rank whose every candidate shares its device is
//! *infeasible* ([`Status::Infeasible`]); an input that contradicts itself is
//! *invalid input* ([`Status::InvalidArgument`], [`Status::LimitExceeded`]).
//!
//! # Cost
//!
//! Linear in the number of pairs and forwards, up to the logarithm of the group
//! size; a source rank that shares its device with a candidate costs one pass
//! over its group.

mod balancer;
mod expert;
mod lists;
mod peers;
mod single_stage;
mod stages;
mod two_stage;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, Status};
use crate::rank::Rank;

pub use expert::{ExpertMapping, Regroup, expert};
pub use peers::{PeerLists, RankLists};
pub use single_stage::single_stage;
pub use two_stage::two_stage;

/// Pairs and forwards of one mapping, and members of its regroup groups.
pub const PAIR_COUNT_MAX: u64 = 1 << 24;

/// How the source is parallelised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSizes {
    /// Tensor parallel.
    pub tp: u32,
    /// Pipeline parallel.
    pub pp: u32,
    /// Expert parallel.
    #[serde(default = "one")]
    pub ep: u32,
    /// Data parallel; with expert parallel, expert data parallel.
    #[serde(default = "one")]
    pub dp: u32,
    /// Context parallel.
    #[serde(default = "one")]
    pub cp: u32,
}

impl SourceSizes {
    /// One rank.
    pub const ONE: SourceSizes = SourceSizes {
        tp: 1,
        pp: 1,
        ep: 1,
        dp: 1,
        cp: 1,
    };
}

/// How the destination is parallelised: one replica, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestinationSizes {
    /// Tensor parallel.
    pub tp: u32,
    /// Pipeline parallel.
    pub pp: u32,
    /// Expert parallel.
    #[serde(default = "one")]
    pub ep: u32,
    /// Replicas of `tp * pp * ep` ranks each.
    #[serde(default = "one")]
    pub replicas: u32,
}

impl DestinationSizes {
    /// One replica of one rank.
    pub const ONE: DestinationSizes = DestinationSizes {
        tp: 1,
        pp: 1,
        ep: 1,
        replicas: 1,
    };
}

fn one() -> u32 {
    1
}

/// What a mapping is made from.
///
/// The rank lists are optional: without them they follow from the sizes, as the
/// [module](self) says. With them, a runtime says exactly which ranks form
/// which copy, for instance because some are drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingSpec {
    pub source: SourceSizes,
    pub destination: DestinationSizes,
    /// Device of every source actor, by rank. Devices are numbered over all
    /// hosts; equal numbers mean the same device.
    pub source_devices: Vec<u32>,
    /// Device of every destination actor, in order of rank.
    pub destination_devices: Vec<u32>,
    /// Whether both models live on the same devices; where absent, they do if
    /// any device is shared. [`single_stage`] and [`expert`] then take the
    /// source copies in reverse order if the source TP is odd.
    pub colocated: Option<bool>,
    /// Same-device pairs are as good as any other: nothing is avoided, nothing
    /// is infeasible. A message inside the device serves them, or a local copy
    /// where a caller makes one rank of both.
    pub keep_same_device: bool,
    /// The destination of [`expert`] is vLLM, not Megatron.
    pub destination_is_vllm: bool,
    /// One list per source copy. [`two_stage`] and [`expert`] (for everything
    /// but routed experts) read a list of `PP * TP` ranks as `[PP][TP]`, a
    /// longer one as copies of `[PP][EP][TP]` or `[PP][EP][CP][TP]`;
    /// [`single_stage`] reads a list of `PP * EP * TP` ranks as `[PP][EP][TP]`,
    /// a longer one likewise.
    pub source_ranks: Option<Vec<Vec<Rank>>>,
    /// For [`expert`] alone: the copies that routed experts come from, each
    /// `[PP][EP][TP]`; `source_ranks` where absent, which must then not be cut
    /// into expert rows.
    pub expert_source_ranks: Option<Vec<Vec<Rank>>>,
    /// One list per replica, each `[PP][EP][TP]`.
    pub destination_ranks: Option<Vec<Vec<Rank>>>,
}

impl Default for MappingSpec {
    fn default() -> MappingSpec {
        MappingSpec {
            source: SourceSizes::ONE,
            destination: DestinationSizes::ONE,
            source_devices: Vec::new(),
            destination_devices: Vec::new(),
            colocated: None,
            keep_same_device: false,
            destination_is_vllm: false,
            source_ranks: None,
            expert_source_ranks: None,
            destination_ranks: None,
        }
    }
}

impl MappingSpec {
    /// True if some source rank and some destination rank share a device.
    pub fn shares_devices(&self) -> bool {
        let mut sources = self.source_devices.clone();
        sources.sort_unstable();
        self.destination_devices
            .iter()
            .any(|device| sources.binary_search(device).is_ok())
    }

    /// Whether both models live on the same devices, as said or as seen.
    pub fn is_colocated(&self) -> bool {
        self.colocated.unwrap_or_else(|| self.shares_devices())
    }

    /// The device of `rank`, whichever side it is on.
    fn device(&self, rank: Rank) -> u32 {
        let sources = self.source_devices.len();
        match rank.index().checked_sub(sources) {
            None => self.source_devices[rank.index()],
            Some(k) => self.destination_devices[k],
        }
    }
}

/// One sender and one receiver of a stage. Serialised as `[sender, receiver]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    pub sender: Rank,
    pub receiver: Rank,
}

impl Pair {
    pub(crate) const fn new(sender: Rank, receiver: Rank) -> Pair {
        Pair { sender, receiver }
    }
}

impl Serialize for Pair {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.sender, self.receiver).serialize(serializer)
    }
}

/// A pair whose receiver would have been another one, had that one not shared
/// the sender's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub sender: Rank,
    pub receiver: Rank,
    /// The receiver that load balance alone would have chosen.
    pub avoided: Rank,
}

/// Where a rank sits on its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub rank: Rank,
    pub device: u32,
    /// Which source copy, or which replica.
    pub copy: u32,
    /// Pipeline stage.
    pub stage: u32,
    /// Expert row; always 0 where expert parallel counts as data parallel.
    pub expert: u32,
    /// Tensor parallel position.
    pub tensor: u32,
}

/// Which of the functions made a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    TwoStage,
    SingleStage,
    /// Routed experts take source rows in turn; see [`expert`].
    ExpertRows,
}

/// The outcome: who sends to whom, stage by stage, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub variant: Variant,
    /// Ranks of a weight-mapping group, `m`. 1 unless this is two-stage.
    pub group_size: u32,
    /// Stage 1, in the order of the sends.
    pub pairs: Vec<Pair>,
    /// Stage 2, in the order of the sends. Empty unless this is two-stage.
    pub forwards: Vec<Pair>,
    /// Source ranks that must bring their routed experts together before
    /// stage 1. Empty in two-stage.
    pub regroup_groups: Vec<Vec<Rank>>,
    /// Pairs that were moved to avoid a same-device pair, in order of choice.
    pub moved: Vec<Moved>,
    /// Pairs of stage 1 within one device. Two-stage has some only if
    /// [`MappingSpec::keep_same_device`] is set.
    pub same_device: Vec<Pair>,
    /// Every source rank that may send, copy by copy.
    pub sources: Vec<Seat>,
    /// Every destination rank, replica by replica.
    pub destinations: Vec<Seat>,
}

impl Mapping {
    /// Stage 1 as each sender sees it: its receivers in order.
    pub fn sends(&self) -> PeerLists {
        PeerLists::by_sender(&self.pairs)
    }

    /// Stage 1 as each receiver sees it: its senders in order.
    pub fn receives(&self) -> PeerLists {
        PeerLists::by_receiver(&self.pairs)
    }

    /// Stage 2 as each receiver of stage 1 sees it: whom it forwards to.
    pub fn forward_sends(&self) -> PeerLists {
        PeerLists::by_sender(&self.forwards)
    }

    /// Stage 2 as its receivers see it: who forwards to them.
    pub fn forward_receives(&self) -> PeerLists {
        PeerLists::by_receiver(&self.forwards)
    }

    /// How many source ranks send to each destination rank directly, in the
    /// order of [`Mapping::destinations`].
    pub fn loads(&self) -> Vec<(Rank, u32)> {
        self.loads_by(&self.receives())
    }

    /// How many pairs of any list end at each destination rank, in the order of
    /// [`Mapping::destinations`].
    pub fn loads_by(&self, receives: &PeerLists) -> Vec<(Rank, u32)> {
        let load = |seat: &Seat| (seat.rank, receives.get(seat.rank).len() as u32);
        self.destinations.iter().map(load).collect()
    }

    /// The slice of its group's weights that the destination rank in `seat`
    /// keeps: `0..m`. It follows from the position, so that it is right
    /// wherever the numbering starts.
    pub fn slice(&self, seat: &Seat) -> u32 {
        seat.tensor % self.group_size
    }
}

/// The three ways in which a mapping is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The sizes do not suit this mapping; another strategy serves them.
    Constraint,
    /// Every candidate of some source rank is on that rank's device.
    Infeasible,
    /// The input contradicts itself or exceeds a limit.
    InvalidInput,
}

impl Refusal {
    /// Which refusal the error of a mapping function is.
    pub fn of(error: &Error) -> Refusal {
        match error.status {
            Status::Unsupported => Refusal::Constraint,
            Status::Infeasible => Refusal::Infeasible,
            _ => Refusal::InvalidInput,
        }
    }

    /// A short stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::Constraint => "constraint",
            Refusal::Infeasible => "infeasible",
            Refusal::InvalidInput => "invalid_input",
        }
    }
}

/// Sizes that a mapping cannot serve. The sentence ends by saying who can.
fn constraint(why: impl std::fmt::Display) -> Error {
    let message = format!("{why}; strategy `direct` has no such constraint");
    Error::new(Status::Unsupported, message)
}

/// Refuses a product of sizes beyond [`PAIR_COUNT_MAX`].
fn bound(what: &str, factors: &[usize]) -> Result<usize, Error> {
    let count = factors
        .iter()
        .try_fold(1u64, |n, &factor| n.checked_mul(factor as u64));
    match count {
        Some(n) if n <= PAIR_COUNT_MAX => Ok(n as usize),
        Some(n) => Err(Error::limit(format!(
            "the mapping has up to {n} {what}, at most {PAIR_COUNT_MAX} are allowed"
        ))),
        None => Err(Error::limit(format!(
            "the mapping has more than 2^64 {what}, at most {PAIR_COUNT_MAX} are allowed"
        ))),
    }
}

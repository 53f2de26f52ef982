//! The small record that fixes a plan beyond its inputs.

use super::topology::TopologySpec;
use super::two_stage::TwoStageOptions;
use crate::error::{Error, Result};
use crate::limits::BUCKET_COUNT_MAX;
use serde::{Deserialize, Serialize};

/// Which way bytes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// From a holder straight to the needer.
    #[default]
    Direct,
    /// As the two-stage rank mapping says: to one member of each weight-mapping
    /// group, which forwards to the others.
    TwoStage,
    /// Each byte enters an NVLink domain once; the ranks there exchange what
    /// several of them need.
    Relay,
    /// Only some copies leave the source; the ranks that get them pass them
    /// on to the others, across domains and inside them.
    Fanout,
}

impl Strategy {
    pub const ALL: [Strategy; 4] = [
        Strategy::Direct,
        Strategy::TwoStage,
        Strategy::Relay,
        Strategy::Fanout,
    ];

    /// As the command line and the bindings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Direct => "direct",
            Strategy::TwoStage => "two_stage",
            Strategy::Relay => "relay",
            Strategy::Fanout => "fanout",
        }
    }

    pub fn from_name(name: &str) -> Option<Strategy> {
        Strategy::ALL.into_iter().find(|s| s.name() == name)
    }

    /// True if needers are put into clusters of NVLink domains.
    pub const fn is_clustered(self) -> bool {
        matches!(self, Strategy::Relay | Strategy::Fanout)
    }
}

/// Which of several holders sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum SourceRule {
    /// The wrap-around cut: equal loads, fewest pairs.
    #[default]
    Wrap,
    /// The holder moves on with every item: equal loads only over many items,
    /// but no pair carries more than its share of any tensor.
    Rotate,
}

/// Which bytes travel first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A bucket carries the same fraction of every pair's stream: all links
    /// work all the time, and the layers of all stages come side by side.
    #[default]
    Fraction,
    /// A bucket carries the next layers: early layers are complete early, and
    /// links to later ones stand idle meanwhile.
    Layer,
}

impl Order {
    pub const ALL: [Order; 2] = [Order::Fraction, Order::Layer];

    /// As the command line and the bindings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Order::Fraction => "fraction",
            Order::Layer => "layer",
        }
    }

    pub fn from_name(name: &str) -> Option<Order> {
        Order::ALL.into_iter().find(|o| o.name() == name)
    }
}

/// How the NVLink domains of one copy pass it on to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// The copy is scattered over all of them, and each sends its part to all
    /// others: two hops, many peers.
    #[default]
    Scatter,
    /// The first takes it in whole, and each passes it on to the next, bucket
    /// by bucket: as many hops as domains, one peer.
    Chain,
}

impl Spread {
    pub const ALL: [Spread; 2] = [Spread::Scatter, Spread::Chain];

    /// As the command line and the bindings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Spread::Scatter => "scatter",
            Spread::Chain => "chain",
        }
    }

    pub fn from_name(name: &str) -> Option<Spread> {
        Spread::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// Source ranks of one stage of one part: they hold about the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourceGroup {
    pub part: u16,
    /// `None` for tensors that all stages hold, and for ranks described view
    /// by view.
    pub stage: Option<u32>,
}

/// How many copies of what a source group holds leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCopies {
    pub group: SourceGroup,
    pub copies: u32,
}

/// What a plan is made with; zero means default everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    pub strategy: Strategy,
    pub source_rule: SourceRule,
    /// Bytes of staging per rank, both directions and all steps in flight.
    pub staging_bytes_max: u64,
    /// Contiguous runs from this size on travel without staging.
    pub direct_bytes_min: u64,
    /// 0 takes the smallest count that keeps staging inside the budget.
    pub bucket_count: u32,
    /// Globs of source tensors that the destination may leave unused.
    pub unused_allowed: Vec<String>,
    /// What the mapping of strategy `two_stage` is made with.
    pub two_stage: TwoStageOptions,
    /// Strategy `fanout`: copies that leave each source group; 0 is as many
    /// as can leave while the fullest domain receives.
    pub copy_count: u32,
    /// The same for single source groups.
    pub copies: Vec<SourceCopies>,
    /// Strategy `fanout`: how the domains of one copy pass it on.
    pub spread: Spread,
    /// Strategies `relay` and `fanout`: bytes leave a source domain through
    /// the NICs of all its source ranks, whichever of them holds the bytes.
    pub source_relay: bool,
    pub order: Order,
    /// By how many holders neighbouring streams are turned against each other;
    /// `None` is 1 where bytes are forwarded, else 0.
    pub rotation: Option<u32>,
    /// What stands between the ranks; `None` is the default.
    pub topology: Option<TopologySpec>,
}

/// Staging per rank if nothing else is said: 512 MiB.
pub const STAGING_BYTES_DEFAULT: u64 = 512 << 20;
/// Shortest run that is worth a message of its own: 256 KiB.
pub const DIRECT_BYTES_MIN_DEFAULT: u64 = 256 << 10;

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            strategy: Strategy::Direct,
            source_rule: SourceRule::Wrap,
            staging_bytes_max: STAGING_BYTES_DEFAULT,
            direct_bytes_min: DIRECT_BYTES_MIN_DEFAULT,
            bucket_count: 0,
            unused_allowed: Vec::new(),
            two_stage: TwoStageOptions::default(),
            copy_count: 0,
            copies: Vec::new(),
            spread: Spread::default(),
            source_relay: false,
            order: Order::default(),
            rotation: None,
            topology: None,
        }
    }
}

impl PlanOptions {
    pub fn validate(&self) -> Result<()> {
        if self.bucket_count > BUCKET_COUNT_MAX {
            return Err(Error::limit(format!(
                "bucket_count is {}; at most {BUCKET_COUNT_MAX} are allowed",
                self.bucket_count
            )));
        }
        if self.staging_bytes_max == 0 || self.direct_bytes_min == 0 {
            return Err(Error::invalid(format!(
                "staging_bytes_max is {} and direct_bytes_min {}; both are at least 1",
                self.staging_bytes_max, self.direct_bytes_min
            )));
        }
        let name = self.strategy.name();
        if self.source_relay && !self.strategy.is_clustered() {
            return Err(Error::invalid(format!(
                "source_relay goes with strategies relay and fanout, and not with {name}"
            )));
        }
        if self.spread != Spread::Scatter && self.strategy != Strategy::Fanout {
            return Err(Error::invalid(format!(
                "spread {} goes with strategy fanout, and not with {name}",
                self.spread.name()
            )));
        }
        Ok(())
    }
}

/// A rank moves at least so many of the shortest parts of shares in a bucket,
/// so that buckets are nearly alike, and its staging has room for so many.
const SHARES_IN_BUCKET_MIN: u64 = 32;
const SHARES_IN_STAGING_MIN: u64 = 128;

/// The parts into which a share is cut, and the bucket of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    pub count: u64,
    bucket_count: u64,
}

impl Cuts {
    /// The bucket of a part. Parts lie evenly over the buckets; shares of few
    /// parts begin at a bucket that `phase` tells, the same at both ends.
    pub fn bucket_of(&self, part: u64, phase: u64) -> u32 {
        let begin = part * self.bucket_count + phase % self.bucket_count;
        (begin / self.count) as u32
    }
}

/// The record itself: with the layouts it is the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub strategy: Strategy,
    pub source_rule: SourceRule,
    pub bucket_count: u32,
    pub staging_bytes_max: u64,
    pub direct_bytes_min: u64,
    /// There with strategy `two_stage` and with no other.
    pub two_stage: Option<TwoStageOptions>,
    /// By how many holders neighbouring streams are turned against each other.
    pub rotation: u32,
    /// What `copies` does not name; 0 is by time.
    pub copy_count: u32,
    /// Copies that leave each source group, by group; empty unless the
    /// strategy is `fanout`.
    pub copies: Vec<SourceCopies>,
    pub spread: Spread,
    /// Bytes leave a source domain through the NICs of all its source ranks.
    pub source_relay: bool,
    pub order: Order,
}

impl Decision {
    /// The decision that options fix by themselves.
    pub fn new(options: &PlanOptions) -> Decision {
        let forwards = options.strategy.is_clustered();
        let is_two_stage = options.strategy == Strategy::TwoStage;
        Decision {
            strategy: options.strategy,
            source_rule: options.source_rule,
            bucket_count: options.bucket_count.max(1),
            staging_bytes_max: options.staging_bytes_max,
            direct_bytes_min: options.direct_bytes_min,
            two_stage: is_two_stage.then(|| options.two_stage.clone()),
            rotation: options.rotation.unwrap_or(u32::from(forwards)),
            copy_count: options.copy_count,
            copies: match options.strategy {
                Strategy::Fanout => options.copies.clone(),
                Strategy::Direct | Strategy::TwoStage | Strategy::Relay => Vec::new(),
            },
            spread: options.spread,
            source_relay: options.source_relay,
            order: options.order,
        }
    }

    /// Into how many buckets a share is cut of which some rank moves `bytes`:
    /// into all of them, or into fewer where their parts would be short beside
    /// what a rank moves in a bucket and stages.
    pub(super) fn cuts_of(&self, bytes: u64, rank_bytes: u64) -> Cuts {
        let bucket_count = u64::from(self.bucket_count);
        let shortest = (rank_bytes / bucket_count / SHARES_IN_BUCKET_MIN)
            .min(self.staging_bytes_max / SHARES_IN_STAGING_MIN);
        Cuts {
            bucket_count,
            count: (bytes / shortest.max(1)).clamp(1, bucket_count),
        }
    }

    /// The same for other sides: copies that leave each source group are not
    /// yet counted.
    pub(super) fn without_copies(&self) -> Decision {
        Decision {
            copies: Vec::new(),
            ..self.clone()
        }
    }

    /// How many copies of a stream leave its source group; at least 1.
    pub fn copies_leaving(&self, group: SourceGroup) -> u64 {
        let found = self.copies.binary_search_by_key(&group, |c| c.group);
        found.map_or(1, |i| u64::from(self.copies[i].copies.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(bytes: u64, bucket_count: u32, rank_bytes: u64) -> Cuts {
        let options = PlanOptions {
            bucket_count,
            staging_bytes_max: 1 << 20,
            direct_bytes_min: 4096,
            ..PlanOptions::default()
        };
        Decision::new(&options).cuts_of(bytes, rank_bytes)
    }

    #[test]
    fn a_large_share_is_cut_into_all_buckets_whatever_its_phase() {
        let cuts = cuts(1 << 20, 7, 1 << 40);
        for phase in [0, 3, u64::MAX] {
            let buckets: Vec<u32> = (0..cuts.count).map(|i| cuts.bucket_of(i, phase)).collect();
            assert_eq!(buckets, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn a_small_share_is_cut_into_fewer_that_lie_evenly() {
        // Parts of a 128th of the staging.
        let cuts = cuts(3 * 8192, 12, 1 << 40);
        let buckets = |phase| [0, 1, 2].map(|i| cuts.bucket_of(i, phase));
        assert_eq!(cuts.count, 3);
        assert_eq!(buckets(0), [0, 4, 8]);
        assert_eq!(buckets(11), [3, 7, 11]);
    }

    #[test]
    fn a_share_that_is_not_cut_may_be_in_any_bucket() {
        let cuts = cuts(5, 4, 1 << 40);
        let buckets = [0, 1, 2, 3].map(|phase| cuts.bucket_of(0, phase));
        assert_eq!((cuts.count, buckets), (1, [0, 1, 2, 3]));
    }

    #[test]
    fn where_a_rank_moves_little_all_shares_are_cut() {
        // 256 bytes in each of 4 buckets: parts of 8 bytes are short beside them.
        assert_eq!(cuts(9, 4, 1024).count, 1);
        assert_eq!(cuts(32, 4, 1024).count, 4);
    }
}

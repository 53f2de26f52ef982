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
}

impl Strategy {
    pub const ALL: [Strategy; 2] = [Strategy::Direct, Strategy::TwoStage];

    /// As the command line and the bindings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Direct => "direct",
            Strategy::TwoStage => "two_stage",
        }
    }

    pub fn from_name(name: &str) -> Option<Strategy> {
        Strategy::ALL.into_iter().find(|s| s.name() == name)
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
        Ok(())
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
}

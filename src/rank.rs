//! One participant, numbered in one space over both sides.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The number of a participant. Source and destination share the numbering;
/// one rank may be on both sides.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Rank(pub u32);

impl Rank {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

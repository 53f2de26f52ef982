//! The ranks that meet on one transport.

use crate::error::{Error, Result};
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;
use std::sync::Arc;

/// Every rank of a transport, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSet {
    ranks: Arc<[Rank]>,
}

impl RankSet {
    /// Ranks `0..count`.
    pub fn count(count: u32) -> Result<RankSet> {
        check_count(count as usize)?;
        Ok(RankSet {
            ranks: (0..count).map(Rank).collect(),
        })
    }

    /// These ranks, in any order.
    pub fn list(ranks: &[Rank]) -> Result<RankSet> {
        check_count(ranks.len())?;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::invalid(format!(
                "rank {} is listed more than once",
                pair[0]
            )));
        }
        if let Some(high) = sorted.last().filter(|r| r.0 >= RANK_COUNT_MAX) {
            return Err(Error::limit(format!(
                "rank {high} is listed; ranks are below {RANK_COUNT_MAX}"
            )));
        }
        Ok(RankSet {
            ranks: sorted.into(),
        })
    }

    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    pub fn contains(&self, rank: Rank) -> bool {
        self.index_of(rank).is_some()
    }

    pub fn index_of(&self, rank: Rank) -> Option<usize> {
        self.ranks.binary_search(&rank).ok()
    }

    pub fn as_slice(&self) -> &[Rank] {
        &self.ranks
    }

    /// The rank that coordinates.
    pub fn lowest(&self) -> Rank {
        self.ranks.first().copied().unwrap_or_default()
    }
}

fn check_count(count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::invalid("a transport needs at least one rank"));
    }
    if count > RANK_COUNT_MAX as usize {
        return Err(Error::limit(format!(
            "{count} ranks are listed; at most {RANK_COUNT_MAX} are allowed"
        )));
    }
    Ok(())
}

//! Which rank of the communicator a rank of the transport is.

use crate::error::{Error, Result};
use crate::rank::Rank;

/// Ranks and their places, both ways.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    /// Ascending by rank.
    by_rank: Vec<(Rank, i32)>,
    /// The places, in the order of their ranks.
    places: Vec<i32>,
}

impl Peers {
    /// `pairs` is ascending by rank.
    pub(super) fn new(pairs: Vec<(Rank, i32)>) -> Peers {
        Peers {
            places: pairs.iter().map(|(_, place)| *place).collect(),
            by_rank: pairs,
        }
    }

    pub(super) fn place_of(&self, rank: Rank) -> Result<i32> {
        let index = self.by_rank.binary_search_by_key(&rank, |(r, _)| *r);
        let index = index.map_err(|_| {
            Error::invalid(format!(
                "the plan names rank {rank}, which is none of the {} ranks of the transport",
                self.by_rank.len()
            ))
            .by(rank)
        })?;
        Ok(self.by_rank[index].1)
    }

    pub(super) fn rank_at(&self, place: i32) -> Option<Rank> {
        let found = self.by_rank.iter().find(|(_, p)| *p == place);
        found.map(|(rank, _)| *rank)
    }

    pub(super) fn places(&self) -> &[i32] {
        &self.places
    }
}

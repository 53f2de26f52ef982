//! The ranks of a transport, and the way to each.

use super::roles::Way;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;

/// Ranks, ways and places.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    me: Rank,
    /// Ascending by rank.
    by_rank: Vec<(Rank, Way)>,
    /// The places in the communicator, in the order of their ranks.
    places: Vec<(Rank, i32)>,
}

impl Peers {
    /// `by_rank` is ascending.
    pub(super) fn new(me: Rank, by_rank: Vec<(Rank, Way)>, places: Vec<(Rank, i32)>) -> Peers {
        Peers {
            me,
            by_rank,
            places,
        }
    }

    /// Fails if `rank` is unknown or cannot be reached.
    pub(super) fn way_to(&self, rank: Rank) -> Result<Way> {
        let index = self.by_rank.binary_search_by_key(&rank, |(r, _)| *r);
        let index = index.map_err(|_| {
            Error::invalid(format!(
                "the plan names rank {rank}, which is none of the {} ranks of the transport",
                self.by_rank.len()
            ))
            .by(rank)
        })?;
        match self.by_rank[index].1 {
            Way::None(hidden) => Err(self.unreachable(rank, hidden)),
            way => Ok(way),
        }
    }

    fn unreachable(&self, peer: Rank, hidden: Rank) -> Error {
        Error::new(
            Status::Unsupported,
            format!(
                "ranks {} and {peer} are on different hosts, and NCCL takes one rank per GPU, \
                 which on the GPU of rank {hidden} is a lower one: plan so that this one exchanges \
                 the bytes with other hosts (make rank {hidden}'s process the same rank on both \
                 sides, or relay), or use NCCL 2.30.3 or newer with NCCL_MULTI_RANK_GPU_ENABLE=1 \
                 on all ranks",
                self.me
            ),
        )
        .by(hidden)
    }

    pub(super) fn rank_at(&self, place: i32) -> Option<Rank> {
        let found = self.places.iter().find(|(_, p)| *p == place);
        found.map(|(rank, _)| *rank)
    }

    /// The places of all NCCL ranks.
    pub(super) fn places(&self) -> Vec<i32> {
        self.places.iter().map(|(_, place)| *place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_reached_is_named_with_what_to_do() {
        let ways = vec![
            (Rank(0), Way::Nccl(0)),
            (Rank(3), Way::Channel),
            (Rank(7), Way::None(Rank(7))),
        ];
        let peers = Peers::new(Rank(0), ways, vec![(Rank(0), 0)]);
        assert_eq!(peers.way_to(Rank(3)), Ok(Way::Channel));
        let e = peers.way_to(Rank(7)).unwrap_err();
        assert_eq!((e.status, e.rank), (Status::Unsupported, Some(Rank(7))));
        assert!(
            e.message.contains("ranks 0 and 7 are on different hosts"),
            "{e}"
        );
        assert!(e.message.contains("NCCL_MULTI_RANK_GPU_ENABLE"), "{e}");
        let e = peers.way_to(Rank(5)).unwrap_err();
        assert_eq!((e.status, e.rank), (Status::InvalidArgument, Some(Rank(5))));
    }
}

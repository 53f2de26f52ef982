//! Pairs seen from their ranks: each rank with its peers, and how many.

use serde::{Serialize, Serializer};

use crate::rank::Rank;

use super::{Mapping, Pair};

/// Each rank of one end of a stage, with its peers at the other end.
///
/// Ranks come in the order in which they first appear among the pairs, and so
/// do the peers of each. Serialised as `[[rank, [peers]], ...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLists {
    ranks: Vec<Rank>,
    /// Where the peers of `ranks[i]` start; one more at the end.
    starts: Vec<u32>,
    peers: Vec<Rank>,
    /// Position in `ranks` by rank, or [`ABSENT`].
    position: Vec<u32>,
}

const ABSENT: u32 = u32::MAX;

impl PeerLists {
    /// Every sender with its receivers.
    pub fn by_sender(pairs: &[Pair]) -> PeerLists {
        PeerLists::new(pairs, |pair| (pair.sender, pair.receiver))
    }

    /// Every receiver with its senders.
    pub fn by_receiver(pairs: &[Pair]) -> PeerLists {
        PeerLists::new(pairs, |pair| (pair.receiver, pair.sender))
    }

    /// A counting sort that keeps the order: count, add up, then fill.
    fn new(pairs: &[Pair], ends: impl Fn(&Pair) -> (Rank, Rank)) -> PeerLists {
        let last = pairs.iter().map(|pair| ends(pair).0.index()).max();
        let mut position = vec![ABSENT; last.map_or(0, |last| last + 1)];
        let mut ranks = Vec::new();
        let mut starts = vec![0u32];
        for pair in pairs {
            let rank = ends(pair).0;
            if position[rank.index()] == ABSENT {
                position[rank.index()] = ranks.len() as u32;
                ranks.push(rank);
                starts.push(0);
            }
            starts[position[rank.index()] as usize + 1] += 1;
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }

        let mut next = starts.clone();
        let mut peers = vec![Rank(0); pairs.len()];
        for pair in pairs {
            let (rank, peer) = ends(pair);
            let slot = &mut next[position[rank.index()] as usize];
            peers[*slot as usize] = peer;
            *slot += 1;
        }
        PeerLists {
            ranks,
            starts,
            peers,
            position,
        }
    }

    /// How many ranks have a peer.
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// The peers of `rank`, none if it takes no part.
    pub fn get(&self, rank: Rank) -> &[Rank] {
        match self.position.get(rank.index()) {
            Some(&i) if i != ABSENT => self.at(i as usize),
            _ => &[],
        }
    }

    /// Each rank with its peers, in order of first appearance.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Rank, &[Rank])> {
        self.ranks
            .iter()
            .enumerate()
            .map(|(i, &rank)| (rank, self.at(i)))
    }

    fn at(&self, i: usize) -> &[Rank] {
        &self.peers[self.starts[i] as usize..self.starts[i + 1] as usize]
    }
}

impl Serialize for PeerLists {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// All lists of a mapping as its ranks see them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RankLists {
    /// Stage 1: each sender with its receivers, each receiver with its senders.
    pub sends: PeerLists,
    pub receives: PeerLists,
    /// Stage 2, likewise.
    pub forward_sends: PeerLists,
    pub forward_receives: PeerLists,
    /// Routed experts that travel on their own, likewise.
    pub routed_sends: PeerLists,
    pub routed_receives: PeerLists,
    /// `[rank, pairs of stage 1 that end there]`, every destination rank.
    pub loads: Vec<(Rank, u32)>,
    /// The same for routed experts.
    pub routed_loads: Vec<(Rank, u32)>,
}

impl RankLists {
    /// The lists of `mapping`, and of `routed` beside it.
    pub fn new(mapping: &Mapping, routed: &[Pair]) -> RankLists {
        let receives = mapping.receives();
        let routed_receives = PeerLists::by_receiver(routed);
        RankLists {
            sends: mapping.sends(),
            forward_sends: mapping.forward_sends(),
            forward_receives: mapping.forward_receives(),
            routed_sends: PeerLists::by_sender(routed),
            loads: mapping.loads_by(&receives),
            routed_loads: mapping.loads_by(&routed_receives),
            receives,
            routed_receives,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_of_first_appearance() {
        let pair = |s, r| Pair::new(Rank(s), Rank(r));
        let pairs = [pair(3, 8), pair(1, 9), pair(3, 7), pair(1, 8)];
        let sends = PeerLists::by_sender(&pairs);
        let listed: Vec<_> = sends.iter().collect();
        assert_eq!(
            listed,
            [
                (Rank(3), &[Rank(8), Rank(7)][..]),
                (Rank(1), &[Rank(9), Rank(8)][..])
            ]
        );
        assert_eq!(sends.get(Rank(1)), [Rank(9), Rank(8)]);
        assert_eq!(sends.get(Rank(0)), []);
        assert_eq!(sends.get(Rank(99)), []);
        assert!(PeerLists::by_receiver(&[]).is_empty());
    }
}

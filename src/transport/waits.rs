//! Whom a rank waits for.

use crate::rank::Rank;

/// How many peers are named at once.
pub const WAITS_MAX: usize = 8;

/// The peers that a rank's oldest unfinished message may wait for: one where
/// the transport knows which, a few where it cannot tell, none where it waits
/// for local work. Fixed in size, so that a sign of life allocates nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    ranks: [Rank; WAITS_MAX],
    count: u8,
    /// How far the rank is in its step. Of two ranks in a step, one with more is
    /// past the other.
    pub place: u64,
}

impl Waits {
    /// Local work, or nothing at all.
    pub const NONE: Waits = Waits {
        ranks: [Rank(0); WAITS_MAX],
        count: 0,
        place: 0,
    };

    /// The `turn`-th few of `peers`, round and round, so that whoever asks often
    /// hears of all of them.
    pub fn some_of(peers: impl Iterator<Item = Rank> + Clone, turn: usize) -> Waits {
        let count = peers.clone().count();
        let rounds = count.div_ceil(WAITS_MAX).max(1);
        peers.skip(turn % rounds * WAITS_MAX).collect()
    }

    /// The same, of a rank that is so far in its step.
    pub fn at(self, place: u64) -> Waits {
        Waits { place, ..self }
    }

    pub fn is_none(&self) -> bool {
        self.count == 0
    }

    pub fn ranks(&self) -> &[Rank] {
        &self.ranks[..usize::from(self.count)]
    }
}

impl From<Option<Rank>> for Waits {
    fn from(peer: Option<Rank>) -> Waits {
        peer.into_iter().collect()
    }
}

/// The first [`WAITS_MAX`] of them.
impl FromIterator<Rank> for Waits {
    fn from_iter<I: IntoIterator<Item = Rank>>(peers: I) -> Waits {
        let mut waits = Waits::NONE;
        for (slot, peer) in waits.ranks.iter_mut().zip(peers) {
            *slot = peer;
            waits.count += 1;
        }
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_its_turn() {
        let peers = (0..19).map(Rank);
        let turns = |n: usize| Waits::some_of(peers.clone(), n);
        let named: Vec<Rank> = (0..3).flat_map(|n| turns(n).ranks().to_vec()).collect();
        assert_eq!(named, peers.clone().collect::<Vec<_>>());
        assert_eq!(turns(3), turns(0));
        assert!(Waits::some_of(peers.take(0), 5).is_none());
        assert_eq!(Waits::from(Some(Rank(7))).ranks(), [Rank(7)]);
    }
}

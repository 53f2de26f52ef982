//! All ranks, and what is known of each beside what it sends.
//!
//! Ranks form a binary tree, whose shape follows from their number alone. Who is
//! silent or gone cuts off whoever is below:
//!
//! ```text
//!            0
//!        1       2  ◄─ silent: 5 and 6 cannot be heard either,
//!      3   4   5   6   and 2 is to blame
//! ```

use super::message::range_list;
use super::rank_set::RankSet;
use crate::rank::Rank;
use crate::transport::control::parent_of;

/// See the module.
#[derive(Debug)]
pub(super) struct Landscape {
    pub ranks: RankSet,
    /// By index: its parent hears nothing from it.
    suspects: Vec<bool>,
    /// By index: it has left, or died.
    departed: Vec<bool>,
    has_departed: bool,
}

impl Landscape {
    pub fn new(ranks: RankSet) -> Landscape {
        Landscape {
            suspects: vec![false; ranks.len()],
            departed: vec![false; ranks.len()],
            has_departed: false,
            ranks,
        }
    }

    pub fn set_suspect(&mut self, rank: Rank, is_silent: bool) {
        if let Some(i) = self.ranks.index_of(rank) {
            self.suspects[i] = is_silent;
        }
    }

    pub(super) fn set_departed(&mut self, rank: Rank) {
        if let Some(i) = self.ranks.index_of(rank) {
            self.departed[i] = true;
            self.has_departed = true;
        }
    }

    /// The lowest silent rank on the way from the root to `index`.
    pub fn silent_index_above(&self, index: usize) -> Option<usize> {
        first_above(&self.suspects, index)
    }

    pub fn silent_above(&self, rank: Rank) -> Option<Rank> {
        let index = self.silent_index_above(self.ranks.index_of(rank)?)?;
        Some(self.ranks.as_slice()[index])
    }

    /// The first participant in `ranges` that cannot be reached any more, and
    /// who cut it off.
    pub(super) fn unreachable(&self, ranges: &[u8]) -> Option<(Rank, Rank)> {
        if !self.has_departed {
            return None;
        }
        let ranks = self.ranks.as_slice();
        let expected = ranks
            .iter()
            .enumerate()
            .filter(|(_, r)| range_list(ranges).any(|(lo, hi)| (lo..hi).contains(&r.0)));
        let mut lost = expected.filter_map(|(i, r)| {
            let above = first_above(&self.departed, i)?;
            Some((*r, ranks[above]))
        });
        lost.next()
    }
}

/// The highest marked node on the way from `index` to the root.
fn first_above(marks: &[bool], index: usize) -> Option<usize> {
    let mut found = None;
    let mut at = Some(index);
    while let Some(i) = at {
        if marks[i] {
            found = Some(i);
        }
        at = parent_of(i);
    }
    found
}

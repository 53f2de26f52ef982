//! Who has left, where all ranks leave together.

use crate::exec::rank_set::RankSet;
use crate::rank::Rank;
use std::time::{Duration, Instant};

/// Names are told at most so often: ranks that leave one by one would
/// otherwise cost a message to everybody each.
const TELL_INTERVAL: Duration = Duration::from_millis(50);

/// Who has left, and how many had when everybody was last told who has not.
#[derive(Debug, Default)]
pub(super) struct Departure {
    /// By position; empty until the first rank leaves.
    has_left: Vec<bool>,
    count: usize,
    told: Option<(usize, Instant)>,
}

impl Departure {
    /// Takes note of one that leaves; true if it was the last.
    pub fn leave(&mut self, ranks: &RankSet, rank: Rank) -> bool {
        self.has_left.resize(ranks.len(), false);
        if let Some(index) = ranks.index_of(rank) {
            self.count += usize::from(!std::mem::replace(&mut self.has_left[index], true));
        }
        self.count == ranks.len()
    }

    /// The lowest rank that others wait for, if some of them do not know yet.
    pub fn news(&mut self, ranks: &RankSet, now: Instant) -> Option<Rank> {
        if self
            .told
            .is_some_and(|(count, at)| count == self.count || now < at + TELL_INTERVAL)
        {
            return None;
        }
        let index = self.has_left.iter().position(|has_left| !has_left)?;
        self.told = Some((self.count, now));
        ranks.as_slice().get(index).copied()
    }

    /// When to look again.
    pub fn next_tick(&self) -> Option<Instant> {
        let (count, at) = self.told?;
        let is_waiting = self.count < self.has_left.len();
        (is_waiting && count != self.count).then(|| at + TELL_INTERVAL)
    }
}

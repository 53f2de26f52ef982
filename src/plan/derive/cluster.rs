//! Clusters of needers, which exchange one copy of a stream among themselves.
//!
//! A cluster is some whole NVLink domains. Its members take in an equal *slot*
//! each, out of the holders' domains, and pass it on:
//!
//! ```text
//!                         cluster of two domains, members 0 1 | 2 3
//!   stage 0   holders     ──► slot 0 to 0, slot 1 to 1, slot 2 to 2, slot 3 to 3
//!   stage 1   in domain   slot 0: 0 ──► 1
//!             across      slot 0: 0 ──► 2, which stands in for its domain
//!   stage 2   in domain   slot 0: 2 ──► 3
//! ```
//!
//! Every member needs what it forwards, so no memory is needed for that.
//!
//! Spread as a chain, a cluster takes everything in through its first domain,
//! and each domain passes it on to the next:
//!
//! ```text
//!   stage 0   holders     ──► slot 0 to 0, slot 1 to 1
//!   stage 1   in domain   slot 0: 0 ──► 1
//!             across      slot 0: 0 ──► 2
//!   stage 2   in domain   slot 0: 2 ──► 3        across   slot 0: 2 ──► 4 ..
//! ```
//!
//! Where a byte is relayed on its way out of the holders' domain, all of this
//! is a stage later.

use super::exits::Exits;
use super::route::{Hop, There};
use crate::plan::decision::Spread;
use crate::plan::domains::Runs;
use crate::plan::program::Direction;
use crate::plan::slots::Slots;
use crate::rank::Rank;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// The clusters of one stream.
pub struct Clusters {
    pub runs: Arc<Runs>,
    pub count: u64,
}

impl Clusters {
    /// The domains of cluster `i`.
    pub fn runs_of(&self, i: u64) -> Range<u64> {
        let domains = self.runs.len();
        i * domains / self.count..(i + 1) * domains / self.count
    }

    /// The cluster of a domain.
    pub fn of_run(&self, run: u64) -> u64 {
        let mut i = run * self.count / self.runs.len();
        while self.runs_of(i).end <= run {
            i += 1;
        }
        i
    }
}

/// One cluster of one stream.
pub struct Cluster<'c> {
    pub runs: &'c Runs,
    pub domains: Range<u64>,
    /// Places of the members among the needers.
    pub places: Range<u64>,
    pub spread: Spread,
    /// How the members that take in a slot, the first ones, share that work.
    pub slots: Slots,
    /// The same if all members did.
    pub weights: Slots,
    pub bytes: u64,
}

impl Cluster<'_> {
    /// What member `j` takes in.
    pub fn slot(&self, j: u64) -> Range<u64> {
        let units = u128::from(self.slots.units());
        let cut = |unit: u64| (u128::from(unit) * u128::from(self.bytes) / units) as u64;
        let slot = self.slots.range(j);
        cut(slot.start)..cut(slot.end)
    }

    /// The members whose slots meet a range of the stream.
    pub fn members_in(&self, range: Range<u64>) -> Range<u64> {
        let count = self.slots.count();
        let units = u128::from(range.start) * u128::from(self.slots.units());
        let mut first = self.slots.slot_at((units / u128::from(self.bytes)) as u64);
        while first < count && self.slot(first).end <= range.start {
            first += 1;
        }
        let mut end = first;
        while end < count && self.slot(end).start < range.end {
            end += 1;
        }
        first..end
    }

    /// To how many members in other domains, and in its own, member `j` sends
    /// what it takes in.
    pub fn sends_of(&self, j: u64) -> [u64; 2] {
        let run = self.run_of(j);
        let mates = self.members_of(run);
        let others = match self.spread {
            Spread::Scatter => self.domains.end - self.domains.start - 1,
            Spread::Chain => (self.domains.end - run - 1).min(1),
        };
        [others, mates.end - mates.start - 1]
    }

    /// The domain of member `j`, and the members in a domain.
    fn run_of(&self, j: u64) -> u64 {
        self.runs.run_of(self.places.start + j)
    }

    fn members_of(&self, run: u64) -> Range<u64> {
        let places = self.runs.places(run..run + 1);
        places.start - self.places.start..places.end - self.places.start
    }

    /// Who takes slot `j` into domain `run`.
    fn entry(&self, run: u64, j: u64) -> u64 {
        if self.run_of(j) == run {
            return j;
        }
        let members = self.members_of(run);
        let Slots::Unequal(_) = self.weights else {
            return members.start + j % (members.end - members.start);
        };
        let widths = members.clone().map(|m| self.weights.width(m));
        members.start + Slots::of_willing(widths).holder_in_turn(j, 0)
    }

    /// Hops across domains that slot `j` has behind it when it comes to `run`.
    fn depth(&self, run: u64, j: u64) -> u32 {
        match self.spread {
            Spread::Scatter => u32::from(self.run_of(j) != run),
            Spread::Chain => (run - self.domains.start) as u32,
        }
    }

    /// The domain from which slot `j` comes to `run`, unless from a holder.
    fn run_before(&self, run: u64, j: u64) -> Option<u64> {
        let before = match self.spread {
            Spread::Scatter => self.run_of(j),
            Spread::Chain => run.wrapping_sub(1),
        };
        (self.depth(run, j) > 0).then_some(before)
    }

    /// The domains to which `run` passes slot `j` on.
    fn runs_after(&self, run: u64, j: u64) -> impl Iterator<Item = u64> {
        let after = match self.spread {
            Spread::Scatter if self.run_of(j) == run => self.domains.clone(),
            Spread::Scatter => 0..0,
            Spread::Chain => run + 1..self.domains.end.min(run + 2),
        };
        after.filter(move |&d| d != run)
    }

    /// What member `me` does with slot `j`, which comes out of its holder's
    /// domain by `exits`; `rank` says who a member is.
    pub fn hops_of(
        &self,
        (me, j): (u64, u64),
        exits: &Exits,
        rank: impl Fn(u64) -> Rank,
        hops: &mut SmallVec<[Hop; 16]>,
    ) {
        let run = self.run_of(me);
        let entry = self.entry(run, j);
        let stage = exits.stage_at(rank(j)) + self.depth(run, j);
        let receive = |peer, stage, there| Hop::plain(peer, Direction::Receive, stage, there);
        let send = |m| Hop::plain(rank(m), Direction::Send, stage + 1, There::Alike);
        if entry != me {
            // Out of our domain's entry, which has it a stage earlier.
            return hops.push(receive(rank(entry), stage + 1, There::Alike));
        }
        hops.push(match self.run_before(run, j) {
            None => receive(exits.towards(rank(j)), stage, exits.there(rank(j))),
            Some(before) => receive(rank(self.entry(before, j)), stage, There::Alike),
        });
        let mates = self.members_of(run).filter(|&m| m != me);
        hops.extend(mates.map(send));
        let others = self.runs_after(run, j);
        hops.extend(others.map(|d| send(self.entry(d, j))));
    }
}

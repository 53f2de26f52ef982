//! The source side of a relay: through whose NIC a byte leaves its holder's
//! NVLink domain.
//!
//! ```text
//!   holder 0 ── stage 0, NVLink ──► exit 1 ── stage 1, NIC of 1 ──► entry 9
//!            ── stage 0, own NIC ─────────────────────────────────► entry 8
//! ```
//!
//! What goes to rank `r` leaves through the `r`-th exit, counted around: all
//! NICs of the domain send, whichever rank holds the bytes, and in domains of
//! equal size each byte stays on its rail. Of NICs that are not equally fast,
//! each has its turn as often as it is fast. Where several ranks of the domain
//! hold the bytes, they share the others out among themselves.

use super::group::Group;
use super::route::{Hop, Routes, There};
use crate::plan::program::Direction;
use crate::plan::slots::Slots;
use crate::rank::Rank;
use smallvec::{SmallVec, smallvec};

/// The ranks through which what one holder has leaves its domain, ascending.
pub struct Exits {
    holder: Rank,
    ranks: SmallVec<[Rank; 8]>,
    /// How often each has its turn.
    slots: Slots,
}

impl Exits {
    /// Through whom a byte for `rank` leaves.
    pub fn towards(&self, rank: Rank) -> Rank {
        self.ranks[self.slots.holder_in_turn(u64::from(rank.0), 0) as usize]
    }

    /// The stage in which `rank` gets it: one later if it is relayed.
    pub fn stage_at(&self, rank: Rank) -> u32 {
        u32::from(self.towards(rank) != self.holder)
    }

    /// How a byte for `rank` lies at the exit, seen from there.
    pub fn there(&self, rank: Rank) -> There {
        match self.towards(rank) == self.holder {
            true => There::Across,
            false => There::Relay,
        }
    }

    /// What rank `own`, the holder or another, does with a byte for `to`.
    pub fn hops(&self, own: Rank, to: Rank) -> SmallVec<[Hop; 2]> {
        let exit = self.towards(to);
        let send = |peer, there, stage| Hop {
            peer,
            direction: Direction::Send,
            stage,
            is_relayed: stage > 0,
            there,
        };
        match (own == self.holder, own == exit) {
            (true, true) => smallvec![send(to, There::Across, 0)],
            (true, false) => smallvec![send(exit, There::Relay, 0)],
            (false, true) => {
                let receive = Hop {
                    peer: self.holder,
                    direction: Direction::Receive,
                    stage: 0,
                    is_relayed: true,
                    there: There::Alike,
                };
                smallvec![receive, send(to, There::Across, 1)]
            }
            (false, false) => SmallVec::new(),
        }
    }
}

impl Routes<'_, '_> {
    /// The exits of what `holder` has of a stream: the holder itself unless
    /// the plan relays on the source side.
    pub fn exits(&self, group: &Group, holder: Rank) -> Exits {
        let inputs = self.inputs;
        let domain = inputs.topology.domain(holder);
        let mates = domain.map_or(&[][..], |d| inputs.domains.source_ranks(d));
        let holds = |r: &Rank| group.holders.index_of(inputs.source, *r).is_some();
        let needs = |r: &Rank| group.needers.index_of(inputs.destination, *r).is_some();
        let sends = |r: &Rank| {
            let site = inputs.topology.site(*r);
            site.is_some_and(|s| s.port.is_some()) && !inputs.topology.is_drained(*r)
        };
        let (holders, others): (Vec<Rank>, Vec<Rank>) = mates.iter().partition(|r| holds(r));
        let own = holders.iter().position(|&h| h == holder).unwrap_or(0);
        // Who needs a byte itself gets it for itself alone.
        let others = others.into_iter().filter(|r| !needs(r) && sends(r));
        let mut ranks: SmallVec<[Rank; 8]> = others
            .skip(own)
            .step_by(holders.len().max(1))
            .chain(sends(&holder).then_some(holder))
            .collect();
        if ranks.is_empty() {
            ranks.push(holder);
        }
        ranks.sort_unstable();
        let site = |r: &Rank| inputs.topology.site(*r);
        let speed = |r: &Rank| {
            let own = site(r)?;
            let sharing = ranks.iter().filter_map(site).filter(|s| s.port == own.port);
            Some(own.nic_bytes_per_s / sharing.count().max(1) as u64)
        };
        let slots = match inputs.topology.may_be_uneven() {
            true => Slots::by_speed(ranks.iter().map(|r| speed(r).unwrap_or(0))),
            false => Slots::Equal(ranks.len() as u64),
        };
        Exits {
            holder,
            ranks,
            slots,
        }
    }
}

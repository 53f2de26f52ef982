//! Strategy `two_stage`: a mapped receiver takes in what its weight-mapping
//! group needs, and forwards inside the group.
//!
//! ```text
//!   holder ── stage 0 ──► receiver ── stage 1 ──► the other members in need
//! ```
//!
//! A receiver that needs the bytes itself forwards them from its buffers,
//! another one from relay memory. What a group's mapped senders do not hold is
//! taken by each member in need straight from a holder, by the wrap-around cut.

use super::group::Group;
use super::route::{Hop, Route, Routes, There};
use super::{HOLDINGS, NEEDS};
use crate::plan::program::Direction;
use crate::plan::two_stage::TwoStage;
use crate::rank::Rank;
use smallvec::SmallVec;

/// Members of a weight-mapping group.
type Members = SmallVec<[Rank; 8]>;

/// How one weight-mapping group gets a stream.
struct Serve {
    sender: Rank,
    /// Who takes it in and forwards; `None` if the sender is a member itself,
    /// or on the way from one.
    entry: Option<Rank>,
    /// Members that need it and hold none of it, in order.
    members: Members,
}

impl Serve {
    /// True if the entry keeps what it takes in.
    fn keeps(&self) -> bool {
        self.entry.is_some_and(|e| self.members.contains(&e))
    }

    /// How the entry stores a stream, seen from the other side.
    fn entry_across(&self) -> There {
        match self.keeps() {
            true => There::Across,
            false => There::Relay,
        }
    }

    /// The entry's hops to the other members.
    fn forwards(&self, entry: Rank) -> impl Iterator<Item = Hop> + '_ {
        let is_relayed = !self.keeps();
        let others = self.members.iter().filter(move |&&m| m != entry);
        others.map(move |&peer| Hop {
            peer,
            direction: Direction::Send,
            stage: 1,
            is_relayed,
            there: There::Alike,
        })
    }
}

impl Routes<'_, '_> {
    pub fn two_stage(&mut self, mapped: &TwoStage) {
        let walks = self.walks;
        for (group, own) in walks[NEEDS].places() {
            if let Some(own) = own {
                self.take_in(mapped, group, own);
            }
        }
        let served = mapped.served_by(self.rank);
        for (group, own) in walks[HOLDINGS].places() {
            if !group.needers.is_empty() {
                self.give_out(mapped, group, own, &served);
            }
        }
        for (w, walk) in walks.iter().enumerate().skip(HOLDINGS + 1) {
            for (group, _) in walk.places().filter(|(_, own)| own.is_some()) {
                self.pass_on(mapped, w, walk.rank, group);
            }
        }
        self.put_in_order(0);
    }

    /// How weight-mapping group `g` gets the stream of `group`; `None` if none
    /// of its senders holds it.
    fn serve(&self, mapped: &TwoStage, group: &Group, g: u32) -> Option<Serve> {
        let holds = |r: Rank| group.holders.index_of(self.inputs.source, r).is_some();
        let &(sender, receiver) = mapped.pairs(g).iter().find(|p| holds(p.0))?;
        let needs = |r: Rank| group.needers.index_of(self.inputs.destination, r).is_some();
        let members = mapped.members(g).iter().copied();
        // A receiver that holds the bytes already needs nobody to send them.
        let (sender, entry) = match holds(receiver) {
            true => (receiver, None),
            false => (sender, Some(receiver)),
        };
        Some(Serve {
            sender,
            entry,
            members: members.filter(|&m| needs(m)).collect(),
        })
    }

    /// What this rank needs.
    fn take_in(&mut self, mapped: &TwoStage, group: &Group, own: u64) {
        let serve = mapped
            .group_of(self.rank)
            .and_then(|g| self.serve(mapped, group, g));
        let Some(serve) = serve else {
            return self.take_straight(group, own);
        };
        let receive = |peer, stage, there| Hop {
            peer,
            direction: Direction::Receive,
            stage,
            is_relayed: false,
            there,
        };
        let mut hops: SmallVec<[Hop; 8]> = SmallVec::new();
        match serve.entry {
            Some(entry) if entry != self.rank => {
                let there = match serve.keeps() {
                    true => There::Alike,
                    false => There::Relay,
                };
                hops.push(receive(entry, 1, there));
            }
            entry => {
                hops.push(receive(serve.sender, 0, There::Across));
                hops.extend(entry.into_iter().flat_map(|e| serve.forwards(e)));
            }
        }
        self.add_share(NEEDS, group, 0, group.bytes, Route::of(&hops));
    }

    /// Our part of the line over all needers, for a stream that no mapped
    /// sender holds.
    fn take_straight(&mut self, group: &Group, own: u64) {
        let mut shares: SmallVec<[_; 4]> = SmallVec::new();
        group.line(0).shares_of_needer(own, |s| shares.push(s));
        for s in shares {
            let hop = Hop {
                peer: group.holders.nth(self.inputs.source, s.holder),
                direction: Direction::Receive,
                stage: 0,
                is_relayed: false,
                there: There::Across,
            };
            self.add_share(NEEDS, group, s.from, s.to, Route::of(&[hop]));
        }
    }

    /// What this rank holds.
    fn give_out(&mut self, mapped: &TwoStage, group: &Group, own: Option<u64>, served: &[u32]) {
        let send = |peer, there| Hop {
            peer,
            direction: Direction::Send,
            stage: 0,
            is_relayed: false,
            there,
        };
        for &g in served {
            let Some(serve) = self.serve(mapped, group, g) else {
                continue;
            };
            if serve.sender != self.rank || serve.members.is_empty() {
                continue;
            }
            let hops: Vec<Hop> = match serve.entry {
                Some(entry) => vec![send(entry, serve.entry_across())],
                None => serve
                    .members
                    .iter()
                    .map(|&m| send(m, There::Across))
                    .collect(),
            };
            self.add_share(HOLDINGS, group, 0, group.bytes, Route::of(&hops));
        }
        let Some(own) = own else { return };
        let mut shares: SmallVec<[_; 8]> = SmallVec::new();
        group.line(0).shares_of_holder(own, |s| shares.push(s));
        for s in shares {
            let needer = group.needers.nth(self.inputs.destination, s.needer);
            let is_mapped = mapped
                .group_of(needer)
                .is_some_and(|g| self.serve(mapped, group, g).is_some());
            if !is_mapped {
                let hop = send(needer, There::Across);
                self.add_share(HOLDINGS, group, s.from, s.to, Route::of(&[hop]));
            }
        }
    }

    /// What the others of our group need and we do not: `group` is one of
    /// `mate`'s.
    fn pass_on(&mut self, mapped: &TwoStage, walk: usize, mate: Rank, group: &Group) {
        let Some(g) = mapped.group_of(mate) else {
            return;
        };
        let Some(serve) = self.serve(mapped, group, g) else {
            return;
        };
        // Several may need it: the first one's walk brings it up.
        if serve.entry != Some(self.rank) || serve.keeps() || serve.members[0] != mate {
            return;
        }
        let mut hops: SmallVec<[Hop; 8]> = SmallVec::new();
        hops.push(Hop {
            peer: serve.sender,
            direction: Direction::Receive,
            stage: 0,
            is_relayed: true,
            there: There::Across,
        });
        hops.extend(serve.forwards(self.rank));
        self.add_share(walk, group, 0, group.bytes, Route::of(&hops));
    }
}

//! Strategy `direct`: from a holder straight to the needer.

use super::route::{Here, Hop, ItemRange, Routes, Stretch, There};
use super::walk::{Group, Walk};
use super::{HOLDINGS, NEEDS};
use crate::plan::decision::SourceRule;
use crate::plan::line::Share;
use crate::plan::locality::{Ends, Matching};
use crate::plan::program::Direction;
use crate::rank::Rank;
use std::sync::Arc;

impl Routes<'_, '_> {
    /// Cuts every line. Buckets are cut later, out of the stream of each pair.
    pub fn direct(&mut self) {
        let walks = self.walks;
        for w in [NEEDS, HOLDINGS] {
            let walk = &walks[w];
            for (group, own) in walk.places() {
                let Some(own) = own.filter(|_| !group.needers.is_empty()) else {
                    continue;
                };
                let turn = self.turn(group);
                let mut add = |peer, r| self.add_whole(w, peer, r);
                match walk.inputs.decision.source_rule {
                    SourceRule::Wrap => walk.wrap(group, own, turn, &mut add),
                    SourceRule::Rotate => walk.rotate(group, own, turn, &mut add),
                }
            }
        }
    }

    /// A range that goes to or comes from `peer`, in no bucket yet.
    fn add_whole(&mut self, walk: usize, peer: Rank, r: ItemRange) {
        let direction = self.walks[walk].direction;
        let way = self.way_again(Hop::plain(peer, direction, 0, There::Across));
        self.stretches.push(Stretch {
            walk: walk as u32,
            item: r.item,
            bucket: 0,
            from: r.from,
            to: r.to,
            here: Here::Buffer,
            way,
        });
    }
}

impl Walk<'_> {
    fn wrap(&self, group: &Group, own: u64, turn: u64, add: &mut impl FnMut(Rank, ItemRange)) {
        let share = |s: Share| {
            let peer = match self.direction {
                Direction::Receive => group.holders.nth(self.inputs.source, s.holder),
                Direction::Send => group.needers.nth(self.inputs.destination, s.needer),
            };
            self.ranges(group, s.from, s.to, |r| add(peer, r));
        };
        match (self.matching(group, turn), self.direction) {
            (Some(m), Direction::Receive) => m.shares_of_needer(group.bytes, own, share),
            (Some(m), Direction::Send) => m.shares_of_holder(group.bytes, own, share),
            (None, Direction::Receive) => group.line(turn).shares_of_needer(own, share),
            (None, Direction::Send) => group.line(turn).shares_of_holder(own, share),
        }
    }

    /// The line of a stream, if holders and needers of it are near each other.
    fn matching(&self, group: &Group, turn: u64) -> Option<Arc<Matching>> {
        let inputs = self.inputs;
        let ends = Ends {
            holders: (&group.holders, inputs.source),
            needers: (&group.needers, inputs.destination),
            slots: &group.slots,
            turn,
        };
        inputs.locality.matching(ends, inputs.topology)
    }

    /// Whole items, the holder moving on by one with each item and needer.
    fn rotate(&self, group: &Group, own: u64, turn: u64, add: &mut impl FnMut(Rank, ItemRange)) {
        let needers = group.needers.len();
        let (turns, period) = match self.direction {
            Direction::Receive => Default::default(),
            Direction::Send => group.slots.turns_of(own, turn),
        };
        for (t, &item) in group.items.iter().enumerate() {
            let t = t as u64;
            let whole = ItemRange {
                item,
                from: 0,
                to: self.cell_of(&self.items[item as usize]).bytes,
            };
            if self.direction == Direction::Receive {
                let holder = group.slots.holder_in_turn(own + t, turn);
                add(group.holders.nth(self.inputs.source, holder), whole);
                continue;
            }
            for at in &turns {
                let first = (at + period - t % period) % period;
                for needer in (first..needers).step_by(period as usize) {
                    add(group.needers.nth(self.inputs.destination, needer), whole);
                }
            }
        }
    }
}

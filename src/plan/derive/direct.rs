//! Strategy `direct`: from a holder straight to the needer.

use super::route::{Here, ItemRange, Routes, Stretch, There};
use super::walk::{Group, Walk};
use super::{HOLDINGS, NEEDS};
use crate::plan::decision::SourceRule;
use crate::plan::line::Line;
use crate::plan::program::Direction;
use crate::rank::Rank;

impl Routes<'_, '_> {
    /// Cuts every line. Buckets are cut later, out of the stream of each pair.
    pub fn direct(&mut self) {
        let mut stretches = std::mem::take(&mut self.stretches);
        let turn = |group: &Group| self.turn(group);
        for w in [NEEDS, HOLDINGS] {
            let walk = &self.walks[w];
            let mut add = |peer, r: ItemRange| {
                stretches.push(Stretch {
                    peer,
                    direction: walk.direction,
                    stage: 0,
                    bucket: 0,
                    walk: w as u32,
                    item: r.item,
                    from: r.from,
                    to: r.to,
                    here: Here::Buffer,
                    there: There::Across,
                });
            };
            for group in &walk.groups {
                let Some(own) = group.own.filter(|_| !group.needers.is_empty()) else {
                    continue;
                };
                match walk.inputs.decision.source_rule {
                    SourceRule::Wrap => walk.wrap(group, own, turn(group), &mut add),
                    SourceRule::Rotate => walk.rotate(group, own, turn(group), &mut add),
                }
            }
        }
        self.stretches = stretches;
    }
}

impl Walk<'_> {
    fn wrap(&self, group: &Group, own: u64, turn: u64, add: &mut impl FnMut(Rank, ItemRange)) {
        let line = Line {
            bytes: group.bytes,
            holders: group.holders.len(),
            needers: group.needers.len(),
        };
        let n = line.holders;
        match self.direction {
            Direction::Receive => line.shares_of_needer(own, |s| {
                let peer = group.holders.nth(self.inputs.source, (s.holder + turn) % n);
                self.ranges(group, s.from, s.to, |r| add(peer, r));
            }),
            Direction::Send => line.shares_of_holder((own + n - turn) % n, |s| {
                let peer = group.needers.nth(self.inputs.destination, s.needer);
                self.ranges(group, s.from, s.to, |r| add(peer, r));
            }),
        }
    }

    /// Whole items, the holder moving on by one with each item and needer.
    fn rotate(&self, group: &Group, own: u64, turn: u64, add: &mut impl FnMut(Rank, ItemRange)) {
        let (n, needers) = (group.holders.len(), group.needers.len());
        for (t, &item) in group.items.iter().enumerate() {
            let t = (t as u64 + turn) % n;
            let whole = ItemRange {
                item,
                from: 0,
                to: self.cell_of(&self.items[item as usize]).bytes,
            };
            match self.direction {
                Direction::Receive => {
                    add(group.holders.nth(self.inputs.source, (own + t) % n), whole);
                }
                Direction::Send => {
                    let mut g = (own + n - t) % n;
                    while g < needers {
                        add(group.needers.nth(self.inputs.destination, g), whole);
                        g += n;
                    }
                }
            }
        }
    }
}

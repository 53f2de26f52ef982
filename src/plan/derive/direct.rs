//! Strategy `direct`: from a holder straight to the needer.
//!
//! Lines are cut group by group, and what is between two cuts is then found
//! item by item, so that stretches come in order:
//!
//! ```text
//!   line of group 0   | item 0 | item 2 | item 3 |     to 8 up to the middle of
//!   segments          |-- to 8 ----|-- to 9 -----|     item 2, the rest to 9
//! ```

use super::cut::PairCut;
use super::group::Group;
use super::route::{Hop, ItemRange, RESERVED_COUNT_MAX, Routes, There};
use super::walk::Walk;
use super::{HOLDINGS, NEEDS};
use crate::plan::decision::SourceRule;
use crate::plan::line::Share;
use crate::plan::locality::{Ends, Matching};
use crate::plan::program::Direction;
use crate::plan::sorting;
use crate::rank::Rank;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// What this rank exchanges with one peer of a group's stream.
#[derive(Clone, Copy)]
struct Segment {
    from: u64,
    to: u64,
    way: u32,
    stream: u32,
}

/// The lines of a walk, of each group what this rank exchanges.
#[derive(Default)]
struct Lines {
    segments: Vec<Segment>,
    /// By group, those that are not behind us yet, in order.
    open: SmallVec<[Range<usize>; 32]>,
    /// Items that segments meet, each as often as it is met, about.
    met_count: usize,
}

impl Lines {
    /// Calls `f` with the segments that the next item of a group meets, `range` of
    /// its line, and with what of that range is in each.
    fn next(&mut self, group: u32, range: Range<u64>, mut f: impl FnMut(&Segment, Range<u64>)) {
        let open = &mut self.open[group as usize];
        for s in &self.segments[open.clone()] {
            if s.to <= range.start {
                open.start += 1;
                continue;
            }
            if s.from >= range.end {
                break;
            }
            let own = s.from.max(range.start)..s.to.min(range.end);
            if !own.is_empty() {
                f(s, own);
            }
        }
    }
}

impl Routes<'_, '_> {
    /// Cuts every line, and what a pair exchanges into buckets.
    pub fn direct(&mut self) {
        self.cut_lines(NEEDS);
        // What a needer gets of an item does not overlap: it is in order.
        let first = self.stretches.len();
        self.cut_lines(HOLDINGS);
        self.put_in_order(first);
    }

    /// What this rank exchanges of a walk.
    fn cut_lines(&mut self, w: usize) {
        match self.inputs.decision.source_rule {
            SourceRule::Wrap => self.wrap(w),
            SourceRule::Rotate => self.rotate(w),
        }
    }

    /// What this rank exchanges of a walk by the wrap-around cut: segments of
    /// lines.
    fn wrap(&mut self, w: usize) {
        let walk = &self.walks[w];
        let mut lines = self.lines(w);
        let bytes = |s: &Segment| (s.stream, s.to - s.from);
        let mut pairs = self.pair_cuts(lines.segments.iter().map(bytes));
        let cuts: usize = pairs.iter().map(PairCut::count_max).sum();
        let room = lines.met_count + cuts.min(lines.met_count);
        self.stretches.reserve(room.min(RESERVED_COUNT_MAX));
        let (items, cells) = (&walk.items[..], &walk.cells[..]);
        for (i, item) in (0..).zip(items) {
            let begin = item.position;
            let range = begin..begin + cells[item.cell as usize].bytes;
            lines.next(item.group, range, |s, own| {
                let own = ItemRange {
                    item: i,
                    from: own.start - begin,
                    to: own.end - begin,
                };
                self.add_cut(&mut pairs[s.stream as usize], w, own, s.way);
            });
        }
    }

    fn lines(&mut self, w: usize) -> Lines {
        let walk = &self.walks[w];
        let mut lines = Lines::default();
        for (group, own) in walk.places() {
            let first = lines.segments.len();
            if let Some(own) = own.filter(|_| !group.needers.is_empty()) {
                let turn = self.turn(group);
                walk.shares(group, own, turn, |peer, from, to| {
                    let [(begin, from), (end, to)] = [from, to].map(|at| walk.cut_at(group, at));
                    // Shares of less than a unit may be nothing.
                    if from < to {
                        let hop = Hop::plain(peer, walk.direction, 0, There::Across);
                        let way = self.way(&[hop]);
                        lines.met_count += end - begin + 1;
                        lines.segments.push(Segment {
                            from,
                            to,
                            way,
                            stream: self.stream_of(way),
                        });
                    }
                });
            }
            let range = |s: &Segment| (s.from, s.to);
            sorting::sort(&mut lines.segments[first..], |a, b| range(a).cmp(&range(b)));
            lines.open.push(first..lines.segments.len());
        }
        lines
    }

    /// What it exchanges of whole items, the holder moving on by one with each
    /// item and needer.
    fn rotate(&mut self, w: usize) {
        let walk = &self.walks[w];
        let rota = |(group, own): (&Group, Option<u64>)| {
            let own = own.filter(|_| !group.needers.is_empty())?;
            Some(Rota::new(walk, group, own, self.turn(group)))
        };
        let mut rotas: Vec<Option<Rota>> = walk.places().map(rota).collect();
        let mut found: Vec<(u32, u32)> = Vec::new();
        for (i, item) in (0..).zip(&walk.items) {
            if let Some(rota) = &mut rotas[item.group as usize] {
                rota.next(walk, &walk.groups[item.group as usize], |peer| {
                    let hop = Hop::plain(peer, walk.direction, 0, There::Across);
                    found.push((i, self.way_again(hop)));
                });
            }
        }
        let bytes = |i: u32| walk.cell_of(&walk.items[i as usize]).bytes;
        let stream = |way| self.stream_of(way);
        let mut pairs = self.pair_cuts(found.iter().map(|&(i, way)| (stream(way), bytes(i))));
        for (i, way) in found {
            let pair = &mut pairs[self.stream_of(way) as usize];
            let whole = ItemRange {
                item: i,
                from: 0,
                to: bytes(i),
            };
            self.add_cut(pair, w, whole, way);
        }
    }
}

impl Walk<'_> {
    /// Calls `f` with each peer and the range of a group's stream that the rank
    /// exchanges with it.
    fn shares(&self, group: &Group, own: u64, turn: u64, mut f: impl FnMut(Rank, u64, u64)) {
        let share = |s: Share| {
            let peer = match self.direction {
                Direction::Receive => group.holders.nth(self.inputs.source, s.holder),
                Direction::Send => group.needers.nth(self.inputs.destination, s.needer),
            };
            f(peer, s.from, s.to);
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
}

/// Whose turn it is in a group whose items are sent whole.
struct Rota {
    own: u64,
    turn: u64,
    /// The turns of a holder, of so many.
    turns: SmallVec<[u64; 4]>,
    period: u64,
    /// Items that there were.
    count: u64,
}

impl Rota {
    fn new(walk: &Walk<'_>, group: &Group, own: u64, turn: u64) -> Rota {
        let (turns, period) = match walk.direction {
            Direction::Receive => Default::default(),
            Direction::Send => group.slots.turns_of(own, turn),
        };
        Rota {
            own,
            turn,
            turns,
            period,
            count: 0,
        }
    }

    /// Calls `f` with each peer with which the rank exchanges the next item.
    fn next(&mut self, walk: &Walk<'_>, group: &Group, mut f: impl FnMut(Rank)) {
        let (source, destination) = (walk.inputs.source, walk.inputs.destination);
        let t = self.count;
        self.count += 1;
        if walk.direction == Direction::Receive {
            let holder = group.slots.holder_in_turn(self.own + t, self.turn);
            return f(group.holders.nth(source, holder));
        }
        for at in &self.turns {
            let first = (at + self.period - t % self.period) % self.period;
            for needer in (first..group.needers.len()).step_by(self.period as usize) {
                f(group.needers.nth(destination, needer));
            }
        }
    }
}

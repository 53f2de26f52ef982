//! Puts stretches in order of walk, item and range, and cuts them into buckets
//! where that was not done when they were found: with strategy `direct`, whose
//! buckets are parts of what a pair exchanges.

use super::route::{Routes, StreamKey, Stretch, scattered, share_of};
use super::{Decision, Inputs, Strategy};
use crate::plan::decision::{Cuts, Order};
use crate::rank::Rank;

impl Routes<'_, '_> {
    /// Leaves the stretches in order, equal ones beside each other.
    pub fn settle(&mut self) {
        let by_item = self.by_item();
        let found = std::mem::take(&mut self.stretches);
        let found = by_item.iter().map(|&i| &found[i as usize]);
        let Decision {
            strategy, order, ..
        } = self.inputs.decision;
        self.stretches = match (*strategy, *order) {
            (Strategy::Direct, Order::Fraction) => self.cut_by_pair(found),
            (Strategy::Direct, Order::Layer) => self.cut_in_layers(found),
            (Strategy::TwoStage | Strategy::Relay | Strategy::Fanout, _) => {
                found.copied().collect()
            }
        };
        let range = |s: &Stretch| (s.from, s.to);
        let is_one = |a: &Stretch, b: &Stretch| (a.walk, a.item) == (b.walk, b.item);
        for own in self.stretches.chunk_by_mut(is_one) {
            if !own.is_sorted_by_key(range) {
                own.sort_by_key(range);
            }
        }
    }

    /// Part `b` is the `b`-th one of what a pair exchanges.
    fn cut_by_pair<'s>(&self, whole: impl Iterator<Item = &'s Stretch> + Clone) -> Vec<Stretch> {
        let mut totals = vec![0; self.streams.len()];
        for s in whole.clone() {
            totals[self.pair_of(s)] += s.bytes();
        }
        let pairs = self.streams.iter().zip(totals);
        let pair = |(key, total)| Pair::new(self.inputs, self.rank, key, total);
        let mut pairs: Vec<Pair> = pairs.map(pair).collect();
        let (uncut, more) = (whole.size_hint().0, pairs.iter().map(|p| p.cuts.count));
        let room = more.fold(uncut as u64, u64::saturating_add);
        let mut cut = Vec::with_capacity((uncut * 2).min(room as usize));
        for s in whole {
            let unit = || self.portion(s).cell.unit;
            pairs[self.pair_of(s)].cut(s, unit, &mut cut);
        }
        cut
    }

    /// The one stream that a stretch is in.
    fn pair_of(&self, s: &Stretch) -> usize {
        self.hops_of(s)[0].0 as usize
    }

    /// Stretches cut where buckets of layers end.
    fn cut_in_layers<'s>(&self, whole: impl Iterator<Item = &'s Stretch>) -> Vec<Stretch> {
        let mut cut = Vec::with_capacity(whole.size_hint().0);
        for s in whole {
            let walk = &self.walks[s.walk as usize];
            walk.cut_in_layers(s.item, (s.from, s.to), |bucket, from, to| {
                cut.push(Stretch {
                    bucket,
                    from,
                    to,
                    ..*s
                });
            });
        }
        cut
    }
}

/// What a pair exchanges while it is cut, in the order of both ends.
struct Pair {
    total: u64,
    cuts: Cuts,
    /// Streams that carry the same are cut each by itself.
    phase: u64,
    /// How many bytes there were, and in which part the next one is.
    position: u64,
    part: u64,
    /// The bucket of that part, and how many bytes there are up to its end.
    bucket: u32,
    end: u64,
}

impl Pair {
    fn new(inputs: Inputs<'_>, rank: Rank, key: &StreamKey, total: u64) -> Pair {
        let mut pair = Pair {
            total,
            cuts: inputs.cuts_of(total, 100),
            phase: scattered(u64::from(rank.0) + u64::from(key.peer.0)),
            position: 0,
            part: 0,
            bucket: 0,
            end: 0,
        };
        pair.enter(0);
        pair
    }

    /// Cuts the next stretch where parts end, between its units.
    fn cut(&mut self, s: &Stretch, unit: impl Fn() -> u64, out: &mut Vec<Stretch>) {
        let mut cut = *s;
        while cut.from < s.to {
            let inside = s.from + self.end.saturating_sub(self.position);
            cut.to = match inside >= s.to {
                true => s.to,
                false => (inside / unit() * unit()).max(cut.from),
            };
            if cut.from < cut.to {
                cut.bucket = self.bucket;
                out.push(cut);
            }
            cut.from = cut.to;
            if inside < s.to {
                self.enter(self.part + 1);
            }
        }
        self.position += s.bytes();
        while self.part + 1 < self.cuts.count && self.position >= self.end {
            self.enter(self.part + 1);
        }
    }

    fn enter(&mut self, part: u64) {
        self.part = part;
        self.bucket = self.cuts.bucket_of(part, self.phase);
        self.end = share_of(part + 1, self.total, self.cuts.count);
    }
}

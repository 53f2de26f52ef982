//! Cuts what strategy `direct` finds into buckets, which are parts of what a
//! pair exchanges, or of layers.

use super::Inputs;
use super::route::{Routes, StreamKey, Stretch, scattered, share_of};
use crate::plan::decision::{Cuts, Order};
use crate::rank::Rank;

impl Routes<'_, '_> {
    /// All streams as pairs, which exchange so many bytes.
    pub fn pairs(&self, totals: &[u64]) -> Vec<Pair> {
        let pairs = self.streams.iter().zip(totals);
        let pair =
            |(key, &total): (&StreamKey, &u64)| Pair::new(self.inputs, self.rank, key.peer, total);
        pairs.map(pair).collect()
    }

    /// The one stream of a way that is no route.
    pub fn stream_of(&self, way: u32) -> usize {
        self.hops_of(way)[0].0 as usize
    }

    /// Adds the next stretch of a pair, cut into buckets.
    pub fn add_cut(&mut self, pair: &mut Pair, s: &Stretch) {
        let walk = &self.walks[s.walk as usize];
        match self.inputs.decision.order {
            Order::Fraction => {
                let unit = || walk.cell_of(&walk.items[s.item as usize]).unit;
                pair.cut(s, unit, &mut self.stretches);
            }
            Order::Layer => {
                walk.cut_in_layers(s.item, (s.from, s.to), |bucket, from, to| {
                    self.stretches.push(Stretch {
                        bucket,
                        from,
                        to,
                        ..*s
                    });
                });
            }
        }
    }
}

/// What a pair exchanges while it is cut, in the order of both ends.
pub struct Pair {
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
    fn new(inputs: Inputs<'_>, rank: Rank, peer: Rank, total: u64) -> Pair {
        let mut pair = Pair {
            total,
            cuts: inputs.cuts_of(total, 100),
            phase: scattered(u64::from(rank.0) + u64::from(peer.0)),
            position: 0,
            part: 0,
            bucket: 0,
            end: 0,
        };
        pair.enter(0);
        pair
    }

    /// Cuts that are made at most.
    pub fn cut_count_max(&self) -> usize {
        self.cuts.count.saturating_sub(1) as usize
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

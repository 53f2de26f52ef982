//! Cuts what strategy `direct` finds into buckets, which are parts of what a
//! pair exchanges, or of layers.

use super::Inputs;
use super::route::{Routes, StreamKey, Stretch, scattered, share_of};
use crate::plan::decision::{Cuts, Order};
use crate::rank::Rank;

impl Routes<'_, '_> {
    /// The cuts of all streams, by what goes each way: ways and bytes.
    pub fn pair_cuts(&self, ways: impl Iterator<Item = (u32, u64)>) -> Vec<PairCut> {
        let mut totals = vec![0u64; self.streams.len()];
        for (way, bytes) in ways {
            let total = &mut totals[self.stream_of(way)];
            *total = total.saturating_add(bytes);
        }
        let streams = self.streams.iter().zip(totals);
        let cut =
            |(key, total): (&StreamKey, u64)| PairCut::new(self.inputs, self.rank, key.peer, total);
        streams.map(cut).collect()
    }

    /// The one stream of a way that is no route.
    pub fn stream_of(&self, way: u32) -> usize {
        self.hops_of(way)[0].0 as usize
    }

    /// Adds the next stretch of a pair, cut into buckets.
    pub fn add_cut(&mut self, pair: &mut PairCut, s: &Stretch) {
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

/// What one rank sends another while it is cut, in the order of both ends.
pub struct PairCut {
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

impl PairCut {
    fn new(inputs: Inputs<'_>, rank: Rank, peer: Rank, total: u64) -> PairCut {
        let mut pair = PairCut {
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
    pub fn count_max(&self) -> usize {
        self.cuts.count.saturating_sub(1) as usize
    }

    /// Cuts the next stretch where parts end, between its units.
    fn cut(&mut self, s: &Stretch, unit: impl Fn() -> u64, out: &mut Vec<Stretch>) {
        let mut cut = *s;
        while cut.from < s.to {
            let is_last = self.part + 1 == self.cuts.count;
            let inside = s.from + self.end.saturating_sub(self.position);
            let ends_inside = inside < s.to && !is_last;
            cut.to = match ends_inside {
                false => s.to,
                true => (inside / unit() * unit()).max(cut.from),
            };
            if cut.from < cut.to {
                cut.bucket = self.bucket;
                out.push(cut);
            }
            cut.from = cut.to;
            if ends_inside {
                self.enter(self.part + 1);
            }
        }
        self.position = self.position.saturating_add(s.bytes());
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

//! Cuts what strategy `direct` finds into buckets, which are parts of what a
//! pair exchanges, or of layers.

use super::Inputs;
use super::route::{Here, ItemRange, Routes, StreamKey, Stretch, scattered, share_of};
use crate::plan::decision::{Cuts, Order};
use crate::rank::Rank;

impl Routes<'_, '_> {
    /// The cuts of all streams, by what they carry: streams and bytes.
    pub fn pair_cuts(&self, carried: impl Iterator<Item = (u32, u64)>) -> Vec<PairCut> {
        let mut totals = vec![0u64; self.streams.len()];
        for (stream, bytes) in carried {
            let total = &mut totals[stream as usize];
            *total = total.saturating_add(bytes);
        }
        let streams = self.streams.iter().zip(totals);
        let cut =
            |(key, total): (&StreamKey, u64)| PairCut::new(self.inputs, self.rank, key.peer, total);
        streams.map(cut).collect()
    }

    /// The one stream of a way that is no route.
    pub fn stream_of(&self, way: u32) -> u32 {
        self.hops_of(way)[0].0
    }

    /// Adds the next part of an item that a pair exchanges, cut into buckets.
    #[inline]
    pub fn add_cut(&mut self, pair: &mut PairCut, walk: usize, own: ItemRange, way: u32) {
        let stretch = |bucket, from, to| Stretch {
            walk: walk as u32,
            item: own.item,
            bucket,
            from,
            to,
            here: Here::Buffer,
            way,
        };
        match pair.bucket_of_whole(own.to - own.from) {
            Some(bucket) => self.stretches.push(stretch(bucket, own.from, own.to)),
            None => self.cut_up(pair, walk, own, stretch),
        }
    }

    /// The same where it may have to be cut. By itself, so that what is not cut,
    /// which is most, goes a short way.
    #[inline(never)]
    fn cut_up(
        &mut self,
        pair: &mut PairCut,
        walk: usize,
        own: ItemRange,
        stretch: impl Fn(u32, u64, u64) -> Stretch,
    ) {
        let walk = &self.walks[walk];
        let add = |bucket, from, to| self.stretches.push(stretch(bucket, from, to));
        match self.inputs.decision.order {
            Order::Fraction => {
                let unit = walk.cell_of(&walk.items[own.item as usize]).unit;
                pair.cut(own, unit, add);
            }
            Order::Layer => walk.cut_in_layers(own.item, (own.from, own.to), add),
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
    /// The bucket of that part, and how many bytes there are up to its end; no
    /// limit to the last, and none where layers tell the bucket.
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
        if inputs.decision.order == Order::Fraction {
            pair.enter(0);
        }
        pair
    }

    /// Cuts that are made at most.
    pub fn count_max(&self) -> usize {
        self.cuts.count.saturating_sub(1) as usize
    }

    /// The bucket of the next so many bytes, if no part ends with or in them.
    fn bucket_of_whole(&mut self, bytes: u64) -> Option<u32> {
        let to = self.position.saturating_add(bytes);
        (to < self.end).then(|| {
            self.position = to;
            self.bucket
        })
    }

    /// Cuts what comes next where parts end, between its units: calls `f` with
    /// buckets and ranges.
    fn cut(&mut self, own: ItemRange, unit: u64, mut f: impl FnMut(u32, u64, u64)) {
        let mut from = own.from;
        while from < own.to {
            let inside = self.end.saturating_sub(self.position);
            let inside = own.from.saturating_add(inside);
            let ends_inside = inside < own.to && !self.is_last();
            let to = match ends_inside {
                false => own.to,
                true => (inside / unit * unit).max(from),
            };
            if from < to {
                f(self.bucket, from, to);
            }
            from = to;
            if ends_inside {
                self.enter(self.part + 1);
            }
        }
        self.position = self.position.saturating_add(own.to - own.from);
        while self.position >= self.end && !self.is_last() {
            self.enter(self.part + 1);
        }
    }

    fn enter(&mut self, part: u64) {
        self.part = part;
        self.bucket = self.cuts.bucket_of(part, self.phase);
        self.end = match self.is_last() {
            true => u64::MAX,
            false => share_of(part + 1, self.total, self.cuts.count),
        };
    }

    fn is_last(&self) -> bool {
        self.part + 1 >= self.cuts.count
    }
}

//! What each stream carries: stretches in the order in which both ends have
//! them.
//!
//! ```text
//!   stretches by item                by bucket          by stream
//!   item 2, bucket 1, to 8           bucket 0, item 7   to 8: 0·7, 1·2
//!   item 7, bucket 0, to 8 and 9     bucket 1, item 2   to 9: 0·7
//! ```
//!
//! Stretches are in order of walk, item and range, and are dealt to the streams:
//! most are sent to several. Where that leaves streams out of order of bucket, they
//! are put in that order first, by counting.

use super::HOLDINGS;
use super::route::{Portion, RESERVED_COUNT_MAX, Routes, StreamKey, Stretch, There};
use crate::plan::program::Direction;
use crate::plan::sorting;
use rustc_hash::{FxHashMap, FxHasher};
use std::cmp::Ordering;
use std::hash::Hasher;

/// A stretch on its way between this rank and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Index of the stretch, or of one that is the same part of the same item.
    pub stretch: u32,
    pub there: There,
}

/// A stream when its turn comes.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub stream: usize,
    /// An earlier one whose messages are this one's, but for the peer.
    pub twin: Option<usize>,
}

/// What a stream carries in one step.
#[derive(Clone, Copy)]
pub struct Batch {
    /// Index of the turn of its stream.
    pub turn: u32,
    pub bucket: u32,
    step: u32,
    legs: (u32, u32),
}

/// The legs of all streams.
pub struct Legs {
    all: Vec<Leg>,
    starts: Vec<u32>,
}

impl Legs {
    /// Those of a stream by bucket, those of a bucket in the order of both ends.
    pub fn of(&self, stream: usize) -> &[Leg] {
        &self.all[self.starts[stream] as usize..self.starts[stream + 1] as usize]
    }

    pub fn of_batch(&self, batch: &Batch) -> &[Leg] {
        &self.all[batch.legs.0 as usize..batch.legs.1 as usize]
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }
}

impl Routes<'_, '_> {
    /// Deals the stretches, which are in order, to the streams.
    pub fn legs(&self) -> Legs {
        let starts = self.starts();
        let dealt = self.deal(&starts, (0..).zip(&self.stretches));
        let mut all = dealt.unwrap_or_else(|| {
            // In this order none comes after one of a later bucket.
            let by_bucket = self.by_bucket().into_iter();
            let order = by_bucket.map(|i| (i, &self.stretches[i as usize]));
            self.deal(&starts, order).unwrap_or_default()
        });
        // What a rank needs it passes on in later stages than it sends what it
        // holds: only with the needs and holdings of others do streams carry
        // stretches of two walks.
        if self.walks.len() > HOLDINGS + 1 {
            for own in starts.windows(2) {
                self.mix(&mut all[own[0] as usize..own[1] as usize]);
            }
        }
        Legs { all, starts }
    }

    /// Where the legs of each stream begin.
    fn starts(&self) -> Vec<u32> {
        let mut uses = vec![0; self.way_count()];
        for s in &self.stretches {
            uses[s.way as usize] += 1;
        }
        let mut counts = vec![0; self.streams.len() + 1];
        for (way, uses) in (0..).zip(uses) {
            for &(stream, _) in self.hops_of(way) {
                counts[stream as usize] += uses;
            }
        }
        sorting::starts_of(counts)
    }

    /// Deals the stretches, in some order, to the streams. `None` if one comes
    /// after one of a later bucket in its stream.
    fn deal<'s>(
        &self,
        starts: &[u32],
        order: impl Iterator<Item = (u32, &'s Stretch)>,
    ) -> Option<Vec<Leg>> {
        // Of each stream, where the next leg comes, and the bucket of the last.
        let mut ends: Vec<(u32, u32)> = starts.iter().map(|&start| (start, 0)).collect();
        let first = Leg {
            stretch: 0,
            there: There::Across,
        };
        let mut all = vec![first; starts[self.streams.len()] as usize];
        let mut last: Option<(u32, &Stretch)> = None;
        for (i, s) in order {
            let (stretch, _) = *match &mut last {
                Some(last) if last.1.is_again(s) => last,
                last => last.insert((i, s)),
            };
            for &(stream, there) in self.hops_of(s.way) {
                let (next, bucket) = &mut ends[stream as usize];
                if s.bucket < *bucket {
                    return None;
                }
                *bucket = s.bucket;
                all[*next as usize] = Leg { stretch, there };
                *next += 1;
            }
        }
        Some(all)
    }

    /// The streams in order of key, each with an earlier one, if there is one,
    /// that sends the same in the same stage to a rank that stores it alike.
    pub fn turns(&self, legs: &Legs) -> Vec<Turn> {
        let mut order: Vec<usize> = (0..self.streams.len()).collect();
        let key = |stream: usize| self.streams[stream];
        sorting::sort(&mut order, |&a, &b| key(a).cmp(&key(b)));
        let mut first_of: FxHashMap<(u32, u64), usize> = FxHashMap::default();
        first_of.reserve(order.len());
        let turn = |stream: usize| {
            let StreamKey {
                direction, stage, ..
            } = self.streams[stream];
            if direction == Direction::Receive {
                return Turn { stream, twin: None };
            }
            let own = legs.of(stream);
            let mut hasher = FxHasher::default();
            own.iter().for_each(|leg| hasher.write_u32(leg.stretch));
            let first = *first_of.entry((stage, hasher.finish())).or_insert(stream);
            let is_twin = first != stream && legs.of(first) == own && self.are_alike(own);
            Turn {
                stream,
                twin: is_twin.then_some(first),
            }
        };
        order.into_iter().map(turn).collect()
    }

    /// What the streams carry, by step; in a step by turn.
    pub fn batches(&self, legs: &Legs, turns: &[Turn]) -> Vec<Batch> {
        let bucket = |leg: &Leg| self.stretches[leg.stretch as usize].bucket;
        let most = turns.len() * self.inputs.decision.bucket_count as usize;
        let mut all = Vec::with_capacity(most.min(legs.len()).min(RESERVED_COUNT_MAX));
        for (turn, &Turn { stream, .. }) in (0..).zip(turns) {
            let stage = self.streams[stream].stage;
            let mut first = legs.starts[stream];
            for own in legs.of(stream).chunk_by(|a, b| bucket(a) == bucket(b)) {
                let end = first + own.len() as u32;
                let bucket = bucket(&own[0]);
                all.push(Batch {
                    turn,
                    bucket,
                    step: bucket + stage,
                    legs: (first, end),
                });
                first = end;
            }
        }
        let steps = self.inputs.step_count() as usize;
        sorting::sorted(&all, steps, |b| b.step as usize).0
    }

    /// True if all ranks at the other ends store each of these alike.
    fn are_alike(&self, legs: &[Leg]) -> bool {
        legs.iter().all(|leg| {
            let s = &self.stretches[leg.stretch as usize];
            self.portion(s).cell.is_alike(leg.there)
        })
    }

    /// The stretches by bucket, those of a bucket in their order.
    fn by_bucket(&self) -> Vec<u32> {
        let buckets = self.inputs.decision.bucket_count as usize;
        let bucket = |i: u32| self.stretches[i as usize].bucket as usize;
        sorting::order(self.stretches.len(), buckets, bucket).0
    }

    /// Puts legs of a stream in order whose stretches are of several walks.
    fn mix(&self, legs: &mut [Leg]) {
        let of = |leg: &Leg| &self.stretches[leg.stretch as usize];
        for legs in legs.chunk_by_mut(|a, b| of(a).bucket == of(b).bucket) {
            if of(&legs[0]).walk != of(&legs[legs.len() - 1]).walk {
                legs.sort_unstable_by(|a, b| self.order(of(a), of(b)));
            }
        }
    }

    /// The order in which both ends put stretches of a bucket into messages.
    fn order(&self, a: &Stretch, b: &Stretch) -> Ordering {
        if a.walk == b.walk {
            return (a.item, a.from, a.to).cmp(&(b.item, b.from, b.to));
        }
        // Of two ranks' needs: as the one who sends both has them.
        let [a, b] = [self.portion(a), self.portion(b)];
        let key = |p: &Portion<'_, '_>| (p.item.tensor, p.cell.needers.demand());
        let range = |p: &Portion<'_, '_>| (p.stretch.from, p.stretch.to);
        let bounds = a.cell.bounds.cmp(&b.cell.bounds);
        let keys = key(&a).cmp(&key(&b));
        keys.then(bounds).then(range(&a).cmp(&range(&b)))
    }
}

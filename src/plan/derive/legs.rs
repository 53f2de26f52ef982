//! What each stream carries: stretches in the order in which both ends have
//! them.
//!
//! ```text
//!   stretches, as they were found    in order           by stream
//!   bucket 1, item 7, to 8 and 9     bucket 0, item 2   to 8: 0·2, 1·7
//!   bucket 0, item 2, to 8           bucket 1, item 7   to 9: 1·7
//! ```
//!
//! Stretches are put in order once, by counting, and then dealt to the streams:
//! most are sent to several.

use super::route::{Routes, StreamKey, Stretch, There};
use crate::plan::counting;
use crate::plan::program::Direction;
use rustc_hash::{FxHashMap, FxHasher};
use std::cmp::Ordering;
use std::hash::Hasher;

/// Up to so many times as many items as stretches are counted.
const COUNTED_ITEMS_MAX: usize = 8;

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

    pub fn len(&self) -> usize {
        self.all.len()
    }
}

impl Routes<'_, '_> {
    /// Deals the stretches to the streams.
    pub fn legs(&self) -> Legs {
        let order = self.in_order();
        let firsts = self.firsts(&order);
        let hops = |&i: &u32| self.hops_of(&self.stretches[i as usize]);
        let streams = order.iter().flat_map(hops).map(|hop| hop.0 as usize);
        let starts = counting::starts(self.streams.len(), streams);
        let mut next = starts.clone();
        let first = Leg {
            stretch: 0,
            there: There::Across,
        };
        let mut all = vec![first; starts[self.streams.len()] as usize];
        for (i, first) in order.iter().zip(firsts) {
            for &(stream, there) in hops(i) {
                let at = &mut next[stream as usize];
                let stretch = first;
                all[*at as usize] = Leg { stretch, there };
                *at += 1;
            }
        }
        if self.walks.len() > 1 {
            for own in starts.windows(2) {
                self.mix(&mut all[own[0] as usize..own[1] as usize]);
            }
        }
        Legs { all, starts }
    }

    /// For each of the stretches in order the first one that is the same part of
    /// the same item.
    fn firsts(&self, order: &[u32]) -> Vec<u32> {
        let part = |i: u32| {
            let s = &self.stretches[i as usize];
            (s.bucket, s.walk, s.item, s.from, s.to, s.here)
        };
        let mut first = 0;
        let firsts = order.iter().enumerate().map(|(at, &i)| {
            if at == 0 || part(i) != part(first) {
                first = i;
            }
            first
        });
        firsts.collect()
    }

    /// The streams in order of key, each with an earlier one, if there is one,
    /// that sends the same in the same stage to a rank that stores it alike.
    pub fn turns(&self, legs: &Legs) -> Vec<Turn> {
        let mut order: Vec<usize> = (0..self.streams.len()).collect();
        order.sort_unstable_by_key(|&stream| self.streams[stream]);
        let mut first_of: FxHashMap<(u32, u64), usize> = FxHashMap::default();
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

    /// True if all ranks at the other ends store each of these alike.
    fn are_alike(&self, legs: &[Leg]) -> bool {
        legs.iter().all(|leg| {
            let s = &self.stretches[leg.stretch as usize];
            let walk = &self.walks[s.walk as usize];
            let cell = walk.cell_of(&walk.items[s.item as usize]);
            cell.is_alike(leg.there)
        })
    }

    /// The stretches by bucket, those of a bucket by walk, item and range, so that
    /// equal ones are beside each other.
    fn in_order(&self) -> Vec<u32> {
        let mut firsts = Vec::with_capacity(self.walks.len());
        let mut items = 0;
        for walk in self.walks {
            firsts.push(items);
            items += walk.items.len();
        }
        let of = |i: &u32| &self.stretches[*i as usize];
        let item = |i: &u32| firsts[of(i).walk as usize] + of(i).item as usize;
        let range = |i: &u32| (of(i).from, of(i).to);
        let order = |a: &u32, b: &u32| (item(a), range(a)).cmp(&(item(b), range(b)));
        let mut all: Vec<u32> = (0..self.stretches.len() as u32).collect();
        if items > all.len() * COUNTED_ITEMS_MAX {
            all.sort_unstable_by(order);
        } else {
            all = counting::sorted(&all, items, item).0;
            for own in all.chunk_by_mut(|a, b| item(a) == item(b)) {
                if !own.is_sorted_by_key(range) {
                    own.sort_unstable_by(order);
                }
            }
        }
        let buckets = self.inputs.decision.bucket_count as usize;
        counting::sorted(&all, buckets, |i| of(i).bucket as usize).0
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
        let item = |s: &Stretch| {
            let walk = &self.walks[s.walk as usize];
            let item = &walk.items[s.item as usize];
            let bounds = &walk.cell_of(item).bounds;
            (item.tensor, item.demand, bounds, s.from, s.to)
        };
        item(a).cmp(&item(b))
    }
}

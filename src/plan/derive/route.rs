//! The way of every byte that a rank sends, receives or copies.
//!
//! A route is a list of *hops*: holder to needer, or holder to a first
//! receiver and from there to others. What travels a route together is a
//! *share* of one group's stream. A share is cut into buckets before anything
//! else is done with it, so that whoever forwards bucket `b` has received
//! exactly bucket `b`:
//!
//! ```text
//!   step      0        1        2        3
//!   stage 0   bucket 0 bucket 1 bucket 2
//!   stage 1            bucket 0 bucket 1 bucket 2
//! ```

use super::cell::Cell;
use super::group::Group;
use super::visit::Visit;
use super::walk::{Item, Walk};
use super::{Inputs, NEEDS};
use crate::error::{Error, Result};
use crate::plan::decision::{Cuts, Order};
use crate::plan::layers::LayerItem;
use crate::plan::program::Direction;
use crate::plan::sorting;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use std::cmp::Ordering;
use std::num::NonZeroU64;

/// Alignment of what lies in relay memory.
const RELAY_ALIGN_BYTES: u64 = 16;

/// Stretches, pieces or messages that there is room for in advance, at most.
pub const RESERVED_COUNT_MAX: usize = 1 << 17;

/// Where a stretch lies on our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// In a buffer of the layout.
    Buffer,
    /// In relay memory, from some byte of its bucket on.
    Relay(RelayStart),
}

/// A byte of the relay memory of a bucket. One more is kept, so that [`Here`]
/// takes no more room than a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayStart(NonZeroU64);

impl RelayStart {
    fn new(byte: u64) -> RelayStart {
        RelayStart(NonZeroU64::MIN.saturating_add(byte))
    }

    pub fn byte(self) -> u64 {
        self.0.get() - 1
    }
}

/// Where a stretch lies at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// In a buffer of the other side's layout.
    Across,
    /// In a buffer of our side's layout, stored as we store it.
    Alike,
    /// In relay memory.
    Relay,
}

/// A range of an item that travels in one bucket. This rank may receive it from
/// one peer and send it to several.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Which walk's item.
    pub walk: u32,
    pub item: u32,
    pub bucket: u32,
    /// Wire bytes of the item, `[from, to)`.
    pub from: u64,
    pub to: u64,
    pub here: Here,
    /// Where it comes from and goes to.
    pub way: u32,
}

impl Stretch {
    pub fn bytes(&self) -> u64 {
        self.to - self.from
    }

    /// True if another one is the same part of the same item.
    pub fn is_again(&self, other: &Stretch) -> bool {
        let part = |s: &Stretch| (s.from, s.to, s.walk, s.bucket, s.here);
        self.item == other.item && part(self) == part(other)
    }
}

/// A stretch with what it is a part of.
#[derive(Clone, Copy)]
pub struct Portion<'w, 'a> {
    pub walk: &'w Walk<'a>,
    pub item: &'w Item,
    pub cell: &'w Cell,
    pub stretch: &'w Stretch,
}

impl<'w, 'a> Portion<'w, 'a> {
    pub fn of(walks: &'w [Visit<'a>], stretch: &'w Stretch) -> Portion<'w, 'a> {
        Portion::in_walk(&walks[stretch.walk as usize], stretch)
    }

    pub fn in_walk(walk: &'w Walk<'a>, stretch: &'w Stretch) -> Portion<'w, 'a> {
        let item = &walk.items[stretch.item as usize];
        Portion {
            walk,
            item,
            cell: walk.cell_of(item),
            stretch,
        }
    }

    /// True if it is a whole cell, in one buffer of ours.
    pub fn is_whole_buffer(&self) -> bool {
        let Stretch { from, to, here, .. } = *self.stretch;
        let is_one_buffer = here == Here::Buffer && self.cell.own.split.is_none();
        is_one_buffer && from == 0 && to == self.cell.bytes
    }
}

/// Who exchanges what in which stage, seen from this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    pub peer: Rank,
    pub direction: Direction,
    pub stage: u32,
}

/// A range of an item, in wire bytes.
#[derive(Clone, Copy, Debug)]
pub struct ItemRange {
    pub item: u32,
    pub from: u64,
    pub to: u64,
}

/// One end of a hop: what this rank does with a share.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    pub peer: Rank,
    pub direction: Direction,
    pub stage: u32,
    /// Our end is relay memory.
    pub is_relayed: bool,
    pub there: There,
}

impl Hop {
    /// A hop whose end on our side is a buffer.
    pub fn plain(peer: Rank, direction: Direction, stage: u32, there: There) -> Hop {
        Hop {
            peer,
            direction,
            stage,
            is_relayed: false,
            there,
        }
    }

    /// The stream that it is in.
    fn key(&self) -> StreamKey {
        StreamKey {
            peer: self.peer,
            direction: self.direction,
            stage: self.stage,
        }
    }
}

/// A route, as far as this rank takes part in it.
#[derive(Clone, Copy)]
pub struct Route<'h> {
    pub hops: &'h [Hop],
    /// What the busiest rank moves of a share, in hundredths of its bytes: more
    /// than 100 where one rank sends it to several.
    pub burden_percent: u64,
}

impl<'h> Route<'h> {
    /// A route on which nobody has more to do than to pass a share on once.
    pub fn of(hops: &'h [Hop]) -> Route<'h> {
        Route {
            hops,
            burden_percent: 100,
        }
    }
}

/// What a rank exchanges, before it is cut into messages.
pub struct Routes<'w, 'a> {
    pub inputs: Inputs<'a>,
    pub rank: Rank,
    pub walks: &'w [Visit<'a>],
    pub stretches: Vec<Stretch>,
    pub streams: Vec<StreamKey>,
    stream_of: FxHashMap<StreamKey, u32>,
    /// The stream that was asked for last; often it is asked for again.
    stream_last: u32,
    ways: Vec<Way>,
    /// Of all ways: streams, and where they have what they carry.
    hops: Vec<(u32, There)>,
    /// Items of our needs that we hold ourselves.
    pub locals: Vec<u32>,
    /// Bytes of relay memory in use, by bucket.
    relayed: Vec<u64>,
    ranges: Vec<ItemRange>,
}

/// The way of a share.
#[derive(Clone, Copy)]
struct Way {
    /// Range in [`Routes::hops`].
    hops: (u32, u32),
    /// How many of them receive.
    receives: u32,
    /// Our end is relay memory.
    is_relayed: bool,
}

/// A share while it is cut into buckets.
struct Cutting {
    total: u64,
    /// Bytes in front of the range that is cut.
    before: u64,
    cuts: Cuts,
    /// A number that differs from share to share, the same on all ranks.
    phase: u64,
}

impl<'w, 'a> Routes<'w, 'a> {
    pub fn new(inputs: Inputs<'a>, rank: Rank, walks: &'w [Visit<'a>]) -> Routes<'w, 'a> {
        let mut locals: Vec<u32> = walks[NEEDS]
            .places()
            .filter(|(_, own)| own.is_none())
            .flat_map(|(group, _)| group.items.iter().copied())
            .collect();
        locals.sort_unstable();
        Routes {
            inputs,
            rank,
            walks,
            stretches: Vec::new(),
            streams: Vec::new(),
            stream_of: FxHashMap::default(),
            stream_last: 0,
            ways: Vec::new(),
            hops: Vec::new(),
            locals,
            relayed: Vec::new(),
            ranges: Vec::new(),
        }
    }

    /// By how many holders a group is turned; less than there are. Streams of
    /// neighbouring needers, and from neighbouring stages, are turned against
    /// each other, so that what cannot be cut does not all come from one.
    pub fn turn(&self, group: &Group) -> u64 {
        let rotation = u64::from(self.inputs.decision.rotation);
        if rotation == 0 || group.needers.is_empty() {
            return 0;
        }
        let first = group.needers.nth(self.inputs.destination, 0);
        let stage = u64::from(group.origin.stage.unwrap_or(0));
        rotation * (u64::from(first.0) + stage) % group.holders.len()
    }

    /// Relay memory that any one bucket needs, in bytes.
    pub fn relay_bytes(&self) -> u64 {
        self.relayed.iter().copied().max().unwrap_or(0)
    }

    /// The stream of a hop.
    fn stream(&mut self, key: StreamKey) -> u32 {
        if self.streams.get(self.stream_last as usize) == Some(&key) {
            return self.stream_last;
        }
        let next = self.streams.len() as u32;
        let number = *self.stream_of.entry(key).or_insert(next);
        if number == next {
            self.streams.push(key);
        }
        self.stream_last = number;
        number
    }

    /// The way that these hops are.
    pub fn way(&mut self, hops: &[Hop]) -> u32 {
        let first = self.hops.len() as u32;
        for hop in hops {
            let stream = self.stream(hop.key());
            self.hops.push((stream, hop.there));
        }
        let is_relayed = hops.iter().any(|h| h.is_relayed);
        debug_assert!(hops.iter().all(|h| h.is_relayed == is_relayed));
        let receives = hops.iter().filter(|h| h.direction == Direction::Receive);
        self.ways.push(Way {
            hops: (first, self.hops.len() as u32),
            receives: receives.count() as u32,
            is_relayed,
        });
        self.ways.len() as u32 - 1
    }

    /// The way of one hop, which often is that which was asked for last.
    pub fn way_again(&mut self, hop: Hop) -> u32 {
        if let Some(last) = (self.ways.len() as u32).checked_sub(1)
            && let [(stream, there)] = self.hops_of(last)
            && self.streams[*stream as usize] == hop.key()
            && *there == hop.there
        {
            return last;
        }
        self.way(&[hop])
    }

    pub fn portion<'s>(&self, s: &'s Stretch) -> Portion<'s, 'a>
    where
        'w: 's,
    {
        Portion::of(self.walks, s)
    }

    pub fn way_count(&self) -> usize {
        self.ways.len()
    }

    /// The streams of a way, and how the other ends have what they carry.
    pub fn hops_of(&self, way: u32) -> &[(u32, There)] {
        let (first, end) = self.ways[way as usize].hops;
        &self.hops[first as usize..end as usize]
    }

    /// Sends bytes `[from, to)` of a group's stream along a route, bucket by
    /// bucket.
    pub fn add_share(&mut self, walk: usize, group: &Group, from: u64, to: u64, route: Route<'_>) {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.clear();
        self.walks[walk].ranges(group, from, to, |r| ranges.push(r));
        self.add_ranges(walk, &ranges, route);
        self.ranges = ranges;
    }

    /// Sends ranges that make up one share along a route, bucket by bucket.
    pub fn add_ranges(&mut self, walk: usize, ranges: &[ItemRange], route: Route<'_>) {
        let Some(first) = ranges.first() else {
            return;
        };
        let total: u64 = ranges.iter().map(|r| r.to - r.from).sum();
        let mut share = Cutting {
            total,
            before: 0,
            cuts: self.inputs.cuts_of(total, route.burden_percent),
            phase: self.walks[walk]
                .phase_of(first.item)
                .wrapping_add(first.from),
        };
        let way = self.way(route.hops);
        for r in ranges {
            self.add_range(walk, r, &share, way);
            share.before += r.to - r.from;
        }
    }

    /// Cuts one range of a share where its buckets end.
    fn add_range(&mut self, walk: usize, r: &ItemRange, share: &Cutting, way: u32) {
        match self.inputs.decision.order {
            Order::Fraction => self.add_fractions(walk, r, share, way),
            Order::Layer => {
                let walk_of = &self.walks[walk];
                walk_of.cut_in_layers(r.item, (r.from, r.to), |bucket, from, to| {
                    self.add_stretch(walk, r.item, (from, to), bucket, way);
                });
            }
        }
    }

    /// Part `b` is the `b`-th one of as many as the share is cut into.
    fn add_fractions(&mut self, walk: usize, r: &ItemRange, share: &Cutting, way: u32) {
        let Cutting { total, before, .. } = *share;
        let parts = share.cuts.count;
        let walk_of = &self.walks[walk];
        let unit = walk_of.cell_of(&walk_of.items[r.item as usize]).unit;
        // Items too small to be cut would all end in the last part: each
        // begins at a place of its own inside a unit.
        let shift = walk_of.phase_of(r.item) % unit;
        let cut = |part: u64| {
            let end = share_of(part + 1, total, parts);
            let inside = u128::from(r.from) + u128::from(end) + u128::from(shift);
            let inside = inside.saturating_sub(u128::from(before));
            let inside = u64::try_from(inside).unwrap_or(u64::MAX).min(r.to);
            match inside == r.to {
                true => inside,
                false => (inside / unit * unit).max(r.from),
            }
        };
        let mut part = share_of(before.saturating_sub(shift), parts, total.max(1));
        part = part.saturating_sub(1);
        let mut from = r.from;
        while from < r.to {
            let to = if part + 1 == parts { r.to } else { cut(part) };
            if from < to {
                let bucket = share.cuts.bucket_of(part, share.phase);
                self.add_stretch(walk, r.item, (from, to), bucket, way);
                from = to;
            }
            part += 1;
        }
    }

    fn add_stretch(
        &mut self,
        walk: usize,
        item: u32,
        (from, to): (u64, u64),
        bucket: u32,
        way: u32,
    ) {
        let here = match self.ways[way as usize].is_relayed {
            true => Here::Relay(RelayStart::new(self.relay(bucket, to - from))),
            false => Here::Buffer,
        };
        self.stretches.push(Stretch {
            walk: walk as u32,
            item,
            bucket,
            from,
            to,
            here,
            way,
        });
    }

    /// Room in relay memory for a stretch of a bucket.
    fn relay(&mut self, bucket: u32, bytes: u64) -> u64 {
        let buckets = self.inputs.decision.bucket_count as usize;
        self.relayed.resize(buckets, 0);
        let used = &mut self.relayed[bucket as usize];
        let at = *used;
        *used = (at + bytes).next_multiple_of(RELAY_ALIGN_BYTES);
        at
    }

    /// Puts the stretches from `first` on in order of walk, item, range and
    /// bucket: those that are the same part beside each other.
    pub fn put_in_order(&mut self, first: usize) {
        let place = |s: &Stretch| (s.walk, s.item, s.from, s.to, s.bucket);
        let own = &self.stretches[first..];
        if own.is_sorted_by_key(place) {
            return;
        }
        let item = |s: &Stretch| (s.walk, s.item);
        if !own.is_sorted_by_key(item) {
            let by_item = self.by_item(own).into_iter();
            let sorted: Vec<Stretch> = by_item.map(|i| own[i as usize]).collect();
            self.stretches[first..].copy_from_slice(&sorted);
        }
        let part = |s: &Stretch| (s.from, s.to, s.bucket);
        for same in self.stretches[first..].chunk_by_mut(|a, b| item(a) == item(b)) {
            sorting::sort(same, |a, b| part(a).cmp(&part(b)));
        }
    }

    /// Some stretches in order of walk and item; those of an item as they are.
    fn by_item(&self, stretches: &[Stretch]) -> Vec<u32> {
        let mut firsts = Vec::with_capacity(self.walks.len());
        let mut items = 0;
        for walk in self.walks {
            firsts.push(items);
            items += walk.items.len();
        }
        let item = |i: u32| {
            let s = &stretches[i as usize];
            firsts[s.walk as usize] + s.item as usize
        };
        sorting::order(stretches.len(), items, item).0
    }

    /// Every needed byte comes exactly once: each item is tiled by what we
    /// receive of it, and the items tile the boxes of this rank.
    // By itself, like the passes before and after it: measured.
    #[inline(never)]
    pub fn verify(&self) -> Result<()> {
        let walk = &self.walks[NEEDS];
        let (items, cells) = (&walk.items[..], &walk.cells[..]);
        let size = |item: u32| cells[items[item as usize].cell as usize].bytes;
        let Some(gap) = self.first_gap(walk.items.len() as u32, size) else {
            return Ok(());
        };
        let item = &walk.items[gap.item as usize];
        let cell = walk.cell_of(item);
        Err(Error::internal(format!(
            "tensor \"{}\": box {} of rank {} has {} bytes on the wire, and after byte {} of them \
             comes byte {}",
            walk.name(&self.inputs.tables.tensors[item.tensor as usize]),
            cell.bounds,
            self.rank,
            cell.bytes,
            gap.from,
            gap.to
        )))
    }

    fn first_gap(&self, items: u32, size: impl Fn(u32) -> u64) -> Option<ItemRange> {
        let mut tiles = Tiles::new(&self.locals, size);
        let ways = &self.ways[..];
        let needed = self.stretches.iter();
        let needed = needed.take_while(|s| s.walk as usize == NEEDS);
        for s in needed.filter(|s| s.here == Here::Buffer) {
            let times = ways[s.way as usize].receives;
            if !tiles.add(times, s.item, s.from, s.to) {
                return Some(tiles.gap_before(s.item, s.from));
            }
        }
        tiles.gap_at_end(items)
    }
}

/// Ranges, in order, that are to tile all items which are not held.
struct Tiles<'h, S> {
    held: &'h [u32],
    size: S,
    /// The first item that is not full yet, and up to where it is.
    item: u32,
    to: u64,
}

impl<'h, S: Fn(u32) -> u64> Tiles<'h, S> {
    fn new(held: &'h [u32], size: S) -> Tiles<'h, S> {
        let mut tiles = Tiles {
            held,
            size,
            item: 0,
            to: 0,
        };
        tiles.skip_held();
        tiles
    }

    /// Adds a range that comes so many times; false if it comes twice, or is not
    /// the one that comes next.
    #[inline]
    fn add(&mut self, times: u32, item: u32, from: u64, to: u64) -> bool {
        if times == 0 {
            return true;
        }
        if item != self.item || from != self.to {
            return false;
        }
        self.to = to;
        if to == (self.size)(item) {
            self.item += 1;
            self.to = 0;
            self.skip_held();
        }
        times == 1
    }

    /// The gap before a range that does not come next: up to `from` there is
    /// none, and the next one, or the end of the item, is at `to`; before `from`
    /// if bytes come twice.
    fn gap_before(&self, item: u32, from: u64) -> ItemRange {
        let (item, from, to) = match item.cmp(&self.item) {
            Ordering::Less => (item, (self.size)(item), from),
            Ordering::Equal => (item, self.to, from),
            Ordering::Greater => (self.item, self.to, (self.size)(self.item)),
        };
        ItemRange { item, from, to }
    }

    /// What is missing where nothing more comes.
    fn gap_at_end(&self, items: u32) -> Option<ItemRange> {
        (self.item < items).then(|| self.gap_before(items, 0))
    }

    fn skip_held(&mut self) {
        while self.held.first() == Some(&self.item) {
            self.held = &self.held[1..];
            self.item += 1;
        }
    }
}

/// `part / parts` of `whole`, rounded down.
pub fn share_of(part: u64, whole: u64, parts: u64) -> u64 {
    match part.checked_mul(whole) {
        Some(product) => product / parts,
        None => (u128::from(part) * u128::from(whole) / u128::from(parts)) as u64,
    }
}

/// Numbers in a row, or at any distance, made to lie evenly below any limit.
pub fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

impl Walk<'_> {
    /// A number that differs from item to item, the same on all ranks.
    fn phase_of(&self, item: u32) -> u64 {
        let item = &self.items[item as usize];
        let mut x = u64::from(item.tensor) + 1;
        for s in self.cell_of(item).bounds.spans() {
            x = (x ^ s.lo).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x ^= x >> 32;
        }
        x
    }

    /// Calls `f` with bucket and range of each part of bytes `[from, to)` of
    /// an item, in layer order.
    pub fn cut_in_layers(&self, index: u32, range: (u64, u64), f: impl FnMut(u32, u64, u64)) {
        let item = &self.items[index as usize];
        let cell = self.cell_of(item);
        let item = LayerItem {
            tensor: item.tensor,
            bytes: cell.bytes,
            unit: cell.unit,
        };
        let inputs = self.inputs;
        let buckets = inputs.decision.bucket_count;
        inputs.layers.cut(item, buckets, range, f);
    }

    /// The items, whole or cut, of bytes `[from, to)` of a group's stream.
    pub fn ranges(&self, group: &Group, from: u64, to: u64, mut f: impl FnMut(ItemRange)) {
        let first = group
            .items
            .partition_point(|&i| self.items[i as usize].position <= from)
            .saturating_sub(1);
        for &i in &group.items[first..] {
            if self.items[i as usize].position >= to {
                break;
            }
            if let Some(range) = self.range(i, from, to) {
                f(range);
            }
        }
    }

    /// Where a group's stream is cut that is to be cut at a byte: in which of its
    /// items, and in front of the unit that the byte is in.
    pub fn cut_at(&self, group: &Group, at: u64) -> (usize, u64) {
        let items = &group.items;
        // Most often it is an end of it, which need not be searched for.
        if at >= group.bytes {
            return (items.len().saturating_sub(1), group.bytes);
        }
        if at == 0 {
            return (0, 0);
        }
        let before = items.partition_point(|&i| self.items[i as usize].position <= at);
        let Some(last) = before.checked_sub(1) else {
            return (0, 0);
        };
        let item = &self.items[items[last] as usize];
        let inside = self.cell_of(item).cut_at(at - item.position);
        (last, item.position + inside)
    }

    /// What of an item lies in bytes `[from, to)` of its group's stream, cut on
    /// whole units.
    pub fn range(&self, index: u32, from: u64, to: u64) -> Option<ItemRange> {
        let item = &self.items[index as usize];
        let cell = self.cell_of(item);
        if from <= item.position && to.saturating_sub(item.position) >= cell.bytes {
            return Some(ItemRange {
                item: index,
                from: 0,
                to: cell.bytes,
            });
        }
        let [from, to] = [from, to].map(|at| cell.cut_at(at.saturating_sub(item.position)));
        (from < to).then_some(ItemRange {
            item: index,
            from,
            to,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first gap of two items of 8 and 4 bytes, as `(item, from, to)`.
    fn gap(ranges: &[(u32, u64, u64)], held: &[u32]) -> Option<(u32, u64, u64)> {
        let mut tiles = Tiles::new(held, |item| [8, 4][item as usize]);
        let mut ranges = ranges.iter();
        let next = ranges.find(|&&(item, from, to)| !tiles.add(1, item, from, to));
        let gap = match next {
            Some(&(item, from, _)) => Some(tiles.gap_before(item, from)),
            None => tiles.gap_at_end(2),
        };
        gap.map(|g| (g.item, g.from, g.to))
    }

    #[test]
    fn what_is_received_or_held_tiles_the_items() {
        assert_eq!(gap(&[(0, 0, 4), (0, 4, 8), (1, 0, 4)], &[]), None);
        assert_eq!(gap(&[(0, 0, 4), (0, 4, 8)], &[1]), None);
        assert_eq!(gap(&[], &[0, 1]), None);
    }

    #[test]
    fn what_comes_twice_at_a_time_is_found() {
        let mut tiles = Tiles::new(&[], |_| 8);
        assert!(tiles.add(0, 0, 0, 4));
        assert!(!tiles.add(2, 0, 0, 4));
        let gap = tiles.gap_before(0, 0);
        assert_eq!((gap.item, gap.from, gap.to), (0, 4, 0));
    }

    #[test]
    fn what_is_held_and_comes_too_is_found() {
        assert_eq!(gap(&[(0, 0, 8), (1, 0, 4)], &[0]), Some((0, 8, 0)));
    }

    #[test]
    fn a_hole_is_found_though_the_sum_is_right() {
        let twice = [(0, 0, 4), (0, 0, 4), (1, 0, 4)];
        assert_eq!(gap(&twice, &[]), Some((0, 4, 0)));
        let later = [(0, 0, 4), (0, 5, 9), (1, 0, 4)];
        assert_eq!(gap(&later, &[]), Some((0, 4, 5)));
    }

    #[test]
    fn what_is_missing_at_the_end_or_overlaps_is_found() {
        assert_eq!(gap(&[(0, 0, 8)], &[]), Some((1, 0, 4)));
        let twice = [(0, 0, 8), (1, 0, 3), (1, 2, 4)];
        assert_eq!(gap(&twice, &[]), Some((1, 3, 2)));
        assert_eq!(gap(&[(0, 0, 9), (1, 0, 4)], &[]), Some((0, 9, 8)));
    }
}

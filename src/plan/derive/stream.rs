//! The stream of one pair and stage, as messages.
//!
//! Long runs become messages of their own, which travel without staging where
//! they are contiguous; the rest of a bucket is one packed message. Both ends'
//! strides decide, so both ends find the same messages.

use super::builder::Builder;
use super::cell::run_axis;
use super::route::{Here, Routes, Stretch, There, scattered};
use super::view::{PeerView, holding_view, needing_view};
use super::walk::{Item, Walk};
use super::{Decision, Strategy};
use crate::error::Result;
use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Span, TensorIndex};
use crate::layout::view::Strides;
use crate::plan::decision::Order;
use crate::plan::piece::{elements_from, flat_boxes};
use crate::plan::program::{BufferSlot, Direction, Message, PairHash, Piece, Region, Side};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_128;

/// Alignment of items in packed messages.
const ALIGN_BYTES: u64 = 16;

/// One pair's stream of one stage while it is cut into messages.
struct Stream<'w, 'a> {
    walks: &'w [Walk<'a>],
    peer: Rank,
    direction: Direction,
    stage: u32,
    bucket: u32,
    /// Pieces of the packed message, and where it ends.
    packed: Vec<Piece>,
    packed_bytes: u64,
    /// What both ends must agree on.
    text: Vec<u8>,
}

impl<'w, 'a> Stream<'w, 'a> {
    fn new(walks: &'w [Walk<'a>], stretches: &[Stretch], own: Rank) -> Stream<'w, 'a> {
        let Stretch {
            peer,
            direction,
            stage,
            ..
        } = stretches[0];
        let (from, to) = match direction {
            Direction::Send => (own, peer),
            Direction::Receive => (peer, own),
        };
        let mut text = Vec::with_capacity(stretches.len() * 64);
        text.extend_from_slice(&from.0.to_le_bytes());
        text.extend_from_slice(&to.0.to_le_bytes());
        text.extend_from_slice(&stage.to_le_bytes());
        Stream {
            walks,
            peer,
            direction,
            stage,
            bucket: 0,
            packed: Vec::new(),
            packed_bytes: 0,
            text,
        }
    }

    fn item(&self, s: &Stretch) -> (&'w Walk<'a>, &'w Item) {
        let walk = &self.walks[s.walk as usize];
        (walk, &walk.items[s.item as usize])
    }

    /// What the other end must have of a stretch as well.
    fn add_text(&mut self, s: &Stretch) {
        let (walk, item) = self.item(s);
        let mut head = [0; 20];
        head[..4].copy_from_slice(&item.tensor.to_le_bytes());
        head[4..12].copy_from_slice(&s.from.to_le_bytes());
        head[12..].copy_from_slice(&s.to.to_le_bytes());
        self.text.extend_from_slice(&head);
        self.text.extend_from_slice(&walk.cell_of(item).text);
    }

    /// Where the next box begins in its message.
    fn next_at(&self, is_long: bool) -> u64 {
        match is_long {
            true => 0,
            false => self.packed_bytes.next_multiple_of(ALIGN_BYTES),
        }
    }

    /// The dtype on the wire. Between ranks that store alike that is what
    /// they store, unless the first sender had less.
    fn wire(&self, s: &Stretch) -> Dtype {
        let (walk, item) = self.item(s);
        let cell = walk.cell_of(item);
        let is_alike = (s.here, s.there) == (Here::Buffer, There::Alike);
        match is_alike && cell.own.dtype.bytes() <= cell.wire.bytes() {
            true => cell.own.dtype,
            false => cell.wire,
        }
    }

    /// How our side stores a stretch, and how the other does.
    fn ends(&self, s: &Stretch) -> [End<'w>; 2] {
        let (walk, item) = self.item(s);
        let cell = walk.cell_of(item);
        let dense = || End::new(&cell.dense, cell.wire);
        let own = || End::new(&cell.own.strides, cell.own.dtype);
        let here = match s.here {
            Here::Buffer => own(),
            Here::Relay(_) => dense(),
        };
        let there = match s.there {
            There::Across => walk.peer_view(item, s.peer),
            There::Alike if cell.are_needers_alike => own(),
            There::Alike => walk.view_of_needer(item, s.peer),
            There::Relay => dense(),
        };
        [here, there]
    }
}

/// How one end stores a stretch.
struct End<'w> {
    strides: Cow<'w, [i64]>,
    dtype: Dtype,
}

impl<'w> End<'w> {
    fn new(strides: &'w [i64], dtype: Dtype) -> End<'w> {
        End {
            strides: Cow::Borrowed(strides),
            dtype,
        }
    }

    fn of(view: &'w PeerView) -> End<'w> {
        End::new(&view.strides, view.dtype)
    }

    fn owned(strides: Strides, dtype: Dtype) -> End<'w> {
        End {
            strides: Cow::Owned(strides.into_vec()),
            dtype,
        }
    }

    fn run_axis(&self, bounds: &IndexBox, wire: Dtype) -> usize {
        run_axis(bounds, wire, &self.strides, self.dtype)
    }
}

impl<'a> Builder<'a> {
    /// All streams, cut into messages.
    pub fn add_streams(&mut self, routes: &mut Routes<'_, 'a>) -> Result<()> {
        self.relay_half_bytes = routes.relay_bytes();
        let mut all = std::mem::take(&mut routes.stretches);
        let Decision {
            strategy, order, ..
        } = self.inputs.decision;
        let is_cut = *strategy != Strategy::Direct;
        if !is_cut && *order == Order::Layer {
            all = cut_in_layers(routes.walks, &all);
        }
        self.program.pieces.reserve(all.len());
        self.program.messages.reserve(all.len());
        let mut cut = Vec::new();
        for mut stream in in_streams(&all) {
            stream.sort_unstable_by(|a, b| routes.order(a, b));
            if !is_cut && *order == Order::Fraction {
                cut.clear();
                self.cut_by_pair(routes.walks, &stream, &mut cut);
                self.add_stream(routes.walks, &cut)?;
            } else {
                self.add_stream(routes.walks, &stream)?;
            }
        }
        Ok(())
    }

    /// Part `b` is the `b`-th one of what the pair exchanges.
    fn cut_by_pair(&self, walks: &[Walk<'a>], stream: &[Stretch], out: &mut Vec<Stretch>) {
        let total: u64 = stream.iter().map(|s| s.to - s.from).sum();
        let cuts = self.inputs.cuts_of(total);
        let phase = scattered(u64::from(self.program.rank.0) + u64::from(stream[0].peer.0));
        let bound = |b: u64| (u128::from(b) * u128::from(total) / u128::from(cuts.count)) as u64;
        let (mut part, mut position) = (0, 0);
        for s in stream {
            let walk = &walks[s.walk as usize];
            let unit = walk.cell_of(&walk.items[s.item as usize]).unit;
            let mut from = s.from;
            while from < s.to {
                // Where this part ends inside the stretch, on a whole unit.
                let inside = s.from + bound(part + 1).saturating_sub(position);
                let to = match inside >= s.to {
                    true => s.to,
                    false => (inside / unit * unit).max(from),
                };
                if from < to {
                    let bucket = cuts.bucket_of(part, phase);
                    out.push(Stretch {
                        bucket,
                        from,
                        to,
                        ..*s
                    });
                }
                from = to;
                part += u64::from(inside < s.to);
            }
            position += s.to - s.from;
            while part + 1 < cuts.count && position >= bound(part + 1) {
                part += 1;
            }
        }
    }

    /// The messages of one stream, whose stretches are in order of bucket.
    fn add_stream(&mut self, walks: &[Walk<'a>], stretches: &[Stretch]) -> Result<()> {
        let mut stream = Stream::new(walks, stretches, self.program.rank);
        let mut total = 0;
        for s in stretches {
            if s.bucket != stream.bucket {
                self.close_bucket(&mut stream);
                stream.bucket = s.bucket;
            }
            stream.add_text(s);
            self.add_stretch(&mut stream, s);
            total += s.to - s.from;
        }
        self.close_bucket(&mut stream);
        let hash = xxh3_128(&stream.text);
        let p = &mut self.program;
        match stream.direction {
            Direction::Send => {
                p.bytes_sent += total;
                p.pair_balance = p.pair_balance.wrapping_add(hash);
            }
            Direction::Receive => {
                p.bytes_received += total;
                p.pair_balance = p.pair_balance.wrapping_sub(hash);
            }
        }
        p.pairs.push(PairHash {
            peer: stream.peer,
            direction: stream.direction,
            hash,
        });
        Ok(())
    }

    /// A range of an item: long runs become messages of their own, the rest
    /// joins the packed message of the bucket.
    fn add_stretch(&mut self, stream: &mut Stream<'_, 'a>, s: &Stretch) {
        let (walk, item) = stream.item(s);
        let cell = walk.cell_of(item);
        let direct_min = self.inputs.decision.direct_bytes_min;
        let is_whole = (s.from, s.to) == (0, cell.bytes);
        if let Some(whole) = cell.whole.as_ref().filter(|_| is_whole && s.is_plain()) {
            let is_long = whole.run_bytes.is_some_and(|n| n >= direct_min);
            if !is_long || whole.run_bytes == Some(cell.bytes) {
                let side = side_of(walk.direction);
                let region = self.region_of_whole(side, item.buffer, cell, whole);
                let start = self.program.pieces.len() as u32;
                let at = stream.next_at(is_long);
                let piece = Piece {
                    tensor: TensorIndex(item.tensor),
                    bounds: cell.bounds.clone(),
                    region,
                    at,
                    bytes: cell.bytes,
                    wire: cell.wire,
                };
                self.push(stream, piece, is_long);
                return self.end_box(stream, (start, at + cell.bytes), is_long);
            }
        }
        let [here, there] = stream.ends(s);
        let wire = stream.wire(s);
        let element = wire.bytes();
        flat_boxes(&cell.bounds, s.from / element, s.to / element, &mut |b| {
            let first = here.run_axis(b, wire).min(there.run_axis(b, wire));
            let is_long = first <= b.0.len() && elements_from(b, first) * element >= direct_min;
            if !is_long {
                return self.add_pieces(stream, s, b, wire, false);
            }
            each_run(b, first, &mut |run| {
                self.add_pieces(stream, s, run, wire, true)
            });
        });
    }

    /// Ends the current bucket of a stream: what was not long enough for a
    /// message of its own travels in one packed message.
    fn close_bucket(&mut self, stream: &mut Stream<'_, 'a>) {
        if stream.packed.is_empty() {
            return;
        }
        let start = self.program.pieces.len() as u32;
        self.program.pieces.append(&mut stream.packed);
        let bytes = std::mem::take(&mut stream.packed_bytes);
        self.add_message(stream, start, bytes);
    }

    /// The pieces of a box, one unless our side stores it in several buffers.
    fn add_pieces(
        &mut self,
        stream: &mut Stream<'_, 'a>,
        s: &Stretch,
        bounds: &IndexBox,
        wire: Dtype,
        is_long: bool,
    ) {
        let (walk, item) = stream.item(s);
        let cell = walk.cell_of(item);
        let start = self.program.pieces.len() as u32;
        let mut at = stream.next_at(is_long);
        let is_split = s.here == Here::Buffer && cell.own.split.is_some();
        for bounds in split_boxes(bounds, is_split) {
            let region = match s.here {
                Here::Relay(base) => self.relay_region(s, &cell.bounds, &bounds, wire, base),
                Here::Buffer => {
                    let side = side_of(walk.direction);
                    self.region(side, self.part_of(side), item.buffer, &cell.own, &bounds)
                }
            };
            let bytes = bounds.elements() * wire.bytes();
            let piece = Piece {
                tensor: TensorIndex(item.tensor),
                bounds,
                region,
                at,
                bytes,
                wire,
            };
            self.push(stream, piece, is_long);
            at += bytes;
        }
        self.end_box(stream, (start, at), is_long);
    }

    /// A piece of a message of its own, or of the packed one.
    fn push(&mut self, stream: &mut Stream<'_, 'a>, piece: Piece, is_long: bool) {
        match is_long {
            true => self.program.pieces.push(piece),
            false => stream.packed.push(piece),
        }
    }

    /// A box ends at `end` of its message, which began with piece `start` if it
    /// is one of its own.
    fn end_box(&mut self, stream: &mut Stream<'_, 'a>, (start, end): (u32, u64), is_long: bool) {
        match is_long {
            true => self.add_message(stream, start, end),
            false => stream.packed_bytes = end,
        }
    }

    /// Where a run of a stretch lies in relay memory: stretches lie there in
    /// canonical order, so that a run is a run.
    fn relay_region(
        &self,
        s: &Stretch,
        cell: &IndexBox,
        run: &IndexBox,
        wire: Dtype,
        base: u64,
    ) -> Region {
        let spans = cell.spans().iter().zip(run.spans());
        let flat = spans.fold(0, |flat, (c, r)| flat * c.len() + (r.lo - c.lo));
        let half = u64::from(s.bucket % 2) * self.relay_half_bytes;
        Region {
            slot: BufferSlot::RELAY,
            offset: half + base + flat * wire.bytes() - s.from,
            dtype: wire,
            run: run.elements(),
            loops: (0, 0),
        }
    }

    fn add_message(&mut self, stream: &mut Stream<'_, 'a>, start: u32, bytes: u64) {
        let p = &mut self.program;
        let pieces = &p.pieces[start as usize..];
        let is_direct = match pieces {
            [one] => one.region.dtype == one.wire && one.region.loops.0 == one.region.loops.1,
            _ => false,
        };
        stream.text.extend_from_slice(&bytes.to_le_bytes());
        stream.text.extend_from_slice(&stream.bucket.to_le_bytes());
        p.messages.push(Message {
            peer: stream.peer,
            direction: stream.direction,
            step: stream.bucket + stream.stage,
            stage: stream.stage,
            bucket: stream.bucket,
            bytes,
            pieces: (start, p.pieces.len() as u32),
            is_direct,
            staging: 0,
        });
    }
}

/// Stretches by direction, peer and stage.
fn in_streams(stretches: &[Stretch]) -> Vec<Vec<Stretch>> {
    let key = |s: &Stretch| (s.direction, s.peer, s.stage);
    let mut number_of = FxHashMap::default();
    let mut streams: Vec<Vec<Stretch>> = Vec::new();
    for run in stretches.chunk_by(|a, b| key(a) == key(b)) {
        let number = *number_of.entry(key(&run[0])).or_insert(streams.len());
        if number == streams.len() {
            streams.push(Vec::new());
        }
        streams[number].extend_from_slice(run);
    }
    streams.sort_unstable_by_key(|s| key(&s[0]));
    streams
}

/// Stretches cut where buckets of layers end.
fn cut_in_layers(walks: &[Walk<'_>], stretches: &[Stretch]) -> Vec<Stretch> {
    let mut cut = Vec::with_capacity(stretches.len());
    for s in stretches {
        walks[s.walk as usize].cut_in_layers(s.item, (s.from, s.to), |bucket, from, to| {
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

impl<'a> Walk<'a> {
    /// How the peer of a piece stores it.
    fn peer_view<'w>(&'w self, item: &Item, peer: Rank) -> End<'w> {
        let cell = self.cell_of(item);
        match self.direction {
            Direction::Send if cell.are_needers_alike => return End::of(&cell.peers[0]),
            Direction::Send => return self.view_of_needer(item, peer),
            Direction::Receive if cell.are_holders_alike => return End::of(&cell.peers[0]),
            Direction::Receive => {}
        }
        // Several kinds of holders: the peer's own first view tells.
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        match holding_view(self.inputs.source, peer, tensor, &cell.bounds) {
            Ok((own, _, _)) => End::owned(own.strides, own.dtype),
            Err(_) => End::of(&cell.peers[0]),
        }
    }

    /// How `needer` stores a piece that it needs as part of the item's demand.
    fn view_of_needer<'w>(&'w self, item: &Item, needer: Rank) -> End<'w> {
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        let placed = tensor.needers.get(item.demand as usize);
        match placed.and_then(|r| needing_view(self.inputs.destination, *r, needer)) {
            Some(view) => End::owned(view.strides, view.dtype),
            None => End::of(&self.cell_of(item).peers[0]),
        }
    }
}

/// The side of a layout that a walk is over.
fn side_of(direction: Direction) -> Side {
    match direction {
        Direction::Send => Side::Source,
        Direction::Receive => Side::Destination,
    }
}

/// Calls `f` with the contiguous runs of a box: one index on every axis
/// before `first`, all of the rest.
fn each_run(bounds: &IndexBox, first: usize, f: &mut impl FnMut(&IndexBox)) {
    let mut run = bounds.clone();
    for d in 0..first {
        run.0[d].hi = run.0[d].lo + 1;
    }
    loop {
        f(&run);
        let mut d = first;
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            if run.0[d].hi < bounds.0[d].hi {
                run.0[d] = Span::new(run.0[d].lo + 1, run.0[d].hi + 1);
                break;
            }
            run.0[d] = Span::new(bounds.0[d].lo, bounds.0[d].lo + 1);
        }
    }
}

/// The box itself, or one box per index of axis 0 where that axis is split.
pub fn split_boxes(bounds: &IndexBox, is_split: bool) -> SmallVec<[IndexBox; 1]> {
    if !is_split {
        return std::iter::once(bounds.clone()).collect();
    }
    (bounds.0[0].lo..bounds.0[0].hi)
        .map(|i| {
            let mut b = bounds.clone();
            b.0[0] = Span::new(i, i + 1);
            b
        })
        .collect()
}

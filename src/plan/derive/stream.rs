//! The stream of one pair and stage, as messages.
//!
//! Long runs become messages of their own, which travel without staging where
//! they are contiguous; the rest of a bucket is one packed message. Both ends'
//! strides decide, so both ends find the same messages.

use super::builder::Builder;
use super::route::{Here, Routes, Stretch, There};
use super::view::{PeerView, holding_view, needing_view};
use super::walk::{Item, Walk};
use super::{Decision, Strategy};
use crate::error::Result;
use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Span, TensorIndex};
use crate::layout::view::Strides;
use crate::plan::decision::Order;
use crate::plan::piece::{contiguous_from, elements_from, flat_boxes};
use crate::plan::program::{BufferSlot, Direction, Message, PairHash, Piece, Region, Side};
use crate::rank::Rank;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

/// Alignment of items in packed messages.
const ALIGN_BYTES: u64 = 16;

/// One pair's stream of one stage while it is cut into messages.
struct Stream<'w, 'a> {
    walks: &'w [Walk<'a>],
    stretches: &'w [Stretch],
    peer: Rank,
    direction: Direction,
    stage: u32,
    bucket: u32,
    /// Boxes of the packed message, with the stretch they are of.
    packed: Vec<(IndexBox, usize)>,
    /// What both ends must agree on.
    hash: Xxh3,
}

impl<'w, 'a> Stream<'w, 'a> {
    fn new(walks: &'w [Walk<'a>], stretches: &'w [Stretch], own: Rank) -> Stream<'w, 'a> {
        let Stretch {
            peer,
            direction,
            stage,
            ..
        } = stretches[0];
        let mut hash = Xxh3::new();
        let (from, to) = match direction {
            Direction::Send => (own, peer),
            Direction::Receive => (peer, own),
        };
        hash.update(&from.0.to_le_bytes());
        hash.update(&to.0.to_le_bytes());
        hash.update(&stage.to_le_bytes());
        Stream {
            walks,
            stretches,
            peer,
            direction,
            stage,
            bucket: 0,
            packed: Vec::new(),
            hash,
        }
    }

    fn item(&self, s: &Stretch) -> (&'w Walk<'a>, &'w Item) {
        let walk = &self.walks[s.walk as usize];
        (walk, &walk.items[s.item as usize])
    }

    fn hash_piece(&mut self, s: &Stretch) {
        let (walk, item) = self.item(s);
        // At once: the hash takes longer to begin than to go on.
        let mut text: SmallVec<[u8; 96]> = SmallVec::new();
        text.extend_from_slice(&item.tensor.to_le_bytes());
        text.extend_from_slice(&s.from.to_le_bytes());
        text.extend_from_slice(&s.to.to_le_bytes());
        for s in walk.cell_of(item).bounds.spans() {
            text.extend_from_slice(&s.lo.to_le_bytes());
            text.extend_from_slice(&s.hi.to_le_bytes());
        }
        self.hash.update(&text);
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
    fn ends(&self, s: &Stretch) -> [PeerView; 2] {
        let (walk, item) = self.item(s);
        let cell = walk.cell_of(item);
        let dense = || PeerView {
            strides: dense_strides(&cell.bounds, cell.wire),
            dtype: cell.wire,
        };
        let own = || PeerView {
            strides: cell.own.strides.clone(),
            dtype: cell.own.dtype,
        };
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
        all.sort_unstable_by(|a, b| routes.order(a, b));
        let same = |a: &Stretch, b: &Stretch| {
            (a.direction, a.peer, a.stage) == (b.direction, b.peer, b.stage)
        };
        let mut cut = Vec::new();
        for stream in all.chunk_by(same) {
            if !is_cut && *order == Order::Fraction {
                cut.clear();
                self.cut_by_pair(routes.walks, stream, &mut cut);
                self.add_stream(routes.walks, &cut)?;
            } else {
                self.add_stream(routes.walks, stream)?;
            }
        }
        Ok(())
    }

    /// Bucket `b` is the `b`-th K-th part of what the pair exchanges.
    fn cut_by_pair(&self, walks: &[Walk<'a>], stream: &[Stretch], out: &mut Vec<Stretch>) {
        let total: u64 = stream.iter().map(|s| s.to - s.from).sum();
        let buckets = u64::from(self.inputs.decision.bucket_count);
        let bound = |b: u64| (u128::from(b) * u128::from(total) / u128::from(buckets)) as u64;
        let (mut bucket, mut position) = (0, 0);
        for s in stream {
            let walk = &walks[s.walk as usize];
            let unit = walk.cell_of(&walk.items[s.item as usize]).unit;
            let mut from = s.from;
            while from < s.to {
                // Where this bucket ends inside the stretch, on a whole unit.
                let inside = s.from + bound(bucket + 1).saturating_sub(position);
                let to = match inside >= s.to {
                    true => s.to,
                    false => (inside / unit * unit).max(from),
                };
                if from < to {
                    let bucket = bucket as u32;
                    out.push(Stretch {
                        bucket,
                        from,
                        to,
                        ..*s
                    });
                }
                from = to;
                bucket += u64::from(inside < s.to);
            }
            position += s.to - s.from;
            while bucket + 1 < buckets && position >= bound(bucket + 1) {
                bucket += 1;
            }
        }
    }

    /// The messages of one stream, whose stretches are in order of bucket.
    fn add_stream(&mut self, walks: &[Walk<'a>], stretches: &[Stretch]) -> Result<()> {
        let mut stream = Stream::new(walks, stretches, self.program.rank);
        let mut total = 0;
        for (i, s) in stretches.iter().enumerate() {
            if s.bucket != stream.bucket {
                self.close_bucket(&mut stream);
                stream.bucket = s.bucket;
            }
            stream.hash_piece(s);
            self.add_stretch(&mut stream, i);
            total += s.to - s.from;
        }
        self.close_bucket(&mut stream);
        let hash = stream.hash.digest128();
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
    fn add_stretch(&mut self, stream: &mut Stream<'_, 'a>, index: usize) {
        let s = &stream.stretches[index];
        let (walk, item) = stream.item(s);
        let cell = walk.cell_of(item);
        let [here, there] = stream.ends(s);
        let wire = stream.wire(s);
        let element = wire.bytes();
        let direct_min = self.inputs.decision.direct_bytes_min;
        flat_boxes(&cell.bounds, s.from / element, s.to / element, &mut |b| {
            let first = run_axis(b, wire, &here.strides, here.dtype).min(run_axis(
                b,
                wire,
                &there.strides,
                there.dtype,
            ));
            let is_long = first <= b.0.len() && elements_from(b, first) * element >= direct_min;
            if !is_long {
                stream.packed.push((b.clone(), index));
                return;
            }
            each_run(b, first, &mut |run| {
                let start = self.program.pieces.len() as u32;
                self.add_pieces(stream, index, run, 0);
                self.add_message(stream, start, run.elements() * element);
            });
        });
    }

    /// Ends the current bucket of a stream: what was not long enough for a
    /// message of its own travels in one packed message.
    fn close_bucket(&mut self, stream: &mut Stream<'_, 'a>) {
        let start = self.program.pieces.len() as u32;
        let (mut at, mut end) = (0u64, 0);
        let packed = std::mem::take(&mut stream.packed);
        for (bounds, index) in &packed {
            let element = stream.wire(&stream.stretches[*index]).bytes();
            self.add_pieces(stream, *index, bounds, at);
            end = at + bounds.elements() * element;
            at = end.next_multiple_of(ALIGN_BYTES);
        }
        if end > 0 {
            self.add_message(stream, start, end);
        }
        stream.packed = packed;
        stream.packed.clear();
    }

    /// The pieces of a box, one unless our side stores it in several buffers.
    fn add_pieces(&mut self, stream: &Stream<'_, 'a>, index: usize, bounds: &IndexBox, at: u64) {
        let s = &stream.stretches[index];
        let (walk, item) = stream.item(s);
        let cell = walk.cell_of(item);
        let wire = stream.wire(s);
        if let Here::Relay(base) = s.here {
            let region = self.relay_region(s, &cell.bounds, bounds, wire, base);
            self.program.pieces.push(Piece {
                tensor: TensorIndex(item.tensor),
                bounds: bounds.clone(),
                region,
                at,
                bytes: bounds.elements() * wire.bytes(),
                wire,
            });
            return;
        }
        let side = match walk.direction {
            Direction::Send => Side::Source,
            Direction::Receive => Side::Destination,
        };
        let part = self.part_of(side);
        let mut at = at;
        for b in split_boxes(bounds, cell.own.split.is_some()) {
            let region = self.region(side, part, item.buffer, &cell.own, &b);
            let bytes = b.elements() * wire.bytes();
            self.program.pieces.push(Piece {
                tensor: TensorIndex(item.tensor),
                bounds: b,
                region,
                at,
                bytes,
                wire,
            });
            at += bytes;
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
        stream.hash.update(&bytes.to_le_bytes());
        stream.hash.update(&stream.bucket.to_le_bytes());
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

/// Byte strides of a box stored by itself.
fn dense_strides(bounds: &IndexBox, dtype: Dtype) -> Strides {
    let mut strides: Strides = bounds.spans().iter().map(|_| 0).collect();
    let mut step = dtype.bytes() as i64;
    for (d, s) in bounds.spans().iter().enumerate().rev() {
        strides[d] = step;
        step *= s.len() as i64;
    }
    strides
}

impl Walk<'_> {
    /// How the peer of a piece stores it.
    fn peer_view(&self, item: &Item, peer: Rank) -> PeerView {
        let cell = self.cell_of(item);
        match self.direction {
            Direction::Send if cell.are_needers_alike => return cell.peers[0].clone(),
            Direction::Send => return self.view_of_needer(item, peer),
            Direction::Receive if cell.are_holders_alike => return cell.peers[0].clone(),
            Direction::Receive => {}
        }
        // Several kinds of holders: the peer's own first view tells.
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        match holding_view(self.inputs.source, peer, tensor, &cell.bounds) {
            Ok((own, _, _)) => PeerView {
                strides: own.strides,
                dtype: own.dtype,
            },
            Err(_) => cell.peers[0].clone(),
        }
    }

    /// How `needer` stores a piece that it needs as part of the item's demand.
    fn view_of_needer(&self, item: &Item, needer: Rank) -> PeerView {
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        let placed = tensor.needers.get(item.demand as usize);
        placed
            .and_then(|r| needing_view(self.inputs.destination, *r, needer))
            .unwrap_or_else(|| self.cell_of(item).peers[0].clone())
    }
}

/// The axis from which on a box is one run in memory and on the wire; past the
/// last axis where a conversion stands between.
fn run_axis(bounds: &IndexBox, wire: Dtype, strides: &[i64], dtype: Dtype) -> usize {
    match dtype == wire {
        true => contiguous_from(bounds, strides, dtype.bytes()),
        false => bounds.0.len() + 1,
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

//! The streams of a rank, one per peer and stage, as messages.
//!
//! Long runs become messages of their own, which travel without staging where
//! they are contiguous; the rest of a bucket is one packed message. Both ends'
//! strides decide, so both ends find the same messages.
//!
//! What several ranks get alike is made once: the messages of the others are
//! copies, which send what the first one packs.
//!
//! Messages are made stream by stream, and put in order of step in the end:
//!
//! ```text
//!   to 8, stage 0    | bucket 0 | bucket 1 | bucket 2 |
//!   to 9, stage 1               | bucket 0 | bucket 1 | bucket 2 |
//!                      step 0     step 1     step 2     step 3
//! ```

use super::builder::{Builder, key_of};
use super::cell::Cell;
use super::ends::{Ends, Form};
use super::legs::{Leg, Turn};
use super::route::{Here, Routes, StreamKey, Stretch, There};
use super::visit::Visit;
use super::walk::{Item, Walk};
use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Span, TensorIndex};
use crate::plan::counting;
use crate::plan::piece::flat_boxes;
use crate::plan::program::{BufferSlot, Direction, Message, PairHash, Piece, Region, Side};
use crate::rank::Rank;
use smallvec::SmallVec;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;

/// Alignment of items in packed messages.
pub const PACKED_ALIGN_BYTES: u64 = 16;

/// Pieces and messages that there is room for in advance, at most.
const RESERVED_COUNT_MAX: u64 = 1 << 17;

/// The pieces of a stretch that travel by themselves, for legs to ranks that
/// store it in one way.
#[derive(Clone, Copy, Default)]
pub struct LaidOut {
    there: Option<There>,
    pieces: (u32, u32),
}

/// A stream whose messages are made.
#[derive(Clone, Copy, Default)]
struct Made {
    /// Range in [`Builder::messages`].
    messages: (u32, u32),
    bytes: u64,
    /// Of what it carries, whoever the ends are.
    hash: u128,
}

/// One stream while its messages are made.
struct Flow<'w, 'a> {
    walks: &'w [Visit<'a>],
    key: StreamKey,
    bucket: u32,
    /// Pieces of the packed message of the bucket, and where it ends.
    packed: Vec<Piece>,
    packed_bytes: u64,
    /// What both ends must agree on.
    text: Vec<u8>,
    bytes: u64,
}

impl<'w, 'a> Flow<'w, 'a> {
    /// Begins with another stream.
    fn begin(&mut self, key: StreamKey) {
        self.key = key;
        self.bucket = 0;
        self.bytes = 0;
        self.text.clear();
    }

    fn item(&self, s: &Stretch) -> (&'w Walk<'a>, &'w Item) {
        let walk = &self.walks[s.walk as usize];
        (walk, &walk.items[s.item as usize])
    }

    /// What the other end must have of a stretch as well.
    fn add_text(&mut self, s: &Stretch, item: &Item, cell: &Cell) {
        let mut text = [0; 40];
        text[..4].copy_from_slice(&item.tensor.to_le_bytes());
        text[4..8].copy_from_slice(&s.bucket.to_le_bytes());
        text[8..16].copy_from_slice(&s.from.to_le_bytes());
        text[16..24].copy_from_slice(&s.to.to_le_bytes());
        text[24..].copy_from_slice(&cell.hash.to_le_bytes());
        self.text.extend_from_slice(&text);
    }
}

impl<'a> Builder<'a> {
    /// All streams, cut into messages.
    pub fn add_streams(&mut self, mut routes: Routes<'_, 'a>) {
        self.relay_half_bytes = routes.relay_bytes();
        routes.cut();
        self.add_boxes(routes.walks);
        let legs = routes.legs();
        self.reserve(&routes, legs.len());
        self.laid_out = vec![LaidOut::default(); routes.stretches.len()];
        let mut flow = Flow {
            walks: routes.walks,
            key: StreamKey {
                peer: self.program.rank,
                direction: Direction::Send,
                stage: 0,
            },
            bucket: 0,
            packed: Vec::new(),
            packed_bytes: 0,
            text: Vec::new(),
            bytes: 0,
        };
        let mut made = vec![Made::default(); routes.streams.len()];
        for Turn { stream, twin } in routes.turns(&legs) {
            let key = routes.streams[stream];
            made[stream] = match twin {
                Some(twin) => self.repeat(&made[twin], key.peer),
                None => {
                    flow.begin(key);
                    self.add_stream(&routes.stretches, legs.of(stream), &mut flow)
                }
            };
            self.add_pair(key, &made[stream]);
        }
        self.put_in_steps();
    }

    /// The messages of a stream again, for another rank that gets the same:
    /// what is packed is packed once.
    fn repeat(&mut self, made: &Made, peer: Rank) -> Made {
        let first = self.messages.len() as u32;
        for i in made.messages.0..made.messages.1 {
            let message = self.messages[i as usize].clone();
            let is_packed_before = !message.is_direct;
            self.messages.push(Message {
                peer,
                is_packed_before,
                ..message
            });
        }
        Made {
            messages: (first, self.messages.len() as u32),
            ..*made
        }
    }

    /// Counts a stream, with a hash of what both ends must agree on.
    fn add_pair(&mut self, key: StreamKey, made: &Made) {
        let p = &mut self.program;
        let (from, to) = match key.direction {
            Direction::Send => (p.rank, key.peer),
            Direction::Receive => (key.peer, p.rank),
        };
        let mut text = [0; 28];
        text[..16].copy_from_slice(&made.hash.to_le_bytes());
        text[16..20].copy_from_slice(&from.0.to_le_bytes());
        text[20..24].copy_from_slice(&to.0.to_le_bytes());
        text[24..].copy_from_slice(&key.stage.to_le_bytes());
        let hash = xxh3_128(&text);
        match key.direction {
            Direction::Send => {
                p.bytes_sent += made.bytes;
                p.pair_balance = p.pair_balance.wrapping_add(hash);
            }
            Direction::Receive => {
                p.bytes_received += made.bytes;
                p.pair_balance = p.pair_balance.wrapping_sub(hash);
            }
        }
        p.pairs.push(PairHash {
            peer: key.peer,
            direction: key.direction,
            hash,
        });
    }

    /// The messages of one stream, whose legs are in order of bucket.
    fn add_stream(&mut self, stretches: &[Stretch], legs: &[Leg], flow: &mut Flow<'_, 'a>) -> Made {
        let first = self.messages.len() as u32;
        for leg in legs {
            let s = &stretches[leg.stretch as usize];
            if s.bucket != flow.bucket {
                self.close(flow);
                flow.bucket = s.bucket;
            }
            flow.bytes += s.bytes();
            self.add_leg(flow, leg, s);
        }
        self.close(flow);
        Made {
            messages: (first, self.messages.len() as u32),
            bytes: flow.bytes,
            hash: xxh3_128(&flow.text),
        }
    }

    /// Puts messages, which are by peer, direction and stage, in order of step.
    fn put_in_steps(&mut self) {
        let all: Vec<u32> = (0..self.messages.len() as u32).collect();
        let step = |&i: &u32| self.messages[i as usize].step as usize;
        let (order, _) = counting::sorted(&all, self.inputs.step_count() as usize, step);
        let sorted = order.iter().map(|&i| self.messages[i as usize].clone());
        self.program.messages = sorted.collect();
    }

    /// The cells of all walks: what pieces are parts of.
    fn add_boxes(&mut self, walks: &[Visit<'a>]) {
        for walk in walks {
            let boxes = &mut self.program.boxes;
            self.first_boxes.push(boxes.len() as u32);
            boxes.extend(walk.cells.iter().map(|c| c.bounds.clone()));
        }
    }

    /// The box that pieces of a stretch are parts of.
    fn box_of(&self, s: &Stretch, item: &Item) -> u32 {
        self.first_boxes[s.walk as usize] + item.cell
    }

    /// Makes room for about what streams come to: to move what was made when
    /// there is no room takes longer than to make it.
    fn reserve(&mut self, routes: &Routes<'_, 'a>, legs: usize) {
        let direct_min = self.inputs.decision.direct_bytes_min;
        let runs = |s: &Stretch| {
            let walk = &routes.walks[s.walk as usize];
            let cell = walk.cell_of(&walk.items[s.item as usize]);
            let runs = [cell.run.min(cell.run_across), cell.run.max(cell.run_across)];
            let run = runs.map(|r| r * cell.wire.bytes());
            let run = run.into_iter().find(|&r| r >= direct_min).unwrap_or(0);
            // Whole runs, and what is before or behind them.
            match run == 0 || s.bytes() <= run {
                true => 1,
                false => s.bytes() / run + 1,
            }
        };
        let pieces: u64 = routes.stretches.iter().map(runs).sum();
        let pieces = (pieces + pieces / 4).min(RESERVED_COUNT_MAX) as usize;
        let each = pieces.div_ceil(routes.stretches.len().max(1));
        self.program.pieces.reserve(pieces);
        let messages = (legs * each).min(RESERVED_COUNT_MAX as usize);
        self.messages.reserve(messages);
    }

    /// A range of an item: long runs become messages of their own, the rest
    /// joins the packed message of the bucket.
    ///
    /// What is sent to several is laid out once: messages of one piece each
    /// have the same pieces, whoever they are for.
    fn add_leg(&mut self, flow: &mut Flow<'_, 'a>, leg: &Leg, s: &Stretch) {
        let (walk, item) = flow.item(s);
        let cell = walk.cell_of(item);
        flow.add_text(s, item, cell);
        let laid = self.laid_out[leg.stretch as usize];
        if laid.there == Some(leg.there) && cell.is_alike(leg.there) {
            for piece in laid.pieces.0..laid.pieces.1 {
                let bytes = self.program.pieces[piece as usize].bytes;
                self.add_message(flow, (piece, piece + 1), bytes);
            }
            return;
        }
        let before = (self.program.pieces.len(), self.messages.len());
        let packed = flow.packed.len();
        self.lay_out(flow, leg, s);
        let pieces = (before.0 as u32, self.program.pieces.len() as u32);
        let is_one_each = self.messages.len() - before.1 == self.program.pieces.len() - before.0;
        if is_one_each && packed == flow.packed.len() {
            self.laid_out[leg.stretch as usize] = LaidOut {
                there: Some(leg.there),
                pieces,
            };
        }
    }

    fn lay_out(&mut self, flow: &mut Flow<'_, 'a>, leg: &Leg, s: &Stretch) {
        let ends = Ends::of(flow.walks, s, leg.there, flow.key.peer);
        let wire = ends.wire;
        let elements = s.from / wire.bytes()..s.to / wire.bytes();
        let direct_min = self.inputs.decision.direct_bytes_min;
        ends.each_part(elements, direct_min, |part, form| match form {
            Form::Alone { is_run: true } => self.add_run(flow, s, part, wire),
            Form::Alone { is_run: false } => self.add_spread(flow, s, part, wire),
            Form::Packed => self.add_packed(flow, s, part, wire),
        });
    }

    /// A range of a cell that is one run at our end: a message of its own.
    fn add_run(&mut self, flow: &mut Flow<'_, 'a>, s: &Stretch, elements: Range<u64>, wire: Dtype) {
        let (walk, item) = flow.item(s);
        let cell = walk.cell_of(item);
        let run = elements.end - elements.start;
        let region = match s.here {
            Here::Relay(base) => self.relay_region(s, elements.start, run, wire, base),
            Here::Buffer => {
                let (offset, lead) = cell.locate(elements.start);
                let side = side_of(walk.direction);
                let key = key_of(self.part_of(side), item.buffer, &cell.own, lead);
                Region {
                    slot: self.slot(side, key),
                    offset,
                    dtype: wire,
                    run,
                    loops: (0, 0),
                }
            }
        };
        self.add_piece_alone(flow, s, elements.start, region);
    }

    /// A message of one piece, which is one run at our end and begins with
    /// element `first` of its cell.
    fn add_piece_alone(
        &mut self,
        flow: &mut Flow<'_, 'a>,
        s: &Stretch,
        first: u64,
        region: Region,
    ) {
        let (_, item) = flow.item(s);
        let bytes = region.run * region.dtype.bytes();
        let start = self.program.pieces.len() as u32;
        self.program.pieces.push(Piece {
            tensor: TensorIndex(item.tensor),
            within: self.box_of(s, item),
            first,
            region,
            at: 0,
            bytes,
            wire: region.dtype,
        });
        self.add_message(flow, (start, start + 1), bytes);
    }

    /// Ends a bucket of a stream: what was not long enough for a message of its
    /// own travels in one packed message.
    fn close(&mut self, flow: &mut Flow<'_, 'a>) {
        if flow.packed.is_empty() {
            return;
        }
        let start = self.program.pieces.len() as u32;
        self.program.pieces.append(&mut flow.packed);
        let bytes = std::mem::take(&mut flow.packed_bytes);
        let end = self.program.pieces.len() as u32;
        self.add_message(flow, (start, end), bytes);
    }

    /// A range of a cell that is a run at the other end only: a message of its
    /// own, of the boxes that it is.
    fn add_spread(&mut self, flow: &mut Flow<'_, 'a>, s: &Stretch, part: Range<u64>, wire: Dtype) {
        let (walk, item) = flow.item(s);
        let mut pieces = std::mem::take(&mut self.scratch);
        let (mut first, mut at) = (part.start, 0);
        flat_boxes(&walk.cell_of(item).bounds, part.start, part.end, &mut |b| {
            at = self.add_box((walk, item), s, (b, first), wire, at, &mut pieces);
            first += b.elements();
        });
        let start = self.program.pieces.len() as u32;
        self.program.pieces.append(&mut pieces);
        self.scratch = pieces;
        let end = self.program.pieces.len() as u32;
        self.add_message(flow, (start, end), at);
    }

    /// A range of a cell in the packed message of its bucket, box by box.
    fn add_packed(&mut self, flow: &mut Flow<'_, 'a>, s: &Stretch, part: Range<u64>, wire: Dtype) {
        let (walk, item) = flow.item(s);
        let (mut first, mut end) = (part.start, flow.packed_bytes);
        let packed = &mut flow.packed;
        flat_boxes(&walk.cell_of(item).bounds, part.start, part.end, &mut |b| {
            let at = end.next_multiple_of(PACKED_ALIGN_BYTES);
            end = self.add_box((walk, item), s, (b, first), wire, at, packed);
            first += b.elements();
        });
        flow.packed_bytes = end;
    }

    /// The pieces of a box of a cell, which begins with element `first` of it
    /// and with byte `at` of its message: one, unless our side stores it in
    /// several buffers. Returns where it ends in the message.
    fn add_box(
        &mut self,
        (walk, item): (&Walk<'a>, &Item),
        s: &Stretch,
        (bounds, mut first): (&IndexBox, u64),
        wire: Dtype,
        mut at: u64,
        out: &mut Vec<Piece>,
    ) -> u64 {
        let cell = walk.cell_of(item);
        let is_split = s.here == Here::Buffer && cell.own.split.is_some();
        for bounds in split_boxes(bounds, is_split) {
            let elements = bounds.elements();
            let region = match s.here {
                Here::Relay(base) => self.relay_region(s, first, elements, wire, base),
                Here::Buffer => {
                    let side = side_of(walk.direction);
                    let whole = match bounds == cell.bounds {
                        true => self.region_of_whole(side, item.buffer, cell),
                        false => None,
                    };
                    let part = self.part_of(side);
                    whole
                        .unwrap_or_else(|| self.region(side, part, item.buffer, &cell.own, &bounds))
                }
            };
            let bytes = elements * wire.bytes();
            out.push(Piece {
                tensor: TensorIndex(item.tensor),
                within: self.box_of(s, item),
                first,
                region,
                at,
                bytes,
                wire,
            });
            at += bytes;
            first += elements;
        }
        at
    }

    /// Where a run of a stretch lies in relay memory: stretches lie there in
    /// canonical order, so that a run is a run.
    fn relay_region(&self, s: &Stretch, first: u64, run: u64, wire: Dtype, base: u64) -> Region {
        let half = u64::from(s.bucket % 2) * self.relay_half_bytes;
        Region {
            slot: BufferSlot::RELAY,
            offset: half + base + first * wire.bytes() - s.from,
            dtype: wire,
            run,
            loops: (0, 0),
        }
    }

    fn add_message(&mut self, flow: &mut Flow<'_, 'a>, pieces: (u32, u32), bytes: u64) {
        let p = &mut self.program;
        let is_direct = match &p.pieces[pieces.0 as usize..pieces.1 as usize] {
            [one] => one.region.dtype == one.wire && one.region.loops.0 == one.region.loops.1,
            _ => false,
        };
        flow.text.extend_from_slice(&bytes.to_le_bytes());
        let StreamKey {
            peer,
            direction,
            stage,
        } = flow.key;
        self.messages.push(Message {
            peer,
            direction,
            step: flow.bucket + stage,
            stage,
            bucket: flow.bucket,
            bytes,
            pieces,
            is_direct,
            is_packed_before: false,
            staging: 0,
        });
    }
}

/// The side of a layout that a walk is over.
fn side_of(direction: Direction) -> Side {
    match direction {
        Direction::Send => Side::Source,
        Direction::Receive => Side::Destination,
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

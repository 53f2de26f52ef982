//! The streams of a rank, one per peer and stage, as messages.
//!
//! Long runs become messages of their own, which travel without staging where
//! they are contiguous; the rest of a bucket is one packed message. Both ends'
//! strides decide, so both ends find the same messages.
//!
//! What several ranks get alike is made once: the messages of the others are
//! copies, which send what the first one packs.
//!
//! Streams are cut into batches, one per bucket, and these made into messages
//! step by step:
//!
//! ```text
//!   to 8, stage 0    | bucket 0 | bucket 1 | bucket 2 |
//!   to 9, stage 1               | bucket 0 | bucket 1 | bucket 2 |
//!                      step 0     step 1     step 2     step 3
//! ```

use super::NEEDS;
use super::builder::Builder;
use super::ends::{Ends, Form};
use super::legs::{Leg, Turn};
use super::pattern::Patterns;
use super::route::{
    Here, Portion, RESERVED_COUNT_MAX, RelayStart, Routes, StreamKey, Stretch, There,
};
use super::visit::Visit;
use super::walk::Walk;
use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Span, TensorIndex};
use crate::plan::piece::flat_boxes;
use crate::plan::program::{BufferSlot, Direction, Message, PairHash, Piece, Program, Region};
use crate::rank::Rank;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;

/// Alignment of items in packed messages.
pub const PACKED_ALIGN_BYTES: u64 = 16;

/// Room for the text of a batch from the start.
const TEXT_BYTES_USUAL: usize = 1 << 13;

/// What is made of a stream.
#[derive(Clone, Copy, Default)]
struct Made {
    /// Those of the last batch, a range in the program's.
    messages: (u32, u32),
    bytes: u64,
    /// Of what it carries, whoever the ends are.
    hash: u128,
}

/// One batch of a stream while its messages are made.
pub struct Flow<'w, 'a> {
    walks: &'w [Visit<'a>],
    /// The walk that was asked for last; often it is asked for again.
    walk: (u32, &'w Walk<'a>),
    key: StreamKey,
    bucket: u32,
    /// Pieces of the packed message, and where it ends.
    pub packed: Vec<Piece>,
    pub packed_bytes: u64,
    /// What both ends must agree on.
    text: Vec<u8>,
}

impl<'w, 'a> Flow<'w, 'a> {
    fn new(walks: &'w [Visit<'a>], rank: Rank) -> Flow<'w, 'a> {
        Flow {
            walks,
            walk: (NEEDS as u32, &walks[NEEDS]),
            key: StreamKey {
                peer: rank,
                direction: Direction::Send,
                stage: 0,
            },
            bucket: 0,
            packed: Vec::new(),
            packed_bytes: 0,
            text: Vec::with_capacity(TEXT_BYTES_USUAL),
        }
    }

    /// Begins with another batch, of a stream whose earlier ones have a hash.
    fn begin(&mut self, key: StreamKey, bucket: u32, hash: u128) {
        self.key = key;
        self.bucket = bucket;
        self.text.clear();
        self.text.extend_from_slice(&hash.to_le_bytes());
    }

    pub fn is_sent(&self) -> bool {
        self.key.direction == Direction::Send
    }

    fn portion(&mut self, stretch: &'w Stretch) -> Portion<'w, 'a> {
        if self.walk.0 != stretch.walk {
            self.walk = (stretch.walk, &self.walks[stretch.walk as usize]);
        }
        Portion::in_walk(self.walk.1, stretch)
    }

    /// What the other end must have of a stretch as well.
    fn add_text(&mut self, portion: &Portion<'_, '_>) {
        let Portion {
            item,
            cell,
            stretch: s,
            ..
        } = *portion;
        let mut text = [0; 40];
        text[..4].copy_from_slice(&item.tensor.to_le_bytes());
        text[4..8].copy_from_slice(&s.bucket.to_le_bytes());
        text[8..16].copy_from_slice(&s.from.to_le_bytes());
        text[16..24].copy_from_slice(&s.to.to_le_bytes());
        text[24..].copy_from_slice(&cell.hash.to_le_bytes());
        self.text.extend_from_slice(&text);
    }

    /// A message of some pieces; direct if it is one that is.
    // Called for every message, to write one down: the call was a part of that.
    #[inline(always)]
    pub fn add_message(
        &mut self,
        program: &mut Program,
        pieces: (u32, u32),
        bytes: u64,
        is_direct: bool,
    ) {
        self.text.extend_from_slice(&bytes.to_le_bytes());
        program.messages.push(Message {
            peer: self.key.peer,
            direction: self.key.direction,
            stage: self.key.stage,
            bucket: self.bucket,
            bytes,
            pieces,
            is_direct,
            is_packed_before: false,
            staging: 0,
        });
    }
}

impl<'a> Builder<'a> {
    /// All streams, cut into messages.
    pub fn add_streams(&mut self, routes: Routes<'_, 'a>) {
        self.relay_half_bytes = routes.relay_bytes();
        self.add_boxes(routes.walks);
        let legs = routes.legs();
        let room = legs.len().min(RESERVED_COUNT_MAX);
        self.program.messages.reserve(room);
        self.program.pieces.reserve(room);
        let buffers = self.part_slots.iter().map(Vec::len).sum();
        self.program.buffers.reserve(room.min(buffers));
        let sends = routes
            .streams
            .iter()
            .any(|s| s.direction == Direction::Send);
        let sent = if sends { routes.stretches.len() } else { 0 };
        self.patterns = Patterns::new(sent, self.program.boxes.len());
        let turns = routes.turns(&legs);
        let mut flow = Flow::new(routes.walks, self.program.rank);
        let mut made = vec![Made::default(); routes.streams.len()];
        for batch in routes.batches(&legs, &turns) {
            let Turn { stream, twin } = turns[batch.turn as usize];
            let key = routes.streams[stream];
            made[stream] = match twin {
                Some(twin) => self.repeat(&made[twin], key.peer),
                None => {
                    let before = made[stream];
                    flow.begin(key, batch.bucket, before.hash);
                    let legs = legs.of_batch(&batch);
                    self.add_batch(&routes.stretches, legs, &mut flow, &before)
                }
            };
        }
        for Turn { stream, .. } in turns {
            self.add_pair(routes.streams[stream], &made[stream]);
        }
    }

    /// The messages that a stream was made of last again, for another rank that
    /// gets the same: what is packed is packed once.
    fn repeat(&mut self, made: &Made, peer: Rank) -> Made {
        let messages = &mut self.program.messages;
        let first = messages.len() as u32;
        for i in made.messages.0..made.messages.1 {
            let message = messages[i as usize].clone();
            let is_packed_before = !message.is_direct;
            messages.push(Message {
                peer,
                is_packed_before,
                ..message
            });
        }
        Made {
            messages: (first, messages.len() as u32),
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

    /// The messages of one batch of a stream, which has had some `before`.
    // By itself it keeps more of its loop in registers: measured.
    #[inline(never)]
    fn add_batch<'w>(
        &mut self,
        stretches: &'w [Stretch],
        legs: &[Leg],
        flow: &mut Flow<'w, 'a>,
        before: &Made,
    ) -> Made {
        let first = self.program.messages.len() as u32;
        let mut bytes = before.bytes;
        for leg in legs {
            let s = &stretches[leg.stretch as usize];
            bytes += s.bytes();
            let portion = flow.portion(s);
            self.add_leg(flow, leg, &portion);
        }
        self.close(flow);
        Made {
            messages: (first, self.program.messages.len() as u32),
            bytes,
            hash: xxh3_128(&flow.text),
        }
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
    pub fn box_of(&self, portion: &Portion<'_, '_>) -> u32 {
        self.first_boxes[portion.stretch.walk as usize] + portion.item.cell
    }

    /// A range of an item, laid out once for all ends that store it alike.
    fn add_leg(&mut self, flow: &mut Flow<'_, 'a>, leg: &Leg, portion: &Portion<'_, 'a>) {
        flow.add_text(portion);
        match portion.cell.is_alike(leg.there) {
            true => self.lay_out_once(flow, leg, portion),
            false => self.lay_out(flow, leg.there, portion),
        }
    }

    /// Long runs become messages of their own, the rest joins the packed message
    /// of the bucket.
    pub fn lay_out(&mut self, flow: &mut Flow<'_, 'a>, there: There, portion: &Portion<'_, 'a>) {
        let ends = Ends::of(portion, there, flow.key.peer);
        let Stretch { from, to, .. } = *portion.stretch;
        let wire = ends.wire;
        let elements = wire.elements_in(from)..wire.elements_in(to);
        let direct_min = self.inputs.decision.direct_bytes_min;
        ends.each_part(elements, direct_min, |part, form| match form {
            Form::Alone { is_run: true } => self.add_run(flow, portion, part, wire),
            Form::Alone { is_run: false } => self.add_spread(flow, portion, part, wire),
            Form::Packed => self.add_packed(flow, portion, part, wire),
        });
    }

    /// A range of a cell that is one run at our end: a message of its own.
    fn add_run(
        &mut self,
        flow: &mut Flow<'_, 'a>,
        portion: &Portion<'_, 'a>,
        part: Range<u64>,
        wire: Dtype,
    ) {
        let run = part.end - part.start;
        let region = match portion.stretch.here {
            Here::Relay(at) => self.relay_region(portion.stretch, part.start, run, wire, at),
            Here::Buffer => {
                let (offset, lead) = portion.cell.locate(part.start);
                Region {
                    slot: self.slot_of(portion, lead),
                    offset,
                    dtype: wire,
                    run,
                    loops: (0, 0),
                }
            }
        };
        let bytes = run * wire.bytes();
        let start = self.program.pieces.len() as u32;
        self.program.pieces.push(Piece {
            tensor: TensorIndex(portion.item.tensor),
            within: self.box_of(portion),
            first: part.start,
            region,
            at: 0,
            bytes,
            wire,
        });
        self.add_message(flow, (start, start + 1), bytes);
    }

    /// Our buffer that holds what lies at `lead` on axis 0.
    pub fn slot_of(&mut self, portion: &Portion<'_, 'a>, lead: u64) -> BufferSlot {
        let Portion {
            walk, item, cell, ..
        } = portion;
        let side = walk.side();
        let key = (self.part_of(side), item.buffer);
        self.slot(side, key, &cell.own, lead)
    }

    /// Ends a batch: what was not long enough for a message of its own travels in
    /// one packed message.
    fn close(&mut self, flow: &mut Flow<'_, 'a>) {
        if flow.packed.is_empty() {
            return;
        }
        let mut pieces = std::mem::take(&mut flow.packed);
        let bytes = std::mem::take(&mut flow.packed_bytes);
        self.add_pieces(flow, &mut pieces, bytes);
        flow.packed = pieces;
    }

    /// A message of these pieces, which are taken out.
    fn add_pieces(&mut self, flow: &mut Flow<'_, 'a>, pieces: &mut Vec<Piece>, bytes: u64) {
        let start = self.program.pieces.len() as u32;
        self.program.pieces.append(pieces);
        let end = self.program.pieces.len() as u32;
        self.add_message(flow, (start, end), bytes);
    }

    /// A range of a cell that is a run at the other end only: a message of its
    /// own, of the boxes that it is.
    fn add_spread(
        &mut self,
        flow: &mut Flow<'_, 'a>,
        portion: &Portion<'_, 'a>,
        part: Range<u64>,
        wire: Dtype,
    ) {
        let mut pieces = std::mem::take(&mut self.scratch);
        let (mut first, mut at) = (part.start, 0);
        flat_boxes(&portion.cell.bounds, part.start, part.end, &mut |b| {
            at = self.add_box(portion, (b, first), wire, at, &mut pieces);
            first += b.elements();
        });
        self.add_pieces(flow, &mut pieces, at);
        self.scratch = pieces;
    }

    /// A range of a cell in the packed message of its bucket, box by box.
    fn add_packed(
        &mut self,
        flow: &mut Flow<'_, 'a>,
        portion: &Portion<'_, 'a>,
        part: Range<u64>,
        wire: Dtype,
    ) {
        let (mut first, mut end) = (part.start, flow.packed_bytes);
        let packed = &mut flow.packed;
        flat_boxes(&portion.cell.bounds, part.start, part.end, &mut |b| {
            let at = end.next_multiple_of(PACKED_ALIGN_BYTES);
            end = self.add_box(portion, (b, first), wire, at, packed);
            first += b.elements();
        });
        flow.packed_bytes = end;
    }

    /// The pieces of a box of a cell, which begins with element `first` of it
    /// and with byte `at` of its message: one, unless our side stores it in
    /// several buffers. Returns where it ends in the message.
    fn add_box(
        &mut self,
        portion: &Portion<'_, 'a>,
        (bounds, mut first): (&IndexBox, u64),
        wire: Dtype,
        mut at: u64,
        out: &mut Vec<Piece>,
    ) -> u64 {
        let is_split = portion.stretch.here == Here::Buffer && portion.cell.own.split.is_some();
        let mut add = |bounds: &IndexBox| {
            let elements = bounds.elements();
            let bytes = elements * wire.bytes();
            out.push(Piece {
                tensor: TensorIndex(portion.item.tensor),
                within: self.box_of(portion),
                first,
                region: self.region_of(portion, bounds, first, wire),
                at,
                bytes,
                wire,
            });
            at += bytes;
            first += elements;
        };
        match is_split {
            false => add(bounds),
            true => split_boxes(bounds).for_each(|one| add(&one)),
        }
        at
    }

    /// Where a box of a cell, which begins with element `first` of it, lies
    /// here: in one buffer.
    fn region_of(
        &mut self,
        portion: &Portion<'_, 'a>,
        bounds: &IndexBox,
        first: u64,
        wire: Dtype,
    ) -> Region {
        let Portion {
            walk,
            item,
            cell,
            stretch,
        } = *portion;
        if let Here::Relay(at) = stretch.here {
            return self.relay_region(stretch, first, bounds.elements(), wire, at);
        }
        let side = walk.side();
        let whole = match bounds == &cell.bounds {
            true => self.region_of_whole(side, item.buffer, cell),
            false => None,
        };
        let part = self.part_of(side);
        whole.unwrap_or_else(|| self.region(side, part, item.buffer, &cell.own, bounds))
    }

    /// Where a run of a stretch lies in relay memory: stretches lie there in
    /// canonical order, so that a run is a run.
    fn relay_region(
        &self,
        s: &Stretch,
        first: u64,
        run: u64,
        wire: Dtype,
        at: RelayStart,
    ) -> Region {
        let half = u64::from(s.bucket % 2) * self.relay_half_bytes;
        Region {
            slot: BufferSlot::RELAY,
            offset: half + at.byte() + first * wire.bytes() - s.from,
            dtype: wire,
            run,
            loops: (0, 0),
        }
    }

    /// A message of these pieces.
    pub fn add_message(&mut self, flow: &mut Flow<'_, 'a>, pieces: (u32, u32), bytes: u64) {
        let p = &mut self.program;
        let is_direct = match &p.pieces[pieces.0 as usize..pieces.1 as usize] {
            [one] => one.is_direct(),
            _ => false,
        };
        flow.add_message(p, pieces, bytes, is_direct);
    }
}

/// One box per index of axis 0.
pub fn split_boxes(bounds: &IndexBox) -> impl Iterator<Item = IndexBox> {
    (bounds.0[0].lo..bounds.0[0].hi).map(|i| {
        let mut one = bounds.clone();
        one.0[0] = Span::new(i, i + 1);
        one
    })
}

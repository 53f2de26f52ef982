//! Assembles a program: buffers, regions, local copies, steps, staging.

use super::Inputs;
use super::cell::Cell;
use super::pattern::Patterns;
use super::stream::split_boxes;
use super::view::{OwnView, holding_view};
use super::walk::Walk;
use crate::error::Result;
use crate::layout::placement::{LocalAxis, LocalBuffer, Padding, Part, Placement, Seat};
use crate::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use crate::layout::{BufferKey, Layout, Place};
use crate::plan::piece::loops_of;
use crate::plan::program::*;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Alignment of messages in staging.
pub const STAGING_ALIGN_BYTES: u64 = 256;

/// Assembles the program.
pub struct Builder<'a> {
    pub inputs: Inputs<'a>,
    pub program: Program,
    /// Relay memory of one bucket; two are in use at a time.
    pub relay_half_bytes: u64,
    /// Slots of whole buffers of the rank's parts, by side and number.
    pub part_slots: [Vec<Option<BufferSlot>>; 2],
    /// The same of split tensors, by local index as well.
    split_slots: [Vec<Vec<Option<BufferSlot>>>; 2],
    /// Slots of all other buffers.
    slots: FxHashMap<BufferUse, Option<BufferSlot>>,
    loops: SmallVec<[Loop; 8]>,
    /// Where the boxes of each walk begin in the program.
    pub first_boxes: Vec<u32>,
    pub patterns: Patterns,
    /// Pieces of the message that is made.
    pub scratch: Vec<Piece>,
    /// The rank's parts of source and destination.
    parts: (u16, u16),
}

impl<'a> Builder<'a> {
    pub fn new(inputs: Inputs<'a>, rank: Rank) -> Builder<'a> {
        Builder {
            inputs,
            relay_half_bytes: 0,
            program: Program {
                rank,
                buffers: Vec::new(),
                loops: Vec::new(),
                boxes: Vec::new(),
                pieces: Vec::new(),
                messages: Vec::new(),
                locals: Vec::new(),
                fills: Vec::new(),
                steps: Vec::new(),
                tensors: inputs.tensors.clone(),
                digest_source: Vec::new(),
                digest_destination: Vec::new(),
                staging_bytes: 0,
                relay_bytes: 0,
                bytes_sent: 0,
                bytes_received: 0,
                bytes_local: 0,
                pair_balance: 0,
                pairs: Vec::new(),
            },
            part_slots: [inputs.source, inputs.destination].map(|l| part_slots(l, rank)),
            split_slots: Default::default(),
            slots: FxHashMap::default(),
            loops: SmallVec::new(),
            first_boxes: Vec::new(),
            patterns: Patterns::default(),
            scratch: Vec::new(),
            parts: parts_of(inputs, rank),
        }
    }

    /// The slot of the buffer, of one of the rank's placements or views, that
    /// holds what lies at `lead` on axis 0.
    pub fn slot(
        &mut self,
        side: Side,
        (part, buffer): (u16, u32),
        own: &OwnView,
        lead: u64,
    ) -> BufferSlot {
        let is_plain = own.split.is_none() && own.explicit.is_none();
        if is_plain
            && part == self.part_of(side)
            && let Some(known) = self.part_slots[side as usize].get_mut(buffer as usize)
        {
            let buffers = &mut self.program.buffers;
            return *known.get_or_insert_with(|| {
                let buffer = LocalBuffer {
                    buffer,
                    split: None,
                };
                let key = BufferKey::Part { part, buffer };
                add_buffer(buffers, BufferUse { side, key })
            });
        }
        self.slot_of_key(side, key_of(part, buffer, own, lead))
    }

    fn slot_of_key(&mut self, side: Side, key: BufferKey) -> BufferSlot {
        let known = match key {
            BufferKey::Part {
                part,
                buffer:
                    LocalBuffer {
                        buffer,
                        split: Some((local, _)),
                    },
            } if part == self.part_of(side) => {
                let slots = entry(&mut self.split_slots[side as usize], buffer as usize);
                entry(slots, local as usize)
            }
            _ => self.slots.entry(BufferUse { side, key }).or_default(),
        };
        let buffers = &mut self.program.buffers;
        *known.get_or_insert_with(|| add_buffer(buffers, BufferUse { side, key }))
    }

    /// The region of `bounds` in an own view. `bounds` spans one index of a
    /// split axis.
    pub fn region(
        &mut self,
        side: Side,
        part: u16,
        buffer: u32,
        own: &OwnView,
        bounds: &IndexBox,
    ) -> Region {
        let slot = self.slot(side, (part, buffer), own, bounds.lead());
        let run = loops_of(bounds, &own.strides, own.dtype.bytes(), &mut self.loops);
        let first = self.program.loops.len() as u32;
        self.program.loops.extend_from_slice(&self.loops);
        Region {
            slot,
            offset: own.offset_of(bounds),
            dtype: own.dtype,
            run,
            loops: (first, self.program.loops.len() as u32),
        }
    }

    /// The region of a whole cell; nothing if it lies in several buffers.
    pub fn region_of_whole(&mut self, side: Side, buffer: u32, cell: &Cell) -> Option<Region> {
        let loops = cell.loops.as_ref()?;
        let key = (self.part_of(side), buffer);
        let slot = self.slot(side, key, &cell.own, cell.bounds.lead());
        let first = self.program.loops.len() as u32;
        self.program.loops.extend_from_slice(loops);
        Some(Region {
            slot,
            offset: cell.offset,
            dtype: cell.own.dtype,
            run: cell.run,
            loops: (first, self.program.loops.len() as u32),
        })
    }

    /// Calls `f` with the boxes of a cell, each in one buffer, and where they
    /// lie.
    pub fn each_region(
        &mut self,
        side: Side,
        buffer: u32,
        cell: &Cell,
        mut f: impl FnMut(&mut Program, IndexBox, Region),
    ) {
        if let Some(region) = self.region_of_whole(side, buffer, cell) {
            return f(&mut self.program, cell.bounds.clone(), region);
        }
        for bounds in split_boxes(&cell.bounds) {
            let region = self.region(side, self.part_of(side), buffer, &cell.own, &bounds);
            f(&mut self.program, bounds, region);
        }
    }

    /// Copies within the rank: all of them belong to the first step.
    pub fn add_locals(&mut self, walk: &Walk<'a>, local: &[u32]) -> Result<()> {
        let inputs = self.inputs;
        for &i in local {
            let item = &walk.items[i as usize];
            let cell = walk.cell_of(item);
            let tensor = &inputs.tables.tensors[item.tensor as usize];
            let (own, part, buffer) =
                holding_view(inputs.source, self.program.rank, tensor, &cell.bounds)?;
            let here = self.part_of(Side::Destination);
            let mut add = |b: IndexBox| {
                let source = self.region(Side::Source, part, buffer, &own, &b);
                let destination = self.region(Side::Destination, here, item.buffer, &cell.own, &b);
                let bytes = b.elements() * cell.own.dtype.bytes();
                self.program.bytes_local += bytes;
                self.program.locals.push(LocalCopy {
                    tensor: TensorIndex(item.tensor),
                    bounds: b,
                    source,
                    destination,
                    bytes,
                });
            };
            match own.split.is_some() || cell.own.split.is_some() {
                true => split_boxes(&cell.bounds).for_each(add),
                false => add(cell.bounds.clone()),
            }
        }
        Ok(())
    }

    /// The rank's part of a layout; 0 where it is described view by view.
    pub fn part_of(&self, side: Side) -> u16 {
        match side {
            Side::Source => self.parts.0,
            Side::Destination => self.parts.1,
        }
    }

    /// Destination padding, where the layout asks for zeros.
    pub fn add_fills(&mut self) {
        let inputs = self.inputs;
        let Some(Place::Part(part, seat)) = inputs.destination.place(self.program.rank) else {
            return;
        };
        if part.padding != Padding::Zero {
            return;
        }
        let tensors = inputs.destination.tensors();
        for tensor in &inputs.tables.tensors {
            for r in tensor.needers.iter().filter(|r| r.part == seat.part) {
                let p = &part.placements[r.placement as usize];
                if part.rule(p).padded != 0 && part.is_on_stage(p, &seat) {
                    self.fill_padding(part, p, &seat, tensors);
                }
            }
        }
    }

    fn fill_padding(&mut self, part: &Part, p: &Placement, seat: &Seat, tensors: &[Tensor]) {
        let rule = part.rule(p);
        let axes = part.local_axes(p, seat, tensors);
        let (offset, strides) = part.storage(p, seat, tensors);
        for (d, axis) in axes.iter().enumerate() {
            if axis.extent <= axis.len() {
                continue;
            }
            // Used on the axes before, padding on this one, all on the rest.
            let slab = IndexBox(
                axes.iter()
                    .enumerate()
                    .map(|(e, a)| match e.cmp(&d) {
                        std::cmp::Ordering::Less => Span::new(0, a.len()),
                        std::cmp::Ordering::Equal => Span::new(a.len(), a.extent),
                        std::cmp::Ordering::Greater => Span::new(0, a.extent),
                    })
                    .collect(),
            );
            if slab.is_empty() {
                continue;
            }
            let own = OwnView {
                lo: axes.iter().map(|_| 0).collect(),
                offset,
                strides: strides.clone(),
                dtype: rule.stored_dtype(&tensors[p.tensor.index()]),
                split: None,
                explicit: None,
            };
            if rule.split.is_some() {
                self.fill_each(seat.part, p.buffer, &axes[0], &own, &slab);
                continue;
            }
            let region = self.region(Side::Destination, seat.part, p.buffer, &own, &slab);
            self.program.fills.push(region);
        }
    }

    /// Padding of a tensor whose axis 0 is stored as one buffer per index: one
    /// fill each. Indices that are padding themselves have no buffer.
    fn fill_each(
        &mut self,
        part: u16,
        buffer: u32,
        indices: &LocalAxis,
        own: &OwnView,
        slab: &IndexBox,
    ) {
        let globals = indices.spans.iter().flat_map(|s| s.lo..s.hi);
        for (local, global) in (0..).zip(globals) {
            let mut one = slab.clone();
            if local < slab.0[0].lo || local >= slab.0[0].hi {
                continue;
            }
            // The region counts its buffer from where the box starts.
            one.0[0] = Span::new(global, global + 1);
            let mut own = own.clone();
            own.lo[0] = global;
            own.split = Some(local as u32);
            let region = self.region(Side::Destination, part, buffer, &own, &one);
            self.program.fills.push(region);
        }
    }

    /// Lays out staging, and closes the program. Messages are in order of step.
    pub fn finish(mut self) -> Program {
        let p = &mut self.program;
        let mut half = 0;
        let mut first = 0u32;
        // Where packed messages lie, by their first piece.
        let mut packed: FxHashMap<u32, u64> = FxHashMap::default();
        let step_count = self.inputs.step_count();
        for step in 0..step_count {
            let (mut at, mut end) = (0, first);
            packed.clear();
            let rest = p.messages[first as usize..].iter_mut();
            for m in rest.take_while(|m| m.step() == step) {
                end += 1;
                if m.is_packed_before {
                    m.staging = packed[&m.pieces.0];
                } else if !m.is_direct {
                    m.staging = at;
                    at = (at + m.bytes).next_multiple_of(STAGING_ALIGN_BYTES);
                    if m.direction == Direction::Send {
                        packed.insert(m.pieces.0, m.staging);
                    }
                }
            }
            half = half.max(at);
            p.steps.push(Step {
                messages: (first, end),
                locals: match step {
                    0 => (0, p.locals.len() as u32),
                    _ => (0, 0),
                },
                staging_bytes: at,
            });
            first = end;
        }
        // Two steps are in flight: odd ones use the second half.
        let odd = p.steps.iter().skip(1).step_by(2);
        for step in odd.filter(|s| s.staging_bytes > 0) {
            let (first, end) = step.messages;
            let messages = &mut p.messages[first as usize..end as usize];
            for m in messages.iter_mut().filter(|m| !m.is_direct) {
                m.staging += half;
            }
        }
        p.pieces.shrink_to_fit();
        p.staging_bytes = half * u64::from(step_count.min(2));
        p.relay_bytes = self.relay_half_bytes * u64::from(self.inputs.decision.bucket_count.min(2));
        self.program
    }
}

/// Room for the slots of the buffers of the rank's part.
fn part_slots(layout: &Layout, rank: Rank) -> Vec<Option<BufferSlot>> {
    let part = layout.part_of(rank).map(|p| &layout.parts()[p as usize]);
    vec![None; part.map_or(0, |p| p.buffers.len())]
}

fn parts_of(inputs: Inputs<'_>, rank: Rank) -> (u16, u16) {
    let part = |layout: &Layout| layout.part_of(rank).unwrap_or_default();
    (part(inputs.source), part(inputs.destination))
}

/// The buffer that holds what lies at `lead` on axis 0, which may be split.
fn key_of(part: u16, buffer: u32, own: &OwnView, lead: u64) -> BufferKey {
    if let Some(buffer) = own.explicit {
        return BufferKey::Explicit { buffer };
    }
    let split = own
        .split
        .map(|local| (local + (lead - own.lo[0]) as u32, lead as u32));
    BufferKey::Part {
        part,
        buffer: LocalBuffer { buffer, split },
    }
}

fn add_buffer(buffers: &mut Vec<BufferUse>, used: BufferUse) -> BufferSlot {
    buffers.push(used);
    BufferSlot(buffers.len() as u32 - 1)
}

/// The entry of a table that grows as far as it is asked for.
fn entry<T: Default>(table: &mut Vec<T>, index: usize) -> &mut T {
    if table.len() <= index {
        table.resize_with(index + 1, T::default);
    }
    &mut table[index]
}

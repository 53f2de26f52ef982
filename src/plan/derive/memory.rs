//! What a rank stages, without its program.
//!
//! Bucket counts are found by asking many ranks for their memory, again and
//! again. Their routes are found as for a program; what is left out is all that
//! only a program needs: pieces, regions, messages, hashes.
//!
//! ```text
//!   routes ─► legs ─┬─ contiguous here: nothing is staged
//!                   ├─ runs of the other end only: staged one by one
//!                   ├─ the rest of a bucket: one packed message
//!                   └─ what another rank gets as well: staged for that one
//! ```

use super::builder::STAGING_ALIGN_BYTES;
use super::ends::{Ends, Form};
use super::legs::{Leg, Turn};
use super::route::{Portion, Routes, StreamKey, There};
use super::stream::PACKED_ALIGN_BYTES;
use super::{Inputs, Walks, routes, visits};
use crate::error::Result;
use crate::plan::piece::flat_boxes;
use crate::rank::Rank;
use std::ops::Range;

/// Memory of a rank's program beside bound buffers, and what it moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub staging_bytes: u64,
    pub relay_bytes: u64,
    pub moved_bytes: u64,
}

impl Memory {
    pub fn bytes(&self) -> u64 {
        self.staging_bytes + self.relay_bytes
    }
}

/// The memory that the program of `rank` has.
pub fn memory<'a>(inputs: Inputs<'a>, walks: &Walks<'a>, rank: Rank) -> Result<Memory> {
    let walks = visits(inputs, walks, rank)?;
    let routes = routes(inputs, rank, &walks);
    let mut staged = Staged::new(&routes);
    let legs = routes.legs();
    let turns = routes.turns(&legs);
    let mut moved = vec![0; turns.len()];
    for Turn { stream, twin } in turns {
        moved[stream] = match twin {
            // What that one packs is sent again.
            Some(twin) => moved[twin],
            None => staged.add(&routes.streams[stream], legs.of(stream)),
        };
    }
    let half = staged.by_step.iter().copied().max().unwrap_or(0);
    let halves = |count: u32| u64::from(count.min(2));
    Ok(Memory {
        staging_bytes: half * halves(inputs.step_count()),
        relay_bytes: routes.relay_bytes() * halves(inputs.decision.bucket_count),
        moved_bytes: moved.iter().sum(),
    })
}

/// What is staged in each step.
struct Staged<'r, 'w, 'a> {
    routes: &'r Routes<'w, 'a>,
    by_step: Vec<u64>,
    /// Of the stream that is looked at, by bucket.
    packed: Vec<Packed>,
    /// By stretch, what its runs come to for legs to ranks that store it in one
    /// way; those are the same for all of them.
    known: Vec<Option<(There, u64)>>,
}

impl<'r, 'w, 'a> Staged<'r, 'w, 'a> {
    fn new(routes: &'r Routes<'w, 'a>) -> Staged<'r, 'w, 'a> {
        let inputs = routes.inputs;
        Staged {
            routes,
            by_step: vec![0; inputs.step_count() as usize],
            packed: vec![Packed::default(); inputs.decision.bucket_count as usize],
            known: vec![None; routes.stretches.len()],
        }
    }

    /// Adds a stream; returns its bytes.
    fn add(&mut self, key: &StreamKey, legs: &[Leg]) -> u64 {
        let mut bytes = 0;
        for leg in legs {
            bytes += self.routes.stretches[leg.stretch as usize].bytes();
            self.add_leg(key, leg);
        }
        let stage = key.stage as usize;
        for (bucket, packed) in self.packed.iter_mut().enumerate() {
            self.by_step[bucket + stage] += std::mem::take(packed).staged_bytes();
        }
        bytes
    }

    fn add_leg(&mut self, key: &StreamKey, leg: &Leg) {
        let routes = self.routes;
        let s = &routes.stretches[leg.stretch as usize];
        let portion = routes.portion(s);
        let step = (s.bucket + key.stage) as usize;
        if let Some((there, staged)) = self.known[leg.stretch as usize]
            && there == leg.there
            && portion.cell.is_alike(there)
        {
            self.by_step[step] += staged;
            return;
        }
        let direct_min = routes.inputs.decision.direct_bytes_min;
        let ends = Ends::of(&portion, leg.there, key.peer);
        let element = ends.wire.bytes();
        let mut staged = 0;
        let mut is_packed = false;
        let elements = ends.wire.elements_in(s.from)..ends.wire.elements_in(s.to);
        ends.each_part(elements, direct_min, |part, form| match form {
            Form::Alone { is_run: true } => {}
            Form::Alone { is_run: false } => {
                let bytes = (part.end - part.start) * element;
                staged += bytes.next_multiple_of(STAGING_ALIGN_BYTES);
            }
            Form::Packed => {
                is_packed = true;
                self.add_packed(&portion, &ends, part);
            }
        });
        self.by_step[step] += staged;
        if !is_packed {
            self.known[leg.stretch as usize] = Some((leg.there, staged));
        }
    }

    /// Adds the boxes of a part to the packed message of their bucket.
    fn add_packed(&mut self, portion: &Portion<'_, '_>, ends: &Ends, part: Range<u64>) {
        let packed = &mut self.packed[portion.stretch.bucket as usize];
        let mut at = part.start;
        flat_boxes(&portion.cell.bounds, part.start, part.end, &mut |b| {
            let elements = at..at + b.elements();
            at = elements.end;
            let bytes = (elements.end - elements.start) * ends.wire.bytes();
            packed.add(bytes, ends.is_run(&elements));
        });
    }
}

/// The packed message of a bucket.
#[derive(Clone, Copy, Default)]
struct Packed {
    boxes: u64,
    /// True if the last box is one run at our end.
    is_last_run: bool,
    aligned_bytes: u64,
    /// Bytes of the last box.
    last_bytes: u64,
}

impl Packed {
    /// Adds a box, which comes after all others.
    fn add(&mut self, bytes: u64, is_run: bool) {
        self.is_last_run = is_run;
        self.boxes += 1;
        self.aligned_bytes += bytes.next_multiple_of(PACKED_ALIGN_BYTES);
        self.last_bytes = bytes;
    }

    /// Nothing if it is a single run, which travels where it is.
    fn staged_bytes(&self) -> u64 {
        if self.boxes == 0 || (self.boxes == 1 && self.is_last_run) {
            return 0;
        }
        let padding = self.last_bytes.next_multiple_of(PACKED_ALIGN_BYTES) - self.last_bytes;
        (self.aligned_bytes - padding).next_multiple_of(STAGING_ALIGN_BYTES)
    }
}

//! What is laid out once: a stretch for all ranks that it is sent to, and whole
//! cells for all tensors that are alike.
//!
//! ```text
//!   layer 0, up_proj, to 8    pieces at 0 and 4096 of buffer 5, a message each
//!   layer 0, up_proj, to 9    messages of the same pieces
//!   layer 1, up_proj, to 8    pieces at 0 and 4096 of buffer 12
//! ```
//!
//! It must not matter which rank is at the other end: all that may be there
//! store it in one way.

use super::builder::Builder;
use super::legs::Leg;
use super::route::{Portion, There};
use super::stream::{Flow, PACKED_ALIGN_BYTES};
use crate::layout::tensor::TensorIndex;
use crate::plan::program::{Piece, Region};

/// The pieces of a stretch, each a message, for legs that end in one way.
#[derive(Clone, Copy, Default)]
struct LaidOut {
    there: Option<There>,
    /// Range in the program's.
    pieces: (u32, u32),
}

/// How a whole cell travels, for legs that end in one way.
#[derive(Clone, Copy)]
struct Pattern {
    there: There,
    /// Range in [`Patterns::pieces`].
    pieces: (u32, u32),
    /// One part of a packed message; else each piece is a message.
    is_packed: bool,
}

/// What has been laid out.
#[derive(Default)]
pub struct Patterns {
    /// By stretch; nothing where none is sent.
    laid_out: Vec<LaidOut>,
    /// By box of the program.
    whole: Vec<Option<Pattern>>,
    pieces: Vec<Piece>,
}

impl Patterns {
    pub fn new(sent_count: usize, box_count: usize) -> Patterns {
        Patterns {
            laid_out: vec![LaidOut::default(); sent_count],
            whole: vec![None; box_count],
            pieces: Vec::new(),
        }
    }

    fn add(&mut self, within: u32, there: There, pieces: &[Piece], is_packed: bool) {
        let first = self.pieces.len() as u32;
        self.pieces.extend_from_slice(pieces);
        self.whole[within as usize] = Some(Pattern {
            there,
            pieces: (first, self.pieces.len() as u32),
            is_packed,
        });
    }
}

impl<'a> Builder<'a> {
    /// Lays out a leg as it was before, if it was.
    pub fn lay_out_once(&mut self, flow: &mut Flow<'_, 'a>, leg: &Leg, portion: &Portion<'_, 'a>) {
        if flow.is_sent() {
            let laid_out = self.patterns.laid_out[leg.stretch as usize];
            if laid_out.there == Some(leg.there) {
                return self.add_each(flow, laid_out.pieces);
            }
        }
        let is_whole = portion.is_whole_buffer();
        let pattern = match is_whole {
            true => self.patterns.whole[self.box_of(portion) as usize],
            false => None,
        };
        match pattern.filter(|p| p.there == leg.there) {
            Some(pattern) => self.repeat_pattern(flow, leg, portion, pattern),
            None => self.note_pattern(flow, leg, portion, is_whole),
        }
    }

    /// Lays out a whole cell as that of another tensor.
    fn repeat_pattern(
        &mut self,
        flow: &mut Flow<'_, 'a>,
        leg: &Leg,
        portion: &Portion<'_, 'a>,
        pattern: Pattern,
    ) {
        let slot = self.slot_of(portion, portion.cell.bounds.lead());
        let piece = |like: &Piece, at| Piece {
            tensor: TensorIndex(portion.item.tensor),
            region: Region {
                slot,
                ..like.region
            },
            at,
            ..*like
        };
        let (first, end) = pattern.pieces;
        let likes = &self.patterns.pieces[first as usize..end as usize];
        if pattern.is_packed {
            for like in likes {
                let at = flow.packed_bytes.next_multiple_of(PACKED_ALIGN_BYTES);
                flow.packed.push(piece(like, at));
                flow.packed_bytes = at + like.bytes;
            }
            return;
        }
        let program = &mut self.program;
        let first = program.pieces.len() as u32;
        for like in likes {
            let at = program.pieces.len() as u32;
            program.pieces.push(piece(like, 0));
            flow.add_message(program, (at, at + 1), like.bytes, like.is_direct());
        }
        let pieces = (first, program.pieces.len() as u32);
        self.note_pieces(flow, leg, pieces);
    }

    /// Lays out a leg, and notes how.
    fn note_pattern(
        &mut self,
        flow: &mut Flow<'_, 'a>,
        leg: &Leg,
        portion: &Portion<'_, 'a>,
        is_whole: bool,
    ) {
        let first = self.program.pieces.len();
        let before = (flow.packed.len(), self.program.messages.len());
        self.lay_out(flow, leg.there, portion);
        let within = self.box_of(portion);
        let pieces = &self.program.pieces[first..];
        let is_one_each = self.program.messages.len() - before.1 == pieces.len();
        match (pieces, &flow.packed[before.0..]) {
            (_, []) if is_one_each => {
                if is_whole {
                    self.patterns.add(within, leg.there, pieces, false);
                }
                let pieces = (first as u32, self.program.pieces.len() as u32);
                self.note_pieces(flow, leg, pieces);
            }
            ([], packed @ [_]) if is_whole => {
                self.patterns.add(within, leg.there, packed, true);
            }
            _ => {}
        }
    }

    /// Notes the pieces of a stretch that is sent: it is received but once.
    fn note_pieces(&mut self, flow: &Flow<'_, 'a>, leg: &Leg, pieces: (u32, u32)) {
        if flow.is_sent() {
            self.patterns.laid_out[leg.stretch as usize] = LaidOut {
                there: Some(leg.there),
                pieces,
            };
        }
    }

    /// A message of each of some pieces.
    fn add_each(&mut self, flow: &mut Flow<'_, 'a>, pieces: (u32, u32)) {
        for piece in pieces.0..pieces.1 {
            let bytes = self.program.pieces[piece as usize].bytes;
            self.add_message(flow, (piece, piece + 1), bytes);
        }
    }
}

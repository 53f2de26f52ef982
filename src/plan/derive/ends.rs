//! How the two ends of a leg store it, which decides how it travels.
//!
//! ```text
//!   runs of 4 MB here, of 32 MB there       messages of 4 MB: in place at both
//!   runs of 4 MB here, rows of 1 KB there   messages of 4 MB: in place here,
//!                                           out of staging there
//!   rows of 1 KB here, rows of 2 KB there   part of a packed message
//! ```
//!
//! Both ends see the same two, so both find the same messages.

use super::cell::{Cell, Needers, run_elements};
use super::route::{Here, Portion, There};
use super::view::{holding_view, needing_view};
use super::walk::{Item, Walk};
use crate::layout::dtype::Dtype;
use crate::plan::program::Direction;
use crate::rank::Rank;
use std::ops::Range;

/// More runs of one end than so many do not travel one by one.
const RUN_COUNT_MAX: u64 = 1024;

/// How a part of a stretch travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a message of its own, which may be a single run at our end.
    Alone { is_run: bool },
    /// With others.
    Packed,
}

/// Elements of the contiguous runs of a cell at the two ends of a leg, those of
/// one end whole runs of the other; 0 where conversion leaves none.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    here: u64,
    there: u64,
    /// Dtype on the wire.
    pub wire: Dtype,
}

impl Ends {
    pub fn of(portion: &Portion<'_, '_>, there: There, peer: Rank) -> Ends {
        let Portion {
            walk, item, cell, ..
        } = *portion;
        let here = portion.stretch.here;
        let wire = cell.wire_of(here, there);
        let own = match cell.own.dtype == wire {
            true => cell.run,
            false => 0,
        };
        Ends {
            here: match here {
                Here::Buffer => own,
                Here::Relay(_) => u64::MAX,
            },
            there: match there {
                There::Across if cell.is_alike_across => cell.run_across,
                There::Across => walk.run_across(item, cell, peer),
                // In front of who relays is a holder, which the walk is of.
                There::Alike if walk.direction == Direction::Send => own,
                There::Alike if cell.are_needers_alike => own,
                There::Alike => walk.run_of_needer(item, cell, wire, peer),
                There::Relay => u64::MAX,
            },
            wire,
        }
    }

    /// Cuts elements of the cell where runs end: the shorter ones of the two
    /// ends if these have `bytes_min` and are not too many, else the longer ones.
    /// Parts of `bytes_min` at least travel by themselves.
    pub fn each_part(
        &self,
        elements: Range<u64>,
        bytes_min: u64,
        mut f: impl FnMut(Range<u64>, Form),
    ) {
        let elements_min = self
            .wire
            .elements_in(bytes_min.saturating_add(self.wire.bytes() - 1));
        let count = elements.end - elements.start;
        let runs = [self.here.min(self.there), self.here.max(self.there)];
        let are_few = |run: u64| count <= run || count / run <= RUN_COUNT_MAX;
        let are_long = |run: &u64| *run >= elements_min && are_few(*run);
        let Some(run) = runs.into_iter().find(are_long) else {
            return f(elements, Form::Packed);
        };
        // Our runs are these, or longer ones; or else shorter than any part.
        let is_run = self.here >= run;
        let mut from = elements.start;
        while from < elements.end {
            let end = match elements.end <= run {
                true => elements.end,
                false => (from / run + 1).saturating_mul(run).min(elements.end),
            };
            let form = match end - from >= elements_min {
                true => Form::Alone { is_run },
                false => Form::Packed,
            };
            f(from..end, form);
            from = end;
        }
    }

    /// True if some elements of the cell, one at least, are one run at our end.
    pub fn is_run(&self, elements: &Range<u64>) -> bool {
        let run = self.here;
        run > 0 && elements.start / run == (elements.end - 1) / run
    }
}

impl<'a> Walk<'a> {
    /// Elements of a run at a peer across.
    fn run_across(&self, item: &Item, cell: &Cell, peer: Rank) -> u64 {
        if self.direction == Direction::Send {
            return self.run_of_needer(item, cell, cell.wire, peer);
        }
        // Several kinds of holders: the peer's own first view tells.
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        match holding_view(self.inputs.source, peer, tensor, &cell.bounds) {
            Ok((own, _, _)) => run_elements(&cell.bounds, cell.wire, &own.strides, own.dtype),
            Err(_) => cell.run_across,
        }
    }

    /// Elements of a run at a rank that needs the cell as part of the item's
    /// demand.
    fn run_of_needer(&self, item: &Item, cell: &Cell, wire: Dtype, needer: Rank) -> u64 {
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        let placed = match &cell.needers {
            Needers::Slice(s) => tensor.needers.get(s.placement as usize),
            Needers::Listed(_) => None,
        };
        let view = placed.and_then(|r| needing_view(self.inputs.destination, *r, needer));
        let view = view.as_ref().or(cell.peers.first());
        view.map_or(0, |v| run_elements(&cell.bounds, wire, &v.strides, v.dtype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of at least 8 bytes, as `(from, to, form)`.
    fn parts(here: u64, there: u64, elements: Range<u64>) -> Vec<(u64, u64, Form)> {
        let wire = Dtype::BF16;
        let mut all = Vec::new();
        Ends { here, there, wire }.each_part(elements, 8, |part, form| {
            all.push((part.start, part.end, form));
        });
        all
    }

    const RUN: Form = Form::Alone { is_run: true };
    const SPREAD: Form = Form::Alone { is_run: false };

    #[test]
    fn runs_of_one_end_or_of_both_travel_by_themselves() {
        // Of both: the shorter ones.
        let runs = [(4, 8, RUN), (8, 12, RUN), (12, 14, Form::Packed)];
        assert_eq!(parts(4, 16, 4..14), runs);
        assert_eq!(parts(16, 4, 4..14), runs);
        assert_eq!(
            parts(8, 2, 4..20),
            [(4, 8, RUN), (8, 16, RUN), (16, 20, RUN)]
        );
        assert_eq!(parts(2, 16, 4..20), [(4, 16, SPREAD), (16, 20, SPREAD)]);
        assert_eq!(parts(4, 16, 4..8), [(4, 8, RUN)]);
        assert_eq!(parts(u64::MAX, 0, 4..20), [(4, 20, RUN)]);
    }

    #[test]
    fn what_is_short_is_packed() {
        assert_eq!(
            parts(8, 2, 6..17),
            [(6, 8, Form::Packed), (8, 16, RUN), (16, 17, Form::Packed)]
        );
        // Very many runs stay together, or in longer ones; so do short ones.
        assert_eq!(parts(4, 0, 0..4 << 20), [(0, 4 << 20, Form::Packed)]);
        assert_eq!(parts(4, 4 << 20, 0..4 << 20), [(0, 4 << 20, SPREAD)]);
        assert_eq!(parts(2, 2, 4..20), [(4, 20, Form::Packed)]);
        assert_eq!(parts(0, 0, 4..20), [(4, 20, Form::Packed)]);
    }
}

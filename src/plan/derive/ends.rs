//! How the two ends of a leg store it, which decides how it travels.
//!
//! ```text
//!   runs of 4 MB here, rows of 1 KB there   messages of 4 MB: in place here,
//!                                           out of staging there
//!   rows of 1 KB here, rows of 2 KB there   part of a packed message
//! ```
//!
//! Both ends see the same two, so both find the same messages.

use super::cell::run_axis;
use super::route::{Here, Stretch, There};
use super::view::{PeerView, holding_view, needing_view};
use super::visit::Visit;
use super::walk::{Item, Walk};
use crate::layout::dtype::Dtype;
use crate::layout::tensor::IndexBox;
use crate::layout::view::Strides;
use crate::plan::piece::elements_from;
use crate::plan::program::Direction;
use crate::rank::Rank;
use std::borrow::Cow;

/// How a box of a stretch travels.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// As runs that begin at axis `first`, each a message of its own. They are
    /// contiguous at the other end, or at ours.
    Runs { first: usize, are_ours: bool },
    /// With others; at our end it may be a single run.
    Packed { is_run: bool },
}

/// The two ends of a leg.
pub struct Ends<'w> {
    here: End<'w>,
    there: End<'w>,
    /// Dtype on the wire.
    wire: Dtype,
}

impl<'w> Ends<'w> {
    pub fn of(walks: &'w [Visit<'_>], s: &Stretch, there: There, peer: Rank) -> Ends<'w> {
        let walk = &walks[s.walk as usize];
        let item = &walk.items[s.item as usize];
        let cell = walk.cell_of(item);
        let dense = || End::new(&cell.dense, cell.wire);
        let own = || End::new(&cell.own.strides, cell.own.dtype);
        Ends {
            here: match s.here {
                Here::Buffer => own(),
                Here::Relay(_) => dense(),
            },
            there: match there {
                There::Across => walk.peer_view(item, peer),
                There::Alike if cell.are_needers_alike => own(),
                There::Alike => walk.view_of_needer(item, peer),
                There::Relay => dense(),
            },
            wire: cell.wire_of(s.here, there),
        }
    }

    /// How a box travels, if runs of `direct_bytes_min` travel by themselves.
    pub fn form(&self, bounds: &IndexBox, direct_bytes_min: u64) -> Form {
        let ours = self.here.run_axis(bounds, self.wire);
        let first = ours.min(self.there.run_axis(bounds, self.wire));
        let bytes = |first| elements_from(bounds, first) * self.wire.bytes();
        match first <= bounds.0.len() && bytes(first) >= direct_bytes_min {
            true => Form::Runs {
                first,
                are_ours: ours == first,
            },
            false => Form::Packed { is_run: ours == 0 },
        }
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

//! Walks as ranks take them. Ranks that differ in nothing that cuts or stages a
//! tensor walk over the same boxes; each has a place of its own among those who
//! hold or need them:
//!
//! ```text
//!   ranks 8, 16, 24 ..   the same replica's place, other replicas
//!   walk                 cells, groups, items: one for all of them
//!   visits               8 is needer 0 of group 5, 16 is needer 1, ..
//! ```
//!
//! Whoever asks for many programs keeps the walks; for one there is nothing to
//! share.

use super::Inputs;
use super::group::Group;
use super::walk::Walk;
use crate::error::Result;
use crate::layout::Place;
use crate::layout::mesh::Coords;
use crate::plan::program::Direction;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Walks that are kept at a time, at most.
const KEPT_COUNT_MAX: usize = 128;

/// A walk as one rank takes it.
pub struct Visit<'a> {
    walk: Arc<Walk<'a>>,
    pub rank: Rank,
    /// By group: which holder or needer the rank is; `None` when receiving: it
    /// holds it too.
    own: SmallVec<[Option<u64>; 32]>,
}

impl<'a> Deref for Visit<'a> {
    type Target = Walk<'a>;

    fn deref(&self) -> &Walk<'a> {
        &self.walk
    }
}

impl<'a> Visit<'a> {
    pub fn new(walk: Arc<Walk<'a>>, rank: Rank) -> Visit<'a> {
        let inputs = walk.inputs;
        let own = |g: &Group| match walk.direction {
            Direction::Receive => g.needers.index_of(inputs.destination, rank),
            Direction::Send => g.holders.index_of(inputs.source, rank),
        };
        let own = walk.groups.iter().map(own).collect();
        Visit { walk, rank, own }
    }

    /// All groups, with which holder or needer the rank is.
    pub fn places(&self) -> impl Iterator<Item = (&Group, Option<u64>)> {
        self.walk.groups.iter().zip(self.own.iter().copied())
    }

    /// Which holder or needer of a group the rank is.
    pub fn own(&self, group: u32) -> Option<u64> {
        self.own[group as usize]
    }
}

/// What ranks have in common that share a walk: direction, part, and in each
/// mesh the coordinates on axes that cut or stage, the others 0.
#[derive(PartialEq, Eq, Hash)]
struct Seats {
    direction: Direction,
    part: u16,
    coords: SmallVec<[Coords; 2]>,
}

/// Where walks come from. Those that are kept are of one plan.
pub struct Walks<'a> {
    /// Those kept for ranks that share them, if any are.
    kept: Option<Mutex<FxHashMap<Seats, Arc<Walk<'a>>>>>,
}

impl<'a> Walks<'a> {
    /// Every rank has its own.
    pub fn alone() -> Walks<'a> {
        Walks { kept: None }
    }

    /// Ranks share them where they can.
    pub fn shared() -> Walks<'a> {
        let kept = Some(Mutex::default());
        Walks { kept }
    }

    /// The walk of a rank over what it needs, or over what it holds.
    pub fn visit(&self, inputs: Inputs<'a>, rank: Rank, direction: Direction) -> Result<Visit<'a>> {
        let make = || Walk::over(inputs, rank, direction).map(Arc::new);
        let Some(kept) = &self.kept else {
            return Ok(Visit::new(make()?, rank));
        };
        let Some(seats) = seats(inputs, rank, direction) else {
            return Ok(Visit::new(make()?, rank));
        };
        let locked = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = locked().get(&seats).cloned();
        if let Some(walk) = known {
            return Ok(Visit::new(walk, rank));
        }
        // Made without the lock: another thread may make the same.
        let walk = make()?;
        let mut kept = locked();
        if kept.len() >= KEPT_COUNT_MAX {
            kept.clear();
        }
        kept.insert(seats, walk.clone());
        Ok(Visit::new(walk, rank))
    }
}

/// `None` for a rank described view by view, which shares its walk with nobody.
fn seats(inputs: Inputs<'_>, rank: Rank, direction: Direction) -> Option<Seats> {
    let layout = match direction {
        Direction::Receive => inputs.destination,
        Direction::Send => inputs.source,
    };
    let Some(Place::Part(part, mut seat)) = layout.place(rank) else {
        return None;
    };
    for (coords, used) in seat.coords.iter_mut().zip(part.axes_in_use()) {
        for (axis, at) in coords.iter_mut().enumerate() {
            *at *= u32::from(used >> axis & 1);
        }
    }
    Some(Seats {
        direction,
        part: seat.part,
        coords: seat.coords,
    })
}

//! Named axes over ranks, and sets of ranks that are never enumerated.
//!
//! A mesh is an array of ranks in row-major order, outermost axis first. A
//! *slice* of it fixes a range of coordinates per axis; the ranks that hold
//! one shard are such a slice (the coordinates of the cutting axes fixed, all
//! others free), so "the 17th holder" and "which holder am I" are mixed-radix
//! arithmetic, at any number of ranks.

use crate::error::{Error, Result};
use crate::limits::{MESH_AXIS_COUNT_MAX, NAME_BYTES_MAX, RANK_COUNT_MAX};
use crate::rank::Rank;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// The ranks of one part of a layout, in mesh order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RankList {
    /// `first, first + 1, ...`
    Range { first: u32, count: u32 },
    /// Any ranks, each once.
    List(Vec<Rank>),
}

impl RankList {
    pub fn count(&self) -> u32 {
        match self {
            RankList::Range { count, .. } => *count,
            RankList::List(v) => v.len() as u32,
        }
    }

    /// The lowest rank.
    pub fn lowest(&self) -> Option<Rank> {
        match self {
            RankList::Range { first, count } => (*count > 0).then_some(Rank(*first)),
            RankList::List(v) => v.iter().min().copied(),
        }
    }

    /// The rank at mesh position `index`.
    pub fn rank(&self, index: u32) -> Rank {
        match self {
            RankList::Range { first, .. } => Rank(first + index),
            RankList::List(v) => v[index as usize],
        }
    }

    /// The mesh position of `rank`. Linear in a `List`: cache it.
    pub fn position(&self, rank: Rank) -> Option<u32> {
        match self {
            RankList::Range { first, count } => {
                let i = rank.0.checked_sub(*first)?;
                (i < *count).then_some(i)
            }
            RankList::List(v) => v.iter().position(|r| *r == rank).map(|i| i as u32),
        }
    }

    /// True if mesh order is rank order.
    pub fn is_ascending(&self) -> bool {
        match self {
            RankList::Range { .. } => true,
            RankList::List(v) => v.windows(2).all(|w| w[0] < w[1]),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Rank> + '_ {
        (0..self.count()).map(|i| self.rank(i))
    }

    /// The same ranks, as a range where they are one.
    pub fn canonical(self) -> RankList {
        match self {
            RankList::List(v) if !v.is_empty() && v.windows(2).all(|w| w[0].0 + 1 == w[1].0) => {
                RankList::Range {
                    first: v[0].0,
                    count: v.len() as u32,
                }
            }
            other => other,
        }
    }

    pub fn validate(&self) -> Result<()> {
        let count = match self {
            RankList::Range { first, count } => u64::from(*first) + u64::from(*count),
            RankList::List(v) => v.iter().map(|r| u64::from(r.0) + 1).max().unwrap_or(0),
        };
        if self.count() == 0 {
            return Err(Error::layout("a list of ranks is empty"));
        }
        if count > u64::from(RANK_COUNT_MAX) {
            return Err(Error::limit(format!(
                "rank {} is out of range; ranks are 0 to {}",
                count - 1,
                RANK_COUNT_MAX - 1
            )));
        }
        if let RankList::List(v) = self {
            let mut sorted = v.clone();
            sorted.sort_unstable();
            if let Some(w) = sorted.windows(2).find(|w| w[0] == w[1]) {
                return Err(Error::layout(format!("rank {} is listed twice", w[0])));
            }
        }
        Ok(())
    }
}

/// One named axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshAxis {
    pub name: String,
    pub size: u32,
}

/// Named axes, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    pub name: String,
    pub axes: Vec<MeshAxis>,
}

/// One coordinate per axis.
pub type Coords = SmallVec<[u32; 8]>;

impl Mesh {
    pub fn new(name: impl Into<String>, axes: &[(&str, u32)]) -> Mesh {
        Mesh {
            name: name.into(),
            axes: axes
                .iter()
                .map(|&(name, size)| MeshAxis {
                    name: name.to_string(),
                    size,
                })
                .collect(),
        }
    }

    /// Number of positions; saturates, `validate` refuses too many.
    pub fn size(&self) -> u64 {
        self.axes
            .iter()
            .fold(1u64, |a, x| a.saturating_mul(u64::from(x.size)))
    }

    pub fn axis(&self, name: &str) -> Option<u8> {
        self.axes
            .iter()
            .position(|a| a.name == name)
            .map(|i| i as u8)
    }

    /// The coordinates of a position.
    pub fn coords(&self, position: u32) -> Coords {
        let mut rest = position;
        let mut c: Coords = self.axes.iter().map(|_| 0).collect();
        for (i, a) in self.axes.iter().enumerate().rev() {
            c[i] = rest % a.size;
            rest /= a.size;
        }
        c
    }

    /// Checks names and sizes of the axes.
    pub fn validate_axes(&self) -> Result<()> {
        let name = &self.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::limit(format!(
                "a mesh name has {} bytes; 1 to {NAME_BYTES_MAX} are allowed",
                name.len()
            )));
        }
        if self.axes.len() > MESH_AXIS_COUNT_MAX {
            return Err(Error::limit(format!(
                "mesh \"{name}\" has {} axes; at most {MESH_AXIS_COUNT_MAX} are allowed",
                self.axes.len()
            )));
        }
        for (i, a) in self.axes.iter().enumerate() {
            if a.size == 0 || a.name.is_empty() || a.name.len() > NAME_BYTES_MAX {
                return Err(Error::layout(format!(
                    "mesh \"{name}\": axis \"{}\" has size {}; names are not empty and sizes are at least 1",
                    a.name, a.size
                )));
            }
            if self.axes[..i].iter().any(|b| b.name == a.name) {
                return Err(Error::layout(format!(
                    "mesh \"{name}\" has two axes \"{}\"",
                    a.name
                )));
            }
        }
        if self.size() > u64::from(RANK_COUNT_MAX) {
            return Err(Error::limit(format!(
                "mesh \"{name}\" has {} positions ({self}); at most {RANK_COUNT_MAX} are allowed",
                self.size()
            )));
        }
        Ok(())
    }

    /// Checks names and sizes, and that the mesh covers `ranks` ranks.
    pub fn validate(&self, ranks: u32) -> Result<()> {
        self.validate_axes()?;
        if self.size() == u64::from(ranks) {
            return Ok(());
        }
        Err(Error::layout(format!(
            "mesh \"{}\" has {} positions ({self}) for {ranks} ranks",
            self.name,
            self.size()
        )))
    }
}

impl std::fmt::Display for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, a) in self.axes.iter().enumerate() {
            let by = if i > 0 { " x " } else { "" };
            write!(f, "{by}{} {}", a.name, a.size)?;
        }
        Ok(())
    }
}

/// Ranges of coordinates, one per axis of one mesh of one part.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MeshSlice {
    pub part: u16,
    pub mesh: u16,
    pub ranges: SmallVec<[(u32, u32); 8]>,
}

impl Clone for MeshSlice {
    /// Ranges as one copy: the derived way goes range by range.
    fn clone(&self) -> MeshSlice {
        MeshSlice {
            ranges: SmallVec::from_slice(&self.ranges),
            ..*self
        }
    }
}

impl MeshSlice {
    /// Number of positions in the slice.
    pub fn len(&self) -> u64 {
        self.ranges
            .iter()
            .map(|&(lo, hi)| u64::from(hi - lo))
            .product()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.iter().any(|&(lo, hi)| hi <= lo)
    }

    /// The mesh position of the `i`-th member, ascending.
    pub fn nth(&self, mesh: &Mesh, i: u64) -> u32 {
        let mut rest = i;
        let mut position = 0u64;
        let mut weight = 1u64;
        for (&(lo, hi), axis) in self.ranges.iter().zip(&mesh.axes).rev() {
            let width = u64::from(hi - lo);
            position += (u64::from(lo) + rest % width) * weight;
            rest /= width;
            weight *= u64::from(axis.size);
        }
        position as u32
    }

    /// Which member the position with these coordinates is, if it is one.
    pub fn index_of(&self, coords: &[u32]) -> Option<u64> {
        let mut index = 0u64;
        for (&(lo, hi), &c) in self.ranges.iter().zip(coords) {
            if c < lo || c >= hi {
                return None;
            }
            index = index * u64::from(hi - lo) + u64::from(c - lo);
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_counts_its_members_in_ascending_order() {
        let mesh = Mesh::new("m", &[("pp", 3), ("dp", 4), ("tp", 2)]);
        let slice = MeshSlice {
            part: 0,
            mesh: 0,
            ranges: [(1, 2), (0, 4), (1, 2)].into_iter().collect(),
        };
        let got: Vec<u32> = (0..slice.len()).map(|i| slice.nth(&mesh, i)).collect();
        assert_eq!(got, [9, 11, 13, 15]);
        for p in 0..24 {
            let want = got.iter().position(|&q| q == p).map(|i| i as u64);
            assert_eq!(slice.index_of(&mesh.coords(p)), want, "position {p}");
        }
    }

    #[test]
    fn a_mesh_that_does_not_cover_its_ranks_is_refused() {
        let e = Mesh::new("dense", &[("tp", 2), ("dp", 3)])
            .validate(8)
            .unwrap_err();
        assert!(e.message.contains("\"dense\" has 6 positions"), "{e}");
    }
}

//! Sets of ranks on a line: who holds, who needs, in which order.
//!
//! Sets are compared and counted in closed form where they are slices of a
//! mesh; only odd ones (explicit views, ranks on both sides, second copies on
//! another stage) are listed.

use crate::layout::Layout;
use crate::layout::mesh::MeshSlice;
use crate::rank::Rank;

/// Ranks in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RankSet {
    Slice(MeshSlice),
    List(Vec<Rank>),
}

impl RankSet {
    /// The union of slices of `layout`, and of listed ranks, less duplicates.
    pub fn union(layout: &Layout, slices: &[MeshSlice], listed: &[Rank]) -> RankSet {
        if let ([one], []) = (slices, listed)
            && layout.parts()[one.part as usize].ranks.is_ascending()
        {
            return RankSet::Slice(one.clone());
        }
        let mut all = listed.to_vec();
        for s in slices {
            let part = &layout.parts()[s.part as usize];
            let mesh = &part.meshes[s.mesh as usize];
            all.extend((0..s.len()).map(|i| part.ranks.rank(s.nth(mesh, i))));
        }
        all.sort_unstable();
        all.dedup();
        RankSet::List(all)
    }

    pub fn len(&self) -> u64 {
        match self {
            RankSet::Slice(s) => s.len(),
            RankSet::List(v) => v.len() as u64,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th rank.
    pub fn nth(&self, layout: &Layout, i: u64) -> Rank {
        match self {
            RankSet::List(v) => v[i as usize],
            RankSet::Slice(s) => {
                let part = &layout.parts()[s.part as usize];
                part.ranks.rank(s.nth(&part.meshes[s.mesh as usize], i))
            }
        }
    }

    /// Which one `rank` is, if it is one.
    pub fn index_of(&self, layout: &Layout, rank: Rank) -> Option<u64> {
        match self {
            RankSet::List(v) => v.binary_search(&rank).ok().map(|i| i as u64),
            RankSet::Slice(s) => {
                let part = &layout.parts()[s.part as usize];
                let position = layout.position(s.part as usize, rank)?;
                s.index_of(&part.meshes[s.mesh as usize].coords(position))
            }
        }
    }

    /// Every rank. Linear: for listed sets and small ones.
    pub fn to_vec(&self, layout: &Layout) -> Vec<Rank> {
        (0..self.len()).map(|i| self.nth(layout, i)).collect()
    }

    /// The lowest and highest rank.
    fn ends(&self, layout: &Layout) -> Option<(Rank, Rank)> {
        let n = self.len();
        (n > 0).then(|| (self.nth(layout, 0), self.nth(layout, n - 1)))
    }

    /// The ranks of `self` that are not in `other`.
    pub fn less(self, layout: &Layout, other: &RankSet, other_layout: &Layout) -> RankSet {
        let apart = match (self.ends(layout), other.ends(other_layout)) {
            (Some(a), Some(b)) => a.1 < b.0 || b.1 < a.0,
            _ => true,
        };
        if apart {
            return self;
        }
        let mut kept = self.to_vec(layout);
        let n = kept.len();
        kept.retain(|&r| other.index_of(other_layout, r).is_none());
        if kept.len() == n {
            return self;
        }
        RankSet::List(kept)
    }
}

//! Which part a rank belongs to, and where in it: runs of consecutive ranks.
//!
//! ```text
//!   ranks 0..8 (part 0), list [9, 10, 12] (part 1)
//!   runs  [0..8 part 0 from 0] [9..11 part 1 from 0] [12..13 part 1 from 2]
//! ```

use super::LayoutSpec;
use super::mesh::RankList;
use crate::error::{Error, Result};
use crate::rank::Rank;
use std::ops::Range;

/// Ranks `first..first + count` sit at positions `position..` of `part`.
/// Explicit ranks count as one more part.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    count: u32,
    part: usize,
    position: u32,
}

/// Every rank of a layout, in runs sorted by rank.
#[derive(Clone, Debug)]
pub(super) struct RankIndex {
    runs: Vec<Run>,
}

impl RankIndex {
    /// Indexes a layout whose rank lists are valid one by one; refuses a rank
    /// that is described twice.
    pub(super) fn new(spec: &LayoutSpec) -> Result<RankIndex> {
        let mut runs = Vec::new();
        for (part, p) in spec.parts.iter().enumerate() {
            match &p.ranks {
                RankList::Range { first, count } => runs.push(Run {
                    first: *first,
                    count: *count,
                    part,
                    position: 0,
                }),
                RankList::List(list) => push_runs(&mut runs, part, list.iter().copied()),
            }
        }
        let explicit = spec.explicit.iter().map(|r| r.rank);
        push_runs(&mut runs, spec.parts.len(), explicit);
        runs.sort_unstable_by_key(|r| r.first);
        let twice = runs
            .windows(2)
            .find(|w| w[1].first - w[0].first < w[0].count);
        match twice {
            Some(w) => Err(described_twice(spec, w[0], w[1])),
            None => Ok(RankIndex { runs }),
        }
    }

    /// The part of `rank` and its position there; the part after the last is
    /// that of the explicit ranks.
    pub(super) fn find(&self, rank: Rank) -> Option<(usize, u32)> {
        let after = self.runs.partition_point(|r| r.first <= rank.0);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let ahead = rank.0 - run.first;
        (ahead < run.count).then_some((run.part, run.position + ahead))
    }

    /// Every rank as ranges, ascending and apart from each other.
    pub(super) fn ranges(&self) -> Vec<Range<u32>> {
        let mut out: Vec<Range<u32>> = Vec::new();
        for r in &self.runs {
            match out.last_mut() {
                Some(last) if last.end == r.first => last.end += r.count,
                _ => out.push(r.first..r.first + r.count),
            }
        }
        out
    }

    /// Every rank, ascending.
    pub(super) fn ranks(&self) -> impl Iterator<Item = Rank> + '_ {
        self.runs
            .iter()
            .flat_map(|r| (r.first..r.first + r.count).map(Rank))
    }
}

fn push_runs(runs: &mut Vec<Run>, part: usize, ranks: impl Iterator<Item = Rank>) {
    let from = runs.len();
    for (position, rank) in (0..).zip(ranks) {
        match runs[from..].last_mut() {
            Some(run) if run.first + run.count == rank.0 => run.count += 1,
            _ => runs.push(Run {
                first: rank.0,
                count: 1,
                part,
                position,
            }),
        }
    }
}

fn described_twice(spec: &LayoutSpec, a: Run, b: Run) -> Error {
    let rank = Rank(b.first);
    let explicit = |r: Run| r.part == spec.parts.len();
    Error::layout(match (explicit(a), explicit(b)) {
        (true, true) => format!("rank {rank} has two explicit entries; each rank has one"),
        (false, false) => format!(
            "rank {rank} is in two parts, one of {} ranks and one of {}; each rank is in one",
            spec.parts[a.part].ranks.count(),
            spec.parts[b.part].ranks.count()
        ),
        _ => format!(
            "rank {rank} is in a part and has an explicit entry; it may have one of the two"
        ),
    })
    .by(rank)
}

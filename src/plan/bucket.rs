//! How many buckets: the fewest that keep every rank inside the staging budget.
//!
//! Bucket `b` carries the `b`-th `K`-th part of every pair's stream, so what a
//! rank stages falls with `K`, but not evenly: long runs that travel without
//! staging are cut into short ones that do not. So programs are derived and
//! their memory is compared with the budget:
//!
//! ```text
//!   K = 1, all ranks ──► the heaviest few ──► K that suits them ──► all ranks
//!                              ▲                                      │
//!                              └────────── one that does not fit ◄────┘
//! ```

use super::Plan;
use crate::error::{Error, Result, Status};
use crate::limits::BUCKET_COUNT_MAX;
use crate::rank::Rank;

/// Ranks by which a bucket count is found before all are asked.
const PROBE_COUNT: usize = 4;
/// A rank whose bytes of this many buckets fit into the budget, with room for
/// alignment, is not asked: two are in flight, the rest is for rounding.
const SAFE_BUCKET_COUNT: u128 = 8;
const ALIGNMENT_BYTES: u64 = 1 << 20;

/// What a rank needs and moves with one bucket.
struct Load {
    rank: Rank,
    memory_bytes: u64,
    moved_bytes: u64,
}

/// The most memory that any of some ranks needs with a bucket count.
#[derive(Clone, Copy)]
struct Peak {
    rank: Rank,
    bytes: u64,
    bucket_count: u32,
}

impl Plan {
    /// Takes the smallest bucket count that keeps staging inside the budget,
    /// or checks the one that was given.
    pub(super) fn choose_buckets(&mut self, is_given: bool) -> Result<()> {
        let budget = self.decision.staging_bytes_max;
        let (ranks, is_exact) = self.sample_ranks();
        if is_given {
            let peak = self.peak(&ranks)?;
            return match peak.bytes > budget {
                true => Err(self.too_small(peak)),
                false => Ok(()),
            };
        }
        // Of ranks that were not asked, none is much heavier.
        let room = if is_exact {
            budget
        } else {
            budget - budget / 64
        };
        self.decision.bucket_count = 1;
        let loads = self.loads(&ranks)?;
        let Some(heaviest) = loads.first() else {
            return Ok(());
        };
        if heaviest.memory_bytes <= room {
            return Ok(());
        }
        let twice = 2 * u128::from(heaviest.memory_bytes);
        let mut count = twice.div_ceil(u128::from(room.max(1)));
        let mut probes: Vec<Rank> = loads.iter().take(PROBE_COUNT).map(|l| l.rank).collect();
        loop {
            count = self.count_that_suits(&probes, count, room)?;
            let safe = count * u128::from(room.saturating_sub(ALIGNMENT_BYTES));
            let may_exceed = |l: &&Load| {
                SAFE_BUCKET_COUNT * u128::from(l.moved_bytes) > safe && !probes.contains(&l.rank)
            };
            let asked: Vec<Rank> = loads.iter().filter(may_exceed).map(|l| l.rank).collect();
            match self.first_above(&asked, room)? {
                None => return Ok(()),
                Some(rank) => probes.push(rank),
            }
        }
    }

    /// What each rank needs with one bucket, the heaviest first.
    fn loads(&self, ranks: &[Rank]) -> Result<Vec<Load>> {
        let mut loads = Vec::with_capacity(ranks.len());
        for &rank in ranks {
            let p = self.derive(rank)?;
            loads.push(Load {
                rank,
                memory_bytes: p.memory_bytes(),
                moved_bytes: p.bytes_sent + p.bytes_received,
            });
        }
        loads.sort_by_key(|l| (std::cmp::Reverse(l.memory_bytes), l.rank));
        Ok(loads)
    }

    /// The first bucket count from `count` on that keeps `ranks` inside `room`.
    fn count_that_suits(&mut self, ranks: &[Rank], count: u128, room: u64) -> Result<u128> {
        let mut count = count;
        let mut smallest: Option<Peak> = None;
        while count <= u128::from(BUCKET_COUNT_MAX) {
            self.decision.bucket_count = count as u32;
            let peak = self.peak(ranks)?;
            if peak.bytes <= room {
                return Ok(count);
            }
            if smallest.is_none_or(|s| peak.bytes < s.bytes) {
                smallest = Some(peak);
            }
            let scaled = count * u128::from(peak.bytes) / u128::from(room.max(1));
            count = scaled.min(2 * count).max(count + 1);
        }
        match smallest {
            Some(peak) => Err(self.too_small(peak)),
            None => Err(self.too_small(self.peak(ranks)?)),
        }
    }

    /// The rank of `ranks` that needs most, and how much.
    fn peak(&self, ranks: &[Rank]) -> Result<Peak> {
        let mut peak = Peak {
            rank: Rank(0),
            bytes: 0,
            bucket_count: self.decision.bucket_count,
        };
        for &rank in ranks {
            let bytes = self.derive(rank)?.memory_bytes();
            if bytes > peak.bytes {
                peak = Peak {
                    rank,
                    bytes,
                    ..peak
                };
            }
        }
        Ok(peak)
    }

    /// The first of `ranks` that needs more than `room`.
    fn first_above(&self, ranks: &[Rank], room: u64) -> Result<Option<Rank>> {
        for &rank in ranks {
            if self.derive(rank)?.memory_bytes() > room {
                return Ok(Some(rank));
            }
        }
        Ok(None)
    }

    fn too_small(&self, peak: Peak) -> Error {
        Error::new(
            Status::StagingTooSmall,
            format!(
                "staging_bytes_max is {}; rank {} needs {} with {} buckets",
                self.decision.staging_bytes_max, peak.rank, peak.bytes, peak.bucket_count
            ),
        )
    }
}

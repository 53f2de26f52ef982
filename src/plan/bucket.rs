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
use super::decision::Order;
use crate::error::{Error, Result, Status};
use crate::limits::BUCKET_COUNT_MAX;
use crate::rank::Rank;

/// Ranks by which a bucket count is found before all are asked.
const PROBE_COUNT: usize = 4;
/// A rank whose bytes of this many buckets fit into the budget, with room for
/// alignment, is not asked: two are in flight, the rest is for rounding.
const SAFE_BUCKET_COUNT: u128 = 8;
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Budgets that are tried for the sake of a good error.
const BUDGET_ATTEMPT_COUNT: usize = 8;

/// What a rank needs and moves with one bucket.
struct Load {
    rank: Rank,
    memory_bytes: u64,
    moved_bytes: u64,
}

/// The most memory that any of some ranks needs with a bucket count.
#[derive(Clone, Copy)]
pub(super) struct Peak {
    rank: Rank,
    bytes: u64,
    bucket_count: u32,
}

impl Plan {
    /// Takes the smallest bucket count that keeps staging inside the budget,
    /// or checks the one that was given.
    pub(super) fn choose_buckets(&mut self, is_given: bool) -> Result<()> {
        match self.try_buckets(is_given)? {
            None => Ok(()),
            Some(peak) => self.refuse(is_given, peak),
        }
    }

    /// The same; what cannot be kept inside the budget, if anything.
    pub(super) fn try_buckets(&mut self, is_given: bool) -> Result<Option<Peak>> {
        let budget = self.decision.staging_bytes_max;
        let (ranks, is_exact) = self.sample_ranks();
        if is_given {
            let peak = self.peak(&ranks)?;
            return Ok((peak.bytes > budget).then_some(peak));
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
            return Ok(None);
        };
        if heaviest.memory_bytes <= room {
            return Ok(None);
        }
        let twice = 2 * u128::from(heaviest.memory_bytes);
        let mut count = twice.div_ceil(u128::from(room.max(1)));
        let mut probes: Vec<Rank> = loads.iter().take(PROBE_COUNT).map(|l| l.rank).collect();
        loop {
            count = match self.count_that_suits(&probes, count, room)? {
                Ok(count) => count,
                Err(peak) => return Ok(Some(peak)),
            };
            let safe = count * u128::from(room.saturating_sub(ALIGNMENT_BYTES));
            // In layer order a rank may move all it has in a few buckets.
            let is_even = self.decision.order == Order::Fraction;
            let may_exceed = |l: &&Load| {
                let is_safe = is_even && SAFE_BUCKET_COUNT * u128::from(l.moved_bytes) <= safe;
                !is_safe && !probes.contains(&l.rank)
            };
            let asked: Vec<Rank> = loads.iter().filter(may_exceed).map(|l| l.rank).collect();
            match self.first_above(&asked, room)? {
                None => return Ok(None),
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

    /// The first bucket count from `count` on that keeps `ranks` inside `room`;
    /// if there is none, the least that they need.
    fn count_that_suits(
        &mut self,
        ranks: &[Rank],
        count: u128,
        room: u64,
    ) -> Result<Result<u128, Peak>> {
        let mut count = count;
        let mut smallest: Option<Peak> = None;
        while count <= u128::from(BUCKET_COUNT_MAX) {
            self.decision.bucket_count = count as u32;
            let peak = self.peak(ranks)?;
            if peak.bytes <= room {
                return Ok(Ok(count));
            }
            if smallest.is_none_or(|s| peak.bytes < s.bytes) {
                smallest = Some(peak);
            }
            let scaled = count * u128::from(peak.bytes) / u128::from(room.max(1));
            count = scaled.min(2 * count).max(count + 1);
        }
        match smallest {
            Some(peak) => Ok(Err(peak)),
            None => Ok(Err(self.peak(ranks)?)),
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

    /// Says what was given, what is needed, and with which budget it works:
    /// that one was tried.
    fn refuse(&mut self, is_given: bool, peak: Peak) -> Result<()> {
        let budget = self.decision.staging_bytes_max;
        let mut enough = None;
        let mut wanted = peak.bytes;
        for _ in 0..BUDGET_ATTEMPT_COUNT {
            self.decision.staging_bytes_max = wanted;
            match self.try_buckets(is_given)? {
                None => {
                    enough = Some(wanted);
                    break;
                }
                // Ranks that were not asked may need a little more.
                Some(more) => wanted = more.bytes.max(wanted + wanted / 32 + 1),
            }
        }
        self.decision.staging_bytes_max = budget;
        let advice = match (enough, is_given) {
            (Some(n), false) => format!("set it to {n} or more"),
            (Some(n), true) => format!("set it to {n} or more, or take more buckets"),
            (None, _) => "set it much higher".into(),
        };
        Err(Error::new(
            Status::StagingTooSmall,
            format!(
                "staging_bytes_max is {budget}; rank {} needs {} with {} buckets: {advice}",
                peak.rank, peak.bytes, peak.bucket_count
            ),
        ))
    }
}

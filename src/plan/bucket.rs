//! How many buckets: the fewest that keep every rank inside the staging budget.
//!
//! Bucket `b` carries the `b`-th `K`-th part of every pair's stream, of small
//! ones a larger part now and then, so what a rank stages falls with `K`, but
//! not evenly: long runs that travel without staging are cut into short ones
//! that do not. So programs are derived and their memory is compared with the
//! budget:
//!
//! ```text
//!   K = 1, all ranks ──► the heaviest, some others ──► K that suits them ──► all ranks
//!                              ▲                                             │
//!                              └────────────── the one that exceeds it most ◄┘
//! ```
//!
//! A budget that no count suits is refused with one that was tried and works,
//! and of which a byte less does not.

use super::Plan;
use super::decision::{Decision, Order, Strategy};
use super::derive::Walks;
use super::domains::Domains;
use crate::crew;
use crate::error::{Error, Result, Status};
use crate::layout::Layout;
use crate::limits::BUCKET_COUNT_MAX;
use crate::rank::Rank;

/// Ranks by which a bucket count is found before all are asked.
const PROBE_COUNT: usize = 16;
/// A rank whose bytes of this many buckets fit into the budget, with room for
/// alignment, is not asked: two are in flight, the rest is for rounding.
const SAFE_BUCKET_COUNT: u128 = 8;
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Counts are tried in steps of this fraction of them, at least.
const COUNT_STEP_FRACTION: u32 = 32;
/// Counts from one on to this multiple of it may be stepped over.
const OVERSTEPPED: u128 = 4;
/// Of ranks that were not asked, none needs more than those asked by more than
/// this fraction of the budget.
const UNASKED_FRACTION: u64 = 64;
/// The same where the count was found before, with many more ranks asked.
const UNASKED_KEPT_FRACTION: u64 = 128;

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

/// Whether some bucket count keeps everybody inside the budget: the most that
/// any rank needs with that count, or else with the best one.
enum Tried {
    Fits(Peak),
    Exceeds(Peak),
}

/// What a rank moves between domains, in the mean. What its share of a bucket
/// is measured by: a bucket ends when the slowest rank has moved its own, and
/// inside a domain all is fast.
pub(super) fn rank_bytes(
    decision: &Decision,
    copy_bytes: u64,
    domains: &Domains,
    (source, destination): (&Layout, &Layout),
) -> u64 {
    let copies = u64::from(destination.copy_count());
    let (a, b) = (source.rank_count(), destination.rank_count());
    let (moved, ranks) = match decision.strategy {
        Strategy::Direct | Strategy::TwoStage => (copies, a.min(b)),
        // Receivers pass on to each other what the few cannot send to all.
        Strategy::Relay | Strategy::Fanout => (domains.entries(copies), a.max(b)),
    };
    let all = u128::from(copy_bytes) * u128::from(moved);
    u64::try_from(all / u128::from(ranks.max(1))).unwrap_or(u64::MAX)
}

impl Plan {
    /// Checks the bucket count that was given.
    pub(super) fn check_buckets(&self) -> Result<()> {
        let peak = self.peak(&self.sample_ranks().0)?;
        let budget = self.decision.staging_bytes_max;
        match peak.bytes <= budget {
            true => Ok(()),
            false => Err(refusal(budget, peak, peak.bytes, ", or take more buckets")),
        }
    }

    /// Takes the smallest bucket count from `fewest` on, or one little larger,
    /// that keeps staging inside the budget; a smaller one if none of those does.
    pub(super) fn choose_buckets(&mut self, fewest: u32) -> Result<()> {
        let (ranks, is_exact) = self.sample_ranks();
        self.decision.bucket_count = 1;
        let loads = self.loads(&ranks)?;
        match self.try_budget(&loads, is_exact, fewest)? {
            Tried::Fits(_) => Ok(()),
            Tried::Exceeds(_) if fewest > 1 => self.choose_buckets(1),
            Tried::Exceeds(peak) => self.refuse(&loads, is_exact, peak),
        }
    }

    /// Keeps the bucket count that was decided in `before` if `ranks` stay
    /// inside the budget with it, or need no more than they did.
    pub(super) fn keep_buckets(&mut self, ranks: &[Rank], before: &Plan) -> Result<()> {
        let peak = self.peak(ranks)?;
        let budget = self.decision.staging_bytes_max;
        if peak.bytes <= budget - budget / UNASKED_KEPT_FRACTION {
            return Ok(());
        }
        if peak.bytes <= budget && peak.bytes <= before.peak(ranks)?.bytes {
            return Ok(());
        }
        self.choose_buckets(1)
    }

    /// Finds a bucket count for the budget, `fewest` at least.
    fn try_budget(&mut self, loads: &[Load], is_exact: bool, fewest: u32) -> Result<Tried> {
        self.decision.bucket_count = 1;
        let Some(heaviest) = loads.first() else {
            return Ok(Tried::Fits(self.peak(&[])?));
        };
        let room = room(self.decision.staging_bytes_max, is_exact);
        if heaviest.memory_bytes <= room && fewest <= 1 {
            return Ok(Tried::Fits(Peak {
                rank: heaviest.rank,
                bytes: heaviest.memory_bytes,
                bucket_count: 1,
            }));
        }
        let twice = 2 * u128::from(heaviest.memory_bytes);
        let mut count = twice.div_ceil(u128::from(room.max(1)));
        count = count.max(u128::from(fewest));
        let mut probes = probes(loads);
        loop {
            let peak = match self.count_that_suits(&probes, count, room)? {
                Tried::Fits(peak) => peak,
                Tried::Exceeds(least) => match self.any_that_suits(&probes, count, room)? {
                    Some(peak) => peak,
                    None => return Ok(Tried::Exceeds(least)),
                },
            };
            count = u128::from(peak.bucket_count);
            let safe = count * u128::from(room.saturating_sub(ALIGNMENT_BYTES));
            // In layer order a rank may move all it has in a few buckets.
            let is_even = self.decision.order == Order::Fraction;
            let may_exceed = |l: &&Load| {
                let is_safe = is_even && SAFE_BUCKET_COUNT * u128::from(l.moved_bytes) <= safe;
                !is_safe && !probes.contains(&l.rank)
            };
            let asked: Vec<Rank> = loads.iter().filter(may_exceed).map(|l| l.rank).collect();
            let others = self.peak(&asked)?;
            if others.bytes <= room {
                return Ok(Tried::Fits(match others.bytes > peak.bytes {
                    true => others,
                    false => peak,
                }));
            }
            probes.push(others.rank);
        }
    }

    /// What each rank needs with one bucket, the heaviest first.
    fn loads(&self, ranks: &[Rank]) -> Result<Vec<Load>> {
        let walks = Walks::shared();
        let load = |rank| {
            let memory = self.memory(&walks, rank)?;
            Ok(Load {
                rank,
                memory_bytes: memory.bytes(),
                moved_bytes: memory.moved_bytes,
            })
        };
        let mut loads = crew::for_each(ranks, load)?;
        loads.sort_unstable_by_key(|l| (std::cmp::Reverse(l.memory_bytes), l.rank));
        Ok(loads)
    }

    /// The first bucket count from `count` on that keeps `ranks` inside `room`.
    fn count_that_suits(&mut self, ranks: &[Rank], count: u128, room: u64) -> Result<Tried> {
        let most = u128::from(BUCKET_COUNT_MAX);
        let mut count = count.min(most);
        let mut smallest: Option<Peak> = None;
        let mut exceeds = count as u32 - 1;
        loop {
            self.decision.bucket_count = count as u32;
            let peak = self.peak(ranks)?;
            if peak.bytes <= room {
                return self.narrowed(ranks, exceeds, peak, room).map(Tried::Fits);
            }
            exceeds = count as u32;
            let best = smallest.filter(|s| s.bytes <= peak.bytes).unwrap_or(peak);
            if count == most {
                return Ok(Tried::Exceeds(best));
            }
            smallest = Some(best);
            let scaled = count * u128::from(peak.bytes) / u128::from(room.max(1));
            let next = count + 1 + count / u128::from(COUNT_STEP_FRACTION);
            count = scaled.min(2 * count).max(next).min(most);
        }
    }

    /// A bucket count, few or many, that keeps `ranks` inside `room` where none
    /// was found from `count` on. Runs that travel without staging become short
    /// ones that do not, so less may be needed with fewer buckets.
    fn any_that_suits(&mut self, ranks: &[Rank], count: u128, room: u64) -> Result<Option<Peak>> {
        let most = (OVERSTEPPED * count).min(u128::from(BUCKET_COUNT_MAX)) as u32;
        let step = |count: &u32| Some(count - count.div_ceil(2 * COUNT_STEP_FRACTION));
        // Most often the rank that exceeded the last time does it again.
        let mut asked_first = 0;
        for count in std::iter::successors(Some(most), step).take_while(|&count| count > 0) {
            self.decision.bucket_count = count;
            if self.peak(&ranks[asked_first..=asked_first])?.bytes > room {
                continue;
            }
            let peak = self.peak(ranks)?;
            if peak.bytes <= room {
                return Ok(Some(peak));
            }
            asked_first = ranks.iter().position(|&r| r == peak.rank).unwrap_or(0);
        }
        Ok(None)
    }

    /// A count between one that was too small and one that suits, little larger
    /// than the smallest that suits.
    fn narrowed(
        &mut self,
        ranks: &[Rank],
        mut exceeds: u32,
        mut suits: Peak,
        room: u64,
    ) -> Result<Peak> {
        // A few too many buckets cost less than to try every count.
        while suits.bucket_count - exceeds > 1 + suits.bucket_count / COUNT_STEP_FRACTION {
            self.decision.bucket_count = exceeds.midpoint(suits.bucket_count);
            let peak = self.peak(ranks)?;
            match peak.bytes <= room {
                true => suits = peak,
                false => exceeds = peak.bucket_count,
            }
        }
        self.decision.bucket_count = suits.bucket_count;
        Ok(suits)
    }

    /// The rank of `ranks` that needs most, the first of equals, and how much.
    fn peak(&self, ranks: &[Rank]) -> Result<Peak> {
        let walks = Walks::shared();
        let bytes = crew::for_each(ranks, |rank| Ok(self.memory(&walks, rank)?.bytes()))?;
        let needs = bytes.into_iter().zip(ranks);
        let most = needs.max_by_key(|&(bytes, rank)| (bytes, std::cmp::Reverse(rank)));
        let (bytes, &rank) = most.unwrap_or((0, &Rank(0)));
        Ok(Peak {
            rank,
            bytes,
            bucket_count: self.decision.bucket_count,
        })
    }

    /// Says what was given, what is needed, and with which budget it works.
    fn refuse(&mut self, loads: &[Load], is_exact: bool, peak: Peak) -> Result<()> {
        let given = self.decision.staging_bytes_max;
        let mut too_little = room(given, is_exact);
        // With one bucket everybody fits.
        let mut enough = loads.first().map_or(peak.bytes, |l| l.memory_bytes);
        let mut guess = Some(peak.bytes);
        while too_little + 1 < enough {
            // What a rank needs is not always what everybody can keep to: after
            // a guess that was none, the middle halves what is left.
            let is_new = |bytes: &u64| (too_little + 1..enough).contains(bytes);
            let guessed = guess.filter(is_new);
            let wanted = guessed.unwrap_or(too_little.midpoint(enough));
            self.decision.staging_bytes_max = budget_with(wanted, is_exact);
            match self.try_budget(loads, is_exact, 1)? {
                Tried::Fits(least) => {
                    enough = wanted;
                    guess = Some(least.bytes.min(wanted - 1));
                }
                Tried::Exceeds(more) => {
                    too_little = wanted;
                    guess = Some(more.bytes).filter(|_| guessed.is_none());
                }
            }
        }
        self.decision.staging_bytes_max = given;
        Err(refusal(given, peak, budget_with(enough, is_exact), ""))
    }
}

/// The heaviest ranks, and some between them and the lightest.
fn probes(loads: &[Load]) -> Vec<Rank> {
    let (heaviest, others) = loads.split_at(loads.len().min(PROBE_COUNT / 2));
    let step = others.len().div_ceil(PROBE_COUNT / 2).max(1);
    let some = others.iter().step_by(step);
    heaviest.iter().chain(some).map(|l| l.rank).collect()
}

/// What a rank that was asked may need, so that no other exceeds the budget.
fn room(budget: u64, is_exact: bool) -> u64 {
    match is_exact {
        true => budget,
        false => budget - budget / UNASKED_FRACTION,
    }
}

/// The smallest budget with that much room.
fn budget_with(room_bytes: u64, is_exact: bool) -> u64 {
    if is_exact {
        return room_bytes;
    }
    let mut budget = room_bytes.saturating_add(room_bytes / UNASKED_FRACTION);
    while room(budget, false) < room_bytes {
        budget += 1;
    }
    budget
}

fn refusal(given: u64, peak: Peak, enough: u64, otherwise: &str) -> Error {
    Error::new(
        Status::StagingTooSmall,
        format!(
            "staging_bytes_max is {given}; rank {} needs {} with {} buckets: set it to {enough} or \
             more{otherwise}",
            peak.rank, peak.bytes, peak.bucket_count
        ),
    )
}

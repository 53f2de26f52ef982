//! Who is to blame when nothing moves any more.
//!
//! Every running rank sends BEATs: steps enqueued, steps done, and the peer
//! whose bytes it waits for. A rank that has not come further within the stall
//! deadline stops the whole execution. By then usually everybody waits for one
//! rank, and it is that one which must be named:
//!
//! 1. a silent rank, the lowest: its neighbour in the tree hears nothing from
//!    it, or it has stopped beating. A frozen rank that only passes messages on
//!    is found like this too, because its parent misses it;
//! 2. else the lowest that has not started although others have;
//! 3. else the rank at the end of the chain "waits for": from the lowest of
//!    those with the fewest steps done, as long as one waits for another that
//!    has not ended either. In a ring, the lowest in it.

use super::agreement::{Group, Phase, Seat, Stage};
use super::landscape::Landscape;
use super::message::NO_RANK;
use crate::error::{Error, Status};
use crate::rank::Rank;
use std::time::{Duration, Instant};

/// Beats that may be missing before a rank counts as silent.
pub(super) const BEATS_MISSED_MAX: u32 = 3;
const INTERVAL_MAX: Duration = Duration::from_millis(250);
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// With very many ranks beats come less often, so that the coordinator is not
/// drowned in them.
const INTERVAL_PER_RANK: Duration = Duration::from_micros(10);

/// How often ranks beat, and neighbours ping each other.
pub(super) fn beat_interval(stall_ns: u64, ranks: usize) -> Duration {
    let crowd = INTERVAL_PER_RANK * u32::try_from(ranks).unwrap_or(u32::MAX);
    let stall = Duration::from_nanos(stall_ns / 4);
    INTERVAL_MAX.max(crowd).min(stall).max(INTERVAL_MIN)
}

/// How long a neighbour may be unheard before it counts as silent.
pub(super) fn silence(interval: Duration) -> Duration {
    // The addition is for threads that do not get a processor at once.
    interval * BEATS_MISSED_MAX + Duration::from_millis(50)
}

/// The error that stops a group in which a rank has stalled.
pub(super) fn check(group: &Group, land: &Landscape, now: Instant) -> Option<Error> {
    let start = group.first_start?;
    if group.phase != Phase::Running || group.stall_ns == super::NO_DEADLINE {
        return None;
    }
    let limit = Duration::from_nanos(group.stall_ns);
    let has_stalled =
        |s: &Seat| s.is_under_way() && now.saturating_duration_since(s.advance.max(start)) > limit;
    if !group.seats.iter().any(has_stalled) {
        return None;
    }
    let (index, why) = blame(group, land, now)?;
    let rank = land.ranks.as_slice()[index];
    let seat = &group.seats[index];
    let text = format!(
        "rank {rank} {why}: no progress within {} ms, {} of {} steps done, version {}",
        limit.as_millis(),
        seat.progress.done.min(group.terms.steps),
        group.terms.steps,
        group.terms.version
    );
    Some(Error::new(Status::Stalled, text).by(rank))
}

/// When the next rank may have stalled.
pub(super) fn next_check(group: &Group) -> Option<Instant> {
    let start = group.first_start?;
    let advances = group.seats.iter().filter(|s| s.is_under_way());
    let oldest = advances.map(|s| s.advance.max(start)).min()?;
    super::instant_in(oldest, group.stall_ns)
}

/// The index of the culprit, and what it does.
fn blame(group: &Group, land: &Landscape, now: Instant) -> Option<(usize, &'static str)> {
    let under_way = |i: &usize| group.seats[*i].is_under_way();
    let waiting: Vec<usize> = (0..group.seats.len()).filter(under_way).collect();
    let silent = waiting.iter().filter_map(|&i| silent(group, land, i, now));
    if let Some(index) = silent.min() {
        return Some((index, "is silent"));
    }
    let mut idle = waiting
        .iter()
        .filter(|&&i| group.seats[i].progress.enqueued == 0);
    if let Some(&index) = idle.next() {
        return Some((index, "has not started"));
    }
    let first = waiting
        .iter()
        .min_by_key(|&&i| (group.seats[i].progress.done, i))?;
    Some((follow(group, land, *first), "has stalled"))
}

/// The silent rank that keeps rank `index` from being heard, or itself.
fn silent(group: &Group, land: &Landscape, index: usize, now: Instant) -> Option<usize> {
    if let Some(above) = land.silent_index_above(index) {
        return Some(above);
    }
    let limit = silence(beat_interval(group.stall_ns, group.seats.len()));
    let unheard = now.saturating_duration_since(group.seats[index].beat);
    (unheard > limit).then_some(index)
}

/// Follows "waits for" to its end.
fn follow(group: &Group, land: &Landscape, from: usize) -> usize {
    let mut path = vec![from];
    let mut at = from;
    loop {
        let waits_for = group.seats[at].waits_for;
        if waits_for == NO_RANK {
            return at;
        }
        let Some(next) = land.ranks.index_of(Rank(waits_for)) else {
            return at;
        };
        match group.seats[next].stage {
            Stage::Agreed => {}
            Stage::Absent | Stage::Done(_) => return at,
        }
        if let Some(turn) = path.iter().position(|&i| i == next) {
            return path[turn..].iter().copied().min().unwrap_or(at);
        }
        path.push(next);
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::super::rank_set::RankSet;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Four ranks under way, all started, stall deadline one second.
    fn group(now: Instant) -> Group {
        let mut group = Group::new(4, now);
        group.phase = Phase::Running;
        group.stall_ns = 1_000_000_000;
        group.first_start = Some(now);
        group.terms.steps = 9;
        for seat in &mut group.seats {
            seat.stage = Stage::Agreed;
            seat.progress.enqueued = 9;
            seat.progress.done = 3;
        }
        group
    }

    fn land() -> Landscape {
        Landscape::new(RankSet::count(4).unwrap())
    }

    /// Everybody has been heard of by `now`.
    fn hear(group: &mut Group, now: Instant) {
        group.seats.iter_mut().for_each(|s| s.beat = now);
    }

    fn culprit(group: &Group, land: &Landscape, now: Instant) -> Option<u32> {
        check(group, land, now).map(|e| e.rank.unwrap().0)
    }

    #[test]
    fn progress_is_not_a_stall() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats
            .iter_mut()
            .for_each(|s| s.advance = start + SECOND * 3 / 2);
        assert_eq!(culprit(&g, &land(), now), None);
        g.seats[2].advance = start;
        assert!(culprit(&g, &land(), now).is_some());
        g.seats[2].stage = Stage::Done(Outcome::Complete);
        assert_eq!(culprit(&g, &land(), now), None);
    }

    use super::super::Outcome;

    #[test]
    fn nobody_stalls_before_anybody_starts() {
        let start = Instant::now();
        let mut g = group(start);
        g.first_start = None;
        assert_eq!(culprit(&g, &land(), start + SECOND * 60), None);
    }

    #[test]
    fn the_silent_rank_is_blamed_before_those_who_wait() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats[0].progress.done = 1;
        g.seats[3].beat = start;
        assert_eq!(culprit(&g, &land(), now), Some(3));
        let mut l = land();
        l.set_suspect(Rank(2), true);
        assert_eq!(culprit(&g, &l, now), Some(2));
    }

    #[test]
    fn the_rank_that_did_not_start_is_blamed() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats[2].progress.enqueued = 0;
        g.seats[2].progress.done = 0;
        assert_eq!(culprit(&g, &land(), now), Some(2));
    }

    #[test]
    fn waiting_is_followed_to_its_end() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats[0].waits_for = 1;
        g.seats[1].waits_for = 3;
        g.seats[2].waits_for = 3;
        assert_eq!(culprit(&g, &land(), now), Some(3));
        g.seats[3].waits_for = 1;
        assert_eq!(culprit(&g, &land(), now), Some(1), "a ring of 1 and 3");
        g.seats[3].stage = Stage::Done(Outcome::Complete);
        assert_eq!(culprit(&g, &land(), now), Some(1), "3 has ended");
    }

    #[test]
    fn without_hints_the_fewest_steps_then_the_lowest_rank() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats[1].progress.done = 2;
        g.seats[3].progress.done = 2;
        assert_eq!(culprit(&g, &land(), now), Some(1));
    }

    #[test]
    fn beats_are_a_quarter_of_the_deadline_and_spread_with_the_crowd() {
        let ms = |ns: u64, n| beat_interval(ns, n).as_millis();
        assert_eq!(ms(400_000_000, 8), 100);
        assert_eq!(ms(u64::MAX, 8), 250);
        assert_eq!(ms(u64::MAX, 100_000), 1000);
        assert_eq!(ms(400_000_000, 100_000), 100);
    }
}

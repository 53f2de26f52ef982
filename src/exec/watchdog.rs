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
//!    is not past its step, or its place in it, either.
//!
//! A transport that cannot tell which of its peers it waits for names several.
//! Then, and in a ring, it is rather a rank that waits for nobody; else one of
//! whose peers none has come past the step, because it has moved nothing in it;
//! else the one that most wait for; else the lowest.

use super::agreement::{Group, Phase, Seat};
use super::landscape::Landscape;
use crate::error::{Error, Status};
use crate::transport::waits::Waits;
use std::cmp::Reverse;
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
    let place = |i: usize| (group.seats[i].progress.done, group.seats[i].waits_for.place);
    let first = waiting.iter().min_by_key(|&&i| (place(i), i))?;
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

/// Takes note of whom rank `index` may wait for, less those that are past its
/// step. If no other is named, whoever was named before stays, for a long list
/// comes in turns; but not once the rank has come to another place in its step.
pub(super) fn note_waits(group: &mut Group, land: &Landscape, index: usize, waits: Waits) {
    let of = |waits: &Waits| -> Waits {
        let keeping = keeping(group, land, index, waits);
        let ranks: Waits = keeping.map(|i| land.ranks.as_slice()[i]).collect();
        ranks.at(waits.place)
    };
    let (new, old) = (of(&waits), of(&group.seats[index].waits_for));
    let seat = &mut group.seats[index];
    let is_there = seat.waits_for.place == waits.place;
    seat.has_moved = seat.has_moved && is_there || new != waits;
    seat.waits_for = match is_there && new.is_none() && !waits.is_none() {
        true => old,
        false => new,
    };
}

/// The indices of those of `waits` that may keep rank `index` where it is.
fn keeping<'a>(
    group: &'a Group,
    land: &'a Landscape,
    index: usize,
    waits: &'a Waits,
) -> impl Iterator<Item = usize> + 'a {
    let at = |seat: &Seat, waits: &Waits| (seat.progress.done, waits.place);
    let here = at(&group.seats[index], waits);
    let known = waits.ranks().iter().filter_map(|r| land.ranks.index_of(*r));
    known.filter(move |&i| {
        let seat = &group.seats[i];
        seat.is_under_way() && at(seat, &seat.waits_for) <= here
    })
}

/// Follows "waits for" to its end.
fn follow(group: &Group, land: &Landscape, from: usize) -> usize {
    let mut path = vec![from];
    let mut at = from;
    loop {
        let waits = &group.seats[at].waits_for;
        let next = keeping(group, land, at, waits).min_by_key(|&i| innocence(group, land, i));
        let Some(next) = next else {
            return at;
        };
        if let Some(turn) = path.iter().position(|&i| i == next) {
            let ring = path[turn..].iter().copied();
            return ring
                .min_by_key(|&i| innocence(group, land, i))
                .unwrap_or(at);
        }
        path.push(next);
        at = next;
    }
}

/// What speaks for a rank, more for one than for another; see the top.
fn innocence(group: &Group, land: &Landscape, index: usize) -> impl Ord {
    let rank = land.ranks.as_slice()[index];
    let seat = &group.seats[index];
    let keeping = keeping(group, land, index, &seat.waits_for).count();
    let has_moved = seat.has_moved || keeping < seat.waits_for.ranks().len();
    let waits = |s: &&Seat| s.is_under_way() && s.waits_for.ranks().contains(&rank);
    let waiters = group.seats.iter().filter(waits).count();
    (
        !seat.waits_for.is_none(),
        has_moved,
        Reverse(waiters),
        index,
    )
}

#[cfg(test)]
mod tests {
    use super::super::agreement::Stage;
    use super::super::rank_set::RankSet;
    use super::*;
    use crate::rank::Rank;

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
        wait(&mut g, 0, &[1]);
        wait(&mut g, 1, &[3]);
        wait(&mut g, 2, &[3]);
        assert_eq!(culprit(&g, &land(), now), Some(3));
        wait(&mut g, 3, &[1]);
        assert_eq!(culprit(&g, &land(), now), Some(1), "a ring of 1 and 3");
        g.seats[3].stage = Stage::Done(Outcome::Complete);
        assert_eq!(culprit(&g, &land(), now), Some(1), "3 has ended");
    }

    /// Rank `index` waits for one of `peers`, it cannot say which.
    fn wait(group: &mut Group, index: u32, peers: &[u32]) {
        let waits = peers.iter().copied().map(Rank).collect();
        note_waits(group, &land(), index as usize, waits);
    }

    /// Ranks 0 and 1 each exchange bytes with 2 and 3, all at once.
    fn exchange(stuck: u32, start: Instant) -> Option<u32> {
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        for rank in 0..4 {
            let peers = if rank < 2 { [2, 3] } else { [0, 1] };
            // Whoever has no business with the stuck rank is in the next step.
            let is_past = rank != stuck && !peers.contains(&stuck);
            g.seats[rank as usize].progress.done += u32::from(is_past);
        }
        for rank in 0..4 {
            let peers = if rank < 2 { [2, 3] } else { [0, 1] };
            wait(&mut g, rank, &peers);
        }
        culprit(&g, &land(), now)
    }

    #[test]
    fn the_one_that_nobody_has_come_past_is_found_among_many() {
        for stuck in 0..4 {
            assert_eq!(exchange(stuck, Instant::now()), Some(stuck));
        }
    }

    #[test]
    fn the_one_that_waits_for_nobody_is_found_among_many() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        wait(&mut g, 0, &[1, 2, 3]);
        wait(&mut g, 1, &[0, 2, 3]);
        wait(&mut g, 3, &[0, 1, 2]);
        assert_eq!(culprit(&g, &land(), now), Some(2));
    }

    #[test]
    fn a_long_list_that_comes_in_turns_is_remembered() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats[1].progress.done = 4;
        g.seats[2].progress.done = 4;
        wait(&mut g, 0, &[3]);
        wait(&mut g, 0, &[1, 2]);
        wait(&mut g, 3, &[0]);
        assert_eq!(culprit(&g, &land(), now), Some(3));
    }

    /// The same of a rank that is so far in its step.
    fn wait_at(group: &mut Group, index: u32, place: u64, peers: &[u32]) {
        let waits: Waits = peers.iter().copied().map(Rank).collect();
        note_waits(group, &land(), index as usize, waits.at(place));
    }

    /// Rank 1 has got what it exchanged with 0 first, which waits for 3 still.
    #[test]
    fn who_is_further_on_in_the_step_is_not_to_blame() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        wait_at(&mut g, 0, 0, &[1, 3]);
        wait_at(&mut g, 1, 2, &[0, 2]);
        wait_at(&mut g, 2, 2, &[1]);
        wait_at(&mut g, 3, 0, &[0]);
        // Once more, as beats come again.
        wait_at(&mut g, 0, 0, &[1, 3]);
        assert_eq!(culprit(&g, &land(), now), Some(3));
    }

    #[test]
    fn a_list_of_another_place_is_forgotten() {
        let start = Instant::now();
        let mut g = group(start);
        let now = start + SECOND * 2;
        hear(&mut g, now);
        g.seats[1].progress.done = 4;
        for rank in [2, 3] {
            wait_at(&mut g, rank, 7, &[0]);
        }
        wait_at(&mut g, 0, 6, &[3]);
        // In its next turn 0 is behind nobody: it stands still by itself.
        wait_at(&mut g, 0, 7, &[1]);
        assert_eq!(culprit(&g, &land(), now), Some(0));
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

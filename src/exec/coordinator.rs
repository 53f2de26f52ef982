//! The lowest rank's judgement over all ranks: agreement, watch, outcome.
//!
//! Pure: messages and instants go in, messages come out; no socket, no clock,
//! no lock. It needs no plan either, everything it counts comes with the
//! messages. It runs on the control thread of the lowest rank.

mod departure;

use super::Outcome;
use super::agreement::{self, Group, Phase, Progress, Seat, Stage};
use super::comparison::{self, Comparison};
use super::landscape::Landscape;
use super::message::{Agree, Key, MISMATCH_COUNT_MAX, Message, NO_RANK, Sums};
use super::outbox::Outbox;
use super::outcome::CopyTally;
use super::rank_set::RankSet;
use super::watchdog;
use crate::error::{Error, Status};
use crate::rank::Rank;
use crate::transport::control::is_below;
use crate::transport::waits::Waits;
use departure::Departure;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an aborted execution waits for the last words of those who live.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(300);

/// What is over for one plan.
#[derive(Debug, Default)]
struct Round {
    /// The highest sequence that is over.
    closed: u64,
    /// How it ended, if it was refused.
    refusal: Option<Error>,
}

/// The lowest rank's view of everything.
#[derive(Debug)]
pub(super) struct Coordinator {
    pub land: Landscape,
    groups: Vec<Group>,
    /// Groups to be used again.
    pool: Vec<Group>,
    rounds: HashMap<u128, Round>,
    is_aborted: bool,
    departure: Departure,
    scratch: Vec<u8>,
}

impl Coordinator {
    pub fn new(ranks: RankSet) -> Coordinator {
        Coordinator {
            land: Landscape::new(ranks),
            groups: Vec::with_capacity(4),
            pool: Vec::new(),
            rounds: HashMap::new(),
            is_aborted: false,
            departure: Departure::default(),
            scratch: Vec::new(),
        }
    }

    /// Deals with a message that came up the tree.
    pub fn message(&mut self, message: &Message<'_>, now: Instant, out: &mut Outbox) {
        match *message {
            Message::Agree(ref a) => self.agree(a, now, out),
            Message::Withdraw { rank, key } => self.withdraw(Rank(rank), key, out),
            Message::Beat {
                rank,
                key,
                enqueued,
                done,
                moved,
                waits_for,
            } => {
                let progress = Progress {
                    enqueued,
                    done,
                    moved,
                };
                self.beat(Rank(rank), key, progress, waits_for, now);
            }
            Message::Done {
                rank,
                key,
                outcome,
                bytes: _,
                ref sums,
            } => self.done(rank, key, outcome, sums, now, out),
            Message::Pairs { rank, key, list } => self.pairs(Rank(rank), key, list, out),
            Message::Suspect { rank, is_silent } => self.land.set_suspect(Rank(rank), is_silent),
            Message::Leave { rank } => {
                if self.departure.leave(&self.land.ranks, Rank(rank)) {
                    out.down(&Message::Left);
                }
            }
            Message::Gone { rank } => self.gone(Rank(rank), out),
            Message::Ready { .. }
            | Message::Compare { .. }
            | Message::Refuse { .. }
            | Message::Outcome { .. }
            | Message::Awaited { .. }
            | Message::Left
            | Message::Ping { .. }
            | Message::Pong
            | Message::Abort { .. } => {}
        }
    }

    /// Looks at the clock. Returns when to look again.
    pub fn tick(&mut self, now: Instant, out: &mut Outbox) -> Option<Instant> {
        self.decide_compared(now, out);
        self.decide_late(now, out);
        self.decide_mismatches(now, out);
        let stalled = |g: &Group| watchdog::check(g, &self.land, now);
        if let Some(error) = self.groups.iter().find_map(stalled) {
            out.abort = Some(error);
        }
        self.settle_closing(now, out);
        if let Some(Rank(rank)) = self.departure.news(&self.land.ranks, now) {
            out.down(&Message::Awaited { rank });
        }
        let groups = self.groups.iter().filter_map(next_tick);
        groups.chain(self.departure.next_tick()).min()
    }

    /// How often neighbours should ping each other now; `None` while nothing
    /// is going on.
    pub fn ping_interval(&self) -> Option<Duration> {
        let ranks = self.land.ranks.len();
        let interval = |g: &Group| match g.phase {
            // Silence should show well before the agree deadline.
            Phase::Gathering => watchdog::beat_interval(g.stall_ns.min(g.agree_ns / 2), ranks),
            Phase::Running | Phase::Closing { .. } => watchdog::beat_interval(g.stall_ns, ranks),
        };
        self.groups.iter().map(interval).min()
    }

    /// Everything stops: the last words decide over outcomes.
    pub fn aborted(&mut self, reason: &Error, now: Instant, out: &mut Outbox) {
        if self.is_aborted {
            return;
        }
        self.is_aborted = true;
        // A stalled rank may still have something to say.
        let dead = reason.rank.filter(|_| reason.status == Status::PeerLost);
        let dead = dead.and_then(|r| self.land.ranks.index_of(r));
        for group in &mut self.groups {
            match group.phase {
                // Nobody was told to start.
                Phase::Gathering => untouched(&group.key, out),
                Phase::Running => {
                    group.phase = Phase::Closing {
                        until: now + LAST_WORDS,
                    };
                    mark_gone(group, dead);
                }
                Phase::Closing { .. } => {}
            }
        }
        let gathering = |g: &Group| g.phase == Phase::Gathering;
        while let Some(i) = self.groups.iter().position(gathering) {
            self.recycle(i);
        }
        self.settle_closing(now, out);
    }

    fn agree(&mut self, a: &Agree<'_>, now: Instant, out: &mut Outbox) {
        let Some(index) = self.land.ranks.index_of(Rank(a.rank)) else {
            return;
        };
        if self.is_aborted {
            return untouched(&a.key, out);
        }
        let round = self.rounds.entry(a.key.plan).or_default();
        if a.key.sequence <= round.closed {
            return refuse_late(round, a, out);
        }
        let at = match self.groups.iter().position(|g| g.key == a.key) {
            Some(at) => at,
            None => self.open(a, now),
        };
        if self.groups[at].phase != Phase::Gathering {
            return;
        }
        self.groups[at].arrive(index, a, now);
        if let Some((rank, by)) = self.land.unreachable(&self.groups[at].ranges) {
            let error = left_error(rank, by);
            return self.refuse(&[at], &error, out);
        }
        self.find_conflicts(at, now);
        self.decide(at, now, out);
    }

    fn open(&mut self, a: &Agree<'_>, now: Instant) -> usize {
        let ranks = self.land.ranks.len();
        let mut group = self.pool.pop().unwrap_or_else(|| Group::new(ranks, now));
        group.open(a.key, a, now);
        self.groups.push(group);
        self.groups.len() - 1
    }

    fn recycle(&mut self, at: usize) {
        let group = self.groups.swap_remove(at);
        self.pool.push(group);
    }

    /// Notes a mismatch with other groups, if group `at` is part of one.
    fn find_conflicts(&mut self, at: usize, now: Instant) {
        let ranks = self.land.ranks.as_slice();
        for other in 0..self.groups.len() {
            let [a, b] = [&self.groups[at], &self.groups[other]];
            if other != at
                && b.phase == Phase::Gathering
                && agreement::wait_for_each_other(a, b, ranks)
            {
                for i in [at, other] {
                    self.groups[i]
                        .decide_at
                        .get_or_insert(now + agreement::GRACE);
                }
            }
        }
    }

    /// Starts group `at` if everybody is here and means the same.
    fn decide(&mut self, at: usize, now: Instant, out: &mut Outbox) {
        let group = &mut self.groups[at];
        if !group.is_full() {
            return;
        }
        let ranks = self.land.ranks.as_slice();
        let seats = group.seats.iter();
        let differs = |s: &Seat| s.stage == Stage::Agreed && s.terms != group.terms;
        if seats.filter(|s| differs(s)).count() > 0 {
            let error = agreement::mismatch(&[group], ranks);
            return self.refuse(&[at], &error, out);
        }
        if let Some(error) = group.contradiction() {
            return self.refuse(&[at], &error, out);
        }
        if group.balance != 0 {
            let until = now + comparison::PATIENCE;
            let until = group.deadline.map_or(until, |d| d.min(until));
            group.comparison = Some(Comparison::new(until));
            return out.down(&Message::Compare { key: group.key });
        }
        group.phase = Phase::Running;
        if group.terms.is_verified() {
            let tensors = group.terms.tensors as usize;
            group.sums.open(tensors, group.copies.len());
        }
        out.down(&Message::Ready {
            key: group.key,
            stall_ns: group.stall_ns,
        });
    }

    /// A rank says what it would send to whom; the last one settles whose
    /// fault it is.
    fn pairs(&mut self, rank: Rank, key: Key, list: &[u8], out: &mut Outbox) {
        let Some(at) = self.groups.iter().position(|g| g.key == key) else {
            return;
        };
        let group = &mut self.groups[at];
        let Some(comparison) = &mut group.comparison else {
            return;
        };
        if comparison.hear(rank, list) >= group.arrived {
            let error = comparison.verdict(group.terms.version);
            self.refuse(&[at], &error, out);
        }
    }

    /// Judges comparisons for which ranks did not speak up in time.
    fn decide_compared(&mut self, now: Instant, out: &mut Outbox) {
        let due = |g: &Group| {
            let comparison = g.comparison.as_ref().filter(|c| now >= c.until)?;
            Some(comparison.verdict(g.terms.version))
        };
        let find = |groups: &[Group]| (0..groups.len()).find_map(|i| Some((i, due(&groups[i])?)));
        while let Some((at, error)) = find(&self.groups) {
            self.refuse(&[at], &error, out);
        }
    }

    /// Refuses groups whose deadline has come.
    fn decide_late(&mut self, now: Instant, out: &mut Outbox) {
        let is_late =
            |g: &Group| g.phase == Phase::Gathering && g.deadline.is_some_and(|d| now >= d);
        while let Some(at) = self.groups.iter().position(is_late) {
            if self.groups[at].decide_at.is_some() {
                self.refuse_mismatch(at, out);
            } else {
                let error = self.groups[at].timeout(&self.land);
                self.refuse(&[at], &error, out);
            }
        }
    }

    fn decide_mismatches(&mut self, now: Instant, out: &mut Outbox) {
        let is_due =
            |g: &Group| g.phase == Phase::Gathering && g.decide_at.is_some_and(|d| now >= d);
        while let Some(at) = self.groups.iter().position(is_due) {
            self.refuse_mismatch(at, out);
        }
    }

    /// Refuses group `at` and all that are in conflict with it; or goes on, if
    /// the conflict is gone.
    fn refuse_mismatch(&mut self, at: usize, out: &mut Outbox) {
        let ranks = self.land.ranks.as_slice();
        let group = &self.groups[at];
        let mut parties = vec![at];
        for (i, other) in self.groups.iter().enumerate() {
            let is_open = i != at && other.phase == Phase::Gathering;
            if is_open && agreement::wait_for_each_other(group, other, ranks) {
                parties.push(i);
            }
        }
        let seats = group.seats.iter();
        let mut agreed = seats.filter(|s| s.stage == Stage::Agreed);
        if parties.len() == 1 && agreed.all(|s| s.terms == group.terms) {
            self.groups[at].decide_at = None;
            return;
        }
        let groups: Vec<&Group> = parties.iter().map(|&i| &self.groups[i]).collect();
        let error = agreement::mismatch(&groups, ranks);
        self.refuse(&parties, &error, out);
    }

    fn refuse(&mut self, groups: &[usize], error: &Error, out: &mut Outbox) {
        let mut groups = groups.to_vec();
        groups.sort_unstable_by_key(|i| std::cmp::Reverse(*i));
        if groups.len() > 1 {
            // Whoever hears of one may come with another plan at once: by then
            // everybody knows what is over of all of them.
            for &at in &groups {
                let Key { plan, sequence } = self.groups[at].key;
                refusal(&Key { plan, sequence: 0 }, sequence, error, out);
            }
        }
        for at in groups {
            let key = self.groups[at].key;
            let round = self.rounds.entry(key.plan).or_default();
            round.closed = round.closed.max(key.sequence);
            round.refusal = Some(error.clone());
            refusal(&key, round.closed, error, out);
            self.recycle(at);
        }
    }

    fn withdraw(&mut self, rank: Rank, key: Key, out: &mut Outbox) {
        let Some(at) = self.groups.iter().position(|g| g.key == key) else {
            return;
        };
        match self.groups[at].phase {
            Phase::Gathering => {
                let text = format!(
                    "rank {rank} withdrew from version {} before all ranks had agreed",
                    self.groups[at].terms.version
                );
                let error = Error::new(Status::Refused, text).by(rank);
                self.refuse(&[at], &error, out);
            }
            Phase::Running => {
                let text = format!(
                    "rank {rank} withdrew from version {} after all ranks had agreed",
                    self.groups[at].terms.version
                );
                out.abort = Some(Error::new(Status::Aborted, text).by(rank));
            }
            Phase::Closing { .. } => {}
        }
    }

    fn beat(&mut self, rank: Rank, key: Key, progress: Progress, waits: Waits, now: Instant) {
        let Some(index) = self.land.ranks.index_of(rank) else {
            return;
        };
        let Some(group) = self.groups.iter_mut().find(|g| g.key == key) else {
            return;
        };
        let seat = &mut group.seats[index];
        seat.beat = now;
        if progress != seat.progress {
            seat.has_moved &= progress.done == seat.progress.done;
            seat.progress = progress;
            seat.advance = now;
        }
        watchdog::note_waits(group, &self.land, index, waits);
        if progress.enqueued > 0 {
            group.first_start.get_or_insert(now);
        }
    }

    fn done(
        &mut self,
        rank: u32,
        key: Key,
        outcome: Outcome,
        sums: &Sums<'_>,
        now: Instant,
        out: &mut Outbox,
    ) {
        let index = self.land.ranks.index_of(Rank(rank));
        let at = self.groups.iter().position(|g| g.key == key);
        let (Some(index), Some(at)) = (index, at) else {
            return;
        };
        let group = &mut self.groups[at];
        if !group.seats[index].is_under_way() {
            return;
        }
        group.first_start.get_or_insert(now);
        let seat = &mut group.seats[index];
        seat.stage = Stage::Done(outcome);
        seat.waits_for = Waits::NONE;
        let copy = seat.copy;
        group.done += 1;
        CopyTally::end(&mut group.copies, copy, outcome);
        if group.terms.is_verified() {
            let copy = group.copies.binary_search_by_key(&copy, |c| c.copy).ok();
            group.sums.add(copy, sums);
        }
        if group.done == group.arrived {
            self.settle(at, out);
        } else {
            self.settle_closing(now, out);
        }
    }

    /// A rank has left on its own; what it cut off is lost too.
    fn gone(&mut self, rank: Rank, out: &mut Outbox) {
        self.land.set_departed(rank);
        let Some(index) = self.land.ranks.index_of(rank) else {
            return;
        };
        let is_hit = |g: &Group| {
            let seats = g.seats.iter().enumerate();
            let mut below = seats.filter(|(i, _)| is_below(*i, index));
            g.phase == Phase::Running && below.any(|(_, s)| s.is_under_way())
        };
        if self.groups.iter().any(is_hit) {
            let text = format!("rank {rank} left while a request was under way");
            out.abort = Some(Error::new(Status::PeerLost, text).by(rank));
        }
        let is_waiting = |land: &Landscape, g: &Group| {
            g.phase == Phase::Gathering && land.unreachable(&g.ranges).is_some()
        };
        while let Some(at) = self.groups.iter().position(|g| is_waiting(&self.land, g)) {
            let error = left_error(rank, rank);
            self.refuse(&[at], &error, out);
        }
    }

    /// Settles aborted groups that have heard everybody or waited enough.
    fn settle_closing(&mut self, now: Instant, out: &mut Outbox) {
        let is_due = |g: &Group| match g.phase {
            Phase::Closing { until } => {
                let mut waiting = g.seats.iter().filter(|s| s.is_under_way() && !s.is_gone);
                now >= until || waiting.next().is_none()
            }
            Phase::Gathering | Phase::Running => false,
        };
        while let Some(at) = self.groups.iter().position(is_due) {
            self.settle(at, out);
        }
    }

    /// Says how it ended, for every copy.
    fn settle(&mut self, at: usize, out: &mut Outbox) {
        let group = &mut self.groups[at];
        let mut named = [(0u32, 0u32); MISMATCH_COUNT_MAX];
        let mut count = 0usize;
        let is_verified = group.phase == Phase::Running && group.terms.is_verified();
        if is_verified {
            let are_alike = group.terms.copies_are_alike;
            group.sums.compare(&mut group.copies, are_alike, |m| {
                if let Some(slot) = named.get_mut(count) {
                    *slot = m;
                }
                count += 1;
            });
        }
        self.scratch.clear();
        let (copies, all) = outcomes(group, &mut self.scratch);
        let exceptions = self.scratch.len();
        for (copy, tensor) in named.iter().take(count) {
            self.scratch.extend_from_slice(&copy.to_le_bytes());
            self.scratch.extend_from_slice(&tensor.to_le_bytes());
        }
        let mismatches = self.scratch.len();
        if is_verified {
            for sum in &group.sums.once {
                self.scratch.extend_from_slice(&sum.to_le_bytes());
            }
        }
        out.down(&Message::Outcome {
            key: group.key,
            copies,
            all,
            exceptions: &self.scratch[..exceptions],
            mismatch_count: count as u64,
            mismatches: &self.scratch[exceptions..mismatches],
            once: &self.scratch[mismatches..],
        });
        let key = group.key;
        let round = self.rounds.entry(key.plan).or_default();
        round.closed = round.closed.max(key.sequence);
        round.refusal = None;
        self.recycle(at);
    }
}

/// The outcome of most copies, of all together, and, written to `exceptions`,
/// of those that differ.
fn outcomes(group: &Group, exceptions: &mut Vec<u8>) -> (Outcome, Outcome) {
    let copies = group.copies.iter().map(CopyTally::outcome);
    let ranks = group.seats.iter().filter_map(|s| match s.stage {
        Stage::Done(outcome) => Some(outcome),
        Stage::Agreed => Some(Outcome::Torn),
        Stage::Absent => None,
    });
    let all = match copies.clone().reduce(Outcome::and) {
        Some(all) => all,
        None => ranks.reduce(Outcome::and).unwrap_or(Outcome::Untouched),
    };
    let most = Outcome::ALL
        .iter()
        .copied()
        .max_by_key(|o| copies.clone().filter(|c| c == o).count())
        .unwrap_or(all);
    for copy in &group.copies {
        if copy.outcome() != most {
            exceptions.extend_from_slice(&copy.copy.to_le_bytes());
            exceptions.push(copy.outcome() as u8);
        }
    }
    (most, all)
}

fn untouched(key: &Key, out: &mut Outbox) {
    out.down(&Message::Outcome {
        key: *key,
        copies: Outcome::Untouched,
        all: Outcome::Untouched,
        exceptions: &[],
        mismatch_count: 0,
        mismatches: &[],
        once: &[],
    });
}

fn refusal(key: &Key, closed: u64, error: &Error, out: &mut Outbox) {
    out.down(&Message::Refuse {
        key: *key,
        closed,
        status: error.status,
        culprit: error.rank.map_or(NO_RANK, |r| r.0),
        text: &error.message,
    });
}

fn refuse_late(round: &Round, a: &Agree<'_>, out: &mut Outbox) {
    let over = || {
        let text = format!(
            "rank {} came for sequence {} of plan {:032x}; {} are over",
            a.rank, a.key.sequence, a.key.plan, round.closed
        );
        Error::new(Status::PlanMismatch, text).by(Rank(a.rank))
    };
    let error = round.refusal.clone().unwrap_or_else(over);
    refusal(&a.key, round.closed, &error, out);
}

fn left_error(rank: Rank, by: Rank) -> Error {
    let text = if rank == by {
        format!("rank {rank} has left the transport")
    } else {
        format!("rank {rank} cannot be reached: rank {by} has left the transport")
    };
    Error::new(Status::PeerLost, text).by(by)
}

/// Marks the ranks that will not be heard of again.
fn mark_gone(group: &mut Group, dead: Option<usize>) {
    let Some(dead) = dead else { return };
    for (i, seat) in group.seats.iter_mut().enumerate() {
        seat.is_gone |= is_below(i, dead);
    }
}

fn next_tick(group: &Group) -> Option<Instant> {
    match group.phase {
        Phase::Gathering => {
            let compared = group.comparison.as_ref().map(|c| c.until);
            let all = [group.deadline, group.decide_at, compared];
            all.into_iter().flatten().min()
        }
        Phase::Running => watchdog::next_check(group),
        Phase::Closing { until } => Some(until),
    }
}

#[cfg(test)]
mod tests;

//! The lowest rank's judgement over all ranks: agreement, watch, outcome.
//!
//! Pure: messages and instants go in, messages come out; no socket, no clock,
//! no lock. It needs no plan either, everything it counts comes with the
//! messages. It runs on the control thread of the lowest rank.

use super::Outcome;
use super::agreement::{self, Group, Phase, Progress, Seat, Stage};
use super::endpoint::RankSet;
use super::message::{Agree, Key, MISMATCH_COUNT_MAX, Message, NO_RANK, Sums, range_list};
use super::outcome::CopyTally;
use super::watchdog;
use crate::error::{Error, Status};
use crate::rank::Rank;
use crate::transport::control::{is_below, parent_of};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an aborted execution waits for the last words of those who live.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(300);

/// All ranks, and what is known about each beside what it sends.
#[derive(Debug)]
pub(super) struct Landscape {
    pub ranks: RankSet,
    /// By index: its parent hears nothing from it.
    suspects: Vec<bool>,
    /// By index: it has left, or died.
    departed: Vec<bool>,
    has_departed: bool,
}

impl Landscape {
    pub fn new(ranks: RankSet) -> Landscape {
        Landscape {
            suspects: vec![false; ranks.len()],
            departed: vec![false; ranks.len()],
            has_departed: false,
            ranks,
        }
    }

    pub fn set_suspect(&mut self, rank: Rank, is_silent: bool) {
        if let Some(i) = self.ranks.index_of(rank) {
            self.suspects[i] = is_silent;
        }
    }

    fn set_departed(&mut self, rank: Rank) {
        if let Some(i) = self.ranks.index_of(rank) {
            self.departed[i] = true;
            self.has_departed = true;
        }
    }

    /// The lowest silent rank on the way from the root to `index`.
    pub fn silent_index_above(&self, index: usize) -> Option<usize> {
        first_above(&self.suspects, index)
    }

    pub fn silent_above(&self, rank: Rank) -> Option<Rank> {
        let index = self.silent_index_above(self.ranks.index_of(rank)?)?;
        Some(self.ranks.as_slice()[index])
    }

    /// The first participant in `ranges` that cannot be reached any more, and
    /// who cut it off.
    fn unreachable(&self, ranges: &[u8]) -> Option<(Rank, Rank)> {
        if !self.has_departed {
            return None;
        }
        let ranks = self.ranks.as_slice();
        let expected = ranks
            .iter()
            .enumerate()
            .filter(|(_, r)| range_list(ranges).any(|(lo, hi)| (lo..hi).contains(&r.0)));
        let mut lost = expected.filter_map(|(i, r)| {
            let above = first_above(&self.departed, i)?;
            Some((*r, ranks[above]))
        });
        lost.next()
    }
}

/// The highest marked node on the way from `index` to the root.
fn first_above(marks: &[bool], index: usize) -> Option<usize> {
    let mut found = None;
    let mut at = Some(index);
    while let Some(i) = at {
        if marks[i] {
            found = Some(i);
        }
        at = parent_of(i);
    }
    found
}

/// What the coordinator wants to be done.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Messages for everybody, each preceded by its length.
    frames: Vec<u8>,
    /// Where the next message starts.
    at: usize,
    /// Stop everything, for this reason.
    pub abort: Option<Error>,
}

impl Outbox {
    pub fn down(&mut self, message: &Message<'_>) {
        let at = self.frames.len();
        self.frames.extend_from_slice(&[0; 4]);
        message.encode(&mut self.frames);
        let length = (self.frames.len() - at - 4) as u32;
        self.frames[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Moves the next message to `frame`; false if there is none.
    pub fn next(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let rest = &self.frames[self.at..];
        let Some((head, rest)) = rest.split_first_chunk::<4>() else {
            self.frames.clear();
            self.at = 0;
            return false;
        };
        let length = u32::from_le_bytes(*head) as usize;
        frame.extend_from_slice(&rest[..length]);
        self.at += 4 + length;
        true
    }
}

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
    leaving: usize,
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
            leaving: 0,
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
            Message::Suspect { rank, is_silent } => self.land.set_suspect(Rank(rank), is_silent),
            Message::Leave { rank: _ } => {
                self.leaving += 1;
                if self.leaving == self.land.ranks.len() {
                    out.down(&Message::Left);
                }
            }
            Message::Gone { rank } => self.gone(Rank(rank), out),
            Message::Ready { .. }
            | Message::Refuse { .. }
            | Message::Outcome { .. }
            | Message::Left
            | Message::Ping { .. }
            | Message::Pong
            | Message::Abort { .. } => {}
        }
    }

    /// Looks at the clock. Returns when to look again.
    pub fn tick(&mut self, now: Instant, out: &mut Outbox) -> Option<Instant> {
        self.decide_late(now, out);
        self.decide_mismatches(now, out);
        let stalled = |g: &Group| watchdog::check(g, &self.land, now);
        if let Some(error) = self.groups.iter().find_map(stalled) {
            out.abort = Some(error);
        }
        self.settle_closing(now, out);
        self.groups.iter().filter_map(next_tick).min()
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
        self.decide(at, out);
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
    fn decide(&mut self, at: usize, out: &mut Outbox) {
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

    fn beat(&mut self, rank: Rank, key: Key, progress: Progress, waits_for: u32, now: Instant) {
        let Some(index) = self.land.ranks.index_of(rank) else {
            return;
        };
        let Some(group) = self.groups.iter_mut().find(|g| g.key == key) else {
            return;
        };
        let seat = &mut group.seats[index];
        seat.beat = now;
        seat.waits_for = waits_for;
        if progress != seat.progress {
            seat.progress = progress;
            seat.advance = now;
        }
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
        seat.waits_for = NO_RANK;
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
        Phase::Gathering => match (group.deadline, group.decide_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        },
        Phase::Running => watchdog::next_check(group),
        Phase::Closing { until } => Some(until),
    }
}

#[cfg(test)]
mod tests {
    use super::super::FLAG_VERIFY;
    use super::super::message::{NO_COPY, Participants};
    use super::*;

    /// A coordinator of ranks `0..6` in a world whose clock only we move.
    /// Ranks 2 and 3 are copy 0, 4 and 5 are copy 1.
    struct Court {
        coordinator: Coordinator,
        now: Instant,
        out: Outbox,
        participants: Participants,
    }

    const MS: u64 = 1_000_000;

    /// What came down, with texts and vectors copied out.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Word {
        Ready(u64),
        Refuse(u64, Status, u32, u64),
        Outcome(u64, [Outcome; 2], Outcome, u64),
        Left,
    }

    fn key(sequence: u64) -> Key {
        Key { plan: 7, sequence }
    }

    impl Court {
        fn new() -> Court {
            let ranks: Vec<Rank> = (0..6).map(Rank).collect();
            Court {
                coordinator: Coordinator::new(RankSet::count(6).unwrap()),
                now: Instant::now(),
                out: Outbox::default(),
                participants: Participants::new(&ranks),
            }
        }

        fn later(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
            self.coordinator.tick(self.now, &mut self.out);
        }

        fn say(&mut self, message: &Message<'_>) {
            self.coordinator.message(message, self.now, &mut self.out);
        }

        fn agree(&mut self, rank: u32, sequence: u64, change: impl Fn(&mut Agree<'_>)) {
            let participants = self.participants.clone();
            let mut a = Agree {
                rank,
                key: key(sequence),
                version: 1,
                flags: 0,
                library: 1,
                balance: if rank == 0 {
                    u128::MAX
                } else {
                    u128::from(rank == 1)
                },
                steps: 4,
                tensors: 2,
                copy: if rank < 2 { NO_COPY } else { rank / 2 - 1 },
                copy_ranks: if rank < 2 { 0 } else { 2 },
                copies_are_alike: true,
                participants: participants.count,
                lowest: participants.lowest,
                participants_hash: participants.hash,
                agree_ns: 1000 * MS,
                stall_ns: 1000 * MS,
                ranges: &participants.ranges,
            };
            change(&mut a);
            self.say(&Message::Agree(a));
        }

        fn all_agree(&mut self, sequence: u64) {
            (0..6).for_each(|r| self.agree(r, sequence, |_| {}));
            assert_eq!(self.words(), [Word::Ready(sequence)]);
        }

        fn beat(&mut self, rank: u32, sequence: u64, done: u32) {
            self.say(&Message::Beat {
                rank,
                key: key(sequence),
                enqueued: 4,
                done,
                moved: 0,
                waits_for: NO_RANK,
            });
        }

        fn done(&mut self, rank: u32, sequence: u64, outcome: Outcome) {
            self.say(&Message::Done {
                rank,
                key: key(sequence),
                outcome,
                bytes: 0,
                sums: Sums::default(),
            });
        }

        fn words(&mut self) -> Vec<Word> {
            let mut words = Vec::new();
            let mut frame = Vec::new();
            while self.out.next(&mut frame) {
                words.push(match Message::decode(&frame).unwrap() {
                    Message::Ready { key, .. } => Word::Ready(key.sequence),
                    Message::Refuse {
                        key,
                        closed,
                        status,
                        culprit,
                        ..
                    } => Word::Refuse(key.sequence, status, culprit, closed),
                    Message::Outcome {
                        key,
                        copies,
                        all,
                        exceptions,
                        mismatch_count,
                        ..
                    } => {
                        let mut each = [copies; 2];
                        for e in exceptions.chunks_exact(5) {
                            each[e[0] as usize] = Outcome::from_code(e[4]).unwrap();
                        }
                        Word::Outcome(key.sequence, each, all, mismatch_count)
                    }
                    Message::Left => Word::Left,
                    other => panic!("{other:?}"),
                });
            }
            words
        }

        fn abort(&mut self) -> Option<(Status, u32)> {
            let error = self.out.abort.take()?;
            Some((error.status, error.rank.map_or(NO_RANK, |r| r.0)))
        }
    }

    use Outcome::{Complete, Torn, Untouched};

    #[test]
    fn all_agree_all_are_done_and_again() {
        let mut court = Court::new();
        for sequence in 1..=3 {
            court.all_agree(sequence);
            assert!(court.coordinator.ping_interval().is_some());
            for rank in 0..6 {
                assert_eq!(court.words(), []);
                court.done(rank, sequence, Complete);
            }
            let all = Word::Outcome(sequence, [Complete; 2], Complete, 0);
            assert_eq!(court.words(), [all]);
            assert_eq!(court.coordinator.ping_interval(), None);
        }
    }

    #[test]
    fn whoever_is_missing_is_named_and_latecomers_hear_the_same() {
        for missing in 0..6 {
            let mut court = Court::new();
            let here = (0..6).filter(|r| *r != missing);
            here.for_each(|r| court.agree(r, 1, |_| {}));
            court.later(999);
            assert_eq!(court.words(), []);
            court.later(1);
            let refused = Word::Refuse(1, Status::AgreementTimeout, missing, 1);
            assert_eq!(court.words(), std::slice::from_ref(&refused));
            court.later(500);
            court.agree(missing, 1, |_| {});
            assert_eq!(court.words(), [refused]);
            court.all_agree(2);
        }
    }

    #[test]
    fn the_shortest_deadline_holds() {
        let mut court = Court::new();
        court.agree(0, 1, |_| {});
        court.agree(1, 1, |a| a.agree_ns = 100 * MS);
        court.later(100);
        let refused = Word::Refuse(1, Status::AgreementTimeout, 2, 1);
        assert_eq!(court.words(), [refused]);
    }

    #[test]
    fn the_odd_one_out_is_named_whoever_comes_first() {
        for odd in 0..6 {
            for first in 0..6 {
                let mut court = Court::new();
                let order = (first..6).chain(0..first);
                for rank in order {
                    court.agree(rank, 1, |a| a.version += u64::from(rank == odd));
                }
                let refused = Word::Refuse(1, Status::PlanMismatch, odd, 1);
                assert_eq!(court.words(), [refused]);
                court.all_agree(2);
            }
        }
    }

    #[test]
    fn ranks_with_different_plans_do_not_wait_for_the_deadline() {
        for odd in 0..6 {
            let mut court = Court::new();
            for rank in 0..6 {
                court.agree(rank, 1, |a| a.key.plan += u128::from(rank == odd));
            }
            assert_eq!(court.words(), []);
            court.later(100);
            let mut words = court.words();
            words.sort_by_key(|w| format!("{w:?}"));
            let refused = Word::Refuse(1, Status::PlanMismatch, odd, 1);
            assert_eq!(words, [refused.clone(), refused]);
        }
    }

    #[test]
    fn ranks_out_of_step_are_told_where_the_others_are() {
        let mut court = Court::new();
        (0..5).for_each(|r| court.agree(r, 4, |_| {}));
        court.agree(5, 2, |_| {});
        court.later(100);
        let words = court.words();
        assert_eq!(words.len(), 2);
        assert!(words.contains(&Word::Refuse(4, Status::PlanMismatch, 5, 4)));
        // Everybody goes on behind the highest sequence that is over.
        court.all_agree(5);
    }

    #[test]
    fn plans_of_some_ranks_may_be_agreed_on_one_after_the_other() {
        let mut court = Court::new();
        let some = |ranks: &[u32]| {
            let ranks: Vec<Rank> = ranks.iter().map(|r| Rank(*r)).collect();
            Participants::new(&ranks)
        };
        // 2 is busy with 3 before it joins 0 and 1: no mismatch.
        let small = |court: &mut Court, rank: u32, plan: u128, with: &Participants| {
            court.participants = with.clone();
            court.agree(rank, 1, |a| {
                a.key.plan = plan;
                a.balance = 0;
                a.copy = NO_COPY;
            });
        };
        let (left, right) = (some(&[0, 1, 2]), some(&[2, 3]));
        small(&mut court, 0, 1, &left);
        small(&mut court, 1, 1, &left);
        small(&mut court, 2, 2, &right);
        court.later(500);
        assert_eq!(court.words(), []);
        small(&mut court, 3, 2, &right);
        assert_eq!(court.words(), [Word::Ready(1)]);
    }

    #[test]
    fn pairs_that_do_not_balance_are_refused() {
        let mut court = Court::new();
        (0..6).for_each(|r| court.agree(r, 1, |a| a.balance = 1));
        let refused = Word::Refuse(1, Status::PlanMismatch, NO_RANK, 1);
        assert_eq!(court.words(), [refused]);
    }

    #[test]
    fn withdrawing_is_a_refusal_before_and_an_abort_after() {
        let mut court = Court::new();
        (0..5).for_each(|r| court.agree(r, 1, |_| {}));
        let withdraw = |s| Message::Withdraw {
            rank: 4,
            key: key(s),
        };
        court.say(&withdraw(1));
        assert_eq!(court.words(), [Word::Refuse(1, Status::Refused, 4, 1)]);
        court.all_agree(2);
        court.say(&withdraw(2));
        assert_eq!(court.abort(), Some((Status::Aborted, 4)));
    }

    #[test]
    fn a_rank_that_stands_still_is_stopped_and_progress_renews() {
        let mut court = Court::new();
        court.all_agree(1);
        for step in 0..4 {
            (0..6).for_each(|r| court.beat(r, 1, step));
            court.later(900);
            assert_eq!(court.abort(), None);
        }
        for ms in [100, 100] {
            (0..6).for_each(|r| court.beat(r, 1, if r == 3 { 3 } else { 4 }));
            court.later(ms);
        }
        (0..6).for_each(|r| court.beat(r, 1, if r == 3 { 3 } else { 4 }));
        assert_eq!(court.abort(), Some((Status::Stalled, 3)));
    }

    #[test]
    fn after_an_abort_outcomes_come_from_last_words() {
        let reason = Error::new(Status::PeerLost, "gone").by(Rank(3));
        let mut court = Court::new();
        court.all_agree(1);
        [2, 4, 5]
            .into_iter()
            .for_each(|r| court.done(r, 1, Complete));
        court
            .coordinator
            .aborted(&reason, court.now, &mut court.out);
        court.done(0, 1, Untouched);
        assert_eq!(court.words(), []);
        court.done(1, 1, Untouched);
        // 3 is dead and not waited for; its copy is not complete.
        let outcome = Word::Outcome(1, [Torn, Complete], Torn, 0);
        assert_eq!(court.words(), [outcome]);
        court.agree(0, 2, |_| {});
        let nothing = Word::Outcome(2, [Untouched; 2], Untouched, 0);
        assert_eq!(court.words(), [nothing]);
    }

    #[test]
    fn after_an_abort_the_silent_are_waited_for_only_so_long() {
        let reason = Error::new(Status::Aborted, "enough").by(Rank(1));
        let mut court = Court::new();
        court.all_agree(1);
        (0..4).for_each(|r| court.done(r, 1, Untouched));
        court
            .coordinator
            .aborted(&reason, court.now, &mut court.out);
        court.later(299);
        assert_eq!(court.words(), []);
        court.later(1);
        let outcome = Word::Outcome(1, [Untouched, Torn], Torn, 0);
        assert_eq!(court.words(), [outcome]);
    }

    #[test]
    fn an_abort_before_all_agreed_leaves_everything_untouched() {
        let reason = Error::new(Status::PeerLost, "gone").by(Rank(5));
        let mut court = Court::new();
        (0..5).for_each(|r| court.agree(r, 1, |_| {}));
        court
            .coordinator
            .aborted(&reason, court.now, &mut court.out);
        let nothing = Word::Outcome(1, [Untouched; 2], Untouched, 0);
        assert_eq!(court.words(), [nothing]);
    }

    #[test]
    fn digests_that_differ_tear_their_copy() {
        let mut court = Court::new();
        (0..6).for_each(|r| court.agree(r, 1, |a| a.flags = FLAG_VERIFY));
        assert_eq!(court.words(), [Word::Ready(1)]);
        let le = |v: [u64; 2]| v.map(u64::to_le_bytes).concat();
        let (half, whole, wrong) = (le([1, 2]), le([2, 4]), le([3, 4]));
        for rank in 0..6 {
            let sums = match rank {
                0 | 1 => Sums {
                    once: &half,
                    sent: &whole,
                    held: &[],
                },
                _ => Sums {
                    held: if rank == 4 { &wrong } else { &whole },
                    ..Sums::default()
                },
            };
            court.say(&Message::Done {
                rank,
                key: key(1),
                outcome: Complete,
                bytes: 0,
                sums,
            });
        }
        let outcome = Word::Outcome(1, [Complete, Torn], Torn, 1);
        assert_eq!(court.words(), [outcome]);
    }

    #[test]
    fn a_rank_that_left_is_not_waited_for() {
        let mut court = Court::new();
        court.say(&Message::Gone { rank: 4 });
        assert_eq!(court.abort(), None);
        court.agree(0, 1, |_| {});
        assert_eq!(court.words(), [Word::Refuse(1, Status::PeerLost, 4, 1)]);
    }

    #[test]
    fn leaving_takes_all() {
        let mut court = Court::new();
        for rank in 0..6 {
            assert_eq!(court.words(), []);
            court.say(&Message::Leave { rank });
        }
        assert_eq!(court.words(), [Word::Left]);
    }
}

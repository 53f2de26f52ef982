//! Do all ranks mean the same thing? Asked before the first byte moves.
//!
//! The coordinator gathers one AGREE from every participant of an execution
//! and compares their *terms*. Plan and sequence are the name under which they
//! are gathered, so ranks that come with different plans wait in different
//! groups; when two groups each wait for a rank that sits in the other, that
//! is a mismatch too, and nobody has to wait for the deadline to hear of it.
//!
//! ```text
//!   AGREE, AGREE, ...  ──► all here, terms equal, pairs balance ──► READY
//!                      ──► terms differ ─────────────────────────┐
//!                      ──► pairs differ ─────────────────────────┤
//!                      ──► deadline ─────────────────────────────┴► REFUSE
//! ```
//!
//! After a refusal the transport is as good as before. Whoever comes too late
//! for a refused sequence hears the same refusal, so that all ranks see the
//! same result of their n-th `prepare`.

use super::comparison::Comparison;
use super::landscape::Landscape;
use super::message::{Agree, Key, NO_COPY, in_ranges, range_list};
use super::outcome::CopyTally;
use super::{FLAG_DRY_RUN, FLAG_VERIFY, Outcome};
use crate::error::{Error, Status};
use crate::rank::Rank;
use crate::transport::greeting::list_ranks;
use crate::transport::waits::Waits;
use std::time::{Duration, Instant};

/// How long a mismatch waits for more ranks, to tell who is the odd one out.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// What must be equal on all ranks, beside plan and sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Terms {
    pub version: u64,
    pub flags: u32,
    pub library: u32,
    pub steps: u32,
    pub tensors: u32,
    pub participants: u32,
    pub lowest: u32,
    pub participants_hash: u64,
    pub copies_are_alike: bool,
}

impl Terms {
    pub fn of(a: &Agree<'_>) -> Terms {
        Terms {
            version: a.version,
            flags: a.flags,
            library: a.library,
            steps: a.steps,
            tensors: a.tensors,
            participants: a.participants,
            lowest: a.lowest,
            participants_hash: a.participants_hash,
            copies_are_alike: a.copies_are_alike,
        }
    }

    /// True if digests are to be compared in the end.
    pub fn is_verified(&self) -> bool {
        self.flags & (FLAG_VERIFY | FLAG_DRY_RUN) == FLAG_VERIFY
    }

    /// What is said about these terms to a person.
    fn describe(&self, key: &Key) -> String {
        format!(
            "plan {:032x}, sequence {}, version {}, flags {}, library {}.{}.{}",
            key.plan,
            key.sequence,
            self.version,
            self.flags & super::FLAGS_ALL,
            self.library >> 20,
            self.library >> 10 & 1023,
            self.library & 1023
        )
    }
}

/// How far one rank has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Absent,
    Agreed,
    Done(Outcome),
}

/// How far a started rank has come; whoever stands still in all of it stalls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub enqueued: u32,
    pub done: u32,
    /// Bytes that its transport has moved.
    pub moved: u64,
}

/// One rank's part in a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub stage: Stage,
    pub terms: Terms,
    pub copy: u32,
    pub progress: Progress,
    /// Peers that may keep it where it is.
    pub waits_for: Waits,
    /// A peer of its step is past it: the rank has moved bytes in it.
    pub has_moved: bool,
    /// When it was last heard of, and when it last came further.
    pub beat: Instant,
    pub advance: Instant,
    /// True once it is known to be dead or cut off.
    pub is_gone: bool,
}

impl Seat {
    pub fn absent(now: Instant) -> Seat {
        Seat {
            stage: Stage::Absent,
            terms: Terms::default(),
            copy: NO_COPY,
            progress: Progress::default(),
            waits_for: Waits::NONE,
            has_moved: false,
            beat: now,
            advance: now,
            is_gone: false,
        }
    }

    /// Takes part and has not ended.
    pub fn is_under_way(&self) -> bool {
        match self.stage {
            Stage::Agreed => true,
            Stage::Absent | Stage::Done(_) => false,
        }
    }
}

/// Where a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Gathering,
    Running,
    /// Aborted: waits for the ranks' last words until then.
    Closing {
        until: Instant,
    },
}

/// All ranks that execute one plan once.
#[derive(Debug)]
pub(super) struct Group {
    pub key: Key,
    pub phase: Phase,
    /// The terms of whoever came first.
    pub terms: Terms,
    pub ranges: Vec<u8>,
    /// By index in the list of all ranks.
    pub seats: Vec<Seat>,
    pub arrived: u32,
    pub done: u32,
    pub balance: u128,
    /// The earliest of all ranks' deadlines.
    pub deadline: Option<Instant>,
    /// Set by a mismatch: when it is decided.
    pub decide_at: Option<Instant>,
    /// Under way once everybody is here and pairs turn out not to balance.
    pub comparison: Option<Comparison>,
    pub agree_ns: u64,
    pub stall_ns: u64,
    /// When the first rank started.
    pub first_start: Option<Instant>,
    pub copies: Vec<CopyTally>,
    pub sums: super::outcome::SumTally,
}

impl Group {
    pub fn new(ranks: usize, now: Instant) -> Group {
        Group {
            key: Key::default(),
            phase: Phase::Gathering,
            terms: Terms::default(),
            ranges: Vec::new(),
            seats: vec![Seat::absent(now); ranks],
            arrived: 0,
            done: 0,
            balance: 0,
            deadline: None,
            decide_at: None,
            comparison: None,
            agree_ns: u64::MAX,
            stall_ns: u64::MAX,
            first_start: None,
            copies: Vec::new(),
            sums: super::outcome::SumTally::default(),
        }
    }

    /// Makes a used group fit for `key`; keeps its memory.
    pub fn open(&mut self, key: Key, a: &Agree<'_>, now: Instant) {
        self.key = key;
        self.phase = Phase::Gathering;
        self.terms = Terms::of(a);
        self.ranges.clear();
        self.seats.fill(Seat::absent(now));
        self.arrived = 0;
        self.done = 0;
        self.balance = 0;
        self.deadline = None;
        self.decide_at = None;
        self.comparison = None;
        self.agree_ns = u64::MAX;
        self.stall_ns = u64::MAX;
        self.first_start = None;
        self.copies.clear();
        self.sums.clear();
    }

    /// Takes in one rank.
    pub fn arrive(&mut self, index: usize, a: &Agree<'_>, now: Instant) {
        let seat = &mut self.seats[index];
        if seat.stage != Stage::Absent {
            return;
        }
        *seat = Seat {
            stage: Stage::Agreed,
            terms: Terms::of(a),
            copy: a.copy,
            ..Seat::absent(now)
        };
        if seat.terms != self.terms {
            self.decide_at.get_or_insert(now + GRACE);
        }
        self.arrived += 1;
        self.balance = self.balance.wrapping_add(a.balance);
        let deadline = super::instant_in(now, a.agree_ns);
        self.deadline = match (self.deadline, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.agree_ns = self.agree_ns.min(a.agree_ns);
        self.stall_ns = self.stall_ns.min(a.stall_ns);
        if self.ranges.is_empty() {
            self.ranges.extend_from_slice(a.ranges);
        }
        CopyTally::expect(&mut self.copies, a.copy, a.copy_ranks);
    }

    pub fn is_full(&self) -> bool {
        self.arrived >= self.terms.participants
    }

    /// True if `rank` is known to belong here.
    pub fn expects(&self, rank: Rank) -> bool {
        in_ranges(&self.ranges, rank.0)
    }

    /// Why ranks that all came with equal terms cannot start.
    pub fn contradiction(&self) -> Option<Error> {
        let wrong = self.copies.iter().find(|c| c.expected != c.arrived)?;
        let text = format!(
            "copy {} has {} ranks; its ranks say {}",
            wrong.copy, wrong.arrived, wrong.expected
        );
        Some(Error::new(Status::PlanMismatch, text))
    }

    /// Who is missing when the deadline has come.
    pub fn timeout(&self, land: &Landscape) -> Error {
        let missing = self.missing(land);
        let count = self.terms.participants.saturating_sub(self.arrived);
        let lowest = missing.first().copied().unwrap_or(Rank(self.terms.lowest));
        let culprit = land.silent_above(lowest).unwrap_or(lowest);
        let named = if missing.is_empty() {
            format!("rank {lowest} first")
        } else {
            list_ranks(&missing)
        };
        let mut text = format!(
            "{count} of {} ranks did not agree in time for version {}: {named}",
            self.terms.participants, self.terms.version
        );
        if culprit != lowest {
            text.push_str(&format!(
                "; rank {culprit}, which passes on their messages, is silent"
            ));
        }
        Error::new(Status::AgreementTimeout, text).by(culprit)
    }

    /// Participants that have not come, ascending, if the list is known.
    fn missing(&self, land: &Landscape) -> Vec<Rank> {
        let ranks = land.ranks.as_slice();
        let seats = ranks.iter().zip(&self.seats);
        let in_lists = |r: &Rank| range_list(&self.ranges).any(|(lo, hi)| (lo..hi).contains(&r.0));
        seats
            .filter(|(r, seat)| seat.stage == Stage::Absent && in_lists(r))
            .map(|(r, _)| *r)
            .collect()
    }
}

/// True if each group waits for a rank that sits in the other: neither can
/// ever be complete.
pub(super) fn wait_for_each_other(a: &Group, b: &Group, ranks: &[Rank]) -> bool {
    let sits_and_is_expected = |a: &Group, b: &Group| {
        let seats = ranks.iter().zip(&a.seats);
        let mut here = seats.filter(|(_, s)| s.stage == Stage::Agreed);
        here.any(|(r, _)| b.expects(*r))
    };
    sits_and_is_expected(a, b) && sits_and_is_expected(b, a)
}

/// What is wrong between ranks that have come with different terms, spread
/// over `groups`. The culprit is the lowest rank that is not with the most.
pub(super) fn mismatch(groups: &[&Group], ranks: &[Rank]) -> Error {
    struct Party {
        key: Key,
        terms: Terms,
        lowest: Rank,
        count: usize,
    }
    let mut parties: Vec<Party> = Vec::new();
    for group in groups {
        for (rank, seat) in ranks.iter().zip(&group.seats) {
            if seat.stage != Stage::Agreed {
                continue;
            }
            let same = |p: &&mut Party| p.key == group.key && p.terms == seat.terms;
            match parties.iter_mut().find(same) {
                Some(party) => {
                    party.count += 1;
                    party.lowest = party.lowest.min(*rank);
                }
                None => parties.push(Party {
                    key: group.key,
                    terms: seat.terms,
                    lowest: *rank,
                    count: 1,
                }),
            }
        }
    }
    parties.sort_unstable_by_key(|p| (std::cmp::Reverse(p.count), p.lowest));
    let Some((most, others)) = parties.split_first() else {
        return Error::internal("a mismatch without ranks");
    };
    let Some(odd) = others.iter().min_by_key(|p| p.lowest) else {
        return Error::internal("a mismatch among equals");
    };
    let text = format!(
        "rank {} came with {}; {} ranks, the lowest of them {}, with {}",
        odd.lowest,
        odd.terms.describe(&odd.key),
        most.count,
        most.lowest,
        most.terms.describe(&most.key)
    );
    Error::new(Status::PlanMismatch, text).by(odd.lowest)
}

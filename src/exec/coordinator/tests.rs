//! The coordinator alone, in a world whose clock only the test moves.

use super::super::FLAG_VERIFY;
use super::super::comparison::write_pairs;
use super::super::message::{NO_COPY, Participants};
use super::*;
use crate::plan::program::{Direction, PairHash};

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
    Compare(u64),
    Refuse(u64, Status, u32, u64),
    Outcome(u64, [Outcome; 2], Outcome, u64),
    Awaited(u32),
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
            waits_for: Waits::NONE,
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
                Message::Compare { key } => Word::Compare(key.sequence),
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
                Message::Awaited { rank } => Word::Awaited(rank),
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
        // What is over of both plans comes before anybody is refused.
        let refused = |sequence| Word::Refuse(sequence, Status::PlanMismatch, odd, 1);
        let wanted = [refused(0), refused(0), refused(1), refused(1)];
        assert_eq!(court.words(), wanted);
    }
}

#[test]
fn ranks_out_of_step_are_told_where_the_others_are() {
    let mut court = Court::new();
    (0..5).for_each(|r| court.agree(r, 4, |_| {}));
    court.agree(5, 2, |_| {});
    court.later(100);
    let words = court.words();
    assert_eq!(words.len(), 4);
    assert!(words[2..].contains(&Word::Refuse(4, Status::PlanMismatch, 5, 4)));
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
    assert_eq!(court.words(), [Word::Compare(1)]);
    let pair = |peer, direction, hash| {
        let mut list = Vec::new();
        let peer = Rank(peer);
        let pair = PairHash {
            peer,
            direction,
            hash,
        };
        write_pairs(&[pair], &mut list);
        list
    };
    let lists = [
        pair(2, Direction::Send, 5),
        pair(3, Direction::Send, 6),
        pair(0, Direction::Receive, 5),
        pair(1, Direction::Receive, 7),
        vec![],
        vec![],
    ];
    for (rank, list) in (0..).zip(&lists) {
        assert_eq!(court.words(), []);
        court.say(&Message::Pairs {
            rank,
            key: key(1),
            list,
        });
    }
    let refused = Word::Refuse(1, Status::PlanMismatch, 1, 1);
    assert_eq!(court.words(), [refused]);
    court.all_agree(2);
}

#[test]
fn whoever_does_not_say_what_it_sends_is_not_waited_for() {
    let mut court = Court::new();
    (0..6).for_each(|r| court.agree(r, 1, |a| a.balance = 1));
    assert_eq!(court.words(), [Word::Compare(1)]);
    court.later(999);
    assert_eq!(court.words(), []);
    court.later(1);
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
fn leaving_takes_all_and_tells_who_is_awaited() {
    let mut court = Court::new();
    for (rank, awaited) in [(0, 1), (4, 1), (1, 2), (2, 3), (5, 3)] {
        court.say(&Message::Leave { rank });
        court.later(60);
        assert_eq!(court.words(), [Word::Awaited(awaited)]);
        court.later(60);
        assert_eq!(court.words(), []);
    }
    court.say(&Message::Leave { rank: 3 });
    assert_eq!(court.words(), [Word::Left]);
}

#[test]
fn leaving_one_by_one_costs_few_messages() {
    let mut court = Court::new();
    for rank in 0..5 {
        court.say(&Message::Leave { rank });
        court.later(1);
    }
    assert_eq!(court.words(), [Word::Awaited(1)]);
    court.later(60);
    assert_eq!(court.words(), [Word::Awaited(5)]);
}

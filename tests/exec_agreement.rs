//! Ranks that do not mean the same: nobody's memory is touched, everybody hears
//! who is different, and the next version works on the same transport.

mod exec_support;

use exec_support::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weightsync::exec::endpoint::Fault as ControlFault;
use weightsync::exec::*;
use weightsync::layout::Layout;
use weightsync::layout::tensor::Tensor;
use weightsync::layout::view::NamedBuffer;
use weightsync::plan::Plan;
use weightsync::plan::program::{BufferUse, Direction, Program, Side};
use weightsync::{Error, Rank, Result, Status};

const STEPS: u32 = 3;
/// The agree deadline of agreements that are meant to fail.
const AGREE: u64 = 500 * MS;
/// How much later than its deadline a rank may return on a busy machine.
const MARGIN: Duration = Duration::from_millis(8000);

/// The coordinator, another source, and a rank of each copy.
const VICTIMS: [u32; 4] = [0, 1, 2, 5];

fn short(version: u64) -> RequestOptions {
    RequestOptions {
        agree_deadline_ns: AGREE,
        ..options(version)
    }
}

/// How a failed attempt ended.
type Attempt = (Result<State>, Option<(Outcome, Outcome)>);

fn attempt(request: &Request, o: &RequestOptions) -> Attempt {
    let result = request.submit(o).and_then(|()| request.wait(60 * SECOND));
    (result, request.outcome())
}

/// Everybody tries version 1, which fails as `fail` says; then version 2,
/// which must succeed on the same transport.
fn fails_then_works(
    status: Status,
    culprit: u32,
    what: &str,
    fail: impl Fn(&mut Rig) -> Attempt + Sync,
) {
    let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
    let gate = Gate::new(6);
    world.run(|rig| {
        let before = rig.snapshot();
        rig.store(1);
        let start = Instant::now();
        let (result, outcome) = fail(rig);
        let error = failure(&result);
        assert_eq!(error.status, status, "{what}: rank {}: {error}", rig.rank);
        assert_eq!(
            error.rank,
            Some(Rank(culprit)),
            "{what}: rank {}: {error}",
            rig.rank
        );
        assert!(
            start.elapsed() < Duration::from_nanos(AGREE) + MARGIN,
            "{what}"
        );
        assert_eq!(rig.snapshot(), before, "{what}");
        assert_eq!(
            outcome,
            Some((Outcome::Untouched, Outcome::Untouched)),
            "{what}"
        );
        gate.wait();
        assert_eq!(rig.sync(&options(2)), Ok(State::Done), "{what}");
    });
}

#[test]
fn a_late_rank_is_named_and_the_next_version_works() {
    for victim in VICTIMS {
        let what = format!("rank {victim} is late");
        fails_then_works(Status::AgreementTimeout, victim, &what, |rig| {
            if rig.rank == victim {
                std::thread::sleep(Duration::from_nanos(AGREE) + Duration::from_millis(300));
            }
            attempt(&rig.request, &short(1))
        });
    }
}

#[test]
fn another_version_is_named_and_the_next_one_works() {
    for victim in VICTIMS {
        let what = format!("rank {victim} comes with another version");
        fails_then_works(Status::PlanMismatch, victim, &what, |rig| {
            let version = if rig.rank == victim { 77 } else { 1 };
            attempt(&rig.request, &options(version))
        });
    }
}

#[test]
fn other_flags_are_named_and_the_next_version_works() {
    fails_then_works(Status::PlanMismatch, 4, "other flags", |rig| {
        let flags = if rig.rank == 4 { FLAG_VERIFY } else { 0 };
        let o = RequestOptions {
            flags,
            ..options(1)
        };
        attempt(&rig.request, &o)
    });
}

#[test]
fn another_plan_is_named_and_the_next_version_works() {
    for victim in VICTIMS {
        let what = format!("rank {victim} comes with another plan");
        let other = Shape::Apart.plan(STEPS + 2);
        fails_then_works(Status::PlanMismatch, victim, &what, |rig| {
            if rig.rank != victim {
                return attempt(&rig.request, &options(1));
            }
            let slot = rig.session.load(other.clone()).unwrap();
            let request = Request::new(&rig.session, slot).unwrap();
            let result = attempt(&request, &options(1));
            rig.session.unload(slot).unwrap();
            result
        });
    }
}

#[test]
fn a_rank_that_withdraws_is_named_and_the_next_version_works() {
    let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
    let gate = Gate::new(6);
    world.run(|rig| {
        if rig.rank == 3 {
            // The others wait for 5; 3 has come, and goes.
            rig.request.prepare(&options(1)).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            rig.request = Request::new(&rig.session, rig.slot).unwrap();
        } else if rig.rank != 5 {
            let result = rig.request.submit(&options(1));
            let e = result.unwrap_err();
            assert_eq!((e.status, e.rank), (Status::Refused, Some(Rank(3))), "{e}");
        }
        gate.wait();
        if rig.rank == 5 {
            let e = rig.request.submit(&options(1)).unwrap_err();
            assert_eq!((e.status, e.rank), (Status::Refused, Some(Rank(3))), "{e}");
        }
        gate.wait();
        assert_eq!(rig.sync(&options(2)), Ok(State::Done));
    });
}

#[test]
fn a_frozen_rank_is_named_by_those_who_agree_and_may_thaw() {
    for victim in [0, 2] {
        let what = format!("rank {victim} is frozen in the agreement");
        let world = World::new(Carrier::Loopback, Shape::Apart, STEPS);
        let gate = Gate::new(6);
        world.run(|rig| {
            if rig.rank == victim {
                rig.endpoint.inject(ControlFault::Freeze);
            }
            gate.wait();
            if rig.rank != victim {
                let start = Instant::now();
                let e = rig.request.submit(&short(1)).unwrap_err();
                let took = start.elapsed();
                assert_eq!(e.status, Status::AgreementTimeout, "{what}: {e}");
                assert_eq!(e.rank, Some(Rank(victim)), "{what}: {e}");
                assert!(took < Duration::from_nanos(AGREE) + MARGIN, "{what}");
                assert_eq!(rig.request.outcome().unwrap().0, Outcome::Untouched);
            }
            gate.wait();
            if rig.rank == victim {
                rig.endpoint.inject(ControlFault::None);
                let e = rig.request.submit(&short(1)).unwrap_err();
                assert!(e.status.is_retryable(), "{what}: {e}");
            }
            gate.wait();
            assert_eq!(rig.sync(&options(2)), Ok(State::Done), "{what}");
        });
    }
}

/// A plan whose program has gone bad in one list on one rank.
#[derive(Debug)]
struct Damaged {
    plan: Arc<Plan>,
    rank: Rank,
    peer: Rank,
}

impl PlanView for Damaged {
    fn program(&self, rank: Rank) -> Result<Program> {
        let mut program = self.plan.program_with_digests(rank)?;
        if rank == self.rank {
            let pairs = program.pairs.iter_mut();
            let mut to_peer =
                pairs.filter(|p| p.peer == self.peer && p.direction == Direction::Send);
            let pair = to_peer
                .next()
                .ok_or_else(|| Error::internal("no such pair"))?;
            pair.hash ^= 1 << 77;
            program.pair_balance ^= 1 << 77;
        }
        Ok(program)
    }

    fn fingerprint(&self) -> u128 {
        self.plan.fingerprint()
    }

    fn step_count(&self) -> u32 {
        self.plan.step_count()
    }

    fn participants(&self) -> Vec<Rank> {
        self.plan.participants().to_vec()
    }

    fn copy_of(&self, rank: Rank) -> Option<u32> {
        self.plan.copy_of(rank)
    }

    fn copy_ranks(&self, copy: u32) -> u32 {
        self.plan.copy_ranks(copy)
    }

    fn buffer(&self, rank: Rank, buffer: &BufferUse) -> Option<NamedBuffer> {
        self.plan.buffer(rank, buffer)
    }

    fn layout(&self, side: Side) -> &Layout {
        self.plan.layout(side)
    }

    fn tensors(&self) -> &[Tensor] {
        self.plan.tensors()
    }

    fn staging_bytes_max(&self) -> u64 {
        self.plan.staging_bytes_max()
    }

    fn copies_are_alike(&self) -> bool {
        self.plan.copies_are_alike()
    }
}

#[test]
fn a_pair_that_does_not_mean_the_same_is_named_and_the_next_version_works() {
    let plan = Shape::Apart.plan(STEPS);
    // Half of the pair is right: the lower of the two is named.
    fails_then_works(Status::PlanMismatch, 1, "a damaged list", |rig| {
        let damaged = Damaged {
            plan: plan.clone(),
            rank: Rank(1),
            peer: Rank(4),
        };
        let slot = rig.session.load(Arc::new(damaged)).unwrap();
        let request = Request::new(&rig.session, slot).unwrap();
        let (result, outcome) = attempt(&request, &options(1));
        let e = failure(&result);
        assert!(e.message.contains("rank 1 would send to rank 4"), "{e}");
        rig.session.unload(slot).unwrap();
        (result, outcome)
    });
}

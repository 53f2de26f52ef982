//! A warm request allocates nothing, in no thread.

mod alloc_support;
mod exec_support;

use alloc_support::{set_counting, take_count};
use exec_support::*;
use weightsync::exec::*;

#[test]
fn the_third_request_allocates_nothing() {
    for carrier in carriers() {
        let shapes = [Shape::Apart, Shape::Forwarded];
        for (shape, flags) in shapes.into_iter().flat_map(|s| [(s, 0), (s, FLAG_VERIFY)]) {
            let world = World::new(carrier, shape, 5);
            let gate = Gate::new(world.shape.rank_count() as usize);
            world.run(|rig| {
                for version in 1..=6 {
                    rig.store(version);
                    let o = RequestOptions {
                        flags,
                        ..options(version)
                    };
                    gate.wait();
                    if rig.rank == 0 {
                        set_counting(version >= 3);
                    }
                    gate.wait();
                    let prepared = rig.request.prepare(&o);
                    let ready = rig.request.wait_ready(NO_DEADLINE);
                    let started = rig.request.start();
                    let done = rig.request.wait(NO_DEADLINE);
                    let outcome = rig.request.outcome();
                    gate.wait();
                    if rig.rank == 0 {
                        set_counting(false);
                    }
                    gate.wait();
                    assert_eq!((prepared, started), (Ok(()), Ok(())));
                    assert!(matches!(ready, Ok(State::Ready)));
                    assert_eq!(done, Ok(State::Done));
                    assert_eq!(outcome, Some((Outcome::Complete, Outcome::Complete)));
                }
            });
            assert_eq!(take_count(), 0, "{carrier:?}, flags {flags}");
        }
    }
}

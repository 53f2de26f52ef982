//! Whole transfers that go well.

mod exec_support;

use exec_support::*;
use weightsync::exec::*;

#[test]
fn three_versions_in_a_row_arrive() {
    for carrier in CARRIERS {
        for shape in [Shape::Apart, Shape::Colocated] {
            let world = World::new(carrier, shape, 4);
            world.run(|rig| {
                for version in 1..=3 {
                    assert_eq!(rig.sync(&options(version)), Ok(State::Done));
                    let outcome = rig.request.outcome();
                    assert_eq!(outcome, Some((Outcome::Complete, Outcome::Complete)));
                    if let Some(d) = rig.destination() {
                        assert_eq!(d.now(), d.expected(version), "{carrier:?} {shape:?}");
                    }
                    assert_eq!(rig.request.steps_done(), 4);
                }
            });
        }
    }
}

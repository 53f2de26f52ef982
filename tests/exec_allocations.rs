//! A warm request allocates nothing, in no thread.

mod alloc_support;
mod exec_support;

use alloc_support::{set_counting, take_count};
use exec_support::*;
use weightsync::exec::*;
use weightsync::transport::nccl::{IpcScope, NcclOptions};

/// Six versions, of which the last four allocate nothing.
fn allocates_nothing(world: &World, flags: u32, what: &str) {
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
    assert_eq!(take_count(), 0, "{what}, flags {flags}");
}

/// Counts are those of the process: one world at a time.
#[test]
fn the_third_request_allocates_nothing() {
    let shapes = [Shape::Apart, Shape::Forwarded];
    for (shape, flags) in shapes.into_iter().flat_map(|s| [(s, 0), (s, FLAG_VERIFY)]) {
        for carrier in carriers() {
            let world = World::new(carrier, shape, 5);
            allocates_nothing(&world, flags, &format!("{carrier:?}"));
        }
        allocates_nothing(&through_endpoints(shape), flags, "through endpoints");
        allocates_nothing(&lending(shape), flags, "lending");
    }
}

/// Two ranks to a GPU, each GPU in a host of its own.
fn through_endpoints(shape: Shape) -> World {
    World::over_nccl(shape, 5, |rank, options| NcclOptions {
        device: Some(rank / 2),
        host: Some([rank as u8 / 2; 16]),
        ..options
    })
}

/// All ranks on a host, which read each other's buffers.
fn lending(shape: Shape) -> World {
    World::over_nccl(shape, 5, |_, options| NcclOptions {
        ipc: IpcScope::Domain,
        is_lending: true,
        ..options
    })
}

//! A warm request allocates nothing, in no thread.

mod exec_support;

use exec_support::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use weightsync::exec::*;

struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_REPORTING: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !IS_COUNTING.load(Ordering::Relaxed) {
        return;
    }
    let is_first = IS_REPORTING.try_with(|r| !r.replace(true)).unwrap_or(false);
    if is_first {
        COUNT.fetch_add(1, Ordering::Relaxed);
        if std::env::var_os("WSYNC_TEST_BACKTRACE").is_some() {
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
        }
        let _ = IS_REPORTING.try_with(|r| r.set(false));
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_third_request_allocates_nothing() {
    for carrier in CARRIERS {
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
                        IS_COUNTING.store(version >= 3, Ordering::Relaxed);
                    }
                    gate.wait();
                    let prepared = rig.request.prepare(&o);
                    let ready = rig.request.wait_ready(NO_DEADLINE);
                    let started = rig.request.start();
                    let done = rig.request.wait(NO_DEADLINE);
                    let outcome = rig.request.outcome();
                    gate.wait();
                    if rig.rank == 0 {
                        IS_COUNTING.store(false, Ordering::Relaxed);
                    }
                    gate.wait();
                    assert_eq!((prepared, started), (Ok(()), Ok(())));
                    assert!(matches!(ready, Ok(State::Ready)));
                    assert_eq!(done, Ok(State::Done));
                    assert_eq!(outcome, Some((Outcome::Complete, Outcome::Complete)));
                }
            });
            let count = COUNT.swap(0, Ordering::Relaxed);
            assert_eq!(count, 0, "{carrier:?}, flags {flags}");
        }
    }
}

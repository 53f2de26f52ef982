//! An allocator that counts, in all threads, while it is told to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// Counts from now on, or no longer.
pub fn set_counting(is_counting: bool) {
    IS_COUNTING.store(is_counting, Ordering::Relaxed);
}

/// Allocations since it was asked last.
pub fn take_count() -> u64 {
    COUNT.swap(0, Ordering::Relaxed)
}

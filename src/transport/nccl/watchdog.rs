//! The thread that keeps an eye on one communicator.
//!
//! It sleeps while nothing is under way. Else it looks at the abort word often,
//! and now and then asks NCCL how it goes. It never waits for a lock: if
//! somebody is inside NCCL, that thread looks at the abort word itself.

use super::Shared;
use super::comm::Comm;
use crate::error::Error;
use crate::log::{Level, line};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the abort word is looked at while something is under way.
const LOOK: Duration = Duration::from_millis(2);
/// How often NCCL is asked for its state.
const ASK: Duration = Duration::from_millis(20);
/// The longest sleep; whatever matters wakes the thread.
const NAP: Duration = Duration::from_millis(250);
/// After this long it is said that somebody does not come out of NCCL, and
/// nobody waits for the stream any more.
const STUCK: Duration = Duration::from_secs(2);

pub(super) struct Watchdog {
    shared: Arc<Shared>,
    asked: Instant,
    /// Since when the abort waits for the thread that is inside NCCL.
    waits_since: Option<Instant>,
}

impl Watchdog {
    pub(super) fn new(shared: Arc<Shared>) -> Watchdog {
        Watchdog {
            shared,
            asked: Instant::now(),
            waits_since: None,
        }
    }

    /// The thread: until the transport is dropped.
    pub(super) fn run(mut self) {
        let watched = catch_unwind(AssertUnwindSafe(|| {
            while !self.shared.is_closing.load(Ordering::Acquire) {
                let nap = if self.look() { LOOK } else { NAP };
                std::thread::park_timeout(nap);
            }
        }));
        if watched.is_err() {
            let rank = self.shared.rank;
            let what = format!("the NCCL watchdog of rank {rank} panicked");
            self.shared.abort.set(Error::internal(what));
        }
    }

    /// One look; true if there is more to be looked at soon.
    fn look(&mut self) -> bool {
        let shared = &*self.shared;
        let is_aborted = shared.abort.is_set();
        let Some(mut held) = shared.try_line() else {
            if is_aborted {
                self.wait_for_others();
            }
            return true;
        };
        self.waits_since = None;
        if is_aborted {
            let Ok(turn) = shared.turn.try_lock() else {
                return true;
            };
            shared.stop_in_turn(&mut held, turn);
            drop(shared.flights());
            return !held.has_stopped();
        }
        if shared.flights().is_empty() {
            return false;
        }
        if self.asked.elapsed() >= ASK
            && let Ok(_turn) = shared.turn.try_lock()
        {
            self.asked = Instant::now();
            if let Some(Err(e)) = held.comm.as_mut().map(Comm::is_ready) {
                shared.abort.set(e);
            }
        }
        true
    }

    /// The abort waits for a thread that is inside NCCL. With a blocking
    /// communicator that has lost a peer it may never come out.
    fn wait_for_others(&mut self) {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        if since.elapsed() < STUCK {
            return;
        }
        self.waits_since = Some(Instant::now());
        self.shared.queue.abandon();
        line(
            Level::Warn,
            format_args!(
                "rank {}: the transport is aborted and a thread is still inside NCCL",
                self.shared.rank
            ),
        );
    }
}

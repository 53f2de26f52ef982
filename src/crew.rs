//! The same work for many ranks, shared out among threads.
//!
//! What comes out is what one thread would make, in the order of the ranks:
//!
//! ```text
//!   ranks    0 1 2 3 4 5 ..     each thread takes the next one
//!   results  0 1 2 3 4 5 ..     of several failures, that of the first rank
//! ```
//!
//! Threads end before the result is there, and none is started for a few ranks.
//! Where the system gives none, the caller's does all.

#![forbid(unsafe_code)]

use crate::error::Result;
use crate::rank::Rank;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Threads that share one piece of work, at most.
const THREAD_COUNT_MAX: usize = 16;
/// Ranks that are worth a thread.
const RANKS_PER_THREAD: usize = 4;

/// What `work` makes of each rank.
pub fn for_each<T: Send>(
    ranks: &[Rank],
    work: impl Fn(Rank) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(usize::MAX);
    let take_turns = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            // Whatever comes before a failure is finished.
            if i >= ranks.len() || i > failed.load(Ordering::Relaxed) {
                return done;
            }
            let result = work(ranks[i]);
            if result.is_err() {
                failed.fetch_min(i, Ordering::Relaxed);
            }
            done.push((i, result));
        }
    };
    let mut all = thread::scope(|scope| {
        let start = |_| {
            let thread = thread::Builder::new().name("wsync-crew".into());
            thread.spawn_scoped(scope, take_turns).ok()
        };
        let others: Vec<_> = (1..thread_count(ranks.len())).map_while(start).collect();
        let mut all = take_turns();
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    });
    all.sort_unstable_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, result)| result).collect()
}

/// Threads for so many ranks, the caller's included.
fn thread_count(ranks: usize) -> usize {
    let useful = (ranks / RANKS_PER_THREAD).clamp(1, THREAD_COUNT_MAX);
    match useful {
        1 => 1,
        _ => useful.min(thread::available_parallelism().map_or(1, usize::from)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn ranks(count: u32) -> Vec<Rank> {
        (0..count).map(Rank).collect()
    }

    #[test]
    fn results_are_in_the_order_of_ranks() {
        for count in [0, 1, 7, 100, 1000] {
            let doubled = for_each(&ranks(count), |r| Ok(2 * r.0)).unwrap();
            let expected: Vec<u32> = (0..count).map(|r| 2 * r).collect();
            assert_eq!(doubled, expected);
        }
    }

    #[test]
    fn the_failure_of_the_first_rank_is_told() {
        let work = |r: Rank| match r.0 % 300 {
            299 => Err(Error::invalid(format!("rank {r}"))),
            _ => Ok(()),
        };
        for _ in 0..50 {
            let told = for_each(&ranks(1000), work).unwrap_err();
            assert_eq!(told.message, "rank 299");
        }
    }
}

//! One shared page per rank: what wakes it, and what becomes of it.
//!
//! ```text
//!   word 0   times rung          ◄── peers add one, then wake the sleeper
//!   word 1   is somebody asleep?
//!   word 2   fate: running, left, aborted (then: status, culprit, text)
//!   word 3.. steps enqueued and done
//! ```
//!
//! A sleeper reads the count first, then looks for work, then sleeps only if
//! the count is still the same: whatever was published before a ring is seen.

use super::sys::{Mapping, futex_wait, futex_wake, memfd};
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

const PAGE_BYTES: u64 = 4096;
const TEXT_BYTES_MAX: usize = 1024;

const RUNNING: u32 = 0;
const LEFT: u32 = 1;
const ABORTED: u32 = 2;

#[repr(C)]
struct Page {
    rung: AtomicU32,
    is_asleep: AtomicU32,
    fate: AtomicU32,
    status: AtomicI32,
    /// The culprit's rank plus one; 0 is nobody.
    culprit: AtomicU32,
    text_bytes: AtomicU32,
    steps_enqueued: AtomicU64,
    steps_done: AtomicU64,
    text: [AtomicU8; TEXT_BYTES_MAX],
}

/// What a rank has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Running,
    Left,
    Aborted(Error),
}

/// The page of a rank, ours or a peer's.
#[derive(Debug)]
pub(super) struct Bell(Mapping);

impl Bell {
    pub(super) fn create() -> Result<(Bell, OwnedFd)> {
        let fd = memfd(PAGE_BYTES)?;
        Ok((Bell::open(&fd)?, fd))
    }

    pub(super) fn open(fd: &OwnedFd) -> Result<Bell> {
        Ok(Bell(Mapping::new(fd, PAGE_BYTES)?))
    }

    fn page(&self) -> &Page {
        // SAFETY: a page is atomics only.
        unsafe { self.0.head() }
    }

    /// Wakes the rank if it sleeps.
    pub(super) fn ring(&self) {
        let page = self.page();
        page.rung.fetch_add(1, Ordering::SeqCst);
        if page.is_asleep.load(Ordering::SeqCst) != 0 {
            futex_wake(&page.rung);
        }
    }

    /// Times rung. To be read before looking for work.
    pub(super) fn rung(&self) -> u32 {
        self.page().rung.load(Ordering::SeqCst)
    }

    /// Sleeps until rung again after `seen`, at most `timeout`.
    pub(super) fn sleep(&self, seen: u32, timeout: Duration) {
        let page = self.page();
        page.is_asleep.store(1, Ordering::SeqCst);
        futex_wait(&page.rung, seen, timeout);
        page.is_asleep.store(0, Ordering::SeqCst);
    }

    /// Publishes progress, for those who will have to say how far we came.
    pub(super) fn say_steps(&self, enqueued: u64, done: u64) {
        self.page()
            .steps_enqueued
            .store(enqueued, Ordering::Relaxed);
        self.page().steps_done.store(done, Ordering::Release);
    }

    /// Steps done and steps enqueued.
    pub(super) fn steps(&self) -> (u64, u64) {
        let done = self.page().steps_done.load(Ordering::Acquire);
        (done, self.page().steps_enqueued.load(Ordering::Relaxed))
    }

    /// Says that we leave with nothing left to do.
    pub(super) fn say_left(&self) {
        let (from, to) = (RUNNING, LEFT);
        // An abort that was said before stays.
        let _ = self
            .page()
            .fate
            .compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
    }

    /// Says that we were aborted, and why.
    pub(super) fn say_aborted(&self, reason: &Error) {
        let page = self.page();
        let culprit = reason.rank.map_or(0, |r| r.0.saturating_add(1));
        page.status.store(reason.status.code(), Ordering::Relaxed);
        page.culprit.store(culprit, Ordering::Relaxed);
        let text = clip(&reason.message, TEXT_BYTES_MAX);
        for (to, from) in page.text.iter().zip(text.bytes()) {
            to.store(from, Ordering::Relaxed);
        }
        page.text_bytes.store(text.len() as u32, Ordering::Relaxed);
        page.fate.store(ABORTED, Ordering::Release);
    }

    /// What the rank has come to, by its own word. Bounded: the page may say
    /// anything.
    pub(super) fn fate(&self) -> Fate {
        let page = self.page();
        match page.fate.load(Ordering::Acquire) {
            RUNNING => Fate::Running,
            LEFT => Fate::Left,
            _ => Fate::Aborted(self.reason()),
        }
    }

    fn reason(&self) -> Error {
        let page = self.page();
        let code = page.status.load(Ordering::Relaxed);
        let status = Status::from_code(code).filter(|s| s.code() < 0);
        let length = (page.text_bytes.load(Ordering::Relaxed) as usize).min(TEXT_BYTES_MAX);
        let text: Vec<u8> = page.text[..length]
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let reason = Error::new(
            status.unwrap_or(Status::Aborted),
            String::from_utf8_lossy(&text),
        );
        match page.culprit.load(Ordering::Relaxed) {
            culprit @ 1..=RANK_COUNT_MAX => reason.by(Rank(culprit - 1)),
            _ => reason,
        }
    }
}

/// As many whole characters of `text` as fit into `bytes` bytes.
fn clip(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len()))
        .rev()
        .find(|&i| text.is_char_boundary(i));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fate_crosses_the_page() {
        let (bell, fd) = Bell::create().unwrap();
        let theirs = Bell::open(&fd).unwrap();
        assert_eq!(theirs.fate(), Fate::Running);
        let reason = Error::new(Status::Stalled, "rank 3 stands still").by(Rank(3));
        bell.say_aborted(&reason);
        bell.say_left();
        assert_eq!(theirs.fate(), Fate::Aborted(reason));
        bell.say_steps(5, 4);
        assert_eq!(theirs.steps(), (4, 5));
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let (bell, _fd) = Bell::create().unwrap();
        bell.say_aborted(&Error::new(Status::Io, "é".repeat(2000)));
        let Fate::Aborted(reason) = bell.fate() else {
            panic!("not aborted");
        };
        assert_eq!(reason.message, "é".repeat(512));
    }

    #[test]
    fn a_page_that_lies_is_survived() {
        let (bell, _fd) = Bell::create().unwrap();
        let page = bell.page();
        page.status.store(12345, Ordering::Relaxed);
        page.culprit.store(u32::MAX, Ordering::Relaxed);
        page.text_bytes.store(u32::MAX, Ordering::Relaxed);
        page.text[0].store(0xff, Ordering::Relaxed);
        page.fate.store(77, Ordering::Relaxed);
        let Fate::Aborted(reason) = bell.fate() else {
            panic!("not aborted");
        };
        assert_eq!((reason.status, reason.rank), (Status::Aborted, None));
    }

    #[test]
    fn a_ring_between_looking_and_sleeping_is_not_missed() {
        let (bell, _fd) = Bell::create().unwrap();
        let seen = bell.rung();
        bell.ring();
        let start = std::time::Instant::now();
        bell.sleep(seen, Duration::from_secs(10));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

//! Neighbours while this rank makes its data plane.
//!
//! Ranks are connected to their neighbours before they make a data plane, which
//! may take long and needs all of them. The control thread does not run yet.
//! Who fails meanwhile says why, and goes; who hears of it fails as well, and
//! says the same:
//!
//! ```text
//!   rank 1   making ──────── fails ──► "why", gone
//!   rank 0   making ─────────────────────► aborted: "why" of rank 1 ──► ...
//! ```
//!
//! What neighbours say that are ahead of this rank stays unread until the
//! control thread reads it.

use super::link::{Link, next_frame};
use super::sys::{self, Waker};
use super::{GOODBYE, Tree};
use crate::device::fence::AbortCell;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::patience::LOOK;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a failure is said to neighbours.
pub trait LastWords: Sync {
    fn say(&self, reason: &Error) -> Vec<u8>;

    /// The failure that a frame tells of; `None` if it tells of something else.
    fn read(&self, frame: &[u8]) -> Option<Error>;
}

/// What calls the work off.
#[derive(Clone, Copy, Debug)]
pub struct Alarm<'a> {
    /// Set by the user.
    pub early: &'a AbortCell,
    /// What the work looks at.
    pub abort: &'a Arc<AbortCell>,
}

impl Tree {
    /// Does `work`, and calls it off when a neighbour goes or the user aborts.
    /// If it fails, the neighbours are told.
    pub fn keep_vigil<T>(
        &mut self,
        alarm: Alarm<'_>,
        words: &dyn LastWords,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let rank = self.rank;
        let mut links: Vec<&mut Link> = self.parent.iter_mut().chain(&mut self.children).collect();
        let result = watched(rank, &mut links, alarm, words, work);
        if let Err(e) = &result {
            tell(rank, links, words, e);
        }
        result
    }
}

fn watched<T>(
    rank: Rank,
    links: &mut [&mut Link],
    alarm: Alarm<'_>,
    words: &dyn LastWords,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let waker = Waker::new()?;
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whatever becomes of the work, the vigil ends.
        let _end = End {
            is_done: &is_done,
            waker: &waker,
        };
        let vigil = Vigil {
            links,
            alarm,
            words,
            waker: &waker,
            is_done: &is_done,
        };
        std::thread::Builder::new()
            .name(format!("wsync-meet-{rank}"))
            .spawn_scoped(scope, || vigil.keep())
            .map_err(|e| Error::os("cannot start a thread that watches a meeting", &e))?;
        work()
    })
}

struct End<'v> {
    is_done: &'v AtomicBool,
    waker: &'v Waker,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// Says to neighbours why `rank` does not meet them.
pub(super) fn tell<'l>(
    rank: Rank,
    links: impl IntoIterator<Item = &'l mut Link>,
    words: &dyn LastWords,
    e: &Error,
) {
    let frame = words.say(&of(rank, e));
    for link in links {
        // Who is gone needs no word.
        let _ = link.send(&frame);
    }
}

/// A failure as others hear of it: with the rank that is to blame, unless that
/// is some rank that this one has waited for.
fn of(rank: Rank, e: &Error) -> Error {
    if e.rank.is_some() {
        return e.clone();
    }
    let text = format!("rank {rank} could not meet the others: {}", e.message);
    let told = Error::new(e.status, text);
    match e.status {
        Status::MeetTimeout | Status::PeerLost => told,
        _ => told.by(rank),
    }
}

struct Vigil<'v, 'l> {
    links: &'v mut [&'l mut Link],
    alarm: Alarm<'v>,
    words: &'v dyn LastWords,
    waker: &'v Waker,
    is_done: &'v AtomicBool,
}

impl Vigil<'_, '_> {
    fn keep(self) {
        let mut items = vec![sys::poll_item(self.waker.raw_fd(), false)];
        items.extend(
            self.links
                .iter()
                .map(|l| sys::hangup_item(l.stream.raw_fd())),
        );
        while !self.is_done.load(Ordering::Acquire) {
            if let Some(reason) = self.alarm.early.reason() {
                self.alarm.abort.set(reason);
                return;
            }
            if sys::poll(&mut items, Some(LOOK)).is_err() {
                return;
            }
            for (item, link) in items[1..].iter_mut().zip(self.links.iter_mut()) {
                if item.revents == 0 {
                    continue;
                }
                if let Some(reason) = why_gone(link, self.words) {
                    self.alarm.abort.set(reason);
                    return;
                }
                // It has what it needs of this meeting; never again polled.
                item.fd = -1;
            }
        }
    }
}

/// Why a neighbour has closed its link; `None` if it has met everybody and left
/// in good order.
fn why_gone(link: &mut Link, words: &dyn LastWords) -> Option<Error> {
    while let Ok(true) = link.fill() {
        // Until the end, which is there: more may still be in front of it.
        std::thread::yield_now();
    }
    let mut rest = &link.inbox[..link.filled];
    while let Ok(Some((range, next))) = next_frame(rest) {
        let frame = &rest[range];
        if frame == GOODBYE {
            return None;
        }
        if let Some(reason) = words.read(frame) {
            return Some(reason);
        }
        rest = &rest[next..];
    }
    let gone = format!("rank {} has gone while the ranks were meeting", link.rank);
    Some(Error::new(Status::PeerLost, gone).by(link.rank))
}

#[cfg(test)]
mod tests {
    use super::super::link::Stream;
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A failure is a frame of its text behind a mark.
    struct Marked;

    impl LastWords for Marked {
        fn say(&self, reason: &Error) -> Vec<u8> {
            [b"!", reason.message.as_bytes()].concat()
        }

        fn read(&self, frame: &[u8]) -> Option<Error> {
            let text = frame.strip_prefix(b"!")?;
            Some(Error::internal(String::from_utf8_lossy(text)))
        }
    }

    /// A link whose other end has sent these frames and is closed.
    fn after(frames: &[&[u8]]) -> Link {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut other = Link::new(Rank(0), Stream::Unix(far));
        for frame in frames {
            other.send(frame).unwrap();
        }
        Link::new(Rank(5), Stream::Unix(near))
    }

    #[test]
    fn last_words_are_found_behind_other_frames() {
        let reason = why_gone(&mut after(&[b"work", b"!broken", b"more"]), &Marked);
        assert_eq!(reason.unwrap().message, "broken");
    }

    #[test]
    fn who_goes_without_a_word_is_named() {
        let reason = why_gone(&mut after(&[b"work"]), &Marked).unwrap();
        assert_eq!(
            (reason.status, reason.rank),
            (Status::PeerLost, Some(Rank(5)))
        );
    }

    #[test]
    fn who_leaves_in_good_order_keeps_nobody_and_its_frames_stay() {
        let mut link = after(&[b"work", GOODBYE]);
        assert_eq!(why_gone(&mut link, &Marked), None);
        let (first, _) = next_frame(&link.inbox[..link.filled]).unwrap().unwrap();
        assert_eq!(&link.inbox[first], b"work");
    }

    #[test]
    fn only_failures_of_its_own_are_blamed_on_a_rank() {
        let told = |e: Error| of(Rank(3), &e);
        let own = told(Error::internal("broken"));
        assert_eq!(own.rank, Some(Rank(3)));
        assert!(own.message.contains("rank 3 could not meet"), "{own}");
        let waited = told(Error::new(Status::MeetTimeout, "not in time"));
        assert_eq!(waited.rank, None);
        assert!(waited.message.contains("rank 3 could not meet"), "{waited}");
        let named = Error::new(Status::PeerLost, "gone").by(Rank(7));
        assert_eq!(told(named.clone()), named);
    }
}

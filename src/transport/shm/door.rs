//! Who comes in, and who is gone.
//!
//! One thread per rank sleeps in `poll` over the listening socket and every
//! connection. It takes in new senders whether or not a plan is loaded, and it
//! sees at once when a process dies, because the kernel closes its sockets:
//!
//! ```text
//!   guest ── hello, ring, bell ──► checked ──► link   (reply: our bell)
//!   link  ── end of stream ──► left?     nothing, unless somebody waits
//!                              aborted?  its reason becomes ours
//!                              else      PeerLost
//! ```

use super::bell::{Bell, Fate};
use super::ring::Ring;
use super::wire::{HELLO_BYTES, Hello, Reply};
use super::{Link, Shared, sys};
use crate::error::{Error, Result, Status};
use crate::transport::queue::lock;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Connections that have not said hello yet; more wait in the kernel.
const GUEST_COUNT_MAX: usize = 64;

/// How long a connection may take to say hello.
const GUEST_TIME: Duration = Duration::from_secs(5);

/// Links for which there is room from the start: the thread may come to them
/// when requests are warm, which allocate nothing.
const LINK_CAPACITY: usize = 64;

/// A connection that has not said hello yet.
#[derive(Debug)]
struct Guest {
    stream: UnixStream,
    until: Instant,
    said: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What a guest turned out to be.
enum Visit {
    Waiting,
    Gone,
    Linked(Arc<Link>),
}

/// The thread's own state.
pub(super) struct Door {
    pub(super) shared: Arc<Shared>,
    pub(super) listener: UnixListener,
    guests: Vec<Guest>,
    links: Vec<(UnixStream, Arc<Link>)>,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>, listener: UnixListener) -> Door {
        Door {
            shared,
            listener,
            guests: Vec::new(),
            links: Vec::with_capacity(LINK_CAPACITY),
        }
    }

    /// The thread: until the transport is dropped.
    pub(super) fn run(mut self) {
        let mut fds = Vec::with_capacity(2 * LINK_CAPACITY);
        while !self.shared.is_door_closing.load(Ordering::Acquire) {
            self.links.append(&mut lock(&self.shared.new_links));
            self.list(&mut fds);
            sys::poll(&mut fds, self.patience());
            self.look(&fds);
        }
    }

    /// What to poll: the doorbell, the listener, links, guests.
    fn list(&self, fds: &mut Vec<libc::pollfd>) {
        let entry = |fd: RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN | libc::POLLRDHUP,
            revents: 0,
        };
        let is_full = self.guests.len() >= GUEST_COUNT_MAX;
        fds.clear();
        fds.push(entry(self.shared.doorbell.as_raw_fd()));
        // A negative descriptor is skipped.
        fds.push(entry(if is_full {
            -1
        } else {
            self.listener.as_raw_fd()
        }));
        fds.extend(self.links.iter().map(|(s, _)| entry(s.as_raw_fd())));
        fds.extend(self.guests.iter().map(|g| entry(g.stream.as_raw_fd())));
    }

    /// How long to sleep: until the first guest has taken too long.
    fn patience(&self) -> Option<Duration> {
        let first = self.guests.iter().map(|g| g.until).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn look(&mut self, fds: &[libc::pollfd]) {
        let has_news = |i: usize| fds.get(i).is_some_and(|f| f.revents != 0);
        if has_news(0) {
            // Resets the count; that it may be zero already does not matter.
            let _ = (&self.shared.doorbell).read(&mut [0; 8]);
        }
        let links = self.links.len();
        for i in (0..self.guests.len()).rev() {
            self.look_at_guest(i, has_news(2 + links + i));
        }
        for i in (0..links).rev() {
            if has_news(2 + i) {
                self.look_at_link(i);
            }
        }
        if has_news(1) {
            self.welcome();
        }
    }

    /// Accepts whoever waits.
    fn welcome(&mut self) {
        while self.guests.len() < GUEST_COUNT_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let is_ours = stream.set_nonblocking(true).is_ok()
                        && sys::is_same_user(&stream).unwrap_or(false);
                    if is_ours {
                        self.guests.push(Guest {
                            stream,
                            until: Instant::now() + GUEST_TIME,
                            said: Vec::with_capacity(HELLO_BYTES),
                            fds: Vec::new(),
                        });
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Out of descriptors: do not spin.
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
            }
        }
    }

    fn look_at_guest(&mut self, i: usize, has_news: bool) {
        let visit = if has_news {
            self.hear(i)
        } else if Instant::now() >= self.guests[i].until {
            Visit::Gone
        } else {
            Visit::Waiting
        };
        match visit {
            Visit::Waiting => {}
            Visit::Gone => {
                self.guests.swap_remove(i);
            }
            Visit::Linked(link) => {
                let guest = self.guests.swap_remove(i);
                self.links.push((guest.stream, link));
            }
        }
    }

    /// Reads what a guest says; makes it a link once it has said hello.
    fn hear(&mut self, i: usize) -> Visit {
        let guest = &mut self.guests[i];
        let mut bytes = [0; HELLO_BYTES];
        let room = &mut bytes[..HELLO_BYTES - guest.said.len()];
        match sys::receive(&guest.stream, room, &mut guest.fds) {
            Ok(0) => return Visit::Gone,
            Ok(n) => guest.said.extend(&room[..n]),
            Err(e) if is_later(&e) => return Visit::Waiting,
            Err(_) => return Visit::Gone,
        }
        if guest.said.len() < HELLO_BYTES {
            return Visit::Waiting;
        }
        let fds = std::mem::take(&mut guest.fds);
        match self.shared.admit(&guest.said, fds) {
            Ok(link) => {
                let reply = Reply {
                    status: Status::Ok.code(),
                    rank: self.shared.rank,
                };
                let bell = [self.shared.bell_fd.as_raw_fd()];
                match sys::send(&guest.stream, &reply.encode(), &bell) {
                    Ok(()) => {
                        self.shared.take_in(&link);
                        Visit::Linked(link)
                    }
                    Err(_) => Visit::Gone,
                }
            }
            Err(refusal) => {
                let reply = Reply {
                    status: refusal.status.code(),
                    rank: self.shared.rank,
                };
                // It may be gone already; then nobody needs the reason.
                let _ = sys::send(&guest.stream, &reply.encode(), &[]);
                Visit::Gone
            }
        }
    }

    /// A link has news: its end, or bytes that nobody asked for.
    fn look_at_link(&mut self, i: usize) {
        let (stream, link) = &self.links[i];
        let mut byte = [0; 1];
        let read = (&*stream).read(&mut byte);
        if matches!(&read, Err(e) if is_later(e)) {
            return;
        }
        if matches!(read, Ok(n) if n > 0) {
            let what = format!("rank {} said more than it should", link.rank);
            self.shared
                .abort
                .set(Error::new(Status::Protocol, what).by(link.rank));
        }
        self.shared.part(link);
        self.links.swap_remove(i);
    }
}

fn is_later(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Shared {
    /// Checks a hello and maps what came with it.
    fn admit(&self, said: &[u8], fds: Vec<OwnedFd>) -> Result<Arc<Link>> {
        let hello = Hello::decode(said, self.rank, &self.address.token)?;
        let [ring, bell] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
            Error::new(
                Status::Protocol,
                format!("rank {} sent {} descriptors", hello.from, fds.len()),
            )
        })?;
        if lock(&self.incoming).contains_key(&hello.from) {
            return Err(Error::new(
                Status::InvalidState,
                format!("rank {} is connected already", hello.from),
            ));
        }
        Ok(Arc::new(Link::new(
            hello.from,
            Ring::open(&ring, hello.shape)?,
            Bell::open(&bell)?,
        )))
    }

    /// Makes an incoming link known to the progress thread.
    fn take_in(&self, link: &Arc<Link>) {
        lock(&self.incoming).insert(link.rank, link.clone());
        self.bell.ring();
    }

    /// The process at the other end of a link is gone.
    fn part(&self, link: &Link) {
        match link.bell.fate() {
            Fate::Left => {}
            Fate::Aborted(reason) => {
                self.abort.set(reason);
            }
            Fate::Running => {
                self.abort.set(link.lost("died"));
            }
        }
        link.is_gone.store(true, Ordering::Release);
        self.bell.ring();
    }
}

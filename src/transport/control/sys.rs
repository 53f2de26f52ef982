//! The few system calls that the standard library does not offer.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Wakes a thread that sleeps in `poll`. Any thread, never waits.
#[derive(Debug)]
pub struct Waker {
    event: File,
}

impl Waker {
    pub fn new() -> Result<Waker> {
        // SAFETY: no pointers; the result is checked before use.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::os(
                "cannot make an eventfd",
                &io::Error::last_os_error(),
            ));
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Waker { event: fd.into() })
    }

    pub fn wake(&self) {
        // Fails only when the counter is full: then the sleeper wakes anyway.
        let _ = (&self.event).write(&1u64.to_ne_bytes());
    }

    /// Forgets the wake-ups so far.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let _ = (&self.event).read(&mut count);
    }

    pub fn raw_fd(&self) -> i32 {
        self.event.as_raw_fd()
    }
}

/// One descriptor to wait for.
pub fn poll_item(fd: i32, wants_write: bool) -> libc::pollfd {
    let mut events = libc::POLLIN;
    if wants_write {
        events |= libc::POLLOUT;
    }
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// One descriptor to wait for until its other end is closed, whatever may be
/// there to be read.
pub fn hangup_item(fd: i32) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLRDHUP,
        revents: 0,
    }
}

/// Waits until a descriptor is ready or `timeout` is over; for ever if there
/// is none. Early returns are possible.
pub fn poll(items: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let ms = match timeout {
        None => -1,
        // Rounded up, so that nobody spins through the last millisecond.
        Some(t) => i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
    };
    for item in items.iter_mut() {
        item.revents = 0;
    }
    // SAFETY: the slice is valid for the length that is given, and exclusive.
    let n = unsafe { libc::poll(items.as_mut_ptr(), items.len() as libc::nfds_t, ms) };
    if n >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}

/// Writes what fits to a socket, without waiting and without SIGPIPE: a host
/// program in C may not ignore that signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the pointer is valid for the length that is given.
    let n = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Connects to an abstract Unix socket without waiting: a listener whose queue
/// is full gives `WouldBlock`.
pub fn connect_unix(name: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_UNIX, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    // The first byte stays zero: that makes the name abstract.
    let Some(room) = address.sun_path.get_mut(1..=name.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    for (to, from) in room.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let bytes = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    let at: *const libc::sockaddr_un = &address;
    // SAFETY: `bytes` is not more than the size of the address, which is a
    // plain struct that outlives the call.
    let result = unsafe { libc::connect(fd.as_raw_fd(), at.cast(), bytes as libc::socklen_t) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Fills `bytes` with secrets.
pub fn fill_random(bytes: &mut [u8]) -> Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        let start: *mut libc::c_void = rest.as_mut_ptr().cast();
        // SAFETY: the pointer is valid and exclusive for the length given. Not
        // by its C function, which glibc 2.17 does not have.
        let n = unsafe { libc::syscall(libc::SYS_getrandom, start, rest.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => at += n,
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(Error::os("cannot read random bytes", &e));
                }
            }
        }
    }
    Ok(())
}

/// A secret number.
pub fn random_u128() -> Result<u128> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

//! One connection to a neighbour: frames in, frames out, never waiting.
//!
//! A frame is its length (u32, little endian) and that many bytes. Buffers
//! keep their capacity, so a warm link allocates nothing.

use super::sys;
use crate::error::{Error, Result};
use crate::limits::CONTROL_BYTES_MAX;
use crate::rank::Rank;
use crate::transport::Kind;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Where a rank's control channel listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An abstract Unix socket with this random name.
    Unix(u128),
    Tcp(SocketAddr),
}

fn unix_name(name: u128) -> String {
    format!("weightsync-control-{name:032x}")
}

/// A socket that neighbours come to.
#[derive(Debug)]
pub enum Listener {
    Unix { socket: UnixListener, name: u128 },
    Tcp(TcpListener),
}

impl Listener {
    /// Opens the socket that suits `kind`.
    pub fn open(kind: Kind) -> Result<Listener> {
        let listener = if kind.is_one_host() {
            let name = sys::random_u128()?;
            UnixAddr::from_abstract_name(unix_name(name))
                .and_then(|a| UnixListener::bind_addr(&a))
                .map(|socket| Listener::Unix { socket, name })
        } else {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map(Listener::Tcp)
        };
        let listener = listener.map_err(|e| Error::os("cannot open a control socket", &e))?;
        listener
            .set_nonblocking()
            .map_err(|e| Error::os("cannot set up a control socket", &e))?;
        Ok(listener)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Listener::Unix { socket, .. } => socket.set_nonblocking(true),
            Listener::Tcp(socket) => socket.set_nonblocking(true),
        }
    }

    /// Where others reach it.
    pub fn address(&self) -> Result<Address> {
        match self {
            Listener::Unix { name, .. } => Ok(Address::Unix(*name)),
            Listener::Tcp(socket) => {
                let port = socket
                    .local_addr()
                    .map_err(|e| Error::os("cannot read a control address", &e))?
                    .port();
                Ok(Address::Tcp(SocketAddr::new(own_address(), port)))
            }
        }
    }

    /// The next neighbour, if one is waiting.
    pub fn accept(&self) -> io::Result<Stream> {
        let stream = match self {
            Listener::Unix { socket, .. } => Stream::Unix(socket.accept()?.0),
            Listener::Tcp(socket) => Stream::Tcp(socket.accept()?.0),
        };
        stream.set_up()?;
        Ok(stream)
    }

    pub fn raw_fd(&self) -> i32 {
        match self {
            Listener::Unix { socket, .. } => socket.as_raw_fd(),
            Listener::Tcp(socket) => socket.as_raw_fd(),
        }
    }
}

/// The address that this host's default route uses. Nothing is sent.
fn own_address() -> IpAddr {
    let probe = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// A connected socket that never waits.
#[derive(Debug)]
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects; bounded by `timeout`. `WouldBlock` is worth another try.
    pub fn connect(to: &Address, timeout: Duration) -> io::Result<Stream> {
        let stream = match to {
            Address::Unix(name) => {
                Stream::Unix(sys::connect_unix(unix_name(*name).as_bytes())?.into())
            }
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect_timeout(address, timeout)?),
        };
        stream.set_up()?;
        Ok(stream)
    }

    fn set_up(&self) -> io::Result<()> {
        match self {
            Stream::Unix(s) => s.set_nonblocking(true),
            Stream::Tcp(s) => {
                s.set_nodelay(true)?;
                s.set_nonblocking(true)
            }
        }
    }

    pub fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => (&mut &*s).read(to),
            Stream::Tcp(s) => (&mut &*s).read(to),
        }
    }

    pub fn write(&self, from: &[u8]) -> io::Result<usize> {
        sys::send(self.as_fd(), from)
    }

    pub fn raw_fd(&self) -> i32 {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(s) => s.as_fd(),
            Stream::Tcp(s) => s.as_fd(),
        }
    }
}

/// Bytes that may wait to be written before the neighbour counts as stuck.
const BACKLOG_BYTES_MAX: usize = 2 * CONTROL_BYTES_MAX;
/// How much is read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// A connection to one neighbour.
#[derive(Debug)]
pub struct Link {
    pub rank: Rank,
    pub stream: Stream,
    /// When the neighbour was last heard of.
    pub heard: Instant,
    pub said_goodbye: bool,
    /// Bytes read and not yet handled: `..filled`.
    pub inbox: Vec<u8>,
    pub filled: usize,
    /// Bytes to be written: `sent..`.
    outbox: Vec<u8>,
    sent: usize,
}

impl Link {
    pub fn new(rank: Rank, stream: Stream) -> Link {
        Link {
            rank,
            stream,
            heard: Instant::now(),
            said_goodbye: false,
            inbox: vec![0; CHUNK_BYTES],
            filled: 0,
            outbox: Vec::with_capacity(CHUNK_BYTES),
            sent: 0,
        }
    }

    /// Queues a frame and writes what fits.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.outbox.len() - self.sent > BACKLOG_BYTES_MAX {
            return Err(io::Error::other("the neighbour does not read"));
        }
        self.outbox
            .extend_from_slice(&(frame.len() as u32).to_le_bytes());
        self.outbox.extend_from_slice(frame);
        self.flush()
    }

    /// Writes what fits.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            match self.stream.write(&self.outbox[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return self.compact(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Moves what is left to the front once most of the buffer is written.
    fn compact(&mut self) -> io::Result<()> {
        if self.sent > self.outbox.len() / 2 {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    pub fn has_backlog(&self) -> bool {
        self.sent < self.outbox.len()
    }

    /// Reads what is there; `false` at the end of the stream.
    pub fn fill(&mut self) -> io::Result<bool> {
        loop {
            if self.inbox.len() - self.filled < CHUNK_BYTES / 2 {
                // Grows with what has really come, not with what was promised.
                let more = self.filled + self.filled.max(CHUNK_BYTES);
                self.inbox.resize(more, 0);
            }
            match self.stream.read(&mut self.inbox[self.filled..]) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.filled += n;
                    self.heard = Instant::now();
                    // Frames are handled before more is read, so that a large
                    // buffer means one large frame and nothing else.
                    if self.filled >= CHUNK_BYTES {
                        return Ok(true);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The next whole frame at the start of `bytes`: its range and where the one
/// after it starts. An error if it claims more than is allowed.
pub fn next_frame(bytes: &[u8]) -> Result<Option<(std::ops::Range<usize>, usize)>, usize> {
    let Some(head) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length > CONTROL_BYTES_MAX {
        return Err(length);
    }
    let end = 4 + length;
    Ok((end <= bytes.len()).then_some((4..end, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_one_by_one() {
        let mut bytes = Vec::new();
        for body in [&b"abc"[..], b"", b"defgh"] {
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(body);
        }
        let (first, next) = next_frame(&bytes).unwrap().unwrap();
        assert_eq!(&bytes[first], b"abc");
        let (second, after) = next_frame(&bytes[next..]).unwrap().unwrap();
        assert!(second.is_empty());
        let rest = &bytes[next + after..];
        assert!(next_frame(&rest[..rest.len() - 1]).unwrap().is_none());
        assert!(next_frame(&rest[..3]).unwrap().is_none());
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused() {
        let claim = (CONTROL_BYTES_MAX as u32 + 1).to_le_bytes();
        assert_eq!(next_frame(&claim), Err(CONTROL_BYTES_MAX + 1));
    }

    #[test]
    fn a_neighbour_that_does_not_read_makes_nobody_wait() {
        let (a, b) = UnixStream::pair().unwrap();
        let stream = Stream::Unix(a);
        stream.set_up().unwrap();
        let mut link = Link::new(Rank(1), stream);
        let frame = vec![7; 1 << 20];
        let mut sent = 0;
        while link.send(&frame).is_ok() {
            sent += frame.len();
            assert!(sent <= BACKLOG_BYTES_MAX + (8 << 20));
        }
        assert!(link.has_backlog());
        drop(b);
        assert!(link.flush().is_err());
    }
}

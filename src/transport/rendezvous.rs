//! Gathers the greetings of all ranks over TCP, for those who have no channel
//! of their own.
//!
//! ```text
//!   lowest rank (listens)                     every other rank (connects)
//!     magic, 32 random bytes  ───────────────►
//!                             ◄───────────────  magic, rank, 32 random bytes,
//!                                               proof, greeting
//!     ... until all are here ...
//!     ALL, greetings, proof   ───────────────►
//! ```
//!
//! The *proof* is a keyed hash over everything that the two have said, keyed
//! by a token that all ranks were given: each side proves that it knows the
//! token, and the token itself never travels. Strangers may connect, say
//! nothing, say garbage, claim huge lengths or come in crowds: each has a few
//! seconds and a small fixed buffer, and nobody waits for it. Whoever is cut
//! off tries again until its deadline.

use super::control::fill_random;
use super::control::sys;
use super::greeting::list_ranks;
use super::mac::{MAC_BYTES, are_equal, mac};
use super::patience::Patience;
use crate::error::{Error, Result, Status};
use crate::limits::{GREETING_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::rank::Rank;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"WSYNCRV\x01";
const NONCE_BYTES: usize = 32;
const CHALLENGE_BYTES: usize = 8 + NONCE_BYTES;
/// Everything of a hello but its greeting.
const HELLO_BYTES: usize = 8 + 4 + NONCE_BYTES + MAC_BYTES + 2;
/// How long a stranger may take to say who it is.
const STRANGER_TIME: Duration = Duration::from_secs(5);
/// Strangers at a time, beside the ranks that are expected; the oldest goes.
const STRANGER_COUNT_MAX: usize = 64;
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(30);
/// One attempt to connect.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// The first byte of an answer.
mod answer {
    /// All greetings follow.
    pub const ALL: u8 = 1;
    /// The proof was wrong.
    pub const REFUSED: u8 = 2;
    /// This rank is here already.
    pub const TWICE: u8 = 3;
    /// Not all ranks came in time.
    pub const LATE: u8 = 4;
}

/// Gathers the greetings of `ranks` (ascending): the lowest listens at
/// `address`, the others connect to it. Returns the same list on every rank.
pub fn gather(
    own: (Rank, &[u8]),
    ranks: &[Rank],
    address: &str,
    token: &[u8],
    patience: Patience<'_>,
) -> Result<Vec<Vec<u8>>> {
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(Error::limit(format!(
            "a rendezvous token has {} bytes; 1 to {TOKEN_BYTES_MAX} are allowed",
            token.len()
        )));
    }
    check_address(address)?;
    let addresses = resolve(address, patience)?;
    if ranks.first() == Some(&own.0) {
        Host::listen(own, ranks, &addresses, address, token)?.serve(patience)
    } else {
        Guest {
            own,
            ranks,
            addresses: &addresses,
            address,
            token,
        }
        .visit(patience)
    }
}

/// Refuses what can never be an address, before any wait.
fn check_address(address: &str) -> Result<()> {
    let host_and_port = address.rsplit_once(':');
    if host_and_port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "rendezvous address \"{address}\" is not host:port, such as 10.0.0.1:29400 or trainer-0:29400"
    )))
}

/// Looks the name up until it is known: where pods start together, names come
/// to be known a little after the pods.
fn resolve(address: &str, patience: Patience<'_>) -> Result<Vec<SocketAddr>> {
    let mut why = String::from("no answer came");
    loop {
        let name = address.to_string();
        let look_up = move || name.to_socket_addrs().map(Iterator::collect);
        match patience.within("wsync-resolve", look_up)? {
            Some(Ok(found)) => {
                let found: Vec<SocketAddr> = found;
                if !found.is_empty() {
                    return Ok(found);
                }
                why = String::from("the name has no address");
            }
            Some(Err(e)) => why = e.to_string(),
            None => {}
        }
        let nap = patience.nap()?;
        if nap.is_zero() {
            return Err(Error::new(
                Status::MeetTimeout,
                format!("rendezvous address \"{address}\" was not found in time: {why}"),
            ));
        }
        std::thread::sleep(nap);
    }
}

/// What a guest proves with.
fn guest_proof(
    token: &[u8],
    host: &[u8],
    guest: &[u8],
    rank: Rank,
    greeting: &[u8],
) -> [u8; MAC_BYTES] {
    mac(
        token,
        &[b"guest", host, guest, &rank.0.to_le_bytes(), greeting],
    )
}

/// What the host proves with.
fn host_proof(token: &[u8], host: &[u8], guest: &[u8], table: &[u8]) -> [u8; MAC_BYTES] {
    mac(token, &[b"host", host, guest, table])
}

// --- the lowest rank ---------------------------------------------------------

struct Host<'a> {
    ranks: &'a [Rank],
    address: &'a str,
    token: &'a [u8],
    listener: TcpListener,
    /// By index in `ranks`.
    greetings: Vec<Option<Vec<u8>>>,
    visitors: Vec<Visitor>,
}

/// A connection, from the first byte to the last.
struct Visitor {
    stream: TcpStream,
    nonce: [u8; NONCE_BYTES],
    /// What it has said so far; never more than a hello.
    said: Vec<u8>,
    expires: Instant,
    /// Its index in the list of ranks, once it has proven itself.
    index: Option<usize>,
    guest_nonce: [u8; NONCE_BYTES],
    /// What the host proves with, at the end of its answer.
    proof: [u8; MAC_BYTES],
    /// How much of the answer it has been sent.
    told: usize,
}

impl<'a> Host<'a> {
    fn listen(
        own: (Rank, &[u8]),
        ranks: &'a [Rank],
        addresses: &[SocketAddr],
        address: &'a str,
        token: &'a [u8],
    ) -> Result<Host<'a>> {
        let listener = TcpListener::bind(addresses)
            .and_then(|l| l.set_nonblocking(true).map(|()| l))
            .map_err(|e| Error::os(format!("cannot listen at \"{address}\""), &e))?;
        let mut greetings = vec![None; ranks.len()];
        if let Some(first) = greetings.first_mut() {
            *first = Some(own.1.to_vec());
        }
        Ok(Host {
            ranks,
            address,
            token,
            listener,
            greetings,
            visitors: Vec::new(),
        })
    }

    fn serve(mut self, patience: Patience<'_>) -> Result<Vec<Vec<u8>>> {
        while self.greetings.iter().any(Option::is_none) {
            if patience.left()?.is_zero() {
                return Err(self.give_up());
            }
            self.sleep(patience.nap()?)?;
            self.admit();
            self.listen_to_all();
        }
        let greetings: Vec<Vec<u8>> = self.greetings.iter_mut().filter_map(Option::take).collect();
        self.tell_all(&greetings, patience)?;
        Ok(greetings)
    }

    /// Waits until somebody comes or says something, at most for a `nap`.
    fn sleep(&self, nap: Duration) -> Result<()> {
        let mut items = vec![sys::poll_item(self.listener.as_raw_fd(), false)];
        let visitors = self.visitors.iter();
        items.extend(visitors.map(|v| sys::poll_item(v.stream.as_raw_fd(), false)));
        sys::poll(&mut items, Some(nap)).map_err(|e| Error::os("cannot wait for ranks", &e))
    }

    /// Takes in whoever has come.
    fn admit(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let is_stranger = |v: &Visitor| v.index.is_none();
            let strangers = self.visitors.iter().filter(|v| is_stranger(v)).count();
            let missing = self.greetings.iter().filter(|g| g.is_none()).count();
            if strangers >= STRANGER_COUNT_MAX + missing
                && let Some(oldest) = self.visitors.iter().position(is_stranger)
            {
                self.visitors.remove(oldest);
            }
            if let Some(visitor) = Visitor::welcome(stream) {
                self.visitors.push(visitor);
            }
        }
    }

    fn listen_to_all(&mut self) {
        let now = Instant::now();
        let mut i = 0;
        while i < self.visitors.len() {
            let visitor = &mut self.visitors[i];
            let is_welcome = match visitor.index {
                None => visitor.listen() && now < visitor.expires,
                Some(_) => visitor.is_there(),
            };
            if !is_welcome {
                let gone = self.visitors.remove(i);
                if let Some(index) = gone.index {
                    // It may come again.
                    self.greetings[index] = None;
                }
                continue;
            }
            let is_new = self.visitors[i].index.is_none() && self.visitors[i].is_complete();
            if is_new && !self.judge(i) {
                self.visitors.remove(i);
                continue;
            }
            i += 1;
        }
    }

    /// Checks a complete hello; false if the visitor has to go.
    fn judge(&mut self, i: usize) -> bool {
        let visitor = &mut self.visitors[i];
        let hello = Hello::parse(&visitor.said);
        let proof = guest_proof(
            self.token,
            &visitor.nonce,
            &hello.nonce,
            hello.rank,
            hello.greeting,
        );
        let index = self.ranks.binary_search(&hello.rank).ok();
        let (true, Some(index)) = (are_equal(hello.proof, &proof), index) else {
            visitor.dismiss(answer::REFUSED);
            return false;
        };
        if self.greetings[index].is_some() {
            visitor.dismiss(answer::TWICE);
            return false;
        }
        self.greetings[index] = Some(hello.greeting.to_vec());
        visitor.guest_nonce = hello.nonce;
        visitor.index = Some(index);
        true
    }

    /// Sends the greetings to everybody who has proven itself.
    fn tell_all(&mut self, greetings: &[Vec<u8>], patience: Patience<'_>) -> Result<()> {
        let mut table = Vec::new();
        for greeting in greetings {
            table.extend_from_slice(&(greeting.len() as u16).to_le_bytes());
            table.extend_from_slice(greeting);
        }
        let mut head = vec![answer::ALL];
        head.extend_from_slice(&(table.len() as u32).to_le_bytes());
        self.visitors.retain(|v| v.index.is_some());
        for v in &mut self.visitors {
            v.proof = host_proof(self.token, &v.nonce, &v.guest_nonce, &table);
        }
        loop {
            let tell = |v: &mut Visitor| v.tell(&head, &table).is_ok_and(|is_told| !is_told);
            self.visitors.retain_mut(tell);
            if self.visitors.is_empty() {
                return Ok(());
            }
            let nap = patience.nap()?;
            if nap.is_zero() {
                return Err(self.deaf());
            }
            let visitors = self.visitors.iter();
            let mut items: Vec<_> = visitors
                .map(|v| {
                    let mut item = sys::poll_item(v.stream.as_raw_fd(), true);
                    item.events = libc::POLLOUT;
                    item
                })
                .collect();
            sys::poll(&mut items, Some(nap)).map_err(|e| Error::os("cannot send greetings", &e))?;
        }
    }

    fn deaf(&self) -> Error {
        let mut indices = self.visitors.iter().filter_map(|v| v.index);
        let rank = indices.next().map_or(Rank(0), |i| self.ranks[i]);
        let text = format!("rank {rank} did not take the greetings in time");
        Error::new(Status::MeetTimeout, text).by(rank)
    }

    /// Tells those who are here, and says who is not.
    fn give_up(&mut self) -> Error {
        for visitor in &mut self.visitors {
            visitor.dismiss(answer::LATE);
        }
        let seats = self.ranks.iter().zip(&self.greetings);
        let missing: Vec<Rank> = seats
            .filter(|(_, g)| g.is_none())
            .map(|(r, _)| *r)
            .collect();
        let error = Error::new(
            Status::MeetTimeout,
            format!(
                "{} of {} ranks did not come to \"{}\" in time: {}",
                missing.len(),
                self.ranks.len(),
                self.address,
                list_ranks(&missing)
            ),
        );
        match missing.first() {
            Some(rank) => error.by(*rank),
            None => error,
        }
    }
}

impl Visitor {
    /// Sends the challenge.
    fn welcome(stream: TcpStream) -> Option<Visitor> {
        stream.set_nonblocking(true).ok()?;
        let _ = stream.set_nodelay(true);
        let mut nonce = [0; NONCE_BYTES];
        fill_random(&mut nonce).ok()?;
        let mut challenge = [0; CHALLENGE_BYTES];
        challenge[..8].copy_from_slice(MAGIC);
        challenge[8..].copy_from_slice(&nonce);
        // A fresh socket has room for so few bytes.
        let sent = (&stream).write(&challenge).ok()?;
        (sent == CHALLENGE_BYTES).then(|| Visitor {
            stream,
            nonce,
            said: Vec::with_capacity(HELLO_BYTES + GREETING_BYTES_MAX),
            expires: Instant::now() + STRANGER_TIME,
            index: None,
            guest_nonce: [0; NONCE_BYTES],
            proof: [0; MAC_BYTES],
            told: 0,
        })
    }

    /// How many bytes the hello has, as far as that can be told; `None` if
    /// this is no hello.
    fn wanted(&self) -> Option<usize> {
        let n = self.said.len().min(8);
        if self.said[..n] != MAGIC[..n] {
            return None;
        }
        if self.said.len() < HELLO_BYTES {
            return Some(HELLO_BYTES);
        }
        let length = [self.said[HELLO_BYTES - 2], self.said[HELLO_BYTES - 1]];
        let length = usize::from(u16::from_le_bytes(length));
        (length <= GREETING_BYTES_MAX).then_some(HELLO_BYTES + length)
    }

    fn is_complete(&self) -> bool {
        self.said.len() >= HELLO_BYTES && self.wanted() == Some(self.said.len())
    }

    /// Reads towards a whole hello; false if it is none.
    fn listen(&mut self) -> bool {
        let mut chunk = [0; 256];
        loop {
            let Some(wanted) = self.wanted() else {
                return false;
            };
            let room = (wanted - self.said.len()).min(chunk.len());
            if room == 0 {
                return true;
            }
            match (&self.stream).read(&mut chunk[..room]) {
                Ok(0) => return false,
                Ok(n) => self.said.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// True as long as a rank that has proven itself keeps its connection, and
    /// its peace.
    fn is_there(&self) -> bool {
        match self.stream.peek(&mut [0]) {
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
            Ok(_) => false,
        }
    }

    /// Sends away, with a word.
    fn dismiss(&mut self, why: u8) {
        let _ = (&self.stream).write(&[why]);
    }

    /// Sends what fits of the answer; true once it is all gone.
    fn tell(&mut self, head: &[u8], table: &[u8]) -> io::Result<bool> {
        let mut start = 0;
        for part in [head, table, &self.proof] {
            while self.told < start + part.len() {
                match (&self.stream).write(&part[self.told - start..]) {
                    Ok(n) => self.told += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            start += part.len();
        }
        Ok(true)
    }
}

/// The parts of a whole hello.
struct Hello<'a> {
    rank: Rank,
    nonce: [u8; NONCE_BYTES],
    proof: &'a [u8],
    greeting: &'a [u8],
}

impl Hello<'_> {
    /// `said` is complete.
    fn parse(said: &[u8]) -> Hello<'_> {
        let mut rank = [0; 4];
        rank.copy_from_slice(&said[8..12]);
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&said[12..12 + NONCE_BYTES]);
        Hello {
            rank: Rank(u32::from_le_bytes(rank)),
            nonce,
            proof: &said[12 + NONCE_BYTES..HELLO_BYTES - 2],
            greeting: &said[HELLO_BYTES..],
        }
    }
}

// --- every other rank --------------------------------------------------------

struct Guest<'a> {
    own: (Rank, &'a [u8]),
    ranks: &'a [Rank],
    addresses: &'a [SocketAddr],
    address: &'a str,
    token: &'a [u8],
}

/// How one attempt ended.
enum Attempt {
    All(Vec<Vec<u8>>),
    /// Worth another try.
    Again(String),
    Never(Error),
}

impl Guest<'_> {
    fn visit(&self, patience: Patience<'_>) -> Result<Vec<Vec<u8>>> {
        let mut last = String::from("there was no time to try");
        let host = self.ranks.first().copied().unwrap_or_default();
        for address in self.addresses.iter().cycle() {
            if patience.left()?.is_zero() {
                break;
            }
            match self.attempt(*address, patience)? {
                Attempt::All(greetings) => return Ok(greetings),
                Attempt::Never(error) => return Err(error.by(host)),
                Attempt::Again(why) => last = why,
            }
            std::thread::sleep(PAUSE.min(patience.left()?));
        }
        let text = format!(
            "rank {host} did not gather all ranks at \"{}\" in time: {last}",
            self.address
        );
        Err(Error::new(Status::MeetTimeout, text).by(host))
    }

    /// One visit from the first word to the last. Fails if the meeting is
    /// called off.
    fn attempt(&self, address: SocketAddr, patience: Patience<'_>) -> Result<Attempt> {
        let connect = move || TcpStream::connect_timeout(&address, CONNECT_TIME);
        let result = match patience.within("wsync-connect", connect)? {
            Some(stream) => stream.and_then(|stream| self.converse(&stream, patience)),
            None => Err(io::ErrorKind::TimedOut.into()),
        };
        patience.left()?;
        Ok(result.unwrap_or_else(|e| Attempt::Again(format!("{address}: {e}"))))
    }

    fn converse(&self, stream: &TcpStream, patience: Patience<'_>) -> io::Result<Attempt> {
        stream.set_nodelay(true)?;
        let soon = patience.until(Instant::now() + STRANGER_TIME);
        let mut challenge = [0; CHALLENGE_BYTES];
        read_exact(stream, &mut challenge, soon)?;
        if &challenge[..8] != MAGIC {
            let why = format!("\"{}\" is no rendezvous of this library", self.address);
            return Ok(Attempt::Again(why));
        }
        let host_nonce = &challenge[8..];
        let mut nonce = [0; NONCE_BYTES];
        fill_random(&mut nonce).map_err(io::Error::other)?;
        let (rank, greeting) = self.own;
        let mut hello = Vec::with_capacity(HELLO_BYTES + greeting.len());
        hello.extend_from_slice(MAGIC);
        hello.extend_from_slice(&rank.0.to_le_bytes());
        hello.extend_from_slice(&nonce);
        hello.extend_from_slice(&guest_proof(self.token, host_nonce, &nonce, rank, greeting));
        hello.extend_from_slice(&(greeting.len() as u16).to_le_bytes());
        hello.extend_from_slice(greeting);
        stream.set_write_timeout(Some(STRANGER_TIME))?;
        (&mut &*stream).write_all(&hello)?;
        self.hear(stream, host_nonce, &nonce, patience)
    }

    /// Waits for the answer, which comes when all ranks are there.
    fn hear(
        &self,
        stream: &TcpStream,
        host_nonce: &[u8],
        nonce: &[u8],
        patience: Patience<'_>,
    ) -> io::Result<Attempt> {
        let never = |status, text: &str| {
            let text = format!("the rendezvous at \"{}\" {text}", self.address);
            Ok(Attempt::Never(Error::new(status, text)))
        };
        let mut word = [0];
        read_exact(stream, &mut word, patience)?;
        match word[0] {
            answer::ALL => {}
            answer::REFUSED => {
                return never(
                    Status::Refused,
                    "refuses this rank: another token, or another list of ranks",
                );
            }
            // Our own earlier connection may not have been given up yet.
            answer::TWICE => {
                let why = format!("rank {} is there already", self.own.0);
                return Ok(Attempt::Again(why));
            }
            answer::LATE => {
                return never(Status::MeetTimeout, "gave up: not all ranks came in time");
            }
            _ => return Ok(Attempt::Again("an answer that makes no sense".to_string())),
        }
        let mut length = [0; 4];
        read_exact(stream, &mut length, patience)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > self.ranks.len() * (2 + GREETING_BYTES_MAX) {
            return Ok(Attempt::Again(format!("an answer of {length} bytes")));
        }
        let mut table = vec![0; length];
        read_exact(stream, &mut table, patience)?;
        let mut proof = [0; MAC_BYTES];
        read_exact(stream, &mut proof, patience)?;
        if !are_equal(&proof, &host_proof(self.token, host_nonce, nonce, &table)) {
            return never(Status::Refused, "does not know the token");
        }
        match parse_table(&table, self.ranks.len()) {
            Some(greetings) => Ok(Attempt::All(greetings)),
            None => never(Status::Protocol, "sent greetings that do not parse"),
        }
    }
}

fn parse_table(mut table: &[u8], count: usize) -> Option<Vec<Vec<u8>>> {
    let mut greetings = Vec::with_capacity(count);
    while let Some((head, rest)) = table.split_first_chunk::<2>() {
        let (greeting, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*head)))?;
        greetings.push(greeting.to_vec());
        table = rest;
    }
    (table.is_empty() && greetings.len() == count).then_some(greetings)
}

/// Fills `to`, by the deadline or not at all.
fn read_exact(stream: &TcpStream, to: &mut [u8], patience: Patience<'_>) -> io::Result<()> {
    let mut filled = 0;
    while filled < to.len() {
        let nap = patience.nap().map_err(io::Error::other)?;
        if nap.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Zero would mean for ever, and so may very short times.
        stream.set_read_timeout(Some(nap.max(Duration::from_millis(1))))?;
        match (&mut &*stream).read(&mut to[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

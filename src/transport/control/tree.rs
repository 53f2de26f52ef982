//! Who is connected to whom, and how the connections come about.
//!
//! Ranks in ascending order form a tree in which everybody has at most eight
//! children; the lowest rank is the root:
//!
//! ```text
//!   index          0
//!            ┌──┬──┴─ ... ─┐
//!            1  2          8
//!        ┌───┴─...─┐
//!        9   10   16 ...
//! ```
//!
//! A parent's index is always lower than its children's. A child connects to
//! its parent; both prove that they know the group's secret before anything
//! else is said, and strangers are dropped.

use super::link::{Address, Link, Listener, Stream};
use super::sys;
use super::vigil::{self, LastWords};
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::mac::{MAC_BYTES, are_equal, mac};
use crate::transport::patience::Patience;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// Children of one rank.
pub const ARITY: usize = 8;
/// Connections that have not said who they are; more are dropped.
const STRANGER_COUNT_MAX: usize = 64;
/// One attempt to connect.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const HELLO_MAGIC: &[u8; 8] = b"WSHELLO1";
const HELLO_BYTES: usize = 8 + 4 + 4 + MAC_BYTES;
const WELCOME_MAGIC: &[u8; 8] = b"WSWELCM1";
const WELCOME_BYTES: usize = 8 + MAC_BYTES;

/// The index of the parent of `index`.
pub fn parent_of(index: usize) -> Option<usize> {
    index.checked_sub(1).map(|i| i / ARITY)
}

/// The indices of the children of `index`, of `count` ranks.
pub fn children_of(index: usize, count: usize) -> Range<usize> {
    let first = (index * ARITY + 1).min(count);
    first..(first + ARITY).min(count)
}

/// True if `index` is `ancestor` or below it.
pub fn is_below(index: usize, ancestor: usize) -> bool {
    let mut at = Some(index);
    while let Some(i) = at {
        if i == ancestor {
            return true;
        }
        at = parent_of(i);
    }
    false
}

/// The connections of one rank.
#[derive(Debug)]
pub struct Tree {
    pub rank: Rank,
    pub root: Rank,
    pub parent: Option<Link>,
    pub children: Vec<Link>,
}

impl Tree {
    /// Connects to the parent and waits for the children. `address` tells
    /// where the rank with an index listens.
    pub fn connect(
        ranks: &[Rank],
        index: usize,
        address: impl Fn(usize) -> Address,
        group: u128,
        listener: &Listener,
        (patience, words): (Patience<'_>, &dyn LastWords),
    ) -> Result<Tree> {
        let key = group.to_le_bytes();
        let parent = match parent_of(index) {
            Some(p) => Some(Parent::call(ranks, index, p, &address(p), &key, patience)?),
            None => None,
        };
        let mut meeting = Meeting {
            own: ranks[index],
            expected: &ranks[children_of(index, ranks.len())],
            key: &key,
            parent,
            children: Vec::new(),
            strangers: Vec::new(),
        };
        let met = meeting.complete(listener, patience);
        let mut tree = Tree {
            rank: ranks[index],
            root: ranks[0],
            parent: meeting.parent.map(|p| Link::new(p.rank, p.stream)),
            children: meeting.children,
        };
        if let Err(e) = met {
            // Those who have met us already wait for everybody else.
            let neighbours = tree.parent.iter_mut().chain(&mut tree.children);
            vigil::tell(tree.rank, neighbours, words, &e);
            return Err(e);
        }
        tree.children.sort_unstable_by_key(|l| l.rank);
        Ok(tree)
    }
}

/// What a child proves with.
fn hello_mac(key: &[u8], child: Rank, parent: Rank) -> [u8; MAC_BYTES] {
    mac(
        key,
        &[b"child", &child.0.to_le_bytes(), &parent.0.to_le_bytes()],
    )
}

/// What a parent answers with.
fn welcome_mac(key: &[u8], child: Rank, parent: Rank) -> [u8; MAC_BYTES] {
    mac(
        key,
        &[b"parent", &child.0.to_le_bytes(), &parent.0.to_le_bytes()],
    )
}

/// The connection to the parent until it has answered.
#[derive(Debug)]
struct Parent {
    rank: Rank,
    stream: Stream,
    answer: Vec<u8>,
    is_welcome: bool,
}

impl Parent {
    fn call(
        ranks: &[Rank],
        index: usize,
        parent: usize,
        address: &Address,
        key: &[u8],
        patience: Patience<'_>,
    ) -> Result<Parent> {
        let (own, rank) = (ranks[index], ranks[parent]);
        let stream = dial(address, patience)?.map_err(|e| {
            let what = format!("cannot reach the control channel of rank {rank}");
            Error {
                status: Status::PeerLost,
                ..Error::os(what, &e)
            }
            .by(rank)
        })?;
        let mut hello = Vec::with_capacity(HELLO_BYTES);
        hello.extend_from_slice(HELLO_MAGIC);
        hello.extend_from_slice(&own.0.to_le_bytes());
        hello.extend_from_slice(&rank.0.to_le_bytes());
        hello.extend_from_slice(&hello_mac(key, own, rank));
        // A fresh socket has room for so few bytes.
        match stream.write(&hello) {
            Ok(n) if n == hello.len() => {}
            _ => return Err(closed_early(rank)),
        }
        Ok(Parent {
            rank,
            stream,
            answer: Vec::with_capacity(WELCOME_BYTES),
            is_welcome: false,
        })
    }

    fn listen(&mut self, own: Rank, key: &[u8]) -> Result<()> {
        match read_upto(&self.stream, &mut self.answer, WELCOME_BYTES) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let expected = welcome_mac(key, own, self.rank);
                let is_right = self.answer.starts_with(WELCOME_MAGIC)
                    && are_equal(&self.answer[8..], &expected);
                if !is_right {
                    return Err(Error::new(
                        Status::Protocol,
                        format!("rank {} does not answer as a peer would", self.rank),
                    )
                    .by(self.rank));
                }
                self.is_welcome = true;
                Ok(())
            }
            Err(_) => Err(closed_early(self.rank)),
        }
    }
}

fn closed_early(rank: Rank) -> Error {
    let text = format!(
        "rank {rank} closed the control channel while meeting: it died, or was given other greetings"
    );
    Error::new(Status::PeerLost, text).by(rank)
}

/// Connects; tries again until the deadline where that makes sense: a Unix
/// socket that refuses is gone for good, a TCP one may have been too busy. The
/// outer error is that of a meeting which was called off.
fn dial(address: &Address, patience: Patience<'_>) -> Result<io::Result<Stream>> {
    loop {
        let error = match connect(address, patience)? {
            Ok(stream) => return Ok(Ok(stream)),
            Err(e) => e,
        };
        let may_work = match address {
            Address::Unix(_) => error.kind() == io::ErrorKind::WouldBlock,
            Address::Tcp(_) => true,
        };
        let left = patience.left()?;
        if !may_work || left.is_zero() {
            return Ok(Err(error));
        }
        std::thread::sleep(Duration::from_millis(20).min(left));
    }
}

fn connect(address: &Address, patience: Patience<'_>) -> Result<io::Result<Stream>> {
    let to = address.clone();
    let stream = match to {
        // Never waits.
        Address::Unix(_) => Some(Stream::connect(&to, CONNECT_TIME)),
        Address::Tcp(_) => {
            let call = move || Stream::connect(&to, CONNECT_TIME);
            patience.within("wsync-connect", call)?
        }
    };
    Ok(stream.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())))
}

/// Reads towards `want` bytes; true once they are there. An error at the end
/// of the stream.
fn read_upto(stream: &Stream, to: &mut Vec<u8>, want: usize) -> io::Result<bool> {
    let mut chunk = [0; 64];
    while to.len() < want {
        let room = (want - to.len()).min(chunk.len());
        match stream.read(&mut chunk[..room]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => to.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// One rank while it meets its neighbours.
struct Meeting<'a> {
    own: Rank,
    expected: &'a [Rank],
    key: &'a [u8],
    parent: Option<Parent>,
    children: Vec<Link>,
    /// Connections that have not said who they are.
    strangers: Vec<(Stream, Vec<u8>)>,
}

impl Meeting<'_> {
    fn is_complete(&self) -> bool {
        self.children.len() == self.expected.len()
            && self.parent.as_ref().is_none_or(|p| p.is_welcome)
    }

    fn complete(&mut self, listener: &Listener, patience: Patience<'_>) -> Result<()> {
        while !self.is_complete() {
            let nap = patience.nap()?;
            if nap.is_zero() {
                return Err(self.timeout());
            }
            self.step(listener, nap)?;
        }
        Ok(())
    }

    fn timeout(&self) -> Error {
        let here = |r: &&Rank| self.children.iter().any(|l| l.rank == **r);
        let missing: Vec<Rank> = self.expected.iter().filter(|r| !here(r)).copied().collect();
        let lowest = match &self.parent {
            Some(p) if !p.is_welcome => p.rank,
            _ => missing.first().copied().unwrap_or(self.own),
        };
        let text = format!("rank {lowest} did not connect its control channel in time");
        Error::new(Status::MeetTimeout, text).by(lowest)
    }

    /// Waits for something to happen and deals with it.
    fn step(&mut self, listener: &Listener, nap: Duration) -> Result<()> {
        let mut items = vec![sys::poll_item(listener.raw_fd(), false)];
        let parent = self.parent.as_ref().filter(|p| !p.is_welcome);
        items.extend(parent.map(|p| sys::poll_item(p.stream.raw_fd(), false)));
        let strangers = self.strangers.iter();
        items.extend(strangers.map(|(s, _)| sys::poll_item(s.raw_fd(), false)));
        sys::poll(&mut items, Some(nap)).map_err(|e| Error::os("cannot wait for peers", &e))?;
        if let Some(parent) = self.parent.as_mut().filter(|p| !p.is_welcome) {
            parent.listen(self.own, self.key)?;
        }
        while let Ok(stream) = listener.accept() {
            if self.strangers.len() == STRANGER_COUNT_MAX {
                self.strangers.remove(0);
            }
            self.strangers
                .push((stream, Vec::with_capacity(HELLO_BYTES)));
        }
        self.greet_strangers();
        Ok(())
    }

    /// Takes in the children among the strangers, drops whoever lies.
    fn greet_strangers(&mut self) {
        let mut i = 0;
        while i < self.strangers.len() {
            let (stream, hello) = &mut self.strangers[i];
            match read_upto(stream, hello, HELLO_BYTES) {
                Ok(false) => i += 1,
                Err(_) => drop(self.strangers.swap_remove(i)),
                Ok(true) => {
                    let (stream, hello) = self.strangers.swap_remove(i);
                    self.admit(stream, &hello);
                }
            }
        }
    }

    fn admit(&mut self, stream: Stream, hello: &[u8]) {
        let number = |at: usize| {
            let bytes: [u8; 4] = hello[at..at + 4].try_into().unwrap_or_default();
            Rank(u32::from_le_bytes(bytes))
        };
        let (child, parent) = (number(8), number(12));
        let is_right = hello.starts_with(HELLO_MAGIC)
            && parent == self.own
            && are_equal(&hello[16..], &hello_mac(self.key, child, parent))
            && self.expected.contains(&child)
            && self.children.iter().all(|l| l.rank != child);
        if !is_right {
            return;
        }
        let mut welcome = Vec::with_capacity(WELCOME_BYTES);
        welcome.extend_from_slice(WELCOME_MAGIC);
        welcome.extend_from_slice(&welcome_mac(self.key, child, parent));
        if stream.write(&welcome).is_ok_and(|n| n == welcome.len()) {
            self.children.push(Link::new(child, stream));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_one_parent_which_knows_it() {
        for count in [1, 2, 8, 9, 10, 73, 1000] {
            let mut seen = vec![0; count];
            for i in 0..count {
                for c in children_of(i, count) {
                    assert_eq!(parent_of(c), Some(i));
                    assert!(is_below(c, i) && is_below(c, 0) && !is_below(i, c));
                    seen[c] += 1;
                }
            }
            assert_eq!(seen[0], 0);
            assert!(seen[1..].iter().all(|&n| n == 1));
        }
    }
}

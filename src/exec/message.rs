//! What ranks tell each other over the control channel.
//!
//! ```text
//!   up, to the coordinator        down, to everybody       to a neighbour
//!   AGREE    I would start this   READY    all agree       PING   I live
//!   WITHDRAW I would not          REFUSE   they do not     PONG   so do I
//!   BEAT     I have come so far   OUTCOME  how it ended
//!   DONE     I have ended         LEFT     all have left   any way at all
//!   SUSPECT  a child is silent    AWAITED  who has not left ABORT
//!   LEAVE    I am leaving         COMPARE  what do you send?
//!   PAIRS    what I send and get
//! ```
//!
//! Frames carry one message each: a kind byte, then fields of fixed width,
//! little endian. Everything that comes in is bounds-checked; a message that
//! does not parse is a protocol error and nothing else happens.

use super::Outcome;
use super::comparison::PAIR_BYTES;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::waits::{WAITS_MAX, Waits};

/// One execution: which plan, and how many times it has been prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub plan: u128,
    pub sequence: u64,
}

/// In place of a copy, for ranks that belong to none.
pub const NO_COPY: u32 = u32::MAX;
/// In place of a rank, where nobody is meant.
pub const NO_RANK: u32 = u32::MAX;
/// Bytes of text that a message carries.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Mismatching digests that an OUTCOME names one by one.
pub const MISMATCH_COUNT_MAX: usize = 8;

/// Which ranks take part in a plan, as ranges of rank numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Participants {
    pub count: u32,
    pub lowest: u32,
    pub hash: u64,
    /// Ascending half-open ranges, eight bytes each.
    pub ranges: Vec<u8>,
}

impl Participants {
    /// `ranks` ascending.
    pub fn new(ranks: &[Rank]) -> Participants {
        let mut ranges = Vec::new();
        let mut open: Option<(u32, u32)> = None;
        for rank in ranks {
            open = match open {
                Some((lo, hi)) if hi == rank.0 => Some((lo, hi + 1)),
                other => {
                    push_range(&mut ranges, other);
                    Some((rank.0, rank.0 + 1))
                }
            };
        }
        push_range(&mut ranges, open);
        Participants {
            count: ranks.len() as u32,
            lowest: ranks.first().map_or(NO_RANK, |r| r.0),
            hash: xxhash_rust::xxh3::xxh3_64(&ranges),
            ranges,
        }
    }
}

fn push_range(to: &mut Vec<u8>, range: Option<(u32, u32)>) {
    if let Some((lo, hi)) = range {
        to.extend_from_slice(&lo.to_le_bytes());
        to.extend_from_slice(&hi.to_le_bytes());
    }
}

/// True if `rank` lies in one of the `ranges`.
pub fn in_ranges(ranges: &[u8], rank: u32) -> bool {
    range_list(ranges).any(|(lo, hi)| lo <= rank && rank < hi)
}

/// The ranges of a participants list.
pub fn range_list(ranges: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    ranges.chunks_exact(8).map(|c| {
        let lo = u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
        let hi = u32::from_le_bytes([c[4], c[5], c[6], c[7]]);
        (lo, hi)
    })
}

/// What a rank says about a loaded plan whenever it agrees; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    pub rank: Rank,
    pub plan: u128,
    pub balance: u128,
    pub steps: u32,
    pub tensors: u32,
    pub copy: u32,
    pub copy_ranks: u32,
    pub copies_are_alike: bool,
    pub participants: Participants,
}

/// "I would start this, under these conditions."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agree<'a> {
    pub rank: u32,
    pub key: Key,
    pub version: u64,
    pub flags: u32,
    pub library: u32,
    pub balance: u128,
    pub steps: u32,
    pub tensors: u32,
    pub copy: u32,
    pub copy_ranks: u32,
    pub copies_are_alike: bool,
    pub participants: u32,
    pub lowest: u32,
    pub participants_hash: u64,
    /// How long this rank is ready to wait from now on.
    pub agree_ns: u64,
    pub stall_ns: u64,
    /// The participants; only the lowest of them sends a long list.
    pub ranges: &'a [u8],
}

/// Digest vectors, eight bytes per tensor, or empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums<'a> {
    pub once: &'a [u8],
    pub sent: &'a [u8],
    pub held: &'a [u8],
}

/// One message. Borrows its texts and vectors from the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Agree(Agree<'a>),
    Withdraw {
        rank: u32,
        key: Key,
    },
    Beat {
        rank: u32,
        key: Key,
        enqueued: u32,
        done: u32,
        /// Bytes that the transport has moved, ever.
        moved: u64,
        waits_for: Waits,
    },
    Done {
        rank: u32,
        key: Key,
        outcome: Outcome,
        bytes: u64,
        sums: Sums<'a>,
    },
    /// A neighbour of `rank` hears nothing of it, or hears it again.
    Suspect {
        rank: u32,
        is_silent: bool,
    },
    Leave {
        rank: u32,
    },
    /// What `rank` would send to whom, and expects from whom: a hash per pair.
    Pairs {
        rank: u32,
        key: Key,
        list: &'a [u8],
    },
    /// `rank` left on its own, and cut off whoever is below it.
    Gone {
        rank: u32,
    },
    Ready {
        key: Key,
        /// The shortest stall deadline of all ranks.
        stall_ns: u64,
    },
    /// Pairs do not balance: every rank is to say what it sends.
    Compare {
        key: Key,
    },
    Refuse {
        key: Key,
        /// The highest sequence of this plan that is over.
        closed: u64,
        status: Status,
        culprit: u32,
        text: &'a str,
    },
    Outcome {
        key: Key,
        /// The outcome of every copy that `exceptions` does not name.
        copies: Outcome,
        /// The outcome of all copies together.
        all: Outcome,
        /// Copy and outcome, five bytes each, ascending.
        exceptions: &'a [u8],
        /// How many (copy, tensor) digests differ, of which `mismatches`
        /// names the first few, eight bytes each.
        mismatch_count: u64,
        mismatches: &'a [u8],
        /// Published digests, if the request was verified.
        once: &'a [u8],
    },
    /// Some have left, and this is the lowest rank that has not.
    Awaited {
        rank: u32,
    },
    Left,
    Ping {
        interval_ns: u64,
        is_active: bool,
    },
    Pong,
    Abort {
        status: Status,
        culprit: u32,
        text: &'a str,
    },
}

/// Kind bytes; never reused.
mod kind {
    pub const AGREE: u8 = 1;
    pub const WITHDRAW: u8 = 2;
    pub const BEAT: u8 = 3;
    pub const DONE: u8 = 4;
    pub const SUSPECT: u8 = 5;
    pub const LEAVE: u8 = 6;
    pub const GONE: u8 = 7;
    pub const PAIRS: u8 = 8;
    pub const READY: u8 = 16;
    pub const REFUSE: u8 = 17;
    pub const OUTCOME: u8 = 18;
    pub const LEFT: u8 = 19;
    pub const COMPARE: u8 = 20;
    pub const AWAITED: u8 = 21;
    pub const PING: u8 = 32;
    pub const PONG: u8 = 33;
    pub const ABORT: u8 = 48;
}

impl<'a> Message<'a> {
    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer { out };
        match self {
            Message::Agree(a) => a.encode(&mut w),
            Message::Withdraw { rank, key } => w.u8(kind::WITHDRAW).u32(*rank).key(key).end(),
            Message::Beat {
                rank,
                key,
                enqueued,
                done,
                moved,
                waits_for,
            } => w
                .u8(kind::BEAT)
                .u32(*rank)
                .key(key)
                .u32(*enqueued)
                .u32(*done)
                .u64(*moved)
                .waits(waits_for)
                .end(),
            Message::Done {
                rank,
                key,
                outcome,
                bytes,
                sums,
            } => w
                .u8(kind::DONE)
                .u32(*rank)
                .key(key)
                .u8(*outcome as u8)
                .u64(*bytes)
                .bytes(sums.once)
                .bytes(sums.sent)
                .bytes(sums.held)
                .end(),
            Message::Suspect { rank, is_silent } => {
                w.u8(kind::SUSPECT)
                    .u32(*rank)
                    .u8(u8::from(*is_silent))
                    .end();
            }
            Message::Pairs { rank, key, list } => {
                w.u8(kind::PAIRS).u32(*rank).key(key).bytes(list).end();
            }
            Message::Compare { key } => w.u8(kind::COMPARE).key(key).end(),
            Message::Leave { rank } => w.u8(kind::LEAVE).u32(*rank).end(),
            Message::Gone { rank } => w.u8(kind::GONE).u32(*rank).end(),
            Message::Ready { key, stall_ns } => w.u8(kind::READY).key(key).u64(*stall_ns).end(),
            Message::Refuse {
                key,
                closed,
                status,
                culprit,
                text,
            } => w
                .u8(kind::REFUSE)
                .key(key)
                .u64(*closed)
                .u32(status.code() as u32)
                .u32(*culprit)
                .text(text)
                .end(),
            Message::Outcome {
                key,
                copies,
                all,
                exceptions,
                mismatch_count,
                mismatches,
                once,
            } => w
                .u8(kind::OUTCOME)
                .key(key)
                .u8(*copies as u8)
                .u8(*all as u8)
                .bytes(exceptions)
                .u64(*mismatch_count)
                .bytes(mismatches)
                .bytes(once)
                .end(),
            Message::Awaited { rank } => w.u8(kind::AWAITED).u32(*rank).end(),
            Message::Left => w.u8(kind::LEFT).end(),
            Message::Ping {
                interval_ns,
                is_active,
            } => w
                .u8(kind::PING)
                .u64(*interval_ns)
                .u8(u8::from(*is_active))
                .end(),
            Message::Pong => w.u8(kind::PONG).end(),
            Message::Abort {
                status,
                culprit,
                text,
            } => w
                .u8(kind::ABORT)
                .u32(status.code() as u32)
                .u32(*culprit)
                .text(text)
                .end(),
        }
    }

    /// Says why a transport is aborted.
    pub fn abort(reason: &'a Error) -> Message<'a> {
        Message::Abort {
            status: reason.status,
            culprit: reason.rank.map_or(NO_RANK, |r| r.0),
            text: &reason.message,
        }
    }

    /// The reason of an abort; `None` for other messages.
    pub fn abort_reason(&self) -> Option<Error> {
        let Message::Abort {
            status,
            culprit,
            text,
        } = *self
        else {
            return None;
        };
        Some(Error {
            rank: (culprit != NO_RANK).then_some(Rank(culprit)),
            ..Error::new(status, text)
        })
    }

    /// Reads one message that fills `frame` exactly.
    pub fn decode(frame: &'a [u8]) -> Result<Message<'a>> {
        let mut r = Reader { rest: frame };
        let message = r.message().ok_or_else(|| {
            Error::new(
                Status::Protocol,
                format!(
                    "a control message of kind {} and {} bytes does not parse",
                    frame.first().copied().unwrap_or(0),
                    frame.len()
                ),
            )
        })?;
        Ok(message)
    }
}

impl Agree<'_> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(kind::AGREE)
            .u32(self.rank)
            .key(&self.key)
            .u64(self.version)
            .u32(self.flags)
            .u32(self.library)
            .u128(self.balance)
            .u32(self.steps)
            .u32(self.tensors)
            .u32(self.copy)
            .u32(self.copy_ranks)
            .u8(u8::from(self.copies_are_alike))
            .u32(self.participants)
            .u32(self.lowest)
            .u64(self.participants_hash)
            .u64(self.agree_ns)
            .u64(self.stall_ns)
            .bytes(self.ranges)
            .end();
    }
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, v: u8) -> &mut Self {
        self.put(&[v])
    }

    fn u32(&mut self, v: u32) -> &mut Self {
        self.put(&v.to_le_bytes())
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.put(&v.to_le_bytes())
    }

    fn u128(&mut self, v: u128) -> &mut Self {
        self.put(&v.to_le_bytes())
    }

    fn key(&mut self, key: &Key) -> &mut Self {
        self.u128(key.plan).u64(key.sequence)
    }

    fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u32(v.len() as u32).put(v)
    }

    fn waits(&mut self, v: &Waits) -> &mut Self {
        self.u8(v.ranks().len() as u8).u64(v.place);
        v.ranks().iter().fold(self, |w, rank| w.u32(rank.0))
    }

    /// At most [`TEXT_BYTES_MAX`] bytes, cut between characters.
    fn text(&mut self, v: &str) -> &mut Self {
        let mut end = v.len().min(TEXT_BYTES_MAX);
        while !v.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(&v.as_bytes()[..end])
    }

    fn end(&mut self) {}
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.take(16)?.try_into().ok().map(u128::from_le_bytes)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn key(&mut self) -> Option<Key> {
        Some(Key {
            plan: self.u128()?,
            sequence: self.u64()?,
        })
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()?;
        self.take(n as usize)
    }

    /// Bytes in items of `size`.
    fn items(&mut self, size: usize) -> Option<&'a [u8]> {
        self.bytes().filter(|b| b.len() % size == 0)
    }

    fn text(&mut self) -> Option<&'a str> {
        let bytes = self.bytes().filter(|b| b.len() <= TEXT_BYTES_MAX)?;
        std::str::from_utf8(bytes).ok()
    }

    fn waits(&mut self) -> Option<Waits> {
        let count = usize::from(self.u8()?);
        let place = self.u64()?;
        let ranks = (0..count).map(|_| self.u32().map(Rank));
        let waits: Option<Waits> = ranks.collect();
        Some(count)
            .filter(|n| *n <= WAITS_MAX)
            .and(waits)
            .map(|w| w.at(place))
    }

    fn status(&mut self) -> Option<Status> {
        Status::from_code(self.u32()? as i32).filter(|s| s.code() < 0)
    }

    fn outcome(&mut self) -> Option<Outcome> {
        Outcome::from_code(self.u8()?)
    }

    fn message(&mut self) -> Option<Message<'a>> {
        let message = match self.u8()? {
            kind::AGREE => Message::Agree(self.agree()?),
            kind::WITHDRAW => Message::Withdraw {
                rank: self.u32()?,
                key: self.key()?,
            },
            kind::BEAT => Message::Beat {
                rank: self.u32()?,
                key: self.key()?,
                enqueued: self.u32()?,
                done: self.u32()?,
                moved: self.u64()?,
                waits_for: self.waits()?,
            },
            kind::DONE => Message::Done {
                rank: self.u32()?,
                key: self.key()?,
                outcome: self.outcome()?,
                bytes: self.u64()?,
                sums: Sums {
                    once: self.items(8)?,
                    sent: self.items(8)?,
                    held: self.items(8)?,
                },
            },
            kind::SUSPECT => Message::Suspect {
                rank: self.u32()?,
                is_silent: self.bool()?,
            },
            kind::LEAVE => Message::Leave { rank: self.u32()? },
            kind::GONE => Message::Gone { rank: self.u32()? },
            kind::PAIRS => Message::Pairs {
                rank: self.u32()?,
                key: self.key()?,
                list: self.items(PAIR_BYTES)?,
            },
            kind::COMPARE => Message::Compare { key: self.key()? },
            kind::READY => Message::Ready {
                key: self.key()?,
                stall_ns: self.u64()?,
            },
            kind::REFUSE => Message::Refuse {
                key: self.key()?,
                closed: self.u64()?,
                status: self.status()?,
                culprit: self.u32()?,
                text: self.text()?,
            },
            kind::OUTCOME => Message::Outcome {
                key: self.key()?,
                copies: self.outcome()?,
                all: self.outcome()?,
                exceptions: self.items(5)?,
                mismatch_count: self.u64()?,
                mismatches: self.items(8)?,
                once: self.items(8)?,
            },
            kind::AWAITED => Message::Awaited { rank: self.u32()? },
            kind::LEFT => Message::Left,
            kind::PING => Message::Ping {
                interval_ns: self.u64()?,
                is_active: self.bool()?,
            },
            kind::PONG => Message::Pong,
            kind::ABORT => Message::Abort {
                status: self.status()?,
                culprit: self.u32()?,
                text: self.text()?,
            },
            _ => return None,
        };
        self.rest.is_empty().then_some(message)
    }

    fn agree(&mut self) -> Option<Agree<'a>> {
        Some(Agree {
            rank: self.u32()?,
            key: self.key()?,
            version: self.u64()?,
            flags: self.u32()?,
            library: self.u32()?,
            balance: self.u128()?,
            steps: self.u32()?,
            tensors: self.u32()?,
            copy: self.u32()?,
            copy_ranks: self.u32()?,
            copies_are_alike: self.bool()?,
            participants: self.u32()?,
            lowest: self.u32()?,
            participants_hash: self.u64()?,
            agree_ns: self.u64()?,
            stall_ns: self.u64()?,
            ranges: self.items(8)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree() -> Agree<'static> {
        Agree {
            rank: 3,
            key: Key {
                plan: 7 << 100,
                sequence: 9,
            },
            version: 12,
            flags: 1,
            library: 0x10000,
            balance: u128::MAX - 5,
            steps: 4,
            tensors: 2,
            copy: 1,
            copy_ranks: 4,
            copies_are_alike: true,
            participants: 8,
            lowest: 0,
            participants_hash: 77,
            agree_ns: 5,
            stall_ns: u64::MAX,
            ranges: &[0, 0, 0, 0, 8, 0, 0, 0],
        }
    }

    fn samples() -> Vec<Message<'static>> {
        let key = agree().key;
        vec![
            Message::Agree(agree()),
            Message::Withdraw { rank: 1, key },
            Message::Beat {
                rank: 1,
                key,
                enqueued: 5,
                done: 3,
                moved: 1 << 33,
                waits_for: [3, 4, NO_RANK]
                    .map(Rank)
                    .into_iter()
                    .collect::<Waits>()
                    .at(7),
            },
            Message::Done {
                rank: 2,
                key,
                outcome: Outcome::Torn,
                bytes: 1 << 40,
                sums: Sums {
                    once: &[1; 16],
                    sent: &[2; 16],
                    held: &[],
                },
            },
            Message::Suspect {
                rank: 4,
                is_silent: true,
            },
            Message::Pairs {
                rank: 4,
                key,
                list: &[5; 2 * PAIR_BYTES],
            },
            Message::Compare { key },
            Message::Leave { rank: 4 },
            Message::Gone { rank: 4 },
            Message::Ready { key, stall_ns: 77 },
            Message::Refuse {
                key,
                closed: 9,
                status: Status::AgreementTimeout,
                culprit: 6,
                text: "rank 6 is late",
            },
            Message::Outcome {
                key,
                copies: Outcome::Complete,
                all: Outcome::Torn,
                exceptions: &[1, 0, 0, 0, 3],
                mismatch_count: 1,
                mismatches: &[1, 0, 0, 0, 2, 0, 0, 0],
                once: &[9; 8],
            },
            Message::Awaited { rank: 5 },
            Message::Left,
            Message::Ping {
                interval_ns: 1000,
                is_active: true,
            },
            Message::Pong,
            Message::Abort {
                status: Status::PeerLost,
                culprit: 2,
                text: "rank 2 died",
            },
        ]
    }

    #[test]
    fn every_message_comes_back_as_it_went() {
        for message in samples() {
            let mut frame = Vec::new();
            message.encode(&mut frame);
            assert_eq!(Message::decode(&frame).unwrap(), message);
        }
    }

    #[test]
    fn truncated_and_padded_messages_are_refused() {
        for message in samples() {
            let mut frame = Vec::new();
            message.encode(&mut frame);
            for n in 0..frame.len() {
                let e = Message::decode(&frame[..n]).unwrap_err();
                assert_eq!(e.status, Status::Protocol);
            }
            frame.push(0);
            assert!(Message::decode(&frame).is_err());
        }
    }

    #[test]
    fn flipped_bits_never_panic() {
        for message in samples() {
            let mut frame = Vec::new();
            message.encode(&mut frame);
            for bit in 0..frame.len() * 8 {
                frame[bit / 8] ^= 1 << (bit % 8);
                drop(Message::decode(&frame));
                frame[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn participants_are_ranges() {
        let p = Participants::new(&[0, 1, 2, 5, 7, 8].map(Rank));
        let ranges: Vec<_> = range_list(&p.ranges).collect();
        assert_eq!(ranges, [(0, 3), (5, 6), (7, 9)]);
        assert_eq!((p.count, p.lowest), (6, 0));
        assert!(in_ranges(&p.ranges, 8) && !in_ranges(&p.ranges, 6));
        assert_eq!(Participants::new(&[]).lowest, NO_RANK);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "ä".repeat(TEXT_BYTES_MAX);
        let m = Message::Abort {
            status: Status::Aborted,
            culprit: 0,
            text: &text,
        };
        let mut frame = Vec::new();
        m.encode(&mut frame);
        let Message::Abort { text, .. } = Message::decode(&frame).unwrap() else {
            panic!("not an abort");
        };
        assert_eq!(text.len(), TEXT_BYTES_MAX);
    }
}

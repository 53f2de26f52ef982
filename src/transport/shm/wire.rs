//! What ranks tell each other before the first byte moves.
//!
//! ```text
//!   address   in the greeting: magic, version, rank, host, name, token
//!   hello     sender to receiver: magic, version, from, to, ring, token
//!             with two descriptors: the ring and the sender's bell
//!   reply     back: magic, status, rank; with the receiver's bell
//! ```
//!
//! All of them have a fixed size, little-endian.

use super::ring::Shape;
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;
use subtle::ConstantTimeEq;

const MAGIC: [u8; 8] = *b"wsyncshm";
const VERSION: u32 = 1;

pub(super) const ADDRESS_BYTES: usize = 64;
pub(super) const HELLO_BYTES: usize = 48;
pub(super) const REPLY_BYTES: usize = 16;

/// Takes fixed-size fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                Ok(*field)
            }
            None => Err(damaged("is cut short")),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn rank(&mut self) -> Result<Rank> {
        match self.u32()? {
            rank if rank < RANK_COUNT_MAX => Ok(Rank(rank)),
            rank => Err(damaged(&format!("names rank {rank}"))),
        }
    }

    /// Magic and version, which everything but a reply starts with.
    fn preamble(&mut self) -> Result<()> {
        if self.take::<8>()? != MAGIC {
            return Err(damaged("is not one of ours"));
        }
        match self.u32()? {
            VERSION => Ok(()),
            other => Err(Error::new(
                Status::VersionMismatch,
                format!("a shm peer speaks version {other}, we speak {VERSION}"),
            )),
        }
    }
}

fn damaged(what: &str) -> Error {
    Error::new(Status::Protocol, format!("a shm message {what}"))
}

/// Where a rank listens, and what it wants to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub rank: Rank,
    /// The boot id of the host; zeroes if unknown.
    pub host: [u8; 16],
    pub name: [u8; 16],
    pub token: [u8; 16],
}

impl Address {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ADDRESS_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.rank.0.to_le_bytes());
        bytes.extend(self.host);
        bytes.extend(self.name);
        bytes.extend(self.token);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Address> {
        if bytes.len() != ADDRESS_BYTES {
            return Err(Error::invalid(format!(
                "a shm address of {} bytes; it has {ADDRESS_BYTES}",
                bytes.len()
            )));
        }
        let mut reader = Reader(bytes);
        reader.preamble()?;
        Ok(Address {
            rank: reader.rank()?,
            host: reader.take()?,
            name: reader.take()?,
            token: reader.take()?,
        })
    }

    /// The name of the abstract socket.
    pub(super) fn socket_name(&self) -> Vec<u8> {
        let mut name = b"wsync-".to_vec();
        for byte in self.name {
            name.extend(format!("{byte:02x}").bytes());
        }
        name
    }
}

/// What a sender says when it connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub from: Rank,
    pub to: Rank,
    pub shape: Shape,
    /// The token of the listener's address.
    pub token: [u8; 16],
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HELLO_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.from.0.to_le_bytes());
        bytes.extend(self.to.0.to_le_bytes());
        bytes.extend(self.shape.slots.to_le_bytes());
        bytes.extend(self.shape.slot_bytes.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.token);
        bytes
    }

    /// Takes a hello that is for `to` and knows its token.
    pub(super) fn decode(bytes: &[u8], to: Rank, token: &[u8; 16]) -> Result<Hello> {
        let mut reader = Reader(bytes);
        reader.preamble()?;
        let mut hello = Hello {
            from: reader.rank()?,
            to: reader.rank()?,
            shape: Shape {
                slots: reader.u32()?,
                slot_bytes: reader.u32()?,
            },
            token: [0; 16],
        };
        reader.take::<4>()?;
        hello.token = reader.take()?;
        if !bool::from(hello.token.ct_eq(token)) {
            return Err(damaged("has the wrong token"));
        }
        if hello.to != to || hello.from == to {
            return Err(damaged(&format!(
                "goes from rank {} to rank {}; this is rank {to}",
                hello.from, hello.to
            )));
        }
        hello.shape.check()?;
        Ok(hello)
    }
}

/// What the listener answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub status: i32,
    pub rank: Rank,
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(REPLY_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.status.to_le_bytes());
        bytes.extend(self.rank.0.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Reply> {
        let mut reader = Reader(bytes);
        if reader.take::<8>()? != MAGIC {
            return Err(damaged("is not one of ours"));
        }
        Ok(Reply {
            status: i32::from_le_bytes(reader.take()?),
            rank: reader.rank()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            from: Rank(1),
            to: Rank(2),
            shape: Shape {
                slots: 8,
                slot_bytes: 8192,
            },
            token: [7; 16],
        }
    }

    #[test]
    fn messages_round_trip_in_their_size() {
        let address = Address {
            rank: Rank(3),
            host: [1; 16],
            name: [0xab; 16],
            token: [3; 16],
        };
        let bytes = address.encode();
        assert_eq!(bytes.len(), ADDRESS_BYTES);
        assert_eq!(Address::decode(&bytes).unwrap(), address);
        assert_eq!(address.socket_name().len(), 38);

        let bytes = hello().encode();
        assert_eq!(bytes.len(), HELLO_BYTES);
        assert_eq!(Hello::decode(&bytes, Rank(2), &[7; 16]).unwrap(), hello());

        let reply = Reply {
            status: -84,
            rank: Rank(5),
        };
        let bytes = reply.encode();
        assert_eq!(bytes.len(), REPLY_BYTES);
        assert_eq!(Reply::decode(&bytes).unwrap(), reply);
    }

    #[test]
    fn strangers_are_refused() {
        let bytes = hello().encode();
        let refused = |bytes: &[u8], rank, token| Hello::decode(bytes, rank, token).is_err();
        assert!(refused(&bytes, Rank(2), &[8; 16]));
        assert!(refused(&bytes, Rank(3), &[7; 16]));
        assert!(refused(&bytes[..40], Rank(2), &[7; 16]));
        for i in 0..12 {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(refused(&bad, Rank(2), &[7; 16]), "byte {i}");
        }
        let mut large = hello();
        large.shape.slot_bytes = 1 << 31;
        assert!(refused(&large.encode(), Rank(2), &[7; 16]));
    }
}

//! What the command and its workers say to each other.
//!
//! ```text
//!   command                     worker of one rank
//!   Job ─────────────────────►  opens its endpoint
//!       ◄───────────── Greeting
//!   Meet (all greetings) ────►  meets, loads the plan, binds its buffers
//!       ◄────────────────── Met
//!   Fill, Move, Check ───────►  once each per version
//!       ◄─ Filled, Moved, Checked
//!   Save, Leave ─────────────►
//!       ◄────────── Saved, Left
//! ```
//!
//! Between processes these are JSON, one message a line, on the worker's
//! standard input and output. A worker that fails says `Failed` and ends.

use super::reference::Origin;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use weightsync::transport::Kind;
use weightsync::{Error, Rank, Result};

/// What a rank is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Job(Job),
    Meet(Vec<String>),
    Fill(u64),
    Move(u64),
    Check(u64),
    Save(PathBuf),
    Leave,
}

/// Everything a worker must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub rank: Rank,
    /// Every rank, ascending.
    pub ranks: Vec<Rank>,
    pub carrier: Carrier,
    /// The plan, in hexadecimal digits.
    pub plan: String,
    pub origin: Origin,
    /// How long any step may take.
    pub deadline_ns: u64,
}

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// One process per rank, shared memory between them
    Shm,
    /// One thread per rank, all in this process
    Loopback,
}

impl Carrier {
    pub const fn kind(self) -> Kind {
        match self {
            Carrier::Shm => Kind::Shm,
            Carrier::Loopback => Kind::Loopback,
        }
    }
}

/// What a rank answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Greeting(String),
    Met { buffer_bytes: u64 },
    Filled,
    Moved(Moved),
    Checked { destination_bytes: u64 },
    Saved,
    Left,
    Failed(Failure),
}

/// How a version went on one rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moved {
    pub outcome: String,
    pub is_verified: bool,
    pub agree_ns: u64,
    pub move_ns: u64,
    pub settle_ns: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub bytes_local: u64,
    /// Tensor and digest; told by one rank only, since all have the same.
    pub digests: Vec<(String, String)>,
}

/// Why a rank failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub status: i32,
    /// The rank that is to blame, if one is.
    pub culprit: Option<Rank>,
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Failure {
        Failure {
            status: e.status.code(),
            culprit: e.rank,
            message: e.message.clone(),
        }
    }
}

/// Two hexadecimal digits per byte.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes
        .iter()
        .flat_map(|&b| [digit(b >> 4), digit(b & 15)])
        .collect()
}

/// The bytes that [`to_hex`] wrote.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let value = |c: u8| char::from(c).to_digit(16);
    let byte = |two: &[u8]| match two {
        &[hi, lo] => Some((value(hi)? * 16 + value(lo)?) as u8),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    bytes.ok_or_else(|| Error::corrupt("a message has damaged hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&all)).unwrap(), all);
        assert!(from_hex("abc").is_err());
        assert!(from_hex("zz").is_err());
    }
}

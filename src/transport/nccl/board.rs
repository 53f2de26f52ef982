//! Where a rank posts the channels that it offers to ranks on its host.
//!
//! ```text
//!   board   key │ offer to the 1st rank │ offer to the 2nd rank │ ... │ loans
//! ```
//!
//! A board is memory without a name, which others on the host open by process
//! and descriptor. The key, which travels in the greeting, says whether they
//! have opened the right one: numbers of processes differ between containers.

use super::address::BoardAddress;
use super::lending::LOAN_BYTES;
use crate::device::cuda::channel::{OFFER_BYTES, Offer};
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::control::random_u128;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

const KEY_BYTES: u64 = 16;
/// An offer, and behind it a byte that says that it is there.
const ENTRY_BYTES: u64 = 128;
const IS_POSTED: u8 = 1;
/// In front of a list of loans: its number, its length, its plan.
const LOANS_HEAD_BYTES: usize = 32;

/// What is in front of a list of loans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LoansHead {
    pub epoch: u64,
    pub count: u64,
    pub plan: u128,
}
const _: () = assert!(OFFER_BYTES < ENTRY_BYTES as usize);

fn entry(index: usize) -> u64 {
    KEY_BYTES + index as u64 * ENTRY_BYTES
}

/// Our own.
#[derive(Debug)]
pub(super) struct Board {
    file: File,
    key: u128,
    /// Where loans begin.
    loans: u64,
}

impl Board {
    pub(super) fn new() -> Result<Board> {
        // SAFETY: a C string; the descriptor that comes back is ours alone.
        let file = unsafe {
            let fd = libc::memfd_create(c"wsync-board".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                let e = io::Error::last_os_error();
                return Err(Error::os("making the board of a rank", &e));
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        let key = random_u128()?;
        let board = Board {
            file,
            key,
            loans: 0,
        };
        board.write(&key.to_le_bytes(), 0)?;
        Ok(board)
    }

    pub(super) fn address(&self) -> BoardAddress {
        BoardAddress {
            process: std::process::id(),
            file: self.file.as_raw_fd() as u32,
            key: self.key,
        }
    }

    /// Has room for as many offers, before anything else is posted.
    pub(super) fn make_room(&mut self, offers: usize) {
        self.loans = entry(offers);
    }

    /// Lends messages of a plan in place of those before.
    pub(super) fn lend(&self, (epoch, plan): (u64, u128), loans: &[u8]) -> Result<()> {
        self.write(loans, self.loans + LOANS_HEAD_BYTES as u64)?;
        let mut head = [0; LOANS_HEAD_BYTES];
        head[..8].copy_from_slice(&epoch.to_le_bytes());
        head[8..16].copy_from_slice(&((loans.len() / LOAN_BYTES) as u64).to_le_bytes());
        head[16..].copy_from_slice(&plan.to_le_bytes());
        self.write(&head, self.loans)
    }

    /// Offers a channel to the rank at `index`.
    pub(super) fn post(&self, index: usize, offer: &Offer) -> Result<()> {
        let at = entry(index);
        self.write(&offer.to_bytes(), at)?;
        self.write(&[IS_POSTED], at + OFFER_BYTES as u64)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|e| Error::os("writing the board of a rank", &e))
    }
}

/// That of another rank.
#[derive(Debug)]
pub(super) struct PeerBoard {
    rank: Rank,
    file: File,
    loans: u64,
}

impl PeerBoard {
    /// Opens the board of `rank`, whose process must still run.
    /// It has room for `offers`.
    pub(super) fn open(rank: Rank, address: &BoardAddress, offers: usize) -> Result<PeerBoard> {
        let path = format!("/proc/{}/fd/{}", address.process, address.file);
        let mut key = [0; KEY_BYTES as usize];
        let opened = File::open(&path).and_then(|file| {
            file.read_exact_at(&mut key, 0)?;
            Ok(file)
        });
        match opened {
            Ok(file) if u128::from_le_bytes(key) == address.key => Ok(PeerBoard {
                rank,
                file,
                loans: entry(offers),
            }),
            other => {
                let why = match other {
                    Ok(_) => "it is something else".to_string(),
                    Err(e) => e.to_string(),
                };
                Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "rank {rank} is on this host and its {path} cannot be read ({why}): \
                         processes that exchange GPU memory belong to one user and share one PID \
                         namespace (for containers: --pid=host)"
                    ),
                )
                .by(rank))
            }
        }
    }

    /// What is in front of the list of loans, if there is one.
    pub(super) fn lends(&self) -> Result<Option<LoansHead>> {
        let mut head = [0; LOANS_HEAD_BYTES];
        match self.file.read_exact_at(&mut head, self.loans) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(self.unread(&e)),
        }
        let [epoch, count] = [0, 8].map(|at| {
            let word = head[at..at + 8].try_into();
            u64::from_le_bytes(word.unwrap_or_default())
        });
        let plan = head[16..].try_into();
        Ok((epoch > 0).then_some(LoansHead {
            epoch,
            count,
            plan: u128::from_le_bytes(plan.unwrap_or_default()),
        }))
    }

    /// The list of `count` loans.
    pub(super) fn loans(&self, count: u64) -> Result<Vec<u8>> {
        let at = self.loans + LOANS_HEAD_BYTES as u64;
        let end = self.file.metadata().map_err(|e| self.unread(&e))?.len();
        let bytes = count.saturating_mul(LOAN_BYTES as u64);
        if at.saturating_add(bytes) > end {
            let text = format!("rank {} lends {count} messages and lists fewer", self.rank);
            return Err(Error::new(Status::Protocol, text).by(self.rank));
        }
        let mut loans = vec![0; bytes as usize];
        let read = self.file.read_exact_at(&mut loans, at);
        read.map_err(|e| self.unread(&e))?;
        Ok(loans)
    }

    fn unread(&self, e: &io::Error) -> Error {
        let what = format!("reading what rank {} lends", self.rank);
        Error::os(what, e).by(self.rank)
    }

    /// What the rank offers to the one at `index`, if it does.
    pub(super) fn offer(&self, index: usize) -> Option<Offer> {
        let at = entry(index);
        let mut posted = [0; 1];
        let mut bytes = [0; OFFER_BYTES];
        self.file
            .read_exact_at(&mut posted, at + OFFER_BYTES as u64)
            .ok()?;
        self.file.read_exact_at(&mut bytes, at).ok()?;
        (posted[0] == IS_POSTED).then(|| Offer::from_bytes(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_known_by_its_key_and_empty_at_first() {
        let mut board = Board::new().unwrap();
        board.make_room(71);
        let address = board.address();
        let peer = PeerBoard::open(Rank(3), &address, 71).unwrap();
        assert_eq!((peer.offer(0), peer.offer(70)), (None, None));
        let offer = Offer::from_bytes(&std::array::from_fn(|i| i as u8));
        board.post(70, &offer).unwrap();
        assert_eq!((peer.offer(0), peer.offer(70)), (None, Some(offer)));

        let other = BoardAddress {
            key: address.key ^ 1,
            ..address
        };
        let e = PeerBoard::open(Rank(3), &other, 71).unwrap_err();
        assert_eq!((e.status, e.rank), (Status::Unsupported, Some(Rank(3))));
        assert!(e.message.contains("PID namespace"), "{e}");
    }
}

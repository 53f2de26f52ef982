//! Where a rank posts the channels that it offers to ranks on its host.
//!
//! ```text
//!   board   key │ offer to the 1st rank │ offer to the 2nd rank │ ...
//! ```
//!
//! A board is memory without a name, which others on the host open by process
//! and descriptor. The key, which travels in the greeting, says whether they
//! have opened the right one: numbers of processes differ between containers.

use super::address::BoardAddress;
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
const _: () = assert!(OFFER_BYTES < ENTRY_BYTES as usize);

fn entry(index: usize) -> u64 {
    KEY_BYTES + index as u64 * ENTRY_BYTES
}

/// Our own.
#[derive(Debug)]
pub(super) struct Board {
    file: File,
    key: u128,
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
        let board = Board { file, key };
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
    file: File,
}

impl PeerBoard {
    /// Opens the board of `rank`, whose process must still run.
    pub(super) fn open(rank: Rank, address: &BoardAddress) -> Result<PeerBoard> {
        let path = format!("/proc/{}/fd/{}", address.process, address.file);
        let mut key = [0; KEY_BYTES as usize];
        let opened = File::open(&path).and_then(|file| {
            file.read_exact_at(&mut key, 0)?;
            Ok(file)
        });
        match opened {
            Ok(file) if u128::from_le_bytes(key) == address.key => Ok(PeerBoard { file }),
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
        let board = Board::new().unwrap();
        let address = board.address();
        let peer = PeerBoard::open(Rank(3), &address).unwrap();
        assert_eq!((peer.offer(0), peer.offer(70)), (None, None));
        let offer = Offer::from_bytes(&std::array::from_fn(|i| i as u8));
        board.post(70, &offer).unwrap();
        assert_eq!((peer.offer(0), peer.offer(70)), (None, Some(offer)));

        let other = BoardAddress {
            key: address.key ^ 1,
            ..address
        };
        let e = PeerBoard::open(Rank(3), &other).unwrap_err();
        assert_eq!((e.status, e.rank), (Status::Unsupported, Some(Rank(3))));
        assert!(e.message.contains("PID namespace"), "{e}");
    }
}

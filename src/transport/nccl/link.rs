//! The two channels between this rank and another of its host.
//!
//! A channel is made when a plan first needs it: the sender allocates its
//! staging and posts an offer on its board; the receiver opens it, at the
//! latest when the first step runs, by when every rank has loaded the plan.

use super::address::BoardAddress;
use super::board::{Board, PeerBoard};
use crate::device::cuda::channel::{ChannelOptions, ChannelReceiver, ChannelSender};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::Ending;
use crate::device::fence::AbortCell;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::queue::lock;
use std::sync::{Arc, Mutex};

/// Slots of a channel, of 4 MiB unless chosen otherwise: 16 MiB of GPU memory
/// for each rank that is sent to.
const SLOT_COUNT: u32 = 4;
pub(super) const SLOT_BYTES_DEFAULT: u32 = 4 << 20;

/// What channels of a rank are made with.
#[derive(Debug)]
pub(super) struct Workshop {
    pub gpu: Arc<Gpu>,
    pub abort: Arc<AbortCell>,
    pub board: Board,
    /// Offers that there is room for on any board.
    pub offers: usize,
    pub ends: Arc<Ends>,
    pub slot_bytes: u64,
}

/// What is told of the end of a stream's work, or of an abort before.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<Vec<Arc<dyn Ending>>>);

impl Ending for Ends {
    fn ended(&self, what: u32) {
        lock(&self.0).iter().for_each(|end| end.ended(what));
    }

    fn release(&self) {
        lock(&self.0).iter().for_each(|end| end.release());
    }
}

/// Where two ranks post what they offer to each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entries {
    /// On this rank's board.
    pub ours: usize,
    /// On the peer's.
    pub theirs: usize,
}

/// A peer, and what there is of the two channels.
#[derive(Debug)]
pub(super) struct Link {
    pub peer: Rank,
    address: BoardAddress,
    /// Once it was looked at.
    board: Option<PeerBoard>,
    entries: Entries,
    sender: Option<ChannelSender>,
    receiver: Option<ChannelReceiver>,
    /// A plan that is loaded receives from the peer.
    is_awaited: bool,
}

impl Link {
    pub(super) fn new(peer: Rank, address: BoardAddress, entries: Entries) -> Link {
        Link {
            peer,
            address,
            board: None,
            entries,
            sender: None,
            receiver: None,
            is_awaited: false,
        }
    }

    /// Makes what a plan needs, as far as this rank can alone.
    pub(super) fn connect(
        &mut self,
        shop: &Workshop,
        (sends, receives): (bool, bool),
    ) -> Result<()> {
        if sends && self.sender.is_none() {
            let options = ChannelOptions {
                slot_count: SLOT_COUNT,
                slot_bytes: shop.slot_bytes,
            };
            let sender = ChannelSender::new(&shop.gpu, options, &shop.abort)?;
            lock(&shop.ends.0).push(sender.ending());
            shop.board.post(self.entries.ours, &sender.offer())?;
            self.sender = Some(sender);
        }
        self.is_awaited |= receives;
        self.open(shop)
    }

    /// Opens the peer's channel, if it is awaited and offered yet.
    pub(super) fn open(&mut self, shop: &Workshop) -> Result<()> {
        if !self.is_awaited || self.receiver.is_some() {
            return Ok(());
        }
        let board = match self.board.take() {
            Some(board) => board,
            None => PeerBoard::open(self.peer, &self.address, shop.offers)?,
        };
        let board = self.board.insert(board);
        let Some(offer) = board.offer(self.entries.theirs) else {
            return Ok(());
        };
        let receiver = ChannelReceiver::new(&shop.gpu, &offer, &shop.abort);
        let receiver = receiver.map_err(|e| {
            let message = format!(
                "opening the GPU memory of rank {}: {}",
                self.peer, e.message
            );
            Error { message, ..e }.by(self.peer)
        })?;
        lock(&shop.ends.0).push(receiver.ending());
        self.receiver = Some(receiver);
        Ok(())
    }

    /// Fails unless what a step receives can come.
    pub(super) fn check(&self, receives: bool) -> Result<()> {
        if receives && self.receiver.is_none() {
            let text = format!(
                "rank {} has offered no channel: it has not loaded this plan",
                self.peer
            );
            return Err(Error::new(Status::Protocol, text).by(self.peer));
        }
        Ok(())
    }

    /// The board of the peer, if anything comes from there.
    pub(super) fn board(&self) -> Option<&PeerBoard> {
        self.board.as_ref().filter(|_| self.receiver.is_some())
    }

    pub(super) fn sender(&self) -> Result<&ChannelSender> {
        self.sender.as_ref().ok_or_else(|| self.not_connected())
    }

    pub(super) fn receiver(&self) -> Result<&ChannelReceiver> {
        self.receiver.as_ref().ok_or_else(|| self.not_connected())
    }

    fn not_connected(&self) -> Error {
        Error::internal(format!("there is no channel to rank {}", self.peer)).by(self.peer)
    }
}

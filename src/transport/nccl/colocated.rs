//! Messages to and from ranks on this host that NCCL does not carry: through
//! channels in GPU memory.
//!
//! A channel is made when a plan first needs it: the sender allocates its
//! staging and posts an offer on its board; the receiver opens it, at the
//! latest when the first step runs, by when every rank has loaded the plan.
//!
//! All channels of a rank share one stream. A step goes there in rounds:
//!
//! ```text
//!   round 0   next slot to every peer   next slot from every peer
//!   round 1   ...
//! ```
//!
//! A send waits for a slot that its peer has emptied in an earlier round, a
//! receive for one that its peer has filled in the same round, before it waits
//! for anything itself. Steps come in the same order on all ranks; so there is
//! always somebody who goes on.

use super::address::{Address, BoardAddress};
use super::board::{Board, PeerBoard};
use super::roles::Way;
use crate::device::Binding;
use crate::device::MemoryRange;
use crate::device::cuda::channel::{ChannelOptions, ChannelReceiver, ChannelSender, after_run};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::{CudaQueue, Ending, Enqueue};
use crate::device::fence::{AbortCell, Fence};
use crate::error::{Error, Result, Status};
use crate::plan::program::{Direction, Message};
use crate::rank::Rank;
use crate::transport::queue::lock;
use std::sync::{Arc, Mutex};

/// GPU memory of a channel: 16 MiB for each rank that is sent to.
const CHANNEL: ChannelOptions = ChannelOptions {
    slot_count: 4,
    slot_bytes: 4 << 20,
};

/// The channels of one rank.
#[derive(Debug)]
pub(super) struct Colocated {
    // Empties its stream before the channels go.
    queue: CudaQueue,
    gpu: Arc<Gpu>,
    abort: Arc<AbortCell>,
    board: Board,
    /// Of this rank, among all of the transport.
    index: usize,
    links: Mutex<Vec<Link>>,
    ends: Arc<Ends>,
}

/// A peer, and what there is of the two channels.
#[derive(Debug)]
struct Link {
    peer: Rank,
    /// Among all ranks of the transport.
    index: usize,
    board: BoardAddress,
    sender: Option<ChannelSender>,
    receiver: Option<ChannelReceiver>,
    /// A plan that is loaded receives from the peer.
    is_awaited: bool,
    /// How far the step that is being enqueued has come.
    sent: Cursor,
    received: Cursor,
}

/// What is told of the end of the stream's work, or of an abort before.
#[derive(Debug, Default)]
struct Ends(Mutex<Vec<Arc<dyn Ending>>>);

impl Ending for Ends {
    fn ended(&self, what: u32) {
        lock(&self.0).iter().for_each(|end| end.ended(what));
    }

    fn release(&self) {
        lock(&self.0).iter().for_each(|end| end.release());
    }
}

impl Colocated {
    /// Makes none, but gets ready; `None` if no rank is reached this way.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        board: Board,
        (index, all): (usize, &[(Rank, Address)]),
        ways: &[(Rank, Way)],
        abort: &Arc<AbortCell>,
    ) -> Result<Option<Colocated>> {
        let reached = (0..).zip(all).zip(ways);
        let links: Vec<Link> = reached
            .filter(|(_, (_, way))| *way == Way::Channel)
            .map(|((index, (peer, address)), _)| Link::new(*peer, index, address.board))
            .collect();
        if links.is_empty() {
            return Ok(None);
        }
        Ok(Some(Colocated {
            queue: CudaQueue::new(gpu)?,
            gpu: gpu.clone(),
            abort: abort.clone(),
            board,
            index,
            links: Mutex::new(links),
            ends: Arc::default(),
        }))
    }

    /// Makes the channels that `messages` need, as far as this rank can alone.
    pub(super) fn connect(&self, messages: &[Message]) -> Result<()> {
        for link in lock(&self.links).iter_mut() {
            let has = |d| messages.iter().any(|m| link.is_of(m, d));
            let (sends, receives) = (has(Direction::Send), has(Direction::Receive));
            if sends && link.sender.is_none() {
                self.offer(link)?;
            }
            link.is_awaited |= receives;
            self.open(link)?;
        }
        Ok(())
    }

    /// Makes the rest of them, before anything of a step is in a stream.
    pub(super) fn open_all(&self) -> Result<()> {
        let mut links = lock(&self.links);
        links.iter_mut().try_for_each(|link| self.open(link))
    }

    fn offer(&self, link: &mut Link) -> Result<()> {
        let sender = ChannelSender::new(&self.gpu, CHANNEL, &self.abort)?;
        lock(&self.ends.0).push(sender.ending());
        self.board.post(link.index, &sender.offer())?;
        link.sender = Some(sender);
        Ok(())
    }

    /// Opens the peer's channel, if it is awaited and offered yet.
    fn open(&self, link: &mut Link) -> Result<()> {
        if !link.is_awaited || link.receiver.is_some() {
            return Ok(());
        }
        let board = PeerBoard::open(link.peer, &link.board)?;
        let Some(offer) = board.offer(self.index) else {
            return Ok(());
        };
        let receiver = ChannelReceiver::new(&self.gpu, &offer, &self.abort);
        let receiver = receiver.map_err(|e| {
            let message = format!(
                "opening the GPU memory of rank {}: {}",
                link.peer, e.message
            );
            Error { message, ..e }.by(link.peer)
        })?;
        lock(&self.ends.0).push(receiver.ending());
        link.receiver = Some(receiver);
        Ok(())
    }

    /// Puts the messages of a step that go through channels on the stream,
    /// after `after`; `None` if none does.
    pub(super) fn enqueue(
        &self,
        binding: &Binding,
        messages: &[Message],
        after: &Fence,
    ) -> Result<Option<Fence>> {
        let mut links = lock(&self.links);
        if !messages
            .iter()
            .any(|m| links.iter().any(|link| link.peer == m.peer))
        {
            return Ok(None);
        }
        links.iter_mut().try_for_each(|link| link.begin(messages))?;
        let queue = self.queue.begin(after, &self.abort)?;
        let put = rounds(&mut links, &queue, binding, messages);
        // Ended in any case: what is in the stream has to be released.
        let fence = queue.end(Some((self.ends.clone(), 0)))?;
        put.map(|()| Some(fence))
    }
}

/// Everything of a step, one slot of every channel at a time.
fn rounds(
    links: &mut [Link],
    queue: &Enqueue<'_>,
    binding: &Binding,
    messages: &[Message],
) -> Result<()> {
    loop {
        let mut has_moved = false;
        for link in links.iter_mut() {
            has_moved |= link.send(queue, binding, messages)?;
        }
        for link in links.iter_mut() {
            has_moved |= link.receive(queue, binding, messages)?;
        }
        if !has_moved {
            return Ok(());
        }
    }
}

impl Link {
    fn new(peer: Rank, index: usize, board: BoardAddress) -> Link {
        Link {
            peer,
            index,
            board,
            sender: None,
            receiver: None,
            is_awaited: false,
            sent: Cursor::default(),
            received: Cursor::default(),
        }
    }

    /// A step begins.
    fn begin(&mut self, messages: &[Message]) -> Result<()> {
        self.sent = Cursor::default();
        self.received = Cursor::default();
        let receives = messages.iter().any(|m| self.is_of(m, Direction::Receive));
        if receives && self.receiver.is_none() {
            let text = format!(
                "rank {} has offered no channel: it has not loaded this plan",
                self.peer
            );
            return Err(Error::new(Status::Protocol, text).by(self.peer));
        }
        Ok(())
    }

    fn is_of(&self, m: &Message, direction: Direction) -> bool {
        m.peer == self.peer && m.direction == direction && m.bytes > 0
    }

    /// Sends the next slot; false if nothing is left of the step.
    fn send(&mut self, queue: &Enqueue<'_>, binding: &Binding, all: &[Message]) -> Result<bool> {
        let peer = (self.peer, Direction::Send);
        let Some(mut runs) = self.sent.next_slot(binding, all, peer) else {
            return Ok(false);
        };
        let Some(sender) = &self.sender else {
            return Err(not_connected(self.peer));
        };
        sender.put(queue, &mut runs).map(|()| true)
    }

    fn receive(&mut self, queue: &Enqueue<'_>, binding: &Binding, all: &[Message]) -> Result<bool> {
        let peer = (self.peer, Direction::Receive);
        let Some(mut runs) = self.received.next_slot(binding, all, peer) else {
            return Ok(false);
        };
        let Some(receiver) = &self.receiver else {
            return Err(not_connected(self.peer));
        };
        receiver.take(queue, &mut runs).map(|()| true)
    }
}

fn not_connected(peer: Rank) -> Error {
    Error::internal(format!("there is no channel to rank {peer}")).by(peer)
}

/// A place in the messages of a step.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    message: usize,
    /// Bytes of it that are done.
    done: u64,
}

impl Cursor {
    /// The runs of the next slot; `None` if nothing is left.
    fn next_slot<'a>(
        &'a mut self,
        binding: &'a Binding,
        messages: &'a [Message],
        peer: (Rank, Direction),
    ) -> Option<Runs<'a>> {
        self.seek(messages, peer)?;
        Some(Runs {
            cursor: self,
            binding,
            messages,
            peer,
            at: 0,
        })
    }

    /// Goes to the next message that has bytes left.
    fn seek<'m>(
        &mut self,
        messages: &'m [Message],
        (peer, direction): (Rank, Direction),
    ) -> Option<&'m Message> {
        loop {
            let m = messages.get(self.message)?;
            if m.peer == peer && m.direction == direction && self.done < m.bytes {
                return Some(m);
            }
            *self = Cursor {
                message: self.message + 1,
                done: 0,
            };
        }
    }
}

/// What goes through one slot: runs of memory, cut alike on both ends.
struct Runs<'a> {
    cursor: &'a mut Cursor,
    binding: &'a Binding,
    messages: &'a [Message],
    peer: (Rank, Direction),
    /// Bytes of the slot that are taken.
    at: u64,
}

impl Iterator for Runs<'_> {
    type Item = MemoryRange;

    fn next(&mut self) -> Option<MemoryRange> {
        let room = CHANNEL.slot_bytes.checked_sub(self.at).filter(|r| *r > 0)?;
        let m = self.cursor.seek(self.messages, self.peer)?;
        let done = self.cursor.done;
        let bytes = (m.bytes - done).min(room);
        self.cursor.done += bytes;
        self.at = after_run(self.at, bytes);
        Some(MemoryRange {
            address: self.binding.contiguous(m) + done as usize,
            bytes,
        })
    }
}

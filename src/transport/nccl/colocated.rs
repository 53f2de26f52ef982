//! Messages to and from ranks on this host that NCCL does not carry: through
//! channels in GPU memory.
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
//!
//! After these rounds a guest exchanges the step's parcels with its endpoint,
//! turn by turn, in lanes: channels that hold nothing else (`errands`).

use super::address::Address;
use super::board::Board;
use super::errands::{Errands, Parcel, Part};
use super::link::{Ends, Entries, Link, Workshop};
use super::peers::Peers;
use super::roles::Way;
use super::turn_word::TurnWord;
use crate::device::Binding;
use crate::device::MemoryRange;
use crate::device::cuda::channel::{Claim, after_run};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::{CudaQueue, Enqueue};
use crate::device::fence::{AbortCell, Fence};
use crate::error::{Error, Result};
use crate::plan::program::{Direction, Message};
use crate::rank::Rank;
use crate::transport::queue::lock;
use std::sync::{Arc, Mutex};

/// The channels of one rank.
#[derive(Debug)]
pub(super) struct Colocated {
    // Empties its stream before the channels go.
    queue: CudaQueue,
    shop: Workshop,
    routes: Mutex<Vec<Route>>,
    /// Of an endpoint one for each guest, of a guest the one to its endpoint.
    lanes: Mutex<Vec<Link>>,
}

/// A peer, and how far the step that is being enqueued has come.
#[derive(Debug)]
struct Route {
    link: Link,
    sent: Cursor,
    received: Cursor,
}

impl Colocated {
    /// Makes no channel yet, but gets ready; `None` if no rank is reached this
    /// way. `index` is this rank's among `all`.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        board: Board,
        (index, all): (usize, &[(Rank, Address)]),
        peers: &Peers,
        abort: &Arc<AbortCell>,
    ) -> Result<Option<Colocated>> {
        let link = |lane: usize, (i, (peer, address)): (usize, &(Rank, Address))| {
            let entries = Entries {
                ours: lane + i,
                theirs: lane + index,
            };
            Link::new(*peer, address.board, entries)
        };
        let reached = |(_, (rank, _)): &(usize, &(Rank, Address))| {
            peers.way_to(*rank).is_ok_and(|way| way == Way::Channel)
        };
        let has_lane = |(_, (rank, _)): &(usize, &(Rank, Address))| peers.has_lane(*rank);
        let routes = (0..).zip(all).filter(reached).map(|at| Route {
            link: link(0, at),
            sent: Cursor::default(),
            received: Cursor::default(),
        });
        let routes: Vec<Route> = routes.collect();
        let lanes = (0..).zip(all).filter(has_lane);
        let lanes = lanes.map(|at| link(all.len(), at)).collect();
        if routes.is_empty() {
            return Ok(None);
        }
        Ok(Some(Colocated {
            queue: CudaQueue::new(gpu)?,
            shop: Workshop {
                gpu: gpu.clone(),
                abort: abort.clone(),
                board,
                ends: Arc::default(),
                slot_bytes: peers.slot_bytes(),
            },
            routes: Mutex::new(routes),
            lanes: Mutex::new(lanes),
        }))
    }

    /// What to tell of the end of work that uses channels.
    pub(super) fn ends(&self) -> Arc<Ends> {
        self.shop.ends.clone()
    }

    /// Makes the channels that `messages` need, as far as this rank can alone.
    pub(super) fn connect(&self, messages: &[Message]) -> Result<()> {
        for route in lock(&self.routes).iter_mut() {
            let has = |d| messages.iter().any(|m| route.is_of(m, d));
            let needs = (has(Direction::Send), has(Direction::Receive));
            route.link.connect(&self.shop, needs)?;
        }
        Ok(())
    }

    /// Makes the lanes that `errands` need, as far as this rank can alone.
    pub(super) fn connect_lanes(&self, errands: &Errands) -> Result<()> {
        for lane in lock(&self.lanes).iter_mut() {
            let peer = lane.peer;
            let passes = |fills| {
                let of = |p: &&Parcel| p.passes(peer) && p.fills_lane() == fills;
                errands.parcels().iter().any(|p| of(&p))
            };
            lane.connect(&self.shop, (passes(true), passes(false)))?;
        }
        Ok(())
    }

    /// Makes the rest of the channels, before anything of a step is in a stream.
    pub(super) fn open_all(&self) -> Result<()> {
        let mut routes = lock(&self.routes);
        let mut links = routes.iter_mut().map(|route| &mut route.link);
        links.try_for_each(|link| link.open(&self.shop))?;
        let mut lanes = lock(&self.lanes);
        lanes.iter_mut().try_for_each(|lane| lane.open(&self.shop))
    }

    /// Fails unless the lanes of a step's parcels are there.
    pub(super) fn check_lanes(&self, parcels: &[Parcel]) -> Result<()> {
        let lanes = lock(&self.lanes);
        lanes.iter().try_for_each(|lane| {
            let empties = |p: &Parcel| p.passes(lane.peer) && !p.fills_lane();
            lane.check(parcels.iter().any(empties))
        })
    }

    /// Puts what goes through channels in a step on the stream, after `after`;
    /// `None` if nothing does.
    pub(super) fn enqueue(
        &self,
        binding: &Binding,
        messages: &[Message],
        errands: (&Errands, u32),
        turn: &TurnWord,
        after: &Fence,
    ) -> Result<Option<Fence>> {
        let mut routes = lock(&self.routes);
        let is_reached = |m: &Message| routes.iter().any(|route| route.link.peer == m.peer);
        let is_guest = |p: &Parcel| p.part == Part::Lane;
        let (all, step) = errands;
        if !messages.iter().any(is_reached) && !all.parcels_of(step).iter().any(is_guest) {
            return Ok(None);
        }
        routes
            .iter_mut()
            .try_for_each(|route| route.begin(messages))?;
        let queue = self.queue.begin(after, &self.shop.abort)?;
        let exchange = Exchange {
            binding,
            messages,
            slot_bytes: self.shop.slot_bytes,
        };
        let put = rounds(&mut routes, &queue, exchange)
            .and_then(|()| self.turns(&queue, binding, errands, turn));
        // Ended in any case: what is in the stream has to be released.
        let fence = queue.end(Some((self.ends(), 0)))?;
        put.map(|()| Some(fence))
    }

    /// A guest's side of the parcels of a step.
    fn turns(
        &self,
        queue: &Enqueue<'_>,
        binding: &Binding,
        (errands, step): (&Errands, u32),
        word: &TurnWord,
    ) -> Result<()> {
        let lanes = lock(&self.lanes);
        for (i, turn) in errands.turns(step).enumerate() {
            let own = turn.iter().filter(|p| p.part == Part::Lane);
            if own.clone().next().is_none() {
                return Ok(());
            }
            word.begin(queue, i)?;
            let (leave, come) = (own.clone().filter(|p| p.leaves), own.filter(|p| !p.leaves));
            for parcel in leave.chain(come) {
                let Some(lane) = lanes.first() else {
                    return Err(Error::internal("a guest without a lane"));
                };
                let mut runs = errands.memory(parcel, binding);
                match parcel.leaves {
                    true => lane.sender()?.put(queue, &mut runs)?,
                    false => lane.receiver()?.take(queue, &mut runs)?,
                }
            }
        }
        Ok(())
    }

    /// An endpoint's side of the lane of `guest`: the next slot, for a parcel
    /// that leaves the GPU or comes there.
    pub(super) fn claim(&self, queue: &Enqueue<'_>, guest: Rank, leaves: bool) -> Result<Claim> {
        let lanes = lock(&self.lanes);
        let Some(lane) = lanes.iter().find(|lane| lane.peer == guest) else {
            return Err(Error::internal(format!("no lane to rank {guest}")));
        };
        match leaves {
            true => lane.receiver()?.claim(queue),
            false => lane.sender()?.claim(queue),
        }
    }
}

/// The messages of a step, and where they are.
#[derive(Clone, Copy)]
struct Exchange<'a> {
    binding: &'a Binding,
    messages: &'a [Message],
    slot_bytes: u64,
}

/// Everything of a step, one slot of every channel at a time.
fn rounds(routes: &mut [Route], queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<()> {
    loop {
        let mut has_moved = false;
        for route in routes.iter_mut() {
            has_moved |= route.send(queue, step)?;
        }
        for route in routes.iter_mut() {
            has_moved |= route.receive(queue, step)?;
        }
        if !has_moved {
            return Ok(());
        }
    }
}

impl Route {
    /// A step begins.
    fn begin(&mut self, messages: &[Message]) -> Result<()> {
        self.sent = Cursor::default();
        self.received = Cursor::default();
        let receives = messages.iter().any(|m| self.is_of(m, Direction::Receive));
        self.link.check(receives)
    }

    fn is_of(&self, m: &Message, direction: Direction) -> bool {
        m.peer == self.link.peer && m.direction == direction && m.bytes > 0
    }

    /// Sends the next slot; false if nothing is left of the step.
    fn send(&mut self, queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<bool> {
        let peer = (self.link.peer, Direction::Send);
        let Some(mut runs) = self.sent.next_slot(step, peer) else {
            return Ok(false);
        };
        self.link.sender()?.put(queue, &mut runs).map(|()| true)
    }

    fn receive(&mut self, queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<bool> {
        let peer = (self.link.peer, Direction::Receive);
        let Some(mut runs) = self.received.next_slot(step, peer) else {
            return Ok(false);
        };
        self.link.receiver()?.take(queue, &mut runs).map(|()| true)
    }
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
        step: Exchange<'a>,
        peer: (Rank, Direction),
    ) -> Option<Runs<'a>> {
        self.seek(step.messages, peer)?;
        Some(Runs {
            cursor: self,
            step,
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
    step: Exchange<'a>,
    peer: (Rank, Direction),
    /// Bytes of the slot that are taken.
    at: u64,
}

impl Iterator for Runs<'_> {
    type Item = MemoryRange;

    fn next(&mut self) -> Option<MemoryRange> {
        let room = self
            .step
            .slot_bytes
            .checked_sub(self.at)
            .filter(|r| *r > 0)?;
        let m = self.cursor.seek(self.step.messages, self.peer)?;
        let done = self.cursor.done;
        let bytes = (m.bytes - done).min(room);
        self.cursor.done += bytes;
        self.at = after_run(self.at, bytes);
        Some(MemoryRange {
            address: self.step.binding.contiguous(m) + done as usize,
            bytes,
        })
    }
}

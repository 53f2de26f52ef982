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
//! What is lent (`lending`) goes first, before the first round, and is waited for
//! after the last.
//!
//! After these rounds a guest exchanges the step's parcels with its endpoint,
//! turn by turn, in lanes: channels that hold nothing else (`errands`).

use super::Carry;
use super::address::Address;
use super::board::Board;
use super::errands::{Errands, Parcel, Part};
use super::lending::Lender;
use super::link::{Ends, Entries, Link, Workshop};
use super::peers::Peers;
use super::roles::Way;
use super::route::{Exchange, Route};
use super::turn_word::TurnWord;
use crate::device::Binding;
use crate::device::cuda::channel::Claim;
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::{CudaQueue, Enqueue};
use crate::device::fence::{AbortCell, Fence};
use crate::error::{Error, Result};
use crate::plan::program::{Direction, Message};
use crate::rank::Rank;
use crate::transport::queue::lock;
use std::sync::{Arc, Mutex};

/// What was put on the stream of the channels.
pub(super) struct Put {
    /// Reached when that is over.
    pub fence: Fence,
    /// Or why there is something missing.
    pub whole: Result<()>,
}

/// The channels of one rank.
#[derive(Debug)]
pub(super) struct Colocated {
    me: Rank,
    // Empties its stream before the channels go.
    queue: CudaQueue,
    shop: Workshop,
    routes: Mutex<Vec<Route>>,
    /// Of an endpoint one for each guest, of a guest the one to its endpoint.
    lanes: Mutex<Vec<Link>>,
    /// If this rank lends its buffers.
    lender: Option<Mutex<Lender>>,
}

impl Colocated {
    /// Makes no channel yet, but gets ready; `None` if no rank is reached this
    /// way. `index` is this rank's among `all`; `lends` says whether it lends its
    /// buffers.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        mut board: Board,
        (index, all): (usize, &[(Rank, Address)]),
        (peers, lends): (&Peers, bool),
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
        let routes = (0..).zip(all).filter(reached);
        let routes: Vec<Route> = routes.map(|at| Route::new(link(0, at))).collect();
        let lanes = (0..).zip(all).filter(has_lane);
        let lanes = lanes.map(|at| link(all.len(), at)).collect();
        if routes.is_empty() {
            return Ok(None);
        }
        let offers = 2 * all.len();
        board.make_room(offers);
        Ok(Some(Colocated {
            me: peers.me(),
            queue: CudaQueue::new(gpu)?,
            shop: Workshop {
                gpu: gpu.clone(),
                abort: abort.clone(),
                board,
                offers,
                ends: Arc::default(),
                slot_bytes: peers.slot_bytes(),
            },
            routes: Mutex::new(routes),
            lanes: Mutex::new(lanes),
            lender: lends.then(Mutex::default),
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

    /// Lends the buffers that are bound now, before the ranks agree to a request
    /// of `plan`.
    pub(super) fn prepare(&self, binding: &Binding, plan: u128) -> Result<()> {
        let Some(lender) = &self.lender else {
            return Ok(());
        };
        let mut lender = lock(lender);
        let mut routes = lock(&self.routes);
        let (gpu, board) = (&self.shop.gpu, &self.shop.board);
        let ranks = routes.iter().map(|route| route.link.peer);
        let Some(lent) = lender.post(gpu, board, (binding, plan), ranks)? else {
            return Ok(());
        };
        for route in routes.iter_mut() {
            route.lent = lent.to(route.link.peer);
        }
        Ok(())
    }

    /// Puts what goes through channels in a step on the stream, after `after`.
    pub(super) fn enqueue(
        &self,
        Carry {
            errands,
            step,
            binding,
        }: Carry<'_>,
        plan: u128,
        word: &TurnWord,
        after: &Fence,
    ) -> Result<Put> {
        let program = &binding.program;
        let exchange = Exchange {
            binding,
            messages: program.messages_of(&program.steps[step as usize]),
            step,
            slot_bytes: self.shop.slot_bytes,
        };
        let lender = self.lender.as_ref().map(lock);
        if lender.is_some_and(|lender| !lender.is_of(binding)) {
            return Err(Error::internal("a step of buffers that are not lent"));
        }
        let mut routes = lock(&self.routes);
        for route in routes.iter_mut() {
            route.link.open(&self.shop)?;
            route.begin(exchange, (&self.shop.gpu, self.me, plan))?;
        }
        let parcels = errands.parcels_of(step);
        self.open_lanes(parcels)?;
        let is_reached = |m: &Message| routes.iter().any(|route| route.link.peer == m.peer);
        let is_guest = |p: &Parcel| p.part == Part::Lane;
        if !exchange.messages.iter().any(is_reached) && !parcels.iter().any(is_guest) {
            return Ok(Put {
                fence: Fence::default(),
                whole: Ok(()),
            });
        }
        let queue = self.queue.begin(after, &self.shop.abort)?;
        let whole = rounds(&mut routes, &queue, exchange)
            .and_then(|()| self.turns(&queue, binding, (errands, step), word));
        // Ended in any case: what is in the stream has to be released.
        let fence = queue.end(Some((self.ends(), 0)))?;
        Ok(Put { fence, whole })
    }

    /// Opens the lanes that are awaited; fails unless those of the parcels are
    /// there.
    fn open_lanes(&self, parcels: &[Parcel]) -> Result<()> {
        let mut lanes = lock(&self.lanes);
        lanes.iter_mut().try_for_each(|lane| {
            lane.open(&self.shop)?;
            let empties = |p: &Parcel| p.passes(lane.peer) && !p.fills_lane();
            lane.check(parcels.iter().any(empties))
        })
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
        let is_guest = |p: &Parcel| p.part == Part::Lane;
        if !errands.parcels_of(step).iter().any(is_guest) {
            return Ok(());
        }
        for (i, turn) in errands.turns(step).enumerate() {
            let own = turn.iter();
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
        word.reset(queue)
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

/// Everything of a step: what is lent, then one slot of every channel at a time.
fn rounds(routes: &mut [Route], queue: &Enqueue<'_>, step: Exchange<'_>) -> Result<()> {
    routes
        .iter_mut()
        .try_for_each(|route| route.lend(queue, step))?;
    routes
        .iter_mut()
        .try_for_each(|route| route.borrow(queue, step))?;
    loop {
        let mut has_moved = false;
        for route in routes.iter_mut() {
            has_moved |= route.send(queue, step)?;
        }
        for route in routes.iter_mut() {
            has_moved |= route.receive(queue, step)?;
        }
        if !has_moved {
            break;
        }
    }
    routes
        .iter_mut()
        .try_for_each(|route| route.take_back(queue))
}

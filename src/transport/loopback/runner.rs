//! The progress thread of one rank: posts what it sends, copies what it
//! receives.

use super::hub::LoopbackHub;
use super::member::{Flight, Member, Posted};
use super::moving::{LongHold, Moving, land, land_all};
use super::{NAP, NOBODY};
use crate::device::copy::{End, Halt, MessageCopy, QUANTUM, Stop};
use crate::error::{Error, Result, Status};
use crate::plan::program::{Direction, Message};
use crate::rank::Rank;
use crate::transport::FaultKind;
use crate::transport::queue::{Queued, lock};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The progress thread of one rank.
pub(super) struct Runner {
    pub(super) hub: Arc<LoopbackHub>,
    pub(super) me: Arc<Member>,
}

/// The receives of the step that is being done.
struct Receiving {
    step: Queued,
    lanes: Vec<Lane>,
    moving: VecDeque<Moving>,
}

/// The receives from one peer.
struct Lane {
    peer: Rank,
    /// Range in the program's messages; those of the other direction between
    /// them are skipped.
    next: u32,
    end: u32,
}

/// What a pass over the lanes came to.
enum Pass {
    Done,
    Moved,
    /// Nobody has anything for us; the first who should.
    Waiting(Rank),
}

impl Runner {
    pub(super) fn run(self) {
        if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            let rank = self.me.rank;
            let what = format!("the loopback thread of rank {rank} panicked");
            self.me.abort.set(Error::internal(what));
        }
        self.leave();
    }

    /// Works until aborted or closed.
    fn serve(&self) {
        let mut lanes = Vec::new();
        let mut moving = VecDeque::new();
        let mut expected = std::ptr::null();
        let mut counts = HashMap::new();
        let mut begun = 0;
        while !self.must_end() {
            let Some(step) = self.me.queue.pop_ready() else {
                std::thread::park_timeout(NAP);
                continue;
            };
            if let Some(fault) = self.hub.faults.take(self.me.rank, begun)
                && !self.suffer(fault)
            {
                return;
            }
            begun += 1;
            if let Err(reason) = self.begin(&step) {
                self.me.abort.set(reason);
                return;
            }
            fill_lanes(&mut lanes, &step);
            let program = Arc::as_ptr(&step.binding.program);
            if !std::ptr::eq(expected, program) {
                self.me.expect(&step.binding.program, &mut counts);
                expected = program;
            }
            if step.binding.mover().is_some() {
                moving.reserve(receive_count(&step));
            }
            let mut receiving = Receiving {
                step,
                lanes,
                moving,
            };
            let received = self.receive(&mut receiving);
            if let Err(reason) = &received {
                self.me.abort.set(reason.clone());
            }
            // Senders are held until the GPU is through, whatever happens.
            land_all(&self.me, &mut receiving.moving);
            match received {
                Ok(true) => self.received(),
                Ok(false) | Err(_) => return,
            }
            (lanes, moving) = (receiving.lanes, receiving.moving);
        }
    }

    fn must_end(&self) -> bool {
        self.me.abort.is_set() || self.me.is_closing.load(Ordering::Acquire)
    }

    /// Behaves as the fault says; false if the rank shall not go on.
    fn suffer(&self, fault: FaultKind) -> bool {
        match fault {
            FaultKind::Delay(time) => {
                let end = Instant::now() + time;
                while !self.must_end() && Instant::now() < end {
                    std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
                }
                return true;
            }
            FaultKind::Stall => {}
            FaultKind::Die => self.me.is_dead.store(true, Ordering::Release),
        }
        while !self.must_end() {
            std::thread::park_timeout(NAP);
        }
        false
    }

    /// Posts the sends of a step.
    fn begin(&self, step: &Queued) -> Result<()> {
        let program = &step.binding.program;
        let (first, end) = program.steps[step.step as usize].messages;
        let is_send = |i: &u32| program.messages[*i as usize].direction == Direction::Send;
        lock(&self.me.flight).push_back(Flight {
            value: step.value,
            sends_left: (first..end).filter(is_send).count() as u32,
            has_received: false,
        });
        let mut to: Option<Arc<Member>> = None;
        for i in (first..end).filter(is_send) {
            let peer = program.messages[i as usize].peer;
            if to.as_ref().is_none_or(|m| m.rank != peer) {
                if let Some(last) = to {
                    last.wake();
                }
                to = self.hub.member(peer);
            }
            let Some(to) = &to else {
                return Err(absent(peer, step.step));
            };
            to.post(Posted {
                sender: self.me.clone(),
                binding: step.binding.clone(),
                message: i,
                ticket: step.value,
            })?;
        }
        if let Some(last) = to {
            last.wake();
        }
        Ok(())
    }

    /// Copies what the step receives, from whoever is ready; false if there was
    /// no time for all of it.
    fn receive(&self, receiving: &mut Receiving) -> Result<bool> {
        loop {
            if self.must_end() {
                return Ok(false);
            }
            let pass = self.pass(receiving)?;
            land(&self.me, &mut receiving.moving);
            let waits_for = match pass {
                Pass::Waiting(peer) => peer.0,
                Pass::Done | Pass::Moved => NOBODY,
            };
            self.me.waits_for.store(waits_for, Ordering::Relaxed);
            match pass {
                Pass::Done => break,
                Pass::Moved => {}
                Pass::Waiting(_) => std::thread::park_timeout(NAP),
            }
        }
        Ok(true)
    }

    /// The running step has received everything.
    fn received(&self) {
        let mut flight = lock(&self.me.flight);
        if let Some(step) = flight.back_mut() {
            step.has_received = true;
        }
        self.me.settle(&mut flight);
    }

    /// One message from every peer that has one for us.
    fn pass(&self, receiving: &mut Receiving) -> Result<Pass> {
        let mut pass = Pass::Done;
        for lane in &mut receiving.lanes {
            let Some(index) = lane.message(&receiving.step) else {
                continue;
            };
            let Some(posted) = self.me.take(lane.peer) else {
                self.check_presence(lane.peer, receiving.step.step)?;
                if matches!(pass, Pass::Done) {
                    pass = Pass::Waiting(lane.peer);
                }
                continue;
            };
            match receiving.step.binding.mover() {
                Some(_) => {
                    let moving = self.copy_on_gpu(&receiving.step, index, posted)?;
                    receiving.moving.push_back(moving);
                }
                None => self.copy(&receiving.step, index, &posted)?,
            }
            lane.next = index + 1;
            pass = Pass::Moved;
        }
        Ok(pass)
    }

    /// Fails if `peer` cannot send any more.
    fn check_presence(&self, peer: Rank, step: u32) -> Result<()> {
        match self.hub.member(peer) {
            Some(member) if member.is_dead.load(Ordering::Acquire) => Ok(()),
            // It may have posted just before it stopped; then we come here
            // again only if there is nothing left.
            Some(member) if member.queue.is_stopped() => {
                match lock(&self.me.inbox).posted.get(&peer) {
                    Some(waiting) if !waiting.is_empty() => Ok(()),
                    _ => Err(member.reason()),
                }
            }
            Some(_) => Ok(()),
            None => Err(absent(peer, step)),
        }
    }

    /// Has the GPU that our memory is on copy one message.
    fn copy_on_gpu(&self, step: &Queued, index: u32, posted: Posted) -> Result<Moving> {
        let (from, to) = ends(step, index, &posted);
        check_match(from.message, to.message, self.me.rank, &posted)?;
        let Some(mover) = step.binding.mover() else {
            return Err(Error::internal("no GPU to copy a message"));
        };
        let Some(hold) = LongHold::new(&posted.sender) else {
            return Err(self.why_halted(step, &posted));
        };
        let bytes = to.message.bytes;
        let copied = mover
            .clone()
            .copy_message(from, to, step.sequence, self.hub.is_staged);
        Ok(Moving {
            fence: copied.map_err(|e| e.by(self.me.rank))?,
            bytes,
            posted,
            _hold: hold,
        })
    }

    /// Copies one message, chunk by chunk.
    fn copy(&self, step: &Queued, index: u32, posted: &Posted) -> Result<()> {
        let (from, to) = ends(step, index, posted);
        check_match(from.message, to.message, self.me.rank, posted)?;
        if posted.binding.mover().is_some() {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "rank {} sends from a GPU to memory of rank {} on the host; bind pinned \
                     memory there, in a session with a GPU",
                    posted.sender.rank, self.me.rank
                ),
            ));
        }
        if writes_destination(&to, self.hub.is_staged) {
            step.binding.marks.write_begins(step.sequence);
        }
        let cells = [
            &*self.me.abort,
            &*step.binding.abort,
            &*posted.sender.abort,
            &*posted.binding.abort,
        ];
        let done = if self.hub.is_staged {
            copy_staged(&posted.sender, from, to, Stop(&cells))
        } else {
            copy_gathered(&posted.sender, from, to, Stop(&cells))
        };
        match done {
            Ok(()) => {
                let bytes = to.message.bytes;
                self.me.bytes_received.fetch_add(bytes, Ordering::Relaxed);
                posted.sender.copied(posted.ticket, bytes);
                Ok(())
            }
            Err(Halt::Aborted) => Err(self.why_halted(step, posted)),
            Err(Halt::Mismatch { at }) => Err(Error::new(
                Status::Protocol,
                format!(
                    "step {}: byte {at} of a message of rank {} to rank {} starts another piece \
                     on one side than on the other",
                    step.step, posted.sender.rank, self.me.rank
                ),
            )
            .by(posted.sender.rank)),
        }
    }

    /// The reason of whichever abort word stopped a copy.
    fn why_halted(&self, step: &Queued, posted: &Posted) -> Error {
        let own = self.me.abort.reason().or(step.binding.abort.reason());
        let theirs = || posted.binding.abort.reason();
        own.or_else(theirs)
            .unwrap_or_else(|| posted.sender.reason())
    }

    /// Ends this rank's part: memory first, then fences, then the neighbours.
    fn leave(&self) {
        let me = &self.me;
        let queued = me.queue.stop();
        me.await_holders();
        self.hub.is_broken.store(true, Ordering::Release);
        let is_dead = me.is_dead.load(Ordering::Acquire);
        let was_aborted = me.abort.is_set();
        let reason = me.reason();
        let senders = me.close_inbox((!is_dead).then_some(&reason));
        let is_unfinished = !queued.is_empty() || !lock(&me.flight).is_empty();
        if is_unfinished {
            me.abort.set(Error::new(
                Status::Aborted,
                format!("rank {} dropped its transport in mid-transfer", me.rank),
            ));
        }
        drop(queued);
        lock(&me.flight).clear();
        me.queue.release();
        if !is_dead {
            for sender in senders {
                sender.abort_for(reason.clone());
            }
            self.tell_peers(&reason, was_aborted || is_unfinished);
        }
        self.linger();
    }

    /// Aborts our peers for our reason, or only has them look at us.
    fn tell_peers(&self, reason: &Error, is_abort: bool) {
        let peers = lock(&self.me.peers).clone();
        for peer in peers.iter().filter_map(|p| self.hub.member(*p)) {
            if is_abort {
                peer.abort_for(reason.clone());
            } else {
                peer.wake();
            }
        }
    }

    /// Stays on the hub, stopped, until the transport is dropped: whoever
    /// looks for us finds our reason.
    fn linger(&self) {
        while !self.me.is_closing.load(Ordering::Acquire) {
            std::thread::park_timeout(NAP);
        }
        lock(&self.hub.members).remove(&self.me.rank);
        // A peer that waits for us must look again.
        self.tell_peers(&self.me.reason(), false);
    }
}

impl Lane {
    /// The next message to receive on this lane.
    fn message(&mut self, step: &Queued) -> Option<u32> {
        let messages = &step.binding.program.messages;
        while self.next < self.end {
            if messages[self.next as usize].direction == Direction::Receive {
                return Some(self.next);
            }
            self.next += 1;
        }
        None
    }
}

/// One lane per peer that the step receives from.
fn fill_lanes(lanes: &mut Vec<Lane>, step: &Queued) {
    lanes.clear();
    let program = &step.binding.program;
    let (first, end) = program.steps[step.step as usize].messages;
    for i in first..end {
        let m = &program.messages[i as usize];
        match lanes.last_mut() {
            Some(lane) if lane.peer == m.peer => lane.end = i + 1,
            _ => lanes.push(Lane {
                peer: m.peer,
                next: i,
                end: i + 1,
            }),
        }
    }
}

/// Messages that a step receives.
fn receive_count(step: &Queued) -> usize {
    let program = &step.binding.program;
    let messages = program.messages_of(&program.steps[step.step as usize]);
    let receives = |m: &&Message| m.direction == Direction::Receive;
    messages.iter().filter(receives).count()
}

fn absent(peer: Rank, step: u32) -> Error {
    Error::new(
        Status::PeerLost,
        format!("rank {peer} left the loopback hub before step {step} was done"),
    )
    .by(peer)
}

/// Both ends of a message.
fn ends<'a>(step: &'a Queued, index: u32, posted: &'a Posted) -> (End<'a>, End<'a>) {
    let from = End {
        binding: &posted.binding,
        message: &posted.binding.program.messages[posted.message as usize],
    };
    let to = End {
        binding: &step.binding,
        message: &step.binding.program.messages[index as usize],
    };
    (from, to)
}

/// Refuses a message that is not the one we are waiting for.
fn check_match(from: &Message, to: &Message, me: Rank, posted: &Posted) -> Result<()> {
    let sender = posted.sender.rank;
    if from.bytes == to.bytes && from.step() == to.step() && from.peer == me {
        return Ok(());
    }
    Err(Error::new(
        Status::Protocol,
        format!(
            "rank {sender} sent {} bytes of its step {}, rank {me} waits for {} bytes of its step {}",
            from.bytes,
            from.step(),
            to.bytes,
            to.step()
        ),
    )
    .by(sender))
}

/// True if the message is written to anything but staging and relay memory.
fn writes_destination(to: &End<'_>, is_staged: bool) -> bool {
    (to.message.is_direct || !is_staged) && to.binding.program.keeps(to.message)
}

/// Copies from the sender's regions to ours.
fn copy_gathered(sender: &Member, from: End<'_>, to: End<'_>, stop: Stop<'_>) -> Result<(), Halt> {
    let mut copy = MessageCopy::new(from, to);
    while !copy.is_done() {
        let _hold = sender.hold().ok_or(Halt::Aborted)?;
        copy.advance(QUANTUM, stop)?;
    }
    Ok(())
}

/// Copies from where the message lies contiguous to where it shall.
fn copy_staged(sender: &Member, from: End<'_>, to: End<'_>, stop: Stop<'_>) -> Result<(), Halt> {
    let source = from.binding.contiguous(from.message);
    let target = to.binding.contiguous(to.message);
    let bytes = to.message.bytes;
    let mut at = 0;
    while at < bytes {
        let n = QUANTUM.min(bytes - at);
        let _hold = sender.hold().ok_or(Halt::Aborted)?;
        stop.check()?;
        let source: *const u8 = with_exposed_provenance(source + at as usize);
        let target: *mut u8 = with_exposed_provenance_mut(target + at as usize);
        // SAFETY: `Binding::new` checked both ranges; the sender is held, so
        // its memory is not given back while we read; the target is ours.
        unsafe { std::ptr::copy(source, target, n as usize) };
        at += n;
    }
    Ok(())
}

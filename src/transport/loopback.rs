//! Ranks as threads of one process: one copy, no engine.
//!
//! The members of a hub know each other's memory. A sender posts its messages
//! to the receiver's inbox; the receiver's progress thread copies straight
//! from the sender's regions to its own, converting on the way:
//!
//! ```text
//!   rank 0 (sender)                      rank 1 (receiver)
//!   enqueue ─► step ─► post ──────────►  inbox of 0 ─► copy ─► step done
//!              step done ◄── "copied" ───────────────────┘
//! ```
//!
//! Messages of a pair match by their order. A rank's steps begin in order; one
//! begins when the rank has *received* everything of the ones before (so that
//! a forward finds its bytes), while their sends may still be on the way.
//!
//! Where the receiver's memory is on a GPU, its device copies instead, in its
//! own stream; the step is done when the stream has come to the last copy.
//!
//! # Abort
//!
//! A peer reads our memory, so our fences must not be reached while it still
//! does. Before every chunk (at most 1 MiB) the receiver *holds* the sender:
//! it counts itself in, then looks whether the sender has stopped. A sender
//! that stops says so first, then waits until nobody holds it, and only then
//! are its fences reached. After that its memory is never touched again.

use super::queue::{Faults, QUEUE_CAPACITY, Queued, StepQueue, check_step, lock};
use super::{Fault, FaultKind, Progress, Transport};
use crate::device::Binding;
use crate::device::copy::{End, Halt, MessageCopy, QUANTUM, Stop};
use crate::device::fence::{AbortCell, Fence, Watch};
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::plan::program::{BufferSlot, Direction, Message};
use crate::rank::Rank;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// The longest sleep of a progress thread that has work. Everything it waits
/// for wakes it; this is the belt to those braces.
const NAP: Duration = Duration::from_millis(50);

/// The ranks of one process that reach each other.
#[derive(Debug)]
pub struct LoopbackHub {
    ranks: u32,
    is_staged: bool,
    members: Mutex<BTreeMap<Rank, Arc<Member>>>,
    /// Told whenever a member attaches.
    attached: Condvar,
    /// A member has left or was aborted: nobody joins any more.
    is_broken: AtomicBool,
    faults: Faults,
}

/// The hubs that were joined by key.
static HUBS: Mutex<BTreeMap<u64, Weak<LoopbackHub>>> = Mutex::new(BTreeMap::new());

impl LoopbackHub {
    /// A hub for ranks `0..ranks`.
    pub fn new(ranks: u32) -> Arc<LoopbackHub> {
        LoopbackHub::with(ranks, false)
    }

    /// A hub whose transports do not gather: messages are read and written
    /// where they lie contiguous, in staging or in a direct region, as on a
    /// network. For tests of packing, with the deferred device.
    pub fn staged(ranks: u32) -> Arc<LoopbackHub> {
        LoopbackHub::with(ranks, true)
    }

    fn with(ranks: u32, is_staged: bool) -> Arc<LoopbackHub> {
        Arc::new(LoopbackHub {
            ranks,
            is_staged,
            members: Mutex::default(),
            attached: Condvar::new(),
            is_broken: AtomicBool::new(false),
            faults: Faults::default(),
        })
    }

    /// The hub that goes by `key` in this process; made if there is none. A hub
    /// that a member has left, or in which one was aborted, is replaced by a
    /// new one, so that ranks which rebuild their transports meet again.
    pub fn by_key(key: u64, ranks: u32) -> Result<Arc<LoopbackHub>> {
        let mut hubs = lock(&HUBS);
        hubs.retain(|_, hub| hub.strong_count() > 0);
        if let Some(hub) = hubs.get(&key).and_then(Weak::upgrade)
            && !hub.is_broken.load(Ordering::Acquire)
        {
            if hub.ranks == ranks {
                return Ok(hub);
            }
            return Err(Error::invalid(format!(
                "loopback hub {key} has {} ranks, not {ranks}",
                hub.ranks
            )));
        }
        let hub = LoopbackHub::new(ranks);
        hubs.insert(key, Arc::downgrade(&hub));
        Ok(hub)
    }

    /// Joins as `rank` and starts its progress thread.
    pub fn attach(self: &Arc<LoopbackHub>, rank: Rank) -> Result<Arc<LoopbackTransport>> {
        if rank.0 >= self.ranks || rank.0 >= RANK_COUNT_MAX {
            return Err(Error::invalid(format!(
                "rank {rank} of a loopback hub of {} ranks",
                self.ranks
            )));
        }
        let mut members = lock(&self.members);
        if self.is_broken.load(Ordering::Acquire) {
            return Err(Error::new(
                Status::InvalidState,
                "a rank has left this loopback hub; a new one is needed",
            ));
        }
        if members.contains_key(&rank) {
            return Err(Error::new(
                Status::Busy,
                format!("rank {rank} is on this loopback hub already"),
            ));
        }
        let member = Member::new(rank);
        let runner = Runner {
            hub: self.clone(),
            me: member.clone(),
        };
        let worker = std::thread::Builder::new()
            .name(format!("wsync-loop-{rank}"))
            .spawn(move || runner.run())
            .map_err(|e| Error::os("starting a loopback thread", &e))?;
        // The thread looks at its work only after this.
        let _ = member.thread.set(worker.thread().clone());
        members.insert(rank, member.clone());
        drop(members);
        self.attached.notify_all();
        Ok(Arc::new(LoopbackTransport {
            watch: member.clone(),
            hub: self.clone(),
            member,
            worker: Mutex::new(Some(worker)),
        }))
    }

    /// Has a rank misbehave at a step, counted from 0 over all steps that it
    /// begins on this hub. For tests.
    pub fn inject(&self, fault: Fault) {
        self.faults.add(fault);
    }

    fn member(&self, rank: Rank) -> Option<Arc<Member>> {
        lock(&self.members).get(&rank).cloned()
    }
}

/// One rank on a hub.
pub struct LoopbackTransport {
    hub: Arc<LoopbackHub>,
    member: Arc<Member>,
    watch: Arc<dyn Watch>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for LoopbackTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoopbackTransport(rank {})", self.member.rank)
    }
}

/// What the other ranks see of one.
#[derive(Debug)]
struct Member {
    rank: Rank,
    abort: Arc<AbortCell>,
    queue: StepQueue,
    /// Steps that have begun and are not finished, oldest first.
    flight: Mutex<VecDeque<Flight>>,
    inbox: Mutex<Inbox>,
    /// Ranks we have exchanged, or may exchange, messages with.
    peers: Mutex<Vec<Rank>>,
    thread: OnceLock<Thread>,
    /// Peers that are copying from our memory right now.
    holders: AtomicU32,
    is_closing: AtomicBool,
    /// A fault has this rank behave as if its process were gone.
    is_dead: AtomicBool,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    /// The peer whose message we wait for, or `NOBODY`.
    waits_for: AtomicU32,
}

/// In place of a rank.
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
struct Flight {
    value: u64,
    sends_left: u32,
    has_received: bool,
}

/// A message that waits for its receiver.
#[derive(Debug)]
struct Posted {
    sender: Arc<Member>,
    binding: Arc<Binding>,
    /// In [`crate::plan::program::Program::messages`].
    message: u32,
    /// The sender's step, by its value on the sender's timeline.
    ticket: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    /// By sender, in the order sent.
    posted: HashMap<Rank, VecDeque<Posted>>,
    /// Why nothing is taken any more.
    closed: Option<Error>,
}

impl Member {
    fn new(rank: Rank) -> Arc<Member> {
        Arc::new(Member {
            rank,
            abort: Arc::default(),
            queue: StepQueue::new(),
            flight: Mutex::new(VecDeque::with_capacity(QUEUE_CAPACITY)),
            inbox: Mutex::default(),
            peers: Mutex::default(),
            thread: OnceLock::new(),
            holders: AtomicU32::new(0),
            is_closing: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            waits_for: AtomicU32::new(NOBODY),
        })
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Counts the caller in as a reader of our memory; `None` if we have
    /// stopped. The order (count, then look) pairs with that of
    /// [`Member::await_holders`] (stopped, then look at the count): one of the
    /// two sees the other.
    fn hold(&self) -> Option<Hold<'_>> {
        self.holders.fetch_add(1, Ordering::SeqCst);
        let hold = Hold(self);
        fence(Ordering::SeqCst);
        (!self.queue.is_stopped()).then_some(hold)
    }

    /// Waits for the peers that read our memory. The queue has stopped, so no
    /// more begin, and each reads at most one chunk.
    fn await_holders(&self) {
        fence(Ordering::SeqCst);
        while self.holders.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    /// Why we have stopped, as our peers shall report it.
    fn reason(&self) -> Error {
        self.abort.reason().unwrap_or_else(|| self.lost())
    }

    fn lost(&self) -> Error {
        Error::new(
            Status::PeerLost,
            format!(
                "rank {} left after {} of the {} steps it was given",
                self.rank,
                self.queue.done(),
                self.queue.enqueued()
            ),
        )
        .by(self.rank)
    }

    /// Stops this rank for `reason`, unless a fault has it dead to the world.
    fn abort_for(&self, reason: Error) {
        if !self.is_dead.load(Ordering::Acquire) {
            self.abort.set(reason);
            self.wake();
        }
    }

    /// A receiver has copied `messages` of the step `ticket`.
    fn copied(&self, ticket: u64, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        let mut flight = lock(&self.flight);
        if let Some(step) = flight.iter_mut().find(|s| s.value == ticket) {
            step.sends_left -= 1;
        }
        self.settle(&mut flight);
    }

    /// Takes finished steps off the front and says so.
    fn settle(&self, flight: &mut VecDeque<Flight>) {
        while let Some(step) = flight.front() {
            if step.sends_left > 0 || !step.has_received {
                return;
            }
            let value = step.value;
            flight.pop_front();
            self.queue.timeline.advance(value);
        }
    }

    /// Puts a message into the inbox; fails with why it is closed.
    fn post(&self, posted: Posted) -> Result<()> {
        let mut inbox = lock(&self.inbox);
        if let Some(reason) = &inbox.closed {
            return Err(reason.clone());
        }
        let from = posted.sender.rank;
        inbox.posted.entry(from).or_default().push_back(posted);
        Ok(())
    }

    /// The next message from `from`.
    fn take(&self, from: Rank) -> Option<Posted> {
        lock(&self.inbox).posted.get_mut(&from)?.pop_front()
    }

    /// Forgets the messages that wait and returns their senders. Refuses
    /// further ones if there is a reason; else they wait for ever.
    fn close_inbox(&self, reason: Option<&Error>) -> Vec<Arc<Member>> {
        let mut inbox = lock(&self.inbox);
        inbox.closed = reason.cloned();
        let waiting = std::mem::take(&mut inbox.posted);
        drop(inbox);
        waiting
            .into_values()
            .filter_map(|mut posted| posted.pop_front())
            .map(|posted| posted.sender)
            .collect()
    }
}

impl Watch for Member {
    fn moved(&self) {
        self.wake();
    }
}

/// A promise that a member's fences are not reached as an abort.
struct Hold<'a>(&'a Member);

/// The same for as long as a GPU copies.
#[derive(Debug)]
struct LongHold(Arc<Member>);

impl LongHold {
    fn new(member: &Arc<Member>) -> Option<LongHold> {
        std::mem::forget(member.hold()?);
        Some(LongHold(member.clone()))
    }
}

impl Drop for LongHold {
    fn drop(&mut self) {
        drop(Hold(&self.0));
    }
}

/// A message that a GPU is copying to us.
#[derive(Debug)]
struct Moving {
    fence: Fence,
    posted: Posted,
    bytes: u64,
    _hold: LongHold,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Transport for LoopbackTransport {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn rank(&self) -> Rank {
        self.member.rank
    }

    fn gathers(&self) -> bool {
        !self.hub.is_staged
    }

    fn connect(&self, binding: &Binding, deadline: Instant) -> Result<()> {
        let peers = binding.program.peers();
        let mut members = lock(&self.hub.members);
        loop {
            if let Some(reason) = self.member.abort.reason() {
                return Err(reason);
            }
            let missing = peers.iter().find(|p| !members.contains_key(p));
            let Some(missing) = missing else {
                break;
            };
            if missing.0 >= self.hub.ranks {
                return Err(Error::invalid(format!(
                    "the plan names rank {missing}; this loopback hub has {} ranks",
                    self.hub.ranks
                )));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.hub.is_broken.load(Ordering::Acquire) {
                return Err(Error::new(
                    Status::MeetTimeout,
                    format!("rank {missing} has not come to the loopback hub"),
                )
                .by(*missing));
            }
            members = self
                .hub
                .attached
                .wait_timeout(members, left.min(NAP))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(members);
        let mut known = lock(&self.member.peers);
        known.extend(peers.iter().copied());
        known.sort_unstable();
        known.dedup();
        // Room for what peers post, so that posting need not allocate.
        let mut inbox = lock(&self.member.inbox);
        for peer in peers {
            let waiting = inbox.posted.entry(peer).or_default();
            waiting.reserve(QUEUE_CAPACITY);
        }
        Ok(())
    }

    fn enqueue(
        &self,
        binding: &Arc<Binding>,
        step: u32,
        sequence: u64,
        after: &Fence,
    ) -> Result<Fence> {
        check_step(binding, step, !self.hub.is_staged)?;
        let fence = self.member.queue.push(binding, step, sequence, after);
        after.watch(&self.watch);
        self.member.wake();
        Ok(fence)
    }

    fn abort_cell(&self) -> &Arc<AbortCell> {
        &self.member.abort
    }

    fn wake(&self) {
        self.member.wake();
    }

    fn progress(&self) -> Progress {
        let me = &self.member;
        Progress {
            steps_enqueued: me.queue.enqueued(),
            steps_done: me.queue.done(),
            bytes_sent: me.bytes_sent.load(Ordering::Relaxed),
            bytes_received: me.bytes_received.load(Ordering::Relaxed),
        }
    }

    fn waits_for(&self) -> Option<Rank> {
        let me = &self.member;
        let sender = me.waits_for.load(Ordering::Relaxed);
        if sender != NOBODY {
            return Some(Rank(sender));
        }
        let oldest = lock(&me.flight)
            .front()
            .filter(|step| step.has_received && step.sends_left > 0)
            .map(|step| step.value)?;
        self.slow_receiver(oldest)
    }
}

impl LoopbackTransport {
    /// The first peer that has not taken what our step `ticket` sends it.
    fn slow_receiver(&self, ticket: u64) -> Option<Rank> {
        let me = self.member.rank;
        // One lock at a time, and no copy of the list.
        let peer = |i: usize| lock(&self.member.peers).get(i).copied();
        let mut peers = (0..).map_while(peer);
        peers.find(|peer| {
            let waits = |posted: &VecDeque<Posted>| posted.iter().any(|p| p.ticket <= ticket);
            self.hub
                .member(*peer)
                .is_some_and(|m| lock(&m.inbox).posted.get(&me).is_some_and(waits))
        })
    }
}

impl Drop for LoopbackTransport {
    /// Leaves the hub. Steps that are not finished are aborted; peers that
    /// still wait for us learn that we are lost.
    fn drop(&mut self) {
        self.member.is_closing.store(true, Ordering::Release);
        self.member.wake();
        if let Some(worker) = lock(&self.worker).take() {
            // The thread catches panics; its end is all we wait for.
            let _ = worker.join();
        }
    }
}

/// The progress thread of one rank.
struct Runner {
    hub: Arc<LoopbackHub>,
    me: Arc<Member>,
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
    fn run(self) {
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
            self.land_all(&mut receiving.moving);
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
            self.land(&mut receiving.moving);
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

    /// Tells the senders of what GPUs have copied to us so far; has us woken
    /// when there is more.
    fn land(&self, moving: &mut VecDeque<Moving>) {
        let watch: Arc<dyn Watch> = self.me.clone();
        while moving.front().is_some_and(|m| m.fence.watch(&watch)) {
            let Some(done) = moving.pop_front() else {
                return;
            };
            if !self.me.abort.is_set() {
                self.me
                    .bytes_received
                    .fetch_add(done.bytes, Ordering::Relaxed);
                done.posted.sender.copied(done.posted.ticket, done.bytes);
            }
        }
    }

    /// Waits for all of it. Ends soon after an abort, and when the GPU fails.
    fn land_all(&self, moving: &mut VecDeque<Moving>) {
        while let Some(first) = moving.front() {
            first.fence.wait(NAP);
            self.land(moving);
        }
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
    if from.bytes == to.bytes && from.step == to.step && from.peer == me {
        return Ok(());
    }
    Err(Error::new(
        Status::Protocol,
        format!(
            "rank {sender} sent {} bytes of its step {}, rank {me} waits for {} bytes of its step {}",
            from.bytes, from.step, to.bytes, to.step
        ),
    )
    .by(sender))
}

/// True if the message is written to anything but staging and relay memory.
fn writes_destination(to: &End<'_>, is_staged: bool) -> bool {
    let pieces = to.binding.program.pieces_of(to.message);
    (to.message.is_direct || !is_staged)
        && pieces.iter().any(|p| p.region.slot != BufferSlot::RELAY)
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

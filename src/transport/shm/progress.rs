//! The thread that moves the bytes of one rank.
//!
//! It does one step after the other. In a step there is one *lane* per peer
//! and direction; each pass gives every lane one slot, so that no peer waits
//! behind another and none is waited for alone:
//!
//! ```text
//!   pass:  to 1: slot free? gather, publish, ring its bell
//!          to 2: full, next
//!          from 1: slot full? check label, scatter, release, ring
//!   nothing moved: spin a little, then sleep on our own bell
//! ```

use super::bell::Fate;
use super::ring::Label;
use super::stream::Stream;
use super::{Link, NOBODY, Shared, sys};
use crate::device::copy::{Halt, Stop};
use crate::error::{Error, Result, Status};
use crate::plan::program::Direction;
use crate::rank::Rank;
use crate::transport::FaultKind;
use crate::transport::queue::{Queued, lock};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest sleep. Everything that is waited for rings the bell; this is
/// the belt to those braces.
const NAP: Duration = Duration::from_millis(100);

/// Passes without a move before the thread sleeps, where every rank has a
/// processor of its own. Where they share, whoever waits makes room at once.
const SPINS: u32 = 200;

/// Pauses between two such passes.
const PAUSES: u32 = 16;

/// One peer and direction of the step that is being done.
#[derive(Debug)]
struct Lane {
    stream: Stream,
    link: Option<Arc<Link>>,
    /// Receives something that is not relay memory.
    writes_destination: bool,
}

/// What a pass over the lanes came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Done,
    Moved,
    /// Nothing could move; the first peer that is waited for, if one is.
    Waiting(Option<Rank>),
}

/// The thread's own state.
pub(super) struct Runner {
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
    /// Steps begun, over the life of the transport.
    begun: u64,
}

impl Runner {
    pub(super) fn new(shared: Arc<Shared>) -> Runner {
        Runner {
            shared,
            lanes: Vec::new(),
            begun: 0,
        }
    }

    /// The thread: until aborted or closed; then it lingers until closed.
    pub(super) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let is_unfinished = match served {
            Ok(Ok(is_unfinished)) => is_unfinished,
            Ok(Err(reason)) => {
                self.shared.abort.set(reason);
                true
            }
            Err(_) => {
                let what = format!("the shm thread of rank {} panicked", self.shared.rank);
                self.shared.abort.set(Error::internal(what));
                true
            }
        };
        self.lanes.clear();
        self.leave(is_unfinished);
    }

    /// Does steps until aborted or closed; true if one was left in the middle.
    fn serve(&mut self) -> Result<bool> {
        let mut current: Option<Queued> = None;
        let mut idle = 0;
        let mut spins = 0;
        loop {
            let seen = self.shared.bell.rung();
            if self.must_end() {
                return Ok(current.is_some());
            }
            if current.is_none() {
                current = self.begin();
                spins = if self.shared.is_crowded() { 0 } else { SPINS };
            }
            let pass = match &current {
                Some(step) => self.pass(step)?,
                None => Pass::Waiting(None),
            };
            self.say_waits_for(pass);
            match pass {
                Pass::Done => self.finish(current.take()),
                Pass::Moved => idle = 0,
                Pass::Waiting(_) if current.is_some() && idle < spins => {
                    idle += 1;
                    (0..PAUSES).for_each(|_| std::hint::spin_loop());
                }
                Pass::Waiting(_) => {
                    self.shared.bell.sleep(seen, NAP);
                    idle = 0;
                }
            }
        }
    }

    /// Publishes whom we wait for. For the watchdog only, so in no order.
    fn say_waits_for(&self, pass: Pass) {
        let peer = match pass {
            Pass::Waiting(Some(peer)) => peer.0,
            Pass::Waiting(None) | Pass::Done | Pass::Moved => NOBODY,
        };
        self.shared.waits_for.store(peer, Ordering::Relaxed);
    }

    fn must_end(&self) -> bool {
        self.shared.abort.is_set() || self.shared.is_closing.load(Ordering::Acquire)
    }

    /// Takes the next step if its fence is reached.
    fn begin(&mut self) -> Option<Queued> {
        let step = self.shared.queue.pop_ready()?;
        let shared = &self.shared;
        shared
            .bell
            .say_steps(shared.queue.enqueued(), shared.queue.done());
        if let Some(fault) = shared.faults.take(shared.rank, self.begun) {
            self.suffer(fault);
        }
        self.begun += 1;
        self.fill_lanes(&step);
        Some(step)
    }

    /// Behaves as the fault says.
    fn suffer(&self, fault: FaultKind) {
        let end = match fault {
            FaultKind::Die => sys::die(),
            FaultKind::Stall => None,
            FaultKind::Delay(time) => Some(Instant::now() + time),
        };
        while !self.must_end() && end.is_none_or(|end| Instant::now() < end) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One lane per peer and direction of a step.
    fn fill_lanes(&mut self, step: &Queued) {
        self.lanes.clear();
        let program = &step.binding.program;
        let (first, end) = program.steps[step.step as usize].messages;
        for i in first..end {
            let m = &program.messages[i as usize];
            // Messages are ordered by peer: it is one of the last two lanes.
            let is_mine =
                |l: &&mut Lane| l.stream.peer == m.peer && l.stream.direction == m.direction;
            let writes = m.direction == Direction::Receive && program.keeps(m);
            if let Some(lane) = self.lanes.iter_mut().rev().take(2).find(is_mine) {
                lane.stream.add(i, m);
                lane.writes_destination |= writes;
                continue;
            }
            let mut stream = Stream::new(m.peer, m.direction, i);
            stream.add(i, m);
            self.lanes.push(Lane {
                stream,
                link: None,
                writes_destination: writes,
            });
        }
    }

    fn finish(&mut self, step: Option<Queued>) {
        self.lanes.clear();
        if let Some(step) = step {
            let value = step.value;
            drop(step);
            let queue = &self.shared.queue;
            self.shared.bell.say_steps(queue.enqueued(), value);
            queue.timeline.advance(value);
        }
    }

    /// One slot for every lane that can move one.
    fn pass(&mut self, step: &Queued) -> Result<Pass> {
        let mut pass = Pass::Done;
        for lane in &mut self.lanes {
            if lane.stream.is_done() {
                continue;
            }
            match self.shared.advance(step, lane) {
                Ok(true) => pass = Pass::Moved,
                Ok(false) if pass == Pass::Done => pass = Pass::Waiting(Some(lane.stream.peer)),
                Ok(false) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(pass)
    }

    /// Ends this rank's part: it touches nothing from here on, so the fences
    /// are reached; then the peers are told.
    fn leave(&self, is_unfinished: bool) {
        let shared = &self.shared;
        let is_unfinished = !shared.queue.stop().is_empty() || is_unfinished;
        match shared.abort.reason() {
            Some(reason) => shared.bell.say_aborted(&reason),
            None if is_unfinished => {
                shared.bell.say_aborted(&shared.lost());
                shared.abort.set(Error::new(
                    Status::Aborted,
                    format!("rank {} dropped its transport in mid-transfer", shared.rank),
                ));
            }
            None => shared.bell.say_left(),
        }
        shared.queue.release();
        for links in [&shared.outgoing, &shared.incoming] {
            lock(links).values().for_each(|link| link.bell.ring());
        }
        while !shared.is_closing.load(Ordering::Acquire) {
            let seen = shared.bell.rung();
            if !shared.is_closing.load(Ordering::Acquire) {
                shared.bell.sleep(seen, NAP);
            }
        }
    }
}

impl Shared {
    /// Moves one slot of a lane; true if one moved.
    fn advance(&self, step: &Queued, lane: &mut Lane) -> Result<bool> {
        let peer = lane.stream.peer;
        let link = match &lane.link {
            Some(link) => link,
            None => match self.link(peer, lane.stream.direction) {
                Some(link) => lane.link.insert(link),
                None if lane.stream.direction == Direction::Receive => return Ok(false),
                None => {
                    return Err(Error::new(
                        Status::InvalidState,
                        format!("rank {} is not connected to rank {peer}", self.rank),
                    ));
                }
            },
        };
        // Looked at before the ring: what a peer published before it went is
        // still there to be taken.
        let fate = link.fate();
        let moved = match lane.stream.direction {
            Direction::Send => self.send(step, &mut lane.stream, link),
            Direction::Receive => {
                let writes = lane.writes_destination;
                self.receive(step, &mut lane.stream, link, writes)
            }
        }
        .map_err(|e| {
            if e.rank.is_none() && e.status == Status::Protocol {
                e.by(peer)
            } else {
                e
            }
        })?;
        match fate {
            _ if moved => Ok(true),
            Fate::Running => Ok(false),
            Fate::Aborted(reason) => Err(reason),
            Fate::Left => Err(link.lost("left")),
        }
    }

    fn link(&self, peer: Rank, direction: Direction) -> Option<Arc<Link>> {
        let links = match direction {
            Direction::Send => &self.outgoing,
            Direction::Receive => &self.incoming,
        };
        lock(links).get(&peer).cloned()
    }

    /// Gathers into the next free slot.
    fn send(&self, step: &Queued, stream: &mut Stream, link: &Link) -> Result<bool> {
        if !link.ring.has_room()? {
            return Ok(false);
        }
        let (at, message) = (stream.at, stream.begun);
        let cells = [&*self.abort, &*step.binding.abort];
        let room = link.ring.slot_bytes();
        // SAFETY: the slot is free: the reader does not look at it before it
        // is published.
        let filled = unsafe { stream.fill(&step.binding, link.ring.slot(), room, Stop(&cells)) };
        let bytes = filled.map_err(|halt| self.halted(step, stream, halt))?;
        link.ring.publish(Label {
            request: step.sequence,
            step: step.step,
            message,
            at,
            total: stream.total,
            bytes: bytes as u32,
        });
        link.bell.ring();
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(true)
    }

    /// Scatters from the next full slot, if its label is the expected one.
    fn receive(
        &self,
        step: &Queued,
        stream: &mut Stream,
        link: &Link,
        writes_destination: bool,
    ) -> Result<bool> {
        let Some(label) = link.ring.next()? else {
            return Ok(false);
        };
        let bytes = link.ring.slot_bytes().min(stream.total - stream.at);
        let expected = Label {
            // Requests are numbered by each rank for itself.
            request: label.request,
            step: step.step,
            message: stream.begun,
            at: stream.at,
            total: stream.total,
            bytes: bytes as u32,
        };
        if label != expected {
            return Err(mismatch(link, &label, &expected));
        }
        if writes_destination {
            step.binding.marks.write_begins(step.sequence);
        }
        let cells = [&*self.abort, &*step.binding.abort];
        // SAFETY: the slot is full: the writer does not touch it before it is
        // released.
        let drained = unsafe { stream.drain(&step.binding, link.ring.slot(), bytes, Stop(&cells)) };
        drained.map_err(|halt| self.halted(step, stream, halt))?;
        link.ring.release();
        link.bell.ring();
        self.bytes_received.fetch_add(bytes, Ordering::Relaxed);
        Ok(true)
    }

    /// Why a copy stopped.
    fn halted(&self, step: &Queued, stream: &Stream, halt: Halt) -> Error {
        let reason = || self.abort.reason().or(step.binding.abort.reason());
        match halt {
            Halt::Aborted => {
                reason().unwrap_or_else(|| Error::new(Status::Aborted, "the copy was stopped"))
            }
            Halt::Mismatch { at } => Error::internal(format!(
                "step {}: the pieces with rank {} do not cover byte {at}",
                step.step, stream.peer
            )),
        }
    }
}

fn mismatch(link: &Link, got: &Label, want: &Label) -> Error {
    Error::new(
        Status::Protocol,
        format!(
            "rank {} sent bytes {}..{} of {} of its step {} (message {}); \
             bytes {}..{} of {} of step {} (message {}) were expected",
            link.rank,
            got.at,
            got.at.saturating_add(got.bytes.into()),
            got.total,
            got.step,
            got.message,
            want.at,
            want.at + u64::from(want.bytes),
            want.total,
            want.step,
            want.message,
        ),
    )
    .by(link.rank)
}

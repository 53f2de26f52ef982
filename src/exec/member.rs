//! One rank's part on the control channel.
//!
//! Runs on the control thread. Moves the flight that is under way from state
//! to state, passes messages on, keeps an eye on its neighbours in the tree,
//! and on the lowest rank also feeds the coordinator:
//!
//! ```text
//!   from below ──► up, unchanged ──────────────► coordinator (lowest rank)
//!   to below   ◄── forward, then apply to the own flight ◄──┘
//!   ABORT from anywhere ──► set the abort word, pass on to everybody else
//! ```
//!
//! A rank does not trust the coordinator with its own deadlines: it gives up a
//! moment after its agree deadline, blames a parent that is silent for longer
//! than the stall deadline, and settles on its own if nobody tells it how an
//! aborted execution ended.

mod course;
mod ending;
mod pulse;

pub(super) use ending::rank_outcome;

use super::Outcome;
use super::comparison::write_pairs;
use super::coordinator::Coordinator;
use super::flight::Flight;
use super::message::{Key, Message, NO_RANK};
use super::outbox::Outbox;
use super::request::State;
use super::shared::{Farewell, Shared};
use crate::error::{Error, Status};
use crate::rank::Rank;
use crate::transport::control::{Handler, Loss, Net, Port};
use pulse::Pings;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How much longer than its agree deadline a rank waits for the coordinator.
const AGREE_SLACK: Duration = Duration::from_millis(300);
/// How long an aborted rank waits for its own queues to run dry.
const DRAIN: Duration = Duration::from_millis(200);
/// How much longer than the coordinator an aborted rank waits for an OUTCOME.
const SETTLE_SLACK: Duration = Duration::from_millis(500);
/// How often the fences of a running request are looked at if nobody waits.
const LOOK: Duration = Duration::from_millis(2);
/// Digests that are slower than this count as stalled.
const DIGEST_BYTES_PER_SECOND: u64 = 50_000_000;
/// Participant lists up to this size are sent by everybody.
const SHORT_RANGES_BYTES: usize = 128;

/// The control channel's handler on one rank.
#[derive(Debug)]
pub(super) struct Member {
    shared: Arc<Shared>,
    coordinator: Option<Coordinator>,
    active: Option<Active>,
    has_flooded: bool,
    /// The parent left in good order.
    parent_left: Option<Rank>,
    pings: Pings,
    frame: Vec<u8>,
    vectors: Vec<u8>,
    outbox: Outbox,
    /// The frame that is being dispatched.
    current: Vec<u8>,
    is_dispatching: bool,
    is_leaving: bool,
}

/// The request that is under way.
#[derive(Debug)]
struct Active {
    flight: Arc<Flight>,
    key: Key,
    /// When to stop waiting for the coordinator's word.
    give_up: Option<Instant>,
    /// When to stop waiting for the own queues, after an abort.
    drain_by: Option<Instant>,
    stall_ns: u64,
    next_beat: Instant,
    /// Since when the parent is expected to be heard.
    watched_since: Instant,
    /// True once the coordinator knows that the request has started.
    has_started: bool,
    /// What the coordinator said of the copy while we were still busy.
    told: Option<Outcome>,
    /// When all steps were done and only digests were left.
    digests_since: Option<Instant>,
}

impl Member {
    pub fn new(shared: Arc<Shared>) -> Member {
        let now = Instant::now();
        let is_lowest = shared.ranks.lowest() == shared.rank;
        Member {
            coordinator: is_lowest.then(|| Coordinator::new(shared.ranks.clone())),
            active: None,
            has_flooded: false,
            parent_left: None,
            pings: Pings {
                interval: None,
                next: now,
                since: now,
                suspects: Vec::new(),
            },
            frame: Vec::with_capacity(4096),
            vectors: Vec::new(),
            outbox: Outbox::default(),
            current: Vec::with_capacity(4096),
            is_dispatching: false,
            is_leaving: false,
            shared,
        }
    }

    /// Sends a message towards the coordinator, or hands it over.
    fn up(&mut self, net: &mut Net, message: &Message<'_>) {
        match &mut self.coordinator {
            Some(coordinator) => {
                coordinator.message(message, Instant::now(), &mut self.outbox);
                self.dispatch(net);
            }
            None => {
                self.frame.clear();
                message.encode(&mut self.frame);
                net.up(&self.frame);
            }
        }
    }

    /// Sends what the coordinator has written, to everybody and to itself.
    /// What is written meanwhile comes after it.
    fn dispatch(&mut self, net: &mut Net) {
        if std::mem::replace(&mut self.is_dispatching, true) {
            return;
        }
        loop {
            let mut frame = std::mem::take(&mut self.current);
            let has_frame = self.outbox.next(&mut frame);
            if has_frame {
                self.pass_down(net, &frame);
            }
            self.current = frame;
            if has_frame {
                continue;
            }
            match self.outbox.abort.take() {
                Some(error) => self.abort(net, error, None),
                None => break,
            }
        }
        self.is_dispatching = false;
    }

    /// A message to everybody: to those below first, so that nobody waits for
    /// us. What a plan's next sequence is, our callers have to know before: with
    /// whatever they hear from a rank below they may prepare again.
    fn pass_down(&mut self, net: &mut Net, frame: &[u8]) {
        if let Ok(Message::Refuse {
            key,
            closed,
            status: Status::PlanMismatch,
            ..
        }) = Message::decode(frame)
        {
            self.note_closed(key, closed);
        }
        net.down(frame);
        self.apply(net, frame);
    }

    fn note_closed(&self, key: Key, closed: u64) {
        let counter = self.shared.counter(key.plan);
        counter.fetch_max(closed, Ordering::AcqRel);
    }

    /// Sets the abort word and tells everybody who does not know yet.
    fn abort(&mut self, net: &mut Net, error: Error, except: Option<Port>) {
        let shared = self.shared.clone();
        shared.transport.abort_cell().set(error);
        shared.transport.wake();
        if self.has_flooded {
            return;
        }
        self.has_flooded = true;
        let Some(reason) = shared.abort_reason() else {
            return;
        };
        self.frame.clear();
        Message::abort(&reason).encode(&mut self.frame);
        net.flood(&self.frame, except);
        shared.notify_farewell();
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.aborted(&reason, Instant::now(), &mut self.outbox);
            self.dispatch(net);
        }
    }

    /// A message from above, already passed on.
    fn apply(&mut self, net: &mut Net, frame: &[u8]) {
        let Ok(message) = Message::decode(frame) else {
            return;
        };
        match message {
            Message::Ready { key, stall_ns } => self.ready(net, key, stall_ns),
            Message::Compare { key } => self.compare(net, key),
            Message::Refuse {
                key,
                closed,
                status,
                culprit,
                text,
            } => {
                let error = Error {
                    rank: (culprit != NO_RANK).then_some(Rank(culprit)),
                    ..Error::new(status, text)
                };
                self.refused(key, closed, error);
            }
            Message::Outcome { key, .. } => {
                if self.is_active(key) {
                    self.settled(&message);
                }
            }
            Message::Awaited { rank } => self.shared.set_awaited(Rank(rank)),
            Message::Left => self.shared.set_farewell(Farewell::Left),
            Message::Agree(_)
            | Message::Withdraw { .. }
            | Message::Beat { .. }
            | Message::Done { .. }
            | Message::Suspect { .. }
            | Message::Pairs { .. }
            | Message::Leave { .. }
            | Message::Gone { .. }
            | Message::Ping { .. }
            | Message::Pong
            | Message::Abort { .. } => {}
        }
    }

    fn is_active(&self, key: Key) -> bool {
        self.active.as_ref().is_some_and(|a| a.key == key)
    }

    fn ready(&mut self, net: &mut Net, key: Key, stall_ns: u64) {
        let now = Instant::now();
        let Some(active) = self.active.as_mut().filter(|a| a.key == key) else {
            return;
        };
        {
            let mut flight = active.flight.lock();
            if flight.state != State::Preparing {
                return;
            }
            flight.state = State::Ready;
            flight.times.ready = Some(now);
        }
        active.flight.notify();
        active.give_up = None;
        active.stall_ns = stall_ns;
        active.watched_since = now;
        active.next_beat = now;
        self.progress(net, now);
    }

    /// Says what the own program sends and expects.
    fn compare(&mut self, net: &mut Net, key: Key) {
        let Some(active) = self.active.as_ref().filter(|a| a.key == key) else {
            return;
        };
        let mut list = Vec::new();
        write_pairs(&active.flight.slot.program.pairs, &mut list);
        let message = Message::Pairs {
            rank: self.shared.rank.0,
            key,
            list: &list,
        };
        self.up(net, &message);
    }

    fn refused(&mut self, key: Key, closed: u64, error: Error) {
        if !self.is_active(key) {
            return;
        }
        self.note_closed(key, closed);
        if self.state() == State::Preparing {
            self.finish(Some(error), Outcome::Untouched, Outcome::Untouched);
        }
    }

    fn state(&self) -> State {
        let active = self.active.as_ref();
        active.map_or(State::Idle, |a| a.flight.lock().state)
    }
}

impl Handler for Member {
    fn frame(&mut self, net: &mut Net, from: Port, frame: &[u8]) {
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(e) => {
                let e = match net.heard(from) {
                    Some((rank, _)) => e.by(rank),
                    None => e,
                };
                return self.abort(net, e, None);
            }
        };
        match message {
            // Up: to the coordinator, wherever it is.
            Message::Agree(_)
            | Message::Withdraw { .. }
            | Message::Beat { .. }
            | Message::Done { .. }
            | Message::Suspect { .. }
            | Message::Pairs { .. }
            | Message::Leave { .. }
            | Message::Gone { .. } => match &mut self.coordinator {
                Some(coordinator) => {
                    coordinator.message(&message, Instant::now(), &mut self.outbox);
                    self.dispatch(net);
                }
                None => net.up(frame),
            },
            // Down: to everybody.
            Message::Ready { .. }
            | Message::Compare { .. }
            | Message::Refuse { .. }
            | Message::Outcome { .. }
            | Message::Awaited { .. }
            | Message::Left => self.pass_down(net, frame),
            Message::Ping {
                interval_ns,
                is_active,
            } => {
                self.frame.clear();
                Message::Pong.encode(&mut self.frame);
                net.up(&self.frame);
                let interval = is_active.then(|| Duration::from_nanos(interval_ns));
                if interval != self.pings.interval {
                    self.set_pings(net, interval, Instant::now());
                }
            }
            Message::Pong => {}
            Message::Abort { .. } => {
                if let Some(reason) = message.abort_reason() {
                    self.abort(net, reason, Some(from));
                }
            }
        }
    }

    fn lost(&mut self, net: &mut Net, port: Port, rank: Rank, how: Loss) {
        if self.shared.has_left() {
            return;
        }
        let error = match how {
            Loss::Left => return self.neighbour_left(net, port, rank),
            Loss::Died => Error::new(
                Status::PeerLost,
                format!("rank {rank} died: its control channel closed without a goodbye"),
            ),
            Loss::Confused => Error::new(
                Status::Protocol,
                format!("rank {rank} sends what no peer sends over its control channel"),
            ),
        };
        self.abort(net, error.by(rank), None);
        self.progress(net, Instant::now());
    }

    fn tick(&mut self, net: &mut Net, now: Instant) -> Option<Duration> {
        self.take_orders(net, now);
        self.progress(net, now);
        let mut next = None;
        if let Some(coordinator) = &mut self.coordinator {
            next = coordinator.tick(now, &mut self.outbox);
            self.dispatch(net);
            // What was dispatched may have opened or closed something.
            if let Some(coordinator) = &mut self.coordinator {
                next = coordinator.tick(now, &mut self.outbox).or(next);
            }
            self.dispatch(net);
        }
        self.keep_alive(net, now);
        self.next_tick(next, now)
    }

    fn leaving(&mut self, net: &mut Net) {
        if self.active.is_some() {
            let rank = self.shared.rank;
            let text = format!("rank {rank} closed its transport while a request was under way");
            self.abort(net, Error::new(Status::Aborted, text).by(rank), None);
        }
    }

    fn ended(&mut self, error: Option<Error>) {
        if let Some(error) = error {
            self.shared.transport.abort_cell().set(error);
            self.shared.transport.wake();
        }
        self.shared.set_dead();
        if let Some(flight) = self.shared.orders().agree.take() {
            self.shared.finish_alone(&flight);
            self.shared.leave_seat();
        }
        if let Some(active) = self.active.take() {
            self.shared.finish_alone(&active.flight);
            self.shared.leave_seat();
        }
        self.shared.notify_farewell();
    }
}

impl Member {
    fn neighbour_left(&mut self, net: &mut Net, port: Port, rank: Rank) {
        match port {
            Port::Child(_) => self.up(net, &Message::Gone { rank: rank.0 }),
            Port::Parent => {
                self.parent_left = Some(rank);
                if self.active.is_some() {
                    let text = format!("rank {rank} left while a request was under way");
                    self.abort(net, Error::new(Status::PeerLost, text).by(rank), None);
                }
                self.progress(net, Instant::now());
            }
        }
    }
}

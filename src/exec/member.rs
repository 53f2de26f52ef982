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

use super::coordinator::{Coordinator, LAST_WORDS, Outbox};
use super::endpoint::{Farewell, Shared};
use super::flight::{Flight, FlightInner};
use super::message::{Agree, Card, Key, MISMATCH_COUNT_MAX, Message, NO_COPY, NO_RANK, Sums};
use super::request::State;
use super::watchdog::{beat_interval, silence};
use super::{FLAG_DRY_RUN, FLAG_VERIFY, NO_DEADLINE, Outcome, instant_in};
use crate::error::{Error, Status};
use crate::rank::Rank;
use crate::transport::control::{Handler, Loss, Net, Port};
use crate::transport::greeting::library_version;
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

/// Signs of life between neighbours, while anything is going on.
#[derive(Debug)]
struct Pings {
    interval: Option<Duration>,
    next: Instant,
    since: Instant,
    /// Which children have been reported as silent.
    suspects: Vec<bool>,
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

    // --- sending ---------------------------------------------------------

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
                net.down(&frame);
                self.apply(net, &frame);
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
        let message = Message::Abort {
            status: reason.status,
            culprit: reason.rank.map_or(NO_RANK, |r| r.0),
            text: &reason.message,
        };
        message.encode(&mut self.frame);
        net.flood(&self.frame, except);
        shared.notify_farewell();
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.aborted(&reason, Instant::now(), &mut self.outbox);
            self.dispatch(net);
        }
    }

    // --- receiving -------------------------------------------------------

    /// A message from above, already passed on.
    fn apply(&mut self, net: &mut Net, frame: &[u8]) {
        let Ok(message) = Message::decode(frame) else {
            return;
        };
        match message {
            Message::Ready { key, stall_ns } => self.ready(net, key, stall_ns),
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
            Message::Left => self.shared.set_farewell(Farewell::Left),
            Message::Agree(_)
            | Message::Withdraw { .. }
            | Message::Beat { .. }
            | Message::Done { .. }
            | Message::Suspect { .. }
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

    fn refused(&mut self, key: Key, closed: u64, error: Error) {
        if error.status == Status::PlanMismatch || self.is_active(key) {
            self.shared
                .counter(key.plan)
                .fetch_max(closed, Ordering::AcqRel);
        }
        if self.is_active(key) && self.state() == State::Preparing {
            self.finish(Some(error), Outcome::Untouched, Outcome::Untouched);
        }
    }

    fn state(&self) -> State {
        let active = self.active.as_ref();
        active.map_or(State::Idle, |a| a.flight.lock().state)
    }

    // --- the own flight --------------------------------------------------

    /// Takes in what callers have asked for.
    fn take_orders(&mut self, net: &mut Net, now: Instant) {
        let (agree, withdraw, leave) = {
            let mut orders = self.shared.orders();
            (
                orders.agree.take(),
                orders.withdraw.take(),
                std::mem::take(&mut orders.leave),
            )
        };
        if let Some(flight) = agree {
            self.agree(net, flight, now);
        }
        if let Some(flight) = withdraw {
            self.withdraw(net, &flight);
        }
        if leave && !self.is_leaving {
            self.is_leaving = true;
            let rank = self.shared.rank.0;
            self.up(net, &Message::Leave { rank });
        }
    }

    fn agree(&mut self, net: &mut Net, flight: Arc<Flight>, now: Instant) {
        let shared = self.shared.clone();
        let (key, version, flags, agree_ns, stall_ns) = {
            let f = flight.lock();
            (f.key, f.version, f.flags, f.agree_ns, f.stall_ns)
        };
        self.active = Some(Active {
            key,
            give_up: instant_in(now, agree_ns).map(|d| d + AGREE_SLACK),
            drain_by: None,
            stall_ns,
            next_beat: now,
            watched_since: now,
            has_started: false,
            told: None,
            digests_since: None,
            flight: flight.clone(),
        });
        if let Some(rank) = self.parent_left {
            let text = format!("rank {rank} has left the transport");
            let error = Error::new(Status::PeerLost, text).by(rank);
            return self.finish(Some(error), Outcome::Untouched, Outcome::Untouched);
        }
        if shared.abort_reason().is_some() {
            return self.progress(net, now);
        }
        let message = agree_message(&flight.slot.card, key, version, flags, agree_ns, stall_ns);
        self.up(net, &Message::Agree(message));
    }

    fn withdraw(&mut self, net: &mut Net, flight: &Arc<Flight>) {
        let is_it = |a: &&Active| Arc::ptr_eq(&a.flight, flight);
        let Some(key) = self.active.as_ref().filter(is_it).map(|a| a.key) else {
            return;
        };
        let state = self.state();
        let rank = self.shared.rank;
        match state {
            State::Preparing => {
                self.up(net, &Message::Withdraw { rank: rank.0, key });
                let text = "the request was destroyed while ranks agreed";
                let error = Error::new(Status::Refused, text).by(rank);
                if self.is_active(key) {
                    self.finish(Some(error), Outcome::Untouched, Outcome::Untouched);
                }
            }
            // READY came first: others may have started.
            State::Ready => {
                let text = "a request was destroyed after ranks had agreed and before it started";
                let error = Error::new(Status::Aborted, text).by(rank);
                self.abort(net, error, None);
            }
            State::Idle | State::Running | State::Settling | State::Done | State::Failed => {}
        }
    }

    /// Moves the flight on as far as it goes.
    fn progress(&mut self, net: &mut Net, now: Instant) {
        if self.shared.abort_reason().is_some() && !self.has_flooded {
            let reason = Error::internal("an abort without a reason");
            self.abort(net, reason, None);
        }
        match self.state() {
            State::Idle | State::Done | State::Failed => {}
            State::Preparing => self.while_preparing(net, now),
            State::Ready => self.while_ready(net, now),
            State::Running => self.while_running(net, now),
            State::Settling => self.while_settling(net, now),
        }
    }

    fn while_preparing(&mut self, net: &mut Net, now: Instant) {
        let Some(active) = &mut self.active else {
            return;
        };
        if self.shared.abort_reason().is_some() {
            return self.say_done(net, now, Outcome::Untouched);
        }
        if active.give_up.is_some_and(|g| now >= g) {
            let key = active.key;
            let error = self.no_answer(net, now);
            let rank = self.shared.rank.0;
            self.up(net, &Message::Withdraw { rank, key });
            if self.is_active(key) {
                // Others may have been told READY, for all we know.
                let copy = self.unknown_copy(Outcome::Untouched);
                self.finish(Some(error), Outcome::Untouched, copy);
            }
        }
    }

    fn while_ready(&mut self, net: &mut Net, now: Instant) {
        if self.shared.abort_reason().is_some() {
            return self.say_done(net, now, Outcome::Untouched);
        }
        self.beat(net, now);
        self.watch_parent(net, now);
    }

    fn while_running(&mut self, net: &mut Net, now: Instant) {
        let Some(active) = &mut self.active else {
            return;
        };
        let mut flight = active.flight.lock();
        let is_drained = flight.look();
        // In this order: a fence that is reached because of an abort is not
        // taken for the real one.
        let is_aborted = self.shared.transport.abort_cell().is_set();
        if is_aborted && !is_drained {
            let drain_by = *active.drain_by.get_or_insert(now + DRAIN);
            if now < drain_by {
                return;
            }
            flight.is_undrained = true;
            active
                .flight
                .slot
                .is_undrained
                .store(true, Ordering::Release);
        }
        if !is_aborted && !is_drained {
            drop(flight);
            self.beat(net, now);
            return self.watch_parent(net, now);
        }
        let outcome = rank_outcome(&flight, active.flight.slot.writes, is_drained, is_aborted);
        flight.times.moved = Some(now);
        drop(flight);
        self.say_done(net, now, outcome);
    }

    fn while_settling(&mut self, net: &mut Net, now: Instant) {
        let Some(active) = &self.active else { return };
        if let Some(reason) = self.shared.abort_reason() {
            if let Some(copy) = active.told {
                let rank = active.flight.lock().rank_outcome.unwrap_or(Outcome::Torn);
                return self.finish(Some(reason), rank, copy);
            }
            let is_deaf = self.coordinator.is_none() && !net.has_parent();
            let give_up = *active
                .give_up
                .as_ref()
                .unwrap_or(&(now + LAST_WORDS + SETTLE_SLACK));
            if is_deaf || now >= give_up {
                let rank = active.flight.lock().rank_outcome.unwrap_or(Outcome::Torn);
                let copy = self.unknown_copy(rank);
                return self.finish(Some(reason), rank, copy);
            }
            if let Some(active) = &mut self.active {
                active.give_up = Some(give_up);
            }
            return;
        }
        self.beat(net, now);
        self.watch_parent(net, now);
    }

    /// Ends the rank's own part, and tells the coordinator how.
    fn say_done(&mut self, net: &mut Net, now: Instant, outcome: Outcome) {
        let Some(active) = &mut self.active else {
            return;
        };
        let key = active.key;
        let flight = active.flight.clone();
        active.give_up = self
            .shared
            .abort_reason()
            .map(|_| now + LAST_WORDS + SETTLE_SLACK);
        let is_verified = {
            let mut inner = flight.lock();
            inner.state = State::Settling;
            inner.rank_outcome = Some(outcome);
            inner.flags & FLAG_VERIFY != 0 && outcome == Outcome::Complete
        };
        flight.notify();
        let program = &flight.slot.program;
        let mut vectors = std::mem::take(&mut self.vectors);
        vectors.clear();
        let ends = if is_verified {
            write_sums(&flight, &mut vectors)
        } else {
            [0; 2]
        };
        let message = Message::Done {
            rank: self.shared.rank.0,
            key,
            outcome,
            bytes: program.bytes_received + program.bytes_local,
            sums: Sums {
                once: &vectors[..ends[0]],
                sent: &vectors[ends[0]..ends[1]],
                held: &vectors[ends[1]..],
            },
        };
        self.up(net, &message);
        self.vectors = vectors;
        if self.is_active(key) && self.state() == State::Settling {
            self.while_settling(net, now);
        }
    }

    /// OUTCOME of the own flight.
    fn settled(&mut self, message: &Message<'_>) {
        let Message::Outcome {
            copies,
            all,
            exceptions,
            mismatch_count,
            mismatches,
            once,
            ..
        } = *message
        else {
            return;
        };
        let Some(active) = &mut self.active else {
            return;
        };
        let flight = active.flight.clone();
        let card = &flight.slot.card;
        let copy = match card.copy {
            NO_COPY => all,
            copy => find_copy(exceptions, copy).unwrap_or(copies),
        };
        let mut inner = flight.lock();
        if inner.state == State::Running {
            // Aborted, and the others did not wait for our last word.
            active.told = Some(copy);
            return;
        }
        let mut rank = inner.rank_outcome.unwrap_or(Outcome::Untouched);
        if !once.is_empty() {
            publish(&flight, &mut inner, once);
        }
        let is_dry = inner.flags & FLAG_DRY_RUN != 0;
        drop(inner);
        let mut error = None;
        if mismatch_count > 0 {
            error = Some(checksum_error(&flight, mismatch_count, mismatches));
            if card.copy != NO_COPY {
                rank = rank.and(copy);
            }
        } else if all != Outcome::Complete && !is_dry {
            let text = "the execution ended early and nobody said why";
            let reason = self.shared.abort_reason();
            error = Some(reason.unwrap_or_else(|| Error::internal(text)));
        }
        self.finish(error, rank, copy);
    }

    fn finish(&mut self, error: Option<Error>, rank: Outcome, copy: Outcome) {
        let Some(active) = self.active.take() else {
            return;
        };
        let mut flight = active.flight.lock();
        flight.finish(Instant::now(), error, rank, copy);
        // Under the lock: whoever sees the end may prepare the next version.
        self.shared.leave_seat();
        drop(flight);
        active.flight.notify();
    }

    /// The copy's outcome as far as this rank can tell alone: what nobody
    /// knows counts as torn.
    fn unknown_copy(&self, rank: Outcome) -> Outcome {
        let Some(active) = &self.active else {
            return Outcome::Torn;
        };
        let card = &active.flight.slot.card;
        if card.copy != NO_COPY && card.copy_ranks == 1 {
            rank
        } else {
            Outcome::Torn
        }
    }

    /// Why there is no answer from the coordinator.
    fn no_answer(&self, net: &Net, now: Instant) -> Error {
        let lowest = self.shared.ranks.lowest();
        let silent = self.pings.interval.and_then(|interval| {
            let (rank, heard) = net.heard(Port::Parent)?;
            let unheard = now.saturating_duration_since(heard);
            (unheard > silence(interval)).then_some(rank)
        });
        let culprit = silent.unwrap_or(lowest);
        let text = format!("rank {culprit} did not answer: nobody said in time whether all agree");
        Error::new(Status::AgreementTimeout, text).by(culprit)
    }

    // --- signs of life ---------------------------------------------------

    /// Tells the coordinator how far the own flight has come, if it is time
    /// or if it has just started.
    fn beat(&mut self, net: &mut Net, now: Instant) {
        let count = self.shared.ranks.len();
        let Some(active) = &mut self.active else {
            return;
        };
        let (enqueued, done) = {
            let mut flight = active.flight.lock();
            flight.look();
            let steps = flight.steps.len() as u32;
            // At least one once started: a step or not, it is under way.
            (
                steps.max(u32::from(flight.state == State::Running)),
                flight.steps_done,
            )
        };
        if now < active.next_beat && (active.has_started || enqueued == 0) {
            return;
        }
        active.has_started |= enqueued > 0;
        active.next_beat = now + beat_interval(active.stall_ns, count);
        let progress = self.shared.transport.progress();
        let moved = progress.bytes_sent.wrapping_add(progress.bytes_received);
        let moved = moved.wrapping_add(active.digesting(done, now));
        let waits_for = self.shared.transport.waits_for();
        let message = Message::Beat {
            rank: self.shared.rank.0,
            key: active.key,
            enqueued,
            done,
            moved,
            waits_for: waits_for.map_or(NO_RANK, |r| r.0),
        };
        self.up(net, &message);
    }

    /// Blames a parent that is silent for longer than a step may take.
    fn watch_parent(&mut self, net: &mut Net, now: Instant) {
        let Some(active) = &self.active else { return };
        if active.stall_ns == NO_DEADLINE {
            return;
        }
        let Some((rank, heard)) = net.heard(Port::Parent) else {
            return;
        };
        let limit = Duration::from_nanos(active.stall_ns);
        let limit = limit.max(silence(beat_interval(
            active.stall_ns,
            self.shared.ranks.len(),
        )));
        let unheard = now.saturating_duration_since(heard.max(active.watched_since));
        if unheard > limit {
            let text = format!(
                "rank {rank} is silent: nothing was heard from it within {} ms",
                limit.as_millis()
            );
            self.abort(net, Error::new(Status::Stalled, text).by(rank), None);
        }
    }

    /// Sends pings while they are wanted, and reports children that are
    /// silent.
    fn keep_alive(&mut self, net: &mut Net, now: Instant) {
        if let Some(coordinator) = &self.coordinator {
            let wanted = coordinator.ping_interval();
            if wanted != self.pings.interval {
                self.set_pings(net, wanted, now);
            }
        }
        let Some(interval) = self.pings.interval else {
            return;
        };
        if now >= self.pings.next {
            self.pings.next = now + interval;
            self.ping(net, Some(interval));
        }
        for i in 0..net.child_count() {
            let Some((rank, heard)) = net.heard(Port::Child(i)) else {
                continue;
            };
            let unheard = now.saturating_duration_since(heard.max(self.pings.since));
            let is_silent = unheard > silence(interval);
            if self.pings.suspects[i] != is_silent {
                self.pings.suspects[i] = is_silent;
                let rank = rank.0;
                self.up(net, &Message::Suspect { rank, is_silent });
            }
        }
    }

    fn set_pings(&mut self, net: &mut Net, interval: Option<Duration>, now: Instant) {
        if self.pings.interval.is_none() {
            self.pings.since = now;
        }
        self.pings.interval = interval;
        self.pings.next = now + interval.unwrap_or_default();
        self.pings.suspects.resize(net.child_count(), false);
        self.ping(net, interval);
    }

    fn ping(&mut self, net: &mut Net, interval: Option<Duration>) {
        self.frame.clear();
        let message = Message::Ping {
            interval_ns: interval.map_or(0, |i| i.as_nanos() as u64),
            is_active: interval.is_some(),
        };
        message.encode(&mut self.frame);
        for i in 0..net.child_count() {
            // Whoever does not read what is there already needs no more.
            if interval.is_none() || !net.has_backlog(Port::Child(i)) {
                net.send(Port::Child(i), &self.frame);
            }
        }
    }

    /// When to be called again at the latest.
    fn next_tick(&mut self, coordinator: Option<Instant>, now: Instant) -> Option<Duration> {
        let mut next = coordinator;
        let mut at_most = |t: Instant| next = Some(next.map_or(t, |n| n.min(t)));
        if self.pings.interval.is_some() {
            at_most(self.pings.next);
        }
        if let Some(active) = &self.active {
            if let Some(give_up) = active.give_up {
                at_most(give_up);
            }
            match active.flight.lock().state {
                State::Idle | State::Preparing | State::Done | State::Failed => {}
                State::Ready | State::Settling => at_most(active.next_beat),
                State::Running => at_most(now + LOOK),
            }
        }
        next.map(|n| n.saturating_duration_since(now))
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
            | Message::Leave { .. }
            | Message::Gone { .. } => match &mut self.coordinator {
                Some(coordinator) => {
                    coordinator.message(&message, Instant::now(), &mut self.outbox);
                    self.dispatch(net);
                }
                None => net.up(frame),
            },
            // Down: to everybody below first, so that nobody waits for us.
            Message::Ready { .. }
            | Message::Refuse { .. }
            | Message::Outcome { .. }
            | Message::Left => {
                net.down(frame);
                self.apply(net, frame);
            }
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
            Message::Abort {
                status,
                culprit,
                text,
            } => {
                let error = Error {
                    rank: (culprit != NO_RANK).then_some(Rank(culprit)),
                    ..Error::new(status, text)
                };
                self.abort(net, error, Some(from));
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

impl Active {
    /// Digests of everything are one piece of work, which may well take longer
    /// than a step. As long as they may still be busy, time counts as progress.
    fn digesting(&mut self, steps_done: u32, now: Instant) -> u64 {
        let program = &self.flight.slot.program;
        let flags = self.flight.lock().flags;
        if flags & FLAG_VERIFY == 0 || (steps_done as usize) < program.steps.len() {
            return 0;
        }
        let bytes = program.bytes_sent + program.bytes_received + program.bytes_local;
        let budget = Duration::from_secs(bytes / DIGEST_BYTES_PER_SECOND);
        let since = *self.digests_since.get_or_insert(now);
        let busy = now.saturating_duration_since(since).min(budget);
        busy.as_millis() as u64
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

fn agree_message(
    card: &Card,
    key: Key,
    version: u64,
    flags: u32,
    agree_ns: u64,
    stall_ns: u64,
) -> Agree<'_> {
    let participants = &card.participants;
    let is_short = participants.ranges.len() <= SHORT_RANGES_BYTES;
    let is_lowest = participants.lowest == card.rank.0;
    Agree {
        rank: card.rank.0,
        key,
        version,
        flags,
        library: library_version(),
        balance: card.balance,
        steps: card.steps,
        tensors: card.tensors,
        copy: card.copy,
        copy_ranks: card.copy_ranks,
        copies_are_alike: card.copies_are_alike,
        participants: participants.count,
        lowest: participants.lowest,
        participants_hash: participants.hash,
        agree_ns,
        stall_ns,
        ranges: if is_short || is_lowest {
            &participants.ranges
        } else {
            &[]
        },
    }
}

/// What became of this rank's memory, once its queues are dry or given up.
pub(super) fn rank_outcome(
    flight: &FlightInner,
    writes: bool,
    is_drained: bool,
    is_aborted: bool,
) -> Outcome {
    if is_drained && !is_aborted {
        return match flight.flags & FLAG_DRY_RUN {
            0 => Outcome::Complete,
            _ => Outcome::Untouched,
        };
    }
    if !writes {
        return Outcome::Untouched;
    }
    let sequence = flight.key.sequence;
    let marks = flight.binding.as_ref().map(|b| &b.marks);
    match marks {
        // Queues that still run may set the mark any moment.
        Some(marks) if !is_drained || marks.has_written(sequence) => Outcome::Torn,
        _ => Outcome::Untouched,
    }
}

/// Appends this rank's digest sums; returns where the first and the second
/// vector end.
fn write_sums(flight: &Flight, out: &mut Vec<u8>) -> [usize; 2] {
    let inner = flight.lock();
    let Some(binding) = &inner.binding else {
        return [0; 2];
    };
    let program = &flight.slot.program;
    let sums = &binding.sums;
    let mut put = |sums: &[std::sync::atomic::AtomicU64]| {
        for sum in sums {
            out.extend_from_slice(&sum.load(Ordering::Acquire).to_le_bytes());
        }
        out.len()
    };
    let mut ends = [0; 2];
    if !program.digest_source.is_empty() {
        ends = [put(&sums.once), put(&sums.sent)];
    }
    if !program.digest_destination.is_empty() {
        put(&sums.held);
    }
    ends
}

/// Keeps the published digests, and compares them with the version before.
fn publish(flight: &Flight, inner: &mut FlightInner, once: &[u8]) {
    let digests = once
        .chunks_exact(8)
        .map(|c| c.try_into().map_or(0, u64::from_le_bytes));
    inner.digests.clear();
    inner.digests.extend(digests);
    inner.has_digests = true;
    let mut history = flight.slot.lock_history();
    match history.as_mut() {
        Some(before) => {
            inner.is_unchanged = Some(*before == inner.digests);
            before.clone_from(&inner.digests);
        }
        None => *history = Some(inner.digests.clone()),
    }
}

fn find_copy(exceptions: &[u8], copy: u32) -> Option<Outcome> {
    let found = exceptions
        .chunks_exact(5)
        .find(|c| c[..4] == copy.to_le_bytes());
    found.and_then(|c| Outcome::from_code(c[4]))
}

fn checksum_error(flight: &Flight, count: u64, named: &[u8]) -> Error {
    let tensors = flight.slot.plan.tensors();
    let mut text = format!("{count} digests of delivered tensors differ from what was sent:");
    for (i, pair) in named.chunks_exact(8).take(MISMATCH_COUNT_MAX).enumerate() {
        let number = |at: usize| {
            let bytes: [u8; 4] = pair[at..at + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let (copy, tensor) = (number(0), number(4));
        let name = tensors
            .get(tensor as usize)
            .map_or("?", |t| t.name.as_str());
        text.push_str(if i == 0 { " " } else { ", " });
        match copy {
            NO_COPY => text.push_str(&format!("\"{name}\" over all copies")),
            copy => text.push_str(&format!("\"{name}\" in copy {copy}")),
        }
    }
    if count > MISMATCH_COUNT_MAX as u64 {
        text.push_str(&format!(" and {} more", count - MISMATCH_COUNT_MAX as u64));
    }
    Error::new(Status::ChecksumMismatch, text)
}

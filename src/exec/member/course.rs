//! The own flight's way from PREPARING to its end.
//!
//! ```text
//!   order ─► PREPARING ──READY──► READY ──start──► RUNNING ──► SETTLING ──OUTCOME──► end
//!                └─ REFUSE, deadline ─► end           └─ abort: drain ─┘
//! ```

use super::ending::rank_outcome;
use super::{AGREE_SLACK, Active, DRAIN, Member, SETTLE_SLACK, SHORT_RANGES_BYTES};
use crate::error::{Error, Status};
use crate::exec::coordinator::LAST_WORDS;
use crate::exec::flight::Flight;
use crate::exec::message::{Agree, Card, Key, Message};
use crate::exec::request::State;
use crate::exec::watchdog::silence;
use crate::exec::{Outcome, instant_in};
use crate::transport::control::{Net, Port};
use crate::transport::greeting::library_version;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Member {
    /// Takes in what callers have asked for.
    pub(super) fn take_orders(&mut self, net: &mut Net, now: Instant) {
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
    pub(super) fn progress(&mut self, net: &mut Net, now: Instant) {
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

    pub(super) fn while_settling(&mut self, net: &mut Net, now: Instant) {
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

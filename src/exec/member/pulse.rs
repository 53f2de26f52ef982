//! Signs of life: what a rank says of its progress, and whom it misses.

use super::{Active, DIGEST_BYTES_PER_SECOND, LOOK, Member};
use crate::error::{Error, Status};
use crate::exec::message::Message;
use crate::exec::request::State;
use crate::exec::watchdog::{beat_interval, silence};
use crate::exec::{FLAG_VERIFY, NO_DEADLINE};
use crate::transport::control::{Net, Port};
use crate::transport::waits::Waits;
use std::time::{Duration, Instant};

/// Signs of life between neighbours, while anything is going on.
#[derive(Debug)]
pub(super) struct Pings {
    pub(super) interval: Option<Duration>,
    pub(super) next: Instant,
    pub(super) since: Instant,
    /// Which children have been reported as silent.
    pub(super) suspects: Vec<bool>,
}

impl Member {
    /// Tells the coordinator how far the own flight has come, if it is time
    /// or if it has just started.
    pub(super) fn beat(&mut self, net: &mut Net, now: Instant) {
        let count = self.shared.ranks.len();
        let Some(active) = &mut self.active else {
            return;
        };
        let (enqueued, done, exchanges) = {
            let mut flight = active.flight.lock();
            flight.look();
            let steps = flight.steps.len() as u32;
            // At least one once started: a step or not, it is under way.
            (
                steps.max(u32::from(flight.state == State::Running)),
                flight.steps_done,
                flight.exchanges(),
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
        let waits_for = match exchanges {
            true => self.shared.transport.waits_for(),
            false => Waits::NONE,
        };
        let moved = moved.wrapping_add(waits_for.place);
        let message = Message::Beat {
            rank: self.shared.rank.0,
            key: active.key,
            enqueued,
            done,
            moved,
            waits_for,
        };
        self.up(net, &message);
    }

    /// Blames a parent that is silent for longer than a step may take.
    pub(super) fn watch_parent(&mut self, net: &mut Net, now: Instant) {
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
    pub(super) fn keep_alive(&mut self, net: &mut Net, now: Instant) {
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

    pub(super) fn set_pings(&mut self, net: &mut Net, interval: Option<Duration>, now: Instant) {
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
    pub(super) fn next_tick(
        &mut self,
        coordinator: Option<Instant>,
        now: Instant,
    ) -> Option<Duration> {
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

//! What the caller's threads and the control thread of one endpoint share.
//!
//! Callers leave orders and wait on a flight; the control thread takes them and
//! moves the flight. Neither holds a lock while it does anything slow.

use super::Outcome;
use super::flight::Flight;
use super::member::rank_outcome;
use super::rank_set::RankSet;
use super::request::State;
use super::standstill::with_tensors;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::Transport;
use crate::transport::control::Waker;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the caller's threads and the control thread of one endpoint share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub rank: Rank,
    pub ranks: RankSet,
    pub transport: Arc<dyn Transport>,
    pub waker: Arc<Waker>,
    /// Taken by the one request that is under way.
    is_busy: AtomicBool,
    orders: Mutex<Orders>,
    counters: Mutex<HashMap<u128, Arc<AtomicU64>>>,
    farewell: Mutex<Farewell>,
    farewell_changed: Condvar,
    /// The control thread has ended.
    is_dead: AtomicBool,
}

/// What callers want of the control thread.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// A flight that has just been prepared.
    pub agree: Option<Arc<Flight>>,
    /// A flight whose request is gone.
    pub withdraw: Option<Arc<Flight>>,
    pub leave: bool,
}

/// How leaving together stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Farewell {
    #[default]
    Staying,
    /// Waits for others: for this one, as far as is known.
    Leaving(Option<Rank>),
    Left,
}

impl Shared {
    pub fn new(rank: Rank, ranks: RankSet, transport: Arc<dyn Transport>) -> Result<Shared> {
        Ok(Shared {
            rank,
            ranks,
            transport,
            waker: Arc::new(Waker::new()?),
            is_busy: AtomicBool::new(false),
            orders: Mutex::default(),
            counters: Mutex::default(),
            farewell: Mutex::default(),
            farewell_changed: Condvar::new(),
            is_dead: AtomicBool::new(false),
        })
    }

    pub fn abort_reason(&self) -> Option<Error> {
        let cell = self.transport.abort_cell();
        if cell.is_set() { cell.reason() } else { None }
    }

    /// Sets the abort word and has the control thread tell everybody.
    pub fn abort(&self, reason: Error) {
        self.transport.abort_cell().set(reason);
        self.transport.wake();
        self.waker.wake();
    }

    /// Lets one request be under way at a time.
    pub fn take_seat(&self) -> Result<()> {
        if self.is_busy.swap(true, Ordering::AcqRel) {
            return Err(Error::new(
                Status::Busy,
                "another request of this transport is under way",
            ));
        }
        Ok(())
    }

    pub fn leave_seat(&self) {
        self.is_busy.store(false, Ordering::Release);
    }

    /// The number of the last execution of `plan` on this transport.
    pub fn counter(&self, plan: u128) -> Arc<AtomicU64> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.entry(plan).or_default().clone()
    }

    pub fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn order_agree(&self, flight: &Arc<Flight>) {
        self.orders().agree = Some(flight.clone());
        self.waker.wake();
    }

    pub fn order_withdraw(&self, flight: &Arc<Flight>) {
        self.orders().withdraw = Some(flight.clone());
        self.waker.wake();
    }

    /// Has the control thread look at the running request now.
    pub fn order_look(&self) {
        self.waker.wake();
    }

    /// Waits until `flight` has ended.
    pub fn wait_idle(&self, flight: &Arc<Flight>, deadline: Option<Instant>) -> Result<()> {
        let mut inner = flight.lock();
        while inner.state.is_active() {
            let left = match deadline {
                Some(d) => d.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if inner.state == State::Ready || left.is_zero() {
                let text = format!("a request is still {}", inner.state.name());
                return Err(Error::new(Status::Busy, text));
            }
            inner = flight.wait(inner, left);
        }
        Ok(())
    }

    /// Nobody will move requests on any more.
    pub fn set_dead(&self) {
        self.is_dead.store(true, Ordering::Release);
    }

    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Acquire)
    }

    /// Why nothing goes on here.
    pub fn closed(&self) -> Error {
        let text = format!("the control channel of rank {} has closed", self.rank);
        Error::new(Status::PeerLost, text).by(self.rank)
    }

    /// Ends a request that the control thread can no longer end.
    pub fn finish_alone(&self, flight: &Flight) {
        let mut inner = flight.lock();
        if !inner.state.is_active() {
            return;
        }
        let reason = self.abort_reason().unwrap_or_else(|| self.closed());
        self.transport.abort_cell().set(reason.clone());
        self.transport.wake();
        let rank = match inner.state {
            State::Running => {
                let is_drained = inner.look();
                flight
                    .slot
                    .is_undrained
                    .fetch_or(!is_drained, Ordering::AcqRel);
                rank_outcome(&inner, flight.slot.writes, is_drained, true)
            }
            State::Settling => inner.rank_outcome.unwrap_or(Outcome::Torn),
            State::Idle | State::Preparing | State::Ready | State::Done | State::Failed => {
                Outcome::Untouched
            }
        };
        let reason = with_tensors(reason, &flight.slot.program, inner.steps_done);
        inner.finish(Instant::now(), Some(reason), rank, Outcome::Torn);
        drop(inner);
        flight.notify();
    }

    /// Refuses new requests once the rank is leaving.
    pub fn check_staying(&self) -> Result<()> {
        let farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
        match *farewell {
            Farewell::Staying => Ok(()),
            Farewell::Leaving(_) | Farewell::Left => Err(Error::new(
                Status::InvalidState,
                "the transport has been finalized",
            )),
        }
    }

    /// True once every rank has left.
    pub fn has_left(&self) -> bool {
        let farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
        *farewell == Farewell::Left
    }

    /// Has whoever waits to leave look at the abort word.
    pub fn notify_farewell(&self) {
        drop(self.farewell.lock().unwrap_or_else(PoisonError::into_inner));
        self.farewell_changed.notify_all();
    }

    /// Says that every rank has left.
    pub fn set_farewell(&self, to: Farewell) {
        *self.farewell.lock().unwrap_or_else(PoisonError::into_inner) = to;
        self.farewell_changed.notify_all();
    }

    /// Says whom the others wait for.
    pub fn set_awaited(&self, rank: Rank) {
        let mut farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Farewell::Leaving(awaited) = &mut *farewell {
            *awaited = Some(rank);
        }
    }

    /// Leaves, and waits for all others to leave. Whoever did not wait long
    /// enough may wait on by calling again.
    pub fn leave(&self, deadline: Option<Instant>) -> Result<()> {
        if let Some(reason) = self.abort_reason() {
            return Err(reason);
        }
        let mut farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
        if *farewell == Farewell::Staying {
            self.take_seat()?;
            *farewell = Farewell::Leaving(None);
            self.orders().leave = true;
            self.waker.wake();
        }
        while *farewell != Farewell::Left {
            if let Some(reason) = self.abort_reason() {
                return Err(reason);
            }
            if self.is_dead() {
                return Err(Error::new(
                    Status::PeerLost,
                    "the control channel has closed",
                ));
            }
            let left = match deadline {
                Some(d) => d.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return Err(stayed(&farewell));
            }
            farewell = self
                .farewell_changed
                .wait_timeout(farewell, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }
}

/// Why leaving takes too long.
fn stayed(farewell: &Farewell) -> Error {
    let Farewell::Leaving(Some(rank)) = farewell else {
        let text = "not every rank left within the deadline";
        return Error::new(Status::MeetTimeout, text);
    };
    let text = format!("rank {rank} did not leave within the deadline");
    Error::new(Status::MeetTimeout, text).by(*rank)
}

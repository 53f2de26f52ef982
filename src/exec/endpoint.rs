//! The transport of one rank: its data plane and its control channel.
//!
//! ```text
//!   Endpoint::new ──► greeting() ──► (the caller gathers all) ──► meet()
//!                └──► rendezvous(address, token) ─────────────────┘
//!                                                                  │
//!        sessions come and go ◄────────────────────────────────────┘
//!                └──► finalize() or drop
//! ```
//!
//! An endpoint outlives its sessions. After an abort, a lost peer or a stall
//! it stays aborted, and every call reports the first reason: make a new one
//! on every rank and meet again.

use super::flight::Flight;
use super::member::{Member, rank_outcome};
use super::request::State;
use super::{Outcome, instant_in};
use crate::device::fence::AbortCell;
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;
use crate::transport::control::{Control, Listener, Waker, random_u128};
use crate::transport::greeting::{self, Greeting};
use crate::transport::{Bootstrap, Kind, Transport, rendezvous};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every rank of a transport, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSet {
    ranks: Arc<[Rank]>,
}

impl RankSet {
    /// Ranks `0..count`.
    pub fn count(count: u32) -> Result<RankSet> {
        check_count(count as usize)?;
        Ok(RankSet {
            ranks: (0..count).map(Rank).collect(),
        })
    }

    /// These ranks, in any order.
    pub fn list(ranks: &[Rank]) -> Result<RankSet> {
        check_count(ranks.len())?;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::invalid(format!(
                "rank {} is listed more than once",
                pair[0]
            )));
        }
        if let Some(high) = sorted.last().filter(|r| r.0 >= RANK_COUNT_MAX) {
            return Err(Error::limit(format!(
                "rank {high} is listed; ranks are below {RANK_COUNT_MAX}"
            )));
        }
        Ok(RankSet {
            ranks: sorted.into(),
        })
    }

    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    pub fn contains(&self, rank: Rank) -> bool {
        self.index_of(rank).is_some()
    }

    pub fn index_of(&self, rank: Rank) -> Option<usize> {
        self.ranks.binary_search(&rank).ok()
    }

    pub fn as_slice(&self) -> &[Rank] {
        &self.ranks
    }

    /// The rank that coordinates.
    pub fn lowest(&self) -> Rank {
        self.ranks.first().copied().unwrap_or_default()
    }
}

fn check_count(count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::invalid("a transport needs at least one rank"));
    }
    if count > RANK_COUNT_MAX as usize {
        return Err(Error::limit(format!(
            "{count} ranks are listed; at most {RANK_COUNT_MAX} are allowed"
        )));
    }
    Ok(())
}

/// The transport of one rank. Cheap to clone; sessions keep it alive. When the
/// last clone goes, the rank says goodbye without waiting for anybody.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: Arc<EndpointInner>,
}

#[derive(Debug)]
struct EndpointInner {
    rank: Rank,
    ranks: RankSet,
    kind: Kind,
    greeting: Vec<u8>,
    phase: Mutex<Phase>,
    /// An abort from before the ranks have met.
    early: AbortCell,
}

#[derive(Debug)]
enum Phase {
    /// Has an address, knows nobody.
    Alone {
        bootstrap: Box<dyn Bootstrap>,
        listener: Listener,
    },
    /// Connected to everybody.
    Met {
        shared: Arc<Shared>,
        control: Control,
    },
    /// Meeting is under way or has failed.
    Spent,
}

impl Endpoint {
    /// The endpoint of `rank`, one of `ranks`. Opens a socket to be found at;
    /// talks to nobody yet.
    pub fn new(rank: Rank, ranks: RankSet, bootstrap: Box<dyn Bootstrap>) -> Result<Endpoint> {
        if !ranks.contains(rank) {
            return Err(Error::invalid(format!(
                "rank {rank} is none of the {} ranks of the transport",
                ranks.len()
            )));
        }
        let kind = bootstrap.kind();
        let listener = Listener::open(kind)?;
        let greeting = Greeting {
            kind,
            rank,
            ranks: greeting::hash_ranks(ranks.as_slice()),
            token: random_u128()?,
            control: listener.address()?,
            data: bootstrap.address().to_vec(),
        };
        Ok(Endpoint {
            inner: Arc::new(EndpointInner {
                rank,
                ranks,
                kind,
                greeting: greeting.encode()?,
                phase: Mutex::new(Phase::Alone {
                    bootstrap,
                    listener,
                }),
                early: AbortCell::default(),
            }),
        })
    }

    pub fn rank(&self) -> Rank {
        self.inner.rank
    }

    pub fn ranks(&self) -> &RankSet {
        &self.inner.ranks
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// What the other ranks need to find this one: at most 512 bytes, to be
    /// gathered by any means. Secret: whoever has it can pose as a peer.
    pub fn greeting(&self) -> &[u8] {
        &self.inner.greeting
    }

    /// Meets the ranks that `greetings` come from, this one included, in any
    /// order. Every rank must be given the same greetings. Can be tried once.
    pub fn meet<G: AsRef<[u8]>>(&self, greetings: &[G], deadline_ns: u64) -> Result<()> {
        let met = greeting::gather(self.inner.kind, self.inner.ranks.as_slice(), greetings)?;
        let own = &met.greetings[self.index()?];
        if own.encode()? != self.inner.greeting {
            return Err(Error::invalid(format!(
                "the greeting of rank {} is not the one that this endpoint gave",
                self.inner.rank
            )));
        }
        let deadline = meet_deadline(deadline_ns);
        let (bootstrap, listener) = self.take_alone()?;
        let control = self.connect(&met, &listener, deadline)?;
        drop(listener);
        let peers: Vec<(Rank, Vec<u8>)> = met
            .greetings
            .into_iter()
            .map(|g| (g.rank, g.data))
            .collect();
        let transport = bootstrap.meet(self.inner.rank, &peers, met.group, deadline)?;
        let shared = Arc::new(Shared::new(
            self.inner.rank,
            self.inner.ranks.clone(),
            transport,
        )?);
        let member = Member::new(shared.clone());
        let control = control.run(shared.waker.clone(), Box::new(member))?;
        let mut phase = self.inner.lock();
        let early = self.inner.early.reason();
        if let Some(reason) = &early {
            shared.abort(reason.clone());
        }
        *phase = Phase::Met { shared, control };
        early.map_or(Ok(()), Err)
    }

    /// Meets all ranks over TCP: the lowest listens at `address`
    /// (`host:port`), the others come to it. `token` is a secret that all
    /// ranks were given; it never travels.
    pub fn rendezvous(&self, address: &str, token: &[u8], deadline_ns: u64) -> Result<()> {
        let deadline = meet_deadline(deadline_ns);
        let ranks = self.inner.ranks.as_slice();
        let own = (self.inner.rank, self.inner.greeting.as_slice());
        let greetings = rendezvous::gather(own, ranks, address, token, deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.meet(&greetings, left.as_nanos() as u64)
    }

    /// Stops this rank's transport and everything that uses it, here and on
    /// all peers. Any thread, any time; never waits. The first reason wins. A
    /// meeting that is under way fails with it when it ends, and then tells
    /// the peers.
    pub fn abort(&self, reason: &str) {
        let error = Error::new(Status::Aborted, reason).by(self.inner.rank);
        match &*self.inner.lock() {
            Phase::Met { shared, .. } => shared.abort(error),
            Phase::Alone { .. } | Phase::Spent => drop(self.inner.early.set(error)),
        }
    }

    /// Why the endpoint is aborted, if it is.
    pub fn abort_reason(&self) -> Option<Error> {
        match &*self.inner.lock() {
            Phase::Met { shared, .. } => shared.abort_reason(),
            Phase::Alone { .. } | Phase::Spent => self.inner.early.reason(),
        }
    }

    /// Leaves together with all other ranks: waits until every rank has called
    /// this, at most `deadline_ns`. No request can be prepared any more.
    pub fn finalize(&self, deadline_ns: u64) -> Result<()> {
        self.shared()?
            .leave(instant_in(Instant::now(), deadline_ns))
    }

    /// For tests: lets the control channel misbehave.
    #[doc(hidden)]
    pub fn inject(&self, fault: Fault) {
        if let Phase::Met { shared, control } = &*self.inner.lock() {
            control.inject(fault);
            shared.waker.wake();
        }
    }

    /// The data plane, once the ranks have met.
    pub fn transport(&self) -> Result<Arc<dyn Transport>> {
        Ok(self.shared()?.transport.clone())
    }

    pub(crate) fn shared(&self) -> Result<Arc<Shared>> {
        match &*self.inner.lock() {
            Phase::Met { shared, .. } => Ok(shared.clone()),
            Phase::Alone { .. } | Phase::Spent => Err(Error::new(
                Status::InvalidState,
                "the transport has not met its peers",
            )),
        }
    }

    fn index(&self) -> Result<usize> {
        let index = self.inner.ranks.index_of(self.inner.rank);
        index.ok_or_else(|| Error::internal("the endpoint is not among its ranks"))
    }

    fn take_alone(&self) -> Result<(Box<dyn Bootstrap>, Listener)> {
        let mut phase = self.inner.lock();
        if let Some(reason) = self.inner.early.reason() {
            return Err(reason);
        }
        match std::mem::replace(&mut *phase, Phase::Spent) {
            Phase::Alone {
                bootstrap,
                listener,
            } => Ok((bootstrap, listener)),
            other => {
                *phase = other;
                Err(Error::new(
                    Status::InvalidState,
                    "the transport has met its peers, or tried to",
                ))
            }
        }
    }

    fn connect(
        &self,
        met: &greeting::Gathered,
        listener: &Listener,
        deadline: Instant,
    ) -> Result<crate::transport::control::Tree> {
        let addresses = |i: usize| met.greetings[i].control.clone();
        let ranks = self.inner.ranks.as_slice();
        crate::transport::control::Tree::connect(
            ranks,
            self.index()?,
            addresses,
            met.group,
            listener,
            deadline,
        )
    }
}

pub use crate::transport::control::Fault;

/// An absolute deadline that is always there: meeting for ever means for 34
/// years.
fn meet_deadline(ns: u64) -> Instant {
    let now = Instant::now();
    instant_in(now, ns).unwrap_or(now + Duration::from_secs(1 << 30))
}

impl EndpointInner {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    Leaving,
    Left,
}

impl Shared {
    fn new(rank: Rank, ranks: RankSet, transport: Arc<dyn Transport>) -> Result<Shared> {
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
        inner.finish(Instant::now(), Some(reason), rank, Outcome::Torn);
        drop(inner);
        flight.notify();
    }

    /// Refuses new requests once the rank is leaving.
    pub fn check_staying(&self) -> Result<()> {
        let farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
        match *farewell {
            Farewell::Staying => Ok(()),
            Farewell::Leaving | Farewell::Left => Err(Error::new(
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

    fn leave(&self, deadline: Option<Instant>) -> Result<()> {
        if let Some(reason) = self.abort_reason() {
            return Err(reason);
        }
        self.take_seat()?;
        {
            let mut farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
            if *farewell == Farewell::Staying {
                *farewell = Farewell::Leaving;
            }
        }
        self.orders().leave = true;
        self.waker.wake();
        let mut farewell = self.farewell.lock().unwrap_or_else(PoisonError::into_inner);
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
                return Err(Error::new(
                    Status::MeetTimeout,
                    "not every rank left within the deadline",
                ));
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

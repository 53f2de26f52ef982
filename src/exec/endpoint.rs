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

use super::instant_in;
use super::member::Member;
use super::message::Message;
use super::rank_set::RankSet;
use super::shared::Shared;
use crate::device::fence::AbortCell;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::control::{Alarm, Control, LastWords, Listener, random_u128};
use crate::transport::greeting::{self, Greeting};
use crate::transport::patience::Patience;
use crate::transport::{Bootstrap, Kind, Transport, rendezvous};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
        let patience = Patience::new(deadline, &self.inner.early);
        let mut control = self.connect(&met, &listener, patience)?;
        drop(listener);
        let peers: Vec<(Rank, Vec<u8>)> = met
            .greetings
            .into_iter()
            .map(|g| (g.rank, g.data))
            .collect();
        let rank = self.inner.rank;
        let transport = match bootstrap.abort_cell() {
            None => bootstrap.meet(rank, &peers, met.group, deadline)?,
            Some(abort) => {
                let alarm = Alarm {
                    early: &self.inner.early,
                    abort: &abort,
                };
                let work = || bootstrap.meet(rank, &peers, met.group, deadline);
                control.keep_vigil(alarm, &Words, work)?
            }
        };
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
        let patience = Patience::new(deadline, &self.inner.early);
        let greetings = rendezvous::gather(own, ranks, address, token, patience)?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.meet(&greetings, left.as_nanos() as u64)
    }

    /// Stops this rank's transport and everything that uses it, here and on
    /// all peers. Any thread, any time; never waits. The first reason wins. A
    /// meeting that is under way fails with it at once; its peers hear of it,
    /// or see that this rank is gone.
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
    /// this, at most `deadline_ns`; after a `MeetTimeout` it may be called again,
    /// to wait on. No request can be prepared any more.
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
        patience: Patience<'_>,
    ) -> Result<crate::transport::control::Tree> {
        let addresses = |i: usize| met.greetings[i].control.clone();
        let ranks = self.inner.ranks.as_slice();
        crate::transport::control::Tree::connect(
            ranks,
            self.index()?,
            addresses,
            met.group,
            listener,
            (patience, &Words),
        )
    }
}

pub use crate::transport::control::Fault;

/// Failures of a meeting, as those of a transport are said later.
struct Words;

impl LastWords for Words {
    fn say(&self, reason: &Error) -> Vec<u8> {
        let mut frame = Vec::new();
        Message::abort(reason).encode(&mut frame);
        frame
    }

    fn read(&self, frame: &[u8]) -> Option<Error> {
        Message::decode(frame).ok()?.abort_reason()
    }
}

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

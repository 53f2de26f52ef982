//! Where the ranks of one process find each other.

use super::LoopbackTransport;
use super::member::Member;
use super::runner::Runner;
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;
use crate::transport::Fault;
use crate::transport::queue::{Faults, lock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

/// The ranks of one process that reach each other.
#[derive(Debug)]
pub struct LoopbackHub {
    pub(super) ranks: u32,
    pub(super) is_staged: bool,
    pub(super) members: Mutex<BTreeMap<Rank, Arc<Member>>>,
    /// Told whenever a member attaches.
    pub(super) attached: Condvar,
    /// A member has left or was aborted: nobody joins any more.
    pub(super) is_broken: AtomicBool,
    pub(super) faults: Faults,
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

    pub(super) fn member(&self, rank: Rank) -> Option<Arc<Member>> {
        lock(&self.members).get(&rank).cloned()
    }
}

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

mod hub;
mod member;
mod moving;
mod runner;

pub use hub::LoopbackHub;

use super::queue::{QUEUE_CAPACITY, check_step, lock};
use super::waits::Waits;
use super::{Progress, Transport};
use crate::device::Binding;
use crate::device::fence::{AbortCell, Fence, Watch};
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use member::{Member, Posted};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest sleep of a progress thread that has work. Everything it waits
/// for wakes it; this is the belt to those braces.
const NAP: Duration = Duration::from_millis(50);

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

/// In place of a rank.
const NOBODY: u32 = u32::MAX;

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

    fn waits_for(&self) -> Waits {
        let me = &self.member;
        let sender = me.waits_for.load(Ordering::Relaxed);
        if sender != NOBODY {
            return Waits::from(Some(Rank(sender)));
        }
        let oldest = lock(&me.flight)
            .front()
            .filter(|step| step.has_received && step.sends_left > 0)
            .map(|step| step.value);
        Waits::from(oldest.and_then(|step| self.slow_receiver(step)))
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

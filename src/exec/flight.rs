//! One execution, as the caller's threads and the control thread share it.
//!
//! A flight is allocated with its request and used for every version. All of
//! its state is behind one short lock; nobody waits while holding it, except
//! on `changed`.

use super::Outcome;
use super::message::Key;
use super::request::State;
use super::session::Slot;
use crate::device::Binding;
use crate::device::fence::Fence;
use crate::error::Error;
use smallvec::SmallVec;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One execution of one loaded plan.
#[derive(Debug)]
pub(crate) struct Flight {
    pub slot: Arc<Slot>,
    inner: Mutex<FlightInner>,
    changed: Condvar,
}

/// When things happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub prepared: Option<Instant>,
    pub ready: Option<Instant>,
    pub started: Option<Instant>,
    pub moved: Option<Instant>,
    pub finished: Option<Instant>,
}

/// The last fences of a step: bytes exchanged, and local work done.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepFences {
    pub transport: Fence,
    pub device: Fence,
}

impl StepFences {
    fn is_over(&self) -> bool {
        self.transport.is_reached() && self.device.is_reached()
    }
}

#[derive(Debug)]
pub(crate) struct FlightInner {
    pub state: State,
    pub key: Key,
    pub version: u64,
    pub flags: u32,
    pub agree_ns: u64,
    pub stall_ns: u64,
    pub binding: Option<Arc<Binding>>,
    /// By step, as far as enqueued.
    pub steps: Vec<StepFences>,
    /// Reached when the last piece of device work, digests included, is done.
    pub last: Fence,
    /// True once `start` has enqueued everything it is going to.
    pub is_enqueued: bool,
    /// Leading steps whose fences were seen reached, and not because of an abort.
    pub steps_done: u32,
    pub error: Option<Error>,
    pub rank_outcome: Option<Outcome>,
    pub copy_outcome: Option<Outcome>,
    pub times: Times,
    /// Published digest of the version, by tensor, if it was verified.
    pub digests: Vec<u64>,
    pub has_digests: bool,
    pub is_unchanged: Option<bool>,
    /// True if work may still be in a queue although the request has ended.
    pub is_undrained: bool,
}

impl Flight {
    pub fn new(slot: Arc<Slot>) -> Flight {
        let steps = slot.program.steps.len();
        let tensors = slot.program.tensors.len();
        Flight {
            inner: Mutex::new(FlightInner {
                state: State::Idle,
                key: Key::default(),
                version: 0,
                flags: 0,
                agree_ns: 0,
                stall_ns: 0,
                binding: None,
                steps: Vec::with_capacity(steps),
                last: Fence::default(),
                is_enqueued: false,
                steps_done: 0,
                error: None,
                rank_outcome: None,
                copy_outcome: None,
                times: Times::default(),
                digests: Vec::with_capacity(tensors),
                has_digests: false,
                is_unchanged: None,
                is_undrained: false,
            }),
            changed: Condvar::new(),
            slot,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, FlightInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits that the state has changed.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change, at most `timeout`.
    pub fn wait<'a>(
        &self,
        guard: MutexGuard<'a, FlightInner>,
        timeout: Duration,
    ) -> MutexGuard<'a, FlightInner> {
        self.changed
            .wait_timeout(guard, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl FlightInner {
    /// Forgets the previous version.
    pub fn reset(&mut self, now: Instant) {
        self.steps.clear();
        self.last = Fence::default();
        self.is_enqueued = false;
        self.steps_done = 0;
        self.error = None;
        self.rank_outcome = None;
        self.copy_outcome = None;
        self.has_digests = false;
        self.is_unchanged = None;
        self.is_undrained = false;
        self.times = Times {
            prepared: Some(now),
            ..Times::default()
        };
    }

    /// Looks at the fences; true if all enqueued work is done.
    pub fn look(&mut self) -> bool {
        let rest = &self.steps[self.steps_done as usize..];
        let done = rest.iter().take_while(|step| step.is_over()).count();
        let are_over = done == rest.len();
        // In this order: fences that are reached because of an abort say nothing
        // of the bytes.
        if let Some(binding) = self.binding.as_ref().filter(|b| !b.abort.is_set()) {
            self.steps_done += done as u32;
            let steps = u64::from(self.steps_done);
            binding
                .marks
                .steps_done
                .store(steps, std::sync::atomic::Ordering::Release);
        }
        are_over && self.is_enqueued && self.last.is_reached()
    }

    /// True if bytes of the first unfinished step have still to be exchanged;
    /// else it waits for nothing but local work.
    pub fn exchanges(&self) -> bool {
        let step = self.steps.get(self.steps_done as usize);
        step.is_some_and(|step| !step.transport.is_reached())
    }

    /// The first fence that is not reached yet.
    pub fn next_fence(&self) -> Option<Fence> {
        let rest = &self.steps[self.steps_done as usize..];
        let mut fences = rest.iter().flat_map(|step| [&step.transport, &step.device]);
        match fences.find(|fence| !fence.is_reached()) {
            Some(fence) => Some(fence.clone()),
            None if self.is_enqueued && !self.last.is_reached() => Some(self.last.clone()),
            None => None,
        }
    }

    /// The last fence of every queue that has work of the request.
    pub fn ends(&self) -> SmallVec<[Fence; 4]> {
        let mut ends: SmallVec<[Fence; 4]> = SmallVec::new();
        let fences = |step: &StepFences| [step.device.clone(), step.transport.clone()];
        let steps = self.steps.iter().rev().flat_map(fences);
        for fence in std::iter::once(self.last.clone()).chain(steps) {
            let Some((line, _)) = fence.point() else {
                continue;
            };
            let is_of = |f: &Fence| f.point().is_some_and(|(l, _)| Arc::ptr_eq(l, line));
            if !ends.iter().any(is_of) {
                ends.push(fence);
            }
        }
        ends
    }

    /// Ends the request.
    pub fn finish(&mut self, now: Instant, error: Option<Error>, rank: Outcome, copy: Outcome) {
        self.state = if error.is_none() {
            State::Done
        } else {
            State::Failed
        };
        self.error = error;
        self.rank_outcome = Some(rank);
        self.copy_outcome = Some(copy);
        self.times.finished = Some(now);
    }
}

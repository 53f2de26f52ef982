//! The steps of one rank that wait for their turn.

use super::{Fault, FaultKind};
use crate::device::Binding;
use crate::device::fence::{Fence, Timeline};
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Items that fit into a queue before it grows.
pub(super) const QUEUE_CAPACITY: usize = 64;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a mutex holds, of which there is no other user.
pub(super) fn get_mut<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// One step to be done.
#[derive(Debug)]
pub(super) struct Queued {
    /// Its point on the timeline.
    pub value: u64,
    pub binding: Arc<Binding>,
    pub step: u32,
    pub sequence: u64,
    pub after: Fence,
}

/// Steps in order, and how far they have come.
#[derive(Debug)]
pub(super) struct StepQueue {
    items: Mutex<VecDeque<Queued>>,
    enqueued: AtomicU64,
    is_stopped: AtomicBool,
    pub timeline: Arc<Timeline>,
}

impl StepQueue {
    pub(super) fn new() -> StepQueue {
        StepQueue {
            items: Mutex::new(VecDeque::with_capacity(QUEUE_CAPACITY)),
            enqueued: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            timeline: Arc::default(),
        }
    }

    /// Adds a step. Once stopped, the fence is reached from the start.
    pub(super) fn push(
        &self,
        binding: &Arc<Binding>,
        step: u32,
        sequence: u64,
        after: &Fence,
    ) -> Fence {
        let mut items = lock(&self.items);
        if self.is_stopped() {
            return Fence::default();
        }
        let value = self.enqueued.fetch_add(1, Ordering::AcqRel) + 1;
        items.push_back(Queued {
            value,
            binding: binding.clone(),
            step,
            sequence,
            after: after.clone(),
        });
        Fence::new(&self.timeline, value)
    }

    /// The next step, if its fence is reached.
    pub(super) fn pop_ready(&self) -> Option<Queued> {
        let mut items = lock(&self.items);
        items.front().filter(|step| step.after.is_reached())?;
        items.pop_front()
    }

    /// Takes no more steps; returns those that wait.
    pub(super) fn stop(&self) -> VecDeque<Queued> {
        let mut items = lock(&self.items);
        self.is_stopped.store(true, Ordering::SeqCst);
        std::mem::take(&mut items)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    pub(super) fn enqueued(&self) -> u64 {
        self.enqueued.load(Ordering::Acquire)
    }

    /// Reaches the fences of everything that was enqueued. After [`stop`](StepQueue::stop).
    pub(super) fn release(&self) {
        self.timeline.advance(self.enqueued());
    }

    pub(super) fn done(&self) -> u64 {
        self.timeline.reached()
    }
}

/// Refuses steps that do not exist and, where the transport does not gather,
/// packed messages without staging.
pub(super) fn check_step(binding: &Binding, step: u32, gathers: bool) -> Result<()> {
    let program = &binding.program;
    let Some(at) = program.steps.get(step as usize) else {
        return Err(Error::internal(format!(
            "step {step} of a program of {} steps",
            program.steps.len()
        )));
    };
    let mut packed = program.messages_of(at).iter().filter(|m| !m.is_direct);
    if !gathers && !binding.is_staged() && packed.next().is_some() {
        return Err(Error::new(
            Status::InvalidState,
            format!("step {step} is packed and no staging is bound"),
        ));
    }
    Ok(())
}

/// Faults that wait for their step.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(super) fn add(&self, fault: Fault) {
        lock(&self.0).push(fault);
    }

    pub(super) fn take(&self, rank: Rank, step: u64) -> Option<FaultKind> {
        let mut faults = lock(&self.0);
        let i = faults
            .iter()
            .position(|f| f.rank == rank && f.step == step)?;
        Some(faults.swap_remove(i).kind)
    }
}

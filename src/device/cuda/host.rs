//! Source memory on the host that GPUs do not reach.
//!
//! It is gathered into pinned memory by the processor, in the order of the
//! stream, and read from there:
//!
//! ```text
//!   stream   gather (host)   kernel: pinned ─► staging   ...
//! ```

use crate::device::copy::{Stop, gather_run};
use crate::device::digest::digest_walk;
use crate::device::fence::AbortCell;
use crate::device::walk::Walk;
use crate::device::{DigestSums, MemoryRange};
use crate::layout::dtype::Dtype;
use crate::layout::tensor::IndexBox;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What the host does in one place of a stream.
#[derive(Debug)]
pub struct HostTask {
    pub items: Vec<HostItem>,
    pub abort: Arc<AbortCell>,
    pub sums: Arc<DigestSums>,
}

/// One box of it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all items are gathers, and a box for each would be an allocation"
)]
pub enum HostItem {
    /// Gather the bytes of a walk.
    Gather { from: Walk, to: MemoryRange },
    /// Sum the elements of a walk.
    Sum(Box<HostSum>),
}

/// A digest item in host memory.
#[derive(Debug)]
pub struct HostSum {
    pub memory: Walk,
    pub shape: Vec<u64>,
    pub bounds: IndexBox,
    pub types: (Dtype, Dtype),
    pub tensor: usize,
    pub is_once: bool,
    pub weight: u64,
}

impl HostTask {
    fn run(&self) {
        let cells = [&*self.abort];
        for item in &self.items {
            if self.abort.is_set() {
                return;
            }
            match item {
                HostItem::Gather { from, to } => {
                    let target = with_exposed_provenance_mut(to.address);
                    // SAFETY: bound memory that was checked to hold the walk,
                    // and pinned memory of ours; the stream's order keeps
                    // others away from both.
                    unsafe { gather_run(from, target, to.bytes) };
                }
                HostItem::Sum(sum) => {
                    let memory = sum.memory.clone();
                    // SAFETY: as above.
                    let total = unsafe {
                        digest_walk(&sum.shape, &sum.bounds, memory, sum.types, Stop(&cells))
                    };
                    let Ok(total) = total else { return };
                    if sum.is_once {
                        self.sums.once[sum.tensor].fetch_add(total, Ordering::Relaxed);
                    }
                    let weighted = total.wrapping_mul(sum.weight);
                    self.sums.sent[sum.tensor].fetch_add(weighted, Ordering::Relaxed);
                }
            }
        }
    }
}

/// What the stream calls.
///
/// # Safety
///
/// `task` is a [`HostTask`] that lives until the stream has passed.
pub unsafe extern "C" fn run_host_task(task: *mut c_void) {
    // SAFETY: the caller's contract.
    let task = unsafe { &*task.cast::<HostTask>() };
    if catch_unwind(AssertUnwindSafe(|| task.run())).is_err() {
        task.abort.set(crate::error::Error::internal(
            "gathering host memory panicked",
        ));
    }
}

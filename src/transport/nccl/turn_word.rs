//! How far a stream has come among the turns of a step.
//!
//! NCCL does not say which group its kernel is in, and a step may have many. So
//! the stream writes a word before each turn, which is read when a rank has to
//! say whom it waits for.

use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::Enqueue;
use crate::device::cuda::words::Word;
use crate::error::Result;

/// The word: 0 before the first turn of a step, else the number of the turn that
/// has begun, from 1 on.
#[derive(Debug)]
pub(super) struct TurnWord(Word);

impl TurnWord {
    pub(super) fn new(gpu: &Gpu) -> Result<TurnWord> {
        // A stream that never ends may write it when we are gone.
        Ok(TurnWord(Word::kept(gpu)?))
    }

    /// Turn `turn`, from 0 on, of a step begins where the stream is.
    pub(super) fn begin(&self, queue: &Enqueue<'_>, turn: usize) -> Result<()> {
        self.write(queue, turn as u64 + 1)
    }

    /// The step is over where the stream is.
    pub(super) fn reset(&self, queue: &Enqueue<'_>) -> Result<()> {
        self.write(queue, 0)
    }

    fn write(&self, queue: &Enqueue<'_>, value: u64) -> Result<()> {
        queue
            .gpu()
            .write_value(queue.stream(), self.0.address(), value)
    }

    /// The turn that the stream is in; `None` before the first.
    pub(super) fn get(&self) -> Option<usize> {
        usize::try_from(self.0.get()).ok()?.checked_sub(1)
    }
}

//! Device and pinned memory of ours, kept for the next use.
//!
//! Giving memory back to CUDA waits for the GPU; so blocks go back to a list,
//! and the list goes back when the device does, or when CUDA has no more. If
//! the GPU has work that does not end, the memory is lost instead.

use super::gpu::Gpu;
use super::queue::is_stuck;
use crate::device::MemoryRange;
use crate::error::{Error, Result, Status};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What kind of memory a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    Device,
    Pinned,
}

const SMALL_BYTES_MAX: u64 = 1 << 20;
const GRANULE_BYTES: u64 = 2 << 20;

/// Blocks of one kind on one GPU.
#[derive(Debug)]
pub struct Pool {
    gpu: Arc<Gpu>,
    kind: PoolKind,
    free: Mutex<Vec<MemoryRange>>,
}

/// A block, back in its pool when it is dropped.
#[derive(Debug)]
pub struct Block {
    range: MemoryRange,
    pool: Arc<Pool>,
}

impl Pool {
    pub fn new(gpu: &Arc<Gpu>, kind: PoolKind) -> Arc<Pool> {
        Arc::new(Pool {
            gpu: gpu.clone(),
            kind,
            free: Mutex::default(),
        })
    }

    /// At least `bytes` bytes, aligned to 256.
    pub fn take(self: &Arc<Pool>, bytes: u64) -> Result<Block> {
        let bytes = block_bytes(bytes)?;
        let mut free = self.lock();
        let held = free.iter().position(|r| r.bytes == bytes);
        let range = match held {
            Some(i) => free.swap_remove(i),
            None => self.allocate(bytes).or_else(|e| {
                if e.status != Status::OutOfMemory || free.is_empty() {
                    return Err(e);
                }
                self.give_back(&mut free);
                self.allocate(bytes)
            })?,
        };
        drop(free);
        Ok(Block {
            range,
            pool: self.clone(),
        })
    }

    fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        let address = match self.kind {
            PoolKind::Device => self.gpu.allocate(bytes)?,
            PoolKind::Pinned => self.gpu.allocate_pinned(bytes)?,
        };
        Ok(MemoryRange { address, bytes })
    }

    /// Gives blocks back to CUDA.
    fn give_back(&self, blocks: &mut Vec<MemoryRange>) {
        let blocks = std::mem::take(blocks);
        if is_stuck(self.gpu.index) {
            return;
        }
        for range in blocks {
            match self.kind {
                PoolKind::Device => self.gpu.free(range.address),
                PoolKind::Pinned => self.gpu.free_pinned(range.address),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<MemoryRange>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Small blocks come in powers of two, so that they fit the next use. Large
/// ones are staging, which has a budget: they are rounded to what CUDA hands
/// out at once.
fn block_bytes(bytes: u64) -> Result<u64> {
    let rounded = match bytes {
        ..=SMALL_BYTES_MAX => Some(bytes.max(256).next_power_of_two()),
        _ => bytes.checked_next_multiple_of(GRANULE_BYTES),
    };
    rounded.ok_or_else(|| Error::limit(format!("a block of {bytes} bytes")))
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut free = std::mem::take(&mut *self.lock());
        self.give_back(&mut free);
    }
}

impl Block {
    pub fn address(&self) -> usize {
        self.range.address
    }

    pub fn range(&self) -> MemoryRange {
        self.range
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.lock().push(self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_take_hardly_more_than_was_asked_for() {
        assert_eq!(block_bytes(0), Ok(256));
        assert_eq!(block_bytes(257), Ok(512));
        assert_eq!(block_bytes(1 << 20), Ok(1 << 20));
        assert_eq!(block_bytes((1 << 20) + 1), Ok(2 << 20));
        assert_eq!(block_bytes(5 << 30), Ok(5 << 30));
        assert_eq!(block_bytes((5 << 30) + 1), Ok((5 << 30) + (2 << 20)));
        assert_eq!(
            block_bytes(u64::MAX).unwrap_err().status,
            Status::LimitExceeded
        );
    }
}

//! Device and pinned memory of ours, kept for the next use.
//!
//! Giving memory back to CUDA waits for the GPU; so blocks go back to a list,
//! and the list goes back when the device does.

use super::gpu::Gpu;
use crate::device::MemoryRange;
use crate::error::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What kind of memory a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    Device,
    Pinned,
}

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
        let bytes = bytes.max(256).next_power_of_two();
        let mut free = self.lock();
        let held = free.iter().position(|r| r.bytes == bytes);
        let range = match held {
            Some(i) => free.swap_remove(i),
            None => MemoryRange {
                address: match self.kind {
                    PoolKind::Device => self.gpu.allocate(bytes)?,
                    PoolKind::Pinned => self.gpu.allocate_pinned(bytes)?,
                },
                bytes,
            },
        };
        drop(free);
        Ok(Block {
            range,
            pool: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<MemoryRange>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for range in std::mem::take(&mut *self.lock()) {
            match self.kind {
                PoolKind::Device => self.gpu.free(range.address),
                PoolKind::Pinned => self.gpu.free_pinned(range.address),
            }
        }
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

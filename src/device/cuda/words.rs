//! Words that host and GPU both read and write: pinned memory, eight bytes on
//! a cache line of their own each.

use super::gpu::Gpu;
use crate::error::Result;
use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LINE: usize = 64;
const PAGE: usize = 4096;

/// The words of this process. Their pages are never given back: a stream of
/// the caller's may still be waiting for one when all of ours are gone.
#[derive(Debug, Default)]
struct Words {
    free: Vec<usize>,
}

static WORDS: Mutex<Words> = Mutex::new(Words { free: Vec::new() });

fn words() -> MutexGuard<'static, Words> {
    WORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One word. Given back when it is dropped; nothing in a stream may refer to
/// it then.
#[derive(Debug)]
pub struct Word {
    address: usize,
    is_kept: bool,
}

impl Word {
    /// A word of zero.
    pub fn new(gpu: &Gpu) -> Result<Word> {
        let mut words = words();
        if words.free.is_empty() {
            let page = gpu.allocate_pinned(PAGE as u64)?;
            words.free.extend((page..page + PAGE).step_by(LINE));
        }
        // Not empty: a page was just added if it was.
        let address = words.free.pop().unwrap_or_default();
        let word = Word {
            address,
            is_kept: false,
        };
        word.set(0);
        Ok(word)
    }

    /// A word that no other use ever gets, for streams that may wait for it
    /// longer than we live.
    pub fn kept(gpu: &Gpu) -> Result<Word> {
        let mut word = Word::new(gpu)?;
        word.is_kept = true;
        Ok(word)
    }

    /// The same for host and GPU.
    pub fn address(&self) -> usize {
        self.address
    }

    pub fn get(&self) -> u64 {
        self.cell().load(Ordering::Acquire)
    }

    pub fn set(&self, value: u64) {
        self.cell().store(value, Ordering::Release);
    }

    fn cell(&self) -> &AtomicU64 {
        // SAFETY: an aligned word of pinned memory that lives as long as we,
        // touched by atomic accesses only.
        unsafe { &*with_exposed_provenance::<AtomicU64>(self.address) }
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        if !self.is_kept {
            words().free.push(self.address);
        }
    }
}

//! Memory of GPUs, and the streams that work on it.
//!
//! CUDA is found at run time; without it, making a [`CudaDevice`] says what is
//! missing. Work goes to one stream of ours; nothing ever waits for the GPU but
//! the one thread that looks at the words which streams write:
//!
//! ```text
//!   caller's stream   ... weights ready │                    │ may read them
//!                                       ▼                    ▲
//!   our stream                 wait │ pack │ ... │ unpack │ done
//!                                              ▲
//!   transport                       send, receive (its own stream, or a thread)
//! ```
//!
//! | file | noun |
//! |---|---|
//! | `gpu` | one GPU through the runtime's function table |
//! | `inspect` | what there is, for `weightsync doctor` |
//! | `place` | what kind of memory an address is |
//! | `words` | words that host and GPU both see |
//! | `queue` | a stream, its fences and gates |
//! | `job`, `kernels` | what kernels are told, and the kernels |
//! | `table`, `prepared` | the jobs of a binding, and how they are enqueued |
//! | `host` | source memory that the GPU does not reach |
//! | `pool` | device and pinned memory of ours |
//! | `ipc`, `channel` | memory of another process on the same host, and a ring in it |

pub mod channel;
pub mod gpu;
pub mod inspect;
pub mod ipc;
pub mod place;
pub mod queue;

mod host;
mod job;
mod kernels;
mod pool;
mod prepared;
mod table;
pub(crate) mod words;

pub use prepared::Prepared;

use super::fence::{AbortCell, Fence};
use super::{Binding, Device, MemoryRange, Work, work};
use crate::env;
use crate::error::{Error, Result};
use crate::layout::view::Memory;
use cuda_runtime_sys::Stream;
use gpu::Gpu;
use kernels::Kernels;
use pool::{Pool, PoolKind};
use queue::CudaQueue;
use std::any::Any;
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CopyPath {
    /// Kernels: one launch for all boxes of a step. They read the abort word
    /// before they write.
    #[default]
    Kernels,
    /// Copy engines, which take no multiprocessor from others: one call for
    /// each box. Casts, and boxes of many small rows, still go to kernels. A
    /// copy that is in the stream when the request is aborted still happens.
    Engines,
}

/// How a device behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct CudaOptions {
    pub copy_path: CopyPath,
}

impl CudaOptions {
    /// What the environment asks for.
    pub fn from_env() -> Result<CudaOptions> {
        Ok(CudaOptions {
            copy_path: match env::cuda_copies_by_engines()? {
                true => CopyPath::Engines,
                false => CopyPath::Kernels,
            },
        })
    }
}

/// A GPU of this process, with a stream of ours.
#[derive(Debug)]
pub struct CudaDevice {
    core: Arc<Core>,
    /// What `allocate` gave.
    blocks: Mutex<Vec<pool::Block>>,
}

#[derive(Debug)]
struct Core {
    options: CudaOptions,
    kernels: Kernels,
    // Drop, and so empty their streams, before the memory that is in use there.
    queue: CudaQueue,
    /// What peers send us, where a transport has our GPU copy it. Not the same
    /// stream: there an unpack may be waiting for just these bytes.
    arrivals: CudaQueue,
    device_pool: Arc<Pool>,
    pinned_pool: Arc<Pool>,
    gpu: Arc<Gpu>,
}

impl CudaDevice {
    /// GPU `index`, as CUDA numbers them in this process.
    pub fn new(index: u32, options: CudaOptions) -> Result<CudaDevice> {
        let gpu = Gpu::new(index)?;
        Ok(CudaDevice {
            core: Arc::new(Core {
                options,
                kernels: Kernels::load(&gpu)?,
                queue: CudaQueue::new(&gpu)?,
                arrivals: CudaQueue::new(&gpu)?,
                device_pool: Pool::new(&gpu, PoolKind::Device),
                pinned_pool: Pool::new(&gpu, PoolKind::Pinned),
                gpu,
            }),
            blocks: Mutex::default(),
        })
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.core.gpu
    }

    /// The stream that packs and unpacks.
    pub fn queue(&self) -> &CudaQueue {
        &self.core.queue
    }

    /// Copies bytes between any two places, and waits for it. For tests and
    /// tools; a transfer never does this.
    pub fn copy_now(&self, to: usize, from: usize, bytes: u64) -> Result<()> {
        let queue = self.core.queue.begin(&Fence::default(), &Arc::default())?;
        prepared::copy_bytes(&self.core.gpu, queue.stream(), to, from, bytes)?;
        let done = queue.end(None)?;
        while !done.wait(std::time::Duration::from_secs(1)) {}
        Ok(())
    }

    fn prepared(&self, binding: &Binding) -> Result<Arc<Prepared>> {
        if binding.mover().is_none() {
            let made = Arc::new(Prepared::new(&self.core, binding)?);
            // Somebody else may have been first; then theirs is taken.
            let _ = binding.mover.set(made);
        }
        let held = binding.mover().cloned();
        held.and_then(|mover| (mover as Arc<dyn Any + Send + Sync>).downcast().ok())
            .ok_or_else(|| Error::internal("a binding was prepared by another device"))
    }
}

impl Drop for CudaDevice {
    /// Aborts what is not done. Bindings may live on; their work is refused.
    fn drop(&mut self) {
        self.core.queue.close();
        self.core.arrivals.close();
    }
}

impl Device for CudaDevice {
    fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        if bytes == 0 {
            return Ok(MemoryRange::EMPTY);
        }
        let block = self.core.device_pool.take(bytes)?;
        let range = MemoryRange {
            address: block.address(),
            bytes,
        };
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.push(block);
        Ok(range)
    }

    fn free(&self, range: MemoryRange) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = blocks.iter().position(|b| b.address() == range.address) {
            drop(blocks.swap_remove(i));
        }
    }

    fn prepare(&self, binding: &Binding) -> Result<()> {
        self.prepared(binding).map(drop)
    }

    fn stages_host(&self) -> bool {
        true
    }

    fn check_memory(&self, range: MemoryRange, memory: Memory) -> Result<()> {
        place::check_declared(&self.core.gpu, range, memory)
    }

    fn check_stream(&self, stream: usize) -> Result<()> {
        let _current = self.core.gpu.enter()?;
        self.core.gpu.check_not_capturing(stream_of(stream))
    }

    fn enter(&self, stream: usize) -> Result<Fence> {
        self.core.queue.enter(stream_of(stream))
    }

    fn leave(&self, stream: usize, until: &[Fence], abort: &Arc<AbortCell>) -> Result<()> {
        self.core.queue.leave(stream_of(stream), until, abort)
    }

    fn enqueue(&self, work: Work, after: &Fence) -> Result<Fence> {
        work::check(&work)?;
        let prepared = self.prepared(&work.binding)?;
        prepared.enqueue(work.task, work.sequence, after)
    }
}

fn stream_of(stream: usize) -> Stream {
    Stream(with_exposed_provenance_mut(stream))
}

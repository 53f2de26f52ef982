//! A binding on its GPU: the table of its jobs, its words, and how its tasks
//! are put on a stream.

use super::gpu::Gpu;
use super::host::run_host_task;
use super::job::{Job, Launch, number_tiles};
use super::kernels::Which;
use super::place::{Place, place_of_range};
use super::pool::{Block, Pool};
use super::queue::{CudaQueue, Ending, Enqueue};
use super::table::{self, Copy2d, Round, Table};
use super::words::Word;
use super::{CopyPath, Core};
use crate::device::copy::End;
use crate::device::fence::{AbortCell, AbortMirror, Fence};
use crate::device::{Binding, DigestSums, MemoryRange, Mover, Task};
use crate::error::{Error, Result, Status};
use crate::plan::program::{BufferSlot, Message, Side};
use cuda_runtime_sys::{CopyKind, Stream};
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{from_ref, with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pinned memory through which source memory on the host goes.
const BOUNCE_BYTES: u64 = 32 << 20;

/// Message tables that are kept before all are forgotten.
const MESSAGE_COUNT_MAX: usize = 1 << 16;

/// What [`Ending::ended`] is told.
const SUMMED_SOURCE: u32 = 1;
const SUMMED_DESTINATION: u32 = 2;
const NOTHING: u32 = 0;

/// A binding on its GPU.
#[derive(Debug)]
pub struct Prepared {
    core: Arc<Core>,
    abort: Arc<AbortCell>,
    words: Arc<Words>,
    table: Table,
    /// The jobs, where the GPU reads them.
    jobs: Block,
    tensors: usize,
    sums: Arc<DigestSums>,
    /// Sums on the GPU, and where the host reads them.
    device_sums: Block,
    host_sums: Block,
    _bounce: Option<Block>,
    is_pageable: Vec<bool>,
    /// The last request whose first write is in a stream, for each of the two:
    /// whichever comes first on the GPU, marks it.
    marked: AtomicU64,
    marked_arrivals: AtomicU64,
    messages: Mutex<HashMap<Exchange, Arc<MessageTable>>>,
}

/// What the GPU reads and writes beside memory.
#[derive(Debug)]
struct Words {
    abort: Word,
    mark: Word,
}

impl AbortMirror for Words {
    fn aborted(&self) {
        self.abort.set(1);
    }
}

/// A request that work in one stream writes for.
#[derive(Clone, Copy, Debug)]
struct FirstWrite<'a> {
    sequence: u64,
    /// The last request that is marked in the stream.
    marked: &'a AtomicU64,
}

impl FirstWrite<'_> {
    /// True for whoever comes first, and has to mark the request.
    fn take(self) -> bool {
        self.marked.fetch_max(self.sequence, Ordering::Relaxed) < self.sequence
    }
}

/// A message between two bindings: the sender's, and both numbers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Exchange {
    sender: u64,
    sent: usize,
    received: usize,
}

#[derive(Debug)]
struct MessageTable {
    jobs: Block,
    job_count: u64,
    tiles: u64,
}

impl Prepared {
    pub(super) fn new(core: &Arc<Core>, binding: &Binding) -> Result<Prepared> {
        let is_pageable = classify(&core.gpu, binding)?;
        let tensors = binding.program.tensors.len();
        let sum_bytes = (3 * tensors * 8) as u64;
        let device_sums = core.device_pool.take(sum_bytes)?;
        let host_sums = core.pinned_pool.take(sum_bytes)?;
        let bounce = is_pageable
            .contains(&true)
            .then(|| core.pinned_pool.take(BOUNCE_BYTES))
            .transpose()?;
        let table = table::make(&table::Plan {
            binding,
            is_pageable: &is_pageable,
            bounce: bounce.as_ref().map_or(MemoryRange::EMPTY, Block::range),
            sums: device_sums.address(),
            uses_engines: core.options.copy_path == CopyPath::Engines,
        })?;
        let jobs = upload(core, &core.queue, &table.jobs)?;
        let words = Arc::new(Words {
            abort: Word::new(&core.gpu)?,
            mark: Word::new(&core.gpu)?,
        });
        let mirror: Arc<dyn AbortMirror> = words.clone();
        binding.abort.mirror(&mirror);
        Ok(Prepared {
            core: core.clone(),
            abort: binding.abort.clone(),
            words,
            table,
            jobs,
            tensors,
            sums: binding.sums.clone(),
            device_sums,
            host_sums,
            _bounce: bounce,
            is_pageable,
            marked: AtomicU64::new(0),
            marked_arrivals: AtomicU64::new(0),
            messages: Mutex::default(),
        })
    }

    fn queue(&self) -> &CudaQueue {
        &self.core.queue
    }

    /// Puts a task on the stream.
    pub(super) fn enqueue(
        self: &Arc<Prepared>,
        task: Task,
        sequence: u64,
        after: &Fence,
    ) -> Result<Fence> {
        let queue = self.queue().begin(after, &self.abort)?;
        if self.abort.is_set() {
            return queue.end(self.ending(NOTHING));
        }
        let ended = self.put(&queue, task, sequence)?;
        queue.end(self.ending(ended))
    }

    /// Keeps us alive until the stream has passed.
    fn ending(self: &Arc<Prepared>, what: u32) -> Option<(Arc<dyn Ending>, u32)> {
        Some((self.clone(), what))
    }

    fn put(&self, queue: &Enqueue<'_>, task: Task, sequence: u64) -> Result<u32> {
        let row = self.tensors as u64 * 8;
        let (is_digest, ended, sums) = match task {
            Task::DigestSource => (true, SUMMED_SOURCE, (0, 2 * row)),
            Task::DigestDestination => (true, SUMMED_DESTINATION, (2 * row, row)),
            Task::Pack { .. } | Task::Unpack { .. } | Task::Local { .. } | Task::Fill => {
                (false, NOTHING, (0, 0))
            }
        };
        if is_digest {
            self.clear_sums(queue.stream(), sums)?;
        }
        let writes = matches!(task, Task::Unpack { .. } | Task::Local { .. } | Task::Fill);
        let writes = writes.then_some(FirstWrite {
            sequence,
            marked: &self.marked,
        });
        for round in self.table.rounds_of(task) {
            self.round(queue.stream(), round, table::kernel_of(task), writes)?;
        }
        if is_digest {
            self.fetch_sums(queue.stream(), sums)?;
        }
        Ok(ended)
    }

    /// One round; `writes` says what it may be the first write of.
    fn round(
        &self,
        stream: Stream,
        round: &Round,
        which: Which,
        writes: Option<FirstWrite<'_>>,
    ) -> Result<()> {
        let gpu = &self.core.gpu;
        if let Some(host) = round.host {
            let task: *const c_void = from_ref(&self.table.hosts[host]).cast();
            gpu.check("cudaLaunchHostFunc", |r| {
                // SAFETY: the task is part of us, and the ending of this work
                // keeps us until the stream has passed.
                unsafe { (r.launch_host_func)(stream, run_host_task, task.cast_mut()) }
            })?;
        }
        if !round.copies.is_empty() {
            self.mark_by_stream(stream, writes)?;
            for copy in &self.table.copies[round.copies.clone()] {
                copy_2d(gpu, stream, copy)?;
            }
        }
        if round.jobs.is_empty() {
            return Ok(());
        }
        let launch = Launch {
            jobs: (self.jobs.address() + round.jobs.start * size_of::<Job>()) as u64,
            job_count: round.jobs.len() as u64,
            tiles: round.tiles,
            ..self.launch(writes)
        };
        self.core.kernels.launch(gpu, stream, which, &launch)
    }

    /// The words of a launch; the first in its stream that writes for a request
    /// marks it.
    fn launch(&self, writes: Option<FirstWrite<'_>>) -> Launch {
        let marks = writes.is_some_and(FirstWrite::take);
        Launch {
            jobs: 0,
            job_count: 0,
            tiles: 0,
            abort: self.words.abort.address() as u64,
            mark: if marks {
                self.words.mark.address() as u64
            } else {
                0
            },
            sequence: writes.map_or(0, |w| w.sequence),
        }
    }

    /// Marks a request before copies that read no abort word.
    fn mark_by_stream(&self, stream: Stream, writes: Option<FirstWrite<'_>>) -> Result<()> {
        match writes {
            Some(writes) if writes.take() => {
                let word = self.words.mark.address();
                self.core.gpu.write_value(stream, word, writes.sequence)
            }
            _ => Ok(()),
        }
    }

    fn clear_sums(&self, stream: Stream, (at, bytes): (u64, u64)) -> Result<()> {
        let to = with_exposed_provenance_mut(self.device_sums.address() + at as usize);
        self.core.gpu.check("cudaMemsetAsync", |r| {
            // SAFETY: inside our block of sums.
            unsafe { (r.memset_async)(to, 0, bytes as usize, stream) }
        })
    }

    fn fetch_sums(&self, stream: Stream, (at, bytes): (u64, u64)) -> Result<()> {
        let from = self.device_sums.address() + at as usize;
        let to = self.host_sums.address() + at as usize;
        copy_bytes(&self.core.gpu, stream, to, from, bytes)
    }

    /// The sums of one row that have come from the GPU.
    fn fetched(&self, row: usize, tensor: usize) -> u64 {
        let at = self.host_sums.address() + (row * self.tensors + tensor) * 8;
        // SAFETY: a word of our pinned block, which the stream has written.
        unsafe { with_exposed_provenance::<u64>(at).read_volatile() }
    }

    /// The table of a message, made when the two bindings first meet.
    fn message_table(&self, from: &End<'_>, to: &End<'_>) -> Result<Arc<MessageTable>> {
        let number = |end: &End<'_>| {
            let messages = &end.binding.program.messages;
            let first = messages.as_ptr().addr();
            let bytes = from_ref(end.message).addr().checked_sub(first);
            bytes.map_or(usize::MAX, |bytes| bytes / size_of::<Message>())
        };
        let key = Exchange {
            sender: from.binding.id(),
            sent: number(from),
            received: number(to),
        };
        let mut held = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = held.get(&key) {
            return Ok(table.clone());
        }
        if held.len() >= MESSAGE_COUNT_MAX {
            held.clear();
        }
        let mut jobs = Vec::new();
        let made = table::message_jobs(
            (from.binding, from.message),
            (to.binding, to.message),
            &mut jobs,
        )?;
        if let Err(at) = made {
            return Err(Error::new(
                Status::Protocol,
                format!(
                    "byte {at} of a message starts another piece on one side than on the other"
                ),
            ));
        }
        let tiles = number_tiles(&mut jobs);
        let table = Arc::new(MessageTable {
            jobs: upload(&self.core, &self.core.arrivals, &jobs)?,
            job_count: jobs.len() as u64,
            tiles,
        });
        held.insert(key, table.clone());
        Ok(table)
    }
}

impl Ending for Prepared {
    fn ended(&self, what: u32) {
        if self.abort.is_set() {
            return;
        }
        for tensor in 0..self.tensors {
            let add = |to: &[AtomicU64], row| {
                to[tensor].fetch_add(self.fetched(row, tensor), Ordering::Relaxed);
            };
            match what {
                SUMMED_SOURCE => {
                    add(&self.sums.once, 0);
                    add(&self.sums.sent, 1);
                }
                SUMMED_DESTINATION => add(&self.sums.held, 2),
                _ => return,
            }
        }
    }
}

impl Mover for Prepared {
    fn copy_message(
        self: Arc<Self>,
        from: End<'_>,
        to: End<'_>,
        sequence: u64,
        is_staged: bool,
    ) -> Result<Fence> {
        let lands = to.message.is_direct || !is_staged;
        let writes = lands && to.binding.program.keeps(to.message);
        let writes = writes.then_some(FirstWrite {
            sequence,
            marked: &self.marked_arrivals,
        });
        let is_pageable = is_staged || reads_pageable(&from);
        let table = (!is_pageable)
            .then(|| self.message_table(&from, &to))
            .transpose()?;
        let queue = self.core.arrivals.begin(&Fence::default(), &self.abort)?;
        if self.abort.is_set() {
            return queue.end(self.ending(NOTHING));
        }
        let (gpu, stream) = (&self.core.gpu, queue.stream());
        match table {
            Some(table) => {
                let launch = Launch {
                    jobs: table.jobs.address() as u64,
                    job_count: table.job_count,
                    tiles: table.tiles,
                    ..self.launch(writes)
                };
                self.core
                    .kernels
                    .launch(gpu, stream, Which::Moves, &launch)?;
            }
            None if is_staged => {
                self.mark_by_stream(stream, writes)?;
                let source = from.binding.contiguous(from.message);
                let target = to.binding.contiguous(to.message);
                copy_bytes(gpu, stream, target, source, to.message.bytes)?;
            }
            None => {
                self.mark_by_stream(stream, writes)?;
                for copy in pageable_copies(&from, &to)? {
                    copy_2d(gpu, stream, &copy)?;
                }
            }
        }
        queue.end(self.ending(NOTHING))
    }

    fn first_write(&self) -> u64 {
        self.words.mark.get()
    }
}

/// True if a sender's message lies in memory that no GPU reaches.
fn reads_pageable(from: &End<'_>) -> bool {
    let Some(mover) = from.binding.mover() else {
        return true;
    };
    let mover: &dyn std::any::Any = &**mover;
    let Some(prepared) = mover.downcast_ref::<Prepared>() else {
        return true;
    };
    let pieces = from.binding.program.pieces_of(from.message);
    pieces.iter().any(|p| {
        let BufferSlot(slot) = p.region.slot;
        p.region.slot != BufferSlot::RELAY && prepared.is_pageable[slot as usize]
    })
}

/// The rows of a message that CUDA itself stages.
fn pageable_copies(from: &End<'_>, to: &End<'_>) -> Result<Vec<Copy2d>> {
    let mut out = Vec::new();
    if table::message_copies(
        (from.binding, from.message),
        (to.binding, to.message),
        &mut out,
    ) {
        return Ok(out);
    }
    Err(Error::new(
        Status::Unsupported,
        "source memory on the host would have to be converted, or copied in many small rows, on \
         its way to a GPU: bind it as pinned memory",
    )
    .by(to.message.peer))
}

/// Which slots the GPU does not reach. Refuses destinations there, and memory
/// of GPUs that are out of reach.
fn classify(gpu: &Gpu, binding: &Binding) -> Result<Vec<bool>> {
    let mut is_pageable = Vec::with_capacity(binding.memory.len());
    for (range, buffer) in binding.memory.iter().zip(&binding.program.buffers) {
        if range.bytes == 0 {
            is_pageable.push(false);
            continue;
        }
        let refused = |what: String| {
            Error::new(
                Status::BufferMismatch,
                format!(
                    "a {:?} buffer of {} bytes at {:#x} {what}",
                    buffer.side, range.bytes, range.address
                ),
            )
        };
        let place = place_of_range(gpu, *range)?.map_err(|[first, last]| {
            refused(format!(
                "begins in {} and ends in {}",
                first.name(),
                last.name()
            ))
        })?;
        match place {
            Place::Pageable if buffer.side == Side::Destination => {
                return Err(refused(format!(
                    "is {}; GPU {} delivers to GPU memory or pinned host memory",
                    place.name(),
                    gpu.index
                )));
            }
            Place::Device(n) if n != gpu.index => gpu
                .reach(n)
                .map_err(|e| refused(format!("is {}; {}", place.name(), e.message)))?,
            Place::Device(_) | Place::Managed | Place::Pinned | Place::Pageable => {}
        }
        is_pageable.push(place == Place::Pageable);
    }
    Ok(is_pageable)
}

/// Puts jobs where the GPU reads them, before what is put on `queue` next.
fn upload(core: &Core, queue: &CudaQueue, jobs: &[Job]) -> Result<Block> {
    let bytes = size_of_val(jobs) as u64;
    let block = Pool::take(&core.device_pool, bytes)?;
    if bytes == 0 {
        return Ok(block);
    }
    // Pageable memory is read before the call returns; the stream is where it
    // is needed first.
    let queue = queue.begin(&Fence::default(), &Arc::default())?;
    let from = jobs.as_ptr().expose_provenance();
    copy_bytes(&core.gpu, queue.stream(), block.address(), from, bytes)?;
    queue.end(None)?;
    Ok(block)
}

pub(super) fn copy_bytes(
    gpu: &Gpu,
    stream: Stream,
    to: usize,
    from: usize,
    bytes: u64,
) -> Result<()> {
    gpu.check("cudaMemcpyAsync", |r| {
        // SAFETY: both ranges were checked when they were bound, or are ours;
        // CUDA finds out what they are.
        unsafe {
            (r.memcpy_async)(
                with_exposed_provenance_mut(to),
                with_exposed_provenance(from),
                bytes as usize,
                CopyKind::DEFAULT,
                stream,
            )
        }
    })
}

fn copy_2d(gpu: &Gpu, stream: Stream, copy: &Copy2d) -> Result<()> {
    let (to, to_pitch) = copy.to;
    let to = with_exposed_provenance_mut(to);
    let (bytes, rows) = (copy.bytes, copy.rows);
    let Some((from, from_pitch)) = copy.from else {
        return gpu.check("cudaMemset2DAsync", |r| {
            // SAFETY: rows of a region that was checked when it was bound.
            unsafe { (r.memset_2d_async)(to, to_pitch, 0, bytes, rows, stream) }
        });
    };
    let from = with_exposed_provenance(from);
    gpu.check("cudaMemcpy2DAsync", |r| {
        // SAFETY: rows of two regions that were checked when they were bound.
        unsafe {
            (r.memcpy_2d_async)(
                to,
                to_pitch,
                from,
                from_pitch,
                bytes,
                rows,
                CopyKind::DEFAULT,
                stream,
            )
        }
    })
}

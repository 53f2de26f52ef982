//! Bytes from process to process on one host, through staging.
//!
//! The sender's staging is a ring of slots on its GPU, exported; two words in
//! memory that both map say how far each has come. Streams wait for the words
//! by themselves, so neither process waits for the other on the host:
//!
//! ```text
//!   sender     until read >= n-slots   copy to slot   sent = n
//!   receiver   until sent >= n         copy from slot   read = n
//! ```
//!
//! The words can be set by anybody who maps them: an abort on either side
//! releases the streams of both. A stream that was let go still writes its own
//! word, and so lowers it again, while the other one may not have looked; so
//! the words are released again and again until both streams have run out.
//! Copies that were waiting then still happen, so what is received goes to
//! staging of ours and is unpacked by a kernel, which looks at the abort word;
//! or to memory whose outcome is torn. An event could not do this: it can be
//! waited for only once it is recorded, and nobody could release it.
//!
//! Both ends may be in one process, which then needs to open nothing.

use super::gpu::Gpu;
use super::ipc::{EXPORTED_BYTES, Exported, Opened};
use super::queue::{CudaQueue, Ending, Enqueue, RELEASED, is_stuck};
use crate::device::MemoryRange;
use crate::device::fence::{AbortCell, AbortMirror, Fence};
use crate::error::{Error, Result, Status};
use cuda_runtime_sys::{HOST_REGISTER_MAPPED, HOST_REGISTER_PORTABLE};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{null_mut, with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of an offer as it travels.
pub const OFFER_BYTES: usize = EXPORTED_BYTES + 32;

const PAGE: usize = 4096;
/// On cache lines of their own.
const SENT: usize = 0;
const READ: usize = 128;
/// Receivers that have the staging open.
const OPENED: usize = 256;
/// Runs in a slot begin at multiples of this.
const ALIGNMENT: u64 = 16;

/// How staging is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelOptions {
    pub slot_count: u32,
    pub slot_bytes: u64,
}

impl Default for ChannelOptions {
    fn default() -> ChannelOptions {
        ChannelOptions {
            slot_count: 4,
            slot_bytes: 8 << 20,
        }
    }
}

/// What a receiver needs to open a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    staging: Exported,
    /// Where it is in the sender's process.
    address: u64,
    options: ChannelOptions,
    process: u32,
    /// The words, in the sender's process.
    file: u32,
}

impl Offer {
    /// As bytes, for the receiver.
    pub fn to_bytes(&self) -> [u8; OFFER_BYTES] {
        let mut out = [0; OFFER_BYTES];
        let (staging, rest) = out.split_at_mut(EXPORTED_BYTES);
        staging.copy_from_slice(&self.staging.to_bytes());
        rest[..8].copy_from_slice(&self.options.slot_bytes.to_le_bytes());
        rest[8..12].copy_from_slice(&self.options.slot_count.to_le_bytes());
        rest[12..16].copy_from_slice(&self.process.to_le_bytes());
        rest[16..20].copy_from_slice(&self.file.to_le_bytes());
        rest[24..].copy_from_slice(&self.address.to_le_bytes());
        out
    }

    /// What [`Offer::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8; OFFER_BYTES]) -> Offer {
        let mut staging = [0; EXPORTED_BYTES];
        staging.copy_from_slice(&bytes[..EXPORTED_BYTES]);
        let rest = &bytes[EXPORTED_BYTES..];
        let word =
            |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        Offer {
            staging: Exported::from_bytes(&staging),
            options: ChannelOptions {
                slot_bytes: u64::from(word(0)) | u64::from(word(4)) << 32,
                slot_count: word(8),
            },
            process: word(12),
            file: word(16),
            address: u64::from(word(24)) | u64::from(word(28)) << 32,
        }
    }
}

/// The words of a channel, mapped and pinned.
#[derive(Debug)]
struct SharedWords {
    gpu: Arc<Gpu>,
    address: usize,
    file: File,
    abort: Arc<AbortCell>,
}

impl SharedWords {
    fn new(gpu: &Arc<Gpu>, abort: &Arc<AbortCell>) -> Result<SharedWords> {
        // SAFETY: a C string; the descriptor that comes back is ours alone.
        let file = unsafe {
            let fd = libc::memfd_create(c"wsync-channel".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                let e = io::Error::last_os_error();
                return Err(Error::os("making the words of a channel", &e));
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        file.set_len(PAGE as u64)
            .map_err(|e| Error::os("making the words of a channel", &e))?;
        SharedWords::map(gpu, file, abort)
    }

    /// The words of another process, which must still run.
    fn open(
        gpu: &Arc<Gpu>,
        (process, file): (u32, u32),
        abort: &Arc<AbortCell>,
    ) -> Result<SharedWords> {
        let path = format!("/proc/{process}/fd/{file}");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::os(format_args!("opening {path}, of a peer on this host"), &e))?;
        SharedWords::map(gpu, file, abort)
    }

    fn map(gpu: &Arc<Gpu>, file: File, abort: &Arc<AbortCell>) -> Result<SharedWords> {
        // SAFETY: a shared mapping of a file of ours, at an address of the
        // kernel's choice.
        let at = unsafe {
            libc::mmap(
                null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            let e = io::Error::last_os_error();
            return Err(Error::os("mapping the words of a channel", &e));
        }
        let words = SharedWords {
            gpu: gpu.clone(),
            address: at.expose_provenance(),
            file,
            abort: abort.clone(),
        };
        let _current = gpu.enter()?;
        gpu.check("cudaHostRegister", |r| {
            // SAFETY: a page of ours, mapped until it is unregistered.
            unsafe { (r.host_register)(at, PAGE, HOST_REGISTER_PORTABLE | HOST_REGISTER_MAPPED) }
        })?;
        Ok(words)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: an aligned word of a mapping that lives as long as we.
        unsafe { &*with_exposed_provenance::<AtomicU64>(self.address + at) }
    }
}

impl AbortMirror for SharedWords {
    fn aborted(&self) {
        self.release();
    }
}

impl Ending for SharedWords {
    /// Our stream has written its word for the last time: whoever waits for
    /// more than that is let go for good.
    fn ended(&self, _what: u32) {
        if self.abort.is_set() {
            self.release();
        }
    }

    /// Releases the streams of both processes.
    fn release(&self) {
        self.word(SENT).store(RELEASED, Ordering::Release);
        self.word(READ).store(RELEASED, Ordering::Release);
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let at = with_exposed_provenance_mut(self.address);
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: the page that `map` registered.
            let _ = self
                .gpu
                .check("cudaHostUnregister", |r| unsafe { (r.host_unregister)(at) });
        }
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(at, PAGE) };
    }
}

/// One end of a channel: whose word it waits for, and whose it writes.
#[derive(Debug)]
struct Half {
    words: Arc<SharedWords>,
    options: ChannelOptions,
    staging: MemoryRange,
    abort: Arc<AbortCell>,
    /// Slots used so far.
    used: Mutex<u64>,
}

impl Half {
    fn new(
        words: SharedWords,
        options: ChannelOptions,
        staging: MemoryRange,
        abort: &Arc<AbortCell>,
    ) -> Result<Half> {
        let bytes = options
            .slot_bytes
            .checked_mul(u64::from(options.slot_count));
        if options.slot_count == 0
            || options.slot_bytes == 0
            || bytes.is_none_or(|b| b > staging.bytes)
        {
            return Err(Error::invalid(format!(
                "a channel of {} slots of {} bytes in {} bytes of staging",
                options.slot_count, options.slot_bytes, staging.bytes
            )));
        }
        let words = Arc::new(words);
        let mirror: Arc<dyn AbortMirror> = words.clone();
        abort.mirror(&mirror);
        Ok(Half {
            words,
            options,
            staging,
            abort: abort.clone(),
            used: Mutex::new(0),
        })
    }

    /// Moves a run of bytes slot by slot; `is_sender` says which way. The fence
    /// is reached when our part of it is done.
    fn pass(
        &self,
        queue: &CudaQueue,
        memory: MemoryRange,
        after: &Fence,
        is_sender: bool,
    ) -> Result<Fence> {
        if let Some(reason) = self.abort.reason() {
            return Err(reason);
        }
        let enqueue = queue.begin(after, &self.abort)?;
        let mut at = 0;
        while at < memory.bytes {
            let run = MemoryRange {
                address: memory.address + at as usize,
                bytes: (memory.bytes - at).min(self.options.slot_bytes),
            };
            self.slot(&enqueue, std::iter::once(run), is_sender)?;
            at += run.bytes;
        }
        enqueue.end(Some((self.words.clone(), 0)))
    }

    /// Moves runs of bytes through the next slot, which has to hold them all.
    /// Both ends cut alike.
    fn slot(
        &self,
        enqueue: &Enqueue<'_>,
        runs: impl Iterator<Item = MemoryRange>,
        is_sender: bool,
    ) -> Result<()> {
        let claim = self.claim(enqueue, is_sender)?;
        let mut at = 0u64;
        for run in runs {
            let end = at.checked_add(run.bytes);
            if end.is_none_or(|end| end > self.options.slot_bytes) {
                return Err(Error::internal("runs that leave a slot of a channel"));
            }
            let there = claim.address + at as usize;
            let (from, to) = match is_sender {
                true => (run.address, there),
                false => (there, run.address),
            };
            enqueue.copy(to, from, run.bytes)?;
            at = after_run(at, run.bytes);
        }
        claim.give(enqueue)
    }

    /// Has the stream wait for the next slot, and says where it is.
    fn claim(&self, enqueue: &Enqueue<'_>, is_sender: bool) -> Result<Claim> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let word = |at: usize| self.words.address + at;
        let slots = u64::from(self.options.slot_count);
        let address = self.staging.address + (*used % slots * self.options.slot_bytes) as usize;
        *used += 1;
        let (mine, theirs, until) = match is_sender {
            true => (SENT, READ, (*used).saturating_sub(slots)),
            false => (READ, SENT, *used),
        };
        let (gpu, stream) = (enqueue.gpu(), enqueue.stream());
        gpu.wait_value(stream, word(theirs), until)?;
        Ok(Claim {
            address,
            word: word(mine),
            theirs: word(theirs),
            used: *used,
        })
    }
}

/// A slot that is this end's, from where the stream is until it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Of the slot's first byte.
    pub(crate) address: usize,
    word: usize,
    /// The other end's word.
    theirs: usize,
    used: u64,
}

impl Claim {
    /// Has the stream wait until the other end has given the slot back.
    pub(crate) fn await_return(self, enqueue: &Enqueue<'_>) -> Result<()> {
        let (gpu, stream) = (enqueue.gpu(), enqueue.stream());
        gpu.wait_value(stream, self.theirs, self.used)
    }

    /// Has the stream give the slot to the other end: filled, or free again.
    pub(crate) fn give(self, enqueue: &Enqueue<'_>) -> Result<()> {
        let (gpu, stream) = (enqueue.gpu(), enqueue.stream());
        gpu.write_value(stream, self.word, self.used)
    }
}

/// Where the next run of a slot begins, after one of `bytes` bytes at `at`.
pub(crate) fn after_run(at: u64, bytes: u64) -> u64 {
    at.saturating_add(bytes)
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(u64::MAX)
}

/// Where bytes go in.
#[derive(Debug)]
pub struct ChannelSender {
    half: Half,
    gpu: Arc<Gpu>,
    offer: Offer,
}

impl ChannelSender {
    /// Staging on `gpu` and its words; `abort` releases both sides.
    pub fn new(
        gpu: &Arc<Gpu>,
        options: ChannelOptions,
        abort: &Arc<AbortCell>,
    ) -> Result<ChannelSender> {
        Left::sweep();
        let words = SharedWords::new(gpu, abort)?;
        let bytes = options
            .slot_bytes
            .checked_mul(u64::from(options.slot_count))
            .filter(|b| *b > 0)
            .ok_or_else(|| Error::invalid("a channel without staging"))?;
        let staging = MemoryRange {
            address: gpu.allocate(bytes)?,
            bytes,
        };
        let exported = Exported::new(gpu, staging)
            .and_then(|e| {
                e.ok_or_else(|| {
                    Error::new(Status::Unsupported, "this GPU's memory cannot be exported")
                })
            })
            .inspect_err(|_| gpu.free(staging.address))?;
        let offer = Offer {
            staging: exported,
            address: staging.address as u64,
            options,
            process: std::process::id(),
            file: words.file.as_raw_fd() as u32,
        };
        Ok(ChannelSender {
            half: Half::new(words, options, staging, abort)?,
            gpu: gpu.clone(),
            offer,
        })
    }

    /// What the receiver needs.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// Enqueues a run of bytes. Its memory may change once the fence is
    /// reached.
    pub fn send(&self, queue: &CudaQueue, memory: MemoryRange, after: &Fence) -> Result<Fence> {
        self.half.pass(queue, memory, after, true)
    }

    /// The next slot, to be filled by what the stream does next.
    pub(crate) fn claim(&self, enqueue: &Enqueue<'_>) -> Result<Claim> {
        self.half.claim(enqueue, true)
    }

    /// Has runs of bytes go through the next slot.
    pub(crate) fn put(
        &self,
        enqueue: &Enqueue<'_>,
        runs: impl Iterator<Item = MemoryRange>,
    ) -> Result<()> {
        self.half.slot(enqueue, runs, true)
    }

    /// What has to be told of an abort for as long as work is in a stream.
    pub(crate) fn ending(&self) -> Arc<dyn Ending> {
        self.half.words.clone()
    }
}

impl Drop for ChannelSender {
    fn drop(&mut self) {
        Left::leave(Left {
            words: self.half.words.clone(),
            gpu: self.gpu.clone(),
            address: self.half.staging.address,
        });
    }
}

/// Staging that its sender is done with. It is freed when no receiver has it
/// open and the GPU has no work that does not end; else it is left until the
/// next channel is made.
#[derive(Debug)]
struct Left {
    words: Arc<SharedWords>,
    gpu: Arc<Gpu>,
    address: usize,
}

static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

impl Left {
    fn leave(self) {
        LEFT.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self);
        Left::sweep();
    }

    fn sweep() {
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|one| {
            let is_open = one.words.word(OPENED).load(Ordering::Acquire) > 0;
            if is_open || is_stuck(one.gpu.index) {
                return true;
            }
            one.gpu.free(one.address);
            false
        });
    }
}

/// Where bytes come out.
#[derive(Debug)]
pub struct ChannelReceiver {
    half: Half,
    /// Unmapped after the last use of the half; `None` if it is our own.
    opened: Option<Opened>,
}

impl ChannelReceiver {
    /// Opens the channel of a process on this host.
    pub fn new(gpu: &Arc<Gpu>, offer: &Offer, abort: &Arc<AbortCell>) -> Result<ChannelReceiver> {
        let words = SharedWords::open(gpu, (offer.process, offer.file), abort)?;
        let is_ours = offer.process == std::process::id();
        let opened = match is_ours {
            true => None,
            false => Some(Opened::new(gpu, &offer.staging)?),
        };
        let bytes = offer.options.slot_bytes;
        let here = MemoryRange {
            address: offer.address as usize,
            bytes: bytes.saturating_mul(offer.options.slot_count.into()),
        };
        let staging = opened.as_ref().map_or(here, Opened::range);
        let half = Half::new(words, offer.options, staging, abort)?;
        half.words.word(OPENED).fetch_add(1, Ordering::AcqRel);
        Ok(ChannelReceiver { half, opened })
    }

    /// Enqueues the arrival of a run of bytes: as many as were sent, in the
    /// same order.
    pub fn receive(&self, queue: &CudaQueue, memory: MemoryRange, after: &Fence) -> Result<Fence> {
        self.half.pass(queue, memory, after, false)
    }

    /// The next slot, filled, to be read by what the stream does next.
    pub(crate) fn claim(&self, enqueue: &Enqueue<'_>) -> Result<Claim> {
        self.half.claim(enqueue, false)
    }

    /// Has runs of bytes come out of the next slot.
    pub(crate) fn take(
        &self,
        enqueue: &Enqueue<'_>,
        runs: impl Iterator<Item = MemoryRange>,
    ) -> Result<()> {
        self.half.slot(enqueue, runs, false)
    }

    /// What has to be told of an abort for as long as work is in a stream.
    pub(crate) fn ending(&self) -> Arc<dyn Ending> {
        self.half.words.clone()
    }
}

impl Drop for ChannelReceiver {
    fn drop(&mut self) {
        self.opened = None;
        self.half.words.word(OPENED).fetch_sub(1, Ordering::AcqRel);
    }
}

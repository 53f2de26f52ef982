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
//! releases the streams of both. Copies that were waiting then still happen, so
//! what is received goes to staging of ours and is unpacked by a kernel, which
//! looks at the abort word; or to memory whose outcome is torn. An event could
//! not do this: it can be waited for only once it is recorded, and nobody
//! could release it.

use super::gpu::Gpu;
use super::ipc::{EXPORTED_BYTES, Exported, Opened};
use super::queue::CudaQueue;
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
pub const OFFER_BYTES: usize = EXPORTED_BYTES + 24;

const PAGE: usize = 4096;
/// On cache lines of their own.
const SENT: usize = 0;
const READ: usize = 128;
/// More than any stream waits for.
const RELEASED: u64 = 1 << 62;

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
        }
    }
}

/// The words of a channel, mapped and pinned.
#[derive(Debug)]
struct SharedWords {
    gpu: Arc<Gpu>,
    address: usize,
    file: File,
}

impl SharedWords {
    fn new(gpu: &Arc<Gpu>) -> Result<SharedWords> {
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
        SharedWords::map(gpu, file)
    }

    /// The words of another process, which must still run.
    fn open(gpu: &Arc<Gpu>, process: u32, file: u32) -> Result<SharedWords> {
        let path = format!("/proc/{process}/fd/{file}");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::os(format_args!("opening {path}, of a peer on this host"), &e))?;
        SharedWords::map(gpu, file)
    }

    fn map(gpu: &Arc<Gpu>, file: File) -> Result<SharedWords> {
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
    /// Releases the streams of both processes.
    fn aborted(&self) {
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
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let enqueue = queue.begin(after, &self.abort)?;
        let (gpu, stream) = (queue.gpu(), enqueue.stream());
        let word = |at: usize| self.words.address + at;
        let mut at = 0;
        while at < memory.bytes {
            let bytes = (memory.bytes - at).min(self.options.slot_bytes);
            let slots = u64::from(self.options.slot_count);
            let slot = self.staging.address + (*used % slots * self.options.slot_bytes) as usize;
            let here = memory.address + at as usize;
            *used += 1;
            let (mine, theirs, until) = match is_sender {
                true => (SENT, READ, (*used).saturating_sub(slots)),
                false => (READ, SENT, *used),
            };
            let (from, to) = if is_sender {
                (here, slot)
            } else {
                (slot, here)
            };
            gpu.wait_value(stream, word(theirs), until)?;
            super::prepared::copy_bytes(gpu, stream, to, from, bytes)?;
            gpu.write_value(stream, word(mine), *used)?;
            at += bytes;
        }
        enqueue.end(None)
    }
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
        let words = SharedWords::new(gpu)?;
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
}

impl Drop for ChannelSender {
    fn drop(&mut self) {
        self.gpu.free(self.half.staging.address);
    }
}

/// Where bytes come out.
#[derive(Debug)]
pub struct ChannelReceiver {
    half: Half,
    // Unmapped after the last use of the half.
    _opened: Opened,
}

impl ChannelReceiver {
    /// Opens the channel of another process on this host.
    pub fn new(gpu: &Arc<Gpu>, offer: &Offer, abort: &Arc<AbortCell>) -> Result<ChannelReceiver> {
        let words = SharedWords::open(gpu, offer.process, offer.file)?;
        let opened = Opened::new(gpu, &offer.staging)?;
        Ok(ChannelReceiver {
            half: Half::new(words, offer.options, opened.range(), abort)?,
            _opened: opened,
        })
    }

    /// Enqueues the arrival of a run of bytes: as many as were sent, in the
    /// same order.
    pub fn receive(&self, queue: &CudaQueue, memory: MemoryRange, after: &Fence) -> Result<Fence> {
        self.half.pass(queue, memory, after, false)
    }
}

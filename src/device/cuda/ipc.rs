//! Device memory of another process on the same host.
//!
//! What cudaMalloc gave can be opened by another process: as a whole
//! allocation, wherever in it the address lies. [`Exported`] carries the
//! distance, so that both sides mean the same byte. A process cannot open what
//! is its own.
//!
//! ```text
//!   process A   [allocation ....│range│....]   Exported {handle, offset}
//!   process B   [the same bytes │range│....]   Opened
//! ```
//!
//! Memory of the virtual memory calls cannot be exported; then bytes go through
//! staging, which is our own cudaMalloc and always can.

use super::gpu::Gpu;
use super::place::{allocation_of, is_exportable};
use crate::device::MemoryRange;
use crate::error::{Error, Result, Status};
use cuda_runtime_sys::{IPC_LAZY_ENABLE_PEER_ACCESS, IpcMemHandle};
use std::ffi::c_void;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Arc;

/// Bytes of an exported range as they travel.
pub const EXPORTED_BYTES: usize = 88;

/// A range that other processes can open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    handle: IpcMemHandle,
    /// Bytes from the start of the allocation.
    offset: u64,
    bytes: u64,
    process: u32,
}

impl Exported {
    /// Exports a range; `None` if it is memory that cannot be.
    pub fn new(gpu: &Gpu, range: MemoryRange) -> Result<Option<Exported>> {
        if !is_exportable(gpu, range.address)? {
            return Ok(None);
        }
        let whole = allocation_of(gpu, range.address)?;
        let offset = (range.address - whole.address) as u64;
        if offset
            .checked_add(range.bytes)
            .is_none_or(|end| end > whole.bytes)
        {
            return Err(Error::new(
                Status::BufferMismatch,
                format!(
                    "{} bytes at {:#x} leave their allocation of {} bytes",
                    range.bytes, range.address, whole.bytes
                ),
            ));
        }
        let _current = gpu.enter()?;
        let mut handle = IpcMemHandle { reserved: [0; 64] };
        gpu.check("cudaIpcGetMemHandle", |r| {
            // SAFETY: room for one handle; an address of a live allocation.
            unsafe {
                (r.ipc_get_mem_handle)(&mut handle, with_exposed_provenance_mut(range.address))
            }
        })?;
        Ok(Some(Exported {
            handle,
            offset,
            bytes: range.bytes,
            process: std::process::id(),
        }))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if this process has exported it.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// A part of the range; `None` if it leaves it.
    pub(crate) fn part(&self, at: u64, bytes: u64) -> Option<Exported> {
        at.checked_add(bytes).filter(|end| *end <= self.bytes)?;
        Some(Exported {
            offset: self.offset + at,
            bytes,
            ..*self
        })
    }

    /// As bytes, for another process.
    pub fn to_bytes(&self) -> [u8; EXPORTED_BYTES] {
        let mut out = [0; EXPORTED_BYTES];
        out[..64].copy_from_slice(&self.handle.reserved);
        out[64..72].copy_from_slice(&self.offset.to_le_bytes());
        out[72..80].copy_from_slice(&self.bytes.to_le_bytes());
        out[80..84].copy_from_slice(&self.process.to_le_bytes());
        out
    }

    /// What [`Exported::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8; EXPORTED_BYTES]) -> Exported {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let mut reserved = [0; 64];
        reserved.copy_from_slice(&bytes[..64]);
        Exported {
            handle: IpcMemHandle { reserved },
            offset: word(64),
            bytes: word(72),
            process: word(80) as u32,
        }
    }
}

/// Memory of another process, mapped here until it is dropped.
#[derive(Debug)]
pub struct Opened {
    gpu: Arc<Gpu>,
    base: usize,
    handle: IpcMemHandle,
    range: MemoryRange,
}

impl Opened {
    /// Opens what another process has exported.
    pub fn new(gpu: &Arc<Gpu>, exported: &Exported) -> Result<Opened> {
        if exported.is_ours() {
            return Err(Error::invalid(
                "a process cannot open memory that it has exported itself",
            ));
        }
        let _current = gpu.enter()?;
        let mut base: *mut c_void = null_mut();
        gpu.check("cudaIpcOpenMemHandle", |r| {
            // SAFETY: room for one pointer; CUDA checks the handle.
            unsafe {
                (r.ipc_open_mem_handle)(&mut base, exported.handle, IPC_LAZY_ENABLE_PEER_ACCESS)
            }
        })?;
        let base = base.expose_provenance();
        Ok(Opened {
            gpu: gpu.clone(),
            base,
            handle: exported.handle,
            range: MemoryRange {
                address: base + exported.offset as usize,
                bytes: exported.bytes,
            },
        })
    }

    /// True if `exported` is in the same allocation.
    pub(crate) fn is_of(&self, exported: &Exported) -> bool {
        self.handle == exported.handle
    }

    /// Where another range of the allocation is.
    pub(crate) fn range_of(&self, exported: &Exported) -> MemoryRange {
        MemoryRange {
            address: self.base + exported.offset as usize,
            bytes: exported.bytes,
        }
    }

    /// The range that was exported, at its address here.
    pub fn range(&self) -> MemoryRange {
        self.range
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Ok(_current) = self.gpu.enter() else {
            return;
        };
        // SAFETY: what `new` opened; the owner of this value has no work on it
        // any more.
        let _ = self.gpu.check("cudaIpcCloseMemHandle", |r| unsafe {
            (r.ipc_close_mem_handle)(with_exposed_provenance_mut(self.base))
        });
    }
}

//! What kind of memory an address is.

use super::gpu::Gpu;
use crate::device::MemoryRange;
use crate::error::{Error, Result, Status};
use crate::layout::view::Memory;
use cuda_runtime_sys::{MemoryKind, PointerAttribute, PointerAttributes};
use std::ffi::{c_int, c_void};
use std::ptr::{from_mut, with_exposed_provenance, with_exposed_provenance_mut};

/// Where memory lives, as CUDA sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory of this GPU.
    Device(u32),
    /// Memory that moves between host and GPUs.
    Managed,
    /// Host memory that GPUs reach.
    Pinned,
    /// Host memory that they do not.
    Pageable,
}

impl Place {
    /// A word for messages.
    pub fn name(self) -> String {
        match self {
            Place::Device(n) => format!("memory of GPU {n}"),
            Place::Managed => "managed memory".into(),
            Place::Pinned => "pinned host memory".into(),
            Place::Pageable => "pageable host memory".into(),
        }
    }
}

/// Where the memory at `address` lives.
pub fn place_of(gpu: &Gpu, address: usize) -> Result<Place> {
    let _current = gpu.enter()?;
    let mut attributes = PointerAttributes::EMPTY;
    gpu.check("cudaPointerGetAttributes", |r| {
        // SAFETY: more room than any version writes; any address may be asked
        // for.
        unsafe { (r.pointer_get_attributes)(&mut attributes, with_exposed_provenance(address)) }
    })?;
    Ok(match attributes.kind {
        MemoryKind::DEVICE => Place::Device(attributes.device.max(0) as u32),
        MemoryKind::MANAGED => Place::Managed,
        MemoryKind::HOST => Place::Pinned,
        _ => Place::Pageable,
    })
}

/// Where the first and the last byte of a range live: `Err` names the two where
/// they differ.
pub fn place_of_range(
    gpu: &Gpu,
    range: MemoryRange,
) -> Result<std::result::Result<Place, [Place; 2]>> {
    let first = place_of(gpu, range.address)?;
    let last = place_of(gpu, range.address + range.bytes.max(1) as usize - 1)?;
    Ok(if first == last {
        Ok(first)
    } else {
        Err([first, last])
    })
}

/// Refuses pageable memory that is bound as something that GPUs reach. What is
/// bound so goes to a transport as it is, and a GPU that reads it faults: that
/// ends CUDA for the whole process.
pub fn check_declared(gpu: &Gpu, range: MemoryRange, memory: Memory) -> Result<()> {
    let declared = match memory {
        Memory::Host => return Ok(()),
        Memory::PinnedHost => "pinned host memory".to_string(),
        Memory::Device(n) => format!("memory of GPU {n}"),
    };
    if range.bytes == 0 {
        return Ok(());
    }
    let places = match place_of_range(gpu, range)? {
        Ok(place) => [place, place],
        Err(places) => places,
    };
    if !places.contains(&Place::Pageable) {
        return Ok(());
    }
    Err(Error::new(
        Status::BufferMismatch,
        format!(
            "{} bytes at {:#x} are bound as {declared} and are {}: pin them \
             (cudaHostRegister), or bind them as host memory",
            range.bytes,
            range.address,
            Place::Pageable.name()
        ),
    ))
}

/// True if memory of a GPU can be opened by other processes: what cudaMalloc
/// gave can, what the virtual memory calls gave (as with torch's expandable
/// segments and vLLM's sleep mode) cannot.
pub fn is_exportable(gpu: &Gpu, address: usize) -> Result<bool> {
    if !matches!(place_of(gpu, address)?, Place::Device(_)) {
        return Ok(false);
    }
    let mut is_capable: c_int = 0;
    ask(
        gpu,
        from_mut(&mut is_capable).cast(),
        PointerAttribute::IS_IPC_CAPABLE,
        address,
    )?;
    Ok(is_capable != 0)
}

/// The allocation that an address of a GPU lies in.
pub fn allocation_of(gpu: &Gpu, address: usize) -> Result<MemoryRange> {
    let (mut start, mut bytes) = (0u64, 0usize);
    ask(
        gpu,
        from_mut(&mut start).cast(),
        PointerAttribute::RANGE_START,
        address,
    )?;
    ask(
        gpu,
        from_mut(&mut bytes).cast(),
        PointerAttribute::RANGE_SIZE,
        address,
    )?;
    Ok(MemoryRange {
        address: start as usize,
        bytes: bytes as u64,
    })
}

fn ask(gpu: &Gpu, out: *mut c_void, what: PointerAttribute, address: usize) -> Result<()> {
    let _current = gpu.enter()?;
    // Exposed, so that the driver's number may become a pointer again.
    let address = with_exposed_provenance_mut::<c_void>(address).expose_provenance();
    gpu.check("cuPointerGetAttribute", |_| {
        // SAFETY: `out` has room for what the attribute is documented to be.
        unsafe { (gpu.driver.pointer_get_attribute)(out, what, address as u64) }
    })
}

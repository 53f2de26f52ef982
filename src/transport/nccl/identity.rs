//! Which host and which GPU, in words that every process of a host agrees on.

use crate::device::cuda::gpu::{Gpu, check, library};
use crate::error::{Error, Result};
use crate::transport::host::boot_id;

/// The GPU that is current on this thread.
pub(super) fn current_device() -> Result<u32> {
    let runtime = &library()?.runtime;
    let mut device = 0;
    // SAFETY: a place for one number.
    let result = unsafe { (runtime.get_device)(&raw mut device) };
    check(runtime, "cudaGetDevice", result)?;
    u32::try_from(device).map_err(|_| Error::internal(format!("the current GPU is {device}")))
}

/// A hash of the boot id: the same for all processes of a host, in whatever
/// container.
pub(super) fn host_id() -> [u8; 16] {
    xxhash_rust::xxh3::xxh3_128(boot_id().as_bytes()).to_le_bytes()
}

/// The PCI address, padded with zeroes.
pub(super) fn gpu_id(gpu: &Gpu) -> Result<[u8; 16]> {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(gpu.address()?.bytes()) {
        *to = from;
    }
    Ok(id)
}

//! What CUDA there is: for people who wonder why it does not work.

use super::gpu::{Gpu, Libraries, check, device_count, library, use_libraries};
use crate::env;
use crate::error::Result;
use cuda_runtime_sys::{Cuda, DeviceAttribute, Search};
use std::ffi::{CStr, c_int};
use std::path::{Path, PathBuf};

/// The libraries of CUDA, and what they see.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub runtime_path: Option<PathBuf>,
    /// 13000 for 13.0.
    pub runtime_version: i32,
    /// The newest runtime that the driver takes; 0 if there is no driver.
    pub driver_version: i32,
    /// Why the driver's library cannot be used, if it cannot.
    pub driver_problem: Option<String>,
    /// The GPUs, or why none can be used.
    pub devices: Result<Vec<DeviceInfo>>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub index: u32,
    /// Its PCI address.
    pub address: String,
    /// Compute capability: major, minor.
    pub capability: (i32, i32),
    pub sm_count: u32,
    pub memory_bytes: u64,
}

/// Has the process use the first of `fallbacks` that can be loaded, if CUDA is
/// not found otherwise.
pub fn fall_back(fallbacks: &[PathBuf]) {
    let loads = |runtime: Option<&Path>| {
        let driver = env::cuda_library();
        Cuda::load(Search { runtime, driver }).is_ok()
    };
    if loads(env::cudart_library()) {
        return;
    }
    if let Some(path) = fallbacks.iter().find(|path| loads(Some(path))) {
        // Fails only if CUDA is in use, and then it was found.
        let _ = use_libraries(Libraries {
            runtime: Some(path.clone()),
            driver: None,
        });
    }
}

/// Loads CUDA and asks it. An error says that there is no runtime.
pub fn inspect() -> Result<Inspection> {
    let cuda = library()?;
    let number = |what: &str, ask: &dyn Fn(*mut c_int) -> cuda_runtime_sys::CudaError| {
        let mut value = 0;
        check(&cuda.runtime, what, ask(&raw mut value)).map(|()| value)
    };
    Ok(Inspection {
        runtime_path: cuda.runtime_origin.path.clone(),
        runtime_version: number("cudaRuntimeGetVersion", &|at| {
            // SAFETY: a place for one number.
            unsafe { (cuda.runtime.runtime_get_version)(at) }
        })?,
        driver_version: number("cudaDriverGetVersion", &|at| {
            // SAFETY: a place for one number.
            unsafe { (cuda.runtime.driver_get_version)(at) }
        })?,
        driver_problem: cuda.driver.as_ref().err().map(ToString::to_string),
        devices: device_count().and_then(|count| (0..count).map(describe).collect()),
    })
}

fn describe(index: u32) -> Result<DeviceInfo> {
    let gpu = Gpu::new(index)?;
    Ok(DeviceInfo {
        index,
        address: gpu.address()?,
        capability: (
            gpu.attribute(DeviceAttribute::COMPUTE_CAPABILITY_MAJOR)?,
            gpu.attribute(DeviceAttribute::COMPUTE_CAPABILITY_MINOR)?,
        ),
        sm_count: gpu.sm_count,
        memory_bytes: gpu.memory_bytes()?,
    })
}

impl Gpu {
    /// The PCI address. It does not depend on which GPUs a process is allowed
    /// to see, as the number does.
    pub fn address(&self) -> Result<String> {
        let mut text = [0u8; 32];
        self.check("cudaDeviceGetPCIBusId", |r| {
            let (at, bytes) = (text.as_mut_ptr().cast(), text.len() as c_int);
            // SAFETY: room for so many bytes.
            unsafe { (r.device_get_pci_bus_id)(at, bytes, self.index as c_int) }
        })?;
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    /// Its id, or that of the part (MIG) that this process has; 0 if the driver
    /// tells none.
    pub fn uuid(&self) -> Result<u128> {
        let (Some(get), Some(get_uuid)) = (self.driver.device_get, self.driver.device_get_uuid)
        else {
            return Ok(0);
        };
        let mut device = 0;
        self.check("cuDeviceGet", |_| {
            // SAFETY: a place for one number.
            unsafe { get(&raw mut device, self.index as c_int) }
        })?;
        let mut uuid = [0u8; 16];
        self.check("cuDeviceGetUuid", |_| {
            // SAFETY: room for the 16 bytes of an id.
            unsafe { get_uuid(uuid.as_mut_ptr(), device) }
        })?;
        Ok(u128::from_le_bytes(uuid))
    }

    /// All of its memory.
    pub fn memory_bytes(&self) -> Result<u64> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        self.check("cudaMemGetInfo", |r| {
            // SAFETY: places for two numbers.
            unsafe { (r.mem_get_info)(&raw mut free, &raw mut total) }
        })?;
        Ok(total as u64)
    }
}

//! One GPU, through the CUDA runtime that the process has.
//!
//! Calls return our errors, leave the caller's current device as it was, and
//! disturb no stream capture of the caller's.

use crate::env;
use crate::error::{Error, Result, Status};
use cuda_runtime_sys::*;
use std::ffi::{CStr, c_int, c_void};
use std::path::PathBuf;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::{Arc, OnceLock};

/// Where the libraries are, for who knows better than the environment.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    pub runtime: Option<PathBuf>,
    pub driver: Option<PathBuf>,
}

static CHOSEN: OnceLock<Libraries> = OnceLock::new();
static CUDA: OnceLock<std::result::Result<Cuda, LoadError>> = OnceLock::new();

/// Has the process use these libraries. Fails once it has used any.
pub fn use_libraries(libraries: Libraries) -> Result<()> {
    if CUDA.get().is_some() || CHOSEN.set(libraries).is_err() {
        return Err(Error::new(
            Status::InvalidState,
            "the libraries of CUDA have been chosen already",
        ));
    }
    Ok(())
}

/// The libraries, looked for once in a process.
pub fn library() -> Result<&'static Cuda> {
    let found = CUDA.get_or_init(|| {
        let chosen = CHOSEN.get();
        let runtime = chosen.and_then(|c| c.runtime.as_deref());
        let driver = chosen.and_then(|c| c.driver.as_deref());
        Cuda::load(Search {
            runtime: runtime.or_else(env::cudart_library),
            driver: driver.or_else(env::cuda_library),
        })
    });
    found.as_ref().map_err(|e| {
        Error::new(
            Status::LibraryNotFound,
            format!(
                "no CUDA runtime: {e}; set WSYNC_CUDART_LIBRARY to the full path of libcudart.so"
            ),
        )
    })
}

/// How many GPUs there are. An error says why there are none.
pub fn device_count() -> Result<u32> {
    let runtime = &library()?.runtime;
    let mut version = 0;
    // SAFETY: a place for one number.
    unsafe {
        check(
            runtime,
            "cudaDriverGetVersion",
            (runtime.driver_get_version)(&mut version),
        )?
    };
    if version == 0 {
        return Err(Error::new(
            Status::LibraryNotFound,
            "there is no NVIDIA driver on this machine (the driver's version is 0)",
        ));
    }
    let mut count = 0;
    // SAFETY: a place for one number.
    unsafe {
        check(
            runtime,
            "cudaGetDeviceCount",
            (runtime.get_device_count)(&mut count),
        )?
    };
    Ok(count.max(0) as u32)
}

/// The GPU that is current on this thread.
pub fn current_device() -> Result<u32> {
    let runtime = &library()?.runtime;
    let mut device = 0;
    // SAFETY: a place for one number.
    let result = unsafe { (runtime.get_device)(&raw mut device) };
    check(runtime, "cudaGetDevice", result)?;
    u32::try_from(device).map_err(|_| Error::internal(format!("the current GPU is {device}")))
}

/// What a call of the runtime said, as an error of ours.
pub fn check(runtime: &Runtime, what: &str, error: CudaError) -> Result<()> {
    if error == CudaError::SUCCESS {
        return Ok(());
    }
    // SAFETY: any number may be asked about; the strings are the library's.
    let (name, text) = unsafe {
        (
            text((runtime.get_error_name)(error)),
            text((runtime.get_error_string)(error)),
        )
    };
    // The error of a call that merely failed is not left for others to find.
    // SAFETY: takes and needs nothing.
    unsafe { (runtime.get_last_error)() };
    let status = match error {
        CudaError::MEMORY_ALLOCATION => Status::OutOfMemory,
        CudaError::INVALID_RESOURCE_HANDLE | CudaError::INVALID_DEVICE => Status::InvalidArgument,
        CudaError::STREAM_CAPTURE_UNSUPPORTED => Status::InvalidState,
        CudaError::NOT_SUPPORTED => Status::Unsupported,
        _ => Status::System,
    };
    Err(Error::new(
        status,
        format!("{what}: {text} ({name}, {})", error.0),
    ))
}

/// # Safety
///
/// NULL or a C string that stays.
unsafe fn text(at: Text) -> String {
    if at.is_null() {
        return "unknown error".into();
    }
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// A GPU of this process.
#[derive(Debug)]
pub struct Gpu {
    pub index: u32,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    pub cuda: &'static Cuda,
    pub(super) driver: &'static Driver,
    pub(super) wait_value: unsafe extern "C" fn(Stream, u64, u64, u32) -> CudaError,
    pub(super) write_value: unsafe extern "C" fn(Stream, u64, u64, u32) -> CudaError,
}

impl Gpu {
    /// GPU `index`, as the CUDA runtime numbers them in this process.
    pub fn new(index: u32) -> Result<Arc<Gpu>> {
        let cuda = library()?;
        let count = device_count()?;
        if index >= count {
            return Err(Error::invalid(format!(
                "there is no GPU {index}: this process sees {count}"
            )));
        }
        let driver = cuda
            .driver
            .as_ref()
            .map_err(|e| Error::new(Status::LibraryNotFound, format!("no CUDA driver: {e}")))?;
        let (Some(wait_value), Some(write_value)) =
            (driver.stream_wait_value_64, driver.stream_write_value_64)
        else {
            return Err(Error::new(
                Status::LibraryTooOld,
                "the NVIDIA driver has no stream memory operations; CUDA 11.7 or newer is needed",
            ));
        };
        let mut gpu = Gpu {
            index,
            sm_count: 1,
            cuda,
            driver,
            wait_value,
            write_value,
        };
        gpu.sm_count = gpu.attribute(DeviceAttribute::MULTIPROCESSOR_COUNT)?.max(1) as u32;
        // Makes the primary context, and finds out whether it can be made.
        let _current = gpu.enter()?;
        gpu.check("cudaFree(NULL)", |r| {
            // SAFETY: NULL is fine.
            unsafe { (r.free)(null_mut()) }
        })?;
        Ok(Arc::new(gpu))
    }

    pub fn runtime(&self) -> &'static Runtime {
        &self.cuda.runtime
    }

    /// Calls the runtime, and says what has failed.
    pub fn check(&self, what: &str, call: impl FnOnce(&Runtime) -> CudaError) -> Result<()> {
        let result = check(self.runtime(), what, call(self.runtime()));
        result.map_err(|e| Error {
            message: format!("GPU {}: {}", self.index, e.message),
            ..e
        })
    }

    pub fn attribute(&self, attribute: DeviceAttribute) -> Result<i32> {
        let mut value = 0;
        self.check("cudaDeviceGetAttribute", |r| {
            // SAFETY: a place for one number.
            unsafe { (r.device_get_attribute)(&mut value, attribute, self.index as c_int) }
        })?;
        Ok(value)
    }

    /// Makes this GPU the current one of the thread until the guard is dropped.
    pub fn enter(&self) -> Result<Current> {
        let runtime = self.runtime();
        let mut before = 0;
        let mut mode = CaptureMode::RELAXED;
        // SAFETY: places for one number each.
        unsafe {
            self.check("cudaGetDevice", |r| (r.get_device)(&mut before))?;
            if before != self.index as c_int {
                self.check("cudaSetDevice", |r| (r.set_device)(self.index as c_int))?;
            }
            self.check("cudaThreadExchangeStreamCaptureMode", |r| {
                (r.thread_exchange_stream_capture_mode)(&mut mode)
            })?;
        }
        Ok(Current {
            runtime,
            before: (before != self.index as c_int).then_some(before),
            mode,
        })
    }

    /// Lets kernels here touch memory of another GPU.
    pub fn reach(&self, peer: u32) -> Result<()> {
        let _current = self.enter()?;
        let mut can = 0;
        self.check("cudaDeviceCanAccessPeer", |r| {
            // SAFETY: a place for one number.
            unsafe { (r.device_can_access_peer)(&mut can, self.index as c_int, peer as c_int) }
        })?;
        if can == 0 {
            return Err(Error::new(
                Status::Unsupported,
                format!("GPU {} does not reach the memory of GPU {peer}", self.index),
            ));
        }
        self.check("cudaDeviceEnablePeerAccess", |r| {
            // SAFETY: plain numbers.
            match unsafe { (r.device_enable_peer_access)(peer as c_int, 0) } {
                CudaError::PEER_ACCESS_ALREADY_ENABLED => {
                    // SAFETY: takes and needs nothing; forgets this error.
                    unsafe { (r.get_last_error)() };
                    CudaError::SUCCESS
                }
                error => error,
            }
        })
    }

    /// Device memory.
    pub fn allocate(&self, bytes: u64) -> Result<usize> {
        let _current = self.enter()?;
        let mut at: *mut c_void = null_mut();
        self.check(&format!("allocating {bytes} bytes"), |r| {
            // SAFETY: a place for one pointer.
            unsafe { (r.malloc)(&mut at, bytes as usize) }
        })?;
        Ok(at.expose_provenance())
    }

    /// Gives back what `allocate` gave. Errors have nowhere to go.
    pub fn free(&self, address: usize) {
        let Ok(_current) = self.enter() else { return };
        // SAFETY: the caller's own allocation, which nothing uses any more.
        let _ = self.check("cudaFree", |r| unsafe {
            (r.free)(with_exposed_provenance_mut(address))
        });
    }

    /// Pinned host memory that all GPUs reach at the host's address.
    pub fn allocate_pinned(&self, bytes: u64) -> Result<usize> {
        let _current = self.enter()?;
        let mut at: *mut c_void = null_mut();
        self.check(&format!("pinning {bytes} bytes of host memory"), |r| {
            // SAFETY: a place for one pointer.
            unsafe {
                (r.host_alloc)(
                    &mut at,
                    bytes as usize,
                    HOST_ALLOC_PORTABLE | HOST_ALLOC_MAPPED,
                )
            }
        })?;
        // SAFETY: fresh memory of so many bytes.
        unsafe { at.cast::<u8>().write_bytes(0, bytes as usize) };
        Ok(at.expose_provenance())
    }

    /// Gives back what `allocate_pinned` gave.
    pub fn free_pinned(&self, address: usize) {
        let Ok(_current) = self.enter() else { return };
        // SAFETY: as for `free`.
        let _ = self.check("cudaFreeHost", |r| unsafe {
            (r.free_host)(with_exposed_provenance_mut(address))
        });
    }

    /// A stream that is not ordered with the default one.
    pub fn stream(&self) -> Result<Stream> {
        let _current = self.enter()?;
        let mut stream = Stream::DEFAULT;
        self.check("cudaStreamCreateWithFlags", |r| {
            // SAFETY: a place for one handle.
            unsafe { (r.stream_create_with_flags)(&mut stream, STREAM_NON_BLOCKING) }
        })?;
        Ok(stream)
    }

    /// Has `stream` store `value` at `word` when it comes there, after making
    /// everything before it visible.
    pub fn write_value(&self, stream: Stream, word: usize, value: u64) -> Result<()> {
        self.check("cuStreamWriteValue64", |_| {
            // SAFETY: the word is device-accessible, of eight aligned bytes.
            unsafe { (self.write_value)(stream, word as u64, value, 0) }
        })
    }

    /// Has `stream` wait until the word at `word` is at least `value`.
    pub fn wait_value(&self, stream: Stream, word: usize, value: u64) -> Result<()> {
        self.check("cuStreamWaitValue64", |_| {
            // SAFETY: as for `write_value`.
            unsafe { (self.wait_value)(stream, word as u64, value, STREAM_WAIT_GEQ) }
        })
    }

    /// Refuses a stream that is being captured into a graph.
    pub fn check_not_capturing(&self, stream: Stream) -> Result<()> {
        let mut status = CaptureStatus::NONE;
        self.check("cudaStreamIsCapturing", |r| {
            // SAFETY: a place for one number; CUDA checks the handle.
            unsafe { (r.stream_is_capturing)(stream, &mut status) }
        })?;
        if status != CaptureStatus::NONE {
            return Err(Error::new(
                Status::InvalidState,
                "the stream is being captured into a graph; a transfer cannot be part of one",
            ));
        }
        Ok(())
    }
}

/// While it lives, a GPU is the current one of this thread.
#[derive(Debug)]
#[must_use]
pub struct Current {
    runtime: &'static Runtime,
    before: Option<c_int>,
    mode: CaptureMode,
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: what was current before, and a place for one number.
        unsafe {
            (self.runtime.thread_exchange_stream_capture_mode)(&mut self.mode);
            if let Some(device) = self.before {
                (self.runtime.set_device)(device);
            }
        }
    }
}

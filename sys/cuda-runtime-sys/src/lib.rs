//! The CUDA runtime calls that weightsync uses, found at run time.
//!
//! Nothing here is linked: a program that contains this crate starts on a
//! machine without CUDA, and [`Cuda::load`] says there what is missing. Written
//! by hand from the public documentation for CUDA 12 and 13; calls whose
//! signature differs between the two (the batched copies, prefetch, advice,
//! device properties) are left out.
//!
//! ```text
//!   Cuda::load ─► libcudart.so   runtime: memory, streams, events, IPC
//!              └► libcuda.so.1   driver: stream memory operations, modules
//! ```
//!
//! A library, once loaded, stays: threads and exit handlers of its own may
//! still run in it, so it is never closed.

pub mod library;
pub mod types;

mod driver;
mod runtime;

pub use driver::Driver;
pub use library::{LoadError, Origin};
pub use runtime::Runtime;
pub use types::*;

use std::path::Path;

/// What a search may be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search<'a> {
    /// The runtime to load, and no other.
    pub runtime: Option<&'a Path>,
    /// The driver to load, and no other.
    pub driver: Option<&'a Path>,
}

/// The functions of runtime and driver.
#[derive(Debug)]
pub struct Cuda {
    pub runtime: Runtime,
    /// Where the runtime was found.
    pub runtime_origin: Origin,
    /// The driver's, where there is one.
    pub driver: Result<Driver, LoadError>,
}

impl Cuda {
    /// Finds the runtime: the given path, else the copy that is in the process
    /// already, else symbols that are linked into the program, else the
    /// newest that the system's loader finds. The driver is `libcuda.so.1`.
    pub fn load(search: Search<'_>) -> Result<Cuda, LoadError> {
        let found = library::find(search.runtime, RUNTIME_NAMES, c"cudaGetDeviceCount")?;
        let runtime = Runtime::new(&found)?;
        let driver = library::find(search.driver, DRIVER_NAMES, c"cuLaunchKernel")
            .and_then(|library| Driver::new(&library));
        Ok(Cuda {
            runtime,
            runtime_origin: found.origin(),
            driver,
        })
    }
}

/// Newest first.
const RUNTIME_NAMES: &[&std::ffi::CStr] =
    &[c"libcudart.so.13", c"libcudart.so.12", c"libcudart.so"];

const DRIVER_NAMES: &[&std::ffi::CStr] = &[c"libcuda.so.1", c"libcuda.so"];

//! The kernels, as PTX that is part of the library.
//!
//! `generate` makes `kernels.ptx` from `kernels.cu`; nothing of CUDA is needed
//! to build. Drivers since CUDA 12.0 compile it when it is loaded.

use super::gpu::Gpu;
use super::job::{Launch, THREADS};
use crate::error::{Error, Result, Status};
use cuda_runtime_sys::{Dim3, Kernel, Stream};
use std::ffi::{CStr, c_void};
use std::ptr::{from_ref, null_mut};

/// NUL-terminated, as the loaders want it.
const PTX: &str = concat!(include_str!("kernels.ptx"), "\0");

/// Blocks per multiprocessor: enough bytes on the way for its memory.
const BLOCKS_PER_SM: u64 = 4;

/// Both kernels, loaded on one GPU.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    moves: Kernel,
    sums: Kernel,
    /// Handles of the driver rather than of the runtime's library calls.
    is_driver: bool,
}

impl Kernels {
    /// Loads them: by the runtime's library calls where it has them (since
    /// CUDA 12.8), else by the driver's.
    pub fn load(gpu: &Gpu) -> Result<Kernels> {
        let _current = gpu.enter()?;
        let loaded = Kernels::by_runtime(gpu).unwrap_or_else(|| Kernels::by_driver(gpu));
        loaded.map_err(|e| {
            Error::new(
                Status::Unsupported,
                format!("the kernels cannot be loaded: {}", e.message),
            )
        })
    }

    fn by_runtime(gpu: &Gpu) -> Option<Result<Kernels>> {
        let load = gpu.runtime().library_load_data?;
        let get = gpu.runtime().library_get_kernel?;
        let run = || -> Result<Kernels> {
            let mut library: *mut c_void = null_mut();
            let none = null_mut;
            gpu.check("cudaLibraryLoadData", |_| {
                // SAFETY: PTX that ends with a NUL; no options.
                unsafe {
                    load(
                        &mut library,
                        PTX.as_ptr().cast(),
                        none(),
                        null_mut(),
                        0,
                        none(),
                        null_mut(),
                        0,
                    )
                }
            })?;
            let kernel = |name: &CStr| -> Result<Kernel> {
                let mut kernel = Kernel(null_mut());
                gpu.check("cudaLibraryGetKernel", |_| {
                    // SAFETY: the library that was just loaded, a C string.
                    unsafe { get(&mut kernel, library, name.as_ptr()) }
                })?;
                Ok(kernel)
            };
            Ok(Kernels {
                moves: kernel(c"wsync_move_kernel")?,
                sums: kernel(c"wsync_sum_kernel")?,
                is_driver: false,
            })
        };
        Some(run())
    }

    fn by_driver(gpu: &Gpu) -> Result<Kernels> {
        let mut module: *mut c_void = null_mut();
        gpu.check("cuModuleLoadData", |_| {
            // SAFETY: PTX that ends with a NUL.
            unsafe { (gpu.driver.module_load_data)(&mut module, PTX.as_ptr().cast()) }
        })?;
        let kernel = |name: &CStr| -> Result<Kernel> {
            let mut kernel = Kernel(null_mut());
            gpu.check("cuModuleGetFunction", |_| {
                // SAFETY: the module that was just loaded, a C string.
                unsafe { (gpu.driver.module_get_function)(&mut kernel, module, name.as_ptr()) }
            })?;
            Ok(kernel)
        };
        Ok(Kernels {
            moves: kernel(c"wsync_move_kernel")?,
            sums: kernel(c"wsync_sum_kernel")?,
            is_driver: true,
        })
    }

    /// Puts a launch on a stream. Nothing to do is no launch.
    pub fn launch(&self, gpu: &Gpu, stream: Stream, what: Which, launch: &Launch) -> Result<()> {
        if launch.tiles == 0 {
            return Ok(());
        }
        let kernel = match what {
            Which::Moves => self.moves,
            Which::Sums => self.sums,
        };
        let blocks = launch.tiles.min(u64::from(gpu.sm_count) * BLOCKS_PER_SM) as u32;
        let mut arguments = [from_ref(launch).cast_mut().cast::<c_void>()];
        gpu.check("launching a kernel", |runtime| {
            // SAFETY: a kernel of ours, whose one parameter is a `Launch`; it
            // is copied before the call returns.
            unsafe {
                if self.is_driver {
                    let launch = gpu.driver.launch_kernel;
                    let arguments = arguments.as_mut_ptr();
                    launch(
                        kernel,
                        blocks,
                        1,
                        1,
                        THREADS,
                        1,
                        1,
                        0,
                        stream,
                        arguments,
                        null_mut(),
                    )
                } else {
                    let dim = |x| Dim3 { x, y: 1, z: 1 };
                    let launch = runtime.launch_kernel;
                    launch(
                        kernel,
                        dim(blocks),
                        dim(THREADS),
                        arguments.as_mut_ptr(),
                        0,
                        stream,
                    )
                }
            }
        })
    }
}

/// Which of the two kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Moves,
    Sums,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drivers refuse PTX that is newer than they are, and for newer chips.
    #[test]
    fn the_ptx_is_for_drivers_of_cuda_12_0_and_chips_since_ampere() {
        let lines: Vec<&str> = PTX.lines().collect();
        assert!(lines.contains(&".version 8.0"));
        assert!(lines.contains(&".target sm_80"));
        assert!(lines.contains(&".address_size 64"));
        for name in ["wsync_move_kernel", "wsync_sum_kernel"] {
            assert!(PTX.contains(&format!(".visible .entry {name}(")));
        }
        assert!(PTX.contains("ld.v4.u32") || PTX.contains("ld.global.v4.u32"));
    }
}

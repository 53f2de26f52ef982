//! `libcuda.so.1`: what the runtime does not offer, or not in every version.

use crate::library::functions;
use crate::types::*;
use std::ffi::{c_char, c_int, c_uint, c_void};

functions! {
    /// The driver's functions. They work in the primary context that the
    /// runtime has made current.
    Driver
    required {
        module_load_data = c"cuModuleLoadData": fn(*mut *mut c_void, *const c_void) -> CudaError;
        module_get_function = c"cuModuleGetFunction": fn(*mut Kernel, *mut c_void, *const c_char) -> CudaError;
        launch_kernel = c"cuLaunchKernel": fn(Kernel, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Stream, *mut *mut c_void, *mut *mut c_void) -> CudaError;
        pointer_get_attribute = c"cuPointerGetAttribute": fn(*mut c_void, PointerAttribute, u64) -> CudaError;
    }
    optional {
        // The second version, since CUDA 11.7: on every device, with no option
        // of the driver's to be set.
        stream_wait_value_64 = c"cuStreamWaitValue64_v2": fn(Stream, u64, u64, c_uint) -> CudaError;
        stream_write_value_64 = c"cuStreamWriteValue64_v2": fn(Stream, u64, u64, c_uint) -> CudaError;
        device_get = c"cuDeviceGet": fn(*mut c_int, c_int) -> CudaError;
        // The second version, since CUDA 11.4: of a part (MIG), its own id.
        device_get_uuid = c"cuDeviceGetUuid_v2": fn(*mut u8, c_int) -> CudaError;
        device_get_attribute = c"cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int) -> CudaError;
    }
}

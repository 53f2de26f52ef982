//! `libcudart.so`.

use crate::library::functions;
use crate::types::*;
use std::ffi::{c_char, c_int, c_uint, c_void};

functions! {
    /// The runtime's functions. All take and return plain C values; the
    /// documentation of CUDA says what each asks of its caller.
    Runtime
    required {
        get_device_count = c"cudaGetDeviceCount": fn(*mut c_int) -> CudaError;
        set_device = c"cudaSetDevice": fn(c_int) -> CudaError;
        get_device = c"cudaGetDevice": fn(*mut c_int) -> CudaError;
        device_get_attribute = c"cudaDeviceGetAttribute": fn(*mut c_int, DeviceAttribute, c_int) -> CudaError;
        device_get_pci_bus_id = c"cudaDeviceGetPCIBusId": fn(*mut c_char, c_int, c_int) -> CudaError;
        device_can_access_peer = c"cudaDeviceCanAccessPeer": fn(*mut c_int, c_int, c_int) -> CudaError;
        device_enable_peer_access = c"cudaDeviceEnablePeerAccess": fn(c_int, c_uint) -> CudaError;
        driver_get_version = c"cudaDriverGetVersion": fn(*mut c_int) -> CudaError;
        runtime_get_version = c"cudaRuntimeGetVersion": fn(*mut c_int) -> CudaError;
        get_error_name = c"cudaGetErrorName": fn(CudaError) -> Text;
        get_error_string = c"cudaGetErrorString": fn(CudaError) -> Text;
        get_last_error = c"cudaGetLastError": fn() -> CudaError;
        malloc = c"cudaMalloc": fn(*mut *mut c_void, usize) -> CudaError;
        free = c"cudaFree": fn(*mut c_void) -> CudaError;
        host_alloc = c"cudaHostAlloc": fn(*mut *mut c_void, usize, c_uint) -> CudaError;
        free_host = c"cudaFreeHost": fn(*mut c_void) -> CudaError;
        host_register = c"cudaHostRegister": fn(*mut c_void, usize, c_uint) -> CudaError;
        host_unregister = c"cudaHostUnregister": fn(*mut c_void) -> CudaError;
        mem_get_info = c"cudaMemGetInfo": fn(*mut usize, *mut usize) -> CudaError;
        memcpy_async = c"cudaMemcpyAsync": fn(*mut c_void, *const c_void, usize, CopyKind, Stream) -> CudaError;
        memcpy_2d_async = c"cudaMemcpy2DAsync": fn(*mut c_void, usize, *const c_void, usize, usize, usize, CopyKind, Stream) -> CudaError;
        memcpy_3d_async = c"cudaMemcpy3DAsync": fn(*const Memcpy3d, Stream) -> CudaError;
        memset_async = c"cudaMemsetAsync": fn(*mut c_void, c_int, usize, Stream) -> CudaError;
        memset_2d_async = c"cudaMemset2DAsync": fn(*mut c_void, usize, c_int, usize, usize, Stream) -> CudaError;
        stream_create_with_flags = c"cudaStreamCreateWithFlags": fn(*mut Stream, c_uint) -> CudaError;
        stream_destroy = c"cudaStreamDestroy": fn(Stream) -> CudaError;
        stream_synchronize = c"cudaStreamSynchronize": fn(Stream) -> CudaError;
        stream_query = c"cudaStreamQuery": fn(Stream) -> CudaError;
        stream_wait_event = c"cudaStreamWaitEvent": fn(Stream, Event, c_uint) -> CudaError;
        stream_is_capturing = c"cudaStreamIsCapturing": fn(Stream, *mut CaptureStatus) -> CudaError;
        thread_exchange_stream_capture_mode = c"cudaThreadExchangeStreamCaptureMode": fn(*mut CaptureMode) -> CudaError;
        event_create_with_flags = c"cudaEventCreateWithFlags": fn(*mut Event, c_uint) -> CudaError;
        event_record = c"cudaEventRecord": fn(Event, Stream) -> CudaError;
        event_query = c"cudaEventQuery": fn(Event) -> CudaError;
        event_synchronize = c"cudaEventSynchronize": fn(Event) -> CudaError;
        event_elapsed_time = c"cudaEventElapsedTime": fn(*mut f32, Event, Event) -> CudaError;
        event_destroy = c"cudaEventDestroy": fn(Event) -> CudaError;
        launch_host_func = c"cudaLaunchHostFunc": fn(Stream, HostFunction, *mut c_void) -> CudaError;
        launch_kernel = c"cudaLaunchKernel": fn(Kernel, Dim3, Dim3, *mut *mut c_void, usize, Stream) -> CudaError;
        ipc_get_mem_handle = c"cudaIpcGetMemHandle": fn(*mut IpcMemHandle, *mut c_void) -> CudaError;
        ipc_open_mem_handle = c"cudaIpcOpenMemHandle": fn(*mut *mut c_void, IpcMemHandle, c_uint) -> CudaError;
        ipc_close_mem_handle = c"cudaIpcCloseMemHandle": fn(*mut c_void) -> CudaError;
        pointer_get_attributes = c"cudaPointerGetAttributes": fn(*mut PointerAttributes, *const c_void) -> CudaError;
    }
    optional {
        malloc_managed = c"cudaMallocManaged": fn(*mut *mut c_void, usize, c_uint) -> CudaError;
        library_load_data = c"cudaLibraryLoadData": fn(*mut *mut c_void, *const c_void, *mut c_int, *mut *mut c_void, c_uint, *mut c_int, *mut *mut c_void, c_uint) -> CudaError;
        library_get_kernel = c"cudaLibraryGetKernel": fn(*mut Kernel, *mut c_void, *const c_char) -> CudaError;
    }
}

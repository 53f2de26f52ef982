//! Types and numbers of the CUDA runtime and driver.
//!
//! Numbers that a library may add to are newtypes, never enums: a value that
//! we do not know is still a value.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A `cudaError_t` or, of the driver, a `CUresult`: the two agree in the
/// numbers that are named here.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CudaError(pub c_int);

impl CudaError {
    pub const SUCCESS: CudaError = CudaError(0);
    pub const INVALID_VALUE: CudaError = CudaError(1);
    pub const MEMORY_ALLOCATION: CudaError = CudaError(2);
    pub const INSUFFICIENT_DRIVER: CudaError = CudaError(35);
    pub const NO_DEVICE: CudaError = CudaError(100);
    pub const INVALID_DEVICE: CudaError = CudaError(101);
    pub const NO_KERNEL_IMAGE: CudaError = CudaError(209);
    pub const PEER_ACCESS_ALREADY_ENABLED: CudaError = CudaError(704);
    pub const HOST_MEMORY_ALREADY_REGISTERED: CudaError = CudaError(712);
    pub const INVALID_RESOURCE_HANDLE: CudaError = CudaError(400);
    pub const NOT_READY: CudaError = CudaError(600);
    pub const ILLEGAL_ADDRESS: CudaError = CudaError(700);
    pub const NOT_SUPPORTED: CudaError = CudaError(801);
    pub const STREAM_CAPTURE_UNSUPPORTED: CudaError = CudaError(900);
}

/// A `cudaStream_t`, the same thing as the driver's `CUstream`. NULL is the
/// default stream.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub *mut c_void);

impl Stream {
    pub const DEFAULT: Stream = Stream(std::ptr::null_mut());
}

// SAFETY: a handle; CUDA takes it from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A `cudaEvent_t`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub *mut c_void);

// SAFETY: a handle; CUDA takes it from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// A `cudaKernel_t` or `CUfunction`: whatever the matching launch call takes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(pub *mut c_void);

// SAFETY: a handle; CUDA takes it from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// `dim3`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim3 {
    pub x: c_uint,
    pub y: c_uint,
    pub z: c_uint,
}

/// `cudaIpcMemHandle_t`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpcMemHandle {
    pub reserved: [u8; 64],
}

/// `cudaPointerAttributes`, with room to grow: CUDA 12 writes 24 bytes, CUDA
/// 13 writes 88. Only the four leading fields are read, which agree.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct PointerAttributes {
    pub kind: MemoryKind,
    pub device: c_int,
    pub device_pointer: *mut c_void,
    pub host_pointer: *mut c_void,
    room: [u8; 232],
}

impl PointerAttributes {
    pub const EMPTY: PointerAttributes = PointerAttributes {
        kind: MemoryKind::UNREGISTERED,
        device: -1,
        device_pointer: std::ptr::null_mut(),
        host_pointer: std::ptr::null_mut(),
        room: [0; 232],
    };
}

/// `cudaMemoryType`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryKind(pub c_int);

impl MemoryKind {
    pub const UNREGISTERED: MemoryKind = MemoryKind(0);
    pub const HOST: MemoryKind = MemoryKind(1);
    pub const DEVICE: MemoryKind = MemoryKind(2);
    pub const MANAGED: MemoryKind = MemoryKind(3);
}

/// `cudaPitchedPtr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PitchedPtr {
    pub ptr: *mut c_void,
    pub pitch: usize,
    pub xsize: usize,
    pub ysize: usize,
}

/// `cudaPos` and `cudaExtent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Three {
    pub x: usize,
    pub y: usize,
    pub z: usize,
}

/// `cudaMemcpy3DParms`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Memcpy3d {
    pub src_array: *mut c_void,
    pub src_pos: Three,
    pub src: PitchedPtr,
    pub dst_array: *mut c_void,
    pub dst_pos: Three,
    pub dst: PitchedPtr,
    pub extent: Three,
    pub kind: CopyKind,
}

/// `cudaMemcpyKind`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyKind(pub c_int);

impl CopyKind {
    pub const HOST_TO_DEVICE: CopyKind = CopyKind(1);
    pub const DEVICE_TO_HOST: CopyKind = CopyKind(2);
    /// The addresses say what they are.
    pub const DEFAULT: CopyKind = CopyKind(4);
}

/// `cudaDeviceAttr`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAttribute(pub c_int);

impl DeviceAttribute {
    pub const MULTIPROCESSOR_COUNT: DeviceAttribute = DeviceAttribute(16);
    pub const UNIFIED_ADDRESSING: DeviceAttribute = DeviceAttribute(41);
    pub const COMPUTE_CAPABILITY_MAJOR: DeviceAttribute = DeviceAttribute(75);
    pub const COMPUTE_CAPABILITY_MINOR: DeviceAttribute = DeviceAttribute(76);
}

/// `CUpointer_attribute`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointerAttribute(pub c_int);

impl PointerAttribute {
    /// An `int`: whether cudaIpcGetMemHandle takes the allocation.
    pub const IS_IPC_CAPABLE: PointerAttribute = PointerAttribute(9);
    /// A pointer: where the allocation starts.
    pub const RANGE_START: PointerAttribute = PointerAttribute(11);
    /// A `size_t`: how long the allocation is.
    pub const RANGE_SIZE: PointerAttribute = PointerAttribute(12);
}

/// `cudaStreamCaptureStatus`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureStatus(pub c_int);

impl CaptureStatus {
    pub const NONE: CaptureStatus = CaptureStatus(0);
}

/// `cudaStreamCaptureMode`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureMode(pub c_int);

impl CaptureMode {
    /// This thread's calls disturb no capture.
    pub const RELAXED: CaptureMode = CaptureMode(2);
}

/// Of `cudaStreamCreateWithFlags`: not ordered with the default stream.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// Of `cudaEventCreateWithFlags`: no time stamps.
pub const EVENT_DISABLE_TIMING: c_uint = 2;
/// Of `cudaHostAlloc`: pinned for every device.
pub const HOST_ALLOC_PORTABLE: c_uint = 1;
/// Of `cudaHostAlloc`: devices may touch it.
pub const HOST_ALLOC_MAPPED: c_uint = 2;
/// Of `cudaHostRegister`.
pub const HOST_REGISTER_PORTABLE: c_uint = 1;
/// Of `cudaHostRegister`.
pub const HOST_REGISTER_MAPPED: c_uint = 2;
/// Of `cudaHostRegister`: devices only read.
pub const HOST_REGISTER_READ_ONLY: c_uint = 8;
/// Of `cudaIpcOpenMemHandle`: peer access is enabled where it is needed.
pub const IPC_LAZY_ENABLE_PEER_ACCESS: c_uint = 1;
/// Of `cudaMallocManaged`: any stream may use it.
pub const MANAGED_ATTACH_GLOBAL: c_uint = 1;
/// Of `cuStreamWaitValue64`: until the word, as a signed difference, is at
/// least the value.
pub const STREAM_WAIT_GEQ: c_uint = 0;

/// What a stream may call on the host.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// A C string of the library, or NULL.
pub type Text = *const c_char;

const _: () = {
    assert!(size_of::<Dim3>() == 12);
    assert!(size_of::<IpcMemHandle>() == 64);
    assert!(size_of::<PitchedPtr>() == 32);
    assert!(size_of::<Memcpy3d>() == 160);
    assert!(std::mem::offset_of!(Memcpy3d, src) == 32);
    assert!(std::mem::offset_of!(Memcpy3d, dst_array) == 64);
    assert!(std::mem::offset_of!(Memcpy3d, extent) == 128);
    assert!(std::mem::offset_of!(Memcpy3d, kind) == 152);
    assert!(size_of::<PointerAttributes>() >= 128);
    assert!(std::mem::offset_of!(PointerAttributes, device) == 4);
    assert!(std::mem::offset_of!(PointerAttributes, device_pointer) == 8);
    assert!(std::mem::offset_of!(PointerAttributes, host_pointer) == 16);
};

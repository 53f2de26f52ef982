//! A GPU for tests: the stand-in of this folder, or with `WSYNC_TEST_GPU=1`
//! the real one of this machine.

#![allow(dead_code)]

pub mod nccl;

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;
use weightsync::device::cuda::gpu::{self, Gpu, Libraries};
use weightsync::device::cuda::{CopyPath, CudaDevice, CudaOptions};
use weightsync::device::{Device, MemoryRange};

/// True if tests use the GPU of this machine.
pub fn is_real() -> bool {
    std::env::var_os("WSYNC_TEST_GPU").is_some()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_gpu")
}

/// Compiles `sources` of this folder into a shared library, unless it is there
/// and newer; one process at a time.
pub fn build(name: &str, sources: &[&str], flags: &[&str]) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_gpu");
    std::fs::create_dir_all(&target).unwrap();
    let lock = File::create(target.join("lock")).unwrap();
    lock.lock().unwrap();
    let library = target.join(name);
    let made = |path: &Path| path.metadata().and_then(|m| m.modified());
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/kernels");
    let newest = [folder(), kernels.clone()]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| made(&entry.unwrap().path()).unwrap())
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH);
    if made(&library).is_ok_and(|made| made > newest) {
        return library;
    }
    let compiler = std::env::var("CXX").unwrap_or("g++".into());
    let partial = target.join(format!("{name}.part"));
    let done = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O2",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
        ])
        .args(["-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"])
        .arg(format!("-Wl,-soname,{name}"))
        .arg("-I")
        .arg(kernels)
        .args(flags)
        .args(sources.iter().map(|s| folder().join(s)))
        .arg("-o")
        .arg(&partial)
        .arg("-lpthread")
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{compiler} {name}: {said}");
    std::fs::rename(partial, &library).unwrap();
    library
}

/// The stand-in runtime and driver.
pub fn cudart() -> PathBuf {
    build(
        "libcudart.so.12",
        &["cudart.cc", "memory.cc", "stream.cc"],
        &[],
    )
}

/// The same without what CUDA 12.0 lacks.
pub fn cudart_old() -> PathBuf {
    build(
        "libcudart.so.12.0",
        &["cudart.cc", "memory.cc", "stream.cc"],
        &["-DFAKE_GPU_OLD"],
    )
}

/// Has this process use the stand-in, or the real libraries.
pub fn choose() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        if is_real() {
            return;
        }
        let path = cudart();
        let libraries = Libraries {
            runtime: Some(path.clone()),
            driver: Some(path),
        };
        gpu::use_libraries(libraries).expect("nothing of CUDA was used before");
    });
}

/// GPU 0 with a stream of its own.
pub fn device() -> Arc<CudaDevice> {
    device_with(CopyPath::Kernels)
}

/// GPU `index`.
pub fn device_of(index: u32) -> Arc<CudaDevice> {
    choose();
    Arc::new(CudaDevice::new(index, CudaOptions::default()).unwrap())
}

pub fn device_with(copy_path: CopyPath) -> Arc<CudaDevice> {
    choose();
    Arc::new(CudaDevice::new(0, CudaOptions { copy_path }).unwrap())
}

/// GPU memory of a test. Every byte starts as `fill`.
#[derive(Debug)]
pub struct GpuMemory {
    device: Arc<CudaDevice>,
    range: MemoryRange,
}

impl GpuMemory {
    pub fn new(device: &Arc<CudaDevice>, bytes: u64, fill: u8) -> GpuMemory {
        let memory = GpuMemory {
            range: device.allocate(bytes).unwrap(),
            device: device.clone(),
        };
        memory.write(0, &vec![fill; bytes as usize]);
        memory
    }

    pub fn range(&self) -> MemoryRange {
        self.range
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        let from = bytes.as_ptr().expose_provenance();
        let to = self.range.address + at;
        self.device.copy_now(to, from, bytes.len() as u64).unwrap();
    }

    pub fn read(&self) -> Vec<u8> {
        let mut out = vec![0u8; self.range.bytes as usize];
        let to = out.as_mut_ptr().expose_provenance();
        let from = self.range.address;
        self.device.copy_now(to, from, self.range.bytes).unwrap();
        out
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        self.device.free(self.range);
    }
}

/// A function of the stand-in that the real library does not have.
fn own(name: &str) -> *mut c_void {
    assert!(!is_real(), "{name} is of the stand-in");
    choose();
    // Loaded, so that the symbol is there.
    let _ = Gpu::new(0);
    let path = CString::new(cudart().to_str().unwrap()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: a library that stays in the process, and C strings.
    let symbol = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        libc::dlsym(handle, name.as_ptr())
    };
    assert!(!symbol.is_null(), "{name:?}");
    symbol
}

/// How often a function of the stand-in was called.
pub fn calls(name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    // SAFETY: the function has this signature (cudart.cc).
    unsafe {
        let f: extern "C" fn(*const c_char) -> u64 = std::mem::transmute(own("fake_gpu_calls"));
        f(name.as_ptr())
    }
}

/// The `nth` call from now on of a function returns `error`.
pub fn fail(name: &str, nth: u64, error: c_int) {
    let name = CString::new(name).unwrap();
    // SAFETY: the function has this signature (cudart.cc).
    unsafe {
        let f: extern "C" fn(*const c_char, u64, c_int) = std::mem::transmute(own("fake_gpu_fail"));
        f(name.as_ptr(), nth, error);
    }
}

/// The GPU is broken from now on, as after an illegal access.
pub fn fault(error: c_int) {
    // SAFETY: the function has this signature (fake_gpu.h).
    unsafe {
        let f: extern "C" fn(c_int) = std::mem::transmute(own("fake_gpu_fault"));
        f(error);
    }
}

/// Forgets a fault.
pub fn heal() {
    // SAFETY: the function has this signature (cudart.cc).
    unsafe {
        let f: extern "C" fn() = std::mem::transmute(own("fake_gpu_heal"));
        f();
    }
}

/// Captures that calls of ours have broken.
pub fn broken_captures() -> c_int {
    // SAFETY: the function has this signature (cudart.cc).
    unsafe {
        let f: extern "C" fn() -> c_int = std::mem::transmute(own("fake_gpu_broken_captures"));
        f()
    }
}

/// GPU memory that cannot be exported.
pub fn allocate_vmm(bytes: usize) -> usize {
    // SAFETY: the function has this signature (cudart.cc).
    unsafe {
        let f: extern "C" fn(usize) -> *mut c_void =
            std::mem::transmute(own("fake_gpu_malloc_vmm"));
        f(bytes).expose_provenance()
    }
}

/// Bytes of GPU memory that are allocated in this process.
pub fn allocated() -> usize {
    // SAFETY: the function has this signature (cudart.cc).
    unsafe {
        let f: extern "C" fn() -> usize = std::mem::transmute(own("fake_gpu_allocated"));
        f()
    }
}

/// Begins or ends a capture of a stream.
pub fn capture(stream: usize, begins: bool) {
    let stream: *mut c_void = std::ptr::with_exposed_provenance_mut(stream);
    // SAFETY: the functions have these signatures (cudart.cc, and CUDA).
    unsafe {
        if begins {
            let f: extern "C" fn(*mut c_void, c_int) -> c_int =
                std::mem::transmute(own("cudaStreamBeginCapture"));
            assert_eq!(f(stream, 0), 0);
        } else {
            let f: extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int =
                std::mem::transmute(own("cudaStreamEndCapture"));
            let mut graph = std::ptr::null_mut();
            assert_eq!(f(stream, &mut graph), 0);
        }
    }
}

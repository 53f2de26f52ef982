//! NCCL for tests: the stand-in of this folder, a GPU for every rank.

#![allow(dead_code)]

use super::{build, choose, is_real};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use weightsync::transport::nccl::{CommSource, NcclBootstrap, NcclOptions};

const SOURCES: &[&str] = &["nccl.cc", "nccl_meet.cc", "nccl_run.cc", "nccl_wire.cc"];

/// The stand-in for libnccl.so.2, as a current one.
pub fn nccl() -> PathBuf {
    build("libnccl.so.2", SOURCES, &["-std=c++20"])
}

/// The same with what NCCL 2.18 has and no more.
pub fn nccl_old() -> PathBuf {
    let flags = ["-std=c++20", "-DFAKE_NCCL_OLD", "-Wl,-soname,libnccl.so.2"];
    build("libnccl.so.2.18", SOURCES, &flags)
}

/// The same with what NCCL 2.28.3 has: it shrinks and does not revoke.
pub fn nccl_without_revoke() -> PathBuf {
    let flags = [
        "-std=c++20",
        "-DFAKE_NCCL_NO_REVOKE",
        "-Wl,-soname,libnccl.so.2",
    ];
    build("libnccl.so.2.28", SOURCES, &flags)
}

thread_local! {
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// NCCL for one test alone, until dropped.
#[derive(Debug)]
pub struct Alone(Option<MutexGuard<'static, ()>>);

impl Drop for Alone {
    fn drop(&mut self) {
        if self.0.is_some() {
            IS_ALONE.set(false);
        }
    }
}

/// One test at a time: counts and faults are those of the process. Whoever is
/// alone may ask again.
pub fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    if IS_ALONE.replace(true) {
        return Alone(None);
    }
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    choose();
    // A process of a test has its faults from the environment.
    if std::env::var_os("FAKE_NCCL_FAULT").is_none() && !is_real() {
        heal();
    }
    Alone(Some(guard))
}

/// How many GPUs the ranks are spread over; 0: a GPU for every rank.
static SPREAD: AtomicU32 = AtomicU32::new(0);

/// Has the ranks of this process share so many GPUs, round and round.
pub fn spread_over(gpus: u32) {
    SPREAD.store(gpus, Ordering::Relaxed);
}

/// Has all ranks of this process share GPU 0, which NCCL has to be told. Before
/// anything else.
pub fn share_gpu() {
    let told = [
        ("NCCL_MULTI_RANK_GPU_ENABLE", "1"),
        ("NCCL_MAX_CTAS", "4"),
        ("NCCL_SOCKET_IFNAME", "lo"),
    ];
    for (name, value) in told {
        // SAFETY: nothing has read the environment yet but this test.
        unsafe { std::env::set_var(name, value) };
    }
    spread_over(1);
}

/// The GPU of a rank.
pub fn gpu_of(rank: u32) -> u32 {
    match SPREAD.load(Ordering::Relaxed) {
        0 => rank,
        gpus => rank % gpus,
    }
}

/// Rank `rank` on its GPU.
pub fn bootstrap(rank: u32) -> NcclBootstrap {
    bootstrap_with(rank, CommSource::Own { id: None })
}

pub fn bootstrap_with(rank: u32, source: CommSource) -> NcclBootstrap {
    NcclBootstrap::new(rank == 0, options(rank, source)).unwrap()
}

pub fn options(rank: u32, source: CommSource) -> NcclOptions {
    choose();
    NcclOptions {
        library: (!is_real()).then(library),
        device: Some(gpu_of(rank)),
        source,
        ..NcclOptions::default()
    }
}

/// The stand-in that this process uses: the old one if the test says so.
pub fn library() -> PathBuf {
    let has = |name| std::env::var_os(name).is_some();
    match () {
        () if has("FAKE_NCCL_TEST_OLD") => nccl_old(),
        () if has("FAKE_NCCL_TEST_NO_REVOKE") => nccl_without_revoke(),
        () => nccl(),
    }
}

/// What a rank does wrong; numbers as in nccl_comm.h.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// Its kernel spins until it is aborted.
    Hang = 0,
    /// The communicator has an error, and the kernel spins.
    Error = 2,
    /// Its kernel begins late, in milliseconds.
    Delay = 3,
}

/// Has a rank do wrong at a group of its communicator; the first is the
/// warm-up.
pub fn inject(rank: u32, group: u64, wrong: Wrong, value: c_int) {
    // SAFETY: the function has this signature (nccl.cc).
    unsafe {
        let f: extern "C" fn(c_int, u64, c_int, c_int) =
            std::mem::transmute(own("fake_nccl_fault"));
        f(rank as c_int, group, wrong as c_int, value);
    }
}

/// The `nth` call from now on of a function returns `result`.
pub fn fail(name: &str, nth: u64, result: c_int) {
    let name = CString::new(name).unwrap();
    // SAFETY: the function has this signature (nccl.cc).
    unsafe {
        let f: extern "C" fn(*const c_char, u64, c_int) =
            std::mem::transmute(own("fake_nccl_fail"));
        f(name.as_ptr(), nth, result);
    }
}

/// Forgets all faults.
pub fn heal() {
    // SAFETY: the function has this signature (nccl.cc).
    unsafe {
        let f: extern "C" fn() = std::mem::transmute(own("fake_nccl_heal"));
        f();
    }
}

/// How often a function was called in this process.
pub fn calls(name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    // SAFETY: the function has this signature (nccl.cc).
    unsafe {
        let f: extern "C" fn(*const c_char) -> u64 = std::mem::transmute(own("fake_nccl_calls"));
        f(name.as_ptr())
    }
}

/// Communicators that are not freed.
pub fn comms() -> u64 {
    // SAFETY: the function has this signature (nccl.cc).
    unsafe {
        let f: extern "C" fn() -> u64 = std::mem::transmute(own("fake_nccl_comms"));
        f()
    }
}

/// A function of the stand-in.
pub fn own(name: &str) -> *mut c_void {
    let path = CString::new(library().to_str().unwrap()).unwrap();
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

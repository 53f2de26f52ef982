//! GPUs between processes, and libraries that are old, missing or broken.
//!
//! Each case runs this program again, with the case's name and the
//! environment that it needs.

mod fake_gpu;

use fake_gpu::GpuMemory;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use weightsync::device::cuda::channel::*;
use weightsync::device::cuda::gpu::{self, Gpu};
use weightsync::device::cuda::ipc::*;
use weightsync::device::cuda::{CudaDevice, CudaOptions};
use weightsync::device::fence::{AbortCell, Fence};
use weightsync::{Error, Status};

const LONG: Duration = Duration::from_secs(30);
const ROLE: &str = "WSYNC_TEST_ROLE";

/// Starts this test program again, to run one case in another role.
fn again(case: &str, role: &str, environment: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", case, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    for (name, value) in environment {
        command.env(name, value);
    }
    command.spawn().unwrap()
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Runs a case in another process with this environment; it must succeed.
fn run_with(case: &str, environment: &[(&str, &str)]) {
    let child = again(case, "run", environment);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{case}: {said}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
    }
    out
}

/// The first line that a child says after a word of ours.
fn line_after(child: &mut Child, word: &str) -> String {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(
            out.read_line(&mut line).unwrap() > 0,
            "the other process ended"
        );
        if let Some(at) = line.find(word) {
            let rest = line[at + word.len()..].trim().to_string();
            std::mem::forget(out);
            return rest;
        }
    }
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| ((i * 31) ^ (i >> 9) ^ seed) as u8)
        .collect()
}

/// Waits until the parent closes our input.
fn wait_for_parent() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

// --- memory of another process ---------------------------------------------

#[test]
fn a_range_is_read_by_another_process_where_it_lies() {
    const CASE: &str = "a_range_is_read_by_another_process_where_it_lies";
    let device = fake_gpu::device();
    if role().is_some() {
        let memory = GpuMemory::new(&device, 10_000, 0);
        memory.write(0, &pattern(10_000, 3));
        // A part of an allocation: the handle means all of it.
        let range = weightsync::device::MemoryRange {
            address: memory.range().address + 1000,
            bytes: 5000,
        };
        let exported = Exported::new(device.gpu(), range).unwrap().unwrap();
        let e = Opened::new(device.gpu(), &exported).unwrap_err();
        assert!(e.message.contains("exported itself"), "{e}");
        println!("exported {}", hex(&exported.to_bytes()));
        wait_for_parent();
        return;
    }
    let mut child = again(CASE, "exporter", &[]);
    let exported = Exported::from_bytes(&unhex(&line_after(&mut child, "exported ")));
    let opened = Opened::new(device.gpu(), &exported).unwrap();
    assert_eq!(opened.range().bytes, 5000);
    let mut got = vec![0u8; 5000];
    let to = got.as_mut_ptr().expose_provenance();
    device.copy_now(to, opened.range().address, 5000).unwrap();
    assert!(got == pattern(10_000, 3)[1000..6000]);
    drop(opened);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn memory_of_the_vmm_calls_is_not_exported() {
    if fake_gpu::is_real() {
        return;
    }
    let device = fake_gpu::device();
    let range = weightsync::device::MemoryRange {
        address: fake_gpu::allocate_vmm(4096),
        bytes: 4096,
    };
    assert_eq!(Exported::new(device.gpu(), range).unwrap(), None);
}

// --- channels ----------------------------------------------------------------

const OPTIONS: ChannelOptions = ChannelOptions {
    slot_count: 3,
    slot_bytes: 4096,
};

#[test]
fn a_channel_carries_runs_of_any_size_in_order() {
    const CASE: &str = "a_channel_carries_runs_of_any_size_in_order";
    const SIZES: [usize; 6] = [1, 4096, 4097, 100_000, 16, 33_333];
    let device = fake_gpu::device();
    let abort = Arc::new(AbortCell::default());
    if role().is_some() {
        let sender = ChannelSender::new(device.gpu(), OPTIONS, &abort).unwrap();
        println!("offer {}", hex(&sender.offer().to_bytes()));
        let mut held = Vec::new();
        for (i, bytes) in SIZES.into_iter().enumerate() {
            let memory = GpuMemory::new(&device, bytes as u64, 0);
            memory.write(0, &pattern(bytes, i));
            let sent = sender.send(device.queue(), memory.range(), &Fence::default());
            held.push((memory, sent.unwrap()));
        }
        assert!(held.iter().all(|(_, sent)| sent.wait(LONG)));
        wait_for_parent();
        return;
    }
    let mut child = again(CASE, "sender", &[]);
    let offer = Offer::from_bytes(&unhex(&line_after(&mut child, "offer ")));
    let receiver = ChannelReceiver::new(device.gpu(), &offer, &abort).unwrap();
    for (i, bytes) in SIZES.into_iter().enumerate() {
        let memory = GpuMemory::new(&device, bytes as u64, 0);
        let got = receiver.receive(device.queue(), memory.range(), &Fence::default());
        assert!(got.unwrap().wait(LONG));
        assert!(memory.read() == pattern(bytes, i), "run {i}");
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_abort_on_one_side_of_a_channel_releases_both() {
    const CASE: &str = "an_abort_on_one_side_of_a_channel_releases_both";
    let device = fake_gpu::device();
    let abort = Arc::new(AbortCell::default());
    if role().is_some() {
        let sender = ChannelSender::new(device.gpu(), OPTIONS, &abort).unwrap();
        println!("offer {}", hex(&sender.offer().to_bytes()));
        // More than there are slots: it waits for a receiver that reads none.
        let memory = GpuMemory::new(&device, 100_000, 1);
        let sent = sender.send(device.queue(), memory.range(), &Fence::default());
        assert!(sent.unwrap().wait(LONG));
        wait_for_parent();
        return;
    }
    let mut child = again(CASE, "sender", &[]);
    let offer = Offer::from_bytes(&unhex(&line_after(&mut child, "offer ")));
    let receiver = ChannelReceiver::new(device.gpu(), &offer, &abort).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    abort.set(Error::new(Status::Aborted, "test"));
    let memory = GpuMemory::new(&device, 10, 1);
    let refused = receiver.receive(device.queue(), memory.range(), &Fence::default());
    assert_eq!(refused.unwrap_err().status, Status::Aborted);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

// --- libraries ---------------------------------------------------------------

fn make_device() -> weightsync::Result<CudaDevice> {
    CudaDevice::new(0, CudaOptions::default())
}

#[test]
fn a_library_that_is_not_there_is_named() {
    const CASE: &str = "a_library_that_is_not_there_is_named";
    if role().is_none() {
        return run_with(CASE, &[("WSYNC_CUDART_LIBRARY", "/nowhere/libcudart.so")]);
    }
    let e = make_device().unwrap_err();
    assert_eq!(e.status, Status::LibraryNotFound);
    assert!(e.message.contains("/nowhere/libcudart.so"), "{e}");
    assert!(e.message.contains("WSYNC_CUDART_LIBRARY"), "{e}");
}

#[test]
fn a_machine_without_a_driver_or_a_gpu_says_so() {
    const CASE: &str = "a_machine_without_a_driver_or_a_gpu_says_so";
    if role().is_none() {
        run_with(CASE, &[("FAKE_GPU_NO_DRIVER", "1")]);
        return run_with(CASE, &[("FAKE_GPU_DEVICES", "0")]);
    }
    fake_gpu::choose();
    let e = make_device().unwrap_err();
    if std::env::var_os("FAKE_GPU_NO_DRIVER").is_some() {
        assert_eq!(e.status, Status::LibraryNotFound);
        assert!(e.message.contains("no NVIDIA driver"), "{e}");
    } else {
        assert!(e.message.contains("cudaErrorNoDevice"), "{e}");
    }
}

#[test]
fn an_old_runtime_has_the_driver_load_the_kernels() {
    const CASE: &str = "an_old_runtime_has_the_driver_load_the_kernels";
    if fake_gpu::is_real() {
        return;
    }
    if role().is_none() {
        let old = fake_gpu::cudart_old();
        let old = old.to_str().unwrap();
        let libraries = [("WSYNC_CUDART_LIBRARY", old), ("WSYNC_CUDA_LIBRARY", old)];
        return run_with(CASE, &libraries);
    }
    let runtime = &gpu::library().unwrap().runtime;
    assert!(runtime.library_load_data.is_none());
    let device = Arc::new(make_device().unwrap());
    let memory = GpuMemory::new(&device, 1000, 7);
    assert_eq!(memory.read(), [7; 1000]);
}

#[test]
fn memory_of_a_gpu_out_of_reach_is_refused() {
    const CASE: &str = "memory_of_a_gpu_out_of_reach_is_refused";
    if fake_gpu::is_real() {
        return;
    }
    if role().is_none() {
        return run_with(CASE, &[("FAKE_GPU_NO_PEER", "1")]);
    }
    fake_gpu::choose();
    let e = Gpu::new(0).unwrap().reach(1).unwrap_err();
    assert_eq!(e.status, Status::Unsupported);
    assert!(e.message.contains("GPU 0 does not reach"), "{e}");
}

#[test]
fn the_current_device_of_a_thread_stays_what_it_was() {
    if fake_gpu::is_real() {
        return;
    }
    fake_gpu::choose();
    let second = Gpu::new(1).unwrap();
    let runtime = second.runtime();
    let current = || {
        let mut device = -1;
        // SAFETY: a place for one number.
        unsafe { (runtime.get_device)(&mut device) };
        device
    };
    assert_eq!(current(), 0);
    let memory = second.allocate(4096).unwrap();
    assert_eq!(current(), 0);
    {
        let _current = second.enter().unwrap();
        assert_eq!(current(), 1);
        let first = Gpu::new(0).unwrap();
        let inner = first.enter().unwrap();
        assert_eq!(current(), 0);
        drop(inner);
        assert_eq!(current(), 1);
    }
    assert_eq!(current(), 0);
    second.free(memory);
}

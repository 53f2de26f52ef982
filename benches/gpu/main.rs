//! How fast a GPU packs, unpacks, casts and delivers, beside a plain
//! device-to-device copy of the same run; and what a plan costs over NCCL, beside
//! plain groups (`nccl`).
//!
//! Each figure is the median of nine rounds, in which the yardstick and ours
//! run one after the other, each twenty times in one stream, so that what is
//! timed is the GPU and not the calls. Without a GPU it says so and ends.
//!
//! ```text
//! cargo bench --bench gpu [-- ROWS]      16384 rows unless told; few for a try
//! ```

mod nccl;
#[path = "../../tests/transport_support/mod.rs"]
mod transport_support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use transport_support::{Builder, View, bind, bounds};
use weightsync::device::copy::End;
use weightsync::device::cuda::channel::*;
use weightsync::device::cuda::ipc::{EXPORTED_BYTES, Exported, Opened};
use weightsync::device::cuda::{CopyPath, CudaDevice, CudaOptions};
use weightsync::device::fence::{AbortCell, Fence};
use weightsync::device::{Binding, Device, MemoryRange, Task, Work};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::Tensor;
use weightsync::plan::program::{Direction, Program, Side};

const ROUNDS: usize = 9;
const REPEATS: usize = 20;
/// Elements of a row, and its share: a cut of the input dimension.
const SHARE: u64 = 8192;
const WHOLE: u64 = 16384;
const LONG: Duration = Duration::from_secs(60);
const CHILD: &str = "WSYNC_BENCH_CHILD";

fn rows() -> u64 {
    let given = std::env::args().find_map(|a| a.parse().ok());
    given.unwrap_or(16384)
}

fn main() {
    let device = match CudaDevice::new(0, CudaOptions::default()) {
        Ok(device) => Arc::new(device),
        Err(e) => return println!("skipped: no GPU ({})", e.message),
    };
    if std::env::var(CHILD).is_ok() {
        return child(&device);
    }
    println!(
        "{:<44} {:>9} {:>9} {:>7} {:>7}  (GB/s, median of {ROUNDS})",
        "", "ours", "copy", "ratio", "target"
    );
    let bf16 = Dtype::BF16;
    for (path, name) in [
        (CopyPath::Kernels, "kernels"),
        (CopyPath::Engines, "engines"),
    ] {
        let device = CudaDevice::new(0, CudaOptions { copy_path: path }).expect("a GPU");
        let device = Arc::new(device);
        let case = Case::new(&device, bf16, bf16);
        let bytes = rows() * SHARE * 2;
        case.compare(
            &format!("pack row-parallel, {name}"),
            0.9,
            bytes,
            Task::Pack { step: 0 },
        );
        case.compare(
            &format!("unpack row-parallel, {name}"),
            0.9,
            bytes,
            Task::Unpack { step: 0 },
        );
        case.compare(
            &format!("local copy, {name}"),
            0.9,
            bytes,
            Task::Local { step: 0 },
        );
    }
    for (from, to) in [
        (Dtype::F32, bf16),
        (bf16, Dtype::F32),
        (Dtype::F32, Dtype::F16),
    ] {
        let case = Case::new(&device, from, to);
        let moved = rows() * SHARE * (from.bytes() + to.bytes()) / 2;
        let name = format!("cast {from} to {to}, region to region");
        case.compare(&name, 0.85, moved, Task::Local { step: 0 });
    }
    let case = Case::new(&device, bf16, bf16);
    case.compare("checksum", 0.0, rows() * SHARE * 2, Task::DigestSource);
    colocated(&device);
    processes(&device);
    drop(device);
    nccl::compare();
}

/// One rank that cuts a share of columns out of a whole matrix.
struct Case {
    device: Arc<CudaDevice>,
    binding: Arc<Binding>,
    yardstick: [MemoryRange; 2],
    held: Vec<MemoryRange>,
}

fn program(from: Dtype, to: Dtype) -> Program {
    let tensors: Arc<[Tensor]> =
        vec![Tensor::new("w", &[rows(), WHOLE], to).expect("valid")].into();
    let view = |slot, dtype: Dtype, columns: u64| View {
        rank: 0,
        slot,
        offset: 0,
        dtype,
        bounds: bounds(&[(0, rows()), (0, columns)]),
        strides: vec![(columns * dtype.bytes()) as i64, dtype.bytes() as i64],
    };
    let (whole, share) = (view(0, from, WHOLE), view(1, to, WHOLE));
    let cut = bounds(&[(0, rows()), (0, SHARE)]);
    let wire = if from.bytes() < to.bytes() { from } else { to };
    let mut b = Builder::new(0, &tensors);
    b.buffer(Side::Source);
    b.buffer(Side::Destination);
    b.message(0, 1, Direction::Send, &[(&whole, cut.clone())], wire);
    b.message(0, 1, Direction::Receive, &[(&share, cut.clone())], wire);
    b.local(0, &whole, &share, &cut);
    b.digest(Side::Source, 0, &whole, &cut, to);
    b.build(1)
}

impl Case {
    fn new(device: &Arc<CudaDevice>, from: Dtype, to: Dtype) -> Case {
        let program = Arc::new(program(from, to));
        let allocate = |bytes| device.allocate(bytes).expect("enough GPU memory");
        let memory = [from, to].map(|d| allocate(rows() * WHOLE * d.bytes()));
        let staging = allocate(program.staging_bytes);
        let largest = rows() * SHARE * 4;
        let yardstick = [allocate(largest), allocate(largest)];
        let mut held = memory.to_vec();
        held.extend([staging, yardstick[0], yardstick[1]]);
        let binding = bind(&program, memory.to_vec(), staging, &Arc::default()).expect("fits");
        device.prepare(&binding).expect("prepared");
        Case {
            device: device.clone(),
            binding,
            yardstick,
            held,
        }
    }

    fn compare(&self, name: &str, target: f64, bytes: u64, task: Task) {
        let [from, to] = self.yardstick;
        compare(
            name,
            target,
            bytes,
            || {
                let work = Work {
                    binding: self.binding.clone(),
                    task,
                    sequence: 1,
                };
                self.device
                    .enqueue(work, &Fence::default())
                    .expect("enqueued")
            },
            || copy(&self.device, to.address, from.address, bytes),
        );
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        for range in self.held.drain(..) {
            self.device.free(range);
        }
    }
}

/// A plain copy in the device's stream.
fn copy(device: &CudaDevice, to: usize, from: usize, bytes: u64) -> Fence {
    let to = std::ptr::with_exposed_provenance_mut(to);
    let from = std::ptr::with_exposed_provenance(from);
    let queue = device.queue().begin(&Fence::default(), &Arc::default());
    let queue = queue.expect("a stream");
    let stream = queue.stream();
    let gpu = device.gpu();
    gpu.check("cudaMemcpyAsync", |r| {
        let kind = cuda_runtime_sys::CopyKind::DEFAULT;
        // SAFETY: memory of the bench, of at least so many bytes.
        unsafe { (r.memcpy_async)(to, from, bytes as usize, kind, stream) }
    })
    .expect("copied");
    queue.end(None).expect("enqueued")
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn time(one: &impl Fn() -> Fence) -> f64 {
    let start = Instant::now();
    let mut last = Fence::default();
    for _ in 0..REPEATS {
        last = one();
    }
    assert!(last.wait(LONG));
    start.elapsed().as_secs_f64() / REPEATS as f64
}

fn compare(
    name: &str,
    target: f64,
    bytes: u64,
    ours: impl Fn() -> Fence,
    yardstick: impl Fn() -> Fence,
) {
    time(&ours);
    time(&yardstick);
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(time(&yardstick));
        mine.push(time(&ours));
    }
    let rate = |times: Vec<f64>| bytes as f64 / median(times) / 1e9;
    let (mine, theirs) = (rate(mine), rate(theirs));
    println!(
        "{name:<44} {mine:>9.1} {theirs:>9.1} {:>7.2} {target:>7.2}",
        mine / theirs
    );
}

/// A peer of the same process: one copy, region to region.
fn colocated(device: &Arc<CudaDevice>) {
    let (from, to) = (
        Case::new(device, Dtype::BF16, Dtype::BF16),
        Case::new(device, Dtype::BF16, Dtype::BF16),
    );
    let mover = to.binding.mover().expect("prepared").clone();
    let bytes = rows() * SHARE * 2;
    let [a, b] = to.yardstick;
    compare(
        "colocated, in one process",
        0.9,
        bytes,
        || {
            let send = End {
                binding: &from.binding,
                message: &from.binding.program.messages[0],
            };
            let receive = End {
                binding: &to.binding,
                message: &to.binding.program.messages[1],
            };
            let moved = mover.clone().copy_message(send, receive, 1, false);
            moved.expect("enqueued")
        },
        || copy(device, b.address, a.address, bytes),
    );
}

fn ipc_bytes() -> u64 {
    rows() * (16 << 10)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The other process: exports memory, and sends through a channel.
fn child(device: &Arc<CudaDevice>) {
    let memory = device.allocate(ipc_bytes()).expect("enough GPU memory");
    let exported = Exported::new(device.gpu(), memory)
        .expect("asked")
        .expect("exportable");
    let abort = Arc::new(AbortCell::default());
    let options = ChannelOptions::default();
    let sender = ChannelSender::new(device.gpu(), options, &abort).expect("a channel");
    println!("{}", hex(&exported.to_bytes()));
    println!("{}", hex(&sender.offer().to_bytes()));
    let mut last = Fence::default();
    for _ in 0..(ROUNDS + 1) * REPEATS {
        last = sender
            .send(device.queue(), memory, &Fence::default())
            .expect("sent");
    }
    assert!(last.wait(LONG));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A peer in another process.
fn processes(device: &Arc<CudaDevice>) {
    let mut other = Command::new(std::env::current_exe().expect("a path"))
        .arg(rows().to_string())
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("another process");
    let mut lines = BufReader::new(other.stdout.take().expect("piped")).lines();
    let mut line = || unhex(&lines.next().expect("a line").expect("text"));
    let exported: [u8; EXPORTED_BYTES] = line().try_into().expect("its size");
    let offer: [u8; OFFER_BYTES] = line().try_into().expect("its size");
    let opened = Opened::new(device.gpu(), &Exported::from_bytes(&exported)).expect("opened");
    let [a, b] = [(); 2].map(|()| device.allocate(ipc_bytes()).expect("enough GPU memory"));
    compare(
        "colocated, another process, exported",
        0.9,
        ipc_bytes(),
        || copy(device, a.address, opened.range().address, ipc_bytes()),
        || copy(device, b.address, a.address, ipc_bytes()),
    );
    let abort = Arc::new(AbortCell::default());
    let offer = Offer::from_bytes(&offer);
    let receiver = ChannelReceiver::new(device.gpu(), &offer, &abort).expect("a channel");
    compare(
        "colocated, another process, staged",
        0.45,
        ipc_bytes(),
        || {
            receiver
                .receive(device.queue(), a, &Fence::default())
                .expect("received")
        },
        || copy(device, b.address, a.address, ipc_bytes()),
    );
    drop(receiver);
    drop(opened);
    drop(other.stdin.take());
    let _ = other.wait();
    for range in [a, b] {
        device.free(range);
    }
}

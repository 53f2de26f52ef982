//! How fast bytes move, beside yardsticks of the same run.
//!
//! Every figure is the median of nine rounds; in each round the yardstick and
//! ours run one after the other over the same pre-faulted pages. The yardstick
//! of loopback is one `memcpy` of the same bytes by one thread, that of shm a
//! bare ring of 8 slots of 1 MiB between the same two processes.
//!
//! ```text
//! CARGO_PROFILE_RELEASE_LTO=off cargo bench --bench transport [-- loopback|shm|kernels]
//! ```

#[path = "../tests/transport_support/mod.rs"]
mod transport_support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use transport_support::world::{LONG, World, wait_all};
use transport_support::{Builder, View, bind, bounds};
use weightsync::Rank;
use weightsync::device::copy::{Stop, copy_local};
use weightsync::device::digest::digest_destination;
use weightsync::device::fence::{AbortCell, Fence};
use weightsync::device::host::HostDevice;
use weightsync::device::{Binding, Device, MemoryRange};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Tensor};
use weightsync::plan::program::{Program, Side};
use weightsync::transport::Transport;
use weightsync::transport::loopback::LoopbackHub;
use weightsync::transport::shm::ShmTransport;

const ROUNDS: usize = 9;
const BYTES: u64 = 256 << 20;
const CHILD: &str = "WSYNC_BENCH_CHILD";

fn main() {
    if std::env::var(CHILD).is_ok() {
        return shm_child();
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(&**w));
    println!(
        "{:<44} {:>9} {:>9} {:>7}  (GB/s, median of {ROUNDS})",
        "", "ours", "yardstick", "ratio"
    );
    if is_wanted("loopback") {
        loopback();
    }
    if is_wanted("shm") {
        shm();
    }
    if is_wanted("kernels") {
        kernels();
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn speed(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Alternates the two, and prints their medians.
fn compare(name: &str, bytes: u64, ours: impl FnMut(), yardstick: impl FnMut()) {
    let start = Instant::now();
    compare_by(|| start.elapsed(), name, bytes, ours, yardstick);
}

/// The same by the processor time of this thread, for work that it does
/// itself: other processes matter less.
fn compare_alone(name: &str, bytes: u64, ours: impl FnMut(), yardstick: impl FnMut()) {
    let now = || {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is to a local of the right type.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    compare_by(now, name, bytes, ours, yardstick);
}

fn compare_by(
    now: impl Fn() -> Duration,
    name: &str,
    bytes: u64,
    mut ours: impl FnMut(),
    mut yardstick: impl FnMut(),
) {
    let (mut a, mut b) = (vec![], vec![]);
    yardstick();
    ours();
    for _ in 0..ROUNDS {
        let start = now();
        yardstick();
        b.push(now() - start);
        let start = now();
        ours();
        a.push(now() - start);
    }
    let (a, b) = (speed(bytes, median(a)), speed(bytes, median(b)));
    println!("{name:<44} {a:>9.2} {b:>9.2} {:>7.3}", a / b);
}

fn memcpy(from: MemoryRange, to: MemoryRange, bytes: u64) {
    let from: *const u8 = std::ptr::with_exposed_provenance(from.address);
    let to: *mut u8 = std::ptr::with_exposed_provenance_mut(to.address);
    // SAFETY: both ranges hold `bytes` bytes, and nobody else uses them now.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes as usize) };
}

fn touch(range: MemoryRange) {
    let start: *mut u8 = std::ptr::with_exposed_provenance_mut(range.address);
    // SAFETY: freshly allocated, and nobody else knows it.
    unsafe { start.write_bytes(0x3c, range.bytes as usize) };
}

fn allocate(device: &HostDevice, bytes: u64) -> MemoryRange {
    let range = device.allocate(bytes).expect("enough memory");
    touch(range);
    range
}

// ---- loopback ---------------------------------------------------------------

fn loopback() {
    let device = HostDevice::new().expect("a device");
    let source = allocate(&device, 4 * BYTES);
    let target = allocate(&device, 4 * BYTES);
    let cases = [
        ("loopback, contiguous, 1 step", BYTES, 0, 1),
        ("loopback, contiguous, 8 steps", BYTES, 0, 8),
        ("loopback, rows of 4 KiB, stride 16 KiB", 4096, 12288, 8),
        ("loopback, rows of 2 KiB, stride 8 KiB", 2048, 6144, 8),
        ("loopback, rows of 1 KiB, stride 4 KiB", 1024, 3072, 8),
        ("loopback, rows of 768 B, stride 3 KiB", 768, 2304, 8),
    ];
    for (name, row, gap, steps) in cases {
        let world = match gap {
            0 => World::stream(BYTES, 1 << 20, 0, steps),
            gap => World::stream(BYTES / row * row, row, gap, steps),
        };
        let hub = LoopbackHub::new(2);
        let transports: Vec<_> = (0..2)
            .map(|r| hub.attach(Rank(r)).expect("a place"))
            .collect();
        let bind = |rank: usize, memory| {
            let abort = transports[rank].abort_cell();
            bind(&world.programs[rank], memory, MemoryRange::EMPTY, abort).expect("fits")
        };
        let from = bind(0, vec![source, MemoryRange::EMPTY]);
        let to = bind(1, vec![MemoryRange::EMPTY, target]);
        let deadline = Instant::now() + LONG;
        transports[0].connect(&from, deadline).expect("peers");
        transports[1].connect(&to, deadline).expect("peers");
        let bytes = world.bytes[1][1];
        compare(
            name,
            bytes,
            || {
                let mut fences = enqueue(&*transports[1], &to);
                fences.extend(enqueue(&*transports[0], &from));
                assert!(wait_all(&fences, LONG));
            },
            || memcpy(source, target, bytes),
        );
        assert_eq!(transports[1].abort_cell().reason(), None);
    }
    small_steps("loopback", |world| {
        let hub = LoopbackHub::new(world.ranks);
        (0..2)
            .map(|r| hub.attach(Rank(r)).expect("a place") as Arc<dyn Transport>)
            .collect()
    });
}

fn enqueue(transport: &dyn Transport, binding: &Arc<Binding>) -> Vec<Fence> {
    (0..binding.program.steps.len() as u32)
        .map(|step| {
            transport
                .enqueue(binding, step, 1, &Fence::default())
                .expect("a step")
        })
        .collect()
}

/// Time per step of almost no bytes: what the machinery costs.
fn small_steps(name: &str, transports: impl Fn(&World) -> Vec<Arc<dyn Transport>>) {
    const STEPS: u32 = 1000;
    let world = World::stream(64 * u64::from(STEPS), 64, 0, STEPS);
    let all = transports(&world);
    let mut memory: Vec<_> = (0..2).map(|r| world.memory(r, 1)).collect();
    let bindings: Vec<_> = (0..2)
        .map(|r| {
            world.bind(
                r as u32,
                &mut memory[r],
                MemoryRange::EMPTY,
                all[r].abort_cell(),
            )
        })
        .collect();
    for (t, b) in all.iter().zip(&bindings) {
        t.connect(b, Instant::now() + LONG).expect("peers");
    }
    let mut times = vec![];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut fences = enqueue(&*all[1], &bindings[1]);
        fences.extend(enqueue(&*all[0], &bindings[0]));
        assert!(wait_all(&fences, LONG));
        times.push(start.elapsed());
    }
    let per_step = median(times).as_secs_f64() / f64::from(STEPS) * 1e6;
    println!(
        "{:<44} {per_step:>9.2} us per step",
        format!("{name}, 64 bytes a step")
    );
}

// ---- shm --------------------------------------------------------------------

/// A bare ring: two counters and eight slots, and nothing else.
struct Bare {
    start: *mut u8,
}

const SLOTS: u64 = 8;
const SLOT: u64 = 1 << 20;
const HEAD: u64 = 4096;

impl Bare {
    fn map(fd: i32) -> Bare {
        let bytes = (HEAD + SLOTS * SLOT) as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping of a file of this size.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Bare {
            start: start.cast(),
        }
    }

    fn counter(&self, i: usize) -> &AtomicU64 {
        // SAFETY: inside the head of the mapping, which lives for ever.
        unsafe { &*self.start.add(128 * i).cast() }
    }

    fn slot(&self, i: u64) -> *mut u8 {
        // SAFETY: inside the mapping.
        unsafe { self.start.add((HEAD + i % SLOTS * SLOT) as usize) }
    }

    fn wait(&self, is_ready: impl Fn() -> bool) {
        let mut spins = 0u32;
        while !is_ready() {
            spins += 1;
            match spins % 64 {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }

    fn send(&self, from: MemoryRange) {
        let (full, free) = (self.counter(0), self.counter(1));
        for i in 0..from.bytes / SLOT {
            let at = full.load(Ordering::Relaxed);
            self.wait(|| at - free.load(Ordering::Acquire) < SLOTS);
            let from: *const u8 = std::ptr::with_exposed_provenance(from.address);
            // SAFETY: one slot of each.
            unsafe {
                let from = from.add((i * SLOT) as usize);
                std::ptr::copy_nonoverlapping(from, self.slot(at), SLOT as usize);
            }
            full.store(at + 1, Ordering::Release);
        }
    }

    fn receive(&self, to: MemoryRange) {
        let (full, free) = (self.counter(0), self.counter(1));
        for i in 0..to.bytes / SLOT {
            let at = free.load(Ordering::Relaxed);
            self.wait(|| full.load(Ordering::Acquire) > at);
            let to: *mut u8 = std::ptr::with_exposed_provenance_mut(to.address);
            // SAFETY: one slot of each.
            unsafe {
                let to = to.add((i * SLOT) as usize);
                std::ptr::copy_nonoverlapping(self.slot(at), to, SLOT as usize);
            }
            free.store(at + 1, Ordering::Release);
        }
    }
}

const SHM_CASES: [(&str, u64, u64, u32); 4] = [
    ("shm, contiguous, 1 step", 1 << 20, 0, 1),
    ("shm, contiguous, 8 steps", 1 << 20, 0, 8),
    ("shm, rows of 4 KiB, stride 16 KiB", 4096, 12288, 8),
    ("shm, rows of 1 KiB, stride 4 KiB", 1024, 3072, 8),
];

fn shm() {
    // SAFETY: a C string and flags; inherited by the child on purpose.
    let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), 0) };
    let bytes = (HEAD + SLOTS * SLOT) as i64;
    // SAFETY: our own descriptor.
    let sized = unsafe { libc::ftruncate(fd, bytes) };
    assert_eq!(sized, 0);
    let bare = Bare::map(fd);
    let device = HostDevice::new().expect("a device");
    let source = allocate(&device, 4 * BYTES);
    for (i, (name, row, gap, steps)) in SHM_CASES.into_iter().enumerate() {
        let world = World::stream(BYTES, row, gap, steps);
        let transport = ShmTransport::new(Rank(0)).expect("a transport");
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .env(CHILD, format!("{i} {fd}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut to = child.stdin.take().expect("a pipe");
        let mut from = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut hear = || from.next().expect("a line").expect("a line");
        let address = unhex(&hear());
        transport
            .set_peers(vec![(Rank(1), address)])
            .expect("an address");
        let memory = vec![source, MemoryRange::EMPTY];
        let abort = transport.abort_cell();
        let binding = bind(&world.programs[0], memory, MemoryRange::EMPTY, abort).expect("fits");
        transport
            .connect(&binding, Instant::now() + LONG)
            .expect("a peer");
        let mut say = |word: &str| writeln!(to, "{word}").expect("a pipe");
        let mut ask = |word: &str, work: &dyn Fn()| {
            say(word);
            work();
            assert_eq!(hear(), "done");
        };
        let bytes = world.bytes[1][1];
        let flat = MemoryRange { bytes, ..source };
        let ask = std::cell::RefCell::new(&mut ask);
        compare(
            name,
            bytes,
            || {
                ask.borrow_mut()("ours", &|| {
                    assert!(wait_all(&enqueue(&*transport, &binding), LONG));
                });
            },
            || ask.borrow_mut()("bare", &|| bare.send(flat)),
        );
        assert_eq!(transport.abort_cell().reason(), None);
        drop(to);
        child.wait().expect("an end");
    }
    small_steps("shm", |_| {
        let all: Vec<_> = (0..2)
            .map(|r| ShmTransport::new(Rank(r)).expect("a transport"))
            .collect();
        let addresses: Vec<_> = all.iter().map(|t| (t.rank(), t.address())).collect();
        all.into_iter()
            .map(|t| {
                t.set_peers(addresses.clone()).expect("addresses");
                t as Arc<dyn Transport>
            })
            .collect()
    });
}

/// Rank 1, in a process of its own.
fn shm_child() {
    let role = std::env::var(CHILD).expect("a role");
    let (case, fd) = role.split_once(' ').expect("two numbers");
    let (_, row, gap, steps) = SHM_CASES[case.parse::<usize>().expect("a number")];
    let bare = Bare::map(fd.parse().expect("a number"));
    let world = World::stream(BYTES, row, gap, steps);
    let device = HostDevice::new().expect("a device");
    let target = allocate(&device, world.bytes[1][1]);
    let transport = ShmTransport::new(Rank(1)).expect("a transport");
    let memory = vec![MemoryRange::EMPTY, target];
    let abort = transport.abort_cell();
    let binding = bind(&world.programs[1], memory, MemoryRange::EMPTY, abort).expect("fits");
    let hex: String = transport
        .address()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    println!("{hex}");
    for line in std::io::stdin().lines() {
        match line.expect("a line").as_str() {
            "ours" => assert!(wait_all(&enqueue(&*transport, &binding), LONG)),
            _ => bare.receive(target),
        }
        println!("done");
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}

// ---- kernels ------------------------------------------------------------------

/// A program of one local copy of one contiguous tensor, and its digest.
fn one_copy(elements: u64, from: Dtype, to: Dtype) -> Program {
    let tensors = vec![Tensor::new("t", &[elements], to).expect("a tensor")].into();
    let whole = IndexBox::whole(&[elements]);
    let view = |slot, dtype: Dtype| View {
        rank: 0,
        slot,
        offset: 0,
        dtype,
        bounds: whole.clone(),
        strides: vec![dtype.bytes() as i64],
    };
    let mut builder = Builder::new(0, &tensors);
    builder.buffer(Side::Source);
    builder.buffer(Side::Destination);
    builder.local(0, &view(0, from), &view(1, to), &whole);
    builder.digest(
        Side::Destination,
        0,
        &view(1, to),
        &bounds(&[(0, elements)]),
        to,
    );
    builder.build(1)
}

/// Casts and digests; the yardstick is a memcpy of the larger side's bytes.
fn kernels() {
    let device = HostDevice::new().expect("a device");
    let source = allocate(&device, BYTES);
    let target = allocate(&device, BYTES);
    let abort: Arc<AbortCell> = Arc::default();
    for (from, to) in [
        (Dtype::F32, Dtype::BF16),
        (Dtype::F32, Dtype::F16),
        (Dtype::BF16, Dtype::F32),
        (Dtype::F16, Dtype::F32),
        (Dtype::BF16, Dtype::F16),
        (Dtype::F16, Dtype::BF16),
    ] {
        let size = from.bytes().max(to.bytes());
        let program = Arc::new(one_copy(BYTES / size, from, to));
        let memory = vec![source, target];
        let binding = bind(&program, memory, MemoryRange::EMPTY, &abort).expect("fits");
        let stop = Stop(&[]);
        compare_alone(
            &format!("cast {from} to {to}"),
            BYTES,
            || copy_local(&binding, &program.locals[0], stop).expect("no abort"),
            || memcpy(source, target, BYTES),
        );
    }
    for dtype in [Dtype::BF16, Dtype::F32, Dtype::U8, Dtype::I64] {
        let program = Arc::new(one_copy(BYTES / dtype.bytes(), dtype, dtype));
        let memory = vec![source, target];
        let binding = bind(&program, memory, MemoryRange::EMPTY, &abort).expect("fits");
        compare_alone(
            &format!("digest {dtype}"),
            BYTES,
            || digest_destination(&binding, Stop(&[])).expect("no abort"),
            || memcpy(source, target, BYTES),
        );
    }
}

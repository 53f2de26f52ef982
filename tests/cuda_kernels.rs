//! Kernels move, cast, zero and sum what the host does, bit for bit.

mod fake_gpu;
mod transport_support;

use fake_gpu::GpuMemory;
use proptest::prelude::*;
use std::sync::Arc;
use transport_support::{Builder, Memory, View, bind, bounds};
use weightsync::device::cuda::{CopyPath, CudaDevice};
use weightsync::device::fence::Fence;
use weightsync::device::host::HostDevice;
use weightsync::device::{Binding, Device, MemoryRange, Task, Work};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Tensor};
use weightsync::plan::program::{Direction, Program, Side};

/// One box of a tensor in two buffers of different order, gaps and type.
#[derive(Clone, Debug)]
struct Case {
    shape: Vec<u64>,
    cut: Vec<(u64, u64)>,
    from: Dtype,
    to: Dtype,
    /// Order of axes in memory, padding of each, and bytes before the first
    /// element, for source and destination.
    layouts: [(Vec<usize>, Vec<u64>, u64); 2],
    seed: u64,
}

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// Types that stay as they are: sizes 1, 2, 3, 4, 8, 16.
fn copied() -> Vec<Dtype> {
    let mut all = vec![Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::I64];
    all.push(Dtype::new(5, 128, 1).unwrap());
    all.push(Dtype::new(1, 8, 3).unwrap());
    all
}

fn types() -> impl Strategy<Value = (Dtype, Dtype)> {
    let floats = prop::sample::select(FLOATS.to_vec());
    prop_oneof![
        prop::sample::select(copied()).prop_map(|d| (d, d)),
        (floats.clone(), floats),
    ]
}

fn layout(rank: usize) -> impl Strategy<Value = (Vec<usize>, Vec<u64>, u64)> {
    let order = Just((0..rank).collect::<Vec<_>>()).prop_shuffle();
    let order = prop_oneof![2 => Just((0..rank).collect::<Vec<_>>()), 1 => order];
    let padding = prop::collection::vec(prop_oneof![3 => Just(0u64), 1 => 0u64..5], rank);
    (order, padding, prop_oneof![Just(0u64), Just(16), 0u64..4])
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..=8)
        .prop_flat_map(|rank| {
            let longest = [4000u64, 300, 40, 12, 6, 4, 3, 3][rank - 1];
            let axis = prop_oneof![1u64..=longest, Just(longest / 8 * 8 + 8)];
            let cuts = prop::collection::vec((axis, 0u64..4, 0u64..3), rank);
            (cuts, types(), layout(rank), layout(rank), any::<u64>())
        })
        .prop_map(|(cuts, (from, to), a, b, seed)| Case {
            shape: cuts.iter().map(|(n, lo, after)| n + lo + after).collect(),
            cut: cuts.iter().map(|(n, lo, _)| (*lo, lo + n)).collect(),
            from,
            to,
            layouts: [a, b],
            seed,
        })
}

impl Case {
    fn view(&self, side: usize, dtype: Dtype) -> (View, u64) {
        let (order, padding, lead) = &self.layouts[side];
        let mut stride = dtype.bytes();
        let mut strides = vec![0i64; self.cut.len()];
        for &axis in order.iter().rev() {
            strides[axis] = stride as i64;
            let (lo, hi) = self.cut[axis];
            stride *= hi - lo + padding[axis];
        }
        let view = View {
            rank: 0,
            slot: side as u32,
            // Values that are cast lie at multiples of their size.
            offset: lead
                * if self.from == self.to {
                    1
                } else {
                    dtype.bytes()
                },
            dtype,
            bounds: bounds(&self.cut),
            strides,
        };
        (view.clone(), view.offset + stride)
    }
}

/// A rank that packs a box for itself, unpacks it, copies it, zeroes and sums.
struct Bench {
    program: Arc<Program>,
    sizes: [u64; 2],
}

fn bench(case: &Case) -> Bench {
    let tensors: Arc<[Tensor]> = vec![Tensor::new("t", &case.shape, case.to).unwrap()].into();
    let (source, source_bytes) = case.view(0, case.from);
    let (target, target_bytes) = case.view(1, case.to);
    let cut: IndexBox = bounds(&case.cut);
    let wire = if case.from.bytes() < case.to.bytes() {
        case.from
    } else {
        case.to
    };
    let mut b = Builder::new(0, &tensors);
    b.buffer(Side::Source);
    b.buffer(Side::Destination);
    // Two pieces, so that there is a gap and nothing is direct.
    let parts = |view| vec![(view, cut.clone()), (view, cut.clone())];
    b.message(0, 1, Direction::Send, &parts(&source), wire);
    b.message(0, 1, Direction::Receive, &parts(&target), wire);
    b.local(1, &source, &target, &cut);
    b.fill(&target, &cut);
    b.digest(Side::Source, 0, &source, &cut, case.to);
    b.digest(Side::Destination, 0, &target, &cut, case.to);
    Bench {
        program: Arc::new(b.build(2)),
        sizes: [source_bytes, target_bytes],
    }
}

/// Everything that tasks leave behind.
#[derive(PartialEq)]
struct Left {
    packed: Vec<u8>,
    unpacked: Vec<u8>,
    copied: Vec<u8>,
    sums: [u64; 3],
    zeroed: Vec<u8>,
}

fn run_all(
    device: &dyn Device,
    binding: &Arc<Binding>,
    read: impl Fn(MemoryRange) -> Vec<u8>,
    write: impl Fn(MemoryRange, &[u8]),
) -> Left {
    let run = |task| {
        let work = Work {
            binding: binding.clone(),
            task,
            sequence: 1,
        };
        let done = device.enqueue(work, &Fence::default()).unwrap();
        assert!(done.wait(std::time::Duration::from_secs(60)));
        assert_eq!(binding.abort.reason(), None);
    };
    let [send, receive] = [0, 1].map(|i| &binding.program.messages[i]);
    let part = |m: &weightsync::plan::program::Message| MemoryRange {
        address: binding.staging.address + m.staging as usize,
        bytes: m.bytes,
    };
    run(Task::Pack { step: 0 });
    let packed = read(part(send));
    assert!(!binding.has_written(1));
    write(part(receive), &packed);
    run(Task::Unpack { step: 0 });
    assert!(binding.has_written(1) && !binding.has_written(2));
    let unpacked = read(binding.memory[1]);
    write(
        binding.memory[1],
        &vec![0x5a; binding.memory[1].bytes as usize],
    );
    run(Task::Local { step: 1 });
    let copied = read(binding.memory[1]);
    run(Task::DigestSource);
    run(Task::DigestDestination);
    let sums = &binding.sums;
    let sums = [&sums.once, &sums.sent, &sums.held]
        .map(|s| s[0].load(std::sync::atomic::Ordering::Relaxed));
    run(Task::Fill);
    Left {
        packed,
        unpacked,
        copied,
        sums,
        zeroed: read(binding.memory[1]),
    }
}

/// Values that rounding and special cases turn on, and any others.
fn source_bytes(case: &Case, bytes: u64) -> Vec<u8> {
    const ODD: [u32; 12] = [
        0,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0001,
        0x7fc0_0000,
        0x477f_e000,
        0x477f_f000,
        0x3380_0000,
        0x3300_0001,
        0x0000_0001,
        0x3f80_8000,
        0x7f7f_ffff,
    ];
    let mut x = case.seed;
    let mut out = Vec::new();
    while (out.len() as u64) < bytes + 4 {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = match (x >> 40) % 3 {
            0 => ODD[(x >> 33) as usize % ODD.len()],
            _ => (x >> 31) as u32,
        };
        out.extend(word.to_le_bytes());
    }
    out.truncate(bytes as usize);
    out
}

fn on_host(case: &Case, bench: &Bench) -> Left {
    let device = HostDevice::new().unwrap();
    let mut memory = bench.sizes.map(|bytes| Memory::new(bytes as usize));
    memory[0]
        .bytes_mut()
        .copy_from_slice(&source_bytes(case, bench.sizes[0]));
    let ranges = memory.iter_mut().map(Memory::range).collect();
    let staging = device.allocate(bench.program.staging_bytes).unwrap();
    let binding = bind(&bench.program, ranges, staging, &Arc::default()).unwrap();
    let at = |r: MemoryRange| std::ptr::with_exposed_provenance_mut::<u8>(r.address);
    run_all(
        &device,
        &binding,
        // SAFETY: memory of the binding, with no work going on.
        |r| unsafe { std::slice::from_raw_parts(at(r), r.bytes as usize) }.to_vec(),
        // SAFETY: as above.
        |r, bytes| unsafe { at(r).copy_from(bytes.as_ptr(), bytes.len()) },
    )
}

fn on_gpu(case: &Case, bench: &Bench, device: &Arc<CudaDevice>, is_pageable: bool) -> Left {
    let source = source_bytes(case, bench.sizes[0]);
    let mut host = Memory::new(bench.sizes[0] as usize);
    host.bytes_mut().copy_from_slice(&source);
    let memory = bench.sizes.map(|bytes| GpuMemory::new(device, bytes, 0x5a));
    memory[0].write(0, &source);
    let first = if is_pageable {
        host.range()
    } else {
        memory[0].range()
    };
    let ranges = vec![first, memory[1].range()];
    let staging = GpuMemory::new(device, bench.program.staging_bytes, 0xcb);
    let binding = bind(&bench.program, ranges, staging.range(), &Arc::default()).unwrap();
    let address = |bytes: &[u8]| bytes.as_ptr().expose_provenance();
    run_all(
        &**device,
        &binding,
        |r| {
            let mut out = vec![0; r.bytes as usize];
            let to = out.as_mut_ptr().expose_provenance();
            device.copy_now(to, r.address, r.bytes).unwrap();
            out
        },
        |r, bytes| device.copy_now(r.address, address(bytes), r.bytes).unwrap(),
    )
}

fn check(case: &Case, device: &Arc<CudaDevice>, is_pageable: bool) {
    let bench = bench(case);
    let (want, got) = (
        on_host(case, &bench),
        on_gpu(case, &bench, device, is_pageable),
    );
    assert!(got.packed == want.packed, "packed bytes differ: {case:?}");
    assert!(
        got.unpacked == want.unpacked,
        "unpacked bytes differ: {case:?}"
    );
    assert!(got.copied == want.copied, "copied bytes differ: {case:?}");
    assert_eq!(got.sums, want.sums, "{case:?}");
    assert!(got.zeroed == want.zeroed, "zeroed bytes differ: {case:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn any_box_in_any_order_and_type_is_what_the_host_makes(case in case()) {
        check(&case, &shared(CopyPath::Kernels), false);
    }

    #[test]
    fn copy_engines_do_the_same(case in case()) {
        check(&case, &shared(CopyPath::Engines), false);
    }

    #[test]
    fn source_memory_that_the_gpu_does_not_reach_is_staged(case in case()) {
        check(&case, &shared(CopyPath::Kernels), true);
    }
}

/// One device for all cases of a property.
fn shared(copy_path: CopyPath) -> Arc<CudaDevice> {
    use std::sync::OnceLock;
    static DEVICES: [OnceLock<Arc<CudaDevice>>; 2] = [OnceLock::new(), OnceLock::new()];
    let device = &DEVICES[usize::from(copy_path == CopyPath::Engines)];
    device
        .get_or_init(|| fake_gpu::device_with(copy_path))
        .clone()
}

/// A whole tensor of every 16-bit pattern, cast each way, in the wide path.
#[test]
fn every_half_is_cast_as_on_the_host() {
    let device = shared(CopyPath::Kernels);
    for (from, to) in [
        (Dtype::F16, Dtype::F32),
        (Dtype::BF16, Dtype::F32),
        (Dtype::F16, Dtype::BF16),
        (Dtype::BF16, Dtype::F16),
        (Dtype::F32, Dtype::F16),
        (Dtype::F32, Dtype::BF16),
    ] {
        let case = Case {
            shape: vec![65536],
            cut: vec![(0, 65536)],
            from,
            to,
            layouts: [(vec![0], vec![0], 0), (vec![0], vec![0], 0)],
            seed: 7,
        };
        check(&case, &device, false);
    }
}

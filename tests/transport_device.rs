//! The host device and the deferred one: order, fences, aborts, poison.

mod transport_support;

use std::sync::Arc;
use std::time::{Duration, Instant};
use transport_support::world::LONG;
use transport_support::{Builder, Memory, View, bind, bounds, dense};
use weightsync::device::deferred::{DeferredDevice, POISON};
use weightsync::device::fence::{Fence, Timeline};
use weightsync::device::host::HostDevice;
use weightsync::device::{Binding, Device, MemoryRange, Task, Work};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::Tensor;
use weightsync::plan::program::{Direction, Program, Side};
use weightsync::{Error, Status};

/// A rank that sends itself nothing: it packs two columns, unpacks two, copies
/// a box locally and has a row of padding.
struct Bench {
    memory: Memory,
    program: Arc<Program>,
}

const ROW: usize = 8;

impl Bench {
    fn new() -> Bench {
        let tensors = vec![Tensor::new("t", &[4, 8], Dtype::U8).unwrap()].into();
        let whole = bounds(&[(0, 4), (0, 8)]);
        let view = View {
            rank: 0,
            slot: 0,
            offset: 0,
            dtype: Dtype::U8,
            bounds: whole.clone(),
            strides: dense(&whole, Dtype::U8),
        };
        let mut b = Builder::new(0, &tensors);
        b.buffer(Side::Source);
        let column = |lo| vec![(&view, bounds(&[(0, 3), (lo, lo + 2)]))];
        b.message(0, 1, Direction::Send, &column(0), Dtype::U8);
        b.message(0, 1, Direction::Receive, &column(4), Dtype::U8);
        b.fill(&view, &bounds(&[(3, 4), (0, 8)]));
        Bench {
            memory: Memory::new(4 * ROW),
            program: Arc::new(b.build(1)),
        }
    }

    fn bind(&mut self, staging: MemoryRange) -> Arc<Binding> {
        let abort = Arc::default();
        bind(&self.program, vec![self.memory.range()], staging, &abort).unwrap()
    }
}

fn work(binding: &Arc<Binding>, task: Task) -> Work {
    Work {
        binding: binding.clone(),
        task,
        sequence: 7,
    }
}

fn bytes(range: MemoryRange) -> Vec<u8> {
    let start = std::ptr::with_exposed_provenance::<u8>(range.address);
    // SAFETY: memory of a device that lives, with no work going on.
    unsafe { std::slice::from_raw_parts(start, range.bytes as usize) }.to_vec()
}

#[test]
fn tasks_do_what_they_say_in_order() {
    let mut bench = Bench::new();
    for (i, b) in bench.memory.bytes_mut().iter_mut().enumerate() {
        *b = i as u8;
    }
    let device = HostDevice::new().unwrap();
    let staging = device.allocate(bench.program.staging_bytes).unwrap();
    let binding = bench.bind(staging);
    let send = &binding.program.messages[0];
    let receive = &binding.program.messages[1];
    let none = Fence::default();
    let packed = device
        .enqueue(work(&binding, Task::Pack { step: 0 }), &none)
        .unwrap();
    assert!(packed.wait(LONG));
    let at = send.staging as usize;
    assert_eq!(bytes(staging)[at..at + 6], [0, 1, 8, 9, 16, 17]);
    assert!(!binding.marks.has_written(7));
    // What arrives is what was packed, as if a transport had moved it.
    let moved: Vec<u8> = bytes(staging)[at..at + 6].to_vec();
    let target = std::ptr::with_exposed_provenance_mut::<u8>(staging.address);
    // SAFETY: inside staging, with no work going on.
    unsafe {
        target
            .add(receive.staging as usize)
            .copy_from(moved.as_ptr(), 6)
    };
    let unpacked = device
        .enqueue(work(&binding, Task::Unpack { step: 0 }), &packed)
        .unwrap();
    let filled = device.enqueue(work(&binding, Task::Fill), &none).unwrap();
    assert!(filled.wait(LONG) && unpacked.is_reached());
    assert!(binding.marks.has_written(7) && !binding.marks.has_written(8));
    let now = bench.memory.bytes();
    assert_eq!(now[..8], [0, 1, 2, 3, 0, 1, 6, 7]);
    assert_eq!(now[8..16], [8, 9, 10, 11, 8, 9, 14, 15]);
    assert_eq!(now[24..], [0; 8]);
    device.free(staging);
}

#[test]
fn work_waits_for_its_fence_and_those_behind_it_wait_too() {
    let mut bench = Bench::new();
    let device = HostDevice::new().unwrap();
    let binding = bench.bind(MemoryRange::EMPTY);
    let gate = Arc::new(Timeline::default());
    let first = device
        .enqueue(work(&binding, Task::Fill), &Fence::new(&gate, 1))
        .unwrap();
    let second = device
        .enqueue(work(&binding, Task::Fill), &Fence::default())
        .unwrap();
    assert!(!second.wait(Duration::from_millis(30)));
    assert!(!binding.marks.has_written(7));
    gate.advance(1);
    assert!(second.wait(LONG) && first.is_reached());
}

#[test]
fn an_abort_ends_a_wait_that_would_never_end() {
    let mut bench = Bench::new();
    let device = HostDevice::new().unwrap();
    let binding = bench.bind(MemoryRange::EMPTY);
    let never = Fence::new(&Arc::default(), 1);
    let stuck = device.enqueue(work(&binding, Task::Fill), &never).unwrap();
    let behind = device
        .enqueue(work(&binding, Task::Fill), &Fence::default())
        .unwrap();
    assert!(!stuck.wait(Duration::from_millis(20)));
    binding.abort.set(Error::new(Status::Aborted, "test"));
    let start = Instant::now();
    assert!(stuck.wait(LONG) && behind.wait(LONG));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(!binding.marks.has_written(7));
    assert!(bench.memory.bytes().iter().all(|&b| b == 0x5a));
}

#[test]
fn a_device_that_is_dropped_with_work_says_so() {
    let never = Fence::new(&Arc::default(), 1);
    let host = HostDevice::new().unwrap();
    let deferred = DeferredDevice::new();
    let devices: [Box<dyn Device>; 2] = [Box::new(host), Box::new(deferred)];
    for device in devices {
        let mut bench = Bench::new();
        let binding = bench.bind(MemoryRange::EMPTY);
        let stuck = device.enqueue(work(&binding, Task::Fill), &never).unwrap();
        drop(device);
        assert!(stuck.is_reached());
        let reason = binding.abort.reason().unwrap();
        assert_eq!(reason.status, Status::Aborted);
        assert!(!binding.marks.has_written(7));
    }
}

#[test]
fn packing_without_staging_is_refused() {
    let mut bench = Bench::new();
    let device = HostDevice::new().unwrap();
    let binding = bench.bind(MemoryRange::EMPTY);
    let none = Fence::default();
    for task in [Task::Pack { step: 0 }, Task::Unpack { step: 0 }] {
        let e = device.enqueue(work(&binding, task), &none).unwrap_err();
        assert_eq!(e.status, Status::InvalidState);
    }
    let e = device
        .enqueue(work(&binding, Task::Local { step: 1 }), &none)
        .unwrap_err();
    assert_eq!(e.status, Status::Internal);
}

#[test]
fn staging_that_is_too_small_is_refused_when_bound() {
    let mut bench = Bench::new();
    let range = bench.memory.range();
    let last = bench.program.messages[1].clone();
    let mut small = MemoryRange {
        bytes: last.staging + last.bytes,
        ..range
    };
    let abort = Arc::default();
    assert!(bind(&bench.program, vec![range], small, &abort).is_ok());
    small.bytes -= 1;
    let e = bind(&bench.program, vec![range], small, &abort).unwrap_err();
    assert_eq!(e.status, Status::StagingTooSmall);
}

#[test]
fn on_a_deferred_device_nothing_happens_by_itself() {
    let mut bench = Bench::new();
    let device = DeferredDevice::new();
    let staging = device.allocate(bench.program.staging_bytes).unwrap();
    assert!(bytes(staging).iter().all(|&b| b == POISON));
    let binding = bench.bind(staging);
    let send = binding.program.messages[0].staging as usize;
    let receive = binding.program.messages[1].staging as usize;
    let none = Fence::default();
    let gate = Arc::new(Timeline::default());
    let pack = |after| {
        device
            .enqueue(work(&binding, Task::Pack { step: 0 }), after)
            .unwrap()
    };
    let first = pack(&none);
    assert_eq!((device.waiting(), first.is_reached()), (1, false));
    assert_eq!(device.pump(1), 1);
    assert!(!first.is_reached());
    assert_eq!(device.pump(9), 1);
    assert!(first.is_reached());
    assert_eq!(bytes(staging)[send..send + 6], [0x5a; 6]);

    // The second pack poisons what the first has left, before it writes.
    let second = pack(&Fence::new(&gate, 1));
    assert_eq!(device.pump(9), 0);
    assert_eq!(bytes(staging)[send..send + 6], [0x5a; 6]);
    gate.advance(1);
    assert_eq!(device.pump(1), 1);
    assert_eq!(bytes(staging)[send..send + 6], [POISON; 6]);
    assert_eq!(device.pump(9), 1);
    assert!(second.is_reached());

    // An unpack poisons what it has read.
    let target = std::ptr::with_exposed_provenance_mut::<u8>(staging.address);
    // SAFETY: inside staging, with no work going on.
    unsafe { target.add(receive).write_bytes(1, 6) };
    let unpacked = device
        .enqueue(work(&binding, Task::Unpack { step: 0 }), &none)
        .unwrap();
    assert_eq!(device.pump(2), 2);
    assert!(unpacked.is_reached());
    assert_eq!(bytes(staging)[receive..receive + 6], [POISON; 6]);
    assert_eq!(bench.memory.bytes()[4..6], [1, 1]);
}

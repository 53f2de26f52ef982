//! A GPU among streams, captures and faults: what callers see.
//!
//! Faults are the stand-in's; tests that need them do nothing on a real GPU.

mod exec_support;
mod transport_support;

use exec_support::fake_gpu::{self, GpuMemory};
use exec_support::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use transport_support::{Builder, View, bind, bounds};
use weightsync::device::copy::End;
use weightsync::device::cuda::CudaDevice;
use weightsync::device::cuda::gpu::{Gpu, device_count};
use weightsync::device::cuda::place::{Place, is_exportable, place_of};
use weightsync::device::cuda::queue::CudaQueue;
use weightsync::device::fence::{AbortCell, Fence, Timeline};
use weightsync::device::{Device, MemoryRange, Task, Work};
use weightsync::exec::*;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::Tensor;
use weightsync::layout::view::Memory;
use weightsync::plan::program::{Direction, Side};
use weightsync::plan::topology::RankPlace;
use weightsync::transport::place;
use weightsync::{Error, Status};

/// The stand-in's counters and faults are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    fake_gpu::choose();
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

const LONG: Duration = Duration::from_secs(20);

/// Those whose buffers are on GPUs.
fn gpu_carriers() -> Vec<Carrier> {
    let is_on_gpu = |c: &Carrier| c.memory() != Memory::Host;
    carriers().into_iter().filter(is_on_gpu).collect()
}

#[test]
fn pointers_are_what_they_are() {
    let _alone = alone();
    let device = fake_gpu::device();
    let gpu = device.gpu();
    let memory = GpuMemory::new(&device, 4096, 1);
    let at = memory.range().address;
    assert_eq!(place_of(gpu, at + 100).unwrap(), Place::Device(0));
    assert!(is_exportable(gpu, at).unwrap());
    let pinned = gpu.allocate_pinned(4096).unwrap();
    assert_eq!(place_of(gpu, pinned + 8).unwrap(), Place::Pinned);
    assert!(!is_exportable(gpu, pinned).unwrap());
    gpu.free_pinned(pinned);
    let here = [0u8; 64];
    let address = here.as_ptr().expose_provenance();
    assert_eq!(place_of(gpu, address).unwrap(), Place::Pageable);
    if !fake_gpu::is_real() {
        let vmm = fake_gpu::allocate_vmm(4096);
        assert_eq!(place_of(gpu, vmm).unwrap(), Place::Device(0));
        assert!(!is_exportable(gpu, vmm).unwrap());
        gpu.free(vmm);
    }
}

#[test]
fn a_rank_that_names_no_device_has_the_gpu_of_its_thread() {
    let _alone = alone();
    let found_on = |index| {
        let gpu = Gpu::new(index).unwrap();
        let _current = gpu.enter().unwrap();
        let place = place::complete(RankPlace::default()).unwrap();
        place.validate().unwrap();
        (place, gpu.address().unwrap(), gpu.uuid().unwrap())
    };
    let (first, address, uuid) = found_on(0);
    match uuid {
        0 => assert!(first.device.ends_with(&address), "{first:?}"),
        _ => assert!(first.device.starts_with("GPU-"), "{first:?}"),
    }
    assert_eq!(found_on(0).0, first);
    if device_count().unwrap() > 1 {
        assert_ne!(found_on(1).0.device, first.device);
    }
}

#[test]
fn a_stream_waits_for_a_fence_of_the_host_and_nobody_else_does() {
    let _alone = alone();
    let device = fake_gpu::device();
    let host = Arc::new(Timeline::default());
    let abort = Arc::new(AbortCell::default());
    let start = Instant::now();
    let first = device.queue().begin(&Fence::new(&host, 1), &abort).unwrap();
    let first = first.end(None).unwrap();
    let second = device.queue().begin(&Fence::default(), &abort).unwrap();
    let second = second.end(None).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(!second.wait(Duration::from_millis(30)));
    host.advance(1);
    assert!(second.wait(LONG) && first.is_reached());
}

#[test]
fn an_abort_opens_a_gate_that_nobody_would() {
    let _alone = alone();
    let device = fake_gpu::device();
    let abort = Arc::new(AbortCell::default());
    let never = Fence::new(&Arc::default(), 1);
    let stuck = device.queue().begin(&never, &abort).unwrap();
    let stuck = stuck.end(None).unwrap();
    assert!(!stuck.wait(Duration::from_millis(20)));
    abort.set(Error::new(Status::Aborted, "test"));
    assert!(stuck.wait(LONG));
}

#[test]
fn streams_wait_for_each_other_without_the_host() {
    let _alone = alone();
    let device = fake_gpu::device();
    let other = CudaQueue::new(device.gpu()).unwrap();
    let host = Arc::new(Timeline::default());
    let abort = Arc::new(AbortCell::default());
    let a = device.queue().begin(&Fence::new(&host, 1), &abort).unwrap();
    let a = a.end(None).unwrap();
    let b = other.begin(&a, &abort).unwrap().end(None).unwrap();
    let c = device.queue().begin(&b, &abort).unwrap().end(None).unwrap();
    assert!(!b.wait(Duration::from_millis(20)));
    host.advance(1);
    // The host learns of them in any order.
    assert!([c, b, a].iter().all(|fence| fence.wait(LONG)));
}

/// A stream of a caller, which can be held up.
struct Caller {
    gpu: Arc<Gpu>,
    queue: CudaQueue,
    gate: Arc<Timeline>,
}

impl Caller {
    /// On the GPU of a rank.
    fn of(world: &World, rank: u32) -> Caller {
        let gpu = world.gpu(rank).unwrap().gpu().clone();
        Caller {
            queue: CudaQueue::new(&gpu).unwrap(),
            gate: Arc::default(),
            gpu,
        }
    }

    fn stream(&self) -> usize {
        let queue = self.queue.begin(&Fence::default(), &Arc::default());
        queue.unwrap().stream().0.expose_provenance()
    }

    /// Work of the caller's: bytes that are put to `to` once the gate is open.
    fn write(&self, to: MemoryRange, from: &[u8], value: u64) -> Fence {
        let after = Fence::new(&self.gate, value);
        let queue = self.queue.begin(&after, &Arc::default()).unwrap();
        copy(&self.gpu, queue.stream(), to.address, from);
        queue.end(None).unwrap()
    }
}

fn copy(gpu: &Gpu, stream: cuda_runtime_sys::Stream, to: usize, from: &[u8]) {
    let to = std::ptr::with_exposed_provenance_mut(to);
    let kind = cuda_runtime_sys::CopyKind::DEFAULT;
    // SAFETY: device memory of the test, pageable memory that is read at once.
    gpu.check("cudaMemcpyAsync", |r| unsafe {
        (r.memcpy_async)(to, from.as_ptr().cast(), from.len(), kind, stream)
    })
    .unwrap();
}

#[test]
fn a_transfer_is_ordered_with_the_callers_streams_on_both_ends() {
    let _alone = alone();
    for carrier in gpu_carriers() {
        let world = World::new(carrier, Shape::Apart, 3);
        let is_open = AtomicBool::new(false);
        world.run(|rig| {
            let caller = Caller::of(&world, rig.rank);
            rig.store(1);
            // The real version comes only when the caller's stream gets there.
            let mut written = Vec::new();
            if let Some(source) = rig.source() {
                for (buffer, bytes) in source.buffers.iter().zip(source.expected(2)) {
                    written.push(caller.write(buffer.range(), &bytes, 1));
                }
            }
            let started = Instant::now();
            rig.request.submit_on(&options(2), caller.stream()).unwrap();
            assert!(started.elapsed() < LONG);
            // What the caller puts after it sees the new weights, unasked.
            let after = caller.queue.begin(&Fence::default(), &Arc::default());
            let after = after.unwrap().end(None).unwrap();
            if !written.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(rig.request.state(), State::Running);
                assert!(!after.is_reached());
                is_open.store(true, Ordering::Release);
                caller.gate.advance(1);
            }
            assert!(after.wait(LONG));
            assert!(is_open.load(Ordering::Acquire));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(2), "{carrier:?}");
            }
            assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
        });
    }
}

#[test]
fn a_capture_is_refused_and_not_disturbed() {
    let _alone = alone();
    if fake_gpu::is_real() {
        return;
    }
    for carrier in [Carrier::GpuStaged, Carrier::Nccl] {
        let world = World::new(carrier, Shape::Apart, 3);
        let gate = Gate::new(6);
        world.run(|rig| {
            let caller = Caller::of(&world, rig.rank);
            let stream = caller.stream();
            rig.store(1);
            rig.request.prepare(&options(1)).unwrap();
            rig.request.wait_ready(20 * SECOND).unwrap();
            gate.wait();
            if rig.rank == 2 {
                fake_gpu::capture(stream, true);
                let e = rig.request.start_on(stream).unwrap_err();
                assert_eq!(e.status, Status::InvalidState, "{carrier:?}");
                assert!(e.message.contains("captured into a graph"), "{e}");
            }
            gate.wait();
            // Another stream than the one that is captured.
            rig.request.start().unwrap();
            assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(1), "{carrier:?}");
            }
            gate.wait();
            if rig.rank == 2 {
                fake_gpu::capture(stream, false);
            }
        });
        assert_eq!(fake_gpu::broken_captures(), 0, "{carrier:?}");
    }
}

/// Memory that hosts and GPUs both reach, on both sides.
#[test]
fn managed_memory_is_read_and_written_like_that_of_the_gpu() {
    let _alone = alone();
    for carrier in gpu_carriers() {
        let world = World::new(carrier, Shape::Half, 3);
        world.run(|rig| {
            rig.store(1);
            rig.in_memory_of(&world, allocate_managed, || {
                rig.request.submit(&options(1)).unwrap();
                assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
            });
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(1), "{carrier:?}");
            }
        });
    }
}

fn allocate_managed(device: &CudaDevice, bytes: u64) -> usize {
    use cuda_runtime_sys::MANAGED_ATTACH_GLOBAL;
    let _current = device.gpu().enter().unwrap();
    let mut at = std::ptr::null_mut();
    // SAFETY: a place for a pointer.
    let allocate = |r: &cuda_runtime_sys::Runtime| unsafe {
        r.malloc_managed.unwrap()(&mut at, bytes as usize, MANAGED_ATTACH_GLOBAL)
    };
    device.gpu().check("cudaMallocManaged", allocate).unwrap();
    let at = at.expose_provenance();
    assert_eq!(place_of(device.gpu(), at).unwrap(), Place::Managed);
    at
}

/// What is called in a request: launches, groups, what allocates, what waits.
fn calls() -> [u64; 6] {
    let cuda = [
        "cudaLaunchKernel",
        "cudaMalloc",
        "cudaHostAlloc",
        "cudaStreamSynchronize",
        "cudaEventSynchronize",
    ]
    .map(fake_gpu::calls);
    let groups = fake_gpu::nccl::calls("ncclGroupEnd");
    [cuda[0], groups, cuda[1], cuda[2], cuda[3], cuda[4]]
}

#[test]
fn a_step_is_one_launch_to_pack_and_one_to_unpack() {
    let _alone = alone();
    if fake_gpu::is_real() {
        return;
    }
    for carrier in [Carrier::GpuStaged, Carrier::Nccl] {
        let world = World::new(carrier, Shape::Apart, 4);
        let gate = Gate::new(6);
        world.run(|rig| {
            for version in 1..=3 {
                rig.store(version);
                gate.wait();
                let before = calls();
                gate.wait();
                rig.request.submit(&options(version)).unwrap();
                rig.request.wait(20 * SECOND).unwrap();
                gate.wait();
                let after = calls();
                // Two senders pack, four receivers unpack, in each of four steps.
                let launches = after[0] - before[0];
                assert!((1..=4 * 6).contains(&launches), "{launches} launches");
                // One group for each rank and step, where there is NCCL.
                let groups = after[1] - before[1];
                let expected = 4 * 6 * u64::from(carrier == Carrier::Nccl);
                assert_eq!(groups, expected);
                assert_eq!(after[2..4], before[2..4], "nothing is allocated");
                assert_eq!(after[4..], before[4..], "nobody waits for the GPU");
                gate.wait();
            }
        });
    }
}

/// Messages land in another stream than the one that unpacks and copies, and may
/// be there long before it.
#[test]
fn whatever_writes_first_marks_the_request() {
    let _alone = alone();
    let device = fake_gpu::device();
    let whole = bounds(&[(0, 8), (0, 8)]);
    let view = |rank, slot| View {
        rank,
        slot,
        offset: 0,
        dtype: Dtype::F32,
        bounds: whole.clone(),
        strides: vec![32, 4],
    };
    let memory = [(); 4].map(|()| GpuMemory::new(&device, 256, OLD));
    let abort = Arc::<AbortCell>::default();
    let end = |rank: u32, direction, slot| {
        let tensor = Tensor::new("w", &[8, 8], Dtype::F32).unwrap();
        let mut b = Builder::new(rank, &vec![tensor].into());
        b.buffer(Side::Source);
        b.buffer(Side::Destination);
        let part = (&view(rank, slot), whole.clone());
        b.message(0, 1 - rank, direction, &[part], Dtype::F32);
        b.local(0, &view(rank, 0), &view(rank, 1), &whole);
        let ranges = memory[2 * rank as usize..][..2].iter();
        let ranges = ranges.map(GpuMemory::range).collect();
        let program = Arc::new(b.build(1));
        let binding = bind(&program, ranges, MemoryRange::EMPTY, &abort).unwrap();
        device.prepare(&binding).unwrap();
        binding
    };
    let (from, to) = (end(0, Direction::Send, 0), end(1, Direction::Receive, 1));
    let never = Fence::new(&Arc::<Timeline>::default(), 1);
    let copies = Work {
        binding: to.clone(),
        task: Task::Local { step: 0 },
        sequence: 1,
    };
    let copied = device.enqueue(copies, &never).unwrap();
    let [send, receive] = [&from, &to].map(|binding| End {
        binding,
        message: &binding.program.messages[0],
    });
    let mover = to.mover().unwrap().clone();
    let landed = mover.copy_message(send, receive, 1, false).unwrap();
    assert!(landed.wait(LONG));
    assert!(!copied.is_reached());
    assert!(to.has_written(1));
    abort.set(Error::new(Status::Aborted, "test"));
    assert!(copied.wait(LONG));
}

#[test]
fn a_gpu_that_breaks_ends_the_request_and_says_why() {
    let _alone = alone();
    if fake_gpu::is_real() {
        return;
    }
    for carrier in [Carrier::Gpu, Carrier::GpuStaged] {
        let world = World::new(carrier, Shape::Apart, 3);
        let gate = Gate::new(6);
        world.run(|rig| {
            rig.store(1);
            gate.wait();
            if rig.rank == 0 {
                fake_gpu::fault(700);
            }
            gate.wait();
            let result = rig
                .request
                .submit(&options(1))
                .and_then(|()| rig.request.wait(20 * SECOND));
            let e = result.unwrap_err();
            assert!(e.message.contains("illegal memory access"), "{e}");
            gate.wait();
            if rig.rank == 0 {
                fake_gpu::heal();
            }
            gate.wait();
        });
    }
}

#[test]
fn a_launch_that_fails_ends_the_request() {
    let _alone = alone();
    if fake_gpu::is_real() {
        return;
    }
    let world = World::new(Carrier::GpuStaged, Shape::Apart, 3);
    let gate = Gate::new(6);
    let endings = world.run(|rig| {
        rig.store(1);
        let before = rig.snapshot();
        gate.wait();
        if rig.rank == 0 {
            fake_gpu::fail("cudaLaunchKernel", 1, 719);
        }
        gate.wait();
        let result = rig
            .request
            .submit(&options(1))
            .and_then(|()| rig.request.wait(20 * SECOND));
        assert!(failure(&result).message.contains("launching a kernel"));
        gate.wait();
        rig.verdict(&world, 1, &before)
    });
    check_verdicts(&endings, "a launch failed");
}

/// Binds other memory than it should, and loads.
fn load_with(range: MemoryRange, memory: Memory) -> Error {
    let world = World::new(Carrier::Gpu, Shape::Half, 2);
    let errors = world.run(|rig| {
        let d = rig.destination()?;
        let session = Session::open(&rig.endpoint, SessionOptions::default()).unwrap();
        for name in ["a.weight", "b.weight"] {
            session.bind(d.side, name, range, memory).unwrap();
        }
        session.load(world.plan(2)).err()
    });
    errors.into_iter().flatten().next().expect("refused")
}

#[test]
fn memory_that_the_gpu_cannot_write_is_refused_when_a_plan_is_loaded() {
    let _alone = alone();
    let mut host = vec![0u8; 4096];
    let range = MemoryRange {
        address: host.as_mut_ptr().expose_provenance(),
        bytes: 4096,
    };
    let e = load_with(range, Memory::Device(0));
    assert_eq!(e.status, Status::BufferMismatch);
    assert!(e.message.contains("pageable host memory"), "{e}");
    let e = load_with(range, Memory::Device(77));
    assert_eq!(e.status, Status::InvalidArgument);
    assert!(e.message.contains("there is no GPU 77"), "{e}");
}

#[test]
fn plans_find_the_gpu_of_their_buffers_by_themselves() {
    let _alone = alone();
    let world = World::new(Carrier::Gpu, Shape::Apart, 3);
    world.run(|rig| {
        let session = Session::open(&rig.endpoint, SessionOptions::default()).unwrap();
        for held in &rig.held {
            for (name, buffer) in ["a.weight", "b.weight"].iter().zip(&held.buffers) {
                let memory = Memory::Device(0);
                session
                    .bind(held.side, name, buffer.range(), memory)
                    .unwrap();
            }
        }
        let slot = session.load(world.plan(3)).unwrap();
        let request = Request::new(&session, slot).unwrap();
        rig.store(5);
        request.submit(&options(5)).unwrap();
        assert_eq!(request.wait(20 * SECOND), Ok(State::Done));
        if let Some(d) = rig.destination() {
            assert_eq!(d.now(), d.expected(5));
        }
    });
}

#[test]
fn sources_on_the_host_are_staged_on_their_way() {
    let _alone = alone();
    for carrier in [Carrier::Gpu, Carrier::GpuStaged] {
        for flags in [0, FLAG_VERIFY] {
            let mut world = World::new(carrier, Shape::Apart, 3);
            world.host_sources = true;
            world.run(|rig| {
                for version in 1..=3 {
                    rig.store(version);
                    let o = RequestOptions {
                        flags,
                        ..options(version)
                    };
                    rig.request.submit(&o).unwrap();
                    assert_eq!(rig.request.wait(20 * SECOND), Ok(State::Done));
                    if let Some(d) = rig.destination() {
                        assert_eq!(d.now(), d.expected(version), "{carrier:?}");
                    }
                }
            });
        }
    }
}

#[test]
fn a_device_that_is_dropped_ends_its_work() {
    let _alone = alone();
    let device = fake_gpu::device();
    let abort = Arc::new(AbortCell::default());
    let never = Fence::new(&Arc::default(), 1);
    let stuck = device.queue().begin(&never, &abort).unwrap();
    let stuck = stuck.end(None).unwrap();
    drop(device);
    assert!(stuck.is_reached());
    assert_eq!(abort.reason().unwrap().status, Status::Aborted);
}

#[test]
fn more_than_there_is_is_an_error() {
    let _alone = alone();
    let device = fake_gpu::device();
    let e = device.allocate(1 << 45).unwrap_err();
    assert_eq!(e.status, Status::OutOfMemory);
    assert!(e.message.contains("allocating 35184372088832 bytes"), "{e}");
}

//! Random worlds through NCCL: every type and cast, boxes of any order, with
//! gaps, cut and joined into messages of any size, in several steps. On the
//! stand-in NCCL, with ranks as threads and a GPU for each.

mod exec_support;
mod transport_support;

use exec_support::fake_gpu::{self, GpuMemory, nccl as fake};
use exec_support::{Gate, meet};
use std::sync::Arc;
use std::time::Instant;
use transport_support::world::{LONG, World, enqueue_all, wait_all};
use transport_support::{Random, bind};
use weightsync::device::Device;
use weightsync::device::cuda::{CopyPath, CudaDevice, CudaOptions};
use weightsync::transport::{Company, Transport};

fn device_of(rank: u32, copy_path: CopyPath) -> Arc<CudaDevice> {
    let index = fake::gpu_of(rank);
    Arc::new(CudaDevice::new(index, CudaOptions { copy_path }).unwrap())
}

/// One rank: `versions` requests, every byte compared after each.
fn run_rank(world: &World, transport: &dyn Transport, copy_path: CopyPath, gate: &Gate) {
    let rank = transport.rank().0;
    let device = device_of(rank, copy_path);
    let [source, target] = world.bytes[rank as usize];
    let program = &world.programs[rank as usize];
    // What is not there has an address all the same.
    let memory = [source, target].map(|n| GpuMemory::new(&device, n.max(1), 0x5a));
    let staging = GpuMemory::new(&device, program.staging_bytes.max(1), 0xcb);
    let ranges = memory.each_ref().map(GpuMemory::range).to_vec();
    let binding = bind(program, ranges, staging.range(), transport.abort_cell()).unwrap();
    device.prepare(&binding).unwrap();
    let company = Company {
        plan: 0,
        participants: &[],
        guests: &[],
    };
    transport.serve(&binding, &company).unwrap();
    transport.connect(&binding, Instant::now() + LONG).unwrap();
    for version in 1..=2 {
        memory[0].write(0, world.memory(rank, version).source.bytes());
        memory[1].write(0, &vec![0x5a; target as usize]);
        gate.wait();
        let fences = enqueue_all(transport, &*device, &binding, version).unwrap();
        assert!(wait_all(&fences, LONG), "rank {rank} waits for ever");
        assert_eq!(transport.abort_cell().reason(), None);
        let got = memory[1].read();
        let want = world.expected(rank, version);
        assert!(got[..target as usize] == want, "rank {rank}: other bytes");
        let receives = program.bytes_received > 0 || !program.locals.is_empty();
        assert_eq!(binding.has_written(version), receives);
        gate.wait();
    }
    let done = transport.progress();
    assert_eq!(done.steps_done, 2 * u64::from(world.steps));
    assert_eq!(done.bytes_sent, 2 * program.bytes_sent);
    assert_eq!(done.bytes_received, 2 * program.bytes_received);
}

fn run(world: &World, copy_path: CopyPath) {
    let endpoints = meet(world.ranks, |rank| Box::new(fake::bootstrap(rank))).unwrap();
    let gate = Gate::new(world.ranks as usize);
    std::thread::scope(|scope| {
        for endpoint in &endpoints {
            let gate = &gate;
            scope.spawn(move || {
                let transport = endpoint.transport().unwrap();
                run_rank(world, &*transport, copy_path, gate);
            });
        }
    });
}

#[test]
fn random_worlds_arrive() {
    let _alone = fake::alone();
    assert!(!fake_gpu::is_real(), "a GPU for every rank");
    for seed in 0..30 {
        let mut random = Random(seed);
        let ranks = random.range(2, 5) as u32;
        let world = World::random_aligned(seed, ranks, random.range(1, 5) as u32);
        let paths = [CopyPath::Kernels, CopyPath::Engines];
        run(&world, paths[seed as usize % 2]);
    }
}

#[test]
fn large_messages_arrive() {
    let _alone = fake::alone();
    run(&World::stream(5 << 20, 3 << 10, 64, 3), CopyPath::Kernels);
    run(&World::stream(5 << 20, 3 << 10, 0, 3), CopyPath::Kernels);
}

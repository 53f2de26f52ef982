//! A small transfer between ranks that are threads, for tests of execution.
//!
//! Two tensors go from two source ranks, cut by rows, to two copies of two
//! destination ranks, cut by columns and with padded rows, in several steps:
//!
//! ```text
//!   rank 0 ─ rows, first half  ─┬─► copy 0: ranks 2, 3
//!   rank 1 ─ rows, second half ─┴─► copy 1: ranks 4, 5
//! ```
//!
//! With [`Shape::Colocated`] copy 0 lives on the source ranks themselves.

#![allow(dead_code)]

pub mod address;
#[path = "../fake_gpu/mod.rs"]
pub mod fake_gpu;

use fake_gpu::GpuMemory;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use weightsync::device::cuda::CudaDevice;
use weightsync::device::deferred::DeferredDevice;
use weightsync::device::host::HostDevice;
use weightsync::device::{Device, MemoryRange};
use weightsync::exec::*;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use weightsync::layout::view::{Memory, NamedBuffer, RankViews, View};
use weightsync::layout::{Layout, LayoutSpec};
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, Strategy};
use weightsync::plan::mapping::{DestinationSizes, SourceSizes};
use weightsync::plan::program::Side;
use weightsync::plan::two_stage::TwoStageOptions;
use weightsync::transport::bootstrap::{Loopback, Ready, Shm};
use weightsync::transport::loopback::LoopbackHub;
use weightsync::transport::nccl::{CommSource, NcclBootstrap, NcclOptions};
use weightsync::transport::shm::{ShmOptions, ShmTransport};
use weightsync::transport::{Bootstrap, Fault, FaultKind, Kind};
use weightsync::{Error, Rank, Result};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// Gathers: reads and writes strided memory itself.
    Loopback,
    /// Packed through staging, by a device that does nothing until pumped.
    Staged,
    /// Rings in shared memory; here between threads.
    Shm,
    /// Loopback over GPU memory: kernels copy from region to region.
    Gpu,
    /// Packed through staging on the GPU.
    GpuStaged,
    /// Through NCCL, a GPU for every rank.
    Nccl,
}

/// In place of a GPU's number: that of the rank.
const OWN_GPU: u32 = u32::MAX;

fn on_rank(memory: Memory, rank: u32) -> Memory {
    match memory {
        Memory::Device(OWN_GPU) => Memory::Device(fake_gpu::nccl::gpu_of(rank)),
        other => other,
    }
}

/// All of them; on a real GPU, which NCCL has only one rank for, less NCCL.
pub fn carriers() -> Vec<Carrier> {
    let mut all = vec![
        Carrier::Loopback,
        Carrier::Staged,
        Carrier::Shm,
        Carrier::Gpu,
        Carrier::GpuStaged,
    ];
    if !fake_gpu::is_real() {
        all.push(Carrier::Nccl);
    }
    all
}

/// Threads that share memory, and NCCL: for what happens before bytes move.
pub fn near_and_far() -> Vec<Carrier> {
    let far = |c: &Carrier| matches!(c, Carrier::Loopback | Carrier::Nccl);
    carriers().into_iter().filter(far).collect()
}

/// Those whose buffers are on the host.
pub const HOST_CARRIERS: [Carrier; 3] = [Carrier::Loopback, Carrier::Staged, Carrier::Shm];

impl Carrier {
    /// Where buffers are.
    pub fn memory(self) -> Memory {
        match self {
            Carrier::Loopback | Carrier::Staged | Carrier::Shm => Memory::Host,
            Carrier::Gpu | Carrier::GpuStaged => Memory::Device(0),
            Carrier::Nccl => Memory::Device(OWN_GPU),
        }
    }
}

/// Who holds what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Sources 0 and 1; copy 0 on 2 and 3, copy 1 on 4 and 5.
    Apart,
    /// The same in two stages: source 0 sends to the first rank of each copy
    /// what both need, source 1 to the second, and these forward.
    Forwarded,
    /// Sources 0 and 1; copy 0 on 0 and 1, copy 1 on 2 and 3.
    Colocated,
    /// Sources 0 and 1; one copy on 2 and 3.
    Half,
    /// Sources 0 and 1; eight copies on 2 to 17. Ranks 9 to 16 have rank 1
    /// between them and the coordinator, rank 17 has rank 2.
    Wide,
}

const ROWS: u64 = 8;
const TENSORS: [(&str, u64); 2] = [("a.weight", 6), ("b.weight", 10)];

/// One side of one rank: row or column half of every tensor, one buffer each.
fn views(rank: u32, copy: u32, by_rows: bool, half: u64, memory: Memory) -> RankViews {
    let mut buffers = Vec::new();
    let mut all = Vec::new();
    for (i, (name, cols)) in TENSORS.iter().enumerate() {
        let (rows, cols) = match by_rows {
            true => (
                Span::new(half * ROWS / 2, (half + 1) * ROWS / 2),
                Span::new(0, *cols),
            ),
            false => (
                Span::new(0, ROWS),
                Span::new(half * cols / 2, (half + 1) * cols / 2),
            ),
        };
        // Destination rows are padded, so that bytes have to be scattered.
        let row_bytes = (cols.len() + u64::from(!by_rows)) * 4;
        buffers.push(NamedBuffer {
            name: name.to_string(),
            bytes: rows.len() * row_bytes,
            memory: on_rank(memory, rank),
        });
        all.push(View {
            tensor: TensorIndex(i as u32),
            bounds: IndexBox([rows, cols].into_iter().collect()),
            buffer: i as u32,
            offset: 0,
            strides: [row_bytes as i64, 4].into_iter().collect(),
            dtype: Dtype::F32,
            conversion: None,
        });
    }
    RankViews {
        rank: Rank(rank),
        copy,
        buffers,
        views: all,
    }
}

impl Shape {
    pub fn rank_count(self) -> u32 {
        match self {
            Shape::Apart | Shape::Forwarded => 6,
            Shape::Colocated | Shape::Half => 4,
            Shape::Wide => 18,
        }
    }

    /// First rank of each copy.
    fn copies(self) -> &'static [u32] {
        match self {
            Shape::Apart | Shape::Forwarded => &[2, 4],
            Shape::Colocated => &[0, 2],
            Shape::Half => &[2],
            Shape::Wide => &[2, 4, 6, 8, 10, 12, 14, 16],
        }
    }

    pub fn copy_of(self, rank: u32) -> Option<usize> {
        self.copies()
            .iter()
            .position(|&c| rank == c || rank == c + 1)
    }

    fn sides(self, rank: u32, memory: &dyn Fn(Side) -> Memory) -> Vec<(Side, RankViews)> {
        let mut sides = Vec::new();
        if rank < 2 {
            let memory = memory(Side::Source);
            let views = views(rank, 0, true, u64::from(rank), memory);
            sides.push((Side::Source, views));
        }
        if let Some(copy) = self.copy_of(rank) {
            let half = u64::from(rank - self.copies()[copy]);
            let memory = memory(Side::Destination);
            let views = views(rank, copy as u32, false, half, memory);
            sides.push((Side::Destination, views));
        }
        sides
    }

    fn layout(self, side: Side, memory: &dyn Fn(Side) -> Memory) -> Arc<Layout> {
        let tensors = TENSORS
            .iter()
            .map(|(name, cols)| Tensor::new(*name, &[ROWS, *cols], Dtype::F32).unwrap());
        let ranks = (0..self.rank_count()).flat_map(|r| self.sides(r, memory));
        Arc::new(
            Layout::new(LayoutSpec {
                tensors: tensors.collect(),
                aliases: vec![],
                parts: vec![],
                explicit: ranks.filter(|s| s.0 == side).map(|s| s.1).collect(),
                marks: Default::default(),
            })
            .unwrap(),
        )
    }

    /// The plan, in `steps` steps, for host memory.
    pub fn plan(self, steps: u32) -> Arc<Plan> {
        self.plan_in(steps, Memory::Host)
    }

    /// The plan for buffers in `memory`.
    pub fn plan_in(self, steps: u32, memory: Memory) -> Arc<Plan> {
        self.plan_of(steps, &|_| memory)
    }

    fn plan_of(self, steps: u32, memory: &dyn Fn(Side) -> Memory) -> Arc<Plan> {
        self.plan_with(steps, memory, 16)
    }

    /// The same with every run of fewer bytes packed.
    pub fn plan_with(
        self,
        steps: u32,
        memory: &dyn Fn(Side) -> Memory,
        direct_bytes_min: u64,
    ) -> Arc<Plan> {
        let mut options = PlanOptions {
            bucket_count: steps,
            direct_bytes_min,
            ..PlanOptions::default()
        };
        if self == Shape::Forwarded {
            // The last bucket is forwarded in a step of its own.
            options.bucket_count = steps - 1;
            options.strategy = Strategy::TwoStage;
            options.two_stage = TwoStageOptions {
                source: Some(SourceSizes {
                    pp: 2,
                    ..SourceSizes::ONE
                }),
                destination: Some(DestinationSizes {
                    tp: 2,
                    replicas: 2,
                    ..DestinationSizes::ONE
                }),
                ..TwoStageOptions::default()
            };
        }
        let source = self.layout(Side::Source, memory);
        let destination = self.layout(Side::Destination, memory);
        Arc::new(Plan::create(source, destination, &options).unwrap())
    }
}

/// Memory that other threads, or a GPU, write while we look at it.
#[derive(Debug)]
pub enum Bytes {
    Host(Vec<AtomicU8>),
    Gpu(GpuMemory),
}

pub const OLD: u8 = 0x5a;

impl Bytes {
    pub fn new(bytes: u64, gpu: Option<&Arc<CudaDevice>>) -> Bytes {
        match gpu {
            Some(gpu) => Bytes::Gpu(GpuMemory::new(gpu, bytes, OLD)),
            None => Bytes::Host((0..bytes).map(|_| AtomicU8::new(OLD)).collect()),
        }
    }

    pub fn range(&self) -> MemoryRange {
        match self {
            Bytes::Host(bytes) => MemoryRange {
                address: bytes.as_ptr().expose_provenance(),
                bytes: bytes.len() as u64,
            },
            Bytes::Gpu(memory) => memory.range(),
        }
    }

    pub fn set(&self, i: usize, value: u8) {
        match self {
            Bytes::Host(bytes) => bytes[i].store(value, Ordering::Relaxed),
            Bytes::Gpu(memory) => memory.write(i, &[value]),
        }
    }

    pub fn put(&self, all: &[u8]) {
        match self {
            Bytes::Host(_) => all.iter().enumerate().for_each(|(i, b)| self.set(i, *b)),
            Bytes::Gpu(memory) => memory.write(0, all),
        }
    }

    pub fn at(&self, i: usize) -> u8 {
        match self {
            Bytes::Host(bytes) => bytes[i].load(Ordering::Relaxed),
            Bytes::Gpu(memory) => memory.read()[i],
        }
    }

    pub fn get(&self) -> Vec<u8> {
        match self {
            Bytes::Host(bytes) => bytes.iter().map(|b| b.load(Ordering::Relaxed)).collect(),
            Bytes::Gpu(memory) => memory.read(),
        }
    }
}

/// The element at `(row, col)` of a tensor in a version: never the same in
/// two versions or places.
fn element(version: u64, tensor: usize, row: u64, col: u64) -> [u8; 4] {
    ((version * 1000 + tensor as u64 * 100 + row * 10 + col) as f32 + 0.5).to_le_bytes()
}

/// One side's memory of one rank.
#[derive(Debug)]
pub struct Held {
    pub side: Side,
    views: RankViews,
    pub buffers: Vec<Bytes>,
}

impl Held {
    fn new(side: Side, views: RankViews, gpu: Option<&Arc<CudaDevice>>) -> Held {
        let buffers = views.buffers.iter();
        let buffers = buffers.map(|b| Bytes::new(b.bytes, gpu)).collect();
        Held {
            side,
            views,
            buffers,
        }
    }

    /// What a version leaves here, by buffer: padding is as it was.
    pub fn expected(&self, version: u64) -> Vec<Vec<u8>> {
        let one = |(v, bytes): (&View, &Bytes)| {
            let [rows, cols] = v.bounds.spans() else {
                panic!("two axes");
            };
            let mut all = vec![OLD; bytes.range().bytes as usize];
            for row in rows.lo..rows.hi {
                for col in cols.lo..cols.hi {
                    let at = (row - rows.lo) as i64 * v.strides[0] + (col - cols.lo) as i64 * 4;
                    let value = element(version, v.tensor.index(), row, col);
                    all[at as usize..][..4].copy_from_slice(&value);
                }
            }
            all
        };
        self.views
            .views
            .iter()
            .zip(&self.buffers)
            .map(one)
            .collect()
    }

    pub fn store(&self, version: u64) {
        for (to, from) in self.buffers.iter().zip(self.expected(version)) {
            to.put(&from);
        }
    }

    pub fn now(&self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(Bytes::get).collect()
    }
}

/// One rank with everything it needs.
pub struct Rig {
    pub rank: u32,
    // Fields drop in this order.
    pub request: Request,
    pub session: Session,
    pub slot: PlanSlot,
    pub endpoint: Endpoint,
    pub held: Vec<Held>,
}

impl Rig {
    pub fn source(&self) -> Option<&Held> {
        self.held.iter().find(|h| h.side == Side::Source)
    }

    pub fn destination(&self) -> Option<&Held> {
        self.held.iter().find(|h| h.side == Side::Destination)
    }

    /// Puts a version into the source buffers.
    pub fn store(&self, version: u64) {
        if let Some(source) = self.source() {
            source.store(version);
        }
    }

    /// A whole execution: store, submit, wait.
    pub fn sync(&self, options: &RequestOptions) -> Result<State> {
        self.store(options.version);
        self.request.submit(options)?;
        self.request.wait(60 * SECOND)
    }
}

impl Rig {
    /// Runs with every buffer in other memory of the rank's GPU: what `allocate`
    /// gives, with the bytes that were there before; and those of after the run
    /// are put where they belong.
    pub fn in_memory_of(
        &self,
        world: &World,
        allocate: impl Fn(&CudaDevice, u64) -> usize,
        run: impl FnOnce(),
    ) {
        let device = world.gpu(self.rank).unwrap();
        let memory = Memory::Device(device.gpu().index);
        let mut moved = Vec::new();
        for held in &self.held {
            for (named, bytes) in held.views.buffers.iter().zip(&held.buffers) {
                let old = bytes.range();
                let address = allocate(&device, old.bytes);
                device.copy_now(address, old.address, old.bytes).unwrap();
                let new = MemoryRange { address, ..old };
                let bound = self.session.bind(held.side, &named.name, new, memory);
                bound.unwrap();
                moved.push((old, address));
            }
        }
        run();
        for (old, address) in moved {
            let copied = device.copy_now(old.address, address, old.bytes);
            copied.unwrap();
        }
    }
}

/// Rings that a small transfer fills again and again.
fn small_rings() -> ShmOptions {
    ShmOptions {
        ring_bytes_max: 1 << 20,
        slot_count: 2,
        slot_bytes_max: 4096,
    }
}

/// A barrier that gives up, so that a failed test ends.
pub struct Gate {
    count: usize,
    arrived: Mutex<usize>,
    moved: Condvar,
}

impl Gate {
    pub fn new(count: usize) -> Gate {
        Gate {
            count,
            arrived: Mutex::new(0),
            moved: Condvar::new(),
        }
    }

    pub fn wait(&self) {
        let mut arrived = self.arrived.lock().unwrap();
        *arrived += 1;
        let turn = arrived.div_ceil(self.count) * self.count;
        self.moved.notify_all();
        let limit = Duration::from_secs(30);
        let waited = self.moved.wait_timeout_while(arrived, limit, |a| *a < turn);
        let is_late = waited.unwrap().1.timed_out();
        assert!(!is_late, "another rank has failed");
    }
}

/// What a rank meets the others by, from its number.
pub type BootstrapOf = Box<dyn Fn(u32) -> Box<dyn Bootstrap> + Send + Sync>;

/// Ranks that have met and loaded the plan.
pub struct World {
    pub carrier: Carrier,
    pub shape: Shape,
    pub steps: u32,
    hub: Arc<LoopbackHub>,
    shm: Vec<Arc<ShmTransport>>,
    /// Devices of ranks that have one of their own.
    pub devices: BTreeMap<u32, Arc<dyn Device>>,
    /// Sources in host memory, whatever the carrier.
    pub host_sources: bool,
    /// Data planes that are not those of the carrier.
    pub bootstraps: Option<BootstrapOf>,
    /// Worlds over NCCL come one after the other.
    _alone: Option<fake_gpu::nccl::Alone>,
}

impl World {
    /// Over NCCL, with communicators of our own and other options chosen by rank.
    pub fn over_nccl(
        shape: Shape,
        steps: u32,
        choose: impl Fn(u32, NcclOptions) -> NcclOptions + Send + Sync + 'static,
    ) -> World {
        let mut world = World::new(Carrier::Nccl, shape, steps);
        world.bootstraps = Some(Box::new(move |rank| {
            let options = fake_gpu::nccl::options(rank, CommSource::Own { id: None });
            Box::new(NcclBootstrap::new(rank == 0, choose(rank, options)).unwrap())
        }));
        world
    }

    pub fn new(carrier: Carrier, shape: Shape, steps: u32) -> World {
        let ranks = shape.rank_count();
        World {
            _alone: (carrier == Carrier::Nccl).then(fake_gpu::nccl::alone),
            carrier,
            shape,
            steps,
            hub: match carrier {
                Carrier::Loopback | Carrier::Shm | Carrier::Gpu => LoopbackHub::new(ranks),
                Carrier::Staged | Carrier::GpuStaged => LoopbackHub::staged(ranks),
                Carrier::Nccl => LoopbackHub::new(ranks),
            },
            shm: match carrier {
                Carrier::Shm => (0..ranks)
                    .map(|r| ShmTransport::with(Rank(r), small_rings()).unwrap())
                    .collect(),
                _ => Vec::new(),
            },
            devices: BTreeMap::new(),
            host_sources: false,
            bootstraps: None,
        }
    }

    /// Has a rank's data plane misbehave.
    pub fn inject(&self, rank: u32, step: u32, kind: FaultKind) {
        if self.carrier == Carrier::Nccl {
            return inject_nccl(rank, step, kind);
        }
        let (step, rank) = (u64::from(step), Rank(rank));
        let Some(shm) = self.shm.get(rank.index()) else {
            return self.hub.inject(Fault { rank, step, kind });
        };
        // The death of a process would be ours.
        let kind = match kind {
            FaultKind::Die => FaultKind::Stall,
            FaultKind::Stall | FaultKind::Delay(_) => kind,
        };
        shm.inject(Fault { rank, step, kind });
    }

    pub fn bootstrap(&self, rank: u32) -> Box<dyn Bootstrap> {
        if let Some(make) = &self.bootstraps {
            return make(rank);
        }
        if let Some(shm) = self.shm.get(rank as usize) {
            return Box::new(Shm::of(shm.clone()));
        }
        if self.carrier == Carrier::Nccl {
            return Box::new(fake_gpu::nccl::bootstrap(rank));
        }
        let transport = self.hub.attach(Rank(rank)).unwrap();
        Box::new(Ready::new(Kind::Loopback, transport))
    }

    pub fn device(&self, rank: u32) -> Arc<dyn Device> {
        if let Some(device) = self.devices.get(&rank) {
            return device.clone();
        }
        match self.carrier {
            Carrier::Loopback | Carrier::Shm => Arc::new(HostDevice::new().unwrap()),
            Carrier::Staged => Arc::new(DeferredDevice::pumped(u64::from(rank)).unwrap()),
            Carrier::Gpu | Carrier::GpuStaged => fake_gpu::device(),
            Carrier::Nccl => fake_gpu::device_of(fake_gpu::nccl::gpu_of(rank)),
        }
    }

    /// The GPU that tests put a rank's buffers on, if buffers are on one.
    pub fn gpu(&self, rank: u32) -> Option<Arc<CudaDevice>> {
        match self.carrier {
            Carrier::Loopback | Carrier::Staged | Carrier::Shm => None,
            Carrier::Gpu | Carrier::GpuStaged => Some(fake_gpu::device()),
            Carrier::Nccl => Some(fake_gpu::device_of(fake_gpu::nccl::gpu_of(rank))),
        }
    }

    /// The plan, in `steps` steps, for buffers where this carrier has them.
    pub fn plan(&self, steps: u32) -> Arc<Plan> {
        let memory = |side| self.memory(side);
        self.shape.plan_of(steps, &memory)
    }

    fn memory(&self, side: Side) -> Memory {
        match side {
            Side::Source if self.host_sources => Memory::Host,
            Side::Source | Side::Destination => self.carrier.memory(),
        }
    }

    /// Runs `script` on a thread per rank, after all have met and loaded the
    /// plan, and returns what it returns, by rank.
    pub fn run<T: Send>(&self, script: impl Fn(&mut Rig) -> T + Sync) -> Vec<T> {
        self.run_with(|_| self.plan(self.steps), script)
    }

    /// The same with a plan per rank.
    pub fn run_with<T: Send>(
        &self,
        plan: impl Fn(u32) -> Arc<Plan> + Sync,
        script: impl Fn(&mut Rig) -> T + Sync,
    ) -> Vec<T> {
        let endpoints = meet(self.shape.rank_count(), |r| self.bootstrap(r)).unwrap();
        let end = Gate::new(endpoints.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = endpoints
                .into_iter()
                .map(|endpoint| {
                    let (plan, script, end) = (&plan, &script, &end);
                    scope.spawn(move || {
                        let mut rig = self.rig(endpoint, plan);
                        let result = script(&mut rig);
                        // Nobody leaves before all are through.
                        end.wait();
                        result
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    pub fn rig(&self, endpoint: Endpoint, plan: &impl Fn(u32) -> Arc<Plan>) -> Rig {
        let rank = endpoint.rank().0;
        let session =
            Session::new(&endpoint, self.device(rank), SessionOptions::default()).unwrap();
        let memory = |side| self.memory(side);
        let gpu = self.gpu(rank);
        let gpu_of = |side| gpu.as_ref().filter(|_| memory(side) != Memory::Host);
        let sides = self.shape.sides(rank, &memory).into_iter();
        let held = sides.map(|(side, v)| Held::new(side, v, gpu_of(side)));
        let held: Vec<Held> = held.collect();
        for h in &held {
            for (named, bytes) in h.views.buffers.iter().zip(&h.buffers) {
                session
                    .bind(h.side, &named.name, bytes.range(), named.memory)
                    .unwrap();
            }
        }
        let slot = session.load(plan(rank)).unwrap();
        Rig {
            rank,
            request: Request::new(&session, slot).unwrap(),
            session,
            slot,
            endpoint,
            held,
        }
    }
}

/// Ranks are threads: the death of one would be that of all. The first group
/// is the warm-up.
fn inject_nccl(rank: u32, step: u32, kind: FaultKind) {
    use fake_gpu::nccl::{Wrong, inject};
    let group = u64::from(step) + 1;
    match kind {
        FaultKind::Die | FaultKind::Stall => inject(rank, group, Wrong::Hang, 0),
        FaultKind::Delay(time) => inject(rank, group, Wrong::Delay, time.as_millis() as i32),
    }
}

/// Endpoints of ranks `0..count` that have met.
pub fn meet(count: u32, bootstrap: impl Fn(u32) -> Box<dyn Bootstrap>) -> Result<Vec<Endpoint>> {
    meet_each(20 * SECOND, count, bootstrap)
        .into_iter()
        .map(|(endpoint, met)| met.map(|()| endpoint))
        .collect()
}

/// Every endpoint, and how it has met the others.
pub fn meet_each(
    deadline_ns: u64,
    count: u32,
    bootstrap: impl Fn(u32) -> Box<dyn Bootstrap>,
) -> Vec<(Endpoint, Result<()>)> {
    meet_with(deadline_ns, count, bootstrap, |_, _| ())
}

/// The same, with something done beside the meeting of each rank.
pub fn meet_with(
    deadline_ns: u64,
    count: u32,
    bootstrap: impl Fn(u32) -> Box<dyn Bootstrap>,
    beside: impl Fn(u32, &Endpoint) + Sync,
) -> Vec<(Endpoint, Result<()>)> {
    let ranks = RankSet::count(count).unwrap();
    let endpoints: Vec<Endpoint> = (0..count)
        .map(|r| Endpoint::new(Rank(r), ranks.clone(), bootstrap(r)).unwrap())
        .collect();
    let greetings: Vec<Vec<u8>> = endpoints.iter().map(|e| e.greeting().to_vec()).collect();
    let met: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = endpoints
            .iter()
            .map(|e| scope.spawn(|| e.meet(&greetings, deadline_ns)))
            .collect();
        for (rank, endpoint) in (0..).zip(&endpoints) {
            let beside = &beside;
            scope.spawn(move || beside(rank, endpoint));
        }
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    endpoints.into_iter().zip(met).collect()
}

/// Endpoints over loopback, found through the group's secret.
pub fn meet_loopback(count: u32) -> Vec<Endpoint> {
    meet(count, |_| Box::new(Loopback)).unwrap()
}

/// Asserts that destination memory is what the outcomes claim: COMPLETE is
/// the new version, UNTOUCHED is as before, and copies speak for all ranks.
pub struct Verdict {
    pub rank: u32,
    pub copy: Option<usize>,
    pub outcome: Option<(Outcome, Outcome)>,
    pub is_new: bool,
    pub is_old: bool,
    /// It says that every step is done.
    pub has_all_steps: bool,
}

impl Rig {
    /// Compares memory with the version that was to come and what was before.
    pub fn verdict(&self, world: &World, version: u64, before: &[Vec<u8>]) -> Verdict {
        let now = self.destination().map(Held::now).unwrap_or_default();
        let new = self
            .destination()
            .map(|d| d.expected(version))
            .unwrap_or_default();
        Verdict {
            rank: self.rank,
            copy: world.shape.copy_of(self.rank),
            outcome: self.request.outcome(),
            is_new: now == new,
            is_old: now == before,
            has_all_steps: self.request.steps_done() == self.request.step_count(),
        }
    }

    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        self.destination().map(Held::now).unwrap_or_default()
    }
}

pub fn check_verdicts(verdicts: &[Verdict], what: &str) {
    for v in verdicts {
        let Some((rank, copy)) = v.outcome else {
            continue;
        };
        let same = || {
            verdicts
                .iter()
                .filter(|o| o.copy.is_some() && o.copy == v.copy)
        };
        let claim = format!("{what}: rank {} says {rank}, copy {copy}", v.rank);
        if v.has_all_steps && v.copy.is_some() {
            assert!(v.is_new, "{claim}, all steps are done, and is not new");
        }
        match rank {
            Outcome::Complete => assert!(v.is_new, "{claim}, and is not new"),
            Outcome::Untouched => assert!(v.is_old, "{claim}, and is not old"),
            Outcome::Torn => {}
        }
        match copy {
            Outcome::Complete => assert!(same().all(|o| o.is_new), "{claim}, copy is not new"),
            Outcome::Untouched => assert!(same().all(|o| o.is_old), "{claim}, copy is not old"),
            Outcome::Torn => {}
        }
    }
}

/// Waits until `condition` holds, at most five seconds.
pub fn eventually(condition: impl Fn() -> bool) -> bool {
    for _ in 0..5000 {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    condition()
}

pub fn options(version: u64) -> RequestOptions {
    RequestOptions {
        version,
        agree_deadline_ns: 20 * SECOND,
        stall_deadline_ns: 20 * SECOND,
        flags: 0,
    }
}

pub fn failure(result: &Result<State>) -> &Error {
    result.as_ref().unwrap_err()
}

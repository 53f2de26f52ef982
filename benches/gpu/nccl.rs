//! A plan over NCCL, beside plain groups of ncclSend and ncclRecv of the same
//! bytes: two ranks, as threads, on two GPUs or on one that they share.
//!
//! ```text
//!   ours, contiguous    group │ group │ ...          bare   group │ group │ ...
//!   ours, packed        pack, group, unpack │ ...    bare   copy, group, copy │ ...
//! ```
//!
//! What is timed on the receiver: from the start of a request on which both have
//! agreed to its end; of the bare groups, the same. The agreement is said apart.

use super::{LONG, SHARE, copy, median, rows};
use nccl_sys::{
    Asked, Library, Search, ncclComm_t, ncclConfig_t, ncclResult_t, ncclUint8, ncclUniqueId,
};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Instant;
use weightsync::Rank;
use weightsync::device::cuda::gpu::device_count;
use weightsync::device::cuda::{CudaDevice, CudaOptions};
use weightsync::device::fence::Fence;
use weightsync::device::{Device, MemoryRange};
use weightsync::exec::{Endpoint, RankSet, Request, RequestOptions, Session, SessionOptions};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Tensor, TensorIndex};
use weightsync::layout::view::{Memory, NamedBuffer, RankViews, View};
use weightsync::layout::{Layout, LayoutSpec};
use weightsync::plan::Plan;
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::program::Side;
use weightsync::transport::nccl::library::MULTI_RANK_GPU;
use weightsync::transport::nccl::{Nccl, NcclBootstrap, NcclOptions};

const ROUNDS: usize = 9;
const REPEATS: usize = 10;
const WAIT_NS: u64 = 60_000_000_000;

/// What is delivered: a matrix of bf16, as one run or as a share of wider rows.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    rows: u64,
    columns: u64,
    steps: u32,
    is_packed: bool,
    target: f64,
}

impl Case {
    fn bytes(&self) -> u64 {
        self.rows * self.columns * 2
    }

    /// Bytes from row to row.
    fn pitch(&self) -> u64 {
        self.columns * 2 * if self.is_packed { 2 } else { 1 }
    }

    fn layout(&self, rank: u32, gpu: u32) -> Arc<Layout> {
        let shape = [self.rows, self.columns];
        let tensor = Tensor::new("w", &shape, Dtype::BF16).expect("valid");
        let views = RankViews {
            rank: Rank(rank),
            copy: 0,
            buffers: vec![NamedBuffer {
                name: "w".into(),
                bytes: self.rows * self.pitch(),
                memory: Memory::Device(gpu),
            }],
            views: vec![View {
                tensor: TensorIndex(0),
                bounds: IndexBox::whole(&shape),
                buffer: 0,
                offset: 0,
                strides: [self.pitch() as i64, 2].into_iter().collect(),
                dtype: Dtype::BF16,
                conversion: None,
            }],
        };
        let made = Layout::new(LayoutSpec {
            tensors: vec![tensor],
            aliases: vec![],
            parts: vec![],
            explicit: vec![views],
            marks: Default::default(),
        });
        Arc::new(made.expect("valid"))
    }

    fn plan(&self, gpus: [u32; 2]) -> Arc<Plan> {
        let options = PlanOptions {
            bucket_count: self.steps,
            // Rows are packed whatever their length.
            direct_bytes_min: if self.is_packed { 1 << 40 } else { 1 },
            staging_bytes_max: 4 * self.bytes() + (64 << 20),
            ..PlanOptions::default()
        };
        let (from, to) = (self.layout(0, gpus[0]), self.layout(1, gpus[1]));
        Arc::new(Plan::create(from, to, &options).expect("planned"))
    }
}

/// Says how NCCL does here, or why not.
pub fn compare() {
    // SAFETY: no other thread of this program reads the environment now; NCCL
    // does, later.
    unsafe { std::env::set_var("NCCL_SOCKET_IFNAME", "lo") };
    let nccl = match Nccl::find(None) {
        Ok(nccl) => nccl,
        Err(e) => return println!("skipped: no NCCL ({})", e.message),
    };
    let gpus = match device_count() {
        Ok(2..) => [0, 1],
        _ if nccl.can(&MULTI_RANK_GPU) => {
            for (name, value) in [("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("NCCL_MAX_CTAS", "4")] {
                // SAFETY: as above.
                unsafe { std::env::set_var(name, value) };
            }
            [0, 0]
        }
        _ => {
            let version = nccl.version_text();
            return println!("skipped: one GPU, and NCCL {version} takes one rank of each");
        }
    };
    println!(
        "\n{:<44} {:>9} {:>9} {:>7} {:>7}  (NCCL {}, GPUs {gpus:?})",
        "",
        "ours",
        "bare",
        "ratio",
        "target",
        nccl.version_text()
    );
    let pair = Pair::new(nccl, gpus);
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let pair = &pair;
            scope.spawn(move || pair.run(rank));
        }
    });
}

fn cases() -> [Case; 3] {
    let large = Case {
        name: "contiguous, GB/s",
        rows: rows(),
        columns: SHARE,
        steps: 8,
        is_packed: false,
        target: 0.95,
    };
    [
        large,
        Case {
            name: "packed on both sides, GB/s",
            is_packed: true,
            target: 0.85,
            ..large
        },
        Case {
            name: "1 KiB a step, microseconds a step",
            rows: 32,
            columns: 512,
            steps: 32,
            is_packed: false,
            target: 0.0,
        },
    ]
}

/// Both ranks, and what they share.
struct Pair {
    bare: Library,
    id: [u8; 128],
    gpus: [u32; 2],
    endpoints: Vec<Endpoint>,
    barrier: Barrier,
}

impl Pair {
    fn new(nccl: &Nccl, gpus: [u32; 2]) -> Pair {
        let search = Search {
            asked: nccl.path().map(|path| Asked {
                by: "the bench".into(),
                path: path.to_path_buf(),
            }),
            only_loaded: true,
        };
        // SAFETY: the copy that is loaded already.
        let bare = unsafe { nccl_sys::load(&search) }.expect("it is loaded");
        let ranks = RankSet::count(2).expect("two");
        let endpoint = |rank: u32| {
            let options = NcclOptions {
                device: Some(gpus[rank as usize]),
                ..NcclOptions::default()
            };
            let bootstrap = NcclBootstrap::new(rank == 0, options).expect("a GPU and NCCL");
            Endpoint::new(Rank(rank), ranks.clone(), Box::new(bootstrap)).expect("an endpoint")
        };
        Pair {
            bare,
            id: nccl.unique_id().expect("an id"),
            gpus,
            endpoints: vec![endpoint(0), endpoint(1)],
            barrier: Barrier::new(2),
        }
    }

    /// One rank: meets the other, and runs all cases with it.
    fn run(&self, rank: usize) {
        let greetings: Vec<Vec<u8>> = self
            .endpoints
            .iter()
            .map(|e| e.greeting().to_vec())
            .collect();
        let endpoint = &self.endpoints[rank];
        endpoint.meet(&greetings, WAIT_NS).expect("both have met");
        let options = CudaOptions::default();
        let device = Arc::new(CudaDevice::new(self.gpus[rank], options).expect("a GPU"));
        let bare = Bare::join(self, rank, &device);
        for case in cases() {
            let ours = Ours::new(self, endpoint, &device, &case, rank);
            self.measure(&case, rank, &ours, &bare);
        }
    }

    fn measure(&self, case: &Case, rank: usize, ours: &Ours, bare: &Bare<'_>) {
        let mut times = [const { Vec::new() }; 3];
        // The first round warms up.
        for round in 0..=ROUNDS {
            let mut sums = [0.0; 3];
            for _ in 0..REPEATS {
                self.barrier.wait();
                let begun = Instant::now();
                assert!(bare.exchange(case).wait(LONG));
                sums[1] += begun.elapsed().as_secs_f64();
                let (agreed, moved) = ours.deliver(&self.barrier);
                sums[0] += moved;
                sums[2] += agreed;
            }
            if round > 0 {
                let mean = sums.map(|sum| sum / REPEATS as f64);
                times.iter_mut().zip(mean).for_each(|(t, m)| t.push(m));
            }
        }
        if rank == 1 {
            say(case, times.map(median));
        }
    }
}

fn say(case: &Case, [ours, bare, agreed]: [f64; 3]) {
    let (name, target) = (case.name, case.target);
    if target > 0.0 {
        let [mine, theirs] = [ours, bare].map(|seconds| case.bytes() as f64 / seconds / 1e9);
        let ratio = mine / theirs;
        return println!("{name:<44} {mine:>9.1} {theirs:>9.1} {ratio:>7.2} {target:>7.2}");
    }
    let [mine, theirs] = [ours, bare].map(|seconds| seconds * 1e6 / f64::from(case.steps));
    println!("{name:<44} {mine:>9.1} {theirs:>9.1}");
    let more = mine - theirs;
    println!(
        "{:<44} {more:>9.1}           target at most 50",
        "  more than bare, a step"
    );
    println!("{:<44} {:>9.1}", "  the agreement, a request", agreed * 1e6);
}

/// A session of ours with the case's plan.
struct Ours {
    request: Request,
    sequence: std::cell::Cell<u64>,
    // Freed last.
    _session: Session,
    _memory: Block,
}

impl Ours {
    fn new(
        pair: &Pair,
        endpoint: &Endpoint,
        device: &Arc<CudaDevice>,
        case: &Case,
        rank: usize,
    ) -> Ours {
        let memory = Block::new(device, case.rows * case.pitch());
        let session = Session::new(endpoint, device.clone(), SessionOptions::default());
        let session = session.expect("a session");
        let side = [Side::Source, Side::Destination][rank];
        let place = Memory::Device(pair.gpus[rank]);
        session.bind(side, "w", memory.range, place).expect("bound");
        let slot = session.load(case.plan(pair.gpus)).expect("loaded");
        Ours {
            request: Request::new(&session, slot).expect("a request"),
            sequence: std::cell::Cell::new(0),
            _session: session,
            _memory: memory,
        }
    }

    /// Seconds of the agreement, and from start to end.
    fn deliver(&self, barrier: &Barrier) -> (f64, f64) {
        self.sequence.set(self.sequence.get() + 1);
        let options = RequestOptions {
            version: self.sequence.get(),
            ..RequestOptions::default()
        };
        barrier.wait();
        let begun = Instant::now();
        self.request.prepare(&options).expect("prepared");
        self.request.wait_ready(WAIT_NS).expect("agreed");
        let agreed = begun.elapsed().as_secs_f64();
        barrier.wait();
        let begun = Instant::now();
        self.request.start().expect("started");
        self.request.wait(WAIT_NS).expect("delivered");
        (agreed, begun.elapsed().as_secs_f64())
    }
}

/// Memory of the GPU.
struct Block {
    device: Arc<CudaDevice>,
    range: MemoryRange,
}

impl Block {
    fn new(device: &Arc<CudaDevice>, bytes: u64) -> Block {
        Block {
            range: device.allocate(bytes).expect("enough GPU memory"),
            device: device.clone(),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.device.free(self.range);
    }
}

/// A communicator that nothing of ours uses.
struct Bare<'a> {
    nccl: &'a Library,
    comm: ncclComm_t,
    is_sender: bool,
    device: Arc<CudaDevice>,
    memory: [Block; 2],
}

impl Bare<'_> {
    fn join<'a>(pair: &'a Pair, rank: usize, device: &Arc<CudaDevice>) -> Bare<'a> {
        let largest = cases().iter().map(Case::bytes).max().unwrap_or(0);
        let mut bare = Bare {
            nccl: &pair.bare,
            comm: ncclComm_t::NULL,
            is_sender: rank == 0,
            device: device.clone(),
            memory: [Block::new(device, largest), Block::new(device, largest)],
        };
        let _current = device.gpu().enter().expect("a GPU");
        let mut config = ncclConfig_t {
            blocking: 0,
            ..ncclConfig_t::UNSET
        };
        let id = ncclUniqueId::from_bytes(pair.id);
        in_turn(|| {
            // SAFETY: places for a handle and a config.
            let made = unsafe {
                let init = pair.bare.api.ncclCommInitRankConfig;
                init(&mut bare.comm, 2, id, rank as i32, &mut config)
            };
            assert!(is_begun(made), "ncclCommInitRankConfig: {made:?}");
        });
        bare.finish();
        // Connects the ranks.
        assert!(bare.put(1, 16, false).wait(LONG));
        bare
    }

    /// What a case moves, in as many groups as it has steps.
    fn exchange(&self, case: &Case) -> Fence {
        let bytes = case.bytes() / u64::from(case.steps);
        self.put(case.steps, bytes, case.is_packed)
    }

    fn put(&self, steps: u32, bytes: u64, is_packed: bool) -> Fence {
        let [held, staging] = self.memory.each_ref().map(|block| block.range.address);
        let mut last = Fence::default();
        for _ in 0..steps {
            if is_packed && self.is_sender {
                copy(&self.device, staging, held, bytes);
            }
            last = self.group(staging, bytes);
            if is_packed && !self.is_sender {
                last = copy(&self.device, held, staging, bytes);
            }
        }
        last
    }

    /// One send or receive, on the device's stream.
    fn group(&self, address: usize, bytes: u64) -> Fence {
        let queue = self
            .device
            .queue()
            .begin(&Fence::default(), &Arc::default());
        let queue = queue.expect("a stream");
        let (stream, api) = (queue.stream().0, &self.nccl.api);
        let at = std::ptr::with_exposed_provenance_mut(address);
        let peer = i32::from(self.is_sender);
        in_turn(|| {
            // SAFETY: a live communicator, memory of so many bytes on its GPU.
            let result = unsafe {
                (api.ncclGroupStart)();
                match self.is_sender {
                    true => (api.ncclSend)(at, bytes as usize, ncclUint8, peer, self.comm, stream),
                    false => (api.ncclRecv)(at, bytes as usize, ncclUint8, peer, self.comm, stream),
                };
                (api.ncclGroupEnd)()
            };
            assert!(is_begun(result), "ncclGroupEnd: {result:?}");
        });
        self.finish();
        queue.end(None).expect("enqueued")
    }

    /// Waits until NCCL has done what the last call began.
    fn finish(&self) {
        let mut state = ncclResult_t::IN_PROGRESS;
        while state == ncclResult_t::IN_PROGRESS {
            in_turn(|| {
                // SAFETY: a live communicator, and a place for a result.
                unsafe { (self.nccl.api.ncclCommGetAsyncError)(self.comm, &mut state) };
            });
        }
        assert_eq!(state, ncclResult_t::SUCCESS);
    }
}

/// NCCL is called by one thread at a time: both ranks may be on one GPU.
fn in_turn(call: impl FnOnce()) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    call();
}

fn is_begun(result: ncclResult_t) -> bool {
    matches!(result, ncclResult_t::SUCCESS | ncclResult_t::IN_PROGRESS)
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, idle, and not used after.
        in_turn(|| unsafe {
            (self.nccl.api.ncclCommAbort)(self.comm);
        });
    }
}

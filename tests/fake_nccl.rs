//! The stand-in NCCL behaves like the real one where that hurts: the tests of
//! the transport rest on this.

mod fake_gpu;

use cuda_runtime_sys::{Cuda, CudaError, Event, Stream};
use nccl_sys::*;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::process::{Command, Output};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn load(file: &Path) -> Library {
    let search = Search {
        asked: Some(Asked {
            by: "the test".into(),
            path: file.into(),
        }),
        only_loaded: false,
    };
    // SAFETY: the stand-in, built from the sources beside us.
    unsafe { nccl_sys::load(&search) }.unwrap()
}

fn nccl() -> &'static Api {
    static NCCL: OnceLock<Library> = OnceLock::new();
    &NCCL.get_or_init(|| load(&fake_gpu::nccl::nccl())).api
}

fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        let file = fake_gpu::cudart();
        let search = cuda_runtime_sys::Search {
            runtime: Some(&file),
            driver: Some(&file),
        };
        Cuda::load(search).unwrap()
    })
}

fn ok(error: CudaError) {
    assert_eq!(error, CudaError::SUCCESS);
}

/// One rank with a stream and memory on a GPU of its own.
struct Rank {
    comm: ncclComm_t,
    stream: Stream,
    memory: *mut c_void,
}

// SAFETY: handles; each is used by one thread at a time.
unsafe impl Send for Rank {}

const BYTES: usize = 4096;

impl Rank {
    fn new(id: [u8; 128], rank: c_int, count: c_int, device: c_int, blocking: c_int) -> Rank {
        let mut config = ncclConfig_t {
            blocking,
            ..Default::default()
        };
        let (mut comm, mut stream, mut memory) = (ncclComm_t::NULL, Stream::DEFAULT, null_mut());
        // SAFETY: places for what is written.
        let result = unsafe {
            let r = &cuda().runtime;
            ok((r.set_device)(device));
            ok((r.stream_create_with_flags)(&mut stream, 1));
            ok((r.malloc)(&mut memory, BYTES));
            let id = ncclUniqueId::from_bytes(id);
            (nccl().ncclCommInitRankConfig)(&mut comm, count, id, rank, &mut config)
        };
        let mine = Rank {
            comm,
            stream,
            memory,
        };
        match blocking {
            0 => assert_eq!(result, ncclResult_t::IN_PROGRESS),
            _ => assert_eq!(result, ncclResult_t::SUCCESS),
        }
        assert_eq!(mine.settle(), ncclResult_t::SUCCESS);
        mine
    }

    fn state(&self) -> ncclResult_t {
        let mut state = ncclResult_t::SUCCESS;
        // SAFETY: a live communicator.
        let result = unsafe { (nccl().ncclCommGetAsyncError)(self.comm, &mut state) };
        assert_eq!(result, ncclResult_t::SUCCESS);
        state
    }

    /// Polls until NCCL has done what it was told.
    fn settle(&self) -> ncclResult_t {
        loop {
            match self.state() {
                ncclResult_t::IN_PROGRESS => std::thread::yield_now(),
                state => return state,
            }
        }
    }

    fn send(&self, bytes: usize, to: c_int) -> ncclResult_t {
        let (api, s) = (nccl(), self.stream.0);
        // SAFETY: memory of the test.
        unsafe { (api.ncclSend)(self.memory, bytes, ncclUint8, to, self.comm, s) }
    }

    fn receive(&self, bytes: usize, from: c_int) -> ncclResult_t {
        let (api, s) = (nccl(), self.stream.0);
        // SAFETY: memory of the test.
        unsafe { (api.ncclRecv)(self.memory, bytes, ncclUint8, from, self.comm, s) }
    }

    fn fill(&self, byte: u8) {
        // SAFETY: our memory.
        ok(unsafe { (cuda().runtime.memset_async)(self.memory, byte.into(), BYTES, self.stream) });
    }

    fn first_byte(&self) -> u8 {
        let (r, mut byte) = (&cuda().runtime, 0u8);
        let kind = cuda_runtime_sys::CopyKind::DEVICE_TO_HOST;
        // SAFETY: one byte of our memory, copied before the call returns.
        unsafe {
            let to = (&raw mut byte).cast();
            ok((r.memcpy_async)(to, self.memory, 1, kind, self.stream));
            ok((r.stream_synchronize)(self.stream));
        }
        byte
    }

    fn is_idle(&self) -> bool {
        // SAFETY: our stream.
        unsafe { (cuda().runtime.stream_query)(self.stream) == CudaError::SUCCESS }
    }

    fn abort(&self) {
        // SAFETY: a live communicator, which is not used after.
        let result = unsafe { (nccl().ncclCommAbort)(self.comm) };
        assert_eq!(result, ncclResult_t::SUCCESS);
    }
}

fn id() -> [u8; 128] {
    let mut id = ncclUniqueId::from_bytes([0; 128]);
    // SAFETY: a place for an id.
    let result = unsafe { (nccl().ncclGetUniqueId)(&mut id) };
    assert_eq!(result, ncclResult_t::SUCCESS);
    id.to_bytes()
}

/// Two ranks on two GPUs, as threads of this process.
fn pair(blocking: c_int) -> [Rank; 2] {
    let id = id();
    let other = std::thread::spawn(move || Rank::new(id, 1, 2, 1, blocking));
    let first = Rank::new(id, 0, 2, 0, blocking);
    [first, other.join().unwrap()]
}

fn group_start() {
    // SAFETY: takes nothing.
    assert_eq!(unsafe { (nccl().ncclGroupStart)() }, ncclResult_t::SUCCESS);
}

fn group_end() -> ncclResult_t {
    // SAFETY: takes nothing.
    unsafe { (nccl().ncclGroupEnd)() }
}

/// True if `is_so` becomes true soon.
fn soon(is_so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn bytes_arrive_and_a_group_is_on_the_stream_only_when_polled() {
    let [a, b] = pair(0);
    a.fill(7);
    group_start();
    assert_eq!(a.send(BYTES, 1), ncclResult_t::SUCCESS);
    assert_eq!(group_end(), ncclResult_t::IN_PROGRESS);
    // An event that is recorded now guards nothing.
    let mut event = Event(null_mut());
    // SAFETY: places and handles of the test.
    unsafe {
        let r = &cuda().runtime;
        ok((r.event_create_with_flags)(&mut event, 2));
        ok((r.event_record)(event, a.stream));
        assert!(soon(|| (r.event_query)(event) == CudaError::SUCCESS));
    }
    // Nothing else is done with it meanwhile.
    assert_eq!(a.send(BYTES, 1), ncclResult_t::INVALID_ARGUMENT);
    assert_eq!(a.settle(), ncclResult_t::SUCCESS);
    std::thread::sleep(Duration::from_millis(10));
    assert!(!a.is_idle(), "a send waits for its receive");
    assert_eq!(b.receive(BYTES, 0), ncclResult_t::IN_PROGRESS);
    assert_eq!(b.settle(), ncclResult_t::SUCCESS);
    assert_eq!(b.first_byte(), 7);
    assert!(soon(|| a.is_idle()));
    a.abort();
    b.abort();
}

#[test]
fn sends_outside_a_group_wait_for_each_other_until_aborted() {
    let [a, b] = pair(1);
    for (me, peer) in [(&a, 1), (&b, 0)] {
        assert_eq!(me.send(BYTES, peer), ncclResult_t::SUCCESS);
        assert_eq!(me.receive(BYTES, peer), ncclResult_t::SUCCESS);
    }
    std::thread::sleep(Duration::from_millis(30));
    assert!(!a.is_idle() && !b.is_idle());
    a.abort();
    assert!(soon(|| a.is_idle()));
    assert!(!b.is_idle(), "the peer of an aborted rank spins on");
    b.abort();
    assert!(soon(|| b.is_idle()));
}

#[test]
fn a_count_that_differs_hangs() {
    let [a, b] = pair(1);
    a.send(BYTES, 1);
    b.receive(BYTES / 2, 0);
    std::thread::sleep(Duration::from_millis(30));
    assert!(!a.is_idle() && !b.is_idle());
    a.abort();
    b.abort();
}

#[test]
fn configs_are_read_as_the_real_one_reads_them() {
    let init = |config: ncclConfig_t| {
        let (mut comm, mut config) = (ncclComm_t::NULL, config);
        let id = ncclUniqueId::from_bytes(id());
        // SAFETY: places for what is written.
        let result = unsafe {
            ok((cuda().runtime.set_device)(0));
            (nccl().ncclCommInitRankConfig)(&mut comm, 1, id, 0, &mut config)
        };
        if !comm.is_null() {
            // SAFETY: live, and not used after.
            unsafe { (nccl().ncclCommAbort)(comm) };
        }
        result
    };
    assert_eq!(init(ncclConfig_t::default()), ncclResult_t::SUCCESS);
    let only_min = ncclConfig_t {
        minCTAs: 2,
        ..Default::default()
    };
    assert_eq!(init(only_min), ncclResult_t::INVALID_ARGUMENT);
    let both = ncclConfig_t {
        minCTAs: 2,
        maxCTAs: 4,
        maxP2pPeers: 3,
        ..Default::default()
    };
    assert_eq!(init(both), ncclResult_t::SUCCESS);
}

#[test]
fn the_old_one_has_what_2_18_has() {
    let old = load(&fake_gpu::nccl::nccl_old());
    assert_eq!(old.version, 21805);
    assert!(OPTIONAL.iter().all(|s| !old.api.has(s.name)));
    assert!(nccl().has("ncclCommShrink") && nccl().has("ncclCommRevoke"));
}

#[test]
fn a_split_and_a_shrunk_communicator_work_and_a_revoked_one_does_not() {
    let [a, b] = pair(0);
    let split = |rank: &Rank, key| {
        let (mut comm, mut config) = (ncclComm_t::NULL, ncclConfig_t::default());
        config.blocking = 0;
        // SAFETY: a live parent, places for what is written.
        let result = unsafe { (nccl().ncclCommSplit)(rank.comm, 0, key, &mut comm, &mut config) };
        assert_eq!(result, ncclResult_t::IN_PROGRESS);
        Rank {
            comm,
            stream: rank.stream,
            memory: rank.memory,
        }
    };
    // Keys turn the order round.
    let (c, d) = (split(&a, 1), split(&b, 0));
    assert_eq!(
        (c.settle(), d.settle()),
        (ncclResult_t::SUCCESS, ncclResult_t::SUCCESS)
    );
    c.fill(9);
    c.send(BYTES, 0);
    d.receive(BYTES, 1);
    assert_eq!(
        (c.settle(), d.settle()),
        (ncclResult_t::SUCCESS, ncclResult_t::SUCCESS)
    );
    assert_eq!(d.first_byte(), 9);

    // The peer never sends: revoking ends the wait, and nothing else.
    d.receive(BYTES, 1);
    assert_eq!(d.settle(), ncclResult_t::SUCCESS);
    // SAFETY: a live communicator.
    let revoked = unsafe { nccl().ncclCommRevoke.unwrap()(d.comm, 0) };
    assert_eq!(revoked, ncclResult_t::IN_PROGRESS);
    assert!(!d.is_idle());
    assert_eq!(d.settle(), ncclResult_t::SUCCESS);
    assert!(soon(|| d.is_idle()));
    assert_eq!(d.send(BYTES, 1), ncclResult_t::INVALID_USAGE);
    let (mut comm, mut config) = (ncclComm_t::NULL, ncclConfig_t::default());
    let mut excluded = [1];
    // SAFETY: as above.
    let result = unsafe {
        let shrink = nccl().ncclCommShrink.unwrap();
        shrink(
            d.comm,
            excluded.as_mut_ptr(),
            1,
            &mut comm,
            &mut config,
            NCCL_SHRINK_ABORT,
        )
    };
    assert!(result == ncclResult_t::SUCCESS || result == ncclResult_t::IN_PROGRESS);
    let alone = Rank {
        comm,
        stream: d.stream,
        memory: d.memory,
    };
    assert_eq!(alone.settle(), ncclResult_t::SUCCESS);
    [&a, &b, &c, &d, &alone].into_iter().for_each(Rank::abort);
}

/// What ends the process when it is done; run as a process of its own.
const MISUSES: &[(&str, &str)] = &[
    ("freed", "is no communicator, or one that was freed"),
    ("twice", "another thread is inside NCCL"),
];

#[test]
fn misuse_ends_the_process() {
    for (what, said) in MISUSES {
        let output = child(what, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{what}");
        assert!(stderr.contains(said), "{what}: {stderr}");
    }
}

/// Runs the test `as_child` in a process of its own.
fn child(what: &str, env: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_child", "--ignored", "--nocapture"])
        .env("FAKE_NCCL_TEST", what)
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

#[test]
#[ignore = "what the other tests run in a process of its own"]
fn as_child() {
    let Ok(what) = std::env::var("FAKE_NCCL_TEST") else {
        return;
    };
    match what.as_str() {
        "freed" => {
            let [a, b] = pair(1);
            a.abort();
            b.abort();
            a.send(BYTES, 1);
        }
        "twice" => {
            let [a, _b] = pair(1);
            let ask =
                |rank: &Rank| assert!((0..20_000).all(|_| rank.state() == ncclResult_t::SUCCESS));
            let twin = Rank { ..a };
            let other = std::thread::spawn(move || ask(&twin));
            ask(&a);
            other.join().unwrap();
        }
        "gpu" => {
            let id = id();
            let join = move |rank| {
                let (mut comm, mut config) = (ncclComm_t::NULL, ncclConfig_t::default());
                // SAFETY: places for what is written.
                unsafe {
                    ok((cuda().runtime.set_device)(0));
                    let id = ncclUniqueId::from_bytes(id);
                    (nccl().ncclCommInitRankConfig)(&mut comm, 2, id, rank, &mut config)
                }
            };
            let other = std::thread::spawn(move || join(1).0);
            println!("results {} {}", join(0).0, other.join().unwrap());
        }
        other => panic!("{other}?"),
    }
}

#[test]
fn two_ranks_share_a_gpu_only_if_told_and_able_to() {
    let results = |env: &[(&str, &str)]| {
        let output = child("gpu", env);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .find_map(|l| l.split_once("results ").map(|(_, r)| r.to_string()))
            .unwrap_or_else(|| panic!("{output:?}"))
    };
    let refused = format!("{0} {0}", ncclResult_t::INVALID_USAGE.0);
    assert_eq!(results(&[]), refused);
    let share = ("NCCL_MULTI_RANK_GPU_ENABLE", "1");
    assert_eq!(results(&[share]), "0 0");
    assert_eq!(results(&[share, ("FAKE_NCCL_VERSION", "22809")]), refused);
}

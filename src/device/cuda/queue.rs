//! A stream, its fences, and the thread that looks at them.
//!
//! A fence of a GPU is a word that the stream writes when it comes there. Other
//! streams wait for the word by themselves; the host reads it:
//!
//! ```text
//!   stream A   kernel   word A = 7
//!   stream B            until word A >= 7   kernel   word B = 3
//!   host                                             reads B: advance(3)
//! ```
//!
//! Where a stream has to wait for a fence of the host, a *gate* is put into it:
//! a word that the host writes once the fence is reached, or once an abort
//! makes the waiting pointless. So nothing ever waits for the GPU but the one
//! thread that looks at the words.
//!
//! A stream may come to hold work that nobody can end, such as a kernel of a
//! communicator that only its owner may abort. Such a queue is *abandoned*: its
//! word lets the streams go that wait for it, while the host's fences stay
//! unreached until the work has ended after all.

use super::gpu::Gpu;
use super::words::Word;
use crate::device::fence::{AbortCell, Fence, Timeline, Watch};
use crate::error::{Error, Result};
use cuda_runtime_sys::{CudaError, Stream};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Items that fit before a queue grows.
const CAPACITY: usize = 256;

/// How long the thread looks without sleeping, and how long it sleeps then.
const SPIN: Duration = Duration::from_micros(40);
const NAP_MIN: Duration = Duration::from_micros(20);
const NAP_MAX: Duration = Duration::from_micros(400);

/// How often it asks whether the GPU has failed.
const HEALTH: Duration = Duration::from_millis(20);

/// What is done on the host when a fence of a GPU is reached.
pub trait Ending: Send + Sync + std::fmt::Debug {
    /// Takes results over. Does not wait, does not call CUDA.
    fn ended(&self, what: u32);

    /// Called again and again after an abort, as long as the work is in the
    /// stream: lets go whatever the stream may be waiting for.
    fn release(&self) {}
}

/// The value of a word that lets everybody go. No stream ever comes so far.
pub(super) const RELEASED: u64 = 1 << 62;

/// The word behind a timeline: what other streams wait for.
#[derive(Debug)]
struct Line {
    word: Word,
}

/// Queues whose work nobody could end when they were given up.
static ABANDONED: Mutex<Vec<Weak<Core>>> = Mutex::new(Vec::new());

/// True if work that nobody can end may still be on a stream of this GPU.
/// Giving memory back to CUDA would wait for it.
pub(super) fn is_stuck(gpu: u32) -> bool {
    let mut abandoned = ABANDONED.lock().unwrap_or_else(PoisonError::into_inner);
    abandoned.retain(|core| core.upgrade().is_some_and(|core| !core.has_ended()));
    let mut cores = abandoned.iter().filter_map(Weak::upgrade);
    cores.any(|core| core.gpu.index == gpu)
}

/// Steps that a stream has been given and the host has not seen done.
#[derive(Debug)]
struct Pending {
    value: u64,
    /// Kept, for the stream looks at its word.
    _after: Fence,
    abort: Arc<AbortCell>,
    ending: Option<(Arc<dyn Ending>, u32)>,
}

/// A fence of the host that a stream waits for.
#[derive(Debug)]
struct Gate {
    value: u64,
    after: Fence,
    abort: Arc<AbortCell>,
}

/// Gates in order: each is passed after the ones before.
#[derive(Debug)]
struct Gates {
    word: Word,
    made: u64,
    waiting: VecDeque<Gate>,
}

impl Gates {
    fn new(gpu: &Gpu) -> Result<Gates> {
        Ok(Gates {
            word: Word::kept(gpu)?,
            made: 0,
            waiting: VecDeque::with_capacity(CAPACITY),
        })
    }

    /// Has `stream` wait for `after`, whatever kind of queue it is of.
    fn wait(
        &mut self,
        gpu: &Gpu,
        stream: Stream,
        after: &Fence,
        abort: &Arc<AbortCell>,
    ) -> Result<bool> {
        let Some((timeline, value)) = after.point() else {
            return Ok(false);
        };
        if after.is_reached() {
            return Ok(false);
        }
        if let Some(line) = timeline.order::<Line>() {
            gpu.wait_value(stream, line.word.address(), value)?;
            return Ok(false);
        }
        gpu.wait_value(stream, self.word.address(), self.made + 1)?;
        self.made += 1;
        self.waiting.push_back(Gate {
            value: self.made,
            after: after.clone(),
            abort: abort.clone(),
        });
        Ok(true)
    }

    /// Opens what can be opened; `watch` is told of the next.
    fn open(&mut self, watch: &Arc<dyn Watch>) {
        while let Some(gate) = self.waiting.front() {
            if !gate.abort.is_set() && !gate.after.watch(watch) {
                return;
            }
            self.word.set(gate.value);
            self.waiting.pop_front();
        }
    }

    /// Opens all: the abort words keep anybody from writing.
    fn open_all(&mut self) {
        self.waiting.clear();
        self.word.set(self.made);
    }
}

/// A stream of ours with its fences. Thread safe.
#[derive(Debug)]
pub struct CudaQueue {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    gpu: Arc<Gpu>,
    stream: Stream,
    /// Of our own stream; the other one is of what callers' streams come to.
    timeline: Arc<Timeline>,
    entry: Arc<Timeline>,
    state: Mutex<State>,
    failed: OnceLock<Error>,
    is_closing: AtomicBool,
}

#[derive(Debug)]
struct State {
    enqueued: u64,
    entered: u64,
    gates: Gates,
    /// In streams of callers.
    exits: Gates,
    pending: VecDeque<Pending>,
}

impl CudaQueue {
    /// A stream of its own on `gpu`, looked at by the thread of this process.
    pub fn new(gpu: &Arc<Gpu>) -> Result<CudaQueue> {
        let line = || -> Result<Arc<Timeline>> {
            let word = Word::kept(gpu)?;
            Ok(Arc::new(Timeline::ordered(Arc::new(Line { word }))))
        };
        let core = Arc::new(Core {
            timeline: line()?,
            entry: line()?,
            state: Mutex::new(State {
                enqueued: 0,
                entered: 0,
                gates: Gates::new(gpu)?,
                exits: Gates::new(gpu)?,
                pending: VecDeque::with_capacity(CAPACITY),
            }),
            failed: OnceLock::new(),
            is_closing: AtomicBool::new(false),
            stream: gpu.stream()?,
            gpu: gpu.clone(),
        });
        looker()?.add(&core);
        Ok(CudaQueue { core })
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.core.gpu
    }

    /// Begins to put work on the stream, after `after`. Work that others begin
    /// comes after what the guard puts there.
    pub fn begin(&self, after: &Fence, abort: &Arc<AbortCell>) -> Result<Enqueue<'_>> {
        let core = &*self.core;
        if let Some(reason) = core.failed.get() {
            return Err(reason.clone());
        }
        let current = core.gpu.enter()?;
        let mut state = core.lock();
        let is_ours = after
            .point()
            .is_some_and(|(line, _)| Arc::ptr_eq(line, &core.timeline));
        if !is_ours && state.gates.wait(&core.gpu, core.stream, after, abort)? {
            looker()?.wake();
        }
        Ok(Enqueue {
            core,
            state,
            after: after.clone(),
            abort: abort.clone(),
            _current: current,
        })
    }

    /// The point that a stream of the caller's has come to.
    pub fn enter(&self, stream: Stream) -> Result<Fence> {
        let core = &*self.core;
        let _current = core.gpu.enter()?;
        core.gpu.check_not_capturing(stream)?;
        let mut state = core.lock();
        let value = state.entered + 1;
        let Some(line) = core.entry.order::<Line>() else {
            return Err(Error::internal("a timeline of a GPU without a word"));
        };
        core.gpu.write_value(stream, line.word.address(), value)?;
        state.entered = value;
        drop(state);
        looker()?.wake();
        Ok(Fence::new(&core.entry, value))
    }

    /// Has a stream of the caller's wait for fences.
    pub fn leave(&self, stream: Stream, until: &[Fence], abort: &Arc<AbortCell>) -> Result<()> {
        let core = &*self.core;
        let _current = core.gpu.enter()?;
        core.gpu.check_not_capturing(stream)?;
        let mut state = core.lock();
        for fence in until {
            state.exits.wait(&core.gpu, stream, fence, abort)?;
        }
        drop(state);
        looker()?.wake();
        Ok(())
    }
}

impl CudaQueue {
    /// Lets go what waits for this queue on other streams, because nobody here
    /// can end its work. After an abort: what is let go finds the abort word
    /// set. Takes no lock; may be called again.
    pub fn abandon(&self) {
        let core = &self.core;
        if let Some(line) = core.timeline.order::<Line>() {
            line.word.set(RELEASED);
        }
        let mut abandoned = ABANDONED.lock().unwrap_or_else(PoisonError::into_inner);
        let this = Arc::downgrade(core);
        if !abandoned.iter().any(|other| other.ptr_eq(&this)) {
            abandoned.push(this);
        }
    }

    /// Waits until the stream has done what it was given, all of which ends by
    /// itself: its work may name memory that is given back next.
    pub fn drain(&self) -> Result<()> {
        let core = &*self.core;
        let _current = core.gpu.enter()?;
        // SAFETY: our own stream; it is destroyed only once we are closing.
        core.gpu.check("cudaStreamSynchronize", |r| unsafe {
            (r.stream_synchronize)(core.stream)
        })
    }

    /// Aborts what is not done, and waits for the stream: its work may name
    /// memory that is given back next. Kernels see the abort words. Nothing
    /// can be put on the stream any more.
    pub fn close(&self) {
        let core = &*self.core;
        if core.is_closing.swap(true, Ordering::AcqRel) {
            return;
        }
        core.failed.get_or_init(crate::device::host::closed);
        {
            let mut state = core.lock();
            for pending in &state.pending {
                if core.reached() < pending.value {
                    pending.abort.set(crate::device::host::closed());
                }
            }
            state.gates.open_all();
            state.exits.open_all();
        }
        // Without a GPU that works there is nothing to wait for.
        let _ = self.drain();
        if let Ok(_current) = core.gpu.enter() {
            // SAFETY: our own stream, which nobody uses after this.
            let _ = core.gpu.check("cudaStreamDestroy", |r| unsafe {
                (r.stream_destroy)(core.stream)
            });
        }
        core.end_all();
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        self.close();
    }
}

/// The right to put work on a stream.
pub struct Enqueue<'a> {
    core: &'a Core,
    state: MutexGuard<'a, State>,
    after: Fence,
    abort: Arc<AbortCell>,
    _current: super::gpu::Current,
}

impl Enqueue<'_> {
    pub fn gpu(&self) -> &Gpu {
        &self.core.gpu
    }

    pub fn stream(&self) -> Stream {
        self.core.stream
    }

    /// Copies bytes between addresses that the GPU reaches.
    pub(crate) fn copy(&self, to: usize, from: usize, bytes: u64) -> Result<()> {
        super::prepared::copy_bytes(self.gpu(), self.stream(), to, from, bytes)
    }

    /// Has what is put on the stream next come after `fence`, too.
    pub fn wait_for(&mut self, fence: &Fence) -> Result<()> {
        let core = self.core;
        let gates = &mut self.state.gates;
        if gates.wait(&core.gpu, core.stream, fence, &self.abort)? {
            looker()?.wake();
        }
        Ok(())
    }

    /// Ends the piece of work; its fence. `ending` is called before the host
    /// sees the fence reached.
    pub fn end(mut self, ending: Option<(Arc<dyn Ending>, u32)>) -> Result<Fence> {
        let core = self.core;
        let value = self.state.enqueued + 1;
        let Some(line) = core.timeline.order::<Line>() else {
            return Err(Error::internal("a timeline of a GPU without a word"));
        };
        core.gpu
            .write_value(core.stream, line.word.address(), value)?;
        self.state.enqueued = value;
        self.state.pending.push_back(Pending {
            value,
            _after: self.after.clone(),
            abort: self.abort.clone(),
            ending,
        });
        looker()?.wake();
        Ok(Fence::new(&core.timeline, value))
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the stream has come. A word that was released says nothing of
    /// that until the stream writes it again.
    fn reached(&self) -> u64 {
        let word = self.timeline.order::<Line>().map_or(0, |l| l.word.get());
        match word {
            RELEASED.. => self.timeline.reached(),
            value => value,
        }
    }

    /// The state, unless somebody is putting work on the stream, which may take
    /// long where a library does it.
    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// True if the stream has come to the end of what it was given.
    fn has_ended(&self) -> bool {
        let is_empty = |state: MutexGuard<'_, State>| state.pending.is_empty();
        self.is_closing.load(Ordering::Acquire) || self.try_lock().is_some_and(is_empty)
    }

    /// Takes note of what the GPU has done, and opens gates that can be.
    fn look(&self, watch: &Arc<dyn Watch>) -> Look {
        let Some(mut state) = self.try_lock() else {
            return Look::Waiting;
        };
        state.gates.open(watch);
        state.exits.open(watch);
        let entered = self.entry.order::<Line>().map_or(0, |l| l.word.get());
        let reached = self.reached();
        while let Some(pending) = state.pending.front() {
            if pending.value > reached {
                break;
            }
            if let Some((ending, what)) = &pending.ending {
                ending.ended(*what);
            }
            state.pending.pop_front();
        }
        for pending in state.pending.iter().filter(|p| p.abort.is_set()) {
            if let Some((ending, _)) = &pending.ending {
                ending.release();
            }
        }
        let has_work = !state.pending.is_empty() || entered < state.entered;
        let waits = has_work || !state.gates.waiting.is_empty() || !state.exits.waiting.is_empty();
        drop(state);
        let mut moved = false;
        for (timeline, value) in [(&self.entry, entered), (&self.timeline, reached)] {
            if timeline.reached() < value {
                timeline.advance(value);
                moved = true;
            }
        }
        match (moved, waits) {
            (true, _) => Look::Moved,
            (false, true) => Look::Waiting,
            (false, false) => Look::Idle,
        }
    }

    /// Asks the GPU whether it still works; if not, everything here fails.
    fn check_health(&self) {
        let Ok(_current) = self.gpu.enter() else {
            return;
        };
        // SAFETY: our own stream; it is destroyed only once we are closing.
        let error = unsafe { (self.gpu.runtime().stream_query)(self.stream) };
        if error == CudaError::NOT_READY || self.is_closing.load(Ordering::Acquire) {
            return;
        }
        if let Err(reason) = self.gpu.check("working", |_| error) {
            self.fail(reason);
        }
    }

    fn fail(&self, reason: Error) {
        let reason = self.failed.get_or_init(|| reason).clone();
        for pending in &self.lock().pending {
            pending.abort.set(reason.clone());
        }
        self.end_all();
    }

    /// Reaches all fences, without results.
    fn end_all(&self) {
        let mut state = self.lock();
        state.gates.open_all();
        state.exits.open_all();
        state.pending.clear();
        let (entered, enqueued) = (state.entered, state.enqueued);
        drop(state);
        self.entry.advance(entered);
        self.timeline.advance(enqueued);
    }
}

enum Look {
    Moved,
    Waiting,
    Idle,
}

/// The thread that looks at the words of all queues of this process.
struct Looker {
    queues: Mutex<Vec<Weak<Core>>>,
    thread: OnceLock<Thread>,
    /// Counts calls, so that none is missed between two looks.
    calls: AtomicU64,
}

impl Watch for Looker {
    fn moved(&self) {
        self.wake();
    }
}

/// The thread is started with the first queue, and stays.
fn looker() -> Result<&'static Arc<Looker>> {
    static LOOKER: Mutex<Option<&'static Arc<Looker>>> = Mutex::new(None);
    let mut held = LOOKER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(looker) = *held {
        return Ok(looker);
    }
    let looker = Arc::new(Looker {
        queues: Mutex::default(),
        thread: OnceLock::new(),
        calls: AtomicU64::new(0),
    });
    let theirs = looker.clone();
    let handle = std::thread::Builder::new()
        .name("wsync-cuda".into())
        .spawn(move || theirs.run())
        .map_err(|e| Error::os("starting the thread that looks at GPUs", &e))?;
    let _ = looker.thread.set(handle.thread().clone());
    let looker: &'static Arc<Looker> = Box::leak(Box::new(looker));
    *held = Some(looker);
    Ok(looker)
}

impl Looker {
    fn add(&self, core: &Arc<Core>) {
        self.lock().push(Arc::downgrade(core));
        self.wake();
    }

    fn wake(&self) {
        self.calls.fetch_add(1, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Core>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: Arc<Looker>) {
        let watch: Arc<dyn Watch> = self.clone();
        let mut cores = Vec::new();
        let mut calls = 0;
        let mut moved = Instant::now();
        let mut checked = Instant::now();
        loop {
            let now = self.calls.load(Ordering::Acquire);
            if now != calls {
                calls = now;
                moved = Instant::now();
            }
            let waits = self.look_at_all(&watch, &mut cores, &mut moved);
            if !waits {
                if self.calls.load(Ordering::Acquire) == calls {
                    std::thread::park();
                }
                continue;
            }
            let idle = moved.elapsed();
            if checked.elapsed() > HEALTH {
                checked = Instant::now();
                for core in self.lock().iter().filter_map(Weak::upgrade) {
                    core.check_health();
                }
            }
            if idle > SPIN {
                std::thread::park_timeout((idle / 8).clamp(NAP_MIN, NAP_MAX));
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// One look at every queue; true if any waits for its GPU.
    fn look_at_all(
        &self,
        watch: &Arc<dyn Watch>,
        cores: &mut Vec<Arc<Core>>,
        moved: &mut Instant,
    ) -> bool {
        {
            let mut queues = self.lock();
            queues.retain(|q| q.strong_count() > 0);
            cores.extend(queues.iter().filter_map(Weak::upgrade));
        }
        let mut waits = false;
        for core in cores.iter() {
            match core.look(watch) {
                Look::Moved => {
                    *moved = Instant::now();
                    waits = true;
                }
                Look::Waiting => waits = true,
                Look::Idle => {}
            }
        }
        cores.clear();
        waits
    }
}

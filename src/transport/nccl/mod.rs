//! Ranks on GPUs, through NCCL.
//!
//! ```text
//!   device's stream    pack 0 ─┐                ┌─ unpack 0
//!                              ▼                ▲
//!   our stream           wait │ group of step 0 │ word = 1 │ wait │ group ...
//!                              ▲ ncclGroupStart, Send.., Recv.., ncclGroupEnd
//!   caller's thread    enqueue ┘ polls until NCCL has put the kernel there
//! ```
//!
//! A step is one NCCL group, in the same order on all ranks. `enqueue` returns
//! when the group is on the stream, which waits for no GPU and no peer: peers
//! are connected when the transport is made. The communicator is non-blocking,
//! so that no thread is ever stuck inside NCCL.
//!
//! NCCL takes one rank per GPU. Ranks that are not the NCCL rank of theirs have
//! no communicator; bytes to and from them go through channels in GPU memory
//! (`colocated`), on a stream of its own that ours waits for at the end of the
//! step. To other hosts the NCCL ranks carry what they send and receive, in
//! groups that follow the step's own (`errands`).
//!
//! A step's channels are enqueued before its groups, and steps in order. So what
//! is in a stream waits for nothing that is not enqueued yet, here or, in the same
//! order, elsewhere: streams that take only so much work in advance make room.
//!
//! # Who may be inside NCCL
//!
//! One thread at a time per communicator and per device. `enqueue` takes the
//! communicator's lock, then the device's turn. The watchdog only tries to; if
//! somebody is inside, it is a thread that looks at the abort word itself.
//!
//! # Abort
//!
//! Whoever sees the abort word and has the lock stops the communicator: NCCL's
//! kernels end, the stream goes on to the words that our fences are, and every
//! kernel behind them finds the abort word set and writes nothing. A borrowed
//! communicator is revoked, where NCCL can; else its owner is told, and until
//! the owner aborts it our fences are not reached. The stream is abandoned then:
//! nobody waits for it, and memory that it may write is lost.

mod address;
mod board;
mod bootstrap;
mod colocated;
mod comm;
mod errands;
mod flight;
mod identity;
mod lending;
pub mod library;
mod link;
mod patience;
mod peers;
mod roles;
mod route;
mod turn;
mod turn_word;
mod warm_up;
mod watchdog;

pub use address::IpcScope;
pub use bootstrap::{CommSource, NcclBootstrap, NcclOptions};
pub use comm::CommLimits;
pub use library::Nccl;

use super::queue::{check_step, get_mut, lock};
use super::waits::Waits;
use super::{Company, Progress, Transport};
use crate::device::Binding;
use crate::device::cuda::channel::Claim;
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::queue::{CudaQueue, Ending, Enqueue};
use crate::device::fence::{AbortCell, Fence};
use crate::error::{Error, Result};
use crate::plan::program::{BufferSlot, Direction, Message, Program};
use crate::rank::Rank;
use colocated::Colocated;
use comm::{Comm, Stopped, Transfer};
use errands::{Errands, Parcel, Part};
use flight::Flight;
use patience::Patience;
use peers::Peers;
use roles::Way;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use turn::turn_of;
use turn_word::TurnWord;
use watchdog::Watchdog;

/// Steps that fit before a list grows.
const CAPACITY: usize = 256;
/// How long a revocation may take when everything else is over.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What the owner of a borrowed communicator is told when it has to be
/// aborted, because this NCCL cannot stop it otherwise. Called once, from a
/// thread of ours; aborts the communicator or has somebody do it.
#[derive(Default)]
pub struct OnAbort(Option<Box<Call>>);

type Call = dyn Fn(&Error) + Send + Sync;

impl OnAbort {
    pub fn new(call: impl Fn(&Error) + Send + Sync + 'static) -> OnAbort {
        OnAbort(Some(Box::new(call)))
    }
}

impl std::fmt::Debug for OnAbort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "OnAbort(..)",
            None => "OnAbort(none)",
        })
    }
}

/// One rank of a communicator.
pub struct NcclTransport {
    shared: Arc<Shared>,
    watchdog: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for NcclTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NcclTransport(rank {})", self.shared.rank)
    }
}

/// What is left of a transport: whatever a new one of the survivors can be
/// made of.
#[derive(Clone)]
pub struct Remains(Arc<Shared>);

impl Remains {
    /// `None` if it is no NCCL transport.
    pub fn of(transport: &dyn Transport) -> Option<Remains> {
        let shared = transport.remains()?.downcast().ok()?;
        Some(Remains(shared))
    }

    fn nccl(&self) -> &'static Nccl {
        self.0.nccl
    }

    fn gpu(&self) -> &Arc<Gpu> {
        &self.0.gpu
    }

    fn place(&self) -> (i32, i32) {
        self.0.place
    }

    /// What the transport is known by if its communicator was kept after a
    /// failure, to be shrunk.
    fn kept_as(&self) -> Option<u128> {
        let line = lock(&self.0.line);
        let comm = line.comm.as_ref()?;
        comm.is_kept().then_some(self.0.group)
    }

    /// A communicator of the survivors.
    fn shrink(
        &self,
        excluded: &[i32],
        limits: &CommLimits,
        patience: Patience<'_>,
    ) -> Result<Comm> {
        let mut line = lock(&self.0.line);
        let _current = self.0.gpu.enter()?;
        let comm = line.comm.as_mut();
        let comm = comm.ok_or_else(|| Error::internal("a rank without a communicator"))?;
        comm.shrink(excluded, limits, patience)
    }
}

impl std::fmt::Debug for Remains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remains(rank {})", self.0.rank)
    }
}

/// What a transport is made of.
struct Parts {
    rank: Rank,
    nccl: &'static Nccl,
    gpu: Arc<Gpu>,
    /// `None` if this rank is not the NCCL rank of its GPU.
    comm: Option<Comm>,
    colocated: Option<Colocated>,
    peers: Peers,
    place: (i32, i32),
    group: u128,
    is_rebuildable: bool,
    on_abort: Option<OnAbort>,
    abort: Arc<AbortCell>,
}

/// What callers and the watchdog share.
struct Shared {
    rank: Rank,
    nccl: &'static Nccl,
    gpu: Arc<Gpu>,
    peers: Peers,
    colocated: Option<Colocated>,
    served: Mutex<Vec<Served>>,
    /// Where the stream that exchanges parcels is.
    turn_word: TurnWord,
    /// In the communicator: this rank, or -1, and how many there are.
    place: (i32, i32),
    /// Names this meeting of ranks.
    group: u128,
    is_rebuildable: bool,
    on_abort: Option<OnAbort>,
    abort: Arc<AbortCell>,
    turn: &'static Mutex<()>,
    /// Dropped by hand, or not at all if the stream never ends.
    queue: std::mem::ManuallyDrop<CudaQueue>,
    line: Mutex<Line>,
    /// What is on the stream. Held for moments only, unlike the line.
    flights: Mutex<VecDeque<Flight>>,
    /// How often it was asked whom this rank waits for.
    asked: AtomicUsize,
    is_closing: AtomicBool,
    /// Nothing runs on the stream that does not end by itself.
    has_ended: AtomicBool,
    steps_enqueued: AtomicU64,
    steps_done: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

/// A program that is loaded.
struct Served {
    program: Weak<Program>,
    plan: u128,
    errands: Arc<Errands>,
}

/// The communicator, for whoever may be inside NCCL.
struct Line {
    comm: Option<Comm>,
    /// The slots of the turn that is being enqueued.
    claims: Vec<Option<Claim>>,
}

impl Line {
    /// True unless NCCL has to be asked after an abort how it goes.
    fn has_stopped(&mut self) -> bool {
        self.comm.as_mut().is_none_or(Comm::has_stopped)
    }
}

/// What goes on the stream in one piece: copies, a group, parcels, what channels
/// do meanwhile, copies.
struct Work<'a> {
    /// Called before the rest with true, and after it with false.
    copies: &'a dyn Fn(&mut Enqueue<'_>, bool) -> Result<()>,
    transfers: &'a mut dyn Iterator<Item = Transfer>,
    carry: Option<Carry<'a>>,
    beside: Fence,
    /// Of the warm-up alone, which connects the peers.
    deadline: Option<Instant>,
}

/// Why a piece of work is not whole, and when the part of it that is on the
/// stream is over.
struct Cut {
    reason: Error,
    fence: Option<Fence>,
}

/// The parcels of a step, and where those of this rank are.
#[derive(Clone, Copy)]
struct Carry<'a> {
    errands: &'a Errands,
    step: u32,
    binding: &'a Binding,
}

impl NcclTransport {
    /// Takes over a communicator whose ranks have all come.
    fn start(parts: Parts) -> Result<Arc<NcclTransport>> {
        let turn_word = TurnWord::new(&parts.gpu)?;
        let shared = Arc::new(Shared {
            queue: std::mem::ManuallyDrop::new(CudaQueue::new(&parts.gpu)?),
            turn: turn_of(parts.gpu.index),
            rank: parts.rank,
            nccl: parts.nccl,
            gpu: parts.gpu,
            peers: parts.peers,
            colocated: parts.colocated,
            place: parts.place,
            group: parts.group,
            is_rebuildable: parts.is_rebuildable,
            on_abort: parts.on_abort,
            abort: parts.abort,
            line: Mutex::new(Line {
                comm: parts.comm,
                claims: Vec::with_capacity(CAPACITY),
            }),
            served: Mutex::default(),
            turn_word,
            flights: Mutex::new(VecDeque::with_capacity(CAPACITY)),
            asked: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            has_ended: AtomicBool::new(true),
            steps_enqueued: AtomicU64::new(0),
            steps_done: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
        });
        let watchdog = Watchdog::new(shared.clone());
        let thread = std::thread::Builder::new()
            .name(format!("wsync-nccl-{}", shared.rank))
            .spawn(move || watchdog.run())
            .map_err(|e| Error::os("starting an NCCL watchdog", &e))?;
        Ok(Arc::new(NcclTransport {
            shared,
            watchdog: Mutex::new(Some(thread)),
        }))
    }

    /// The NCCL it works with.
    pub fn nccl(&self) -> &'static Nccl {
        self.shared.nccl
    }

    /// The GPU it works on.
    pub fn device(&self) -> &Arc<Gpu> {
        &self.shared.gpu
    }

    fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    fn place(&self) -> (i32, i32) {
        self.shared.place
    }

    /// Puts work on the stream, after `after`.
    fn exchange(&self, after: &Fence, work: Work<'_>) -> Result<Fence, Cut> {
        let shared = &*self.shared;
        let mut line = lock(&shared.line);
        let put = shared.put(&mut line, after, work);
        if let Err(cut) = &put {
            // The ranks are no longer in step: nothing can follow.
            shared.abort.set(cut.reason.clone());
            shared.stop(&mut line);
        }
        put
    }

    /// Stops this rank; true if everything on its stream ends by itself.
    fn give_up(&self, reason: Error) -> bool {
        self.shared.abort.set(reason);
        let mut line = lock(&self.shared.line);
        self.shared.stop(&mut line);
        self.shared.has_ended.load(Ordering::Acquire)
    }

    /// Waits for a stream that ends by itself; false if the GPU has failed.
    fn drain(&self) -> bool {
        self.shared.queue.drain().is_ok()
    }

    /// A message for NCCL; `None` if it goes another way.
    fn transfer(&self, binding: &Binding, m: &Message) -> Result<Option<Transfer>> {
        let Way::Nccl(peer) = self.shared.peers.way_to(m.peer)? else {
            return Ok(None);
        };
        Ok(Some(Transfer {
            is_send: m.direction == Direction::Send,
            address: binding.contiguous(m),
            bytes: m.bytes,
            peer,
        }))
    }
}

impl Carry<'_> {
    /// A parcel of an endpoint, whose bytes are in the slot of `claim` or its
    /// own.
    fn transfers(self, parcel: &Parcel, claim: Option<Claim>) -> impl Iterator<Item = Transfer> {
        let (is_send, part) = (parcel.leaves, parcel.part);
        let messages = &self.binding.program.messages;
        self.errands.runs_of(parcel).iter().filter_map(move |run| {
            let (address, peer) = match (part, claim) {
                (Part::Own { place }, _) => {
                    let message = self.binding.contiguous(&messages[run.message]);
                    (message + run.done as usize, place)
                }
                (Part::Guest { place, .. }, Some(claim)) => {
                    (claim.address + run.at as usize, place)
                }
                _ => return None,
            };
            Some(Transfer {
                is_send,
                address,
                bytes: run.bytes,
                peer,
            })
        })
    }
}

impl Shared {
    /// The plan of a loaded program, and what is to be done for its parcels.
    fn served(&self, program: &Arc<Program>) -> Result<(u128, Arc<Errands>)> {
        let all = lock(&self.served);
        let is_of = |s: &&Served| s.program.as_ptr() == Arc::as_ptr(program);
        let served = all.iter().find(is_of);
        let served = served.ok_or_else(|| Error::internal("a plan that was not loaded"))?;
        Ok((served.plan, served.errands.clone()))
    }

    fn put(&self, line: &mut Line, after: &Fence, work: Work<'_>) -> Result<Fence, Cut> {
        let nothing = |reason| Cut {
            reason,
            fence: None,
        };
        if let Some(reason) = self.abort.reason() {
            return Err(nothing(reason));
        }
        let mut put = self.queue.begin(after, &self.abort).map_err(nothing)?;
        self.has_ended.store(false, Ordering::Release);
        let beside = work.beside.clone();
        let filled = self.fill(line, &mut put, work);
        let filled = filled.and(put.wait_for(&beside));
        // Ended in any case: what is in the stream has to be released.
        let ends = self.colocated.as_ref().map(Colocated::ends);
        let ended = put.end(ends.map(|ends| (ends as Arc<dyn Ending>, 0)));
        match (filled, ended) {
            (Ok(()), ended) => ended.map_err(nothing),
            (Err(reason), ended) => Err(Cut {
                reason,
                fence: ended.ok(),
            }),
        }
    }

    fn fill(&self, line: &mut Line, put: &mut Enqueue<'_>, work: Work<'_>) -> Result<()> {
        let patience = Patience {
            abort: &self.abort,
            deadline: work.deadline,
        };
        (work.copies)(put, true)?;
        let mut transfers = work.transfers.peekable();
        if let Some(comm) = &mut line.comm
            && transfers.peek().is_some()
        {
            let connects = work.deadline.is_some();
            comm.group(transfers, put.stream().0, connects, patience)?;
        }
        if let Some(carry) = work.carry {
            self.turns(line, put, carry, patience)?;
        }
        (work.copies)(put, false)
    }

    /// An endpoint's side of the parcels of a step.
    fn turns(
        &self,
        line: &mut Line,
        put: &Enqueue<'_>,
        carry: Carry<'_>,
        patience: Patience<'_>,
    ) -> Result<()> {
        if line.comm.is_none() || carry.errands.parcels_of(carry.step).is_empty() {
            return Ok(());
        }
        for (i, turn) in carry.errands.turns(carry.step).enumerate() {
            self.turn_word.begin(put, i)?;
            self.turn(line, put, turn, carry, patience)?;
        }
        self.turn_word.reset(put)
    }

    /// An endpoint's side of the parcels of a turn: one group, between what it
    /// waits for in lanes and what it tells there.
    fn turn(
        &self,
        line: &mut Line,
        put: &Enqueue<'_>,
        turn: &[Parcel],
        carry: Carry<'_>,
        patience: Patience<'_>,
    ) -> Result<()> {
        let Line { comm, claims } = line;
        let Some(comm) = comm else {
            return Ok(());
        };
        claims.clear();
        for parcel in turn {
            claims.push(match (parcel.part, &self.colocated) {
                (Part::Guest { rank, .. }, Some(colocated)) => {
                    Some(colocated.claim(put, rank, parcel.leaves)?)
                }
                _ => None,
            });
        }
        let transfers = turn.iter().zip(claims.iter());
        let transfers = transfers.flat_map(|(parcel, claim)| carry.transfers(parcel, *claim));
        comm.group(transfers, put.stream().0, false, patience)?;
        claims
            .iter()
            .flatten()
            .try_for_each(|claim| claim.give(put))
    }

    /// Has the communicator's kernels end. Whoever calls is not inside NCCL.
    fn stop(&self, line: &mut Line) {
        let turn = lock(self.turn);
        self.stop_in_turn(line, turn);
    }

    /// The same, and the device's turn is given back.
    fn stop_in_turn(&self, line: &mut Line, turn: MutexGuard<'_, ()>) {
        let Some(comm) = &mut line.comm else {
            self.has_ended.store(true, Ordering::Release);
            return;
        };
        if !comm.is_usable() {
            return;
        }
        let stopped = match self.gpu.enter() {
            Ok(_current) => comm.stop(self.is_rebuildable),
            Err(_) => comm.stop(self.is_rebuildable),
        };
        drop(turn);
        if stopped == Stopped::Kernels {
            self.has_ended.store(true, Ordering::Release);
            return;
        }
        if let Some(OnAbort(Some(call))) = &self.on_abort
            && let Some(reason) = self.abort.reason()
        {
            call(&reason);
        }
        self.queue.abandon();
    }

    /// Takes note of the steps that are over.
    fn settle(&self, flights: &mut VecDeque<Flight>) {
        while let Some(flight) = flights.front() {
            if !flight.is_over() {
                return;
            }
            let (sent, received) = (Direction::Send, Direction::Receive);
            let count = |to: &AtomicU64, way| to.fetch_add(flight.bytes(way), Ordering::Relaxed);
            count(&self.bytes_sent, sent);
            count(&self.bytes_received, received);
            self.steps_done.fetch_add(1, Ordering::Release);
            flights.pop_front();
        }
    }

    /// What is on the stream, less what is over.
    fn flights(&self) -> MutexGuard<'_, VecDeque<Flight>> {
        let mut flights = lock(&self.flights);
        self.settle(&mut flights);
        flights
    }

    fn try_line(&self) -> Option<MutexGuard<'_, Line>> {
        match self.line.try_lock() {
            Ok(line) => Some(line),
            Err(TryLockError::Poisoned(line)) => Some(line.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Transport for NcclTransport {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn rank(&self) -> Rank {
        self.shared.rank
    }

    fn gathers(&self) -> bool {
        false
    }

    fn guests(&self) -> &[Rank] {
        self.shared.peers.guests()
    }

    fn serve(&self, binding: &Binding, company: &Company<'_>) -> Result<()> {
        let shared = &*self.shared;
        let Company {
            plan,
            guests,
            participants,
        } = *company;
        let errands = Errands::new(&shared.peers, &binding.program, guests, participants)?;
        if let Some(colocated) = &shared.colocated {
            colocated.connect_lanes(&errands)?;
        }
        let mut all = lock(&shared.served);
        all.retain(|served| served.program.strong_count() > 0);
        all.push(Served {
            program: Arc::downgrade(&binding.program),
            plan,
            errands: Arc::new(errands),
        });
        Ok(())
    }

    /// Looks whether all peers can be reached. NCCL has connected them already;
    /// channels to others are made now.
    fn connect(&self, binding: &Binding, _deadline: Instant) -> Result<()> {
        let peers = binding.program.peers();
        peers
            .into_iter()
            .try_for_each(|rank| self.shared.peers.way_to(rank).map(drop))?;
        match &self.shared.colocated {
            Some(colocated) => colocated.connect(&binding.program.messages),
            None => Ok(()),
        }
    }

    fn prepare(&self, binding: &Binding) -> Result<()> {
        match &self.shared.colocated {
            Some(colocated) => {
                let (plan, _) = self.shared.served(&binding.program)?;
                colocated.prepare(binding, plan)
            }
            None => Ok(()),
        }
    }

    fn enqueue(
        &self,
        binding: &Arc<Binding>,
        step: u32,
        sequence: u64,
        after: &Fence,
    ) -> Result<Fence> {
        check_step(binding, step, false)?;
        let shared = &*self.shared;
        if shared.abort.is_set() {
            return Ok(Fence::default());
        }
        let program = &binding.program;
        let messages = program.messages_of(&program.steps[step as usize]);
        if messages.iter().any(|m| writes_in_place(program, m)) {
            binding.marks.write_begins(sequence);
        }
        let (plan, errands) = shared.served(program)?;
        // Before anything is begun, so that it cannot fail in the middle.
        messages
            .iter()
            .try_for_each(|m| self.transfer(binding, m).map(drop))?;
        let carry = Carry {
            errands: &errands,
            step,
            binding,
        };
        // Channels first: what endpoints carry may wait for them.
        let beside = match &shared.colocated {
            Some(colocated) => {
                let put = colocated.enqueue(carry, plan, &shared.turn_word, after)?;
                if let Err(reason) = put.whole {
                    shared.abort.set(reason);
                }
                put.fence
            }
            None => Fence::default(),
        };
        lock(&shared.flights).push_back(Flight {
            program: program.clone(),
            errands: errands.clone(),
            step,
            begins: after.clone(),
            beside: beside.clone(),
            fence: None,
        });
        let of_nccl = |m: &Message| self.transfer(binding, m).ok().flatten();
        let put = self.exchange(
            after,
            Work {
                copies: &|_, _| Ok(()),
                transfers: &mut messages.iter().filter_map(of_nccl),
                carry: Some(carry),
                beside: beside.clone(),
                deadline: None,
            },
        );
        let fence = match put {
            Ok(fence) => fence,
            Err(cut) => {
                lock(&shared.flights).pop_back();
                // As for any other transport: the fence is reached, nothing is
                // written after it, and the abort word says why.
                return match shared.has_ended.load(Ordering::Acquire) {
                    true => Ok(cut.fence.unwrap_or(beside)),
                    false => Err(cut.reason),
                };
            }
        };
        if let Some(flight) = lock(&shared.flights).back_mut() {
            flight.fence = Some(fence.clone());
        }
        shared.steps_enqueued.fetch_add(1, Ordering::Release);
        self.wake();
        Ok(fence)
    }

    fn abort_cell(&self) -> &Arc<AbortCell> {
        &self.shared.abort
    }

    fn wake(&self) {
        if let Some(thread) = &*lock(&self.watchdog) {
            thread.thread().unpark();
        }
    }

    fn gpu(&self) -> Option<u32> {
        Some(self.shared.gpu.index)
    }

    fn waits_for(&self) -> Waits {
        let shared = &*self.shared;
        let asked = shared.asked.fetch_add(1, Ordering::Relaxed);
        let flights = shared.flights();
        let flight = flights.front();
        flight.map_or(Waits::NONE, |f| {
            f.waits_for(&shared.peers, &shared.turn_word, asked)
        })
    }

    fn remains(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.shared.clone())
    }

    fn progress(&self) -> Progress {
        let shared = &*self.shared;
        drop(shared.flights());
        Progress {
            steps_enqueued: shared.steps_enqueued.load(Ordering::Acquire),
            steps_done: shared.steps_done.load(Ordering::Acquire),
            bytes_sent: shared.bytes_sent.load(Ordering::Relaxed),
            bytes_received: shared.bytes_received.load(Ordering::Relaxed),
        }
    }
}

/// True if a message is received where it is to stay.
fn writes_in_place(program: &Program, m: &Message) -> bool {
    let is_destination = |slot| slot != BufferSlot::RELAY;
    m.direction == Direction::Receive
        && m.is_direct
        && program
            .pieces_of(m)
            .iter()
            .any(|p| is_destination(p.region.slot))
}

impl Drop for NcclTransport {
    /// Ends without waiting for anybody. Steps that are not over are aborted.
    fn drop(&mut self) {
        let shared = &*self.shared;
        shared.is_closing.store(true, Ordering::Release);
        if let Some(thread) = lock(&self.watchdog).take() {
            thread.thread().unpark();
            // The thread catches panics; its end is all we wait for.
            let _ = thread.join();
        }
        if !shared.flights().is_empty() {
            let mut line = lock(&shared.line);
            shared.abort.set(Error::new(
                crate::error::Status::Aborted,
                format!("rank {} dropped its transport in mid-transfer", shared.rank),
            ));
            shared.stop(&mut line);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let line = get_mut(&mut self.line);
        let by = Instant::now() + LAST_WAIT;
        while !line.has_stopped() && Instant::now() < by {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !line.has_stopped() {
            self.has_ended.store(false, Ordering::Release);
        }
        // Frees what is ours, and ends what of it may still run.
        line.comm = None;
        let has_ended = self.has_ended.load(Ordering::Acquire)
            || get_mut(&mut self.flights).iter().all(Flight::is_over);
        if has_ended {
            // SAFETY: dropped once, here, and not used after.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.queue) };
        }
    }
}

//! One execution of a loaded plan, again and again.
//!
//! A request is made once and used for every version; a warm one allocates
//! nothing. Its states, and what moves it from one to the next:
//!
//! | from | event | to |
//! |---|---|---|
//! | IDLE, DONE, FAILED | `prepare` | PREPARING |
//! | PREPARING | READY from the coordinator | READY |
//! | PREPARING | REFUSE, or the agree deadline | FAILED |
//! | READY | `start` | RUNNING |
//! | RUNNING | every fence is reached | SETTLING |
//! | SETTLING | OUTCOME: all copies complete | DONE |
//! | SETTLING | OUTCOME: anything else | FAILED |
//! | PREPARING, READY, RUNNING | abort | SETTLING, then FAILED |
//!
//! `prepare` and `start` never wait; the control thread moves a request on
//! whether or not anybody asks, `test` and `wait` only look. While one request
//! of an endpoint is between PREPARING and SETTLING, others are refused with
//! BUSY.

use super::flight::{Flight, FlightInner, StepFences};
use super::message::Key;
use super::session::{PlanSlot, SessionInner};
use super::{
    AGREE_DEADLINE_DEFAULT_NS, FLAG_DRY_RUN, FLAG_VERIFY, FLAGS_ALL, NO_DEADLINE, Outcome,
    RequestReport, STALL_DEADLINE_DEFAULT_NS, Session, instant_in, or_default,
};
use crate::device::fence::Fence;
use crate::device::{Binding, Task, Work};
use crate::error::{Error, Result, Status};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Where a request is; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[repr(u32)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Idle = 0,
    Preparing = 1,
    Ready = 2,
    Running = 3,
    Settling = 4,
    Done = 5,
    Failed = 6,
}

impl State {
    /// As the C header spells it less its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            State::Idle => "IDLE",
            State::Preparing => "PREPARING",
            State::Ready => "READY",
            State::Running => "RUNNING",
            State::Settling => "SETTLING",
            State::Done => "DONE",
            State::Failed => "FAILED",
        }
    }

    /// True from `prepare` until the end.
    pub const fn is_active(self) -> bool {
        match self {
            State::Preparing | State::Ready | State::Running | State::Settling => true,
            State::Idle | State::Done | State::Failed => false,
        }
    }

    /// True once the request has ended.
    pub const fn is_terminal(self) -> bool {
        match self {
            State::Done | State::Failed => true,
            State::Idle | State::Preparing | State::Ready | State::Running | State::Settling => {
                false
            }
        }
    }
}

/// What one execution is asked for; zero means default. All ranks must ask
/// for the same version and flags; the shortest agree and stall deadlines of
/// all ranks hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// The caller's number of the weights.
    pub version: u64,
    /// How long peers may take to agree.
    pub agree_deadline_ns: u64,
    /// How long a started request may go without finishing a step.
    pub stall_deadline_ns: u64,
    /// `FLAG_*`.
    pub flags: u32,
}

/// One execution of one loaded plan. Methods may be called from any thread.
///
/// Dropping a request that is being prepared withdraws from the agreement;
/// dropping one that is READY aborts, since peers may have started; dropping
/// one that runs lets it run to its end, and the bound buffers stay in use
/// until then.
#[derive(Debug)]
pub struct Request {
    session: Arc<SessionInner>,
    flight: Arc<Flight>,
}

impl Request {
    /// A request for the plan in `slot`.
    pub fn new(session: &Session, slot: PlanSlot) -> Result<Request> {
        let session = session.inner().clone();
        session.check_open()?;
        let flight = Arc::new(Flight::new(session.slot(slot)?));
        Ok(Request { session, flight })
    }

    /// Begins to agree with the other ranks. Never waits: READY is seen by
    /// `test` or `wait_ready`.
    pub fn prepare(&self, options: &RequestOptions) -> Result<()> {
        if options.flags & !FLAGS_ALL != 0 {
            return Err(Error::new(
                Status::Unsupported,
                format!("flags {:#x} are unknown", options.flags & !FLAGS_ALL),
            ));
        }
        self.session.check_open()?;
        self.check_slot()?;
        self.check_transport()?;
        let shared = &self.session.shared;
        shared.take_seat()?;
        let ready = self.session.binding(&self.flight.slot).and_then(|binding| {
            if self.flight.slot.takes_part {
                shared.transport.prepare(&binding)?;
            }
            self.session.set_latest(&self.flight);
            self.begin(options, binding);
            Ok(())
        });
        if ready.is_err() || !self.flight.slot.takes_part {
            shared.leave_seat();
            return ready;
        }
        shared.order_agree(&self.flight);
        Ok(())
    }

    /// Starts the transfer. Only when READY; enqueues everything and returns.
    pub fn start(&self) -> Result<()> {
        self.start_after(&Fence::default())
    }

    /// Like [`start`](Request::start); no byte is read or written before
    /// `after` is reached.
    pub fn start_after(&self, after: &Fence) -> Result<()> {
        self.session.check_open()?;
        let binding = self.begin_running()?;
        if !self.flight.slot.takes_part {
            let mut inner = self.flight.lock();
            inner.is_enqueued = true;
            inner.finish(Instant::now(), None, Outcome::Complete, Outcome::Complete);
            self.flight.notify();
            return Ok(());
        }
        let result = self.enqueue(&binding, after);
        self.flight.lock().is_enqueued = true;
        if let Err(e) = &result {
            self.session.shared.abort(e.clone());
        }
        self.session.shared.order_look();
        result
    }

    /// Like [`start`](Request::start), ordered with a stream of the caller's:
    /// no byte is read or written before what the stream holds now is done,
    /// and what it is given later comes after the transfer. 0 is the default
    /// stream of a GPU, and nothing for memory of the host.
    pub fn start_on(&self, stream: usize) -> Result<()> {
        let device = &self.flight.slot.device;
        let after = device.enter(stream)?;
        self.start_after(&after)?;
        let (ends, abort) = {
            let inner = self.flight.lock();
            let abort = inner.binding.as_ref().map(|b| b.abort.clone());
            (inner.ends(), abort)
        };
        match abort {
            Some(abort) => device.leave(stream, &ends, &abort),
            None => Ok(()),
        }
    }

    /// [`submit`](Request::submit), ordered with a stream of the caller's.
    pub fn submit_on(&self, options: &RequestOptions, stream: usize) -> Result<()> {
        self.flight.slot.device.check_stream(stream)?;
        self.submit_with(options, || self.start_on(stream))
    }

    /// `prepare`, wait for READY, `start`. If it fails after `prepare` has
    /// succeeded, the request has ended and there is an outcome.
    pub fn submit(&self, options: &RequestOptions) -> Result<()> {
        self.submit_with(options, || self.start())
    }

    fn submit_with(
        &self,
        options: &RequestOptions,
        start: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.prepare(options)?;
        let started = self.wait_ready(NO_DEADLINE).and_then(|_| start());
        if let (Err(e), State::Ready) = (&started, self.state()) {
            // Peers may have started.
            self.session.shared.abort(e.clone());
        }
        if started.is_err() && self.state().is_active() {
            // Aborted in between: settling is bounded.
            self.wait(NO_DEADLINE)?;
        }
        started
    }

    /// Where the request is now. Once it has FAILED this is its error.
    pub fn test(&self) -> Result<State> {
        self.check_alive();
        let mut inner = self.flight.lock();
        if inner.state == State::Running && inner.look() {
            self.session.shared.order_look();
        }
        result_of(&inner)
    }

    /// Waits, at most `deadline_ns`, until the request is READY or has ended.
    pub fn wait_ready(&self, deadline_ns: u64) -> Result<State> {
        self.wait_until(deadline_ns, |s| s != State::Preparing)
    }

    /// Waits, at most `deadline_ns`, until the request has ended; 0 only
    /// looks. Returns the state it is in then, or its error once it has
    /// FAILED. A request that is merely READY or IDLE is not waited for.
    pub fn wait(&self, deadline_ns: u64) -> Result<State> {
        self.wait_until(deadline_ns, |s| match s {
            State::Preparing | State::Running | State::Settling => false,
            State::Idle | State::Ready | State::Done | State::Failed => true,
        })
    }

    pub fn state(&self) -> State {
        self.check_alive();
        self.flight.lock().state
    }

    /// What became of this rank's destination memory, and of the whole copy
    /// it belongs to; for ranks that belong to none, of all copies together.
    /// `None` until the request has ended.
    pub fn outcome(&self) -> Option<(Outcome, Outcome)> {
        self.check_alive();
        let inner = self.flight.lock();
        Some((inner.rank_outcome?, inner.copy_outcome?))
    }

    /// Steps that are finished; every tensor whose last step is among them is
    /// in place on this rank.
    pub fn steps_done(&self) -> u32 {
        let mut inner = self.flight.lock();
        inner.look();
        inner.steps_done
    }

    /// The error of a FAILED request.
    pub fn error(&self) -> Option<Error> {
        self.flight.lock().error.clone()
    }

    /// Everything there is to say about the current or last execution.
    pub fn report(&self) -> RequestReport {
        let mut inner = self.flight.lock();
        inner.look();
        RequestReport::new(&self.flight.slot, &inner)
    }

    /// Steps of this rank's program.
    pub fn step_count(&self) -> u32 {
        self.flight.slot.program.steps.len() as u32
    }

    /// The published digest of a tensor in the version that was moved last.
    pub fn tensor_digest(&self, name: &str) -> Result<u64> {
        let tensors = self.flight.slot.plan.tensors();
        let Ok(index) = tensors.binary_search_by(|t| t.name.as_str().cmp(name)) else {
            return Err(Error::new(
                Status::NotFound,
                format!("tensor \"{name}\" is not in the plan"),
            ));
        };
        let inner = self.flight.lock();
        let digest = inner.digests.get(index).filter(|_| inner.has_digests);
        digest.copied().ok_or_else(|| {
            Error::new(
                Status::InvalidState,
                format!("tensor \"{name}\" has no digest: the request was not verified"),
            )
        })
    }

    /// Ends the request if nobody else can.
    fn check_alive(&self) {
        if self.session.shared.is_dead() {
            self.session.shared.finish_alone(&self.flight);
        }
    }

    fn check_slot(&self) -> Result<()> {
        if self.flight.slot.is_unloaded.load(Ordering::Acquire) {
            return Err(Error::new(Status::NotFound, "the plan has been unloaded"));
        }
        Ok(())
    }

    fn check_transport(&self) -> Result<()> {
        match self.session.shared.abort_reason() {
            Some(reason) => Err(reason),
            None if self.session.shared.is_dead() => Err(self.session.shared.closed()),
            None => self.session.shared.check_staying(),
        }
    }

    /// IDLE, DONE or FAILED to PREPARING; the seat is taken.
    fn begin(&self, options: &RequestOptions, binding: Arc<Binding>) {
        let slot = &self.flight.slot;
        let mut inner = self.flight.lock();
        inner.reset(Instant::now());
        inner.state = State::Preparing;
        inner.key = Key {
            plan: slot.card.plan,
            sequence: slot.sequence.fetch_add(1, Ordering::AcqRel) + 1,
        };
        inner.version = options.version;
        inner.flags = options.flags;
        inner.agree_ns = or_default(options.agree_deadline_ns, AGREE_DEADLINE_DEFAULT_NS);
        inner.stall_ns = or_default(options.stall_deadline_ns, STALL_DEADLINE_DEFAULT_NS);
        inner.binding = Some(binding);
        if !slot.takes_part {
            inner.state = State::Ready;
            inner.times.ready = Some(Instant::now());
        }
    }

    /// READY to RUNNING.
    fn begin_running(&self) -> Result<Arc<Binding>> {
        let mut inner = self.flight.lock();
        match inner.state {
            State::Ready => {}
            State::Failed => return Err(inner.failure()),
            // Aborted before it could start.
            State::Settling if inner.times.started.is_none() => {
                self.check_transport()?;
                return Err(Error::internal("a request settles that has not started"));
            }
            State::Idle | State::Preparing | State::Running | State::Settling | State::Done => {
                return Err(Error::new(
                    Status::InvalidState,
                    format!(
                        "a request starts from READY; this one is {}",
                        inner.state.name()
                    ),
                ));
            }
        }
        let binding = inner
            .binding
            .clone()
            .ok_or_else(|| Error::internal("a READY request has no memory"))?;
        inner.state = State::Running;
        inner.times.started = Some(Instant::now());
        Ok(binding)
    }

    /// Hands everything to device and transport.
    fn enqueue(&self, binding: &Arc<Binding>, after: &Fence) -> Result<()> {
        let (sequence, flags) = {
            let inner = self.flight.lock();
            (inner.key.sequence, inner.flags)
        };
        if flags & FLAG_DRY_RUN != 0 {
            return Ok(());
        }
        self.session.shared.order_look();
        let queue = Queue {
            session: &self.session,
            flight: &self.flight,
            binding,
            sequence,
        };
        queue.run(after, flags & FLAG_VERIFY != 0)
    }

    fn wait_until(&self, deadline_ns: u64, is_enough: impl Fn(State) -> bool) -> Result<State> {
        /// How long to sleep on one fence before looking at the state again.
        const SLICE: Duration = Duration::from_millis(20);
        let deadline = instant_in(Instant::now(), deadline_ns);
        let mut inner = self.flight.lock();
        loop {
            if is_enough(inner.state) {
                return result_of(&inner);
            }
            if self.session.shared.is_dead() {
                drop(inner);
                self.check_alive();
                inner = self.flight.lock();
                continue;
            }
            let left = match deadline {
                Some(d) => d.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return result_of(&inner);
            }
            if inner.state != State::Running {
                inner = self.flight.wait(inner, left.min(Duration::from_secs(1)));
                continue;
            }
            if inner.look() {
                self.session.shared.order_look();
                inner = self.flight.wait(inner, left.min(SLICE));
            } else if let Some(fence) = inner.next_fence() {
                drop(inner);
                fence.wait(left.min(SLICE));
                inner = self.flight.lock();
            } else if !inner.is_enqueued {
                inner = self.flight.wait(inner, left.min(SLICE));
            }
            // Else the fence was reached just now: look again.
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let state = self.flight.lock().state;
        match state {
            State::Preparing => self.session.shared.order_withdraw(&self.flight),
            State::Ready if self.flight.slot.takes_part => {
                let reason = "a request was destroyed after ranks had agreed and before it started";
                let rank = self.session.shared.rank;
                self.session
                    .shared
                    .abort(Error::new(Status::Aborted, reason).by(rank));
            }
            State::Ready
            | State::Idle
            | State::Running
            | State::Settling
            | State::Done
            | State::Failed => {}
        }
    }
}

fn result_of(inner: &FlightInner) -> Result<State> {
    match inner.state {
        State::Failed => Err(inner.failure()),
        State::Idle
        | State::Preparing
        | State::Ready
        | State::Running
        | State::Settling
        | State::Done => Ok(inner.state),
    }
}

impl FlightInner {
    fn failure(&self) -> Error {
        self.error
            .clone()
            .unwrap_or_else(|| Error::internal("a request failed without a reason"))
    }
}

/// Puts one execution into the queues of device and transport.
///
/// Staging is double-buffered: a step is packed while the one before is on
/// the wire, and a half is used again once it has been unpacked.
///
/// ```text
///   device     pack 0  pack 1  unpack 0  pack 2  unpack 1  pack 3 ...
///   transport       step 0 ──────► step 1 ───────► step 2 ───────►
/// ```
///
/// The device works in order, so `pack s` follows `unpack s-2` without being
/// told. Where bytes are forwarded, a step reads what the one before has
/// brought, and the overlap is given up.
struct Queue<'a> {
    session: &'a SessionInner,
    flight: &'a Flight,
    binding: &'a Arc<Binding>,
    sequence: u64,
}

impl Queue<'_> {
    fn run(&self, after: &Fence, verify: bool) -> Result<()> {
        let program = &self.flight.slot.program;
        if verify {
            self.clear_sums();
        }
        if !program.fills.is_empty() {
            let filled = self.work(Task::Fill, after)?;
            self.flight.lock().last = filled;
        }
        if self.packs() && !self.flight.slot.forwards {
            self.overlapped(after)?;
        } else {
            self.one_by_one(after)?;
        }
        // The source cannot change before the request has ended, so its digest
        // holds up nobody when it is taken last.
        if verify && !program.digest_source.is_empty() {
            let summed = self.work(Task::DigestSource, after)?;
            self.flight.lock().last = summed;
        }
        if verify && !program.digest_destination.is_empty() {
            let exchanged = self.exchanged();
            let summed = self.work(Task::DigestDestination, &exchanged)?;
            self.flight.lock().last = summed;
        }
        Ok(())
    }

    fn packs(&self) -> bool {
        !self.session.shared.transport.gathers()
    }

    /// Pack of the next step comes before unpack of this one.
    fn overlapped(&self, after: &Fence) -> Result<()> {
        let steps = self.flight.slot.shapes.len() as u32;
        let mut ready = after.clone();
        if steps > 0 {
            ready = self.ready(0, after)?;
        }
        for step in 0..steps {
            if self.binding.abort.is_set() {
                return Ok(());
            }
            let exchanged = self.exchange(step, &ready)?;
            if step + 1 < steps {
                ready = self.ready(step + 1, after)?;
            }
            self.land(step, &exchanged, after)?;
        }
        Ok(())
    }

    /// Packs a step; the fence is reached when its messages may be exchanged:
    /// outgoing ones are packed, and the staging for incoming ones, last used
    /// two steps before, has been unpacked.
    fn ready(&self, step: u32, after: &Fence) -> Result<Fence> {
        let shapes = &self.flight.slot.shapes;
        let before = step.checked_sub(2).map(|s| s as usize);
        let before = before.map(|s| (self.flight.lock().steps[s].clone(), shapes[s]));
        if shapes[step as usize].packs {
            let free = before.map_or(after.clone(), |(fences, _)| fences.transport);
            return self.work(Task::Pack { step }, &free);
        }
        match before {
            Some((fences, shape)) if shape.unpacks => Ok(fences.device),
            _ => Ok(after.clone()),
        }
    }

    /// Every step follows the one before where that matters: when bytes are
    /// forwarded. Transports that gather need no help from the device.
    fn one_by_one(&self, after: &Fence) -> Result<()> {
        let slot = &self.flight.slot;
        let mut ready = after.clone();
        for (step, shape) in (0..).zip(&slot.shapes) {
            if self.binding.abort.is_set() {
                return Ok(());
            }
            if shape.packs && self.packs() {
                ready = self.work(Task::Pack { step }, &ready)?;
            }
            let exchanged = self.exchange(step, &ready)?;
            let landed = self.land(step, &exchanged, after)?;
            if slot.forwards {
                ready = landed;
            }
        }
        Ok(())
    }

    fn exchange(&self, step: u32, after: &Fence) -> Result<Fence> {
        if !self.flight.slot.shapes[step as usize].has_messages {
            return Ok(after.clone());
        }
        self.session
            .shared
            .transport
            .enqueue(self.binding, step, self.sequence, after)
    }

    /// Unpack and local copies; records the step. The fence that it returns is
    /// reached when what was received is in place.
    fn land(&self, step: u32, exchanged: &Fence, after: &Fence) -> Result<Fence> {
        let shape = self.flight.slot.shapes[step as usize];
        let mut landed = exchanged.clone();
        if shape.unpacks && self.packs() {
            landed = self.work(Task::Unpack { step }, exchanged)?;
        }
        let mut device = landed.clone();
        if shape.has_locals {
            // In queue order after the unpack, so this covers both.
            device = self.work(Task::Local { step }, after)?;
        }
        self.flight.lock().steps.push(StepFences {
            transport: exchanged.clone(),
            device,
        });
        Ok(landed)
    }

    /// Reached when the last step that exchanges anything has done so.
    fn exchanged(&self) -> Fence {
        let inner = self.flight.lock();
        let shapes = &self.flight.slot.shapes;
        let fences = inner.steps.iter().zip(shapes).rev();
        fences
            .filter(|(_, shape)| shape.has_messages)
            .map(|(fences, _)| fences.transport.clone())
            .next()
            .unwrap_or_default()
    }

    fn work(&self, task: Task, after: &Fence) -> Result<Fence> {
        let work = Work {
            binding: self.binding.clone(),
            task,
            sequence: self.sequence,
        };
        self.flight.slot.device.enqueue(work, after)
    }

    fn clear_sums(&self) {
        let sums = &self.binding.sums;
        for sum in sums.once.iter().chain(&sums.sent).chain(&sums.held) {
            sum.store(0, Ordering::Relaxed);
        }
    }
}

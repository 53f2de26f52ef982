//! A rank's memory, by name, and the plans that move bytes in and out of it.
//!
//! ```text
//!   bind("layers.0.qkv", ...)  ─┐
//!   bind("lm_head", ...)       ─┴─► load(plan) ─► slot ─► Request
//! ```
//!
//! Buffers may be bound again, to other addresses, while no request runs; a
//! loaded plan takes the new ones with its next `prepare`.

use super::devices::{Devices, stage_host_sends};
use super::endpoint::Endpoint;
use super::flight::Flight;
use super::message::{Card, NO_COPY};
use super::needs::{Bound, Need, Needs};
use super::shared::Shared;
use super::{LOAD_DEADLINE_DEFAULT_NS, PlanView, instant_in, or_default};
use crate::device::{Binding, Device, MemoryRange};
use crate::error::{Error, Result, Status};
use crate::layout::array::Array;
use crate::layout::view::Memory;
use crate::limits::{NAME_BYTES_MAX, PLAN_COUNT_MAX};
use crate::plan::program::{Direction, Program, Side, Step};
use crate::rank::Rank;
use crate::transport::{Company, Transport};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How a session behaves; zero means default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// How long `load` waits for peers to be reachable.
    pub load_deadline_ns: u64,
}

/// A plan that a session has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanSlot(pub u32);

/// One rank's buffers and loaded plans. Dropping a session whose request is
/// under way aborts the transport, without waiting for anybody.
#[derive(Debug)]
pub struct Session {
    inner: Arc<SessionInner>,
}

#[derive(Debug)]
pub(crate) struct SessionInner {
    pub endpoint: Endpoint,
    pub shared: Arc<Shared>,
    devices: Devices,
    options: SessionOptions,
    is_closed: AtomicBool,
    state: Mutex<SessionState>,
}

#[derive(Debug, Default)]
struct SessionState {
    /// Bound buffers by name, of the source and of the destination side.
    bound: [HashMap<String, Bound>; 2],
    slots: BTreeMap<u32, Arc<Slot>>,
    next_slot: u32,
    /// The flight that was prepared last.
    latest: Weak<Flight>,
}

/// A name and the memory it stands for.
#[derive(Clone, Debug)]
pub struct BufferBinding<'a> {
    pub side: Side,
    pub name: &'a str,
    pub range: MemoryRange,
    pub memory: Memory,
    /// How the owner sees the memory, from its lowest byte on. Plans that see
    /// it otherwise refuse it; without it they take the bytes as they lie.
    pub array: Option<Array>,
}

impl BufferBinding<'_> {
    fn check(&self) -> Result<()> {
        let BufferBinding {
            name, range, array, ..
        } = self;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(Error::limit(format!(
                "a buffer name has {} bytes; 1 to {NAME_BYTES_MAX} are allowed",
                name.len()
            )));
        }
        if range.address.checked_add(range.bytes as usize).is_none() {
            return Err(Error::invalid(format!(
                "buffer \"{name}\": {} bytes at {:#x} leave the address space",
                range.bytes, range.address
            )));
        }
        if range.address == 0 && range.bytes > 0 {
            return Err(Error::invalid(format!(
                "buffer \"{name}\" is NULL and has {} bytes",
                range.bytes
            )));
        }
        let reach = array.as_ref().and_then(Array::bytes).unwrap_or(0);
        if reach > u128::from(range.bytes) {
            return Err(Error::invalid(format!(
                "buffer \"{name}\" has {} bytes; its shape and strides reach {reach}",
                range.bytes
            )));
        }
        Ok(())
    }
}

/// Which work a step asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepShape {
    /// Of its own, or perhaps of others.
    pub has_messages: bool,
    pub packs: bool,
    pub unpacks: bool,
    pub has_locals: bool,
}

/// A loaded plan: its program with its memory.
#[derive(Debug)]
pub(crate) struct Slot {
    pub plan: Arc<dyn PlanView>,
    pub program: Arc<Program>,
    /// What this rank says when ranks agree.
    pub card: Card,
    pub shapes: Vec<StepShape>,
    /// True if this rank is one of the plan's participants.
    pub takes_part: bool,
    /// True if the program writes destination memory.
    pub writes: bool,
    /// True if the rank sends what it has received: then a step may read what
    /// the one before has brought.
    pub forwards: bool,
    /// Numbers the executions of this plan on this transport.
    pub sequence: Arc<AtomicU64>,
    /// Digests of the last verified version.
    pub history: Mutex<Option<Vec<u64>>>,
    pub is_unloaded: AtomicBool,
    /// Set if work of an ended request may still be in a queue: then staging
    /// is never given back.
    pub is_undrained: AtomicBool,
    needs: Needs,
    /// By need: the program was made for host memory there, or does not care.
    takes_host: Vec<bool>,
    binding: Mutex<Bindings>,
    pub device: Arc<dyn Device>,
    staging: MemoryRange,
    relay: MemoryRange,
}

#[derive(Debug)]
struct Bindings {
    current: Arc<Binding>,
    /// Set when a bound buffer has changed since `current` was made.
    is_stale: bool,
}

impl Session {
    /// A session of the rank that `endpoint` belongs to. The endpoint must
    /// have met its peers. Each plan works on the GPU that its buffers are
    /// bound on, or on the host.
    pub fn open(endpoint: &Endpoint, options: SessionOptions) -> Result<Session> {
        Session::with(endpoint, Devices::own(), options)
    }

    /// The same with one device for all plans.
    pub fn new(
        endpoint: &Endpoint,
        device: Arc<dyn Device>,
        options: SessionOptions,
    ) -> Result<Session> {
        Session::with(endpoint, Devices::Given(device), options)
    }

    fn with(endpoint: &Endpoint, devices: Devices, options: SessionOptions) -> Result<Session> {
        let shared = endpoint.shared()?;
        Ok(Session {
            inner: Arc::new(SessionInner {
                endpoint: endpoint.clone(),
                shared,
                devices,
                options,
                is_closed: AtomicBool::new(false),
                state: Mutex::default(),
            }),
        })
    }

    pub fn rank(&self) -> Rank {
        self.inner.shared.rank
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(crate) fn inner(&self) -> &Arc<SessionInner> {
        &self.inner
    }

    /// Names a range of this rank's memory. Binding a name again replaces the
    /// range; that is refused while a request of this session is under way.
    /// Names that no loaded plan knows are kept for later ones. The range must
    /// stay valid until it is replaced, unbound, or the session is gone and no
    /// request runs.
    pub fn bind(&self, side: Side, name: &str, range: MemoryRange, memory: Memory) -> Result<()> {
        self.bind_all(&[BufferBinding {
            side,
            name,
            range,
            memory,
            array: None,
        }])
    }

    /// Binds several buffers: all of them, or none if one is refused.
    pub fn bind_all(&self, bindings: &[BufferBinding<'_>]) -> Result<()> {
        bindings.iter().try_for_each(BufferBinding::check)?;
        self.inner.check_open()?;
        let mut state = self.inner.lock();
        check_quiet(&state, "bind a buffer")?;
        for binding in bindings {
            state.bind(binding);
        }
        Ok(())
    }

    /// Forgets a name. Plans that need it cannot be prepared until it is
    /// bound again.
    pub fn unbind(&self, side: Side, name: &str) -> Result<()> {
        let mut state = self.inner.lock();
        check_quiet(&state, "unbind a buffer")?;
        if state.bound[side_index(side)].remove(name).is_none() {
            return Err(Error::new(
                Status::NotFound,
                format!("no {side} buffer is bound as \"{name}\""),
            ));
        }
        for slot in state.slots.values() {
            slot.lock_bindings().is_stale = true;
        }
        Ok(())
    }

    /// Derives this rank's program, allocates what it needs beside the bound
    /// buffers, and gets the transport ready. Other ranks need not take part.
    pub fn load(&self, plan: Arc<dyn PlanView>) -> Result<PlanSlot> {
        let inner = &self.inner;
        inner.check_open()?;
        if inner.lock().slots.len() >= PLAN_COUNT_MAX {
            return Err(Error::limit(format!(
                "{PLAN_COUNT_MAX} plans are loaded; no more are allowed"
            )));
        }
        let slot = Slot::new(inner, plan)?;
        if slot.takes_part {
            let ns = or_default(inner.options.load_deadline_ns, LOAD_DEADLINE_DEFAULT_NS);
            let now = Instant::now();
            let never = now + Duration::from_secs(1 << 30);
            let deadline = instant_in(now, ns).unwrap_or(never);
            let binding = slot.lock_bindings().current.clone();
            let transport = &inner.shared.transport;
            transport.serve(
                &binding,
                &Company {
                    plan: slot.plan.fingerprint(),
                    participants: &slot.plan.participants(),
                    guests: &guests(&**transport, &*slot.plan)?,
                },
            )?;
            transport.connect(&binding, deadline)?;
        }
        let mut state = inner.lock();
        let id = state.next_slot;
        state.next_slot += 1;
        state.slots.insert(id, Arc::new(slot));
        Ok(PlanSlot(id))
    }

    /// Forgets a loaded plan. Its requests can no longer be prepared.
    pub fn unload(&self, slot: PlanSlot) -> Result<()> {
        let mut state = self.inner.lock();
        let Some(held) = state.slots.get(&slot.0) else {
            return Err(unknown_slot(slot));
        };
        let runs = state
            .latest
            .upgrade()
            .is_some_and(|f| Arc::ptr_eq(&f.slot, held) && f.lock().state.is_active());
        if runs {
            return Err(Error::new(
                Status::Busy,
                format!("plan slot {} has a request under way", slot.0),
            ));
        }
        held.is_unloaded.store(true, Ordering::Release);
        state.slots.remove(&slot.0);
        Ok(())
    }

    /// The program of a loaded plan.
    pub fn program(&self, slot: PlanSlot) -> Result<Arc<Program>> {
        Ok(self.inner.slot(slot)?.program.clone())
    }

    /// The polite end: waits until no request is under way, then closes the
    /// session. Does not touch the transport; other sessions may use it.
    pub fn finalize(&self, deadline_ns: u64) -> Result<()> {
        let deadline = instant_in(Instant::now(), deadline_ns);
        let latest = self.inner.lock().latest.upgrade();
        if let Some(flight) = latest {
            self.inner.shared.wait_idle(&flight, deadline)?;
        }
        self.inner.is_closed.store(true, Ordering::Release);
        Ok(())
    }

    /// Stops this rank's transport and everything that uses it, here and on
    /// all peers. Any thread, any time; never waits. The first reason wins.
    pub fn abort(&self, reason: &str) {
        self.inner.endpoint.abort(reason);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inner.is_closed.store(true, Ordering::Release);
        let latest = self.inner.lock().latest.upgrade();
        if latest.is_some_and(|f| f.lock().state.is_active()) {
            self.inner
                .endpoint
                .abort("a session was destroyed while its request was under way");
        }
    }
}

impl SessionInner {
    fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::new(Status::InvalidState, "the session is closed"));
        }
        Ok(())
    }

    pub fn slot(&self, slot: PlanSlot) -> Result<Arc<Slot>> {
        self.lock()
            .slots
            .get(&slot.0)
            .cloned()
            .ok_or_else(|| unknown_slot(slot))
    }

    /// Takes note of the flight that is being prepared.
    pub fn set_latest(&self, flight: &Arc<Flight>) {
        self.lock().latest = Arc::downgrade(flight);
    }

    /// The binding of `slot` with the buffers that are bound now.
    pub fn binding(&self, slot: &Slot) -> Result<Arc<Binding>> {
        // Session before slot, as everywhere.
        let state = self.lock();
        let mut bindings = slot.lock_bindings();
        if bindings.is_stale {
            slot.needs.check(&*slot.plan, |n| state.find(n))?;
            refresh(&state, slot, &mut bindings)?;
        }
        Ok(bindings.current.clone())
    }
}

/// Makes a binding with the ranges that are bound now.
fn refresh(state: &SessionState, slot: &Slot, bindings: &mut Bindings) -> Result<()> {
    let bound = state.bound(&slot.needs);
    slot.needs.check_staged(&slot.takes_host, &bound)?;
    slot.needs.check_memory(&*slot.device, &bound)?;
    let memory = bound.iter().map(|b| b.range).collect();
    let old = &bindings.current;
    let abort = old.abort.clone();
    let fresh = Binding::new(slot.program.clone(), memory, old.staging, old.relay, abort)?;
    slot.device.prepare(&fresh)?;
    bindings.current = Arc::new(fresh);
    bindings.is_stale = false;
    Ok(())
}

impl SessionState {
    /// Puts a checked binding in place; loaded plans take it with their next
    /// `prepare`.
    fn bind(&mut self, binding: &BufferBinding<'_>) {
        let BufferBinding { side, name, .. } = *binding;
        let fresh = Bound {
            range: binding.range,
            memory: binding.memory,
            array: binding.array.clone(),
        };
        let bound = &mut self.bound[side_index(side)];
        match bound.get_mut(name) {
            Some(b) => *b = fresh,
            None => drop(bound.insert(name.to_string(), fresh)),
        }
        for slot in self.slots.values() {
            if slot.needs.contain(side, name) {
                slot.lock_bindings().is_stale = true;
            }
        }
    }

    fn find(&self, need: &Need) -> Option<&Bound> {
        self.bound[side_index(need.side)].get(&need.name)
    }

    /// What the needs are bound to, nothing where they are not.
    fn bound(&self, needs: &Needs) -> Vec<Bound> {
        let nothing = |need: &Need| Bound {
            range: MemoryRange::EMPTY,
            memory: need.memory,
            array: None,
        };
        let one = |need| self.find(need).cloned().unwrap_or_else(|| nothing(need));
        needs.iter().map(one).collect()
    }
}

impl Slot {
    fn new(session: &SessionInner, plan: Arc<dyn PlanView>) -> Result<Slot> {
        let shared = &session.shared;
        let mut program = plan.program(shared.rank)?;
        let participants = plan.participants();
        let card = make_card(shared, &*plan, &program, &participants)?;
        let needs = Needs::of(&*plan, &program)?;
        let state = session.lock();
        needs.check(&*plan, |n| state.find(n))?;
        let bound = state.bound(&needs);
        drop(state);
        let kinds = || bound.iter().map(|b| b.memory);
        let device = session.devices.device(kinds(), shared.transport.gpu())?;
        needs.check_memory(&*device, &bound)?;
        let staging = if shared.transport.gathers() {
            0
        } else {
            program.staging_bytes
        };
        let own_bytes = staging.saturating_add(program.relay_bytes);
        if own_bytes > plan.staging_bytes_max() {
            return Err(Error::new(
                Status::StagingTooSmall,
                format!(
                    "the program stages {staging} bytes and relays {}; the plan allows {}",
                    program.relay_bytes,
                    plan.staging_bytes_max()
                ),
            ));
        }
        let mut staging = staging;
        let mut is_host = vec![true; bound.len()];
        if device.stages_host() && !shared.transport.gathers() {
            is_host = kinds().map(|k| k == Memory::Host).collect();
            stage_host_sends(&mut program, &is_host);
            staging = program.staging_bytes;
        }
        let program = Arc::new(program);
        let staging = allocate(&*device, staging)?;
        let relay =
            allocate(&*device, program.relay_bytes).inspect_err(|_| release(&*device, staging))?;
        let has_guests = !shared.transport.guests().is_empty();
        let abort = shared.transport.abort_cell();
        let memory = bound.iter().map(|b| b.range).collect();
        let binding = Binding::new(program.clone(), memory, staging, relay, abort.clone())
            .and_then(|binding| device.prepare(&binding).map(|()| binding))
            .inspect_err(|_| {
                release(&*device, staging);
                release(&*device, relay);
            })?;
        Ok(Slot {
            card,
            shapes: program
                .steps
                .iter()
                .map(|s| shape(&program, s, has_guests))
                .collect(),
            takes_part: participants.binary_search(&shared.rank).is_ok(),
            writes: receives(&program) || !program.fills.is_empty(),
            forwards: program.forwards(),
            sequence: shared.counter(plan.fingerprint()),
            history: Mutex::new(None),
            is_unloaded: AtomicBool::new(false),
            is_undrained: AtomicBool::new(false),
            needs,
            takes_host: is_host,
            binding: Mutex::new(Bindings {
                current: Arc::new(binding),
                is_stale: false,
            }),
            device,
            staging,
            relay,
            program,
            plan,
        })
    }

    fn lock_bindings(&self) -> MutexGuard<'_, Bindings> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lock_history(&self) -> MutexGuard<'_, Option<Vec<u64>>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Memory that a queue may still write is lost rather than reused.
        if !self.is_undrained.load(Ordering::Acquire) {
            release(&*self.device, self.staging);
            release(&*self.device, self.relay);
        }
    }
}

/// The programs of the guests that take part in a plan.
fn guests(transport: &dyn Transport, plan: &dyn PlanView) -> Result<Vec<(Rank, Program)>> {
    let participants = plan.participants();
    let takes_part = |rank: &&Rank| participants.binary_search(rank).is_ok();
    let guests = transport.guests().iter().filter(takes_part);
    guests.map(|g| Ok((*g, plan.program(*g)?))).collect()
}

fn allocate(device: &dyn Device, bytes: u64) -> Result<MemoryRange> {
    if bytes == 0 {
        return Ok(MemoryRange::EMPTY);
    }
    device.allocate(bytes)
}

fn release(device: &dyn Device, range: MemoryRange) {
    if range.bytes > 0 {
        device.free(range);
    }
}

fn shape(program: &Program, step: &Step, has_guests: bool) -> StepShape {
    let messages = program.messages_of(step);
    StepShape {
        has_messages: has_guests || !messages.is_empty(),
        packs: program.packs_of(step).next().is_some(),
        unpacks: program.unpacks_of(step).next().is_some(),
        has_locals: !program.locals_of(step).is_empty(),
    }
}

/// True if anything arrives on this rank to stay.
fn receives(program: &Program) -> bool {
    let mut messages = program.messages.iter();
    messages.any(|m| m.direction == Direction::Receive && program.keeps(m))
        || !program.locals.is_empty()
}

fn make_card(
    shared: &Shared,
    plan: &dyn PlanView,
    program: &Program,
    participants: &[Rank],
) -> Result<Card> {
    for rank in participants {
        if !shared.ranks.contains(*rank) {
            return Err(Error::invalid(format!(
                "the plan needs rank {rank}, which is none of the {} ranks of this transport",
                shared.ranks.len()
            ))
            .by(*rank));
        }
    }
    let copy = plan.copy_of(shared.rank);
    Ok(Card {
        rank: shared.rank,
        plan: plan.fingerprint(),
        balance: program.pair_balance,
        steps: program.steps.len() as u32,
        tensors: program.tensors.len() as u32,
        copy: copy.unwrap_or(NO_COPY),
        copy_ranks: copy.map_or(0, |c| plan.copy_ranks(c)),
        copies_are_alike: plan.copies_are_alike(),
        participants: super::message::Participants::new(participants),
    })
}

fn check_quiet(state: &SessionState, what: &str) -> Result<()> {
    let latest = state.latest.upgrade();
    if latest.is_some_and(|f| f.lock().state.is_active()) {
        return Err(Error::new(
            Status::Busy,
            format!("cannot {what} while a request of the session is under way"),
        ));
    }
    Ok(())
}

fn unknown_slot(slot: PlanSlot) -> Error {
    Error::new(
        Status::NotFound,
        format!("no plan is loaded in slot {}", slot.0),
    )
}

fn side_index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

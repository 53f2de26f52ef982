//! What a binding asks of its GPU, worked out once: a table of jobs, and which
//! of them make up each task.
//!
//! ```text
//!   pack 0   ── round ── launch of jobs 0..40
//!   local 0  ── round ── gather host memory, launch of jobs 40..44
//!            └─ round ── gather the rest,    launch of jobs 44..46
//! ```
//!
//! Source memory that the GPU does not reach is gathered into a *bounce* buffer
//! of pinned memory; as much as it holds makes a round.

use super::host::{HostItem, HostSum, HostTask};
use super::job::{Job, Side, Types, number_tiles};
use super::kernels::Which;
use crate::device::copy::walk;
use crate::device::fence::AbortCell;
use crate::device::walk::{Walk, align};
use crate::device::work::staged;
use crate::device::{Binding, DigestSums, MemoryRange, Task};
use crate::error::Result;
use crate::layout::dtype::Dtype;
use crate::plan::program::{BufferSlot, DigestItem, Message, Region};
use std::ops::Range;
use std::sync::Arc;

/// More copies than this of one item are a kernel's job after all.
const COPIES_PER_ITEM_MAX: usize = 64;

/// A launch, and what comes before it.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// In [`Table::hosts`].
    pub host: Option<usize>,
    /// In [`Table::copies`].
    pub copies: Range<usize>,
    /// In [`Table::jobs`].
    pub jobs: Range<usize>,
    pub tiles: u64,
}

/// Rows of bytes for a copy engine; of zeros where there is no `from`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy2d {
    pub from: Option<(usize, usize)>,
    pub to: (usize, usize),
    pub bytes: usize,
    pub rows: usize,
}

/// The rounds of every task, as ranges.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub jobs: Vec<Job>,
    pub copies: Vec<Copy2d>,
    pub hosts: Vec<HostTask>,
    pub rounds: Vec<Round>,
    packs: Vec<Range<usize>>,
    unpacks: Vec<Range<usize>>,
    locals: Vec<Range<usize>>,
    fill: Range<usize>,
    source: Range<usize>,
    destination: Range<usize>,
}

impl Table {
    pub fn rounds_of(&self, task: Task) -> &[Round] {
        let range = match task {
            Task::Pack { step } => &self.packs[step as usize],
            Task::Unpack { step } => &self.unpacks[step as usize],
            Task::Local { step } => &self.locals[step as usize],
            Task::Fill => &self.fill,
            Task::DigestSource => &self.source,
            Task::DigestDestination => &self.destination,
        };
        &self.rounds[range.clone()]
    }
}

/// Which kernel does a task.
pub(super) fn kernel_of(task: Task) -> Which {
    match task {
        Task::DigestSource | Task::DigestDestination => Which::Sums,
        Task::Pack { .. } | Task::Unpack { .. } | Task::Local { .. } | Task::Fill => Which::Moves,
    }
}

/// What a table is made for.
pub(super) struct Plan<'a> {
    pub binding: &'a Binding,
    /// By slot: memory that the GPU does not reach.
    pub is_pageable: &'a [bool],
    pub bounce: MemoryRange,
    /// Device memory for digest sums: once, sent, held.
    pub sums: usize,
    pub uses_engines: bool,
}

/// Works out the table.
pub(super) fn make(plan: &Plan<'_>) -> Result<Table> {
    let mut maker = Maker {
        plan,
        table: Table::default(),
        open: Open::default(),
    };
    let program = &plan.binding.program;
    for step in &program.steps {
        let packs = maker.task(|m| m.if_staged(program.packs_of(step), Maker::pack))?;
        maker.table.packs.push(packs);
        let unpacks = maker.task(|m| m.if_staged(program.unpacks_of(step), Maker::unpack))?;
        maker.table.unpacks.push(unpacks);
        let locals = maker.task(|m| {
            for local in program.locals_of(step) {
                let (a, b) = (&local.source, &local.destination);
                let types = Types {
                    from: a.dtype,
                    wire: a.dtype,
                    to: b.dtype,
                };
                let to = Side::whole(walk(plan.binding, b));
                m.transfer(a, to, types, program.elements(a))?;
            }
            Ok(())
        })?;
        maker.table.locals.push(locals);
    }
    maker.table.fill = maker.task(|m| {
        for region in &program.fills {
            m.zero(&Side::whole(walk(plan.binding, region)));
        }
        Ok(())
    })?;
    maker.table.source = maker.task(|m| m.digests(&program.digest_source, true))?;
    maker.table.destination = maker.task(|m| m.digests(&program.digest_destination, false))?;
    Ok(maker.table)
}

/// The round that is being made.
#[derive(Debug, Default)]
struct Open {
    items: Vec<HostItem>,
    bounce_bytes: u64,
    first_job: usize,
    first_copy: usize,
}

struct Maker<'a> {
    plan: &'a Plan<'a>,
    table: Table,
    open: Open,
}

impl Maker<'_> {
    /// Makes the rounds of one task.
    fn task(&mut self, fill: impl FnOnce(&mut Self) -> Result<()>) -> Result<Range<usize>> {
        let first = self.table.rounds.len();
        self.begin();
        fill(self)?;
        self.close();
        Ok(first..self.table.rounds.len())
    }

    fn begin(&mut self) {
        self.open = Open {
            first_job: self.table.jobs.len(),
            first_copy: self.table.copies.len(),
            ..Open::default()
        };
    }

    /// Ends a round, if there is anything in it.
    fn close(&mut self) {
        let jobs = self.open.first_job..self.table.jobs.len();
        let copies = self.open.first_copy..self.table.copies.len();
        let items = std::mem::take(&mut self.open.items);
        if !jobs.is_empty() || !copies.is_empty() || !items.is_empty() {
            let host = (!items.is_empty()).then(|| {
                self.table.hosts.push(HostTask {
                    items,
                    abort: self.abort().clone(),
                    sums: self.sums().clone(),
                });
                self.table.hosts.len() - 1
            });
            let tiles = number_tiles(&mut self.table.jobs[jobs.clone()]);
            self.table.rounds.push(Round {
                host,
                copies,
                jobs,
                tiles,
            });
        }
        self.begin();
    }

    fn abort(&self) -> &Arc<AbortCell> {
        &self.plan.binding.abort
    }

    fn sums(&self) -> &Arc<DigestSums> {
        &self.plan.binding.sums
    }

    fn if_staged<'m>(
        &mut self,
        messages: impl Iterator<Item = &'m Message>,
        each: impl Fn(&mut Self, &Message) -> Result<()>,
    ) -> Result<()> {
        if !self.plan.binding.is_staged() {
            return Ok(());
        }
        for message in messages {
            each(self, message)?;
        }
        Ok(())
    }

    /// Regions to staging; gaps between them become zero.
    fn pack(&mut self, message: &Message) -> Result<()> {
        let binding = self.plan.binding;
        let slot = staged(binding, message);
        let mut at = 0;
        for piece in binding.program.pieces_of(message) {
            self.gap(slot, at, piece.at);
            let types = Types {
                from: piece.region.dtype,
                wire: piece.wire,
                to: piece.wire,
            };
            let to = Side::run(slot.address + piece.at as usize, piece.bytes);
            let elements = piece.bytes / piece.wire.bytes();
            self.transfer(&piece.region, to, types, elements)?;
            at = piece.at + piece.bytes;
        }
        self.gap(slot, at, message.bytes);
        Ok(())
    }

    fn gap(&mut self, slot: MemoryRange, from: u64, to: u64) {
        if from < to {
            self.zero(&Side::run(slot.address + from as usize, to - from));
        }
    }

    /// Staging to regions.
    fn unpack(&mut self, message: &Message) -> Result<()> {
        let binding = self.plan.binding;
        let slot = staged(binding, message);
        for piece in binding.program.pieces_of(message) {
            let types = Types {
                from: piece.wire,
                wire: piece.wire,
                to: piece.region.dtype,
            };
            let from = Side::run(slot.address + piece.at as usize, piece.bytes);
            let to = Side::whole(walk(binding, &piece.region));
            self.job(&from, &to, types, piece.bytes / piece.wire.bytes())?;
        }
        Ok(())
    }

    fn is_pageable(&self, region: &Region) -> bool {
        let BufferSlot(slot) = region.slot;
        region.slot != BufferSlot::RELAY && self.plan.is_pageable[slot as usize]
    }

    /// From a region to wherever, by way of pinned memory where it must be.
    fn transfer(&mut self, from: &Region, to: Side, types: Types, elements: u64) -> Result<()> {
        let source = walk(self.plan.binding, from);
        if !self.is_pageable(from) {
            return self.job(&Side::whole(source), &to, types, elements);
        }
        let (a, b) = (types.from.bytes(), types.to.bytes());
        let mut done = 0;
        while done < elements {
            if self.room() < a.max(16) {
                self.close();
            }
            let n = (elements - done).min(self.room() / a);
            let mut source = source.clone();
            source.skip(done * a);
            let bounce = MemoryRange {
                address: self.plan.bounce.address + self.open.bounce_bytes as usize,
                bytes: n * a,
            };
            self.open.items.push(HostItem::Gather {
                from: source,
                to: bounce,
            });
            self.open.bounce_bytes += bounce.bytes.next_multiple_of(16);
            let to = Side {
                walk: to.walk.clone(),
                skip_bytes: done * b,
            };
            self.job(&Side::run(bounce.address, bounce.bytes), &to, types, n)?;
            done += n;
        }
        Ok(())
    }

    /// Bytes that the bounce buffer still takes in this round.
    fn room(&self) -> u64 {
        self.plan
            .bounce
            .bytes
            .saturating_sub(self.open.bounce_bytes)
    }

    fn job(&mut self, from: &Side, to: &Side, types: Types, elements: u64) -> Result<()> {
        if self.plan.uses_engines && types.is_copy() {
            let bytes = elements * types.from.bytes();
            if copies(from, to, bytes, &mut self.table.copies) {
                return Ok(());
            }
        }
        let job = Job::transfer(from, to, types, elements)?;
        self.table.jobs.push(job);
        Ok(())
    }

    fn zero(&mut self, to: &Side) {
        let bytes = to.walk.left();
        if self.plan.uses_engines && zeros(to, &mut self.table.copies) {
            return;
        }
        self.table.jobs.push(Job::zero(to, bytes));
    }

    fn digests(&mut self, items: &[DigestItem], is_source: bool) -> Result<()> {
        let binding = self.plan.binding;
        let tensors = binding.program.tensors.len() as u64;
        for item in items {
            let shape = &binding.program.tensors[item.tensor.index()].shape;
            let memory = walk(binding, &item.region);
            let types = (item.region.dtype, item.dtype);
            if self.is_pageable(&item.region) {
                self.open.items.push(HostItem::Sum(Box::new(HostSum {
                    memory,
                    shape: shape.to_vec(),
                    bounds: item.bounds.clone(),
                    types,
                    tensor: item.tensor.index(),
                    is_once: item.is_once,
                    weight: item.weight,
                })));
                continue;
            }
            let counter =
                |row: u64| self.plan.sums as u64 + (row * tensors + u64::from(item.tensor.0)) * 8;
            let counters = match (is_source, item.is_once) {
                (true, true) => (counter(0), counter(1), item.weight),
                (true, false) => (0, counter(1), item.weight),
                (false, _) => (counter(2), 0, 0),
            };
            let indices = Walk::indices(shape, &item.bounds);
            let elements = item.bounds.elements();
            let memory = Side::whole(memory);
            let job = Job::sum(&memory, indices, types, elements, counters);
            self.table.jobs.push(job);
        }
        Ok(())
    }
}

/// The copies of one item, for copy engines; false, and none is added, if they
/// are many or of a shape that engines do not take.
pub(super) fn copies(from: &Side, to: &Side, bytes: u64, out: &mut Vec<Copy2d>) -> bool {
    let first = out.len();
    let (mut a, mut b) = (from.walk.clone(), to.walk.clone());
    a.skip(from.skip_bytes);
    b.skip(to.skip_bytes);
    let mut left = bytes;
    while left > 0 {
        let (x, y) = align(a.peek().limit(left), b.peek().limit(left));
        let done = x.bytes();
        let pitches = (
            pitch(x.stride, x.rows, x.run),
            pitch(y.stride, y.rows, y.run),
        );
        let (Some(from_pitch), Some(to_pitch)) = pitches else {
            out.truncate(first);
            return false;
        };
        out.push(Copy2d {
            from: Some((x.address, from_pitch)),
            to: (y.address, to_pitch),
            bytes: x.run as usize,
            rows: x.rows as usize,
        });
        if out.len() - first > COPIES_PER_ITEM_MAX {
            out.truncate(first);
            return false;
        }
        a.advance(done);
        b.advance(done);
        left -= done;
    }
    true
}

/// Zeros for copy engines.
fn zeros(to: &Side, out: &mut Vec<Copy2d>) -> bool {
    let first = out.len();
    let whole = Side::run(1, to.walk.left());
    if !copies(&whole, to, to.walk.left(), out) {
        return false;
    }
    for copy in &mut out[first..] {
        copy.from = None;
    }
    true
}

/// Rows that lie apart, forwards, and not inside each other.
fn pitch(stride: isize, rows: u64, run: u64) -> Option<usize> {
    if rows == 1 {
        return Some(run as usize);
    }
    usize::try_from(stride).ok().filter(|&s| s as u64 >= run)
}

/// The jobs of one message between two bindings. `Err` inside is the byte where
/// the two ends differ.
pub(super) fn message_jobs(
    from: (&Binding, &Message),
    to: (&Binding, &Message),
    jobs: &mut Vec<Job>,
) -> Result<std::result::Result<(), u64>> {
    pieces(from, to, |source, target, types, elements| {
        jobs.push(Job::transfer(source, target, types, elements)?);
        Ok(true)
    })
}

/// The same for copy engines; false if they cannot.
pub(super) fn message_copies(
    from: (&Binding, &Message),
    to: (&Binding, &Message),
    out: &mut Vec<Copy2d>,
) -> bool {
    let done = pieces(from, to, |source, target, types, elements| {
        let bytes = elements * types.from.bytes();
        Ok(types.is_copy() && copies(source, target, bytes, out))
    });
    matches!(done, Ok(Ok(())))
}

/// Calls `each` with what both ends see as one piece, until it returns false.
fn pieces(
    from: (&Binding, &Message),
    to: (&Binding, &Message),
    mut each: impl FnMut(&Side, &Side, Types, u64) -> Result<bool>,
) -> Result<std::result::Result<(), u64>> {
    let (sources, targets) = (
        from.0.program.pieces_of(from.1),
        to.0.program.pieces_of(to.1),
    );
    let (mut i, mut k) = (0, 0);
    let mut at = 0;
    while let (Some(a), Some(b)) = (sources.get(i), targets.get(k)) {
        let (lo, hi) = (a.at.max(b.at), (a.at + a.bytes).min(b.at + b.bytes));
        if lo >= hi || a.wire != b.wire || lo < at {
            return Ok(Err(at));
        }
        let types = Types {
            from: a.region.dtype,
            wire: a.wire,
            to: b.region.dtype,
        };
        let (types, unit) = if types.is_copy() {
            // Any byte may be a cut where nothing is converted.
            let byte = Dtype::U8;
            let bytes = Types {
                from: byte,
                wire: byte,
                to: byte,
            };
            (bytes, 1)
        } else {
            (types, a.wire.bytes())
        };
        let cuts = [lo - a.at, lo - b.at, hi - lo];
        if cuts.iter().any(|c| !c.is_multiple_of(unit)) {
            return Ok(Err(lo));
        }
        let side = |binding: &Binding, region: &Region, before: u64, dtype: Dtype| Side {
            walk: walk(binding, region),
            skip_bytes: before / unit * dtype.bytes(),
        };
        let source = side(from.0, &a.region, lo - a.at, types.from);
        let target = side(to.0, &b.region, lo - b.at, types.to);
        if !each(&source, &target, types, (hi - lo) / unit)? {
            return Ok(Err(lo));
        }
        at = hi;
        i += usize::from(hi == a.at + a.bytes);
        k += usize::from(hi == b.at + b.bytes);
    }
    if i < sources.len() || k < targets.len() {
        return Ok(Err(at));
    }
    Ok(Ok(()))
}

//! A plan executed byte by byte in virtual time.
//!
//! Real bytes move between virtual ranks in the order in which the simulator
//! says that things begin and end. What is read is read when it begins *and*
//! when it ends, and must not have changed; what is written is poisoned when
//! it begins and right when it ends. A plan that reuses staging too early, or
//! forwards bytes before they are there, delivers wrong bytes or fails here.

use super::SimulateOptions;
use super::engine::{Span, SpanKind};
use super::instance::Instance;
use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::plan::Plan;
use crate::plan::program::{
    BufferSlot, Direction, LocalCopy, Message, Piece, Program, Region, Side,
};
use crate::plan::topology::Topology;
use crate::rank::Rank;
use half::{bf16, f16};

/// What memory holds that is being written.
const POISON: u8 = 0xA5;

/// The memory of one virtual rank.
#[derive(Clone, Debug, Default)]
pub struct VirtualMemory {
    /// By slot of the rank's program.
    pub buffers: Vec<Vec<u8>>,
    staging: Vec<u8>,
    relay: Vec<u8>,
}

/// All ranks of a plan with their memory.
#[derive(Debug)]
pub struct ExactRun {
    pub ranks: Vec<Rank>,
    pub programs: Vec<Program>,
    pub memory: Vec<VirtualMemory>,
    pub total_ns: u64,
}

/// Executes a plan. `fill` writes the initial bytes of each buffer, given the
/// rank, the side, the name and memory of the right size.
pub fn execute_exactly(
    plan: &Plan,
    topology: &Topology,
    mut fill: impl FnMut(Rank, Side, &str, &mut [u8]),
) -> Result<ExactRun> {
    let instance = Instance::of_plan(plan, topology)?;
    let options = SimulateOptions {
        trace: true,
        ..SimulateOptions::default()
    };
    let ran = instance.run(&options);
    if let Some(stuck) = &ran.stuck {
        return Err(Error::internal(format!(
            "{} flows never ended; ranks and steps that wait: {:?}",
            stuck.flows_left, stuck.waiting
        )));
    }
    let mut run = ExactRun {
        ranks: plan.participants().to_vec(),
        programs: Vec::new(),
        memory: Vec::new(),
        total_ns: ran.total_ns,
    };
    for &rank in &run.ranks {
        let program = plan.program(rank)?;
        let mut memory = VirtualMemory {
            staging: vec![POISON; program.staging_bytes as usize],
            relay: vec![POISON; program.relay_bytes as usize],
            ..VirtualMemory::default()
        };
        for used in &program.buffers {
            let buffer = plan.buffer(rank, used).ok_or_else(|| {
                Error::internal(format!("rank {rank} uses a buffer that its layout lacks"))
            })?;
            let mut bytes = vec![0; buffer.bytes as usize];
            fill(rank, used.side, &buffer.name, &mut bytes);
            memory.buffers.push(bytes);
        }
        run.programs.push(program);
        run.memory.push(memory);
    }
    run.replay(&ran.spans)?;
    Ok(run)
}

/// Ends come before begins of the same time: what waits for an end begins no
/// earlier.
fn in_order(spans: &[Span]) -> Vec<(u64, bool, usize)> {
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * spans.len());
    for (i, s) in spans.iter().enumerate() {
        events.push((s.start_ns, true, i));
        events.push((s.end_ns, false, i));
    }
    events.sort_unstable();
    events
}

impl ExactRun {
    /// The bytes of a buffer after the run.
    pub fn buffer(&self, rank: Rank, slot: usize) -> Option<&[u8]> {
        let at = self.ranks.binary_search(&rank).ok()?;
        self.memory[at].buffers.get(slot).map(|b| &**b)
    }

    fn replay(&mut self, spans: &[Span]) -> Result<()> {
        let mut seen: Vec<Vec<Vec<u8>>> = vec![Vec::new(); spans.len()];
        for (_, is_begin, i) in in_order(spans) {
            let span = spans[i];
            match (span.kind, is_begin) {
                (SpanKind::Flow, true) => {
                    seen[i] = self.outgoing(&span);
                    self.incoming(&span, None);
                }
                (SpanKind::Flow, false) => {
                    let now = self.outgoing(&span);
                    if now != seen[i] {
                        return Err(Error::internal(format!(
                            "in step {} bytes of rank {} to rank {} changed while they were sent",
                            span.step,
                            self.ranks[span.node as usize],
                            self.ranks[span.peer as usize]
                        )));
                    }
                    self.incoming(&span, Some(&now));
                    seen[i].clear();
                }
                (SpanKind::Pack, false) => self.pack(span.node as usize, span.step),
                (SpanKind::Unpack, false) => self.unpack(span.node as usize, span.step),
                (SpanKind::Local, false) => self.local(span.node as usize, span.step),
                (SpanKind::Pack | SpanKind::Unpack | SpanKind::Local, true) => {}
            }
        }
        Ok(())
    }

    fn messages(&self, node: usize, peer: usize, step: u32, direction: Direction) -> Vec<Message> {
        let program = &self.programs[node];
        let all = program.messages_of(&program.steps[step as usize]);
        all.iter()
            .filter(|m| m.peer == self.ranks[peer] && m.direction == direction)
            .cloned()
            .collect()
    }

    /// The bytes of a flow's messages as they lie at the sender.
    fn outgoing(&self, span: &Span) -> Vec<Vec<u8>> {
        let (n, peer) = (span.node as usize, span.peer as usize);
        let (program, memory) = (&self.programs[n], &self.memory[n]);
        self.messages(n, peer, span.step, Direction::Send)
            .iter()
            .map(|m| match m.is_direct {
                true => memory.read(&program.pieces_of(m)[0].region, m.bytes),
                false => memory.staging[m.staging as usize..][..m.bytes as usize].to_vec(),
            })
            .collect()
    }

    /// Puts a flow's messages where they belong at the receiver; poison while
    /// they are under way.
    fn incoming(&mut self, span: &Span, bytes: Option<&[Vec<u8>]>) {
        let (n, peer) = (span.peer as usize, span.node as usize);
        let list = self.messages(n, peer, span.step, Direction::Receive);
        for (i, m) in list.iter().enumerate() {
            let poison = vec![POISON; m.bytes as usize];
            let data = bytes.map_or(&poison, |b| &b[i]);
            let program = &self.programs[n];
            let memory = &mut self.memory[n];
            match m.is_direct {
                true => memory.write(&program.pieces_of(m)[0].region, data),
                false => memory.staging[m.staging as usize..][..data.len()].copy_from_slice(data),
            }
        }
    }

    fn pack(&mut self, n: usize, step: u32) {
        let program = &self.programs[n];
        let memory = &mut self.memory[n];
        for m in program.packs_of(&program.steps[step as usize]) {
            for p in program.pieces_of(m) {
                let wire = memory.gather(program, p);
                memory.staging[(m.staging + p.at) as usize..][..wire.len()].copy_from_slice(&wire);
            }
        }
    }

    fn unpack(&mut self, n: usize, step: u32) {
        let program = &self.programs[n];
        let memory = &mut self.memory[n];
        for m in program.unpacks_of(&program.steps[step as usize]) {
            for p in program.pieces_of(m) {
                let from = (m.staging + p.at) as usize;
                let wire = memory.staging[from..][..p.bytes as usize].to_vec();
                memory.scatter(program, &p.region, &wire, p.wire);
            }
        }
    }

    fn local(&mut self, n: usize, step: u32) {
        let program = &self.programs[n];
        let memory = &mut self.memory[n];
        for l in program.locals_of(&program.steps[step as usize]) {
            memory.copy(program, l);
        }
    }
}

impl VirtualMemory {
    fn slot(&self, slot: BufferSlot) -> &[u8] {
        match slot {
            BufferSlot::RELAY => &self.relay,
            BufferSlot(i) => &self.buffers[i as usize],
        }
    }

    fn slot_mut(&mut self, slot: BufferSlot) -> &mut [u8] {
        match slot {
            BufferSlot::RELAY => &mut self.relay,
            BufferSlot(i) => &mut self.buffers[i as usize],
        }
    }

    fn read(&self, region: &Region, bytes: u64) -> Vec<u8> {
        self.slot(region.slot)[region.offset as usize..][..bytes as usize].to_vec()
    }

    fn write(&mut self, region: &Region, data: &[u8]) {
        self.slot_mut(region.slot)[region.offset as usize..][..data.len()].copy_from_slice(data);
    }

    /// The elements of a piece in order, in its wire dtype.
    fn gather(&self, program: &Program, piece: &Piece) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.bytes as usize);
        let from = self.slot(piece.region.slot);
        each_element(program, &piece.region, |at, size| {
            convert(
                &from[at..at + size],
                piece.region.dtype,
                piece.wire,
                &mut out,
            );
        });
        out
    }

    fn scatter(&mut self, program: &Program, region: &Region, data: &[u8], dtype: Dtype) {
        let element = dtype.bytes() as usize;
        let to = self.slot_mut(region.slot);
        let mut next = 0;
        let mut value = Vec::with_capacity(16);
        each_element(program, region, |at, size| {
            value.clear();
            convert(&data[next..next + element], dtype, region.dtype, &mut value);
            to[at..at + size].copy_from_slice(&value);
            next += element;
        });
    }

    fn copy(&mut self, program: &Program, l: &LocalCopy) {
        let mut bytes = Vec::with_capacity(l.bytes as usize);
        let from = self.slot(l.source.slot);
        each_element(program, &l.source, |at, size| {
            bytes.extend_from_slice(&from[at..at + size]);
        });
        self.scatter(program, &l.destination, &bytes, l.source.dtype);
    }
}

/// Calls `f` with offset and size of every element, in order.
fn each_element(program: &Program, region: &Region, mut f: impl FnMut(usize, usize)) {
    let loops = program.loops_of(region);
    let size = region.dtype.bytes() as usize;
    let mut at = vec![0u64; loops.len()];
    loop {
        let shift: i64 = loops
            .iter()
            .zip(&at)
            .map(|(l, &i)| l.stride * i as i64)
            .sum();
        let base = region.offset.wrapping_add_signed(shift) as usize;
        for i in 0..region.run as usize {
            f(base + i * size, size);
        }
        let mut d = loops.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            at[d] += 1;
            if at[d] < loops[d].count {
                break;
            }
            at[d] = 0;
        }
    }
}

/// Appends one element in another dtype, rounded to the nearest.
fn convert(element: &[u8], from: Dtype, to: Dtype, out: &mut Vec<u8>) {
    if from == to {
        out.extend_from_slice(element);
        return;
    }
    let two = || [element[0], element[1]];
    let value = match from {
        Dtype::F16 => f16::from_le_bytes(two()).to_f32(),
        Dtype::BF16 => bf16::from_le_bytes(two()).to_f32(),
        _ => f32::from_le_bytes([element[0], element[1], element[2], element[3]]),
    };
    match to {
        Dtype::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        Dtype::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
        _ => out.extend_from_slice(&value.to_le_bytes()),
    }
}

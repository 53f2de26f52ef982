//! Programs made by hand, for tests and benches of devices and transports.
//!
//! A [`World`] has memory per rank, cut into views of tensors; `send` moves a
//! box from a view of one rank to a view of another, and both get their
//! messages. What arrives is compared element by element, with no code of the
//! library in between.

#![allow(dead_code)]

pub mod world;

use std::sync::Arc;
use weightsync::device::fence::AbortCell;
use weightsync::device::{Binding, MemoryRange};
use weightsync::layout::BufferKey;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use weightsync::plan::program::*;
use weightsync::{Rank, Result};

/// A tensor's box in a buffer of a rank.
#[derive(Clone, Debug)]
pub struct View {
    pub rank: u32,
    pub slot: u32,
    pub offset: u64,
    pub dtype: Dtype,
    pub bounds: IndexBox,
    pub strides: Vec<i64>,
}

impl View {
    /// Byte offset of the element at these indices of the tensor.
    pub fn at(&self, index: &[u64]) -> u64 {
        let spans = self.bounds.spans();
        let mut at = self.offset as i64;
        for (axis, i) in index.iter().enumerate() {
            at += (i - spans[axis].lo) as i64 * self.strides[axis];
        }
        at as u64
    }
}

pub fn bounds(spans: &[(u64, u64)]) -> IndexBox {
    IndexBox(spans.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect())
}

/// Row-major strides of a box.
pub fn dense(bounds: &IndexBox, dtype: Dtype) -> Vec<i64> {
    let mut stride = dtype.bytes() as i64;
    let mut strides: Vec<i64> = bounds
        .spans()
        .iter()
        .rev()
        .map(|s| {
            let mine = stride;
            stride *= s.len() as i64;
            mine
        })
        .collect();
    strides.reverse();
    strides
}

/// Every index of a box, row-major.
pub fn indices(bounds: &IndexBox) -> Vec<Vec<u64>> {
    let mut all = vec![vec![]];
    for span in bounds.spans() {
        all = all
            .into_iter()
            .flat_map(|head| (span.lo..span.hi).map(move |i| [head.clone(), vec![i]].concat()))
            .collect();
    }
    all
}

/// One rank's program in the making.
#[derive(Clone, Debug)]
pub struct Builder {
    program: Program,
    /// Step by step, before they are put in order.
    messages: Vec<(Message, Vec<Piece>)>,
    locals: Vec<(u32, LocalCopy)>,
}

impl Builder {
    pub fn new(rank: u32, tensors: &Arc<[Tensor]>) -> Builder {
        Builder {
            program: Program {
                boxes: Vec::new(),
                rank: Rank(rank),
                buffers: vec![],
                loops: vec![],
                pieces: vec![],
                messages: vec![],
                locals: vec![],
                fills: vec![],
                steps: vec![],
                tensors: tensors.clone(),
                digest_source: vec![],
                digest_destination: vec![],
                staging_bytes: 0,
                relay_bytes: 0,
                bytes_sent: 0,
                bytes_received: 0,
                bytes_local: 0,
                pair_balance: 0,
                pairs: vec![],
            },
            messages: vec![],
            locals: vec![],
        }
    }

    pub fn buffer(&mut self, side: Side) -> u32 {
        let key = BufferKey::Explicit {
            buffer: self.program.buffers.len() as u32,
        };
        self.program.buffers.push(BufferUse { side, key });
        self.program.buffers.len() as u32 - 1
    }

    /// The part `cut` of a view, as a region.
    pub fn region(&mut self, view: &View, cut: &IndexBox) -> Region {
        let start: Vec<u64> = cut.spans().iter().map(|s| s.lo).collect();
        let mut run = 1;
        let mut loops: Vec<Loop> = cut
            .spans()
            .iter()
            .zip(&view.strides)
            .map(|(s, &stride)| Loop {
                count: s.len(),
                stride,
            })
            .collect();
        if let Some(last) = loops.last()
            && last.stride == view.dtype.bytes() as i64
        {
            run = last.count;
            loops.pop();
        }
        let first = self.program.loops.len() as u32;
        self.program.loops.extend(loops);
        Region {
            slot: BufferSlot(view.slot),
            offset: view.at(&start),
            dtype: view.dtype,
            run,
            loops: (first, self.program.loops.len() as u32),
        }
    }

    /// Adds pieces `(view, box)` of a message; items are 16-byte aligned.
    pub fn message(
        &mut self,
        step: u32,
        peer: u32,
        direction: Direction,
        parts: &[(&View, IndexBox)],
        wire: Dtype,
    ) {
        let mut at = 0u64;
        let mut bytes = 0;
        let mut pieces = vec![];
        for (view, cut) in parts {
            at = at.next_multiple_of(16);
            let region = self.region(view, cut);
            let size = cut.elements() * wire.bytes();
            pieces.push(Piece {
                tensor: TensorIndex(0),
                within: self.program.boxes.len() as u32,
                first: 0,
                region,
                at,
                bytes: size,
                wire,
            });
            self.program.boxes.push(cut.clone());
            at += size;
            bytes = at;
        }
        let is_direct = pieces.len() == 1 && pieces[0].region.dtype == wire && {
            let mut run = pieces[0].region.run * wire.bytes();
            self.program
                .loops_of(&pieces[0].region)
                .iter()
                .rev()
                .all(|l| {
                    let ok = l.count == 1 || l.stride == run as i64;
                    run *= l.count;
                    ok
                })
        };
        let message = Message {
            peer: Rank(peer),
            direction,
            stage: 0,
            bucket: step,
            bytes,
            pieces: (0, 0),
            is_direct,
            is_packed_before: false,
            staging: 0,
        };
        self.messages.push((message, pieces));
    }

    pub fn local(&mut self, step: u32, from: &View, to: &View, cut: &IndexBox) {
        let source = self.region(from, cut);
        let destination = self.region(to, cut);
        let copy = LocalCopy {
            tensor: TensorIndex(0),
            bounds: cut.clone(),
            source,
            destination,
            bytes: cut.elements() * to.dtype.bytes(),
        };
        self.locals.push((step, copy));
    }

    pub fn fill(&mut self, view: &View, cut: &IndexBox) {
        let region = self.region(view, cut);
        self.program.fills.push(region);
    }

    pub fn digest(&mut self, side: Side, tensor: u32, view: &View, cut: &IndexBox, dtype: Dtype) {
        let item = DigestItem {
            tensor: TensorIndex(tensor),
            bounds: cut.clone(),
            region: self.region(view, cut),
            dtype,
            is_once: true,
            weight: 1,
        };
        match side {
            Side::Source => self.program.digest_source.push(item),
            Side::Destination => self.program.digest_destination.push(item),
        }
    }

    /// Puts everything in order; every rank of a world has `steps` steps.
    pub fn build(mut self, steps: u32) -> Program {
        let p = &mut self.program;
        // Stable: the order within a pair is the order of the calls.
        self.messages.sort_by_key(|(m, _)| (m.step(), m.peer));
        self.locals.sort_by_key(|(step, _)| *step);
        // Two steps in flight: even steps in the lower half, odd in the upper.
        let mut needs = vec![0u64; steps as usize];
        for (m, _) in self.messages.iter_mut().filter(|(m, _)| !m.is_direct) {
            let need = &mut needs[m.step() as usize];
            m.staging = *need;
            *need += m.bytes.next_multiple_of(64);
        }
        let half = needs.iter().copied().max().unwrap_or(0);
        for (mut m, pieces) in self.messages {
            if m.step() % 2 == 1 && !m.is_direct {
                m.staging += half;
            }
            let first = p.pieces.len() as u32;
            p.pieces.extend(pieces);
            m.pieces = (first, p.pieces.len() as u32);
            match m.direction {
                Direction::Send => p.bytes_sent += m.bytes,
                Direction::Receive => p.bytes_received += m.bytes,
            }
            p.messages.push(m);
        }
        p.staging_bytes = 2 * half;
        for step in 0..steps {
            let messages = (
                p.messages.partition_point(|m| m.step() < step) as u32,
                p.messages.partition_point(|m| m.step() <= step) as u32,
            );
            let locals = (
                self.locals.partition_point(|(s, _)| *s < step) as u32,
                self.locals.partition_point(|(s, _)| *s <= step) as u32,
            );
            p.steps.push(Step {
                messages,
                locals,
                staging_bytes: needs[step as usize],
            });
        }
        p.locals = self.locals.into_iter().map(|(_, l)| l).collect();
        self.program
    }
}

/// Memory of a rank, owned by the test. Every byte starts as `0x5a`.
#[derive(Debug)]
pub struct Memory {
    words: Vec<u64>,
    bytes: usize,
}

impl Memory {
    pub fn new(bytes: usize) -> Memory {
        Memory {
            words: vec![0x5a5a_5a5a_5a5a_5a5a; bytes.div_ceil(8)],
            bytes,
        }
    }

    pub fn range(&mut self) -> MemoryRange {
        MemoryRange {
            address: self.words.as_mut_ptr().expose_provenance(),
            bytes: self.bytes as u64,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: words are bytes; `bytes` is not more than the words have.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.bytes) }
    }
}

/// A binding of a program to memory; staging of the planned size if wanted.
pub fn bind(
    program: &Arc<Program>,
    memory: Vec<MemoryRange>,
    staging: MemoryRange,
    abort: &Arc<AbortCell>,
) -> Result<Arc<Binding>> {
    Ok(Arc::new(Binding::new(
        program.clone(),
        memory,
        staging,
        MemoryRange::EMPTY,
        abort.clone(),
    )?))
}

pub fn empty_binding(program: Program) -> Arc<Binding> {
    bind(
        &Arc::new(program),
        vec![],
        MemoryRange::EMPTY,
        &Arc::default(),
    )
    .unwrap()
}

/// One element as the bytes of another dtype, by the crate `half`.
pub fn cast_one(from: Dtype, to: Dtype, bytes: &[u8]) -> Vec<u8> {
    use half::{bf16, f16};
    if from == to {
        return bytes.to_vec();
    }
    let short = || u16::from_le_bytes([bytes[0], bytes[1]]);
    let value = match from {
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Dtype::F16 => f16::from_bits(short()).to_f32(),
        _ => bf16::from_bits(short()).to_f32(),
    };
    match to {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// The types that are cast.
pub const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// The types of both ends: any, as it is, or floats that may be cast.
pub fn random_dtypes(random: &mut Random) -> (Dtype, Dtype) {
    let odd = [
        "i8",
        "f8e4m3fn",
        "bf16",
        "f32",
        "i64",
        "c128",
        "f6e2m3fnx4",
        "f4e2m1fnx2",
    ];
    if random.below(2) == 0 {
        let d = Dtype::from_name(odd[random.below(8) as usize]).unwrap();
        return (d, d);
    }
    let pick = |r: &mut Random| FLOATS[r.below(3) as usize];
    (pick(random), pick(random))
}

/// A view of a box with axes in random order in memory, gaps, and strides of
/// either sign; returns it with the bytes its buffer needs. `is_aligned`: every
/// value at a multiple of its size.
pub fn random_view(
    random: &mut Random,
    rank: u32,
    slot: u32,
    cut: &IndexBox,
    dtype: Dtype,
    is_aligned: bool,
) -> (View, u64) {
    let dims = cut.spans().len();
    let mut order: Vec<usize> = (0..dims).collect();
    if random.below(2) == 0 {
        for i in (1..dims).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
    }
    let mut strides = vec![0i64; dims];
    let scale = if is_aligned { dtype.bytes() } else { 1 };
    let mut offset = random.below(3) * random.below(9) * scale;
    let mut reach = dtype.bytes();
    for &axis in order.iter().rev() {
        let n = cut.spans()[axis].len();
        let stride = reach + [0, 0, 0, scale, dtype.bytes(), 7 * scale][random.below(6) as usize];
        strides[axis] = stride as i64;
        if random.below(5) == 0 {
            strides[axis] = -(stride as i64);
            offset += stride * (n - 1);
        }
        reach = stride * n;
    }
    let view = View {
        rank,
        slot,
        offset,
        dtype,
        bounds: cut.clone(),
        strides,
    };
    (view, offset + reach + 16)
}

/// A reproducible generator for tests.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn range(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.below(hi - lo + 1)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

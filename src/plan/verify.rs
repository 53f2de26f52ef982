//! The proof that a plan is right, by other means than it was made with.
//!
//! Derives every program and checks from the outside: what a rank receives and
//! copies tiles each box it needs, nothing twice, nothing missing, and no byte of
//! its memory is written twice, whatever the boxes say; what one end
//! sends is what the other end expects, message by message; what is forwarded
//! has come in an earlier step; a rank stages what was counted on; and its program
//! does not depend on whose walks it shares.

use super::Plan;
use super::derive::{Memory, Walks, derive};
use super::program::{BufferSlot, Direction, Message, Piece, Program, Region, Side};
use crate::error::{Error, Result};
use crate::layout::tensor::{IndexBox, TensorIndex};
use crate::rank::Rank;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// What a piece carries.
type Boxes = SmallVec<[IndexBox; 1]>;

/// What both ends must agree on about a message.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    step: u32,
    bytes: u64,
    parts: Vec<Part>,
}

/// Elements `[first, end)` of a box of a tensor, and bytes `[at, at_end)` of
/// the message, which they are.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    at: u64,
    at_end: u64,
    tensor: TensorIndex,
    within: IndexBox,
    first: u64,
    end: u64,
}

impl Plan {
    /// Checks all ranks. Linear in the whole plan: for tests, tools and small
    /// numbers of ranks.
    pub fn verify(&self) -> Result<()> {
        let mut pairs: BTreeMap<(Rank, Rank), [Vec<Content>; 2]> = BTreeMap::new();
        let mut balance = 0u128;
        let walks = Walks::shared();
        for rank in self.ranks() {
            let p = self.program(rank)?;
            if derive(self.inputs(), &walks, rank)? != p {
                return Err(Error::internal(format!(
                    "rank {rank} has another program when it shares walks with others"
                )));
            }
            balance = balance.wrapping_add(p.pair_balance);
            self.verify_coverage(rank, &p)?;
            verify_forwards(&p)?;
            verify_memory(&p)?;
            verify_packs(&p)?;
            self.verify_staging(&p)?;
            for m in &p.messages {
                let (pair, end) = match m.direction {
                    Direction::Send => ((rank, m.peer), 0),
                    Direction::Receive => ((m.peer, rank), 1),
                };
                pairs.entry(pair).or_default()[end].push(content(&p, m));
            }
        }
        for ((from, to), [sent, received]) in &pairs {
            if sent != received {
                return Err(disagreement((*from, *to), sent, received));
            }
        }
        if balance != 0 {
            return Err(Error::internal("the hashes of pair lists do not cancel"));
        }
        Ok(())
    }

    /// Checks what one rank gets and forwards, and nothing of its peers.
    pub fn verify_rank(&self, rank: Rank) -> Result<()> {
        let p = self.program(rank)?;
        self.verify_coverage(rank, &p)?;
        verify_forwards(&p)?;
        verify_memory(&p)?;
        verify_packs(&p)?;
        self.verify_staging(&p)
    }

    /// Buckets are counted by a shorter way to the memory of a program: it is
    /// the same.
    fn verify_staging(&self, p: &Program) -> Result<()> {
        let counted = self.memory(&Walks::alone(), p.rank)?;
        let made = Memory {
            staging_bytes: p.staging_bytes,
            relay_bytes: p.relay_bytes,
            moved_bytes: p.bytes_sent + p.bytes_received,
        };
        if counted == made {
            return Ok(());
        }
        Err(Error::internal(format!(
            "rank {} has {made:?}; its buckets were counted with {counted:?}",
            p.rank
        )))
    }

    fn verify_coverage(&self, rank: Rank, p: &Program) -> Result<()> {
        let mut got: BTreeMap<(u32, TensorIndex), Vec<IndexBox>> = BTreeMap::new();
        for m in p
            .messages
            .iter()
            .filter(|m| m.direction == Direction::Receive)
        {
            for x in p.pieces_of(m) {
                let key = (x.region.slot.0, x.tensor);
                got.entry(key).or_default().extend(p.boxes_of(x));
            }
        }
        for l in &p.locals {
            let key = (l.destination.slot.0, l.tensor);
            got.entry(key).or_default().push(l.bounds.clone());
        }
        for v in self.layout(Side::Destination).views(rank) {
            let tensor = &self.destination().tensors()[v.tensor.index()];
            let Some(t) = self.tensors().iter().position(|t| t.name == tensor.name) else {
                continue;
            };
            if v.bounds.is_empty() {
                continue;
            }
            let slot = p
                .buffers
                .iter()
                .position(|b| b.side == Side::Destination && b.key == v.buffer);
            let inside: Vec<&IndexBox> = slot
                .and_then(|s| got.get(&(s as u32, TensorIndex(t as u32))))
                .map(|all| all.iter().filter(|b| v.bounds.contains(b)).collect())
                .unwrap_or_default();
            let bytes: u64 = inside.iter().map(|b| b.elements()).sum();
            if bytes != v.bounds.elements() || any_overlap(&inside) {
                return Err(Error::internal(format!(
                    "tensor \"{}\": rank {rank} needs {} elements of {} and gets {bytes}{}",
                    tensor.name,
                    v.bounds.elements(),
                    v.bounds,
                    if any_overlap(&inside) {
                        ", some twice"
                    } else {
                        ""
                    }
                )));
            }
        }
        Ok(())
    }
}

/// No byte of a rank's memory is written twice: not by two pieces, nor by two
/// elements of one.
fn verify_memory(p: &Program) -> Result<()> {
    let received = p
        .messages
        .iter()
        .filter(|m| m.direction == Direction::Receive)
        .flat_map(|m| p.pieces_of(m))
        .map(|x| (&x.region, x.tensor));
    let copied = p.locals.iter().map(|l| (&l.destination, l.tensor));
    let mut runs: Vec<(BufferSlot, u64, u64, TensorIndex)> = Vec::new();
    for (region, tensor) in received.chain(copied) {
        if region.slot != BufferSlot::RELAY {
            each_run(p, region, |lo, hi| match runs.last_mut() {
                Some(last) if (last.0, last.2, last.3) == (region.slot, lo, tensor) => last.2 = hi,
                _ => runs.push((region.slot, lo, hi, tensor)),
            });
        }
    }
    runs.sort_unstable();
    let twice = runs
        .windows(2)
        .find(|w| w[0].0 == w[1].0 && w[1].1 < w[0].2);
    match twice {
        None => Ok(()),
        Some(w) => Err(Error::internal(format!(
            "rank {} would write byte {} of its buffer {} twice, with tensors \"{}\" and \"{}\"",
            p.rank,
            w[1].1,
            w[1].0.0,
            p.tensors[w[0].3.index()].name,
            p.tensors[w[1].3.index()].name
        ))),
    }
}

/// What lies in staging in a step is one message each, received or packed, and
/// what is sent without being packed is one of those.
fn verify_packs(p: &Program) -> Result<()> {
    for step in &p.steps {
        let mut staged: BTreeMap<u64, &Message> = BTreeMap::new();
        for m in p.packs_of(step).chain(p.unpacks_of(step)) {
            let before = staged.range(..=m.staging).next_back();
            let behind = staged.range(m.staging..).next();
            let is_free = before.is_none_or(|(at, b)| at + b.bytes <= m.staging)
                && behind.is_none_or(|(&at, _)| m.staging + m.bytes <= at);
            if !is_free {
                return Err(Error::internal(format!(
                    "rank {} has two messages of step {} at byte {} of its staging",
                    p.rank,
                    m.step(),
                    m.staging
                )));
            }
            staged.insert(m.staging, m);
        }
        let again = p.messages_of(step).iter().filter(|m| m.is_packed_before);
        for m in again {
            let first = staged.get(&m.staging);
            if first.is_none_or(|f| f.pieces != m.pieces || f.bytes != m.bytes) {
                return Err(Error::internal(format!(
                    "rank {} sends {} bytes to {} in step {} that were not packed",
                    p.rank,
                    m.bytes,
                    m.peer,
                    m.step()
                )));
            }
        }
    }
    Ok(())
}

/// Calls `f` with the bytes `[lo, hi)` of every run of a region.
fn each_run(p: &Program, region: &Region, mut f: impl FnMut(u64, u64)) {
    let loops = p.loops_of(region);
    let bytes = region.run * region.dtype.bytes();
    let mut at = vec![0u64; loops.len()];
    loop {
        let steps = at.iter().zip(loops).map(|(&i, l)| i as i64 * l.stride);
        let lo = region.offset.wrapping_add_signed(steps.sum());
        f(lo, lo + bytes);
        let Some(d) = (0..loops.len()).rev().find(|&d| at[d] + 1 < loops[d].count) else {
            return;
        };
        at[d] += 1;
        at[d + 1..].fill(0);
    }
}

/// Every byte of a forward was received with its bucket, a stage and thus a step
/// before.
fn verify_forwards(p: &Program) -> Result<()> {
    let mut received: BTreeMap<(u32, u32), Vec<(&Piece, Boxes)>> = BTreeMap::new();
    for m in &p.messages {
        if m.direction == Direction::Receive {
            let pieces = received.entry((m.bucket, m.stage)).or_default();
            pieces.extend(p.pieces_of(m).iter().map(|x| (x, p.boxes_of(x))));
        }
    }
    for m in &p.messages {
        if m.direction == Direction::Receive || m.stage == 0 {
            continue;
        }
        let fed = received.get(&(m.bucket, m.stage - 1));
        let fed = fed.map_or(&[][..], Vec::as_slice);
        for piece in p.pieces_of(m) {
            let boxes = p.boxes_of(piece);
            let common = |(r, b): &(&Piece, Boxes)| common_bytes((r, b), (piece, &boxes));
            let bytes = fed.iter().map(common).sum::<u64>();
            let want = piece.bytes / piece.wire.bytes() * piece.region.dtype.bytes();
            if bytes != want {
                return Err(Error::internal(format!(
                    "rank {} forwards {want} bytes of tensor {}, from {} on, in step {}, of which it has \
                     {bytes}",
                    p.rank,
                    p.tensors[piece.tensor.index()].name,
                    boxes[0],
                    m.step()
                )));
            }
        }
    }
    Ok(())
}

/// Bytes of a forwarded piece that a received one has brought.
fn common_bytes(
    (received, received_boxes): (&Piece, &Boxes),
    (sent, sent_boxes): (&Piece, &Boxes),
) -> u64 {
    let (from, to) = (&received.region, &sent.region);
    if received.tensor != sent.tensor || from.slot != to.slot {
        return 0;
    }
    if from.slot != BufferSlot::RELAY {
        let pairs = received_boxes
            .iter()
            .flat_map(|a| sent_boxes.iter().map(move |b| (a, b)));
        let common: u64 = pairs.map(|(a, b)| a.intersect(b).elements()).sum();
        return common * to.dtype.bytes();
    }
    let end = |r: &Region| r.offset + r.run * r.dtype.bytes();
    end(from)
        .min(end(to))
        .saturating_sub(from.offset.max(to.offset))
}

/// What a message carries, whatever its pieces: one end may have several for
/// what is one at the other.
fn content(p: &Program, m: &Message) -> Content {
    let mut parts: Vec<Part> = Vec::new();
    for x in p.pieces_of(m) {
        let within = &p.boxes[x.within as usize];
        let end = x.first + x.bytes / x.wire.bytes();
        match parts.last_mut() {
            Some(last)
                if (last.tensor, last.end, last.at_end) == (x.tensor, x.first, x.at)
                    && last.within == *within =>
            {
                (last.end, last.at_end) = (end, x.at + x.bytes);
            }
            _ => parts.push(Part {
                at: x.at,
                at_end: x.at + x.bytes,
                tensor: x.tensor,
                within: within.clone(),
                first: x.first,
                end,
            }),
        }
    }
    Content {
        step: m.step(),
        bytes: m.bytes,
        parts,
    }
}

/// The first message on which two ranks do not agree.
fn disagreement((from, to): (Rank, Rank), sent: &[Content], received: &[Content]) -> Error {
    let same = sent.iter().zip(received).take_while(|(a, b)| a == b);
    let first = same.count();
    let of = |side: &[Content]| match side.get(first) {
        Some(m) => format!(
            "{} bytes of {} boxes in step {}",
            m.bytes,
            m.parts.len(),
            m.step
        ),
        None => "nothing".to_string(),
    };
    Error::internal(format!(
        "rank {from} sends {} messages to {to}, which expects {}; message {first} has {} on one \
         side and {} on the other",
        sent.len(),
        received.len(),
        of(sent),
        of(received)
    ))
}

/// True if two boxes overlap, found by a sweep along the axis on which they
/// start at the most places.
fn any_overlap(boxes: &[&IndexBox]) -> bool {
    let axes = boxes.first().map_or(0, |b| b.0.len());
    let starts = |axis: usize| {
        let all: BTreeSet<u64> = boxes.iter().map(|b| b.0[axis].lo).collect();
        all.len()
    };
    let Some(axis) = (0..axes).max_by_key(|&a| starts(a)) else {
        return boxes.len() > 1;
    };
    let mut sorted = boxes.to_vec();
    sorted.sort_unstable_by_key(|b| b.0[axis].lo);
    sorted.iter().enumerate().any(|(i, a)| {
        sorted[i + 1..]
            .iter()
            .take_while(|b| b.0[axis].lo < a.0[axis].hi)
            .any(|b| a.overlaps(b))
    })
}

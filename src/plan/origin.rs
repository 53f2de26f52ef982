//! Where one element on one rank comes from.
//!
//! ```text
//!   "model.norm.weight"[5] on rank 12
//!     held by rank 3, in buffer "norm" at byte 10
//!     sent to rank 8 in step 0 (bucket 0, stage 0)
//!     sent to rank 12 in step 1 (bucket 0, stage 1), to buffer "norm" at byte 10
//! ```
//!
//! The answer is read off the programs that the ranks execute, from the
//! needing rank backwards, so it is what happens and not what was intended.

use super::Plan;
use super::program::{Direction, Piece, Program, Region};
use crate::error::{Error, Result, Status};
use crate::layout::tensor::{IndexBox, TensorIndex};
use crate::rank::Rank;
use serde::Serialize;

/// One element in one rank's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    pub rank: u32,
    /// Name of the buffer; `relay` for memory that only forwards.
    pub buffer: String,
    /// Bytes from the start of the buffer to the element.
    pub offset: u64,
}

/// One way of an element from one rank to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    pub from: Cell,
    pub to: Cell,
    /// False for a copy within the rank.
    pub is_sent: bool,
    pub step: u32,
    pub stage: u32,
    pub bucket: u32,
}

/// The way of one element, in the order in which it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub tensor: String,
    pub index: Vec<u64>,
    pub hops: Vec<Hop>,
}

/// How an element comes to a rank, as that rank's program has it.
struct Arrival {
    to: Cell,
    /// Sending rank, or the place on this rank it is copied from.
    source: Source,
    step: u32,
    stage: u32,
    bucket: u32,
}

enum Source {
    Peer(Rank),
    Here(Cell),
}

impl Plan {
    /// The way of element `index` of `tensor` to destination rank `rank`.
    ///
    /// `NOT_FOUND` if the plan does not move the tensor or the rank does not
    /// need the element, `INVALID_ARGUMENT` if the index is outside the shape.
    pub fn origin(&self, rank: Rank, tensor: &str, index: &[u64]) -> Result<Origin> {
        self.check_rank(rank)?;
        let wanted = self.element(tensor, index)?;
        let mut hops = Vec::new();
        let mut program = self.program(rank)?;
        let mut before = u32::MAX;
        // Where the next hop reads, once there is one.
        let mut reads: Option<Cell> = None;
        loop {
            let at = program.rank;
            let arrivals = self.arrivals(&program, wanted, index, before)?;
            let is_read = |a: &Arrival| reads.as_ref().is_none_or(|cell| *cell == a.to);
            let Some(arrival) = arrivals.into_iter().rfind(is_read) else {
                return Err(not_needed(tensor, index, at));
            };
            let head = (arrival.step, arrival.stage, arrival.bucket);
            let (from, is_sent, done) = match arrival.source {
                Source::Here(cell) => (cell, false, true),
                Source::Peer(peer) => {
                    program = self.program(peer)?;
                    let from = self.departure(&program, wanted, index, at, head)?;
                    (from, true, arrival.stage == 0)
                }
            };
            let (step, stage, bucket) = head;
            reads = Some(from.clone());
            hops.push(Hop {
                from,
                to: arrival.to,
                is_sent,
                step,
                stage,
                bucket,
            });
            if done {
                break;
            }
            before = step;
        }
        hops.reverse();
        Ok(Origin {
            tensor: tensor.to_string(),
            index: index.to_vec(),
            hops,
        })
    }

    /// The tensor called `name`, if `index` is inside it.
    fn element(&self, name: &str, index: &[u64]) -> Result<TensorIndex> {
        let found = self.tensors().iter().position(|t| t.name == name);
        let Some(i) = found else {
            return Err(Error::new(
                Status::NotFound,
                format!("tensor \"{name}\" is not in the plan"),
            ));
        };
        let shape = &self.tensors()[i].shape;
        let is_inside = shape.len() == index.len() && index.iter().zip(shape).all(|(x, n)| x < n);
        if !is_inside {
            return Err(Error::invalid(format!(
                "index {index:?} is outside tensor \"{name}\" of shape {shape:?}"
            )));
        }
        Ok(TensorIndex(i as u32))
    }

    /// The writes of an element on a rank before step `before`, in order.
    fn arrivals(
        &self,
        p: &Program,
        tensor: TensorIndex,
        index: &[u64],
        before: u32,
    ) -> Result<Vec<Arrival>> {
        let mut found = Vec::new();
        for (step, s) in (0u32..).zip(&p.steps) {
            if step >= before {
                break;
            }
            for l in p.locals_of(s) {
                if l.tensor == tensor && holds(&l.bounds, index) {
                    let k = flat(&l.bounds, index);
                    found.push(Arrival {
                        to: self.cell(p, &l.destination, k)?,
                        source: Source::Here(self.cell(p, &l.source, k)?),
                        step,
                        stage: 0,
                        bucket: 0,
                    });
                }
            }
            for m in p.messages_of(s) {
                if m.direction != Direction::Receive {
                    continue;
                }
                for x in p.pieces_of(m) {
                    if let Some(k) = p.element_of(x, tensor, index) {
                        found.push(Arrival {
                            to: self.cell(p, &x.region, k)?,
                            source: Source::Peer(m.peer),
                            step,
                            stage: m.stage,
                            bucket: m.bucket,
                        });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Where the sender of an element reads it.
    fn departure(
        &self,
        p: &Program,
        tensor: TensorIndex,
        index: &[u64],
        to: Rank,
        (step, stage, bucket): (u32, u32, u32),
    ) -> Result<Cell> {
        let is_it = |m: &&super::program::Message| {
            m.direction == Direction::Send
                && (m.peer, m.step(), m.stage, m.bucket) == (to, step, stage, bucket)
        };
        for m in p.messages.iter().filter(is_it) {
            for x in p.pieces_of(m) {
                if let Some(k) = p.element_of(x, tensor, index) {
                    return self.cell(p, &x.region, k);
                }
            }
        }
        Err(Error::internal(format!(
            "rank {} does not send element {index:?} of tensor {} to rank {to} in step {step}",
            p.rank,
            tensor.index()
        )))
    }

    /// Element `k` of a region, as a person would look for it.
    fn cell(&self, p: &Program, region: &Region, k: u64) -> Result<Cell> {
        let used = p.buffers.get(region.slot.0 as usize);
        let named = used.and_then(|u| self.buffer(p.rank, u));
        Ok(Cell {
            rank: p.rank.0,
            buffer: named.map_or_else(|| "relay".to_string(), |b| b.name),
            offset: p.offset_of(region, k),
        })
    }
}

impl Program {
    /// Which element of a piece `index` of a tensor is, if it is one.
    fn element_of(&self, piece: &Piece, tensor: TensorIndex, index: &[u64]) -> Option<u64> {
        let within = &self.boxes[piece.within as usize];
        if piece.tensor != tensor || !holds(within, index) {
            return None;
        }
        let k = flat(within, index).checked_sub(piece.first)?;
        (k < piece.bytes / piece.wire.bytes()).then_some(k)
    }

    /// Bytes from the start of the buffer to element `k` of a region.
    pub fn offset_of(&self, region: &Region, k: u64) -> u64 {
        let mut at = region.offset as i64;
        at += (k % region.run) as i64 * region.dtype.bytes() as i64;
        let mut round = k / region.run;
        for l in self.loops_of(region).iter().rev() {
            at += (round % l.count) as i64 * l.stride;
            round /= l.count;
        }
        at as u64
    }
}

fn holds(bounds: &IndexBox, index: &[u64]) -> bool {
    let spans = bounds.spans();
    spans
        .iter()
        .zip(index)
        .all(|(s, x)| s.lo <= *x && *x < s.hi)
}

/// Which element of a box `index` is, in row-major order.
fn flat(bounds: &IndexBox, index: &[u64]) -> u64 {
    let spans = bounds.spans().iter().zip(index);
    spans.fold(0, |k, (s, x)| k * s.len() + x - s.lo)
}

fn not_needed(tensor: &str, index: &[u64], rank: Rank) -> Error {
    Error::new(
        Status::NotFound,
        format!("rank {rank} receives no element {index:?} of tensor \"{tensor}\""),
    )
}

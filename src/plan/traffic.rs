//! Who sends how much to whom, and when: a plan in numbers that can be drawn.
//!
//! ```text
//!              receivers
//!             8   9  10  11
//!        0  [ 3   3   .   . ]     blocks of ranks where there are many
//!  send  1  [ .   .   3   3 ]
//! ```
//!
//! Everything is counted at the sender, from the programs that ranks execute.

use super::Plan;
use super::program::{Direction, Program};
use crate::error::Result;
use crate::rank::Rank;
use serde::Serialize;
use std::collections::BTreeMap;

/// Rows and columns of a matrix; more ranks share one.
pub const MATRIX_BLOCK_COUNT_MAX: usize = 96;
/// How many of the largest tensors and pairs are named.
pub const LARGEST_COUNT: usize = 12;

/// What one rank moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RankLoad {
    pub rank: u32,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub local_bytes: u64,
    pub staging_bytes: u64,
    pub peers: u32,
}

/// What moves in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepLoad {
    pub step: u32,
    /// Bytes of each stage.
    pub stage_bytes: Vec<u64>,
    pub messages: u64,
    /// The most that one rank sends in the step.
    pub sent_bytes_max: u64,
}

/// What one rank sends another over all steps and stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PairLoad {
    pub from: u32,
    pub to: u32,
    pub bytes: u64,
}

/// What moves of one tensor, forwards included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorLoad {
    pub tensor: String,
    pub bytes: u64,
}

/// Bytes from blocks of ranks to blocks of ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// First and last rank of each row: ranks that send.
    pub rows: Vec<(u32, u32)>,
    /// First and last rank of each column: ranks that receive.
    pub columns: Vec<(u32, u32)>,
    /// Row by row.
    pub bytes: Vec<u64>,
}

/// The whole picture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Traffic {
    /// Ascending by rank.
    pub ranks: Vec<RankLoad>,
    pub matrix: Matrix,
    pub steps: Vec<StepLoad>,
    /// Largest first.
    pub pairs: Vec<PairLoad>,
    pub pair_count: u64,
    /// Largest first.
    pub tensors: Vec<TensorLoad>,
}

impl Plan {
    /// What moves among `ranks`; `on_rank` is called as each is done, for
    /// progress. Costs one program a rank.
    pub fn traffic(&self, ranks: &[Rank], mut on_rank: impl FnMut()) -> Result<Traffic> {
        let mut count = Count::default();
        self.each_program(ranks, |program| {
            count.add(&program);
            on_rank();
            Ok(())
        })?;
        Ok(count.finish(self))
    }
}

/// The picture in the making.
#[derive(Default)]
struct Count {
    traffic: Traffic,
    pairs: Vec<PairLoad>,
    tensors: BTreeMap<u32, u64>,
}

impl Count {
    fn add(&mut self, p: &Program) {
        let load = RankLoad {
            rank: p.rank.0,
            sent_bytes: p.bytes_sent,
            received_bytes: p.bytes_received,
            local_bytes: p.bytes_local,
            staging_bytes: p.staging_bytes,
            peers: p.peers().len() as u32,
        };
        self.traffic.ranks.push(load);
        let mut to: BTreeMap<u32, u64> = BTreeMap::new();
        for (i, s) in p.steps.iter().enumerate() {
            self.add_step(p, i, s, &mut to);
        }
        for l in &p.locals {
            *self.tensors.entry(l.tensor.0).or_default() += l.bytes;
        }
        let from = p.rank.0;
        let pairs = to
            .into_iter()
            .map(|(to, bytes)| PairLoad { from, to, bytes });
        self.pairs.extend(pairs);
    }

    fn add_step(
        &mut self,
        p: &Program,
        i: usize,
        s: &super::program::Step,
        to: &mut BTreeMap<u32, u64>,
    ) {
        let steps = &mut self.traffic.steps;
        while steps.len() <= i {
            let step = steps.len() as u32;
            steps.push(StepLoad {
                step,
                ..StepLoad::default()
            });
        }
        let load = &mut steps[i];
        let mut sent = 0;
        let sends = p
            .messages_of(s)
            .iter()
            .filter(|m| m.direction == Direction::Send);
        for m in sends {
            let stage = m.stage as usize;
            if load.stage_bytes.len() <= stage {
                load.stage_bytes.resize(stage + 1, 0);
            }
            load.stage_bytes[stage] += m.bytes;
            load.messages += 1;
            sent += m.bytes;
            *to.entry(m.peer.0).or_default() += m.bytes;
            for x in p.pieces_of(m) {
                *self.tensors.entry(x.tensor.0).or_default() += x.bytes;
            }
        }
        load.sent_bytes_max = load.sent_bytes_max.max(sent);
    }

    fn finish(mut self, plan: &Plan) -> Traffic {
        let mut t = self.traffic;
        t.ranks.sort_by_key(|r| r.rank);
        t.matrix = Matrix::of(&self.pairs);
        t.pair_count = self.pairs.len() as u64;
        self.pairs
            .sort_by_key(|p| (std::cmp::Reverse(p.bytes), p.from, p.to));
        self.pairs.truncate(LARGEST_COUNT);
        t.pairs = self.pairs;
        let name = |i: u32| plan.tensors()[i as usize].name.clone();
        let mut tensors: Vec<(u32, u64)> = self.tensors.into_iter().collect();
        tensors.sort_by_key(|&(i, bytes)| (std::cmp::Reverse(bytes), i));
        tensors.truncate(LARGEST_COUNT);
        t.tensors = tensors
            .into_iter()
            .map(|(i, bytes)| TensorLoad {
                tensor: name(i),
                bytes,
            })
            .collect();
        t
    }
}

impl Matrix {
    fn of(pairs: &[PairLoad]) -> Matrix {
        let rows = blocks(pairs.iter().map(|p| p.from));
        let columns = blocks(pairs.iter().map(|p| p.to));
        let mut bytes = vec![0; rows.len() * columns.len()];
        let find = |blocks: &[(u32, u32)], rank: u32| blocks.partition_point(|b| b.1 < rank);
        for p in pairs {
            let (r, c) = (find(&rows, p.from), find(&columns, p.to));
            bytes[r * columns.len() + c] += p.bytes;
        }
        Matrix {
            rows,
            columns,
            bytes,
        }
    }

    /// Bytes from the ranks of a row to those of a column.
    pub fn at(&self, row: usize, column: usize) -> u64 {
        self.bytes[row * self.columns.len() + column]
    }
}

/// Ranks as few enough blocks, first and last rank of each. Blocks of several
/// ranks are powers of two, so that they fall together with hosts.
fn blocks(ranks: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut all: Vec<u32> = ranks.collect();
    all.sort_unstable();
    all.dedup();
    let size = all
        .len()
        .div_ceil(MATRIX_BLOCK_COUNT_MAX)
        .next_power_of_two()
        .max(1);
    let ends = |block: &[u32]| (block[0], block[block.len() - 1]);
    all.chunks(size).map(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_few_and_whole() {
        assert_eq!(blocks([3, 1, 3].into_iter()), [(1, 1), (3, 3)]);
        let many = blocks(0..4096);
        assert_eq!(many.len(), 64);
        assert_eq!((many[0], many[63]), ((0, 63), (4032, 4095)));
    }

    #[test]
    fn a_matrix_adds_up_pairs() {
        let pair = |from, to, bytes| PairLoad { from, to, bytes };
        let m = Matrix::of(&[pair(0, 8, 3), pair(1, 8, 4), pair(1, 9, 5)]);
        assert_eq!((m.at(0, 0), m.at(0, 1)), (3, 0));
        assert_eq!((m.at(1, 0), m.at(1, 1)), (4, 5));
    }
}

//! Who sends how much to whom, and when: a plan in numbers that can be drawn.
//!
//! ```text
//!              receivers
//!             8   9  10  11
//!        0  [ 3   3   .   . ]     hosts where there are many ranks
//!  send  1  [ .   .   3   3 ]
//! ```
//!
//! Everything is counted at the sender, from the programs that ranks execute.

use super::Plan;
use super::blocks::{Blocks, Unit};
use super::program::{Direction, Program};
use super::sorting;
use super::topology::Topology;
use crate::error::Result;
use crate::rank::Rank;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Ranks of a side that a matrix shows one by one; of more, their hosts.
pub const MATRIX_RANK_COUNT_MAX: usize = 64;
/// Rows and columns of a matrix; more hosts share one.
pub const MATRIX_BLOCK_COUNT_MAX: usize = 64;
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

/// Bytes from ranks to ranks, or from hosts to hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// Those that send.
    pub rows: Blocks,
    /// Those that receive.
    pub columns: Blocks,
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
    /// What moves among `ranks`, which sit as `topology` says; `on_rank` is
    /// called as each is done, for progress. Costs one program a rank.
    pub fn traffic(
        &self,
        topology: &Topology,
        ranks: &[Rank],
        mut on_rank: impl FnMut(),
    ) -> Result<Traffic> {
        let mut count = Count::default();
        self.each_program(ranks, |program| {
            count.add(&program);
            on_rank();
            Ok(())
        })?;
        Ok(count.finish(self, topology))
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

    fn finish(mut self, plan: &Plan, topology: &Topology) -> Traffic {
        let mut t = self.traffic;
        sorting::sort(&mut t.ranks, |a, b| a.rank.cmp(&b.rank));
        t.matrix = Matrix::of(&self.pairs, topology);
        t.pair_count = self.pairs.len() as u64;
        let largest = |p: &PairLoad| (Reverse(p.bytes), p.from, p.to);
        sorting::sort(&mut self.pairs, |a, b| largest(a).cmp(&largest(b)));
        self.pairs.truncate(LARGEST_COUNT);
        t.pairs = self.pairs;
        let name = |i: u32| plan.tensors()[i as usize].name.clone();
        let mut tensors: Vec<(u32, u64)> = self.tensors.into_iter().collect();
        let largest = |&(i, bytes): &(u32, u64)| (Reverse(bytes), i);
        sorting::sort(&mut tensors, |a, b| largest(a).cmp(&largest(b)));
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
    fn of(pairs: &[PairLoad], topology: &Topology) -> Matrix {
        let senders = distinct(pairs.iter().map(|p| p.from));
        let receivers = distinct(pairs.iter().map(|p| p.to));
        let unit = Unit::of(senders.len().max(receivers.len()), MATRIX_RANK_COUNT_MAX);
        let number = |rank: u32| unit.number(topology, Rank(rank));
        let blocks = |ranks: Vec<u32>| {
            let numbers = ranks.into_iter().map(number);
            Blocks::of(unit, numbers, MATRIX_BLOCK_COUNT_MAX)
        };
        let (rows, columns) = (blocks(senders), blocks(receivers));
        let mut bytes = vec![0; rows.len() * columns.len()];
        for p in pairs {
            let (r, c) = (rows.find(number(p.from)), columns.find(number(p.to)));
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

fn distinct(ranks: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut all: Vec<u32> = ranks.collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::mesh::RankList;
    use crate::plan::topology::{PlacementRun, TopologySpec};

    fn pair(from: u32, to: u32, bytes: u64) -> PairLoad {
        PairLoad { from, to, bytes }
    }

    /// Ranks from 0 on, on hosts of eight GPUs.
    fn in_a_row(count: u32) -> Topology {
        let run = PlacementRun {
            ranks: RankList::Range { first: 0, count },
            gpu: 0,
            ranks_per_gpu: 1,
        };
        Topology::new(TopologySpec {
            placement: vec![run],
            ..TopologySpec::default()
        })
        .unwrap()
    }

    #[test]
    fn a_matrix_adds_up_pairs() {
        let pairs = [pair(0, 8, 3), pair(1, 8, 4), pair(1, 9, 5)];
        let m = Matrix::of(&pairs, &in_a_row(16));
        assert_eq!(m.rows.unit, Unit::Rank);
        assert_eq!((m.at(0, 0), m.at(0, 1)), (3, 0));
        assert_eq!((m.at(1, 0), m.at(1, 1)), (4, 5));
    }

    #[test]
    fn many_ranks_are_added_up_by_host() {
        let pairs: Vec<PairLoad> = (0..128).map(|r| pair(r, 128 + r, 1)).collect();
        let m = Matrix::of(&pairs, &in_a_row(256));
        assert_eq!(
            (m.rows.unit, m.rows.len(), m.columns.len()),
            (Unit::Host, 16, 16)
        );
        assert_eq!(m.columns.ends[0], (16, 16));
        assert_eq!((m.at(3, 3), m.at(3, 4)), (8, 0));
    }
}

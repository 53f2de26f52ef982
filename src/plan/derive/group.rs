//! Groups: all items that one set of holders has and one set of needers wants,
//! which lie end to end as one stream.
//!
//! A walk knows a group by numbers that say who is in both sets, in the terms of
//! the layouts, so that a set is only made once:
//!
//! ```text
//!   cell    holders tp 0..1 pp 3..4 dp 0..4, needers replica 0..8 tp 0..1
//!   key     1 slice: part 0, mesh 0, 3 axes: 0 1 3 4 0 4; ..
//! ```

use super::cell::{Cell, Needers};
use super::walk::Walk;
use crate::error::{Error, Result};
use crate::layout::mesh::MeshSlice;
use crate::plan::cells::StagedSlice;
use crate::plan::decision::SourceGroup;
use crate::plan::line::Line;
use crate::plan::ranks::RankSet;
use crate::plan::slots::Slots;
use crate::plan::tables::{PlanTensor, placement};
use crate::rank::Rank;
use smallvec::SmallVec;

/// All items of one (holder set, needer set).
pub struct Group {
    pub holders: RankSet,
    pub needers: RankSet,
    /// How the holders share the work.
    pub slots: Slots,
    /// All needers, those that hold it too included.
    pub needer_count: u64,
    pub bytes: u64,
    pub items: Vec<u32>,
    /// Which part and stage of the source it comes from.
    pub origin: SourceGroup,
}

impl Group {
    /// The line of the stream, from holder `turn` on.
    pub fn line(&self, turn: u64) -> Line {
        Line {
            bytes: self.bytes,
            slots: self.slots.clone(),
            needers: self.needers.len(),
            turn,
        }
    }
}

/// Who holds and who needs a cell, in numbers: every list but the last with how
/// long it is. The same numbers are the same sets.
pub type GroupKey = SmallVec<[u64; 20]>;

impl Walk<'_> {
    /// The group of a cell of a tensor; a new one if it is the first of it.
    pub fn group(&mut self, tensor: &PlanTensor, cell: usize) -> Result<u32> {
        let key = self.key(tensor, &self.cells[cell]);
        if let Some(&g) = self.group_of.get(&key) {
            return Ok(g);
        }
        let group = self.new_group(tensor, &self.cells[cell])?;
        let next = self.groups.len() as u32;
        self.groups.push(group);
        self.group_of.insert(key, next);
        Ok(next)
    }

    fn key(&self, tensor: &PlanTensor, cell: &Cell) -> GroupKey {
        let mut key = GroupKey::new();
        key.push(cell.holders.slices.len() as u64);
        for s in &cell.holders.slices {
            add_slice(s, self.holder_stage(tensor, s), &mut key);
        }
        key.push(cell.holders.listed.len() as u64);
        key.extend(cell.holders.listed.iter().map(|e| u64::from(e.0.0)));
        match &cell.needers {
            Needers::Slice(s) => {
                key.push(1);
                add_slice(s, self.needer_stage(tensor, s), &mut key);
            }
            Needers::Listed(j) => {
                key.push(0);
                let ranks = &tensor.explicit_needers[*j as usize].ranks;
                key.extend(ranks.iter().map(|e| u64::from(e.0.0)));
            }
        }
        key
    }

    fn new_group(&self, tensor: &PlanTensor, cell: &Cell) -> Result<Group> {
        let (source, destination) = (self.inputs.source, self.inputs.destination);
        let held = cell.holders.slices.iter();
        let held = held.map(|s| s.at(self.holder_stage(tensor, s)));
        let held: SmallVec<[MeshSlice; 1]> = held.collect();
        let listed: Vec<Rank> = cell.holders.listed.iter().map(|e| e.0).collect();
        let holders = RankSet::union(source, &held, &listed);
        if holders.is_empty() {
            return Err(Error::layout(format!(
                "tensor \"{}\": box {} is needed and held by no source rank",
                self.name(tensor),
                cell.bounds
            )));
        }
        let needers = match &cell.needers {
            Needers::Slice(s) => {
                let slice = s.at(self.needer_stage(tensor, s));
                RankSet::union(destination, &[slice], &[])
            }
            Needers::Listed(j) => {
                let ranks = &tensor.explicit_needers[*j as usize].ranks;
                let ranks: Vec<Rank> = ranks.iter().map(|e| e.0).collect();
                RankSet::union(destination, &[], &ranks)
            }
        };
        let first = cell.holders.slices.first();
        Ok(Group {
            origin: SourceGroup {
                part: first.map_or(0, |s| s.slice.part),
                stage: first.and_then(|s| self.holder_stage(tensor, s)),
            },
            slots: self.inputs.senders.slots(&holders),
            needer_count: needers.len(),
            needers: needers.less(destination, &holders, source),
            holders,
            bytes: 0,
            items: Vec::new(),
        })
    }

    fn holder_stage(&self, tensor: &PlanTensor, s: &StagedSlice) -> Option<u32> {
        placement(self.inputs.source, tensor.holders[s.placement as usize])
            .1
            .stage
    }

    fn needer_stage(&self, tensor: &PlanTensor, s: &StagedSlice) -> Option<u32> {
        placement(
            self.inputs.destination,
            tensor.needers[s.placement as usize],
        )
        .1
        .stage
    }
}

/// Adds a slice, as it is at a stage.
fn add_slice(s: &StagedSlice, stage: Option<u32>, key: &mut GroupKey) {
    let number = |(lo, hi): (u32, u32)| u64::from(lo) << 32 | u64::from(hi);
    let MeshSlice { part, mesh, ranges } = &s.slice;
    key.push(u64::from(*part) << 32 | u64::from(*mesh));
    key.push(ranges.len() as u64);
    let first = key.len();
    key.extend(ranges.iter().map(|&range| number(range)));
    if let Some((axis, range)) = s.staged(stage) {
        key[first + axis] = number(range);
    }
}

//! Who sends how much of what it holds, where source ranks are not alike.
//!
//! Where all ranks of the source are equally fast and none is drained, each
//! holder of a stream sends the same part of it, and nothing is computed here.
//! Otherwise the bytes of each set of holders are a pool, and water-filling
//! shares them out. That looks at all ranks, once, when the plan is made:
//!
//! ```text
//!   tensors ─► pools: (holder set, bytes that leave it)
//!           ─► classes: ranks of the same pools, equally fast
//!           ─► water-filling ─► widths of slots per holder set
//! ```
//!
//! What is kept has a few runs of equal widths per holder set. It follows from
//! the inputs of the plan, and all ranks find the same.

use super::cells::{Splitter, StagedSlice};
use super::decision::{SourceGroup, Strategy};
use super::derive::Inputs;
use super::ranks::RankSet;
use super::slots::{Slots, UNITS_MAX};
use super::tables::{PlanTensor, placement};
use super::topology::Topology;
use super::waterfill::{Pool, SenderClass, fill};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::dtype::Dtype;
use crate::layout::mesh::MeshSlice;
use crate::layout::tensor::IndexBox;
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// What a plan knows of how its source ranks share the work.
#[derive(Debug, Default)]
pub struct Senders {
    /// Sets of holders that do not share it equally.
    uneven: FxHashMap<RankSet, Slots>,
}

impl Senders {
    /// Shares out what all holders of a plan send.
    pub fn new(inputs: Inputs<'_>) -> Result<Senders> {
        let speeds = Speeds::of(inputs);
        if speeds.are_alike() {
            return Ok(Senders::default());
        }
        let mut found = Pools::default();
        for kind in &inputs.tables.kinds {
            let tensor = &inputs.tables.tensors[kind.first as usize];
            found.add(inputs, tensor, kind.count)?;
        }
        let uneven = share_out(inputs.source, &speeds, &found.sets)?;
        Ok(Senders { uneven })
    }

    /// True if some holders send more than others of the same.
    pub fn decide(&self) -> bool {
        !self.uneven.is_empty()
    }

    /// The slots of these holders.
    pub fn slots(&self, holders: &RankSet) -> Slots {
        match self.uneven.get(holders) {
            Some(slots) => slots.clone(),
            None => Slots::Equal(holders.len()),
        }
    }
}

/// How fast each source rank sends, and which should not.
struct Speeds {
    of: BTreeMap<Rank, Speed>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Speed {
    bytes_per_s: u64,
    is_drained: bool,
}

impl Speeds {
    /// Ranks that share a port share its speed, those that are drained left
    /// out. Where all ranks are in one NVLink domain, that is what carries.
    fn of(inputs: Inputs<'_>) -> Speeds {
        let topology = inputs.topology;
        if !topology.may_be_uneven() {
            return Speeds {
                of: BTreeMap::new(),
            };
        }
        let ranks = inputs.source.ranks();
        let is_one_domain = is_one_domain(&ranks, &inputs.destination.ranks(), topology);
        let mut on_port: FxHashMap<u32, u64> = FxHashMap::default();
        let sends = |r: &&Rank| !topology.is_drained(**r);
        let ports = ranks
            .iter()
            .filter(sends)
            .filter_map(|&r| topology.site(r)?.port);
        for port in ports {
            *on_port.entry(port).or_default() += 1;
        }
        let speed = |rank: Rank| {
            let site = topology.site(rank)?;
            let bytes_per_s = match site.port {
                Some(port) if !is_one_domain => {
                    site.nic_bytes_per_s / on_port.get(&port).copied().unwrap_or(1)
                }
                _ => site.nvlink_bytes_per_s,
            };
            Some(Speed {
                bytes_per_s: bytes_per_s.max(1),
                is_drained: topology.is_drained(rank),
            })
        };
        let of = ranks.iter().filter_map(|&r| Some((r, speed(r)?)));
        Speeds { of: of.collect() }
    }

    fn are_alike(&self) -> bool {
        let mut all = self.of.values();
        let first = all.next();
        all.all(|s| Some(s) == first)
    }
}

fn is_one_domain(source: &[Rank], destination: &[Rank], topology: &Topology) -> bool {
    let all = source.iter().chain(destination);
    let mut domains = all.map(|&r| topology.domain(r));
    let first = domains.next();
    domains.all(|d| Some(d) == first)
}

/// Sets of holders with the bytes that leave each.
#[derive(Default)]
struct Pools {
    sets: Vec<(RankSet, u64)>,
    set_of: FxHashMap<RankSet, usize>,
    /// The set of holders of a line, and how many copies leave it.
    lines: FxHashMap<LineKey, (usize, u64)>,
}

/// Who holds a cell, who needs it.
#[derive(PartialEq, Eq, Hash)]
struct LineKey {
    holders: Vec<MeshSlice>,
    listed: Vec<Rank>,
    needers: RankSet,
    group: SourceGroup,
}

impl Pools {
    /// Adds `count` tensors like this one.
    fn add(&mut self, inputs: Inputs<'_>, tensor: &PlanTensor, count: u64) -> Result<()> {
        let (source, destination) = (inputs.source, inputs.destination);
        let stored = &destination.tensors()[tensor.destination.index()];
        let whole = IndexBox::whole(&stored.shape);
        let splitter = Splitter {
            source,
            destination,
            tensor,
        };
        for (j, r) in tensor.needers.iter().enumerate() {
            let (part, p) = placement(destination, *r);
            let wire = Dtype::wire(tensor.source_dtype, part.rule(p).stored_dtype(stored));
            for cell in splitter.demanded(j, &whole)? {
                let slice = splitter.needers(j, &cell).at(p.stage);
                let needers = RankSet::union(destination, &[slice], &[]);
                let bytes = wire.bytes().saturating_mul(count);
                self.add_cell(inputs, &splitter, &cell, needers, bytes)?;
            }
        }
        for e in tensor.explicit_needers.iter() {
            let ranks: Vec<Rank> = e.ranks.iter().map(|r| r.0).collect();
            let wire = Dtype::wire(tensor.source_dtype, e.dtype);
            for cell in splitter.cells(&e.bounds, None)? {
                let needers = RankSet::List(ranks.clone());
                let bytes = wire.bytes().saturating_mul(count);
                self.add_cell(inputs, &splitter, &cell, needers, bytes)?;
            }
        }
        Ok(())
    }

    fn add_cell(
        &mut self,
        inputs: Inputs<'_>,
        splitter: &Splitter<'_>,
        cell: &IndexBox,
        needers: RankSet,
        bytes_each: u64,
    ) -> Result<()> {
        let set = splitter.holders(cell);
        let placed = |s: &StagedSlice| {
            placement(inputs.source, splitter.tensor.holders[s.placement as usize]).1
        };
        let slices = set.slices.iter().map(|s| s.at(placed(s).stage));
        let first = set.slices.first();
        let key = LineKey {
            holders: slices.collect(),
            listed: set.listed.iter().map(|e| e.0).collect(),
            needers,
            group: SourceGroup {
                part: first.map_or(0, |s| s.slice.part),
                stage: first.and_then(|s| placed(s).stage),
            },
        };
        let (set, copies) = self.line(inputs, key);
        let bytes = cell.elements().checked_mul(bytes_each);
        let bytes = bytes.and_then(|b| b.checked_mul(copies));
        let total = bytes.and_then(|b| self.sets[set].1.checked_add(b));
        self.sets[set].1 = total.ok_or_else(|| {
            Error::limit("the bytes that one set of ranks sends exceed 64 bits".to_string())
        })?;
        Ok(())
    }

    fn line(&mut self, inputs: Inputs<'_>, key: LineKey) -> (usize, u64) {
        if let Some(&known) = self.lines.get(&key) {
            return known;
        }
        let holders = RankSet::union(inputs.source, &key.holders, &key.listed);
        let copies = copies_leaving(inputs, &holders, key.needers.clone(), key.group);
        let next = self.sets.len();
        let set = *self.set_of.entry(holders.clone()).or_insert(next);
        if set == next {
            self.sets.push((holders, 0));
        }
        self.lines.insert(key, (set, copies));
        (set, copies)
    }
}

/// How many copies of a stream its holders send.
fn copies_leaving(
    inputs: Inputs<'_>,
    holders: &RankSet,
    needers: RankSet,
    group: SourceGroup,
) -> u64 {
    let needers = needers.less(inputs.destination, holders, inputs.source);
    if !inputs.decision.strategy.is_clustered() {
        return needers.len();
    }
    let topology = inputs.topology;
    let domains = |ranks: Vec<Rank>| -> FxHashSet<Option<u32>> {
        ranks.into_iter().map(|r| topology.domain(r)).collect()
    };
    let held = domains(topology.senders(holders.to_vec(inputs.source)));
    let outer = domains(needers.to_vec(inputs.destination));
    let outer = outer.difference(&held).count() as u64;
    match inputs.decision.strategy {
        Strategy::Fanout => outer.min(inputs.decision.copies_leaving(group)),
        _ => outer,
    }
}

/// Ranks that hold the same and are equally fast count as one.
#[derive(Default)]
struct Classes {
    /// The pools and the speed of each class, and how many ranks it has.
    all: Vec<(Vec<u32>, Speed, u32)>,
    of: FxHashMap<Rank, u32>,
}

impl Classes {
    fn of(source: &Layout, speeds: &Speeds, sets: &[(RankSet, u64)]) -> Classes {
        let mut pools_of: BTreeMap<Rank, Vec<u32>> = BTreeMap::new();
        for (i, (holders, _)) in sets.iter().enumerate() {
            for rank in holders.to_vec(source) {
                pools_of.entry(rank).or_default().push(i as u32);
            }
        }
        let mut known: BTreeMap<(Vec<u32>, Speed), u32> = BTreeMap::new();
        let mut classes = Classes::default();
        for (rank, pools) in pools_of {
            let Some(&speed) = speeds.of.get(&rank) else {
                continue;
            };
            let next = classes.all.len() as u32;
            let class = *known.entry((pools.clone(), speed)).or_insert(next);
            if class == next {
                classes.all.push((pools, speed, 0));
            }
            classes.all[class as usize].2 += 1;
            classes.of.insert(rank, class);
        }
        classes
    }

    /// The pools, each with the classes that send of it: what only drained
    /// ranks hold, they send.
    fn pools(&self, sets: &[(RankSet, u64)]) -> Vec<Pool> {
        let pool = |&(_, bytes): &(RankSet, u64)| Pool {
            bytes,
            classes: Vec::new(),
        };
        let mut pools: Vec<Pool> = sets.iter().map(pool).collect();
        for (class, (of, ..)) in self.all.iter().enumerate() {
            for &p in of {
                pools[p as usize].classes.push(class as u32);
            }
        }
        let is_drained = |c: &u32| self.all[*c as usize].1.is_drained;
        for pool in &mut pools {
            if !pool.classes.iter().all(is_drained) {
                pool.classes.retain(|c| !is_drained(c));
            }
        }
        pools
    }

    /// Of one rank of each class of a pool, by what the class is given of it.
    fn widths(&self, pool: &Pool, given: &[u64]) -> FxHashMap<u32, u64> {
        let speed = |c: u32| u128::from(self.all[c as usize].1.bytes_per_s);
        let fastest = pool.classes.iter().map(|&c| speed(c)).max().unwrap_or(1);
        let width = |(&c, &bytes): (&u32, &u64)| {
            let count = u128::from(self.all[c as usize].2);
            let width = match pool.bytes {
                // Nothing of it leaves its domain: by speed.
                0 => speed(c) * u128::from(UNITS_MAX / u64::from(RANK_COUNT_MAX)) / fastest,
                all => u128::from(bytes) * u128::from(UNITS_MAX) / (u128::from(all) * count.max(1)),
            };
            (c, width as u64)
        };
        pool.classes.iter().zip(given).map(width).collect()
    }
}

/// The slots of each set of holders, where they are not equal.
fn share_out(
    source: &Layout,
    speeds: &Speeds,
    sets: &[(RankSet, u64)],
) -> Result<FxHashMap<RankSet, Slots>> {
    let classes = Classes::of(source, speeds, sets);
    let pools = classes.pools(sets);
    let senders = classes.all.iter().map(|(_, speed, count)| SenderClass {
        count: *count,
        bytes_per_s: speed.bytes_per_s,
    });
    let given = fill(&pools, &senders.collect::<Vec<_>>())?;
    let mut uneven = FxHashMap::default();
    for (i, (holders, _)) in sets.iter().enumerate() {
        let by_class = classes.widths(&pools[i], &given[i]);
        let width = |rank| Some(*by_class.get(classes.of.get(&rank)?)?);
        let ranks = (0..holders.len()).map(|i| holders.nth(source, i));
        let slots = Slots::of(ranks.map(|r| width(r).unwrap_or(0)));
        if !matches!(slots, Slots::Equal(_)) {
            uneven.insert(holders.clone(), slots);
        }
    }
    Ok(uneven)
}

//! What only a few hold has to leave them.

use super::demand::wire_bytes;
use super::{BoundKind, Collected, Domains, cells_of, gpu_name, nvlink};
use crate::error::Result;
use crate::layout::mesh::MeshSlice;
use crate::layout::tensor::IndexBox;
use crate::plan::Plan;
use crate::plan::cells::{Splitter, StagedSlice};
use crate::plan::ranks::RankSet;
use crate::plan::tables::{PlanTensor, placement};
use crate::plan::topology::Topology;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Needers that are looked at to find one outside the holders' domains.
const NEEDERS_TRIED: u64 = 64;
/// Sets of domains up to which every set is tried with all that it contains.
const SETS_MAX: usize = 512;

/// Where the holders of something are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Home {
    /// Ascending.
    domains: Vec<u32>,
    /// The GPU, if it is on one alone.
    gpu: Option<u32>,
}

/// Adds the bounds of unique egress: per set of domains, GPU and cell.
pub fn egress(
    plan: &Plan,
    topology: &Topology,
    domains: &Domains,
    all: &mut Collected,
) -> Result<()> {
    let supply = Supply::of(plan, topology)?;
    let speed = |set: &[u32]| -> u64 { set.iter().map(|d| domains[d].speed()).sum() };
    for (set, bytes) in unions(&supply.by_domains) {
        all.add(BoundKind::UniqueEgress, bytes, speed(&set), || name(&set));
    }
    for (&gpu, &bytes) in &supply.by_gpu {
        let site = topology.site_of_gpu(gpu);
        let speed = site.nic_bytes_per_s + nvlink(&domains[&site.domain], &site);
        all.add(BoundKind::GpuUniqueEgress, bytes, speed, || gpu_name(&site));
    }
    for (i, cut) in topology.cuts().iter().enumerate() {
        let cells = cells_of(topology, i, domains);
        for (n, cell) in cells.iter().enumerate().filter(|_| cells.len() > 1) {
            let inside = |set: &Vec<u32>| set.iter().all(|d| cell.domains.contains(d));
            let bytes = supply.leaving(&inside, &|d| !cell.domains.contains(&d));
            let speed = cut.out_bytes_per_s.saturating_mul(cell.cells.len() as u64);
            all.add(BoundKind::CutEgress, bytes, speed, || {
                format!("cell {n} of \"{}\"", cut.name)
            });
        }
    }
    Ok(())
}

/// Bytes per set of domains that hold them, each set with all sets inside it,
/// and all of them together.
fn unions(by_domains: &BTreeMap<Vec<u32>, u64>) -> Vec<(Vec<u32>, u64)> {
    let mut everywhere: Vec<u32> = by_domains.keys().flatten().copied().collect();
    everywhere.sort_unstable();
    everywhere.dedup();
    let total = by_domains.values().sum();
    let mut out = vec![(everywhere, total)];
    for (set, &own) in by_domains {
        let bytes = match by_domains.len() <= SETS_MAX {
            false => own,
            true => by_domains
                .iter()
                .filter(|(s, _)| s.iter().all(|d| set.binary_search(d).is_ok()))
                .map(|(_, b)| *b)
                .sum(),
        };
        out.push((set.clone(), bytes));
    }
    out
}

fn name(set: &[u32]) -> String {
    match set {
        [one] => format!("NVLink domain {one}"),
        [first, .., last] if (last - first) as usize + 1 == set.len() => {
            format!("NVLink domains {first} to {last}")
        }
        [first, ..] => format!("{} NVLink domains from {first}", set.len()),
        [] => String::new(),
    }
}

/// A cell of a tensor with its home and one list of needers.
struct Held {
    home: Rc<Home>,
    needers: Rc<Needers>,
    bytes: u64,
}

/// Domains of a sample of needers.
struct Needers {
    domains: Vec<u32>,
    gpus: Vec<u32>,
}

#[derive(Default)]
struct Supply {
    /// Bytes that leave a set of domains, by the set.
    by_domains: BTreeMap<Vec<u32>, u64>,
    by_gpu: BTreeMap<u32, u64>,
    held: Vec<(Held, u64)>,
}

impl Supply {
    fn of(plan: &Plan, topology: &Topology) -> Result<Supply> {
        let mut finder = Finder {
            plan,
            topology,
            homes: FxHashMap::default(),
            needers: FxHashMap::default(),
        };
        let mut supply = Supply::default();
        for kind in &plan.tables.kinds {
            let tensor = &plan.tables.tensors[kind.first as usize];
            supply.add(&mut finder, tensor, kind.count)?;
        }
        Ok(supply)
    }

    /// Adds `count` tensors like `tensor`.
    fn add<'a>(
        &mut self,
        finder: &mut Finder<'a>,
        tensor: &'a PlanTensor,
        count: u64,
    ) -> Result<()> {
        let wire = wire_bytes(finder.plan, tensor);
        // Each demand alone tells what must leave; together they may overlap.
        let mut best: (u64, Vec<Held>) = (0, Vec::new());
        for held in finder.demands(tensor, wire)? {
            let leaving = held
                .iter()
                .filter(|h| h.leaves_domains())
                .map(|h| h.bytes)
                .sum();
            if leaving > best.0 || best.1.is_empty() {
                best = (leaving, held);
            }
        }
        for h in best.1 {
            if h.leaves_domains() {
                *self.by_domains.entry(h.home.domains.clone()).or_default() += h.bytes * count;
            }
            if let Some(gpu) = h.home.gpu.filter(|g| h.needers.gpus.iter().any(|n| n != g)) {
                *self.by_gpu.entry(gpu).or_default() += h.bytes * count;
            }
            self.held.push((h, count));
        }
        Ok(())
    }

    /// Bytes held only inside a cell and needed outside.
    fn leaving(&self, inside: &dyn Fn(&Vec<u32>) -> bool, outside: &dyn Fn(u32) -> bool) -> u64 {
        let leaves =
            |h: &Held| inside(&h.home.domains) && h.needers.domains.iter().any(|&d| outside(d));
        let all = self.held.iter().filter(|(h, _)| leaves(h));
        all.map(|(h, count)| h.bytes * count).sum()
    }
}

impl Held {
    fn leaves_domains(&self) -> bool {
        let own = &self.home.domains;
        self.needers
            .domains
            .iter()
            .any(|d| own.binary_search(d).is_err())
    }
}

struct Finder<'a> {
    plan: &'a Plan,
    topology: &'a Topology,
    homes: FxHashMap<(Vec<MeshSlice>, Vec<Rank>), Rc<Home>>,
    needers: FxHashMap<MeshSlice, Rc<Needers>>,
}

impl<'a> Finder<'a> {
    /// Per demand of a tensor, its cells.
    fn demands(&mut self, tensor: &'a PlanTensor, wire: u64) -> Result<Vec<Vec<Held>>> {
        let (source, destination) = (&self.plan.source, &self.plan.destination);
        let splitter = Splitter {
            source,
            destination,
            tensor,
        };
        let whole = IndexBox::whole(&destination.tensors()[tensor.destination.index()].shape);
        let mut out = Vec::new();
        for j in 0..tensor.needers.len() {
            let cells = splitter.demanded(j, &whole)?;
            let held = cells.iter().map(|c| {
                let needers = self.needers_of(tensor, &splitter.needers(j, c));
                self.held(tensor, &splitter, c, needers, wire)
            });
            out.push(held.collect());
        }
        for e in &tensor.explicit_needers {
            let ranks: Vec<Rank> = e.ranks.iter().map(|r| r.0).collect();
            let needers = Rc::new(self.sample(ranks.len() as u64, |i| ranks[i as usize]));
            let held = splitter.cells(&e.bounds, None)?;
            let held = held
                .iter()
                .map(|c| self.held(tensor, &splitter, c, needers.clone(), wire));
            out.push(held.collect());
        }
        Ok(out)
    }

    fn held(
        &mut self,
        tensor: &PlanTensor,
        splitter: &Splitter<'_>,
        cell: &IndexBox,
        needers: Rc<Needers>,
        wire: u64,
    ) -> Held {
        let set = splitter.holders(cell);
        let slices: Vec<_> = set
            .slices
            .iter()
            .map(|s| {
                let r = tensor.holders[s.placement as usize];
                s.at(placement(&self.plan.source, r).1.stage)
            })
            .collect();
        let listed: Vec<Rank> = set.listed.iter().map(|e| e.0).collect();
        Held {
            home: self.home(slices, listed),
            needers,
            bytes: cell.elements() * wire,
        }
    }

    fn home(&mut self, slices: Vec<MeshSlice>, listed: Vec<Rank>) -> Rc<Home> {
        let key = (slices, listed);
        if let Some(home) = self.homes.get(&key) {
            return home.clone();
        }
        let ranks = RankSet::union(&self.plan.source, &key.0, &key.1).to_vec(&self.plan.source);
        let sites: Vec<_> = ranks
            .iter()
            .filter_map(|&r| self.topology.site(r))
            .collect();
        let mut domains: Vec<u32> = sites.iter().map(|s| s.domain).collect();
        domains.sort_unstable();
        domains.dedup();
        let gpu = sites.first().map(|s| s.gpu);
        let home = Rc::new(Home {
            domains,
            gpu: gpu.filter(|g| sites.iter().all(|s| s.gpu == *g)),
        });
        self.homes.insert(key, home.clone());
        home
    }

    fn needers_of(&mut self, tensor: &PlanTensor, staged: &StagedSlice) -> Rc<Needers> {
        let layout = &self.plan.destination;
        let r = tensor.needers[staged.placement as usize];
        let slice = staged.at(placement(layout, r).1.stage);
        if let Some(n) = self.needers.get(&slice) {
            return n.clone();
        }
        let set = RankSet::union(layout, std::slice::from_ref(&slice), &[]);
        let needers = Rc::new(self.sample(set.len(), |i| set.nth(layout, i)));
        self.needers.insert(slice, needers.clone());
        needers
    }

    fn sample(&self, count: u64, nth: impl Fn(u64) -> Rank) -> Needers {
        let step = count.div_ceil(NEEDERS_TRIED).max(1);
        let picked = (0..count)
            .step_by(step as usize)
            .chain(count.checked_sub(1));
        let sites: Vec<_> = picked.filter_map(|i| self.topology.site(nth(i))).collect();
        Needers {
            domains: sites.iter().map(|s| s.domain).collect(),
            gpus: sites.iter().map(|s| s.gpu).collect(),
        }
    }
}

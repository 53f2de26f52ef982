//! How fast any plan between two layouts could be, whatever it does.
//!
//! Every bound is a load that no schedule can avoid, over the speed of the
//! links that have to carry it; no quantity of a plan enters. The largest one
//! binds:
//!
//! | bound | load | over |
//! |---|---|---|
//! | `domain_ingress` | distinct bytes an NVLink domain needs and does not hold | its ports |
//! | `gpu_ingress` | bytes a GPU needs and does not hold | its port and NVLink |
//! | `unique_egress` | bytes that only these domains hold and others need | their ports |
//! | `gpu_unique_egress` | bytes that only this GPU holds and others need | its port and NVLink |
//! | `volume` | what all domains need | the ports of all ranks, which may forward |
//! | `cut_ingress`, `cut_egress` | the same two of a cell | the cell's capacity |
//! | `local_copy` | bytes a GPU needs and holds | its memory |
//!
//! Bytes are counted in the narrower of both dtypes. To the largest comes the
//! latency of one message, if anything has to move at all.

mod demand;
mod hint;
mod supply;
mod volume;

use super::Plan;
use super::topology::{Site, Topology};
use crate::error::{Error, Result};
use crate::rank::Rank;
use demand::Demand;
pub use hint::PlacementHint;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Why a plan cannot be faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundKind {
    DomainIngress,
    GpuIngress,
    UniqueEgress,
    GpuUniqueEgress,
    Volume,
    CutIngress,
    CutEgress,
    LocalCopy,
}

/// The largest bound of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BoundTerm {
    pub kind: BoundKind,
    pub time_ns: u64,
    pub bytes: u64,
    pub bytes_per_s: u64,
    /// Which domains, GPU or cell.
    pub place: String,
}

/// Everything that bounds a transfer from below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// No plan is faster.
    pub lower_ns: u64,
    /// Included in it: the latency of one message.
    pub latency_ns: u64,
    /// The largest of each kind, slowest first.
    pub terms: Vec<BoundTerm>,
}

/// Ranks of one NVLink domain and what connects them.
#[derive(Debug, Default)]
struct Domain {
    ranks: Vec<Rank>,
    sites: Vec<Site>,
    /// Speeds of the ports of its ranks.
    ports: BTreeMap<u32, u64>,
}

impl Domain {
    fn speed(&self) -> u64 {
        self.ports.values().sum()
    }
}

/// Ranks of both layouts by NVLink domain.
type Domains = BTreeMap<u32, Domain>;

impl Plan {
    /// The lower bounds on this topology, which has every rank placed.
    pub fn bounds(&self, topology: &Topology) -> Result<Bounds> {
        let mut demand = Demand::new(self);
        bounds_on(self, &mut demand, topology)
    }

    /// The change of rank placement that would lower the bound most, if one
    /// would by more than a percent.
    ///
    /// Tries, for each part of the layouts, every mesh axis as the innermost
    /// one. `None` for very many ranks, too.
    pub fn placement_hint(
        &self,
        topology: &Topology,
        bounds: &Bounds,
    ) -> Result<Option<PlacementHint>> {
        hint::placement_hint(self, topology, bounds)
    }
}

fn bounds_on(plan: &Plan, demand: &mut Demand<'_>, topology: &Topology) -> Result<Bounds> {
    let domains = domains_of(plan, topology)?;
    let mut all = Collected::default();
    ingress(demand, &domains, &mut all)?;
    supply::egress(plan, topology, &domains, &mut all)?;
    cut_ingress(demand, topology, &domains, &mut all)?;
    local(demand, topology, &domains, &mut all)?;
    Ok(all.finish(topology.latency_ns()))
}

/// The largest term of each kind so far.
#[derive(Default)]
struct Collected {
    terms: BTreeMap<BoundKind, BoundTerm>,
}

impl Collected {
    fn add(&mut self, kind: BoundKind, bytes: u64, speed: u64, place: impl FnOnce() -> String) {
        if bytes == 0 {
            return;
        }
        let time_ns = time_ns(bytes, speed.max(1));
        if self.terms.get(&kind).is_some_and(|t| t.time_ns >= time_ns) {
            return;
        }
        let term = BoundTerm {
            kind,
            time_ns,
            bytes,
            bytes_per_s: speed,
            place: place(),
        };
        self.terms.insert(kind, term);
    }

    fn finish(self, latency_ns: u64) -> Bounds {
        let mut terms: Vec<BoundTerm> = self.terms.into_values().collect();
        terms.sort_by_key(|t| std::cmp::Reverse(t.time_ns));
        let moves = terms.iter().any(|t| t.kind != BoundKind::LocalCopy);
        let latency_ns = if moves { latency_ns } else { 0 };
        // A local copy waits for nothing.
        let of = |t: &BoundTerm| match t.kind {
            BoundKind::LocalCopy => t.time_ns,
            _ => t.time_ns.saturating_add(latency_ns),
        };
        Bounds {
            lower_ns: terms.iter().map(of).max().unwrap_or(0),
            latency_ns,
            terms,
        }
    }
}

/// Time that `bytes` need at `speed`, rounded down.
fn time_ns(bytes: u64, speed: u64) -> u64 {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(speed);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn domains_of(plan: &Plan, topology: &Topology) -> Result<Domains> {
    let mut domains = Domains::new();
    for rank in plan.ranks() {
        let site = topology.site(rank).ok_or_else(|| {
            Error::invalid(format!("topology: rank {rank} has no place")).by(rank)
        })?;
        let domain = domains.entry(site.domain).or_default();
        domain.ranks.push(rank);
        domain.sites.push(site);
        if let Some(port) = site.port {
            domain.ports.insert(port, site.nic_bytes_per_s);
        }
    }
    Ok(domains)
}

/// Domains and their GPUs, and all of them together.
fn ingress(demand: &mut Demand<'_>, domains: &Domains, all: &mut Collected) -> Result<()> {
    let mut volume = 0u64;
    for (id, domain) in domains {
        let need = demand.missing(&domain.ranks)?;
        volume = volume.saturating_add(need);
        all.add(BoundKind::DomainIngress, need, domain.speed(), || {
            format!("NVLink domain {id}")
        });
        for (site, ranks) in gpus(domain) {
            let need = demand.missing(&ranks)?;
            let speed = site.nic_bytes_per_s + nvlink(domain, &site);
            all.add(BoundKind::GpuIngress, need, speed, || gpu_name(&site));
        }
    }
    let ports: u64 = domains.values().map(Domain::speed).sum();
    all.add(BoundKind::Volume, volume, ports, || "all ranks".into());
    Ok(())
}

/// The ranks of each GPU of a domain.
fn gpus(domain: &Domain) -> Vec<(Site, Vec<Rank>)> {
    let mut by_gpu: BTreeMap<u32, (Site, Vec<Rank>)> = BTreeMap::new();
    for (rank, site) in domain.ranks.iter().zip(&domain.sites) {
        let entry = by_gpu
            .entry(site.gpu)
            .or_insert_with(|| (*site, Vec::new()));
        entry.1.push(*rank);
    }
    by_gpu.into_values().collect()
}

/// NVLink is of use only where there is somebody else in the domain.
fn nvlink(domain: &Domain, site: &Site) -> u64 {
    match domain.sites.iter().any(|s| s.gpu != site.gpu) {
        true => site.nvlink_bytes_per_s,
        false => 0,
    }
}

fn gpu_name(site: &Site) -> String {
    format!("GPU {} of host {}", site.gpu, site.host)
}

/// Domains by the cell they are in; cells of one block of hosts count as one
/// where a domain meets several of them.
struct Cell {
    domains: BTreeSet<u32>,
    cells: BTreeSet<u64>,
}

fn cells_of(topology: &Topology, cut: usize, domains: &Domains) -> Vec<Cell> {
    let mut out: Vec<Cell> = Vec::new();
    let mut of_cell: BTreeMap<u64, usize> = BTreeMap::new();
    for (id, domain) in domains {
        let touched: BTreeSet<u64> = domain.sites.iter().map(|s| topology.cell(cut, s)).collect();
        let mut homes: Vec<usize> = touched
            .iter()
            .filter_map(|c| of_cell.get(c).copied())
            .collect();
        homes.sort_unstable();
        homes.dedup();
        let home = homes.first().copied().unwrap_or_else(|| {
            out.push(Cell {
                domains: BTreeSet::new(),
                cells: BTreeSet::new(),
            });
            out.len() - 1
        });
        for &other in homes.iter().skip(1) {
            let (d, c) = (
                std::mem::take(&mut out[other].domains),
                std::mem::take(&mut out[other].cells),
            );
            out[home].domains.extend(d);
            out[home].cells.extend(c);
        }
        out[home].domains.insert(*id);
        out[home].cells.extend(&touched);
        for c in &out[home].cells {
            of_cell.insert(*c, home);
        }
    }
    out.retain(|c| !c.domains.is_empty());
    out
}

fn cut_ingress(
    demand: &mut Demand<'_>,
    topology: &Topology,
    domains: &Domains,
    all: &mut Collected,
) -> Result<()> {
    for (i, cut) in topology.cuts().iter().enumerate() {
        let cells = cells_of(topology, i, domains);
        if cells.len() < 2 {
            continue;
        }
        for (n, cell) in cells.iter().enumerate() {
            let ranks: Vec<Rank> = cell
                .domains
                .iter()
                .flat_map(|d| domains[d].ranks.iter().copied())
                .collect();
            let need = demand.missing(&ranks)?;
            let speed = cut.in_bytes_per_s.saturating_mul(cell.cells.len() as u64);
            all.add(BoundKind::CutIngress, need, speed, || {
                format!("cell {n} of \"{}\"", cut.name)
            });
        }
    }
    Ok(())
}

/// What a GPU holds and needs is read and written once.
fn local(
    demand: &mut Demand<'_>,
    topology: &Topology,
    domains: &Domains,
    all: &mut Collected,
) -> Result<()> {
    for domain in domains.values() {
        for (site, ranks) in gpus(domain) {
            if !demand.is_on_both_sides(&ranks) {
                continue;
            }
            let bytes = demand.needed(&ranks)? - demand.missing(&ranks)?;
            all.add(
                BoundKind::LocalCopy,
                bytes,
                topology.pack_bytes_per_s(),
                || gpu_name(&site),
            );
        }
    }
    Ok(())
}

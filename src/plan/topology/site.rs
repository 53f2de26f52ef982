//! Where a rank sits: from its number to its GPU, host, domain and port.

use super::spec::{FabricCut, HostGroup, PlacementRun, TopologySpec};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::mesh::RankList;
use crate::limits::RANK_COUNT_MAX;
use crate::plan::sorting;
use crate::rank::Rank;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

/// A checked topology; once placed, every rank has a [`Site`].
#[derive(Clone, Debug)]
pub struct Topology {
    spec: TopologySpec,
    groups: Vec<Base>,
    /// Sorted by first rank, not overlapping.
    runs: Vec<Run>,
    /// Percent of the speed, where it is not 100: NIC by port, NVLink by GPU.
    slow_ports: BTreeMap<u32, u32>,
    slow_gpus: BTreeMap<u32, u32>,
    /// Ascending.
    drained: Vec<Rank>,
}

/// Where a group of hosts begins in each numbering.
#[derive(Clone, Copy, Debug)]
struct Base {
    gpu: u32,
    host: u32,
    domain: u32,
    port: u32,
}

/// Ranks `first..first + count` on GPUs from `gpu` on, `offset` ranks into it.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    count: u32,
    gpu: u32,
    offset: u32,
    ranks_per_gpu: u32,
}

/// Where one rank sits. Numbers count over the whole topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    pub gpu: u32,
    pub host: u32,
    /// The NVLink domain.
    pub domain: u32,
    /// Where its GPU meets the network; `None` on hosts without a NIC.
    pub port: Option<u32>,
    /// Index of the port within its host.
    pub rail: u32,
    /// Of the port, each way.
    pub nic_bytes_per_s: u64,
    /// Of the GPU, each way.
    pub nvlink_bytes_per_s: u64,
}

impl Topology {
    /// Checks a description. Without placement in it, the ranks are placed by
    /// [`placed_for`](Topology::placed_for).
    pub fn new(spec: TopologySpec) -> Result<Topology> {
        spec.validate()?;
        let groups = bases(&spec.hosts)?;
        let runs = runs_of(&spec.placement)?;
        let mut topology = Topology {
            spec,
            groups,
            runs,
            slow_ports: BTreeMap::new(),
            slow_gpus: BTreeMap::new(),
            drained: Vec::new(),
        };
        topology.check_runs()?;
        if !topology.spec.placement.is_empty() {
            topology.apply_speeds()?;
        }
        Ok(topology)
    }

    /// Eight-GPU hosts, one 400 Gb/s NIC per GPU, NVLink at 450 GB/s, 20 us
    /// per message, source ranks first, destination ranks on hosts of their
    /// own.
    pub fn default_for(source: &Layout, destination: &Layout) -> Result<Topology> {
        Topology::new(TopologySpec::default())?.placed_for(source, destination)
    }

    /// This topology with every rank of the layouts placed.
    ///
    /// Fails if a rank of a layout has no place, or the hosts have too few
    /// GPUs, or ranks in different NVLink domains have no NIC between them.
    pub fn placed_for(&self, source: &Layout, destination: &Layout) -> Result<Topology> {
        let mut placed = self.clone();
        if self.spec.placement.is_empty() {
            placed.spec.placement = self.default_placement(source, destination);
            placed.runs = runs_of(&placed.spec.placement)?;
            placed.check_runs()?;
            placed.apply_speeds()?;
        }
        placed.check_layouts(source, destination)?;
        Ok(placed)
    }

    pub fn spec(&self) -> &TopologySpec {
        &self.spec
    }

    pub fn latency_ns(&self) -> u64 {
        self.spec.latency_ns
    }

    pub fn pack_bytes_per_s(&self) -> u64 {
        self.spec.pack_bytes_per_s
    }

    pub fn cuts(&self) -> &[FabricCut] {
        &self.spec.cuts
    }

    /// Where `rank` sits, if it is placed.
    pub fn site(&self, rank: Rank) -> Option<Site> {
        let after = self.runs.partition_point(|r| r.first <= rank.0);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let ahead = rank.0 - run.first;
        if ahead >= run.count {
            return None;
        }
        Some(self.site_of_gpu(run.gpu + (run.offset + ahead) / run.ranks_per_gpu))
    }

    /// The NVLink domain of `rank`, if it is placed.
    pub fn domain(&self, rank: Rank) -> Option<u32> {
        Some(self.site(rank)?.domain)
    }

    /// Where a GPU sits.
    pub fn site_of_gpu(&self, gpu: u32) -> Site {
        let g = self.groups.partition_point(|b| b.gpu <= gpu) - 1;
        let (base, group) = (&self.groups[g], &self.spec.hosts[g]);
        let local = gpu - base.gpu;
        let (host, slot) = (local / group.gpus, local % group.gpus);
        let ports = group.ports();
        let rail = (u64::from(slot) * u64::from(ports) / u64::from(group.gpus)) as u32;
        let port = (ports > 0).then(|| base.port + host * ports + rail);
        let slow = port.and_then(|p| self.slow_ports.get(&p)).copied();
        let slow_gpu = self.slow_gpus.get(&gpu).copied();
        Site {
            gpu,
            host: base.host + host,
            domain: base.domain + host / group.domain_hosts,
            port,
            rail,
            nic_bytes_per_s: match ports {
                0 => 0,
                _ => percent(group.port_bytes_per_s(), slow),
            },
            nvlink_bytes_per_s: percent(group.nvlink_bytes_per_s, slow_gpu),
        }
    }

    /// True if `rank` should send nothing that others hold too.
    pub fn is_drained(&self, rank: Rank) -> bool {
        self.drained.binary_search(&rank).is_ok()
    }

    /// Ranks that should send nothing that others hold too, ascending.
    pub fn drained(&self) -> &[Rank] {
        &self.drained
    }

    /// Those of some ranks that hold the same which send it: all but the
    /// drained ones, unless all are.
    pub fn senders(&self, mut ranks: Vec<Rank>) -> Vec<Rank> {
        if !ranks.iter().all(|r| self.is_drained(*r)) {
            ranks.retain(|r| !self.is_drained(*r));
        }
        ranks
    }

    /// True if some rank is slower than its host.
    pub fn has_slow_ranks(&self) -> bool {
        !self.slow_ports.is_empty() || !self.slow_gpus.is_empty()
    }

    /// True if ranks may differ in speed, or some are drained.
    pub fn may_be_uneven(&self) -> bool {
        self.has_slow_ranks() || !self.drained.is_empty() || self.spec.hosts.len() > 1
    }

    /// The cell of cut `cut` that a site belongs to.
    pub fn cell(&self, cut: usize, site: &Site) -> u64 {
        let c = &self.spec.cuts[cut];
        let cell = u64::from(site.host / c.hosts);
        match c.by_rail {
            true => cell << 32 | u64::from(site.rail),
            false => cell,
        }
    }

    /// Source ranks from GPU 0 on, then the destination ranks that are not
    /// among them, from the next host on.
    fn default_placement(&self, source: &Layout, destination: &Layout) -> Vec<PlacementRun> {
        let first = source.rank_ranges();
        let rest = without(destination.rank_ranges(), &first);
        let next = self.next_host(first.iter().map(|r| r.end - r.start).sum());
        [(first, 0), (rest, next)]
            .into_iter()
            .filter(|(ranks, _)| !ranks.is_empty())
            .map(|(ranks, gpu)| PlacementRun {
                ranks: listed(&ranks),
                gpu,
                ranks_per_gpu: 1,
            })
            .collect()
    }

    /// The first GPU of the first host that has no GPU below `gpu`.
    fn next_host(&self, gpu: u32) -> u32 {
        let Some(last) = gpu.checked_sub(1) else {
            return 0;
        };
        let g = self.groups.partition_point(|b| b.gpu <= last) - 1;
        let (base, gpus) = (self.groups[g].gpu, self.spec.hosts[g].gpus);
        base + (last - base) / gpus * gpus + gpus
    }

    /// GPUs of all hosts; `None` if the last group grows.
    fn gpu_count(&self) -> Option<u32> {
        let (base, last) = (self.groups.last()?, self.spec.hosts.last()?);
        (last.count > 0).then(|| base.gpu + last.count * last.gpus)
    }

    fn check_runs(&self) -> Result<()> {
        for w in self.runs.windows(2) {
            if w[1].first - w[0].first < w[0].count {
                return Err(Error::invalid(format!(
                    "topology: rank {} is placed twice, on GPU {} and on GPU {}",
                    w[1].first,
                    w[0].gpu + (w[0].offset + w[1].first - w[0].first) / w[0].ranks_per_gpu,
                    w[1].gpu + w[1].offset / w[1].ranks_per_gpu
                )));
            }
        }
        let limit = self.gpu_count().unwrap_or(RANK_COUNT_MAX);
        for r in &self.runs {
            let last = u64::from(r.gpu)
                + (u64::from(r.offset) + u64::from(r.count) - 1) / u64::from(r.ranks_per_gpu);
            if last >= u64::from(limit) {
                return Err(Error::invalid(format!(
                    "topology: rank {} is on GPU {last}; the hosts have {limit} GPUs, counted from 0",
                    r.first + r.count - 1
                )));
            }
        }
        Ok(())
    }

    /// Expands the exceptions: as many as there are slow or drained ranks.
    fn apply_speeds(&mut self) -> Result<()> {
        let mut slow = Vec::new();
        for (i, s) in self.spec.speeds.iter().enumerate() {
            for rank in s.ranks.iter() {
                let site = self.site(rank).ok_or_else(|| {
                    Error::invalid(format!(
                        "topology: speeds[{i}] names rank {rank}, which is not placed"
                    ))
                })?;
                slow.push((site, s.nic_percent, s.nvlink_percent));
                if s.is_drained {
                    self.drained.push(rank);
                }
            }
        }
        for (site, nic, nvlink) in slow {
            if let (Some(port), 1..100) = (site.port, nic) {
                let p = self.slow_ports.entry(port).or_insert(nic);
                *p = nic.min(*p);
            }
            if nvlink < 100 {
                let p = self.slow_gpus.entry(site.gpu).or_insert(nvlink);
                *p = nvlink.min(*p);
            }
        }
        self.drained.sort_unstable();
        self.drained.dedup();
        Ok(())
    }

    /// Every rank is placed, and those of different domains can meet.
    fn check_layouts(&self, source: &Layout, destination: &Layout) -> Result<()> {
        let mut without: Option<Rank> = None;
        let mut domains = (u32::MAX, 0);
        for (side, layout) in [("source", source), ("destination", destination)] {
            for ranks in layout.rank_ranges() {
                let stretches = self.stretches(ranks).map_err(|rank| {
                    Error::invalid(format!(
                        "topology: {side} rank {rank} has no place; {} ranks are placed",
                        self.runs.iter().map(|r| u64::from(r.count)).sum::<u64>()
                    ))
                    .by(rank)
                })?;
                for s in &stretches {
                    let [first, last] = s.domains(self);
                    domains = (domains.0.min(first), domains.1.max(last));
                    without = without.or_else(|| self.without_port(s));
                }
            }
        }
        match without.and_then(|rank| Some((rank, self.site(rank)?.host))) {
            Some((rank, host)) if domains.0 != domains.1 => Err(Error::invalid(format!(
                "topology: rank {rank} on host {host} has no NIC and cannot reach the other NVLink \
                 domains; the ranks are in domains {} to {}",
                domains.0, domains.1
            ))),
            _ => Ok(()),
        }
    }

    /// Where consecutive ranks sit, or the first of them that has no place.
    fn stretches(&self, ranks: Range<u32>) -> std::result::Result<Vec<Stretch>, Rank> {
        let mut out = Vec::new();
        let mut at = ranks.start;
        while at < ranks.end {
            let after = self.runs.partition_point(|r| r.first <= at);
            let run = after.checked_sub(1).map(|i| self.runs[i]);
            let run = run.filter(|r| at - r.first < r.count).ok_or(Rank(at))?;
            let end = ranks.end.min(run.first + run.count);
            let ahead = at - run.first;
            out.push(Stretch {
                first: at,
                count: end - at,
                run: Run {
                    offset: run.offset + ahead,
                    ..run
                },
            });
            at = end;
        }
        Ok(out)
    }

    /// The first rank of a stretch that is on a host without NICs.
    fn without_port(&self, stretch: &Stretch) -> Option<Rank> {
        let mut ranks = (0..self.groups.len())
            .filter(|&g| self.spec.hosts[g].ports() == 0)
            .filter_map(|g| {
                let end = self.groups.get(g + 1).map_or(u32::MAX, |next| next.gpu);
                stretch.first_within(self.groups[g].gpu, end)
            });
        ranks.next()
    }

    /// How many consecutive ranks each NVLink domain has, if it is as many in
    /// all domains of these ranks, of which the first begins one.
    pub fn even_domain_ranks(&self, ranks: Range<u32>) -> Option<u64> {
        let stretches = self.stretches(ranks).ok()?;
        let [one] = stretches.as_slice() else {
            return None;
        };
        let group = |gpu: u32| self.groups.partition_point(|b| b.gpu <= gpu) - 1;
        let (first, last) = (one.gpu(0), one.gpu(one.count - 1));
        let (base, host) = (&self.groups[group(first)], &self.spec.hosts[group(first)]);
        let gpus = u64::from(host.gpus) * u64::from(host.domain_hosts);
        let begins =
            u64::from(first - base.gpu) % gpus == 0 && one.run.offset % one.run.ranks_per_gpu == 0;
        let is_one_group = group(first) == group(last);
        (begins && is_one_group).then(|| gpus * u64::from(one.run.ranks_per_gpu))
    }

    /// What the NIC does that each of these ranks has for itself, in bytes per
    /// second, if all have one and all are alike and willing.
    pub fn own_nic_bytes_per_s(&self, ranks: Range<u32>) -> Option<u64> {
        let stretches = self.stretches(ranks).ok()?;
        let [one] = stretches.as_slice() else {
            return None;
        };
        let [host] = self.spec.hosts.as_slice() else {
            return None;
        };
        let is_own = one.run.ranks_per_gpu == 1 && host.ports() == host.gpus;
        (is_own && !self.may_be_uneven()).then(|| host.port_bytes_per_s())
    }

    /// The NVLink domains of a layout's ranks, as ranges.
    pub fn domain_ranges(&self, layout: &Layout) -> Vec<RangeInclusive<u32>> {
        let ends = self.ends(layout).into_iter();
        ends.map(|[first, last]| first.domain..=last.domain)
            .collect()
    }

    /// The first and the last site of each stretch of a layout's ranks. The
    /// GPUs between them all have ranks of it, so the hosts and domains too.
    pub fn ends(&self, layout: &Layout) -> Vec<[Site; 2]> {
        let ranges = layout.rank_ranges().into_iter();
        let stretches = ranges.filter_map(|r| self.stretches(r).ok()).flatten();
        stretches.map(|s| s.ends(self)).collect()
    }
}

/// Consecutive ranks of one run, which sit on consecutive GPUs.
struct Stretch {
    first: u32,
    count: u32,
    /// With the offset of `first`.
    run: Run,
}

impl Stretch {
    fn gpu(&self, ahead: u32) -> u32 {
        self.run.gpu + (self.run.offset + ahead) / self.run.ranks_per_gpu
    }

    fn ends(&self, topology: &Topology) -> [Site; 2] {
        [0, self.count - 1].map(|ahead| topology.site_of_gpu(self.gpu(ahead)))
    }

    /// The first and the last domain; domains are numbered as GPUs are.
    fn domains(&self, topology: &Topology) -> [u32; 2] {
        self.ends(topology).map(|site| site.domain)
    }

    /// The first rank on a GPU of `from..end`.
    fn first_within(&self, from: u32, end: u32) -> Option<Rank> {
        let before =
            u64::from(from.saturating_sub(self.run.gpu)) * u64::from(self.run.ranks_per_gpu);
        let ahead = before.saturating_sub(u64::from(self.run.offset));
        let ahead = u32::try_from(ahead).ok().filter(|&a| a < self.count)?;
        (from..end)
            .contains(&self.gpu(ahead))
            .then(|| Rank(self.first + ahead))
    }
}

/// One list of ascending ranges.
fn listed(ranges: &[Range<u32>]) -> RankList {
    match ranges {
        [one] => RankList::Range {
            first: one.start,
            count: one.end - one.start,
        },
        many => RankList::List(many.iter().cloned().flatten().map(Rank).collect()),
    }
}

/// What of ascending ranges is not in other ascending ranges.
fn without(ranges: Vec<Range<u32>>, taken: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut out = Vec::new();
    for range in ranges {
        let mut at = range.start;
        let first = taken.partition_point(|t| t.end <= range.start);
        for t in taken[first..].iter().take_while(|t| t.start < range.end) {
            if at < t.start {
                out.push(at..t.start);
            }
            at = at.max(t.end);
        }
        if at < range.end {
            out.push(at..range.end);
        }
    }
    out
}

fn percent(speed: u64, percent: Option<u32>) -> u64 {
    match percent {
        None => speed,
        Some(p) => (u128::from(speed) * u128::from(p) / 100).max(1) as u64,
    }
}

fn bases(hosts: &[HostGroup]) -> Result<Vec<Base>> {
    let mut at = Base {
        gpu: 0,
        host: 0,
        domain: 0,
        port: 0,
    };
    let mut bases = Vec::with_capacity(hosts.len());
    for g in hosts {
        bases.push(at);
        let gpus = u64::from(at.gpu) + u64::from(g.count) * u64::from(g.gpus);
        if gpus > u64::from(RANK_COUNT_MAX) {
            return Err(Error::limit(format!(
                "topology: the hosts have {gpus} GPUs and more; at most {RANK_COUNT_MAX} are allowed"
            )));
        }
        at.gpu = gpus as u32;
        at.host += g.count;
        at.domain += g.count.div_ceil(g.domain_hosts);
        at.port += g.count * g.ports();
    }
    Ok(bases)
}

/// Placement as runs of consecutive ranks, sorted.
fn runs_of(placement: &[PlacementRun]) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for p in placement {
        let mut push = |first, count, offset| {
            runs.push(Run {
                first,
                count,
                gpu: p.gpu,
                offset,
                ranks_per_gpu: p.ranks_per_gpu,
            });
        };
        match &p.ranks {
            RankList::Range { first, count } => push(*first, *count, 0),
            RankList::List(list) => {
                let mut from = 0;
                for i in 1..=list.len() {
                    if i == list.len() || list[i].0 != list[i - 1].0.wrapping_add(1) {
                        push(list[from].0, (i - from) as u32, from as u32);
                        from = i;
                    }
                }
            }
        }
    }
    sorting::sort(&mut runs, |a, b| a.first.cmp(&b.first));
    Ok(runs)
}

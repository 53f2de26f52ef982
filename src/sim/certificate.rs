//! How near a plan is to what is possible, and what holds it up.

use super::Simulated;
use super::instance::{Instance, SIMULATED_RANK_COUNT_MAX};
use super::network::{Link, LinkKind};
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::bounds::{BoundTerm, Bounds, PlacementHint};
use crate::plan::report::PlanReport;
use crate::plan::topology::Topology;
use serde::Serialize;
use std::collections::BTreeMap;

/// How many of the busiest links are named.
const BUSIEST_COUNT: usize = 12;

/// Lower bound, prediction, and everything that a person asks next.
#[derive(Clone, Debug, Serialize)]
pub struct Certificate {
    /// No plan is faster.
    pub lower_bound_s: f64,
    /// What the simulator says of this one, packing included.
    pub predicted_s: f64,
    /// Of the two; 1 where nothing has to move.
    pub ratio: f64,
    /// The busiest link: what it carries, and how long that alone takes.
    pub bottleneck: Option<LinkLoad>,
    pub lower_bound_ns: u64,
    pub predicted_ns: u64,
    /// What the bound is made of, slowest first.
    pub bounds: Vec<BoundTerm>,
    /// Totals of the links of each kind.
    pub links: Vec<LinkTotals>,
    /// The links that take longest on their own, longest first; at most 12.
    pub links_busiest: Vec<LinkLoad>,
    pub bytes_nic: u64,
    pub bytes_nvlink: u64,
    pub bytes_local: u64,
    pub peers_max: u64,
    pub messages: u64,
    pub staging_bytes_peak: u64,
    /// A placement of ranks that would lower the bound.
    pub placement_hint: Option<PlacementHint>,
    /// False if the plan is too large to simulate: prediction, links,
    /// bottleneck and bytes per kind of link are then those of a plan of fewer
    /// ranks with the same proportions, or in fewer buckets, the prediction
    /// scaled by the bounds and by how long a pipeline takes to fill.
    pub is_exact: bool,
    pub ranks_simulated: u64,
    pub buckets_simulated: u32,
}

/// One link.
#[derive(Clone, Debug, Serialize)]
pub struct LinkLoad {
    #[serde(flatten)]
    pub link: Link,
    pub bytes: u64,
    pub time_s: f64,
}

/// All links of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct LinkTotals {
    pub kind: LinkKind,
    pub count: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    pub time_max_s: f64,
}

impl Certificate {
    /// Derives and simulates every rank of the plan.
    pub fn of(plan: &Plan, topology: &Topology) -> Result<Certificate> {
        Ok(Certificate::with_instance(plan, topology)?.0)
    }

    /// The certificate, with the instance and the run it comes from.
    pub fn with_instance(
        plan: &Plan,
        topology: &Topology,
    ) -> Result<(Certificate, Instance, Simulated)> {
        Certificate::with_report(plan, topology, &plan.report()?, &Instance::run_fast)
    }

    /// The same of a plan whose totals are known. `run` simulates; it is given a
    /// bound.
    pub fn with_report(
        plan: &Plan,
        topology: &Topology,
        report: &PlanReport,
        run: &dyn Fn(&Instance, u64) -> Simulated,
    ) -> Result<(Certificate, Instance, Simulated)> {
        let bounds = plan.bounds(topology)?;
        let instance = Instance::of_plan(plan, topology)?;
        let ran = run(&instance, bounds.lower_ns);
        let hint = plan.placement_hint(topology, &bounds)?;
        let mut loads = instance.link_loads();
        let links = totals(&loads);
        // The sort is stable, so of equally busy links those that are used first.
        loads.sort_by_key(|l| std::cmp::Reverse(time_ns(l)));
        loads.truncate(BUSIEST_COUNT);
        let bytes_of = |kind| {
            let of = links.iter().find(|t| t.kind == kind);
            of.map_or(0, |t| t.bytes)
        };
        let certificate = Certificate {
            lower_bound_s: seconds(bounds.lower_ns),
            predicted_s: seconds(ran.total_ns),
            ratio: match bounds.lower_ns {
                0 => 1.0,
                lower => ran.total_ns as f64 / lower as f64,
            },
            bottleneck: loads.first().cloned(),
            lower_bound_ns: bounds.lower_ns,
            predicted_ns: ran.total_ns,
            bounds: bounds.terms,
            bytes_nic: bytes_of(LinkKind::NicOut),
            bytes_nvlink: bytes_of(LinkKind::NvlinkOut),
            links,
            links_busiest: loads,
            bytes_local: report.bytes_local,
            peers_max: report.peers_max,
            messages: report.messages,
            staging_bytes_peak: report.staging_bytes_peak,
            placement_hint: hint,
            is_exact: true,
            ranks_simulated: instance.nodes.len() as u64,
            buckets_simulated: plan.decision().bucket_count,
        };
        Ok((certificate, instance, ran))
    }

    /// The certificate of the same plan in `bucket_count` buckets, of which only
    /// fewer were simulated: `fewer_ns` is what half of them take. What a
    /// pipeline loses while it fills and empties falls with their number:
    ///
    /// ```text
    ///   time = a + b / buckets, and no less than the bound or the busiest link
    /// ```
    pub fn in_more_buckets(self, bucket_count: u32, fewer_ns: u64) -> Certificate {
        let lost = fewer_ns.saturating_sub(self.predicted_ns);
        let spared = 1.0 - f64::from(self.buckets_simulated) / f64::from(bucket_count.max(1));
        let busiest_ns = self.links_busiest.first().map_or(0, time_ns);
        let ns =
            self.predicted_ns - ((lost as f64 * spared.max(0.0)) as u64).min(self.predicted_ns);
        let least_ns = self.lower_bound_ns.max(busiest_ns);
        self.predicting(ns.max(least_ns))
    }

    fn predicting(self, ns: u64) -> Certificate {
        Certificate {
            predicted_s: seconds(ns),
            predicted_ns: ns,
            ratio: match self.lower_bound_ns {
                0 => 1.0,
                lower => ns as f64 / lower as f64,
            },
            is_exact: false,
            ..self
        }
    }

    /// The certificate of a larger plan with the same proportions, of which
    /// only bounds and totals are known.
    pub fn of_larger(self, bounds: Bounds, report: &PlanReport) -> Certificate {
        let scaled = u128::from(self.predicted_ns) * u128::from(bounds.lower_ns)
            / u128::from(self.lower_bound_ns.max(1));
        let predicted_ns = u64::try_from(scaled).unwrap_or(u64::MAX);
        Certificate {
            lower_bound_s: seconds(bounds.lower_ns),
            predicted_s: seconds(predicted_ns),
            lower_bound_ns: bounds.lower_ns,
            predicted_ns,
            bounds: bounds.terms,
            bytes_local: report.bytes_local,
            peers_max: report.peers_max,
            messages: report.messages,
            staging_bytes_peak: report.staging_bytes_peak,
            is_exact: false,
            ..self
        }
    }

    /// True if a plan of this many ranks is simulated rank by rank.
    pub fn is_possible(plan: &Plan) -> bool {
        plan.participants().len() <= SIMULATED_RANK_COUNT_MAX
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn time_ns(l: &LinkLoad) -> u64 {
    let ns = u128::from(l.bytes) * 1_000_000_000 / u128::from(l.link.bytes_per_s.max(1));
    ns.min(u128::from(u64::MAX)) as u64
}

impl Instance {
    /// Every link with what it carries, in the order of first use.
    pub fn link_loads(&self) -> Vec<LinkLoad> {
        let links = self.links.iter().zip(self.loads());
        let load = |(link, bytes): (&Link, u64)| {
            let mut load = LinkLoad {
                link: link.clone(),
                bytes,
                time_s: 0.0,
            };
            load.time_s = seconds(time_ns(&load));
            load
        };
        links.map(load).collect()
    }
}

fn totals(loads: &[LinkLoad]) -> Vec<LinkTotals> {
    let mut by_kind: BTreeMap<LinkKind, LinkTotals> = BTreeMap::new();
    for l in loads {
        let kind = l.link.kind;
        let t = by_kind.entry(kind).or_insert(LinkTotals {
            kind,
            count: 0,
            bytes: 0,
            bytes_max: 0,
            time_max_s: 0.0,
        });
        t.count += 1;
        t.bytes += l.bytes;
        t.bytes_max = t.bytes_max.max(l.bytes);
        t.time_max_s = t.time_max_s.max(l.time_s);
    }
    by_kind.into_values().collect()
}

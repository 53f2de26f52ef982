//! Which change of rank placement would lower the bound.

use super::demand::Demand;
use super::{Bounds, bounds_on};
use crate::error::Result;
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::Part;
use crate::plan::Plan;
use crate::plan::program::Side;
use crate::plan::topology::{PlacementRun, Topology, TopologySpec};
use crate::rank::Rank;
use serde::Serialize;
use std::collections::BTreeMap;

/// Ranks up to which placements are tried.
const RANKS_MAX: usize = 4096;

/// A placement that would lower the bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacementHint {
    /// Which side's ranks to place otherwise.
    pub side: Side,
    pub part: u32,
    /// The mesh and its axis whose neighbours should sit side by side.
    pub mesh: String,
    pub axis: String,
    /// The bound would be this.
    pub lower_ns: u64,
    /// Axes whose ranks share a domain now and would no longer: what the change
    /// costs those who talk along them.
    pub axes_torn: Vec<String>,
    /// In words.
    pub text: String,
}

pub fn placement_hint(
    plan: &Plan,
    topology: &Topology,
    bounds: &Bounds,
) -> Result<Option<PlacementHint>> {
    let ranks = plan.ranks();
    if ranks.len() > RANKS_MAX {
        return Ok(None);
    }
    let mut demand = Demand::new(plan);
    let mut best: Option<PlacementHint> = None;
    for side in [Side::Source, Side::Destination] {
        for (p, part) in plan.layout(side).parts().iter().enumerate() {
            for mesh in &part.meshes {
                for (a, axis) in mesh.axes.iter().enumerate() {
                    if axis.size < 2 || a + 1 == mesh.axes.len() {
                        continue;
                    }
                    let Some(other) = with_innermost(topology, &ranks, part, mesh, a) else {
                        continue;
                    };
                    let lower_ns = bounds_on(plan, &mut demand, &other)?.lower_ns;
                    let worth = bounds.lower_ns - bounds.lower_ns / 100;
                    if lower_ns < best.as_ref().map_or(worth, |b| b.lower_ns) {
                        let axes_torn = axes_torn(part, mesh, [topology, &other]);
                        best = Some(PlacementHint {
                            side,
                            part: p as u32,
                            mesh: mesh.name.clone(),
                            axis: axis.name.clone(),
                            lower_ns,
                            text: text(side, mesh, a, [bounds.lower_ns, lower_ns], &axes_torn),
                            axes_torn,
                        });
                    }
                }
            }
        }
    }
    Ok(best)
}

fn text(side: Side, mesh: &Mesh, axis: usize, bounds: [u64; 2], torn: &[String]) -> String {
    let [now, then] = bounds.map(|ns| {
        let (whole, micros) = (ns / 1_000_000_000, ns % 1_000_000_000 / 1000);
        format!("{whole}.{micros:06} s")
    });
    let price = match torn {
        [] => String::new(),
        axes => format!(
            "; those along \"{}\" would then span domains",
            axes.join("\" and \"")
        ),
    };
    format!(
        "with the {side} ranks along axis \"{}\" of mesh \"{}\" side by side in an NVLink domain, the \
         bound would be {then} instead of {now}{price}",
        mesh.axes[axis].name, mesh.name
    )
}

/// Axes along which all ranks share a domain on the first topology, but not on
/// the second.
fn axes_torn(part: &Part, mesh: &Mesh, [now, then]: [&Topology; 2]) -> Vec<String> {
    let is_torn = |&axis: &usize| {
        mesh.axes[axis].size > 1
            && shares_domains(part, mesh, axis, now)
            && !shares_domains(part, mesh, axis, then)
    };
    let torn = (0..mesh.axes.len()).filter(is_torn);
    torn.map(|a| mesh.axes[a].name.clone()).collect()
}

/// True if ranks that differ only along `axis` are always in one domain.
fn shares_domains(part: &Part, mesh: &Mesh, axis: usize, topology: &Topology) -> bool {
    let mut domains = BTreeMap::new();
    (0u32..).zip(part.ranks.iter()).all(|(i, rank)| {
        let mut coords = mesh.coords(i);
        coords[axis] = 0;
        let domain = topology.domain(rank);
        *domains.entry(coords).or_insert(domain) == domain
    })
}

/// The same GPUs with the ranks of a part dealt anew: `axis` innermost.
fn with_innermost(
    topology: &Topology,
    ranks: &[Rank],
    part: &Part,
    mesh: &Mesh,
    axis: usize,
) -> Option<Topology> {
    let mut gpus: BTreeMap<Rank, u32> = BTreeMap::new();
    for &r in ranks {
        gpus.insert(r, topology.site(r)?.gpu);
    }
    let own: Vec<Rank> = part.ranks.iter().collect();
    let mut free: Vec<u32> = own.iter().map(|r| gpus[r]).collect();
    free.sort_unstable();
    let mut order: Vec<u32> = (0..own.len() as u32).collect();
    order.sort_by_cached_key(|&i| {
        let mut coords = mesh.coords(i);
        let inner = coords.remove(axis);
        coords.push(inner);
        coords
    });
    for (gpu, i) in free.into_iter().zip(order) {
        gpus.insert(own[i as usize], gpu);
    }
    let placement = gpus
        .into_iter()
        .map(|(rank, gpu)| PlacementRun {
            ranks: RankList::Range {
                first: rank.0,
                count: 1,
            },
            gpu,
            ranks_per_gpu: 1,
        })
        .collect();
    let spec = TopologySpec {
        placement,
        ..topology.spec().clone()
    };
    Topology::new(spec).ok()
}

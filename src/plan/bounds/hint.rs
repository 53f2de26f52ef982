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
                        best = Some(hint(side, p, mesh, a, lower_ns));
                    }
                }
            }
        }
    }
    Ok(best)
}

fn hint(side: Side, part: usize, mesh: &Mesh, axis: usize, lower_ns: u64) -> PlacementHint {
    let axis = mesh.axes[axis].name.clone();
    let text = format!(
        "with the {side} ranks along axis \"{axis}\" of mesh \"{}\" side by side in an NVLink domain, \
         the bound would be {}.{:06} s",
        mesh.name,
        lower_ns / 1_000_000_000,
        lower_ns % 1_000_000_000 / 1000
    );
    PlacementHint {
        side,
        part: part as u32,
        mesh: mesh.name.clone(),
        axis,
        lower_ns,
        text,
    }
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

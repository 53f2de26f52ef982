//! How many copies leave the source.
//!
//! A copy of everything that each NVLink domain needs has to come in through
//! its NICs: that takes at least the time of the fullest domain. In that time a
//! source group can send so many copies, and no more, of what it holds:
//!
//! ```text
//!   copies = time(receive) * NICs(group) / bytes(group), rounded down
//! ```
//!
//! The needers pass them on to each other.

use super::decision::{SourceCopies, SourceGroup};
use super::derive::{Inputs, needs};
use super::tables::placement;
use crate::error::Result;
use crate::layout::dtype::Dtype;
use crate::layout::tensor::IndexBox;
use crate::rank::Rank;
use std::collections::{BTreeMap, BTreeSet};

/// Destination domains that are looked at; they are much alike.
const DOMAIN_COUNT: usize = 16;

/// What moves so many bytes, and how fast.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    bytes: u128,
    bytes_per_s: u128,
}

impl Load {
    /// True if this one takes longer.
    fn exceeds(&self, other: &Load) -> bool {
        self.bytes * other.bytes_per_s.max(1) > other.bytes * self.bytes_per_s.max(1)
    }
}

/// The copies that leave each source group, by group: what the decision says
/// already, else as many as can leave while the fullest domain receives.
pub fn copies(inputs: Inputs<'_>) -> Result<Vec<SourceCopies>> {
    let decision = inputs.decision;
    let groups = source_groups(inputs);
    let named = |group| decision.copies.iter().find(|c| c.group == group);
    let by_time = decision.copy_count == 0 && groups.keys().any(|&g| named(g).is_none());
    let receive = match by_time {
        true => fullest_domain(inputs)?,
        false => Load::default(),
    };
    let mut all = Vec::new();
    for (group, send) in groups {
        let copies = match named(group) {
            Some(c) => u128::from(c.copies),
            None if decision.copy_count > 0 => u128::from(decision.copy_count),
            None => {
                let time = receive.bytes * send.bytes_per_s;
                time / (send.bytes.max(1) * receive.bytes_per_s.max(1))
            }
        };
        all.push(SourceCopies {
            group,
            copies: copies.clamp(1, u128::from(u32::MAX)) as u32,
        });
    }
    Ok(all)
}

/// The destination domain that takes longest to receive what it needs once.
fn fullest_domain(inputs: Inputs<'_>) -> Result<Load> {
    let topology = inputs.topology;
    let mut members: BTreeMap<u32, Vec<Rank>> = BTreeMap::new();
    for rank in inputs.destination.ranks() {
        if let Some(domain) = topology.domain(rank) {
            members.entry(domain).or_default().push(rank);
        }
    }
    let mut fullest = Load::default();
    let step = members.len().div_ceil(DOMAIN_COUNT).max(1);
    for ranks in members.values().step_by(step) {
        let mut distinct: BTreeSet<(u32, IndexBox)> = BTreeSet::new();
        let mut load = Load {
            bytes: 0,
            bytes_per_s: speed(inputs, ranks.iter().copied()),
        };
        for &rank in ranks {
            for (tensor, bounds, bytes) in needs(inputs, rank)? {
                if distinct.insert((tensor, bounds)) {
                    load.bytes += u128::from(bytes);
                }
            }
        }
        if load.exceeds(&fullest) {
            fullest = load;
        }
    }
    Ok(fullest)
}

/// What each source group holds, and how fast the NICs of its ranks are that
/// send.
fn source_groups(inputs: Inputs<'_>) -> BTreeMap<SourceGroup, Load> {
    let source = inputs.source;
    let mut groups: BTreeMap<SourceGroup, Load> = BTreeMap::new();
    for t in &inputs.tables.tensors {
        let group = match t.holders.first() {
            None => SourceGroup {
                part: 0,
                stage: None,
            },
            Some(r) => SourceGroup {
                part: r.part,
                stage: placement(source, *r).1.stage,
            },
        };
        let tensor = &inputs.destination.tensors()[t.destination.index()];
        let elements: u64 = tensor.shape.iter().product();
        let wire = Dtype::wire(t.source_dtype, tensor.dtype);
        groups.entry(group).or_default().bytes += u128::from(elements * wire.bytes());
    }
    let sends = |r: &Rank| !inputs.topology.is_drained(*r);
    for (group, load) in &mut groups {
        load.bytes_per_s = match source.parts().get(usize::from(group.part)) {
            None => speed(
                inputs,
                source.explicit().iter().map(|r| r.rank).filter(sends),
            ),
            Some(part) => {
                let stage_axis = |r: &crate::layout::placement::Rule| Some((r.mesh, r.stage_axis?));
                let axis = part.rules.iter().find_map(stage_axis);
                let is_in = |position: u32| match (group.stage, axis) {
                    (Some(stage), Some((mesh, axis))) => {
                        part.meshes[usize::from(mesh)].coords(position)[usize::from(axis)] == stage
                    }
                    _ => true,
                };
                let positions = (0..part.ranks.count()).filter(|&i| is_in(i));
                speed(inputs, positions.map(|i| part.ranks.rank(i)).filter(sends))
            }
        };
    }
    groups
}

/// Bytes per second of the NICs of some ranks together, each port once.
fn speed(inputs: Inputs<'_>, ranks: impl Iterator<Item = Rank>) -> u128 {
    let sites = ranks.filter_map(|r| inputs.topology.site(r));
    let ports: BTreeMap<u32, u64> = sites
        .filter_map(|s| Some((s.port?, s.nic_bytes_per_s)))
        .collect();
    ports.values().map(|&s| u128::from(s)).sum()
}

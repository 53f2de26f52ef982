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
use crate::crew;
use crate::error::Result;
use crate::layout::Place;
use crate::layout::dtype::Dtype;
use crate::layout::mesh::RankList;
use crate::layout::placement::Rule;
use crate::rank::Rank;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
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
    let mut groups = source_groups(inputs);
    let named = |group| decision.copies.iter().find(|c| c.group == group);
    let by_time = decision.copy_count == 0 && groups.keys().any(|&g| named(g).is_none());
    let receive = match by_time {
        true => {
            add_speeds(inputs, &mut groups);
            fullest_domain(inputs)?
        }
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
    // Domains whose ranks sit alike in the layout need the same.
    let mut known: FxHashMap<Vec<SeatKey>, u128> = FxHashMap::default();
    let mut fullest = Load::default();
    for ranks in some_domains(inputs).into_values() {
        let kinds: Vec<SeatKey> = ranks.iter().map(|&r| seat_key(inputs, r)).collect();
        let bytes = match known.get(&kinds) {
            Some(&bytes) => bytes,
            None => {
                let bytes = needed_once(inputs, &ranks)?;
                known.insert(kinds, bytes);
                bytes
            }
        };
        let load = Load {
            bytes,
            bytes_per_s: speed(inputs, ranks.iter().copied()),
        };
        if load.exceeds(&fullest) {
            fullest = load;
        }
    }
    Ok(fullest)
}

/// Domains spread over the destination, with their ranks.
fn some_domains(inputs: Inputs<'_>) -> BTreeMap<u32, Vec<Rank>> {
    let ranges = inputs.topology.domain_ranges(inputs.destination);
    let mut all: Vec<u32> = ranges.into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    let step = all.len().div_ceil(DOMAIN_COUNT).max(1);
    let picked: BTreeSet<u32> = all.into_iter().step_by(step).collect();
    let mut members: BTreeMap<u32, Vec<Rank>> = BTreeMap::new();
    for ranks in inputs.destination.rank_ranges() {
        // Where domains are alike, one rank tells where all of its domain are.
        let size = inputs.topology.even_domain_ranks(ranks.clone());
        let size = size.and_then(|s| u32::try_from(s).ok()).unwrap_or(1).max(1);
        for first in ranks.clone().step_by(size as usize) {
            let domain = inputs.topology.domain(Rank(first));
            if let Some(domain) = domain.filter(|d| picked.contains(d)) {
                let end = ranks.end.min(first.saturating_add(size));
                members
                    .entry(domain)
                    .or_default()
                    .extend((first..end).map(Rank));
            }
        }
    }
    members
}

/// Part and coordinates that matter to what a rank needs; the rank itself
/// where it may hold some of that.
type SeatKey = SmallVec<[u32; 8]>;

fn seat_key(inputs: Inputs<'_>, rank: Rank) -> SeatKey {
    let mut key = SeatKey::new();
    match inputs.destination.place(rank) {
        Some(Place::Part(part, seat)) if inputs.source.place(rank).is_none() => {
            key.push(u32::from(seat.part));
            for (coords, used) in seat.coords.iter().zip(part.axes_in_use()) {
                let in_use = coords
                    .iter()
                    .enumerate()
                    .filter(|(a, _)| used >> a & 1 == 1);
                key.extend(in_use.map(|(_, &c)| c));
            }
        }
        _ => key.extend([u32::MAX, rank.0]),
    }
    key
}

/// Distinct bytes that some ranks need.
fn needed_once(inputs: Inputs<'_>, ranks: &[Rank]) -> Result<u128> {
    let mut distinct: FxHashSet<(u32, u128)> = FxHashSet::default();
    let mut total = 0;
    for needs in crew::for_each(ranks, |rank| needs(inputs, rank))? {
        for need in needs {
            if distinct.insert((need.kind, need.bounds_hash)) {
                total += need.bytes;
            }
        }
    }
    Ok(total)
}

/// What each source group holds.
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
    groups
}

/// How fast the NICs are of those ranks of each source group that send.
fn add_speeds(inputs: Inputs<'_>, groups: &mut BTreeMap<SourceGroup, Load>) {
    let source = inputs.source;
    let sends = |r: &Rank| !inputs.topology.is_drained(*r);
    if source.parts().is_empty() {
        let all = speed(
            inputs,
            source.explicit().iter().map(|r| r.rank).filter(sends),
        );
        groups.values_mut().for_each(|load| load.bytes_per_s = all);
        return;
    }
    for (p, part) in source.parts().iter().enumerate() {
        let stage_axis = |r: &Rule| Some((r.mesh, r.stage_axis?));
        let axis = part.rules.iter().find_map(stage_axis);
        let of_part = groups.iter_mut().filter(|(g, _)| usize::from(g.part) == p);
        if let Some(nic) = own_nic(inputs, &part.ranks) {
            let stages = axis.map_or(1, |(mesh, axis)| {
                part.meshes[usize::from(mesh)].axes[usize::from(axis)].size
            });
            for (group, load) in of_part {
                let share = group.stage.map_or(1, |_| stages);
                load.bytes_per_s = u128::from(nic) * u128::from(part.ranks.count() / share);
            }
            continue;
        }
        let mut by_stage: BTreeMap<Option<u32>, Vec<Rank>> = BTreeMap::new();
        for position in 0..part.ranks.count() {
            let stage = axis.map(|(mesh, axis)| {
                part.meshes[usize::from(mesh)].coords(position)[usize::from(axis)]
            });
            let ranks = by_stage.entry(stage).or_default();
            ranks.push(part.ranks.rank(position));
        }
        for (group, load) in of_part {
            let is_in = |stage: &Option<u32>| {
                axis.is_none() || group.stage.is_none() || *stage == group.stage
            };
            let ranks = by_stage.iter().filter(|(stage, _)| is_in(stage));
            load.bytes_per_s = speed(
                inputs,
                ranks.flat_map(|(_, ranks)| ranks.iter().copied().filter(sends)),
            );
        }
    }
}

/// What the NIC of each of some ranks does, if each has one for itself.
fn own_nic(inputs: Inputs<'_>, ranks: &RankList) -> Option<u64> {
    let RankList::Range { first, count } = *ranks else {
        return None;
    };
    inputs.topology.own_nic_bytes_per_s(first..first + count)
}

/// Bytes per second of the NICs of some ranks together, each port once.
fn speed(inputs: Inputs<'_>, ranks: impl Iterator<Item = Rank>) -> u128 {
    let sites = ranks.filter_map(|r| inputs.topology.site(r));
    let mut ports: Vec<(u32, u64)> = sites
        .filter_map(|s| Some((s.port?, s.nic_bytes_per_s)))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports.iter().map(|&(_, speed)| u128::from(speed)).sum()
}

//! Layouts with fewer copies and nearly the same proportions.
//!
//! Data-parallel axes and replicas cut no tensor. Keeping some of their
//! coordinates leaves every shard with holders and needers. How many are kept
//! of each part is chosen so that holders and needers stay in proportion:
//! exactly where there is room for it, else as nearly as there is.
//!
//! ```text
//!   dense  pp 16 x [dp 3200] x tp 1        a unit: the same 64 ranks of each
//!   expert pp 16 x [edp  50] x ep 64       block of 3200, in both meshes
//! ```
//!
//! Ranks that are slower than their host, or drained, come into the selection
//! first, up to a quarter of it. Ranks keep their numbers and places; cells of
//! the network above them shrink with the layouts, and their capacity too.

use crate::error::Result;
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::Part;
use crate::layout::{Layout, LayoutSpec};
use crate::plan::topology::{PlacementRun, SpeedFactor, Topology, TopologySpec};
use crate::rank::Rank;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Ranks up to which nothing is shrunk.
const RANKS_ENOUGH: u64 = 512;
/// Ranks beyond which proportions are given up for fewer ranks.
const SAMPLED_MAX: u64 = 8192;
/// Proportions that are off by less are as good as the exact ones.
const TOLERANCE_PPM: u64 = 20_000;
/// Of the units that are kept, those with exceptional ranks, at most.
const EXCEPTIONAL_FRACTION: u32 = 4;

/// The layouts to try things on.
pub struct Small {
    pub source: Arc<Layout>,
    pub destination: Arc<Layout>,
    pub topology: Option<TopologySpec>,
    /// By how much there are fewer ranks.
    pub factor: u32,
}

impl Small {
    pub fn rank_count(&self) -> u32 {
        self.source.rank_count() + self.destination.rank_count()
    }
}

/// Layouts with the proportions of these and as few ranks as that allows; the
/// same ones if they are small enough or do not shrink.
pub fn shrunk(
    source: &Arc<Layout>,
    destination: &Arc<Layout>,
    topology: Option<&TopologySpec>,
) -> Result<Small> {
    let mut whole = Small {
        source: source.clone(),
        destination: destination.clone(),
        topology: topology.cloned(),
        factor: 1,
    };
    let ranks = whole.rank_count();
    let is_regular = topology.is_none_or(|t| t.cuts.is_empty() || t.hosts.len() == 1);
    if u64::from(ranks) <= RANKS_ENOUGH || !is_regular {
        return Ok(whole);
    }
    let units: Vec<Units> = [source, destination]
        .iter()
        .flat_map(|l| l.parts().iter().map(Units::of))
        .collect();
    let fixed = (source.explicit().len() + destination.explicit().len()) as u64;
    let kept = kept(&units, fixed);
    if kept.iter().zip(&units).all(|(k, u)| *k == u.count) {
        return Ok(whole);
    }
    let placed =
        Topology::new(topology.cloned().unwrap_or_default())?.placed_for(source, destination)?;
    let speeds = &placed.spec().speeds;
    let (of_source, of_destination) = units.split_at(source.parts().len());
    let (from_source, from_destination) = kept.split_at(source.parts().len());
    whole.source = Arc::new(part_of(source, of_source, from_source, speeds)?);
    whole.destination = Arc::new(part_of(
        destination,
        of_destination,
        from_destination,
        speeds,
    )?);
    whole.factor = (ranks / whole.rank_count()).max(1);
    whole.topology = Some(match placed.cuts().is_empty() {
        true => placed.spec().clone(),
        false => drawn_together(&placed, &whole),
    });
    Ok(whole)
}

/// How a part can be made smaller: in units that have the same ranks in all of
/// its meshes.
struct Units {
    /// Per mesh, the axis along which copies are told apart; empty if there is
    /// none.
    axes: Vec<u8>,
    count: u32,
    /// Ranks of one unit.
    ranks: u64,
}

impl Units {
    fn of(part: &Part) -> Units {
        let axes = copy_axis(part).unwrap_or_default();
        let sizes = part.meshes.iter().zip(&axes);
        let common = sizes.fold(0, |n, (m, &a)| gcd(n, m.axes[a as usize].size));
        let count = common.max(1);
        Units {
            axes,
            count,
            ranks: u64::from(part.ranks.count() / count),
        }
    }
}

/// An axis of each mesh that no rule cuts or stages by, all of them over equal
/// blocks of ranks, the largest there is.
fn copy_axis(part: &Part) -> Option<Vec<u8>> {
    let first = part.meshes.first()?;
    let used = part.axes_in_use();
    let is_free = |mesh: usize, axis: u8| used[mesh] >> axis & 1 == 0;
    let mut found: Option<(u32, Vec<u8>)> = None;
    for a in (0..first.axes.len() as u8).filter(|&a| is_free(0, a)) {
        let block = block(first, a);
        let same = |m: usize| {
            let mesh = &part.meshes[m];
            let fits = |b: &u8| is_free(m, *b) && self::block(mesh, *b) == block;
            (0..mesh.axes.len() as u8).find(fits)
        };
        let size = first.axes[a as usize].size;
        if size < 2 || found.as_ref().is_some_and(|(n, _)| size <= *n) {
            continue;
        }
        let others: Option<Vec<u8>> = (1..part.meshes.len()).map(same).collect();
        if let Some(others) = others {
            found = Some((size, [vec![a], others].concat()));
        }
    }
    found.map(|(_, axes)| axes)
}

/// Neighbours that differ in this axis and the ones inside it.
fn block(mesh: &Mesh, axis: u8) -> u64 {
    let inner = mesh.axes[axis as usize..].iter();
    inner.map(|a| u64::from(a.size)).product()
}

fn gcd(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

/// A way to shrink: units that are kept of each part.
struct Candidate {
    kept: Vec<u32>,
    ranks: u64,
    /// How far some part is off its proportion to the largest, in millionths.
    error_ppm: u64,
}

impl Candidate {
    /// `count` of the units of part `lead`, and as many of the others as that
    /// makes.
    fn of(units: &[Units], fixed: u64, lead: usize, count: u32) -> Candidate {
        let all = u64::from(units[lead].count);
        let mut candidate = Candidate {
            kept: Vec::with_capacity(units.len()),
            ranks: fixed,
            error_ppm: 0,
        };
        for u in units {
            let exact = u64::from(u.count) * u64::from(count);
            let kept = ((exact + all / 2) / all).clamp(1, u64::from(u.count));
            let error_ppm = (kept * all).abs_diff(exact) * 1_000_000 / exact;
            // A part that cannot shrink is no measure for the others.
            if !u.axes.is_empty() {
                candidate.error_ppm = candidate.error_ppm.max(error_ppm);
            }
            candidate.ranks += kept * u.ranks;
            candidate.kept.push(kept as u32);
        }
        candidate
    }

    /// What makes one candidate better than another: less is better.
    fn rank(&self, fewest: u64) -> (u8, u64, u64) {
        let is_small = self.ranks <= RANKS_ENOUGH.max(fewest);
        match (self.error_ppm <= TOLERANCE_PPM, is_small) {
            // As large as is allowed among equals.
            (true, true) => (0, self.error_ppm, u64::MAX - self.ranks),
            // A percent off is as bad as a percent more ranks.
            (true, false) if self.ranks <= SAMPLED_MAX => {
                (1, self.ranks * (1_000_000 + self.error_ppm), 0)
            }
            (false, true) => (2, self.error_ppm, self.ranks),
            (_, false) => (3, self.ranks, 0),
        }
    }
}

/// Units that are kept of each part.
fn kept(units: &[Units], fixed: u64) -> Vec<u32> {
    let most = units.iter().map(|u| u.count).max().unwrap_or(1);
    let lead = units.iter().position(|u| u.count == most).unwrap_or(0);
    if units.is_empty() {
        return Vec::new();
    }
    let fewest = Candidate::of(units, fixed, lead, 1).ranks;
    let all = (1..=most).map(|count| Candidate::of(units, fixed, lead, count));
    let best = all.min_by_key(|c| c.rank(fewest));
    best.map_or_else(Vec::new, |c| c.kept)
}

/// The layout with so many units of each part.
fn part_of(
    layout: &Layout,
    units: &[Units],
    kept: &[u32],
    speeds: &[SpeedFactor],
) -> Result<Layout> {
    let mut spec: LayoutSpec = layout.spec().clone();
    for (i, (units, &kept)) in units.iter().zip(kept).enumerate() {
        if kept == units.count {
            continue;
        }
        let exceptional = exceptional(layout, i, units, speeds);
        let chosen = chosen(units.count, kept, &exceptional);
        let part = &mut spec.parts[i];
        let ranks = (0..part.ranks.count())
            .filter(|&at| chosen.contains(&unit_of(part, units, at)))
            .map(|at| part.ranks.rank(at));
        let ranks = RankList::List(ranks.collect()).canonical();
        for (mesh, &axis) in part.meshes.iter_mut().zip(&units.axes) {
            let size = &mut mesh.axes[axis as usize].size;
            *size = *size / units.count * kept;
        }
        part.ranks = ranks;
    }
    Layout::new(spec)
}

/// The unit that a mesh position belongs to.
fn unit_of(part: &Part, units: &Units, position: u32) -> u32 {
    let (mesh, axis) = (&part.meshes[0], usize::from(units.axes[0]));
    mesh.coords(position)[axis] / (mesh.axes[axis].size / units.count)
}

/// Units with slow or drained ranks, in the order in which they are named.
fn exceptional(layout: &Layout, part: usize, units: &Units, speeds: &[SpeedFactor]) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    let ranks = speeds.iter().flat_map(|s| s.ranks.iter());
    ranks
        .filter_map(|r| layout.position(part, r))
        .map(|at| unit_of(&layout.parts()[part], units, at))
        .filter(|&u| seen.insert(u))
        .collect()
}

/// `kept` of `count` units: exceptional ones in their proportion, but one at
/// least and a quarter at most unless there are more, then the first others.
fn chosen(count: u32, kept: u32, exceptional: &[u32]) -> BTreeSet<u32> {
    let share = u64::from(kept) * exceptional.len() as u64 / u64::from(count);
    let most = (share as usize).max((kept / EXCEPTIONAL_FRACTION).max(1) as usize);
    let mut chosen: BTreeSet<u32> = exceptional.iter().take(most).copied().collect();
    let others = (0..count).filter(|u| !exceptional.contains(u));
    let missing = (kept as usize).saturating_sub(chosen.len());
    chosen.extend(others.take(missing));
    // Nearly all of them are exceptional.
    let missing = (kept as usize).saturating_sub(chosen.len());
    chosen.extend(exceptional.iter().skip(most).take(missing));
    chosen
}

/// The topology with the NVLink domains of the ranks that are left moved
/// together, and cells of the network with as much fewer hosts.
fn drawn_together(placed: &Topology, small: &Small) -> TopologySpec {
    let mut spec = placed.spec().clone();
    let group = &spec.hosts[0];
    let gpus = group.gpus * group.domain_hosts;
    let mut ranks = small.source.ranks();
    ranks.extend(small.destination.ranks());
    ranks.sort_unstable();
    ranks.dedup();
    let gpu_of: BTreeMap<Rank, u32> = ranks
        .into_iter()
        .filter_map(|r| Some((r, placed.site(r)?.gpu)))
        .collect();
    let domains: BTreeSet<u32> = gpu_of.values().map(|gpu| gpu / gpus).collect();
    let place: BTreeMap<u32, u32> = domains.into_iter().zip(0..).collect();
    let run = |(&rank, &gpu): (&Rank, &u32)| PlacementRun {
        ranks: RankList::List(vec![rank]).canonical(),
        gpu: place[&(gpu / gpus)] * gpus + gpu % gpus,
        ranks_per_gpu: 1,
    };
    spec.placement = gpu_of.iter().map(run).collect();
    for s in &mut spec.speeds {
        let left = s.ranks.iter().filter(|r| gpu_of.contains_key(r));
        s.ranks = RankList::List(left.collect()).canonical();
    }
    spec.speeds.retain(|s| s.ranks.count() > 0);
    let domain_hosts = spec.hosts[0].domain_hosts;
    for cut in &mut spec.cuts {
        let whole = (cut.hosts / domain_hosts / small.factor).max(1) * domain_hosts;
        let hosts = whole.min(cut.hosts);
        let scaled = |speed: u64| {
            let speed = u128::from(speed) * u128::from(hosts) / u128::from(cut.hosts);
            (speed as u64).max(1)
        };
        (cut.out_bytes_per_s, cut.in_bytes_per_s) =
            (scaled(cut.out_bytes_per_s), scaled(cut.in_bytes_per_s));
        cut.hosts = hosts;
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(counts: &[(u32, u64)]) -> Vec<Units> {
        let of = |&(count, ranks): &(u32, u64)| Units {
            axes: vec![0],
            count,
            ranks,
        };
        counts.iter().map(of).collect()
    }

    #[test]
    fn proportions_are_kept_exactly_or_nearly() {
        // 16 ranks a data-parallel copy, 8 a replica.
        assert_eq!(kept(&units(&[(3200, 16), (6400, 8)]), 0), [16, 32]);
        assert_eq!(kept(&units(&[(3200, 16), (6401, 8)]), 0), [16, 32]);
        // One block of 1024 ranks is the least there is of the source.
        assert_eq!(kept(&units(&[(50, 1024), (3200, 16)]), 0), [1, 64]);
        assert_eq!(kept(&units(&[(50, 1024), (3201, 16)]), 0), [1, 64]);
        // No proportion to keep: as near to it as a few ranks come.
        let lone = kept(&units(&[(3200, 16), (1, 8)]), 0);
        assert!(lone[0] >= 16 && lone[1] == 1, "{lone:?}");
    }

    #[test]
    fn exceptional_units_are_kept_and_no_others_are_lost() {
        assert_eq!(chosen(100, 4, &[]), BTreeSet::from([0, 1, 2, 3]));
        assert_eq!(chosen(100, 4, &[77]), BTreeSet::from([0, 1, 2, 77]));
        assert_eq!(chosen(100, 4, &[77, 78, 79]), BTreeSet::from([0, 1, 2, 77]));
        let half: Vec<u32> = (50..100).collect();
        assert_eq!(chosen(100, 4, &half), BTreeSet::from([0, 1, 50, 51]));
        let all: Vec<u32> = (0..100).collect();
        assert_eq!(chosen(100, 4, &all).len(), 4);
    }
}

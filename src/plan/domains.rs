//! Which needers of a stream share an NVLink domain.
//!
//! Routes that bring a byte into a domain once need the needers of a stream
//! by domain. They are found once per set of needers and kept with the plan,
//! so that the program of a rank does not pay for them again.

use super::ranks::RankSet;
use super::topology::Topology;
use crate::layout::Layout;
use crate::layout::mesh::{MeshSlice, RankList};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

/// The needers of one stream, domain by domain in order of the lowest rank.
#[derive(Debug, PartialEq, Eq)]
pub enum Runs {
    /// In this order by themselves, as many in each domain.
    Even { domains: u64, needers: u64 },
    Listed {
        /// Where each domain's needers begin, and the end.
        starts: Vec<u32>,
        /// Where the needers are not in this order by themselves: their indices
        /// in it, and the place of each.
        order: Option<[Vec<u32>; 2]>,
    },
}

impl Runs {
    /// The needers of a slice whose domains each have the same axes of the mesh
    /// to themselves: nobody is looked at.
    ///
    /// ```text
    ///   positions   dp 4 x tp 4, domains of 8     dp 0 1 | 2 3
    ///   tp 1 of all dp                            two needers in each of two
    /// ```
    fn even(slice: &MeshSlice, layout: &Layout, topology: &Topology) -> Option<Runs> {
        let part = &layout.parts()[slice.part as usize];
        let RankList::Range { first, count } = part.ranks else {
            return None;
        };
        let size = topology.even_domain_ranks(first..first + count)?;
        let axes = part.meshes[slice.mesh as usize].axes.iter();
        let (mut domains, mut needers) = (1, 1);
        // Positions that differ in the axes so far.
        let mut inside = 1u64;
        for (axis, &(lo, hi)) in axes.zip(&slice.ranges).rev() {
            let (from, to) = (u64::from(lo), u64::from(hi));
            let outside = inside * u64::from(axis.size);
            if outside <= size {
                if size % outside != 0 {
                    return None;
                }
                needers *= to - from;
            } else if inside >= size {
                domains *= to - from;
            } else {
                // Domains end within this axis.
                let step = size / inside;
                if u64::from(axis.size) % step != 0 {
                    return None;
                }
                match (from % step, to % step) {
                    (0, 0) => (domains, needers) = (domains * ((to - from) / step), needers * step),
                    _ if from / step == (to - 1) / step => needers *= to - from,
                    _ => return None,
                }
            }
            inside = outside;
        }
        Some(Runs::Even { domains, needers })
    }

    /// Groups `count` needers by the domain of each; the unplaced, if any, are
    /// domains of their own.
    fn listed(count: u64, domain: impl Fn(u64) -> Option<u32>) -> Runs {
        let key = |i: u64| domain(i).map_or(u64::from(u32::MAX) + 1 + i, u64::from);
        let keys: Vec<u64> = (0..count).map(key).collect();
        let mut first: FxHashMap<u64, u32> = FxHashMap::default();
        let mut is_in_order = true;
        for (i, k) in keys.iter().enumerate() {
            let is_new = !first.contains_key(k);
            first.entry(*k).or_insert(i as u32);
            is_in_order &= is_new || keys[i - 1] == *k;
        }
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_unstable_by_key(|&i| (first[&keys[i as usize]], i));
        let mut starts: Vec<u32> = (0..count as u32)
            .filter(|&i| {
                let key = |i: u32| keys[order[i as usize] as usize];
                i == 0 || key(i) != key(i - 1)
            })
            .collect();
        starts.push(count as u32);
        let order = (!is_in_order).then(|| {
            let mut places = vec![0; order.len()];
            for (place, &i) in order.iter().enumerate() {
                places[i as usize] = place as u32;
            }
            [order, places]
        });
        Runs::Listed { starts, order }
    }

    /// Number of domains.
    pub fn len(&self) -> u64 {
        match self {
            Runs::Even { domains, .. } => *domains,
            Runs::Listed { starts, .. } => starts.len() as u64 - 1,
        }
    }

    /// The places of the needers of the domains `runs`.
    pub fn places(&self, runs: Range<u64>) -> Range<u64> {
        let start = |run: u64| match self {
            Runs::Even { needers, .. } => run * needers,
            Runs::Listed { starts, .. } => u64::from(starts[run as usize]),
        };
        start(runs.start)..start(runs.end)
    }

    /// The domain, counted here, of the needer in `place`.
    pub fn run_of(&self, place: u64) -> u64 {
        match self {
            Runs::Even { needers, .. } => place / needers,
            Runs::Listed { starts, .. } => {
                starts.partition_point(|&s| u64::from(s) <= place) as u64 - 1
            }
        }
    }

    /// Which needer is in `place`.
    pub fn needer(&self, place: u64) -> u64 {
        match self.order() {
            None => place,
            Some([order, _]) => u64::from(order[place as usize]),
        }
    }

    /// The place of a needer.
    pub fn place(&self, needer: u64) -> u64 {
        match self.order() {
            None => needer,
            Some([_, places]) => u64::from(places[needer as usize]),
        }
    }

    fn order(&self) -> Option<&[Vec<u32>; 2]> {
        match self {
            Runs::Even { .. } => None,
            Runs::Listed { order, .. } => order.as_ref(),
        }
    }
}

/// What a plan knows of domains.
#[derive(Debug, Default)]
pub struct Domains {
    /// True if some domain has ranks of both sides.
    are_shared: bool,
    /// Domains with ranks of the destination.
    destination_count: u64,
    /// Source ranks by domain, ascending; empty unless these relay.
    source_ranks: FxHashMap<u32, Vec<Rank>>,
    known: Mutex<FxHashMap<MeshSlice, Arc<Runs>>>,
}

impl Domains {
    pub fn new(
        source: &Layout,
        destination: &Layout,
        topology: &Topology,
        source_relay: bool,
    ) -> Domains {
        let mut all: Vec<(RangeInclusive<u32>, bool)> = Vec::new();
        for (layout, is_source) in [(source, true), (destination, false)] {
            let ranges = topology.domain_ranges(layout).into_iter();
            all.extend(ranges.map(|r| (r, is_source)));
        }
        all.sort_by_key(|(r, _)| *r.start());
        // Where the ranges of each side end so far.
        let mut ends: [Option<u32>; 2] = [None; 2];
        let mut are_shared = false;
        let mut destination_count = 0;
        for (range, is_source) in all {
            let [own, other] = [usize::from(is_source), usize::from(!is_source)];
            are_shared |= ends[other].is_some_and(|end| end >= *range.start());
            if !is_source {
                let fresh = ends[own].map_or(0, |end| u64::from(end) + 1);
                let start = fresh.max(u64::from(*range.start()));
                destination_count += (u64::from(*range.end()) + 1).saturating_sub(start);
            }
            ends[own] = ends[own].max(Some(*range.end()));
        }
        let source_ranks = match source_relay {
            true => ranks_by_domain(source, topology),
            false => FxHashMap::default(),
        };
        Domains {
            are_shared,
            destination_count,
            source_ranks,
            known: Mutex::default(),
        }
    }

    /// Domains with ranks of the destination.
    pub fn destination_count(&self) -> u64 {
        self.destination_count
    }

    /// How often what `copies` copies need enters their domains, at least: those
    /// in one domain share what does.
    pub fn entries(&self, copies: u64) -> u64 {
        copies.min(self.destination_count.max(1))
    }

    /// The source ranks of a domain, where these relay for each other.
    pub fn source_ranks(&self, domain: u32) -> &[Rank] {
        self.source_ranks.get(&domain).map_or(&[], Vec::as_slice)
    }

    /// True if some domain has ranks of both sides.
    pub fn are_shared(&self) -> bool {
        self.are_shared
    }

    /// The needers of a stream by domain.
    pub fn runs(&self, needers: &RankSet, layout: &Layout, topology: &Topology) -> Arc<Runs> {
        let domain = |i| topology.domain(needers.nth(layout, i));
        let make = || Arc::new(Runs::listed(needers.len(), domain));
        let RankSet::Slice(slice) = needers else {
            return make();
        };
        if let Some(runs) = Runs::even(slice, layout, topology) {
            return Arc::new(runs);
        }
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runs) = lock().get(slice) {
            return runs.clone();
        }
        let runs = make();
        lock().insert(slice.clone(), runs.clone());
        runs
    }
}

/// The placed ranks of a layout by domain, ascending.
fn ranks_by_domain(layout: &Layout, topology: &Topology) -> FxHashMap<u32, Vec<Rank>> {
    let mut by_domain: FxHashMap<u32, Vec<Rank>> = FxHashMap::default();
    for rank in layout.ranks() {
        if let Some(domain) = topology.domain(rank) {
            by_domain.entry(domain).or_default().push(rank);
        }
    }
    for ranks in by_domain.values_mut() {
        ranks.sort_unstable();
    }
    by_domain
}

/// The ranks of a set that are in `domain`.
pub fn within(set: &RankSet, layout: &Layout, topology: &Topology, domain: u32) -> Vec<Rank> {
    let ranks = set.to_vec(layout).into_iter();
    ranks
        .filter(|&r| topology.domain(r) == Some(domain))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needers_are_found_by_domain() {
        let runs = Runs::listed(6, |i| Some((i / 2) as u32));
        assert_eq!((runs.len(), runs.places(1..3)), (3, 2..6));
        assert_eq!(runs.order(), None);
        // Domains take turns: 0 1 0 1 0 1.
        let runs = Runs::listed(6, |i| Some((i % 2) as u32));
        assert_eq!((runs.len(), runs.places(1..2)), (2, 3..6));
        for needer in 0..6 {
            let place = runs.place(needer);
            assert_eq!(runs.needer(place), needer);
            assert_eq!(runs.run_of(place), needer % 2);
        }
        assert_eq!(Runs::listed(3, |_| None).len(), 3);
    }

    /// A layout of one tensor on `dp x pp x tp` ranks, cut along tp.
    fn layout(sizes: [u32; 3]) -> Layout {
        let [dp, pp, tp] = sizes;
        let text = format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": {}}},
                "meshes": {{"all": [["dp", {dp}], ["pp", {pp}], ["tp", {tp}]]}},
                "tensors": [{{"name": "w", "shape": [64, 64], "dtype": "bf16",
                              "cuts": [{{"dim": 0, "axes": ["tp"]}}]}}]}}"#,
            dp * pp * tp
        );
        Layout::from_json(text.as_bytes()).unwrap()
    }

    #[test]
    fn even_runs_are_those_that_are_listed() {
        let sizes = [
            [4, 2, 4],
            [3, 1, 8],
            [2, 2, 16],
            [6, 4, 1],
            [5, 3, 2],
            [8, 1, 2],
        ];
        let mut even = 0;
        for sizes in sizes {
            let layout = layout(sizes);
            let topology = Topology::default_for(&layout, &layout).unwrap();
            let ranges = |n: u32| (0..n).flat_map(move |lo| (lo + 1..=n).map(move |hi| (lo, hi)));
            let [dp, pp, tp] = sizes;
            for (a, b, c) in ranges(dp)
                .flat_map(|a| ranges(pp).map(move |b| (a, b)))
                .flat_map(|(a, b)| ranges(tp).map(move |c| (a, b, c)))
            {
                let slice = MeshSlice {
                    part: 0,
                    mesh: 0,
                    ranges: [a, b, c].into_iter().collect(),
                };
                let set = RankSet::Slice(slice.clone());
                let domain = |i| topology.domain(set.nth(&layout, i));
                let listed = Runs::listed(slice.len(), domain);
                let Some(runs) = Runs::even(&slice, &layout, &topology) else {
                    continue;
                };
                even += 1;
                assert_eq!(runs.len(), listed.len(), "{sizes:?} {slice:?}");
                assert_eq!(listed.order(), None);
                for run in 0..runs.len() {
                    assert_eq!(runs.places(run..run + 1), listed.places(run..run + 1));
                }
                for place in 0..slice.len() {
                    assert_eq!(runs.run_of(place), listed.run_of(place));
                }
            }
        }
        assert!(even > 100, "{even} slices were even");
    }
}

//! Which needers of a stream share an NVLink domain.
//!
//! Routes that bring a byte into a domain once need the needers of a stream
//! by domain. They are found once per set of needers and kept with the plan,
//! so that the program of a rank does not pay for them again.

use super::ranks::RankSet;
use super::topology::Topology;
use crate::layout::Layout;
use crate::layout::mesh::MeshSlice;
use crate::rank::Rank;
use rustc_hash::{FxHashMap, FxHashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The needers of one stream, domain by domain in order of the lowest rank.
#[derive(Debug, PartialEq, Eq)]
pub struct Runs {
    /// Where each domain's needers begin, and the end.
    starts: Vec<u32>,
    /// Where the needers are not in this order by themselves: their indices in
    /// it, and the place of each.
    order: Option<[Vec<u32>; 2]>,
}

impl Runs {
    /// Groups `count` needers by the domain of each; the unplaced, if any, are
    /// domains of their own.
    fn new(count: u64, domain: impl Fn(u64) -> Option<u32>) -> Runs {
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
        order.sort_by_key(|&i| first[&keys[i as usize]]);
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
        Runs { starts, order }
    }

    /// Number of domains.
    pub fn len(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// The places of the needers of the domains `runs`.
    pub fn places(&self, runs: Range<u64>) -> Range<u64> {
        u64::from(self.starts[runs.start as usize])..u64::from(self.starts[runs.end as usize])
    }

    /// The domain, counted here, of the needer in `place`.
    pub fn run_of(&self, place: u64) -> u64 {
        self.starts.partition_point(|&s| u64::from(s) <= place) as u64 - 1
    }

    /// Which needer is in `place`.
    pub fn needer(&self, place: u64) -> u64 {
        match &self.order {
            None => place,
            Some([order, _]) => u64::from(order[place as usize]),
        }
    }

    /// The place of a needer.
    pub fn place(&self, needer: u64) -> u64 {
        match &self.order {
            None => needer,
            Some([_, places]) => u64::from(places[needer as usize]),
        }
    }
}

/// What a plan knows of domains.
#[derive(Debug, Default)]
pub struct Domains {
    /// Domains with ranks of both sides.
    shared: FxHashSet<u32>,
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
        let of = |layout: &Layout| -> FxHashSet<u32> {
            let ranks = layout.ranks().into_iter();
            ranks.filter_map(|r| topology.domain(r)).collect()
        };
        let (sending, receiving) = (of(source), of(destination));
        let mut source_ranks: FxHashMap<u32, Vec<Rank>> = FxHashMap::default();
        for rank in source.ranks().into_iter().filter(|_| source_relay) {
            if let Some(domain) = topology.domain(rank) {
                source_ranks.entry(domain).or_default().push(rank);
            }
        }
        for ranks in source_ranks.values_mut() {
            ranks.sort_unstable();
        }
        Domains {
            shared: sending.intersection(&receiving).copied().collect(),
            destination_count: receiving.len() as u64,
            source_ranks,
            known: Mutex::default(),
        }
    }

    /// Domains with ranks of the destination.
    pub fn destination_count(&self) -> u64 {
        self.destination_count
    }

    /// The source ranks of a domain, where these relay for each other.
    pub fn source_ranks(&self, domain: u32) -> &[Rank] {
        self.source_ranks.get(&domain).map_or(&[], Vec::as_slice)
    }

    /// True if ranks of the other side are in the domain of `rank`.
    pub fn are_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// The needers of a stream by domain.
    pub fn runs(&self, needers: &RankSet, layout: &Layout, topology: &Topology) -> Arc<Runs> {
        let domain = |i| topology.domain(needers.nth(layout, i));
        let make = || Arc::new(Runs::new(needers.len(), domain));
        let RankSet::Slice(slice) = needers else {
            return make();
        };
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runs) = lock().get(slice) {
            return runs.clone();
        }
        let runs = make();
        lock().insert(slice.clone(), runs.clone());
        runs
    }
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
        let runs = Runs::new(6, |i| Some((i / 2) as u32));
        assert_eq!((runs.len(), runs.places(1..3)), (3, 2..6));
        assert_eq!(runs.order, None);
        // Domains take turns: 0 1 0 1 0 1.
        let runs = Runs::new(6, |i| Some((i % 2) as u32));
        assert_eq!((runs.len(), runs.places(1..2)), (2, 3..6));
        for needer in 0..6 {
            let place = runs.place(needer);
            assert_eq!(runs.needer(place), needer);
            assert_eq!(runs.run_of(place), needer % 2);
        }
        assert_eq!(Runs::new(3, |_| None).len(), 3);
    }
}

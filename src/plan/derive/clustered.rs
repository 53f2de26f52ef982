//! Strategies `relay` and `fanout`: a stream reaches clusters of needers, whose
//! members exchange it among themselves.
//!
//! The needers of a stream are put into clusters of whole NVLink domains, each
//! of which gets the stream once: the wrap-around cut divides the holders' work
//! over clusters.
//!
//! With one domain to a cluster (`relay`) each byte enters a domain once. With
//! several (`fanout`) fewer copies leave the holders than there are domains.
//!
//! Needers in a domain with a holder get everything from holders there.

use super::cluster::{Cluster, Clusters};
use super::route::{Hop, ItemRange, Routes, There};
use super::walk::Group;
use super::{HOLDINGS, NEEDS};
use crate::plan::decision::{SourceRule, Spread, Strategy};
use crate::plan::domains::within;
use crate::plan::line::{Line, Share};
use crate::plan::program::Direction;
use crate::plan::ranks::RankSet;
use crate::rank::Rank;
use smallvec::SmallVec;
use std::ops::Range;

/// What one slot of the holders' line sends to one cluster: a range of the
/// stream, or of it only some items.
struct Load {
    slot: u64,
    cluster: u64,
    from: u64,
    to: u64,
    items: Vec<u32>,
}

impl Load {
    fn of(share: Share) -> Load {
        Load {
            slot: share.holder,
            cluster: share.needer,
            from: share.from,
            to: share.to,
            items: Vec::new(),
        }
    }

    fn items(group: &Group, slot: u64, cluster: u64, item: u32) -> Load {
        Load {
            slot,
            cluster,
            from: 0,
            to: group.bytes,
            items: vec![item],
        }
    }
}

impl Routes<'_, '_> {
    pub fn clustered(&mut self) {
        let walks = self.walks;
        for group in &walks[NEEDS].groups {
            if let Some(own) = group.own {
                self.take_in_cluster(group, own);
            }
        }
        for (w, walk) in walks.iter().enumerate().skip(HOLDINGS) {
            for group in &walk.groups {
                if let Some(own) = group.own.filter(|_| !group.needers.is_empty()) {
                    self.give_to_clusters(w, group, own);
                }
            }
        }
    }

    /// Needers that no holder shares a domain with; `None` if these are all.
    fn outer(&self, group: &Group) -> Option<RankSet> {
        if !self.inputs.domains.are_shared() {
            return None;
        }
        let (source, destination) = (self.inputs.source, self.inputs.destination);
        let domain = |r: Rank| self.inputs.topology.domain(r);
        let mut held: Vec<u32> = group
            .holders
            .to_vec(source)
            .into_iter()
            .filter_map(domain)
            .collect();
        held.sort_unstable();
        held.dedup();
        let is_outer = |r: &Rank| domain(*r).is_none_or(|d| held.binary_search(&d).is_err());
        let needers = group.needers.to_vec(destination);
        let outer: Vec<Rank> = needers.iter().copied().filter(is_outer).collect();
        (outer.len() < needers.len()).then_some(RankSet::List(outer))
    }

    fn clusters(&self, group: &Group, needers: &RankSet) -> Clusters {
        let inputs = self.inputs;
        let runs = inputs
            .domains
            .runs(needers, inputs.destination, inputs.topology);
        let count = match inputs.decision.strategy {
            Strategy::Fanout => inputs.decision.copies_leaving(group.origin).min(runs.len()),
            Strategy::Direct | Strategy::TwoStage | Strategy::Relay => runs.len(),
        };
        Clusters { runs, count }
    }

    fn cluster<'c>(&self, group: &Group, clusters: &'c Clusters, i: u64) -> Cluster<'c> {
        let domains = clusters.runs_of(i);
        let spread = self.inputs.decision.spread;
        let entered = match spread {
            Spread::Scatter => domains.clone(),
            Spread::Chain => domains.start..domains.start + 1,
        };
        let entries = clusters.runs.places(entered);
        Cluster {
            runs: &clusters.runs,
            places: clusters.runs.places(domains.clone()),
            domains,
            spread,
            slots: entries.end - entries.start,
            bytes: group.bytes,
        }
    }

    /// Everything of one stream that this rank needs and passes on.
    fn take_in_cluster(&mut self, group: &Group, own: u64) {
        let outer = self.outer(group);
        let needers = outer.as_ref().unwrap_or(&group.needers);
        let own = match &outer {
            None => own,
            Some(set) => match set.index_of(self.inputs.destination, self.rank) {
                Some(own) => own,
                None => return self.take_in_domain(group),
            },
        };
        let destination = self.inputs.destination;
        let clusters = self.clusters(group, needers);
        let place = clusters.runs.place(own);
        let i = clusters.of_run(clusters.runs.run_of(place));
        let cluster = self.cluster(group, &clusters, i);
        let me = place - cluster.places.start;
        let rank = |j: u64| {
            let needer = cluster.runs.needer(cluster.places.start + j);
            needers.nth(destination, needer)
        };
        let mut hops: SmallVec<[Hop; 16]> = SmallVec::new();
        for load in self.loads_of_cluster(group, clusters.count, i) {
            let exits = self.exits(group, self.turned(group, load.slot));
            for j in cluster.members_in(load.from..load.to) {
                hops.clear();
                cluster.hops_of((me, j), &exits, rank, &mut hops);
                self.add_load(NEEDS, group, &load, cluster.slot(j), &hops);
            }
        }
    }

    /// What each slot of the holders' line sends to cluster `i`.
    fn loads_of_cluster(&self, group: &Group, clusters: u64, i: u64) -> Vec<Load> {
        let mut loads = Vec::new();
        match self.inputs.decision.source_rule {
            SourceRule::Wrap => {
                line(group, clusters).shares_of_needer(i, |s| loads.push(Load::of(s)));
            }
            // The slot moves on by one with each item and cluster.
            SourceRule::Rotate => {
                let n = group.holders.len();
                for (t, &item) in group.items.iter().enumerate() {
                    match loads.get_mut(t % n as usize) {
                        Some(load) => load.items.push(item),
                        None => loads.push(Load::items(group, (i + t as u64) % n, i, item)),
                    }
                }
            }
        }
        loads
    }

    /// What slot `slot` of the holders' line sends to each cluster.
    fn loads_of_slot(&self, group: &Group, clusters: u64, slot: u64) -> Vec<Load> {
        let mut loads: Vec<Load> = Vec::new();
        match self.inputs.decision.source_rule {
            SourceRule::Wrap => {
                line(group, clusters).shares_of_holder(slot, |s| loads.push(Load::of(s)));
            }
            SourceRule::Rotate => {
                let n = group.holders.len();
                let mut sent = Vec::new();
                for (t, &item) in group.items.iter().enumerate() {
                    let first = (slot + n - t as u64 % n) % n;
                    sent.extend((first..clusters).step_by(n as usize).map(|i| (i, t, item)));
                }
                sent.sort_unstable();
                for (i, _, item) in sent {
                    match loads.last_mut() {
                        Some(load) if load.cluster == i => load.items.push(item),
                        _ => loads.push(Load::items(group, slot, i, item)),
                    }
                }
            }
        }
        loads
    }

    /// Sends what of a load lies in a member's slot along `hops`.
    fn add_load(
        &mut self,
        walk: usize,
        group: &Group,
        load: &Load,
        slot: Range<u64>,
        hops: &[Hop],
    ) {
        let (from, to) = (load.from.max(slot.start), load.to.min(slot.end));
        if load.items.is_empty() {
            return self.add_share(walk, group, from, to, hops);
        }
        let items = load.items.iter();
        let ranges: Vec<ItemRange> = items
            .filter_map(|&i| self.walks[walk].range(i, from, to))
            .collect();
        self.add_ranges(walk, &ranges, hops);
    }

    /// Everything of one stream that the rank of a walk holds, as far as this
    /// rank sends it.
    fn give_to_clusters(&mut self, walk: usize, group: &Group, own: u64) {
        let outer = self.outer(group);
        if outer.is_some() && walk == HOLDINGS {
            self.give_in_domain(group);
        }
        let needers = outer.as_ref().unwrap_or(&group.needers);
        if needers.is_empty() {
            return;
        }
        let clusters = self.clusters(group, needers);
        let slot = self.slot_of(group, own);
        let exits = self.exits(group, self.walks[walk].rank);
        for load in self.loads_of_slot(group, clusters.count, slot) {
            let cluster = self.cluster(group, &clusters, load.cluster);
            for j in cluster.members_in(load.from..load.to) {
                let needer = cluster.runs.needer(cluster.places.start + j);
                let peer = needers.nth(self.inputs.destination, needer);
                let hops = exits.hops(self.rank, peer);
                if !hops.is_empty() {
                    self.add_load(walk, group, &load, cluster.slot(j), &hops);
                }
            }
        }
    }

    /// A needer with holders in its domain: these send it all.
    fn take_in_domain(&mut self, group: &Group) {
        let Some((holders, needers)) = self.in_domain(group) else {
            return;
        };
        let Ok(own) = needers.binary_search(&self.rank) else {
            return;
        };
        let mut shares: SmallVec<[Share; 4]> = SmallVec::new();
        inner_line(group, &holders, &needers).shares_of_needer(own as u64, |s| shares.push(s));
        for s in shares {
            let peer = holders[s.holder as usize];
            let hop = Hop::plain(peer, Direction::Receive, 0, There::Across);
            self.add_share(NEEDS, group, s.from, s.to, &[hop]);
        }
    }

    /// A holder with needers in its domain.
    fn give_in_domain(&mut self, group: &Group) {
        let Some((holders, needers)) = self.in_domain(group) else {
            return;
        };
        let Ok(own) = holders.binary_search(&self.rank) else {
            return;
        };
        if needers.is_empty() {
            return;
        }
        let mut shares: SmallVec<[Share; 8]> = SmallVec::new();
        inner_line(group, &holders, &needers).shares_of_holder(own as u64, |s| shares.push(s));
        for s in shares {
            let peer = needers[s.needer as usize];
            let hop = Hop::plain(peer, Direction::Send, 0, There::Across);
            self.add_share(HOLDINGS, group, s.from, s.to, &[hop]);
        }
    }

    /// Holders and needers of a stream in our domain.
    fn in_domain(&self, group: &Group) -> Option<(Vec<Rank>, Vec<Rank>)> {
        let inputs = self.inputs;
        let domain = inputs.topology.domain(self.rank)?;
        Some((
            within(&group.holders, inputs.source, inputs.topology, domain),
            within(&group.needers, inputs.destination, inputs.topology, domain),
        ))
    }
}

/// The line of a stream over its holders and clusters.
fn line(group: &Group, clusters: u64) -> Line {
    Line {
        bytes: group.bytes,
        holders: group.holders.len(),
        needers: clusters,
    }
}

fn inner_line(group: &Group, holders: &[Rank], needers: &[Rank]) -> Line {
    Line {
        bytes: group.bytes,
        holders: holders.len() as u64,
        needers: needers.len() as u64,
    }
}

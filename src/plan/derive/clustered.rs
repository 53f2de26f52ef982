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
use super::group::Group;
use super::route::{Hop, ItemRange, Route, Routes, There};
use super::{HOLDINGS, Inputs, NEEDS};
use crate::plan::decision::{SourceRule, Spread, Strategy};
use crate::plan::domains::{Runs, within};
use crate::plan::line::{Line, Share};
use crate::plan::locality::{Matching, Places};
use crate::plan::program::Direction;
use crate::plan::ranks::RankSet;
use crate::plan::slots::Slots;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::ops::Range;

/// What one holder sends to one cluster: a range of the
/// stream, or of it only some items.
struct Load {
    holder: u64,
    cluster: u64,
    from: u64,
    to: u64,
    items: Vec<u32>,
}

impl Load {
    fn of(share: Share) -> Load {
        Load {
            holder: share.holder,
            cluster: share.needer,
            from: share.from,
            to: share.to,
            items: Vec::new(),
        }
    }

    fn items(group: &Group, holder: u64, cluster: u64, item: u32) -> Load {
        Load {
            holder,
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
        for (group, own) in walks[NEEDS].places() {
            if let Some(own) = own {
                self.take_in_cluster(group, own);
            }
        }
        for (w, walk) in walks.iter().enumerate().skip(HOLDINGS) {
            for (group, own) in walk.places() {
                if let Some(own) = own.filter(|_| !group.needers.is_empty()) {
                    self.give_to_clusters(w, group, own);
                }
            }
        }
        self.put_in_order(0);
    }

    /// Needers that no sender shares a domain with; `None` if these are all.
    fn outer(&self, group: &Group) -> Option<RankSet> {
        if !self.inputs.domains.are_shared() {
            return None;
        }
        let Inputs {
            source,
            destination,
            topology,
            ..
        } = self.inputs;
        let domain = |r: Rank| topology.domain(r);
        let senders = topology.senders(group.holders.to_vec(source));
        let mut held: Vec<u32> = senders.into_iter().filter_map(domain).collect();
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

    fn cluster<'c>(
        &self,
        group: &Group,
        needers: &RankSet,
        clusters: &'c Clusters,
        i: u64,
    ) -> Cluster<'c> {
        let (domains, runs) = (clusters.runs_of(i), &clusters.runs);
        let places = runs.places(domains.clone());
        let weights = self.member_slots(needers, runs, places.clone());
        let spread = self.inputs.decision.spread;
        let slots = match spread {
            Spread::Scatter => weights.clone(),
            Spread::Chain => {
                let entered = runs.places(domains.start..domains.start + 1);
                self.member_slots(needers, runs, entered)
            }
        };
        Cluster {
            runs,
            domains,
            places,
            spread,
            slots,
            weights,
            bytes: group.bytes,
        }
    }

    /// What the members of a cluster take in: by the speed of their NICs, and
    /// nothing if they should not send, since who takes in passes on.
    fn member_slots(&self, needers: &RankSet, runs: &Runs, places: Range<u64>) -> Slots {
        let topology = self.inputs.topology;
        if !topology.may_be_uneven() {
            return Slots::Equal(places.end - places.start);
        }
        let speed = |place| {
            let rank = needers.nth(self.inputs.destination, runs.needer(place));
            let site = topology.site(rank).filter(|_| !topology.is_drained(rank));
            site.map_or(0, |s| s.nic_bytes_per_s.max(1))
        };
        Slots::by_speed(places.map(speed))
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
        let cluster = self.cluster(group, needers, &clusters, i);
        let me = place - cluster.places.start;
        let rank = |j: u64| {
            let needer = cluster.runs.needer(cluster.places.start + j);
            needers.nth(destination, needer)
        };
        let mut hops: SmallVec<[Hop; 16]> = SmallVec::new();
        for load in self.loads_of_cluster(group, clusters.count, i) {
            let holder = group.holders.nth(self.inputs.source, load.holder);
            let exits = self.exits(group, holder);
            for j in cluster.members_in(load.from..load.to) {
                hops.clear();
                cluster.hops_of((me, j), &exits, rank, &mut hops);
                let route = Route {
                    hops: &hops,
                    burden_percent: self.burden_percent(&cluster, j, rank(j)),
                };
                self.add_load(NEEDS, group, &load, cluster.slot(j), route);
            }
        }
    }

    /// What each holder sends to cluster `i`.
    fn loads_of_cluster(&self, group: &Group, clusters: u64, i: u64) -> Vec<Load> {
        let mut loads: Vec<Load> = Vec::new();
        let turn = self.turn(group);
        if self.inputs.decision.source_rule == SourceRule::Wrap {
            line(group, clusters, turn).shares_of_needer(i, |s| loads.push(Load::of(s)));
            return loads;
        }
        // The holder moves on by one with each item and cluster.
        let mut load_of: FxHashMap<u64, usize> = FxHashMap::default();
        for (t, &item) in group.items.iter().enumerate() {
            let holder = group.slots.holder_in_turn(i + t as u64, turn);
            match load_of.get(&holder) {
                Some(&at) => loads[at].items.push(item),
                None => {
                    load_of.insert(holder, loads.len());
                    loads.push(Load::items(group, holder, i, item));
                }
            }
        }
        loads
    }

    /// What holder `holder` sends to each cluster.
    fn loads_of_holder(&self, group: &Group, clusters: u64, holder: u64) -> Vec<Load> {
        let mut loads: Vec<Load> = Vec::new();
        let turn = self.turn(group);
        if self.inputs.decision.source_rule == SourceRule::Wrap {
            line(group, clusters, turn).shares_of_holder(holder, |s| loads.push(Load::of(s)));
            return loads;
        }
        let (turns, period) = group.slots.turns_of(holder, turn);
        let mut sent = Vec::new();
        for (t, &item) in group.items.iter().enumerate() {
            for at in &turns {
                let first = (at + period - t as u64 % period) % period;
                let all = (first..clusters).step_by(period as usize);
                sent.extend(all.map(|i| (i, t, item)));
            }
        }
        sent.sort_unstable();
        for (i, _, item) in sent {
            match loads.last_mut() {
                Some(load) if load.cluster == i => load.items.push(item),
                _ => loads.push(Load::items(group, holder, i, item)),
            }
        }
        loads
    }

    /// What member `j`, which is `rank`, moves of its slot, in hundredths: all
    /// that it sends on, counted as if its NIC did.
    fn burden_percent(&self, cluster: &Cluster<'_>, j: u64, rank: Rank) -> u64 {
        let [across, inside] = cluster.sends_of(j);
        let site = self.inputs.topology.site(rank);
        let (nic, nvlink) = site.map_or((1, 1), |s| (s.nic_bytes_per_s, s.nvlink_bytes_per_s));
        let inside = u128::from(inside) * 100 * u128::from(nic) / u128::from(nvlink.max(1));
        let percent = u128::from(across) * 100 + inside;
        u64::try_from(percent).unwrap_or(u64::MAX).max(100)
    }

    /// Sends what of a load lies in a member's slot along a route.
    fn add_load(
        &mut self,
        walk: usize,
        group: &Group,
        load: &Load,
        slot: Range<u64>,
        route: Route<'_>,
    ) {
        let (from, to) = (load.from.max(slot.start), load.to.min(slot.end));
        if load.items.is_empty() {
            return self.add_share(walk, group, from, to, route);
        }
        let items = load.items.iter();
        let ranges: Vec<ItemRange> = items
            .filter_map(|&i| self.walks[walk].range(i, from, to))
            .collect();
        self.add_ranges(walk, &ranges, route);
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
        let exits = self.exits(group, self.walks[walk].rank);
        for load in self.loads_of_holder(group, clusters.count, own) {
            let cluster = self.cluster(group, needers, &clusters, load.cluster);
            for j in cluster.members_in(load.from..load.to) {
                let needer = cluster.runs.needer(cluster.places.start + j);
                let peer = needers.nth(self.inputs.destination, needer);
                let hops = exits.hops(self.rank, peer);
                if !hops.is_empty() {
                    let route = Route {
                        hops: &hops,
                        burden_percent: self.burden_percent(&cluster, j, peer),
                    };
                    self.add_load(walk, group, &load, cluster.slot(j), route);
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
        self.near(&holders, &needers)
            .shares_of_needer(group.bytes, own as u64, |s| shares.push(s));
        for s in shares {
            let peer = holders[s.holder as usize];
            let hop = Hop::plain(peer, Direction::Receive, 0, There::Across);
            self.add_share(NEEDS, group, s.from, s.to, Route::of(&[hop]));
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
        self.near(&holders, &needers)
            .shares_of_holder(group.bytes, own as u64, |s| shares.push(s));
        for s in shares {
            let peer = needers[s.needer as usize];
            let hop = Hop::plain(peer, Direction::Send, 0, There::Across);
            self.add_share(HOLDINGS, group, s.from, s.to, Route::of(&[hop]));
        }
    }

    /// Holders of a stream that send, and its needers, in our domain.
    fn in_domain(&self, group: &Group) -> Option<(Vec<Rank>, Vec<Rank>)> {
        let inputs = self.inputs;
        let domain = inputs.topology.domain(self.rank)?;
        let is_here = |r: &Rank| inputs.topology.domain(*r) == Some(domain);
        let senders = inputs.topology.senders(group.holders.to_vec(inputs.source));
        Some((
            senders.into_iter().filter(is_here).collect(),
            within(&group.needers, inputs.destination, inputs.topology, domain),
        ))
    }

    /// Who sends what to whom in one domain: on one device first.
    fn near(&self, holders: &[Rank], needers: &[Rank]) -> Matching {
        let device = |r: &Rank| {
            let site = self.inputs.topology.site(*r);
            site.map(|s| u64::from(s.gpu)).into_iter().collect()
        };
        let all = |ranks: &[Rank]| -> Vec<Places> { ranks.iter().map(device).collect() };
        let even = Slots::Equal(holders.len() as u64);
        Matching::new(&all(holders), &all(needers), &even, 0)
    }
}

/// The line of a stream over its holders and clusters.
fn line(group: &Group, clusters: u64, turn: u64) -> Line {
    Line {
        needers: clusters,
        ..group.line(turn)
    }
}

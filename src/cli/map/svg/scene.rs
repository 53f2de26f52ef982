//! What is drawn of a mapping: all of it, or of many ranks one of each kind.
//!
//! Replicas are alike if the same arrows lead to the same seats from the same
//! seats of the copies that serve them; tensor positions are alike if that is so
//! for the ranks that sit there. Which ranks and devices these are, and in what
//! order they send, makes no difference to a reader.

use super::Subject;
use std::collections::{BTreeMap, BTreeSet};
use weightsync::Rank;
use weightsync::plan::mapping::{Mapping, Pair, Seat};

/// More ranks than this, and what is alike is drawn once.
const RANK_COUNT_WHOLE: usize = 64;

/// What is drawn.
pub(super) struct Scene {
    /// The part of the mapping that is drawn, routed senders among its sources.
    pub(super) mapping: Mapping,
    pub(super) routed: Vec<Pair>,
    /// Replicas and tensor positions of the source that are drawn.
    pub(super) replicas: Kinds,
    pub(super) positions: Kinds,
    /// Source copies, drawn or not.
    pub(super) copies: usize,
}

/// Each that stands for its kind, with how many there are of it. Empty if all
/// are drawn.
pub(super) type Kinds = BTreeMap<u32, usize>;

impl Scene {
    pub(super) fn new(subject: &Subject) -> Scene {
        let mut scene = Scene::whole(subject);
        if scene.rank_count() > RANK_COUNT_WHOLE {
            scene.draw_replicas_once();
        }
        if scene.rank_count() > RANK_COUNT_WHOLE {
            scene.draw_positions_once(subject);
        }
        scene
    }

    pub(super) fn rank_count(&self) -> usize {
        self.mapping.sources.len() + self.mapping.destinations.len()
    }

    fn whole(subject: &Subject) -> Scene {
        let mut mapping = subject.mapping.clone();
        add_routed_senders(&mut mapping.sources, subject);
        Scene {
            routed: subject.routed.to_vec(),
            copies: count_copies(&mapping.sources),
            replicas: Kinds::new(),
            positions: Kinds::new(),
            mapping,
        }
    }

    /// Keeps one replica of each kind, and the source copies that serve it.
    fn draw_replicas_once(&mut self) {
        let seats = self.seats();
        let replica = |pair: Pair| seats[&pair.receiver].copy;
        // The copies that a replica meets are told apart, but not named.
        let mut met: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for pair in self.mapping.pairs.iter().chain(&self.routed) {
            let met = met.entry(replica(*pair)).or_default();
            let copy = seats[&pair.sender].copy;
            if !met.contains(&copy) {
                met.push(copy);
            }
        }
        let end = |pair: Pair, rank: Rank, is_source: bool| {
            let seat = seats[&rank];
            let which = |met: &Vec<u32>| met.iter().position(|&c| c == seat.copy);
            let copy = match is_source {
                true => met.get(&replica(pair)).and_then(which).unwrap_or(0),
                false => 0,
            };
            [copy as u32, seat.stage, seat.expert, seat.tensor]
        };
        let kinds = self.kinds(replica, end);
        let replicas = count_copies(&self.mapping.destinations);
        self.keep(|seat| kinds.contains_key(&seat.copy));
        if kinds.len() < replicas {
            self.replicas = kinds;
        }
    }

    /// Keeps one tensor position of the source of each kind, with the ranks that
    /// are served from there, if every rank is served from one position.
    fn draw_positions_once(&mut self, subject: &Subject) {
        let (a, b) = (subject.spec.source.tp, subject.spec.destination.tp);
        if b % a != 0 {
            return;
        }
        let (seats, group) = (self.seats(), b / a);
        let position = |pair: Pair| seats[&pair.receiver].tensor / group;
        let mut arrows = self.mapping.pairs.iter().chain(&self.routed);
        if arrows.any(|pair| seats[&pair.sender].tensor != position(*pair)) {
            return;
        }
        let end = |_: Pair, rank: Rank, is_source: bool| {
            let seat = seats[&rank];
            let slot = if is_source { 0 } else { seat.tensor % group };
            [seat.copy, seat.stage, seat.expert, slot]
        };
        let kinds = self.kinds(position, end);
        if kinds.len() == a as usize {
            return;
        }
        self.keep(|seat| kinds.contains_key(&(seat.tensor / group)));
        let sources = &mut self.mapping.sources;
        sources.retain(|seat| kinds.contains_key(&seat.tensor));
        self.positions = kinds;
    }

    /// Every rank's seat.
    fn seats(&self) -> BTreeMap<Rank, Seat> {
        let all = self
            .mapping
            .sources
            .iter()
            .chain(&self.mapping.destinations);
        all.map(|seat| (seat.rank, *seat)).collect()
    }

    /// Puts those together that the same arrows lead to. `of` says what a pair
    /// leads to, `end` where an end of it sits (true for a source rank).
    fn kinds(&self, of: impl Fn(Pair) -> u32, end: impl Fn(Pair, Rank, bool) -> [u32; 4]) -> Kinds {
        let mapping = &self.mapping;
        let moved: BTreeSet<(Rank, Rank)> = mapping
            .moved
            .iter()
            .map(|m| (m.sender, m.receiver))
            .collect();
        let local: BTreeSet<&Pair> = mapping.same_device.iter().collect();
        let mut arrows: BTreeMap<u32, BTreeSet<Arrow>> = BTreeMap::new();
        let lists = [&mapping.pairs, &self.routed, &mapping.forwards];
        for (list, pairs) in (0..).zip(lists) {
            for pair in pairs {
                let is_moved = moved.contains(&(pair.sender, pair.receiver));
                arrows.entry(of(*pair)).or_default().insert(Arrow {
                    list,
                    is_moved,
                    is_local: local.contains(pair),
                    from: end(*pair, pair.sender, list < 2),
                    to: end(*pair, pair.receiver, false),
                });
            }
        }
        let mut kinds: BTreeMap<BTreeSet<Arrow>, (u32, usize)> = BTreeMap::new();
        for (which, arrows) in arrows {
            kinds.entry(arrows).or_insert((which, 0)).1 += 1;
        }
        kinds.into_values().collect()
    }

    /// Keeps the receivers that are `drawn`, and the source copies that send to
    /// them.
    fn keep(&mut self, drawn: impl Fn(&Seat) -> bool) {
        let mapping = &mut self.mapping;
        mapping.destinations.retain(drawn);
        let drawn: BTreeSet<Rank> = mapping.destinations.iter().map(|seat| seat.rank).collect();
        for pairs in [
            &mut mapping.pairs,
            &mut mapping.forwards,
            &mut mapping.same_device,
            &mut self.routed,
        ] {
            pairs.retain(|pair| drawn.contains(&pair.receiver));
        }
        mapping
            .moved
            .retain(|moved| drawn.contains(&moved.receiver));

        let senders = mapping.pairs.iter().chain(&self.routed);
        let senders: BTreeSet<Rank> = senders.map(|pair| pair.sender).collect();
        let serving = mapping.sources.iter();
        let serving = serving.filter(|seat| senders.contains(&seat.rank));
        let serving: BTreeSet<u32> = serving.map(|seat| seat.copy).collect();
        mapping.sources.retain(|seat| serving.contains(&seat.copy));
    }
}

/// An arrow of a picture, told by the seats of its ends.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    /// Stage 1, routed experts, stage 2.
    list: u8,
    is_moved: bool,
    is_local: bool,
    from: [u32; 4],
    to: [u32; 4],
}

/// Routed experts may come from ranks that send nothing else: each such copy is
/// one more copy.
fn add_routed_senders(sources: &mut Vec<Seat>, subject: &Subject) {
    let seated: BTreeSet<Rank> = sources.iter().map(|seat| seat.rank).collect();
    let copies = count_copies(sources) as u32;
    let missing = subject.routed_sources.iter();
    let missing = missing.filter(|seat| !seated.contains(&seat.rank));
    sources.extend(missing.map(|seat| Seat {
        copy: copies + seat.copy,
        ..*seat
    }));
}

/// How many copies or replicas these seats are of.
pub(super) fn count_copies(seats: &[Seat]) -> usize {
    seats.chunk_by(|a, b| a.copy == b.copy).count()
}

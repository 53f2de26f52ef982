//! What is drawn of a mapping: all of it, or of many replicas one of each kind.

use super::Subject;
use std::collections::{BTreeMap, BTreeSet};
use weightsync::Rank;
use weightsync::plan::mapping::{Mapping, Pair, Seat};

/// More ranks than this, and replicas that are alike are drawn once.
const RANK_COUNT_WHOLE: usize = 64;

/// What is drawn.
pub(super) struct Scene {
    /// The part of the mapping that is drawn, routed senders among its sources.
    pub(super) mapping: Mapping,
    pub(super) routed: Vec<Pair>,
    /// For each drawn replica, how many are like it, itself included.
    pub(super) alike: BTreeMap<u32, usize>,
    /// Source copies and replicas, drawn or not.
    pub(super) copies: usize,
    pub(super) replicas: usize,
}

impl Scene {
    pub(super) fn new(subject: &Subject) -> Scene {
        let whole = Scene::whole(subject);
        let ranks = whole.mapping.sources.len() + whole.mapping.destinations.len();
        if ranks <= RANK_COUNT_WHOLE {
            return whole;
        }
        let alike = Places::of(&whole).kinds(&whole);
        match alike.len() == whole.replicas {
            true => whole,
            false => whole.only(alike),
        }
    }

    fn whole(subject: &Subject) -> Scene {
        let mut mapping = subject.mapping.clone();
        add_routed_senders(&mut mapping.sources, subject);
        Scene {
            routed: subject.routed.to_vec(),
            copies: count_copies(&mapping.sources),
            replicas: count_copies(&mapping.destinations),
            alike: BTreeMap::new(),
            mapping,
        }
    }

    /// The replicas that stand for all, with the source copies that serve them.
    fn only(mut self, alike: BTreeMap<u32, usize>) -> Scene {
        let drawn = self.mapping.destinations.iter();
        let drawn = drawn.filter(|seat| alike.contains_key(&seat.copy));
        let drawn: BTreeSet<Rank> = drawn.map(|seat| seat.rank).collect();
        let mapping = &mut self.mapping;
        mapping
            .destinations
            .retain(|seat| drawn.contains(&seat.rank));
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
        self.alike = alike;
        self
    }
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

fn count_copies(seats: &[Seat]) -> usize {
    seats.chunk_by(|a, b| a.copy == b.copy).count()
}

/// Where each rank sits: its copy or replica, and its number therein.
struct Places(BTreeMap<Rank, (u32, usize)>);

/// One arrow into a replica, told without saying which copy and which replica:
/// the list it is of, how it is drawn, and where its ends sit.
type Arrow = (u8, bool, bool, usize, usize, usize);

impl Places {
    fn of(scene: &Scene) -> Places {
        let mapping = &scene.mapping;
        let copies = mapping.sources.chunk_by(|a, b| a.copy == b.copy);
        let replicas = mapping.destinations.chunk_by(|a, b| a.copy == b.copy);
        let places = copies.chain(replicas).flat_map(|seats| {
            let numbered = seats.iter().enumerate();
            numbered.map(|(i, seat)| (seat.rank, (seat.copy, i)))
        });
        Places(places.collect())
    }

    /// The first replica of each kind, with how many there are of it.
    fn kinds(&self, scene: &Scene) -> BTreeMap<u32, usize> {
        let mapping = &scene.mapping;
        let moved: BTreeSet<Pair> = mapping
            .moved
            .iter()
            .map(|m| Pair {
                sender: m.sender,
                receiver: m.receiver,
            })
            .collect();
        let local: BTreeSet<Pair> = mapping.same_device.iter().copied().collect();
        let mut arrows: BTreeMap<u32, Vec<Arrow>> = BTreeMap::new();
        for seat in &mapping.destinations {
            arrows.entry(seat.copy).or_default();
        }
        // The copies that a replica meets are told apart, but not named.
        let mut met: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let lists = [&mapping.pairs, &scene.routed, &mapping.forwards];
        for (list, pairs) in (0..).zip(lists) {
            for pair in pairs {
                let (copy, from) = self.0[&pair.sender];
                let (replica, to) = self.0[&pair.receiver];
                let met = met.entry(replica).or_default();
                let which = met.iter().position(|&c| c == copy).unwrap_or_else(|| {
                    met.push(copy);
                    met.len() - 1
                });
                let arrow = (
                    list,
                    moved.contains(pair),
                    local.contains(pair),
                    which,
                    from,
                    to,
                );
                arrows.entry(replica).or_default().push(arrow);
            }
        }
        let mut kinds: BTreeMap<Vec<Arrow>, (u32, usize)> = BTreeMap::new();
        for (replica, arrows) in arrows {
            kinds.entry(arrows).or_insert((replica, 0)).1 += 1;
        }
        kinds.into_values().collect()
    }
}

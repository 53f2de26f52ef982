//! The two-stage mapping between two layouts: who receives for whom.
//!
//! The rank mapping ([`mapping`]) knows sizes and placement but
//! no tensors; a plan knows tensors. Here the former is made from the latter,
//! and kept so that one rank finds its part at once. Its rank lists come from
//! the meshes of the layouts, unless given:
//!
//! * the mesh is the first one of a part that has an axis `tp`, else the first;
//! * `tp` is tensor parallel, the axis that numbers stages (else `pp`) is
//!   pipeline parallel, and each combination of the others is a copy of its
//!   own, in mesh order: data and context parallel, and replicas. Expert
//!   parallel counts as data parallel.
//!
//! What the mapped sender of a group does not hold (experts of another expert
//! rank, say) comes straight from a rank that does.

use super::mapping::{self, DestinationSizes, MappingSpec, SourceSizes};
use crate::error::{Error, Result, Status};
use crate::layout::Layout;
use crate::layout::placement::Part;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// What the two-stage mapping is made with; what is absent is read from the
/// layouts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwoStageOptions {
    /// Sizes of the source, for layouts whose meshes do not tell.
    pub source: Option<SourceSizes>,
    /// Sizes of the destination, likewise.
    pub destination: Option<DestinationSizes>,
    /// One list of ranks per source copy, `[PP][TP]`.
    pub source_ranks: Option<Vec<Vec<Rank>>>,
    /// One list of ranks per replica, `[PP][EP][TP]`.
    pub destination_ranks: Option<Vec<Vec<Rank>>>,
    /// Pairs on one device are avoided by choosing another receiver, instead
    /// of being served like any other: by a local copy where both ends are one
    /// rank, which no transport sees, and by a message where they are two.
    pub avoid_same_device: bool,
}

/// The mapping as one rank asks for its part of it.
#[derive(Clone, Debug, Default)]
pub struct TwoStage {
    /// Ranks of a weight-mapping group.
    group_size: usize,
    /// Group by group.
    members: Vec<Rank>,
    group_of: FxHashMap<Rank, u32>,
    /// `(sender, receiver)` in the order of the sends, by group.
    pairs: Vec<Vec<(Rank, Rank)>>,
    /// Groups that a sender sends to, ascending.
    serves: FxHashMap<Rank, Vec<u32>>,
}

impl TwoStage {
    /// Maps `source` to `destination`. `device` says on which device a rank
    /// is, with equal numbers for one device.
    pub fn between(
        source: &Layout,
        destination: &Layout,
        options: &TwoStageOptions,
        device: impl Fn(Rank) -> u32,
    ) -> Result<TwoStage> {
        let actors = [source.ranks(), destination.ranks()];
        let first = actors[0].len() as u32;
        let number = |side: usize, rank: Rank| match actors[side].binary_search(&rank) {
            Ok(i) => Ok(Rank(i as u32 + if side == 0 { 0 } else { first })),
            Err(_) => Err(Error::invalid(format!(
                "two_stage: rank {rank} of the {} rank lists is not in that layout",
                ["source", "destination"][side]
            ))
            .by(rank)),
        };
        let numbered = |side: usize, lists: &[Vec<Rank>]| -> Result<Vec<Vec<Rank>>> {
            let list = |l: &Vec<Rank>| l.iter().map(|&r| number(side, r)).collect();
            lists.iter().map(list).collect()
        };
        let lists = Lists::of(source, destination, options)?;
        let spec = MappingSpec {
            source: lists.source,
            destination: lists.destination,
            source_devices: actors[0].iter().map(|&r| device(r)).collect(),
            destination_devices: actors[1].iter().map(|&r| device(r)).collect(),
            keep_same_device: !options.avoid_same_device,
            source_ranks: match &lists.source_ranks {
                Some(l) => Some(numbered(0, l)?),
                None => None,
            },
            destination_ranks: match &lists.destination_ranks {
                Some(l) => Some(numbered(1, l)?),
                None => None,
            },
            ..MappingSpec::default()
        };
        let mapping = mapping::two_stage(&spec)?;
        let rank = |actor: Rank| match actor.0.checked_sub(first) {
            None => actors[0][actor.index()],
            Some(i) => actors[1][i as usize],
        };
        Ok(TwoStage::new(&mapping, rank))
    }

    fn new(mapping: &mapping::Mapping, rank: impl Fn(Rank) -> Rank) -> TwoStage {
        let group_size = mapping.group_size as usize;
        // Seats are in order of tensor position: a group lies side by side.
        let seats = &mapping.destinations;
        let members: Vec<Rank> = seats.iter().map(|s| rank(s.rank)).collect();
        let group_of: FxHashMap<Rank, u32> = members
            .iter()
            .enumerate()
            .map(|(i, &r)| (r, (i / group_size) as u32))
            .collect();
        let mut pairs = vec![Vec::new(); members.len() / group_size];
        let mut serves: FxHashMap<Rank, Vec<u32>> = FxHashMap::default();
        for p in &mapping.pairs {
            let (sender, receiver) = (rank(p.sender), rank(p.receiver));
            let group = group_of[&receiver];
            pairs[group as usize].push((sender, receiver));
            serves.entry(sender).or_default().push(group);
        }
        for groups in serves.values_mut() {
            groups.sort_unstable();
            groups.dedup();
        }
        TwoStage {
            group_size,
            members,
            group_of,
            pairs,
            serves,
        }
    }

    /// True if anything may be forwarded.
    pub fn forwards(&self) -> bool {
        self.group_size > 1
    }

    /// The weight-mapping group of a destination rank.
    pub fn group_of(&self, rank: Rank) -> Option<u32> {
        self.group_of.get(&rank).copied()
    }

    pub fn members(&self, group: u32) -> &[Rank] {
        &self.members[group as usize * self.group_size..][..self.group_size]
    }

    /// Who sends to which member of a group, in order.
    pub fn pairs(&self, group: u32) -> &[(Rank, Rank)] {
        &self.pairs[group as usize]
    }

    /// The groups that `rank` may send to: those it is paired with, and its
    /// own, which it serves from what it holds itself.
    pub fn served_by(&self, rank: Rank) -> Vec<u32> {
        let mut groups = self.serves.get(&rank).cloned().unwrap_or_default();
        if let Some(own) = self.group_of(rank)
            && let Err(i) = groups.binary_search(&own)
        {
            groups.insert(i, own);
        }
        groups
    }

    /// The other members of the group that `rank` receives for; none if it
    /// receives for nobody.
    pub fn forwards_to(&self, rank: Rank) -> Vec<Rank> {
        let Some(group) = self.group_of(rank) else {
            return Vec::new();
        };
        if self.pairs(group).iter().all(|p| p.1 != rank) {
            return Vec::new();
        }
        let others = self.members(group).iter().filter(|&&m| m != rank);
        others.copied().collect()
    }

    /// Ranks that receive in stage 1, whether they need anything or not.
    pub fn receivers(&self) -> impl Iterator<Item = Rank> + '_ {
        self.pairs.iter().flatten().map(|p| p.1)
    }
}

/// Sizes and rank lists of both sides.
struct Lists {
    source: SourceSizes,
    destination: DestinationSizes,
    source_ranks: Option<Vec<Vec<Rank>>>,
    destination_ranks: Option<Vec<Vec<Rank>>>,
}

impl Lists {
    fn of(source: &Layout, destination: &Layout, options: &TwoStageOptions) -> Result<Lists> {
        let mut lists = Lists {
            source: SourceSizes::ONE,
            destination: DestinationSizes::ONE,
            source_ranks: options.source_ranks.clone(),
            destination_ranks: options.destination_ranks.clone(),
        };
        match options.source {
            Some(sizes) => lists.source = sizes,
            None => {
                let grid = MeshGrid::of("source", source)?;
                lists.source.tp = grid.tp;
                lists.source.pp = grid.pp;
                lists.source_ranks.get_or_insert(grid.lists);
            }
        }
        match options.destination {
            Some(sizes) => lists.destination = sizes,
            None => {
                let grid = MeshGrid::of("destination", destination)?;
                lists.destination.tp = grid.tp;
                lists.destination.pp = grid.pp;
                let ranks = lists.destination_ranks.get_or_insert(grid.lists);
                lists.destination.replicas = ranks.len() as u32;
            }
        }
        Ok(lists)
    }
}

/// What the meshes of one side say: copies of `[PP][TP]` ranks.
struct MeshGrid {
    tp: u32,
    pp: u32,
    lists: Vec<Vec<Rank>>,
}

impl MeshGrid {
    fn of(side: &str, layout: &Layout) -> Result<MeshGrid> {
        if !layout.explicit().is_empty() {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "two_stage: rank {} of the {side} is described view by view, so that its \
                     place in tensor and pipeline parallel is unknown; give the sizes of the \
                     {side}, or take strategy `direct`, which needs none",
                    layout.explicit()[0].rank
                ),
            )
            .by(layout.explicit()[0].rank));
        }
        let mut grid: Option<MeshGrid> = None;
        for part in layout.parts() {
            let one = MeshGrid::of_part(part);
            match &mut grid {
                None => grid = Some(one),
                Some(all) if (all.tp, all.pp) == (one.tp, one.pp) => all.lists.extend(one.lists),
                Some(all) => {
                    return Err(Error::new(
                        Status::Unsupported,
                        format!(
                            "two_stage: one part of the {side} has TP {} PP {}, another TP {} PP \
                             {}; the mapping needs equal ones, strategy `direct` does not",
                            all.tp, all.pp, one.tp, one.pp
                        ),
                    ));
                }
            }
        }
        grid.ok_or_else(|| Error::layout(format!("two_stage: the {side} has no ranks")))
    }

    fn of_part(part: &Part) -> MeshGrid {
        let meshes = &part.meshes;
        let index = meshes.iter().position(|m| m.axis("tp").is_some());
        let index = index.unwrap_or(0);
        let mesh = &meshes[index];
        let tensor = mesh.axis("tp");
        let of_stages = |r: &crate::layout::placement::Rule| {
            r.stage_axis.filter(|_| usize::from(r.mesh) == index)
        };
        let stage = part.rules.iter().find_map(of_stages);
        let stage = stage.or_else(|| mesh.axis("pp"));
        let size = |axis: Option<u8>| axis.map_or(1, |a| mesh.axes[a as usize].size);
        let (tp, pp) = (size(tensor), size(stage));
        let copies = (mesh.size() / u64::from(tp) / u64::from(pp)) as usize;
        let mut lists = vec![vec![Rank(0); (tp * pp) as usize]; copies];
        for position in 0..part.ranks.count() {
            let coords = mesh.coords(position);
            let at = |axis: Option<u8>| axis.map_or(0, |a| coords[a as usize]);
            let mut copy = 0;
            for (a, axis) in mesh.axes.iter().enumerate() {
                if Some(a as u8) != tensor && Some(a as u8) != stage {
                    copy = copy * axis.size + coords[a];
                }
            }
            let seat = at(stage) * tp + at(tensor);
            lists[copy as usize][seat as usize] = part.ranks.rank(position);
        }
        MeshGrid { tp, pp, lists }
    }
}

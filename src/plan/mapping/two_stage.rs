//! One receiver per source rank and weight-mapping group, then forwards.
//!
//! For each replica, source copies taken in turn:
//!
//! 1. *Contested pairs first.* Source ranks that share a device with a member
//!    of their group choose a receiver while there is still a choice.
//! 2. *The rest* choose in order of stage, then of tensor position.
//! 3. *Forwards.* Each member of a group that became a receiver forwards to
//!    every other member.

use crate::error::{Error, Result, Status};
use crate::rank::Rank;

use super::balancer::{Book, Choice};
use super::lists::{self, Cut, Grid};
use super::single_stage::same_device;
use super::stages::{StageEdge, stage_edges};
use super::{Mapping, MappingSpec, Moved, Pair, Variant, bound, constraint};

/// Maps `m = destination TP / source TP >= 1`, both stages.
///
/// Every destination rank is reached by `I` source ranks, directly or by a
/// forward, where `I` is source PP / destination PP (1 if that is less than 1).
/// No member of a group receives from more than `ceil(I / m)` of them as long
/// as no two ranks of one side share a device. No pair lies within one device,
/// unless [`MappingSpec::keep_same_device`] allows it.
///
/// # Errors
///
/// [`Refusal::Constraint`](super::Refusal::Constraint) if source TP does not
/// divide destination TP, if neither PP divides the other, or if an explicit
/// source list is not made of whole copies;
/// [`Refusal::Infeasible`](super::Refusal::Infeasible) if a source rank shares
/// its device with all members of its group. With `m = 1` there is one member,
/// so that any same-device pair is infeasible.
pub fn two_stage(spec: &MappingSpec) -> Result<Mapping> {
    lists::check(spec)?;
    let sources = lists::sources(spec, Cut::Rows)?;
    let destinations = lists::destinations(spec)?;
    map("two-stage", spec, &sources, &destinations)
}

/// The mapping between two grids that were checked before, for the variant
/// that errors name.
pub(super) fn map(
    variant: &str,
    spec: &MappingSpec,
    sources: &Grid,
    destinations: &Grid,
) -> Result<Mapping> {
    let m = group_size(variant, sources.tensor, destinations.tensor)?;
    let edges = stage_edges(variant, sources.stages, destinations.stages)?;
    let rows = destinations.copies() * destinations.rows;
    let pairs = bound("pairs", &[rows, edges.len(), sources.tensor])?;
    let receivers = m.min(edges.len() / destinations.stages);
    let groups = destinations.stages * sources.tensor;
    let forwards = bound("forwards", &[rows, groups, receivers, m - 1])?;

    let mut run = Run {
        spec,
        sources,
        destinations,
        m,
        edges,
        pairs: Vec::with_capacity(pairs),
        forwards: Vec::with_capacity(forwards),
        moved: Vec::new(),
        collisions: Collisions::default(),
    };
    for row in 0..rows {
        run.map_row(row);
    }
    run.collisions.into_result(variant)?;
    Ok(Mapping {
        variant: Variant::TwoStage,
        group_size: m as u32,
        same_device: same_device(spec, &run.pairs),
        pairs: run.pairs,
        forwards: run.forwards,
        regroup_groups: Vec::new(),
        moved: run.moved,
        sources: sources.seats(spec),
        destinations: destinations.seats(spec),
    })
}

/// `m`, the ranks of a weight-mapping group.
fn group_size(variant: &str, source_tp: usize, destination_tp: usize) -> Result<usize> {
    if destination_tp < source_tp {
        let other = match source_tp.is_multiple_of(destination_tp) {
            true => "; the single-stage mapping serves it",
            false => "",
        };
        return Err(constraint(format_args!(
            "{variant} mapping: destination TP {destination_tp} is less than source TP \
             {source_tp}, so that a rank needs several sources and has nothing to forward{other}"
        )));
    }
    if !destination_tp.is_multiple_of(source_tp) {
        return Err(constraint(format_args!(
            "{variant} mapping: destination TP {destination_tp} is not a multiple of \
             source TP {source_tp}"
        )));
    }
    Ok(destination_tp / source_tp)
}

/// Which member of a fresh group is served first by its n-th edge.
///
/// Ascending for the first `m` edges, descending from then on.
fn first_slot(n: usize, m: usize) -> usize {
    if n < m { n } else { m - 1 - n % m }
}

/// One mapping in the making.
struct Run<'a> {
    spec: &'a MappingSpec,
    sources: &'a Grid,
    destinations: &'a Grid,
    m: usize,
    edges: Vec<StageEdge>,
    pairs: Vec<Pair>,
    forwards: Vec<Pair>,
    moved: Vec<Moved>,
    collisions: Collisions,
}

impl<'a> Run<'a> {
    /// Maps one expert row of one replica. All rows are alike: they differ in
    /// routed experts only.
    fn map_row(&mut self, row: usize) {
        let copy = row % self.sources.copies();
        let mut group = Group {
            books: self.books(row),
            row,
            receives: vec![false; self.destinations.stages * self.destinations.tensor],
        };
        for contested in [true, false] {
            for n in 0..self.edges.len() {
                for t in 0..self.sources.tensor {
                    self.map_sender(copy, n, t, contested, &mut group);
                }
            }
        }
        self.forward(&group);
    }

    /// Fresh books for every group of the row, by stage, then by position.
    fn books(&self, row: usize) -> Vec<Book> {
        let mut books = Vec::with_capacity(self.destinations.stages * self.sources.tensor);
        for (n, edge) in self.edges.iter().enumerate() {
            // The first edge into a destination stage opens its books.
            if edge.destination * self.sources.tensor != books.len() {
                continue;
            }
            for members in self.members(row, edge.destination).chunks_exact(self.m) {
                let devices = members.iter().map(|&r| self.spec.device(r)).collect();
                let book = Book::new(devices, first_slot(n, self.m));
                books.push(if self.spec.keep_same_device {
                    book.keeping_same_device()
                } else {
                    book
                });
            }
        }
        books
    }

    /// Chooses a receiver for the t-th source rank of the n-th edge, if it is
    /// contested as asked for.
    fn map_sender(&mut self, copy: usize, n: usize, t: usize, contested: bool, group: &mut Group) {
        let StageEdge {
            source,
            destination: stage,
        } = self.edges[n];
        let sender = self.sources.row(copy, source, 0)[t];
        let device = self.spec.device(sender);
        let book = &mut group.books[stage * self.sources.tensor + t];
        if book.collides(device) != contested {
            return;
        }

        let choice = book.choose(device);
        let tensor_group = self.members(group.row, stage);
        let members = &tensor_group[t * self.m..][..self.m];
        let Some(Choice { slot, avoided }) = choice else {
            self.collisions.add(sender, device, members);
            return;
        };
        let receiver = members[slot];
        let moved = avoided.map(|slot| Moved {
            sender,
            receiver,
            avoided: members[slot],
        });
        group.receives[stage * self.destinations.tensor + t * self.m + slot] = true;
        self.moved.extend(moved);
        self.pairs.push(Pair::new(sender, receiver));
    }

    /// Within each group, every receiver forwards to every other member.
    fn forward(&mut self, group: &Group) {
        for stage in 0..self.destinations.stages {
            let ranks = self.members(group.row, stage);
            let receives = &group.receives[stage * ranks.len()..][..ranks.len()];
            for (x, &sender) in ranks.iter().enumerate() {
                if !receives[x] {
                    continue;
                }
                let start = x - x % self.m;
                let members = ranks[start..start + self.m].iter();
                let others = members.filter(|&&y| y != sender);
                self.forwards.extend(others.map(|&y| Pair::new(sender, y)));
            }
        }
    }

    /// The destination ranks of one stage of a row: `m` per source position.
    fn members(&self, row: usize, stage: usize) -> &'a [Rank] {
        let rows = self.destinations.rows;
        self.destinations.row(row / rows, stage, row % rows)
    }
}

/// The groups of one row.
struct Group {
    row: usize,
    books: Vec<Book>,
    /// Who was chosen, by stage, then by tensor position.
    receives: Vec<bool>,
}

/// Source ranks without a candidate on another device.
#[derive(Default)]
struct Collisions {
    count: usize,
    /// The first few, as sentences.
    named: Vec<String>,
    first: Option<Rank>,
}

impl Collisions {
    const NAMED_MAX: usize = 8;

    fn add(&mut self, sender: Rank, device: u32, members: &[Rank]) {
        self.count += 1;
        self.first.get_or_insert(sender);
        if self.named.len() == Collisions::NAMED_MAX {
            return;
        }
        let shown: Vec<_> = members.iter().take(8).map(Rank::to_string).collect();
        let more = if members.len() > shown.len() {
            ", ..."
        } else {
            ""
        };
        self.named.push(format!(
            "source rank {sender} shares device {device} with its only candidates {}{more}",
            shown.join(", ")
        ));
    }

    fn into_result(self, variant: &str) -> Result<()> {
        let Some(first) = self.first else {
            return Ok(());
        };
        let more = match self.count - self.named.len() {
            0 => String::new(),
            n => format!("; and {n} more"),
        };
        let message = format!(
            "{variant} mapping is infeasible: {}{more}; a local copy resolves it where both \
             sides are one rank, and a message inside the device where they are two: strategies \
             `direct` and `two_stage` do so, and a mapping that keeps same-device pairs lists them",
            self.named.join("; ")
        );
        Err(Error::new(Status::Infeasible, message).by(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mapping::{DestinationSizes, Refusal, SourceSizes};

    fn spec(src: [u32; 3], dst: [u32; 3]) -> MappingSpec {
        let [tp, pp, dp] = src;
        let n = tp * pp * dp;
        let source = SourceSizes {
            tp,
            pp,
            dp,
            ..SourceSizes::ONE
        };
        let [tp, pp, replicas] = dst;
        let destination = DestinationSizes {
            tp,
            pp,
            ep: 1,
            replicas,
        };
        MappingSpec {
            source,
            destination,
            source_devices: (0..n).collect(),
            destination_devices: (n..n + tp * pp * replicas).collect(),
            ..MappingSpec::default()
        }
    }

    fn numbers(pairs: &[Pair]) -> Vec<(u32, u32)> {
        pairs.iter().map(|p| (p.sender.0, p.receiver.0)).collect()
    }

    #[test]
    fn colocated_and_reversed() {
        let mut spec = spec([2, 4, 1], [8, 1, 1]);
        spec.destination_devices = (0..8).rev().collect();
        let mapping = two_stage(&spec).unwrap();
        assert_eq!(
            numbers(&mapping.pairs),
            [
                (1, 12),
                (3, 13),
                (4, 8),
                (6, 10),
                (0, 11),
                (2, 9),
                (5, 15),
                (7, 14)
            ]
        );
        assert_eq!(mapping.forwards.len(), 8 * 3);
        assert!(mapping.loads().iter().all(|&(_, load)| load == 1));
    }

    #[test]
    fn a_source_stage_feeds_several_destination_stages() {
        let mapping = two_stage(&spec([1, 1, 1], [2, 2, 1])).unwrap();
        assert_eq!(numbers(&mapping.pairs), [(0, 1), (0, 4)]);
        assert_eq!(numbers(&mapping.forwards), [(1, 2), (4, 3)]);
    }

    #[test]
    fn expert_rows_of_a_destination_are_served_alike() {
        let mut spec = spec([1, 1, 2], [2, 1, 2]);
        spec.destination = DestinationSizes {
            tp: 2,
            pp: 1,
            ep: 2,
            replicas: 1,
        };
        let mapping = two_stage(&spec).unwrap();
        assert_eq!(numbers(&mapping.pairs), [(0, 2), (1, 4)]);
        assert_eq!(numbers(&mapping.forwards), [(2, 3), (4, 5)]);
    }

    #[test]
    fn slices_follow_positions() {
        let mapping = two_stage(&spec([1, 1, 3], [2, 1, 2])).unwrap();
        let slices: Vec<_> = mapping
            .destinations
            .iter()
            .map(|s| mapping.slice(s))
            .collect();
        assert_eq!(slices, [0, 1, 0, 1]);
    }

    #[test]
    fn refusals_name_their_numbers() {
        let e = two_stage(&spec([2, 1, 1], [3, 1, 1])).unwrap_err();
        assert_eq!(Refusal::of(&e), Refusal::Constraint);
        assert!(
            e.message
                .contains("destination TP 3 is not a multiple of source TP 2")
        );
        let e = two_stage(&spec([4, 1, 1], [2, 1, 1])).unwrap_err();
        assert_eq!(Refusal::of(&e), Refusal::Constraint);
        assert!(
            e.message
                .contains("destination TP 2 is less than source TP 4")
        );
        assert!(e.message.contains("the single-stage mapping serves it"));
        let e = two_stage(&spec([3, 1, 1], [2, 1, 1])).unwrap_err();
        assert!(
            e.message
                .contains("destination TP 2 is less than source TP 3")
        );
        assert!(!e.message.contains("single-stage"), "2 does not divide 3");

        let mut a = spec([1, 2, 1], [1, 1, 1]);
        a.destination_devices = vec![1];
        let e = two_stage(&a).unwrap_err();
        assert_eq!(Refusal::of(&e), Refusal::Infeasible);
        assert_eq!(e.rank, Some(Rank(1)));
        assert!(
            e.message
                .contains("source rank 1 shares device 1 with its only candidates 2")
        );
        assert!(e.message.contains("local copy"));
    }

    #[test]
    fn too_many_pairs_are_refused_before_they_are_made() {
        let e = two_stage(&spec([1, 512, 1], [1 << 18, 1, 2])).unwrap_err();
        assert_eq!(e.status, Status::LimitExceeded);
    }
}

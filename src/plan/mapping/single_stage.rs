//! Straight from source rank to destination rank.
//!
//! ```text
//!   source TP 2, PP 2           destination TP 2, PP 1
//!
//!   stage 0: ranks 0, 1 ──┬──►  ranks 4, 5      pairs (0,4) (1,5)
//!   stage 1: ranks 2, 3 ──╯                           (2,4) (3,5)
//! ```

use crate::error::Result;
use crate::rank::Rank;

use super::lists::{self, Cut, Grid};
use super::stages::stage_edges;
use super::{Mapping, MappingSpec, Pair, Variant, bound, constraint};

/// Maps every destination rank straight to the source ranks that hold what it
/// needs.
///
/// With equal TP that is one rank per source stage. If one TP divides the
/// other, it is the ranks whose shares overlap: a destination rank gathers from
/// `source TP / destination TP` ranks, or shares one with its neighbours.
/// Expert row `f` of a replica is fed by row `f mod EP` of the source, which is
/// complete for everything but routed experts; for these, the ranks of a
/// regroup group must exchange them first if the two EP differ.
///
/// Same-device pairs are kept and listed in [`Mapping::same_device`].
/// Replicas take the source copies in turn, from the last one if the models are
/// colocated and the source TP is odd.
///
/// # Errors
///
/// [`Refusal::Constraint`](super::Refusal::Constraint) if of the two TP, or of
/// the two PP, neither divides the other, or if an explicit source list is not
/// made of whole copies.
pub fn single_stage(spec: &MappingSpec) -> Result<Mapping> {
    lists::check(spec)?;
    let sources = lists::sources(spec, Cut::Whole)?;
    let destinations = lists::destinations(spec)?;
    map(
        "single-stage",
        spec,
        &sources,
        &destinations,
        Elements::ByShare,
    )
}

/// How the ranks of a stage meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// By tensor share, expert row by expert row.
    ByShare,
    /// The k-th of all `EP * TP` ranks with the k-th: routed experts that were
    /// regrouped so that positions agree.
    ByPosition,
}

/// The mapping between two grids that were checked before, for the variant
/// that errors name.
pub(super) fn map(
    variant: &str,
    spec: &MappingSpec,
    sources: &Grid,
    destinations: &Grid,
    elements: Elements,
) -> Result<Mapping> {
    let edges = stage_edges(variant, sources.stages, destinations.stages)?;
    let meetings = match elements {
        Elements::ByShare => meet_by_share(variant, sources, destinations)?,
        Elements::ByPosition => {
            let len = sources.rows * sources.tensor;
            debug_assert_eq!(len, destinations.rows * destinations.tensor);
            (0..len).map(|k| (k, k)).collect()
        }
    };
    let replicas = destinations.copies();
    let pairs = bound("pairs", &[replicas, edges.len(), meetings.len()])?;
    let stage_len = sources.rows * sources.tensor;
    bound("regroup members", &[replicas, sources.stages, stage_len])?;

    let mut mapping = Mapping {
        variant: Variant::SingleStage,
        group_size: 1,
        pairs: Vec::with_capacity(pairs),
        forwards: Vec::new(),
        regroup_groups: Vec::with_capacity(replicas * sources.stages),
        moved: Vec::new(),
        same_device: Vec::new(),
        sources: sources.seats(spec),
        destinations: destinations.seats(spec),
    };
    let turns = Turns::new(spec, sources);
    for replica in 0..replicas {
        let copy = turns.copy(replica);
        for edge in &edges {
            let from = sources.stage(copy, edge.source);
            let to = destinations.stage(replica, edge.destination);
            let pairs = meetings.iter().map(|&(s, d)| Pair::new(from[s], to[d]));
            mapping.pairs.extend(pairs);
        }
        mapping.regroup_groups.extend(stage_blocks(sources, copy));
    }
    mapping.same_device = same_device(spec, &mapping.pairs);
    Ok(mapping)
}

/// Which source copy serves which replica: in turn, from the last if the models
/// are colocated and the source TP is odd.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns {
    copies: usize,
    is_reversed: bool,
}

impl Turns {
    pub fn new(spec: &MappingSpec, sources: &Grid) -> Turns {
        Turns {
            copies: sources.copies(),
            is_reversed: sources.tensor % 2 == 1 && spec.is_colocated(),
        }
    }

    pub fn copy(self, replica: usize) -> usize {
        let turn = replica % self.copies;
        if self.is_reversed {
            self.copies - 1 - turn
        } else {
            turn
        }
    }
}

/// The ranks of each stage of a source copy.
pub(super) fn stage_blocks(sources: &Grid, copy: usize) -> impl Iterator<Item = Vec<Rank>> {
    (0..sources.stages).map(move |stage| sources.stage(copy, stage).to_vec())
}

/// Pairs whose ends share a device, in order.
pub(super) fn same_device(spec: &MappingSpec, pairs: &[Pair]) -> Vec<Pair> {
    let same = |pair: &&Pair| spec.device(pair.sender) == spec.device(pair.receiver);
    pairs.iter().filter(same).copied().collect()
}

/// Positions (source, destination) within a stage whose tensor shares overlap.
fn meet_by_share(
    variant: &str,
    sources: &Grid,
    destinations: &Grid,
) -> Result<Vec<(usize, usize)>> {
    let (a, b) = (sources.tensor, destinations.tensor);
    if a % b != 0 && b % a != 0 {
        return Err(constraint(format_args!(
            "{variant} mapping: of source TP {a} and destination TP {b} neither \
             divides the other, so that shares overlap in part"
        )));
    }
    // Either `gather` source ranks make up a share, or `spread` shares make up
    // a source rank; the other one is 1.
    let (gather, spread) = (a.div_ceil(b), b.div_ceil(a));
    let mut meetings = Vec::with_capacity(destinations.rows * a.max(b));
    for row in 0..destinations.rows {
        let source_row = row % sources.rows * a;
        for t in 0..b {
            let first = source_row + t / spread * gather;
            let to = row * b + t;
            meetings.extend((first..first + gather).map(|from| (from, to)));
        }
    }
    Ok(meetings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mapping::{DestinationSizes, Refusal, SourceSizes};

    fn pairs(source: SourceSizes, destination: DestinationSizes) -> Result<Vec<(u32, u32)>> {
        let n = source.tp * source.pp * source.ep * source.dp * source.cp;
        let k = destination.tp * destination.pp * destination.ep * destination.replicas;
        let spec = MappingSpec {
            source,
            destination,
            source_devices: (0..n).collect(),
            destination_devices: (n..n + k).collect(),
            ..MappingSpec::default()
        };
        let mapping = single_stage(&spec)?;
        Ok(mapping
            .pairs
            .iter()
            .map(|p| (p.sender.0, p.receiver.0))
            .collect())
    }

    const SRC: SourceSizes = SourceSizes::ONE;
    const DST: DestinationSizes = DestinationSizes::ONE;

    #[test]
    fn several_stages_into_one() {
        let got = pairs(
            SourceSizes {
                tp: 2,
                pp: 2,
                ..SRC
            },
            DestinationSizes { tp: 2, ..DST },
        );
        assert_eq!(got.unwrap(), [(0, 4), (1, 5), (2, 4), (3, 5)]);
    }

    #[test]
    fn a_smaller_tp_gathers_and_a_larger_one_shares() {
        let got = pairs(
            SourceSizes { tp: 4, ..SRC },
            DestinationSizes { tp: 2, ..DST },
        );
        assert_eq!(got.unwrap(), [(0, 4), (1, 4), (2, 5), (3, 5)]);
        let got = pairs(
            SourceSizes { tp: 2, ..SRC },
            DestinationSizes { tp: 4, ..DST },
        );
        assert_eq!(got.unwrap(), [(0, 2), (0, 3), (1, 4), (1, 5)]);
    }

    #[test]
    fn expert_rows_wrap_around() {
        let got = pairs(
            SourceSizes { ep: 2, ..SRC },
            DestinationSizes { ep: 4, ..DST },
        );
        assert_eq!(got.unwrap(), [(0, 2), (1, 3), (0, 4), (1, 5)]);
        let got = pairs(SourceSizes { ep: 2, ..SRC }, DST);
        assert_eq!(got.unwrap(), [(0, 2)]);
    }

    #[test]
    fn context_parallel_counts_as_data_parallel() {
        let source = SourceSizes {
            cp: 2,
            pp: 2,
            ..SRC
        };
        let got = pairs(source, DestinationSizes { replicas: 2, ..DST });
        assert_eq!(got.unwrap(), [(0, 4), (2, 4), (1, 5), (3, 5)]);
    }

    #[test]
    fn overlap_in_part_is_refused() {
        let e = pairs(
            SourceSizes { tp: 3, ..SRC },
            DestinationSizes { tp: 2, ..DST },
        )
        .unwrap_err();
        assert_eq!(Refusal::of(&e), Refusal::Constraint);
        assert!(
            e.message.contains("source TP 3 and destination TP 2"),
            "{e}"
        );
    }
}

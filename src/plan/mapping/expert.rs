//! Mixture of experts: routed experts apart from the rest.
//!
//! Routed experts are the only weights that expert parallelism cuts. They are
//! first *regrouped* inside the source, among the `EP * TP` ranks of a stage,
//! and then take one of two ways:
//!
//! ```text
//!   TP*EP equal on both sides     all-to-all: each source rank ends up with
//!                                 exactly the slice of one destination rank,
//!                                 sent by pairs of its own (`routed`)
//!   otherwise                     all-gather: each source rank ends up with
//!                                 its tensor share of all experts, which now
//!                                 travel with the rest
//! ```
//!
//! Everything else is mapped as without experts, each expert row being one more
//! copy.

use serde::Serialize;

use crate::error::Result;
use crate::rank::Rank;

use super::lists::{self, Cut, Grid};
use super::single_stage::{self, Elements, Turns, same_device, stage_blocks};
use super::stages::stage_edges;
use super::{Mapping, MappingSpec, Pair, Seat, Variant, bound, constraint, two_stage};

/// What errors call this mapping, whichever halves it is made of.
const VARIANT: &str = "expert";

/// How the ranks of a regroup group exchange their routed experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Regroup {
    /// Each rank ends up with the slice of one destination rank.
    AllToAll,
    /// Each rank ends up with its tensor share of all experts of the group.
    AllGather,
}

/// The mapping of a mixture of experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertMapping {
    /// Pairs of routed experts alone. Empty if, once regrouped, they travel
    /// with the rest.
    pub routed: Vec<Pair>,
    /// Every source rank that may send routed experts on their own. Empty if
    /// `routed` is.
    pub routed_sources: Vec<Seat>,
    /// Everything else, and routed experts if `routed` is empty.
    pub rest: Mapping,
    /// Source ranks that regroup their routed experts before anything is sent.
    pub regroup_groups: Vec<Vec<Rank>>,
    pub regroup: Regroup,
}

/// Maps a mixture of experts to vLLM or to Megatron.
///
/// | destination | TP | EP, TP*EP | routed experts | the rest |
/// |---|---|---|---|---|
/// | either | equal | equal EP | with the rest | single stage |
/// | vLLM | equal | smaller EP | with the rest | source rows in turn |
/// | vLLM | larger | equal TP*EP | source rows in turn | two stages |
/// | vLLM | larger | other | with the rest | two stages |
/// | Megatron | larger | equal TP*EP | position by position | two stages |
///
/// *Source rows in turn*: each destination stage takes as many source rows as
/// make up its TP, going on where the stage before it left off, so that all
/// expert rows take part.
///
/// # Errors
///
/// [`Refusal::Constraint`](super::Refusal::Constraint) if destination TP is not
/// a multiple of source TP, if destination EP exceeds source EP, if neither PP
/// divides the other, or if the destination is Megatron and TP*EP would have to
/// be cut anew; [`Refusal::Infeasible`](super::Refusal::Infeasible) as in
/// [`two_stage`](super::two_stage()).
pub fn expert(spec: &MappingSpec) -> Result<ExpertMapping> {
    lists::check(spec)?;
    let whole = lists::expert_sources(spec)?;
    let destinations = lists::destinations(spec)?;
    let sizes = Sizes::check(&whole, &destinations)?;
    if sizes.is_single_stage() {
        let elements = Elements::ByShare;
        let mut rest = single_stage::map(VARIANT, spec, &whole, &destinations, elements)?;
        let regroup_groups = std::mem::take(&mut rest.regroup_groups);
        return Ok(ExpertMapping {
            routed: Vec::new(),
            routed_sources: Vec::new(),
            rest,
            regroup_groups,
            regroup: sizes.regroup(),
        });
    }
    if !spec.destination_is_vllm {
        return to_megatron(spec, &whole, &destinations, sizes);
    }
    to_vllm(spec, &whole, &destinations, sizes)
}

/// The sizes that decide between the variants.
#[derive(Clone, Copy)]
struct Sizes {
    source_tp: usize,
    source_ep: usize,
    destination_tp: usize,
    destination_ep: usize,
}

impl Sizes {
    fn check(sources: &Grid, destinations: &Grid) -> Result<Sizes> {
        let sizes = Sizes {
            source_tp: sources.tensor,
            source_ep: sources.rows,
            destination_tp: destinations.tensor,
            destination_ep: destinations.rows,
        };
        let (a, b) = (sizes.source_tp, sizes.destination_tp);
        if b % a != 0 {
            return Err(constraint(format_args!(
                "expert mapping: destination TP {b} is not a multiple of source TP {a}"
            )));
        }
        let (a, b) = (sizes.source_ep, sizes.destination_ep);
        if b > a {
            return Err(constraint(format_args!(
                "expert mapping: destination EP {b} is greater than source EP {a}"
            )));
        }
        Ok(sizes)
    }

    fn is_single_stage(self) -> bool {
        self.source_tp == self.destination_tp && self.source_ep == self.destination_ep
    }

    /// True if both sides cut routed experts into equally many slices.
    fn slices_agree(self) -> bool {
        self.source_tp * self.source_ep == self.destination_tp * self.destination_ep
    }

    fn regroup(self) -> Regroup {
        if self.slices_agree() {
            Regroup::AllToAll
        } else {
            Regroup::AllGather
        }
    }
}

fn to_megatron(
    spec: &MappingSpec,
    whole: &Grid,
    destinations: &Grid,
    sizes: Sizes,
) -> Result<ExpertMapping> {
    if !sizes.slices_agree() {
        let Sizes {
            source_tp: a,
            source_ep: e,
            destination_tp: b,
            destination_ep: f,
        } = sizes;
        return Err(constraint(format_args!(
            "expert mapping: source TP {a} x EP {e} = {} and destination TP {b} x EP {f} = {} \
             differ, so that the routed experts of a Megatron destination would be cut anew",
            a * e,
            b * f
        )));
    }
    let elements = Elements::ByPosition;
    let routed = single_stage::map(VARIANT, spec, whole, destinations, elements)?;
    Ok(ExpertMapping {
        rest: the_rest(spec, destinations)?,
        routed: routed.pairs,
        routed_sources: routed.sources,
        regroup_groups: routed.regroup_groups,
        regroup: sizes.regroup(),
    })
}

fn to_vllm(
    spec: &MappingSpec,
    whole: &Grid,
    destinations: &Grid,
    sizes: Sizes,
) -> Result<ExpertMapping> {
    let mut regroup_groups = visited_blocks(spec, whole, destinations.copies());
    let regroup = sizes.regroup();
    if sizes.source_tp == sizes.destination_tp {
        let rest = rows_in_turn(spec, whole, destinations)?;
        return Ok(ExpertMapping {
            routed: Vec::new(),
            routed_sources: Vec::new(),
            rest: with_seats(spec, whole, destinations, rest),
            regroup_groups,
            regroup,
        });
    }

    let rest = the_rest(spec, destinations)?;
    let (routed, routed_sources) = if sizes.slices_agree() {
        let routed = rows_in_turn(spec, whole, destinations)?;
        (routed, whole.seats(spec))
    } else {
        add_missing_blocks(spec, whole, &rest.pairs, &mut regroup_groups);
        (Vec::new(), Vec::new())
    };
    Ok(ExpertMapping {
        routed,
        routed_sources,
        rest,
        regroup_groups,
        regroup,
    })
}

/// Everything but routed experts, in two stages.
fn the_rest(spec: &MappingSpec, destinations: &Grid) -> Result<Mapping> {
    let sources = lists::sources(spec, Cut::Rows)?;
    two_stage::map(VARIANT, spec, &sources, destinations)
}

/// Pairs of routed experts: each row of the destination takes the next source
/// rows of its stage, wherever the one before it left off.
fn rows_in_turn(spec: &MappingSpec, whole: &Grid, destinations: &Grid) -> Result<Vec<Pair>> {
    let edges = stage_edges(VARIANT, whole.stages, destinations.stages)?;
    let replicas = destinations.copies();
    let stage_len = destinations.rows * destinations.tensor;
    let mut pairs = Vec::with_capacity(bound("pairs", &[replicas, edges.len(), stage_len])?);
    let mut offsets = vec![0; whole.copies()];
    let turns = Turns::new(spec, whole);
    for replica in 0..replicas {
        let copy = turns.copy(replica);
        for edge in &edges {
            for row in 0..destinations.rows {
                let targets = destinations.row(replica, edge.destination, row);
                for targets in targets.chunks_exact(whole.tensor) {
                    let senders = whole.row(copy, edge.source, offsets[copy]);
                    offsets[copy] = (offsets[copy] + 1) % whole.rows;
                    let met = senders.iter().zip(targets);
                    pairs.extend(met.map(|(&s, &r)| Pair::new(s, r)));
                }
            }
        }
    }
    Ok(pairs)
}

/// The stage blocks of every source copy that some replica takes, each once.
fn visited_blocks(spec: &MappingSpec, whole: &Grid, replicas: usize) -> Vec<Vec<Rank>> {
    let visited = replicas.min(whole.copies());
    let turns = Turns::new(spec, whole);
    (0..visited)
        .flat_map(|replica| stage_blocks(whole, turns.copy(replica)))
        .collect()
}

/// Adds the blocks of senders that would otherwise send routed experts without
/// having regrouped them.
///
/// The two halves go through the source copies in different ways, so that with
/// few replicas they may use different ones.
fn add_missing_blocks(
    spec: &MappingSpec,
    whole: &Grid,
    pairs: &[Pair],
    groups: &mut Vec<Vec<Rank>>,
) {
    let mut waiting = vec![false; spec.source_devices.len()];
    for pair in pairs {
        waiting[pair.sender.index()] = true;
    }
    for &rank in groups.iter().flatten() {
        waiting[rank.index()] = false;
    }
    for block in (0..whole.copies()).flat_map(|copy| stage_blocks(whole, copy)) {
        if block.iter().any(|rank| waiting[rank.index()]) {
            groups.push(block);
        }
    }
}

fn with_seats(spec: &MappingSpec, whole: &Grid, destinations: &Grid, pairs: Vec<Pair>) -> Mapping {
    Mapping {
        variant: Variant::ExpertRows,
        group_size: 1,
        same_device: same_device(spec, &pairs),
        pairs,
        forwards: Vec::new(),
        regroup_groups: Vec::new(),
        moved: Vec::new(),
        sources: whole.seats(spec),
        destinations: destinations.seats(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mapping::{DestinationSizes, Refusal, SourceSizes};

    fn spec(source: SourceSizes, destination: DestinationSizes, vllm: bool) -> MappingSpec {
        let n = source.tp * source.pp * source.ep * source.dp;
        let k = destination.tp * destination.pp * destination.ep * destination.replicas;
        MappingSpec {
            source,
            destination,
            source_devices: (0..n).collect(),
            destination_devices: (n..n + k).collect(),
            destination_is_vllm: vllm,
            ..MappingSpec::default()
        }
    }

    const SRC: SourceSizes = SourceSizes::ONE;
    const DST: DestinationSizes = DestinationSizes::ONE;

    fn numbers(pairs: &[Pair]) -> Vec<(u32, u32)> {
        pairs.iter().map(|p| (p.sender.0, p.receiver.0)).collect()
    }

    #[test]
    fn routed_experts_on_their_own() {
        let source = SourceSizes { ep: 2, ..SRC };
        let got = expert(&spec(source, DestinationSizes { tp: 2, ..DST }, true)).unwrap();
        assert_eq!(numbers(&got.routed), [(0, 2), (1, 3)]);
        assert_eq!(numbers(&got.rest.pairs), [(0, 2)]);
        assert_eq!(numbers(&got.rest.forwards), [(2, 3)]);
        assert_eq!(got.regroup, Regroup::AllToAll);
    }

    #[test]
    fn successive_stages_take_successive_rows() {
        let source = SourceSizes {
            tp: 2,
            pp: 2,
            ep: 2,
            ..SRC
        };
        let got = expert(&spec(source, DestinationSizes { tp: 2, ..DST }, true)).unwrap();
        assert_eq!(numbers(&got.rest.pairs), [(0, 8), (1, 9), (6, 8), (7, 9)]);
        assert_eq!(got.regroup, Regroup::AllGather);
    }

    #[test]
    fn every_expert_row_of_the_destination_is_served() {
        let source = SourceSizes { ep: 4, ..SRC };
        let got = expert(&spec(
            source,
            DestinationSizes {
                tp: 2,
                ep: 2,
                ..DST
            },
            true,
        ))
        .unwrap();
        assert_eq!(numbers(&got.routed), [(0, 4), (1, 5), (2, 6), (3, 7)]);
    }

    /// Routed experts go backwards through the copies, the rest forwards; with
    /// one replica they meet different copies, and both must be regrouped.
    #[test]
    fn whoever_sends_routed_experts_has_regrouped_them() {
        let source = SourceSizes {
            ep: 2,
            dp: 2,
            pp: 2,
            ..SRC
        };
        let mut spec = spec(source, DestinationSizes { tp: 4, ..DST }, true);
        spec.colocated = Some(true);
        let got = expert(&spec).unwrap();
        assert!(got.routed.is_empty());
        let groups: Vec<Vec<u32>> = got
            .regroup_groups
            .iter()
            .map(|group| group.iter().map(|r| r.0).collect())
            .collect();
        assert_eq!(groups, [[2, 3], [6, 7], [0, 1], [4, 5]]);
    }

    #[test]
    fn refusals_name_their_numbers() {
        let refused = |source, destination, vllm| {
            let e = expert(&spec(source, destination, vllm)).unwrap_err();
            assert_eq!(Refusal::of(&e), Refusal::Constraint);
            e.message
        };
        let message = refused(SourceSizes { tp: 2, ..SRC }, DST, true);
        assert!(message.contains("destination TP 1 is not a multiple of source TP 2"));
        let message = refused(SRC, DestinationSizes { ep: 2, ..DST }, true);
        assert!(message.contains("destination EP 2 is greater than source EP 1"));
        let message = refused(SRC, DestinationSizes { tp: 2, ..DST }, false);
        assert!(message.contains("source TP 1 x EP 1 = 1 and destination TP 2 x EP 1 = 2"));
    }
}

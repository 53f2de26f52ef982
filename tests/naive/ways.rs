//! Every way to plan: strategies with all that hangs on them, and what the
//! ranks stand on.

use super::layouts::Side;
use proptest::prelude::*;
use weightsync::layout::mesh::RankList;
use weightsync::plan::decision::{
    Order, PlanOptions, SourceCopies, SourceGroup, SourceRule, Spread, Strategy as Way,
};
use weightsync::plan::mapping::{DestinationSizes, SourceSizes};
use weightsync::plan::topology::{FabricCut, HostGroup, PlacementRun, SpeedFactor, TopologySpec};
use weightsync::plan::two_stage::TwoStageOptions;

const GB: u64 = 1_000_000_000;

/// Any strategy, any order, on any topology, in few buckets.
pub fn options() -> impl Strategy<Value = PlanOptions> {
    (strategy(), topology(), 1u32..6, direct_bytes_min()).prop_map(
        |(options, topology, bucket_count, direct_bytes_min)| PlanOptions {
            topology: Some(topology),
            bucket_count,
            direct_bytes_min,
            ..options
        },
    )
}

pub fn direct_bytes_min() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1u64), Just(8), Just(1 << 20)]
}

fn strategy() -> impl Strategy<Value = PlanOptions> {
    (
        prop::sample::select(Way::ALL.to_vec()),
        any::<[bool; 4]>(),
        prop::option::of(0u32..3),
        prop::option::of(1u32..5),
    )
        .prop_map(
            |(strategy, [rotates, chains, relays, is_in_layers], rotation, copies)| PlanOptions {
                strategy,
                source_rule: [SourceRule::Wrap, SourceRule::Rotate][usize::from(rotates)],
                spread: match chains && strategy == Way::Fanout {
                    true => Spread::Chain,
                    false => Spread::Scatter,
                },
                source_relay: relays && strategy.is_clustered(),
                order: [Order::Fraction, Order::Layer][usize::from(is_in_layers)],
                rotation,
                copies: copies.map_or(Vec::new(), each_group),
                ..PlanOptions::default()
            },
        )
}

/// So many copies of what each source group holds.
fn each_group(copies: u32) -> Vec<SourceCopies> {
    let group = |stage| SourceGroup { part: 0, stage };
    let groups = [group(None), group(Some(0)), group(Some(1))];
    groups.map(|group| SourceCopies { group, copies }).to_vec()
}

/// Hosts of a few GPUs, with sources and destinations apart or side by side,
/// some ranks slow, and the hosts in cells.
pub fn topology() -> impl Strategy<Value = TopologySpec> {
    (
        (1u32..6, 1u32..4, 0u32..4),
        any::<[bool; 2]>(),
        prop::option::of((0u32..40, 1u32..100)),
        prop::option::of((1u32..4, 5u64..100)),
    )
        .prop_map(|((gpus, domain_hosts, mix), nics, slow, cell)| {
            let placement = match mix {
                0 => Some((0, 1)),
                1 => Some((3, 2)),
                _ => None,
            };
            TopologySpec {
                hosts: vec![HostGroup {
                    count: 512 / gpus * domain_hosts,
                    gpus,
                    nics: [1, gpus, 2 * gpus][usize::from(nics[0]) + usize::from(nics[1])],
                    domain_hosts,
                    ..HostGroup::default()
                }],
                placement: Vec::from_iter(placement.map(|(gpu, ranks_per_gpu)| PlacementRun {
                    ranks: range(0, 128),
                    gpu,
                    ranks_per_gpu,
                })),
                // Only ranks that are placed here have a name for their port.
                speeds: Vec::from_iter(slow.filter(|_| mix < 2).map(|(first, percent)| {
                    SpeedFactor {
                        ranks: range(first, 1),
                        nic_percent: percent,
                        nvlink_percent: 100,
                        is_drained: false,
                    }
                })),
                cuts: Vec::from_iter(cell.map(|(hosts, speed)| FabricCut {
                    name: "leaf".into(),
                    hosts,
                    by_rail: false,
                    out_bytes_per_s: speed * GB,
                    in_bytes_per_s: speed * GB,
                })),
                latency_ns: 100,
                ..TopologySpec::default()
            }
        })
}

fn range(first: u32, count: u32) -> RankList {
    RankList::Range { first, count }
}

/// The mapping's lists, as the sizes of both sides say.
pub fn two_stage(source: &Side, destination: &Side) -> TwoStageOptions {
    let ([dp, pp, tp], [replicas, stages, width]) = (source.sizes(), destination.sizes());
    TwoStageOptions {
        source: Some(SourceSizes {
            tp,
            pp,
            dp,
            ..SourceSizes::ONE
        }),
        destination: Some(DestinationSizes {
            tp: width,
            pp: stages,
            replicas,
            ..DestinationSizes::ONE
        }),
        source_ranks: Some(source.copies()),
        destination_ranks: Some(destination.copies()),
        avoid_same_device: false,
    }
}

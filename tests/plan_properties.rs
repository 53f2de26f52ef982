//! Random layouts against a reference that moves one element at a time.

mod layout_support;
#[path = "naive/layouts.rs"]
mod layouts;
mod naive;
#[path = "naive/ways.rs"]
mod ways;

use layout_support::{Dice, random_pair};
use naive::World;
use proptest::prelude::*;
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, SourceRule, Strategy as Way};
use weightsync::plan::program::Side;

fn options(rotate: bool, buckets: u32, direct: u64) -> PlanOptions {
    PlanOptions {
        source_rule: if rotate {
            SourceRule::Rotate
        } else {
            SourceRule::Wrap
        },
        bucket_count: buckets,
        direct_bytes_min: direct,
        ..PlanOptions::default()
    }
}

/// Plans, proves the plan, runs it and compares every element.
fn deliver(
    tensors: &[weightsync::layout::tensor::Tensor],
    source: &layouts::Side,
    destination: &layouts::Side,
    options: &PlanOptions,
) {
    run_plan(source.layout(tensors), destination.layout(tensors), options);
}

fn run_plan(source: Layout, destination: Layout, options: &PlanOptions) {
    let plan = match Plan::create(Arc::new(source), Arc::new(destination), options) {
        Ok(plan) => plan,
        // Sizes that the mapping refuses.
        Err(e) if e.status == weightsync::Status::Unsupported => return,
        Err(e) => panic!("{e}"),
    };
    plan.verify().unwrap();
    infos_are_of_programs(&plan);
    let mut world = World::new();
    naive::memory(plan.source(), Side::Source, &mut world);
    naive::memory(plan.destination(), Side::Destination, &mut world);
    naive::run(&plan, &mut world);
    naive::check(plan.destination(), &world).unwrap();
}

/// What is said of a program is what a session loads.
fn infos_are_of_programs(plan: &Plan) {
    let mut ranks = [plan.source().ranks(), plan.destination().ranks()].concat();
    ranks.sort_unstable();
    ranks.dedup();
    let infos = plan.program_infos(&ranks).unwrap();
    for (&rank, info) in ranks.iter().zip(infos) {
        let program = plan.program_with_digests(rank).unwrap();
        assert_eq!(info, plan.program_info(rank).unwrap());
        assert_eq!(info.buffers as usize, program.buffers.len(), "rank {rank}");
        assert_eq!(info.messages as usize, program.messages.len());
        assert_eq!(info.peers as usize, program.peers().len());
        assert_eq!(info.staging_bytes, program.memory_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Any layout to any layout: every destination element arrives, once.
    #[test]
    fn every_destination_element_arrives_once(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(0u32..30),
        rotate: bool,
        buckets in 1u32..6,
        direct in prop_oneof![Just(1u64), Just(8), Just(1 << 20)],
    ) {
        deliver(&tensors, &source, &destination, &options(rotate, buckets, direct));
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// The same by any strategy and in any order, whatever the ranks stand on:
    /// clusters that scatter and chains, relays on either side.
    #[test]
    fn every_destination_element_arrives_once_by_every_way(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(0u32..30),
        way in ways::options(),
    ) {
        let options = PlanOptions {
            two_stage: ways::two_stage(&source, &destination),
            ..way
        };
        deliver(&tensors, &source, &destination, &options);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same with everything that a layout can say: several meshes and parts,
    /// parts of cuts, granules, casts, split, grouped and fused buffers, padding,
    /// up to 8 axes or none, ranks described either way.
    #[test]
    fn whatever_a_layout_says_arrives_once(
        seed: u64,
        rotate: bool,
        buckets in 1u32..6,
        direct in prop_oneof![Just(1u64), Just(8), Just(1 << 20)],
        in_clusters in prop::option::of((ways::topology(), any::<bool>())),
    ) {
        let (source, destination) = random_pair(&mut Dice(seed));
        let mut options = options(rotate, buckets, direct);
        if let Some((topology, is_fanout)) = in_clusters {
            options.topology = Some(topology);
            options.strategy = if is_fanout { Way::Fanout } else { Way::Relay };
        }
        run_plan(source, destination, &options);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The same by the two-stage mapping, whatever its senders hold.
    #[test]
    fn every_destination_element_arrives_once_in_two_stages(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(0u32..30),
        buckets in 1u32..6,
        direct in ways::direct_bytes_min(),
    ) {
        let options = PlanOptions {
            strategy: Way::TwoStage,
            two_stage: ways::two_stage(&source, &destination),
            ..options(false, buckets, direct)
        };
        deliver(&tensors, &source, &destination, &options);
    }

    /// The budget is a limit; a refusal names the smallest that some bucket count
    /// keeps.
    #[test]
    fn staging_stays_inside_its_budget(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(20u32..30),
        budget in 64u64..4096,
        way in ways::options(),
    ) {
        let (s, d) = (source.layout(&tensors), destination.layout(&tensors));
        let options = PlanOptions {
            staging_bytes_max: budget,
            bucket_count: 0,
            two_stage: ways::two_stage(&source, &destination),
            ..way
        };
        let (s, d) = (Arc::new(s), Arc::new(d));
        match Plan::create(s.clone(), d.clone(), &options) {
            Ok(plan) => {
                for rank in plan.ranks() {
                    prop_assert!(plan.program(rank).unwrap().memory_bytes() <= budget);
                }
            }
            Err(e) if e.status == weightsync::Status::Unsupported => {}
            Err(e) => {
                prop_assert_eq!(e.status, weightsync::Status::StagingTooSmall);
                let advice = e.message.split("set it to ").nth(1);
                let advice = advice.and_then(|a| a.split(' ').next()?.parse::<u64>().ok());
                let Some(staging_bytes_max) = advice else {
                    panic!("no budget that works: {e}");
                };
                let options = PlanOptions { staging_bytes_max, ..options };
                let plan = Plan::create(s.clone(), d.clone(), &options).unwrap();
                for rank in plan.ranks() {
                    let bytes = plan.program(rank).unwrap().memory_bytes();
                    prop_assert!(bytes <= staging_bytes_max);
                }
                let staging_bytes_max = staging_bytes_max - 1;
                for bucket_count in (0..24).filter(|_| staging_bytes_max > 0) {
                    let less = PlanOptions { staging_bytes_max, bucket_count, ..options.clone() };
                    prop_assert!(Plan::create(s.clone(), d.clone(), &less).is_err());
                }
            }
        }
    }
}

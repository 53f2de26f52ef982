//! Random layouts against a reference that moves one element at a time.

#[path = "naive/layouts.rs"]
mod layouts;
mod naive;

use naive::World;
use proptest::prelude::*;
use std::sync::Arc;
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, SourceRule};
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
        let (s, d) = (source.layout(&tensors), destination.layout(&tensors));
        let plan = Plan::create(Arc::new(s), Arc::new(d), &options(rotate, buckets, direct)).unwrap();
        plan.verify().unwrap();
        let mut world = World::new();
        naive::memory(plan.source(), Side::Source, &mut world);
        naive::memory(plan.destination(), Side::Destination, &mut world);
        naive::run(&plan, &mut world);
        naive::check(plan.destination(), &world).unwrap();
    }

    /// The budget is a limit, and the bucket count the smallest that keeps it.
    #[test]
    fn staging_stays_inside_its_budget(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(20u32..30),
        budget in 64u64..4096,
    ) {
        let (s, d) = (source.layout(&tensors), destination.layout(&tensors));
        let options = PlanOptions { staging_bytes_max: budget, ..PlanOptions::default() };
        match Plan::create(Arc::new(s), Arc::new(d), &options) {
            Ok(plan) => {
                for rank in plan.ranks() {
                    prop_assert!(plan.program(rank).unwrap().staging_bytes <= budget);
                }
            }
            Err(e) => prop_assert_eq!(e.status, weightsync::Status::StagingTooSmall),
        }
    }
}

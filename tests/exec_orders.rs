//! Layer order, end to end: early layers are complete early, by every
//! strategy, and everything arrives.

mod route_support;

use route_support::exec_support::{Carrier, HOST_CARRIERS, fake_gpu};
use route_support::{Attention, LAYERS, Sizes, deliver, engine, on_gpu, range, trainer};
use std::sync::Arc;
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::{Order, PlanOptions, Strategy};
use weightsync::sim::OrderCost;

const BUCKETS: u32 = 8;

fn plan(strategy: Strategy, order: Order) -> Arc<Plan> {
    plan_in(strategy, order, Layout::clone)
}

/// The same with buffers where `place` puts them.
fn plan_in(strategy: Strategy, order: Order, place: impl Fn(&Layout) -> Layout) -> Arc<Plan> {
    let (from, to) = (Sizes::new(2, 2, 2), Sizes::new(4, 1, 2));
    let attention = Attention::new(8, 8, from, to);
    let source = trainer(from, attention, &range(0, 8));
    let engine = engine(to, attention, &range(8, 8));
    let options = PlanOptions {
        strategy,
        order,
        bucket_count: BUCKETS,
        direct_bytes_min: 256,
        ..PlanOptions::default()
    };
    let (source, engine) = (place(&source), place(&engine));
    let plan = Plan::create(Arc::new(source), Arc::new(engine), &options).unwrap();
    plan.verify().unwrap();
    Arc::new(plan)
}

/// The last step in which a rank receives anything of each layer.
fn last_steps(plan: &Plan, rank: Rank) -> Vec<u32> {
    let last = |layer: u64| {
        let prefix = format!("layers.{layer}.");
        let all = plan.tensors().iter();
        let of_layer = all.filter(|t| t.name.starts_with(&prefix));
        of_layer
            .filter_map(|t| plan.tensor_last_step(rank, &t.name).unwrap())
            .max()
    };
    (0..LAYERS).filter_map(last).collect()
}

#[test]
fn early_layers_are_complete_early() {
    for strategy in Strategy::ALL {
        let (layers, fraction) = (
            plan(strategy, Order::Layer),
            plan(strategy, Order::Fraction),
        );
        let hops = layers.step_count() - BUCKETS;
        for rank in (8..16).map(Rank) {
            let steps = last_steps(&layers, rank);
            assert_eq!(steps.len() as u64, LAYERS);
            let first = steps[0];
            for (layer, step) in (1u32..).zip(steps) {
                // Layers are about equal; embedding and head are a tenth.
                let share = (layer * BUCKETS).div_ceil(LAYERS as u32);
                assert!(
                    step <= share + hops,
                    "{strategy:?} {rank}: {layer} in {step}"
                );
            }
            // By fraction, the first layers of both stages come side by side.
            let beside = last_steps(&fraction, rank);
            assert!(first < beside[0], "{strategy:?} {rank}: {first} {beside:?}");
        }
    }
}

#[test]
fn layers_arrive_over_every_carrier() {
    for strategy in Strategy::ALL {
        let plan = plan(strategy, Order::Layer);
        for carrier in HOST_CARRIERS {
            deliver(&plan, carrier, 2);
        }
        if !fake_gpu::is_real() {
            // As many ranks as one real GPU does not take.
            let plan = plan_in(strategy, Order::Layer, on_gpu);
            deliver(&plan, Carrier::Nccl, 2);
        }
    }
}

#[test]
fn both_orders_are_priced_with_the_same_bytes() {
    let plan = plan(Strategy::Direct, Order::Fraction);
    let costs = OrderCost::of_both(&plan, plan.topology()).unwrap().unwrap();
    let [fraction, layer] = &costs[..] else {
        panic!("{costs:?}");
    };
    assert_eq!(
        (fraction.order, layer.order),
        (Order::Fraction, Order::Layer)
    );
    assert!(fraction.predicted_ns < layer.predicted_ns, "{costs:?}");
    assert!(
        fraction.staging_bytes_peak < layer.staging_bytes_peak,
        "{costs:?}"
    );
    let other = plan.in_order(Order::Layer).unwrap();
    assert_eq!(
        other.report().unwrap().bytes_moved,
        plan.report().unwrap().bytes_moved
    );
    let back = other.in_order(Order::Fraction).unwrap();
    assert_eq!(back.fingerprint(), plan.fingerprint());
}

#[test]
fn more_buckets_keep_layers_inside_the_budget() {
    let (source, destination) = {
        let plan = plan(Strategy::Direct, Order::Layer);
        (plan.source().clone(), plan.destination().clone())
    };
    let budget = 4096;
    let make = |order| {
        let options = PlanOptions {
            order,
            staging_bytes_max: budget,
            direct_bytes_min: 1 << 20,
            ..PlanOptions::default()
        };
        Plan::create(source.clone(), destination.clone(), &options).unwrap()
    };
    let (layer, fraction) = (make(Order::Layer), make(Order::Fraction));
    assert!(layer.decision().bucket_count > fraction.decision().bucket_count);
    for rank in layer.ranks() {
        assert!(layer.program(rank).unwrap().memory_bytes() <= budget);
    }
    assert_eq!(
        fraction.in_order(Order::Layer).unwrap().decision(),
        layer.decision()
    );
}

//! How long it takes to describe a real model: Kimi-K2, a trillion
//! parameters, 384 experts, from its configuration to layouts and back.

use divan::{Bencher, black_box};
use std::sync::Arc;
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::layout::check::check_pair;
use weightsync::layout::models::Framework;
use weightsync::plan::Plan;
use weightsync::plan::decision::PlanOptions;

fn main() {
    divan::main();
}

const CONFIG: &[u8] = include_bytes!("../tests/models/kimi-k2.json");

fn source() -> Layout {
    let sizes = "pp=16,ep=16,dp=16";
    Layout::from_model(CONFIG, Framework::Megatron, sizes, 0)
        .unwrap()
        .layout
}

fn destination() -> Layout {
    let sizes = "tp=16,ep=on,replicas=8";
    Layout::from_model(CONFIG, Framework::Vllm, sizes, 256)
        .unwrap()
        .layout
}

/// Target: under 20 ms.
#[divan::bench]
fn layouts_of_both_sides() -> (Layout, Layout) {
    (black_box(source()), black_box(destination()))
}

/// Target: under 10 ms.
#[divan::bench]
fn check_and_the_program_of_one_rank(b: Bencher<'_, '_>) {
    let (source, destination) = (Arc::new(source()), Arc::new(destination()));
    let plan = Plan::create(source.clone(), destination.clone(), &PlanOptions::default()).unwrap();
    let decision = plan.decision().clone();
    b.bench(|| {
        let pair = check_pair(&source, &destination);
        let (source, destination) = (source.clone(), destination.clone());
        let plan = Plan::with_decision(source, destination, decision.clone(), None).unwrap();
        (pair, plan.program(Rank(300)).unwrap())
    });
}

#[divan::bench]
fn layout_file_of_the_source(b: Bencher<'_, '_>) {
    let source = source();
    b.bench(|| source.to_json());
}

#[divan::bench]
fn layout_from_its_file(b: Bencher<'_, '_>) {
    let text = source().to_json();
    b.bench(|| Layout::from_json(text.as_bytes()).unwrap());
}

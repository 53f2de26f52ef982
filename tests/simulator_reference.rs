//! The simulator against an independent one in Python, fed with the plan's
//! own operations.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::layout::models::{Inventory, MegatronSizes, VllmSizes};
use weightsync::plan::Plan;
use weightsync::plan::decision::{Order, PlanOptions, SourceRule, Spread, Strategy};
use weightsync::sim::{SimulateOptions, simulate};

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim_reference.py");

/// The operations of all ranks as lines of JSON.
fn ops(plan: &Plan) -> String {
    let mut out = String::new();
    for rank in plan.ranks() {
        for op in plan.ops(rank).unwrap() {
            let mut line = serde_json::to_value(&op).unwrap();
            let fields = line.as_object_mut().unwrap();
            fields.insert("rank".into(), Value::from(rank.0));
            // What the reference does not look at.
            fields.remove("tensor");
            fields.remove("box");
            out.push_str(&line.to_string());
            out.push('\n');
        }
    }
    out
}

/// Seconds that the reference takes; `None` where there is no Python.
fn reference(plan: &Plan, sides: [u32; 2]) -> Option<f64> {
    let mut child = Command::new("python3")
        .arg(REFERENCE)
        .arg(format!("0:{}", sides[0]))
        .arg(format!("{}:{}", sides[0], sides[0] + sides[1]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let text = ops(plan);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    Some(
        String::from_utf8(done.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap(),
    )
}

/// Both agree within a percent on a model between Megatron and vLLM ranks.
fn agree(source: &str, destination: &str, options: PlanOptions) {
    let config = include_bytes!("models/qwen3-8b.json");
    let model = Inventory::from_config(config).unwrap();
    let sizes: MegatronSizes = source.parse().unwrap();
    let group: VllmSizes = destination.parse().unwrap();
    let sides = [sizes.world() as u32, group.world() as u32];
    let source = Arc::new(Layout::megatron(&model, &sizes, 0).unwrap());
    let destination = Arc::new(Layout::vllm(&model, &[group], sides[0]).unwrap());
    let options = PlanOptions {
        unused_allowed: vec!["*".into()],
        staging_bytes_max: 16 << 30,
        bucket_count: 3,
        ..options
    };
    let plan = Plan::create(source, destination, &options).unwrap();
    assert!(!plan.program(Rank(0)).unwrap().is_empty());
    let ran = simulate(&plan, plan.topology(), &SimulateOptions::default()).unwrap();
    let ours = ran.total_ns as f64 / 1e9;
    let Some(theirs) = reference(&plan, sides) else {
        eprintln!("skipped: no python3");
        return;
    };
    let apart = (ours - theirs).abs() / theirs;
    assert!(
        apart < 0.01,
        "{ours} s here, {theirs} s there: {:.2} % apart",
        apart * 100.0
    );
}

#[test]
fn sixteen_ranks_take_as_long_as_the_reference_says() {
    agree("tp=2,pp=2,dp=2", "tp=4,replicas=2", PlanOptions::default());
}

#[test]
fn a_rotating_source_takes_as_long_as_the_reference_says() {
    let options = PlanOptions {
        source_rule: SourceRule::Rotate,
        ..PlanOptions::default()
    };
    agree("tp=2,pp=3,dp=2", "tp=4,replicas=3", options);
}

#[test]
fn forwards_take_as_long_as_the_reference_says() {
    let way = |strategy| PlanOptions {
        strategy,
        ..PlanOptions::default()
    };
    let chain = PlanOptions {
        spread: Spread::Chain,
        ..way(Strategy::Fanout)
    };
    let both_sides = PlanOptions {
        source_relay: true,
        ..way(Strategy::Relay)
    };
    let in_layers = PlanOptions {
        order: Order::Layer,
        ..way(Strategy::Fanout)
    };
    // A receiver that passes on what it does not need packs relay memory.
    agree("tp=2,pp=2,dp=2", "tp=8,replicas=2", way(Strategy::TwoStage));
    for options in [
        way(Strategy::Relay),
        way(Strategy::Fanout),
        chain,
        both_sides,
        in_layers,
    ] {
        agree("tp=2,pp=2,dp=2", "tp=4,replicas=6", options);
    }
}

#[test]
fn sixty_four_ranks_take_as_long_as_the_reference_says() {
    agree("tp=4,pp=4,dp=2", "tp=8,replicas=4", PlanOptions::default());
}

//! Which holder sends: slow and drained ranks, and who is near.

mod model_rows;
mod route_support;

use route_support::{Attention, Sizes, engine, range, trainer};
use std::collections::BTreeMap;
use std::sync::Arc;
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::layout::models::Framework;
use weightsync::plan::Plan;
use weightsync::plan::decision::{Decision, PlanOptions, SourceRule, Strategy};
use weightsync::plan::program::Direction;
use weightsync::plan::topology::TopologySpec;
use weightsync::sim::Certificate;

fn topology(fields: &str) -> TopologySpec {
    TopologySpec::from_json(format!(r#"{{"weightsync_topology": 1, {fields}}}"#).as_bytes())
        .unwrap()
}

/// All ways to send, on a topology.
fn ways(topology: &TopologySpec) -> Vec<PlanOptions> {
    let strategies = [Strategy::Direct, Strategy::Relay, Strategy::Fanout];
    let rules = [SourceRule::Wrap, SourceRule::Rotate];
    let all = strategies.into_iter().flat_map(|s| rules.map(|r| (s, r)));
    all.map(|(strategy, source_rule)| PlanOptions {
        strategy,
        source_rule,
        bucket_count: 4,
        direct_bytes_min: 256,
        copy_count: 1,
        topology: Some(topology.clone()),
        ..PlanOptions::default()
    })
    .collect()
}

/// TP2 PP2 with so many data-parallel copies, to replicas of TP4.
fn plan(dp: u32, replicas: u32, options: &PlanOptions) -> Plan {
    let (from, to) = (Sizes::new(2, 2, dp), Sizes::new(4, 1, replicas));
    let attention = Attention::new(8, 8, from, to);
    let source = trainer(from, attention, &range(0, 4 * dp));
    let engine = engine(to, attention, &range(4 * dp, 4 * replicas));
    let plan = Plan::create(Arc::new(source), Arc::new(engine), options).unwrap();
    plan.verify().unwrap();
    plan
}

fn sent(plan: &Plan, rank: u32) -> u64 {
    plan.program(Rank(rank)).unwrap().bytes_sent
}

fn what(options: &PlanOptions) -> String {
    format!("{} {:?}", options.strategy.name(), options.source_rule)
}

#[test]
fn a_drained_rank_sends_nothing_that_others_hold() {
    let hosts = r#""hosts": [{"gpus": 4}]"#;
    let drained = topology(&format!(
        r#"{hosts}, "speeds": [{{"ranks": [0, 5], "drained": true}}]"#
    ));
    for options in ways(&drained) {
        let with = plan(2, 3, &options);
        assert_eq!(
            [sent(&with, 0), sent(&with, 5)],
            [0, 0],
            "{}",
            what(&options)
        );
        let even = PlanOptions {
            topology: Some(topology(hosts)),
            ..options.clone()
        };
        let without = plan(2, 3, &even);
        assert!(sent(&without, 0) > 0 && sent(&without, 5) > 0);
        let all = |p: &Plan| (0..8).map(|r| sent(p, r)).sum::<u64>();
        assert_eq!(all(&with), all(&without), "{}", what(&options));
    }
}

#[test]
fn what_only_a_drained_rank_holds_it_sends() {
    let drained =
        topology(r#""hosts": [{"gpus": 4}], "speeds": [{"ranks": [0], "drained": true}]"#);
    for options in ways(&drained) {
        let alone = plan(1, 2, &options);
        let even = PlanOptions {
            topology: Some(topology(r#""hosts": [{"gpus": 4}]"#)),
            ..options.clone()
        };
        let without = plan(1, 2, &even);
        // Norms are on rank 1, too.
        let (got, before) = (sent(&alone, 0), sent(&without, 0));
        assert!(got < before && got * 100 > before * 95, "{got} of {before}");
    }
}

#[test]
fn a_drained_receiver_passes_nothing_on() {
    // Each destination domain is one replica of four: rank 9 and its peers.
    let drained =
        topology(r#""hosts": [{"gpus": 4}], "speeds": [{"ranks": [9], "drained": true}]"#);
    for options in ways(&drained) {
        let plan = plan(2, 3, &options);
        assert_eq!(sent(&plan, 9), 0, "{}", what(&options));
    }
}

#[test]
fn drained_ranks_do_not_serve_their_own_domain() {
    // Ranks 0 and 1 share their host with an engine, 2 and 3, which hold the
    // same, do not.
    let place = r#""hosts": [{"gpus": 8}], "placement": [
        {"ranks": {"first": 0, "count": 2}, "gpu": 0}, {"ranks": {"first": 8, "count": 4}, "gpu": 4},
        {"ranks": {"first": 2, "count": 6}, "gpu": 8}, {"ranks": {"first": 12, "count": 4}, "gpu": 16}]"#;
    let drained = topology(&format!(
        r#"{place}, "speeds": [{{"ranks": [0, 1], "drained": true}}]"#
    ));
    for options in ways(&drained) {
        let plan = plan(2, 2, &options);
        assert_eq!(
            [sent(&plan, 0), sent(&plan, 1)],
            [0, 0],
            "{}",
            what(&options)
        );
    }
    for options in ways(&topology(place)) {
        assert!(sent(&plan(2, 2, &options), 0) > 0, "{}", what(&options));
    }
}

#[test]
fn a_slow_nic_sends_as_much_less() {
    let slow = topology(r#""speeds": [{"ranks": [0], "nic_percent": 10}]"#);
    for options in ways(&slow) {
        let plan = plan(2, 4, &options);
        // Of what rank 0 holds, its one peer sends the rest; rounding to whole
        // rows shows in models as small as this.
        let (slow, peer) = (sent(&plan, 0), sent(&plan, 2));
        let most = match options.source_rule {
            SourceRule::Wrap => 8,
            SourceRule::Rotate => 5,
        };
        assert!(
            slow * most < peer,
            "{}: {slow} beside {peer}",
            what(&options)
        );
    }
}

#[test]
fn a_slow_receiver_takes_in_less_for_the_others() {
    let slow = topology(r#""hosts": [{"gpus": 4}], "speeds": [{"ranks": [8], "nic_percent": 25}]"#);
    for options in ways(&slow).iter().filter(|o| o.strategy == Strategy::Relay) {
        let plan = plan(2, 2, options);
        let across = |rank: u32| -> u64 {
            let p = plan.program(Rank(rank)).unwrap();
            let received = p
                .messages
                .iter()
                .filter(|m| m.direction == Direction::Receive);
            let pieces = received
                .filter(|m| m.stage == 0)
                .flat_map(|m| p.pieces_of(m));
            pieces.map(|x| x.bytes).sum()
        };
        assert!(across(8) <= across(12), "{} {}", across(8), across(12));
        assert_eq!(
            (8..12).map(across).sum::<u64>(),
            (12..16).map(across).sum::<u64>()
        );
    }
}

/// A real model at full size.
fn real(model: &str, from: &str, to: &str, options: &PlanOptions) -> Plan {
    let config = model_rows::config(model);
    let read = |framework: Framework, sizes: &str, first: u32| {
        Arc::new(
            Layout::from_model(&config, framework, sizes, first)
                .unwrap()
                .layout,
        )
    };
    let source = read("megatron".parse().unwrap(), from, 0);
    let destination = read("vllm".parse().unwrap(), to, source.rank_count());
    let decision = Decision::new(options);
    Plan::with_decision(source, destination, decision, options.topology.clone()).unwrap()
}

#[test]
fn one_slow_nic_does_not_hold_up_a_transfer() {
    let options = |fields: &str| PlanOptions {
        bucket_count: 16,
        topology: Some(topology(fields)),
        ..PlanOptions::default()
    };
    let ratio = |fields: &str| {
        let plan = real("llama-3.1-8b", "dp=8", "tp=8,replicas=1", &options(fields));
        Certificate::of(&plan, plan.topology()).unwrap().ratio
    };
    let even = ratio(r#""latency_ns": 20000"#);
    let slow = ratio(r#""speeds": [{"ranks": [0], "nic_percent": 10}]"#);
    // The bound counts the NICs of the host together.
    assert!(slow < even * 1.2, "{slow}, without {even}");
}

/// Llama-70B on 64 GPUs: trainers of one stage on two hosts each, an engine on
/// every host.
fn colocated(placement: &str) -> Plan {
    let options = PlanOptions {
        topology: Some(topology(placement)),
        ..PlanOptions::default()
    };
    real(
        "llama-3.1-70b",
        "tp=4,pp=4,dp=4",
        "tp=8,replicas=8",
        &options,
    )
}

const TOGETHER: &str = r#""hosts": [{"count": 8}], "placement": [
    {"ranks": {"first": 0, "count": 64}, "gpu": 0},
    {"ranks": {"first": 64, "count": 64}, "gpu": 0}]"#;
const APART: &str = r#""hosts": [{"count": 16}], "placement": [
    {"ranks": {"first": 0, "count": 128}, "gpu": 0}]"#;

#[test]
fn colocated_ranks_are_served_from_where_they_are() {
    let plan = colocated(TOGETHER);
    let topology = plan.topology();
    let mut held: BTreeMap<(u32, String), Vec<_>> = BTreeMap::new();
    for rank in plan.source().ranks() {
        let domain = topology.domain(rank).unwrap();
        for v in plan.source().views(rank) {
            let name = plan.source().tensors()[v.tensor.index()].name.clone();
            held.entry((domain, name)).or_default().push(v.bounds);
        }
    }
    let mut near = [0u64; 3];
    for rank in plan.ranks() {
        let p = plan.program(rank).unwrap();
        for m in p.messages.iter().filter(|m| m.direction == Direction::Send) {
            let [from, to] = [rank, m.peer].map(|r| topology.site(r).unwrap());
            let level = match () {
                () if from.gpu == to.gpu => 0,
                () if from.domain == to.domain => 1,
                () => 2,
            };
            near[level] += m.bytes;
            for piece in p.pieces_of(m).iter().filter(|_| level == 2) {
                let name = plan.tensors()[piece.tensor.index()].name.clone();
                let here = held.get(&(to.domain, name)).into_iter().flatten();
                let sent = p.boxes_of(piece);
                let is_held = here.into_iter().any(|b| sent.iter().any(|s| b.overlaps(s)));
                assert!(!is_held, "{} sends {} what is held there", rank, m.peer);
            }
        }
    }
    // A host holds a quarter of what its engine needs, and each GPU some of it.
    let all: u64 = near.iter().sum();
    assert!((near[2] * 100).abs_diff(all * 75) < all, "{near:?}");
    assert!(near[0] > 0 && near[1] > 0, "{near:?}");
}

#[test]
fn being_near_changes_no_load() {
    let (together, apart) = (colocated(TOGETHER), colocated(APART));
    assert_ne!(together.fingerprint(), apart.fingerprint());
    for rank in 0..64 {
        let (a, b) = (sent(&together, rank), sent(&apart, rank));
        assert!(
            a.abs_diff(b) * 10_000 <= a,
            "rank {rank} sends {a}, apart {b}"
        );
    }
    for rank in [Rank(0), Rank(17), Rank(64), Rank(127)] {
        together.verify_rank(rank).unwrap();
    }
}

#[test]
fn near_plans_are_proven_and_reproduced() {
    let together = r#""hosts": [{"gpus": 4}], "placement": [
        {"ranks": {"first": 0, "count": 8}, "gpu": 0}, {"ranks": {"first": 8, "count": 12}, "gpu": 0}]"#;
    let slow = format!(r#"{together}, "speeds": [{{"ranks": [3], "nic_percent": 40}}]"#);
    for fields in [together, &slow] {
        for options in ways(&topology(fields)) {
            let made = plan(2, 3, &options);
            let again = Plan::from_bytes(&made.to_bytes().unwrap()).unwrap();
            assert_eq!(again.fingerprint(), made.fingerprint());
            for rank in made.ranks() {
                let ops = |p: &Plan| serde_json::to_string(&p.ops(rank).unwrap()).unwrap();
                assert_eq!(ops(&again), ops(&made));
            }
        }
    }
}

#[test]
fn a_rail_serves_itself() {
    // Two hosts of trainers, one of engines; leaf switches by rail.
    let options = |cuts: &str| PlanOptions {
        topology: Some(topology(&format!(r#""hosts": [{{"gpus": 4}}] {cuts}"#))),
        ..PlanOptions::default()
    };
    let on_rail = |options: &PlanOptions| {
        // Every trainer holds all of it.
        let (from, to) = (Sizes::new(1, 1, 8), Sizes::new(1, 1, 4));
        let attention = Attention::new(8, 8, from, to);
        let source = trainer(from, attention, &range(0, 8));
        let engine = engine(to, attention, &range(8, 4));
        let plan = Plan::create(Arc::new(source), Arc::new(engine), options).unwrap();
        plan.verify().unwrap();
        let mut bytes = [0, 0];
        for rank in plan.ranks() {
            for m in &plan.program(rank).unwrap().messages {
                let rails = [rank, m.peer].map(|r| plan.topology().site(r).unwrap().rail);
                bytes[usize::from(rails[0] == rails[1])] += m.bytes;
            }
        }
        bytes[1] * 100 / (bytes[0] + bytes[1])
    };
    let leaves = r#", "cuts": [{"name": "leaves", "hosts": 4, "by_rail": true,
        "out_bytes_per_s": 100000000000, "in_bytes_per_s": 100000000000}]"#;
    assert_eq!(on_rail(&options(leaves)), 100);
    assert!(on_rail(&options("")) < 50);
}

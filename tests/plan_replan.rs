//! A plan made anew for sides that changed a little is as good as one made with
//! the same decision from the start, and says what changed.

use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::mesh::RankList;
use weightsync::layout::models::{Inventory, MegatronSizes, VllmSizes};
use weightsync::plan::Plan;
use weightsync::plan::decision::{Decision, PlanOptions, Strategy};
use weightsync::plan::topology::{SpeedFactor, TopologySpec};
use weightsync::{Rank, Status};

const CONFIG: &str = r#"{"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 64,
    "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 256, "intermediate_size": 64,
    "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8}"#;

const WAYS: [Strategy; 3] = [Strategy::Direct, Strategy::Relay, Strategy::Fanout];

fn model() -> Inventory {
    Inventory::from_config(CONFIG.as_bytes()).unwrap()
}

/// 16 trainer ranks, 4 data-parallel copies of the dense tensors.
fn trainer() -> Arc<Layout> {
    let sizes: MegatronSizes = "pp=2,ep=2,dp=8".parse().unwrap();
    Arc::new(Layout::megatron(&model(), &sizes, 0).unwrap())
}

/// Engines of four ranks from rank 16 on.
fn engines(sizes: &str) -> Arc<Layout> {
    let group: VllmSizes = sizes.parse().unwrap();
    Arc::new(Layout::vllm(&model(), &[group], 16).unwrap())
}

fn options(strategy: Strategy) -> PlanOptions {
    PlanOptions {
        strategy,
        bucket_count: 3,
        ..PlanOptions::default()
    }
}

fn drained(ranks: &[u32]) -> TopologySpec {
    TopologySpec {
        speeds: vec![SpeedFactor {
            ranks: RankList::List(ranks.iter().map(|&r| Rank(r)).collect()),
            nic_percent: 100,
            nvlink_percent: 100,
            is_drained: true,
        }],
        ..TopologySpec::default()
    }
}

/// The same decision, made from the start: copies are counted for these sides.
fn from_the_start(before: &Plan, like: &Plan, topology: Option<TopologySpec>) -> Plan {
    let decision = Decision {
        copies: Vec::new(),
        ..before.decision().clone()
    };
    let (source, destination) = (like.source().clone(), like.destination().clone());
    Plan::with_decision(source, destination, decision, topology).unwrap()
}

/// Delivers everything, and is what its decision makes from the start.
fn check(before: &Plan, made: &Plan, topology: Option<TopologySpec>) {
    made.verify().unwrap();
    let fresh = from_the_start(before, made, topology);
    assert_eq!(made.fingerprint(), fresh.fingerprint());
    assert_eq!(made.decision(), fresh.decision());
    for rank in made.ranks() {
        assert_eq!(made.program(rank).unwrap(), fresh.program(rank).unwrap());
    }
}

#[test]
fn a_replica_joins() {
    for strategy in WAYS {
        let before =
            Plan::create(trainer(), engines("tp=4,replicas=2"), &options(strategy)).unwrap();
        let more = before
            .replan(trainer(), engines("tp=4,replicas=3"), None)
            .unwrap();
        check(&before, &more, None);
        let diff = before.diff(&more).unwrap();
        assert!(diff.destination_differs && !diff.source_differs && !diff.topology_differs);
        assert_eq!(diff.ranks_added, [24, 25, 26, 27]);
        assert_eq!(diff.ranks_removed, [0; 0]);
    }
}

#[test]
fn a_replica_leaves() {
    for strategy in WAYS {
        let before =
            Plan::create(trainer(), engines("tp=4,replicas=3"), &options(strategy)).unwrap();
        let fewer = before
            .replan(trainer(), engines("tp=4,replicas=2"), None)
            .unwrap();
        check(&before, &fewer, None);
        assert_eq!(before.diff(&fewer).unwrap().ranks_removed, [24, 25, 26, 27]);
        // And back: nothing is left of the way there.
        let again = fewer
            .replan(trainer(), engines("tp=4,replicas=3"), None)
            .unwrap();
        assert_eq!(again.fingerprint(), before.fingerprint());
    }
}

#[test]
fn ranks_are_drained() {
    let before = Plan::create(
        trainer(),
        engines("tp=4,replicas=2"),
        &options(Strategy::Direct),
    )
    .unwrap();
    let topology = drained(&[3]);
    let (source, destination) = (before.source().clone(), before.destination().clone());
    let calm = before
        .replan(source, destination, Some(topology.clone()))
        .unwrap();
    check(&before, &calm, Some(topology));
    let sent = |plan: &Plan| plan.program(Rank(3)).unwrap().bytes_sent;
    assert!(sent(&calm) < sent(&before));
    let diff = before.diff(&calm).unwrap();
    assert!(diff.topology_differs && !diff.is_equal);
    assert!(diff.ranks_changed.contains(&3), "{diff:?}");
    assert!(!diff.source_differs && !diff.destination_differs && !diff.decision_differs);
}

#[test]
fn experts_move() {
    for strategy in WAYS {
        let before =
            Plan::create(trainer(), engines("tp=4,replicas=2"), &options(strategy)).unwrap();
        let moved = before
            .replan(trainer(), engines("tp=4,ep=on,replicas=2"), None)
            .unwrap();
        check(&before, &moved, None);
        let diff = before.diff(&moved).unwrap();
        assert!(diff.destination_differs && !diff.ranks_changed.is_empty());
        assert_eq!((diff.ranks_added.len(), diff.ranks_removed.len()), (0, 0));
    }
}

#[test]
fn a_topology_that_decides_nothing_differs_and_the_plans_are_equal() {
    let make = |topology| {
        let options = PlanOptions {
            topology,
            ..options(Strategy::Direct)
        };
        Plan::create(trainer(), engines("tp=4,replicas=2"), &options).unwrap()
    };
    let slow = TopologySpec {
        latency_ns: 1,
        ..TopologySpec::default()
    };
    let diff = make(None).diff(&make(Some(slow))).unwrap();
    assert!(diff.is_equal && diff.topology_differs);
    // Said or not said, it is the same topology.
    let same = make(None)
        .diff(&make(Some(TopologySpec::default())))
        .unwrap();
    assert!(!same.topology_differs);
}

#[test]
fn the_budget_holds_where_the_decision_cannot() {
    let tight = PlanOptions {
        staging_bytes_max: 16 << 10,
        direct_bytes_min: 1 << 30,
        ..PlanOptions::default()
    };
    let before = Plan::create(trainer(), engines("tp=4,replicas=2"), &tight).unwrap();
    assert!(before.decision().bucket_count > 1);
    // Eight times as much to send for the same ranks.
    let more = before
        .replan(trainer(), engines("tp=4,replicas=16"), None)
        .unwrap();
    assert!(more.decision().bucket_count > before.decision().bucket_count);
    more.verify().unwrap();
    for rank in more.ranks() {
        assert!(
            more.program(rank).unwrap().memory_bytes() <= 16 << 10,
            "rank {rank}"
        );
    }
}

#[test]
fn a_topology_that_lacks_the_new_ranks_is_refused() {
    let before = Plan::create(
        trainer(),
        engines("tp=4,replicas=2"),
        &options(Strategy::Relay),
    )
    .unwrap();
    let placed = before.topology().spec().clone();
    let refused = before.replan(trainer(), engines("tp=4,replicas=3"), Some(placed));
    let e = refused.unwrap_err();
    assert_eq!(e.status, Status::InvalidArgument);
    assert!(e.message.contains("rank 24 has no place"), "{e}");
}

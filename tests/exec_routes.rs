//! Strategies `relay` and `fanout` in all their forms, end to end: small models
//! through sessions.

mod route_support;

use route_support::exec_support::{Carrier, HOST_CARRIERS, fake_gpu};
use route_support::{Attention, Sizes, deliver, engine, on_gpu, range, trainer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::mesh::RankList;
use weightsync::plan::Plan;
use weightsync::plan::decision::{Order, PlanOptions, SourceRule, Spread, Strategy};
use weightsync::plan::program::{Direction, Program, Side};
use weightsync::plan::topology::{HostGroup, SpeedFactor, TopologySpec};
use weightsync::sim::{SimulateOptions, simulate};
use weightsync::{Rank, tune};

/// Hosts of so many GPUs, one NVLink domain each.
fn hosts(gpus: u32) -> TopologySpec {
    TopologySpec {
        hosts: vec![HostGroup {
            gpus,
            nics: gpus,
            ..HostGroup::default()
        }],
        ..TopologySpec::default()
    }
}

fn options(strategy: Strategy, gpus: u32) -> PlanOptions {
    PlanOptions {
        strategy,
        bucket_count: 4,
        direct_bytes_min: 256,
        topology: Some(hosts(gpus)),
        ..PlanOptions::default()
    }
}

/// TP2 PP2 DP2 to replicas of TP4.
fn plan(replicas: u32, options: &PlanOptions) -> Arc<Plan> {
    plan_in(replicas, options, Layout::clone)
}

/// The same with buffers where `place` puts them.
fn plan_in(replicas: u32, options: &PlanOptions, place: fn(&Layout) -> Layout) -> Arc<Plan> {
    let (from, to) = (Sizes::new(2, 2, 2), Sizes::new(4, 1, replicas));
    let attention = Attention::new(8, 8, from, to);
    let source = place(&trainer(from, attention, &range(0, 8)));
    let engine = place(&engine(to, attention, &range(8, 4 * replicas)));
    let plan = Plan::create(Arc::new(source), Arc::new(engine), options).unwrap();
    plan.verify().unwrap();
    Arc::new(plan)
}

fn programs(plan: &Plan) -> Vec<Program> {
    let ranks = plan.ranks().into_iter();
    ranks.map(|r| plan.program(r).unwrap()).collect()
}

/// Bytes of pieces sent in a stage, by sender and receiver.
fn sent(plan: &Plan, stage: u32) -> BTreeMap<(Rank, Rank), u64> {
    let mut sent = BTreeMap::new();
    for p in programs(plan) {
        for m in &p.messages {
            if m.direction == Direction::Send && m.stage == stage {
                let bytes: u64 = p.pieces_of(m).iter().map(|x| x.bytes).sum();
                *sent.entry((p.rank, m.peer)).or_default() += bytes;
            }
        }
    }
    sent
}

/// Distinct bytes that some ranks need.
fn distinct_bytes(layout: &Layout, ranks: &[u32]) -> u64 {
    let views = ranks.iter().flat_map(|&r| layout.views(Rank(r)));
    let boxes: BTreeSet<_> = views.map(|v| (v.tensor, v.bounds)).collect();
    boxes.iter().map(|(_, b)| b.elements() * 2).sum()
}

#[test]
fn each_byte_enters_a_domain_once() {
    // Two replicas to a domain: each byte is needed twice there, norms eight
    // times.
    let plan = plan(4, &options(Strategy::Relay, 8));
    assert_eq!(plan.step_count(), 5);
    for first in [8, 16] {
        let domain = range(first, 8);
        let is_in = |r: Rank| domain.contains(&r.0);
        let outside = sent(&plan, 0).into_iter().chain(sent(&plan, 1));
        let entering: u64 = outside
            .filter(|((from, to), _)| is_in(*to) && !is_in(*from))
            .map(|(_, bytes)| bytes)
            .sum();
        assert_eq!(entering, distinct_bytes(plan.destination(), &domain));
    }
    // Entries are shared out evenly.
    let mut entered = BTreeMap::<Rank, u64>::new();
    for ((_, to), bytes) in sent(&plan, 0) {
        *entered.entry(to).or_default() += bytes;
    }
    let (least, most) = (
        entered.values().min().unwrap(),
        entered.values().max().unwrap(),
    );
    assert!(most - least <= most / 4, "{entered:?}");
}

#[test]
fn so_many_copies_leave_as_were_asked_for() {
    for copies in 1..=4 {
        let asked = PlanOptions {
            copy_count: copies,
            ..options(Strategy::Fanout, 4)
        };
        let plan = plan(8, &asked);
        let left: u64 = sent(&plan, 0).values().sum();
        let one = distinct_bytes(plan.destination(), &range(8, 4));
        // Norms are in every domain's four needers once as well.
        assert_eq!(left, u64::from(copies) * one, "{copies} copies");
        let sources = range(0, 8)
            .into_iter()
            .map(|r| plan.program(Rank(r)).unwrap());
        let loads: Vec<u64> = sources.map(|p| p.bytes_sent).collect();
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        // Stages differ by the embedding's rows; within them it is even.
        assert!(most - least <= most / 2, "{copies} copies: {loads:?}");
    }
}

#[test]
fn as_many_copies_leave_as_the_nics_allow() {
    // Eight NICs send, thirty-two receive, four to a copy: two copies can
    // leave in the time in which each domain receives one.
    let plan = plan(8, &options(Strategy::Fanout, 4));
    let copies: Vec<u32> = plan.decision().copies.iter().map(|c| c.copies).collect();
    assert_eq!(copies.len(), 2, "one number for each stage");
    assert!(copies.iter().all(|c| (1..=8).contains(c)), "{copies:?}");
    let all = Strategy::Direct;
    let direct = self::plan(8, &options(all, 4));
    let load = |p: &Plan| (0..8).map(|r| p.program(Rank(r)).unwrap().bytes_sent).max();
    assert!(load(&plan).unwrap() * 2 < load(&direct).unwrap());
}

/// Every form of route.
fn ways(gpus: u32) -> Vec<PlanOptions> {
    let (relay, fanout) = (
        options(Strategy::Relay, gpus),
        options(Strategy::Fanout, gpus),
    );
    let chain = PlanOptions {
        spread: Spread::Chain,
        ..fanout.clone()
    };
    let plain = [relay, fanout, chain];
    let relayed = plain.clone().map(|way| PlanOptions {
        source_relay: true,
        ..way
    });
    plain.into_iter().chain(relayed).collect()
}

#[test]
fn routes_deliver_over_every_carrier() {
    // Domains of two ranks, of a replica, of two replicas.
    let mut carriers: Vec<(Carrier, u32)> = HOST_CARRIERS.into_iter().zip([2, 4, 8]).collect();
    if !fake_gpu::is_real() {
        // As many ranks as one real GPU does not take.
        carriers.push((Carrier::Nccl, 4));
    }
    for (i, (carrier, gpus)) in carriers.into_iter().enumerate() {
        let place = match carrier {
            Carrier::Nccl => on_gpu,
            _ => Layout::clone,
        };
        for (w, way) in ways(gpus).into_iter().enumerate() {
            let way = PlanOptions {
                source_rule: [SourceRule::Wrap, SourceRule::Rotate][(w + i) % 2],
                order: [Order::Fraction, Order::Layer][(w / 2 + i) % 2],
                copy_count: 1 + i as u32,
                ..way
            };
            let plan = plan_in(4, &way, place);
            for d in deliver(&plan, carrier, 2) {
                let p = plan.program(d.rank).unwrap();
                if !way.source_relay {
                    assert_eq!(p.relay_bytes, 0, "members need what they pass on");
                }
                let expected: u64 = p.messages.iter().map(|m| m.bytes).sum();
                let moved = d.bytes_sent + d.bytes_received;
                assert!(moved >= 2 * expected, "{carrier:?} {d:?}");
                if carrier != Carrier::Shm {
                    assert_eq!(moved, 2 * expected, "{carrier:?} {d:?}");
                }
            }
        }
    }
}

#[test]
fn what_several_get_alike_is_packed_once() {
    let mut carriers: Vec<Carrier> = HOST_CARRIERS.into_iter().collect();
    if !fake_gpu::is_real() {
        carriers.push(Carrier::Nccl);
    }
    let options = options(Strategy::Direct, 8);
    let staged = |p: &Program| -> u64 {
        let sent = p.messages.iter().filter(|m| m.direction == Direction::Send);
        sent.filter(|m| !m.is_direct).map(|m| m.bytes).sum()
    };
    let packed = |p: &Program| -> u64 {
        let packs = p.steps.iter().flat_map(|s| p.packs_of(s));
        packs.map(|m| m.bytes).sum()
    };
    for carrier in carriers {
        let place = match carrier {
            Carrier::Nccl => on_gpu,
            _ => Layout::clone,
        };
        // Each trainer serves four replicas, or eight, and half of them with norms.
        let [two, four] = [8, 16].map(|replicas| plan_in(replicas, &options, place));
        for rank in (0..8).map(Rank) {
            let [a, b] = [&two, &four].map(|plan| plan.program(rank).unwrap());
            assert!(packed(&a) > 0, "rank {rank} packs nothing");
            // Parts of a few streams begin elsewhere: those with the norms.
            let most = |all: u64| all + all / 20;
            assert!(2 * packed(&a) <= most(staged(&a)));
            assert!(4 * packed(&b) <= most(staged(&b)));
            assert!(b.staging_bytes <= most(a.staging_bytes));
        }
        deliver(&two, carrier, 2);
    }
}

/// Experts of `rows` rows each, in one buffer or in one each.
fn experts(first: u32, rows: u64, is_pack: bool) -> Layout {
    let split = match is_pack {
        true => "",
        false => r#", "buffer": "expert{local}", "split": 0"#,
    };
    let text = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": {first}, "count": 1}},
            "meshes": {{"all": [["dp", 1]]}},
            "tensors": [{{"name": "experts", "shape": [4, {rows}, 64], "dtype": "bf16"{split}}}]}}"#
    );
    Layout::from_json(text.as_bytes()).unwrap()
}

#[test]
fn a_pack_and_its_experts_one_by_one_are_never_staged() {
    for [from, to] in [[true, false], [false, true], [true, true], [false, false]] {
        let (source, engine) = (experts(0, 8, from), experts(1, 8, to));
        let way = options(Strategy::Direct, 8);
        let plan = Plan::create(Arc::new(source), Arc::new(engine), &way).unwrap();
        plan.verify().unwrap();
        for p in programs(&plan) {
            assert_eq!(p.staging_bytes, 0);
            assert!(p.messages.iter().all(|m| m.is_direct));
            // Four parts: at most two, of what one end has in pieces, for each.
            let each = if from && to { 1 } else { 2 };
            assert!(
                p.messages.len() <= 4 * each,
                "{} messages",
                p.messages.len()
            );
        }
        deliver(&Arc::new(plan), Carrier::Loopback, 2);
    }
}

#[test]
fn ranks_of_both_sides_in_one_domain_are_served_there() {
    // Replicas on the trainers' own hosts, four ranks to a domain.
    let (from, to) = (Sizes::new(2, 1, 4), Sizes::new(4, 1, 2));
    let attention = Attention::new(8, 8, from, to);
    let source = trainer(from, attention, &range(0, 8));
    let engine = engine(to, attention, &[4, 5, 6, 7, 8, 9, 10, 11]);
    let options = options(Strategy::Relay, 4);
    let plan = Plan::create(Arc::new(source), Arc::new(engine), &options).unwrap();
    plan.verify().unwrap();
    let domain = |r: Rank| plan.topology().domain(r).unwrap();
    for ((from, to), bytes) in sent(&plan, 0) {
        let is_local = domain(from) == domain(to);
        assert!(is_local || domain(to) == 2, "{from} sends {bytes} to {to}");
    }
    deliver(&Arc::new(plan), Carrier::Loopback, 2);
}

/// What can only come whole from one holder: one row for each of four ranks.
fn rows(options: &PlanOptions) -> Vec<u64> {
    let side = |first: u32, cut: bool| {
        let cuts = if cut {
            r#""cuts": [{"dim": 0, "axes": ["tp"]}]"#
        } else {
            r#""cuts": []"#
        };
        let text = format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": {first}, "count": 4}},
                "meshes": {{"m": [["tp", 4]]}}, "tensors": [
                {{"name": "w", "shape": [4, 1024], "dtype": "bf16", "granule": [1, 1024], {cuts}}}]}}"#
        );
        Arc::new(Layout::from_json(text.as_bytes()).unwrap())
    };
    let plan = Plan::create(side(0, false), side(4, true), options).unwrap();
    plan.verify().unwrap();
    let sources = (0..4).map(|r| plan.program(Rank(r)).unwrap());
    sources.map(|p| p.bytes_sent).collect()
}

#[test]
fn neighbouring_streams_do_not_pull_from_one_trainer() {
    for source_rule in [SourceRule::Wrap, SourceRule::Rotate] {
        for strategy in [Strategy::Relay, Strategy::Fanout] {
            let turned = PlanOptions {
                source_rule,
                ..options(strategy, 4)
            };
            assert_eq!(rows(&turned), [2048; 4], "{strategy:?} {source_rule:?}");
            let same = PlanOptions {
                rotation: Some(0),
                ..turned
            };
            assert_eq!(
                rows(&same).iter().max(),
                Some(&8192),
                "without, one sends all"
            );
        }
    }
}

#[test]
fn a_chain_passes_a_copy_from_domain_to_domain() {
    let one_copy = PlanOptions {
        copy_count: 1,
        spread: Spread::Chain,
        ..options(Strategy::Fanout, 4)
    };
    let plan = plan(4, &one_copy);
    assert_eq!(
        plan.step_count(),
        4 + 4,
        "four domains, and inside the last"
    );
    let domain = |r: Rank| (r.0 / 4).saturating_sub(1);
    let copy = distinct_bytes(plan.destination(), &range(8, 4));
    for stage in 0..5 {
        let mut entering = BTreeMap::<u32, u64>::new();
        for ((from, to), bytes) in sent(&plan, stage) {
            if domain(from) != domain(to) {
                assert_eq!(domain(to), domain(from) + 1, "{from} to {to}");
                *entering.entry(domain(to)).or_default() += bytes;
            }
        }
        let want = (stage < 4).then(|| (1 + stage, copy));
        assert_eq!(entering, BTreeMap::from_iter(want), "stage {stage}");
    }
}

/// One trainer of four on a host holds everything; two engines of four ranks.
fn one_holder(options: &PlanOptions) -> Plan {
    let stage = |at: u32| format!(r#"{{"axis": "pp", "at": {at}}}"#);
    let source = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": 4}},
            "meshes": {{"m": [["pp", 4]]}}, "tensors": [
            {{"name": "w", "shape": [64, 1024], "dtype": "bf16", "stage": {}}},
            {{"name": "x", "shape": [4, 16], "dtype": "bf16", "stage": {}}}]}}"#,
        stage(0),
        stage(1)
    );
    let destination = r#"{"weightsync_layout": 1, "ranks": {"first": 4, "count": 8},
            "meshes": {"m": [["replica", 2], ["tp", 4]]}, "copies": {"axes": ["replica"]}, "tensors": [
            {"name": "w", "shape": [64, 1024], "dtype": "bf16", "cuts": [{"dim": 0, "axes": ["tp"]}]},
            {"name": "x", "shape": [4, 16], "dtype": "bf16", "cuts": [{"dim": 0, "axes": ["tp"]}]}]}"#;
    let read = |text: &str| Arc::new(Layout::from_json(text.as_bytes()).unwrap());
    let plan = Plan::create(read(&source), read(destination), options).unwrap();
    plan.verify().unwrap();
    plan
}

#[test]
fn what_one_trainer_holds_leaves_through_all_nics_of_its_host() {
    let mut fast = options(Strategy::Relay, 4);
    fast.topology.as_mut().unwrap().latency_ns = 10;
    let straight = one_holder(&fast);
    let relayed = one_holder(&PlanOptions {
        source_relay: true,
        ..fast.clone()
    });
    let leaving = |plan: &Plan| {
        let mut bytes = [0u64; 4];
        for ((from, to), n) in [0, 1].into_iter().flat_map(|stage| sent(plan, stage)) {
            if from.0 < 4 && to.0 >= 4 {
                bytes[from.0 as usize] += n;
            }
        }
        bytes
    };
    let all = 2 * (64 * 1024 + 4 * 16) * 2;
    assert_eq!(leaving(&straight).iter().sum::<u64>(), all);
    assert!(leaving(&straight)[0] > all - 1024, "one NIC sends");
    let even = leaving(&relayed);
    assert_eq!(even.iter().sum::<u64>(), all);
    assert!(even.iter().all(|n| n.abs_diff(all / 4) < 1024), "{even:?}");
    let time = |plan: &Plan| {
        let ran = simulate(plan, plan.topology(), &SimulateOptions::default()).unwrap();
        ran.total_ns
    };
    assert!(
        2 * time(&relayed) < time(&straight),
        "{} and {} ns",
        time(&relayed),
        time(&straight)
    );
    // Memory for what is relayed counts as staging.
    let budget = 16 << 10;
    let tight = one_holder(&PlanOptions {
        source_relay: true,
        bucket_count: 0,
        staging_bytes_max: budget,
        ..fast
    });
    for p in programs(&tight) {
        assert!(p.memory_bytes() <= budget, "rank {}", p.rank);
        assert_eq!(p.relay_bytes > 0, p.rank.0 < 4, "rank {}", p.rank);
    }
    for carrier in HOST_CARRIERS {
        deliver(
            &Arc::new(one_holder(&PlanOptions {
                source_relay: true,
                ..options(Strategy::Relay, 4)
            })),
            carrier,
            2,
        );
    }
}

/// Of eight receivers, three ranks send to two or three each, and one whose NIC
/// is half as fast to one.
#[test]
fn through_a_slow_nic_less_leaves() {
    let mut given = options(Strategy::Relay, 4);
    given.source_relay = true;
    let topology = given.topology.as_mut().unwrap();
    topology.speeds.push(SpeedFactor {
        ranks: RankList::List(vec![Rank(2)]),
        nic_percent: 50,
        nvlink_percent: 100,
        is_drained: false,
    });
    let plan = one_holder(&given);
    let mut bytes = [0u64; 4];
    for ((from, to), n) in [0, 1].into_iter().flat_map(|stage| sent(&plan, stage)) {
        if from.0 < 4 && to.0 >= 4 {
            bytes[from.0 as usize] += n;
        }
    }
    let all = 2 * (64 * 1024 + 4 * 16) * 2;
    assert_eq!(bytes.iter().sum::<u64>(), all);
    assert!(bytes[2].abs_diff(all / 8) < 1024, "{bytes:?}");
    for rank in [0, 1, 3] {
        assert!(bytes[rank] > all / 5, "{bytes:?}");
    }
    deliver(&Arc::new(plan), HOST_CARRIERS[0], 2);
}

#[test]
fn auto_relays_on_the_source_side_where_one_nic_would_send_it_all() {
    let mut given = options(Strategy::Direct, 4);
    given.topology.as_mut().unwrap().latency_ns = 10;
    let plan = one_holder(&given);
    let choice = tune::choose(plan.source(), plan.destination(), &given).unwrap();
    assert!(choice.best.source_relay, "{choice:?}");
    // Trainers that all hold something have no use for it.
    let even = self::plan(2, &given);
    let choice = tune::choose(even.source(), even.destination(), &given).unwrap();
    assert!(!choice.best.source_relay, "{choice:?}");
}

/// Nanoseconds of one chain to two engines of four ranks whose layers come in
/// order, from four data-parallel trainers of two ranks.
fn layers_in_a_chain(rotation: Option<u32>) -> u64 {
    let mut chain = PlanOptions {
        copy_count: 1,
        spread: Spread::Chain,
        order: Order::Layer,
        rotation,
        ..options(Strategy::Fanout, 4)
    };
    chain.topology.as_mut().unwrap().latency_ns = 10;
    let (from, to) = (Sizes::new(2, 1, 4), Sizes::new(4, 1, 2));
    let attention = Attention::new(8, 8, from, to);
    let source = trainer(from, attention, &range(0, 8));
    let engine = engine(to, attention, &range(8, 8));
    let plan = Plan::create(Arc::new(source), Arc::new(engine), &chain).unwrap();
    plan.verify().unwrap();
    let ran = simulate(&plan, plan.topology(), &SimulateOptions::default()).unwrap();
    assert_eq!(ran.stuck, None);
    ran.total_ns
}

#[test]
fn streams_of_a_chain_do_not_walk_the_trainers_in_step() {
    // Neighbouring ranks need halves of what one set of trainers holds. In
    // layer order each of them takes its stream from one trainer at a time:
    // the same one, unless their sources are turned against each other.
    let (turned, in_step) = (layers_in_a_chain(None), layers_in_a_chain(Some(0)));
    assert!(10 * in_step > 13 * turned, "{in_step} and {turned} ns");
}

#[test]
fn stages_do_not_take_turns() {
    // Whatever the bucket, every trainer sends its share of it.
    let asked = PlanOptions {
        copy_count: 2,
        ..options(Strategy::Fanout, 4)
    };
    let plan = plan(8, &asked);
    for rank in 0..8 {
        let p = plan.program(Rank(rank)).unwrap();
        let mut by_bucket = [0u64; 4];
        for m in &p.messages {
            by_bucket[m.bucket as usize] += m.bytes;
        }
        let share = by_bucket.iter().sum::<u64>() / 4;
        for bytes in by_bucket {
            assert!(
                bytes.abs_diff(share) < share / 3,
                "rank {rank}: {by_bucket:?}"
            );
        }
    }
}

#[test]
fn a_plan_of_clusters_is_itself_again_when_read() {
    let plan = plan(4, &options(Strategy::Fanout, 4));
    let again = Plan::from_bytes(&plan.to_bytes().unwrap()).unwrap();
    assert_eq!(again.fingerprint(), plan.fingerprint());
    assert_eq!(again.decision(), plan.decision());
    for rank in plan.ranks() {
        assert_eq!(again.program(rank).unwrap(), plan.program(rank).unwrap());
    }
    let views = plan.layout(Side::Destination).views(Rank(8)).len();
    assert!(views > 0);
}

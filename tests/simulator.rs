//! The simulator against closed forms, against the bounds, and against bytes.

#[path = "naive/layouts.rs"]
mod layouts;
mod naive;
#[path = "naive/ways.rs"]
mod ways;

use naive::World;
use proptest::prelude::*;
use std::sync::Arc;
use weightsync::Rank;
use weightsync::plan::Plan;
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::program::Side;
use weightsync::plan::topology::Topology;
use weightsync::sim::{
    Certificate, Flow, Instance, Link, LinkKind, Node, SimulateOptions, StepTime, execute_exactly,
    links_between, simulate,
};

const GB: u64 = 1_000_000_000;

/// Nodes with one port each way of 1 GB/s, `steps` steps, and 10 us latency.
fn ports(nodes: u32, steps: u32) -> Instance {
    let link = |kind, n: u32| Link {
        kind,
        place: format!("node {n}"),
        bytes_per_s: GB,
    };
    Instance {
        links: (0..nodes)
            .flat_map(|n| [link(LinkKind::NicOut, n), link(LinkKind::NicIn, n)])
            .collect(),
        nodes: (0..nodes)
            .map(|n| Node {
                rank: Rank(n),
                count: 1,
                pack: vec![0; steps as usize],
                unpack: vec![0; steps as usize],
                local: vec![0; steps as usize],
                is_serial: false,
            })
            .collect(),
        step_count: steps,
        latency_ns: 10_000,
        pack_bytes_per_s: GB,
        steps_in_flight: 2,
        ..Instance::default()
    }
}

fn send(i: &mut Instance, from: u32, to: u32, step: u32, bytes: u64) {
    i.paths
        .push([(2 * from, 1), (2 * to + 1, 1)].into_iter().collect());
    i.flows.push(Flow {
        from,
        to,
        from_step: step,
        to_step: step,
        bytes,
        path: i.paths.len() as u32 - 1,
    });
}

fn time(i: &Instance) -> u64 {
    let ran = i.run(&SimulateOptions::default());
    assert_eq!(ran.stuck, None);
    ran.total_ns
}

#[test]
fn one_flow_takes_latency_and_bytes_over_speed() {
    let mut i = ports(2, 1);
    send(&mut i, 0, 1, 0, 5_000_000);
    assert_eq!(time(&i), 10_000 + 5_000_000);
}

#[test]
fn packing_comes_before_and_unpacking_after() {
    let mut i = ports(2, 1);
    send(&mut i, 0, 1, 0, 5_000_000);
    i.nodes[0].pack[0] = 1_000_000;
    i.nodes[1].unpack[0] = 2_000_000;
    assert_eq!(time(&i), 1_000_000 + 10_000 + 5_000_000 + 2_000_000);
}

#[test]
fn an_incast_shares_the_port_it_goes_to() {
    for n in 1..9 {
        let mut i = ports(9, 1);
        for from in 1..=n {
            send(&mut i, from, 0, 0, 1_000_000);
        }
        // Rates are whole bytes per second.
        let want = 10_000 + u64::from(n) * 1_000_000;
        assert!((want..want + 10).contains(&time(&i)), "{n} senders");
    }
}

#[test]
fn rates_are_max_min_fair() {
    // Three flows into 3, one of them from 0, which also sends to 4: that one
    // gets what the incast leaves of port 0.
    let mut i = ports(5, 1);
    for from in 0..3 {
        send(&mut i, from, 3, 0, 3_000_000);
    }
    send(&mut i, 0, 4, 0, 4_000_000);
    let ran = i.run(&SimulateOptions {
        trace: true,
        ..SimulateOptions::default()
    });
    let end = |to: u32| {
        ran.spans
            .iter()
            .filter(|s| s.peer == to)
            .map(|s| s.end_ns)
            .max()
    };
    // A third each for 9 ms, two thirds for 4 MB in 6 ms; rates are whole bytes.
    let near = |got: Option<u64>, want: u64| got.unwrap().abs_diff(want) < 100;
    assert!(near(end(3), 10_000 + 9_000_000), "{:?}", end(3));
    assert!(near(end(4), 10_000 + 6_000_000), "{:?}", end(4));
}

/// Node `n` forwards chunk `k` in step `k + n`, one hop a step.
fn chain(hops: u32, chunks: u32, bytes: u64) -> Instance {
    let mut i = ports(hops + 1, chunks + hops - 1);
    for node in &mut i.nodes {
        node.is_serial = true;
    }
    for k in 0..chunks {
        for h in 0..hops {
            send(&mut i, h, h + 1, k + h, bytes);
        }
    }
    i
}

#[test]
fn a_pipelined_chain_takes_its_closed_form() {
    for (hops, chunks) in [(1, 1), (1, 7), (3, 1), (3, 8), (8, 16)] {
        let bytes = 1_000_000;
        let want = u64::from(chunks + hops - 1) * (10_000 + bytes);
        assert_eq!(
            time(&chain(hops, chunks, bytes)),
            want,
            "{hops} hops, {chunks} chunks"
        );
    }
}

#[test]
fn a_direct_all_gather_takes_its_closed_form() {
    for n in 2..9u32 {
        let mut i = ports(n, 1);
        for from in 0..n {
            for to in (0..n).filter(|&to| to != from) {
                send(&mut i, from, to, 0, 1_000_000);
            }
        }
        let want = 10_000 + u64::from(n - 1) * 1_000_000;
        let got = time(&i);
        assert!(got.abs_diff(want) < 100, "{n} nodes: {got} for {want}");
        // One node stands for all.
        let small = i.compressed();
        assert_eq!((small.nodes.len(), small.flows.len()), (1, 1));
        assert!(time(&small).abs_diff(got) < 100);
    }
}

#[test]
fn two_steps_are_on_the_wire_at_a_time() {
    // Step 0 is slow for node 1 alone; 0 goes on with step 1 meanwhile, and
    // with step 2 only once step 0 is over.
    let mut i = ports(4, 3);
    send(&mut i, 0, 1, 0, 1_000_000);
    send(&mut i, 2, 1, 0, 3_000_000);
    send(&mut i, 0, 3, 1, 1_000_000);
    send(&mut i, 0, 3, 2, 1_000_000);
    let both = time(&i);
    i.steps_in_flight = 1;
    assert!(time(&i) > both);
}

#[test]
fn waiting_in_a_circle_is_found_and_named() {
    // 0 sends first to 1, 1 first to 2, 2 first to 0; each receives second,
    // and one step at a time is on the wire.
    let mut i = ports(3, 2);
    i.steps_in_flight = 1;
    for n in 0..3 {
        send(&mut i, n, (n + 1) % 3, 0, 1000);
        i.flows.last_mut().unwrap().to_step = 1;
    }
    let stuck = i.run(&SimulateOptions::default()).stuck.unwrap();
    assert!(stuck.is_deadlock);
    assert_eq!(stuck.flows_left, 3);
    assert_eq!(stuck.waiting, [(Rank(0), 0), (Rank(1), 0), (Rank(2), 0)]);
}

#[test]
fn rates_at_quanta_waste_bandwidth_and_invent_none() {
    let mut i = ports(8, 4);
    for s in 0..4 {
        for from in 0..8 {
            for to in (0..8).filter(|&to| to != from) {
                send(
                    &mut i,
                    from,
                    to,
                    s,
                    10_000 + u64::from(from * 977 + to * 331 + s * 71) * 13,
                );
            }
        }
    }
    let exact = time(&i);
    let busiest = i.loads().into_iter().max().unwrap();
    for quantum_ns in [1000, 10_000, 100_000] {
        let options = SimulateOptions {
            quantum_ns,
            ..SimulateOptions::default()
        };
        let got = i.run(&options).total_ns;
        assert!(got > busiest, "{quantum_ns}: {got} for a load of {busiest}");
        assert!(
            got < exact + 24 * quantum_ns,
            "{quantum_ns}: {got} for {exact}"
        );
    }
}

/// `None` if the mapping refuses the sizes.
fn plan_of(
    tensors: &[weightsync::layout::tensor::Tensor],
    source: &layouts::Side,
    destination: &layouts::Side,
    way: PlanOptions,
) -> Option<Plan> {
    let (s, d) = (source.layout(tensors), destination.layout(tensors));
    let options = PlanOptions {
        two_stage: ways::two_stage(source, destination),
        ..way
    };
    match Plan::create(Arc::new(s), Arc::new(d), &options) {
        Ok(plan) => Some(plan),
        Err(e) if e.status == weightsync::Status::Unsupported => None,
        Err(e) => panic!("{e}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// No plan of any strategy is faster than the bound, wherever its ranks
    /// are, and none gets stuck.
    #[test]
    fn no_plan_beats_the_bound(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(0u32..30),
        way in ways::options(),
    ) {
        let Some(plan) = plan_of(&tensors, &source, &destination, way) else {
            return Ok(());
        };
        let bounds = plan.bounds(plan.topology()).unwrap();
        let ran = simulate(&plan, plan.topology(), &SimulateOptions::default()).unwrap();
        prop_assert_eq!(&ran.stuck, &None);
        prop_assert!(ran.total_ns >= bounds.lower_ns, "{} < {:?}", ran.total_ns, bounds);
        // One for all ranks that do the same takes as long, or a little more.
        let instance = Instance::of_plan(&plan, plan.topology()).unwrap();
        let small = instance.compressed().run(&SimulateOptions::default());
        prop_assert!(small.total_ns >= bounds.lower_ns);
        prop_assert!(small.total_ns.abs_diff(ran.total_ns) * 50 <= ran.total_ns + 5000);
    }

    /// Real bytes, moved when the simulator says, all arrive.
    #[test]
    fn bytes_moved_in_virtual_time_arrive(
        tensors in layouts::tensors(),
        source in layouts::side(0u32..4),
        destination in layouts::side(0u32..30),
        way in ways::options(),
    ) {
        let Some(plan) = plan_of(&tensors, &source, &destination, way) else {
            return Ok(());
        };
        let mut world = World::new();
        naive::memory(plan.source(), Side::Source, &mut world);
        naive::memory(plan.destination(), Side::Destination, &mut world);
        let run = execute_exactly(&plan, plan.topology(), |rank, side, name, bytes| {
            bytes.copy_from_slice(&world[&(rank, side, name.to_string())]);
        }).unwrap();
        for (rank, (program, memory)) in run.ranks.iter().zip(run.programs.iter().zip(&run.memory)) {
            for (used, bytes) in program.buffers.iter().zip(&memory.buffers) {
                let name = plan.buffer(*rank, used).unwrap().name;
                world.insert((*rank, used.side, name), bytes.clone());
            }
        }
        // Padding is zeroed by the device, not by messages.
        naive::check(plan.destination(), &world).unwrap();
    }
}

fn committed() -> Plan {
    let read =
        |text: &str| Arc::new(weightsync::layout::Layout::from_json(text.as_bytes()).unwrap());
    let options = PlanOptions {
        bucket_count: 4,
        ..PlanOptions::default()
    };
    Plan::create(
        read(include_str!("layouts/trainer_tp2_pp2_dp2.json")),
        read(include_str!("layouts/inference_2x_tp4.json")),
        &options,
    )
    .unwrap()
}

#[test]
fn a_certificate_adds_up() {
    let plan = committed();
    let c = Certificate::of(&plan, plan.topology()).unwrap();
    assert!(c.ratio >= 1.0 && c.predicted_s >= c.lower_bound_s, "{c:?}");
    assert_eq!(c.bytes_nic, plan.report().unwrap().bytes_moved);
    assert_eq!(c.bytes_nvlink, 0);
    let b = c.bottleneck.unwrap();
    assert!(b.time_s <= c.predicted_s);
    // Eight NICs send and eight receive; the busiest twelve are named.
    let times: Vec<f64> = c.links_busiest.iter().map(|l| l.time_s).collect();
    assert_eq!((times.len(), times[0]), (12, b.time_s));
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    let most = c.links.iter().map(|t| t.bytes_max).max();
    assert_eq!(most, Some(c.links_busiest[0].bytes));
    assert!(matches!(b.link.kind, LinkKind::NicIn | LinkKind::NicOut));
}

#[test]
fn links_are_named_in_the_order_in_which_bytes_cross_them() {
    let json = r#"{"weightsync_topology": 1, "hosts": [{"count": 8}],
        "placement": [{"ranks": {"first": 0, "count": 64}, "gpu": 0, "ranks_per_gpu": 2}],
        "cuts": [{"name": "pods", "hosts": 2, "out_bytes_per_s": 7000, "in_bytes_per_s": 8000},
                 {"name": "leaf", "hosts": 1, "by_rail": true, "out_bytes_per_s": 5, "in_bytes_per_s": 6}]}"#;
    let t = Topology::from_json(json.as_bytes()).unwrap();
    let crossed = |from, to| {
        let links = links_between(&t, Rank(from), Rank(to)).unwrap();
        links.iter().map(Link::to_string).collect::<Vec<_>>()
    };
    assert_eq!(crossed(0, 1), ["memory of host 0, GPU 0"]);
    let nvlink = ["NVLink out of host 0, GPU 0", "NVLink in of host 0, GPU 1"];
    assert_eq!(crossed(0, 2), nvlink);
    let out = [
        "NIC out of host 0, rail 1",
        "cut out of \"leaf\", cell 0, rail 1",
        "cut out of \"pods\", cell 0",
    ];
    let inward = [
        "cut in of \"pods\", cell 1",
        "cut in of \"leaf\", cell 3, rail 0",
        "NIC in of host 3, rail 0",
    ];
    assert_eq!(crossed(2, 48), [out, inward].concat());
    let error = links_between(&t, Rank(0), Rank(99)).unwrap_err();
    assert!(error.message.contains("rank 99 has no place"), "{error}");
}

#[test]
fn a_timeline_says_when_a_rank_packs_and_when_bytes_are_on_the_wire() {
    let mut i = ports(2, 1);
    send(&mut i, 0, 1, 0, 5_000_000);
    i.nodes[0].pack[0] = 1_000_000;
    i.nodes[1].unpack[0] = 2_000_000;
    let timeline = i.timeline(0);
    let (wire_start_ns, wire_end_ns) = (1_010_000, 6_010_000);
    let step = |start_ns, end_ns| StepTime {
        step: 0,
        start_ns,
        end_ns,
        wire_start_ns,
        wire_end_ns,
    };
    assert_eq!(timeline.total_ns, 8_010_000);
    assert_eq!(timeline.ranks[0].steps, [step(0, wire_end_ns)]);
    assert_eq!(timeline.ranks[1].steps, [step(wire_start_ns, 8_010_000)]);
}

/// Of many ranks, those that do the same are simulated once.
#[test]
fn a_timeline_of_many_ranks_has_them_all() {
    let (nodes, bytes) = (66, 1_000_000);
    let mut i = ports(nodes, 2);
    for step in 0..2 {
        for from in 0..nodes {
            for to in (0..nodes).filter(|&to| to != from) {
                send(&mut i, from, to, step, bytes);
            }
        }
    }
    // The second half has something to unpack in the end.
    let (unpacks, unpack) = (nodes / 2, 3_000_000);
    for node in &mut i.nodes[unpacks as usize..] {
        node.unpack[1] = unpack;
    }
    let lower_ns = 2 * u64::from(nodes - 1) * bytes;
    let timeline = i.timeline(lower_ns);
    assert_eq!(timeline.total_ns, i.run_fast(lower_ns).total_ns);
    assert_eq!(timeline.ranks.len(), nodes as usize);
    for (n, rank) in (0..nodes).zip(&timeline.ranks) {
        assert_eq!(rank.rank, Rank(n));
        let steps: Vec<u32> = rank.steps.iter().map(|s| s.step).collect();
        assert_eq!(steps, [0, 1]);
        let after = if n < unpacks { unpack } else { 0 };
        assert_eq!(rank.steps[1].end_ns + after, timeline.total_ns, "rank {n}");
    }
}

#[test]
fn stragglers_and_failures_are_chosen_by_seed() {
    use weightsync::sim::StressOptions;
    let plan = committed();
    let instance = Instance::of_plan(&plan, plan.topology()).unwrap();
    let run = |seed, straggler_count, failure_count| {
        let options = StressOptions {
            seed,
            straggler_count,
            failure_count,
            ..StressOptions::default()
        };
        instance.stress(&plan, &options).unwrap()
    };
    let calm = run(1, 0, 0);
    assert_eq!((calm.total_ns, calm.copies_complete), (calm.healthy_ns, 2));
    let slow = run(1, 16, 0);
    assert!(slow.total_ns > calm.total_ns, "{slow:?}");
    let dead = run(3, 0, 1);
    assert!(
        dead.copies_complete < 2 && !dead.waiting.is_empty(),
        "{dead:?}"
    );
    assert_eq!(run(3, 0, 1).failures, dead.failures);
    assert_ne!(run(4, 0, 1).failures, dead.failures);
    let many = StressOptions {
        failure_count: 99,
        ..StressOptions::default()
    };
    assert!(
        instance
            .stress(&plan, &many)
            .unwrap_err()
            .message
            .contains("16 ranks")
    );
}

#[test]
fn exports_name_every_flow() {
    let plan = committed();
    let instance = Instance::of_plan(&plan, plan.topology()).unwrap();
    let goal = instance.to_goal();
    assert!(goal.starts_with("num_ranks 16\n"));
    let count = |word: &str| goal.lines().filter(|l| l.contains(word)).count();
    assert_eq!(count(": send "), instance.flows.len());
    assert_eq!(count(": recv "), instance.flows.len());
    let ran = instance.run(&SimulateOptions {
        trace: true,
        ..SimulateOptions::default()
    });
    let trace: serde_json::Value = serde_json::from_str(&ran.to_chrome_trace(&instance)).unwrap();
    let begun = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["ph"] == "b");
    assert_eq!(begun.count(), 2 * instance.flows.len());
}

#[test]
fn the_simulator_finds_the_same_on_every_run() {
    let plan = committed();
    let t: &Topology = plan.topology();
    let run = || simulate(&plan, t, &SimulateOptions::default()).unwrap();
    assert_eq!(run().node_done_ns, run().node_done_ns);
}

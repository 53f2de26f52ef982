//! An exported GOAL file, replayed by a few lines of another simulator, takes
//! about as long as was predicted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, Strategy};
use weightsync::plan::topology::{HostGroup, TopologySpec};
use weightsync::sim::{Flow, Instance, Link, LinkKind, Node, SimulateOptions};

const GB: u64 = 1_000_000_000;
const LATENCY_NS: u64 = 10_000;

/// One line of a GOAL file, and the lines it requires.
struct Op {
    /// Sender, receiver and tag; `None` for a calculation.
    message: Option<[usize; 3]>,
    /// Nanoseconds, or bytes at one per nanosecond.
    amount: u64,
    after: Vec<usize>,
}

fn parse(goal: &str) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    let mut labels: HashMap<(usize, &str), usize> = HashMap::new();
    let number = |w: &str| w.parse::<usize>().unwrap();
    let mut rank = 0;
    for line in goal.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (message, amount) = match words[..] {
            ["rank", n, "{"] => {
                rank = number(n);
                continue;
            }
            [label, "requires", other] => {
                let after = labels[&(rank, other)];
                ops[labels[&(rank, label)]].after.push(after);
                continue;
            }
            [_, "calc", ns] => (None, ns),
            [_, "send", n, "to", peer, "tag", tag] => (Some([rank, number(peer), number(tag)]), n),
            [_, "recv", n, "from", peer, "tag", tag] => {
                (Some([number(peer), rank, number(tag)]), n)
            }
            _ => continue,
        };
        labels.insert((rank, words[0].trim_end_matches(':')), ops.len());
        ops.push(Op {
            message,
            amount: number(amount.trim_end_matches('b')) as u64,
            after: Vec::new(),
        });
    }
    ops
}

/// Replays a schedule: each rank's port sends and receives one message at a
/// time, a latency after both ends have come to it.
fn replay(goal: &str) -> u64 {
    let ops = parse(goal);
    let mut events: BTreeMap<[usize; 3], Vec<usize>> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        events
            .entry(op.message.unwrap_or([usize::MAX, i, 0]))
            .or_default()
            .push(i);
    }
    let mut ends: Vec<Option<u64>> = vec![None; ops.len()];
    let mut ports: HashMap<(bool, usize), u64> = HashMap::new();
    let used = |[from, to, _]: [usize; 3]| [(true, from), (false, to)];
    while !events.is_empty() {
        // What can start first, once what it requires has ended and both its
        // ports are free.
        let ready = events.iter().filter_map(|(key, both)| {
            let mut after = both.iter().flat_map(|&i| &ops[i].after);
            let at = after.try_fold(0, |at, &a| Some(ends[a]?.max(at)))?;
            let start = match ops[both[0]].message {
                None => at,
                Some(m) => {
                    let free = used(m).map(|p| ports.get(&p).copied().unwrap_or(0));
                    (at + LATENCY_NS).max(free[0]).max(free[1])
                }
            };
            Some((start, *key))
        });
        let (start, key) = ready.min().expect("something may start");
        let both = events.remove(&key).unwrap();
        let op = &ops[both[0]];
        let end = start + op.amount;
        ports.extend(op.message.into_iter().flat_map(used).map(|p| (p, end)));
        for i in both {
            ends[i] = Some(end);
        }
    }
    ends.into_iter().flatten().max().unwrap_or(0)
}

/// Nodes with one port each way of 1 GB/s.
fn ports(nodes: u32, steps: u32) -> Instance {
    let link = |kind, n: u32| Link {
        kind,
        place: format!("node {n}"),
        bytes_per_s: GB,
    };
    let none = vec![0; steps as usize];
    Instance {
        links: (0..nodes)
            .flat_map(|n| [link(LinkKind::NicOut, n), link(LinkKind::NicIn, n)])
            .collect(),
        nodes: (0..nodes)
            .map(|n| Node {
                rank: Rank(n),
                count: 1,
                pack: none.clone(),
                unpack: none.clone(),
                local: none.clone(),
                is_serial: false,
            })
            .collect(),
        step_count: steps,
        latency_ns: LATENCY_NS,
        pack_bytes_per_s: GB,
        steps_in_flight: 2,
        ..Instance::default()
    }
}

fn send(i: &mut Instance, from: u32, to: u32, step: u32, bytes: u64) {
    let path = [(2 * from, 1), (2 * to + 1, 1)].into_iter().collect();
    i.paths.push(path);
    i.flows.push(Flow {
        from,
        to,
        from_step: step,
        to_step: step,
        bytes,
        path: i.paths.len() as u32 - 1,
    });
}

/// Predicted and replayed time differ by so many percent at most.
fn agree(instance: &Instance, percent: u64) -> u64 {
    let predicted = instance.run(&SimulateOptions::default()).total_ns;
    let replayed = replay(&instance.to_goal());
    assert!(
        predicted.abs_diff(replayed) * 100 <= predicted * percent,
        "{predicted} ns predicted, {replayed} ns replayed"
    );
    predicted
}

/// Two nodes that pack, exchange and unpack a megabyte in each of six steps.
fn exchange(is_serial: bool) -> Instance {
    let mut i = ports(2, 6);
    for node in &mut i.nodes {
        node.is_serial = is_serial;
        node.pack = vec![1_000_000; 6];
        node.unpack = vec![1_000_000; 6];
    }
    for step in 0..6 {
        send(&mut i, 0, 1, step, 1_000_000);
        send(&mut i, 1, 0, step, 1_000_000);
    }
    i
}

#[test]
fn packing_ahead_is_kept() {
    let overlapped = agree(&exchange(false), 1);
    let serial = agree(&exchange(true), 1);
    // Twelve milliseconds of device work, against a wire that waits for it.
    assert!(overlapped < 13_500_000, "{overlapped}");
    assert!(serial > 18_000_000, "{serial}");
}

#[test]
fn local_copies_take_their_time() {
    let mut i = exchange(false);
    let before = agree(&i, 1);
    i.nodes[1].local[0] = 4_000_000;
    assert!(agree(&i, 1) >= before + 3_000_000);
}

#[test]
fn a_plan_replays_to_about_its_predicted_time() {
    let read = |text: &str| Arc::new(Layout::from_json(text.as_bytes()).unwrap());
    for strategy in [Strategy::Direct, Strategy::Fanout] {
        let options = PlanOptions {
            strategy,
            bucket_count: 4,
            topology: Some(TopologySpec {
                hosts: vec![HostGroup {
                    gpus: 1,
                    nics: 1,
                    nic_bytes_per_s: GB,
                    ..HostGroup::default()
                }],
                latency_ns: LATENCY_NS,
                pack_bytes_per_s: 10 * GB,
                ..TopologySpec::default()
            }),
            ..PlanOptions::default()
        };
        let plan = Plan::create(
            read(include_str!("layouts/trainer_tp2_pp2_dp2.json")),
            read(include_str!("layouts/inference_2x_tp4.json")),
            &options,
        )
        .unwrap();
        agree(&Instance::of_plan(&plan, plan.topology()).unwrap(), 15);
    }
}

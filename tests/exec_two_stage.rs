//! Strategy `two_stage`, end to end: small models through sessions.

mod route_support;

use route_support::exec_support::{Carrier, HOST_CARRIERS, fake_gpu};
use route_support::{
    Attention, Devices, Sizes, deliver, deliver_with, engine, naive, on_gpu, range, trainer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weightsync::device::deferred::DeferredDevice;
use weightsync::device::fence::Fence;
use weightsync::device::{Device, MemoryRange, Task, Work};
use weightsync::layout::Layout;
use weightsync::layout::mesh::RankList;
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, Strategy};
use weightsync::plan::mapping::{self, DestinationSizes, Mapping, MappingSpec, SourceSizes};
use weightsync::plan::program::{BufferSlot, Direction, Piece, Program};
use weightsync::plan::topology::{PlacementRun, TopologySpec};
use weightsync::plan::two_stage::TwoStageOptions;
use weightsync::{Rank, Result, Status};

#[derive(serde::Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    source: Sizes,
    destination: Sizes,
    heads: u64,
    kv_heads: u64,
    /// Where destination ranks are on devices of source ranks.
    destination_devices: Option<Vec<u32>>,
}

fn cases() -> Vec<Case> {
    let text = include_str!("golden/two_stage/cases.json");
    serde_json::from_str::<Cases>(text).unwrap().cases
}

fn options(buckets: u32) -> PlanOptions {
    PlanOptions {
        strategy: Strategy::TwoStage,
        bucket_count: buckets,
        direct_bytes_min: 256,
        ..PlanOptions::default()
    }
}

impl Case {
    /// The plan; colocated ranks are one rank if `is_shared`, else two.
    fn plan(&self, buckets: u32, is_shared: bool) -> Arc<Plan> {
        self.plan_in(buckets, is_shared, Layout::clone)
    }

    /// The same with buffers where `place` puts them.
    fn plan_in(
        &self,
        buckets: u32,
        is_shared: bool,
        place: impl Fn(&Layout) -> Layout,
    ) -> Arc<Plan> {
        let sources = range(0, self.source.ranks());
        let devices = self.destination_devices.as_ref().filter(|_| is_shared);
        let destinations = match devices {
            Some(devices) => devices.clone(),
            None => range(self.source.ranks(), self.destination.ranks()),
        };
        let attention = Attention::new(self.heads, self.kv_heads, self.source, self.destination);
        let source = trainer(self.source, attention, &sources);
        let destination = engine(self.destination, attention, &destinations);
        let (source, destination) = (place(&source), place(&destination));
        let plan = Plan::create(Arc::new(source), Arc::new(destination), &options(buckets));
        Arc::new(plan.unwrap_or_else(|e| panic!("{}: {e}", self.name)))
    }
}

fn two_to_four() -> Arc<Plan> {
    cases()[4].plan(3, false)
}

#[test]
fn every_case_arrives_three_times() {
    for case in cases() {
        for is_shared in [false, case.destination_devices.is_some()] {
            let plan = case.plan(3, is_shared);
            plan.verify().unwrap();
            // Forwards are there wherever there are groups.
            let m = case.destination.tp / case.source.tp;
            assert_eq!(
                plan.step_count(),
                if m > 1 { 4 } else { 3 },
                "{}",
                case.name
            );
            deliver(&plan, Carrier::Loopback, 3);
        }
    }
}

#[test]
fn every_case_arrives_by_rings_by_packing_or_over_nccl() {
    for (i, case) in cases().iter().enumerate() {
        let carriers = match fake_gpu::is_real() {
            // As many ranks as one real GPU does not take.
            true => [Carrier::Shm, Carrier::Staged, Carrier::Staged],
            false => [Carrier::Shm, Carrier::Staged, Carrier::Nccl],
        };
        let (carrier, is_shared) = (carriers[i % 3], i % 2 == 0);
        let plan = match carrier {
            Carrier::Nccl => case.plan_in(4, is_shared, on_gpu),
            _ => case.plan(4, is_shared),
        };
        deliver(&plan, carrier, 3);
    }
}

/// Bytes of a program in one direction and stage.
fn bytes(p: &Program, direction: Direction, stage: u32) -> u64 {
    let of = p.messages.iter();
    let of = of.filter(|m| m.direction == direction && m.stage == stage);
    of.map(|m| m.bytes).sum()
}

#[test]
fn what_the_transport_carries_is_what_the_stages_say() {
    let plan = two_to_four();
    for carrier in HOST_CARRIERS {
        for d in deliver(&plan, carrier, 3) {
            let p = plan.program(d.rank).unwrap();
            let sent = bytes(&p, Direction::Send, 0) + bytes(&p, Direction::Send, 1);
            let received = bytes(&p, Direction::Receive, 0) + bytes(&p, Direction::Receive, 1);
            // Rings align each message.
            let pad = match carrier {
                Carrier::Shm => 16 * 3 * p.messages.len() as u64,
                _ => 0,
            };
            let is_about = |got: u64, want: u64| (want..=want + pad).contains(&got);
            assert!(is_about(d.bytes_sent, 3 * sent), "{carrier:?} {d:?}");
            assert!(
                is_about(d.bytes_received, 3 * received),
                "{carrier:?} {d:?}"
            );
            // Sources send and never forward; engine ranks only forward.
            let is_source = d.rank.0 < 4;
            assert_eq!(bytes(&p, Direction::Send, 0) > 0, is_source);
            assert_eq!(bytes(&p, Direction::Send, 1) > 0, !is_source);
            assert_eq!(p.relay_bytes > 0, !is_source);
        }
    }
}

/// The mapping of a case whose ranks are all apart, from sizes alone.
fn mapping(case: &Case, plan: &Plan, keep_same_device: bool) -> Mapping {
    let device = |r: &u32| plan.topology().site(Rank(*r)).unwrap().gpu;
    let (s, d) = (case.source, case.destination);
    let spec = MappingSpec {
        source: SourceSizes {
            tp: s.tp,
            pp: s.pp,
            dp: s.replicas,
            ..SourceSizes::ONE
        },
        destination: DestinationSizes {
            tp: d.tp,
            pp: d.pp,
            replicas: d.replicas,
            ..DestinationSizes::ONE
        },
        source_devices: range(0, s.ranks()).iter().map(device).collect(),
        destination_devices: range(s.ranks(), d.ranks()).iter().map(device).collect(),
        keep_same_device,
        ..MappingSpec::default()
    };
    mapping::two_stage(&spec).unwrap()
}

/// Who sends something of the layers to whom in a stage, by the programs.
/// Vocabulary rows may come from anybody: their chunks do not nest.
fn layer_peers(plan: &Plan, stage: u32) -> BTreeSet<(Rank, Rank)> {
    let mut peers = BTreeSet::new();
    for rank in plan.ranks() {
        let p = plan.program(rank).unwrap();
        for m in &p.messages {
            let is_sent = m.direction == Direction::Send && m.stage == stage;
            let name = |x: &Piece| &p.tensors[x.tensor.index()].name;
            if is_sent
                && p.pieces_of(m)
                    .iter()
                    .any(|x| name(x).starts_with("layers."))
            {
                peers.insert((rank, m.peer));
            }
        }
    }
    peers
}

fn check_peers(case: &Case, plan: &Plan, keep_same_device: bool) {
    let mapping = mapping(case, plan, keep_same_device);
    for (stage, pairs) in (0..).zip([&mapping.pairs, &mapping.forwards]) {
        let mapped: BTreeSet<_> = pairs.iter().map(|p| (p.sender, p.receiver)).collect();
        assert_eq!(layer_peers(plan, stage), mapped, "{} {stage}", case.name);
    }
}

#[test]
fn stages_go_where_the_mapping_says() {
    for case in cases() {
        check_peers(&case, &case.plan(2, false), true);
    }
    let case = &cases()[7];
    for avoid in [false, true] {
        check_peers(case, &colocated(avoid), !avoid);
    }
}

/// What the members of a group need together, each element once.
fn needed_bytes(plan: &Plan, members: &[Rank]) -> u64 {
    let layout = plan.destination();
    let mut needed = BTreeMap::new();
    for &rank in members {
        for v in layout.views(rank) {
            let tensor = &layout.tensors()[v.tensor.index()];
            for i in naive::indices(&v.bounds) {
                let at = (v.tensor.index(), naive::flat_index(tensor, &i));
                needed.insert(at, v.dtype.bytes());
            }
        }
    }
    needed.into_values().sum()
}

#[test]
fn stage_1_brings_a_group_what_it_needs_and_each_byte_once() {
    for case in cases() {
        let plan = case.plan(2, false);
        let mapping = mapping(&case, &plan, true);
        for group in mapping.destinations.chunks(mapping.group_size as usize) {
            let members: Vec<Rank> = group.iter().map(|seat| seat.rank).collect();
            let received = members.iter().map(|&r| {
                let p = plan.program(r).unwrap();
                bytes(&p, Direction::Receive, 0)
            });
            let received: u64 = received.sum();
            let needed = needed_bytes(&plan, &members);
            assert_eq!(received, needed, "{} {members:?}", case.name);
        }
    }
}

/// A device that spoils relay memory after each unpack.
#[derive(Debug)]
struct Spoiler {
    device: DeferredDevice,
    spoiled: AtomicU64,
}

impl Device for Spoiler {
    fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        self.device.allocate(bytes)
    }

    fn free(&self, range: MemoryRange) {
        self.device.free(range);
    }

    fn enqueue(&self, work: Work, after: &Fence) -> Result<Fence> {
        let relay = work.binding.relay;
        let is_unpack = matches!(work.task, Task::Unpack { .. });
        let done = self.device.enqueue(work, after)?;
        if is_unpack && relay.bytes > 0 {
            assert!(done.wait(Duration::from_secs(10)));
            let to: *mut u8 = std::ptr::with_exposed_provenance_mut(relay.address);
            // SAFETY: relay memory of a request that waits for our fence.
            unsafe { to.write_bytes(0, relay.bytes as usize) };
            self.spoiled.fetch_add(1, Ordering::Relaxed);
        }
        Ok(done)
    }
}

/// The proof that forwarded bytes are those that the forwarder has: what
/// spoils its memory reaches the others of its group, and nobody else.
#[test]
fn a_receiver_that_spoils_what_it_relays_spoils_its_group() {
    let plan = two_to_four();
    let spoiler = Arc::new(Spoiler {
        device: DeferredDevice::pumped(4).unwrap(),
        spoiled: AtomicU64::new(0),
    });
    let mut devices = Devices::new();
    devices.insert(Rank(4), spoiler.clone());
    let (_, wrong) = deliver_with(&plan, Carrier::Staged, 1, &devices);
    assert!(spoiler.spoiled.load(Ordering::Relaxed) > 0);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].starts_with("rank 5 "), "{wrong:?}");
}

#[test]
fn what_a_receiver_needs_itself_is_forwarded_from_its_buffers() {
    // Norms are whole on every rank: received once per group, and kept.
    let plan = two_to_four();
    let (mut kept, mut relayed) = (0, 0);
    for rank in 4..12 {
        let p = plan.program(Rank(rank)).unwrap();
        let forwards = |m: &&weightsync::plan::program::Message| {
            m.direction == Direction::Send && m.stage == 1
        };
        for x in p
            .messages
            .iter()
            .filter(forwards)
            .flat_map(|m| p.pieces_of(m))
        {
            let is_norm = p.tensors[x.tensor.index()].name.contains("norm");
            let is_relayed = x.region.slot == BufferSlot::RELAY;
            assert!(!(is_norm && is_relayed));
            relayed += u64::from(is_relayed);
            kept += u64::from(!is_relayed);
        }
    }
    assert!(kept > 0 && relayed > 0, "{kept} and {relayed}");
}

#[test]
fn a_receiver_on_the_senders_rank_copies_locally() {
    let case = &cases()[7];
    let plan = case.plan(2, true);
    let local: u64 = (0..4)
        .map(|r| plan.program(Rank(r)).unwrap().bytes_local)
        .sum();
    assert!(local > 0);
    deliver(&plan, Carrier::Loopback, 2);
}

/// The plan of the colocated case with two ranks on each device.
fn colocated(avoid_same_device: bool) -> Arc<Plan> {
    let case = &cases()[7];
    let devices = case.destination_devices.as_ref().unwrap();
    let mut on_device = vec![Rank(0); devices.len()];
    for (i, &d) in devices.iter().enumerate() {
        on_device[d as usize] = Rank(case.source.ranks() + i as u32);
    }
    let run = |ranks| PlacementRun {
        ranks,
        gpu: 0,
        ranks_per_gpu: 1,
    };
    let sources = RankList::Range {
        first: 0,
        count: case.source.ranks(),
    };
    let topology = TopologySpec {
        placement: vec![run(sources), run(RankList::List(on_device))],
        ..TopologySpec::default()
    };
    let apart = case.plan(2, false);
    let options = PlanOptions {
        topology: Some(topology),
        two_stage: TwoStageOptions {
            avoid_same_device,
            ..TwoStageOptions::default()
        },
        ..options(2)
    };
    let (s, d) = (apart.source().clone(), apart.destination().clone());
    Arc::new(Plan::create(s, d, &options).unwrap())
}

#[test]
fn pairs_within_a_device_are_kept_unless_told_otherwise() {
    for avoid in [false, true] {
        let plan = colocated(avoid);
        let device = |r: Rank| plan.topology().site(r).unwrap().gpu;
        // What groups get by the mapping; vocabulary rows may come from
        // anybody.
        let is_within = |rank: &Rank| {
            let p = plan.program(*rank).unwrap();
            let mut first = p.messages.iter().filter(|m| {
                let is_q = |x: &weightsync::plan::program::Piece| {
                    p.tensors[x.tensor.index()].name.ends_with(".q")
                };
                m.direction == Direction::Send && p.pieces_of(m).iter().any(is_q)
            });
            first.any(|m| m.stage == 0 && device(m.peer) == device(*rank))
        };
        assert_eq!(plan.ranks().iter().any(is_within), !avoid);
        deliver(&plan, Carrier::Loopback, 3);
    }
    assert_ne!(
        colocated(true).fingerprint(),
        colocated(false).fingerprint()
    );
}

#[test]
fn sizes_that_do_not_fit_are_named_with_the_strategy_that_does() {
    let plan = |source: Sizes, destination: Sizes| {
        let attention = Attention::new(8, 8, source, destination);
        let s = trainer(source, attention, &range(0, source.ranks()));
        let ranks = range(source.ranks(), destination.ranks());
        let d = engine(destination, attention, &ranks);
        Plan::create(Arc::new(s), Arc::new(d), &options(2)).unwrap_err()
    };
    let e = plan(Sizes::new(4, 1, 1), Sizes::new(2, 1, 1));
    assert_eq!(e.status, Status::Unsupported);
    assert!(
        e.message
            .contains("destination TP 2 is less than source TP 4"),
        "{e}"
    );
    assert!(e.message.contains("`direct`"), "{e}");
    let e = plan(Sizes::new(1, 4, 1), Sizes::new(1, 3, 1));
    assert_eq!(e.status, Status::Unsupported, "{e}");
    assert!(e.message.contains("`direct`"), "{e}");
}

#[test]
fn relay_memory_counts_against_the_staging_budget() {
    let case = &cases()[4];
    let whole = case.plan(1, false);
    let most = |plan: &Plan| {
        let programs = plan.ranks().into_iter().map(|r| plan.program(r).unwrap());
        programs.map(|p| p.memory_bytes()).max().unwrap()
    };
    let budget = most(&whole) / 3;
    let (s, d) = (whole.source().clone(), whole.destination().clone());
    let small = PlanOptions {
        staging_bytes_max: budget,
        ..options(0)
    };
    let plan = Plan::create(s, d, &small).unwrap();
    assert!(plan.decision().bucket_count > 2);
    assert!(most(&plan) <= budget);
    deliver(&Arc::new(plan), Carrier::Staged, 2);
}

#[test]
fn a_plan_in_two_stages_is_itself_again_when_read() {
    let plan = two_to_four();
    let again = Plan::from_bytes(&plan.to_bytes().unwrap()).unwrap();
    assert_eq!(again.fingerprint(), plan.fingerprint());
    for rank in plan.ranks() {
        assert_eq!(again.program(rank).unwrap(), plan.program(rank).unwrap());
    }
    let direct = PlanOptions {
        strategy: Strategy::Direct,
        ..options(3)
    };
    let (s, d) = (plan.source().clone(), plan.destination().clone());
    let direct = Plan::create(s, d, &direct).unwrap();
    assert_ne!(direct.fingerprint(), plan.fingerprint());
}

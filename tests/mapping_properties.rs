//! What holds for every mapping, on sizes and placements made at random.

use proptest::prelude::*;
use weightsync::Rank;
use weightsync::plan::mapping::{
    DestinationSizes, Mapping, MappingSpec, Refusal, SourceSizes, expert, single_stage, two_stage,
};

/// Sizes that two-stage accepts: TP and PP divide.
fn sizes() -> impl Strategy<Value = (SourceSizes, DestinationSizes)> {
    let source = (1..4u32, 1..5u32, 1..3u32, 1..4u32, 1..3u32);
    let destination = (1..9u32, 1..3u32, 1..3u32, 1..6u32);
    (source, destination, any::<bool>()).prop_map(|(source, destination, fewer_stages)| {
        let (tp, pp, ep, dp, cp) = source;
        let (m, interval, dst_ep, replicas) = destination;
        let (source_pp, destination_pp) = if fewer_stages {
            (pp, pp * interval)
        } else {
            (pp * interval, pp)
        };
        (
            SourceSizes {
                tp,
                pp: source_pp,
                ep,
                dp,
                cp,
            },
            DestinationSizes {
                tp: tp * m,
                pp: destination_pp,
                ep: dst_ep,
                replicas,
            },
        )
    })
}

/// Sizes with one device per rank and side, the same devices as far as they go.
fn colocated() -> impl Strategy<Value = MappingSpec> {
    sizes().prop_flat_map(|(source, destination)| {
        let n = source.tp * source.pp * source.ep * source.dp * source.cp;
        let k = destination.tp * destination.pp * destination.ep * destination.replicas;
        let devices: Vec<u32> = (0..n.max(k)).collect();
        let (a, b) = (
            Just(devices.clone()).prop_shuffle(),
            Just(devices).prop_shuffle(),
        );
        (a, b, any::<Option<bool>>(), any::<bool>()).prop_map(move |(a, b, colocated, vllm)| {
            MappingSpec {
                source,
                destination,
                source_devices: a[..n as usize].to_vec(),
                destination_devices: b[..k as usize].to_vec(),
                colocated,
                destination_is_vllm: vllm,
                ..MappingSpec::default()
            }
        })
    })
}

/// The same, but several ranks of one side may sit on one device.
fn crowded() -> impl Strategy<Value = MappingSpec> {
    (colocated(), 1..8u32).prop_map(|(mut spec, devices)| {
        let all = spec
            .source_devices
            .iter_mut()
            .chain(&mut spec.destination_devices);
        all.for_each(|device| *device %= devices);
        spec
    })
}

/// Source stages that feed one destination stage.
fn interval(spec: &MappingSpec) -> usize {
    (spec.source.pp / spec.destination.pp).max(1) as usize
}

/// The source ranks whose bytes reach `rank`, each as often as they do.
fn reaching(mapping: &Mapping, rank: Rank) -> Vec<Rank> {
    let receives = mapping.receives();
    let mut all = receives.get(rank).to_vec();
    for &from in mapping.forward_receives().get(rank) {
        all.extend(receives.get(from));
    }
    all.sort();
    all
}

fn check_two_stage(spec: &MappingSpec, mapping: &Mapping) {
    let source = |rank: Rank| mapping.sources.iter().find(|s| s.rank == rank).unwrap();
    for seat in &mapping.destinations {
        let reaching = reaching(mapping, seat.rank);
        assert_eq!(reaching.len(), interval(spec), "rank {}", seat.rank);
        let mut stages: Vec<_> = reaching.iter().map(|&r| source(r).stage).collect();
        stages.sort();
        stages.dedup();
        assert_eq!(stages.len(), interval(spec), "each from another stage");
        for &rank in &reaching {
            let from = source(rank);
            assert_eq!(from.tensor, seat.tensor / mapping.group_size);
            let (a, b) = (spec.source.pp, spec.destination.pp);
            assert!(from.stage * b < (seat.stage + 1) * a && seat.stage * a < (from.stage + 1) * b);
            assert_eq!(from.copy, source(reaching[0]).copy, "all from one copy");
        }
    }
    for pair in &mapping.forwards {
        assert!(!mapping.receives().get(pair.sender).is_empty());
    }
}

fn device(spec: &MappingSpec, rank: Rank) -> u32 {
    let all = [&spec.source_devices[..], &spec.destination_devices].concat();
    all[rank.index()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_stage_reaches_everybody_evenly(spec in colocated()) {
        let m = spec.destination.tp / spec.source.tp;
        let mapping = match two_stage(&spec) {
            Ok(mapping) => mapping,
            Err(e) => {
                prop_assert_eq!(Refusal::of(&e), Refusal::Infeasible);
                prop_assert_eq!(m, 1, "with two members, one is elsewhere");
                return Ok(());
            }
        };
        check_two_stage(&spec, &mapping);
        for pair in &mapping.pairs {
            prop_assert_ne!(device(&spec, pair.sender), device(&spec, pair.receiver));
        }
        let most = interval(&spec).div_ceil(m as usize) as u32;
        for (rank, load) in mapping.loads() {
            prop_assert!(load <= most, "rank {} receives {} times, not {}", rank, load, most);
        }
        prop_assert_eq!(two_stage(&spec).unwrap(), mapping);
    }

    #[test]
    fn two_stage_finds_a_way_around_wherever_there_is_one(spec in crowded()) {
        let stuck = |mapping: &Mapping| {
            let groups = mapping.destinations.chunks(mapping.group_size as usize);
            let groups: Vec<_> = groups.collect();
            mapping.pairs.iter().any(|pair| {
                let on = device(&spec, pair.sender);
                let holds = |g: &&&[_]| g.iter().any(|s: &weightsync::plan::mapping::Seat| s.rank == pair.receiver);
                groups.iter().find(holds).unwrap().iter().all(|s| s.device == on)
            })
        };
        let free = two_stage(&MappingSpec { keep_same_device: true, ..spec.clone() }).unwrap();
        check_two_stage(&spec, &free);
        match two_stage(&spec) {
            Ok(mapping) => {
                check_two_stage(&spec, &mapping);
                prop_assert!(mapping.same_device.is_empty());
                prop_assert!(!stuck(&free));
            }
            Err(e) => {
                prop_assert_eq!(Refusal::of(&e), Refusal::Infeasible);
                prop_assert!(stuck(&free), "{}", e);
            }
        }
    }

    #[test]
    fn single_stage_reaches_everybody(spec in crowded(), swap in any::<bool>()) {
        let mut spec = spec;
        if swap {
            std::mem::swap(&mut spec.source.tp, &mut spec.destination.tp);
            let (a, b) = (spec.source, spec.destination);
            spec.source_devices = vec![0; (a.tp * a.pp * a.ep * a.dp * a.cp) as usize];
            spec.destination_devices = vec![0; (b.tp * b.pp * b.ep * b.replicas) as usize];
        }
        let mapping = single_stage(&spec).unwrap();
        let gather = (spec.source.tp / spec.destination.tp).max(1) as usize;
        for (rank, load) in mapping.loads() {
            prop_assert_eq!(load as usize, interval(&spec) * gather, "rank {}", rank);
        }
        prop_assert_eq!(single_stage(&spec).unwrap(), mapping);
    }

    #[test]
    fn expert_reaches_everybody(spec in colocated()) {
        let mapping = match expert(&MappingSpec { keep_same_device: true, ..spec.clone() }) {
            Ok(mapping) => mapping,
            Err(e) => {
                prop_assert_eq!(Refusal::of(&e), Refusal::Constraint, "{}", e);
                return Ok(());
            }
        };
        for seat in &mapping.rest.destinations {
            prop_assert_eq!(reaching(&mapping.rest, seat.rank).len(), interval(&spec));
        }
        let regrouped: Vec<Rank> = mapping.regroup_groups.concat();
        let carriers = if mapping.routed.is_empty() { &mapping.rest.pairs } else { &mapping.routed };
        for pair in carriers {
            prop_assert!(regrouped.contains(&pair.sender), "rank {}", pair.sender);
        }
        if !mapping.routed.is_empty() {
            prop_assert_eq!(mapping.routed.len(), mapping.rest.destinations.len() * interval(&spec));
        }
    }
}

/// Anything at all: must be answered or refused, never panic.
fn anything() -> impl Strategy<Value = MappingSpec> {
    let size = || prop_oneof![8 => 1..5u32, 1 => Just(0), 1 => any::<u32>()];
    let devices = || proptest::collection::vec(0..6u32, 0..40);
    let lists = || {
        let ranks = proptest::collection::vec((0..60u32).prop_map(Rank), 0..9);
        proptest::option::of(proptest::collection::vec(ranks, 0..4))
    };
    let source = (size(), size(), size(), size(), size())
        .prop_map(|(tp, pp, ep, dp, cp)| SourceSizes { tp, pp, ep, dp, cp });
    let destination =
        (size(), size(), size(), size()).prop_map(|(tp, pp, ep, replicas)| DestinationSizes {
            tp,
            pp,
            ep,
            replicas,
        });
    let sides = (source, destination, devices(), devices());
    (sides, lists(), lists(), lists(), any::<[bool; 3]>()).prop_map(|(sides, s, e, d, flags)| {
        MappingSpec {
            source: sides.0,
            destination: sides.1,
            source_devices: sides.2,
            destination_devices: sides.3,
            colocated: Some(flags[0]),
            destination_is_vllm: flags[1],
            keep_same_device: flags[2],
            source_ranks: s,
            expert_source_ranks: e,
            destination_ranks: d,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_is_answered_or_refused(spec in anything()) {
        for outcome in [two_stage(&spec), single_stage(&spec), expert(&spec).map(|e| e.rest)] {
            if let Err(e) = outcome {
                prop_assert!(!e.message.is_empty());
                prop_assert!(!e.message.contains('\n'));
            }
        }
    }
}

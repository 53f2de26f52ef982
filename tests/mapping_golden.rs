//! The rank mappings against recorded ones, order included.
//!
//! A selection lies in `tests/golden/mapping`. Where the complete recordings are
//! at hand, in `../shared/golden`, they are compared as well; a clone that
//! stands alone has none and says SKIPPED. Each test says how many records it
//! compared (`--nocapture`).

use std::io::Write;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use weightsync::plan::mapping::{
    DestinationSizes, Mapping, MappingSpec, Pair, PeerLists, Refusal, SourceSizes, expert,
    single_stage, two_stage,
};
use weightsync::{Error, Rank};

type Lists = Vec<Vec<Rank>>;
type PeerMap = Vec<(Rank, Vec<Rank>)>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn numbers(pairs: &[Pair]) -> Vec<(u32, u32)> {
    pairs.iter().map(|p| (p.sender.0, p.receiver.0)).collect()
}

fn unflatten(flat: &[u32]) -> Vec<(u32, u32)> {
    flat.chunks(2).map(|p| (p[0], p[1])).collect()
}

fn peers(lists: &PeerLists) -> PeerMap {
    lists
        .iter()
        .map(|(rank, peers)| (rank, peers.to_vec()))
        .collect()
}

/// Checks what holds for every outcome, recorded or not.
fn check_derived(mapping: &Mapping) {
    let receives = mapping.receives();
    let total: u32 = mapping.loads().iter().map(|&(_, load)| load).sum();
    assert_eq!(total as usize, mapping.pairs.len());
    for seat in &mapping.destinations {
        assert!(mapping.slice(seat) < mapping.group_size);
        for &sender in receives.get(seat.rank) {
            assert!(mapping.sends().get(sender).contains(&seat.rank));
        }
    }
    for moved in &mapping.moved {
        let device = |r| {
            let seats = mapping.sources.iter().chain(&mapping.destinations);
            seats.clone().find(|s| s.rank == r).unwrap().device
        };
        assert_eq!(device(moved.sender), device(moved.avoided));
        assert_ne!(device(moved.sender), device(moved.receiver));
    }
}

mod committed {
    use super::*;

    #[derive(Deserialize)]
    struct Input {
        sizes: ([u32; 5], [u32; 4]),
        devices: [Vec<u32>; 2],
        #[serde(default)]
        colocated: bool,
        #[serde(default)]
        vllm: bool,
    }

    impl Input {
        fn spec(&self) -> MappingSpec {
            let ([tp, pp, ep, dp, cp], [dtp, dpp, dep, replicas]) = self.sizes;
            MappingSpec {
                source: SourceSizes { tp, pp, ep, dp, cp },
                destination: DestinationSizes {
                    tp: dtp,
                    pp: dpp,
                    ep: dep,
                    replicas,
                },
                source_devices: self.devices[0].clone(),
                destination_devices: self.devices[1].clone(),
                colocated: Some(self.colocated),
                destination_is_vllm: self.vllm,
                ..MappingSpec::default()
            }
        }
    }

    fn load<T: DeserializeOwned>(name: &str) -> Vec<T> {
        let path = root().join("tests/golden/mapping").join(name);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[derive(Deserialize)]
    struct TwoStage {
        #[serde(flatten)]
        input: Input,
        #[serde(default)]
        pairs: Vec<u32>,
        #[serde(default)]
        forwards: Vec<u32>,
        refused: Option<String>,
    }

    #[test]
    fn two_stage_records() {
        let records: Vec<TwoStage> = load("two_stage.json");
        for (i, record) in records.iter().enumerate() {
            match (two_stage(&record.input.spec()), &record.refused) {
                (Ok(got), None) => {
                    assert_eq!(numbers(&got.pairs), unflatten(&record.pairs), "record {i}");
                    assert_eq!(
                        numbers(&got.forwards),
                        unflatten(&record.forwards),
                        "record {i}"
                    );
                    check_derived(&got);
                }
                (Err(e), Some(kind)) => assert_eq!(Refusal::of(&e).name(), kind, "record {i}"),
                (got, _) => panic!("record {i}: {got:?}"),
            }
        }
        assert_eq!(records.len(), 553);
        println!("compared {} two-stage records", records.len());
    }

    #[derive(Deserialize)]
    struct SingleStage {
        #[serde(flatten)]
        input: Input,
        pairs: Vec<u32>,
        regroup: Lists,
    }

    #[test]
    fn single_stage_records() {
        let records: Vec<SingleStage> = load("single_stage.json");
        for (i, record) in records.iter().enumerate() {
            let got = single_stage(&record.input.spec()).unwrap();
            assert_eq!(numbers(&got.pairs), unflatten(&record.pairs), "record {i}");
            assert_eq!(got.regroup_groups, record.regroup, "record {i}");
            check_derived(&got);
        }
        assert_eq!(records.len(), 136);
        println!("compared {} single-stage records", records.len());
    }

    #[derive(Deserialize)]
    struct Expert {
        #[serde(flatten)]
        input: Input,
        routed: PeerMap,
        stage1: PeerMap,
        stage2: PeerMap,
        regroup: Lists,
        comm: String,
    }

    #[test]
    fn expert_records() {
        let records: Vec<Expert> = load("expert.json");
        for (i, record) in records.iter().enumerate() {
            let got = expert(&record.input.spec()).unwrap();
            assert_eq!(
                peers(&PeerLists::by_sender(&got.routed)),
                record.routed,
                "record {i}"
            );
            assert_eq!(peers(&got.rest.sends()), record.stage1, "record {i}");
            assert_eq!(
                peers(&got.rest.forward_sends()),
                record.stage2,
                "record {i}"
            );
            assert_eq!(got.regroup_groups, record.regroup, "record {i}");
            let comm = serde_json::to_value(got.regroup).unwrap();
            assert_eq!(comm, record.comm, "record {i}");
            check_derived(&got.rest);
        }
        assert_eq!(records.len(), 43);
        println!("compared {} expert records", records.len());
    }
}

mod complete {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        records: Vec<Record>,
    }

    #[derive(Deserialize)]
    struct Record {
        #[serde(default)]
        id: String,
        src: SourceSizes,
        dst: DestinationSizes,
        src_gpu: Vec<u32>,
        dst_gpu: Vec<u32>,
        colocated_flag: bool,
        #[serde(default)]
        dst_is_vllm: bool,
        src_ranks: Option<Lists>,
        dst_ranks: Option<Lists>,
        src_ranks_expert: Option<Lists>,
        src_ranks_except_routed: Option<Lists>,
        error: Option<serde_json::Value>,
        #[serde(default)]
        pair_list: Vec<(u32, u32)>,
        #[serde(default)]
        p2p_list: Vec<(u32, u32)>,
        #[serde(default)]
        regroup_groups: Lists,
        #[serde(default)]
        routed_map: PeerMap,
        #[serde(default)]
        stage1_map: PeerMap,
        #[serde(default)]
        stage2_map: PeerMap,
    }

    impl Record {
        /// The input once from sizes, once from explicit lists.
        fn specs(&self) -> [MappingSpec; 2] {
            let implied = MappingSpec {
                source: self.src,
                destination: self.dst,
                source_devices: self.src_gpu.clone(),
                destination_devices: self.dst_gpu.clone(),
                colocated: Some(self.colocated_flag),
                destination_is_vllm: self.dst_is_vllm,
                ..MappingSpec::default()
            };
            let source_ranks = self.src_ranks.clone();
            let explicit = MappingSpec {
                source_ranks: source_ranks.or(self.src_ranks_except_routed.clone()),
                expert_source_ranks: self.src_ranks_expert.clone(),
                destination_ranks: self.dst_ranks.clone(),
                ..implied.clone()
            };
            [implied, explicit]
        }
    }

    /// The records of one file; none where there are no recordings at all,
    /// which is said past the capture of the test's output.
    fn load(name: &str) -> Vec<Record> {
        let folder = root().join("../shared/golden");
        if !folder.exists() {
            let line = format!("SKIPPED: {name}, {} is not at hand\n", folder.display());
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return Vec::new();
        }
        let text = std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let file: File = serde_json::from_slice(&text).unwrap();
        assert!(!file.records.is_empty());
        file.records
    }

    fn compare_two_stage(name: &str) {
        let records = load(name);
        let mut refused = 0;
        for record in &records {
            for spec in record.specs() {
                compare_two_stage_record(record, two_stage(&spec));
            }
            refused += usize::from(record.error.is_some());
        }
        println!(
            "compared {} records of {name}, {refused} of them refused",
            records.len()
        );
    }

    fn compare_two_stage_record(record: &Record, got: Result<Mapping, Error>) {
        let id = &record.id;
        match (got, &record.error) {
            (Ok(got), None) => {
                assert_eq!(numbers(&got.pairs), record.pair_list, "{id}");
                assert_eq!(numbers(&got.forwards), record.p2p_list, "{id}");
            }
            (Err(e), Some(error)) => {
                let infeasible = error["type"] == "RuntimeError";
                assert_eq!(
                    infeasible,
                    Refusal::of(&e) == Refusal::Infeasible,
                    "{id}: {e}"
                );
                assert_ne!(Refusal::of(&e), Refusal::InvalidInput, "{id}: {e}");
            }
            (got, _) => panic!("{id}: {got:?}"),
        }
    }

    #[test]
    fn two_stage_records() {
        compare_two_stage("two_stage_dense.json");
        compare_two_stage("two_stage_src_ep.json");
        compare_two_stage("two_stage_tpmap1.json");
        compare_two_stage("two_stage_limits.json");
    }

    #[test]
    fn single_stage_records() {
        let records = load("single_stage.json");
        for record in &records {
            for spec in record.specs() {
                let got = single_stage(&spec).unwrap();
                assert_eq!(numbers(&got.pairs), record.pair_list, "{}", record.id);
                assert_eq!(got.regroup_groups, record.regroup_groups, "{}", record.id);
            }
        }
        println!("compared {} records of single_stage.json", records.len());
    }

    #[test]
    fn expert_records() {
        let records = load("hep.json");
        for record in &records {
            for spec in record.specs() {
                let got = expert(&spec).unwrap();
                let id = &record.id;
                assert_eq!(
                    peers(&PeerLists::by_sender(&got.routed)),
                    record.routed_map,
                    "{id}"
                );
                assert_eq!(peers(&got.rest.sends()), record.stage1_map, "{id}");
                assert_eq!(peers(&got.rest.forward_sends()), record.stage2_map, "{id}");
                assert_eq!(got.regroup_groups, record.regroup_groups, "{id}");
            }
        }
        println!("compared {} records of hep.json", records.len());
    }
}

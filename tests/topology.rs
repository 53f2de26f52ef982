//! Where ranks sit, and what a topology refuses.

use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::mesh::RankList;
use weightsync::plan::Plan;
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::topology::{
    HostGroup, PlacementRun, RankPlace, Site, TOPOLOGY_SCHEMA, Topology, TopologySpec,
};
use weightsync::{Rank, Status};

fn range(first: u32, count: u32) -> RankList {
    RankList::Range { first, count }
}

fn on_gpus(ranks: RankList, gpu: u32) -> PlacementRun {
    PlacementRun {
        ranks,
        gpu,
        ranks_per_gpu: 1,
    }
}

fn site(t: &Topology, rank: u32) -> Site {
    t.site(Rank(rank)).unwrap()
}

fn refused(json: &str) -> String {
    let e = Topology::from_json(json.as_bytes()).unwrap_err();
    assert!(
        matches!(
            e.status,
            Status::InvalidArgument | Status::LimitExceeded | Status::VersionMismatch
        ),
        "{e:?}"
    );
    e.message
}

#[test]
fn a_rank_sits_where_arithmetic_says() {
    let spec = TopologySpec {
        hosts: vec![
            HostGroup {
                count: 2,
                ..HostGroup::default()
            },
            HostGroup {
                count: 4,
                gpus: 4,
                nics: 2,
                domain_hosts: 2,
                ..HostGroup::default()
            },
        ],
        placement: vec![on_gpus(range(100, 32), 0)],
        ..TopologySpec::default()
    };
    let t = Topology::new(spec).unwrap();
    let first = site(&t, 113);
    assert_eq!(
        (first.gpu, first.host, first.domain, first.port, first.rail),
        (13, 1, 1, Some(13), 5)
    );
    assert_eq!(first.nic_bytes_per_s, 50_000_000_000);
    // The second host of the second group: two GPUs share a NIC.
    let second = site(&t, 122);
    assert_eq!((second.gpu, second.host, second.domain), (22, 3, 2));
    assert_eq!((second.port, second.rail), (Some(16 + 2 + 1), 1));
    assert_eq!(site(&t, 131).domain, 3);
    assert_eq!(t.site(Rank(99)), None);
    assert_eq!(t.site(Rank(132)), None);
}

#[test]
fn several_nics_of_a_gpu_are_one_port() {
    let spec = TopologySpec {
        hosts: vec![HostGroup {
            count: 1,
            gpus: 4,
            nics: 8,
            ..HostGroup::default()
        }],
        placement: vec![on_gpus(range(0, 4), 0)],
        ..TopologySpec::default()
    };
    let t = Topology::new(spec).unwrap();
    assert_eq!(site(&t, 3).port, Some(3));
    assert_eq!(site(&t, 3).nic_bytes_per_s, 100_000_000_000);
}

#[test]
fn colocated_ranks_share_a_gpu_and_slow_ones_slow_their_port() {
    let json = r#"{"weightsync_topology": 1, "hosts": [{"count": 1}],
        "placement": [{"ranks": {"first": 0, "count": 4}, "gpu": 0, "ranks_per_gpu": 2},
                      {"ranks": [9, 7], "gpu": 1}],
        "speeds": [{"ranks": [3], "nic_percent": 50, "drained": true}]}"#;
    let t = Topology::from_json(json.as_bytes()).unwrap();
    assert_eq!(
        [0, 1, 2, 3, 9, 7].map(|r| site(&t, r).gpu),
        [0, 0, 1, 1, 1, 2]
    );
    assert_eq!(site(&t, 9).nic_bytes_per_s, 25_000_000_000);
    assert_eq!(site(&t, 7).nic_bytes_per_s, 50_000_000_000);
    assert!(t.is_drained(Rank(3)) && !t.is_drained(Rank(2)));
    let again = Topology::from_json(t.to_json().as_bytes()).unwrap();
    assert_eq!(again.spec(), t.spec());
}

/// Told for all at once, and what each site says one by one.
#[test]
fn ranks_with_alike_nics_of_their_own_are_told_as_such() {
    let told = |host: &str, placed: &str, speeds: &str| {
        let json = format!(
            r#"{{"weightsync_topology": 1, "hosts": [{{"count": 2{host}}}],
            "placement": [{placed}], "speeds": [{speeds}]}}"#
        );
        let t = Topology::from_json(json.as_bytes()).unwrap();
        let told = t.own_nic_bytes_per_s(0..8);
        let sites: Vec<Site> = (0..8).map(|r| site(&t, r)).collect();
        let mut ports: Vec<_> = sites.iter().map(|s| s.port).collect();
        ports.dedup();
        let nic = sites[0].nic_bytes_per_s;
        let are_own = ports.len() == 8 && sites.iter().all(|s| s.nic_bytes_per_s == nic);
        assert!(told.is_none() || (are_own && told == Some(nic)));
        told
    };
    let plain = r#"{"ranks": {"first": 0, "count": 8}, "gpu": 4}"#;
    assert_eq!(told("", plain, ""), Some(50_000_000_000));
    let first = r#"{"ranks": {"first": 0, "count": 8}, "gpu": 0}"#;
    let two_each = r#", "gpus": 4, "nics": 8"#;
    assert_eq!(told(two_each, first, ""), Some(100_000_000_000));
    assert_eq!(told(r#", "nics": 4"#, plain, ""), None);
    assert_eq!(
        told("", plain, r#"{"ranks": [5], "nic_percent": 50}"#),
        None
    );
    assert_eq!(told("", plain, r#"{"ranks": [5], "drained": true}"#), None);
    let shared = r#"{"ranks": {"first": 0, "count": 8}, "gpu": 4, "ranks_per_gpu": 2}"#;
    assert_eq!(told("", shared, ""), None);
    let apart = r#"{"ranks": {"first": 0, "count": 3}, "gpu": 0},
                   {"ranks": {"first": 3, "count": 5}, "gpu": 8}"#;
    assert_eq!(told("", apart, ""), None);
}

/// The file that the guide to planning shows.
#[test]
fn two_pods_hold_two_domains_of_64_gpus() {
    let t = Topology::from_json(include_bytes!("topologies/two_pods.json")).unwrap();
    let domains = [0, 63, 64, 127].map(|r| site(&t, r).domain);
    assert_eq!(domains, [0, 0, 1, 1]);
    let cell = |rank| t.cell(0, &site(&t, rank));
    assert_eq!(cell(0), cell(63));
    assert_ne!(cell(63), cell(64));
    assert_eq!(
        site(&t, 17).nic_bytes_per_s,
        site(&t, 16).nic_bytes_per_s / 2
    );
    assert!(t.is_drained(Rank(18)));
}

#[test]
fn cuts_group_hosts_and_rails() {
    let json = r#"{"weightsync_topology": 1, "hosts": [{"count": 8}],
        "placement": [{"ranks": {"first": 0, "count": 64}, "gpu": 0}],
        "cuts": [{"name": "pods", "hosts": 4, "out_bytes_per_s": 1000, "in_bytes_per_s": 1000},
                 {"name": "leaves", "hosts": 4, "by_rail": true, "out_bytes_per_s": 5, "in_bytes_per_s": 5}]}"#;
    let t = Topology::from_json(json.as_bytes()).unwrap();
    let cell = |cut, rank| t.cell(cut, &site(&t, rank));
    assert_eq!(cell(0, 0), cell(0, 31));
    assert_ne!(cell(0, 31), cell(0, 32));
    assert_eq!(cell(1, 1), cell(1, 9));
    assert_ne!(cell(1, 1), cell(1, 2));
}

#[test]
fn what_contradicts_itself_is_refused_with_the_numbers() {
    let with = |fields: &str| refused(&format!(r#"{{"weightsync_topology": 1, {fields}}}"#));
    let one = r#""placement": [{"ranks": {"first": 0, "count": 8}, "gpu": 0}]"#;
    for (fields, words) in [
        (
            r#""hosts": [{"nic_bytes_per_s": 0}]"#,
            "nic_bytes_per_s is 0",
        ),
        (r#""hosts": [{"nic_bytes_per_s": -5}]"#, "`-5`"),
        (
            r#""hosts": [{"nvlink_bytes_per_s": 0}]"#,
            "nvlink_bytes_per_s is 0",
        ),
        (r#""pack_bytes_per_s": 0"#, "pack_bytes_per_s is 0"),
        (r#""hosts": [{"count": 0}, {"count": 1}]"#, "count is 0"),
        (r#""hosts": [{"gpus": 8, "nics": 3}]"#, "3 NICs for 8 GPUs"),
        (
            r#""hosts": [{"count": 1}], "placement": [{"ranks": {"first": 0, "count": 9}, "gpu": 0}]"#,
            "rank 8 is on GPU 8; the hosts have 8 GPUs",
        ),
        (
            r#""placement": [{"ranks": {"first": 0, "count": 8}, "gpu": 0}, {"ranks": [7], "gpu": 30}]"#,
            "rank 7 is placed twice, on GPU 7 and on GPU 30",
        ),
        (
            &format!(r#"{one}, "speeds": [{{"ranks": [9], "nic_percent": 50}}]"#),
            "rank 9, which is not placed",
        ),
        (
            &format!(r#"{one}, "speeds": [{{"ranks": [1], "nic_percent": 0}}]"#),
            "nic_percent is 0",
        ),
        (
            r#""cuts": [{"name": "pods", "hosts": 4, "out_bytes_per_s": 0, "in_bytes_per_s": 9}]"#,
            "disconnects its cells of 4 hosts",
        ),
        (
            r#""cuts": [{"name": "pods", "hosts": 0, "out_bytes_per_s": 1, "in_bytes_per_s": 9}]"#,
            "0 hosts",
        ),
        (
            r#""latency_ns": 99999999999999"#,
            "latency_ns is 99999999999999",
        ),
        (r#""speed": 1"#, "unknown field `speed`"),
    ] {
        let message = with(fields);
        assert!(message.contains(words), "{fields}: {message}");
    }
    assert!(refused(r#"{"weightsync_topology": 2}"#).contains("version 2"));
    assert!(refused("{").contains("line 1"));
}

/// Eight ranks on two hosts, the GPUs of each in turn.
fn places(domain: &str) -> Vec<RankPlace> {
    (0..8)
        .map(|r| RankPlace {
            rank: Rank(r),
            host: format!("host{}", r % 2),
            device: format!("GPU-{}", r),
            domain: domain.into(),
            nics: vec![format!("mlx5_{}", r / 2)],
        })
        .collect()
}

#[test]
fn ranks_that_say_where_they_are_make_a_topology() {
    let mut said = places("");
    said.reverse();
    let t = Topology::discover(&said, &TopologySpec::default()).unwrap();
    assert_eq!([0, 2, 4, 6].map(|r| site(&t, r).domain), [0; 4]);
    assert_eq!([1, 3, 5, 7].map(|r| site(&t, r).domain), [1; 4]);
    assert_eq!(site(&t, 6).rail, 3);
    assert_eq!(t.spec().hosts.len(), 1);
    let fabric = Topology::discover(&places("rack"), &TopologySpec::default()).unwrap();
    assert_eq!(site(&fabric, 1).domain, 0);
    assert_eq!(site(&fabric, 1).host, 1);
    for p in said {
        assert_eq!(RankPlace::from_bytes(&p.to_bytes()).unwrap(), p);
    }
}

#[test]
fn rails_follow_the_names_of_nics() {
    let near = |rank: u32, host: &str, nic: u32| RankPlace {
        rank: Rank(rank),
        host: host.into(),
        device: format!("GPU-{rank}"),
        domain: String::new(),
        nics: vec![format!("mlx5_{nic}")],
    };
    // Two hosts that number their ranks against each other; on the second no
    // rank is near mlx5_2.
    let said = [
        (0, "a", 10),
        (1, "a", 9),
        (2, "a", 2),
        (3, "a", 1),
        (4, "b", 1),
        (5, "b", 9),
        (6, "b", 10),
    ];
    let said = said.map(|(rank, host, nic)| near(rank, host, nic));
    let t = Topology::discover(&said, &TopologySpec::default()).unwrap();
    let rails = [0, 1, 2, 3, 4, 5, 6].map(|r| site(&t, r).rail);
    assert_eq!(rails, [3, 2, 1, 0, 0, 2, 3]);
    assert_eq!(site(&t, 6).host, 1);
}

#[test]
fn gpus_that_share_a_nic_share_its_rail() {
    let near = |rank: u32, nic: u32| RankPlace {
        rank: Rank(rank),
        host: "a".into(),
        device: format!("GPU-{rank}"),
        domain: String::new(),
        nics: vec![format!("mlx5_{nic}")],
    };
    let said = [near(0, 1), near(1, 0), near(2, 1), near(3, 0)];
    let t = Topology::discover(&said, &TopologySpec::default()).unwrap();
    assert_eq!([0, 1, 2, 3].map(|r| site(&t, r).rail), [1, 0, 1, 0]);
    assert_eq!(site(&t, 0).port, site(&t, 2).port);
}

#[test]
fn ranks_of_one_device_are_colocated() {
    let mut said = places("");
    said[3].device = said[1].device.clone();
    let t = Topology::discover(&said, &TopologySpec::default()).unwrap();
    assert_eq!(site(&t, 3).gpu, site(&t, 1).gpu);
    assert_ne!(site(&t, 5).gpu, site(&t, 1).gpu);
}

#[test]
fn ranks_that_contradict_each_other_are_refused() {
    let refuse = |change: &dyn Fn(&mut Vec<RankPlace>)| {
        let mut said = places("");
        change(&mut said);
        Topology::discover(&said, &TopologySpec::default())
            .unwrap_err()
            .message
    };
    assert!(refuse(&|s| s[1].rank = Rank(0)).contains("rank 0 has said twice"));
    assert!(refuse(&|s| s[1].device = "GPU-0".into()).contains("device \"GPU-0\""));
    assert!(refuse(&|s| s[2].domain = "rack".into()).contains("NVLink domain \"rack\""));
    assert!(refuse(&|s| s[2].host.clear()).contains("host \"\""));
    assert!(refuse(&|s| s.clear()).contains("no rank"));
}

fn layouts() -> (Arc<Layout>, Arc<Layout>) {
    let read = |text: &str| Arc::new(Layout::from_json(text.as_bytes()).unwrap());
    (
        read(include_str!("layouts/trainer_tp2_pp2_dp2.json")),
        read(include_str!("layouts/inference_2x_tp4.json")),
    )
}

#[test]
fn by_default_destination_ranks_have_hosts_of_their_own() {
    let (source, destination) = layouts();
    let t = Topology::default_for(&source, &destination).unwrap();
    for (i, rank) in source.ranks().into_iter().enumerate() {
        assert_eq!(t.site(rank).unwrap().gpu, i as u32);
    }
    let first = destination.ranks()[0];
    assert_eq!(t.site(first).unwrap().host, source.rank_count().div_ceil(8));
    // Ranks of both sides sit once.
    let both = Topology::default_for(&source, &source).unwrap();
    assert_eq!(both.spec().placement.len(), 1);
}

#[test]
fn a_topology_that_leaves_ranks_out_is_refused() {
    let (source, destination) = layouts();
    let refuse = |json: &str| {
        let spec = TopologySpec::from_json(json.as_bytes()).unwrap();
        let options = PlanOptions {
            topology: Some(spec),
            ..PlanOptions::default()
        };
        Plan::create(source.clone(), destination.clone(), &options)
            .unwrap_err()
            .message
    };
    let m = refuse(
        r#"{"weightsync_topology": 1, "placement": [{"ranks": {"first": 0, "count": 12}, "gpu": 0}]}"#,
    );
    assert!(
        m.contains("destination rank 12 has no place; 12 ranks are placed"),
        "{m}"
    );
    let m = refuse(r#"{"weightsync_topology": 1, "hosts": [{"count": 1}]}"#);
    assert!(
        m.contains("rank 15 is on GPU 15; the hosts have 8 GPUs"),
        "{m}"
    );
    let m = refuse(r#"{"weightsync_topology": 1, "hosts": [{"gpus": 8, "nics": 0}]}"#);
    assert!(m.contains("has no NIC"), "{m}");
}

#[test]
fn a_topology_travels_with_its_plan_and_counts_where_it_decides() {
    let (source, destination) = layouts();
    let plan = |json: &str| {
        let options = PlanOptions {
            topology: Some(TopologySpec::from_json(json.as_bytes()).unwrap()),
            ..PlanOptions::default()
        };
        Plan::create(source.clone(), destination.clone(), &options).unwrap()
    };
    let plain = Plan::create(source.clone(), destination.clone(), &PlanOptions::default()).unwrap();
    let late = plan(r#"{"weightsync_topology": 1, "latency_ns": 7}"#);
    let slow = plan(r#"{"weightsync_topology": 1, "speeds": [{"ranks": [1], "nic_percent": 50}]}"#);
    assert_eq!(plain.fingerprint(), late.fingerprint());
    assert_ne!(plain.fingerprint(), slow.fingerprint());
    let again = Plan::from_bytes(&late.to_bytes().unwrap()).unwrap();
    assert_eq!(again.topology().latency_ns(), 7);
    assert_eq!(again.fingerprint(), late.fingerprint());
}

#[test]
fn the_schema_names_every_field_of_a_written_file() {
    let schema: serde_json::Value = serde_json::from_str(TOPOLOGY_SCHEMA).unwrap();
    let t = Topology::new(TopologySpec::default()).unwrap();
    let file: serde_json::Value = serde_json::from_str(&t.to_json()).unwrap();
    for key in file.as_object().unwrap().keys() {
        assert!(schema["properties"].get(key).is_some(), "{key}");
    }
    for key in file["hosts"][0].as_object().unwrap().keys() {
        assert!(
            schema["$defs"]["host_group"]["properties"]
                .get(key)
                .is_some(),
            "{key}"
        );
    }
}

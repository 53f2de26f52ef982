//! `auto` and certificates at sizes that nobody chose for them, and what they
//! promise of real models.

#[allow(dead_code)]
#[path = "../src/cli/bench/cases.rs"]
mod cases;

use cases::{CASES, Case};
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::mesh::RankList;
use weightsync::layout::models::{Inventory, MegatronSizes, VllmSizes};
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, Strategy};
use weightsync::plan::program::Side;
use weightsync::plan::topology::{
    FabricCut, HostGroup, PlacementRun, SpeedFactor, Topology, TopologySpec,
};
use weightsync::sim::Certificate;
use weightsync::{Rank, tune};

const LLAMA: &[u8] = include_bytes!("models/llama-3.1-70b.json");

fn layouts(source: &str, destination: &str) -> (Arc<Layout>, Arc<Layout>) {
    let model = Inventory::from_config(LLAMA).unwrap();
    let sizes: MegatronSizes = source.parse().unwrap();
    let world = sizes.world() as u32;
    let group: VllmSizes = destination.parse().unwrap();
    (
        Arc::new(Layout::megatron(&model, &sizes, 0).unwrap()),
        Arc::new(Layout::vllm(&model, &[group], world).unwrap()),
    )
}

fn options(topology: Option<TopologySpec>) -> PlanOptions {
    PlanOptions {
        staging_bytes_max: 1 << 30,
        topology,
        ..PlanOptions::default()
    }
}

/// The same for `auto`, which simulates each candidate once.
fn quick(topology: Option<TopologySpec>) -> PlanOptions {
    PlanOptions {
        bucket_count: 8,
        ..options(topology)
    }
}

fn slow(rank: u32, nic_percent: u32, is_drained: bool) -> TopologySpec {
    TopologySpec {
        speeds: vec![SpeedFactor {
            ranks: RankList::List(vec![Rank(rank)]),
            nic_percent,
            nvlink_percent: 100,
            is_drained,
        }],
        ..TopologySpec::default()
    }
}

#[test]
fn auto_decides_at_any_number_of_ranks() {
    let (source, destination) = layouts("tp=4,pp=4,dp=3200", "tp=8,replicas=6400");
    let even = tune::choose(&source, &destination, &quick(None)).unwrap();
    assert_eq!(
        (even.ranks, even.factor, even.is_sampled),
        (512, 200, false)
    );

    let (_, one_more) = layouts("tp=4,pp=4,dp=3200", "tp=8,replicas=6401");
    let odd = tune::choose(&source, &one_more, &quick(None)).unwrap();
    assert_eq!((odd.ranks, &odd.best), (512, &even.best));

    let drained = quick(Some(slow(17_000, 100, true)));
    let with_drained = tune::choose(&source, &destination, &drained).unwrap();
    assert_eq!(with_drained.ranks, 512);
}

#[test]
fn a_slow_rank_among_many_is_not_overlooked() {
    let (source, destination) = layouts("tp=4,pp=4,dp=640", "tp=8,replicas=1280");
    let even = tune::choose(&source, &destination, &quick(None)).unwrap();
    let limping = quick(Some(slow(10_240 + 8_003, 10, false)));
    let limping = tune::choose(&source, &destination, &limping).unwrap();
    assert!(
        limping.lower_ns > 2 * even.lower_ns
            || limping.best.predicted_ns > 2 * even.best.predicted_ns
    );
}

#[test]
fn cuts_shrink_with_the_layouts() {
    let pods = TopologySpec {
        cuts: vec![FabricCut {
            name: "pods".into(),
            hosts: 64,
            by_rail: false,
            // An eighth of what the NICs of 64 hosts can.
            out_bytes_per_s: 64 * 8 * 50_000_000_000 / 8,
            in_bytes_per_s: 64 * 8 * 50_000_000_000 / 8,
        }],
        ..TopologySpec::default()
    };
    let (source, destination) = layouts("tp=4,pp=4,dp=320", "tp=8,replicas=640");
    let choice = tune::choose(&source, &destination, &quick(Some(pods))).unwrap();
    assert!(choice.ranks <= 512, "{}", choice.ranks);
    // Sent straight, 64 replicas of 141 GB enter each cell at 3.2 TB/s.
    let direct = choice
        .tried
        .iter()
        .filter(|c| c.strategy == Strategy::Direct);
    let fastest = direct.map(|c| c.predicted_ns).min().unwrap();
    let seconds = fastest as f64 / 1e9;
    assert!((2.7..3.5).contains(&seconds), "{seconds} s");
}

#[test]
fn many_ranks_described_view_by_view_are_tried_on_some() {
    let (rows, ranks) = (3_000u64, 3_000u32);
    let side = |first: u32| {
        let views = (0..ranks).map(|i| {
            serde_json::json!({"rank": first + i, "copy": 0,
                "buffers": [{"name": "w", "bytes": 2 * 64}],
                "views": [{"tensor": "w", "box": [[i, i + 1], [0, 64]], "buffer": "w"}]})
        });
        let file = serde_json::json!({"weightsync_layout": 1,
            "tensors": [{"name": "w", "shape": [rows, 64], "dtype": "bf16"}],
            "explicit": views.collect::<Vec<_>>()});
        Arc::new(Layout::from_json(file.to_string().as_bytes()).unwrap())
    };
    let choice = tune::choose(&side(0), &side(ranks), &options(None)).unwrap();
    assert!(choice.is_sampled);
    assert_eq!(
        (choice.ranks, choice.best.strategy),
        (2 * ranks, Strategy::Direct)
    );
}

#[test]
fn a_plan_too_large_to_simulate_has_a_certificate() {
    let (source, destination) = layouts("tp=4,pp=4,dp=3200", "tp=8,replicas=6401");
    let made = PlanOptions {
        bucket_count: 32,
        ..options(None)
    };
    let plan = Plan::create(source, destination, &made).unwrap();
    let certificate = tune::certificate(&plan, plan.topology()).unwrap();
    assert!(!certificate.is_exact && certificate.ranks_simulated == 512);
    assert!(
        (1.0..1.1).contains(&certificate.ratio),
        "{}",
        certificate.ratio
    );
    let bounds = plan.bounds(plan.topology()).unwrap();
    assert_eq!(certificate.lower_bound_ns, bounds.lower_ns);
    assert!(certificate.predicted_ns >= certificate.lower_bound_ns);
}

#[test]
fn a_small_plan_is_simulated_as_it_is() {
    let (source, destination) = layouts("tp=4,pp=4", "tp=8,replicas=2");
    let plan = Plan::create(source, destination, &options(None)).unwrap();
    let (all, own) = (
        tune::certificate(&plan, plan.topology()).unwrap(),
        Certificate::of(&plan, plan.topology()).unwrap(),
    );
    assert!(all.is_exact && own.is_exact);
    assert_eq!(all.predicted_ns, own.predicted_ns);
    assert_eq!(all.ranks_simulated, 32);
}

/// Trainer and engine on the same 64 GPUs: in Megatron's order a host holds one
/// pipeline stage and lacks three quarters of the model; with the same shard of
/// all engines on a host it lacks less than an eighth.
#[test]
fn the_hint_names_the_placement_that_lowers_the_bound() {
    let (source, destination) = layouts("tp=4,pp=4,dp=4", "tp=8,replicas=8");
    let on_the_same_gpus = TopologySpec {
        hosts: vec![HostGroup::default()],
        placement: [0, 64]
            .map(|first| PlacementRun {
                ranks: RankList::Range { first, count: 64 },
                gpu: 0,
                ranks_per_gpu: 1,
            })
            .to_vec(),
        ..TopologySpec::default()
    };
    let plan = Plan::create(source, destination, &options(Some(on_the_same_gpus))).unwrap();
    let bounds = plan.bounds(plan.topology()).unwrap();
    let seconds = |ns: u64| ns as f64 / 1e9;
    assert!(
        (0.25..0.29).contains(&seconds(bounds.lower_ns)),
        "{bounds:?}"
    );
    let hint = plan.placement_hint(plan.topology(), &bounds).unwrap();
    let hint = hint.expect("another order of the trainer's ranks is much better");
    assert_eq!(
        (hint.side, hint.axis.as_str()),
        (Side::Destination, "replica")
    );
    assert!(seconds(hint.lower_ns) < 0.05, "{hint:?}");
    assert!(hint.text.contains("\"replica\""), "{hint:?}");
    // The ranks of an engine share a host now, and would not.
    assert_eq!(hint.axes_torn, ["tp"]);
    assert!(
        hint.text.contains("\"tp\" would then span domains"),
        "{hint:?}"
    );
}

#[test]
fn links_of_cells_by_rail_have_names_of_their_own() {
    let (source, destination) = layouts("tp=4,pp=4", "tp=8,replicas=2");
    let leaves = TopologySpec {
        cuts: vec![FabricCut {
            name: "leaf".into(),
            hosts: 1,
            by_rail: true,
            out_bytes_per_s: 50_000_000_000,
            in_bytes_per_s: 50_000_000_000,
        }],
        ..TopologySpec::default()
    };
    let plan = Plan::create(source, destination, &options(Some(leaves))).unwrap();
    let topology: &Topology = plan.topology();
    let (_, instance, _) = Certificate::with_instance(&plan, topology).unwrap();
    let mut names: Vec<String> = instance.links.iter().map(|l| l.to_string()).collect();
    assert!(
        names.iter().any(|n| n.ends_with("cell 1, rail 2")),
        "{names:?}"
    );
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

/// Figures that `weightsync bench plan` prints, which has the larger models too:
/// they are whole numbers, the same on every machine.
fn stays_near_its_bound(case: &Case) {
    let (source, destination) = case.layouts().unwrap();
    let plan = tune::plan(source, destination, &case.options()).unwrap();
    let certificate = Certificate::of(&plan, plan.topology()).unwrap();
    let percent = certificate.predicted_ns * 100 / certificate.lower_bound_ns;
    assert!(
        certificate.predicted_ns * 100 <= certificate.lower_bound_ns * u64::from(case.target),
        "{}: {percent} percent of the bound by {:?}",
        case.name(),
        plan.decision()
    );
}

#[test]
fn llama_stays_near_its_bound() {
    stays_near_its_bound(&CASES[0]);
}

#[test]
fn qwen_stays_near_its_bound() {
    stays_near_its_bound(&CASES[1]);
}

#[test]
fn odd_cuts_stay_near_their_bound() {
    stays_near_its_bound(&CASES[5]);
}

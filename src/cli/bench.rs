//! `weightsync bench`: how near plans of real models come to the physical
//! limit, and how fast plans and mappings are made, with targets beside.

mod map;

use super::table::{Table, print, print_json};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weightsync::layout::Layout;
use weightsync::layout::models::{Inventory, MegatronSizes, VllmSizes};
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, SourceRule, Strategy};
use weightsync::plan::topology::{HostGroup, TopologySpec};
use weightsync::sim::{Certificate, LinkKind};
use weightsync::{Error, Result, tune};

/// Staging per rank in all rows.
const STAGING_BYTES: u64 = 1 << 30;
/// Ranks whose programs are timed.
const SAMPLES: u32 = 64;

/// Measure, with targets beside
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Plans of real models against their bounds, and the time planning takes
    Plan(PlanBenchArgs),
    /// The time that rank mappings take, in memory and through JSON
    Map(map::MapBenchArgs),
}

#[derive(Args, Debug)]
struct PlanBenchArgs {
    /// Only rows that contain this
    #[arg(long, value_name = "TEXT")]
    row: Option<String>,
    /// Leave out the time that planning takes
    #[arg(long)]
    no_times: bool,
    /// Print JSON, one object a row
    #[arg(long)]
    json: bool,
}

/// One case: a model from Megatron ranks to vLLM ranks.
struct Case {
    model: &'static str,
    source: &'static str,
    destination: &'static str,
    is_nvl72: bool,
    /// Predicted time over the bound, in hundredths.
    target: u32,
}

const LLAMA: &str = "llama-3.1-70b";
const QWEN: &str = "qwen3-235b-a22b";
const DEEPSEEK: &str = "deepseek-v3";
const KIMI: &str = "kimi-k2";
const ODD: &str = "odd";

const fn case(
    model: &'static str,
    source: &'static str,
    destination: &'static str,
    target: u32,
) -> Case {
    Case {
        model,
        source,
        destination,
        is_nvl72: false,
        target,
    }
}

const fn on_nvl72(case: Case) -> Case {
    Case {
        is_nvl72: true,
        ..case
    }
}

const CASES: [Case; 11] = [
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=8", 105),
    case(QWEN, "tp=4,pp=8,ep=16,dp=4", "tp=8,ep=on,replicas=8", 105),
    case(DEEPSEEK, "pp=16,ep=16,dp=16", "tp=16,ep=on,replicas=8", 105),
    case(
        DEEPSEEK,
        "pp=8,ep=32,dp=32",
        "tp=8,dp=4,ep=on,replicas=4",
        105,
    ),
    case(KIMI, "pp=16,ep=16,dp=16", "tp=16,ep=on,replicas=8", 105),
    case(ODD, "tp=2,pp=5,dp=3", "tp=3,pp=2,replicas=5", 110),
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=64", 108),
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=128", 110),
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=256", 115),
    on_nvl72(case(
        DEEPSEEK,
        "pp=8,ep=16,dp=16",
        "tp=8,ep=on,replicas=16",
        115,
    )),
    on_nvl72(case(
        QWEN,
        "tp=4,pp=4,ep=16,dp=4",
        "tp=8,ep=on,replicas=8",
        115,
    )),
];

/// Rows scaled to 102,400 ranks, for the time of one rank's program.
const LARGE: [Case; 2] = [
    case(LLAMA, "tp=4,pp=4,dp=3200", "tp=8,replicas=6400", 0),
    case(
        DEEPSEEK,
        "pp=16,ep=64,dp=3200",
        "tp=16,ep=on,replicas=3200",
        0,
    ),
];

/// All programs of this one are made.
const WHOLE: Case = case(DEEPSEEK, "pp=16,ep=64,dp=64", "tp=16,ep=on,replicas=64", 0);

/// One row of the first table.
#[derive(Serialize)]
struct Row {
    case: String,
    lower_bound_s: f64,
    predicted_s: f64,
    ratio: f64,
    target: f64,
    is_met: bool,
    strategy: Strategy,
    source_rule: SourceRule,
    bucket_count: u32,
    /// Bytes of the busiest sending NIC over the mean of all that send.
    busiest_over_mean: f64,
    auto_s: f64,
}

/// One row of the second table.
#[derive(Serialize)]
struct Timing {
    what: String,
    time_s: f64,
    target_s: f64,
    is_met: bool,
}

/// Runs `weightsync bench`.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Plan(args) => plans(args),
        What::Map(args) => map::run(args),
    }
}

fn plans(args: &PlanBenchArgs) -> Result<()> {
    let is_wanted = |name: &str| args.row.as_ref().is_none_or(|w| name.contains(w.as_str()));
    let mut table = Table::default();
    table.row([
        "case",
        "bound s",
        "predicted s",
        "ratio",
        "target",
        "",
        "strategy",
        "buckets",
        "busiest",
        "auto s",
    ]);
    for case in CASES.iter().filter(|c| is_wanted(&c.name())) {
        let row = measure(case)?;
        if args.json {
            print_json(&row)?;
            continue;
        }
        let rule = match row.source_rule {
            SourceRule::Wrap => "wrap",
            SourceRule::Rotate => "rotate",
        };
        table.row([
            &row.case,
            &format!("{:.4}", row.lower_bound_s),
            &format!("{:.4}", row.predicted_s),
            &format!("{:.3}", row.ratio),
            &format!("{:.2}", row.target),
            verdict(row.is_met),
            &format!("{} {rule}", row.strategy.name()),
            &row.bucket_count.to_string(),
            &format!("{:.3}", row.busiest_over_mean),
            &format!("{:.2}", row.auto_s),
        ]);
    }
    if !args.json {
        print(&table)?;
    }
    if args.no_times {
        return Ok(());
    }
    if !args.json {
        print("\n")?;
    }
    print_timings(&timings(&is_wanted)?, args.json)
}

fn print_timings(timings: &[Timing], is_json: bool) -> Result<()> {
    if is_json {
        return timings.iter().try_for_each(print_json);
    }
    let mut table = Table::default();
    table.row(["time", "measured", "target", ""]);
    for t in timings {
        let show = |s: f64| match s < 0.1 {
            true => format!("{:.3} ms", s * 1e3),
            false => format!("{s:.2} s"),
        };
        table.row([
            &t.what,
            &show(t.time_s),
            &format!("< {}", show(t.target_s)),
            verdict(t.is_met),
        ]);
    }
    print(&table)
}

fn verdict(is_met: bool) -> &'static str {
    match is_met {
        true => "met",
        false => "MISSED",
    }
}

impl Case {
    fn name(&self) -> String {
        let rack = if self.is_nvl72 { "NVL72 " } else { "" };
        format!(
            "{rack}{} {} -> {}",
            self.model, self.source, self.destination
        )
    }

    fn layouts(&self) -> Result<(Arc<Layout>, Arc<Layout>)> {
        if self.model == ODD {
            let read = |text: &str| Layout::from_json(text.as_bytes()).map(Arc::new);
            return Ok((
                read(include_str!("../../benches/layouts/odd_trainer.json"))?,
                read(include_str!("../../benches/layouts/odd_inference.json"))?,
            ));
        }
        let config = match self.model {
            LLAMA => include_str!("../../tests/models/llama-3.1-70b.json"),
            QWEN => include_str!("../../tests/models/qwen3-235b-a22b.json"),
            DEEPSEEK => include_str!("../../tests/models/deepseek-v3.json"),
            _ => include_str!("../../tests/models/kimi-k2.json"),
        };
        let model = Inventory::from_config(config.as_bytes())?.without_mtp();
        let sizes: MegatronSizes = self.source.parse()?;
        let world = u32::try_from(sizes.world())
            .map_err(|_| Error::limit(format!("{} has too many ranks", self.source)))?;
        let source = Layout::megatron(&model, &sizes, 0)?;
        let group: VllmSizes = self.destination.parse()?;
        let destination = Layout::vllm(&model, &[group], world)?;
        Ok((Arc::new(source), Arc::new(destination)))
    }

    fn options(&self) -> PlanOptions {
        PlanOptions {
            staging_bytes_max: STAGING_BYTES,
            unused_allowed: vec!["*".into()],
            topology: self.is_nvl72.then(nvl72),
            ..PlanOptions::default()
        }
    }
}

/// Racks of which 64 GPUs are used, on hosts of four.
fn nvl72() -> TopologySpec {
    TopologySpec {
        hosts: vec![HostGroup {
            gpus: 4,
            nics: 4,
            nvlink_bytes_per_s: 900_000_000_000,
            domain_hosts: 16,
            ..HostGroup::default()
        }],
        ..TopologySpec::default()
    }
}

fn measure(case: &Case) -> Result<Row> {
    let (source, destination) = case.layouts()?;
    let start = Instant::now();
    let plan = tune::plan(source, destination, &case.options())?;
    let auto_s = start.elapsed().as_secs_f64();
    let certificate = Certificate::of(&plan, plan.topology())?;
    let nics = certificate
        .links
        .iter()
        .find(|l| l.kind == LinkKind::NicOut);
    let busiest_over_mean = nics.map_or(1.0, |l| {
        l.bytes_max as f64 * l.count as f64 / l.bytes.max(1) as f64
    });
    let target = f64::from(case.target) / 100.0;
    Ok(Row {
        case: case.name(),
        lower_bound_s: certificate.lower_bound_s,
        predicted_s: certificate.predicted_s,
        ratio: certificate.ratio,
        target,
        is_met: certificate.ratio <= target,
        strategy: plan.decision().strategy,
        source_rule: plan.decision().source_rule,
        bucket_count: plan.decision().bucket_count,
        busiest_over_mean,
        auto_s,
    })
}

fn timings(is_wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Timing>> {
    let mut out = Vec::new();
    for case in LARGE.iter().filter(|c| is_wanted(&c.name())) {
        let (source, destination) = case.layouts()?;
        let start = Instant::now();
        let choice = tune::choose(&source, &destination, &case.options())?;
        out.push(timing(
            format!("auto, {} at 102,400 ranks", case.name()),
            start.elapsed(),
            2.0,
        ));
        let options = PlanOptions {
            strategy: choice.best.strategy,
            source_rule: choice.best.source_rule,
            spread: choice.best.spread,
            source_relay: choice.best.source_relay,
            bucket_count: choice.best.bucket_count,
            ..case.options()
        };
        let plan = Plan::create(source, destination, &options)?;
        out.push(timing(
            format!("one rank's program, {} at 102,400 ranks", case.name()),
            median_program(&plan)?,
            0.001,
        ));
    }
    if is_wanted(&WHOLE.name()) {
        let (source, destination) = WHOLE.layouts()?;
        let options = PlanOptions {
            bucket_count: 16,
            staging_bytes_max: 8 << 30,
            ..WHOLE.options()
        };
        let plan = Plan::create(source, destination, &options)?;
        let start = Instant::now();
        for rank in plan.ranks() {
            std::hint::black_box(plan.program(rank)?);
        }
        let what = format!("all {} programs, {}", plan.ranks().len(), WHOLE.name());
        out.push(timing(what, start.elapsed(), 3.0));
    }
    Ok(out)
}

fn timing(what: String, took: Duration, target_s: f64) -> Timing {
    let time_s = took.as_secs_f64();
    Timing {
        what,
        time_s,
        target_s,
        is_met: time_s < target_s,
    }
}

/// Of programs of ranks spread over both sides.
fn median_program(plan: &Plan) -> Result<Duration> {
    let ranks = plan.ranks();
    let step = (ranks.len() / SAMPLES as usize).max(1);
    let mut times = Vec::new();
    for &rank in ranks.iter().step_by(step) {
        std::hint::black_box(plan.program(rank)?);
        let start = Instant::now();
        std::hint::black_box(plan.program(rank)?);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

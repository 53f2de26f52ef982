//! `weightsync bench`: how near plans of real models come to the physical
//! limit, and how fast plans and mappings are made, with targets beside.

mod cases;
mod map;
mod times;

use super::table::{Table, print, print_json};
use cases::{CASES, Case};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::time::Instant;
use times::{Timing, timing, timings};
use weightsync::plan::decision::{SourceRule, Strategy};
use weightsync::sim::{Certificate, LinkKind};
use weightsync::{Result, tune};

/// The time that `auto` may take, at any number of ranks.
const AUTO_TARGET_S: f64 = 2.0;

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
    /// What `auto` takes to decide.
    auto_s: f64,
    auto_target_s: f64,
    /// What the plan takes then: all ranks are asked for their staging.
    plan_s: f64,
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
        "target",
        "",
        "plan s",
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
            &format!("{:.0}", row.auto_target_s),
            verdict(row.auto_s < row.auto_target_s),
            &format!("{:.2}", row.plan_s),
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

fn measure(case: &Case) -> Result<Row> {
    let (source, destination) = case.layouts()?;
    let start = Instant::now();
    let choice = tune::choose(&source, &destination, &case.options())?;
    let auto_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let plan = tune::plan_as(&choice, source, destination, &case.options())?;
    let plan_s = start.elapsed().as_secs_f64();
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
        auto_target_s: AUTO_TARGET_S,
        plan_s,
    })
}

//! `weightsync simulate`: what a saved plan would do on the wire.

use super::check::of_file;
use super::plan::read_topology;
use super::table::{Table, bytes, grouped, print, print_json, read_file, time};
use super::waiting::while_waiting;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use weightsync::plan::Plan;
use weightsync::plan::topology::Topology;
use weightsync::sim::{
    Certificate, Instance, SimulateOptions, Simulated, StressOptions, StressReport,
};
use weightsync::{Error, Result};

/// Run a saved plan in virtual time
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// File that `plan -o` wrote
    plan: PathBuf,
    /// Topology file to run it on, instead of the one it was planned for
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Write a Chrome trace, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write a GOAL schedule, for LogGOPSim and ATLAHS
    #[arg(long, value_name = "FILE")]
    goal: Option<PathBuf>,
    /// Slow this many ranks down, chosen by the seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    stragglers: u32,
    /// Speed of the slow ranks, in percent
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    straggler_percent: u32,
    /// Let this many ranks die on the way, chosen by the seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    failures: u32,
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct SimulateReport<'a> {
    fingerprint: String,
    ranks: usize,
    flows: u64,
    certificate: &'a Certificate,
    /// By step, when its first flow started and its last one ended.
    steps_ns: &'a [(u64, u64)],
    stress: Option<&'a StressReport>,
}

/// Runs `weightsync simulate`.
pub fn run(args: &SimulateArgs) -> Result<()> {
    let plan = Plan::from_bytes(&read_file(&args.plan)?).map_err(|e| of_file(&args.plan, e))?;
    let topology = topology_of(&plan, args.topology.as_deref())?;
    let simulate = || Certificate::with_instance(&plan, &topology);
    let (certificate, instance, ran) = while_waiting("simulating every flow", simulate)?;
    if let Some(path) = &args.goal {
        write(path, &instance.to_goal())?;
    }
    if let Some(path) = &args.trace {
        let options = SimulateOptions {
            trace: true,
            ..SimulateOptions::default()
        };
        write(path, &instance.run(&options).to_chrome_trace(&instance))?;
    }
    let stress = match args.stragglers + args.failures {
        0 => None,
        _ => {
            let stress = || instance.stress(&plan, &stress_options(args));
            Some(while_waiting("simulating slow and dead ranks", stress)?)
        }
    };
    if args.json {
        return print_json(&SimulateReport {
            fingerprint: format!("{:032x}", plan.fingerprint()),
            ranks: instance.nodes.len(),
            flows: ran.flow_count,
            certificate: &certificate,
            steps_ns: &ran.step_spans,
            stress: stress.as_ref(),
        });
    }
    print(text(&certificate, &instance, &ran, stress.as_ref()))
}

/// The topology in a file with the ranks of the plan placed, or the plan's own.
pub fn topology_of(plan: &Plan, path: Option<&Path>) -> Result<Topology> {
    let Some(path) = path else {
        return Ok(plan.topology().as_ref().clone());
    };
    let placed = Topology::new(read_topology(path)?)
        .and_then(|t| t.placed_for(plan.source(), plan.destination()));
    placed.map_err(|e| of_file(path, e))
}

fn stress_options(args: &SimulateArgs) -> StressOptions {
    StressOptions {
        seed: args.seed,
        straggler_count: args.stragglers,
        straggler_percent: args.straggler_percent,
        failure_count: args.failures,
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)
        .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))
}

fn text(
    c: &Certificate,
    instance: &Instance,
    ran: &Simulated,
    stress: Option<&StressReport>,
) -> String {
    let mut t = Table::default();
    let flows = format!(
        "{} between {} ranks in {} steps",
        grouped(ran.flow_count),
        instance.nodes.len(),
        instance.step_count
    );
    t.row(["flows", &flows]);
    certificate_rows(c, &mut t);
    for l in &c.links {
        let all = format!(
            "{} over {}, {} at most, {:.6} s",
            bytes(l.bytes),
            l.count,
            bytes(l.bytes_max),
            l.time_max_s
        );
        t.row([l.kind.name(), &all]);
    }
    if let Some(s) = stress {
        let slow = format!("{:?}", s.stragglers);
        t.row(["slow ranks", &slow]);
        let dead: Vec<String> = s
            .failures
            .iter()
            .map(|(rank, at)| format!("rank {rank} after {}", time(*at)))
            .collect();
        t.row(["failures", &dead.join(", ")]);
        let end = format!(
            "{} instead of {}; {} of {} copies complete",
            time(s.total_ns),
            time(s.healthy_ns),
            s.copies_complete,
            s.copies
        );
        t.row(["stressed", &end]);
    }
    t.to_string()
}

/// Bound, prediction, ratio and bottleneck, for people.
pub fn certificate_rows(c: &Certificate, t: &mut Table) {
    let bound = c.bounds.first().map_or_else(
        || "nothing has to move".to_string(),
        |b| {
            format!(
                "{:.6} s: {} for {} at {}/s",
                c.lower_bound_s,
                b.place,
                bytes(b.bytes),
                bytes(b.bytes_per_s)
            )
        },
    );
    t.row(["lower bound", &bound]);
    let mut predicted = format!("{:.6} s, {:.3} x the bound", c.predicted_s, c.ratio);
    if !c.is_exact {
        predicted += &format!(
            ", by {} ranks in {} buckets in proportion",
            grouped(c.ranks_simulated),
            c.buckets_simulated
        );
    }
    t.row(["predicted", &predicted]);
    if let Some(b) = &c.bottleneck {
        let busiest = format!("{}, {} in {:.6} s", b.link, bytes(b.bytes), b.time_s);
        t.row(["bottleneck", &busiest]);
    }
    if let Some(h) = &c.placement_hint {
        t.row(["placement", &h.text]);
    }
}

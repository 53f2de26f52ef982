//! How long planning takes.

use super::AUTO_TARGET_S;
use super::cases::{Case, FLOWS, LARGE, WHOLE};
use serde::Serialize;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, SourceRule};
use weightsync::plan::topology::TopologySpec;
use weightsync::sim::Instance;
use weightsync::{Rank, Result, tune};

/// What a rank may take from layouts and decision to its program.
const PROGRAM_TARGET_S: f64 = 0.001;
/// What a new plan may take when a replica joins.
const REPLAN_TARGET_S: f64 = 0.010;

/// Ranks whose programs are timed.
const SAMPLES: u32 = 64;

/// One row of the second table.
#[derive(Serialize)]
pub struct Timing {
    pub what: String,
    pub time_s: f64,
    pub target_s: f64,
    pub is_met: bool,
}

pub fn timings(is_wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Timing>> {
    let mut out = Vec::new();
    for case in LARGE.iter().filter(|c| is_wanted(&c.name())) {
        time_large(case, &mut out)?;
    }
    if is_wanted(&WHOLE.name()) {
        out.push(time_whole()?);
    }
    if is_wanted(&FLOWS.name()) {
        out.push(time_flows()?);
    }
    Ok(out)
}

/// `auto`, one rank's program and a new plan at 102,400 ranks.
fn time_large(case: &Case, out: &mut Vec<Timing>) -> Result<()> {
    let (source, destination) = case.layouts()?;
    let start = Instant::now();
    let choice = tune::choose(&source, &destination, &case.options())?;
    let took = start.elapsed();
    out.push(timing(
        format!("auto, {}", case.name()),
        took,
        AUTO_TARGET_S,
    ));
    let options = case.options();
    let plan = tune::plan_as(&choice, source.clone(), destination, &options)?;
    let name = choice.best.strategy.name();
    out.push(timing(
        format!(
            "one rank from layouts and decision ({name}), {}",
            case.name()
        ),
        median_from_layouts(&plan, options.topology)?,
        PROGRAM_TARGET_S,
    ));
    out.push(timing(
        format!("one more rank of that plan, {}", case.name()),
        median_program(&plan)?,
        PROGRAM_TARGET_S,
    ));
    let more = Arc::new(case.with_one_more_replica()?);
    let start = Instant::now();
    black_box(plan.replan(source, more, None)?);
    let what = format!("a replica joins ({name}), {}", case.name());
    out.push(timing(what, start.elapsed(), REPLAN_TARGET_S));
    Ok(())
}

fn time_whole() -> Result<Timing> {
    let (source, destination) = WHOLE.layouts()?;
    let options = PlanOptions {
        bucket_count: 16,
        staging_bytes_max: 16 << 30,
        ..WHOLE.options()
    };
    let plan = Plan::create(source, destination, &options)?;
    let start = Instant::now();
    for rank in plan.ranks() {
        black_box(plan.program(rank)?);
    }
    let what = format!("all {} programs, {}", plan.ranks().len(), WHOLE.name());
    Ok(timing(what, start.elapsed(), 3.0))
}

/// From a plan to its time, the programs of all ranks included.
fn time_flows() -> Result<Timing> {
    let (source, destination) = FLOWS.layouts()?;
    let options = PlanOptions {
        source_rule: SourceRule::Rotate,
        bucket_count: 210,
        staging_bytes_max: 16 << 30,
        ..FLOWS.options()
    };
    let plan = Plan::create(source, destination, &options)?;
    let lower_ns = plan.bounds(plan.topology())?.lower_ns;
    let start = Instant::now();
    let ran = Instance::of_plan(&plan, plan.topology())?.run_fast(lower_ns);
    let what = format!("simulation of {} flows, {}", ran.flow_count, FLOWS.name());
    Ok(timing(what, start.elapsed(), 20.0))
}

pub fn timing(what: String, took: Duration, target_s: f64) -> Timing {
    let time_s = took.as_secs_f64();
    Timing {
        what,
        time_s,
        target_s,
        is_met: time_s < target_s,
    }
}

/// What a rank takes that has layouts and decision, and no plan yet.
fn median_from_layouts(plan: &Plan, topology: Option<TopologySpec>) -> Result<Duration> {
    median(plan, |rank| {
        let (source, destination) = (plan.source().clone(), plan.destination().clone());
        let decision = plan.decision().clone();
        let own = Plan::with_decision(source, destination, decision, topology.clone())?;
        let program = own.program(rank)?;
        Ok((own, program))
    })
}

/// What a rank takes of a plan that has been asked for others before.
fn median_program(plan: &Plan) -> Result<Duration> {
    for &rank in plan.ranks().iter().step_by(plan.ranks().len() / 8 + 1) {
        black_box(plan.program(rank)?);
    }
    median(plan, |rank| plan.program(rank))
}

/// Of ranks spread over both sides. What was made is thrown away off the clock.
fn median<T>(plan: &Plan, make: impl Fn(Rank) -> Result<T>) -> Result<Duration> {
    let ranks = plan.ranks();
    let step = (ranks.len() / SAMPLES as usize).max(1);
    let mut times = Vec::new();
    for &rank in ranks.iter().step_by(step) {
        let start = Instant::now();
        let made = black_box(make(rank)?);
        times.push(start.elapsed());
        drop(made);
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

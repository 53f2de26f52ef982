//! `auto`: which strategy, source rule and bucket count, decided by simulation.
//!
//! Every candidate is planned on a smaller copy of the layouts with the same
//! proportions, turned into one node per class of ranks, and simulated with
//! several bucket counts; the fastest wins, the earlier one if they are equal.
//!
//! ```text
//!   layouts ─► shrink (dp 3200 -> 64, replicas 3200 -> 64)
//!           ─► for each strategy x rule: programs ─► classes ─► K = 4, 8, 16 ..
//!           ─► fastest ─► plan of the whole layouts, which keeps the decision
//! ```
//!
//! All of it is whole numbers and depends on the inputs alone: ranks that
//! decide for themselves decide the same.

#![forbid(unsafe_code)]

mod buckets;
mod shrink;

use crate::error::{Error, Result, Status};
use crate::layout::Layout;
use crate::limits::BUCKET_COUNT_MAX;
use crate::plan::Plan;
use crate::plan::decision::{PlanOptions, SourceRule, Strategy};
use crate::sim::Instance;
use serde::Serialize;
use shrink::shrunk;
use std::sync::Arc;

/// Bucket counts that are tried, unless the staging budget asks for more.
const BUCKET_COUNTS: [u32; 5] = [4, 8, 16, 32, 64];
/// A candidate this near to the bound, in percent, ends the search.
const GOOD_PERCENT: u64 = 3;
/// Candidates that differ by less, in permille, are as good as each other.
const ALIKE_PERMILLE: u64 = 5;

/// One way to plan, and how long it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub strategy: Strategy,
    pub source_rule: SourceRule,
    pub bucket_count: u32,
    pub predicted_ns: u64,
}

/// What was tried, and what came out best.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    pub best: Candidate,
    pub tried: Vec<Candidate>,
    /// Of the instance that was simulated.
    pub lower_ns: u64,
    pub ranks: u32,
    /// By how much the layouts were shrunk.
    pub factor: u32,
}

/// Plans with whatever is predicted to be fastest. Strategy and source rule of
/// `options` are not looked at; a bucket count that is given is kept.
pub fn plan(source: Arc<Layout>, destination: Arc<Layout>, options: &PlanOptions) -> Result<Plan> {
    let choice = choose(&source, &destination, options)?;
    let mut made = PlanOptions {
        strategy: choice.best.strategy,
        source_rule: choice.best.source_rule,
        bucket_count: choice.best.bucket_count,
        ..options.clone()
    };
    loop {
        match Plan::create(source.clone(), destination.clone(), &made) {
            // The smaller copy may have had a little less to stage.
            Err(e) if e.status == Status::StagingTooSmall && options.bucket_count == 0 => {
                let more = made.bucket_count + made.bucket_count.div_ceil(8);
                if more > BUCKET_COUNT_MAX {
                    return Err(e);
                }
                made.bucket_count = more;
            }
            done => return done,
        }
    }
}

/// Tries all candidates.
pub fn choose(
    source: &Arc<Layout>,
    destination: &Arc<Layout>,
    options: &PlanOptions,
) -> Result<Choice> {
    let small = shrunk(source, destination, options)?;
    let mut tried: Vec<Candidate> = Vec::new();
    let mut lower_ns = 0;
    let mut failure: Option<Error> = None;
    let mut is_at_load = false;
    for (strategy, source_rule) in portfolio() {
        // Another rule sends the same bytes over the same links: it helps
        // where links stood idle.
        if source_rule == SourceRule::Rotate && is_at_load {
            continue;
        }
        let made = PlanOptions {
            strategy,
            source_rule,
            topology: small.topology.clone(),
            ..options.clone()
        };
        let draft = match Plan::draft(small.source.clone(), small.destination.clone(), &made) {
            Ok(draft) => draft,
            Err(e) => {
                failure.get_or_insert(e);
                continue;
            }
        };
        if lower_ns == 0 {
            lower_ns = draft.bounds(draft.topology())?.lower_ns;
        }
        is_at_load = try_buckets(&draft, options, lower_ns, &mut tried)?;
        let best = tried.iter().map(|c| c.predicted_ns).min();
        if best.is_some_and(|ns| ns <= lower_ns + lower_ns / 100 * GOOD_PERCENT) {
            break;
        }
    }
    match best_of(&tried).cloned() {
        Some(best) => Ok(Choice {
            best,
            tried,
            lower_ns,
            ranks: small.source.rank_count() + small.destination.rank_count(),
            factor: small.factor,
        }),
        None => Err(failure.unwrap_or_else(|| Error::internal("no strategy was tried"))),
    }
}

/// The first of those that are as good as the fastest: simpler ways and fewer
/// buckets come first.
fn best_of(tried: &[Candidate]) -> Option<&Candidate> {
    let fastest = tried.iter().map(|c| c.predicted_ns).min()?;
    let limit = fastest + fastest / 1000 * ALIKE_PERMILLE;
    tried.iter().find(|c| c.predicted_ns <= limit)
}

/// Strategies in the order in which equal ones are preferred.
fn portfolio() -> Vec<(Strategy, SourceRule)> {
    let strategies = Strategy::ALL
        .into_iter()
        .filter(|s| *s != Strategy::TwoStage);
    strategies
        .into_iter()
        .flat_map(|s| [(s, SourceRule::Wrap), (s, SourceRule::Rotate)])
        .collect()
}

/// Simulates one draft with every bucket count that fits; says whether the
/// best of them takes little longer than its busiest link.
fn try_buckets(
    draft: &Plan,
    options: &PlanOptions,
    lower_ns: u64,
    tried: &mut Vec<Candidate>,
) -> Result<bool> {
    let (instance, staging) = Instance::of_plan_with_staging(draft, draft.topology())?;
    let small = instance.compressed();
    let budget = u128::from(options.staging_bytes_max);
    // Two steps are in flight of what one holds now; and a little for the
    // edges of pieces.
    let needed = (2 * u128::from(staging) * 33).div_ceil(budget * 32);
    let needed = u32::try_from(needed).unwrap_or(u32::MAX).max(1);
    let mut counts: Vec<u32> = match options.bucket_count {
        0 => BUCKET_COUNTS.into_iter().filter(|&k| k > needed).collect(),
        given => vec![given],
    };
    if options.bucket_count == 0 && needed <= BUCKET_COUNT_MAX {
        counts.insert(0, needed);
    }
    let first = tried.len();
    for bucket_count in counts {
        let bucketed = buckets::bucketed(&small, bucket_count);
        let ran = bucketed.run_fast(lower_ns);
        tried.push(Candidate {
            strategy: draft.decision().strategy,
            source_rule: draft.decision().source_rule,
            bucket_count,
            predicted_ns: ran.total_ns,
        });
    }
    let load_ns = instance.busiest_ns();
    let best = tried[first..].iter().map(|c| c.predicted_ns).min();
    Ok(best.is_some_and(|ns| ns <= load_ns + load_ns / 100 * GOOD_PERCENT))
}

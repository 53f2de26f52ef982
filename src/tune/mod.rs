//! `auto`: which route, source rule and bucket count, decided by simulation.
//!
//! Every candidate is planned on a smaller copy of the layouts with the same
//! proportions, turned into one node per class of ranks, and simulated with
//! several bucket counts; the fastest wins, the earlier one if they are equal.
//!
//! ```text
//!   layouts ─► shrink (dp 3200 -> 64, replicas 3200 -> 64)
//!           ─► one tensor of each kind (q_proj of 20 layers -> 1)
//!           ─► for each route x rule: programs ─► classes ─► K = 4, 8, 16 ..
//!           ─► fastest ─► plan of the whole layouts, which keeps the decision
//! ```
//!
//! Layouts that do not shrink that far, as those of many ranks described view
//! by view, are tried on ranks spread over both sides and what these exchange.
//!
//! All of it is whole numbers and depends on the inputs alone: ranks that
//! decide for themselves decide the same.

#![forbid(unsafe_code)]

mod buckets;
mod certify;
mod kinds;
mod shrink;

pub use certify::{Rehearsal, certificate, rehearse};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::limits::BUCKET_COUNT_MAX;
use crate::plan::Plan;
use crate::plan::decision::{Order, PlanOptions, SourceRule, Spread, Strategy};
use crate::rank::Rank;
use crate::sim::{Instance, LinkKind};
use kinds::Merged;
use serde::Serialize;
use shrink::{Small, shrunk};
use std::sync::Arc;

/// Ranks that are planned and simulated one by one at most.
const RANKS_MAX: u32 = 1024;
/// Ranks that stand for all where there are more.
const SAMPLE_COUNT: usize = 32;
/// Flows that are simulated for one candidate, about: of larger instances
/// fewer buckets are simulated than there will be.
const FLOWS_ENOUGH: usize = 1 << 16;
/// How often rates change in a step of such an instance.
const STEP_QUANTA: u64 = 64;
/// Bucket counts that are tried, unless the staging budget asks for more.
const BUCKET_COUNTS: [u32; 5] = [4, 8, 16, 32, 64];
/// Where what is passed on cannot be simulated with so many, as many buckets at
/// least: with fewer, it waits long for its first one.
const FORWARDED_BUCKETS_MIN: u32 = 16;
/// A candidate this near to the bound, in percent, ends the search.
const GOOD_PERCENT: u64 = 3;
/// Candidates that differ by less, in permille, are as good as each other.
const ALIKE_PERMILLE: u64 = 5;

/// One way to plan, and how long it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    pub strategy: Strategy,
    pub source_rule: SourceRule,
    pub spread: Spread,
    pub source_relay: bool,
    pub bucket_count: u32,
    pub predicted_ns: u64,
}

/// What held the last draft up.
#[derive(Clone, Copy, Default)]
struct Limit {
    /// It takes little longer than its busiest link.
    is_load: bool,
    /// That link leads from a NIC of a source rank.
    is_sending: bool,
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
    /// True if only some of those ranks were simulated.
    pub is_sampled: bool,
}

/// Plans with whatever is predicted to be fastest. Strategy, source rule,
/// spread and source relay of `options` are not looked at; the order and a
/// bucket count that is given are kept.
pub fn plan(source: Arc<Layout>, destination: Arc<Layout>, options: &PlanOptions) -> Result<Plan> {
    let choice = choose(&source, &destination, options)?;
    plan_as(&choice, source, destination, options)
}

/// Plans in the way that was chosen, in more buckets where the whole layouts
/// have more to stage than the copy that was tried.
pub fn plan_as(
    choice: &Choice,
    source: Arc<Layout>,
    destination: Arc<Layout>,
    options: &PlanOptions,
) -> Result<Plan> {
    let made = PlanOptions {
        strategy: choice.best.strategy,
        source_rule: choice.best.source_rule,
        spread: choice.best.spread,
        source_relay: choice.best.source_relay,
        ..options.clone()
    };
    match options.bucket_count {
        0 => Plan::create_in_at_least(choice.best.bucket_count, source, destination, &made),
        _ => Plan::create(source, destination, &made),
    }
}

/// Tries all candidates.
pub fn choose(
    source: &Arc<Layout>,
    destination: &Arc<Layout>,
    options: &PlanOptions,
) -> Result<Choice> {
    let small = shrunk(source, destination, options.topology.as_ref())?;
    let merged = merged(&small, options);
    let mut tried: Vec<Candidate> = Vec::new();
    let mut lower_ns = 0;
    let mut failure: Option<Error> = None;
    let mut limit = Limit::default();
    for route in portfolio() {
        if route.is_idle(limit) || (route.is_rough() && merged.is_some()) {
            continue;
        }
        let draft = match route.draft(&small, merged.as_ref(), options) {
            Ok(draft) => draft,
            Err(e) => {
                failure.get_or_insert(e);
                continue;
            }
        };
        if lower_ns == 0 {
            lower_ns = draft.bounds(draft.topology())?.lower_ns;
        }
        limit = try_buckets(&draft, options, lower_ns, &mut tried)?;
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
            ranks: small.rank_count(),
            factor: small.factor,
            is_sampled: small.rank_count() > RANKS_MAX,
        }),
        None => Err(failure.unwrap_or_else(|| Error::internal("no strategy was tried"))),
    }
}

/// The layouts to draft with, one tensor of each kind in place of all; not
/// where names decide.
fn merged(small: &Small, options: &PlanOptions) -> Option<Merged> {
    if options.order == Order::Layer {
        return None;
    }
    let plain = PlanOptions {
        topology: small.topology.clone(),
        ..PlanOptions::default()
    };
    // If that fails, every route will fail on it, and say so.
    let draft = Plan::draft(small.source.clone(), small.destination.clone(), &plain);
    kinds::merged(&draft.ok()?)
}

/// The first of those that are as good as the fastest: simpler ways and fewer
/// buckets come first.
fn best_of(tried: &[Candidate]) -> Option<&Candidate> {
    let fastest = tried.iter().map(|c| c.predicted_ns).min()?;
    let limit = fastest + fastest / 1000 * ALIKE_PERMILLE;
    tried.iter().find(|c| c.predicted_ns <= limit)
}

/// What a candidate decides beside its bucket count.
#[derive(Clone, Copy)]
struct Route {
    strategy: Strategy,
    source_rule: SourceRule,
    spread: Spread,
    source_relay: bool,
}

impl Route {
    const fn new(strategy: Strategy, source_rule: SourceRule) -> Route {
        Route {
            strategy,
            source_rule,
            spread: Spread::Scatter,
            source_relay: false,
        }
    }

    /// True if it cannot help against what held the last draft up.
    fn is_idle(&self, last: Limit) -> bool {
        // Another rule, or a chain, sends the same bytes over the same links:
        // it helps where links stood idle.
        let is_same_load = self.source_rule == SourceRule::Rotate || self.spread == Spread::Chain;
        (is_same_load && last.is_load) || (self.source_relay && !last.is_sending)
    }

    /// True if one tensor of each kind does not tell how long it takes, and all
    /// of them take long to try: domains spread what they got, so with many
    /// tensors of a kind it makes little difference which holder is next.
    fn is_rough(&self) -> bool {
        self.source_rule == SourceRule::Rotate && self.strategy != Strategy::Direct
    }

    /// The draft of this way. One tensor of each kind stands for all but where
    /// the holder moves on with every tensor.
    fn draft(&self, small: &Small, merged: Option<&Merged>, given: &PlanOptions) -> Result<Plan> {
        let mut options = PlanOptions {
            strategy: self.strategy,
            source_rule: self.source_rule,
            spread: self.spread,
            source_relay: self.source_relay,
            topology: small.topology.clone(),
            ..given.clone()
        };
        match merged.filter(|_| self.source_rule == SourceRule::Wrap) {
            Some(m) => {
                options.direct_bytes_min = given.direct_bytes_min.saturating_mul(m.run_factor);
                Plan::draft(m.source.clone(), m.destination.clone(), &options)
            }
            None => Plan::draft(small.source.clone(), small.destination.clone(), &options),
        }
    }
}

/// Routes in the order in which equal ones are preferred.
fn portfolio() -> Vec<Route> {
    let strategies = [Strategy::Direct, Strategy::Relay, Strategy::Fanout];
    let rules = [SourceRule::Wrap, SourceRule::Rotate];
    let mut routes: Vec<Route> = strategies
        .into_iter()
        .flat_map(|s| rules.map(|rule| Route::new(s, rule)))
        .collect();
    routes.push(Route {
        spread: Spread::Chain,
        ..Route::new(Strategy::Fanout, SourceRule::Wrap)
    });
    routes.extend([Strategy::Relay, Strategy::Fanout].map(|s| Route {
        source_relay: true,
        ..Route::new(s, SourceRule::Wrap)
    }));
    routes
}

/// Bucket counts worth a try; in layer order, ranks hold what they exchange in
/// a part of the buckets, so the staging budget may ask for many more.
fn counts_above(needed: u32, order: Order) -> Vec<u32> {
    let spread = match order {
        Order::Fraction => 1,
        Order::Layer => needed.next_power_of_two(),
    };
    let counts = BUCKET_COUNTS.into_iter().map(|k| k.saturating_mul(spread));
    counts
        .filter(|k| (needed + 1..=BUCKET_COUNT_MAX).contains(k))
        .collect()
}

/// What a draft does, and the staging of the rank that has most.
fn instance_of(draft: &Plan) -> Result<(Instance, u64)> {
    let ranks = draft.participants();
    if ranks.len() <= RANKS_MAX as usize {
        return Instance::of_plan_with_staging(draft, draft.topology());
    }
    // Each side in its own steps: one may be much smaller.
    let mut sample: Vec<Rank> = Vec::new();
    for layout in [draft.source(), draft.destination()] {
        let mut own = layout.ranks();
        own.retain(|r| ranks.binary_search(r).is_ok());
        let step = (2 * own.len()).div_ceil(SAMPLE_COUNT).max(1);
        sample.extend(own.into_iter().step_by(step));
    }
    // The slow ones decide how long it takes.
    let exceptional = draft.topology().spec().speeds.iter();
    let exceptional = exceptional.flat_map(|s| s.ranks.iter());
    sample.extend(
        exceptional
            .filter(|r| ranks.binary_search(r).is_ok())
            .take(SAMPLE_COUNT / 4),
    );
    sample.sort_unstable();
    sample.dedup();
    Instance::of_ranks(draft, draft.topology(), &sample)
}

/// Simulates one draft with every bucket count that fits; says what held the
/// best of them up.
fn try_buckets(
    draft: &Plan,
    options: &PlanOptions,
    lower_ns: u64,
    tried: &mut Vec<Candidate>,
) -> Result<Limit> {
    let (instance, staging) = instance_of(draft)?;
    let small = instance.compressed();
    let budget = u128::from(options.staging_bytes_max);
    // Two steps are in flight of what one holds now; and a little for the
    // edges of pieces.
    let needed = (2 * u128::from(staging) * 33).div_ceil(budget * 32);
    let needed = u32::try_from(needed).unwrap_or(u32::MAX).max(1);
    let most = (FLOWS_ENOUGH / small.flows.len().max(1)).max(BUCKET_COUNTS[0] as usize);
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    let mut counts: Vec<u32> = match options.bucket_count {
        0 => counts_above(needed, options.order),
        given => vec![given],
    };
    if options.bucket_count == 0 && needed <= BUCKET_COUNT_MAX {
        counts.insert(0, needed);
    }
    let first = tried.len();
    for bucket_count in counts {
        let before = tried[first..].last().map(|c| c.predicted_ns);
        let simulated = match options.order {
            Order::Fraction => bucket_count.min(most),
            Order::Layer => bucket_count,
        };
        let bucketed = match options.order {
            Order::Fraction => buckets::bucketed(&small, simulated),
            Order::Layer => {
                let plan = draft.draft_in_buckets(bucket_count)?;
                let (cut, staging) = instance_of(&plan)?;
                if u128::from(staging) > budget && options.bucket_count == 0 {
                    continue;
                }
                cut.compressed()
            }
        };
        let ran = bucketed.run_roughly(lower_ns, STEP_QUANTA);
        let d = draft.decision();
        let is_blind = simulated < bucket_count && options.bucket_count == 0;
        let bucket_count = match is_blind && d.strategy.is_clustered() {
            true => bucket_count.max(FORWARDED_BUCKETS_MIN),
            false => bucket_count,
        };
        tried.push(Candidate {
            strategy: d.strategy,
            source_rule: d.source_rule,
            spread: d.spread,
            source_relay: d.source_relay,
            bucket_count,
            predicted_ns: ran.total_ns,
        });
        // More buckets only add latency from here on, or look the same.
        let is_worse = before.is_some_and(|ns| ran.total_ns > ns + ns / 1000 * ALIKE_PERMILLE);
        if is_worse || simulated < bucket_count {
            break;
        }
    }
    let load_ns = instance.busiest_ns();
    let best = tried[first..].iter().map(|c| c.predicted_ns).min();
    Ok(Limit {
        is_load: best.is_some_and(|ns| ns <= load_ns + load_ns / 100 * GOOD_PERCENT),
        is_sending: is_sending(draft, &instance),
    })
}

/// True if the busiest link of a draft leads from the NIC of a source rank.
fn is_sending(draft: &Plan, instance: &Instance) -> bool {
    let Some(busiest) = instance.busiest() else {
        return false;
    };
    let is_source = |node: u32| {
        let rank = instance.nodes[node as usize].rank;
        draft.source().place(rank).is_some()
    };
    let mut flows = instance.flows.iter();
    let uses_it = |path: u32| {
        let mut links = instance.paths[path as usize].iter();
        links.any(|l| l.0 as usize == busiest)
    };
    instance.links[busiest].kind == LinkKind::NicOut
        && flows.any(|f| uses_it(f.path) && is_source(f.from))
}

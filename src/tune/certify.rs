//! Certificates of plans of any size.

use super::shrink::shrunk;
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::decision::Order;
use crate::plan::report::PlanReport;
use crate::plan::topology::Topology;
use crate::sim::{Certificate, Instance};

/// The certificate of a plan on a topology that has its ranks placed.
///
/// Bounds and totals are of the plan itself, whatever its size. Where it has
/// more ranks than are simulated, the prediction comes from the smaller copy of
/// the layouts that `auto` tries things on, with the same decision; where it
/// has more flows, from the same in fewer buckets, unless they are in layer
/// order. Then `is_exact` is false. Fails with `LIMIT_EXCEEDED` if the layouts
/// do not shrink.
pub fn certificate(plan: &Plan, topology: &Topology) -> Result<Certificate> {
    Ok(rehearse(plan, topology, &plan.report()?)?.0)
}

/// What a certificate's prediction was made on.
pub struct Rehearsal {
    pub instance: Instance,
    /// Where the ranks of the instance sit, which may be those of the smaller
    /// copy.
    pub topology: Topology,
    /// Of the plan of these ranks.
    pub lower_bound_ns: u64,
}

/// Plans of more flows, about, are not simulated bucket by bucket, but in as
/// many buckets as have half of that.
const FLOW_COUNT_MAX: u64 = 2_000_000;
/// A pipeline of so few buckets says little about one of many.
const BUCKET_COUNT_MIN: u32 = 16;
/// How often rates change in a step of fewer buckets.
const STEP_QUANTA: u64 = 128;

/// The certificate, as [`certificate`] makes it, and what was simulated for it;
/// `report` has the totals of the plan.
pub fn rehearse(
    plan: &Plan,
    topology: &Topology,
    report: &PlanReport,
) -> Result<(Certificate, Rehearsal)> {
    if Certificate::is_possible(plan) {
        return simulated(plan, topology, report, FLOW_COUNT_MAX);
    }
    let small = shrunk(plan.source(), plan.destination(), Some(topology.spec()))?;
    let like = plan.replan(small.source, small.destination, small.topology)?;
    let (of_small, rehearsal) = simulated(&like, like.topology(), report, FLOW_COUNT_MAX)?;
    let certificate = of_small.of_larger(plan.bounds(topology)?, report);
    Ok((certificate, rehearsal))
}

/// Simulates a plan, or the same in fewer buckets if it has more than about
/// `flow_count_max` flows. `report` is of this plan or of one with the same
/// proportions.
fn simulated(
    plan: &Plan,
    topology: &Topology,
    report: &PlanReport,
    flow_count_max: u64,
) -> Result<(Certificate, Rehearsal)> {
    let wanted = plan.decision().bucket_count;
    let messages = u128::from(report.messages) * plan.participants().len() as u128
        / u128::from(report.ranks_counted.max(1));
    let is_large = messages > u128::from(flow_count_max);
    let is_cut = is_large && wanted > BUCKET_COUNT_MIN && plan.decision().order == Order::Fraction;
    let fit = u128::from(wanted) * u128::from(flow_count_max) / (2 * messages.max(1));
    // Even, since half of them are simulated as well.
    let count = u32::try_from(fit).map_or(wanted, |fit| fit.max(BUCKET_COUNT_MIN)) & !1;
    let draft = |count| plan.draft_in_buckets(count);
    let fewer = is_cut.then(|| draft(count)).transpose()?;
    let simulated = fewer.as_ref().unwrap_or(plan);
    let run = |instance: &Instance, lower_ns: u64| match is_cut {
        true => instance.compressed().run_roughly(lower_ns, STEP_QUANTA),
        false => instance.run_fast(lower_ns),
    };
    let certified = Certificate::with_report(simulated, topology, report, &run)?;
    let (mut certificate, instance, _) = certified;
    if is_cut {
        let half = Instance::of_plan(&draft(count / 2)?, topology)?;
        let half_ns = run(&half, certificate.lower_bound_ns).total_ns;
        certificate = certificate.in_more_buckets(wanted, half_ns);
    }
    let rehearsal = Rehearsal {
        instance,
        topology: topology.clone(),
        lower_bound_ns: certificate.lower_bound_ns,
    };
    Ok((certificate, rehearsal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::layout::models::Framework;
    use crate::plan::decision::{PlanOptions, Strategy};
    use std::sync::Arc;

    #[test]
    fn fewer_buckets_tell_what_all_of_them_take() {
        let config = include_bytes!("../../tests/models/llama-3.1-70b.json");
        let layout = |framework, sizes, first| {
            Arc::new(
                Layout::from_model(config, framework, sizes, first)
                    .unwrap()
                    .layout,
            )
        };
        let source = layout(Framework::Megatron, "tp=4,pp=4,dp=4", 0);
        let destination = layout(Framework::Vllm, "tp=8,replicas=16", 64);
        for strategy in [Strategy::Direct, Strategy::Fanout] {
            let options = PlanOptions {
                strategy,
                bucket_count: 64,
                staging_bytes_max: 4 << 30,
                ..PlanOptions::default()
            };
            let plan = Plan::create(source.clone(), destination.clone(), &options).unwrap();
            let report = plan.report().unwrap();
            let in_flows = |most| simulated(&plan, plan.topology(), &report, most).unwrap().0;
            let (all, few) = (in_flows(u64::MAX), in_flows(report.messages.div_ceil(2)));
            assert_eq!((all.is_exact, all.buckets_simulated), (true, 64));
            assert_eq!((few.is_exact, few.buckets_simulated), (false, 16));
            let off = few.predicted_ns.abs_diff(all.predicted_ns);
            assert!(
                off * 50 < all.predicted_ns && few.ratio >= 1.0,
                "{strategy:?}: {} ns by 16 buckets, {} by 64",
                few.predicted_ns,
                all.predicted_ns
            );
        }
    }
}

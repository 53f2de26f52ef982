//! Certificates of plans of any size.

use super::shrink::shrunk;
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::topology::Topology;
use crate::sim::Certificate;

/// The certificate of a plan on a topology that has its ranks placed.
///
/// Bounds and totals are of the plan itself, whatever its size. Where it has
/// more ranks than are simulated, the prediction comes from the smaller copy of
/// the layouts that `auto` tries things on, with the same decision, and
/// `is_exact` is false. Fails with `LIMIT_EXCEEDED` if the layouts do not
/// shrink.
pub fn certificate(plan: &Plan, topology: &Topology) -> Result<Certificate> {
    if Certificate::is_possible(plan) {
        return Certificate::of(plan, topology);
    }
    let small = shrunk(plan.source(), plan.destination(), Some(topology.spec()))?;
    let like = plan.replan(small.source, small.destination, small.topology)?;
    let of_small = Certificate::of(&like, like.topology())?;
    Ok(of_small.of_larger(plan.bounds(topology)?, &plan.report()?))
}

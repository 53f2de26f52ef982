//! Certificates of plans of any size.

use super::shrink::shrunk;
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::topology::Topology;
use crate::sim::{Certificate, Instance};

/// The certificate of a plan on a topology that has its ranks placed.
///
/// Bounds and totals are of the plan itself, whatever its size. Where it has
/// more ranks than are simulated, the prediction comes from the smaller copy of
/// the layouts that `auto` tries things on, with the same decision, and
/// `is_exact` is false. Fails with `LIMIT_EXCEEDED` if the layouts do not
/// shrink.
pub fn certificate(plan: &Plan, topology: &Topology) -> Result<Certificate> {
    Ok(rehearse(plan, topology)?.0)
}

/// What a certificate's prediction was made on.
pub struct Rehearsal {
    pub instance: Instance,
    /// Where the ranks of the instance sit; those of the smaller copy where the
    /// certificate is not exact.
    pub topology: Topology,
    /// Of the plan of these ranks.
    pub lower_bound_ns: u64,
}

/// The certificate, as [`certificate`] makes it, and what was simulated for it.
pub fn rehearse(plan: &Plan, topology: &Topology) -> Result<(Certificate, Rehearsal)> {
    if Certificate::is_possible(plan) {
        return simulated(plan, topology);
    }
    let small = shrunk(plan.source(), plan.destination(), Some(topology.spec()))?;
    let like = plan.replan(small.source, small.destination, small.topology)?;
    let (of_small, rehearsal) = simulated(&like, like.topology())?;
    let certificate = of_small.of_larger(plan.bounds(topology)?, &plan.report()?);
    Ok((certificate, rehearsal))
}

fn simulated(plan: &Plan, topology: &Topology) -> Result<(Certificate, Rehearsal)> {
    let (certificate, instance, _) = Certificate::with_instance(plan, topology)?;
    let rehearsal = Rehearsal {
        instance,
        topology: topology.clone(),
        lower_bound_ns: certificate.lower_bound_ns,
    };
    Ok((certificate, rehearsal))
}

//! What each order of bytes costs.

use super::Instance;
use crate::error::{Result, Status};
use crate::plan::Plan;
use crate::plan::decision::Order;
use crate::plan::topology::Topology;
use serde::Serialize;

/// Ranks of a plan that is planned again in its other order, at most.
const RANK_COUNT_MAX: usize = 512;

/// How long a plan takes with its bytes in one order.
#[derive(Clone, Debug, Serialize)]
pub struct OrderCost {
    pub order: Order,
    /// More than the plan has where staging would not hold them.
    pub bucket_count: u32,
    pub predicted_s: f64,
    pub predicted_ns: u64,
    pub staging_bytes_peak: u64,
}

impl OrderCost {
    /// Of both orders, all else being the same, without one that no bucket
    /// count keeps inside the staging budget; `None` for plans of more than 512
    /// ranks.
    pub fn of_both(plan: &Plan, topology: &Topology) -> Result<Option<Vec<OrderCost>>> {
        if plan.participants().len() > RANK_COUNT_MAX {
            return Ok(None);
        }
        let mut costs = Vec::new();
        for order in Order::ALL {
            if order == plan.decision().order {
                costs.push(OrderCost::of(plan, topology)?);
                continue;
            }
            match plan.in_order(order) {
                Ok(other) => costs.push(OrderCost::of(&other, topology)?),
                Err(e) if e.status == Status::StagingTooSmall => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(costs))
    }

    fn of(plan: &Plan, topology: &Topology) -> Result<OrderCost> {
        let lower_ns = plan.bounds(topology)?.lower_ns;
        let (instance, staging) = Instance::of_plan_with_staging(plan, topology)?;
        let predicted_ns = instance.run_fast(lower_ns).total_ns;
        Ok(OrderCost {
            order: plan.decision().order,
            bucket_count: plan.decision().bucket_count,
            predicted_s: predicted_ns as f64 / 1e9,
            predicted_ns,
            staging_bytes_peak: staging,
        })
    }
}

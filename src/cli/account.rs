//! What a plan amounts to: the report and, where it can be simulated, the
//! certificate and what each order would cost. Printed alike by `plan` and `explain`.

use super::plan::report_text;
use super::simulate::certificate_rows;
use super::table::Table;
use super::waiting::while_waiting;
use serde::Serialize;
use weightsync::plan::Plan;
use weightsync::plan::report::PlanReport;
use weightsync::plan::topology::Topology;
use weightsync::sim::{Certificate, OrderCost};
use weightsync::tune::{self, Rehearsal};
use weightsync::{Result, Status};

/// Report and certificate of one plan; as JSON, the fields of the report with
/// `certificate` and `orders` beside them.
#[derive(Serialize)]
pub struct Account {
    #[serde(flatten)]
    pub report: PlanReport,
    /// Missing for plans of too many ranks that do not shrink.
    pub certificate: Option<Certificate>,
    /// What the plan takes in each order; missing above 512 ranks.
    pub orders: Option<Vec<OrderCost>>,
    /// What the certificate was simulated on; missing where it is.
    #[serde(skip)]
    pub rehearsal: Option<Rehearsal>,
}

impl Account {
    /// Of a plan whose ranks sit as `topology` says.
    pub fn of(plan: &Plan, topology: &Topology) -> Result<Account> {
        let report = plan.report()?;
        let (certificate, rehearsal) = match while_waiting("simulating the plan", || {
            tune::rehearse(plan, topology, &report)
        }) {
            Ok((certificate, rehearsal)) => (Some(certificate), Some(rehearsal)),
            Err(e) if e.status == Status::LimitExceeded => (None, None),
            Err(e) => return Err(e),
        };
        Ok(Account {
            report,
            certificate,
            orders: OrderCost::of_both(plan, topology)?,
            rehearsal,
        })
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rows = Table::default();
        if let Some(c) = &self.certificate {
            certificate_rows(c, &mut rows);
        }
        for cost in self.orders.iter().flatten() {
            let name = format!("in {} order", cost.order.name());
            let took = format!("{:.6} s, {} buckets", cost.predicted_s, cost.bucket_count);
            rows.row([&name, &took]);
        }
        write!(f, "{}{rows}", report_text(&self.report))
    }
}

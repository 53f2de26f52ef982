//! What a plan would do on the wire, in virtual time.
//!
//! The simulator runs a plan's *own* programs: every rank's steps, messages,
//! packing and unpacking, in the order in which a session enqueues them. What
//! it simulates is what will be executed, not a second derivation of it.
//!
//! ```text
//!   device     pack 0  pack 1  unpack 0  pack 2  unpack 1 ...   bytes / pack speed
//!   transport       step 0 ──────► step 1 ───────► ...          max-min fair flows
//!                     └─ starts once both ends have come to it, plus latency
//! ```
//!
//! All messages of a pair in one step are one *flow*. Flows share links max-min
//! fairly: no flow can be faster without a slower one becoming slower still.
//! Two steps of a rank may be on the wire at a time; ranks that forward bytes
//! finish a step before they begin the next. Times are whole nanoseconds and
//! rates whole bytes per second, so every machine computes the same.

#![forbid(unsafe_code)]

mod certificate;
mod compress;
mod engine;
mod exact;
mod fair;
mod goal;
mod instance;
mod network;
mod orders;
mod origin;
mod sample;
mod stress;
mod timeline;
mod trace;

pub use certificate::{Certificate, LinkLoad, LinkTotals};
pub use engine::{Simulated, Span, SpanKind, Stuck};
pub use exact::{ExactRun, VirtualMemory, execute_exactly};
pub use instance::{Flow, Instance, Node};
pub use network::{Link, LinkKind, links_between};
pub use orders::OrderCost;
pub use origin::{LinkedHop, LinkedOrigin};
pub use stress::{StressOptions, StressReport};
pub use timeline::{RankSteps, StepTime, Timeline};

use crate::error::Result;
use crate::plan::Plan;
use crate::plan::topology::Topology;

/// How to simulate; the default is exact.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimulateOptions {
    /// Keep when every flow and every piece of device work began and ended.
    pub trace: bool,
    /// Rates change at most once in this time; 0 changes them at every event.
    /// Bandwidth that becomes free earlier is wasted, never invented.
    pub quantum_ns: u64,
}

/// Simulates all ranks of a plan on a topology that has them placed.
///
/// A plan of this library never gets stuck; instances made by hand may.
pub fn simulate(plan: &Plan, topology: &Topology, options: &SimulateOptions) -> Result<Simulated> {
    let instance = Instance::of_plan(plan, topology)?;
    Ok(instance.run(options))
}

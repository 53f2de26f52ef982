//! When each rank is in each of its steps.
//!
//! ```text
//!   rank 0   |░██████░|            packs, sends, has sent
//!   rank 8       |█████░|██████░|  receives, unpacks; the next step is on the
//!            0 ───────────────► ns wire meanwhile
//! ```

use super::SimulateOptions;
use super::engine::{Span, SpanKind};
use super::instance::Instance;
use crate::rank::Rank;

/// A run, rank by rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// When everything was in place.
    pub total_ns: u64,
    /// Ascending by rank.
    pub ranks: Vec<RankSteps>,
}

/// The steps in which a rank does something, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankSteps {
    pub rank: Rank,
    pub steps: Vec<StepTime>,
}

/// One step of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTime {
    pub step: u32,
    /// From its first packing to its last unpacking.
    pub start_ns: u64,
    pub end_ns: u64,
    /// From the first byte on the wire to the last one; nothing if both are
    /// equal.
    pub wire_start_ns: u64,
    pub wire_end_ns: u64,
}

impl StepTime {
    fn of(span: &Span) -> StepTime {
        let is_wire = span.kind == SpanKind::Flow;
        StepTime {
            step: span.step,
            start_ns: span.start_ns,
            end_ns: span.end_ns,
            wire_start_ns: if is_wire { span.start_ns } else { span.end_ns },
            wire_end_ns: span.end_ns,
        }
    }

    fn has_wire(&self) -> bool {
        self.wire_start_ns < self.wire_end_ns
    }

    /// This and other work of the same step, of this rank or of another.
    pub fn with(self, other: StepTime) -> StepTime {
        let (wire_start_ns, wire_end_ns) = match (self.has_wire(), other.has_wire()) {
            (_, false) => (self.wire_start_ns, self.wire_end_ns),
            (false, true) => (other.wire_start_ns, other.wire_end_ns),
            (true, true) => (
                self.wire_start_ns.min(other.wire_start_ns),
                self.wire_end_ns.max(other.wire_end_ns),
            ),
        };
        StepTime {
            step: self.step,
            start_ns: self.start_ns.min(other.start_ns),
            end_ns: self.end_ns.max(other.end_ns),
            wire_start_ns,
            wire_end_ns,
        }
    }
}

impl Instance {
    /// When every rank is in each of its steps. Ranks that do the same are
    /// simulated once where there are many; `lower_ns` is a bound, as in
    /// [`run_fast`](Instance::run_fast).
    pub fn timeline(&self, lower_ns: u64) -> Timeline {
        let (small, class_of) = self.compressed_if_large();
        let ran = small.run(&SimulateOptions {
            trace: true,
            quantum_ns: small.quantum_ns(lower_ns),
        });
        let mut by_class = vec![Vec::new(); small.nodes.len()];
        for span in &ran.spans {
            add(&mut by_class[span.node as usize], span);
            if span.peer != span.node {
                add(&mut by_class[span.peer as usize], span);
            }
        }
        for steps in &mut by_class {
            steps.sort_unstable_by_key(|s: &StepTime| s.step);
        }
        let nodes = self.nodes.iter().zip(class_of);
        Timeline {
            total_ns: ran.total_ns,
            ranks: nodes
                .map(|(node, class)| RankSteps {
                    rank: node.rank,
                    steps: by_class[class as usize].clone(),
                })
                .collect(),
        }
    }
}

fn add(steps: &mut Vec<StepTime>, span: &Span) {
    let time = StepTime::of(span);
    match steps.iter_mut().rev().find(|s| s.step == span.step) {
        Some(known) => *known = known.with(time),
        None => steps.push(time),
    }
}

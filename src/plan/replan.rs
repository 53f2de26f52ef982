//! A plan for sides that changed a little: a replica joins or leaves, ranks are
//! drained, experts move.
//!
//! The decision stays, so nothing is chosen again; only how many copies leave
//! each source group is counted anew, because it depends on who receives. Ranks
//! derive their programs from the layouts, so there is nothing else to mend.
//! The staging budget is looked at where a rank may have more to stage than
//! before:
//!
//! ```text
//!   the source, or how many receive ──► ranks spread over the source
//!   a part is cut or stored otherwise ─► ranks spread over that part
//!   receivers that forward ────────────► ranks spread over the destination
//! ```

use super::decision::Strategy;
use super::topology::TopologySpec;
use super::{Ground, Plan};
use crate::error::Result;
use crate::layout::Layout;
use crate::rank::Rank;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Ranks of one part whose staging is looked at again, and the last one.
const ASKED_COUNT: usize = 5;

impl Plan {
    /// This plan for other sides or another topology: same decision, same
    /// selection by name, copies leaving each source group counted anew.
    /// Without a topology it keeps its own.
    ///
    /// Takes milliseconds at a hundred thousand ranks. Equal to what
    /// [`Plan::with_decision`] makes of the same decision, unless a rank would
    /// exceed the staging budget: then the plan gets as many buckets as that
    /// takes. Source tensors that the destination leaves unused are no error.
    pub fn replan(
        &self,
        source: Arc<Layout>,
        destination: Arc<Layout>,
        topology: Option<TopologySpec>,
    ) -> Result<Plan> {
        let topology = topology.or_else(|| self.topology_spec.clone());
        let ground = Ground::new(topology, &source, &destination)?;
        let decision = self.decision.without_copies();
        let selectors = self.selectors.clone();
        let mut plan = Plan::assemble(source, destination, decision, ground, selectors)?;
        if let (true, Some(selector)) = (plan.tensors.is_empty(), self.selectors.last()) {
            return Err(self.nothing_matches(selector));
        }
        let asked = plan.burdened(self);
        plan.keep_buckets(&asked, self)?;
        plan.seal()?;
        Ok(plan)
    }

    /// Some of the ranks that may have more to stage than in `before`; none if
    /// no rank has.
    fn burdened(&self, before: &Plan) -> Vec<Rank> {
        let is_same = |a: &Layout, b: &Layout| std::ptr::eq(a, b) || a.spec() == b.spec();
        let is_same_source = is_same(&self.source, &before.source);
        let is_same_destination = is_same(&self.destination, &before.destination);
        let is_same_topology = self.topology_spec == before.topology_spec;
        if is_same_source && is_same_destination && is_same_topology {
            return Vec::new();
        }
        let forwards = match self.decision.strategy {
            Strategy::Direct => false,
            Strategy::TwoStage | Strategy::Relay | Strategy::Fanout => true,
        };
        let mut asked = BTreeSet::new();
        // Whoever is drained, joins or leaves: the holders share the work anew.
        asked.extend(spread(&self.source, |_| true));
        asked.extend(spread(&self.destination, |part| {
            forwards || !is_alike(&self.destination, &before.destination, part)
        }));
        asked.into_iter().collect()
    }
}

/// Ranks spread over the wanted parts; the number after the last part stands
/// for the ranks that are described view by view.
fn spread(layout: &Layout, is_wanted: impl Fn(usize) -> bool) -> Vec<Rank> {
    let mut out = Vec::new();
    for (i, part) in layout.parts().iter().enumerate() {
        if is_wanted(i) {
            out.extend(spaced(part.ranks.count() as usize).map(|at| part.ranks.rank(at as u32)));
        }
    }
    let explicit = layout.explicit();
    if is_wanted(layout.parts().len()) {
        out.extend(spaced(explicit.len()).map(|at| explicit[at].rank));
    }
    out
}

/// Numbers below `count`, spaced a little more than evenly, and the last one:
/// ranks at equal distances often have the same place in their groups.
fn spaced(count: usize) -> impl Iterator<Item = usize> {
    let step = count.div_ceil(ASKED_COUNT).max(1);
    let all = (0..ASKED_COUNT).map(move |i| i * step + i);
    all.filter(move |&at| at < count)
        .chain(count.checked_sub(1))
}

/// True if each rank of a part has what ranks of the same part had before.
fn is_alike(layout: &Layout, before: &Layout, part: usize) -> bool {
    if layout.tensors() != before.tensors() {
        return false;
    }
    match (layout.parts().get(part), before.parts().get(part)) {
        (Some(a), Some(b)) => a.is_cut_like(b),
        _ => layout.explicit() == before.explicit(),
    }
}

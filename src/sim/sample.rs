//! What some ranks of a large plan do, and what their peers have left for them.
//!
//! Every flow of the chosen ranks is there. Of their peers nothing else is
//! known, so a peer's links get the share of their capacity that these flows
//! are of what such a rank carries on average:
//!
//! ```text
//!   chosen    all of its flows        the whole port
//!   peer      3 of its 300 flows      a hundredth of its port
//! ```

use super::instance::{Builder, Instance};
use super::network::LinkKind;
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::program::Program;
use crate::plan::topology::Topology;
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// A kind of link of source ranks, or of others.
type Class = (LinkKind, bool);

/// Whose a link is.
#[derive(Clone, Copy)]
struct Owner {
    class: Class,
    is_chosen: bool,
}

impl Instance {
    /// The flows of some ranks of a plan, on a topology that has them placed,
    /// and the staging of the one that has most.
    pub fn of_ranks(plan: &Plan, topology: &Topology, ranks: &[Rank]) -> Result<(Instance, u64)> {
        let mut programs = BTreeMap::new();
        plan.each_program(ranks, |program| {
            for peer in program.peers() {
                programs.entry(peer).or_insert(None);
            }
            programs.insert(program.rank, Some(program));
            Ok(())
        })?;
        let all: Vec<Rank> = programs.keys().copied().collect();
        let mut builder = Builder::new(plan, topology, &all)?;
        let mut staging = 0;
        for (i, (rank, program)) in (0..).zip(programs) {
            let unknown = || Program {
                rank,
                ..Program::default()
            };
            let program = program.unwrap_or_else(unknown);
            staging = staging.max(program.memory_bytes());
            builder.add(i, &program)?;
        }
        let flows = builder.instance.flows.iter_mut();
        for (flow, expected) in flows.zip(&mut builder.expected) {
            // Known from one end at least.
            flow.bytes = flow.bytes.max(*expected);
            *expected = flow.bytes;
        }
        let mut instance = builder.finish()?;
        instance.share_with_unknown(plan, ranks);
        Ok((instance, staging))
    }

    /// Leaves links of peers the share of these flows.
    fn share_with_unknown(&mut self, plan: &Plan, chosen: &[Rank]) {
        let loads = self.loads();
        let owners = self.owners(plan, chosen);
        let mut known: FxHashMap<Class, (u128, u128)> = FxHashMap::default();
        for (owner, &load) in owners.iter().zip(&loads) {
            if let Some(owner) = owner.filter(|o| o.is_chosen) {
                let (sum, count) = known.entry(owner.class).or_default();
                (*sum, *count) = (*sum + u128::from(load), *count + 1);
            }
        }
        let [of_chosen, of_all] = portion(plan, chosen);
        for ((link, owner), load) in self.links.iter_mut().zip(owners).zip(loads) {
            let (part, whole) = match owner {
                None => (of_chosen, of_all),
                Some(owner) if owner.is_chosen => continue,
                Some(owner) => match known.get(&owner.class) {
                    None => continue,
                    Some(&(sum, count)) => (u128::from(load), sum / count),
                },
            };
            let speed = u128::from(link.bytes_per_s) * part.min(whole) / whole.max(1);
            link.bytes_per_s = (speed as u64).max(1);
        }
    }

    /// Of each link, whose it is; `None` for those of the network.
    fn owners(&self, plan: &Plan, chosen: &[Rank]) -> Vec<Option<Owner>> {
        let mut owners: Vec<Option<Owner>> = vec![None; self.links.len()];
        for flow in &self.flows {
            for &(l, _) in &self.paths[flow.path as usize] {
                let kind = self.links[l as usize].kind;
                let node = match kind {
                    LinkKind::NicOut | LinkKind::NvlinkOut => flow.from,
                    LinkKind::NicIn | LinkKind::NvlinkIn | LinkKind::Memory => flow.to,
                    LinkKind::CutOut | LinkKind::CutIn => continue,
                };
                let rank = self.nodes[node as usize].rank;
                let is_chosen = chosen.binary_search(&rank).is_ok();
                let before = owners[l as usize].is_some_and(|o| o.is_chosen);
                owners[l as usize] = Some(Owner {
                    class: (kind, plan.source().place(rank).is_some()),
                    is_chosen: is_chosen || before,
                });
            }
        }
        owners
    }
}

/// How many of all flows these ranks have, as a fraction: the part of the
/// source ranks and that of the destination ranks.
fn portion(plan: &Plan, chosen: &[Rank]) -> [u128; 2] {
    let of = |layout: &crate::layout::Layout| {
        let own = chosen
            .iter()
            .filter(|&&r| layout.place(r).is_some())
            .count();
        [own as u128, u128::from(layout.rank_count()).max(1)]
    };
    let ([a, n], [b, m]) = (of(plan.source()), of(plan.destination()));
    [a * m + b * n, n * m]
}

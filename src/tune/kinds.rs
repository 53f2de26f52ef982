//! Layouts in which one tensor stands for all of its kind.
//!
//! Tensors of one kind are cut alike, stored alike and in the same stages, so
//! they share holders, needers and lines. One of them with one more axis, along
//! which nothing is cut, has the bytes of all:
//!
//! ```text
//!   layers.0.q_proj  [8192, 8192]
//!   layers.1.q_proj  [8192, 8192]   ─►   layers.0.q_proj  [8192, 8192, 20]
//!   ..  of stage 0
//! ```
//!
//! Who sends how much to whom stays the same; programs get shorter by as many
//! layers as a stage has. Runs of elements get longer by as much, which
//! `run_factor` tells. What hangs on the number of tensors, such as the rule
//! `rotate`, or on their names, such as the order by layer, is another one.

use crate::layout::placement::{Buffer, Part};
use crate::layout::tensor::TensorIndex;
use crate::layout::{Layout, LayoutSpec};
use crate::limits::DIM_COUNT_MAX;
use crate::plan::Plan;
use std::sync::Arc;

/// Layouts with fewer tensors.
pub struct Merged {
    pub source: Arc<Layout>,
    pub destination: Arc<Layout>,
    /// How many times longer runs of elements are, at most.
    pub run_factor: u64,
}

/// The layouts of a draft with one tensor of each kind. `None` where that
/// gains nothing or cannot be said: ranks described view by view, buffers of
/// which a part is left out, tensors that take part twice, or whose sum would
/// be beyond the limits of one.
pub fn merged(draft: &Plan) -> Option<Merged> {
    let kinds = draft.kinds();
    let [mut held, mut needed] =
        [draft.source(), draft.destination()].map(|l| vec![0u64; l.tensors().len()]);
    for kind in &kinds {
        for (counts, tensor) in [(&mut held, kind.source), (&mut needed, kind.destination)] {
            let count = &mut counts[tensor.index()];
            if *count != 0 {
                return None;
            }
            *count = kind.count;
        }
    }
    let run_factor = kinds.iter().map(|k| k.count).max().unwrap_or(1);
    (run_factor > 1).then_some(())?;
    Some(Merged {
        source: Arc::new(with_counts(draft.source(), &held)?),
        destination: Arc::new(with_counts(draft.destination(), &needed)?),
        run_factor,
    })
}

/// The tensors that stand for some, with that many along one more axis.
fn with_counts(layout: &Layout, counts: &[u64]) -> Option<Layout> {
    let mut tensors = layout.tensors().iter();
    let has_room = tensors.all(|t| t.shape.len() < DIM_COUNT_MAX);
    if !has_room || !layout.explicit().is_empty() {
        return None;
    }
    let mut spec = LayoutSpec {
        tensors: Vec::new(),
        parts: Vec::new(),
        ..layout.spec().clone()
    };
    let mut place: Vec<Option<TensorIndex>> = vec![None; counts.len()];
    for (i, (tensor, &count)) in layout.tensors().iter().zip(counts).enumerate() {
        if count == 0 {
            continue;
        }
        let mut tensor = tensor.clone();
        tensor.shape.push(count);
        tensor.granule.push(1);
        place[i] = Some(TensorIndex(spec.tensors.len() as u32));
        spec.tensors.push(tensor);
    }
    let is_kept = |name: &str| {
        layout
            .find_tensor(name)
            .is_some_and(|t| counts[t.index()] > 0)
    };
    spec.aliases.retain(|(_, name)| is_kept(name));
    for part in layout.parts() {
        spec.parts.push(with_tensors(part, &place)?);
    }
    Layout::new(spec).ok()
}

/// The part with the placements of these tensors; `None` if some buffer would
/// lose a part of its members.
fn with_tensors(part: &Part, place: &[Option<TensorIndex>]) -> Option<Part> {
    if !part.spacers.is_empty() {
        return None;
    }
    let mut out = Part {
        placements: Vec::new(),
        buffers: Vec::new(),
        ..part.clone()
    };
    for rule in out.rules.iter_mut().filter(|r| !r.order.is_empty()) {
        rule.order.push(rule.order.len() as u8);
    }
    let mut moved: Vec<Option<u32>> = vec![None; part.placements.len()];
    let mut buffers: Vec<u32> = vec![u32::MAX; part.buffers.len()];
    for (b, buffer) in part.buffers.iter().enumerate() {
        let is_kept = |&&m: &&u32| place[part.member(m).tensor.index()].is_some();
        let kept = buffer.members.iter().filter(is_kept).count();
        if kept == buffer.members.len() {
            buffers[b] = out.buffers.len() as u32;
            out.buffers.push(buffer.clone());
        } else if kept > 0 {
            return None;
        }
    }
    for (i, placement) in part.placements.iter().enumerate() {
        let Some(tensor) = place[placement.tensor.index()] else {
            continue;
        };
        let mut placement = placement.clone();
        placement.tensor = tensor;
        placement.buffer = buffers[placement.buffer as usize];
        moved[i] = Some(out.placements.len() as u32);
        out.placements.push(placement);
    }
    for Buffer { members, .. } in &mut out.buffers {
        for m in members {
            *m = moved[*m as usize]?;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::models::{Inventory, MegatronSizes, VllmSizes};
    use crate::limits::TENSOR_BYTES_MAX;
    use crate::plan::decision::PlanOptions;
    use crate::sim::Instance;

    const MODEL: &str = include_str!("../../tests/models/qwen3-30b-a3b.json");

    fn draft(source: Arc<Layout>, destination: Arc<Layout>) -> Plan {
        Plan::draft(source, destination, &PlanOptions::default()).unwrap()
    }

    fn model_draft() -> Plan {
        let model = Inventory::from_config(MODEL.as_bytes()).unwrap();
        let sizes: MegatronSizes = "tp=2,pp=4,ep=4,dp=4".parse().unwrap();
        let source = Layout::megatron(&model, &sizes, 0).unwrap();
        let first = source.rank_count();
        let group: VllmSizes = "tp=4,ep=on,replicas=3".parse().unwrap();
        let destination = Layout::vllm(&model, &[group], first).unwrap();
        draft(Arc::new(source), Arc::new(destination))
    }

    #[test]
    fn links_carry_what_they_carried_with_all_tensors() {
        let all = model_draft();
        let few = merged(&all).unwrap();
        let few = draft(few.source, few.destination);
        assert!(4 * few.tensors().len() < all.tensors().len());
        let bytes = |plan: &Plan| plan.tensors().iter().map(|t| t.bytes()).sum::<u64>();
        assert_eq!(bytes(&few), bytes(&all));
        let lower_ns = |plan: &Plan| plan.bounds(plan.topology()).unwrap().lower_ns;
        assert_eq!(lower_ns(&few), lower_ns(&all));
        let loads = |plan: &Plan| {
            let instance = Instance::of_plan(plan, plan.topology()).unwrap();
            let names = instance.links.iter().map(|l| format!("{l:?}"));
            let mut loads: Vec<_> = names.zip(instance.loads()).collect();
            loads.sort_unstable();
            loads
        };
        for ((link, ours), (other, theirs)) in loads(&few).into_iter().zip(loads(&all)) {
            assert_eq!(link, other);
            assert!(
                ours.abs_diff(theirs) * 1000 <= theirs,
                "{link}: {ours}, {theirs}"
            );
        }
    }

    #[test]
    fn what_cannot_be_merged_is_tried_as_it_is() {
        let all = model_draft();
        let few = merged(&all).unwrap();
        let few = draft(few.source, few.destination);
        assert!(merged(&few).is_none(), "one of each kind is left");
        let by_view = Arc::new(all.source().to_views().unwrap());
        let by_view = draft(by_view, all.destination().clone());
        assert!(merged(&by_view).is_none(), "views are not rules");
        let counts = |count: u64| vec![count; all.source().tensors().len()];
        assert!(with_counts(all.source(), &counts(2)).is_some());
        let beyond = with_counts(all.source(), &counts(TENSOR_BYTES_MAX));
        assert!(beyond.is_none(), "no tensor is that large");
    }
}

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

use crate::error::Result;
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
/// gains nothing or cannot be said by rules: ranks described view by view,
/// buffers of which a part is left out, tensors that take part twice.
pub fn merged(draft: &Plan) -> Result<Option<Merged>> {
    let kinds = draft.kinds();
    let [mut held, mut needed] =
        [draft.source(), draft.destination()].map(|l| vec![0u64; l.tensors().len()]);
    for kind in &kinds {
        for (counts, tensor) in [(&mut held, kind.source), (&mut needed, kind.destination)] {
            let count = &mut counts[tensor.index()];
            if *count != 0 {
                return Ok(None);
            }
            *count = kind.count;
        }
    }
    let run_factor = kinds.iter().map(|k| k.count).max().unwrap_or(1);
    if run_factor == 1 {
        return Ok(None);
    }
    let source = with_counts(draft.source(), &held)?;
    let destination = with_counts(draft.destination(), &needed)?;
    Ok(source.zip(destination).map(|(source, destination)| Merged {
        source: Arc::new(source),
        destination: Arc::new(destination),
        run_factor,
    }))
}

/// The tensors that stand for some, with that many along one more axis.
fn with_counts(layout: &Layout, counts: &[u64]) -> Result<Option<Layout>> {
    let mut tensors = layout.tensors().iter();
    let has_room = tensors.all(|t| t.shape.len() < DIM_COUNT_MAX);
    if !has_room || !layout.explicit().is_empty() {
        return Ok(None);
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
        match part_of(part, &place) {
            Some(part) => spec.parts.push(part),
            None => return Ok(None),
        }
    }
    Layout::new(spec).map(Some)
}

/// The part with the placements of these tensors; `None` if some buffer would
/// lose a part of its members.
fn part_of(part: &Part, place: &[Option<TensorIndex>]) -> Option<Part> {
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

//! What is in the way, or worth knowing, when a model meets parallel sizes.

use super::inventory::{Inventory, TensorTemplate};
use super::role::Role;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::placement::Rule;
use crate::layout::tensor::{Span, TensorIndex};
use serde::Serialize;

/// What sort of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HazardKind {
    /// Heads that do not divide over ranks, or are cut inside.
    Heads,
    /// Rows or columns that do not divide over ranks.
    Rows,
    /// Vocabulary rows that do not divide, padding included.
    Vocabulary,
    /// Experts that do not divide over ranks.
    Experts,
    /// A cut inside a block of values that share a scale.
    QuantizationBlock,
}

/// One parameter, the numbers, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hazard {
    pub kind: HazardKind,
    /// True if no layout can be made of it; others are worth knowing.
    pub is_error: bool,
    /// The tensor, with `{layer}` where every layer has it.
    pub parameter: String,
    pub message: String,
}

impl std::fmt::Display for Hazard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.parameter, self.message)
    }
}

/// Cuts of a layout that fall inside a head, or inside a block of values that
/// share a scale where the released checkpoint is quantised that way.
pub(super) fn cuts_inside(model: &Inventory, layout: &Layout) -> Vec<Hazard> {
    let block = model.quantization.as_ref().and_then(|q| q.block);
    let mut out = Vec::new();
    for t in model.templates.iter().filter(|t| t.alias_of.is_none()) {
        let name = t.layers.first().map_or(t.name.clone(), |&l| t.name_of(l));
        let Some(tensor) = layout.find_tensor(&name) else {
            continue;
        };
        for (dim, axis) in t.axes.iter().enumerate() {
            if axis.granule > 1
                && let Some(at) = bound_inside(layout, tensor, dim, axis.granule)
            {
                out.push(Hazard {
                    kind: HazardKind::Heads,
                    is_error: false,
                    parameter: t.name.clone(),
                    message: format!(
                        "{axis} are cut at {at}, inside a head of {}; whoever needs whole heads \
                         takes a size that divides {}",
                        axis.granule,
                        axis.size / axis.granule
                    ),
                });
            }
            let Some([rows, columns]) = block.filter(|_| is_quantised(t)) else {
                continue;
            };
            let block = match t.axes.len() - dim {
                1 => columns,
                2 => rows,
                _ => continue,
            };
            if let Some(at) = bound_inside(layout, tensor, dim, block) {
                out.push(Hazard {
                    kind: HazardKind::QuantizationBlock,
                    is_error: false,
                    parameter: t.name.clone(),
                    message: format!(
                        "{axis} are cut at {at}, inside a block of {block} that shares a scale; \
                         take a size of which the parts are multiples of {block} if ranks quantise"
                    ),
                });
            }
        }
    }
    once(out)
}

/// Each hazard once: layers of multi-token prediction are cut as the others.
pub(super) fn once(hazards: Vec<Hazard>) -> Vec<Hazard> {
    let mut out: Vec<Hazard> = Vec::with_capacity(hazards.len());
    for h in hazards {
        if !out.contains(&h) {
            out.push(h);
        }
    }
    out
}

/// True for weights of which a quantised checkpoint has scales.
fn is_quantised(t: &TensorTemplate) -> bool {
    let is_plain = matches!(
        t.role,
        Role::Embed | Role::LmHead | Role::Router | Role::MtpProj
    );
    t.axes.len() >= 2 && !is_plain
}

/// The first bound of a cut, or of a box, that is no multiple of `block`.
fn bound_inside(layout: &Layout, tensor: TensorIndex, dim: usize, block: u64) -> Option<u64> {
    let size = layout.tensors()[tensor.index()].shape[dim];
    for part in layout.parts() {
        for p in part.placements_of(tensor) {
            // Groups lie apart in memory, and are not cut for that.
            let rule = &Rule {
                grouped: None,
                ..part.rule(p).clone()
            };
            let mut bounds = Default::default();
            rule.bounds_within(part.mesh(rule), dim, size, Span::new(0, size), &mut bounds);
            if let Some(at) = bounds.iter().find(|b| !b.is_multiple_of(block)) {
                return Some(*at);
            }
        }
    }
    let views = layout.explicit().iter().flat_map(|r| {
        let from = r.views.partition_point(|v| v.tensor < tensor);
        r.views[from..]
            .iter()
            .take_while(move |v| v.tensor == tensor)
    });
    let bounds = views.flat_map(|v| [v.bounds.0[dim].lo, v.bounds.0[dim].hi]);
    bounds
        .into_iter()
        .find(|b| *b != size && !b.is_multiple_of(block))
}

impl Hazard {
    /// The first error, and how many more there are.
    pub(super) fn refuse(hazards: &[Hazard]) -> Result<()> {
        let mut errors = hazards.iter().filter(|h| h.is_error);
        let Some(first) = errors.next() else {
            return Ok(());
        };
        Err(Error::layout(match errors.count() {
            0 => first.to_string(),
            more => format!("{first}; and {more} more"),
        }))
    }
}

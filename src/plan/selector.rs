//! What a plan moves, out of all that it could.

use super::layers::layer_of;
use crate::error::{Error, Result, Status};
use crate::layout::Layout;
use crate::layout::marks::Marks;
use crate::layout::tensor::Span;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use wildmatch::WildMatch;

/// Which tensors a plan moves, and to which copies. What is left out selects
/// all; what is given must all hold.
///
/// ```
/// use weightsync::plan::Selector;
///
/// let experts_of_some_layers = Selector {
///     layers: vec![(0, 8)],
///     experts: vec![(0, 4), (12, 16)],
///     ..Selector::default()
/// };
/// let marks = Default::default();
/// assert!(experts_of_some_layers.selects("model.layers.7.mlp.experts.up_proj.weight", &marks));
/// assert!(!experts_of_some_layers.selects("model.layers.7.mlp.gate.weight", &marks));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// Globs (`*`, `?`) on canonical tensor names; any match selects.
    pub include: Vec<String>,
    /// Globs that take names out again.
    pub exclude: Vec<String>,
    /// Ranges `[first, end)` of layers: the first component of a name that is
    /// a number. Tensors outside of layers are not selected then.
    pub layers: Vec<(u32, u32)>,
    /// Ranges `[first, end)` of experts: of names with a component `experts`,
    /// the number after it or else the indices of the first axis. Other
    /// tensors are not selected then.
    pub experts: Vec<(u32, u32)>,
    /// Destination copies; the plan numbers them anew.
    pub copies: Vec<u32>,
    /// Only what is trained, or only what is not, by the marks of both sides.
    pub trainable: Option<bool>,
    /// Only a draft model, or only the model, by the marks of both sides.
    pub draft: Option<bool>,
}

impl Selector {
    /// True if some of this tensor is selected.
    pub fn selects(&self, name: &str, marks: &Marks) -> bool {
        let hit = |globs: &[String]| globs.iter().any(|g| WildMatch::new(g).matches(name));
        let is_in = |ranges: &[(u32, u32)], n| ranges.iter().any(|&(lo, hi)| lo <= n && n < hi);
        (self.include.is_empty() || hit(&self.include))
            && !hit(&self.exclude)
            && (self.layers.is_empty() || layer_of(name).is_some_and(|l| is_in(&self.layers, l)))
            && (self.experts.is_empty()
                || match expert_of(name) {
                    Expert::None => false,
                    Expert::One(e) => is_in(&self.experts, e),
                    Expert::Axis => true,
                })
            && self.trainable.is_none_or(|t| t != marks.is_frozen(name))
            && self.draft.is_none_or(|d| d == marks.is_draft(name))
    }

    /// The destination with only the copies and experts that are selected,
    /// and the selector of what is left to select by name.
    pub(super) fn narrow(&self, destination: &Arc<Layout>) -> Result<(Selector, Arc<Layout>)> {
        let bad = self
            .layers
            .iter()
            .chain(&self.experts)
            .find(|(lo, hi)| lo >= hi);
        if let Some((lo, hi)) = bad {
            return Err(Error::invalid(format!(
                "the range {lo}..{hi} of a selector is empty; its end is behind its last number"
            )));
        }
        let mut layout = destination.clone();
        if !self.copies.is_empty() {
            layout = Arc::new(layout.only_copies(&self.copies)?);
        }
        if !self.experts.is_empty() {
            layout = Arc::new(self.clip(&layout)?);
        }
        let by_name = Selector {
            copies: Vec::new(),
            ..self.canonical()
        };
        Ok((by_name, layout))
    }

    /// The same selection written in one way: selectors of equal meaning make
    /// equal plans.
    fn canonical(&self) -> Selector {
        let sorted = |globs: &[String]| {
            let mut globs = globs.to_vec();
            globs.sort_unstable();
            globs.dedup();
            globs
        };
        Selector {
            include: sorted(&self.include),
            exclude: sorted(&self.exclude),
            layers: merged(&self.layers),
            experts: merged(&self.experts),
            ..self.clone()
        }
    }

    fn clip(&self, layout: &Layout) -> Result<Layout> {
        let span = |(lo, hi): (u32, u32)| Span::new(lo.into(), hi.into());
        let ranges: Vec<Span> = merged(&self.experts).into_iter().map(span).collect();
        let is_axis = |name: &str| matches!(expert_of(name), Expert::Axis);
        if let Some(t) = layout.tensors().iter().find(|t| is_axis(&t.name)) {
            let count = t.shape.first().copied().unwrap_or(0);
            if let Some(beyond) = ranges.iter().find(|r| r.hi > count) {
                return Err(Error::new(
                    Status::NotFound,
                    format!(
                        "there are no experts {} to {}; tensor \"{}\" has {count}",
                        beyond.lo,
                        beyond.hi - 1,
                        t.name
                    ),
                ));
            }
        }
        layout.clip(|name| is_axis(name).then(|| ranges.clone()))
    }
}

impl std::fmt::Display for Selector {
    /// What is given of it, as `include ["a.*"], layers 0..4`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = |list: &[(u32, u32)]| -> String {
            let all: Vec<String> = list.iter().map(|(lo, hi)| format!("{lo}..{hi}")).collect();
            all.join(" ")
        };
        let mut given = vec![format!("include {:?}", self.include)];
        if !self.exclude.is_empty() {
            given.push(format!("exclude {:?}", self.exclude));
        }
        if !self.layers.is_empty() {
            given.push(format!("layers {}", ranges(&self.layers)));
        }
        if !self.experts.is_empty() {
            given.push(format!("experts {}", ranges(&self.experts)));
        }
        if !self.copies.is_empty() {
            given.push(format!("copies {:?}", self.copies));
        }
        let flags = [("trainable", self.trainable), ("draft", self.draft)];
        given.extend(
            flags
                .iter()
                .filter_map(|(n, flag)| Some(format!("{n} {}", (*flag)?))),
        );
        f.write_str(&given.join(", "))
    }
}

/// Ranges in ascending order, those that touch or overlap joined.
fn merged(ranges: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut given = ranges.to_vec();
    given.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(given.len());
    for (lo, hi) in given {
        match out.last_mut() {
            Some(last) if lo <= last.1 => last.1 = last.1.max(hi),
            _ => out.push((lo, hi)),
        }
    }
    out
}

/// How a name tells of experts.
enum Expert {
    None,
    One(u32),
    Axis,
}

fn expert_of(name: &str) -> Expert {
    let mut components = name.split('.');
    if !components.by_ref().any(|c| c == "experts") {
        return Expert::None;
    }
    match components.next().and_then(|c| c.parse().ok()) {
        Some(e) => Expert::One(e),
        None => Expert::Axis,
    }
}

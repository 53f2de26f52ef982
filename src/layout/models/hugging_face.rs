//! Plain Hugging Face: every rank has the whole model, one tensor per name,
//! stored as its checkpoint is. For loaders, exports and checks.

use super::assembly::{Assembly, Home};
use super::inventory::{Inventory, TensorTemplate};
use super::sizes::Sizes;
use crate::error::{Error, Result};
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::{CopyAxes, Rule};
use crate::layout::tensor::{Tensor, TensorIndex};
use crate::layout::{Layout, LayoutSpec};
use std::collections::HashMap;
use std::str::FromStr;

/// How many ranks have the model, each by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuggingFaceSizes {
    pub replicas: u32,
    /// Whether it has the layers of multi-token prediction.
    pub mtp: bool,
    /// Globs on names of tensors that are not trained.
    pub frozen: Vec<String>,
}

impl Default for HuggingFaceSizes {
    fn default() -> HuggingFaceSizes {
        HuggingFaceSizes {
            replicas: 1,
            mtp: true,
            frozen: Vec::new(),
        }
    }
}

impl FromStr for HuggingFaceSizes {
    type Err = Error;

    /// Reads `replicas=`, `mtp=on|off` and `frozen=`.
    fn from_str(text: &str) -> Result<HuggingFaceSizes> {
        let s = Sizes::read("hf", text, &["replicas", "mtp", "frozen"])?;
        Ok(HuggingFaceSizes {
            replicas: s.size("replicas")?,
            mtp: s.flag("mtp")?.unwrap_or(true),
            frozen: s.globs("frozen")?,
        })
    }
}

impl Layout {
    /// The layout of whole models on ranks from `first_rank` on. Buffers are
    /// the tensors of the checkpoint, by their names.
    pub fn hugging_face(
        model: &Inventory,
        sizes: &HuggingFaceSizes,
        first_rank: u32,
    ) -> Result<Layout> {
        whole(model, sizes, first_rank, stored)
    }
}

/// One rank with the whole model, every canonical tensor in a buffer of its
/// name, whatever a checkpoint makes of it.
pub(super) fn canonical(model: &Inventory) -> Result<Layout> {
    let own = |_: &Inventory, t: &TensorTemplate| (plain(), Home::own(&t.name));
    whole(model, &HuggingFaceSizes::default(), 0, own)
}

fn whole(
    model: &Inventory,
    sizes: &HuggingFaceSizes,
    first_rank: u32,
    place: impl Fn(&Inventory, &TensorTemplate) -> (Rule, Home),
) -> Result<Layout> {
    let mut spec = LayoutSpec {
        marks: model.marks().with_frozen(&sizes.frozen),
        ..LayoutSpec::default()
    };
    let mut assembly = Assembly::default();
    let mut numbers: HashMap<String, TensorIndex> = HashMap::new();
    for t in model.tensors().filter(|t| sizes.mtp || !t.template.is_mtp) {
        if let Some(root) = model.root(&t) {
            spec.aliases.push((t.name, root));
            continue;
        }
        let number = TensorIndex(spec.tensors.len() as u32);
        numbers.insert(t.name.clone(), number);
        let (rule, mut home) = place(model, t.template);
        if let Some(layer) = t.layer {
            home.buffer = home.buffer.replace("{layer}", &layer.to_string());
        }
        assembly.place(number, &rule, None, home);
        spec.tensors
            .push(Tensor::new(t.name, &t.template.shape(), t.template.dtype)?);
    }
    let ranks = RankList::Range {
        first: first_rank,
        count: sizes.replicas,
    };
    let copies = CopyAxes {
        mesh: 0,
        axes: [0].into_iter().collect(),
    };
    let meshes = vec![Mesh::new("model", &[("replica", sizes.replicas)])];
    spec.parts.push(assembly.part(ranks, meshes, Some(copies)));
    Layout::new(spec)
}

/// All of a tensor, in canonical order.
fn plain() -> Rule {
    Rule {
        mesh: 0,
        stage_axis: None,
        cuts: Vec::new(),
        dtype: None,
        order: Default::default(),
        padded: 0,
        split: None,
        grouped: None,
        conversion: None,
    }
}

/// The checkpoint tensor that a tensor is in, and how it lies there.
fn stored(model: &Inventory, t: &TensorTemplate) -> (Rule, Home) {
    let mut rule = plain();
    let home = match model.stored.iter().find(|s| s.members.contains(&t.role)) {
        Some(s) => {
            rule.order = s.order.iter().copied().collect();
            let place = s.members.iter().position(|m| *m == t.role).unwrap_or(0);
            Home {
                buffer: s.name.clone(),
                place: place as u8,
                shared_dims: s.shared_dims,
            }
        }
        None => {
            rule.split = t.checkpoint_name.is_some().then_some(0);
            Home::own(t.checkpoint_name.as_ref().unwrap_or(&t.name))
        }
    };
    (rule, home)
}

//! One way in: a `config.json`, a framework and its sizes become a layout.

use super::hazard::{Hazard, cuts_inside};
use super::hugging_face::{self, HuggingFaceSizes};
use super::inventory::Inventory;
use super::megatron::MegatronSizes;
use super::sglang::SglangSizes;
use super::vllm::VllmSizes;
use crate::error::{Error, Result};
use crate::layout::Layout;
use std::str::FromStr;

/// What holds a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framework {
    Megatron,
    Vllm,
    Sglang,
    /// Whole models, as checkpoints have them.
    HuggingFace,
    /// What PyTorch says of its sharded tensors.
    Dtensor,
}

impl Framework {
    /// Every framework, by name.
    pub const ALL: &'static [(&'static str, Framework)] = &[
        ("megatron", Framework::Megatron),
        ("vllm", Framework::Vllm),
        ("sglang", Framework::Sglang),
        ("hf", Framework::HuggingFace),
        ("dtensor", Framework::Dtensor),
    ];
}

impl FromStr for Framework {
    type Err = Error;

    fn from_str(name: &str) -> Result<Framework> {
        let found = Framework::ALL.iter().find(|(n, _)| *n == name);
        found.map(|(_, f)| *f).ok_or_else(|| {
            let names: Vec<&str> = Framework::ALL.iter().map(|(n, _)| *n).collect();
            Error::invalid(format!(
                "framework \"{name}\" is unknown; known are {}",
                names.join(", ")
            ))
        })
    }
}

/// A layout of a model, and what is worth knowing of it.
#[derive(Clone, Debug)]
pub struct ModelLayout {
    pub layout: Layout,
    /// What was assumed where the sizes left it open.
    pub remarks: Vec<String>,
    /// What may surprise, though a layout could be made.
    pub hazards: Vec<Hazard>,
}

impl Layout {
    /// The layout of the model of a `config.json`, on ranks from `first_rank`
    /// on.
    ///
    /// `sizes` are the framework's: `tp=4,pp=8` and so on; groups of engines
    /// that differ are separated by `;`. `frozen=` takes globs on names of
    /// tensors that are not trained, joined by `:`. For [`Framework::Dtensor`]
    /// they are the text of a DTensor file, which has its own rank numbers.
    ///
    /// ```
    /// use weightsync::layout::Layout;
    /// use weightsync::layout::models::Framework;
    ///
    /// let config = br#"{
    ///     "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_hidden_layers": 4,
    ///     "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512,
    ///     "vocab_size": 1000 }"#;
    /// let trainer = Layout::from_model(config, Framework::Megatron, "tp=2,pp=2,dp=2", 0)?;
    /// let engine = Layout::from_model(config, Framework::Vllm, "tp=4,replicas=2", 8)?;
    /// assert_eq!(trainer.layout.rank_count(), 8);
    /// assert_eq!(engine.layout.copy_count(), 2);
    /// # Ok::<(), weightsync::Error>(())
    /// ```
    pub fn from_model(
        config: &[u8],
        framework: Framework,
        sizes: &str,
        first_rank: u32,
    ) -> Result<ModelLayout> {
        let model = Inventory::from_config(config)?;
        let mut remarks = model.remarks();
        let mut hazards = Vec::new();
        let layout = match framework {
            Framework::Megatron => {
                let sizes: MegatronSizes = sizes.parse()?;
                let layout = Layout::megatron(&model, &sizes, first_rank)?;
                remarks.extend(sizes.remarks(&model));
                hazards = sizes.hazards(&model);
                layout
            }
            Framework::Vllm => {
                let groups: Vec<VllmSizes> = groups(sizes)?;
                hazards = VllmSizes::hazards(&groups, &model)?;
                Layout::vllm(&model, &groups, first_rank)?
            }
            Framework::Sglang => {
                let groups: Vec<SglangSizes> = groups(sizes)?;
                Layout::sglang(&model, &groups, first_rank)?
            }
            Framework::HuggingFace => {
                let sizes: HuggingFaceSizes = sizes.parse()?;
                Layout::hugging_face(&model, &sizes, first_rank)?
            }
            Framework::Dtensor => of_dtensor(&model, sizes)?,
        };
        layout.check_frozen()?;
        hazards.extend(cuts_inside(&model, &layout));
        Ok(ModelLayout {
            layout,
            remarks,
            hazards,
        })
    }
}

fn groups<T: FromStr<Err = Error>>(sizes: &str) -> Result<Vec<T>> {
    let groups: Vec<&str> = sizes.split(';').collect();
    if groups.len() > 1 && groups.iter().any(|g| g.trim().is_empty()) {
        return Err(Error::layout(format!(
            "sizes \"{sizes}\" have an empty group; groups of replicas are separated by \";\""
        )));
    }
    groups.into_iter().map(str::parse).collect()
}

/// Sharded tensors of the model, told in its canonical ones: they have either
/// the names and shapes of these, or those of a checkpoint.
fn of_dtensor(model: &Inventory, text: &str) -> Result<Layout> {
    let stored = Layout::from_dtensor(text.as_bytes())?;
    let canonical = hugging_face::canonical(model)?;
    let is_canonical = stored.tensors().iter().all(|t| {
        let found = canonical.find_tensor(&t.name);
        found.is_some_and(|i| canonical.tensors()[i.index()].shape == t.shape)
    });
    match is_canonical {
        true => stored.recast(&canonical),
        false => stored.recast(&Layout::hugging_face(
            model,
            &HuggingFaceSizes::default(),
            0,
        )?),
    }
}

//! What a model consists of, as its configuration implies it.

use super::config::{Config, fault};
use super::family::{MoeLayers, Row};
use super::role::Role;
use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::layout::marks::Marks;
use crate::layout::tensor::{Dims, Tensor};
use crate::limits::MODEL_LAYER_COUNT_MAX;
use std::collections::HashMap;

/// One axis of a tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// As the family's table names it: `hidden`, `q_rows`, `expert`, ...
    pub name: String,
    pub size: u64,
    /// What no tensor-parallel cut should split, such as a head; 1 is
    /// anything. A fact about the model, not a rule of the planner: Megatron
    /// does cut heads where it has more ranks than KV heads.
    pub granule: u64,
}

/// One tensor, or one tensor of each of several layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorTemplate {
    /// Canonical name; holds `{layer}` where there are layers.
    pub name: String,
    /// The name in a checkpoint, where it differs: `{global}` is the expert.
    pub checkpoint_name: Option<String>,
    pub role: Role,
    pub axes: Vec<Axis>,
    pub dtype: Dtype,
    /// Layers that have it, ascending; empty for a tensor of the model.
    pub layers: Vec<u32>,
    /// Part of multi-token prediction; its layers follow the model's.
    pub is_mtp: bool,
    /// Not a parameter: training writes it without a gradient.
    pub is_buffer: bool,
    /// The tensor that has the same values. Takes no memory of its own in a
    /// checkpoint, and may have a copy in a trainer.
    pub alias_of: Option<String>,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryTensor<'a> {
    pub name: String,
    pub layer: Option<u32>,
    pub template: &'a TensorTemplate,
}

/// How a released checkpoint is quantised. The inventory itself is in the
/// dtype of the model, as trainers hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    pub method: String,
    /// Rows and columns that share one scale.
    pub block: Option<[u64; 2]>,
}

/// A checkpoint tensor that holds several tensors, or one with its axes in
/// another order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGroup {
    /// Holds `{layer}`.
    pub name: String,
    pub members: Vec<Role>,
    /// Memory order of the axes; empty is canonical order.
    pub order: Vec<u8>,
    /// Leading axes (in memory order) that the members share.
    pub shared_dims: u8,
}

/// What a model consists of.
///
/// ```
/// use weightsync::layout::models::{Inventory, Role};
///
/// let model = Inventory::from_config(br#"{
///     "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_hidden_layers": 2,
///     "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512,
///     "vocab_size": 1000 }"#)?;
/// let q = model.find(Role::QProj).unwrap();
/// assert_eq!(q.name, "model.layers.{layer}.self_attn.q_proj.weight");
/// assert_eq!(q.shape().as_slice(), [256, 256]);
/// assert_eq!(model.params(), 1_627_392);
/// # Ok::<(), weightsync::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    pub family: String,
    pub architecture: String,
    /// The dtype of the weights in training.
    pub dtype: Dtype,
    /// Decoder layers, without those of multi-token prediction.
    pub layers: u32,
    pub mtp_layers: u32,
    /// Decoder layers with experts, ascending.
    pub moe_layers: Vec<u32>,
    pub is_tied: bool,
    pub quantization: Option<Quantization>,
    pub templates: Vec<TensorTemplate>,
    /// Where a checkpoint stores its tensors differently.
    pub stored: Vec<StoredGroup>,
    /// Attention heads and KV heads; equal under latent attention.
    pub heads: u64,
    pub kv_heads: u64,
    /// Routed experts per layer; 0 without any.
    pub experts: u64,
}

impl TensorTemplate {
    pub fn shape(&self) -> Dims {
        self.axes.iter().map(|a| a.size).collect()
    }

    pub fn elements(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }

    /// How many tensors it stands for.
    pub fn count(&self) -> u64 {
        self.layers.len().max(1) as u64
    }

    /// Its name in this layer.
    pub fn name_of(&self, layer: u32) -> String {
        self.name.replace("{layer}", &layer.to_string())
    }
}

impl Inventory {
    /// The inventory of the model that a Hugging Face `config.json` describes.
    ///
    /// Fails on an architecture that no table knows, and on fields that are
    /// missing or contradict each other.
    pub fn from_config(text: &[u8]) -> Result<Inventory> {
        let config = Config::read(text)?;
        let layers = layer_count(&config, "num_hidden_layers", 1)?;
        let mtp_layers = match &config.family.mtp_layers {
            Some(field) => layer_count(&config, field, 0)?,
            None => 0,
        };
        let moe_layers = moe_layers(&config, layers)?;
        let mut builder = Builder {
            config: &config,
            axes: axes(&config)?,
            dtype: config.dtype()?,
            templates: Vec::new(),
        };
        builder.rows(layers, mtp_layers, &moe_layers)?;
        let Builder {
            axes,
            dtype,
            templates,
            ..
        } = builder;
        let stored = config.family.stored.iter().map(|s| StoredGroup {
            name: format!("{LAYER}{}", s.name),
            members: s.members.clone(),
            order: s.order.clone(),
            shared_dims: s.shared_dims,
        });
        let heads = config.number("num_attention_heads")?;
        let model = Inventory {
            stored: stored.collect(),
            is_tied: config.flag("tied")?,
            quantization: config
                .quantization()?
                .map(|(method, block)| Quantization { method, block }),
            kv_heads: match config.family.axes.contains_key("kv_rows") {
                true => config.number("num_key_value_heads")?,
                false => heads,
            },
            heads,
            experts: match moe_layers.is_empty() {
                true => 0,
                false => axes.get("expert").map_or(0, |a| a.size),
            },
            family: config.family.family.clone(),
            architecture: config.architecture.clone(),
            dtype,
            layers,
            mtp_layers,
            moe_layers,
            templates,
        };
        model.validate()?;
        Ok(model)
    }

    fn validate(&self) -> Result<()> {
        for t in &self.templates {
            Tensor::new(t.name.clone(), &t.shape(), t.dtype).map_err(|e| fault(&e.message))?;
        }
        Ok(())
    }

    /// Every tensor, aliases included.
    pub fn tensors(&self) -> impl Iterator<Item = InventoryTensor<'_>> {
        self.templates.iter().flat_map(|template| {
            let once = template.layers.is_empty().then(|| InventoryTensor {
                name: template.name.clone(),
                layer: None,
                template,
            });
            let each = template.layers.iter().map(move |&layer| InventoryTensor {
                name: template.name_of(layer),
                layer: Some(layer),
                template,
            });
            once.into_iter().chain(each)
        })
    }

    /// The first template with this role, outside multi-token prediction.
    pub fn find(&self, role: Role) -> Option<&TensorTemplate> {
        self.templates.iter().find(|t| t.role == role && !t.is_mtp)
    }

    /// The name of the tensor that has the values of an alias, however many
    /// aliases lie between.
    pub fn root(&self, tensor: &InventoryTensor<'_>) -> Option<String> {
        let mut name = tensor.template.alias_of.as_ref()?;
        let next = |name: &String| {
            let own = self.templates.iter().find(|t| t.name == *name)?;
            own.alias_of.as_ref()
        };
        // No chain is longer than there are templates.
        for _ in &self.templates {
            match next(name) {
                Some(n) => name = n,
                None => break,
            }
        }
        Some(name.clone())
    }

    /// What a layout of the model sets apart: the layers of multi-token
    /// prediction are a draft model.
    pub fn marks(&self) -> Marks {
        let layers = self.layers..self.layers + self.mtp_layers;
        Marks {
            draft: layers.map(|l| format!("model.layers.{l}.*")).collect(),
            ..Marks::default()
        }
    }

    /// True if a checkpoint, and what is loaded from it, has the rows of an
    /// expert's gate and up projections in turn.
    pub fn alternates_gate_and_up(&self) -> bool {
        let is_pair = |s: &StoredGroup| s.members == [Role::ExpertGate, Role::ExpertUp];
        self.stored.iter().any(|s| is_pair(s) && s.shared_dims > 1)
    }

    /// Elements of the model, without aliases and multi-token prediction.
    pub fn params(&self) -> u64 {
        self.count(false)
    }

    /// Elements of multi-token prediction, without what it shares.
    pub fn mtp_params(&self) -> u64 {
        self.count(true)
    }

    fn count(&self, is_mtp: bool) -> u64 {
        let own = self.templates.iter().filter(|t| t.is_mtp == is_mtp);
        own.filter(|t| t.alias_of.is_none())
            .map(|t| t.elements() * t.count())
            .sum()
    }

    /// The model without multi-token prediction.
    pub fn without_mtp(mut self) -> Inventory {
        self.templates.retain(|t| !t.is_mtp);
        self.mtp_layers = 0;
        self
    }
}

/// What the names of a layer's tensors start with.
const LAYER: &str = "model.layers.{layer}.";

struct Builder<'a> {
    config: &'a Config,
    axes: HashMap<String, Axis>,
    dtype: Dtype,
    templates: Vec<TensorTemplate>,
}

impl Builder<'_> {
    fn rows(&mut self, layers: u32, mtp_layers: u32, moe_layers: &[u32]) -> Result<()> {
        let family = &self.config.family;
        let all: Vec<u32> = (0..layers).collect();
        let is_dense = |l: &u32| moe_layers.binary_search(l).is_err();
        let dense: Vec<u32> = all.iter().copied().filter(is_dense).collect();
        let mtp: Vec<u32> = (layers..layers + mtp_layers).collect();
        self.model(&family.model)?;
        self.each(&family.layer, &all, false)?;
        self.each(&family.dense, &dense, false)?;
        self.each(&family.moe, moe_layers, false)?;
        self.each(&family.layer, &mtp, true)?;
        let is_moe = family.moe_layers.is_some();
        self.each(if is_moe { &family.moe } else { &family.dense }, &mtp, true)?;
        self.each(&family.mtp, &mtp, true)
    }

    fn model(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            self.add(row, row.name.clone(), Vec::new(), false)?;
        }
        Ok(())
    }

    fn each(&mut self, rows: &[Row], layers: &[u32], is_mtp: bool) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        for row in rows {
            self.add(row, format!("{LAYER}{}", row.name), layers.to_vec(), is_mtp)?;
        }
        Ok(())
    }

    fn add(&mut self, row: &Row, name: String, layers: Vec<u32>, is_mtp: bool) -> Result<()> {
        if let Some(flag) = &row.when
            && !self.config.flag(flag)?
        {
            return Ok(());
        }
        let is_alias = match &row.alias_when {
            Some(flag) => self.config.flag(flag)?,
            None => true,
        };
        let axis = |name: &String| {
            let known = self.axes.get(name).cloned();
            known.ok_or_else(|| Error::internal(format!("{}: no axis \"{name}\"", row.name)))
        };
        self.templates.push(TensorTemplate {
            checkpoint_name: name
                .contains("{expert}")
                .then(|| name.replace("{expert}", "{global}")),
            name: name.replace("{expert}.", ""),
            role: row.role,
            axes: row.axes.iter().map(axis).collect::<Result<_>>()?,
            dtype: match &row.dtype {
                Some(name) => Dtype::from_name(name)?,
                None => self.dtype,
            },
            layers,
            is_mtp,
            is_buffer: row.is_buffer,
            alias_of: row.alias_of.clone().filter(|_| is_alias),
        });
        Ok(())
    }
}

/// The axes that the configuration gives a size; rows that a flag leaves out
/// may name others.
fn axes(config: &Config) -> Result<HashMap<String, Axis>> {
    let mut axes = HashMap::new();
    for (name, row) in &config.family.axes {
        if is_left_out(config, name)? {
            continue;
        }
        let size = config.evaluate(&row.size)?;
        if size == 0 {
            return Err(fault(&format!("{} is 0; at least 1 is accepted", row.size)));
        }
        let granule = match &row.granule {
            Some(formula) => config.evaluate(formula)?,
            None => 1,
        };
        axes.insert(
            name.clone(),
            Axis {
                name: name.clone(),
                size,
                granule,
            },
        );
    }
    Ok(axes)
}

/// True if every row with this axis is left out by its flag.
fn is_left_out(config: &Config, axis: &str) -> Result<bool> {
    let f = &config.family;
    for row in [&f.model, &f.layer, &f.dense, &f.moe, &f.mtp]
        .into_iter()
        .flatten()
    {
        let is_in = match &row.when {
            Some(flag) => config.flag(flag)?,
            None => true,
        };
        if is_in && row.axes.iter().any(|a| a == axis) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn layer_count(config: &Config, field: &str, min: u64) -> Result<u32> {
    let n = config.number(field)?;
    if n < min || n > u64::from(MODEL_LAYER_COUNT_MAX) {
        return Err(fault(&format!(
            "\"{field}\" is {n}; {min} to {MODEL_LAYER_COUNT_MAX} are accepted"
        )));
    }
    Ok(n as u32)
}

fn moe_layers(config: &Config, layers: u32) -> Result<Vec<u32>> {
    match &config.family.moe_layers {
        None => Ok(Vec::new()),
        Some(MoeLayers::From { from }) => {
            let first = config.evaluate(from)?;
            Ok((0..layers).filter(|&l| u64::from(l) >= first).collect())
        }
        Some(MoeLayers::Step { step, except }) => {
            let n = config.number(step)?;
            if n == 0 {
                return Err(fault(&format!("\"{step}\" is 0; at least 1 is accepted")));
            }
            let not = config.numbers(except)?;
            if let Some(l) = not.iter().find(|&&l| l >= u64::from(layers)) {
                return Err(fault(&format!(
                    "\"{except}\" names layer {l}; the model has {layers}"
                )));
            }
            let is_moe = |l: u64| !not.contains(&l) && (l + 1).is_multiple_of(n);
            Ok((0..layers).filter(|&l| is_moe(u64::from(l))).collect())
        }
    }
}

//! What inference engines have in common: how they cut, fuse and name.
//!
//! An engine puts a model on the ranks of each replica by *role*: heads over
//! the ranks that share attention, rows over those that share a projection,
//! experts over those that share experts. A [`Spread`] says which mesh axes
//! these are; [`vllm`](super::vllm) and [`sglang`](super::sglang) each make
//! one, and everything else is here.
//!
//! ```text
//!   qkv_proj      [ q shard | k shard | v shard ]       KV heads repeat where ranks exceed them
//!   gate_up_proj  [ gate shard | up shard ]
//!   w13_weight    [ local expert, gate shard | up shard, hidden ]
//!   embed_tokens  [ vocabulary padded to 64, cut evenly ]
//! ```

use super::assembly::{Assembly, Home};
use super::hazard::{Hazard, HazardKind, once};
use super::inventory::{Inventory, TensorTemplate};
use super::role::Role;
use crate::error::{Error, Result};
use crate::layout::cut::{Cut, CutKind};
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::{CopyAxes, Padding, Part, Rule};
use crate::layout::tensor::{Tensor, TensorIndex};
use crate::layout::{Layout, LayoutSpec};
use smallvec::SmallVec;
use std::collections::HashMap;

/// Rows to a multiple of which engines pad the vocabulary.
pub const VOCAB_PADDING: u64 = 64;

/// Mesh axes over which something is cut, outermost first.
#[derive(Clone, Debug, Default)]
pub(super) struct Over {
    pub mesh: u16,
    pub axes: SmallVec<[u8; 4]>,
    /// Product of the sizes of the axes.
    pub count: u64,
    /// What the count is made of, for messages, as `tp 4`.
    pub spelled: String,
}

impl Over {
    pub fn new(mesh: u16, meshes: &[Mesh], axes: &[&str]) -> Result<Over> {
        let m = &meshes[mesh as usize];
        let mut over = Over {
            mesh,
            count: 1,
            ..Over::default()
        };
        let mut spelled = Vec::new();
        for name in axes {
            let axis = m.axis(name);
            let axis = axis.ok_or_else(|| Error::internal(format!("no axis \"{name}\"")))?;
            let size = m.axes[axis as usize].size;
            if size > 1 {
                over.axes.push(axis);
                over.count *= u64::from(size);
                spelled.push(format!("{name} {size}"));
            }
        }
        over.spelled = match spelled.is_empty() {
            true => "one rank".into(),
            false => spelled.join(" x "),
        };
        Ok(over)
    }
}

/// How one group of equal replicas cuts a model.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    /// All over the same ranks; the first axis is `replica`.
    pub meshes: Vec<Mesh>,
    pub copies: CopyAxes,
    pub attention: Over,
    pub dense: Over,
    pub shared: Over,
    /// Whole experts, and the rows of each.
    pub experts: Over,
    pub expert_rows: Over,
    pub embed: Over,
    pub head: Over,
    /// The pipeline axis has this name in every mesh.
    pub stages: Stages,
    pub names: Names,
    pub mtp: bool,
    pub frozen: Vec<String>,
}

/// The pipeline stage of each layer.
#[derive(Clone, Debug)]
pub(super) struct Stages {
    pub count: u32,
    pub of_layer: Vec<u32>,
}

/// Where engines name things differently.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// Latent attention's fused down projections.
    pub qkv_a: &'static str,
    pub w13_bias: &'static str,
    pub w2_bias: &'static str,
    /// What the layer body of a draft model is in, after its layer.
    pub draft_body: &'static str,
}

impl Stages {
    /// Layers by how many each stage has; `None` if they are not all.
    pub fn from_counts(counts: &[u32], layers: u32) -> Option<Stages> {
        let total = counts.iter().try_fold(0u32, |a, &n| a.checked_add(n))?;
        let of_layer = (0..).zip(counts).flat_map(|(s, &n)| (0..n).map(move |_| s));
        (total == layers).then(|| Stages {
            count: counts.len() as u32,
            of_layer: of_layer.collect(),
        })
    }
}

/// Layers over stages: as given, or evenly, with `spill` putting those that
/// are left over where the engine does.
pub(super) fn stages(
    layers: u32,
    pp: u32,
    given: &[u32],
    spill: impl Fn(&mut [u32], usize),
) -> Result<Stages> {
    let mut counts = given.to_vec();
    if counts.is_empty() {
        if pp == 0 || pp > layers {
            return Err(Error::layout(format!(
                "pp {pp} stages cannot share {layers} layers; take 1 to {layers}"
            )));
        }
        counts = vec![layers / pp; pp as usize];
        spill(&mut counts, (layers % pp) as usize);
    }
    if counts.len() != pp as usize {
        return Err(Error::layout(format!(
            "pp_layers has {} stages and pp is {pp}",
            counts.len()
        )));
    }
    Stages::from_counts(&counts, layers).ok_or_else(|| {
        Error::layout(format!(
            "pp_layers {counts:?} does not add up to the {layers} layers of the model"
        ))
    })
}

/// The layout of engines on consecutive ranks from `first_rank` on: each
/// spread is a group of equal replicas, and has the ranks after those of the
/// group before.
pub(super) fn layout(model: &Inventory, spreads: &[Spread], first_rank: u32) -> Result<Layout> {
    Hazard::refuse(&hazards(model, spreads))?;
    let mut spec = LayoutSpec {
        marks: model.marks(),
        ..LayoutSpec::default()
    };
    for s in spreads {
        spec.marks = spec.marks.with_frozen(&s.frozen);
    }
    let mut numbers: HashMap<String, TensorIndex> = HashMap::new();
    let with_mtp = spreads.iter().any(|s| s.mtp);
    for t in model.tensors().filter(|t| with_mtp || !t.template.is_mtp) {
        match model.root(&t) {
            Some(root) => spec.aliases.push((t.name, root)),
            None => {
                let template = t.template;
                numbers.insert(t.name.clone(), TensorIndex(spec.tensors.len() as u32));
                let tensor = Tensor::new(t.name, &template.shape(), template.dtype)?;
                spec.tensors.push(tensor);
            }
        }
    }
    let mut first = first_rank;
    for s in spreads {
        let part = s.part(model, &numbers, first)?;
        first = first
            .checked_add(part.ranks.count())
            .ok_or_else(|| Error::limit(format!("rank {first} and more is out of range")))?;
        spec.parts.push(part);
    }
    Layout::new(spec)
}

/// What these sizes do to the model, each thing once.
pub(super) fn hazards(model: &Inventory, spreads: &[Spread]) -> Vec<Hazard> {
    once(spreads.iter().flat_map(|s| s.hazards(model)).collect())
}

impl Spread {
    /// Sizes that this model does not allow, or that spread it unevenly.
    fn hazards(&self, model: &Inventory) -> Vec<Hazard> {
        let mut out = Vec::new();
        let templates = model.templates.iter();
        for t in templates.filter(|t| t.alias_of.is_none() && (self.mtp || !t.is_mtp)) {
            for problem in self.problems(model, t) {
                out.push(problem);
            }
        }
        // Fused siblings have one cause.
        out.dedup_by(|a, b| (a.kind, &a.message) == (b.kind, &b.message));
        out
    }

    fn problems(&self, model: &Inventory, t: &TensorTemplate) -> Vec<Hazard> {
        let mut out = Vec::new();
        let hazard = |kind, message: String| Hazard {
            kind,
            is_error: true,
            parameter: t.name.clone(),
            message,
        };
        let heads = |over: &Over, what: &str, heads: u64| {
            (!heads.is_multiple_of(over.count)).then(|| {
                hazard(
                    HazardKind::Heads,
                    format!(
                        "{heads} {what} are not divisible by {}; take a size that divides {heads}",
                        over.spelled
                    ),
                )
            })
        };
        match t.role {
            Role::QProj
            | Role::QBias
            | Role::QBProj
            | Role::KvBProj
            | Role::OProj
            | Role::Sinks => {
                out.extend(heads(&self.attention, "attention heads", model.heads));
            }
            Role::KProj | Role::VProj | Role::KBias | Role::VBias => {
                let (kv, n) = (model.kv_heads, self.attention.count);
                if !kv.is_multiple_of(n) && !n.is_multiple_of(kv) {
                    out.push(hazard(
                        HazardKind::Heads,
                        format!(
                            "{kv} KV heads neither divide nor are divided by {}; take a size that \
                             divides {kv}, or a multiple of it",
                            self.attention.spelled
                        ),
                    ));
                }
            }
            Role::Embed | Role::LmHead => {
                let over = self.vocab(t.role);
                let padded = pad(t.axes[0].size);
                if !padded.is_multiple_of(over.count) {
                    out.push(hazard(
                        HazardKind::Vocabulary,
                        format!(
                            "{} rows padded to {padded} are not divisible by {}; take a size that \
                             divides {padded}",
                            t.axes[0].size, over.spelled
                        ),
                    ));
                }
            }
            _ => {}
        }
        for (dim, over) in self.even(t.role) {
            let rows = &t.axes[dim as usize];
            if !rows.size.is_multiple_of(over.count) {
                out.push(hazard(
                    HazardKind::Rows,
                    format!(
                        "{rows} are not divisible by {}; take a size that divides {}",
                        over.spelled, rows.size
                    ),
                ));
            }
        }
        if t.role.is_expert() {
            out.extend(self.uneven_experts(t));
        }
        out
    }

    /// Experts of which some ranks would have none, or one more than others.
    fn uneven_experts(&self, t: &TensorTemplate) -> Option<Hazard> {
        let (experts, ranks) = (t.axes[0].size, self.experts.count);
        let spelled = &self.experts.spelled;
        if experts.is_multiple_of(ranks) {
            return None;
        }
        let is_error = experts < ranks;
        let (each, more) = (experts / ranks, experts % ranks);
        Some(Hazard {
            kind: HazardKind::Experts,
            is_error,
            parameter: t.name.clone(),
            message: match is_error {
                true => format!(
                    "{experts} experts are fewer than the {ranks} ranks that share them \
                     ({spelled}); take a smaller size"
                ),
                false => format!(
                    "{experts} experts are not divisible by the {ranks} ranks that share them \
                     ({spelled}): {more} ranks have {}, the others {each}; take a size that \
                     divides {experts} for equal ones",
                    each + 1
                ),
            },
        })
    }

    fn vocab(&self, role: Role) -> &Over {
        match role {
            Role::Embed => &self.embed,
            _ => &self.head,
        }
    }

    /// Dimensions of rows that are cut evenly.
    fn even(&self, role: Role) -> SmallVec<[(u8, &Over); 2]> {
        use Role::*;
        let one = |dim, over| [(dim, over)].into_iter().collect();
        match role {
            Gate | Up | GateBias | UpBias => one(0, &self.dense),
            Down => one(1, &self.dense),
            SharedGate | SharedUp => one(0, &self.shared),
            SharedDown => one(1, &self.shared),
            ExpertGate | ExpertUp | ExpertGateBias | ExpertUpBias => one(1, &self.expert_rows),
            ExpertDown => one(2, &self.expert_rows),
            _ => SmallVec::new(),
        }
    }

    fn rule(&self, model: &Inventory, t: &TensorTemplate) -> Result<Rule> {
        use Role::*;
        let mut mesh = 0;
        let mut cuts = Vec::new();
        let mut padded = 0;
        let mut cut = |dim: u8, over: &Over, kind: CutKind, parts: Option<u32>| {
            mesh = over.mesh;
            if over.count > 1 {
                cuts.push(Cut {
                    dim,
                    axes: over.axes.clone(),
                    kind,
                    parts,
                });
            }
        };
        match t.role {
            QProj | QBias | QBProj | KvBProj | Sinks => {
                cut(0, &self.attention, CutKind::Even, None);
            }
            OProj => cut(1, &self.attention, CutKind::Even, None),
            KProj | VProj | KBias | VBias => {
                // More ranks than KV heads: neighbours hold the same one.
                let repeats = self.attention.count > model.kv_heads;
                let parts = repeats.then_some(model.kv_heads as u32);
                cut(0, &self.attention, CutKind::Even, parts);
            }
            Embed | LmHead => {
                let over = self.vocab(t.role);
                let rows = pad(t.axes[0].size) / over.count;
                let is_padded = rows * over.count != t.axes[0].size;
                if over.count > 1 {
                    cut(0, over, CutKind::Chunk(rows), None);
                } else if is_padded {
                    // One rank has all rows and the padding: a single chunk.
                    mesh = over.mesh;
                    cuts.push(Cut {
                        dim: 0,
                        axes: SmallVec::new(),
                        kind: CutKind::Chunk(rows),
                        parts: None,
                    });
                }
                padded = u8::from(is_padded);
            }
            _ => {
                if t.role.is_expert() {
                    let (e, n) = (t.axes[0].size, self.experts.count);
                    let kind = match e % n {
                        0 => CutKind::Even,
                        // The first ranks have one expert more.
                        more => CutKind::At((0..=n).map(|i| i * (e / n) + i.min(more)).collect()),
                    };
                    cut(0, &self.experts, kind, None);
                }
                for (dim, over) in self.even(t.role) {
                    cut(dim, over, CutKind::Even, None);
                }
                if t.role == ExpertDownBias {
                    // Added once: the first of the ranks that share an expert
                    // has it, the others keep their zeros.
                    let (rows, n) = (t.axes[1].size, self.expert_rows.count);
                    let bounds = (0..=n).map(|i| if i == 0 { 0 } else { rows });
                    cut(1, &self.expert_rows, CutKind::At(bounds.collect()), None);
                }
            }
        }
        let pp = self.meshes[mesh as usize].axis("pp");
        Ok(Rule {
            mesh,
            stage_axis: pp.filter(|_| self.stages.count > 1),
            cuts,
            dtype: None,
            order: SmallVec::new(),
            padded,
            split: None,
            grouped: None,
            conversion: None,
        })
    }

    /// The stages that have a tensor.
    fn stages_of(&self, model: &Inventory, t: &TensorTemplate, layer: Option<u32>) -> Vec<u32> {
        let last = self.stages.count - 1;
        match (t.role, layer) {
            _ if t.is_mtp => vec![last],
            (_, Some(layer)) => vec![self.stages.of_layer[layer as usize]],
            (Role::Embed, None) if model.is_tied && last > 0 => vec![0, last],
            (Role::Embed, None) => vec![0],
            (_, None) => vec![last],
        }
    }

    fn part(
        &self,
        model: &Inventory,
        numbers: &HashMap<String, TensorIndex>,
        first: u32,
    ) -> Result<Part> {
        let mut assembly = Assembly::default();
        for t in &model.templates {
            if t.alias_of.is_some() || (t.is_mtp && !self.mtp) {
                continue;
            }
            let home = self.home(model, t);
            let rule = self.rule(model, t)?;
            let layers: Vec<Option<u32>> = match t.layers.is_empty() {
                true => vec![None],
                false => t.layers.iter().copied().map(Some).collect(),
            };
            for layer in layers {
                let spell = |name: &str| match layer {
                    Some(n) => name.replace("{layer}", &n.to_string()),
                    None => name.to_string(),
                };
                let tensor = numbers[&spell(&t.name)];
                let own = Home {
                    buffer: spell(&home.buffer),
                    ..home
                };
                for stage in self.stages_of(model, t, layer) {
                    let stage = Some(stage).filter(|_| self.stages.count > 1);
                    assembly.place(tensor, &rule, stage, own.clone());
                }
            }
        }
        let count = self.meshes[0].size();
        let ranks = RankList::Range {
            first,
            count: u32::try_from(count)
                .map_err(|_| Error::limit(format!("{count} ranks are too many")))?,
        };
        let mut part = assembly.part(ranks, self.meshes.clone(), Some(self.copies.clone()));
        // As their loaders leave it.
        part.padding = Padding::Zero;
        Ok(part)
    }

    /// The parameter of the engine that a tensor is in.
    fn home(&self, model: &Inventory, t: &TensorTemplate) -> Home {
        use Role::*;
        let has = |role| model.find(role).is_some();
        let fused = |own: &str, fused: &str, place| Home::member(t.name.replace(own, fused), place);
        let expert = |name: &str, place, shared_dims| {
            let prefix = t.name.split_once(".experts").map_or("", |(p, _)| p);
            Home {
                buffer: format!("{prefix}.experts.{name}"),
                place,
                shared_dims,
            }
        };
        // Whether rows of gate and up alternate, as their checkpoint has them.
        let rows = 1 + u8::from(model.alternates_gate_and_up());
        let mut home = match t.role {
            QProj | QBias if has(KProj) => fused("q_proj", "qkv_proj", 0),
            KProj | KBias => fused("k_proj", "qkv_proj", 1),
            VProj | VBias => fused("v_proj", "qkv_proj", 2),
            QAProj => fused("q_a_proj", self.names.qkv_a, 0),
            KvAProj if has(QAProj) => fused("kv_a_proj_with_mqa", self.names.qkv_a, 1),
            Gate | GateBias | SharedGate => fused("gate_proj", "gate_up_proj", 0),
            Up | UpBias | SharedUp => fused("up_proj", "gate_up_proj", 1),
            ExpertGate => expert("w13_weight", 0, rows),
            ExpertUp => expert("w13_weight", 1, rows),
            ExpertDown => expert("w2_weight", 0, 0),
            ExpertGateBias => expert(self.names.w13_bias, 0, rows),
            ExpertUpBias => expert(self.names.w13_bias, 1, rows),
            ExpertDownBias => expert(self.names.w2_bias, 0, 0),
            _ => Home::own(&t.name),
        };
        if t.is_mtp {
            home.buffer = self.draft_name(t, &home.buffer);
        }
        home
    }

    /// A draft model is one of its own, with names like those of the model.
    fn draft_name(&self, t: &TensorTemplate, buffer: &str) -> String {
        use Role::*;
        let is_body = !matches!(
            t.role,
            MtpEmbedNorm | MtpHiddenNorm | MtpProj | MtpFinalNorm
        );
        let layer = "model.layers.{layer}.";
        let name = match buffer.strip_prefix(layer) {
            Some(rest) if is_body => format!("{layer}{}{rest}", self.names.draft_body),
            _ => buffer.to_string(),
        };
        format!("draft.{name}")
    }
}

/// Vocabulary rows with padding.
fn pad(rows: u64) -> u64 {
    rows.div_ceil(VOCAB_PADDING) * VOCAB_PADDING
}

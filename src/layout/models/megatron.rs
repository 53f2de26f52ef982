//! Megatron-core: which rank has what of a model, under which name.
//!
//! Two meshes lie over the same ranks, both from one order string: dense
//! weights are cut over `tp`, experts over `ep` and `etp`.
//!
//! ```text
//!   order tp-cp-ep-dp-pp     dense    pp x dp x cp x tp
//!                            expert   pp x edp x ep x etp      edp = tp cp dp / (ep etp)
//!
//!   linear_qkv   [ q.. k v | q.. k v | ..]   one group per KV head; raw rows of
//!                                            that where tp exceeds KV heads
//!   linear_fc1   [ gate shard | up shard ]
//! ```

use super::assembly::{Assembly, Home};
use super::hazard::{Hazard, HazardKind};
use super::inventory::{Inventory, TensorTemplate};
use super::role::Role;
use super::sizes::{Sizes, product};
use crate::error::{Error, Result};
use crate::layout::cut::{Cut, CutKind};
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::{Grouped, Rule};
use crate::layout::tensor::{Tensor, TensorIndex};
use crate::layout::{Layout, LayoutSpec};
use crate::limits::RANK_COUNT_MAX;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::str::FromStr;

/// How Megatron-core stores the experts of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ExpertStorage {
    /// One parameter per expert, as `TEGroupedMLP`: `linear_fc1.weight{i}`.
    #[default]
    PerExpert,
    /// One module per expert, as `SequentialMLP`: `local_experts.{i}`.
    Sequential,
    /// All experts in `weight1` and `weight2`, as `GroupedMLP`: `[in, out]`.
    Grouped,
}

/// How the ranks of a tensor parallel group hold latent attention's down
/// projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MlaDown {
    /// `linear_q_down_proj` and `linear_kv_down_proj`, whole on every rank.
    #[default]
    Whole,
    /// The same, their rows cut over `tp`.
    Cut,
    /// One `linear_qkv_down_proj` with the norm before it, cut over `tp`: a
    /// rank's query rows, then its key and value rows.
    Fused,
}

/// Parallel sizes of Megatron-core, and what else decides where weights lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MegatronSizes {
    pub tp: u32,
    pub cp: u32,
    pub pp: u32,
    /// Model chunks per rank; several take turns in the pipeline.
    pub vpp: u32,
    pub ep: u32,
    /// Tensor parallel size of experts. Megatron's own default is `tp`; here
    /// it is 1, as every size.
    pub etp: u32,
    pub dp: u32,
    /// Layers of each virtual stage in pipeline order; empty is even.
    pub pp_layers: Vec<u32>,
    /// Axes of ranks, fastest first.
    pub order: String,
    /// Vocabulary rows are padded to a multiple of this, times `tp`.
    pub vocab_multiple: u32,
    pub experts: ExpertStorage,
    pub mla_down: MlaDown,
    /// Whether norms are part of the linear layer after them, as with
    /// Transformer Engine, rather than modules of their own.
    pub norms_fused: bool,
    /// Whether the layers of multi-token prediction are trained.
    pub mtp: bool,
    /// What the decoder layer of one is called in it, which depends on the
    /// version of Megatron-core: `transformer_layer` or `mtp_model_layer`.
    pub mtp_layer: &'static str,
    /// Globs on names of tensors that are not trained.
    pub frozen: Vec<String>,
}

impl Default for MegatronSizes {
    fn default() -> MegatronSizes {
        MegatronSizes {
            tp: 1,
            cp: 1,
            pp: 1,
            vpp: 1,
            ep: 1,
            etp: 1,
            dp: 1,
            pp_layers: Vec::new(),
            order: "tp-cp-ep-dp-pp".into(),
            vocab_multiple: 128,
            experts: ExpertStorage::default(),
            mla_down: MlaDown::default(),
            norms_fused: true,
            mtp: true,
            mtp_layer: MTP_LAYERS[0],
            frozen: Vec::new(),
        }
    }
}

const KEYS: &[&str] = &[
    "tp",
    "cp",
    "pp",
    "vpp",
    "ep",
    "etp",
    "dp",
    "pp_layers",
    "order",
    "vocab_multiple",
    "experts",
    "mla_down",
    "norms",
    "mtp",
    "mtp_layer",
    "frozen",
];

const MTP_LAYERS: &[&str] = &["transformer_layer", "mtp_model_layer"];

impl FromStr for MegatronSizes {
    type Err = Error;

    /// Reads `tp=,cp=,pp=,vpp=,ep=,etp=,dp=,pp_layers=,order=`, and
    /// `vocab_multiple=128`, `experts=per_expert|sequential|grouped`,
    /// `mla_down=whole|cut|fused`, `norms=fused|separate`, `mtp=on|off`,
    /// `mtp_layer=transformer_layer|mtp_model_layer`,
    /// `frozen=model.embed_tokens.*:lm_head.*`. A missing size is 1.
    ///
    /// ```
    /// use weightsync::layout::models::MegatronSizes;
    ///
    /// let sizes: MegatronSizes = "tp=4,pp=8,ep=16,dp=4".parse()?;
    /// assert_eq!(sizes.world(), 128);
    /// # Ok::<(), weightsync::Error>(())
    /// ```
    fn from_str(text: &str) -> Result<MegatronSizes> {
        let s = Sizes::read("megatron", text, KEYS)?;
        let default = MegatronSizes::default();
        Ok(MegatronSizes {
            tp: s.size("tp")?,
            cp: s.size("cp")?,
            pp: s.size("pp")?,
            vpp: s.size("vpp")?,
            ep: s.size("ep")?,
            etp: s.size("etp")?,
            dp: s.size("dp")?,
            pp_layers: s.counts("pp_layers")?,
            order: s.text("order").map_or(default.order, str::to_string),
            vocab_multiple: s
                .size_if_given("vocab_multiple")?
                .unwrap_or(default.vocab_multiple),
            experts: match s.word("experts", &["per_expert", "sequential", "grouped"])? {
                "sequential" => ExpertStorage::Sequential,
                "grouped" => ExpertStorage::Grouped,
                _ => ExpertStorage::PerExpert,
            },
            mla_down: match s.word("mla_down", &["whole", "cut", "fused"])? {
                "cut" => MlaDown::Cut,
                "fused" => MlaDown::Fused,
                _ => MlaDown::Whole,
            },
            norms_fused: s.word("norms", &["fused", "separate"])? == "fused",
            mtp: s.flag("mtp")?.unwrap_or(default.mtp),
            mtp_layer: s.word("mtp_layer", MTP_LAYERS)?,
            frozen: s.globs("frozen")?,
        })
    }
}

impl MegatronSizes {
    /// Number of ranks: `tp * cp * pp * dp`.
    pub fn world(&self) -> u64 {
        product(&[self.tp, self.cp, self.pp, self.dp])
    }

    /// Ranks of one pipeline stage.
    fn stage_ranks(&self) -> u64 {
        product(&[self.tp, self.cp, self.dp])
    }

    /// Data parallel size of experts, if sizes multiply out.
    fn edp(&self) -> Result<u32> {
        let (all, experts) = (self.stage_ranks(), u64::from(self.ep) * u64::from(self.etp));
        if !all.is_multiple_of(experts) {
            return Err(fault(format!(
                "ep {} x etp {} does not divide tp {} x cp {} x dp {}, which is {all}; \
                 ep * etp * edp = tp * cp * dp",
                self.ep, self.etp, self.tp, self.cp, self.dp
            )));
        }
        u32::try_from(all / experts).map_err(|_| fault(format!("{all} ranks are too many")))
    }

    /// The dense and the expert mesh.
    fn meshes(&self) -> Result<[Mesh; 2]> {
        let words: Vec<&str> = self.order.split('-').collect();
        let dense_size = |w: &str| match w {
            "tp" => Some(self.tp),
            "cp" => Some(self.cp),
            "dp" => Some(self.dp),
            "pp" => Some(self.pp),
            _ => None,
        };
        let edp = self.edp()?;
        let expert_size = |w: &str| match w {
            "tp" => Some(("etp", self.etp)),
            "ep" => Some(("ep", self.ep)),
            "dp" => Some(("edp", edp)),
            "pp" => Some(("pp", self.pp)),
            _ => None,
        };
        for (i, w) in words.iter().enumerate() {
            if !["tp", "cp", "ep", "dp", "pp"].contains(w) || words[..i].contains(w) {
                return Err(fault(format!(
                    "\"order\" is {}; tp, cp, ep, dp and pp, each once, joined by - are accepted",
                    self.order
                )));
            }
        }
        for (w, size) in [
            ("tp", self.tp.max(self.etp)),
            ("cp", self.cp),
            ("ep", self.ep),
            ("dp", self.dp.max(edp)),
            ("pp", self.pp),
        ] {
            if size > 1 && !words.contains(&w) {
                return Err(fault(format!(
                    "\"order\" is {}, which has no {w}, but {w} is {size}",
                    self.order
                )));
            }
        }
        let outer_first = || words.iter().rev();
        let mut dense: Vec<(&str, u32)> = outer_first()
            .filter_map(|w| Some((*w, dense_size(w)?)))
            .collect();
        let mut expert: Vec<(&str, u32)> = outer_first().filter_map(|w| expert_size(w)).collect();
        // Axes that the order leaves out have one rank.
        for (axes, names) in [(&mut dense, ["tp", "pp"]), (&mut expert, ["etp", "pp"])] {
            for name in names {
                if !axes.iter().any(|(n, _)| *n == name) {
                    axes.push((name, 1));
                }
            }
        }
        if !expert.iter().any(|(n, _)| *n == "ep") {
            expert.push(("ep", 1));
        }
        let inside = |axes: &[(&str, u32)]| -> u64 {
            let after = axes.iter().rev().take_while(|(n, _)| *n != "pp");
            after.map(|&(_, n)| u64::from(n)).product()
        };
        if self.pp > 1 && inside(&dense) != inside(&expert) {
            return Err(fault(format!(
                "with \"order\" {} a pipeline stage of the dense weights ({} neighbours) is not one \
                 of the experts ({} neighbours); put pp last",
                self.order,
                inside(&dense),
                inside(&expert)
            )));
        }
        Ok([Mesh::new("dense", &dense), Mesh::new("expert", &expert)])
    }

    /// Where each layer of the model is: stage, chunk, index in the chunk.
    pub fn stations(&self, layers: u32) -> Result<Vec<Station>> {
        let virtual_stages = self.pp.checked_mul(self.vpp).ok_or_else(|| {
            fault(format!(
                "pp {} x vpp {} stages are out of range; {layers} layers share at most {layers}",
                self.pp, self.vpp
            ))
        })?;
        if layers < virtual_stages {
            return Err(fault(format!(
                "{layers} layers are fewer than the {virtual_stages} stages of pp {} x vpp {}",
                self.pp, self.vpp
            )));
        }
        let at = |l: u32| (u64::from(l) * u64::from(virtual_stages) / u64::from(layers)) as u32;
        let of_layer: Vec<u32> = match self.pp_layers.is_empty() {
            true => (0..layers).map(at).collect(),
            false => {
                let counts = &self.pp_layers;
                let total: u64 = counts.iter().map(|&n| u64::from(n)).sum();
                if counts.len() != virtual_stages as usize || total != u64::from(layers) {
                    return Err(fault(format!(
                        "\"pp_layers\" has {} stages with {total} layers in all; pp {} x vpp {} and \
                         {layers} layers need {virtual_stages} numbers that add up to {layers}",
                        counts.len(),
                        self.pp,
                        self.vpp
                    )));
                }
                let each = |(v, &n): (u32, &u32)| (0..n).map(move |_| v);
                (0..).zip(counts).flat_map(each).collect()
            }
        };
        let mut index = vec![0; virtual_stages as usize];
        let station = |v: u32| {
            index[v as usize] += 1;
            Station {
                stage: v % self.pp,
                chunk: v / self.pp,
                index: index[v as usize] - 1,
            }
        };
        Ok(of_layer.into_iter().map(station).collect())
    }

    /// What may surprise, though a layout can be made: with more ranks than KV
    /// heads, a rank has raw rows of a group of heads.
    pub fn hazards(&self, model: &Inventory) -> Vec<Hazard> {
        let (kv, tp) = (model.kv_heads, u64::from(self.tp));
        let rows = |role: Role| model.find(role).map(|t| t.axes[0].size / kv);
        let group: Option<Vec<u64>> = QKV.iter().map(|&role| rows(role)).collect();
        let Some(group) = group.filter(|_| kv < tp) else {
            return Vec::new();
        };
        let pitch: u64 = group.iter().sum();
        let find = model.find(Role::KProj).into_iter();
        find.map(|t| Hazard {
            kind: HazardKind::Heads,
            is_error: false,
            parameter: t.name.clone(),
            message: format!(
                "{kv} KV heads are fewer than tp {tp}: each {} ranks share the {pitch} rows \
                 ({} query, {} key, {} value) of one, {} each; whoever needs whole heads takes a tp \
                 that divides {kv}",
                tp / kv,
                group[0],
                group[1],
                group[2],
                pitch * kv / tp
            ),
        })
        .collect()
    }

    /// What was assumed, for the person who gave the sizes.
    pub fn remarks(&self, model: &Inventory) -> Vec<String> {
        let mut out = Vec::new();
        if model.experts > 0 && self.etp != self.tp {
            out.push(format!(
                "etp is {}; Megatron's own default is etp = tp, which is {}",
                self.etp, self.tp
            ));
        }
        let Ok(stations) = self.stations(model.layers) else {
            return out;
        };
        let stages = self.pp * self.vpp;
        if self.pp_layers.is_empty() && !model.layers.is_multiple_of(stages) {
            let of = |v: u32| {
                let is_there = |s: &&Station| (s.stage, s.chunk) == (v % self.pp, v / self.pp);
                stations.iter().filter(is_there).count().to_string()
            };
            let counts: Vec<String> = (0..stages).map(of).collect();
            out.push(format!(
                "{} layers do not divide over {stages} stages: stage = floor(l * {stages} / {}), \
                 which is pp_layers={}",
                model.layers,
                model.layers,
                counts.join(":")
            ));
        }
        out
    }
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    pub stage: u32,
    /// The model chunk on its ranks; 0 without virtual pipeline.
    pub chunk: u32,
    /// The layer's index in the chunk.
    pub index: u32,
}

fn fault(what: String) -> Error {
    Error::layout(format!("megatron: {what}"))
}

impl Layout {
    /// The layout of Megatron-core ranks from `first_rank` on. Buffers are
    /// its parameters by their names on each rank; with several model chunks
    /// they begin with `model{chunk}.`.
    pub fn megatron(model: &Inventory, sizes: &MegatronSizes, first_rank: u32) -> Result<Layout> {
        let owned;
        let model = match sizes.mtp {
            true => model,
            false => {
                owned = model.clone().without_mtp();
                &owned
            }
        };
        Builder::new(model, sizes)?.build(first_rank)
    }
}

/// Meshes by number.
const DENSE: u16 = 0;
const EXPERT: u16 = 1;

/// Latent attention's down projections, fused.
const QKV_DOWN: &str = "self_attention.linear_qkv_down_proj.weight";

/// Members of `linear_qkv`, in order.
const QKV: [Role; 3] = [Role::QProj, Role::KProj, Role::VProj];

struct Builder<'a> {
    model: &'a Inventory,
    sizes: &'a MegatronSizes,
    meshes: [Mesh; 2],
    stations: Vec<Station>,
    is_latent: bool,
}

impl<'a> Builder<'a> {
    fn new(model: &'a Inventory, sizes: &'a MegatronSizes) -> Result<Builder<'a>> {
        if model.experts == 0 && (sizes.ep > 1 || sizes.etp > 1) {
            return Err(fault(format!(
                "ep is {} and etp {}, but {} has no experts; leave them out",
                sizes.ep, sizes.etp, model.architecture
            )));
        }
        let world = sizes.world();
        if world > u64::from(RANK_COUNT_MAX) {
            return Err(fault(format!(
                "tp {} x cp {} x pp {} x dp {} are too many ranks; at most {RANK_COUNT_MAX} are allowed",
                sizes.tp, sizes.cp, sizes.pp, sizes.dp
            )));
        }
        Ok(Builder {
            model,
            sizes,
            meshes: sizes.meshes()?,
            stations: sizes.stations(model.layers)?,
            is_latent: model.find(Role::KvAProj).is_some(),
        })
    }

    fn build(&self, first_rank: u32) -> Result<Layout> {
        let mut spec = LayoutSpec {
            marks: self.model.marks().with_frozen(&self.sizes.frozen),
            ..LayoutSpec::default()
        };
        let mut numbers: HashMap<String, TensorIndex> = HashMap::new();
        for t in self.model.tensors() {
            match self.model.root(&t) {
                Some(root) => spec.aliases.push((t.name, root)),
                None => {
                    numbers.insert(t.name.clone(), TensorIndex(spec.tensors.len() as u32));
                    let shape = t.template.shape();
                    spec.tensors
                        .push(Tensor::new(t.name, &shape, t.template.dtype)?);
                }
            }
        }
        let mut assembly = Assembly::default();
        for t in self.model.templates.iter() {
            self.place(t, &numbers, &mut assembly)?;
        }
        let ranks = RankList::Range {
            first: first_rank,
            count: self.sizes.world() as u32,
        };
        spec.parts
            .push(assembly.part(ranks, self.meshes.to_vec(), None));
        Layout::new(spec)
    }

    fn place(
        &self,
        t: &TensorTemplate,
        numbers: &HashMap<String, TensorIndex>,
        assembly: &mut Assembly,
    ) -> Result<()> {
        let (first, last) = (0, self.sizes.pp - 1);
        let last_chunk = self.sizes.vpp - 1;
        let rule = self.rule(t)?;
        let at_end = |chunk: u32, name: &str| Home::own(format!("{}{name}", self.chunk(chunk)));
        let embedding = "embedding.word_embeddings.weight";
        match (t.role, t.layers.is_empty()) {
            (Role::Embed, true) => {
                let tensor = numbers[&t.name];
                assembly.place(tensor, &rule, Some(first), at_end(0, embedding));
                // Multi-token prediction embeds on the last stage.
                if self.model.mtp_layers > 0 && (last, last_chunk) != (0, 0) {
                    assembly.place(tensor, &rule, Some(last), at_end(last_chunk, embedding));
                }
            }
            (Role::LmHead, true) => {
                // Tied: the last stage has a second copy, unless it is the first.
                if t.alias_of.is_some() && (last, last_chunk) == (0, 0) {
                    return Ok(());
                }
                let tensor = numbers[t.alias_of.as_ref().unwrap_or(&t.name)];
                let home = at_end(last_chunk, "output_layer.weight");
                assembly.place(tensor, &rule, Some(last), home);
            }
            (Role::FinalNorm, _) => {
                let home = at_end(last_chunk, "decoder.final_layernorm.weight");
                assembly.place(numbers[&t.name], &rule, Some(last), home);
            }
            // What multi-token prediction shares is placed once.
            (Role::Embed | Role::LmHead, false) => {}
            _ => {
                for &layer in &t.layers {
                    let (stage, prefix) = self.prefix(t, layer);
                    let home = self.home(t, layer)?;
                    let home = Home {
                        buffer: format!("{prefix}{}", home.buffer),
                        ..home
                    };
                    assembly.place(numbers[&t.name_of(layer)], &rule, Some(stage), home);
                }
            }
        }
        Ok(())
    }

    /// What the parameters of a model chunk start with.
    fn chunk(&self, chunk: u32) -> String {
        match self.sizes.vpp {
            1 => String::new(),
            _ => format!("model{chunk}."),
        }
    }

    /// Stage of a layer, and what the names of its parameters start with.
    fn prefix(&self, t: &TensorTemplate, layer: u32) -> (u32, String) {
        let layers = self.model.layers;
        if layer < layers {
            let s = self.stations[layer as usize];
            let prefix = format!("{}decoder.layers.{}.", self.chunk(s.chunk), s.index);
            return (s.stage, prefix);
        }
        let own = matches!(
            t.role,
            Role::MtpEmbedNorm | Role::MtpHiddenNorm | Role::MtpProj | Role::MtpFinalNorm
        );
        let inner = match own {
            true => String::new(),
            false => format!("{}.", self.sizes.mtp_layer),
        };
        let chunk = self.chunk(self.sizes.vpp - 1);
        let prefix = format!("{chunk}mtp.layers.{}.{inner}", layer - layers);
        (self.sizes.pp - 1, prefix)
    }

    /// The parameter of a tensor within its layer.
    fn home(&self, t: &TensorTemplate, layer: u32) -> Result<Home> {
        use Role::*;
        let moe_layers = &self.model.moe_layers;
        let has_experts = match layer < self.model.layers {
            true => moe_layers.binary_search(&layer).is_ok(),
            false => !moe_layers.is_empty(),
        };
        let is_fused = self.fuses_down_projections();
        Ok(match t.role {
            InputNorm if is_fused && self.sizes.norms_fused => {
                Home::own("self_attention.linear_qkv_down_proj.layer_norm_weight")
            }
            InputNorm if self.is_latent || !self.sizes.norms_fused => {
                Home::own("input_layernorm.weight")
            }
            InputNorm => Home::own("self_attention.linear_qkv.layer_norm_weight"),
            PostAttentionNorm if has_experts || !self.sizes.norms_fused => {
                Home::own("pre_mlp_layernorm.weight")
            }
            PostAttentionNorm => Home::own("mlp.linear_fc1.layer_norm_weight"),
            QProj if self.is_latent => Home::own("self_attention.linear_q_proj.weight"),
            QProj => Home::member("self_attention.linear_qkv.weight", 0),
            KProj => Home::member("self_attention.linear_qkv.weight", 1),
            VProj => Home::member("self_attention.linear_qkv.weight", 2),
            QBias => Home::member("self_attention.linear_qkv.bias", 0),
            KBias => Home::member("self_attention.linear_qkv.bias", 1),
            VBias => Home::member("self_attention.linear_qkv.bias", 2),
            OProj => Home::own("self_attention.linear_proj.weight"),
            OBias => Home::own("self_attention.linear_proj.bias"),
            QNorm => Home::own("self_attention.q_layernorm.weight"),
            KNorm => Home::own("self_attention.k_layernorm.weight"),
            Sinks => Home::own("self_attention.core_attention.softmax_offset"),
            QAProj if is_fused => Home::member(QKV_DOWN, 0),
            KvAProj if is_fused => Home::member(QKV_DOWN, 1),
            QAProj => Home::own("self_attention.linear_q_down_proj.weight"),
            QANorm if !self.sizes.norms_fused => Home::own("self_attention.q_layernorm.weight"),
            QANorm => Home::own("self_attention.linear_q_up_proj.layer_norm_weight"),
            QBProj => Home::own("self_attention.linear_q_up_proj.weight"),
            KvAProj => Home::own("self_attention.linear_kv_down_proj.weight"),
            KvANorm if !self.sizes.norms_fused => Home::own("self_attention.kv_layernorm.weight"),
            KvANorm => Home::own("self_attention.linear_kv_up_proj.layer_norm_weight"),
            KvBProj => Home::own("self_attention.linear_kv_up_proj.weight"),
            Gate => Home::member("mlp.linear_fc1.weight", 0),
            Up => Home::member("mlp.linear_fc1.weight", 1),
            Down => Home::own("mlp.linear_fc2.weight"),
            GateBias => Home::member("mlp.linear_fc1.bias", 0),
            UpBias => Home::member("mlp.linear_fc1.bias", 1),
            DownBias => Home::own("mlp.linear_fc2.bias"),
            Router => Home::own("mlp.router.weight"),
            RouterBias => Home::own("mlp.router.bias"),
            ExpertBias => Home::own("mlp.router.expert_bias"),
            SharedGate => Home::member("mlp.shared_experts.linear_fc1.weight", 0),
            SharedUp => Home::member("mlp.shared_experts.linear_fc1.weight", 1),
            SharedDown => Home::own("mlp.shared_experts.linear_fc2.weight"),
            ExpertGate | ExpertUp | ExpertDown | ExpertGateBias | ExpertUpBias | ExpertDownBias => {
                return self.expert_home(t.role);
            }
            MtpEmbedNorm => Home::own("enorm.weight"),
            MtpHiddenNorm => Home::own("hnorm.weight"),
            MtpProj => Home::own("eh_proj.weight"),
            MtpFinalNorm => Home::own("final_layernorm.weight"),
            Embed | LmHead | FinalNorm => {
                return Err(Error::internal(format!("{} has no layer", t.name)));
            }
        })
    }

    /// A query without latent has nothing to be fused with.
    fn fuses_down_projections(&self) -> bool {
        self.sizes.mla_down == MlaDown::Fused && self.model.find(Role::QAProj).is_some()
    }

    fn cuts_down_projections(&self) -> bool {
        self.sizes.mla_down == MlaDown::Cut || self.fuses_down_projections()
    }

    fn expert_home(&self, role: Role) -> Result<Home> {
        use Role::*;
        let (linear, place) = match role {
            ExpertGate | ExpertGateBias => ("linear_fc1", 0),
            ExpertUp | ExpertUpBias => ("linear_fc1", 1),
            _ => ("linear_fc2", 0),
        };
        let is_bias = matches!(role, ExpertGateBias | ExpertUpBias | ExpertDownBias);
        let what = if is_bias { "bias" } else { "weight" };
        Ok(match self.sizes.experts {
            ExpertStorage::PerExpert => {
                Home::member(format!("mlp.experts.{linear}.{what}{{local}}"), place)
            }
            ExpertStorage::Sequential => Home::member(
                format!("mlp.experts.local_experts.{{local}}.{linear}.{what}"),
                place,
            ),
            ExpertStorage::Grouped if is_bias => {
                return Err(fault(format!(
                    "experts=grouped has no biases, but the experts of {} do; take per_expert or \
                     sequential",
                    self.model.architecture
                )));
            }
            ExpertStorage::Grouped => Home {
                shared_dims: if linear == "linear_fc1" { 2 } else { 0 },
                ..Home::member(
                    if linear == "linear_fc1" {
                        "mlp.experts.weight1"
                    } else {
                        "mlp.experts.weight2"
                    },
                    place,
                )
            },
        })
    }

    fn rule(&self, t: &TensorTemplate) -> Result<Rule> {
        use Role::*;
        let mesh = if t.role.is_expert() { EXPERT } else { DENSE };
        let mut rule = Rule {
            mesh,
            stage_axis: self.meshes[mesh as usize].axis("pp"),
            cuts: Vec::new(),
            dtype: None,
            order: Default::default(),
            padded: 0,
            split: None,
            grouped: None,
            conversion: None,
        };
        let tp = ("tp", self.sizes.tp);
        match t.role {
            Embed | LmHead => {
                let padded = self.padded_vocab(t.axes[0].size)?;
                let chunk = CutKind::Chunk(padded / u64::from(self.sizes.tp));
                rule.cuts.push(self.cut(mesh, 0, "tp", chunk));
                rule.padded = 1;
            }
            QProj | KProj | VProj | QBias | KBias | VBias if !self.is_latent => {
                self.cut_qkv(t, &mut rule)?;
            }
            QProj | QBProj | KvBProj | Sinks | OProj => {
                self.whole_heads(t)?;
                let dim = if t.role == OProj { 1 } else { 0 };
                self.even(t, dim, tp, &mut rule)?;
            }
            Gate | Up | GateBias | UpBias | SharedGate | SharedUp | MtpProj => {
                self.even(t, 0, tp, &mut rule)?;
            }
            Down | SharedDown => self.even(t, 1, tp, &mut rule)?,
            QAProj | KvAProj if self.cuts_down_projections() => {
                self.even(t, 0, tp, &mut rule)?;
            }
            ExpertGate | ExpertUp | ExpertGateBias | ExpertUpBias | ExpertDown | ExpertDownBias => {
                self.cut_experts(t, &mut rule)?;
            }
            _ => {}
        }
        Ok(rule)
    }

    fn cut_experts(&self, t: &TensorTemplate, rule: &mut Rule) -> Result<()> {
        self.even(t, 0, ("ep", self.sizes.ep), rule)?;
        let etp = ("etp", self.sizes.etp);
        match t.role {
            Role::ExpertDown => self.even(t, 2, etp, rule)?,
            Role::ExpertDownBias => {}
            _ => self.even(t, 1, etp, rule)?,
        }
        match self.sizes.experts {
            ExpertStorage::Grouped => rule.order = [0, 2, 1].into_iter().collect(),
            _ => rule.split = Some(0),
        }
        Ok(())
    }

    /// Vocabulary rows with Megatron's padding.
    fn padded_vocab(&self, rows: u64) -> Result<u64> {
        let unit = u64::from(self.sizes.vocab_multiple) * u64::from(self.sizes.tp);
        Ok(rows.div_ceil(unit) * unit)
    }

    fn cut(&self, mesh: u16, dim: u8, axis: &str, kind: CutKind) -> Cut {
        let axes: SmallVec<[u8; 4]> = self.meshes[mesh as usize].axis(axis).into_iter().collect();
        Cut {
            dim,
            axes,
            kind,
            parts: None,
        }
    }

    /// Cuts an axis into equal parts, if there are several.
    fn even(
        &self,
        t: &TensorTemplate,
        dim: u8,
        (axis, n): (&str, u32),
        rule: &mut Rule,
    ) -> Result<()> {
        let rows = &t.axes[dim as usize];
        if !rows.size.is_multiple_of(u64::from(n)) {
            return Err(fault(format!(
                "{}: {rows} are not divisible by {axis} {n}; take a size that divides {}",
                t.name, rows.size
            )));
        }
        if n > 1 {
            rule.cuts
                .push(self.cut(rule.mesh, dim, axis, CutKind::Even));
        }
        Ok(())
    }

    fn whole_heads(&self, t: &TensorTemplate) -> Result<()> {
        let (heads, tp) = (self.model.heads, self.sizes.tp);
        if heads.is_multiple_of(u64::from(tp)) {
            return Ok(());
        }
        Err(fault(format!(
            "{}: {heads} attention heads are not divisible by tp {tp}; take a size that divides {heads}",
            t.name
        )))
    }

    /// Rows of `linear_qkv`: whole groups of KV heads, or raw rows of them.
    fn cut_qkv(&self, t: &TensorTemplate, rule: &mut Rule) -> Result<()> {
        self.whole_heads(t)?;
        let (kv, tp) = (self.model.kv_heads, u64::from(self.sizes.tp));
        let rows = |role: Role| self.model.find(role).map_or(0, |t| t.axes[0].size / kv);
        let of_group = QKV.map(rows);
        let pitch: u64 = of_group.iter().sum();
        let member = match t.role {
            Role::QProj | Role::QBias => 0,
            Role::KProj | Role::KBias => 1,
            _ => 2,
        };
        if kv.is_multiple_of(tp) {
            self.even(t, 0, ("tp", self.sizes.tp), rule)?;
            // One group per rank lies end to end anyway.
            let size = of_group[member];
            rule.grouped = (kv > tp).then_some(Grouped { size, pitch });
            return Ok(());
        }
        let inner = tp / kv;
        if !tp.is_multiple_of(kv) || !pitch.is_multiple_of(inner) {
            return Err(fault(format!(
                "{}: {kv} KV heads of {pitch} rows each neither divide over nor are divided by tp \
                 {tp}; take a size that divides {kv}, or a multiple of it",
                t.name
            )));
        }
        let before: u64 = of_group[..member].iter().sum();
        let size = of_group[member];
        let bound = |i: u64| {
            let (group, part) = (i / inner, i % inner);
            let row = part * (pitch / inner);
            group * size + row.saturating_sub(before).min(size)
        };
        let bounds = (0..=tp).map(bound).collect();
        rule.cuts
            .push(self.cut(rule.mesh, 0, "tp", CutKind::At(bounds)));
        Ok(())
    }
}

//! SGLang: which rank has what of a model, and where that is not as in vLLM.
//!
//! ```text
//!   ranks of a replica   pp x tp; `dp` and `ep` divide tp, they do not multiply it
//!   attention            cut over tp / dp ranks, alike in each of the dp groups
//!   dense, shared        cut over all tp ranks
//!   experts              whole experts over ep, rows of each over tp / ep
//!   embedding            over the ranks that share attention; the head over all tp
//! ```

use super::engine::{self, Names, Over, Spread, Stages};
use super::hazard::{Hazard, HazardKind};
use super::inventory::Inventory;
use super::role::Role;
use super::sizes::{Sizes, product};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::mesh::Mesh;
use crate::layout::placement::CopyAxes;
use std::str::FromStr;

/// Parallel sizes of equal replicas of SGLang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SglangSizes {
    pub tp: u32,
    /// Groups of ranks with attention of their own (`--enable-dp-attention`);
    /// divides `tp`.
    pub dp: u32,
    /// Divides `tp`.
    pub ep: u32,
    pub pp: u32,
    pub replicas: u32,
    /// Layers of each stage, as `SGLANG_PP_LAYER_PARTITION`; SGLang's own
    /// split, where it is empty.
    pub pp_layers: Vec<u32>,
    /// With the multi-token prediction layers, as a draft model.
    pub mtp: bool,
    /// Globs on names of tensors that are not trained.
    pub frozen: Vec<String>,
}

impl Default for SglangSizes {
    fn default() -> SglangSizes {
        SglangSizes {
            tp: 1,
            dp: 1,
            ep: 1,
            pp: 1,
            replicas: 1,
            pp_layers: Vec::new(),
            mtp: true,
            frozen: Vec::new(),
        }
    }
}

impl FromStr for SglangSizes {
    type Err = Error;

    /// Reads `tp=8,dp=2,ep=4,replicas=4`; a size that is missing is 1.
    fn from_str(text: &str) -> Result<SglangSizes> {
        let keys = [
            "tp",
            "dp",
            "ep",
            "pp",
            "replicas",
            "pp_layers",
            "mtp",
            "frozen",
        ];
        let given = Sizes::read("sglang", text, &keys)?;
        Ok(SglangSizes {
            tp: given.size("tp")?,
            dp: given.size("dp")?,
            ep: given.size("ep")?,
            pp: given.size("pp")?,
            replicas: given.size("replicas")?,
            pp_layers: given.counts("pp_layers")?,
            mtp: given.flag("mtp")?.unwrap_or(true),
            frozen: given.globs("frozen")?,
        })
    }
}

const NAMES: Names = Names {
    qkv_a: "fused_qkv_a_proj_with_mqa",
    w13_bias: "w13_weight_bias",
    w2_bias: "w2_weight_bias",
    draft_body: "decoder.",
};

impl SglangSizes {
    /// Ranks of all replicas.
    pub fn world(&self) -> u64 {
        product(&[self.tp, self.pp, self.replicas])
    }

    fn spread(&self, model: &Inventory) -> Result<Spread> {
        for (name, n) in [("dp", self.dp), ("ep", self.ep)] {
            if n == 0 || !self.tp.is_multiple_of(n) {
                return Err(Error::layout(format!(
                    "sglang: {name} {n} does not divide tp {}; {name} is a part of tp there, not a \
                     factor beside it",
                    self.tp
                )));
            }
        }
        if self.ep > 1 && model.experts == 0 {
            return Err(Error::layout(format!(
                "sglang: ep is {}, but {} has no experts; leave it out",
                self.ep, model.architecture
            )));
        }
        self.refuse_uneven_experts(model)?;
        let meshes = vec![
            Mesh::new(
                "attention",
                &[
                    ("replica", self.replicas),
                    ("pp", self.pp),
                    ("dp", self.dp),
                    ("tp", self.tp / self.dp),
                ],
            ),
            Mesh::new(
                "expert",
                &[
                    ("replica", self.replicas),
                    ("pp", self.pp),
                    ("ep", self.ep),
                    ("etp", self.tp / self.ep),
                ],
            ),
        ];
        for m in &meshes {
            m.validate_axes()?;
        }
        let attention = Over::new(0, &meshes, &["tp"])?;
        let all = Over::new(0, &meshes, &["dp", "tp"])?;
        Ok(Spread {
            copies: CopyAxes {
                mesh: 0,
                axes: [0].into_iter().collect(),
            },
            embed: attention.clone(),
            attention,
            dense: all.clone(),
            shared: all.clone(),
            head: all,
            experts: Over::new(1, &meshes, &["ep"])?,
            expert_rows: Over::new(1, &meshes, &["etp"])?,
            stages: stages(model.layers, self.pp, &self.pp_layers)?,
            names: NAMES,
            mtp: self.mtp,
            frozen: self.frozen.clone(),
            meshes,
        })
    }

    fn refuse_uneven_experts(&self, model: &Inventory) -> Result<()> {
        let ep = u64::from(self.ep);
        let Some(t) = model
            .find(Role::ExpertGate)
            .filter(|_| !model.experts.is_multiple_of(ep))
        else {
            return Ok(());
        };
        Hazard::refuse(&[Hazard {
            kind: HazardKind::Experts,
            is_error: true,
            parameter: t.name.clone(),
            message: format!(
                "{} experts are not divisible by ep {ep}; take a size that divides {}",
                model.experts, model.experts
            ),
        }])
    }
}

/// Layers that do not divide go one each to the last stages.
fn stages(layers: u32, pp: u32, given: &[u32]) -> Result<Stages> {
    engine::stages(layers, pp, given, |counts, more| {
        let n = counts.len();
        for count in &mut counts[n - more..] {
            *count += 1;
        }
    })
}

impl Layout {
    /// The layout of SGLang replicas, one group of equal ones after the other,
    /// on consecutive ranks from `first_rank` on.
    ///
    /// Buffers are SGLang's parameters by their names, with shared experts as
    /// experts of their own (`--disable-shared-experts-fusion`); a draft
    /// model's begin with `draft.`. Padding of the vocabulary is zeroed.
    pub fn sglang(model: &Inventory, groups: &[SglangSizes], first_rank: u32) -> Result<Layout> {
        let spreads = groups
            .iter()
            .map(|g| g.spread(model))
            .collect::<Result<Vec<Spread>>>()?;
        if spreads.is_empty() {
            return Err(Error::invalid("there are no replicas of SGLang"));
        }
        engine::layout(model, &spreads, first_rank)
    }
}

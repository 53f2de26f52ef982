//! vLLM: which rank has what of a model.
//!
//! ```text
//!   ranks of a replica   dp x pp x tp
//!   attention, dense     cut over tp, alike on every dp
//!   experts, ep=on       whole experts over dp x tp
//!   experts, ep=off      rows of every expert over dp x tp
//! ```
//!
//! With experts over several `dp` and `tp` ranks, tokens are spread over `tp`
//! before the experts, and shared experts are whole on every rank.

use super::engine::{self, Names, Over, Spread, Stages};
use super::hazard::Hazard;
use super::inventory::Inventory;
use super::sizes::{Sizes, product};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::layout::mesh::Mesh;
use crate::layout::placement::CopyAxes;
use std::str::FromStr;

/// Parallel sizes of equal replicas of vLLM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VllmSizes {
    pub tp: u32,
    pub pp: u32,
    /// Data-parallel ranks of one replica, which share its experts.
    pub dp: u32,
    /// Whole experts over ranks, rather than rows of each.
    pub ep: bool,
    pub replicas: u32,
    /// Layers of each stage, as `VLLM_PP_LAYER_PARTITION`; vLLM's own split,
    /// where it is empty.
    pub pp_layers: Vec<u32>,
    /// Whether shared experts are cut over `tp`; `None` is as vLLM does.
    pub shared_cut: Option<bool>,
    /// With the multi-token prediction layers, as a draft model.
    pub mtp: bool,
    /// Globs on names of tensors that are not trained.
    pub frozen: Vec<String>,
}

impl Default for VllmSizes {
    fn default() -> VllmSizes {
        VllmSizes {
            tp: 1,
            pp: 1,
            dp: 1,
            ep: false,
            replicas: 1,
            pp_layers: Vec::new(),
            shared_cut: None,
            mtp: true,
            frozen: Vec::new(),
        }
    }
}

impl FromStr for VllmSizes {
    type Err = Error;

    /// Reads `tp=8,dp=2,ep=on,replicas=4`; a size that is missing is 1.
    ///
    /// ```
    /// use weightsync::layout::models::VllmSizes;
    ///
    /// let sizes: VllmSizes = "tp=8,dp=2,ep=on,replicas=4".parse()?;
    /// assert_eq!(sizes.world(), 64);
    /// # Ok::<(), weightsync::Error>(())
    /// ```
    fn from_str(text: &str) -> Result<VllmSizes> {
        let keys = [
            "tp",
            "pp",
            "dp",
            "ep",
            "replicas",
            "pp_layers",
            "shared",
            "mtp",
            "frozen",
        ];
        let given = Sizes::read("vllm", text, &keys)?;
        Ok(VllmSizes {
            tp: given.size("tp")?,
            pp: given.size("pp")?,
            dp: given.size("dp")?,
            ep: given.flag("ep")?.unwrap_or(false),
            replicas: given.size("replicas")?,
            pp_layers: given.counts("pp_layers")?,
            shared_cut: match given.word("shared", &["auto", "cut", "whole"])? {
                "cut" => Some(true),
                "whole" => Some(false),
                _ => None,
            },
            mtp: given.flag("mtp")?.unwrap_or(true),
            frozen: given.globs("frozen")?,
        })
    }
}

const NAMES: Names = Names {
    qkv_a: "fused_qkv_a_proj",
    w13_bias: "w13_bias",
    w2_bias: "w2_bias",
    draft_body: "mtp_block.",
};

impl VllmSizes {
    /// Ranks of all replicas.
    pub fn world(&self) -> u64 {
        product(&[self.tp, self.pp, self.dp, self.replicas])
    }

    /// What may surprise, though a layout can be made: experts that some
    /// ranks have more of than others.
    pub fn hazards(groups: &[VllmSizes], model: &Inventory) -> Result<Vec<Hazard>> {
        Ok(engine::hazards(model, &spreads(groups, model)?))
    }

    fn spread(&self, model: &Inventory) -> Result<Spread> {
        if self.ep && model.experts == 0 {
            return Err(Error::layout(format!(
                "vllm: ep is on, but {} has no experts; leave it out",
                model.architecture
            )));
        }
        let axes = [
            ("replica", self.replicas),
            ("dp", self.dp),
            ("pp", self.pp),
            ("tp", self.tp),
        ];
        let meshes = vec![Mesh::new("engine", &axes)];
        meshes[0].validate_axes()?;
        let over = |axes: &[&str]| Over::new(0, &meshes, axes);
        let tp = over(&["tp"])?;
        let all = over(&["dp", "tp"])?;
        let none = over(&[])?;
        let (experts, expert_rows) = match self.ep {
            true => (all.clone(), none.clone()),
            false => (none.clone(), all.clone()),
        };
        let spreads_tokens = self.ep && self.tp > 1 && self.dp > 1;
        let copies = match model.experts {
            // Nothing is shared between them: each is a copy.
            0 => [0, 1].into_iter().collect(),
            _ => [0].into_iter().collect(),
        };
        Ok(Spread {
            copies: CopyAxes {
                mesh: 0,
                axes: copies,
            },
            attention: tp.clone(),
            dense: tp.clone(),
            shared: match self.shared_cut.unwrap_or(!spreads_tokens) {
                true => tp.clone(),
                false => none,
            },
            experts,
            expert_rows,
            embed: tp.clone(),
            head: tp,
            stages: stages(model.layers, self.pp, &self.pp_layers)?,
            names: NAMES,
            mtp: self.mtp,
            frozen: self.frozen.clone(),
            meshes,
        })
    }
}

fn spreads(groups: &[VllmSizes], model: &Inventory) -> Result<Vec<Spread>> {
    groups.iter().map(|g| g.spread(model)).collect()
}

/// Layers that do not divide go one each to the stages before the last, the
/// latest first.
fn stages(layers: u32, pp: u32, given: &[u32]) -> Result<Stages> {
    engine::stages(layers, pp, given, |counts, more| {
        let n = counts.len();
        for i in 2..more + 2 {
            counts[n - i] += 1;
        }
    })
}

impl Layout {
    /// The layout of vLLM replicas, one group of equal ones after the other,
    /// on consecutive ranks from `first_rank` on.
    ///
    /// Buffers are vLLM's parameters by their names; a draft model's begin
    /// with `draft.`. Padding of the vocabulary is zeroed.
    pub fn vllm(model: &Inventory, groups: &[VllmSizes], first_rank: u32) -> Result<Layout> {
        let spreads = spreads(groups, model)?;
        if spreads.is_empty() {
            return Err(Error::invalid("there are no replicas of vLLM"));
        }
        engine::layout(model, &spreads, first_rank)
    }
}

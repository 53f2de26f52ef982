//! Thirteen real models, each from a trainer to an engine, at full size.
#![allow(dead_code)]

use serde_json::json;
use std::sync::Arc;
use weightsync::Result;
use weightsync::layout::Layout;
use weightsync::layout::check::{PairReport, check_pair};
use weightsync::layout::models::{Framework, HuggingFaceSizes, Inventory, ModelLayout};
use weightsync::plan::Plan;
use weightsync::plan::decision::{Decision, PlanOptions};

/// Model, framework and sizes of the source, of the destination.
pub type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

pub const ROWS: [Row; 13] = [
    (
        "llama-3.1-8b",
        "megatron",
        "tp=2,pp=2,dp=2",
        "vllm",
        "tp=4,replicas=2",
    ),
    (
        "llama-3.1-70b",
        "megatron",
        "tp=4,pp=4,dp=4",
        "vllm",
        "tp=8,replicas=8",
    ),
    (
        "llama-3.1-405b",
        "megatron",
        "tp=8,pp=16,dp=2",
        "vllm",
        "tp=16,replicas=8",
    ),
    (
        "qwen2.5-7b",
        "megatron",
        "tp=2,dp=4",
        "vllm",
        "tp=4,replicas=2",
    ),
    (
        "qwen2.5-72b",
        "megatron",
        "tp=8,pp=2,vpp=2,dp=2",
        "sglang",
        "tp=8,replicas=4",
    ),
    (
        "qwen3-8b",
        "dtensor",
        "FSDP2 over 8",
        "vllm",
        "tp=2,replicas=4",
    ),
    (
        "qwen3-30b-a3b",
        "megatron",
        "pp=2,ep=8,dp=8",
        "vllm",
        "tp=8,dp=2,ep=on",
    ),
    (
        "qwen3-235b-a22b",
        "megatron",
        "tp=4,pp=8,ep=16,dp=4",
        "vllm",
        "tp=8,ep=on,replicas=8",
    ),
    (
        "mixtral-8x7b",
        "megatron",
        "tp=2,pp=4,ep=8,dp=4",
        "vllm",
        "tp=8,ep=off,replicas=2",
    ),
    (
        "deepseek-v3",
        "megatron",
        "pp=16,ep=16,dp=16",
        "vllm",
        "tp=32,ep=on,replicas=8",
    ),
    (
        "kimi-k2",
        "megatron",
        "pp=16,ep=16,dp=16",
        "vllm",
        "tp=16,ep=on,replicas=8",
    ),
    (
        "glm-4.5",
        "megatron",
        "tp=4,pp=4,ep=16,dp=4",
        "sglang",
        "tp=8,ep=8,replicas=4",
    ),
    (
        "gpt-oss-120b",
        "megatron",
        "ep=8,dp=8",
        "vllm",
        "tp=4,ep=off,replicas=2",
    ),
];

pub fn config(model: &str) -> Vec<u8> {
    let path = format!("{}/tests/models/{model}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The tensors of a checkpoint of the model, by name and shape.
pub fn stored(model: &Inventory) -> Vec<(String, Vec<u64>)> {
    let whole = Layout::hugging_face(model, &HuggingFaceSizes::default(), 0).unwrap();
    let part = &whole.parts()[0];
    let mut out = Vec::new();
    for b in &part.buffers {
        let first = part.member(b.members[0]);
        let rule = part.rule(first);
        let canonical = &whole.tensors()[first.tensor.index()].shape;
        let order = rule.memory_order(canonical.len());
        let mut shape: Vec<u64> = (order.iter())
            .filter(|axis| rule.split != Some(**axis))
            .map(|&axis| canonical[axis as usize])
            .collect();
        // Members alternate along the last axis.
        *shape.last_mut().unwrap() *= b.members.len() as u64;
        match rule.split {
            None => out.push((b.name.clone(), shape)),
            Some(axis) => out.extend((0..canonical[axis as usize]).map(|i| {
                let name = b.name.replace("{global}", &i.to_string());
                (name, shape.clone())
            })),
        }
    }
    out
}

/// What PyTorch says of these tensors on a mesh of this shape, each placed as
/// `place` says of its shape.
pub fn dtensors(
    tensors: &[(String, Vec<u64>)],
    dtype: &str,
    mesh: &[u32],
    place: impl Fn(&[u64]) -> Vec<&'static str>,
) -> String {
    let names: Vec<String> = (0..mesh.len()).map(|i| format!("d{i}")).collect();
    let tensor = |(name, shape): &(String, Vec<u64>)| json!({"name": name, "shape": shape, "dtype": dtype, "placements": place(shape)});
    let tensors: Vec<_> = tensors.iter().map(tensor).collect();
    json!({
        "weightsync_dtensor": 1,
        "meshes": {"world": {"names": names, "shape": mesh}},
        "tensors": tensors,
    })
    .to_string()
}

/// What FSDP2 makes of a model on so many ranks: every tensor of its
/// checkpoint cut along its first axis.
pub fn fsdp2(model: &Inventory, ranks: u32) -> String {
    let dtype = model.dtype.name();
    dtensors(&stored(model), &dtype, &[ranks], |_| vec!["Shard(dim=0)"])
}

/// One row, worked out.
pub struct Worked {
    pub source: Arc<Layout>,
    pub destination: Arc<Layout>,
    pub remarks: Vec<String>,
    pub hazards: Vec<String>,
    pub pair: PairReport,
}

impl Worked {
    pub fn of(row: &Row) -> Result<Worked> {
        let (name, from, from_sizes, to, to_sizes) = *row;
        let config = config(name);
        let text;
        let from_sizes = match from {
            "dtensor" => {
                text = fsdp2(&Inventory::from_config(&config)?, 8);
                text.as_str()
            }
            _ => from_sizes,
        };
        let source = Layout::from_model(&config, from.parse::<Framework>()?, from_sizes, 0)?;
        let first = source.layout.rank_count();
        let destination = Layout::from_model(&config, to.parse::<Framework>()?, to_sizes, first)?;
        let pair = check_pair(&source.layout, &destination.layout);
        let both = |f: fn(&ModelLayout) -> Vec<String>| [f(&source), f(&destination)].concat();
        Ok(Worked {
            remarks: both(|m| m.remarks.clone()),
            hazards: both(|m| m.hazards.iter().map(|h| h.to_string()).collect()),
            pair,
            source: Arc::new(source.layout),
            destination: Arc::new(destination.layout),
        })
    }

    pub fn plan(&self, options: &PlanOptions) -> Result<Plan> {
        Plan::create(self.source.clone(), self.destination.clone(), options)
    }

    /// The plan with a decision made before, so that no rank is looked at.
    pub fn plan_with(&self, decision: &Decision) -> Result<Plan> {
        let (source, destination) = (self.source.clone(), self.destination.clone());
        Plan::with_decision(source, destination, decision.clone(), None)
    }

    /// The row of the table in docs/models.md.
    pub fn line(&self, row: &Row, plan: &Plan) -> Result<String> {
        let report = plan.report()?;
        Ok(format!(
            "{} {:.1} GB | {} | {:.0} % |",
            self.line_start(row),
            report.bytes_moved as f64 / 1e9,
            report.pairs,
            self.coverage(),
        ))
    }

    /// What of it does not need a plan.
    pub fn line_start(&self, row: &Row) -> String {
        let (name, from, from_sizes, to, to_sizes) = *row;
        format!(
            "| {name} | {from} {from_sizes} | {to} {to_sizes} | {} | {:.1} GB |",
            self.pair.destination.tensors,
            self.pair.destination.bytes as f64 / 1e9,
        )
    }

    /// Bytes that the destination needs and the source has, in percent.
    pub fn coverage(&self) -> f64 {
        let d = &self.pair.destination;
        100.0 * d.matched_bytes as f64 / d.bytes as f64
    }
}

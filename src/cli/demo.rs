//! `weightsync demo`: the main job on a made-up model.
//!
//! A Qwen3-shaped model goes from a trainer that cuts by tensor, pipeline and
//! data (2 x 2 x 2, ranks 0 to 7), with storage as Megatron has it, to two
//! inference replicas of four ranks each (ranks 8 to 15), with storage as vLLM
//! has it: heads of all kinds side by side there, packed after each other
//! here; another vocabulary padding; rows cut there, columns here.

use super::drive::{Delivery, drive};
use super::message::Carrier;
use super::plan::report_text;
use super::reference::Origin;
use super::table::{bytes, print, print_json};
use clap::Args;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::{DIRECT_BYTES_MIN_DEFAULT, PlanOptions, STAGING_BYTES_DEFAULT};
use weightsync::{Result, env};

const TRAINER: &str = include_str!("demo/trainer.json");
const INFERENCE: &str = include_str!("demo/inference.json");

/// What an output layer of its own adds to the two layouts.
const LM_HEAD_SHAPE: &str = r#"
      "shape": [$VOCABULARY, $HIDDEN], "dtype": "bf16","#;
const LM_HEAD: &str = r#"
    {
      "name": "lm_head.weight", "shape": [$VOCABULARY, $HIDDEN], "dtype": "bf16",
      "cuts": [{"dim": 0, "axes": ["tp"], "kind": {"chunk": $CHUNK_OF_4}, "pad": true}]
    },"#;
/// What ties it to the embedding instead.
const ALIASES: &str = r#"{"lm_head.weight": "model.embed_tokens.weight"}"#;

/// Bytes of a bf16.
const ELEMENT: u64 = 2;

/// Deliver a made-up model to two inference replicas and check every byte
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Size of the model, in 10^6 bytes
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(4..=1_000_000))]
    megabytes: u64,
    /// Give the output layer weights of its own, instead of the embedding's
    #[arg(long)]
    untied: bool,
    /// What carries the bytes
    #[arg(long, value_enum, default_value = "shm")]
    transport: Carrier,
    /// How many versions to deliver
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    versions: u64,
    /// Seconds that any step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    deadline: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The numbers of a model.
#[derive(Clone, Copy, Debug, Serialize)]
struct Model {
    layers: u64,
    hidden: u64,
    /// Key and value heads; each serves two query heads.
    groups: u64,
    head: u64,
    intermediate: u64,
    vocabulary: u64,
    /// The output layer uses the embedding's weights.
    is_tied: bool,
}

impl Model {
    /// About as large as asked for: three quarters are layers, the rest is
    /// vocabulary, of which there is an odd number of pairs, so that no cut
    /// comes out even.
    fn of_bytes(wanted: u64, is_tied: bool) -> Model {
        let (hidden, groups, head) = match wanted {
            0..80_000_000 => (256, 4, 64),
            _ => (1024, 8, 128),
        };
        let mut model = Model {
            layers: 0,
            hidden,
            groups,
            head,
            intermediate: 3 * hidden,
            vocabulary: 0,
            is_tied,
        };
        let layer = model.layer_elements() * ELEMENT;
        model.layers = (wanted / 4 * 3 / layer).max(2);
        let left = wanted.saturating_sub(model.layers * layer);
        model.vocabulary = (left / (model.tables() * hidden * ELEMENT)).max(1000) / 4 * 4 + 2;
        model
    }

    fn layer_elements(&self) -> u64 {
        let attention = self.hidden * self.groups * self.head * (2 + 1 + 1 + 2);
        let norms = 2 * self.head + 2 * self.hidden;
        attention + 3 * self.hidden * self.intermediate + norms
    }

    /// Tensors with a row per word.
    fn tables(&self) -> u64 {
        if self.is_tied { 1 } else { 2 }
    }

    fn bytes(&self) -> u64 {
        let layers = self.layers * self.layer_elements();
        ELEMENT * (layers + self.hidden * (self.tables() * self.vocabulary + 1))
    }

    /// A layout file for this model.
    fn fill_in(&self, template: &str) -> String {
        let stages: Vec<String> = (0..self.layers)
            .map(|l| u64::from(2 * l >= self.layers).to_string())
            .collect();
        let chunk = |ranks: u64, of: u64| self.vocabulary.div_ceil(ranks).next_multiple_of(of);
        let numbers = [
            ("$LAYERS", self.layers),
            ("$HIDDEN", self.hidden),
            ("$GROUPS", self.groups),
            ("$TWO_HEADS", 2 * self.head),
            ("$QUERY", 2 * self.groups * self.head),
            ("$HEAD", self.head),
            ("$INTERMEDIATE", self.intermediate),
            ("$VOCABULARY", self.vocabulary),
            ("$CHUNK_OF_2", chunk(2, 128)),
            ("$CHUNK_OF_4", chunk(4, 16)),
        ];
        let (aliases, shape, entry) = match self.is_tied {
            true => (ALIASES, "", ""),
            false => ("{}", LM_HEAD_SHAPE, LM_HEAD),
        };
        let mut text = template
            .replace("$STAGES", &stages.join(", "))
            .replace("$ALIASES", aliases)
            .replace("$LM_HEAD_SHAPE", shape)
            .replace("$LM_HEAD", entry);
        for (name, number) in numbers {
            text = text.replace(name, &number.to_string());
        }
        text
    }
}

/// Runs `weightsync demo`.
pub fn run(args: &DemoArgs) -> Result<()> {
    let model = Model::of_bytes(args.megabytes * 1_000_000, !args.untied);
    let source = Layout::from_json(model.fill_in(TRAINER).as_bytes())?;
    let destination = Layout::from_json(model.fill_in(INFERENCE).as_bytes())?;
    let options = PlanOptions {
        staging_bytes_max: env::staging_bytes_max()?.unwrap_or(STAGING_BYTES_DEFAULT),
        direct_bytes_min: env::direct_bytes_min()?.unwrap_or(DIRECT_BYTES_MIN_DEFAULT),
        ..PlanOptions::default()
    };
    let plan = Plan::create(Arc::new(source), Arc::new(destination), &options)?;
    let summary = drive(&Delivery {
        plan: Arc::new(plan),
        origin: Origin::Generated,
        carrier: args.transport,
        versions: args.versions,
        save: None,
        deadline: Duration::from_secs(args.deadline),
    })?;
    if args.json {
        return print_json(&serde_json::json!({
            "model": model,
            "model_bytes": model.bytes(),
            "delivery": summary,
        }));
    }
    print(format_args!(
        "model        Qwen3-shaped, {} in bf16: {} layers, hidden {}, {} query and {} key heads of {}, vocabulary {}, {}\n\
         source       trainer, ranks 0-7: TP2 x PP2 x DP2, heads interleaved, gate and up fused\n\
         destination  inference, ranks 8-15: 2 replicas of TP4, heads packed, vocabulary padded\n\n\
         {}\n{}",
        bytes(model.bytes()),
        model.layers,
        model.hidden,
        2 * model.groups,
        model.groups,
        model.head,
        model.vocabulary,
        if model.is_tied { "tied" } else { "untied" },
        report_text(&summary.plan),
        summary.text()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_size_that_was_asked_for() {
        let sizes = [8, 63, 64, 79, 80, 100, 256, 1000];
        for (megabytes, is_tied) in sizes.iter().flat_map(|&m| [(m, true), (m, false)]) {
            let model = Model::of_bytes(megabytes * 1_000_000, is_tied);
            let off = model.bytes().abs_diff(megabytes * 1_000_000);
            assert!(
                off < megabytes * 20_000,
                "{megabytes}: {model:?} is {} bytes",
                model.bytes()
            );
            for template in [TRAINER, INFERENCE] {
                let layout = Layout::from_json(model.fill_in(template).as_bytes()).unwrap();
                let sum: u64 = layout.tensors().iter().map(|t| t.bytes()).sum();
                assert_eq!(sum, model.bytes());
            }
        }
    }
}

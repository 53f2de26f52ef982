//! Thirteen models at full size, trainer to engine: every byte of the engine
//! is covered, plans have been verified, and hazards are those that are known.

mod model_rows;

use model_rows::{ROWS, Row, Worked};
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::layout::models::Framework;
use weightsync::plan::decision::PlanOptions;

/// Rows of which verifying all ranks takes too long here.
const LARGE: &[&str] = &["llama-3.1-405b", "deepseek-v3", "kimi-k2"];

fn is_large(row: &Row) -> bool {
    LARGE.contains(&row.0)
}

fn assert_covered(name: &str, worked: &Worked) {
    let findings = worked.pair.findings.iter();
    let errors: Vec<_> = findings.filter(|f| f.kind.is_error()).collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}");
    assert_eq!(worked.coverage(), 100.0, "{name}");
    let source = &worked.pair.source;
    assert_eq!(source.bytes, source.matched_bytes, "{name}");
}

fn docs() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/models.md");
    std::fs::read_to_string(path).unwrap()
}

fn assert_in_docs(docs: &str, line: &str, is_it: impl Fn(&str) -> bool) {
    assert!(
        docs.lines().any(is_it),
        "docs/models.md has no row \"{line}\"; write the table again with \
         `cargo run --release --example model_table`"
    );
}

#[test]
fn every_model_is_covered_verified_and_in_the_docs() {
    let docs = docs();
    for row in ROWS.iter().filter(|r| !is_large(r)) {
        let name = row.0;
        let worked = Worked::of(row).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_covered(name, &worked);
        let plan = worked.plan(&PlanOptions::default());
        let plan = plan.unwrap_or_else(|e| panic!("{name}: {e}"));
        plan.verify().unwrap_or_else(|e| panic!("{name}: {e}"));
        let line = worked.line(row, &plan).unwrap();
        assert_in_docs(&docs, &line, |l| l == line);
    }
}

/// With a decision made for a small model, and three engine ranks.
#[test]
fn the_largest_models_are_covered_and_verified_by_sample() {
    let docs = docs();
    let small = Worked::of(&ROWS[0]).unwrap().plan(&PlanOptions::default());
    let mut decision = small.unwrap().decision().clone();
    decision.bucket_count = 64;
    decision.staging_bytes_max = 16 << 30;
    for row in ROWS.iter().filter(|r| is_large(r)) {
        let name = row.0;
        let worked = Worked::of(row).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_covered(name, &worked);
        let plan = worked.plan_with(&decision);
        let plan = plan.unwrap_or_else(|e| panic!("{name}: {e}"));
        let (first, last) = (worked.source.rank_count(), plan.ranks().last().unwrap().0);
        for rank in [first, (first + last) / 2, last] {
            plan.verify_rank(Rank(rank))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let start = worked.line_start(row);
        let is_it = |l: &str| l.starts_with(&start) && l.ends_with(" | 100 % |");
        assert_in_docs(&docs, &start, is_it);
    }
}

/// Of these rows only DeepSeek-V3 has any: over 32 ranks, the engine's shards
/// of the dense and the shared feed-forward are no whole blocks of 128.
fn known_hazards(model: &str) -> Vec<String> {
    let cut = |module: &str, what: &str, at: u32| {
        ["gate_proj", "up_proj", "down_proj"].map(|projection| {
            format!(
                "model.layers.{{layer}}.mlp.{module}{projection}.weight: {what} are cut at {at}, inside \
                 a block of 128 that shares a scale; take a size of which the parts are multiples of \
                 128 if ranks quantise"
            )
        })
    };
    match model {
        "deepseek-v3" => [
            cut("", "18432 ffn_rows", 576),
            cut("shared_experts.", "2048 shared_rows", 64),
        ]
        .concat(),
        _ => Vec::new(),
    }
}

#[test]
fn every_row_has_the_hazards_that_are_known() {
    for row in &ROWS {
        let worked = Worked::of(row).unwrap();
        assert_eq!(worked.hazards, known_hazards(row.0), "{}", row.0);
    }
}

/// What was assumed: the size of `etp`, and stages that are uneven.
#[test]
fn every_row_says_what_was_assumed() {
    let remarks = |name: &str| {
        let row = ROWS.iter().find(|r| r.0 == name).unwrap();
        Worked::of(row).unwrap().remarks
    };
    assert!(remarks("llama-3.1-70b").is_empty());
    let deepseek = remarks("deepseek-v3");
    let stages = "61 layers do not divide over 16 stages: stage = floor(l * 16 / 61), which is \
                  pp_layers=4:4:4:4:4:3:4:4:4:4:3:4:4:4:4:3";
    assert_eq!(deepseek, [stages]);
    let etp = "etp is 1; Megatron's own default is etp = tp, which is 4";
    assert_eq!(remarks("glm-4.5")[0], etp);
    assert_eq!(remarks("qwen3-235b-a22b")[0], etp);
}

#[test]
fn cuts_inside_heads_and_blocks_are_those_of_the_layout() {
    let config = model_rows::config("qwen3-30b-a3b");
    let mut quantised: serde_json::Value = serde_json::from_slice(&config).unwrap();
    quantised["quantization_config"] =
        serde_json::json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let hazards = |config: &[u8], sizes: &str| -> Vec<String> {
        let made = Layout::from_model(config, Framework::Megatron, sizes, 0).unwrap();
        made.hazards.iter().map(|h| h.to_string()).collect()
    };
    // 4 KV heads of 1280 rows: over 8 ranks a rank has 640 of them, which are
    // whole heads; over 16 it has 320, which are not.
    let shared = |tp: u64, ranks: u64, rows: u64| {
        format!(
            "model.layers.{{layer}}.self_attn.k_proj.weight: 4 KV heads are fewer than tp {tp}: \
             each {ranks} ranks share the 1280 rows (1024 query, 128 key, 128 value) of one, {rows} \
             each; whoever needs whole heads takes a tp that divides 4"
        )
    };
    let quantised = quantised.to_string();
    for config in [&config, quantised.as_bytes()] {
        assert!(hazards(config, "tp=4").is_empty());
        assert_eq!(hazards(config, "tp=8,etp=1"), [shared(8, 2, 640)]);
    }
    let q = "model.layers.{layer}.self_attn.q_proj.weight: 4096 q_rows are cut at 320, inside a";
    let found = hazards(&config, "tp=16");
    assert_eq!(found[0], shared(16, 4, 320));
    assert!(
        found[1].starts_with(&format!("{q} head of 128")),
        "{found:#?}"
    );
    let found = hazards(quantised.as_bytes(), "tp=16").join("\n");
    assert!(found.contains(&format!("{q} head of 128")), "{found}");
    assert!(found.contains(&format!("{q} block of 128")), "{found}");

    let deepseek = model_rows::config("deepseek-v3");
    let found = hazards(&deepseek, "tp=4,dp=4,ep=8,etp=2,pp=1");
    assert!(found.is_empty(), "{found:#?}");
    let found = hazards(&deepseek, "tp=32,ep=1,etp=32");
    let gate = "model.layers.{layer}.mlp.experts.gate_proj.weight: 2048 expert_rows are cut at 64, \
                inside a block of 128";
    let of_gate = found.iter().filter(|h| h.starts_with(gate)).count();
    assert_eq!(
        of_gate, 1,
        "once, with its layers of multi-token prediction: {found:#?}"
    );
    let cut = hazards(&deepseek, "tp=2,mla_down=cut").join("\n");
    assert!(
        cut.contains(
            "kv_a_proj_with_mqa.weight: 576 kv_a_rows are cut at 288, inside a block of 128"
        ),
        "{cut}"
    );
}

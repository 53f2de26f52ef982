//! Thirteen models at full size, trainer to engine: every byte of the engine
//! is covered, and what sampled ranks do has been verified.

mod model_rows;

use model_rows::{ROWS, Worked};
use weightsync::Rank;
use weightsync::plan::decision::PlanOptions;

#[test]
fn every_model_is_covered_and_planned() {
    let small = Worked::of(&ROWS[0]).unwrap().plan(&PlanOptions::default());
    let mut decision = small.unwrap().decision().clone();
    decision.bucket_count = 64;
    decision.staging_bytes_max = 16 << 30;
    for row in &ROWS {
        let name = row.0;
        let worked = Worked::of(row).unwrap_or_else(|e| panic!("{name}: {e}"));
        let errors: Vec<_> = worked
            .pair
            .findings
            .iter()
            .filter(|f| f.kind.is_error())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
        assert_eq!(worked.coverage(), 100.0, "{name}");
        assert_eq!(
            worked.pair.source.bytes, worked.pair.source.matched_bytes,
            "{name}"
        );
        let plan = worked
            .plan_with(&decision)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let (first, last) = (worked.source.rank_count(), plan.ranks().last().unwrap().0);
        for rank in [first, (first + last) / 2, last] {
            plan.verify_rank(Rank(rank))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn hazards_of_real_models_are_named() {
    // What quantised checkpoints cannot be cut into.
    let sizes = "tp=4,dp=4,ep=8,etp=32,pp=1";
    let config = model_rows::config("deepseek-v3");
    let hazards = |sizes: &str| -> Vec<String> {
        let sizes: weightsync::layout::models::MegatronSizes = sizes.parse().unwrap();
        let model = weightsync::layout::models::Inventory::from_config(&config).unwrap();
        sizes
            .hazards(&model)
            .iter()
            .map(|h| h.to_string())
            .collect()
    };
    let found = hazards(sizes);
    let text = found.join("\n");
    assert!(
        text.contains("mlp.experts.gate_proj.weight: 2048 expert_rows over etp 32 are 64 each, which cuts blocks of 128"),
        "{text}"
    );
    let cut = hazards("tp=2,mla_down=cut").join("\n");
    assert!(
        cut.contains("kv_a_proj_with_mqa.weight: 576 kv_a_rows over tp 2 are 288 each"),
        "{cut}"
    );
    assert!(hazards("tp=2,ep=2").is_empty());
}

#[test]
fn the_table_in_the_docs_has_these_rows() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/models.md");
    let text = std::fs::read_to_string(path).unwrap();
    for row in &ROWS {
        let (name, from, from_sizes, to, to_sizes) = *row;
        let worked = Worked::of(row).unwrap();
        let start = format!(
            "| {name} | {from} {from_sizes} | {to} {to_sizes} | {} |",
            worked.pair.destination.tensors
        );
        assert!(
            text.lines().any(|l| l.starts_with(&start)),
            "docs/models.md has no row \"{start}\"; write the table again with \
             `cargo run --release --example model_table`"
        );
    }
}

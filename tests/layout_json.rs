//! The layout file: examples, round trips, and what bad files are told.

use weightsync::Rank;
use weightsync::layout::Layout;

fn example(name: &str) -> Layout {
    let path = format!("{}/tests/layouts/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(path).unwrap();
    Layout::from_json(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn examples_are_read_and_written_back_unchanged() {
    for name in [
        "trainer_tp2_pp2_dp2",
        "inference_2x_tp4",
        "explicit_two_ranks",
    ] {
        let layout = example(name);
        let text = layout.to_json();
        let again = Layout::from_json(text.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(layout.spec(), again.spec(), "{name}");
    }
}

#[test]
fn a_megatron_like_trainer_interleaves_and_counts_layers_by_stage() {
    let layout = example("trainer_tp2_pp2_dp2");
    assert_eq!(layout.rank_count(), 8);
    assert_eq!(layout.copy_count(), 2);
    assert_eq!(layout.copy_of(Rank(3)), Some(1));
    let names = |rank| -> Vec<String> {
        layout
            .buffers(Rank(rank))
            .into_iter()
            .map(|b| b.name)
            .collect()
    };
    assert!(names(0).contains(&"embedding.word_embeddings.weight".to_string()));
    assert!(names(7).contains(&"output_layer.weight".to_string()));
    assert!(names(7).contains(&"decoder.layers.1.mlp.linear_fc1.weight".to_string()));
    let qkv = layout
        .buffers(Rank(1))
        .into_iter()
        .find(|b| b.name == "decoder.layers.0.self_attention.linear_qkv.weight")
        .unwrap();
    assert_eq!(qkv.bytes, 2 * (128 + 64 + 64) * 256 * 2);
    let k = layout
        .find_tensor("model.layers.0.self_attn.k_proj.weight")
        .unwrap();
    let v = layout
        .views(Rank(1))
        .into_iter()
        .find(|v| v.tensor == k)
        .unwrap();
    assert_eq!(v.offset, 128 * 256 * 2);
    assert_eq!(v.strides.as_slice(), [256 * 256 * 2, 512, 2]);
}

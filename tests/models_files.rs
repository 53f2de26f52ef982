//! Layout files of real models: short, whatever the number of ranks, and read
//! back as they were.

mod model_rows;

use model_rows::fsdp2;
use weightsync::layout::Layout;
use weightsync::layout::models::{
    Framework, HuggingFaceSizes, Inventory, MegatronSizes, VllmSizes,
};

fn model(name: &str) -> Inventory {
    let path = format!("{}/tests/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
    Inventory::from_config(&std::fs::read(path).unwrap()).unwrap()
}

fn megatron(name: &str, sizes: &str) -> Layout {
    let sizes: MegatronSizes = sizes.parse().unwrap();
    Layout::megatron(&model(name), &sizes, 0).unwrap()
}

fn file(layout: &Layout) -> String {
    let text = layout.to_json();
    let read = Layout::from_json(text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert!(read.spec() == layout.spec(), "not the same layout\n{text}");
    text
}

#[test]
fn files_do_not_grow_with_the_number_of_ranks() {
    let of = |sizes: &str| file(&megatron("deepseek-v3", sizes));
    let small = of("pp=16,ep=16,dp=64");
    let large = of("pp=16,ep=16,dp=6256");
    assert!(small.len() < 40_000, "{} bytes", small.len());
    // Only the numbers have more digits.
    assert!(
        large.len().abs_diff(small.len()) < 32,
        "{} and {}",
        small.len(),
        large.len()
    );
    assert!(
        small.contains("decoder.layers.{local_layer}.mlp.router.weight"),
        "{small}"
    );
    let engine = |replicas: u32| {
        let sizes: VllmSizes = format!("tp=32,ep=on,replicas={replicas}").parse().unwrap();
        file(&Layout::vllm(&model("deepseek-v3"), &[sizes], 256).unwrap())
    };
    let (small, large) = (engine(32), engine(3125));
    assert!(small.len() < 40_000, "{} bytes", small.len());
    assert!(large.len().abs_diff(small.len()) < 32);
}

/// Also where PyTorch tells of every expert by itself, or of fused ones.
#[test]
fn files_of_sharded_tensors_do_not_grow_with_the_number_of_ranks() {
    let of = |name: &str, ranks: u32| {
        let config = model_rows::config(name);
        let sharded = fsdp2(&model(name), ranks);
        let made = Layout::from_model(&config, Framework::Dtensor, &sharded, 0).unwrap();
        assert_eq!(made.layout.rank_count(), ranks);
        file(&made.layout)
    };
    for name in ["mixtral-8x7b", "gpt-oss-120b"] {
        let files = [8, 1024, 100_000].map(|ranks| of(name, ranks));
        assert!(files[0].len() < 8_000, "{name}: {}", files[0].len());
        for other in &files[1..] {
            let more = other.len().abs_diff(files[0].len());
            assert!(more < 32, "{name}: {more} bytes more");
        }
    }
    let text = of("qwen3-30b-a3b", 64);
    assert!(text.len() < 8_000, "{} bytes", text.len());
    assert!(text.contains("experts.{global}.up_proj.weight"), "{text}");
}

#[test]
fn every_sort_of_layout_is_read_back() {
    for (name, sizes) in [
        ("qwen2.5-72b", "tp=8,pp=2,vpp=2,dp=2"),
        ("llama-3.1-405b", "tp=16,pp=16"),
        ("glm-4.5", "tp=4,pp=4,vpp=2,ep=16,dp=4"),
        ("kimi-k2", "pp=16,vpp=3,ep=8,dp=8,experts=sequential"),
        ("qwen3-30b-a3b", "pp=2,ep=8,dp=8,experts=grouped"),
    ] {
        let text = file(&megatron(name, sizes));
        assert!(text.len() < 200_000, "{name}: {} bytes", text.len());
    }
    for name in ["gpt-oss-120b", "mixtral-8x7b", "deepseek-v3"] {
        let sizes: HuggingFaceSizes = "replicas=2".parse().unwrap();
        let text = file(&Layout::hugging_face(&model(name), &sizes, 5).unwrap());
        assert!(text.len() < 40_000, "{name}: {} bytes", text.len());
    }
}

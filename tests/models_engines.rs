//! Layouts of vLLM and SGLang: names and shapes of every model, who has which
//! expert and which head, and what is refused.
//!
//! `tests/models/vllm_local.json` holds the parameters of one rank of vLLM,
//! written down independently of our tables.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::layout::check::{Finding, FindingKind, check_pair};
use weightsync::layout::models::{
    Framework, Hazard, HazardKind, Inventory, MegatronSizes, SglangSizes, VllmSizes,
};
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::{Plan, Selector};

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn model(name: &str) -> Inventory {
    Inventory::from_config(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A configuration with some fields changed.
fn tiny(name: &str, fields: &[(&str, u64)]) -> Inventory {
    let mut config: Map<String, Value> = serde_json::from_slice(&read(name)).unwrap();
    for (field, value) in fields {
        config.insert(field.to_string(), Value::from(*value));
    }
    Inventory::from_config(Value::Object(config).to_string().as_bytes()).unwrap()
}

fn buffers(layout: &Layout, rank: u32) -> BTreeMap<String, u64> {
    let all = layout.buffers(Rank(rank));
    all.into_iter().map(|b| (b.name, b.bytes)).collect()
}

/// Boxes of a tensor on a rank, as `[lo, hi)` per axis.
fn boxes(layout: &Layout, rank: u32, name: &str) -> Vec<Vec<(u64, u64)>> {
    let tensor = layout.find_tensor(name).unwrap();
    let views = layout.views(Rank(rank)).into_iter();
    views
        .filter(|v| v.tensor == tensor)
        .map(|v| v.bounds.spans().iter().map(|s| (s.lo, s.hi)).collect())
        .collect()
}

#[test]
fn every_parameter_of_a_vllm_rank_has_its_name_and_size() {
    let facts: Map<String, Value> = serde_json::from_slice(&read("vllm_local")).unwrap();
    assert_eq!(facts.len(), 13);
    for (name, fact) in facts {
        let model = model(&name);
        let sizes = VllmSizes {
            tp: fact["tp"].as_u64().unwrap() as u32,
            ep: fact["ep"].as_bool().unwrap(),
            mtp: false,
            ..VllmSizes::default()
        };
        let layout = Layout::vllm(&model, std::slice::from_ref(&sizes), 0).unwrap();
        for rank in [0, sizes.tp - 1] {
            let mut got = buffers(&layout, rank);
            if model.family == "gpt_oss" {
                // Not in the facts: biases of experts and of the router.
                got.retain(|n, _| {
                    !n.ends_with("w13_bias")
                        && !n.ends_with("w2_bias")
                        && !n.ends_with("router.bias")
                });
            }
            for row in fact["tensors"].as_array().unwrap() {
                let template = row[0].as_str().unwrap();
                let shape = row[1].as_array().unwrap().iter();
                let element = if row[3] == "f32" { 4 } else { 2 };
                let bytes = shape.map(|n| n.as_u64().unwrap()).product::<u64>() * element;
                let (head, tail) = template.split_once("{l}").unwrap_or((template, ""));
                let layers = if tail.is_empty() { 1 } else { model.layers };
                let found = (0..layers).filter_map(|l| match tail {
                    "" => got.remove(template),
                    _ => got.remove(&format!("{head}{l}{tail}")),
                });
                let sizes: Vec<u64> = found.collect();
                assert_eq!(
                    sizes.len() as u64,
                    row[2].as_u64().unwrap(),
                    "{name} {template}"
                );
                assert!(
                    sizes.iter().all(|&b| b == bytes),
                    "{name} {template} {sizes:?} {bytes}"
                );
            }
            assert!(got.is_empty(), "{name}: {got:?}");
        }
    }
}

#[test]
fn kv_heads_repeat_on_neighbours_where_ranks_exceed_them() {
    let model = tiny(
        "qwen3-8b",
        &[("num_hidden_layers", 2), ("num_key_value_heads", 4)],
    );
    let sizes = VllmSizes {
        tp: 8,
        ..VllmSizes::default()
    };
    let layout = Layout::vllm(&model, &[sizes], 0).unwrap();
    for rank in 0..8u32 {
        let head = u64::from(rank / 2) * 128;
        let k = boxes(&layout, rank, "model.layers.1.self_attn.k_proj.weight");
        assert_eq!(k, [[(head, head + 128), (0, 4096)]]);
        let q = boxes(&layout, rank, "model.layers.1.self_attn.q_proj.weight");
        let rows = u64::from(rank) * 512;
        assert_eq!(q, [[(rows, rows + 512), (0, 4096)]]);
    }
}

#[test]
fn experts_are_cut_over_tp_and_dp() {
    let model = tiny(
        "qwen3-30b-a3b",
        &[("num_hidden_layers", 2), ("num_experts", 10)],
    );
    let name = "model.layers.0.mlp.experts.gate_proj.weight";
    let on = VllmSizes {
        tp: 2,
        dp: 2,
        ep: true,
        ..VllmSizes::default()
    };
    let layout = Layout::vllm(&model, std::slice::from_ref(&on), 0).unwrap();
    // Ten experts over four ranks: the first two have one more.
    for (rank, (lo, hi)) in [(0, 3), (3, 6), (6, 8), (8, 10)].into_iter().enumerate() {
        assert_eq!(
            boxes(&layout, rank as u32, name),
            [[(lo, hi), (0, 768), (0, 2048)]]
        );
    }
    let off = VllmSizes { ep: false, ..on };
    let layout = Layout::vllm(&model, &[off], 0).unwrap();
    for rank in 0..4u32 {
        let lo = u64::from(rank) * 192;
        assert_eq!(
            boxes(&layout, rank, name),
            [[(0, 10), (lo, lo + 192), (0, 2048)]]
        );
        let down = boxes(&layout, rank, "model.layers.0.mlp.experts.down_proj.weight");
        assert_eq!(down, [[(0, 10), (0, 2048), (lo, lo + 192)]]);
    }
}

#[test]
fn shared_experts_are_whole_where_tokens_are_spread() {
    let model = tiny(
        "deepseek-v3",
        &[("num_hidden_layers", 4), ("num_nextn_predict_layers", 0)],
    );
    let rows = |sizes: &VllmSizes| {
        let layout = Layout::vllm(&model, std::slice::from_ref(sizes), 0).unwrap();
        let held = boxes(
            &layout,
            1,
            "model.layers.3.mlp.shared_experts.gate_proj.weight",
        );
        held[0][0].1 - held[0][0].0
    };
    let mut sizes = VllmSizes {
        tp: 2,
        dp: 2,
        ep: true,
        ..VllmSizes::default()
    };
    assert_eq!(rows(&sizes), 2048);
    sizes.shared_cut = Some(true);
    assert_eq!(rows(&sizes), 1024);
    sizes = VllmSizes {
        tp: 2,
        ep: true,
        ..VllmSizes::default()
    };
    assert_eq!(rows(&sizes), 1024);
}

/// Layers on each pipeline stage.
fn stage_layers(layout: &Layout, ranks: &[u32]) -> Vec<Vec<u32>> {
    let norm = |l: u32| format!("model.layers.{l}.input_layernorm.weight");
    let of = |&rank: &u32| {
        let all = buffers(layout, rank);
        (0..99).filter(|&l| all.contains_key(&norm(l))).collect()
    };
    ranks.iter().map(of).collect()
}

#[test]
fn stages_are_those_of_each_engine() {
    let model = tiny("qwen3-8b", &[("num_hidden_layers", 10)]);
    let sizes = VllmSizes {
        pp: 4,
        ..VllmSizes::default()
    };
    let layout = Layout::vllm(&model, &[sizes], 0).unwrap();
    let counts = |layout: &Layout| -> Vec<usize> {
        stage_layers(layout, &[0, 1, 2, 3])
            .iter()
            .map(Vec::len)
            .collect()
    };
    assert_eq!(counts(&layout), [2, 3, 3, 2]);
    assert!(buffers(&layout, 0).contains_key("model.embed_tokens.weight"));
    assert!(buffers(&layout, 3).contains_key("lm_head.weight"));
    assert!(!buffers(&layout, 3).contains_key("model.embed_tokens.weight"));
    let sizes = SglangSizes {
        pp: 4,
        ..SglangSizes::default()
    };
    let layout = Layout::sglang(&model, &[sizes], 0).unwrap();
    assert_eq!(counts(&layout), [2, 2, 3, 3]);
    let given = VllmSizes {
        pp: 4,
        pp_layers: vec![1, 2, 3, 4],
        ..VllmSizes::default()
    };
    let layout = Layout::vllm(&model, &[given], 0).unwrap();
    assert_eq!(stage_layers(&layout, &[0, 2]), [vec![0], vec![3, 4, 5]]);
}

#[test]
fn sglang_differs_from_vllm_in_these_ways() {
    let model = tiny(
        "deepseek-v3",
        &[("num_hidden_layers", 4), ("num_nextn_predict_layers", 0)],
    );
    // Eight ranks: two attention groups of four, four groups of experts.
    let sizes = SglangSizes {
        tp: 8,
        dp: 2,
        ep: 4,
        ..SglangSizes::default()
    };
    assert_eq!(sizes.world(), 8);
    let sglang = Layout::sglang(&model, &[sizes], 0).unwrap();
    let sizes = VllmSizes {
        tp: 4,
        dp: 2,
        ep: true,
        ..VllmSizes::default()
    };
    assert_eq!(sizes.world(), 8);
    let vllm = Layout::vllm(&model, &[sizes], 0).unwrap();
    let q = "model.layers.3.self_attn.q_b_proj.weight";
    let gate = "model.layers.3.mlp.experts.gate_proj.weight";
    let dense = "model.layers.0.mlp.gate_proj.weight";
    let shared = "model.layers.3.mlp.shared_experts.gate_proj.weight";
    for rank in 0..8u32 {
        let r = u64::from(rank);
        // Attention: a quarter of the heads, the same in each group, on both.
        assert_eq!(boxes(&sglang, rank, q), boxes(&vllm, rank, q));
        assert_eq!(
            boxes(&sglang, rank, q)[0][0],
            (r % 4 * 6144, (r % 4 + 1) * 6144)
        );
        // Experts: whole ones over all eight on vLLM; over four on SGLang,
        // and half of each expert's rows.
        assert_eq!(
            boxes(&vllm, rank, gate)[0][..2],
            [(r * 32, (r + 1) * 32), (0, 2048)]
        );
        let half = r % 2 * 1024;
        assert_eq!(
            boxes(&sglang, rank, gate)[0][..2],
            [(r / 2 * 64, (r / 2 + 1) * 64), (half, half + 1024)]
        );
        // Dense layers and shared experts: over all of tp.
        assert_eq!(
            boxes(&vllm, rank, dense)[0][0],
            (r % 4 * 4608, (r % 4 + 1) * 4608)
        );
        assert_eq!(
            boxes(&sglang, rank, dense)[0][0],
            (r * 2304, (r + 1) * 2304)
        );
        assert_eq!(boxes(&vllm, rank, shared)[0][0], (0, 2048));
        assert_eq!(boxes(&sglang, rank, shared)[0][0], (r * 256, (r + 1) * 256));
        // The embedding goes with attention, the head with all of tp.
        let rows = |layout: &Layout, name: &str| boxes(layout, rank, name)[0][0];
        assert_eq!(
            rows(&sglang, "model.embed_tokens.weight"),
            (r % 4 * 32320, (r % 4 + 1) * 32320)
        );
        assert_eq!(
            rows(&sglang, "lm_head.weight"),
            (r * 16160, (r + 1) * 16160)
        );
        assert_eq!(
            rows(&vllm, "lm_head.weight"),
            (r % 4 * 32320, (r % 4 + 1) * 32320)
        );
    }
    let a = |layout: &Layout, name: &str| {
        buffers(layout, 0).contains_key(&format!("model.layers.0.self_attn.{name}.weight"))
    };
    assert!(a(&vllm, "fused_qkv_a_proj") && a(&sglang, "fused_qkv_a_proj_with_mqa"));
}

#[test]
fn a_bias_that_is_added_once_is_on_the_first_rank_of_those_that_share_an_expert() {
    let model = tiny("gpt-oss-120b", &[("num_hidden_layers", 2)]);
    let name = "model.layers.1.mlp.experts.down_proj_bias";
    let sizes = VllmSizes {
        tp: 4,
        pp: 2,
        ..VllmSizes::default()
    };
    let layout = Layout::vllm(&model, &[sizes], 0).unwrap();
    let held = |layout: &Layout, ranks: u32| -> Vec<u32> {
        (0..ranks)
            .filter(|&r| !boxes(layout, r, name).is_empty())
            .collect()
    };
    assert_eq!(held(&layout, 8), [4]);
    let sizes = SglangSizes {
        tp: 4,
        ep: 2,
        ..SglangSizes::default()
    };
    let layout = Layout::sglang(&model, &[sizes], 0).unwrap();
    assert_eq!(held(&layout, 4), [0, 2]);
    assert!(buffers(&layout, 0).contains_key("model.layers.1.mlp.experts.w2_weight_bias"));
    // Rows of gate and up alternate, as the checkpoint has them.
    let view = |name: &str| {
        let tensor = layout.find_tensor(name).unwrap();
        let all = layout.views(Rank(0));
        let v = all.into_iter().find(|v| v.tensor == tensor).unwrap();
        (v.offset, v.strides.to_vec())
    };
    let row = 2 * 2880;
    assert_eq!(
        view("model.layers.0.mlp.experts.gate_proj"),
        (0, vec![2880 * row, 2 * row, 2])
    );
    assert_eq!(
        view("model.layers.0.mlp.experts.up_proj"),
        (2880 * 2, vec![2880 * row, 2 * row, 2])
    );
}

#[test]
fn replicas_may_be_cut_differently() {
    let model = tiny("qwen3-8b", &[("num_hidden_layers", 2)]);
    let groups = [
        VllmSizes {
            tp: 4,
            replicas: 2,
            ..VllmSizes::default()
        },
        VllmSizes {
            tp: 2,
            pp: 2,
            replicas: 3,
            ..VllmSizes::default()
        },
    ];
    let layout = Layout::vllm(&model, &groups, 100).unwrap();
    assert_eq!(layout.rank_count(), 20);
    assert_eq!(layout.copy_count(), 5);
    assert_eq!(layout.ranks()[0], Rank(100));
    assert_eq!(layout.copy_of(Rank(107)), Some(1));
    assert_eq!(layout.copy_of(Rank(108)), Some(2));
    let q = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(boxes(&layout, 101, q)[0][0], (1024, 2048));
    assert_eq!(boxes(&layout, 109, q)[0][0], (2048, 4096));
}

#[test]
fn a_draft_model_is_a_target_of_its_own() {
    let model = tiny("deepseek-v3", &[("num_hidden_layers", 4)]);
    let plain = VllmSizes {
        tp: 2,
        pp: 2,
        ep: true,
        mtp: false,
        ..VllmSizes::default()
    };
    let layout = Layout::vllm(&model, std::slice::from_ref(&plain), 0).unwrap();
    assert!(
        layout
            .tensors()
            .iter()
            .all(|t| !t.name.contains("layers.4"))
    );
    let layout = Layout::vllm(&model, &[VllmSizes { mtp: true, ..plain }], 0).unwrap();
    let draft = |rank| -> Vec<String> {
        let all = buffers(&layout, rank).into_keys();
        all.filter(|n| n.starts_with("draft.")).collect()
    };
    assert!(draft(0).is_empty());
    let names = draft(3);
    for name in [
        "draft.model.layers.4.enorm.weight",
        "draft.model.layers.4.eh_proj.weight",
        "draft.model.layers.4.shared_head.norm.weight",
        "draft.model.layers.4.mtp_block.mlp.experts.w13_weight",
        "draft.model.layers.4.mtp_block.self_attn.fused_qkv_a_proj.weight",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} {names:?}");
    }
    assert_eq!(
        layout.resolve_alias("model.layers.4.shared_head.head.weight"),
        "lm_head.weight"
    );
}

#[test]
fn the_vocabulary_is_padded_and_the_padding_belongs_to_nobody() {
    let model = tiny(
        "qwen3-8b",
        &[("num_hidden_layers", 1), ("vocab_size", 1000)],
    );
    for (tp, rows) in [(1, 1024), (2, 512), (4, 256)] {
        let sizes = VllmSizes {
            tp,
            ..VllmSizes::default()
        };
        let layout = Layout::vllm(&model, &[sizes], 0).unwrap();
        let last = tp - 1;
        assert_eq!(buffers(&layout, last)["lm_head.weight"], rows * 4096 * 2);
        let lo = rows * u64::from(last);
        assert_eq!(
            boxes(&layout, last, "lm_head.weight"),
            [[(lo, 1000), (0, 4096)]]
        );
    }
}

#[test]
fn sizes_that_the_model_does_not_allow_are_named() {
    let vllm =
        |name: &str, sizes: VllmSizes| Layout::vllm(&model(name), &[sizes], 0).unwrap_err().message;
    let sglang = |name: &str, sizes: SglangSizes| {
        Layout::sglang(&model(name), &[sizes], 0)
            .unwrap_err()
            .message
    };
    let v = VllmSizes::default;
    let s = SglangSizes::default;
    let cases = [
        (
            vllm("qwen2.5-7b", VllmSizes { tp: 8, ..v() }),
            "self_attn.q_proj.weight: 28 attention heads are not divisible by tp 8; take a size that divides 28",
        ),
        (
            vllm("qwen3-8b", VllmSizes { tp: 3, ..v() }),
            "not divisible by tp 3",
        ),
        (
            vllm(
                "mixtral-8x7b",
                VllmSizes {
                    tp: 8,
                    dp: 2,
                    ep: true,
                    ..v()
                },
            ),
            "8 experts are fewer than the 16 ranks that share them (dp 2 x tp 8)",
        ),
        (
            vllm("qwen3-8b", VllmSizes { pp: 37, ..v() }),
            "pp 37 stages cannot share 36 layers",
        ),
        (
            vllm(
                "qwen3-8b",
                VllmSizes {
                    pp: 2,
                    pp_layers: vec![1, 2],
                    ..v()
                },
            ),
            "does not add up to the 36",
        ),
        (
            vllm(
                "qwen3-8b",
                VllmSizes {
                    pp: 3,
                    pp_layers: vec![18, 18],
                    ..v()
                },
            ),
            "has 2 stages and pp is 3",
        ),
        (
            vllm("qwen3-8b", VllmSizes { tp: 0, ..v() }),
            "axis \"tp\" has size 0",
        ),
        (
            sglang(
                "qwen3-8b",
                SglangSizes {
                    tp: 4,
                    dp: 3,
                    ..s()
                },
            ),
            "dp 3 does not divide tp 4",
        ),
        (
            sglang(
                "glm-4.5",
                SglangSizes {
                    tp: 8,
                    ep: 16,
                    ..s()
                },
            ),
            "ep 16 does not divide tp 8",
        ),
        (
            sglang(
                "mixtral-8x7b",
                SglangSizes {
                    tp: 16,
                    ep: 16,
                    ..s()
                },
            ),
            "8 experts are not divisible by ep 16",
        ),
        (
            vllm("qwen3-8b", VllmSizes { ep: true, ..v() }),
            "vllm: ep is on, but Qwen3ForCausalLM has no experts",
        ),
        (
            sglang(
                "qwen3-8b",
                SglangSizes {
                    tp: 2,
                    ep: 2,
                    ..s()
                },
            ),
            "sglang: ep is 2, but Qwen3ForCausalLM has no experts",
        ),
        (
            vllm(
                "gpt-oss-120b",
                VllmSizes {
                    tp: 16,
                    dp: 8,
                    ..v()
                },
            ),
            "expert_rows",
        ),
    ];
    for (got, want) in cases {
        assert!(got.contains(want), "{want}: {got}");
    }
}

#[test]
fn sizes_are_read_as_they_are_written() {
    let sizes: VllmSizes = "tp=8, dp=2,ep=on,replicas=4,pp=2,pp_layers=5:3,shared=cut,mtp=on,\
         frozen=lm_head.*:*.norm.weight"
        .parse()
        .unwrap();
    assert_eq!(
        sizes,
        VllmSizes {
            tp: 8,
            pp: 2,
            dp: 2,
            ep: true,
            replicas: 4,
            pp_layers: vec![5, 3],
            shared_cut: Some(true),
            mtp: true,
            frozen: vec!["lm_head.*".into(), "*.norm.weight".into()],
        }
    );
    assert_eq!("".parse(), Ok(VllmSizes::default()));
    let sizes: SglangSizes = "tp=8,dp=2,ep=4,pp=2,replicas=3".parse().unwrap();
    assert_eq!((sizes.world(), sizes.dp, sizes.ep), (48, 2, 4));
    let refused = |text: &str| text.parse::<VllmSizes>().unwrap_err().message;
    for (text, want) in [
        ("tp", "\"tp\" has no \"=\"; accepted are \"tp\", \"pp\""),
        ("etp=2", "\"etp=2\" is unknown; accepted"),
        ("tp=0", "tp is \"0\"; accepted are 1 to"),
        ("tp=2,tp=4", "tp is given twice"),
        ("ep=2", "ep is \"2\"; accepted are \"on\" and \"off\""),
        ("pp_layers=1:x", "counts such as 24:24:23:23"),
        ("shared=maybe", "\"auto\", \"cut\", \"whole\""),
    ] {
        assert!(refused(text).contains(want), "{}", refused(text));
    }
}

#[test]
fn cuts_inside_heads_and_blocks_are_worth_knowing() {
    let hazards = |name: &str, framework: Framework, sizes: &str| -> Vec<String> {
        let made = Layout::from_model(&read(name), framework, sizes, 0).unwrap();
        made.hazards.iter().map(|h| h.to_string()).collect()
    };
    // Kimi-K2 is released in blocks of 128: over 32 ranks, 64 rows are left.
    let found = hazards("kimi-k2", Framework::Vllm, "tp=32,ep=on");
    let shared = "model.layers.{layer}.mlp.shared_experts.gate_proj.weight: 2048 shared_rows are cut \
                  at 64, inside a block of 128 that shares a scale";
    assert!(found.iter().any(|h| h.starts_with(shared)), "{found:?}");
    assert!(
        found.iter().all(|h| !h.contains(".experts.gate_proj")),
        "{found:?}"
    );
    let found = hazards("kimi-k2", Framework::Sglang, "tp=32,ep=1");
    assert!(
        found
            .iter()
            .any(|h| h.contains("mlp.experts.up_proj.weight: 2048 expert_rows"))
    );
    assert!(hazards("kimi-k2", Framework::Vllm, "tp=16,ep=on").is_empty());
    // FSDP2 over 64 ranks cuts KV heads of 128 rows; nobody minds but who reads them.
    let dtensors = r#"{"weightsync_dtensor": 1, "meshes": {"m": {"names": ["dp"], "shape": [64]}},
        "tensors": [{"name": "model.layers.0.self_attn.k_proj.weight", "shape": [1024, 4096],
                     "dtype": "bf16", "placements": ["Shard(0)"]}]}"#;
    let found = hazards("qwen3-8b", Framework::Dtensor, dtensors);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("1024 kv_rows are cut at 16, inside a head of 128"),
        "{found:?}"
    );
}

/// vLLM spreads them unevenly without a word.
#[test]
fn experts_that_do_not_divide_are_worth_knowing() {
    let hazards = |sizes: &str| {
        let made = Layout::from_model(&read("glm-4.5"), Framework::Vllm, sizes, 0).unwrap();
        let of_kind = |h: &Hazard| h.kind == HazardKind::Experts;
        made.hazards.into_iter().filter(of_kind).collect::<Vec<_>>()
    };
    let found = hazards("tp=8,dp=3,ep=on;tp=8,dp=3,ep=on");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(!found[0].is_error);
    assert_eq!(
        found[0].to_string(),
        "model.layers.{layer}.mlp.experts.gate_proj.weight: 160 experts are not divisible by the \
         24 ranks that share them (dp 3 x tp 8): 16 ranks have 7, the others 6; take a size that \
         divides 160 for equal ones"
    );
    assert!(hazards("tp=8,dp=4,ep=on").is_empty());
    assert!(hazards("tp=8,ep=off").is_empty());
}

/// What one side marks is left out of a plan of what is trained.
#[test]
fn frozen_tensors_are_left_out_of_a_plan_of_what_is_trained() {
    let config = read("qwen3-8b");
    let of = |framework, sizes: &str, first| Layout::from_model(&config, framework, sizes, first);
    let frozen = "frozen=model.embed_tokens.*:*.norm.weight";
    for (framework, sizes, ranks) in [
        (Framework::Megatron, "tp=2,", 2),
        (Framework::HuggingFace, "", 1),
        (Framework::Vllm, "tp=2,", 2),
        (Framework::Sglang, "tp=2,", 2),
    ] {
        let source = of(framework, &format!("{sizes}{frozen}"), 0).unwrap();
        let engine = of(Framework::Vllm, "tp=4", ranks).unwrap();
        let (source, engine) = (Arc::new(source.layout), Arc::new(engine.layout));
        let plan = Plan::create(source, engine, &PlanOptions::default()).unwrap();
        let names = |trainable| -> Vec<String> {
            let what = Selector {
                trainable: Some(trainable),
                ..Selector::default()
            };
            let part = plan.select(&what).unwrap();
            part.tensors().iter().map(|t| t.name.clone()).collect()
        };
        let not_trained = names(false);
        assert_eq!(
            not_trained,
            ["model.embed_tokens.weight", "model.norm.weight"]
        );
        assert_eq!(names(true).len(), 399 - not_trained.len());
    }
    let e = of(Framework::Vllm, "tp=2,frozen=embed", 0).unwrap_err();
    assert!(e.message.contains("no tensor is named \"embed\""), "{e}");
    let e = of(Framework::Vllm, "tp=2;", 0).unwrap_err();
    assert!(e.message.contains("an empty group"), "{e}");
}

#[test]
fn sides_that_pad_differently_are_told_so() {
    let model = model("qwen3-8b");
    let trainer: MegatronSizes = "tp=8".parse().unwrap();
    let trainer = Layout::megatron(&model, &trainer, 0).unwrap();
    let engine = Layout::vllm(
        &model,
        &[VllmSizes {
            tp: 2,
            ..VllmSizes::default()
        }],
        8,
    )
    .unwrap();
    let report = check_pair(&trainer, &engine);
    assert!(report.is_ok());
    let padding: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|f| f.kind == FindingKind::Padding)
        .collect();
    assert_eq!(padding.len(), 2, "{padding:?}");
    assert!(padding[0].message.contains(
        "axis 0 has 151936 indices, which the source pads to 152576 and the destination to 151936"
    ));
    // Coverage is told in bytes of each side.
    assert_eq!(report.source.bytes, 2 * model.params());
    assert_eq!(report.destination.matched_bytes, report.source.bytes);
}

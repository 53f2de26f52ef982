//! Megatron-core layouts against its own names and shapes, and against
//! parameters that are built and sliced the way Megatron does it.

mod layout_support;

use layout_support::{Memories, memories_of};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use weightsync::layout::Layout;
use weightsync::layout::models::{Framework, Inventory, MegatronSizes};
use weightsync::{Rank, Result};

fn read(name: &str) -> Value {
    let path = format!("{}/tests/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn inventory(config: &Value) -> Inventory {
    Inventory::from_config(config.to_string().as_bytes()).unwrap()
}

fn megatron(config: &Value, sizes: &str) -> Result<Layout> {
    Layout::megatron(&inventory(config), &sizes.parse::<MegatronSizes>()?, 0)
}

/// Bytes of a rank's parameters by name, with `{l}` and `{e}` for the indices
/// of layer and expert, and how many there are.
fn parameters(layout: &Layout, rank: u32) -> BTreeMap<String, (u64, u64)> {
    let mut out = BTreeMap::new();
    for b in layout.buffers(Rank(rank)) {
        let mut parts: Vec<String> = b.name.split('.').map(str::to_string).collect();
        if let Some(i) = parts.iter().position(|p| p == "layers") {
            parts[i + 1] = "{l}".into();
        }
        if let Some(i) = parts.iter().position(|p| p == "experts")
            && i > 0
            && parts[i - 1] == "mlp"
        {
            let last = parts.last_mut().unwrap();
            let word = last
                .trim_end_matches(|c: char| c.is_ascii_digit())
                .to_string();
            *last = format!("{word}{{e}}");
        }
        let slot = out.entry(parts.join(".")).or_insert((b.bytes, 0));
        assert_eq!(slot.0, b.bytes, "{}", b.name);
        slot.1 += 1;
    }
    out
}

/// The same from `facts.json`: global shapes over the ranks.
fn expected(facts: &Map<String, Value>, vocab: u64, s: &MegatronSizes) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for (name, row) in facts {
        let shape: Vec<u64> = row[0]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| {
                n.as_u64().unwrap_or_else(|| {
                    vocab.div_ceil(128 * u64::from(s.tp)) * 128 * u64::from(s.tp)
                })
            })
            .collect();
        let is_expert = name.contains(".experts.");
        let by = match row[2].is_null() {
            true => 1,
            false => u64::from(if is_expert { s.etp } else { s.tp }),
        };
        let elements: u64 = shape.iter().product::<u64>() / by;
        let size = if name.ends_with("expert_bias") { 4 } else { 2 };
        out.insert(name.clone(), elements * size);
    }
    out
}

#[test]
fn names_and_local_sizes_are_megatrons() {
    let facts = read("facts");
    for (name, sizes) in [
        ("llama-3.1-8b", "tp=2,pp=2,dp=2"),
        ("llama-3.1-70b", "tp=4,pp=4,dp=4"),
        ("llama-3.1-405b", "tp=8,pp=16,dp=2"),
        ("qwen2.5-7b", "tp=2,dp=4"),
        ("qwen2.5-72b", "tp=8,pp=2,dp=2"),
        ("qwen3-8b", "tp=16"),
        ("qwen3-30b-a3b", "pp=2,ep=8,dp=8"),
        ("qwen3-235b-a22b", "tp=4,pp=8,ep=16,dp=4"),
        ("mixtral-8x7b", "tp=2,pp=4,ep=4,etp=2,dp=4"),
        ("deepseek-v3", "pp=16,ep=16,dp=16,mtp=off"),
        ("kimi-k2", "tp=2,pp=16,ep=16,dp=8"),
        ("glm-4.5", "tp=4,pp=4,ep=16,dp=4,mtp=off"),
        ("gpt-oss-120b", "ep=8,dp=8"),
    ] {
        let config = read(name);
        let layout = megatron(&config, sizes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let s = sizes.parse::<MegatronSizes>().unwrap();
        assert_eq!(u64::from(layout.rank_count()), s.world());
        let vocab = config["vocab_size"].as_u64().unwrap();
        let mcore = facts[name]["mcore"].as_object().unwrap();
        let want = expected(mcore, vocab, &s);
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        // One rank of each stage, and of its experts: the first of it.
        let stage_ranks = layout.rank_count() / s.pp;
        for stage in 0..s.pp {
            for (name, (bytes, count)) in parameters(&layout, stage * stage_ranks) {
                assert_eq!(want.get(&name), Some(&bytes), "{name}");
                *found.entry(name).or_default() += count;
            }
        }
        for (template, row) in mcore {
            let all = row[1].as_u64().unwrap();
            let is_expert = template.contains(".experts.");
            let want = if is_expert {
                all / u64::from(s.ep)
            } else {
                all
            };
            assert_eq!(found.get(template), Some(&want), "{name}: {template}");
        }
    }
}

/// A small model with real structure.
fn tiny(family: &str) -> Value {
    let mut c = read(match family {
        "llama" => "llama-3.1-8b",
        "qwen2" => "qwen2.5-7b",
        "glm" => "glm-4.5",
        "deepseek" => "deepseek-v3",
        _ => "gpt-oss-120b",
    });
    for (field, value) in [
        ("hidden_size", 12),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 3),
        ("intermediate_size", 8),
        ("moe_intermediate_size", 4),
        ("vocab_size", 10),
        ("n_routed_experts", 4),
        ("num_local_experts", 4),
        ("num_experts_per_tok", 2),
        ("first_k_dense_replace", 1),
        ("q_lora_rank", 4),
        ("kv_lora_rank", 4),
        ("qk_nope_head_dim", 3),
        ("qk_rope_head_dim", 2),
        ("v_head_dim", 2),
    ] {
        if field == "head_dim" || c.get(field).is_some() {
            c[field] = json!(value);
        }
    }
    c.as_object_mut().unwrap().remove("quantization_config");
    c
}

/// A matrix of labelled elements: `(tensor, index)`, row-major.
type Rows = Vec<Vec<(String, Vec<u64>)>>;

fn matrix(name: &str, rows: u64, cols: u64) -> Rows {
    let row = |r| (0..cols).map(|c| (name.to_string(), vec![r, c])).collect();
    (0..rows).map(row).collect()
}

/// Where a buffer of two-byte elements has each label.
fn places(m: &Memories, buffer: &str) -> BTreeMap<u64, BTreeSet<(String, Vec<u64>)>> {
    let mut out: BTreeMap<u64, BTreeSet<_>> = BTreeMap::new();
    for (element, places) in &m.places {
        for (_, at) in places.iter().filter(|(b, _)| b == buffer) {
            out.entry(*at).or_default().insert(element.clone());
        }
    }
    out
}

fn assert_holds(m: &Memories, buffer: &str, rows: &[Vec<(String, Vec<u64>)>]) {
    let flat = rows.iter().flatten().cloned();
    let want: BTreeMap<u64, BTreeSet<_>> = (0..)
        .step_by(2)
        .zip(flat.map(|e| BTreeSet::from([e])))
        .collect();
    assert_eq!(places(m, buffer), want, "{buffer}");
    assert_eq!(
        m.sizes[buffer],
        2 * rows.iter().map(Vec::len).sum::<usize>() as u64,
        "{buffer}"
    );
}

/// Shard `k` of `n` of the rows.
fn shard(rows: &Rows, n: usize, k: usize) -> Rows {
    let each = rows.len() / n;
    rows[k * each..(k + 1) * each].to_vec()
}

fn linear_qkv(layer: u64, heads: u64, kv: u64, head: u64, hidden: u64) -> Rows {
    let name = |p: &str| format!("model.layers.{layer}.self_attn.{p}_proj.weight");
    let (q, k, v) = (
        matrix(&name("q"), heads * head, hidden),
        matrix(&name("k"), kv * head, hidden),
        matrix(&name("v"), kv * head, hidden),
    );
    let mut all = Rows::new();
    for g in 0..kv as usize {
        let per = (heads / kv * head) as usize;
        all.extend_from_slice(&q[g * per..(g + 1) * per]);
        all.extend_from_slice(&k[g * head as usize..(g + 1) * head as usize]);
        all.extend_from_slice(&v[g * head as usize..(g + 1) * head as usize]);
    }
    all
}

#[test]
fn linear_qkv_is_interleaved_and_sliced_by_rows() {
    // Four, two and one group per rank, then raw rows of a group, where a
    // shard may start inside a head.
    for (kv, tp) in [(4u64, 1usize), (4, 2), (4, 4), (2, 4), (1, 4), (2, 8)] {
        let mut config = tiny("llama");
        config["num_key_value_heads"] = json!(kv);
        config["intermediate_size"] = json!(16);
        config["head_dim"] = json!(4);
        let layout = megatron(&config, &format!("tp={tp},pp=2")).unwrap();
        for stage in 0..2 {
            for rank in 0..tp {
                let m = memories_of(&layout, Rank((stage * tp + rank) as u32));
                let layer = 2 * stage as u64 + 1;
                let want = shard(&linear_qkv(layer, 8, kv, 4, 12), tp, rank);
                assert_holds(
                    &m,
                    "decoder.layers.1.self_attention.linear_qkv.weight",
                    &want,
                );
            }
        }
    }
}

#[test]
fn fc1_holds_its_gate_and_up_shards_one_after_the_other() {
    let layout = megatron(&tiny("llama"), "tp=4,pp=4").unwrap();
    for rank in 0..4 {
        let m = memories_of(&layout, Rank(8 + rank));
        let half = |p: &str| {
            let all = matrix(&format!("model.layers.2.mlp.{p}_proj.weight"), 8, 12);
            shard(&all, 4, rank as usize)
        };
        let want = [half("gate"), half("up")].concat();
        assert_holds(&m, "decoder.layers.0.mlp.linear_fc1.weight", &want);
        let down: Rows = matrix("model.layers.2.mlp.down_proj.weight", 12, 8)
            .iter()
            .map(|row| row[2 * rank as usize..2 * rank as usize + 2].to_vec())
            .collect();
        assert_holds(&m, "decoder.layers.0.mlp.linear_fc2.weight", &down);
    }
}

#[test]
fn vocabularies_are_padded_and_tied_embeddings_have_a_second_copy() {
    let mut config = tiny("llama");
    config["tie_word_embeddings"] = json!(true);
    let layout = megatron(&config, "tp=2,pp=2,vocab_multiple=4").unwrap();
    // 10 rows to 16 of 4 x tp: 8 each, of which the second has 2.
    let name = "model.embed_tokens.weight";
    for (rank, buffer) in [
        (0, "embedding.word_embeddings.weight"),
        (1, "embedding.word_embeddings.weight"),
        (2, "output_layer.weight"),
        (3, "output_layer.weight"),
    ] {
        let m = memories_of(&layout, Rank(rank));
        assert_eq!(m.sizes[buffer], 8 * 12 * 2);
        let held = places(&m, buffer);
        assert_eq!(held.len(), if rank % 2 == 0 { 8 * 12 } else { 2 * 12 });
        let first = BTreeSet::from([(name.to_string(), vec![u64::from(rank % 2) * 8, 0])]);
        assert_eq!(held[&0], first);
    }
    // One stage has one copy.
    let one = megatron(&config, "tp=2").unwrap();
    let names: Vec<String> = one.buffers(Rank(0)).into_iter().map(|b| b.name).collect();
    assert!(!names.contains(&"output_layer.weight".to_string()));
}

#[test]
fn experts_are_spread_over_ep_and_cut_over_etp() {
    let slice = |p: &str, e: u64, rows: u64, cols: u64| -> Rows {
        let name = format!("model.layers.2.mlp.experts.{p}_proj.weight");
        let row = |r| (0..cols).map(|c| (name.clone(), vec![e, r, c])).collect();
        (0..rows).map(row).collect()
    };
    for (storage, of) in [
        (
            "per_expert",
            "decoder.layers.2.mlp.experts.linear_fc1.weight#",
        ),
        (
            "sequential",
            "decoder.layers.2.mlp.experts.local_experts.#.linear_fc1.weight",
        ),
    ] {
        // Ranks: etp fastest, then ep, then edp.
        let sizes = format!("tp=2,dp=4,ep=2,etp=2,mtp=off,experts={storage}");
        let layout = megatron(&tiny("glm"), &sizes).unwrap();
        for rank in 0..8u64 {
            let (etp, ep) = (rank % 2, rank / 2 % 2);
            let m = memories_of(&layout, Rank(rank as u32));
            for local in 0..2 {
                let e = ep * 2 + local;
                let half = |p: &str| shard(&slice(p, e, 4, 12), 2, etp as usize);
                let want = [half("gate"), half("up")].concat();
                assert_holds(&m, &of.replace('#', &local.to_string()), &want);
            }
            assert!(!m.sizes.contains_key(&of.replace('#', "2")));
        }
    }
    // All experts in one parameter, as [expert, in, out].
    let layout = megatron(&tiny("glm"), "ep=2,dp=2,mtp=off,experts=grouped").unwrap();
    let m = memories_of(&layout, Rank(1));
    let mut want = Rows::new();
    for e in 2..4 {
        let (gate, up) = (slice("gate", e, 4, 12), slice("up", e, 4, 12));
        for c in 0..12 {
            want.push(
                [&gate, &up]
                    .iter()
                    .flat_map(|w| w.iter().map(|row| row[c].clone()))
                    .collect(),
            );
        }
    }
    assert_holds(&m, "decoder.layers.2.mlp.experts.weight1", &want);
    let mut want = Rows::new();
    for e in 2..4 {
        let down = slice("down", e, 12, 4);
        for c in 0..4 {
            want.push(down.iter().map(|row| row[c].clone()).collect());
        }
    }
    assert_holds(&m, "decoder.layers.2.mlp.experts.weight2", &want);
}

#[test]
fn virtual_and_uneven_pipelines_count_layers_by_chunk() {
    let stations = |sizes: &str, layers: u32| -> Vec<(u32, u32, u32)> {
        let s = sizes
            .parse::<MegatronSizes>()
            .unwrap()
            .stations(layers)
            .unwrap();
        s.iter().map(|s| (s.stage, s.chunk, s.index)).collect()
    };
    assert_eq!(
        stations("pp=2,vpp=2", 8),
        [
            (0, 0, 0),
            (0, 0, 1),
            (1, 0, 0),
            (1, 0, 1),
            (0, 1, 0),
            (0, 1, 1),
            (1, 1, 0),
            (1, 1, 1)
        ]
    );
    let stages =
        |sizes: &str, layers| -> Vec<u32> { stations(sizes, layers).iter().map(|s| s.0).collect() };
    assert_eq!(stages("pp=3", 7), [0, 0, 0, 1, 1, 2, 2]);
    assert_eq!(stages("pp=3,pp_layers=1:4:2", 7), [0, 1, 1, 1, 1, 2, 2]);
    let ds = stages("pp=16", 61);
    assert!((0..61).all(|l| ds[l as usize] == l * 16 / 61));

    let layout = megatron(&tiny("llama"), "pp=2,vpp=2").unwrap();
    let names = |rank| -> Vec<String> {
        layout
            .buffers(Rank(rank))
            .into_iter()
            .map(|b| b.name)
            .collect()
    };
    assert!(names(0).contains(&"model0.embedding.word_embeddings.weight".into()));
    assert!(names(0).contains(&"model1.decoder.layers.0.mlp.linear_fc2.weight".into()));
    assert!(names(1).contains(&"model1.output_layer.weight".into()));
    let held = memories_of(&layout, Rank(0));
    let fc2 = places(&held, "model1.decoder.layers.0.mlp.linear_fc2.weight");
    assert_eq!(
        fc2[&0].first().unwrap().0,
        "model.layers.2.mlp.down_proj.weight"
    );
}

#[test]
fn latent_attention_and_multi_token_prediction() {
    let layout = megatron(&tiny("deepseek"), "tp=2,pp=2,ep=2,vocab_multiple=4").unwrap();
    let names = |rank| -> BTreeSet<String> {
        layout
            .buffers(Rank(rank))
            .into_iter()
            .map(|b| b.name)
            .collect()
    };
    let last = names(3);
    for name in [
        "embedding.word_embeddings.weight",
        "mtp.layers.0.enorm.weight",
        "mtp.layers.0.hnorm.weight",
        "mtp.layers.0.eh_proj.weight",
        "mtp.layers.0.final_layernorm.weight",
        "mtp.layers.0.transformer_layer.input_layernorm.weight",
        "mtp.layers.0.transformer_layer.pre_mlp_layernorm.weight",
        "mtp.layers.0.transformer_layer.mlp.router.expert_bias",
        "mtp.layers.0.transformer_layer.mlp.experts.linear_fc1.weight1",
        "mtp.layers.0.transformer_layer.self_attention.linear_kv_down_proj.weight",
        "decoder.layers.1.mlp.shared_experts.linear_fc1.weight",
    ] {
        assert!(last.contains(name), "{name} is not in {last:#?}");
    }
    assert!(!names(0).iter().any(|n| n.starts_with("mtp.")));
    assert!(names(0).contains("decoder.layers.0.mlp.linear_fc1.layer_norm_weight"));
    assert!(names(0).contains("decoder.layers.1.pre_mlp_layernorm.weight"));
    let bytes = |layout: &Layout, name: &str| {
        let all = layout.buffers(Rank(0));
        all.iter().find(|b| b.name == name).unwrap().bytes
    };
    let kv_down = "decoder.layers.0.self_attention.linear_kv_down_proj.weight";
    assert_eq!(bytes(&layout, kv_down), (4 + 2) * 12 * 2);
    let cut = megatron(&tiny("deepseek"), "tp=2,mla_down=cut").unwrap();
    assert_eq!(bytes(&cut, kv_down), (4 + 2) * 12 * 2 / 2);
    let fused = megatron(
        &tiny("deepseek"),
        "tp=2,mla_down=fused,mtp_layer=mtp_model_layer",
    );
    let fused = fused.unwrap();
    let m = memories_of(&fused, Rank(1));
    let of =
        |name: &str, rows| matrix(&format!("model.layers.0.self_attn.{name}.weight"), rows, 12);
    // The second half of the query rows, then that of the key and value rows.
    let halves =
        [of("q_a_proj", 4), of("kv_a_proj_with_mqa", 4 + 2)].map(|m| m[m.len() / 2..].to_vec());
    let down = halves.concat();
    let qkv_down = "decoder.layers.0.self_attention.linear_qkv_down_proj.weight";
    assert_holds(&m, qkv_down, &down);
    assert!(!m.sizes.contains_key(kv_down));
    let norm = "decoder.layers.0.self_attention.linear_qkv_down_proj.layer_norm_weight";
    assert_eq!(m.sizes[norm], 12 * 2);
    assert!(
        !m.sizes
            .contains_key("decoder.layers.0.input_layernorm.weight")
    );
    let body = "mtp.layers.0.mtp_model_layer.self_attention.linear_qkv_down_proj.weight";
    assert!(m.sizes.contains_key(body), "{:#?}", m.sizes);
}

#[test]
fn ranks_follow_the_order_string() {
    let config = tiny("glm");
    // dp before tp: neighbours hold the same rows.
    let sizes = "tp=2,dp=2,ep=2,mtp=off,vocab_multiple=1,order=dp-tp-ep-pp";
    let layout = megatron(&config, sizes).unwrap();
    let first_row = |rank: u32| {
        let held = memories_of(&layout, Rank(rank));
        places(&held, "output_layer.weight")[&0].first().unwrap().1[0]
    };
    assert_eq!([0, 1, 2, 3].map(first_row), [0, 0, 5, 5]);
    let first_expert = |rank: u32| {
        let held = memories_of(&layout, Rank(rank));
        let name = "decoder.layers.1.mlp.experts.linear_fc2.weight0";
        places(&held, name)[&0].first().unwrap().1[0]
    };
    // edp 2 is fastest, then ep.
    assert_eq!([0, 1, 2, 3].map(first_expert), [0, 0, 2, 2]);
}

#[test]
fn bad_sizes_name_the_parameter_the_numbers_and_what_would_do() {
    let cases = [
        ("llama", "tp=3", "vocab"),
        (
            "llama",
            "tp=16",
            "8 attention heads are not divisible by tp 16; take a size that divides 8",
        ),
        (
            "llama",
            "ep=2,dp=2",
            "ep is 2 and etp 1, but LlamaForCausalLM has no experts",
        ),
        (
            "llama",
            "pp=5",
            "4 layers are fewer than the 5 stages of pp 5 x vpp 1",
        ),
        (
            "llama",
            "pp=2,pp_layers=2:1",
            "\"pp_layers\" has 2 stages with 3 layers in all",
        ),
        (
            "llama",
            "pp=2,pp_layers=2:1:1",
            "\"pp_layers\" has 3 stages",
        ),
        (
            "llama",
            "tp=0",
            "megatron: tp is \"0\"; accepted are 1 to 1048576",
        ),
        (
            "llama",
            "tpp=2",
            "\"tpp=2\" is unknown; accepted are \"tp\", \"cp\", \"pp\"",
        ),
        ("llama", "dp=2,order=tp-pp", "has no dp, but dp is 2"),
        (
            "llama",
            "order=tp-dp-xx",
            "\"order\" is tp-dp-xx; tp, cp, ep, dp and pp",
        ),
        (
            "llama",
            "dp=65536,tp=4,pp=4,cp=4",
            "ranks; at most 1048576 are allowed",
        ),
        ("glm", "ep=3,dp=3", "4 experts are not divisible by ep 3"),
        (
            "llama",
            "tp=1048576,cp=1048576,pp=1048576,dp=1048576",
            "tp 1048576 x cp 1048576 x pp 1048576 x dp 1048576 are too many ranks",
        ),
        (
            "llama",
            "pp=1048576,vpp=1048576",
            "pp 1048576 x vpp 1048576 stages are out of range",
        ),
        (
            "llama",
            "tp=2,,dp=2",
            "megatron: \"\" has no \"=\"; accepted are",
        ),
        (
            "llama",
            "frozen=a::b",
            "frozen is \"a::b\"; accepted are names and globs",
        ),
        (
            "glm",
            "ep=4,dp=2",
            "ep 4 x etp 1 does not divide tp 1 x cp 1 x dp 2, which is 2",
        ),
        (
            "glm",
            "tp=2,dp=2,ep=4,pp=2,order=tp-pp-dp-ep",
            "a pipeline stage of the dense weights (2 neighbours) is not one of the experts (1 neighbours)",
        ),
        (
            "gpt_oss",
            "experts=grouped",
            "experts=grouped has no biases",
        ),
    ];
    for (family, sizes, why) in cases {
        let mut config = tiny(family);
        if sizes == "tp=3" {
            config["num_attention_heads"] = json!(6);
            config["num_key_value_heads"] = json!(3);
            assert!(
                megatron(&config, sizes)
                    .unwrap_err()
                    .message
                    .contains("8 ffn_rows are not divisible by tp 3")
            );
            continue;
        }
        let e = megatron(&config, sizes).expect_err(sizes);
        assert!(e.message.contains(why), "{family} {sizes}: {e}");
        let config = config.to_string();
        let again = Layout::from_model(config.as_bytes(), Framework::Megatron, sizes, 0);
        assert_eq!(again.expect_err(sizes).message, e.message);
    }
    let raw = {
        let mut config = tiny("llama");
        config["num_key_value_heads"] = json!(4);
        config["num_attention_heads"] = json!(12);
        config["intermediate_size"] = json!(12);
        megatron(&config, "tp=6").unwrap_err()
    };
    assert!(
        raw.message
            .contains("4 KV heads of 15 rows each neither divide"),
        "{raw}"
    );
}

#[test]
fn remarks_say_what_was_assumed() {
    let model = inventory(&read("deepseek-v3"));
    let sizes = "tp=2,pp=16,ep=16,dp=8".parse::<MegatronSizes>().unwrap();
    let remarks = sizes.remarks(&model);
    assert!(remarks[0].contains("etp is 1; Megatron's own default is etp = tp, which is 2"));
    assert!(
        remarks[1].contains("stage = floor(l * 16 / 61), which is pp_layers=4:4:4:4:4:3:4"),
        "{remarks:?}"
    );
}

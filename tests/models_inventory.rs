//! Inventories of real models: totals, names and shapes, and what bad
//! configurations are told.
//!
//! `tests/models/facts.json` holds names, shapes and counts of the published
//! checkpoints, written down independently of our tables.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use weightsync::layout::models::{Inventory, Role, TensorTemplate};

const MODELS: [&str; 13] = [
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "qwen2.5-7b",
    "qwen2.5-72b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "mixtral-8x7b",
    "deepseek-v3",
    "kimi-k2",
    "glm-4.5",
    "gpt-oss-120b",
];

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn model(name: &str) -> Inventory {
    Inventory::from_config(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn facts() -> Map<String, Value> {
    serde_json::from_slice(&read("facts")).unwrap()
}

#[test]
fn parameter_totals_are_the_published_ones() {
    let facts = facts();
    for name in MODELS {
        let model = model(name);
        assert_eq!(model.params(), facts[name]["params"], "{name}");
        assert_eq!(model.mtp_params(), facts[name]["mtp_params"], "{name}, MTP");
    }
}

/// Checkpoint tensors by name, with `{l}`, `{L+i}` and `{e}` for the layer and
/// the expert: shape, how many there are, dtype.
type Checkpoint = BTreeMap<String, (Vec<u64>, u64, String)>;

fn checkpoint(model: &Inventory, is_mtp: bool) -> Checkpoint {
    let mut out = Checkpoint::new();
    let stored: Vec<Role> = model
        .stored
        .iter()
        .flat_map(|s| s.members.clone())
        .collect();
    let layer = if is_mtp { "{L+i}" } else { "{l}" };
    let mut add = |name: &str, t: &TensorTemplate, shape: Vec<u64>, count: u64| {
        let name = name.replace("{layer}", layer).replace("{global}", "{e}");
        out.insert(name, (shape, t.count() * count, t.dtype.name()));
    };
    let own = model.templates.iter().filter(|t| t.is_mtp == is_mtp);
    for t in own.filter(|t| !stored.contains(&t.role)) {
        match &t.checkpoint_name {
            Some(name) => add(name, t, t.shape()[1..].to_vec(), t.shape()[0]),
            None => add(&t.name, t, t.shape().to_vec(), 1),
        }
    }
    for s in model.stored.iter().filter(|_| !is_mtp) {
        let t = model.find(s.members[0]).unwrap();
        let order = s.order.iter().map(|&d| t.shape()[d as usize]);
        let mut shape: Vec<u64> = if s.order.is_empty() {
            t.shape().to_vec()
        } else {
            order.collect()
        };
        *shape.last_mut().unwrap() *= s.members.len() as u64;
        add(&s.name, t, shape, 1);
    }
    out
}

fn expected(facts: Option<&Value>) -> Checkpoint {
    let rows = facts.and_then(Value::as_object);
    let row = |(name, v): (&String, &Value)| {
        let row = serde_json::from_value(v.clone()).unwrap();
        (name.clone(), row)
    };
    rows.into_iter().flatten().map(row).collect()
}

#[test]
fn names_shapes_and_counts_are_those_of_the_checkpoints() {
    let facts = facts();
    for name in MODELS {
        let model = model(name);
        assert_eq!(
            checkpoint(&model, false),
            expected(facts[name].get("hf")),
            "{name}"
        );
        assert_eq!(
            checkpoint(&model, true),
            expected(facts[name].get("hf_mtp")),
            "{name}, MTP"
        );
    }
}

#[test]
fn layers_with_experts_follow_the_configuration() {
    let ds = model("deepseek-v3");
    assert_eq!((ds.layers, ds.mtp_layers, ds.experts), (61, 1, 256));
    assert_eq!(ds.moe_layers, (3..61).collect::<Vec<u32>>());
    assert_eq!(ds.quantization.as_ref().unwrap().block, Some([128, 128]));
    let bias = ds.find(Role::ExpertBias).unwrap();
    assert!(bias.is_buffer && bias.dtype.name() == "f32");

    let qwen = |step: u64, except: &[u64]| {
        let mut config = config("qwen3-30b-a3b");
        config["decoder_sparse_step"] = json!(step);
        config["mlp_only_layers"] = json!(except);
        parse(&config).unwrap()
    };
    assert_eq!(qwen(1, &[0, 5]).moe_layers.len(), 46);
    assert_eq!(qwen(2, &[]).moe_layers[..2], [1, 3]);
    let mixed = qwen(1, &[0]);
    assert_eq!(mixed.find(Role::Gate).unwrap().layers, [0]);
}

#[test]
fn tied_embeddings_are_an_alias() {
    let mut config = config("llama-3.1-8b");
    config["tie_word_embeddings"] = json!(true);
    let tied = parse(&config).unwrap();
    let head = tied.find(Role::LmHead).unwrap();
    assert_eq!(head.alias_of.as_deref(), Some("model.embed_tokens.weight"));
    assert_eq!(tied.params(), 8_030_261_248 - 128_256 * 4096);
}

#[test]
fn latent_attention_without_a_query_rank_has_one_query_projection() {
    let mut config = config("deepseek-v3");
    config["q_lora_rank"] = Value::Null;
    let model = parse(&config).unwrap();
    assert_eq!(
        model.find(Role::QProj).unwrap().shape().as_slice(),
        [24_576, 7168]
    );
    assert!(model.find(Role::QAProj).is_none());
}

fn config(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn parse(config: &Value) -> weightsync::Result<Inventory> {
    Inventory::from_config(config.to_string().as_bytes())
}

#[test]
fn bad_configurations_name_the_field_and_what_is_accepted() {
    let cases = [
        (
            "llama-3.1-8b",
            "architectures",
            json!(["FooForCausalLM"]),
            "\"FooForCausalLM\" is unknown; known are LlamaForCausalLM, Qwen2ForCausalLM",
        ),
        (
            "llama-3.1-8b",
            "architectures",
            Value::Null,
            "\"architectures\" is missing",
        ),
        (
            "llama-3.1-8b",
            "model_type",
            json!("qwen2"),
            "\"model_type\" is \"qwen2\", but architecture LlamaForCausalLM has llama",
        ),
        (
            "llama-3.1-8b",
            "hidden_size",
            Value::Null,
            "\"hidden_size\" is missing; LlamaForCausalLM needs it",
        ),
        (
            "llama-3.1-8b",
            "hidden_size",
            json!(-4096),
            "\"hidden_size\" is -4096; a whole number from 0",
        ),
        (
            "llama-3.1-8b",
            "hidden_size",
            json!(4096.5),
            "\"hidden_size\" is 4096.5",
        ),
        (
            "llama-3.1-8b",
            "hidden_size",
            json!(4100),
            "\"head_dim\" is missing, and \"hidden_size / num_attention_heads\": 4100 / 32 is not a whole number",
        ),
        (
            "llama-3.1-8b",
            "vocab_size",
            json!(0),
            "vocab_size is 0; at least 1",
        ),
        (
            "llama-3.1-8b",
            "num_hidden_layers",
            json!(0),
            "\"num_hidden_layers\" is 0; 1 to 4096",
        ),
        (
            "llama-3.1-8b",
            "num_hidden_layers",
            json!(5000),
            "\"num_hidden_layers\" is 5000",
        ),
        (
            "llama-3.1-8b",
            "num_key_value_heads",
            json!(5),
            "\"num_attention_heads\" is 32, which is not a multiple of \"num_key_value_heads\", 5",
        ),
        (
            "llama-3.1-8b",
            "num_key_value_heads",
            json!(0),
            "not a multiple of \"num_key_value_heads\", 0",
        ),
        (
            "llama-3.1-8b",
            "torch_dtype",
            json!("int8"),
            "\"torch_dtype\" is \"int8\"; bfloat16, float16 and float32",
        ),
        (
            "llama-3.1-8b",
            "tie_word_embeddings",
            json!("yes"),
            "\"tie_word_embeddings\" is \"yes\"; true or false",
        ),
        (
            "llama-3.1-8b",
            "hidden_act",
            json!("gelu"),
            "\"hidden_act\" is \"gelu\"; for LlamaForCausalLM this library knows \"silu\"",
        ),
        (
            "qwen3-8b",
            "head_dim",
            Value::Null,
            "\"head_dim\" is missing; Qwen3ForCausalLM needs it",
        ),
        (
            "qwen3-30b-a3b",
            "num_experts_per_tok",
            json!(129),
            "\"num_experts_per_tok\" is 129, more than \"num_experts\", 128",
        ),
        (
            "qwen3-30b-a3b",
            "mlp_only_layers",
            json!([48]),
            "\"mlp_only_layers\" names layer 48; the model has 48",
        ),
        (
            "qwen3-30b-a3b",
            "decoder_sparse_step",
            json!(0),
            "\"decoder_sparse_step\" is 0",
        ),
        (
            "deepseek-v3",
            "first_k_dense_replace",
            json!(62),
            "\"first_k_dense_replace\" is 62, more than \"num_hidden_layers\", 61",
        ),
        (
            "deepseek-v3",
            "moe_layer_freq",
            json!(2),
            "\"moe_layer_freq\" is 2; for DeepseekV3ForCausalLM this library knows 1",
        ),
        (
            "deepseek-v3",
            "attention_bias",
            json!(true),
            "\"attention_bias\" is true",
        ),
        (
            "deepseek-v3",
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [128]}),
            "\"weight_block_size\" is [128]; two numbers",
        ),
        (
            "mixtral-8x7b",
            "num_experts_per_tok",
            json!(0),
            "\"num_experts_per_tok\" is 0; at least 1",
        ),
        (
            "llama-3.1-8b",
            "dtype",
            json!("float16"),
            "\"dtype\" is \"float16\" and \"torch_dtype\" \"bfloat16\"",
        ),
        (
            "deepseek-v3",
            "kv_lora_rank",
            json!(1u64 << 33),
            "\"kv_lora_rank\" is 8589934592",
        ),
    ];
    for (name, field, value, why) in cases {
        let mut config = config(name);
        config[field] = value.clone();
        let e = parse(&config).expect_err(&format!("{name}: {field} = {value}"));
        assert!(e.message.contains(why), "{name}: {field} = {value}: {e}");
        assert!(e.message.starts_with("config.json: "), "{e}");
    }
    let e = Inventory::from_config(b"[1]").unwrap_err();
    assert!(e.message.contains("not a JSON object"), "{e}");
    let twice = br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 2, "hidden_size": 4}"#;
    let e = Inventory::from_config(twice).unwrap_err();
    assert!(e.message.contains("\"hidden_size\" is given twice"), "{e}");
}

#[test]
fn fp8_without_a_block_is_remarked() {
    let mut config = config("qwen3-8b");
    assert!(parse(&config).unwrap().remarks().is_empty());
    config["quantization_config"] = json!({"quant_method": "fp8"});
    let remarks = parse(&config).unwrap().remarks();
    assert!(
        remarks[0].contains("fp8 without \"weight_block_size\""),
        "{remarks:?}"
    );
}

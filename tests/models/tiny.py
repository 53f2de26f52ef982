"""Small models with the structure of real ones: their heads, their experts, their names.

`config` is a real configuration with small widths; `checkpoint` makes random
weights under the names that its checkpoint has. Nothing here knows the library.
"""

from __future__ import annotations

import json
import pathlib
import struct

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent

# Widths; heads and experts stay as they are. A vocabulary of 1,000 needs padding.
WIDTHS = {
    "llama-3.1-8b": dict(hidden_size=128, intermediate_size=112),
    "qwen2.5-7b": dict(hidden_size=112, intermediate_size=148),
    "qwen3-8b": dict(hidden_size=64, head_dim=8, intermediate_size=96),
    "qwen3-30b-a3b": dict(hidden_size=32, head_dim=4, intermediate_size=96, moe_intermediate_size=16),
    "mixtral-8x7b": dict(hidden_size=64, intermediate_size=112),
    "deepseek-v3": dict(
        hidden_size=32, intermediate_size=64, moe_intermediate_size=8, q_lora_rank=24,
        kv_lora_rank=16, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4,
    ),
    "kimi-k2": dict(
        hidden_size=16, intermediate_size=32, moe_intermediate_size=8, q_lora_rank=24,
        kv_lora_rank=16, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4,
    ),
    "glm-4.5": dict(hidden_size=32, head_dim=2, intermediate_size=48, moe_intermediate_size=8),
    "gpt-oss-120b": dict(hidden_size=30, head_dim=4, intermediate_size=20),
}
LAYERS = {"deepseek-v3": 4, "glm-4.5": 4}


def config(name: str) -> dict:
    out = json.loads((HERE / f"{name}.json").read_text())
    out.update(num_hidden_layers=LAYERS.get(name, 2), vocab_size=1000, **WIDTHS[name])
    out.pop("quantization_config", None)
    return out


def shapes(c: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of the checkpoint."""
    out: dict[str, tuple[str, tuple[int, ...]]] = {}
    kind = c["model_type"]
    h, heads = c["hidden_size"], c["num_attention_heads"]
    kv = c.get("num_key_value_heads", heads)
    d = c.get("head_dim", h // heads)

    def add(name: str, *shape: int, dtype: str = "BF16") -> None:
        out[name] = (dtype, shape)

    def mlp(p: str, rows: int) -> None:
        add(p + "gate_proj.weight", rows, h)
        add(p + "up_proj.weight", rows, h)
        add(p + "down_proj.weight", h, rows)

    def attention(p: str) -> None:
        if "kv_lora_rank" in c:
            nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
            ql, kl = c["q_lora_rank"], c["kv_lora_rank"]
            if ql is None:
                add(p + "q_proj.weight", heads * (nope + rope), h)
            else:
                add(p + "q_a_proj.weight", ql, h)
                add(p + "q_a_layernorm.weight", ql)
                add(p + "q_b_proj.weight", heads * (nope + rope), ql)
            add(p + "kv_a_proj_with_mqa.weight", kl + rope, h)
            add(p + "kv_a_layernorm.weight", kl)
            add(p + "kv_b_proj.weight", heads * (nope + v), kl)
            add(p + "o_proj.weight", h, heads * v)
            return
        for name, n in (("q", heads), ("k", kv), ("v", kv)):
            add(p + name + "_proj.weight", n * d, h)
            if kind in ("qwen2", "glm4_moe", "gpt_oss"):
                add(p + name + "_proj.bias", n * d)
        add(p + "o_proj.weight", h, heads * d)
        if kind == "gpt_oss":
            add(p + "o_proj.bias", h)
            add(p + "sinks", heads)
        if kind in ("qwen3", "qwen3_moe", "glm4_moe"):
            add(p + "q_norm.weight", d)
            add(p + "k_norm.weight", d)

    def experts(p: str) -> None:
        e = c.get("num_experts", c.get("num_local_experts", c.get("n_routed_experts")))
        f = c.get("moe_intermediate_size", c["intermediate_size"])
        if kind == "gpt_oss":
            add(p + "mlp.router.weight", e, h)
            add(p + "mlp.router.bias", e)
            add(p + "mlp.experts.gate_up_proj", e, h, 2 * f)
            add(p + "mlp.experts.gate_up_proj_bias", e, 2 * f)
            add(p + "mlp.experts.down_proj", e, f, h)
            add(p + "mlp.experts.down_proj_bias", e, h)
            return
        if kind == "mixtral":
            add(p + "block_sparse_moe.gate.weight", e, h)
            for i in range(e):
                q = p + f"block_sparse_moe.experts.{i}."
                add(q + "w1.weight", f, h)
                add(q + "w3.weight", f, h)
                add(q + "w2.weight", h, f)
            return
        add(p + "mlp.gate.weight", e, h)
        for i in range(e):
            mlp(p + f"mlp.experts.{i}.", f)
        if "n_shared_experts" in c:
            add(p + "mlp.gate.e_score_correction_bias", e, dtype="F32")
            mlp(p + "mlp.shared_experts.", f * c["n_shared_experts"])

    def layer(i: int, is_moe: bool) -> None:
        p = f"model.layers.{i}."
        add(p + "input_layernorm.weight", h)
        add(p + "post_attention_layernorm.weight", h)
        attention(p + "self_attn.")
        experts(p) if is_moe else mlp(p + "mlp.", c["intermediate_size"])

    add("model.embed_tokens.weight", c["vocab_size"], h)
    add("model.norm.weight", h)
    if not c["tie_word_embeddings"]:
        add("lm_head.weight", c["vocab_size"], h)
    is_moe = kind not in ("llama", "qwen2", "qwen3")
    n = c["num_hidden_layers"]
    for i in range(n):
        layer(i, is_moe and i >= c.get("first_k_dense_replace", 0))
    for i in range(n, n + c.get("num_nextn_predict_layers", 0)):
        layer(i, is_moe)
        p = f"model.layers.{i}."
        for name in ("enorm", "hnorm", "shared_head.norm"):
            add(p + name + ".weight", h)
        add(p + "eh_proj.weight", h, 2 * h)
    return out


def checkpoint(c: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights: bf16 as the 16 bits they are, f32 as itself."""
    dice = np.random.default_rng(seed)
    make = {
        "BF16": lambda shape: dice.integers(1, 1 << 15, size=shape, dtype=np.uint16),
        "F32": lambda shape: dice.standard_normal(shape, dtype=np.float32),
    }
    return {name: make[dtype](shape) for name, (dtype, shape) in shapes(c).items()}


def write(directory: pathlib.Path, c: dict, tensors: dict[str, np.ndarray], files: int = 3) -> None:
    """A checkpoint as it is published: config.json, an index, and several files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(c))
    names = sorted(tensors)
    index = {}
    for i in range(files):
        part = names[i::files]
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        header, at = {}, 0
        for name in part:
            t = tensors[name]
            dtype = {2: "BF16", 4: "F32"}[t.itemsize]
            header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
            at += t.nbytes
            index[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name in part:
                out.write(np.ascontiguousarray(tensors[name]).tobytes())
    total = sum(t.nbytes for t in tensors.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(document))


def read(file: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata."""
    data = file.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    meta = header.pop("__metadata__", {})
    kinds = {"BF16": np.uint16, "U16": np.uint16, "F32": np.float32, "U8": np.uint8}
    out = {}
    for name, t in header.items():
        lo, hi = t["data_offsets"]
        raw = np.frombuffer(data[8 + n + lo : 8 + n + hi], dtype=kinds[t["dtype"]])
        out[name] = raw.reshape(t["shape"])
    return out, meta

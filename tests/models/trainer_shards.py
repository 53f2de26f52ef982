"""What one rank of Megatron-core has of a checkpoint, by Megatron's own rules, in NumPy.

Written down from its source (parameters sliced by tensor parallel layers, heads in groups, experts
over expert parallel ranks), with Transformer Engine's names. Nothing here knows the library.

  ranks   tp fastest, then dp, then pp; within a stage experts have etp fastest, then ep
"""

from __future__ import annotations

import numpy as np

from engine_loaders import Group, narrow, strip

Tensors = dict[str, np.ndarray]


def load(
    c: dict, w: Tensors, rank: int, tp: int = 1, pp: int = 1, dp: int = 1, ep: int = 1, etp: int = 1,
    mla_down: str = "whole",
) -> Tensors:
    """The parameters of one rank, and the buffers that training writes."""
    stage, inside = divmod(rank, tp * dp)
    tensor = Group(rank % tp, tp)
    expert, rows = Group(inside // etp % ep, ep), Group(inside % etp, etp)
    n, last = c["num_hidden_layers"], stage == pp - 1
    extra = c.get("num_nextn_predict_layers", 0)
    out: Tensors = {}
    if stage == 0 or (last and extra):
        out["embedding.word_embeddings.weight"] = vocabulary(w["model.embed_tokens.weight"], tensor)
    if last:
        out["decoder.final_layernorm.weight"] = w["model.norm.weight"]
        out["output_layer.weight"] = vocabulary(w["lm_head.weight"], tensor)
    mine = [i for i in range(n) if i * pp // n == stage]
    for local, i in enumerate(mine):
        for name, value in layer(c, strip(w, f"model.layers.{i}."), tensor, expert, rows).items():
            out[f"decoder.layers.{local}.{name}"] = value
    for local in range(extra if last else 0):
        own = strip(w, f"model.layers.{n + local}.")
        prefix = f"mtp.layers.{local}."
        for theirs, name in (("enorm", "enorm"), ("hnorm", "hnorm"), ("shared_head.norm", "final_layernorm")):
            out[f"{prefix}{name}.weight"] = own[f"{theirs}.weight"]
        out[prefix + "eh_proj.weight"] = narrow(own["eh_proj.weight"], 0, tensor)
        for name, value in layer(c, own, tensor, expert, rows).items():
            out[f"{prefix}transformer_layer.{name}"] = value
    return fuse_down_projections(out, tensor) if mla_down == "fused" else out


def fuse_down_projections(own: Tensors, g: Group) -> Tensors:
    """One matrix of a rank's query rows and then its key and value rows, and the norm before it."""
    out = dict(own)
    for name in own:
        layer = name.removesuffix("self_attention.linear_q_down_proj.weight")
        if layer == name:
            continue
        fused = f"{layer}self_attention.linear_qkv_down_proj."
        down = [out.pop(f"{layer}self_attention.linear_{kind}_down_proj.weight") for kind in ("q", "kv")]
        out[fused + "weight"] = np.concatenate([narrow(t, 0, g) for t in down])
        out[fused + "layer_norm_weight"] = out.pop(layer + "input_layernorm.weight")
    return out


def vocabulary(t: np.ndarray, g: Group) -> np.ndarray:
    """The rank's rows of those there are; what is left of its 1/g of a multiple of 128 g is padding."""
    rows = -(-len(t) // (128 * g.size)) * 128
    return t[g.rank * rows : (g.rank + 1) * rows]


def layer(c: dict, w: Tensors, tensor: Group, expert: Group, rows: Group) -> Tensors:
    out: Tensors = {}
    a = "self_attention."
    if "kv_lora_rank" in c:
        latent_attention(w, tensor, out)
    else:
        out[a + "linear_qkv.layer_norm_weight"] = w["input_layernorm.weight"]
        for what in ("weight", "bias"):
            if f"self_attn.q_proj.{what}" in w:
                out[f"{a}linear_qkv.{what}"] = narrow(groups(c, w, what), 0, tensor)
        for theirs, name in (("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")):
            if f"self_attn.{theirs}.weight" in w:
                out[f"{a}{name}.weight"] = w[f"self_attn.{theirs}.weight"]
        if "self_attn.sinks" in w:
            out[a + "core_attention.softmax_offset"] = narrow(w["self_attn.sinks"], 0, tensor)
        if "self_attn.o_proj.bias" in w:
            out[a + "linear_proj.bias"] = w["self_attn.o_proj.bias"]
    out[a + "linear_proj.weight"] = narrow(w["self_attn.o_proj.weight"], 1, tensor)
    if "mlp.gate_proj.weight" in w:
        out["mlp.linear_fc1.layer_norm_weight"] = w["post_attention_layernorm.weight"]
        gated(w, "mlp.", "mlp.", tensor, out)
        return out
    out["pre_mlp_layernorm.weight"] = w["post_attention_layernorm.weight"]
    experts(w, expert, rows, out)
    if "mlp.shared_experts.gate_proj.weight" in w:
        gated(w, "mlp.shared_experts.", "mlp.shared_experts.", tensor, out)
    return out


def groups(c: dict, w: Tensors, what: str) -> np.ndarray:
    """One group per KV head: its query rows, its key, its value."""
    kv = c["num_key_value_heads"]
    q, k, v = (w[f"self_attn.{n}_proj.{what}"] for n in "qkv")
    cut = [t.reshape(kv, -1, *t.shape[1:]) for t in (q, k, v)]
    return np.concatenate(cut, axis=1).reshape(-1, *q.shape[1:])


def latent_attention(w: Tensors, tensor: Group, out: Tensors) -> None:
    a, s = "self_attention.", "self_attn."
    out["input_layernorm.weight"] = w["input_layernorm.weight"]
    if s + "q_proj.weight" in w:
        out[a + "linear_q_proj.weight"] = narrow(w[s + "q_proj.weight"], 0, tensor)
    for kind, theirs in (("q", "q"), ("kv", "kv")):
        if f"{s}{theirs}_a_layernorm.weight" not in w:
            continue
        down = "q_a_proj" if kind == "q" else "kv_a_proj_with_mqa"
        out[f"{a}linear_{kind}_down_proj.weight"] = w[f"{s}{down}.weight"]
        out[f"{a}linear_{kind}_up_proj.layer_norm_weight"] = w[f"{s}{theirs}_a_layernorm.weight"]
        out[f"{a}linear_{kind}_up_proj.weight"] = narrow(w[f"{s}{theirs}_b_proj.weight"], 0, tensor)


def gated(w: Tensors, theirs: str, name: str, g: Group, out: Tensors) -> None:
    halves = [narrow(w[f"{theirs}{n}_proj.weight"], 0, g) for n in ("gate", "up")]
    out[name + "linear_fc1.weight"] = np.concatenate(halves)
    out[name + "linear_fc2.weight"] = narrow(w[theirs + "down_proj.weight"], 1, g)


def experts(w: Tensors, expert: Group, rows: Group, out: Tensors) -> None:
    p = "mlp.experts."
    if p + "gate_up_proj" in w:
        out["mlp.router.weight"], out["mlp.router.bias"] = w["mlp.router.weight"], w["mlp.router.bias"]
        each = len(w[p + "down_proj"]) // expert.size
        for j in range(each):
            e = expert.rank * each + j
            # [in, gate and up in turn] becomes two matrices [out, in].
            both, bias = w[p + "gate_up_proj"][e].T, w[p + "gate_up_proj_bias"][e]
            for what, t in (("weight", both), ("bias", bias)):
                halves = [narrow(t[k::2], 0, rows) for k in (0, 1)]
                out[f"{p}linear_fc1.{what}{j}"] = np.concatenate(halves)
            out[f"{p}linear_fc2.weight{j}"] = narrow(w[p + "down_proj"][e].T, 1, rows)
            out[f"{p}linear_fc2.bias{j}"] = w[p + "down_proj_bias"][e]
        return
    out["mlp.router.weight"] = w["mlp.gate.weight"]
    if "mlp.gate.e_score_correction_bias" in w:
        out["mlp.router.expert_bias"] = w["mlp.gate.e_score_correction_bias"]
    each = len(w["mlp.gate.weight"]) // expert.size
    for j in range(each):
        e = expert.rank * each + j
        halves = [narrow(w[f"{p}{e}.{n}_proj.weight"], 0, rows) for n in ("gate", "up")]
        out[f"{p}linear_fc1.weight{j}"] = np.concatenate(halves)
        out[f"{p}linear_fc2.weight{j}"] = narrow(w[f"{p}{e}.down_proj.weight"], 1, rows)

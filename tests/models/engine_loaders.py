"""What the loaders of vLLM and SGLang make of a checkpoint, in NumPy.

Written from the engines' own rules, tensor by tensor as they load: allocate
the local parameters, then copy each checkpoint tensor into the place that its
shard id, the rank and the expert map give it. Knows nothing of the library.

  vLLM    ranks of a replica are dp x pp x tp; experts are spread over dp x tp
  SGLang  ranks of a replica are pp x tp; dp and ep are parts of tp
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Group:
    """A rank within those that share something."""

    rank: int = 0
    size: int = 1


@dataclass
class Place:
    """What one rank of an engine is, for each kind of layer."""

    attention: Group
    dense: Group
    shared: Group
    experts: Group
    expert_rows: Group
    embed: Group
    head: Group
    stage: Group
    engine: str


def vllm(rank: int, tp: int = 1, pp: int = 1, dp: int = 1, ep: bool = False) -> Place:
    dp_rank, pp_rank, tp_rank = rank // (pp * tp), rank // tp % pp, rank % tp
    tensor = Group(tp_rank, tp)
    flat = Group(dp_rank * tp + tp_rank, dp * tp)
    # With tokens spread over tp before the experts, shared experts are replicated.
    spread = ep and tp > 1 and dp > 1
    return Place(
        attention=tensor, dense=tensor, shared=Group() if spread else tensor,
        experts=flat if ep else Group(), expert_rows=Group() if ep else flat,
        embed=tensor, head=tensor, stage=Group(pp_rank, pp), engine="vllm",
    )


def sglang(rank: int, tp: int = 1, dp: int = 1, ep: int = 1, pp: int = 1) -> Place:
    pp_rank, tp_rank = rank // tp, rank % tp
    tensor = Group(tp_rank, tp)
    attention = Group(tp_rank % (tp // dp), tp // dp)
    moe_tp = tp // ep
    return Place(
        attention=attention, dense=tensor, shared=tensor,
        experts=Group(tp_rank // moe_tp, ep), expert_rows=Group(tp_rank % moe_tp, moe_tp),
        embed=attention, head=tensor, stage=Group(pp_rank, pp), engine="sglang",
    )


def stage_layers(layers: int, stage: Group, engine: str) -> range:
    """Layers of a pipeline stage: each engine puts what is left over elsewhere."""
    counts = [layers // stage.size] * stage.size
    for i in range(layers % stage.size):
        counts[-2 - i if engine == "vllm" else -1 - i] += 1
    first = sum(counts[: stage.rank])
    return range(first, first + counts[stage.rank])


def narrow(t: np.ndarray, axis: int, g: Group) -> np.ndarray:
    size = t.shape[axis] // g.size
    assert size * g.size == t.shape[axis], (t.shape, axis, g)
    return np.take(t, range(g.rank * size, (g.rank + 1) * size), axis)


def vocabulary(t: np.ndarray, g: Group) -> np.ndarray:
    rows = -(-len(t) // 64) * 64 // g.size
    mine = t[g.rank * rows : (g.rank + 1) * rows]
    return np.concatenate([mine, np.zeros((rows - len(mine), *t.shape[1:]), t.dtype)])


def local_experts(count: int, g: Group) -> range:
    """Consecutive experts; the first ranks have one more where they do not divide."""
    base, more = divmod(count, g.size)
    first = g.rank * base + min(g.rank, more)
    return range(first, first + base + (g.rank < more))


def load(c: dict, checkpoint: dict[str, np.ndarray], at: Place) -> dict[str, np.ndarray]:
    """The parameters of one rank."""
    n = c["num_hidden_layers"]
    mine = stage_layers(n, at.stage, at.engine)
    last = at.stage.rank == at.stage.size - 1
    out: dict[str, np.ndarray] = {}
    if at.stage.rank == 0 or (last and c["tie_word_embeddings"]):
        out["model.embed_tokens.weight"] = vocabulary(checkpoint["model.embed_tokens.weight"], at.embed)
    if last:
        out["model.norm.weight"] = checkpoint["model.norm.weight"]
        if not c["tie_word_embeddings"]:
            out["lm_head.weight"] = vocabulary(checkpoint["lm_head.weight"], at.head)
    for i in mine:
        prefix = f"model.layers.{i}."
        for name, value in layer(c, strip(checkpoint, prefix), at).items():
            out[prefix + name] = value
    drafts = range(n, n + c.get("num_nextn_predict_layers", 0)) if last else ()
    body = {"vllm": "mtp_block.", "sglang": "decoder."}[at.engine]
    for i in drafts:
        prefix = f"model.layers.{i}."
        for name, value in layer(c, strip(checkpoint, prefix), at).items():
            own = name.startswith(("enorm", "hnorm", "eh_proj", "shared_head"))
            out["draft." + prefix + ("" if own else body) + name] = value
    return out


def strip(checkpoint: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k[len(prefix) :]: v for k, v in checkpoint.items() if k.startswith(prefix)}


def layer(c: dict, w: dict[str, np.ndarray], at: Place) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    a = "self_attn."
    if a + "q_a_proj.weight" in w:
        latent_attention(w, at, out)
    else:
        for suffix in ("weight", "bias"):
            if a + "q_proj." + suffix in w:
                out[a + "qkv_proj." + suffix] = qkv(c, w, suffix, at.attention)
    if a + "sinks" in w:
        out[a + "sinks"] = narrow(w[a + "sinks"], 0, at.attention)
    out[a + "o_proj.weight"] = narrow(w[a + "o_proj.weight"], 1, at.attention)
    for module, g in (("mlp.", at.dense), ("mlp.shared_experts.", at.shared)):
        if module + "gate_proj.weight" in w:
            gate, up = (narrow(w[module + n + "_proj.weight"], 0, g) for n in ("gate", "up"))
            out[module + "gate_up_proj.weight"] = np.concatenate([gate, up])
            out[module + "down_proj.weight"] = narrow(w[module + "down_proj.weight"], 1, g)
    experts(w, at, out)
    # Norms, routers and what else is the same everywhere.
    taken = ("q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj", "q_b_proj", "kv_b_proj",
             "o_proj.weight", "sinks", "gate_proj", "up_proj", "down_proj", ".experts.")
    for name, value in w.items():
        if not any(t in name for t in taken):
            out[name] = value
    return out


def qkv(c: dict, w: dict[str, np.ndarray], suffix: str, g: Group) -> np.ndarray:
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    d = c.get("head_dim", c["hidden_size"] // heads)
    q_rows = heads // g.size * d
    repeats = max(1, g.size // kv)
    kv_rows = max(1, kv // g.size) * d
    q = w[f"self_attn.q_proj.{suffix}"]
    param = np.zeros((q_rows + 2 * kv_rows, *q.shape[1:]), q.dtype)
    param[:q_rows] = q[g.rank * q_rows :][:q_rows]
    shard = g.rank // repeats
    for i, name in enumerate("kv"):
        t = w[f"self_attn.{name}_proj.{suffix}"]
        param[q_rows + i * kv_rows :][:kv_rows] = t[shard * kv_rows :][:kv_rows]
    return param


def latent_attention(w: dict[str, np.ndarray], at: Place, out: dict[str, np.ndarray]) -> None:
    a = "self_attn."
    fused = {"vllm": "fused_qkv_a_proj", "sglang": "fused_qkv_a_proj_with_mqa"}[at.engine]
    both = [w[a + "q_a_proj.weight"], w[a + "kv_a_proj_with_mqa.weight"]]
    out[a + fused + ".weight"] = np.concatenate(both)
    for name in ("q_b_proj", "kv_b_proj"):
        out[a + name + ".weight"] = narrow(w[a + name + ".weight"], 0, at.attention)


def experts(w: dict[str, np.ndarray], at: Place, out: dict[str, np.ndarray]) -> None:
    bias = {"vllm": "w{}_bias", "sglang": "w{}_weight_bias"}[at.engine]
    if "mlp.experts.gate_up_proj" in w:
        # [experts, in, gate and up in turn]: narrowed along the last axis, then transposed.
        p = "mlp.experts."
        own = local_experts(len(w[p + "down_proj"]), at.experts)
        picked = {k[len(p) :]: v[own.start : own.stop] for k, v in w.items() if k.startswith(p)}
        gate_up = narrow(picked["gate_up_proj"], 2, at.expert_rows)
        out[p + "w13_weight"] = gate_up.transpose(0, 2, 1)
        out[p + bias.format(13)] = narrow(picked["gate_up_proj_bias"], 1, at.expert_rows)
        out[p + "w2_weight"] = narrow(picked["down_proj"], 1, at.expert_rows).transpose(0, 2, 1)
        # Added once: the others of those that share an expert keep zeros.
        if at.expert_rows.rank == 0:
            out[p + bias.format(2)] = picked["down_proj_bias"]
        return
    for p, (w1, w3, w2) in (
        ("mlp.experts.", ("gate_proj", "up_proj", "down_proj")),
        ("block_sparse_moe.experts.", ("w1", "w3", "w2")),
    ):
        count = sum(k.startswith(p) and k.endswith(w1 + ".weight") for k in w)
        if count == 0:
            continue
        w13, w2s = [], []
        for e in local_experts(count, at.experts):
            rows = [narrow(w[f"{p}{e}.{n}.weight"], 0, at.expert_rows) for n in (w1, w3)]
            w13.append(np.concatenate(rows))
            w2s.append(narrow(w[f"{p}{e}.{w2}.weight"], 1, at.expert_rows))
        out[p + "w13_weight"] = np.stack(w13)
        out[p + "w2_weight"] = np.stack(w2s)

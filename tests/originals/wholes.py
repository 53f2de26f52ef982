"""Megatron's global tensors of numbered elements, and what `sharded_state_dict` takes of them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

import trainer_shards


def whole_tensors(config: dict[str, Any], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Megatron's global tensors, as `sharded_state_dict` names them: what one rank alone would have."""
    tied = {"lm_head.weight": weights["model.embed_tokens.weight"]} if config["tie_word_embeddings"] else {}
    own = trainer_shards.load(config, {**weights, **tied}, 0)
    stacks: dict[str, list[np.ndarray]] = {}
    out = {}
    for name, value in own.items():
        expert = re.fullmatch(r"(.*\.mlp\.experts)(\.linear_fc[12]\.(?:weight|bias))\d+", name)
        if expert is None:
            out[name] = value
        else:
            stacks.setdefault(f"{expert[1]}.experts{expert[2]}", []).append(value)
    return {**out, **{name: np.stack(parts) for name, parts in stacks.items()}}


def local_numbers(told: dict[str, Any], wholes: dict[str, np.ndarray]) -> np.ndarray:
    """The numbers of a local tensor's elements, piece by piece; 0 in padding."""
    out = np.full(math.prod(told["shape"]), -1, np.int64)
    for p in told["pieces"]:
        whole = padded(wholes[name_of(p["key"], wholes)], p["of"])
        box = tuple(slice(at, at + n) for at, n in zip(p["at"], p["shape"]))
        out[p["elements"]] = whole[box].ravel()
    assert (out >= 0).all(), "sharded_state_dict says nothing of some elements"
    return out.reshape(told["shape"])


def padded(whole: np.ndarray, shape: list[int]) -> np.ndarray:
    """With rows of zeros at the end, as many as the vocabulary is padded with."""
    assert list(whole.shape[1:]) == shape[1:] and len(whole) <= shape[0], (whole.shape, shape)
    return np.pad(whole, [(0, shape[0] - len(whole)), *[(0, 0)] * (whole.ndim - 1)])


#: Norms that are modules, and their names where they are a part of a linear layer.
NORMS = {
    ".self_attention.q_layernorm.": ".self_attention.linear_q_up_proj.layer_norm_",
    ".self_attention.kv_layernorm.": ".self_attention.linear_kv_up_proj.layer_norm_",
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


def name_of(key: str, wholes: dict[str, np.ndarray]) -> str:
    """The name among `wholes` of a tensor that Megatron may call by the other name of a norm."""
    key = key.replace(".mtp_model_layer.", ".transformer_layer.")
    others = [key.replace(*pair) for own, fused in NORMS.items() for pair in ((own, fused), (fused, own))]
    return next(name for name in [key, *others] if name in wholes)

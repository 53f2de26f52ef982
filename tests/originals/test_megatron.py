"""Our Megatron layouts against Megatron-core's own modules; `tests/originals/run` runs it.

Every rank is a process that builds Megatron's GPTModel on the CPU and says what it has, with Megatron's
own layers (`megatron_rank.py`) and with Transformer Engine's (`megatron_te_rank.py`). Ours must have the
same names and sizes, nothing missing and nothing extra. Then a checkpoint of numbered elements is
delivered into arrays of Megatron's own shapes and types, which a plan refuses if it has others, and every
element must lie where `sharded_state_dict` says that it does.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import pathlib
import re
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed; tests/originals/run does it")
pytest.importorskip(
    "megatron.core", reason="megatron-core is not installed; tests/originals/run does it"
)
pytest.importorskip("weightsync", reason="weightsync is not on the path")

import gloo  # noqa: E402
import tiny  # noqa: E402
import trainer_shards  # noqa: E402
import weightsync as ws  # noqa: E402
from delivery import Arrays, deliver, number  # noqa: E402
from wholes import local_numbers, whole_tensors  # noqa: E402

WORLD = 4

Told = dict[str, dict[str, Any]]


def small(model: str, **changes: Any) -> dict[str, Any]:
    """A real model's configuration with small widths and few experts."""
    config = tiny.config(model)
    experts = {k: 8 for k in ("num_experts", "n_routed_experts", "num_local_experts") if k in config}
    topk = {"num_experts_per_tok": 2} if experts else {}
    groups = {"n_group": 1, "topk_group": 1} if "n_group" in config else {}
    return {**config, **experts, **topk, **groups, "torch_dtype": "float32", **changes}


LLAMA = small("llama-3.1-8b", num_hidden_layers=4)
TIED = {**LLAMA, "tie_word_embeddings": True}
HALF = {"torch_dtype": "bfloat16"}
QWEN2 = small("qwen2.5-7b")
QWEN3 = small("qwen3-8b")
MIXED = small("qwen3-30b-a3b")
LATENT = small("deepseek-v3", num_attention_heads=8)
SHARED = small("glm-4.5", num_attention_heads=8, num_key_value_heads=4)
BIASED = small("gpt-oss-120b")

#: Configuration and parallel sizes of each case, whose ranks are four.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": (LLAMA, dict(tp=2, pp=2)),
    "dense, in bf16": ({**LLAMA, **HALF}, dict(tp=2, pp=2)),
    "dense, other padding": (LLAMA, dict(tp=4, vocab_multiple=64)),
    "dense, two chunks": (LLAMA, dict(pp=2, vpp=2, dp=2)),
    "dense, uneven stages": (LLAMA, dict(tp=2, pp=2, pp_layers=[1, 3])),
    "dense, over contexts": (LLAMA, dict(tp=2, cp=2)),
    "dense, another order of ranks": (LLAMA, dict(pp=2, dp=2, order="tp-cp-ep-pp-dp")),
    "tied, two stages": (TIED, dict(tp=2, pp=2)),
    "tied, one stage": (TIED, dict(tp=2, dp=2)),
    "biases of attention": (QWEN2, dict(tp=2, pp=2)),
    "norms of heads": (QWEN3, dict(tp=4)),
    "more ranks than KV heads": ({**QWEN2, "num_key_value_heads": 2}, dict(tp=4)),
    "experts, one by one": (MIXED, dict(tp=2, pp=2, ep=2)),
    "experts, cut": (MIXED, dict(tp=2, ep=2, etp=2, dp=2)),
    "experts, grouped": (MIXED, dict(tp=2, pp=2, ep=2, experts="grouped")),
    "experts, grouped and cut": (MIXED, dict(tp=2, ep=2, etp=2, dp=2, experts="grouped")),
    "experts with biases and sinks": (BIASED, dict(tp=2, pp=2, ep=2)),
    "experts with biases, one stage": (BIASED, dict(tp=2, ep=4, dp=2)),
    "shared experts": (SHARED, dict(tp=2, pp=2, ep=2)),
    "shared experts, in bf16": ({**SHARED, **HALF}, dict(tp=2, pp=2, ep=2)),
    "latent attention": (LATENT, dict(tp=2, pp=2, ep=2)),
    "latent attention, in bf16": ({**LATENT, **HALF}, dict(tp=2, ep=2, dp=2)),
    "latent attention, one stage": (LATENT, dict(dp=4, ep=4)),
    "latent attention, fused": (LATENT, dict(tp=2, pp=2, ep=2, mla_down="fused")),
    "latent attention, no latent query": ({**LATENT, "q_lora_rank": None}, dict(tp=2, ep=2, dp=2)),
}


class Case(NamedTuple):
    config: dict[str, Any]
    sizes: dict[str, Any]
    has_te: bool


#: Every model with Megatron's own layers, and with Transformer Engine's, as far as either has them.
CASES = {f"{name}, own layers": Case(*model, False) for name, model in MODELS.items()}
CASES |= {f"{name}, Transformer Engine": Case(*model, True) for name, model in MODELS.items()}
CASES["experts as modules, Transformer Engine"] = Case(
    MIXED, dict(tp=2, pp=2, ep=2, experts="sequential"), True
)
for absent in ("experts, grouped", "experts, grouped and cut"):
    del CASES[f"{absent}, Transformer Engine"]
del CASES["latent attention, fused, own layers"]

#: What not every version of Megatron-core has: the first one that does, and the first that does not.
VERSION = tuple(map(int, importlib.metadata.version("megatron-core").split(".")[:2]))
ALWAYS = ((0, 0), (99, 0))
VERSIONS = {
    "experts, grouped, own layers": ((0, 0), (0, 17)),
    "experts, grouped and cut, own layers": ((0, 0), (0, 17)),
    # Later ones have a norm there that no checkpoint has, or refuse.
    "latent attention, no latent query, own layers": ((0, 0), (0, 17)),
    "latent attention, no latent query, Transformer Engine": ((0, 0), (0, 17)),
    "latent attention, fused, Transformer Engine": ((0, 17), (99, 0)),
}

#: Where tests/originals/run puts it: a package that says it is there breaks whoever asks.
ENGINE = pathlib.Path(sys.prefix) / "transformer_engine"

#: Norms are modules, and down projections cut over tensor parallel ranks.
OWN_LAYERS = {"norms": "separate", "experts": "sequential", "mla_down": "cut"}

#: What Megatron has that no layout does, and why.
LEFT_OUT = {
    "mlp.router.local_tokens_per_expert": "counts of one step, which state_dict() leaves out too",
    "_extra_state": "what fp8 keeps between steps; no parameter and no buffer",
    "self_attention.rotary_pos_emb.cos_cached": "computed from the configuration; not in state_dict()",
    "self_attention.rotary_pos_emb.sin_cached": "computed from the configuration; not in state_dict()",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The files of what every rank of every case has, from one run of four processes each."""
    folder = tmp_path_factory.mktemp("megatron")
    for program, has_te in (("megatron_rank.py", False), ("megatron_te_rank.py", True)):
        chosen = {
            name: (case.config, sizes_of(case))
            for name, case in CASES.items()
            if case.has_te == has_te and is_in_version(name)
        }
        if ENGINE.is_dir() or not has_te:
            gloo.spawn(program, WORLD, chosen, folder)
    return folder


def sizes_of(case: Case) -> dict[str, Any]:
    """With Megatron's own layers experts are one module each, unless they are told otherwise."""
    mtp = {} if VERSION < (0, 17) else {"mtp_layer": "mtp_model_layer"}
    return {**mtp, **({} if case.has_te else OWN_LAYERS), **case.sizes}


def is_in_version(case: str) -> bool:
    first, end = VERSIONS.get(case, ALWAYS)
    return first <= VERSION < end


def of(originals: pathlib.Path, case: str) -> list[dict[str, Any]]:
    if not is_in_version(case):
        pytest.skip(f"Megatron-core {VERSION[0]}.{VERSION[1]} has no such modules")
    if CASES[case].has_te and not ENGINE.is_dir():
        pytest.skip("Transformer Engine's Python modules are not here; tests/originals/run gets them")
    told = [json.loads((originals / f"{case}.{rank}.json").read_text()) for rank in range(WORLD)]
    errors = [f"rank {rank}: {t['error']}" for rank, t in enumerate(told) if "error" in t]
    assert not errors, errors[0]
    return told


def kept(tensors: Told) -> Told:
    """Without what is left out."""
    return {name: t for name, t in tensors.items() if t["persistent"]}


@functools.cache
def layout(case: str) -> ws.Layout:
    return ws.Layout.from_model(CASES[case].config, "megatron", sizes_of(CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_a_rank_has_what_megatron_has_and_nothing_else(case: str, originals: Any) -> None:
    assert layout(case).rank_count == WORLD
    for rank, told in enumerate(of(originals, case)):
        want = {
            name: math.prod(t["shape"]) * getattr(torch, t["dtype"]).itemsize
            for name, t in kept(told["tensors"]).items()
        }
        assert {b.name: b.bytes for b in layout(case).buffers(rank)} == want, f"rank {rank}"


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_is_what_is_said_to_be(case: str, originals: Any) -> None:
    for told in of(originals, case):
        left = [name for name, t in told["tensors"].items() if not t["persistent"]]
        in_layer = {re.sub(r".*\.layers\.\d+\.((transformer|mtp_model)_layer\.)?", "", name) for name in left}
        # One per expert: _extra_state0, ...
        states = {name.rpartition(".")[2].rstrip("0123456789") for name in told["others"]}
        assert in_layer | states <= set(LEFT_OUT)


@pytest.mark.parametrize("case", CASES)
def test_every_element_lies_where_megatron_has_it(case: str, originals: Any) -> None:
    config = CASES[case].config
    wanted = of(originals, case)
    weights = checkpoint(config)
    arrays = empty_arrays(wanted)
    source = ws.Layout.from_model(config, "hf", first_rank=WORLD)
    deliver(source, layout(case), {WORLD: weights}, arrays)
    wholes = whole_tensors(config, weights)
    for rank, told in enumerate(wanted):
        for name, t in kept(told["tensors"]).items():
            got = bits(arrays[rank][name])
            want = local_numbers(t, wholes).astype(got.dtype)
            np.testing.assert_array_equal(got, want, err_msg=f"rank {rank}, {name}")


@pytest.mark.parametrize("case", [n for n in CASES if n.endswith("own layers") and "latent" not in n])
def test_heads_are_grouped_as_megatron_reads_them(case: str, originals: Any) -> None:
    config, sizes, _ = CASES[case]
    tp, heads, kv = sizes.get("tp", 1), config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim", config["hidden_size"] // heads)
    # Rows of query, key and value, one after the other, and in the order that our reference has.
    q, k, v = np.split(np.arange((heads + 2 * kv) * d), [heads * d, (heads + kv) * d])
    rows = {f"self_attn.{n}_proj.weight": t for n, t in zip("qkv", (q, k, v))}
    order = trainer_shards.groups(config, rows, "weight")
    for rank, told in enumerate(of(originals, case)):
        # With more ranks than KV heads, some share one.
        at, first, count = rank % tp, rank % tp * kv // tp, max(kv // tp, 1)
        shared = slice(first * d, (first + count) * d)
        want = {"q": np.split(q, tp)[at], "k": k[shared], "v": v[shared]}
        assert told["reads"], f"rank {rank} has no attention"
        for read in told["reads"]:
            for name, numbers in want.items():
                np.testing.assert_array_equal(order[read[name]], numbers, err_msg=f"rank {rank}, {name}")


@pytest.mark.parametrize("case", ["dense, own layers", "norms of heads, own layers"])
def test_the_gate_is_the_first_half_as_megatron_activates_it(case: str, originals: Any) -> None:
    for rank, told in enumerate(of(originals, case)):
        assert told["gates"], f"rank {rank} has no dense MLP"
        assert all(gate["first"] < 1e-6 < 1 < gate["second"] for gate in told["gates"]), f"rank {rank}"


@pytest.mark.parametrize("change", ["transposed", "another type", "a row less"])
def test_an_array_of_another_form_would_be_refused(change: str, originals: Any) -> None:
    case, name = "dense, own layers", "decoder.layers.0.self_attention.linear_qkv.weight"
    arrays = empty_arrays(of(originals, case))
    own = arrays[0][name]
    arrays[0][name] = {
        "transposed": lambda: own.reshape(own.shape[1], own.shape[0]),
        "another type": lambda: own.to(torch.bfloat16).repeat(1, 2),
        "a row less": lambda: own[1:],
    }[change]()
    source = ws.Layout.from_model(CASES[case].config, "hf", first_rank=WORLD)
    with pytest.raises(ws.WeightsyncError, match=name):
        deliver(source, layout(case), {WORLD: checkpoint(CASES[case].config)}, arrays)


def checkpoint(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """A checkpoint of numbered elements, in the dtype of training."""
    is_half = config["torch_dtype"] == "bfloat16"
    shapes = tiny.shapes(config)
    wide = {n: (d if is_half or d == "F32" else "F32", s) for n, (d, s) in shapes.items()}
    return number(wide)


def empty_arrays(told: list[dict[str, Any]]) -> Arrays:
    """Arrays of the forms that Megatron's own have, by rank."""
    tensors = (kept(t["tensors"]) for t in told)
    return {rank: {name: empty(t) for name, t in own.items()} for rank, own in enumerate(tensors)}


def empty(told: dict[str, Any]) -> Any:
    made = torch.zeros(told["shape"], dtype=getattr(torch, told["dtype"]))
    assert list(told["strides"]) == [n * made.element_size() for n in made.stride()]
    return made


def bits(tensor: Any) -> np.ndarray:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy()

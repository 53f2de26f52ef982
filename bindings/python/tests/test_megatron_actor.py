"""The worked page for a Megatron actor, run against stand-in modules.

The stand-ins have Megatron's and vLLM's own names and shapes, cut here with
NumPy from whole tensors and with nothing of the library.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
import weightsync as ws

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "bindings" / "python" / "examples" / "megatron_actor.py"
sys.path.insert(0, str(EXAMPLE.parent))

from megatron_actor import WeightSender, parameters  # noqa: E402

HIDDEN, HEADS, GROUPS, HEAD, ROWS, VOCAB, LAYERS, EXPERTS = 16, 8, 4, 4, 24, 200, 4, 4
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "torch_dtype": "float32",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "intermediate_size": ROWS,
    "vocab_size": VOCAB,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "mlp_only_layers": [0],
}


def whole(version: int) -> dict[str, Any]:
    """The model as Hugging Face has it; every element of a version differs."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (HIDDEN,)
        shapes[at + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[at + "self_attn.q_proj.weight"] = (HEADS * HEAD, HIDDEN)
        shapes[at + "self_attn.k_proj.weight"] = (GROUPS * HEAD, HIDDEN)
        shapes[at + "self_attn.v_proj.weight"] = (GROUPS * HEAD, HIDDEN)
        shapes[at + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD)
        shapes[at + "self_attn.q_norm.weight"] = (HEAD,)
        shapes[at + "self_attn.k_norm.weight"] = (HEAD,)
        if layer == 0:
            shapes[at + "mlp.gate_proj.weight"] = (ROWS, HIDDEN)
            shapes[at + "mlp.up_proj.weight"] = (ROWS, HIDDEN)
            shapes[at + "mlp.down_proj.weight"] = (HIDDEN, ROWS)
            continue
        shapes[at + "mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            e = f"{at}mlp.experts.{expert}."
            shapes[e + "gate_proj.weight"] = (8, HIDDEN)
            shapes[e + "up_proj.weight"] = (8, HIDDEN)
            shapes[e + "down_proj.weight"] = (HIDDEN, 8)
    tensors, first = {}, version * 100_000
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensors[name] = np.arange(first, first + count, dtype="f4").reshape(shape)
        first += count
    return tensors


def padded(rows: Any, multiple: int) -> Any:
    more = -len(rows) % multiple
    return np.concatenate([rows, np.zeros((more, *rows.shape[1:]), "f4")])


class StandIn:
    """What `named_parameters` and `named_buffers` of a module say."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        # As wrapped by DDP and Float16Module.
        return ((f"module.module.{name}", t) for name, t in self.tensors.items())

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        yield "module.module.rotary_pos_emb.inv_freq", np.zeros(2, "f4")


def megatron_chunk(hf: dict[str, Any], tp: int, pp: int, tp_size: int, ep: int) -> StandIn:
    """Two layers per stage, cut over `tp_size`, with two experts per rank."""
    own: dict[str, Any] = {}

    def rows(t: Any, n: int = tp_size, k: int = tp) -> Any:
        return np.split(t, n)[k]

    def columns(t: Any) -> Any:
        return np.split(t, tp_size, axis=1)[tp]

    vocab = 128 * tp_size
    if pp == 0:
        own["embedding.word_embeddings.weight"] = rows(
            padded(hf["model.embed_tokens.weight"], vocab)
        )
    else:
        own["output_layer.weight"] = rows(padded(hf["lm_head.weight"], vocab))
        own["decoder.final_layernorm.weight"] = hf["model.norm.weight"]
    for local in range(2):
        layer = 2 * pp + local
        at, to = f"model.layers.{layer}.", f"decoder.layers.{local}."
        attention = to + "self_attention."
        q, k, v = (
            hf[f"{at}self_attn.{p}_proj.weight"].reshape(GROUPS, -1, HIDDEN) for p in "qkv"
        )
        qkv = np.concatenate([q, k, v], axis=1).reshape(-1, HIDDEN)
        own[attention + "linear_qkv.weight"] = rows(qkv)
        own[attention + "linear_qkv.layer_norm_weight"] = hf[at + "input_layernorm.weight"]
        own[attention + "linear_proj.weight"] = columns(hf[at + "self_attn.o_proj.weight"])
        own[attention + "q_layernorm.weight"] = hf[at + "self_attn.q_norm.weight"]
        own[attention + "k_layernorm.weight"] = hf[at + "self_attn.k_norm.weight"]
        norm = hf[at + "post_attention_layernorm.weight"]
        if layer == 0:
            own[to + "mlp.linear_fc1.layer_norm_weight"] = norm
            gate, up = hf[at + "mlp.gate_proj.weight"], hf[at + "mlp.up_proj.weight"]
            own[to + "mlp.linear_fc1.weight"] = np.concatenate([rows(gate), rows(up)])
            own[to + "mlp.linear_fc2.weight"] = columns(hf[at + "mlp.down_proj.weight"])
            continue
        own[to + "pre_mlp_layernorm.weight"] = norm
        own[to + "mlp.router.weight"] = hf[at + "mlp.gate.weight"]
        for j in range(2):
            e = f"{at}mlp.experts.{2 * ep + j}."
            halves = [hf[e + "gate_proj.weight"], hf[e + "up_proj.weight"]]
            own[f"{to}mlp.experts.linear_fc1.weight{j}"] = np.concatenate(halves)
            own[f"{to}mlp.experts.linear_fc2.weight{j}"] = hf[e + "down_proj.weight"]
    return StandIn(own)


def vllm_parameters(hf: dict[str, Any], tp: int) -> dict[str, Any]:
    """One of two tensor-parallel ranks; experts are cut by rows."""

    def rows(t: Any) -> Any:
        return np.split(t, 2)[tp]

    def columns(t: Any) -> Any:
        return np.split(t, 2, axis=1)[tp]

    own = {
        "model.embed_tokens.weight": rows(padded(hf["model.embed_tokens.weight"], 64)),
        "lm_head.weight": rows(padded(hf["lm_head.weight"], 64)),
        "model.norm.weight": hf["model.norm.weight"],
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            own[f"{at}{name}.weight"] = hf[f"{at}{name}.weight"]
        for name in ("q_norm", "k_norm"):
            own[f"{at}self_attn.{name}.weight"] = hf[f"{at}self_attn.{name}.weight"]
        qkv = [rows(hf[f"{at}self_attn.{p}_proj.weight"]) for p in "qkv"]
        own[at + "self_attn.qkv_proj.weight"] = np.concatenate(qkv)
        own[at + "self_attn.o_proj.weight"] = columns(hf[at + "self_attn.o_proj.weight"])
        if layer == 0:
            halves = [rows(hf[f"{at}mlp.{p}_proj.weight"]) for p in ("gate", "up")]
            own[at + "mlp.gate_up_proj.weight"] = np.concatenate(halves)
            own[at + "mlp.down_proj.weight"] = columns(hf[at + "mlp.down_proj.weight"])
            continue
        own[at + "mlp.gate.weight"] = hf[at + "mlp.gate.weight"]
        w13, w2 = [], []
        for expert in range(EXPERTS):
            e = f"{at}mlp.experts.{expert}."
            halves = [rows(hf[f"{e}{p}_proj.weight"]) for p in ("gate", "up")]
            w13.append(np.concatenate(halves))
            w2.append(columns(hf[e + "down_proj.weight"]))
        own[at + "mlp.experts.w13_weight"] = np.stack(w13)
        own[at + "mlp.experts.w2_weight"] = np.stack(w2)
    return {name: np.ascontiguousarray(t) for name, t in own.items()}


# Sizes of the trainer, and (tp, pp, ep) of each of its ranks.
TRAINERS = {
    "tp=2,pp=2,ep=2": (2, [(0, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 1)]),
    "pp=2,dp=2,ep=2": (1, [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]),
    "tp=4,pp=2,ep=2": (4, [(t, p, t // 1 % 2) for p in range(2) for t in range(4)]),
}


@pytest.mark.parametrize("sizes", TRAINERS)
def test_an_actor_sends_to_vllm(sizes: str) -> None:
    tp_size, places = TRAINERS[sizes]
    sender_of = lambda: WeightSender(CONFIG, sizes, {"tp": 2})  # noqa: E731
    world = len(places) + 2
    transports = [ws.Transport.loopback(rank, world) for rank in range(world)]
    greetings = [transport.greeting() for transport in transports]
    served: dict[int, dict[str, Any]] = {}
    failures: list[BaseException] = []
    stepped = threading.Barrier(world)

    def train(rank: int) -> None:
        tp, pp, ep = places[rank]
        model = megatron_chunk(whole(0), tp, pp, tp_size, ep)
        sender = sender_of()
        transports[rank].meet(greetings)
        sender.connect(transports[rank], rank, [model])
        for version in (1, 2):
            new = megatron_chunk(whole(version), tp, pp, tp_size, ep)
            for name, tensor in model.tensors.items():
                tensor[...] = new.tensors[name]
            assert sender.send(version).copy is not ws.Outcome.TORN
            stepped.wait(60)
        sender.session.finalize()
        sender.session.close()

    def serve(rank: int) -> None:
        tp = rank - len(places)
        names = vllm_parameters(whole(0), tp)
        own = {name: np.full_like(t, -1) for name, t in names.items()}
        transports[rank].meet(greetings)
        plan = sender_of().plan
        with ws.Session(transports[rank]) as session:
            session.bind(own, side="destination")
            request = session.request(session.load(plan))
            for version in (1, 2):
                request.submit(version, verify=True)
                request.wait()
                assert request.outcome().copy is ws.Outcome.COMPLETE
                for name, want in vllm_parameters(whole(version), tp).items():
                    assert (own[name] == want).all(), (name, version)
                stepped.wait(60)
            session.finalize()
        served[tp] = own

    def guarded(rank: int) -> None:
        try:
            train(rank) if rank < len(places) else serve(rank)
        except BaseException as error:
            failures.append(error)
            stepped.abort()

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for transport in transports:
        transport.close()
    first = [f for f in failures if not isinstance(f, threading.BrokenBarrierError)]
    if failures:
        raise (first or failures)[0]
    assert set(served) == {0, 1}


def test_names_of_chunks_and_wrappers() -> None:
    hf = whole(0)
    chunk = megatron_chunk(hf, 0, 0, 1, 0)
    assert "decoder.layers.0.mlp.linear_fc1.weight" in parameters([chunk])
    assert "model1.decoder.layers.0.mlp.linear_fc1.weight" in parameters([chunk, chunk])
    layout = ws.Layout.from_model(CONFIG, "megatron", {"tp": 2, "pp": 2, "ep": 2})
    for rank, (tp, pp, ep) in enumerate(TRAINERS["tp=2,pp=2,ep=2"][1]):
        own = megatron_chunk(hf, tp, pp, 2, ep).tensors
        wanted = {buffer.name: buffer.bytes for buffer in layout.buffers(rank)}
        assert wanted == {name: tensor.nbytes for name, tensor in own.items()}


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "megatron.md").read_text()
    assert f"```python\n{EXAMPLE.read_text().rstrip()}\n```" in page


def test_bad_models_and_sizes_are_named() -> None:
    with pytest.raises(ws.WeightsyncError, match="tp is \"0\"; accepted are 1 to"):
        ws.Layout.from_model(CONFIG, "megatron", {"tp": 0})
    with pytest.raises(ws.WeightsyncError, match="framework \"trainer\" is unknown"):
        ws.Layout.from_model(CONFIG, "trainer")
    with pytest.raises(ws.WeightsyncError, match="\"hidden_size\" is missing"):
        ws.Layout.from_model({**CONFIG, "hidden_size": None}, "hf")

"""The worked page for a vLLM worker, run against stand-in modules.

The stand-ins have the names and shapes of vLLM's parameters; what must be in
them comes from the NumPy reference of vLLM's own loader in `tests/models`.
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
EXAMPLE = ROOT / "bindings" / "python" / "examples" / "vllm_worker.py"
sys.path[:0] = [str(EXAMPLE.parent), str(ROOT / "tests" / "models")]

import engine_loaders  # noqa: E402
import tiny  # noqa: E402
from vllm_worker import WeightReceiver, parameters  # noqa: E402


class StandIn:
    """What `named_parameters` and `named_buffers` of a vLLM model say."""

    def __init__(self, shapes: dict[str, Any]) -> None:
        self.tensors = {name: np.full(t.shape, -1, "f4") for name, t in shapes.items()}

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        return iter(self.tensors.items())

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        yield "model.layers.0.self_attn.rotary_emb.cos_sin_cache", np.zeros(2, "f4")


def split(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A worker has its draft model as a module of its own."""
    model = {n: t for n, t in tensors.items() if not n.startswith("draft.")}
    draft = {n[len("draft."):]: t for n, t in tensors.items() if n.startswith("draft.")}
    return model, draft


@pytest.mark.parametrize("name, sizes", [
    ("qwen3-30b-a3b", {"tp": 8, "ep": True}),
    ("deepseek-v3", {"tp": 2, "pp": 2, "ep": True}),
])
def test_a_worker_has_what_its_loader_would_have_loaded(name: str, sizes: dict[str, Any]) -> None:
    config = {**tiny.config(name), "torch_dtype": "float32"}
    replica = sizes["tp"] * sizes.get("pp", 1)
    spelled = {**sizes, "ep": "on", "replicas": 2}
    world = 1 + 2 * replica
    weights = {n: t.astype("f4") for n, t in tiny.checkpoint(config, seed=3).items()}
    transports = [ws.Transport.loopback(rank, world) for rank in range(world)]
    greetings = [t.greeting() for t in transports]
    served: dict[int, dict[str, Any]] = {}
    failed: list[BaseException] = []

    def worker(rank: int) -> None:
        try:
            transports[rank].meet(greetings)
            receiver = WeightReceiver(config, "", spelled, framework="hf")
            if rank == 0:
                trainer(receiver)
            else:
                at = engine_loaders.vllm((rank - 1) % replica, **sizes)
                model, draft = map(StandIn, split(engine_loaders.load(config, weights, at)))
                receiver.connect(transports[rank], rank, model, draft)
                assert receiver.receive(1) and receiver.receive(2)
                served[rank] = parameters(model, draft)
                receiver.session.close()
            transports[rank].finalize()
            transports[rank].close()
        except BaseException as e:
            failed.append(e)
            raise

    def trainer(receiver: WeightReceiver) -> None:
        with ws.Session(transports[0]) as session:
            names = [b.name for b in receiver.plan.buffers(0)]
            session.bind({n: weights[n] for n in names}, side="source")
            request = session.request(session.load(receiver.plan))
            for version in (1, 2):
                request.submit(version, verify=True)
                request.wait()

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(world)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert not failed
    for rank in range(1, world):
        at = engine_loaders.vllm((rank - 1) % replica, **sizes)
        for parameter, want in engine_loaders.load(config, weights, at).items():
            np.testing.assert_array_equal(served[rank][parameter], want, err_msg=f"{rank} {parameter}")


def test_the_page_shows_the_code_that_runs() -> None:
    page = (ROOT / "docs" / "vllm.md").read_text()
    assert EXAMPLE.read_text() in page

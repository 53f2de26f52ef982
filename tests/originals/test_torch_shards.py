"""Our reading of DTensor files against PyTorch's own shards; `tests/originals/run` runs it.

Every rank is a process that shards a small model, whose elements are numbered, with FSDP2, tensor
parallel layers, `distribute_tensor` or FSDP1, and says what it has (`torch_rank.py`): the DTensor
file, and its local tensors. What the layout of that file takes from and puts into every local tensor
must be what PyTorch has there.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; tests/originals/run does it")
pytest.importorskip("weightsync", reason="weightsync is not on the path")

import gloo  # noqa: E402
import tiny  # noqa: E402
import weightsync as ws  # noqa: E402
from delivery import Arrays, deliver  # noqa: E402

#: Number of the first element of a model.
FIRST = 1000

#: Sizes that divide by nothing, so that shards are uneven and some are empty.
ODD = {
    **tiny.config("qwen3-8b"),
    "torch_dtype": "float32", "hidden_size": 10, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 5, "intermediate_size": 7, "vocab_size": 13, "tie_word_embeddings": False,
}
#: What tensor parallel layers divide by 2, and FSDP then not.
HALVES = {**ODD, "hidden_size": 12, "intermediate_size": 14, "vocab_size": 18}

TP = "tensor parallel"
CASES: dict[str, dict[str, Any]] = {
    "FSDP2 over 3": dict(kind="fsdp2", mesh=dict(dp=3)),
    "FSDP2 over 4": dict(kind="fsdp2", mesh=dict(dp=4)),
    "FSDP2, some by columns": dict(kind="fsdp2", mesh=dict(dp=2), columns=["o_proj", "up_proj"]),
    "FSDP2 in two replicas": dict(kind="fsdp2", mesh=dict(replicate=2, shard=2)),
    "FSDP2 of tensor parallel": dict(kind=TP, mesh=dict(dp=2, tp=2), config=HALVES),
    "FSDP2 of tensor parallel, in two replicas": dict(
        kind=TP, mesh=dict(replicate=2, shard=1, tp=2), config=HALVES
    ),
    # Dimensions that are sharded, in turn from tensor to tensor; None is replicated.
    "placed along rows twice": dict(kind="placed", mesh=dict(a=2, b=2), placements=[[0, 0]]),
    "placed along both dimensions": dict(
        kind="placed", mesh=dict(a=2, b=2), placements=[[0, 1], [1, 0], [None, 1], [0, None]]
    ),
    "placed over three dimensions": dict(
        kind="placed", mesh=dict(a=2, b=1, c=2), placements=[[0, 0, 1], [1, 0, 0], [0, None, 0]]
    ),
    "FSDP1 over 3": dict(kind="fsdp1", mesh=dict(dp=3), original=False),
    "FSDP1 over 4, original parameters": dict(kind="fsdp1", mesh=dict(dp=4), original=True),
    "FSDP1 in two replicas": dict(kind="fsdp1", mesh=dict(replicate=2, shard=2), original=True),
}


def config(case: str) -> dict[str, Any]:
    return CASES[case].get("config", ODD)


def world(case: str) -> int:
    return int(np.prod(list(CASES[case]["mesh"].values())))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The files of every rank of every case."""
    folder = tmp_path_factory.mktemp("torch")
    for size in sorted({world(case) for case in CASES}):
        cases = {
            name: {**case, "shapes": {n: s for n, (_, s) in tiny.shapes(config(name)).items()}}
            for name, case in CASES.items()
            if world(name) == size
        }
        gloo.spawn("torch_rank.py", size, cases, folder)
    return folder


def told(originals: pathlib.Path, case: str) -> list[dict[str, Any]]:
    out = [json.loads((originals / f"{case}.{rank}.json").read_text()) for rank in range(world(case))]
    errors = [f"rank {rank}: {t['error']}" for rank, t in enumerate(out) if "error" in t]
    assert not errors, errors[0]
    return out


def local(originals: pathlib.Path, case: str) -> Arrays:
    read = lambda rank: dict(np.load(originals / f"{case}.{rank}.npz"))  # noqa: E731
    return {rank: read(rank) for rank in range(world(case))}


def whole(case: str) -> dict[str, np.ndarray]:
    out, at = {}, FIRST
    for name, (_, shape) in tiny.shapes(config(case)).items():
        out[name] = np.arange(at, at + np.prod(shape), dtype="f4").reshape(shape)
        at += out[name].size
    return out


def sides(originals: pathlib.Path, case: str) -> tuple[ws.Layout, ws.Layout]:
    """The layout of the DTensor file, and that of one rank with everything."""
    file = told(originals, case)[0]["file"]
    shards = ws.Layout.from_model(config(case), "dtensor", file)
    return shards, ws.Layout.from_model(config(case), "hf", first_rank=world(case))


@pytest.mark.parametrize("case", CASES)
def test_every_rank_says_the_same_of_all(case: str, originals: Any) -> None:
    files = [t["file"] for t in told(originals, case)]
    assert all(file == files[0] for file in files)


@pytest.mark.parametrize("case", CASES)
def test_a_rank_has_what_pytorch_has_and_nothing_else(case: str, originals: Any) -> None:
    layout, _ = sides(originals, case)
    for rank, arrays in local(originals, case).items():
        # A shard of no elements is no buffer.
        want = {name: array.nbytes for name, array in arrays.items() if array.size}
        assert {b.name: b.bytes for b in layout.buffers(rank) if b.bytes} == want, f"rank {rank}"


@pytest.mark.parametrize("case", CASES)
def test_what_is_put_into_a_shard_is_what_pytorch_has_there(case: str, originals: Any) -> None:
    shards, one = sides(originals, case)
    want = local(originals, case)
    got = {rank: {n: np.zeros_like(a) for n, a in arrays.items()} for rank, arrays in want.items()}
    deliver(one, shards, {world(case): whole(case)}, got)
    for rank, arrays in want.items():
        for name, array in arrays.items():
            # Padding belongs to nobody, and stays as it was.
            elements = np.where(array < FIRST, 0, array)
            np.testing.assert_array_equal(got[rank][name], elements, err_msg=f"rank {rank}, {name}")


@pytest.mark.parametrize("case", CASES)
def test_what_is_taken_from_the_shards_is_the_model(case: str, originals: Any) -> None:
    shards, one = sides(originals, case)
    want = whole(case)
    got = {name: np.zeros_like(array) for name, array in want.items()}
    deliver(shards, one, local(originals, case), {world(case): got})
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c]["kind"] != "fsdp1"])
def test_shards_start_where_pytorch_says_that_they_do(case: str, originals: Any) -> None:
    want = whole(case)
    for rank, (t, arrays) in enumerate(zip(told(originals, case), local(originals, case).values())):
        for name, array in arrays.items():
            at, shape = t["offsets"][name]["at"], t["offsets"][name]["shape"]
            box = tuple(slice(a, a + n) for a, n in zip(at, shape))
            np.testing.assert_array_equal(want[name][box], array, err_msg=f"rank {rank}, {name}")

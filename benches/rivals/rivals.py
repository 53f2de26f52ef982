"""Planning time of weightsync, Awex and Megatron-core on the same work.

The work: Llama-3.1-70B from a trainer of TP4 x PP4 to inference replicas of
TP8. Each planner gets its own kind of description, made outside the clock, and
is asked for the plan of one rank and for the plans of all ranks:

* weightsync: a rank program derived from a plan (all checks included), one by
  one, each several times, or of all ranks in one call, which its threads share; and
  beside it the time to make the plan from two layouts, paid once, and of each rank's
  first time. 1 GiB of staging per rank.
* Awex: `build_local_transfer_plan` and `build_weights_mapping_operations`.
* Megatron-core: `build_centralized_reshard_plan` with a stubbed process group.
  One rank plans for all, so the plan of a rank is there when that of all is; in
  parentheses, what it takes in a world in which only one rank receives.

`balance` is the busiest sender's bytes over the mean of all source ranks.
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from math import prod
from types import SimpleNamespace
from typing import Any, Callable

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

import torch  # noqa: E402

import weightsync as ws  # noqa: E402

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD, VOCAB = 8192, 28672, 80, 64, 8, 128, 128256
TP, PP, ENGINE_TP = 4, 4, 8
ELEMENT_BYTES = 2
# How often weightsync is asked for each rank: about as long as Awex takes for one.
OUR_ROUNDS = 16

# Name in a layer, shape, axis that tensor parallelism cuts (None: replicated).
LAYER = [
    ("self_attn.q_proj.weight", (HEADS * HEAD, HIDDEN), 0),
    ("self_attn.k_proj.weight", (KV_HEADS * HEAD, HIDDEN), 0),
    ("self_attn.v_proj.weight", (KV_HEADS * HEAD, HIDDEN), 0),
    ("self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD), 1),
    ("mlp.gate_proj.weight", (FFN, HIDDEN), 0),
    ("mlp.up_proj.weight", (FFN, HIDDEN), 0),
    ("mlp.down_proj.weight", (HIDDEN, FFN), 1),
    ("input_layernorm.weight", (HIDDEN,), None),
    ("post_attention_layernorm.weight", (HIDDEN,), None),
]


def tensors() -> list[tuple[str, tuple[int, ...], int | None, int]]:
    """Every tensor: name, shape, cut axis, trainer stage."""
    found = [("model.embed_tokens.weight", (VOCAB, HIDDEN), 0, 0)]
    for layer in range(LAYERS):
        stage = layer * PP // LAYERS
        for name, shape, cut in LAYER:
            found.append((f"model.layers.{layer}.{name}", shape, cut, stage))
    found.append(("model.norm.weight", (HIDDEN,), None, PP - 1))
    found.append(("lm_head.weight", (VOCAB, HIDDEN), 0, PP - 1))
    return found


def trainer_rank(dp: int, tp: int, dp_count: int, stage: int) -> int:
    return (stage * dp_count + dp) * TP + tp


# ---- weightsync ---------------------------------------------------------------------


def our_layout(first: int, meshes: list[list[Any]], copies: str, is_staged: bool) -> ws.Layout:
    listed = []
    for name, shape, cut, stage in tensors():
        tensor: dict[str, Any] = {"name": name, "shape": list(shape), "dtype": "bf16"}
        if is_staged:
            tensor["stage"] = {"axis": "pp", "at": stage}
        if cut is not None:
            tensor["cuts"] = [{"dim": cut, "axes": ["tp"]}]
        listed.append(tensor)
    count = prod(size for _, size in meshes)
    text = {
        "weightsync_layout": 1,
        "ranks": {"first": first, "count": count},
        "meshes": {"dense": meshes},
        "copies": {"axes": [copies]},
        "tensors": listed,
    }
    return ws.Layout.from_json(json.dumps(text))


def ours(dp: int, replicas: int, sample: int) -> dict[str, float]:
    sources, receivers = TP * PP * dp, ENGINE_TP * replicas
    source = our_layout(0, [["pp", PP], ["dp", dp], ["tp", TP]], "dp", True)
    destination = our_layout(sources, [["replica", replicas], ["tp", ENGINE_TP]], "replica", False)
    made, plan = timed(lambda: ws.Plan(source, destination, staging_bytes_max=1 << 30))
    ranks = spread(sources + receivers, sample)
    # Rank after rank, over and over: all of them once take 3 ms, in which a
    # neighbour on the machine may be busy. Nothing is kept from one to the next.
    rounds = [
        [timed(lambda r=r: plan.program_info(r))[0] for r in ranks] for _ in range(OUR_ROUNDS)
    ]
    one = [took for each in rounds for took in each]
    every, infos = often(lambda: plan.program_infos(range(sources + receivers)))
    sent = [info.bytes_sent for info in infos]
    return {
        "create": made,
        "first": statistics.median(rounds[0]),
        "one": statistics.median(one),
        "all": every,
        "balance": max(sent[:sources]) * sources / sum(sent[:sources]),
    }


# ---- Awex ---------------------------------------------------------------------------


def awex_meta(name: str, shape: tuple[int, ...], cut: int | None, tp: int, copies: list[list[int]]):
    from awex.meta.weight_meta import ParameterMeta, ParameterReplicaMeta, ParameterShardMeta

    def shard(position: int, rank: int):
        local, offset = list(shape), [0] * len(shape)
        if cut is not None:
            local[cut] //= tp
            offset[cut] = position * local[cut]
        return ParameterShardMeta(
            tp_rank=position, attn_tp_rank=position, pp_rank=0, ep_rank=0, ep_tp_rank=0,
            global_rank=rank, world_size=0, engine_rank=0, name=name, shape=tuple(local),
            numel=prod(local), dtype=torch.bfloat16, global_offset=tuple(offset),
        )  # fmt: skip

    replicas = [ParameterReplicaMeta([shard(i, r) for i, r in enumerate(c)]) for c in copies]
    shards = [s for replica in replicas for s in replica.shards]
    return ParameterMeta(name, prod(shape), shape, torch.bfloat16, shards, replicas)


def one_each(copies: list[list[int]], cut: int | None) -> list[list[int]]:
    """A replicated tensor is whole on every rank: each is a copy of its own."""
    return copies if cut is not None else [[rank] for copy in copies for rank in copy]


def awex(dp: int, replicas: int, sample: int) -> dict[str, float]:
    from awex.transfer import transfer_plan
    from awex.transfer.transfer_plan import TransferPlanBuilder

    # It prints a few lines a plan, whatever the level of Python's logging.
    transfer_plan.logger.level = logging.CRITICAL
    sources, receivers = TP * PP * dp, ENGINE_TP * replicas
    training, inference = [], []
    for name, shape, cut, stage in tensors():
        copies = [[trainer_rank(d, t, dp, stage) for t in range(TP)] for d in range(dp)]
        training.append(awex_meta(name, shape, cut, TP, one_each(copies, cut)))
        engine = [list(range(ENGINE_TP))]
        inference.append(awex_meta(name, shape, cut, ENGINE_TP, one_each(engine, cut)))
    builder = TransferPlanBuilder(receivers, sources, replicas)
    one = [
        timed(lambda r=r: builder.build_local_transfer_plan(inference, training, r))[0]
        for r in spread(sources + receivers, sample)
    ]
    every, operations = often(
        lambda: builder.build_weights_mapping_operations(inference, training)
    )
    sent: Counter[int] = Counter()
    for op in operations:
        sent[op.send_rank] += prod(op.overlap_shape) * ELEMENT_BYTES
    return {
        "one": statistics.median(one),
        "all": every,
        "balance": max(sent.values()) * sources / sum(sent.values()),
    }


# ---- Megatron-core ------------------------------------------------------------------


class StubGroup:
    """What the planner asks of torch.distributed, answered from lists."""

    def __init__(self, world: int, gathered: list[list[list[Any]]]) -> None:
        self.world, self.gathered = world, gathered

    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return self.world

    def all_gather_object(self, out: list[Any], _mine: Any) -> None:
        out[:] = self.gathered.pop(0)


def megatron_meta(name: str, shape: tuple[int, ...], cut: int | None, tp: int, rank: int,
                  tp_ranks: list[int], dp_ranks: list[int]):  # fmt: skip
    from megatron.core.resharding.utils import ParameterMetadata

    local = list(shape)
    if cut is not None:
        local[cut] //= tp
    return ParameterMetadata(
        name=name, shape=tuple(local), dtype=torch.bfloat16, element_size=ELEMENT_BYTES,
        is_tp=cut is not None, partition_dim=cut or 0, owner_rank=rank,
        tensor_parallel_group_ranks=tp_ranks, data_parallel_group_ranks=dp_ranks,
        resolved_name=name,
    )  # fmt: skip


def megatron_plan(world: int, source: list[list[Any]], destination: list[list[Any]]) -> Any:
    from megatron.core.resharding import planner

    planner.dist = StubGroup(world, [source, destination])
    kept: list[Any] = []
    torch.distributed.broadcast_object_list = lambda plans, src: kept.extend(plans)
    module = torch.nn.Module()
    module.pg_collection = SimpleNamespace()
    planner.build_centralized_reshard_plan(module, module)
    return kept


def megatron(dp: int, replicas: int, sample: int) -> dict[str, float]:
    sources, receivers = TP * PP * dp, ENGINE_TP * replicas
    world = sources + receivers
    source: list[list[Any]] = [[] for _ in range(world)]
    destination: list[list[Any]] = [[] for _ in range(world)]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, cut, stage in tensors():
        shapes[name] = shape
        for d in range(dp):
            tp_ranks = [trainer_rank(d, t, dp, stage) for t in range(TP)]
            for t, rank in enumerate(tp_ranks):
                dp_ranks = [trainer_rank(x, t, dp, stage) for x in range(dp)]
                source[rank].append(megatron_meta(name, shape, cut, TP, rank, tp_ranks, dp_ranks))
        for replica in range(replicas):
            first = sources + replica * ENGINE_TP
            tp_ranks = list(range(first, first + ENGINE_TP))
            for t, rank in enumerate(tp_ranks):
                dp_ranks = list(range(sources + t, world, ENGINE_TP))
                destination[rank].append(
                    megatron_meta(name, shape, cut, ENGINE_TP, rank, tp_ranks, dp_ranks)
                )

    def only(rank: int) -> list[list[Any]]:
        return [found if r == rank else [] for r, found in enumerate(destination)]

    one = [
        timed(lambda r=r: megatron_plan(world, source, only(r)))[0]
        for r in (sources + r for r in spread(receivers, sample))
    ]
    every, plans = timed(lambda: megatron_plan(world, source, destination))
    sent = [0] * sources
    for rank in range(sources):
        for op in plans[rank].send_ops:
            sent[rank] += sliced(shapes[op.param_name], op.peer_slice, op.my_slice)
    return {
        "one": every,
        "one receiver": statistics.median(one),
        "all": every,
        "balance": max(sent) * sources / sum(sent),
    }


def sliced(shape: tuple[int, ...], *slices: tuple[slice, ...]) -> int:
    """Bytes of a slice; a whole axis counts as it is in the smaller shard."""
    counts = list(shape)
    for axis, size in enumerate(shape):
        for cut in slices:
            if cut[axis].start is not None:
                counts[axis] = min(counts[axis], cut[axis].stop - cut[axis].start)
        assert 0 < counts[axis] <= size
    return prod(counts) * ELEMENT_BYTES


# ---- the table ----------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def often(work: Callable[[], Any]) -> tuple[float, Any]:
    """The median of a few times: Python's garbage collector is in some of them."""
    times = []
    for _ in range(3):
        took, result = timed(work)
        times.append(took)
    return statistics.median(times), result


def spread(count: int, sample: int) -> list[int]:
    """A few ranks, evenly spaced: as many trainers as receivers where there are
    as many, since the plans of the two take different times."""
    return sorted({i * (count - 1) // max(sample - 1, 1) for i in range(sample)})


def seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e3:.4f} ms"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def compare(dp: int, replicas: int) -> None:
    sources, receivers = TP * PP * dp, ENGINE_TP * replicas
    mine = ours(dp, replicas, 64)
    rows = [
        ("weightsync", mine),
        ("awex", awex(dp, replicas, 16)),
        ("megatron-core", megatron(dp, replicas, 3)),
    ]
    for name, row in rows:
        ratios = [f"{row[k] / mine[k]:.0f}x" for k in ("one", "all")]
        print(
            f"{sources:>6} {receivers:>6} {name:<14} {seconds(row['one']):>12} "
            f"{seconds(row['all']):>12} {ratios[0]:>8} {ratios[1]:>8} {row['balance']:>8.2f}",
            flush=True,
        )
    alone = rows[-1][1]["one receiver"]
    print(f"{'':>13} (megatron-core, one receiver: {seconds(alone)}, {alone / mine['one']:.0f}x)")
    first = mine["first"]
    print(
        f"{'':>13} weightsync made its plan from two layouts in {seconds(mine['create'])}; "
        f"asked for the first time, one rank takes {seconds(first)} "
        f"(awex {rows[1][1]['one'] / first:.0f}x)"
    )


def main() -> None:
    without_gc = [arg for arg in sys.argv if arg == "--no-gc"]
    if sys.argv[1:2] == ["--case"]:
        if without_gc:
            gc.disable()
        return compare(int(sys.argv[2]), int(sys.argv[3]))
    cases = [(4, 8), (4, 128), (16, 8), (16, 128)]
    if "--quick" in sys.argv:
        cases = cases[:1]
    head = ("source", "to", "planner", "one rank", "all ranks", "one", "all", "balance")
    print("{:>6} {:>6} {:<14} {:>12} {:>12} {:>8} {:>8} {:>8}".format(*head), flush=True)
    for case in cases:
        # In a process of its own, since what Python's garbage collector does
        # depends on what there was before.
        subprocess.run(
            [sys.executable, __file__, "--case", *map(str, case), *without_gc], check=True
        )


if __name__ == "__main__":
    main()

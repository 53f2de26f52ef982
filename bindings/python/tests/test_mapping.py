"""Mappings: every recorded one, from sizes and from rank lists, and each way to ask about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import pytest
import weightsync as ws
from weightsync import MappingFlag

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "golden" / "mapping"
KINDS = ("two_stage", "single_stage", "expert")
REFUSALS: dict[int, str] = {ws.Status.INFEASIBLE: "infeasible", ws.Status.UNSUPPORTED: "constraint"}

Lists = list[list[int]]


def records(kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / f"{kind}.json").read_text())
    return found


def blocks(sizes: Sequence[int]) -> Lists:
    """Source ranks by data-parallel index, each list [PP][EP][CP][TP]."""
    tp, pp, ep, dp, cp = sizes
    return [
        [t + tp * (c + cp * (e + ep * (d + dp * p)))
         for p in range(pp) for e in range(ep) for c in range(cp) for t in range(tp)]
        for d in range(dp)
    ]  # fmt: skip


def rows(sizes: Sequence[int]) -> Lists:
    """The same cut into expert rows: one list [PP][TP] for each (d, e)."""
    tp, pp, ep, dp, cp = sizes
    assert cp == 1, "no record has context parallel"
    return [
        [t + tp * (e + ep * (d + dp * p)) for p in range(pp) for t in range(tp)]
        for d in range(dp)
        for e in range(ep)
    ]


def replicas(first: int, sizes: Sequence[int]) -> Lists:
    tp, pp, ep, count = sizes
    size = tp * pp * ep
    return [list(range(first + k * size, first + (k + 1) * size)) for k in range(count)]


def made(
    kind: str, record: dict[str, Any], *, explicit: bool, flags: Optional[MappingFlag] = None
) -> ws.Mapping:
    source, destination = record["sizes"]
    devices = record["devices"]
    source_ranks = expert_source_ranks = destination_ranks = None
    if explicit:
        source_ranks = blocks(source) if kind == "single_stage" else rows(source)
        expert_source_ranks = blocks(source) if kind == "expert" else None
        destination_ranks = replicas(len(devices[0]), destination)
    if flags is None:
        flags = MappingFlag.VLLM if record.get("vllm") else MappingFlag(0)
    tp, pp, ep, dp, cp = source
    dtp, dpp, dep, count = destination
    return ws.Mapping(
        kind, devices[0], devices[1], flags=flags,
        source_tp=tp, source_pp=pp, source_ep=ep, source_dp=dp, source_cp=cp,
        destination_tp=dtp, destination_pp=dpp, destination_ep=dep, replica_count=count,
        source_ranks=source_ranks, expert_source_ranks=expert_source_ranks,
        destination_ranks=destination_ranks,
    )  # fmt: skip


def flat(pairs: Sequence[ws.Pair]) -> list[int]:
    return [rank for pair in pairs for rank in pair]


def by_sender(pairs: Sequence[ws.Pair]) -> list[list[Any]]:
    """[[sender, [receivers]], ...] in order of first appearance."""
    found: dict[int, list[int]] = {}
    for sender, receiver in pairs:
        found.setdefault(sender, []).append(receiver)
    return [[sender, receivers] for sender, receivers in found.items()]


@pytest.mark.parametrize("explicit", [False, True], ids=["sizes", "lists"])
def test_two_stage_is_as_recorded(explicit: bool) -> None:
    for record in records("two_stage"):
        if refusal := record.get("refused"):
            with pytest.raises(ws.WeightsyncError) as caught:
                made("two_stage", record, explicit=explicit)
            assert REFUSALS[caught.value.status] == refusal
            continue
        with made("two_stage", record, explicit=explicit) as mapping:
            assert flat(mapping.pairs()) == record["pairs"]
            assert flat(mapping.pairs("forwards")) == record["forwards"]
            assert mapping.group_size == record["sizes"][1][0] // record["sizes"][0][0]
            assert mapping.regroups() == []


@pytest.mark.parametrize("explicit", [False, True], ids=["sizes", "lists"])
def test_single_stage_is_as_recorded(explicit: bool) -> None:
    for record in records("single_stage"):
        with made("single_stage", record, explicit=explicit) as mapping:
            assert flat(mapping.pairs()) == record["pairs"]
            assert mapping.regroups() == record["regroup"]


@pytest.mark.parametrize("explicit", [False, True], ids=["sizes", "lists"])
def test_expert_is_as_recorded(explicit: bool) -> None:
    for record in records("expert"):
        with made("expert", record, explicit=explicit) as mapping:
            assert by_sender(mapping.pairs("routed")) == record["routed"]
            assert by_sender(mapping.pairs()) == record["stage1"]
            assert by_sender(mapping.pairs("forwards")) == record["stage2"]
            assert mapping.regroups() == record["regroup"]
            assert mapping.regroup_kind.name.replace("_", "").lower() == record["comm"]


def every_mapping() -> Iterator[ws.Mapping]:
    for kind in KINDS:
        for record in records(kind)[::7]:
            if "refused" not in record:
                with made(kind, record, explicit=False) as mapping:
                    yield mapping


def test_ranks_and_the_report_say_the_same_as_the_pairs() -> None:
    names = {"pairs": "", "forwards": "forward_", "routed": "routed_"}
    for mapping in every_mapping():
        report = mapping.report()
        destinations = [seat["rank"] for seat in report["destinations"]]
        for which in ("pairs", "forwards", "routed", "same_device"):
            pairs = mapping.pairs(which)
            assert [list(pair) for pair in pairs] == report[which]
            for rank in range(max(destinations) + 1):
                sent = [pair.receiver for pair in pairs if pair.sender == rank]
                received = [pair.sender for pair in pairs if pair.receiver == rank]
                assert mapping.sends(rank, which) == sent
                assert mapping.receives(rank, which) == received
            loads = [(r, sum(pair.receiver == r for pair in pairs)) for r in destinations]
            assert mapping.loads(which) == loads
            if which in names:
                assert report[names[which] + "sends"] == by_sender(pairs)
                turned = [ws.Pair(pair.receiver, pair.sender) for pair in pairs]
                assert report[names[which] + "receives"] == by_sender(turned)
        assert report["loads"] == [list(load) for load in mapping.loads()]
        assert report["routed_loads"] == [list(load) for load in mapping.loads("routed")]
        assert report["moved"] == [pair._asdict() for pair in mapping.moved()]


def test_moved_pairs_say_whom_they_avoid() -> None:
    with ws.Mapping(
        "two_stage", range(4), [0, 9, 8, 1], source_tp=2, source_pp=2, destination_tp=4
    ) as mapping:
        assert mapping.moved() == [ws.MovedPair(sender=0, receiver=5, avoided=4)]
        assert mapping.loads() == [ws.RankLoad(rank, 1) for rank in range(4, 8)]
        with pytest.raises(ws.CallerError, match="8 ranks; rank 8 is none") as caught:
            mapping.sends(8)
        assert caught.value.status is ws.Status.NOT_FOUND


def test_models_are_colocated_if_devices_are_shared_unless_told_otherwise() -> None:
    def first_sender(devices: Sequence[int], flags: MappingFlag = MappingFlag(0)) -> int:
        with ws.Mapping("single_stage", [0, 1], devices, flags=flags, source_dp=2) as mapping:
            return mapping.pairs()[0].sender

    assert first_sender([2]) == 0
    assert first_sender([1]) == 1, "colocated: from the last copy to the first"
    assert first_sender([1], MappingFlag.APART) == 0
    assert first_sender([2], MappingFlag.COLOCATED) == 1
    with pytest.raises(ws.CallerError, match="one or the other"):
        first_sender([2], MappingFlag.COLOCATED | MappingFlag.APART)


def test_rows_alone_do_not_say_where_routed_experts_are() -> None:
    record = {"sizes": [[1, 1, 2, 1, 1], [2, 1, 1, 1]], "devices": [[0, 1], [2, 3]]}
    (source, _), devices = record["sizes"], record["devices"]
    with pytest.raises(ws.CallerError, match="expert_source_ranks"):
        ws.Mapping(
            "expert", *devices, flags=MappingFlag.VLLM, source_ep=2, destination_tp=2,
            source_ranks=rows(source),
        )  # fmt: skip
    with made("expert", record, explicit=True, flags=MappingFlag.VLLM) as mapping:
        assert mapping.pairs("routed") == [(0, 2), (1, 3)]

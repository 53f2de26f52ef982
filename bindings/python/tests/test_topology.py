"""Topologies, certificates and simulations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from weightsync import (
    CallerError,
    FabricCut,
    HostGroup,
    Layout,
    PlacementRun,
    Plan,
    SpeedFactor,
    Topology,
)

LAYOUTS = Path(__file__).resolve().parents[3] / "tests" / "layouts"


def layouts() -> tuple[Layout, Layout]:
    names = ("trainer_tp2_pp2_dp2.json", "inference_2x_tp4.json")
    source, destination = ((LAYOUTS / name).read_text() for name in names)
    return Layout.from_json(source), Layout.from_json(destination)


def test_a_topology_file_says_where_ranks_are() -> None:
    topology = Topology.from_json(
        '{"weightsync_topology": 1, "hosts": [{"gpus": 4}],'
        ' "placement": [{"ranks": {"first": 0, "count": 16}, "gpu": 0}]}'
    )
    site = topology.site(6)
    assert (site.gpu, site.host, site.domain, site.rail) == (6, 1, 1, 2)
    assert site.nic_bytes_per_s == 50_000_000_000
    with pytest.raises(CallerError, match="rank 16"):
        topology.site(16)
    with pytest.raises(CallerError, match="nic_bytes_per_s is 0"):
        Topology.from_json('{"weightsync_topology": 1, "hosts": [{"nic_bytes_per_s": 0}]}')


def test_a_topology_is_made_from_its_parts() -> None:
    parts = Topology.create(
        hosts=[HostGroup(32, gpus=4, nvlink_bytes_per_s=900 * 10**9, domain_hosts=16)],
        placement=[PlacementRun(range(64)), PlacementRun(range(64, 128), gpu=64)],
        speeds=[SpeedFactor([17], nic_percent=50), SpeedFactor([18], is_drained=True)],
        cuts=[FabricCut("pods", 16, 1600 * 10**9, 1600 * 10**9)],
    )
    file = (LAYOUTS.parent / "topologies" / "two_pods.json").read_text()
    assert parts.to_json() == Topology.from_json(file).to_json()
    with pytest.raises(CallerError, match="pods"):
        Topology.create(cuts=[FabricCut("pods", 0, 1, 1)])


def test_ranks_that_say_where_they_are_make_a_topology() -> None:
    places = [
        Topology.place(r, f"host{r % 2}", f"GPU-{r}", nics=[f"mlx5_{r // 2}"]) for r in range(8)
    ]
    topology = Topology.from_places(places[::-1])
    assert [topology.site(r).host for r in range(4)] == [0, 1, 0, 1]
    assert topology.site(7).rail == 3
    assert json.loads(topology.to_json())["weightsync_topology"] == 1
    with pytest.raises(CallerError, match="said twice"):
        Topology.from_places([places[0], places[0]])


def test_a_rank_need_not_know_its_host() -> None:
    places = [Topology.place(r, "", f"GPU-{r}") for r in range(2)]
    places.append(Topology.place(2, "elsewhere", "GPU-2"))
    topology = Topology.from_places(places)
    assert [topology.site(r).host for r in range(3)] == [0, 0, 1]


def test_a_rank_that_names_no_device_asks_its_gpu() -> None:
    try:
        place = Topology.place(7)
    except CallerError as refused:
        assert "rank 7 names no device, and there is no GPU to ask" in str(refused)
    else:
        assert Topology.from_places([place]).site(7).gpu == 0


def test_a_plan_has_a_certificate() -> None:
    plan = Plan(*layouts(), strategy="auto")
    certificate = plan.certificate()
    assert certificate["ratio"] >= 1
    assert certificate["predicted_s"] >= certificate["lower_bound_s"] > 0
    slow = Topology.from_json(
        '{"weightsync_topology": 1, "hosts": [{"nic_bytes_per_s": 5000000000}]}'
    )
    assert plan.certificate(slow)["lower_bound_s"] > 5 * certificate["lower_bound_s"]
    planned = Plan(*layouts(), topology=slow)
    assert planned.certificate()["predicted_s"] > certificate["predicted_s"]


def test_a_plan_is_made_anew_for_what_changed() -> None:
    plan = Plan(*layouts())
    assert plan.replan().fingerprint == plan.fingerprint
    drained = Topology.from_json(
        '{"weightsync_topology": 1, "speeds": [{"ranks": [0], "drained": true}]}'
    )
    calm = plan.replan(topology=drained)
    diff = plan.diff(calm)
    assert diff["topology_differs"] and not diff["is_equal"]
    assert not diff["destination_differs"] and not diff["decision_differs"]
    assert 0 in diff["ranks_changed"]
    source, destination = layouts()
    assert calm.replan(source, destination, Topology.from_json('{"weightsync_topology": 1}'))
    with pytest.raises(CallerError, match="has no place"):
        plan.replan(
            topology=Topology.from_json(
                '{"weightsync_topology": 1, "placement": [{"ranks": [0], "gpu": 0}]}'
            )
        )


def test_stragglers_and_failures_are_simulated() -> None:
    plan = Plan(*layouts())
    calm = plan.simulate()
    assert calm["total_ns"] == calm["healthy_ns"] and calm["copies_complete"] == 2
    assert plan.simulate(seed=1, straggler_count=16)["total_ns"] > calm["total_ns"]
    dead = plan.simulate(seed=3, failure_count=1)
    assert dead["copies_complete"] < 2 and dead["waiting"]
    with pytest.raises(CallerError, match="16 ranks"):
        plan.simulate(failure_count=99)

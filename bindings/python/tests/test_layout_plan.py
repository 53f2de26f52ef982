"""Layouts and plans."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import weightsync as ws
from layouts import layout

FILES = Path(__file__).resolve().parents[3] / "tests" / "layouts"


def made(first: int, count: int, dim: int) -> ws.Layout:
    return ws.Layout.from_json(layout(first, count, dim))


def test_counts_and_buffers() -> None:
    with made(0, 2, 0) as rows:
        assert (rows.rank_count, rows.tensor_count, rows.copy_count) == (2, 1, 1)
        assert rows.buffers(1) == [ws.BufferInfo("w", 96, None, ws.MemoryKind.HOST, 0)]
        assert rows.buffers(7) == []


def test_text_bytes_and_mapping_are_the_same() -> None:
    said = layout(0, 2, 0)
    texts = [said, json.dumps(said), json.dumps(said).encode()]
    assert len({ws.Layout.from_json(text).to_bytes() for text in texts}) == 1


def test_bytes_come_back_and_damage_is_seen() -> None:
    data = made(0, 2, 0).to_bytes()
    assert ws.Layout.from_bytes(data).to_bytes() == data
    with pytest.raises(ws.PlanMismatch) as caught:
        ws.Layout.from_bytes(data[:-1])
    assert caught.value.status is ws.Status.CORRUPT


def test_json_comes_back() -> None:
    one = made(0, 2, 0)
    again = ws.Layout.from_json(one.to_json())
    assert again.buffers(0) == one.buffers(0)
    assert isinstance(one.describe(), dict)


def test_check_finds_what_is_missing() -> None:
    rows, columns = made(0, 2, 0), made(2, 2, 1)
    for checked in (rows.check(), rows.check(columns), ws.Layout.check_json(layout(0, 2, 0))):
        assert (checked.count, checked.findings) == (0, [])
    larger = layout(2, 2, 1)
    larger["tensors"].append({"name": "missing", "shape": [3], "dtype": "f32"})
    checked = rows.check(ws.Layout.from_json(larger))
    assert checked.count == len(checked.findings) == 1
    assert checked.findings[0]["tensor"] == "missing"
    assert checked == ws.Layout.check_json(layout(0, 2, 0), larger)


def test_from_views() -> None:
    whole = np.zeros((6, 8), ml_dtypes.bfloat16)
    one = ws.Layout.from_views(
        0,
        {
            "rows": ("w", whole[:3], [(0, 3), (0, 8)]),
            "bias": ws.View("b", np.zeros(5, "f4")),
        },
        {"w": (6, 8)},
    )
    two = ws.Layout.from_views(
        1, {"columns": ("w", whole[3:, ::2][:, :4], [(3, 6), (0, 4)])}, {"w": ws.Tensor((6, 8))}
    )
    three = ws.Layout.from_views(
        2,
        {
            "both": [
                ("w", whole[0:2, 0:8], [(0, 2), (0, 8)]),
                ("w", whole[2:6, 0:8], [(2, 6), (0, 8)]),
            ]
        },
        {"w": (6, 8)},
        aliases={"w.tied": "w"},
    )
    merged = ws.Layout.merge([one, two, three])
    assert (merged.rank_count, merged.tensor_count) == (3, 2)
    assert [(b.name, b.bytes) for b in merged.buffers(0)] == [("bias", 20), ("rows", 48)]
    assert [(b.name, b.bytes) for b in merged.buffers(1)] == [("columns", 32 + 12 + 2)]
    assert [(b.name, b.bytes) for b in merged.buffers(2)] == [("both", 96)]
    with pytest.raises(ws.CallerError, match="other axes"):
        ws.Layout.from_views(0, {"a": ("w", whole, [(0, 3), (0, 8)])}, {"w": (6, 8)})
    with pytest.raises(ws.CallerError, match="not in `tensors`"):
        ws.Layout.from_views(0, {"a": ("w", whole, [(0, 6), (0, 8)])})
    with pytest.raises(ws.CallerError, match="repeats"):
        ws.Layout.from_views(0, {"a": ("w", np.broadcast_to(np.float32(1), (2, 3)))})
    with pytest.raises(ws.CallerError, match="9 axes"):
        ws.Layout.from_views(0, {"a": ("w", np.zeros((1,) * 9, "f4"))})
    with pytest.raises(ws.PlanMismatch):
        ws.Layout.merge([one, one])


def test_plan() -> None:
    with ws.Plan(made(0, 2, 0), made(2, 2, 1)) as plan:
        plan.verify()
        assert plan.ranks == [0, 1, 2, 3] and plan.rank_count == 4
        assert plan.tensor_count == 1 and plan.step_count >= 1
        info = plan.program_info(0)
        assert (info.bytes_sent, info.bytes_received, info.peer_count) == (96, 0, 2)
        with pytest.raises(ws.CallerError, match="rank 9 is in neither layout") as caught:
            plan.program_info(9)
        assert caught.value.status is ws.Status.NOT_FOUND
        assert plan.program_infos([2, 0, 2]) == [plan.program_info(r) for r in (2, 0, 2)]
        assert plan.program_infos([]) == []
        with pytest.raises(ws.CallerError, match="rank 9 is in neither layout"):
            plan.program_infos([0, 9])
        assert plan.buffers(0) == [
            ws.BufferInfo("w", 96, ws.Side.SOURCE, ws.MemoryKind.HOST, 0)
        ]
        assert plan.tensor_last_step(0, "w") is None
        assert plan.tensor_last_step(2, "w") is not None
        with pytest.raises(ws.CallerError, match="nope"):
            plan.tensor_last_step(0, "nope")
        hops = plan.origin(2, "w", (0, 1))["hops"]
        assert hops[0]["from"]["rank"] == 0 and hops[-1]["to"]["rank"] == 2
        assert hops[0]["from"]["buffer"] == "w"
        assert [link["kind"] for link in hops[0]["links"]] == ["nic_out", "nic_in"]
        with pytest.raises(ws.CallerError, match="outside"):
            plan.origin(2, "w", (0,))
        assert isinstance(plan.report(), dict)
        ops = plan.ops(0)
        assert ops and all(op["tensor"] == "w" for op in ops)


def test_plans_are_equal_where_their_input_is() -> None:
    one, two = (ws.Plan(made(0, 2, 0), made(2, 2, 1)) for _ in range(2))
    assert one.fingerprint == two.fingerprint and len(one.fingerprint) == 32
    assert one.to_bytes() == two.to_bytes()
    again = ws.Plan.from_bytes(one.to_bytes())
    assert again.fingerprint == one.fingerprint
    other = ws.Plan(made(0, 2, 0), made(2, 2, 1), source_rule="rotate")
    assert other.fingerprint != one.fingerprint
    assert isinstance(one.diff(other), dict)
    data = bytearray(one.to_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(ws.PlanMismatch) as caught:
        ws.Plan.from_bytes(bytes(data))
    assert caught.value.status is ws.Status.CORRUPT


def test_early_layers_are_complete_early_in_layer_order() -> None:
    source = ws.Layout.from_json((FILES / "trainer_tp2_pp2_dp2.json").read_bytes())
    destination = ws.Layout.from_json((FILES / "inference_2x_tp4.json").read_bytes())
    plan = ws.Plan(source, destination, bucket_count=8, order="layer")
    first, last = "model.layers.0.mlp.down_proj.weight", "model.norm.weight"
    assert plan.tensor_last_step(8, first) < plan.tensor_last_step(8, last) == 7
    assert plan.report()["order"] == "layer"


def test_routes_are_chosen() -> None:
    source = ws.Layout.from_json((FILES / "trainer_tp2_pp2_dp2.json").read_bytes())
    destination = ws.Layout.from_json((FILES / "inference_2x_tp4.json").read_bytes())
    plan = ws.Plan(
        source, destination, strategy="fanout", copy_count=1, spread="chain", source_relay=True
    )
    plan.verify()
    report = plan.report()
    assert (report["spread"], report["source_relay"]) == ("chain", True)
    with pytest.raises(ws.CallerError, match="source_relay"):
        ws.Plan(source, destination, source_relay=True)


def test_select() -> None:
    source = ws.Layout.from_json((FILES / "trainer_tp2_pp2_dp2.json").read_bytes())
    destination = ws.Layout.from_json((FILES / "inference_2x_tp4.json").read_bytes())
    plan = ws.Plan(source, destination, staging_bytes_max=64 << 20)
    part = plan.select(include=["*.mlp.*"], exclude=["*down_proj*"])
    assert 0 < part.tensor_count < plan.tensor_count
    assert part.fingerprint != plan.fingerprint
    with pytest.raises(ws.CallerError) as caught:
        plan.select(include=["nothing"])
    assert caught.value.status is ws.Status.NOT_FOUND


def test_plan_options_are_checked() -> None:
    with pytest.raises(ValueError, match="Strategy"):
        ws.Plan(made(0, 2, 0), made(2, 2, 1), strategy="teleport")
    wider = layout(0, 2, 0)
    wider["tensors"].append({"name": "extra", "shape": [3], "dtype": "f32"})
    with pytest.raises(ws.WeightsyncError, match="extra"):
        ws.Plan(ws.Layout.from_json(wider), made(2, 2, 1))
    ws.Plan(ws.Layout.from_json(wider), made(2, 2, 1), unused_allowed=["ex*"])


@pytest.mark.parametrize("says_sizes", [False, True])
def test_a_plan_in_two_stages_follows_the_mapping(says_sizes: bool) -> None:
    two_stage = ws.TwoStageOptions(
        source_tp=2,
        source_ranks=[[0, 1]],
        destination_tp=4,
        destination_ranks=[[2, 3, 4, 5]],
    )
    plan = ws.Plan(
        ws.Layout.from_json(layout(0, 2, 0, (8, 8))),
        ws.Layout.from_json(layout(2, 4, 0, (8, 8))),
        strategy="two_stage",
        two_stage=two_stage if says_sizes else None,
    )
    with ws.Mapping(
        "two_stage", range(2), range(2, 6), source_tp=2, destination_tp=4
    ) as mapping:
        for stage, which in enumerate(("pairs", "forwards")):
            sent = {
                ws.Pair(rank, op["peer"])
                for rank in range(6)
                for op in plan.ops(rank)
                if (op["direction"], op["stage"]) == ("send", stage)
            }
            assert sent == set(mapping.pairs(which)) != set()


EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4, "intermediate_size": 32,
    "vocab_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
}


def test_a_model_says_what_was_assumed_and_what_may_surprise() -> None:
    trainer = ws.Layout.from_model(EXPERTS, "megatron", {"tp": 2, "ep": 2, "frozen": ["lm_head.*"]})
    assert trainer.describe()["remarks"] == [
        "etp is 1; Megatron's own default is etp = tp, which is 2"
    ]
    engines = ws.Layout.from_model(EXPERTS, "vllm", {"dp": 3, "ep": True}, first_rank=2)
    (hazard,) = engines.describe()["hazards"]
    assert (hazard["kind"], hazard["is_error"]) == ("experts", False)
    assert "4 experts are not divisible by the 3 ranks" in hazard["message"]
    part = ws.Plan(trainer, engines).select(trainable=False)
    assert part.tensor_count == 1
    with pytest.raises(ws.WeightsyncError, match='no tensor is named "head"'):
        ws.Layout.from_model(EXPERTS, "hf", {"frozen": "head"})


def test_a_plan_of_some_copies_layers_and_experts() -> None:
    config = EXPERTS
    source = ws.Layout.from_model(config, "hf")
    engines = ws.Layout.from_model(config, "vllm", {"tp": 2, "replicas": 3}, first_rank=1)
    plan = ws.Plan(source, engines)
    part = plan.select(layers=[0, range(2, 3)], experts=[range(1, 3)], copies=[2], draft=False)
    part.verify()
    with pytest.raises(ws.CallerError, match="rank 1 is in neither layout"):
        part.program_info(1)
    # Two layers, three projections, two experts of 8 by 16, half of the rows, in bf16.
    assert part.program_info(5).bytes_received == 2 * 3 * 2 * 8 * 16 // 2 * 2
    with pytest.raises(ws.WeightsyncError, match="draft true"):
        plan.select(draft=True)

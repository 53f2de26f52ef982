"""Tensors of a real torch, which the package never imports.

PyTorch from the package index brings CUDA with it, gigabytes for a few tensors
on the CPU, so the tests do not install it: where it is missing they are
skipped, and say so.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import weightsync as ws
from test_deliver import loopbacks, on_threads

torch: Any = pytest.importorskip(
    "torch", reason="skipped: no torch here; `pip install torch` and run again"
)

FLOATS = ["float32", "float16", "bfloat16"]
EIGHTS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
OTHERS = ["int64", "int8", "uint8", "bool"]


def values(dtype: str, *shape: int) -> Any:
    """A tensor of which any two elements differ, as far as the type allows."""
    count = 1
    for n in shape:
        count *= n
    made = torch.arange(1, count + 1).reshape(shape)
    return (made % 2 if dtype == "bool" else made % 100).to(getattr(torch, dtype))


def bits(tensor: Any) -> Any:
    """The bytes of a tensor, to compare types that have no ==."""
    return tensor.detach().contiguous().view(torch.uint8)


def deliver(source: Any, destination: Any) -> None:
    """Sends what rank 0 holds to rank 1, each in its own form, verified."""
    transports, greetings = loopbacks()
    tensors = [source, destination]
    layouts = [ws.Layout.from_views(r, {"b": ("w", t)}) for r, t in enumerate(tensors)]
    plan = ws.Plan(*layouts)

    def run(rank: int) -> None:
        with transports[rank] as transport:
            transport.meet(greetings)
            with ws.Session(transport) as session:
                side = ("source", "destination")[rank]
                session.bind({"b": tensors[rank]}, side=side)
                request = session.request(session.load(plan))
                request.submit(1, verify=True)
                assert request.wait(60)
                session.finalize(60)
            transport.finalize(60)

    on_threads(run)


@pytest.mark.parametrize("dtype", FLOATS + EIGHTS + OTHERS)
def test_every_type_arrives_bit_by_bit(dtype: str) -> None:
    source = values(dtype, 6, 8)
    destination = torch.zeros((6, 8), dtype=source.dtype)
    deliver(source, destination)
    assert torch.equal(bits(destination), bits(source))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_strided_tensors_are_bound_as_they_are(dtype: str) -> None:
    store = values(dtype, 6, 16)
    before = bits(store).clone()
    served = torch.zeros((8, 6), dtype=store.dtype)
    deliver(store[:, ::2], served.t())
    assert torch.equal(bits(served.t()), bits(store[:, ::2]))
    # And into every other column, the ones between left alone.
    deliver(served.t(), store[:, 1::2])
    assert torch.equal(bits(store[:, 1::2]), bits(store[:, ::2]))
    assert torch.equal(bits(store[:, ::2]), before.reshape(6, 16, -1)[:, ::2].reshape(6, -1))


def test_parameters_with_a_gradient_are_only_memory() -> None:
    layer = torch.nn.Linear(8, 6, bias=False)
    served = torch.nn.Linear(8, 6, bias=False)
    loss = served(torch.ones(8)).sum()
    deliver(layer.weight, served.weight)
    assert layer.weight.requires_grad and served.weight.requires_grad
    assert torch.equal(served.weight, layer.weight)
    assert loss.requires_grad and layer.weight.grad is None


def test_tensors_of_another_form_are_refused() -> None:
    source = values("float32", 4, 6)
    plan = ws.Plan(
        ws.Layout.from_views(0, {"b": ("w", source)}),
        ws.Layout.from_views(0, {"b": ("w", source)}),
    )
    for other in (
        torch.zeros(4, 12)[:, ::2],
        torch.zeros(6, 4).t(),
        torch.zeros(4, 6, dtype=torch.int32),
        torch.zeros(4, 12, dtype=torch.bfloat16),
    ):
        with ws.Transport.loopback(0, 1) as transport:
            transport.meet([transport.greeting()])
            with ws.Session(transport) as session:
                session.bind({"b": source}, side="source")
                session.bind({"b": other}, side="destination")
                with pytest.raises(ws.PlanMismatch, match='tensor "w"'):
                    session.load(plan)
        assert not other.any()


def test_the_package_does_not_import_torch() -> None:
    script = (
        "import sys, weightsync as ws; ws.describe(bytearray(4));"
        "ws.Layout.from_views(0, {'b': ('w', memoryview(bytearray(4)))});"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

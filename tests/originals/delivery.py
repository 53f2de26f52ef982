"""Numbered elements, and a delivery of them between ranks that are threads."""

from __future__ import annotations

import math
import threading
from typing import Any, Callable

import numpy as np
import weightsync as ws

#: By rank and name of a buffer.
Arrays = dict[int, dict[str, Any]]

#: Seconds that a delivery may take.
PATIENCE = 120


def number(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Tensors whose elements count on from one tensor to the next, from 1: the bits of each element
    are its number, in 16 bits its lower ones. `shapes` has dtype and shape of each."""
    out, at = {}, 1
    for name, (dtype, shape) in shapes.items():
        count = math.prod(shape)
        numbers = np.arange(at, at + count).astype(f"u{2 if dtype == 'BF16' else 4}")
        out[name] = numbers.reshape(shape)
        at += count
    return out


def deliver(source: ws.Layout, destination: ws.Layout, held: Arrays, wanted: Arrays) -> None:
    """Sends what `held` has to `wanted`. A plan refuses arrays of another form than its own."""
    plan = ws.Plan(source, destination)
    world = 1 + max([*held, *wanted])
    transports = [ws.Transport.loopback(rank, world) for rank in range(world)]
    greetings = [t.greeting() for t in transports]

    def run(rank: int) -> None:
        with transports[rank] as transport:
            transport.meet(greetings)
            with ws.Session(transport) as session:
                for side, arrays in (("source", held), ("destination", wanted)):
                    mine = arrays.get(rank, {})
                    session.bind({n: a for n, a in mine.items() if math.prod(a.shape)}, side=side)
                request = session.request(session.load(plan))
                request.submit(1, verify=True)
                assert request.wait(PATIENCE), f"rank {rank} waited {PATIENCE} s"
                assert request.outcome().copy is ws.Outcome.COMPLETE
                session.finalize(PATIENCE)
            transport.finalize(PATIENCE)

    on_threads(run, world)


def on_threads(run: Callable[[int], None], ranks: int) -> None:
    """Runs every rank in a thread; raises what one of them raised, rather than that it was missed."""
    failures: dict[int, BaseException] = {}

    def guarded(rank: int) -> None:
        try:
            run(rank)
        except BaseException as error:
            failures[rank] = error

    threads = [threading.Thread(target=guarded, args=(r,), daemon=True) for r in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), f"a rank took more than {2 * PATIENCE} s"
    if failures:
        raise min(failures.values(), key=missed_another)


def missed_another(error: BaseException) -> bool:
    """True if a rank failed because another had left, in the transfer or before it."""
    has_status = isinstance(error, ws.WeightsyncError)
    is_of_hub = has_status and error.status == ws.Status.INVALID_STATE
    return is_of_hub or isinstance(error, ws.TransportLost)

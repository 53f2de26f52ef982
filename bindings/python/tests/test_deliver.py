"""Whole deliveries: ranks as threads, and as processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Callable

import ml_dtypes
import numpy as np
import pytest
import weightsync as ws
from layouts import layout

SHAPE = (6, 8)


def values(version: int) -> Any:
    """The whole matrix of a version; every element differs."""
    return (1000 * version + np.arange(48).reshape(SHAPE) + 1).astype("f4")


def deliver(transport: ws.Transport, rank: int, asynchronous: bool = False) -> None:
    """Both sides on each of two ranks: rows become columns. Three versions."""
    plan = ws.Plan(ws.Layout.from_json(layout(0, 2, 0)), ws.Layout.from_json(layout(0, 2, 1)))
    source = np.zeros((3, 8), "f4")
    destination = np.zeros((6, 4), "f4")
    with ws.Session(transport) as session:
        session.bind({"w": source}, side="source")
        session.bind({"w": destination}, side=ws.Side.DESTINATION)
        request = session.request(session.load(plan))
        assert request.state is ws.State.IDLE
        for version in (1, 2, 3):
            source[...] = values(version)[3 * rank : 3 * rank + 3]
            if asynchronous:
                asyncio.run(submit_and_await(request, version))
            else:
                request.prepare(version, verify=True)
                assert request.wait_ready(60)
                assert request.state is ws.State.READY
                assert request.wait(60) is False
                request.start()
                assert request.wait(60)
            assert request.test()
            assert request.outcome() == (ws.Outcome.COMPLETE, ws.Outcome.COMPLETE)
            assert request.steps_done() == request.step_count() > 0
            assert (destination == values(version)[:, 4 * rank : 4 * rank + 4]).all()
            assert request.report()["version"] == version
        assert request.tensor_digest("w") != 0
        last = plan.tensor_last_step(rank, "w")
        assert last is not None and last < plan.step_count
        session.finalize(60)
    transport.finalize(60)


async def submit_and_await(request: ws.Request, version: int) -> None:
    request.submit(version, verify=True)
    await request


def on_threads(run: Callable[[int], None], ranks: int = 2) -> None:
    """Runs every rank in a thread; raises what any of them raised."""
    failures: list[BaseException] = []

    def guarded(rank: int) -> None:
        try:
            run(rank)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def loopbacks() -> tuple[list[ws.Transport], list[bytes]]:
    transports = [ws.Transport.loopback(rank, 2) for rank in range(2)]
    return transports, [transport.greeting() for transport in transports]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_loopback(asynchronous: bool) -> None:
    transports, greetings = loopbacks()

    def run(rank: int) -> None:
        with transports[rank] as transport:
            transport.meet(greetings)
            transport.status()
            assert (transport.rank, transport.rank_count) == (rank, 2)
            deliver(transport, rank, asynchronous)

    on_threads(run)


def test_the_buffers_that_a_plan_tells_are_all_that_a_session_needs() -> None:
    # Two copies send half each, and the first one is digested whole.
    def copies(first: int, count: int) -> ws.Layout:
        tensors = [{"name": name, "shape": [8], "dtype": "f32"} for name in "abcd"]
        ranks, meshes = {"first": first, "count": count}, {"m": [["dp", count]]}
        file = {"weightsync_layout": 1, "ranks": ranks, "meshes": meshes, "tensors": tensors}
        return ws.Layout.from_json(file)

    plan = ws.Plan(copies(0, 2), copies(2, 1))
    transports = [ws.Transport.loopback(rank, 3) for rank in range(3)]
    greetings = [transport.greeting() for transport in transports]

    def run(rank: int) -> None:
        told = plan.buffers(rank)
        assert plan.program_info(rank).buffer_count == len(told)
        arrays = {b.name: np.full(8, ord(b.name) if rank < 2 else 0, "f4") for b in told}
        with transports[rank] as transport:
            transport.meet(greetings)
            with ws.Session(transport) as session:
                for side in ws.Side:
                    session.bind({b.name: arrays[b.name] for b in told if b.side is side}, side)
                request = session.request(session.load(plan))
                request.submit(1, verify=True)
                assert request.wait(60)
                session.finalize(60)
            transport.finalize(60)
        assert all((array == ord(name)).all() for name, array in arrays.items())

    on_threads(run, 3)


def shm_rank(rank: int, pipe: Any) -> None:
    with ws.Transport.shm(rank, 2) as transport:
        pipe.send_bytes(transport.greeting())
        transport.meet(pipe.recv())
        deliver(transport, rank)
    pipe.send("done")


def test_shm() -> None:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=shm_rank, args=(rank, pipes[rank][1])) for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        for ours, _ in pipes:
            assert ours.poll(60)
        greetings = [ours.recv_bytes() for ours, _ in pipes]
        for ours, _ in pipes:
            ours.send(greetings)
        for ours, _ in pipes:
            assert ours.poll(60)
            assert ours.recv() == "done"
    finally:
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def test_sessions_keep_their_arrays_alive() -> None:
    class Watched(np.ndarray):
        pass

    transports, greetings = loopbacks()
    on_threads(lambda rank: transports[rank].meet(greetings))
    with transports[0], transports[1], ws.Session(transports[0]) as session:
        array = np.zeros(4, "f4").view(Watched)
        gone = weakref.ref(array)
        session.bind({"a": array}, side="source")
        del array
        gc.collect()
        assert gone() is not None
        session.unbind("a", "source")
        gc.collect()
        assert gone() is None
        with pytest.raises(ws.CallerError) as caught:
            session.unbind("a", "source")
        assert caught.value.status is ws.Status.NOT_FOUND


def test_read_only_destinations_are_refused() -> None:
    transports, greetings = loopbacks()
    on_threads(lambda rank: transports[rank].meet(greetings))
    with transports[0], transports[1], ws.Session(transports[0]) as session:
        session.bind({"a": b"1234"}, side="source")
        with pytest.raises(ws.CallerError, match="read-only"):
            session.bind({"a": b"1234"}, side="destination")
        with pytest.raises(ValueError, match="no Side"):
            session.bind({"a": b"1234"}, side="middle")


def test_an_abort_reaches_the_peer_with_outcome_and_culprit() -> None:
    transports, greetings = loopbacks()
    plan = ws.Plan(ws.Layout.from_json(layout(0, 2, 0)), ws.Layout.from_json(layout(0, 2, 1)))
    ready = threading.Barrier(2)

    def run(rank: int) -> None:
        with transports[rank] as transport:
            transport.meet(greetings)
            with ws.Session(transport) as session:
                session.bind({"w": np.zeros((3, 8), "f4")}, side="source")
                session.bind({"w": np.zeros((6, 4), "f4")}, side="destination")
                request = session.request(session.load(plan))
                ready.wait()
                if rank == 0:
                    session.abort("the trainer diverged")
                else:
                    with pytest.raises(ws.TransportLost, match="the trainer diverged") as caught:
                        request.submit(1)
                    assert caught.value.status is ws.Status.ABORTED
                    assert caught.value.rank == 0
                    with pytest.raises(ws.TransportLost):
                        transport.status()

    on_threads(run)


def test_a_missing_buffer_is_named() -> None:
    transports, greetings = loopbacks()
    plan = ws.Plan(ws.Layout.from_json(layout(0, 2, 0)), ws.Layout.from_json(layout(0, 2, 1)))
    on_threads(lambda rank: transports[rank].meet(greetings))
    with transports[0], transports[1], ws.Session(transports[0]) as session:
        session.bind({"w": np.zeros((3, 8), "f4")}, side="source")
        with pytest.raises(ws.PlanMismatch, match='"w" .destination') as caught:
            session.load(plan)
        assert caught.value.status is ws.Status.BUFFER_MISMATCH


def test_the_agree_timeout_is_in_seconds() -> None:
    transports, greetings = loopbacks()
    plan = ws.Plan(ws.Layout.from_json(layout(0, 2, 0)), ws.Layout.from_json(layout(0, 2, 1)))
    on_threads(lambda rank: transports[rank].meet(greetings))
    with transports[0], transports[1], ws.Session(transports[0]) as session:
        session.bind({"w": np.zeros((3, 8), "f4")}, side="source")
        session.bind({"w": np.zeros((6, 4), "f4")}, side="destination")
        request = session.request(session.load(plan))
        with pytest.raises(ws.TransferFailed) as caught:
            request.submit(1, agree_timeout=0.2)
        assert caught.value.status is ws.Status.AGREEMENT_TIMEOUT
        assert caught.value.outcome is ws.Outcome.UNTOUCHED
        assert caught.value.rank == 1


def test_closing_a_session_ends_what_waits_in_it() -> None:
    transports, greetings = loopbacks()
    plan = ws.Plan(ws.Layout.from_json(layout(0, 2, 0)), ws.Layout.from_json(layout(0, 2, 1)))
    on_threads(lambda rank: transports[rank].meet(greetings))
    with transports[0], transports[1]:
        session = ws.Session(transports[0])
        session.bind({"w": np.zeros((3, 8), "f4")}, side="source")
        session.bind({"w": np.zeros((6, 4), "f4")}, side="destination")
        request = session.request(session.load(plan))

        def run(rank: int) -> None:
            if rank == 0:
                with pytest.raises((ws.TransportLost, ws.CallerError)):
                    request.submit(1)
            else:
                while request.state is not ws.State.PREPARING:
                    pass
                session.close()

        on_threads(run)
        assert session.closed and request.closed
        with pytest.raises(ws.TransportLost, match="closed during a request"):
            transports[1].status()


def test_views_describe_what_is_bound() -> None:
    """Strided arrays of the caller's own, without a layout file."""
    store = np.zeros((4, 12), ml_dtypes.bfloat16)
    served = np.zeros((4, 6), ml_dtypes.bfloat16)
    halves = store[:, ::2]
    plan = ws.Plan(
        ws.Layout.from_views(0, {"store": ("w", halves)}),
        ws.Layout.from_views(1, {"served": ("w", served[::-1])}),
    )
    transports, greetings = loopbacks()

    def run(rank: int) -> None:
        with transports[rank] as transport:
            transport.meet(greetings)
            with ws.Session(transport) as session:
                if rank == 0:
                    halves[...] = np.arange(24).reshape(4, 6)
                    session.bind({"store": halves}, side="source")
                else:
                    session.bind({"served": served[::-1]}, side="destination")
                request = session.request(session.load(plan))
                request.submit(7, verify=True)
                assert request.wait()
                transport.finalize()

    on_threads(run)
    assert (served[::-1] == halves).all() and served[0, 5] == 23

MATRIX = """{"weightsync_layout": 1, "ranks": {"first": 0, "count": 1},
    "tensors": [{"name": "w", "shape": [4, 6], "dtype": "f32"}]}"""


def deliver_matrix(destination: Any) -> Any:
    """Delivers a matrix of 4 rows of 6 into an array; gives back what was sent."""
    source = np.arange(1, 25, dtype="f4").reshape(4, 6)
    whole = ws.Layout.from_json(MATRIX)
    with ws.Transport.loopback(0, 1) as transport:
        transport.meet([transport.greeting()])
        with ws.Session(transport) as session:
            session.bind({"w": source}, side="source")
            session.bind({"w": destination}, side="destination")
            request = session.request(session.load(ws.Plan(whole, whole)))
            request.submit(1, verify=True)
            assert request.wait()
            session.finalize()
    return source


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (lambda: np.zeros((4, 12), "f4")[:, ::2], r"\[48, 8\].*\[24, 4\]"),
        (lambda: np.zeros((6, 4), "f4").T, r"\[4, 16\].*\[24, 4\]"),
        (lambda: np.zeros((4, 6), "f4")[::-1], r"\[-24, 4\].*\[24, 4\]"),
        (lambda: np.zeros((6, 4), "f4"), r"\[6, 4\].*\[4, 6\]"),
        (lambda: np.zeros((4, 6), "f8"), "f64.*f32"),
        (lambda: np.zeros((2, 12), "i4"), "i32.*f32"),
        (lambda: np.zeros(48, ml_dtypes.bfloat16), "bf16.*f32"),
        (lambda: np.zeros((4, 48), "u1")[:, :24], "u8.*f32"),
    ],
)
def test_arrays_of_another_form_are_refused(form: Callable[[], Any], told: str) -> None:
    array = form()
    memory = array if array.base is None else array.base
    with pytest.raises(ws.PlanMismatch, match='"w" .destination. .*' + told) as caught:
        deliver_matrix(array)
    assert caught.value.status is ws.Status.BUFFER_MISMATCH
    assert not memory.any()


@pytest.mark.parametrize(
    "form",
    [
        lambda: np.zeros((4, 6), "f4"),
        lambda: np.zeros((4, 1, 6), "f4"),
        lambda: np.zeros(24, "f4"),
        lambda: np.zeros((2, 2, 6), "f4"),
        lambda: np.zeros((5, 6), "f4"),
        lambda: np.zeros(96, "u1"),
        lambda: np.zeros((4, 24), "u1"),
        lambda: bytearray(96),
    ],
)
def test_the_same_bytes_in_another_shape_are_taken(form: Callable[[], Any]) -> None:
    array = form()
    sent = deliver_matrix(array)
    assert (np.frombuffer(array, "f4")[:24] == sent.ravel()).all()


def test_an_array_bound_anew_is_held_against_the_plan() -> None:
    """Addresses may change freely, strides not; the request is never prepared."""
    whole = ws.Layout.from_json(MATRIX)
    store = np.zeros((4, 12), "f4")
    with ws.Transport.loopback(0, 1) as transport:
        transport.meet([transport.greeting()])
        with ws.Session(transport) as session:
            for side in ("source", "destination"):
                session.bind({"w": np.ones((4, 6), "f4")}, side=side)
            request = session.request(session.load(ws.Plan(whole, whole)))
            session.bind({"w": store[:, ::2]}, side="destination")
            with pytest.raises(ws.PlanMismatch, match=r"\[48, 8\]"):
                request.submit(1)
            assert request.state is ws.State.IDLE and not store.any()
            session.bind({"w": store[:2].reshape(4, 6)}, side="destination")
            request.submit(2, verify=True)
            assert request.wait()
    assert (store[:2] == 1).all() and not store[2:].any()


def test_forgetting_to_close_warns_and_aborts() -> None:
    transports, greetings = loopbacks()
    on_threads(lambda rank: transports[rank].meet(greetings))
    with transports[1] as peer:
        with pytest.warns(ResourceWarning, match="Transport was never closed"):
            transports[0] = peer
            gc.collect()
        with pytest.raises(ws.TransportLost):
            peer.status()


def test_closed_objects_say_so() -> None:
    transport = ws.Transport.loopback(0, 1)
    transport.close()
    transport.close()
    assert transport.closed
    with pytest.raises(ws.CallerError, match="transport is closed"):
        transport.greeting()


def free_address() -> str:
    """A TCP address at which nobody listens, of a port that none is given unasked."""
    for port in range(10_000 + os.getpid() * 131 % 20_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"
    raise OSError("every port is taken")


def test_rendezvous() -> None:
    address = free_address()

    def run(rank: int) -> None:
        with ws.Transport.loopback(rank, [0, 1]) as transport:
            transport.rendezvous(address, "secret", timeout=30)
            deliver(transport, rank)

    on_threads(run)


def test_example() -> None:
    """What the README shows: three processes and three versions."""
    address = free_address()
    example = Path(__file__).resolve().parents[1] / "examples" / "deliver.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(example), str(rank), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for rank, process in enumerate(ranks):
        told, wrong = process.communicate(timeout=120)
        assert (process.returncode, wrong) == (0, "")
        assert told == "".join(f"rank {rank} has version {v}\n" for v in (1, 2, 3))

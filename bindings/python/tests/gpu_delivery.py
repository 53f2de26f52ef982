"""A delivery between GPU arrays, run by test_gpu.py where CUDA and NCCL are the
stand-ins: gpu_delivery.py loopback | id | split | direct

Arrays show themselves as CuPy's do, by __cuda_array_interface__, streams as
torch's do, by cuda_stream, and communicators as vLLM's do, by comm; none of these
libraries is needed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import weightsync as ws
from layouts import layout

CUDA = ctypes.CDLL(os.environ["WSYNC_CUDART_LIBRARY"])
SHAPE = (6, 8)


def check(status: int) -> None:
    assert status == 0, status


def copy(to: int, source: int, count: int, stream: int) -> None:
    arguments = [ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(count)]
    check(CUDA.cudaMemcpyAsync(*arguments, ctypes.c_int(4), ctypes.c_void_p(stream)))


class Stream:
    """A stream as torch shows it."""

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        check(CUDA.cudaStreamCreateWithFlags(ctypes.byref(handle), ctypes.c_uint(1)))
        self.cuda_stream = handle.value or 0


class Array:
    """A GPU array of f32."""

    device = 0

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.count = 4 * int(np.prod(shape))
        pointer = ctypes.c_void_p()
        check(CUDA.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(self.count)))
        self.address = pointer.value or 0
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (self.address, False),
            "version": 3,
        }

    def put(self, values: Any, stream: int) -> None:
        values = np.ascontiguousarray(values)
        copy(self.address, values.ctypes.data, self.count, stream)

    def get(self, stream: int) -> Any:
        """In the stream's order, and without asking weightsync anything."""
        out = np.zeros(self.shape, "f4")
        copy(out.ctypes.data, self.address, self.count, stream)
        check(CUDA.cudaStreamSynchronize(ctypes.c_void_p(stream)))
        return out


def values(version: int) -> Any:
    return (1000 * version + np.arange(48).reshape(SHAPE) + 1).astype("f4")


def deliver(rank: int, transport: ws.Transport) -> None:
    plan = ws.Plan(
        ws.Layout.from_json(gpu_layout(0)),
        ws.Layout.from_json(gpu_layout(1)),
    )
    source, destination, stream = Array((3, 8)), Array((6, 4)), Stream()
    with ws.Session(transport) as session:
        session.bind({"w": source}, side="source")
        session.bind({"w": destination}, side="destination")
        request = session.request(session.load(plan))
        for version in (1, 2, 3):
            rows = values(version)[3 * rank : 3 * rank + 3]
            source.put(rows, stream.cuda_stream)
            request.submit(version, stream=stream, verify=version == 2)
            columns = values(version)[:, 4 * rank : 4 * rank + 4]
            assert (destination.get(stream.cuda_stream) == columns).all()
            assert request.wait(60)
            assert request.outcome() == (ws.Outcome.COMPLETE, ws.Outcome.COMPLETE)
        session.finalize(60)
    transport.finalize(60)


def gpu_layout(dim: int) -> Any:
    made = layout(0, 2, dim)
    made["tensors"][0]["memory"] = {"device": 0}
    return made


class UniqueId(ctypes.Structure):
    """As NCCL takes it: by value."""

    _fields_ = [("internal", ctypes.c_byte * ws.nccl.NCCL_ID_BYTES)]


class Communicator:
    """A communicator as vLLM shows it, whose ranks share the GPU."""

    def __init__(self, rank: int, unique_id: bytes) -> None:
        self.nccl = ctypes.CDLL(os.environ["WSYNC_NCCL_LIBRARY"])
        self.comm = ctypes.c_void_p()
        unique = UniqueId.from_buffer_copy(unique_id)
        place = ctypes.byref(self.comm)
        check(self.nccl.ncclCommInitRank(place, ctypes.c_int(2), unique, ctypes.c_int(rank)))

    def destroy(self) -> None:
        check(self.nccl.ncclCommDestroy(self.comm))


def on_both_ranks(run: Callable[[int], Any]) -> list[Any]:
    """What run returns, of two threads."""
    results: list[Any] = [None, None]
    failures: list[BaseException] = []

    def guarded(rank: int) -> None:
        try:
            results[rank] = run(rank)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]
    return results


def main() -> None:
    how = sys.argv[1]
    lent: list[Communicator] = []
    if how == "loopback":
        transports = [ws.Transport.loopback(rank, 2) for rank in (0, 1)]
    elif how == "id":
        unique_id = ws.nccl_id()
        assert len(unique_id) == ws.nccl.NCCL_ID_BYTES
        transports = [ws.Transport.nccl(rank, 2, unique_id=unique_id) for rank in (0, 1)]
    else:
        unique_id = ws.nccl_id()
        lent = on_both_ranks(lambda rank: Communicator(rank, unique_id))
        transports = [ws.Transport.nccl(rank, 2, comm=lent[rank], mode=how) for rank in (0, 1)]
    greetings = [transport.greeting() for transport in transports]

    def run(rank: int) -> None:
        transports[rank].meet(greetings)
        deliver(rank, transports[rank])
        transports[rank].close()

    on_both_ranks(run)
    for communicator in lent:
        communicator.destroy()
    print("delivered")


if __name__ == "__main__":
    main()

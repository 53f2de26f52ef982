"""A delivery between GPU arrays, run by test_gpu.py where CUDA is the stand-in.

Arrays show themselves as CuPy's do, by __cuda_array_interface__, and streams as
torch's do, by cuda_stream; neither library is needed.
"""

from __future__ import annotations

import ctypes
import os
import threading
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


def main() -> None:
    transports = [ws.Transport.loopback(rank, 2) for rank in (0, 1)]
    greetings = [transport.greeting() for transport in transports]
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            transports[rank].meet(greetings)
            deliver(rank, transports[rank])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]
    print("delivered")


if __name__ == "__main__":
    main()

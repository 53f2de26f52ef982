"""Sessions: one rank's memory, by name, and the plans it has loaded."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional, Union

from . import _ffi
from ._buffers import Memory, describe, destination
from ._handle import Handle
from ._loader import call, lib, name_bytes
from .enums import Side, State, nanoseconds, number
from .errors import WeightsyncError, invalid
from .plan import Plan
from .transport import Transport

if TYPE_CHECKING:
    from .request import Request

#: Seconds that close() gives an aborted request to let go of the memory.
_SETTLE_SECONDS = 5.0

#: Memory that a request may still write to after its session was closed.
_stuck: list[Any] = []


class Session(Handle):
    """One rank's buffers and plans. One call at a time, but for abort."""

    _warns = True

    def __init__(self, transport: Transport, load_timeout: Optional[float] = None) -> None:
        """Makes a session of the transport's rank; the ranks must have met.

        load_timeout: seconds that load waits for peers to be reachable; None
        is the default of 30.
        """
        options = _ffi.wsync_session_options()
        options.struct_size = ctypes.sizeof(options)
        options.load_deadline_ns = 0 if load_timeout is None else nanoseconds(load_timeout)
        made = _ffi.wsync_session_p()
        with transport._use() as pointer:
            call(
                lib.wsync_session_create, pointer, ctypes.byref(options), ctypes.byref(made)
            )
        self._transport = transport
        self._bound: dict[tuple[Side, str], Memory] = {}
        self._requests: weakref.WeakSet[Request] = weakref.WeakSet()
        super().__init__(made)

    def bind(self, arrays: Mapping[str, Any], side: Union[Side, str]) -> None:
        """Names memory of one side, all of it or none.

        The session keeps the arrays alive until their names are bound again
        or unbound, or it is closed. An array that is not contiguous is bound
        from its lowest to its highest byte. Read-only arrays are refused as
        destinations, and a plan refuses arrays whose element type, shape or
        strides are not those of its tensors. Unsigned integers stand for the
        bits of elements as wide as they are, and bytes for any.
        """
        chosen = Side(number(Side, side))
        memories = {name: describe(array) for name, array in arrays.items()}
        if chosen is Side.DESTINATION:
            for name, memory in memories.items():
                destination(memory, name)
        bindings = (_ffi.wsync_binding * max(len(memories), 1))()
        for slot, (name, memory) in zip(bindings, memories.items()):
            slot.side = chosen
            _fill(slot, name, memory)
        with self._use() as pointer:
            call(
                lib.wsync_session_bind_many,
                pointer,
                bindings,
                len(memories),
                ctypes.sizeof(_ffi.wsync_binding),
            )
            self._bound.update(((chosen, name), memory) for name, memory in memories.items())

    def unbind(self, name: str, side: Union[Side, str]) -> None:
        """Forgets a buffer, and lets go of its array."""
        chosen = Side(number(Side, side))
        with self._use() as pointer:
            call(lib.wsync_session_unbind, pointer, chosen, name_bytes(name))
            self._bound.pop((chosen, name), None)

    def load(self, plan: Plan) -> int:
        """Gets ready to execute `plan`; the number of the slot it takes.

        Its buffers have to be bound.
        """
        slot = ctypes.c_uint32()
        with self._use() as pointer, plan._use() as loaded:
            call(lib.wsync_session_load, pointer, loaded, ctypes.byref(slot))
        return slot.value

    def unload(self, slot: int) -> None:
        """Forgets the plan in `slot` and gives its staging back."""
        with self._use() as pointer:
            call(lib.wsync_session_unload, pointer, slot)

    def request(self, slot: int) -> Request:
        """Makes a request for the plan in `slot`; once for all versions."""
        from .request import Request

        return Request(self, slot)

    def finalize(self, timeout: Optional[float] = 60.0) -> None:
        """The polite end: waits until no request is under way, then closes.

        timeout: seconds to wait at most; None waits for ever. The transport
        is not touched.
        """
        with self._use() as pointer:
            call(lib.wsync_session_finalize, pointer, nanoseconds(timeout))

    def abort(self, reason: str) -> None:
        """Stops the transport and everything that uses it, here and on peers."""
        with self._use() as pointer:
            call(lib.wsync_session_abort, pointer, name_bytes(reason))

    def _interrupt(self) -> None:
        running = [request for request in list(self._requests) if request._busy()]
        if self._calls or running:
            self._stop(b"the session was closed during a request")
        ended = time.monotonic() + _SETTLE_SECONDS
        while any(request._busy() for request in running) and time.monotonic() < ended:
            time.sleep(0.001)
        if any(request._busy() for request in running):
            _stuck.append(dict(self._bound))

    def _abandon(self) -> None:
        self._stop(b"the session was never closed")

    def _stop(self, reason: bytes) -> None:
        try:
            call(lib.wsync_session_abort, self._pointer, reason)
        except WeightsyncError:
            pass

    def _destroy(self, pointer: Any) -> None:
        for request in list(self._requests):
            request.close()
        lib.wsync_session_destroy(pointer)
        self._bound.clear()


def _fill(slot: Any, name: str, memory: Memory) -> None:
    """Tells a binding all that is known of an array."""
    encoded = name.encode()
    axes = len(memory.shape)
    if axes > _ffi.WSYNC_DIM_COUNT_MAX:
        raise invalid(
            f"{name!r} has {axes} axes, at most {_ffi.WSYNC_DIM_COUNT_MAX} are possible"
        )
    slot.name.ptr, slot.name.bytes = encoded, len(encoded)
    slot.ptr, slot.bytes = memory.start or None, memory.bytes
    slot.memory, slot.device = memory.memory, memory.device
    slot.dtype, slot.dim_count = _ffi.wsync_dtype(*memory.dtype), axes
    slot.shape[:axes], slot.strides[:axes] = list(memory.shape), list(memory.strides)


def check_stream(stream: Any) -> Optional[int]:
    """The address of a stream: a number, or an object that has one."""
    if stream is None or isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr", "handle"):
        address = getattr(stream, name, None)
        if isinstance(address, int):
            return address
    raise invalid(f"a {type(stream).__name__} is not a stream")


__all__ = ["Session", "State"]

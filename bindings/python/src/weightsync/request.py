"""Requests: the executions of a loaded plan."""

from __future__ import annotations

import asyncio
import ctypes
import json
import time
from collections.abc import Generator
from typing import Any, NamedTuple, Optional

from . import _ffi
from ._handle import Handle
from ._loader import call, lib, name_bytes, read_text
from .enums import Outcome, RequestFlag, State, Status, nanoseconds
from .errors import CallerError, WeightsyncError
from .session import Session, check_stream

#: Waits are made of pieces of that many nanoseconds, so that signals get in.
_PIECE_NS = 50_000_000

_BUSY = (State.PREPARING, State.READY, State.RUNNING, State.SETTLING)


class Outcomes(NamedTuple):
    """What became of this rank's memory, and of the copy it belongs to.

    Only a copy that is Outcome.COMPLETE may serve the new version.
    """

    rank: Outcome
    copy: Outcome


class Request(Handle):
    """One execution of a plan; made once and used for every version.

    prepare, start and submit are for one thread at a time; everything else
    may be called by any number of threads, during those too. `await` of a
    request waits for its end. Exceptions of a request that has ended have its
    `outcome` for this rank.
    """

    def __init__(self, session: Session, slot: int) -> None:
        """Makes a request for the plan in `slot` of `session`."""
        made = _ffi.wsync_request_p()
        with session._use() as pointer:
            call(lib.wsync_request_create, pointer, slot, ctypes.byref(made))
        # The session holds the arrays, which have to outlive the request.
        self._session = session
        super().__init__(made)
        session._requests.add(self)

    def prepare(
        self,
        version: int = 0,
        *,
        verify: bool = False,
        dry_run: bool = False,
        agree_timeout: Optional[float] = None,
        stall_timeout: Optional[float] = None,
    ) -> None:
        """Begins to agree with all ranks that `version` is to move.

        Never waits, and moves nothing. verify: compare digests of what was
        sent and delivered. dry_run: agree and report alone. agree_timeout:
        seconds that the ranks have to agree. stall_timeout: seconds that a
        running request may go without finishing a step. None is the default.
        """
        options = _ffi.wsync_request_options()
        options.struct_size = ctypes.sizeof(options)
        options.version = version
        options.flags = (RequestFlag.VERIFY if verify else 0) | (
            RequestFlag.DRY_RUN if dry_run else 0
        )
        if agree_timeout is not None:
            options.agree_deadline_ns = nanoseconds(agree_timeout)
        if stall_timeout is not None:
            options.stall_deadline_ns = nanoseconds(stall_timeout)
        with self._use() as pointer:
            call(lib.wsync_request_prepare, pointer, ctypes.byref(options))

    def wait_ready(self, timeout: Optional[float] = None) -> bool:
        """Waits until the ranks agree; False if they do not by then.

        timeout: seconds; 0 only looks, None waits as long as the agree
        timeout of the request lets it.
        """
        return self._wait(lib.wsync_request_wait_ready, timeout, False)

    def start(self, stream: Any = None) -> None:
        """Starts a request that is READY, and returns.

        stream: the caller's stream, after whose work the first byte is read
        or written, and whose later work comes after the transfer: its
        address, or a torch or CuPy stream, such as
        torch.cuda.current_stream(). None is the default stream where buffers
        are on a GPU, and nothing where all are on the host.
        """
        with self._use() as pointer:
            try:
                call(lib.wsync_request_start, pointer, check_stream(stream))
            except WeightsyncError as error:
                raise self._explained(error)

    def submit(
        self,
        version: int = 0,
        *,
        stream: Any = None,
        verify: bool = False,
        dry_run: bool = False,
        agree_timeout: Optional[float] = None,
        stall_timeout: Optional[float] = None,
    ) -> None:
        """Prepares, waits until READY, and starts; see those."""
        self.prepare(
            version,
            verify=verify,
            dry_run=dry_run,
            agree_timeout=agree_timeout,
            stall_timeout=stall_timeout,
        )
        self.wait_ready()
        self.start(stream)

    def test(self) -> bool:
        """Whether it has ended well; raises what ended it otherwise."""
        with self._use() as pointer:
            try:
                return call(lib.wsync_request_test, pointer) == Status.OK
            except WeightsyncError as error:
                raise self._explained(error)

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits for the end: True if it ended well, False if not by then.

        timeout: seconds; 0 only looks, None waits as long as the timeouts of
        the request let it. Raises what ended the request otherwise. A request
        that is READY waits to be started, and is not waited for.
        """
        return self._wait(lib.wsync_request_wait, timeout, True)

    def _wait(self, function: Any, timeout: Optional[float], to_end: bool) -> bool:
        end = None if timeout is None else time.monotonic_ns() + nanoseconds(timeout)
        while True:
            left = _PIECE_NS if end is None else max(end - time.monotonic_ns(), 0)
            with self._use() as pointer:
                try:
                    if call(function, pointer, min(left, _PIECE_NS)) == Status.OK:
                        return True
                except WeightsyncError as error:
                    raise self._explained(error)
                if left == 0 or (
                    to_end and lib.wsync_request_state(pointer) == State.READY
                ):
                    return False

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.test():
            if self.state is State.READY:
                raise CallerError("the request was not started", Status.INVALID_STATE)
            await loop.run_in_executor(None, self._wait_piece)

    def _wait_piece(self) -> None:
        self.wait(_PIECE_NS / 1e9)

    @property
    def state(self) -> State:
        """Where the request is."""
        with self._use() as pointer:
            return State(lib.wsync_request_state(pointer))

    def outcome(self) -> Outcomes:
        """What became of destination memory; once the request has ended."""
        rank, copy = ctypes.c_uint32(), ctypes.c_uint32()
        with self._use() as pointer:
            call(lib.wsync_request_outcome, pointer, ctypes.byref(rank), ctypes.byref(copy))
        return Outcomes(Outcome(rank.value), Outcome(copy.value))

    def step_count(self) -> int:
        """Number of steps of this rank's program."""
        with self._use() as pointer:
            return int(lib.wsync_request_step_count(pointer))

    def steps_done(self) -> int:
        """Number of steps finished on this rank; see Plan.tensor_last_step."""
        with self._use() as pointer:
            return int(lib.wsync_request_steps_done(pointer))

    def report(self) -> dict[str, Any]:
        """The current or last execution: state, outcome, bytes, times."""
        with self._use() as pointer:
            whole: dict[str, Any] = json.loads(read_text(lib.wsync_request_report, pointer))
            return whole

    def tensor_digest(self, tensor: str) -> int:
        """Digest of a tensor in the version that was moved last, verified.

        Equal digests of two versions mean that nothing changed.
        """
        digest = ctypes.c_uint64()
        with self._use() as pointer:
            call(
                lib.wsync_request_tensor_digest,
                pointer,
                name_bytes(tensor),
                ctypes.byref(digest),
            )
        return digest.value

    def _explained(self, error: WeightsyncError) -> WeightsyncError:
        """The error with the outcome, if the request has ended."""
        if not isinstance(error, CallerError):
            try:
                error.outcome = self.outcome().rank
            except WeightsyncError:
                pass
        return error

    def _busy(self) -> bool:
        pointer = self._pointer
        return pointer is not None and lib.wsync_request_state(pointer) in _BUSY

    @property
    def _warns(self) -> bool:  # type: ignore[override]
        return self._busy()

    def _abandon(self) -> None:
        self._session._stop(b"a request was dropped while it was under way")

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_request_destroy(pointer)

"""What all objects of the library have in common."""

from __future__ import annotations

import os
import threading
import warnings
from types import TracebackType
from typing import Any, Optional, TypeVar

from .enums import Status
from .errors import CallerError

_Self = TypeVar("_Self", bound="Handle")


class _Use:
    """One call, or several, under way on a handle; `with` it gives the pointer."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __enter__(self) -> Any:
        handle = self._handle
        with handle._lock:
            if handle._closing or handle._pointer is None:
                raise CallerError(
                    f"this {type(handle).__name__.lower()} is closed", Status.INVALID_STATE
                )
            handle._calls += 1
        return handle._pointer

    def __exit__(self, *_error: object) -> None:
        handle = self._handle
        with handle._lock:
            handle._calls -= 1
            if handle._closing:
                handle._idle.notify_all()


class Handle:
    """Owns a handle; close() ends it, once, after the calls under way."""

    #: Whether forgetting close() is worth a warning: peers may depend on it.
    _warns = False
    _pointer: Any = None

    def __init__(self, pointer: Any) -> None:
        self._calls = 0
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._closing = False
        self._pid = os.getpid()
        self._pointer = pointer

    def _use(self) -> _Use:
        """A block in which the pointer stays valid."""
        return _Use(self)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closing or self._pointer is None

    def close(self) -> None:
        """Ends the object and never waits for a peer. Closing again is fine."""
        if self._pointer is None:
            return
        with self._idle:
            if self._closing:
                return
            self._closing = True
        self._interrupt()
        with self._idle:
            while self._calls:
                self._idle.wait()
            pointer, self._pointer = self._pointer, None
        self._destroy(pointer)

    def _interrupt(self) -> None:
        """Makes calls under way return soon; new ones are refused already."""

    def _destroy(self, pointer: Any) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """What __del__ does before it closes an object that warns."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._pointer is None or self._closing or self._pid != os.getpid():
            return
        try:
            if self._warns:
                warnings.warn(
                    f"{type(self).__name__} was never closed", ResourceWarning, source=self
                )
        finally:
            try:
                if self._warns:
                    self._abandon()
            finally:
                self.close()

"""Environment variables and the log."""

from __future__ import annotations

import ctypes
from typing import Any, Callable, NamedTuple, Optional, Union

from . import _ffi
from ._loader import call, lib
from .enums import LogLevel, number


class EnvInfo(NamedTuple):
    """One environment variable, and what holds in this process."""

    name: str
    default: str
    value: str
    meaning: str
    is_set: bool


def env() -> list[EnvInfo]:
    """The environment variables that the library knows."""
    found = []
    for index in range(lib.wsync_env_count()):
        info = _ffi.wsync_env_info()
        info.struct_size = ctypes.sizeof(info)
        call(lib.wsync_env_at, index, ctypes.byref(info))
        texts = (info.name, info.default_value, info.value, info.meaning)
        name, default, value, meaning = ((text or b"").decode() for text in texts)
        found.append(EnvInfo(name, default, value, meaning, bool(info.is_set)))
    return found


_log_function: Any = None


def set_log(
    function: Optional[Callable[[LogLevel, str], None]],
    max_level: Union[LogLevel, str] = LogLevel.INFO,
) -> None:
    """Sends log lines to `function`; None restores the default.

    It is called from any thread, several at a time, and must not call the
    library.
    """
    global _log_function
    given = None
    if function is not None:
        target = function

        def forward(_user: Any, level: int, message: bytes) -> None:
            target(LogLevel(level), message.decode("utf-8", "replace"))

        given = _ffi.wsync_log_fn(forward)
    call(
        lib.wsync_set_log,
        given if given is not None else _ffi.wsync_log_fn(),
        None,
        number(LogLevel, max_level),
    )
    # The one before is not running any more, and may go now.
    _log_function = given

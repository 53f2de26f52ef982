"""Finds the library, checks that it fits, and declares its functions."""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path
from typing import Any

from . import _ffi
from .enums import Status
from .errors import LibraryProblem, from_record

SONAME = f"libweightsync.so.{_ffi.WSYNC_ABI_VERSION}"
BUNDLED = Path(__file__).resolve().parent / "lib" / SONAME


def candidate() -> tuple[str, str]:
    """The path or name that is loaded, and where it comes from."""
    given = os.environ.get("WSYNC_LIBRARY")
    if given:
        return given, "from WSYNC_LIBRARY"
    if BUNDLED.is_file():
        return str(BUNDLED), "bundled with the package"
    return SONAME, "by its name, for none is bundled and WSYNC_LIBRARY is not set"


def dotted(version: int) -> str:
    """A packed version as people write it."""
    return f"{version >> 16 & 255}.{version >> 8 & 255}.{version & 255}"


def expected() -> str:
    """What this package needs, and how to have it found."""
    remedy = f"set WSYNC_LIBRARY to the full path of such a {SONAME}"
    if os.environ.get("WSYNC_LIBRARY") and BUNDLED.is_file():
        remedy += ", or unset it to take the bundled one"
    elif not BUNDLED.is_file():
        remedy += ", or install a wheel that has one inside, or the system's package"
    return (
        f"the package in {BUNDLED.parent.parent} needs version {dotted(_ffi.WSYNC_VERSION)} or newer with "
        f"binary interface {_ffi.WSYNC_ABI_VERSION}; {remedy}"
    )


def loaded_files() -> list[str]:
    """Every libweightsync that is in this process, as the kernel names it."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    files: list[str] = []
    for line in maps.splitlines():
        file = line.partition("/")
        path = file[1] + file[2]
        if path.rpartition("/")[2].startswith("libweightsync.so") and path not in files:
            files.append(path)
    return files


def load() -> ctypes.CDLL:
    """Loads and checks the library; LibraryProblem says what is wrong."""
    path, origin = candidate()
    before = loaded_files()
    try:
        # CDLL, and not PyDLL: calls that wait must let other threads run.
        library = ctypes.CDLL(path)
    except OSError as error:
        raise LibraryProblem(
            f"cannot load {path} ({origin}): {error}; {expected()}", Status.LIBRARY_NOT_FOUND
        ) from None
    try:
        abi_version = library.wsync_abi_version
    except AttributeError:
        raise LibraryProblem(
            f"{path} ({origin}) is not libweightsync; {expected()}", Status.LIBRARY_NOT_FOUND
        ) from None
    abi_version.restype = ctypes.c_uint32
    if abi_version() != _ffi.WSYNC_ABI_VERSION:
        raise LibraryProblem(
            f"{path} ({origin}) has binary interface {abi_version()}; {expected()}",
            Status.LIBRARY_TOO_OLD,
        )
    for name, result, arguments in _ffi.FUNCTIONS:
        try:
            function = getattr(library, name)
        except AttributeError:
            raise LibraryProblem(
                f"{path} ({origin}) lacks {name}: it is older than this package; {expected()}",
                Status.LIBRARY_TOO_OLD,
            ) from None
        function.restype = result
        function.argtypes = arguments
    found = library.wsync_version()
    if found < _ffi.WSYNC_VERSION:
        raise LibraryProblem(
            f"{path} ({origin}) is of version {dotted(found)}; {expected()}",
            Status.LIBRARY_TOO_OLD,
        )
    now = loaded_files()
    if len(now) > 1 and now != before:
        warnings.warn(
            f"two copies of libweightsync are in this process: {', '.join(now)}; handles and "
            f"loopback ranks of one are unknown to the other; this package uses {path} "
            f"({origin}): set WSYNC_LIBRARY={before[0] if before else now[0]} to use one for all",
            RuntimeWarning,
            stacklevel=2,
        )
    return library


lib = load()


def call(function: Any, *arguments: Any) -> int:
    """Calls a function that takes an error record last; raises its failure.

    Returns the status: OK or IN_PROGRESS. `arguments` stay referenced until
    the call is over.
    """
    record = _ffi.wsync_error()
    record.struct_size = ctypes.sizeof(record)
    status: int = function(*arguments, ctypes.byref(record))
    if status < 0:
        raise from_record(status, record)
    return status


def read_bytes(function: Any, *arguments: Any) -> bytes:
    """What a function writes that takes buffer, capacity and out_needed."""
    needed = ctypes.c_size_t()
    capacity = 0
    buffer: Any = None
    while True:
        try:
            call(function, *arguments, buffer, capacity, ctypes.byref(needed))
        except Exception as error:
            # It may have grown since it was asked for its size.
            if capacity == 0 or getattr(error, "status", None) != Status.BUFFER_TOO_SMALL:
                raise
            capacity = 0
            buffer = None
            continue
        if needed.value <= capacity:
            return bytes(memoryview(buffer)[: needed.value])
        capacity = needed.value
        buffer = ctypes.create_string_buffer(capacity)


def read_text(function: Any, *arguments: Any) -> str:
    """The same for text that ends with a NUL."""
    return read_bytes(function, *arguments)[:-1].decode()


def read_ranks(function: Any, *arguments: Any) -> list[int]:
    """The same for ranks."""
    count = ctypes.c_size_t()
    call(function, *arguments, None, 0, ctypes.byref(count))
    ranks = (ctypes.c_uint32 * max(count.value, 1))()
    call(function, *arguments, ranks, count.value, ctypes.byref(count))
    return list(ranks[: count.value])


def name_bytes(name: str) -> bytes:
    """A name for the library; it must not have a NUL inside."""
    encoded = name.encode()
    if b"\0" in encoded:
        raise ValueError(f"{name!r} has a NUL inside")
    return encoded


def text_array(texts: Any) -> tuple[Any, int]:
    """An array of wsync_text, which keeps its bytes, and its length."""
    encoded = [text.encode() for text in texts]
    array = (_ffi.wsync_text * max(len(encoded), 1))()
    for slot, text in zip(array, encoded):
        slot.ptr = text
        slot.bytes = len(text)
    return array, len(encoded)

"""_ffi.py and enums.py say what the header says."""

from __future__ import annotations

import ctypes
import re
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import cffi
import pytest
from weightsync import _ffi, enums

REPOSITORY = Path(__file__).resolve().parents[3]
HEADER = (REPOSITORY / "include" / "weightsync.h").read_text()
HANDLES = {"layout", "mapping", "plan", "request", "session", "topology", "transport"}


def preprocessed() -> str:
    """The header without includes, as a C compiler sees it."""
    text = re.sub(r"^\s*#\s*include.*$", "", HEADER, flags=re.M)
    text = subprocess.run(
        ["gcc", "-E", "-P", "-std=c11", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.sub(r"static inline int wsync_header_matches.*?\}", "", text, flags=re.S)


TEXT = preprocessed()
FFI = cffi.FFI()
FFI.cdef(TEXT)
FUNCTIONS = [
    name
    for name in re.findall(r"\b(wsync_\w+)\s*\(", TEXT)
    if f"function {name}" in FFI._parser._declarations
]
STRUCTS = re.findall(r"typedef struct (wsync_\w+) \{", TEXT)

PRIMITIVES: dict[str, Any] = {
    "char": ctypes.c_char,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
}


def callback(kind: Any) -> Any:
    """The ctypes type of a function pointer, by its number of arguments."""
    return {2: _ffi.wsync_nccl_abort_fn, 3: _ffi.wsync_log_fn}[len(kind.args)]


def wanted(kind: Any) -> Any:
    """The ctypes type for a type of the header."""
    if kind.kind == "void":
        return None
    if kind.kind == "primitive":
        return PRIMITIVES[kind.cname]
    if kind.kind == "array":
        return wanted(kind.item) * kind.length
    if kind.kind == "struct":
        return getattr(_ffi, kind.cname.split()[-1])
    if kind.kind == "function":
        return callback(kind)
    assert kind.kind == "pointer"
    item = kind.item
    if item.kind == "void":
        return ctypes.c_void_p
    if item.cname == "char":
        return ctypes.c_char_p
    if item.kind == "function":
        return callback(item)
    if item.kind == "struct" and item.cname.split()[-1][len("wsync_") :] in HANDLES:
        return getattr(_ffi, f"{item.cname.split()[-1]}_p")
    return ctypes.POINTER(wanted(item))


def test_functions_are_the_same_in_the_same_order() -> None:
    assert [name for name, _, _ in _ffi.FUNCTIONS] == FUNCTIONS
    symbols = (REPOSITORY / "include" / "weightsync.sym").read_text()
    assert sorted(FUNCTIONS) == sorted(set(re.findall(r"\bwsync_\w+", symbols)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    with FFI._lock:
        kind = FFI._get_cached_btype(FFI._parser._declarations[f"function {name}"][0])
    _, result, arguments = next(entry for entry in _ffi.FUNCTIONS if entry[0] == name)
    assert result is wanted(kind.result)
    assert arguments == [wanted(argument) for argument in kind.args]


def test_structs_are_the_same_in_the_same_order() -> None:
    declared = [
        name
        for name, value in vars(_ffi).items()
        if isinstance(value, type)
        and issubclass(value, ctypes.Structure)
        and value is not ctypes.Structure
    ]
    assert declared == STRUCTS


@pytest.mark.parametrize("name", STRUCTS)
def test_struct(name: str) -> None:
    ours, theirs = getattr(_ffi, name), FFI.typeof(name)
    assert ctypes.sizeof(ours) == FFI.sizeof(name)
    assert ctypes.alignment(ours) == FFI.alignof(name)
    assert [field for field, _ in ours._fields_] == [field for field, _ in theirs.fields]
    for field, detail in theirs.fields:
        assert getattr(ours, field).offset == detail.offset
        assert dict(ours._fields_)[field] is wanted(detail.type) or (
            detail.type.kind == "array"
            and dict(ours._fields_)[field]._length_ == detail.type.length
            and dict(ours._fields_)[field]._type_ is wanted(detail.type.item)
        )


def test_constants() -> None:
    defines = dict(re.findall(r"^#define (WSYNC_\w+) (\d+)(?:ull)?$", HEADER, flags=re.M))
    ours = {name: value for name, value in vars(_ffi).items() if name.startswith("WSYNC_")}
    assert ours == {name: int(value) for name, value in defines.items()}


def test_enums() -> None:
    found = {}
    for name, body in re.findall(r"enum (wsync_\w+)[^{;]*\{(.*?)\}", TEXT, flags=re.S):
        members = re.findall(r"(WSYNC_\w+) = (-?\d+)", body)
        prefix = "WSYNC_" if name == "wsync_status" else name.upper() + "_"
        found[name] = {
            key[len(prefix) :].removeprefix("ERR_")
            if name == "wsync_status"
            else key[len(prefix) :]: int(value)
            for key, value in members
        }
    ours = {
        kind.__name__: {member.name: member.value for member in kind.__members__.values()}
        for kind in vars(enums).values()
        if isinstance(kind, type)
        and issubclass(kind, (IntEnum, IntFlag))
        and kind not in (IntEnum, IntFlag)
    }
    names = {
        "".join(part.title() for part in name.split("_")[1:]): name for name in found
    }
    names = {
        {"Memory": "MemoryKind", "DtypeCode": "DTypeCode"}.get(python, python): name
        for python, name in names.items()
    }
    assert ours == {python: found[name] for python, name in names.items()}

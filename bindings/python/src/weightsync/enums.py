"""The numbers of the C interface, by name."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TypeVar, Union

from ._ffi import WSYNC_NO_DEADLINE


class Status(IntEnum):
    """What a call answered; the range of a failure says what is damaged."""

    OK = 0
    IN_PROGRESS = 1
    INVALID_ARGUMENT = -1
    BAD_HANDLE = -2
    BUFFER_TOO_SMALL = -3
    UNSUPPORTED = -4
    BUSY = -5
    LIMIT_EXCEEDED = -6
    NOT_FOUND = -7
    INVALID_STATE = -8
    PLAN_MISMATCH = -20
    LAYOUT_INVALID = -21
    CORRUPT = -22
    VERSION_MISMATCH = -23
    BUFFER_MISMATCH = -24
    STAGING_TOO_SMALL = -25
    CHECKSUM_MISMATCH = -26
    INFEASIBLE = -27
    LIBRARY_NOT_FOUND = -40
    LIBRARY_TOO_OLD = -41
    IO = -42
    OUT_OF_MEMORY = -43
    SYSTEM = -44
    AGREEMENT_TIMEOUT = -60
    REFUSED = -61
    PEER_LOST = -80
    STALLED = -81
    ABORTED = -82
    MEET_TIMEOUT = -83
    PROTOCOL = -84
    INTERNAL = -100
    POISONED = -101


class NativeDomain(IntEnum):
    """Whose code a native error code is."""

    NONE = 0
    ERRNO = 1
    NCCL = 2
    CUDA = 3
    UCX = 4


class Side(IntEnum):
    """Which side of a plan a buffer belongs to."""

    SOURCE = 1
    DESTINATION = 2


class MemoryKind(IntEnum):
    """Where a buffer lives."""

    HOST = 0
    PINNED_HOST = 1
    DEVICE = 2


class DTypeCode(IntEnum):
    """Kind of an element type, as DLPack numbers it."""

    INT = 0
    UINT = 1
    FLOAT = 2
    BFLOAT = 4
    COMPLEX = 5
    BOOL = 6
    FLOAT8_E3M4 = 7
    FLOAT8_E4M3 = 8
    FLOAT8_E4M3B11FNUZ = 9
    FLOAT8_E4M3FN = 10
    FLOAT8_E4M3FNUZ = 11
    FLOAT8_E5M2 = 12
    FLOAT8_E5M2FNUZ = 13
    FLOAT8_E8M0FNU = 14
    FLOAT6_E2M3FN = 15
    FLOAT6_E3M2FN = 16
    FLOAT4_E2M1FN = 17


class Outcome(IntEnum):
    """What became of destination memory; only COMPLETE may serve."""

    UNTOUCHED = 1
    COMPLETE = 2
    TORN = 3


class State(IntEnum):
    """Where a request is."""

    IDLE = 0
    PREPARING = 1
    READY = 2
    RUNNING = 3
    SETTLING = 4
    DONE = 5
    FAILED = 6


class LogLevel(IntEnum):
    """How much is logged."""

    OFF = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4


class MappingKind(IntEnum):
    """How ranks are mapped."""

    TWO_STAGE = 1
    SINGLE_STAGE = 2
    EXPERT = 3


class MappingFlag(IntFlag):
    """Flags of a mapping."""

    COLOCATED = 1
    KEEP_SAME_DEVICE = 2
    VLLM = 4
    APART = 8


class MappingList(IntEnum):
    """A list of pairs inside a mapping."""

    PAIRS = 1
    FORWARDS = 2
    ROUTED = 3
    SAME_DEVICE = 4


class RegroupKind(IntEnum):
    """How routed experts are brought together before stage 1."""

    NONE = 0
    ALL_TO_ALL = 1
    ALL_GATHER = 2


class Strategy(IntEnum):
    """Which way bytes take."""

    DEFAULT = 0
    DIRECT = 1
    TWO_STAGE = 2
    RELAY = 3
    FANOUT = 4
    AUTO = 5


class SourceRule(IntEnum):
    """Which of several holders sends."""

    DEFAULT = 0
    WRAP = 1
    ROTATE = 2


class Spread(IntEnum):
    """How the NVLink domains of one copy pass it on to each other."""

    DEFAULT = 0
    SCATTER = 1
    CHAIN = 2


class Order(IntEnum):
    """Which bytes travel first."""

    DEFAULT = 0
    FRACTION = 1
    LAYER = 2


class TransportKind(IntEnum):
    """Which data plane."""

    LOOPBACK = 1
    SHM = 2
    NCCL = 3


class NcclMode(IntEnum):
    """Whose communicator a transport over NCCL works with."""

    OWN = 1
    SPLIT = 2
    DIRECT = 3


class NcclIpc(IntEnum):
    """Which ranks of a host exchange bytes by CUDA IPC and not through NCCL."""

    OFF = 1
    DEVICE = 2
    DOMAIN = 3


class RequestFlag(IntFlag):
    """Flags of one execution."""

    VERIFY = 1
    DRY_RUN = 2


_E = TypeVar("_E", bound=IntEnum)


def number(kind: type[_E], value: Union[_E, int, str]) -> int:
    """The number of `value`: a member, its name in any case, or a number."""
    if isinstance(value, str):
        try:
            return int(kind[value.upper()])
        except KeyError:
            names = ", ".join(member.name.lower() for member in kind)
            raise ValueError(f"{value!r} is no {kind.__name__}: one of {names}") from None
    return int(value)


def nanoseconds(seconds: float | None) -> int:
    """A deadline in nanoseconds from seconds; None never comes."""
    if seconds is None:
        return WSYNC_NO_DEADLINE
    if not seconds >= 0:
        raise ValueError(f"a deadline of {seconds} seconds is not one")
    return min(int(seconds * 1e9), WSYNC_NO_DEADLINE) if seconds < 1.8e10 else WSYNC_NO_DEADLINE

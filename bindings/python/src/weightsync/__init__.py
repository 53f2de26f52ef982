"""weightsync: moves weights from trainer ranks to inference ranks.

The way through, on every rank:

    plan = Plan(Layout.from_json(source), Layout.from_json(destination))
    with Transport.shm(rank, ranks) as transport:
        transport.meet(gather(transport.greeting()))
        with Session(transport) as session:
            session.bind({"w": array}, side="source")
            request = session.request(session.load(plan))
            for version in ...:
                request.submit(version)
                request.wait()
                assert request.outcome().copy is Outcome.COMPLETE
"""

from __future__ import annotations

import os

from ._buffers import Buffer, DType, Memory, SupportsCudaArray, SupportsDLPack, describe
from ._loader import lib as _lib
from .enums import (
    DTypeCode,
    LogLevel,
    MappingFlag,
    MappingKind,
    MappingList,
    MemoryKind,
    NativeDomain,
    NcclIpc,
    NcclMode,
    Order,
    Outcome,
    RegroupKind,
    RequestFlag,
    Side,
    SourceRule,
    Spread,
    State,
    Status,
    Strategy,
    TransportKind,
)
from .environment import EnvInfo, env, set_log
from .errors import (
    CallerError,
    EnvironmentProblem,
    InternalError,
    LibraryProblem,
    PlanMismatch,
    TransferFailed,
    TransportLost,
    WeightsyncError,
)
from .layout import BufferInfo, Check, Layout, Tensor, View
from .mapping import Mapping, MovedPair, Pair, RankLoad
from .nccl import NcclOptions, nccl_id, nccl_version
from .plan import Plan, ProgramInfo, TwoStageOptions
from .request import Outcomes, Request
from .session import Session
from .topology import FabricCut, HostGroup, PlacementRun, Site, SpeedFactor, Topology
from .transport import Transport

__version__ = "0.1.0"


def library_version() -> str:
    """Version of the loaded library, such as "0.1.0"."""
    text: bytes = _lib.wsync_version_string()
    return text.decode()


def library_file() -> str:
    """The file that the loaded library came from."""
    text: bytes = _lib.wsync_library_file()
    return os.fsdecode(text)


__all__ = [
    "Buffer",
    "BufferInfo",
    "CallerError",
    "Check",
    "DType",
    "DTypeCode",
    "EnvInfo",
    "EnvironmentProblem",
    "FabricCut",
    "HostGroup",
    "InternalError",
    "Layout",
    "LibraryProblem",
    "LogLevel",
    "Mapping",
    "MappingFlag",
    "MappingKind",
    "MappingList",
    "Memory",
    "MemoryKind",
    "MovedPair",
    "NativeDomain",
    "NcclIpc",
    "NcclMode",
    "NcclOptions",
    "Order",
    "Outcome",
    "Outcomes",
    "Pair",
    "PlacementRun",
    "Plan",
    "PlanMismatch",
    "ProgramInfo",
    "RankLoad",
    "RegroupKind",
    "Request",
    "RequestFlag",
    "Session",
    "Side",
    "Site",
    "SourceRule",
    "SpeedFactor",
    "Spread",
    "State",
    "Status",
    "Strategy",
    "SupportsCudaArray",
    "SupportsDLPack",
    "Tensor",
    "Topology",
    "TransferFailed",
    "Transport",
    "TransportKind",
    "TransportLost",
    "View",
    "WeightsyncError",
    "describe",
    "env",
    "library_file",
    "library_version",
    "nccl_id",
    "nccl_version",
    "set_log",
]

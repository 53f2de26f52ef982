"""What a transport over NCCL is made with."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

from . import _ffi
from ._loader import call, lib, read_bytes
from .enums import NcclIpc, NcclMode, number

#: Bytes of a unique id.
NCCL_ID_BYTES = 128


def nccl_id(library: Union[str, os.PathLike[str], None] = None) -> bytes:
    """Makes a unique id, for one rank to give to all of them."""
    path = library_path(library)
    return read_bytes(lib.wsync_transport_nccl_id, path)


def nccl_version(library: Union[str, os.PathLike[str], None] = None) -> tuple[int, int, int]:
    """The version of NCCL that a transport would use, such as (2, 30, 7)."""
    version = ctypes.c_uint32()
    call(lib.wsync_transport_nccl_version, library_path(library), ctypes.byref(version))
    code = version.value
    return code // 10000, code // 100 % 100, code % 100


def comm_address(comm: Any) -> int:
    """The address in an ncclComm_t.

    comm: an int, a ctypes.c_void_p, or what has one as its attribute comm,
    such as vLLM's PyNcclCommunicator.
    """
    for _ in range(2):
        if isinstance(comm, int):
            return comm
        if isinstance(comm, ctypes.c_void_p):
            return comm.value or 0
        comm = getattr(comm, "comm", None)
    raise TypeError("comm is to be an ncclComm_t: an int, a c_void_p, or what has one as .comm")


def id_bytes(unique_id: Any) -> bytes:
    """The 128 bytes of a unique id.

    unique_id: bytes, or a ctypes structure of them such as vLLM's ncclUniqueId.
    """
    raw = bytes(unique_id)
    if len(raw) != NCCL_ID_BYTES:
        raise ValueError(f"a unique id has {NCCL_ID_BYTES} bytes; {len(raw)} were given")
    return raw


def library_path(library: Union[str, os.PathLike[str], None]) -> Optional[bytes]:
    """The libnccl.so.2 to ask for; None leaves the search to the library.

    The first copy in a process is the one that PyTorch gets, so none is loaded
    before PyTorch. Without PyTorch, NVIDIA's wheel is found where it lies.
    """
    if library is not None:
        return os.fsencode(library)
    if os.environ.get("WSYNC_NCCL_LIBRARY") or os.environ.get("VLLM_NCCL_SO_PATH"):
        return None
    if "torch" in sys.modules or _is_loaded():
        return None
    if importlib.util.find_spec("torch") is not None:
        raise RuntimeError(
            "import torch before weightsync uses NCCL, so that both use the same copy; "
            "or say which one with library="
        )
    return _wheel()


def _is_loaded() -> bool:
    return "/libnccl.so" in Path("/proc/self/maps").read_text(errors="replace")


def _wheel() -> Optional[bytes]:
    try:
        found = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return None
    for folder in found.submodule_search_locations or () if found else ():
        path = Path(folder) / "lib" / "libnccl.so.2"
        if path.is_file():
            return os.fsencode(path)
    return None


class NcclOptions:
    """How a transport uses NCCL; see Transport.nccl."""

    def __init__(
        self,
        *,
        comm: Any = None,
        mode: Union[NcclMode, str, None] = None,
        unique_id: Any = None,
        library: Union[str, os.PathLike[str], None] = None,
        cta_count_min: int = 0,
        cta_count_max: int = 0,
        p2p_peer_count_max: int = 0,
        net_channel_count: int = 0,
        rebuildable: bool = False,
        lending: bool = False,
        ipc: Union[NcclIpc, str, None] = None,
        on_abort: Optional[Callable[[str], None]] = None,
    ) -> None:
        raw = _ffi.wsync_nccl_options()
        raw.struct_size = ctypes.sizeof(raw)
        raw.mode = 0 if mode is None else number(NcclMode, mode)
        raw.cta_count_min = cta_count_min
        raw.cta_count_max = cta_count_max
        raw.p2p_peer_count_max = p2p_peer_count_max
        raw.net_channel_count = net_channel_count
        raw.is_rebuildable = int(rebuildable)
        raw.is_lending = int(lending)
        raw.ipc = 0 if ipc is None else number(NcclIpc, ipc)
        if comm is not None:
            raw.comm = comm_address(comm)
        if unique_id is not None:
            self._id = ctypes.create_string_buffer(id_bytes(unique_id), NCCL_ID_BYTES)
            raw.id = ctypes.cast(self._id, ctypes.c_void_p)
        # A borrowed communicator belongs to a copy that is in the process.
        raw.library = library_path(library) if comm is None else library and os.fsencode(library)
        if on_abort is not None:
            callback = on_abort
            self._on_abort = _ffi.wsync_nccl_abort_fn(
                lambda _user, reason: callback(reason.decode(errors="replace"))
            )
            raw.on_abort = self._on_abort
        self.raw = raw

"""What goes into a transport over NCCL, without NCCL."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import weightsync as ws
from weightsync import nccl


class PyNcclCommunicator:
    """As vLLM's: the communicator is an attribute."""

    def __init__(self, address: int) -> None:
        self.comm = ctypes.c_void_p(address)


@pytest.mark.parametrize("comm", [4096, ctypes.c_void_p(4096), PyNcclCommunicator(4096)])
def test_a_communicator_is_taken_as_it_comes(comm: object) -> None:
    assert nccl.comm_address(comm) == 4096
    options = ws.NcclOptions(comm=comm, mode="direct")
    assert (options.raw.comm, options.raw.mode) == (4096, ws.NcclMode.DIRECT)
    assert options.raw.library is None
    assert options.raw.ipc == 0
    assert options.raw.is_lending == 0
    lending = ws.NcclOptions(comm=comm, ipc="domain", lending=True)
    assert (lending.raw.ipc, lending.raw.is_lending) == (ws.NcclIpc.DOMAIN, 1)


def test_what_is_no_communicator_is_refused() -> None:
    with pytest.raises(TypeError, match="ncclComm_t"):
        nccl.comm_address("comm")


def test_an_id_is_bytes_or_a_structure_of_them() -> None:
    class NcclUniqueId(ctypes.Structure):
        _fields_ = [("internal", ctypes.c_byte * 128)]

    raw = bytes(range(128))
    assert nccl.id_bytes(raw) == raw
    assert nccl.id_bytes(NcclUniqueId.from_buffer_copy(raw)) == raw
    with pytest.raises(ValueError, match="128 bytes; 3 were given"):
        nccl.id_bytes(b"abc")
    options = ws.NcclOptions(unique_id=raw, library="/nowhere/libnccl.so.2")
    assert ctypes.string_at(options.raw.id, 128) == raw
    assert options.raw.library == b"/nowhere/libnccl.so.2"


def test_nothing_is_loaded_before_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WSYNC_NCCL_LIBRARY", "VLLM_NCCL_SO_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "torch.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    # Set first, so that what is imported below is taken out again.
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(nccl, "_is_loaded", lambda: False)
    with pytest.raises(RuntimeError, match="import torch before"):
        nccl.library_path(None)
    assert nccl.library_path("/x/libnccl.so.2") == b"/x/libnccl.so.2"
    __import__("torch")
    assert nccl.library_path(None) is None


def test_a_missing_library_is_said() -> None:
    with pytest.raises(ws.EnvironmentProblem, match="/nowhere/libnccl.so.2"):
        ws.nccl_version("/nowhere/libnccl.so.2")
    with pytest.raises(ws.EnvironmentProblem, match="/nowhere/libnccl.so.2"):
        ws.nccl_id("/nowhere/libnccl.so.2")
    with pytest.raises(ws.EnvironmentProblem):
        ws.Transport.nccl(0, 1, library="/nowhere/libnccl.so.2")


def test_a_borrowed_communicator_needs_its_mode() -> None:
    with pytest.raises(ws.CallerError, match="comm is NULL"):
        ws.Transport.nccl(0, 1, mode="split")
    with pytest.raises(ws.CallerError, match="id and rebuild_from"):
        ws.Transport.nccl(0, 1, comm=4096, unique_id=bytes(128))

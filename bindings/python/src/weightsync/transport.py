"""Transports: the way of one rank to all others."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

from . import _ffi
from ._handle import Handle
from ._loader import call, lib, name_bytes, read_bytes
from .enums import TransportKind, nanoseconds, number
from .errors import WeightsyncError
from .nccl import NcclOptions


class Transport(Handle):
    """A data plane and a small control channel of one rank.

    Used by any number of sessions, from any thread. Does not survive fork.
    Next is greeting and meet, or rendezvous.
    """

    _warns = True

    def __init__(
        self,
        kind: Union[TransportKind, str],
        rank: int,
        ranks: Union[int, Sequence[int]],
        *,
        ring_bytes_max: int = 0,
        nccl: Optional[NcclOptions] = None,
        rebuild_from: Optional[Transport] = None,
    ) -> None:
        """Makes a transport that has met nobody yet.

        ranks: all ranks, or how many there are. ring_bytes_max: for shm,
        bytes of shared memory per pair and direction; 0 is the default.
        nccl, rebuild_from: see Transport.nccl.
        """
        options = _ffi.wsync_transport_options()
        options.struct_size = ctypes.sizeof(options)
        options.kind = number(TransportKind, kind)
        options.rank = rank
        if isinstance(ranks, int):
            options.rank_count = ranks
        else:
            options.ranks = (ctypes.c_uint32 * max(len(ranks), 1))(*ranks)
            options.rank_count = len(ranks)
        options.ring_bytes_max = ring_bytes_max
        made = _ffi.wsync_transport_p()
        with contextlib.ExitStack() as stack:
            if options.kind == TransportKind.NCCL:
                nccl = nccl or NcclOptions()
                if rebuild_from is not None:
                    nccl.raw.rebuild_from = stack.enter_context(rebuild_from._use())
                options.nccl = ctypes.pointer(nccl.raw)
            call(lib.wsync_transport_create, ctypes.byref(options), ctypes.byref(made))
        self._nccl = nccl  # Its callback lives as long as the transport.
        super().__init__(made)

    @classmethod
    def loopback(cls, rank: int, ranks: Union[int, Sequence[int]]) -> Transport:
        """Ranks as threads of one process."""
        return cls(TransportKind.LOOPBACK, rank, ranks)

    @classmethod
    def shm(
        cls, rank: int, ranks: Union[int, Sequence[int]], *, ring_bytes_max: int = 0
    ) -> Transport:
        """Ranks as processes on one host, host memory."""
        return cls(TransportKind.SHM, rank, ranks, ring_bytes_max=ring_bytes_max)

    @classmethod
    def nccl(
        cls,
        rank: int,
        ranks: Union[int, Sequence[int]],
        *,
        rebuild_from: Optional[Transport] = None,
        **options: Any,
    ) -> Transport:
        """Ranks on GPUs, through NCCL; options are those of NcclOptions.

        The GPU is the current device, or the one of comm. Import torch first:
        both are to use one copy of NCCL.

        comm: an ncclComm_t to borrow, as an int, a c_void_p, or vLLM's
        PyNcclCommunicator. Split while the ranks meet, all of which have to
        come, or with mode="direct" used itself. unique_id: 128 bytes of
        nccl_id, the same on all ranks; None has the lowest rank make one.
        library: full path of libnccl.so.2. cta_count_min, cta_count_max: thread
        blocks of its kernels. p2p_peer_count_max, net_channel_count: limits on
        what is connected. rebuildable: keep what the survivors of a failure
        can make a transport of, with rebuild_from. ipc: which ranks of a host
        exchange bytes by CUDA IPC: "off", "device" or "domain"; None where
        NCCL does not connect them. lending: those read this rank's buffers
        where they lie, if CUDA can export them, which then stay allocated as
        wsync_nccl_options.is_lending says. on_abort: called with the reason if a
        directly used communicator has to be aborted by its owner.
        """
        nccl = NcclOptions(**options)
        return cls(TransportKind.NCCL, rank, ranks, nccl=nccl, rebuild_from=rebuild_from)

    def greeting(self) -> bytes:
        """What the others need to find this rank; it holds a secret."""
        with self._use() as pointer:
            return read_bytes(lib.wsync_transport_greeting, pointer)

    def meet(self, greetings: Iterable[bytes], timeout: Optional[float] = 60.0) -> None:
        """Takes the greetings of all ranks, this one's too, and connects.

        timeout: seconds to wait for the others; None waits for ever.
        """
        blobs = [bytes(greeting) for greeting in greetings]
        array = (_ffi.wsync_bytes * max(len(blobs), 1))()
        for slot, blob in zip(array, blobs):
            slot.ptr = ctypes.cast(ctypes.c_char_p(blob), ctypes.c_void_p)
            slot.bytes = len(blob)
        with self._use() as pointer:
            call(lib.wsync_transport_meet, pointer, array, len(blobs), nanoseconds(timeout))
        del blobs  # They had to live until here.

    def rendezvous(
        self, address: str, token: Union[str, bytes], timeout: Optional[float] = 60.0
    ) -> None:
        """Finds the others through a TCP meeting point, "host:port".

        The lowest rank listens there. token: a secret that all ranks share.
        timeout: seconds to wait for the others; None waits for ever.
        """
        secret = token.encode() if isinstance(token, str) else bytes(token)
        with self._use() as pointer:
            call(
                lib.wsync_transport_rendezvous,
                pointer,
                name_bytes(address),
                secret,
                len(secret),
                nanoseconds(timeout),
            )

    @property
    def rank(self) -> int:
        """This transport's rank."""
        with self._use() as pointer:
            return int(lib.wsync_transport_rank(pointer))

    @property
    def rank_count(self) -> int:
        """Number of ranks."""
        with self._use() as pointer:
            return int(lib.wsync_transport_rank_count(pointer))

    def status(self) -> None:
        """Raises the first reason for which the transport was aborted."""
        with self._use() as pointer:
            call(lib.wsync_transport_status, pointer)

    def abort(self, reason: str) -> None:
        """Stops everything that uses this transport, here and on all peers."""
        with self._use() as pointer:
            call(lib.wsync_transport_abort, pointer, name_bytes(reason))

    def finalize(self, timeout: Optional[float] = 60.0) -> None:
        """The polite end: leaves together with all other ranks.

        timeout: seconds to wait for them; None waits for ever.
        """
        with self._use() as pointer:
            call(lib.wsync_transport_finalize, pointer, nanoseconds(timeout))

    def _interrupt(self) -> None:
        if self._calls:
            self._stop(b"the transport was closed during a call")

    def _abandon(self) -> None:
        self._stop(b"the transport was never closed")

    def _stop(self, reason: bytes) -> None:
        try:
            call(lib.wsync_transport_abort, self._pointer, reason)
        except WeightsyncError:
            pass

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_transport_destroy(pointer)

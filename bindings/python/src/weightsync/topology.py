"""Topologies: hosts, NVLink domains, NICs, and which rank is where."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Union

from . import _ffi
from ._handle import Handle
from ._loader import call, lib, read_bytes, read_text, text_array


class Site(NamedTuple):
    """Where a rank sits; numbers count over the whole topology.

    Speeds are bytes per second, each way; nic_bytes_per_s is 0 without a NIC.
    """

    gpu: int
    host: int
    domain: int
    rail: int
    nic_bytes_per_s: int
    nvlink_bytes_per_s: int


class Topology(Handle):
    """What stands between the ranks. Immutable; any number of threads may use it."""

    def __init__(self, pointer: Any) -> None:
        super().__init__(pointer)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Topology:
        """Makes a topology from the text of a topology file."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        made = _ffi.wsync_topology_p()
        call(lib.wsync_topology_create_from_json, data, len(data), ctypes.byref(made))
        return cls(made)

    @classmethod
    def from_places(cls, places: Sequence[bytes]) -> Topology:
        """The topology of ranks that said where they are, in any order.

        places: what `place` made on each rank. Speeds and latency are the
        defaults; write the topology to JSON to change them.
        """
        items = (_ffi.wsync_bytes * max(len(places), 1))()
        kept = [ctypes.create_string_buffer(p, len(p)) for p in places]
        for item, data in zip(items, kept):
            item.ptr = ctypes.cast(data, ctypes.c_void_p)
            item.bytes = len(data)
        made = _ffi.wsync_topology_p()
        call(
            lib.wsync_topology_create_from_places, items, len(places), None, ctypes.byref(made)
        )
        return cls(made)

    @staticmethod
    def place(
        rank: int, host: str, device: str, *, domain: str = "", nics: Iterable[str] = ()
    ) -> bytes:
        """Where one rank is, as bytes to be gathered from all ranks.

        host: equal on all ranks of a host and on no others; empty is the boot
        id of this host. device: uuid of the GPU. domain: of the NVLink fabric,
        where it spans hosts. nics: names of the NICs near the GPU: those of
        one name are one rail on all hosts.
        """
        raw = _ffi.wsync_rank_place()
        raw.struct_size = ctypes.sizeof(raw)
        raw.rank = rank
        names, _ = text_array([host, device, domain])
        raw.host, raw.device, raw.domain = names[0], names[1], names[2]
        near, raw.nic_count = text_array(nics)
        raw.nics = near
        return read_bytes(lib.wsync_topology_place, ctypes.byref(raw))

    def to_json(self) -> str:
        """The topology as a topology file."""
        with self._use() as pointer:
            return read_text(lib.wsync_topology_to_json, pointer)

    def site(self, rank: int) -> Site:
        """Where `rank` sits, if the topology places it."""
        raw = _ffi.wsync_site()
        raw.struct_size = ctypes.sizeof(raw)
        with self._use() as pointer:
            call(lib.wsync_topology_site, pointer, rank, ctypes.byref(raw))
        return Site(*(int(getattr(raw, field)) for field in Site._fields))

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_topology_destroy(pointer)

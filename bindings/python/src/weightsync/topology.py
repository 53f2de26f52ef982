"""Topologies: hosts, NVLink domains, NICs, and which rank is where."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class HostGroup:
    """Equal hosts, one after the other. What is 0 has its default.

    count: 0, in the last group only, is as many as the ranks need. nics: of a
    host, a divisor or a multiple of gpus. domain_hosts: consecutive hosts that
    form one NVLink domain. Speeds are of one NIC, and of one GPU's NVLink.
    """

    count: int = 0
    gpus: int = 0
    nics: int = 0
    domain_hosts: int = 0
    nic_bytes_per_s: int = 0
    nvlink_bytes_per_s: int = 0


@dataclass(frozen=True)
class PlacementRun:
    """Ranks on GPUs from `gpu` on, counted over all hosts; 0 ranks_per_gpu is 1."""

    ranks: Sequence[int]
    gpu: int = 0
    ranks_per_gpu: int = 0


@dataclass(frozen=True)
class SpeedFactor:
    """Ranks whose links are slower: percent of their speed, 1 to 100; 0 is 100.

    is_drained: they should send nothing that others hold too.
    """

    ranks: Sequence[int]
    nic_percent: int = 0
    nvlink_percent: int = 0
    is_drained: bool = False


@dataclass(frozen=True)
class FabricCut:
    """A level of the network above the NICs: cells of `hosts` consecutive hosts.

    is_by_rail: every rail of these hosts is a cell of its own. Speeds are of a
    cell, to and from all others.
    """

    name: str
    hosts: int
    out_bytes_per_s: int
    in_bytes_per_s: int
    is_by_rail: bool = False


class Topology(Handle):
    """What stands between the ranks. Immutable; any number of threads may use it."""

    def __init__(self, pointer: Any) -> None:
        super().__init__(pointer)

    @classmethod
    def create(
        cls,
        *,
        hosts: Iterable[HostGroup] = (),
        placement: Iterable[PlacementRun] = (),
        speeds: Iterable[SpeedFactor] = (),
        cuts: Iterable[FabricCut] = (),
        latency_ns: int = 0,
        pack_bytes_per_s: int = 0,
    ) -> Topology:
        """Makes a topology from its parts.

        No hosts: of 8 GPUs, as many as the ranks need. No placement: source
        ranks first, destination ranks on hosts of their own. latency_ns: by
        which every message is late; 0 is 20 us. pack_bytes_per_s: of a GPU; 0
        is the default.
        """
        raw = _ffi.wsync_topology_options()
        raw.struct_size = ctypes.sizeof(raw)
        raw.latency_ns, raw.pack_bytes_per_s = latency_ns, pack_bytes_per_s
        # Every array stays alive until the call is over.
        kept: list[Any] = []
        for field, kind, items in (
            ("host", _ffi.wsync_host_group, hosts),
            ("placement", _ffi.wsync_placement_run, placement),
            ("speed", _ffi.wsync_speed_factor, speeds),
            ("cut", _ffi.wsync_fabric_cut, cuts),
        ):
            elements = [_element(kind, item, kept) for item in items]
            array = (kind * max(len(elements), 1))(*elements)
            kept.append(array)
            setattr(raw, field if field == "placement" else f"{field}s", array)
            setattr(raw, f"{field}_count", len(elements))
            setattr(raw, f"{field}_stride", ctypes.sizeof(kind))
        made = _ffi.wsync_topology_p()
        call(lib.wsync_topology_create, ctypes.byref(raw), ctypes.byref(made))
        return cls(made)

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
        rank: int, host: str = "", device: str = "", *, domain: str = "", nics: Iterable[str] = ()
    ) -> bytes:
        """Where one rank is, as bytes to be gathered from all ranks.

        host: equal on all ranks of a host and on no others; empty is the boot
        id of this host. device: uuid of the GPU; empty is the one that is
        current on this thread. domain: of the NVLink fabric, where it spans
        hosts. nics: names of the NICs near the GPU: those of one name are one
        rail on all hosts; with no device, none are those nearest to the GPU.
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


def _element(kind: Any, item: Any, kept: list[Any]) -> Any:
    """One element of an array of C: its fields have the names of the item's."""
    raw = kind()
    for name, value in vars(item).items():
        if name == "ranks":
            ranks = (ctypes.c_uint32 * max(len(value), 1))(*value)
            kept.append(ranks)
            raw.ranks.ranks, raw.ranks.count = ranks, len(value)
        elif name == "name":
            texts, _ = text_array([value])
            kept.append(texts)
            raw.name = texts[0]
        else:
            setattr(raw, name, value)
    return raw

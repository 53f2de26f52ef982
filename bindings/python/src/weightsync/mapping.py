"""Mappings: who sends to whom in two-stage weight synchronisation."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

from . import _ffi
from ._handle import Handle
from ._loader import call, lib, read_ranks, read_text
from .enums import MappingFlag, MappingKind, MappingList, RegroupKind, number


class Pair(NamedTuple):
    """One sender and one receiver, by rank."""

    sender: int
    receiver: int


class RankLoad(NamedTuple):
    """How many pairs end at a destination rank."""

    rank: int
    pair_count: int


class MovedPair(NamedTuple):
    """A pair that was moved, and the receiver on the sender's device that it avoids."""

    sender: int
    receiver: int
    avoided: int


class Mapping(Handle):
    """Who sends to whom, without looking at a tensor. Immutable.

    Ranks are numbered source first: source actor k is rank k, destination
    actor k is rank len(source_devices) + k.
    """

    def __init__(
        self,
        kind: Union[MappingKind, str],
        source_devices: Sequence[int],
        destination_devices: Sequence[int],
        *,
        flags: MappingFlag = MappingFlag(0),
        source_tp: int = 1,
        source_pp: int = 1,
        source_ep: int = 1,
        source_dp: int = 1,
        source_cp: int = 1,
        destination_tp: int = 1,
        destination_pp: int = 1,
        destination_ep: int = 1,
        replica_count: int = 1,
        source_ranks: Optional[Sequence[Sequence[int]]] = None,
        expert_source_ranks: Optional[Sequence[Sequence[int]]] = None,
        destination_ranks: Optional[Sequence[Sequence[int]]] = None,
    ) -> None:
        """Maps ranks.

        source_devices, destination_devices: the device of every actor,
        numbered over all hosts. flags: COLOCATED or APART says whether both
        models live on the same devices; without either they do if any device
        is in both lists. source_ranks: one list per source copy; without it
        Megatron's order. expert_source_ranks: the same for routed experts.
        destination_ranks: one list per replica, each [PP][EP][TP]; without it
        consecutive ranks.
        """
        options = _ffi.wsync_mapping_options()
        options.struct_size = ctypes.sizeof(options)
        options.kind = number(MappingKind, kind)
        options.flags = int(flags)
        options.source_tp, options.source_pp, options.source_ep = source_tp, source_pp, source_ep
        options.source_dp, options.source_cp = source_dp, source_cp
        options.destination_tp, options.destination_pp = destination_tp, destination_pp
        options.destination_ep, options.replica_count = destination_ep, replica_count
        options.source_devices = _ranks(source_devices)
        options.source_device_count = len(source_devices)
        options.destination_devices = _ranks(destination_devices)
        options.destination_device_count = len(destination_devices)
        for name, count, lists in (
            ("source_ranks", "source_list_count", source_ranks),
            ("expert_source_ranks", "expert_source_list_count", expert_source_ranks),
            ("destination_ranks", "destination_list_count", destination_ranks),
        ):
            _set_lists(options, name, count, lists)
        made = _ffi.wsync_mapping_p()
        call(lib.wsync_mapping_create, ctypes.byref(options), ctypes.byref(made))
        super().__init__(made)

    def pairs(self, which: Union[MappingList, str] = MappingList.PAIRS) -> list[Pair]:
        """One list of pairs, in the order of the sends."""
        chosen = number(MappingList, which)
        with self._use() as pointer:
            pairs = _read(_ffi.wsync_pair, lib.wsync_mapping_pairs, pointer, chosen)
        return [Pair(pair.sender, pair.receiver) for pair in pairs]

    def sends(self, rank: int, which: Union[MappingList, str] = MappingList.PAIRS) -> list[int]:
        """Whom a rank sends to, in the order of the sends."""
        chosen = number(MappingList, which)
        with self._use() as pointer:
            return read_ranks(lib.wsync_mapping_sends, pointer, chosen, rank)

    def receives(self, rank: int, which: Union[MappingList, str] = MappingList.PAIRS) -> list[int]:
        """Whom a rank receives from, in the order of the sends."""
        chosen = number(MappingList, which)
        with self._use() as pointer:
            return read_ranks(lib.wsync_mapping_receives, pointer, chosen, rank)

    def loads(self, which: Union[MappingList, str] = MappingList.PAIRS) -> list[RankLoad]:
        """How many pairs of a list end at each destination rank, replica by replica."""
        chosen = number(MappingList, which)
        with self._use() as pointer:
            loads = _read(_ffi.wsync_rank_load, lib.wsync_mapping_loads, pointer, chosen)
        return [RankLoad(load.rank, load.pair_count) for load in loads]

    def moved(self) -> list[MovedPair]:
        """The pairs of stage 1 that were moved to avoid a shared device."""
        with self._use() as pointer:
            moved = _read(_ffi.wsync_moved_pair, lib.wsync_mapping_moved, pointer)
        return [MovedPair(pair.sender, pair.receiver, pair.avoided) for pair in moved]

    @property
    def group_size(self) -> int:
        """Ranks of a weight-mapping group."""
        with self._use() as pointer:
            return int(lib.wsync_mapping_group_size(pointer))

    @property
    def regroup_kind(self) -> RegroupKind:
        """How routed experts are regrouped."""
        with self._use() as pointer:
            return RegroupKind(lib.wsync_mapping_regroup_kind(pointer))

    def regroups(self) -> list[list[int]]:
        """The groups of source ranks that regroup their routed experts."""
        with self._use() as pointer:
            return [
                read_ranks(lib.wsync_mapping_regroup_at, pointer, index)
                for index in range(lib.wsync_mapping_regroup_count(pointer))
            ]

    def report(self) -> dict[str, Any]:
        """The whole mapping: all lists, from ranks too, where ranks sit, what was moved."""
        with self._use() as pointer:
            whole: dict[str, Any] = json.loads(read_text(lib.wsync_mapping_report, pointer))
            return whole

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_mapping_destroy(pointer)


def _read(item: Any, function: Any, *arguments: Any) -> list[Any]:
    """All structs that a function has to tell."""
    count = ctypes.c_size_t()
    call(function, *arguments, None, 0, ctypes.byref(count))
    array = (item * max(count.value, 1))()
    call(function, *arguments, array, count.value, ctypes.byref(count))
    return list(array[: count.value])


def _set_lists(
    options: Any, name: str, count: str, lists: Optional[Sequence[Sequence[int]]]
) -> None:
    if lists:
        array = (_ffi.wsync_rank_list * len(lists))()
        for slot, ranks in zip(array, lists):
            slot.ranks, slot.count = _ranks(ranks), len(ranks)
        setattr(options, name, array)
        setattr(options, count, len(lists))


def _ranks(ranks: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * max(len(ranks), 1))(*ranks)

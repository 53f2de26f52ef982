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
        numbered over all hosts. source_ranks: one list per source copy;
        without it Megatron's order. expert_source_ranks: the same for routed
        experts. destination_ranks: one list per replica, each [PP][EP][TP];
        without it consecutive ranks.
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
        count = ctypes.c_size_t()
        chosen = number(MappingList, which)
        with self._use() as pointer:
            call(lib.wsync_mapping_pairs, pointer, chosen, None, 0, ctypes.byref(count))
            array = (_ffi.wsync_pair * max(count.value, 1))()
            call(
                lib.wsync_mapping_pairs,
                pointer,
                chosen,
                array,
                count.value,
                ctypes.byref(count),
            )
        return [Pair(pair.sender, pair.receiver) for pair in array[: count.value]]

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
        """The whole mapping: all lists, where ranks sit, what was moved."""
        with self._use() as pointer:
            whole: dict[str, Any] = json.loads(read_text(lib.wsync_mapping_report, pointer))
            return whole

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_mapping_destroy(pointer)


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

"""Plans: how bytes get from one layout to the other."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional, Union

from . import _ffi
from ._handle import Handle
from ._loader import call, lib, name_bytes, read_bytes, read_ranks, read_text, text_array
from .enums import Order, SourceRule, Spread, Strategy, number
from .layout import BufferInfo, Layout, read_buffers
from .mapping import _set_lists
from .topology import Topology


class ProgramInfo(NamedTuple):
    """What one rank does in one execution of a plan; sizes in bytes.

    staging_bytes: what a session allocates. message_count: both directions.
    direct_message_count: those that need no staging on this rank.
    """

    bytes_sent: int
    bytes_received: int
    bytes_local: int
    staging_bytes: int
    message_count: int
    direct_message_count: int
    peer_count: int
    buffer_count: int


# The same as it lies in an array of wsync_program_info, less its size.
_PROGRAM_INFO = struct.Struct("@8x6Q2I")
assert _PROGRAM_INFO.size == ctypes.sizeof(_ffi.wsync_program_info)


class TwoStageOptions(NamedTuple):
    """How strategy "two_stage" maps ranks.

    A side whose TP is 0 is read from the meshes of its layout. source_ranks:
    one list per source copy, each [PP][TP]. destination_ranks: one list per
    replica, each [PP][EP][TP]. avoid_same_device: pairs within one device are
    avoided by choosing another receiver.
    """

    source_tp: int = 0
    source_pp: int = 1
    source_ep: int = 1
    source_dp: int = 1
    source_cp: int = 1
    destination_tp: int = 0
    destination_pp: int = 1
    destination_ep: int = 1
    replica_count: int = 1
    source_ranks: Optional[Sequence[Sequence[int]]] = None
    destination_ranks: Optional[Sequence[Sequence[int]]] = None
    avoid_same_device: bool = False

    def _options(self) -> Any:
        options = _ffi.wsync_two_stage_options()
        options.struct_size = ctypes.sizeof(options)
        for name, value in self._asdict().items():
            if not name.endswith("_ranks"):
                setattr(options, name, int(value))
        _set_lists(options, "source_ranks", "source_list_count", self.source_ranks)
        _set_lists(options, "destination_ranks", "destination_list_count", self.destination_ranks)
        return options


@contextmanager
def _pointer(handle: Optional[Handle]) -> Iterator[Any]:
    """The pointer of a handle, or None for none."""
    if handle is None:
        yield None
        return
    with handle._use() as pointer:
        yield pointer


class Plan(Handle):
    """How bytes get from one layout to the other.

    Equal wherever it is made from equal input. Immutable; any number of
    threads may use it.
    """

    def __init__(
        self,
        source: Layout,
        destination: Layout,
        *,
        strategy: Union[Strategy, str] = Strategy.DEFAULT,
        source_rule: Union[SourceRule, str] = SourceRule.DEFAULT,
        staging_bytes_max: int = 0,
        direct_bytes_min: int = 0,
        bucket_count: int = 0,
        copy_count: int = 0,
        unused_allowed: Iterable[str] = (),
        two_stage: Optional[TwoStageOptions] = None,
        topology: Optional[Topology] = None,
        order: Union[Order, str] = Order.DEFAULT,
        spread: Union[Spread, str] = Spread.DEFAULT,
        source_relay: bool = False,
    ) -> None:
        """Plans the way from `source` to `destination`; 0 is a default.

        staging_bytes_max: bytes of staging memory per rank, at most.
        direct_bytes_min: contiguous runs of at least that many bytes travel
        without staging. bucket_count: parts of every pair's bytes. unused_allowed:
        globs of source tensors that the destination may leave unused.
        copy_count: for strategy "fanout", copies that leave the source.
        two_stage: for strategy "two_stage", how ranks are mapped; without it
        that is read from the layouts. topology: what stands between the
        ranks. Strategy "auto" takes whatever is predicted to be fastest on it.
        order: "layer" completes early layers early, see tensor_last_step;
        "fraction" keeps all links busy. spread: for strategy "fanout", how
        the NVLink domains of one copy pass it on, "scatter" or "chain".
        source_relay: for strategies "relay" and "fanout", bytes leave a source
        domain through the NICs of all its source ranks.
        """
        options = _ffi.wsync_plan_options()
        options.struct_size = ctypes.sizeof(options)
        options.strategy = number(Strategy, strategy)
        options.source_rule = number(SourceRule, source_rule)
        options.staging_bytes_max = staging_bytes_max
        options.direct_bytes_min = direct_bytes_min
        options.bucket_count = bucket_count
        options.copy_count = copy_count
        options.order = number(Order, order)
        options.spread = number(Spread, spread)
        options.source_relay = int(source_relay)
        mapped = two_stage._options() if two_stage else None
        if mapped is not None:
            options.two_stage = ctypes.pointer(mapped)
        globs, options.unused_allowed_count = text_array(unused_allowed)
        options.unused_allowed = globs
        made = _ffi.wsync_plan_p()
        with source._use() as one, destination._use() as other, _pointer(topology) as ground:
            if ground is not None:
                options.topology = ground
            call(
                lib.wsync_plan_create, one, other, ctypes.byref(options), ctypes.byref(made)
            )
        super().__init__(made)

    @classmethod
    def _adopt(cls, pointer: Any) -> Plan:
        plan = cls.__new__(cls)
        Handle.__init__(plan, pointer)
        return plan

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Makes a plan from what to_bytes wrote, on any machine."""
        made = _ffi.wsync_plan_p()
        data = bytes(data)
        call(lib.wsync_plan_create_from_bytes, data, len(data), ctypes.byref(made))
        return cls._adopt(made)

    def replan(
        self,
        source: Optional[Layout] = None,
        destination: Optional[Layout] = None,
        topology: Optional[Topology] = None,
    ) -> Plan:
        """This plan for sides or a topology that changed a little.

        A replica joins or leaves, ranks are drained, experts move: the decision
        stays, so this takes milliseconds. What is left out stays as it is.
        There are more buckets if a rank would exceed the staging budget.
        """
        made = _ffi.wsync_plan_p()
        with self._use() as pointer, _pointer(topology) as ground:
            with _pointer(source) as one, _pointer(destination) as other:
                call(lib.wsync_plan_replan, pointer, one, other, ground, ctypes.byref(made))
        return self._adopt(made)

    def select(
        self,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        *,
        layers: Iterable[int | range] = (),
        experts: Iterable[int | range] = (),
        copies: Iterable[int] = (),
        trainable: bool | None = None,
        draft: bool | None = None,
    ) -> Plan:
        """The plan that moves only some tensors, or to some copies.

        `include` and `exclude` are globs on names. Layers and experts are
        numbers or ranges; copies are those of the destination, which the plan
        numbers anew. `trainable` and `draft` go by the marks "frozen" and
        "draft" of both layouts: True is only that, False is all but that.
        What is left out selects all, what is given must all hold.
        """
        selector = _ffi.wsync_selector()
        selector.struct_size = ctypes.sizeof(selector)
        included, selector.include_count = text_array(include)
        excluded, selector.exclude_count = text_array(exclude)
        selector.include, selector.exclude = included, excluded
        selector.layers, selector.layers_count = _ranges(layers)
        selector.experts, selector.experts_count = _ranges(experts)
        chosen = list(copies)
        selector.copies = (ctypes.c_uint32 * len(chosen))(*chosen)
        selector.copies_count = len(chosen)
        selector.trainable, selector.draft = _choice(trainable), _choice(draft)
        made = _ffi.wsync_plan_p()
        with self._use() as pointer:
            call(lib.wsync_plan_select, pointer, ctypes.byref(selector), ctypes.byref(made))
        return self._adopt(made)

    def verify(self) -> None:
        """Checks that every destination byte is written exactly once."""
        with self._use() as pointer:
            call(lib.wsync_plan_verify, pointer)

    def report(self) -> dict[str, Any]:
        """Totals over all ranks: bytes, pairs, messages, staging."""
        with self._use() as pointer:
            totals: dict[str, Any] = json.loads(read_text(lib.wsync_plan_report, pointer))
            return totals

    def ops(self, rank: int) -> list[dict[str, Any]]:
        """The operations of `rank`, one by one."""
        with self._use() as pointer:
            found: list[dict[str, Any]] = json.loads(
                read_text(lib.wsync_plan_rank_ops, pointer, rank)
            )
            return found

    def origin(self, rank: int, tensor: str, index: Sequence[int]) -> dict[str, Any]:
        """Where element `index` of `tensor` on destination rank `rank` comes from.

        `hops` has its way in order: step, stage and bucket, at both ends the
        rank, the name of the buffer and the offset in bytes, and the `links`
        that the hop crosses on the topology that the plan was made for.
        """
        numbers = (ctypes.c_uint64 * max(len(index), 1))(*index)
        with self._use() as pointer:
            found: dict[str, Any] = json.loads(
                read_text(
                    lib.wsync_plan_origin, pointer, rank, name_bytes(tensor), numbers, len(index)
                )
            )
            return found

    def certificate(self, topology: Optional[Topology] = None) -> dict[str, Any]:
        """How near the plan is to what is possible, on a topology or its own.

        Among others `lower_bound_s`, `predicted_s`, `ratio` and `bottleneck`.
        """
        with self._use() as pointer, _pointer(topology) as ground:
            found: dict[str, Any] = json.loads(
                read_text(lib.wsync_plan_certificate, pointer, ground)
            )
            return found

    def simulate(
        self,
        topology: Optional[Topology] = None,
        *,
        seed: int = 0,
        straggler_count: int = 0,
        straggler_percent: int = 50,
        failure_count: int = 0,
    ) -> dict[str, Any]:
        """What happens with some ranks slow and some dying, chosen by `seed`.

        `total_ns` beside `healthy_ns`, the ranks, `copies_complete`, and in
        `waiting` who waits for whom.
        """
        options = _ffi.wsync_simulate_options()
        options.struct_size = ctypes.sizeof(options)
        options.seed = seed
        options.straggler_count = straggler_count
        options.straggler_percent = straggler_percent
        options.failure_count = failure_count
        with self._use() as pointer, _pointer(topology) as ground:
            found: dict[str, Any] = json.loads(
                read_text(
                    lib.wsync_plan_simulate, pointer, ground, ctypes.byref(options)
                )
            )
            return found

    def diff(self, other: Plan) -> dict[str, Any]:
        """What differs between two plans: inputs, decision, tensors, ranks."""
        with self._use() as pointer, other._use() as second:
            found: dict[str, Any] = json.loads(
                read_text(lib.wsync_plan_diff, pointer, second)
            )
            return found

    def to_bytes(self) -> bytes:
        """The plan for from_bytes."""
        with self._use() as pointer:
            return read_bytes(lib.wsync_plan_serialize, pointer)

    @property
    def fingerprint(self) -> str:
        """128 bits that identify the plan, as 32 hexadecimal digits."""
        made = _ffi.wsync_fingerprint()
        with self._use() as pointer:
            call(lib.wsync_plan_fingerprint, pointer, ctypes.byref(made))
        return bytes(made.bytes).hex()

    @property
    def rank_count(self) -> int:
        """Number of ranks of both layouts together."""
        with self._use() as pointer:
            return int(lib.wsync_plan_rank_count(pointer))

    @property
    def ranks(self) -> list[int]:
        """The ranks that take part, ascending."""
        with self._use() as pointer:
            return read_ranks(lib.wsync_plan_ranks, pointer)

    @property
    def tensor_count(self) -> int:
        """Number of canonical tensors that move."""
        with self._use() as pointer:
            return int(lib.wsync_plan_tensor_count(pointer))

    @property
    def step_count(self) -> int:
        """Number of steps of every rank's program."""
        with self._use() as pointer:
            return int(lib.wsync_plan_step_count(pointer))

    def program_info(self, rank: int) -> ProgramInfo:
        """What `rank` does; all zero if it takes no part."""
        info = _ffi.wsync_program_info()
        info.struct_size = ctypes.sizeof(info)
        with self._use() as pointer:
            call(lib.wsync_plan_program_info, pointer, rank, ctypes.byref(info))
        return ProgramInfo(*_PROGRAM_INFO.unpack(info))

    def program_infos(self, ranks: Iterable[int]) -> list[ProgramInfo]:
        """What each of `ranks` does, in their order.

        Several threads share the work, and ranks at alike places most of it:
        this takes much less time than to ask rank by rank.
        """
        asked = list(ranks)
        listed = (ctypes.c_uint32 * len(asked))(*asked)
        infos = (_ffi.wsync_program_info * len(asked))()
        stride = _PROGRAM_INFO.size
        with self._use() as pointer:
            call(lib.wsync_plan_program_infos, pointer, listed, len(asked), infos, stride)
        return [ProgramInfo(*fields) for fields in _PROGRAM_INFO.iter_unpack(infos)]

    def buffers(self, rank: int) -> list[BufferInfo]:
        """The buffers that `rank` binds: the source side first, then by name."""
        with self._use() as pointer:
            return read_buffers(
                lib.wsync_plan_buffer_count, lib.wsync_plan_buffer_at, pointer, rank
            )

    def tensor_last_step(self, rank: int, tensor: str) -> Optional[int]:
        """The last step in which `rank` gets bytes of `tensor`; None if never.

        Once Request.steps_done exceeds it, the tensor is in place.
        """
        step = ctypes.c_uint32()
        with self._use() as pointer:
            call(
                lib.wsync_plan_tensor_last_step,
                pointer,
                rank,
                name_bytes(tensor),
                ctypes.byref(step),
            )
        return None if step.value == _ffi.WSYNC_STEP_NONE else step.value

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_plan_destroy(pointer)


def _ranges(numbers: Iterable[int | range]) -> tuple[Any, int]:
    """Numbers and ranges as an array of wsync_number_range, and its length."""
    found = []
    for n in numbers:
        if isinstance(n, range):
            if n.step != 1:
                raise ValueError(f"{n} skips numbers; give several ranges")
            found.append(_ffi.wsync_number_range(n.start, n.stop))
        else:
            found.append(_ffi.wsync_number_range(n, n + 1))
    return (_ffi.wsync_number_range * len(found))(*found), len(found)


def _choice(flag: bool | None) -> int:
    """The WSYNC_SELECT_* of a flag."""
    if flag is None:
        return _ffi.WSYNC_SELECT_ANY
    return _ffi.WSYNC_SELECT_ONLY if flag else _ffi.WSYNC_SELECT_WITHOUT

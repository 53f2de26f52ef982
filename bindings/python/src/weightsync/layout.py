"""Layouts: which rank holds which part of which tensor, and where."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

from . import _ffi
from ._buffers import DType, Memory, describe
from ._handle import Handle
from ._loader import call, lib, read_bytes, read_text
from .enums import MemoryKind, Side
from .errors import invalid

#: First index and one more than the last, along each axis.
Box = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Tensor:
    """A canonical tensor.

    shape: indices along each axis. dtype: the type in which it is defined, by
    default that of the array. granule: indices along each axis that no cut
    may split, such as the rows of a head.
    """

    shape: Sequence[int]
    dtype: Union[str, DType, None] = None
    granule: Optional[Sequence[int]] = None


class View(NamedTuple):
    """The part `box` of the tensor called `tensor` lies in `array`.

    Without a box it is the whole tensor.
    """

    tensor: str
    array: Any
    box: Optional[Box] = None


class BufferInfo(NamedTuple):
    """What a rank needs to know to allocate and bind one buffer.

    bytes: how many it must have. side: None if a layout was asked, which may
    serve as either. device: the GPU, if memory is MemoryKind.DEVICE.
    """

    name: str
    bytes: int
    side: Optional[Side]
    memory: MemoryKind
    device: int


@dataclass(frozen=True)
class Check:
    """What a check found; nothing is wrong if `count` is 0.

    count: number of findings. report: all of them, in their sections.
    """

    count: int
    report: dict[str, Any] = field(repr=False)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings of all sections: source, destination, and the pair."""
        sections = (part for part in self.report.values() if isinstance(part, dict))
        return [finding for part in sections for finding in part.get("findings", [])]


def _size(value: Any) -> str:
    """A parallel size as text: True is on, a list is 24:24:23:23."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ":".join(str(item) for item in value)
    return str(value)


class Layout(Handle):
    """One side's description. Immutable; any number of threads may use it."""

    def __init__(self, pointer: Any) -> None:
        """Use from_json, from_views, from_bytes or merge."""
        super().__init__(pointer)

    @classmethod
    def from_json(cls, text: Union[str, bytes, Mapping[str, Any]]) -> Layout:
        """Makes a layout from a layout file: its text, or what it says."""
        encoded = _json_bytes(text)
        made = _ffi.wsync_layout_p()
        call(lib.wsync_layout_create_from_json, encoded, len(encoded), ctypes.byref(made))
        return cls(made)

    @classmethod
    def from_model(
        cls,
        config: Union[str, bytes, Mapping[str, Any]],
        framework: str,
        sizes: Union[str, Mapping[str, Any]] = "",
        *,
        first_rank: int = 0,
    ) -> Layout:
        """Makes the layout of the model of a Hugging Face config.json.

        config: its text, or what it says. framework: "megatron", "vllm",
        "sglang", "hf" or "dtensor". sizes: parallel sizes, as "tp=4,pp=8" or
        {"tp": 4, "pp": 8}; for "dtensor" the DTensor file, its text or what
        it says; "frozen" lists names and globs of what is not trained.
        first_rank: the rank that comes first; the others follow. What was
        assumed and what may surprise are in describe().
        """
        encoded = _json_bytes(config)
        if isinstance(sizes, str):
            spelled = sizes.encode()
        elif framework == "dtensor":
            spelled = _json_bytes(sizes)
        else:
            spelled = ",".join(f"{key}={_size(value)}" for key, value in sizes.items()).encode()
        made = _ffi.wsync_layout_p()
        call(
            lib.wsync_layout_from_model,
            encoded,
            len(encoded),
            framework.encode(),
            spelled,
            len(spelled),
            first_rank,
            ctypes.byref(made),
        )
        return cls(made)

    @classmethod
    def from_bytes(cls, data: bytes) -> Layout:
        """Makes a layout from what to_bytes wrote, on any machine."""
        made = _ffi.wsync_layout_p()
        data = bytes(data)
        call(lib.wsync_layout_create_from_bytes, data, len(data), ctypes.byref(made))
        return cls(made)

    @classmethod
    def from_views(
        cls,
        rank: int,
        views: Mapping[str, Any],
        tensors: Optional[Mapping[str, Union[Tensor, Sequence[int]]]] = None,
        *,
        copy: int = 0,
        aliases: Optional[Mapping[str, str]] = None,
    ) -> Layout:
        """Makes a layout of one rank from arrays.

        views: for each buffer, by name, a View (tensor name, array, box) or a
        list of them, whose arrays are parts of one buffer. What is bound by
        that name later is the range from the lowest to the highest byte of
        its arrays. tensors: shape of each tensor, or Tensor; may lack those
        that the rank holds whole. copy: the replica this rank belongs to.
        aliases: other names of tensors.
        """
        pointer = _from_views(rank, views, tensors or {}, copy, aliases or {})
        return cls(pointer)

    @classmethod
    def merge(cls, layouts: Iterable[Layout]) -> Layout:
        """Makes one layout of several, such as those of all ranks of a side."""
        parts = list(layouts)
        array = (_ffi.wsync_layout_p * max(len(parts), 1))()
        for i, part in enumerate(parts):
            if part._pointer is None:
                raise invalid(f"layout {i} is closed")
            array[i] = part._pointer
        made = _ffi.wsync_layout_p()
        call(lib.wsync_layout_merge, array, len(parts), ctypes.byref(made))
        return cls(made)

    @staticmethod
    def check_json(
        source: Union[str, bytes, Mapping[str, Any]],
        destination: Union[str, bytes, Mapping[str, Any], None] = None,
    ) -> Check:
        """Like check, from layout files of which no layout can be made."""
        first = _json_bytes(source)
        second = None if destination is None else _json_bytes(destination)
        return _findings(
            lib.wsync_layout_check_json,
            first,
            len(first),
            second,
            0 if second is None else len(second),
        )

    def check(self, destination: Optional[Layout] = None) -> Check:
        """All that is wrong with it, or with planning from it to `destination`."""
        with self._use() as source:
            if destination is None:
                return _findings(lib.wsync_layout_check, source, None)
            with destination._use() as other:
                return _findings(lib.wsync_layout_check, source, other)

    def describe(self) -> dict[str, Any]:
        """A summary: ranks, copies, tensors, bytes, remarks and hazards."""
        with self._use() as pointer:
            summary: dict[str, Any] = json.loads(
                read_text(lib.wsync_layout_describe, pointer)
            )
            return summary

    def to_json(self) -> str:
        """The text of a layout file."""
        with self._use() as pointer:
            return read_text(lib.wsync_layout_to_json, pointer)

    def to_bytes(self) -> bytes:
        """The layout for from_bytes."""
        with self._use() as pointer:
            return read_bytes(lib.wsync_layout_serialize, pointer)

    @property
    def rank_count(self) -> int:
        """Number of ranks."""
        with self._use() as pointer:
            return int(lib.wsync_layout_rank_count(pointer))

    @property
    def tensor_count(self) -> int:
        """Number of canonical tensors."""
        with self._use() as pointer:
            return int(lib.wsync_layout_tensor_count(pointer))

    @property
    def copy_count(self) -> int:
        """Number of copies (replicas)."""
        with self._use() as pointer:
            return int(lib.wsync_layout_copy_count(pointer))

    def buffers(self, rank: int) -> list[BufferInfo]:
        """The buffers that `rank` binds for all of the layout, by name."""
        with self._use() as pointer:
            return read_buffers(
                lib.wsync_layout_buffer_count, lib.wsync_layout_buffer_at, pointer, rank
            )

    def _destroy(self, pointer: Any) -> None:
        lib.wsync_layout_destroy(pointer)


def read_buffers(count: Any, at: Any, pointer: Any, rank: int) -> list[BufferInfo]:
    """All buffers that a layout or a plan has for `rank`."""
    found = []
    info = _ffi.wsync_buffer_info()
    for index in range(count(pointer, rank)):
        info.struct_size = ctypes.sizeof(info)
        call(at, pointer, rank, index, ctypes.byref(info))
        found.append(
            BufferInfo(
                info.name.decode(),
                info.bytes,
                Side(info.side) if info.side else None,
                MemoryKind(info.memory),
                info.device,
            )
        )
    return found


def _json_bytes(text: Union[str, bytes, Mapping[str, Any]]) -> bytes:
    if isinstance(text, bytes):
        return text
    return (text if isinstance(text, str) else json.dumps(text)).encode()


def _findings(function: Any, *arguments: Any) -> Check:
    needed, count = ctypes.c_size_t(), ctypes.c_size_t()
    call(function, *arguments, None, 0, ctypes.byref(needed), ctypes.byref(count))
    buffer = ctypes.create_string_buffer(needed.value)
    call(
        function, *arguments, buffer, needed.value, ctypes.byref(needed), ctypes.byref(count)
    )
    return Check(count.value, json.loads(buffer.value))


def _set_text(slot: Any, text: str) -> None:
    encoded = text.encode()
    slot.ptr = encoded
    slot.bytes = len(encoded)


def _from_views(
    rank: int,
    views: Mapping[str, Any],
    given: Mapping[str, Union[Tensor, Sequence[int]]],
    copy: int,
    aliases: Mapping[str, str],
) -> Any:
    flat: list[tuple[int, View, Memory]] = []
    starts: list[int] = []
    buffers = (_ffi.wsync_buffer * max(len(views), 1))()
    for index, (name, entry) in enumerate(views.items()):
        parts = [View(*part) for part in (entry if isinstance(entry, list) else [entry])]
        memories = [describe(part.array) for part in parts]
        if not memories:
            raise invalid(f"buffer {name!r} has no view")
        places = {(memory.memory, memory.device) for memory in memories}
        if len(places) != 1:
            raise invalid(f"the views of buffer {name!r} are in several memories")
        start = min(memory.start for memory in memories)
        _set_text(buffers[index].name, name)
        buffers[index].bytes = max(memory.start + memory.bytes for memory in memories) - start
        buffers[index].memory, buffers[index].device = next(iter(places))
        starts.append(start)
        flat.extend((index, part, memory) for part, memory in zip(parts, memories))

    names: dict[str, int] = {}
    known: list[tuple[Tensor, DType]] = []
    for _, view, memory in flat:
        if view.tensor in names:
            continue
        tensor = given.get(view.tensor)
        if tensor is None:
            if view.box is not None:
                raise invalid(f"the shape of tensor {view.tensor!r} is not in `tensors`")
            tensor = Tensor(memory.shape)
        elif not isinstance(tensor, Tensor):
            tensor = Tensor(tensor)
        names[view.tensor] = len(known)
        known.append((tensor, DType.parse(tensor.dtype or memory.dtype)))

    tensor_array = (_ffi.wsync_tensor * max(len(known), 1))()
    for (name, index), (tensor, dtype) in zip(names.items(), known):
        slot = tensor_array[index]
        _set_text(slot.name, name)
        slot.dim_count = len(tensor.shape)
        slot.dtype = _ffi.wsync_dtype(*dtype)
        _check_axes(name, tensor.shape)
        slot.shape[: len(tensor.shape)] = list(tensor.shape)
        if tensor.granule is not None:
            if len(tensor.granule) != len(tensor.shape):
                raise invalid(
                    f"tensor {name!r} has {len(tensor.shape)} axes "
                    f"and {len(tensor.granule)} granules"
                )
            slot.granule[: len(tensor.granule)] = list(tensor.granule)

    view_array = (_ffi.wsync_view * max(len(flat), 1))()
    for slot, (index, view, memory) in zip(view_array, flat):
        shape = known[names[view.tensor]][0].shape
        box = [(0, n) for n in shape] if view.box is None else [tuple(edge) for edge in view.box]
        if tuple(hi - lo for lo, hi in box) != memory.shape:
            raise invalid(
                f"the box {box} of tensor {view.tensor!r} has other axes "
                f"than its array of shape {memory.shape}"
            )
        if any(n > 1 and step == 0 for n, step in zip(memory.shape, memory.strides)):
            raise invalid(f"the array of tensor {view.tensor!r} repeats its elements")
        slot.tensor = names[view.tensor]
        slot.buffer = index
        slot.offset = memory.address - starts[index]
        _check_axes(view.tensor, box)
        slot.lo[: len(box)] = [lo for lo, _ in box]
        slot.hi[: len(box)] = [hi for _, hi in box]
        if not memory.contiguous:
            slot.strides[: len(box)] = list(memory.strides)
        slot.dtype = _ffi.wsync_dtype(*memory.dtype)

    alias_array = (_ffi.wsync_alias * max(len(aliases), 1))()
    for slot, (alias, name) in zip(alias_array, aliases.items()):
        _set_text(slot.alias, alias)
        _set_text(slot.name, name)

    all_views = _ffi.wsync_rank_views()
    all_views.struct_size = ctypes.sizeof(all_views)
    all_views.rank, all_views.copy = rank, copy
    all_views.tensors, all_views.tensor_count = tensor_array, len(known)
    all_views.buffers, all_views.buffer_count = buffers, len(views)
    all_views.views, all_views.view_count = view_array, len(flat)
    all_views.aliases, all_views.alias_count = alias_array, len(aliases)
    all_views.tensor_stride = ctypes.sizeof(_ffi.wsync_tensor)
    all_views.buffer_stride = ctypes.sizeof(_ffi.wsync_buffer)
    all_views.view_stride = ctypes.sizeof(_ffi.wsync_view)
    all_views.alias_stride = ctypes.sizeof(_ffi.wsync_alias)
    made = _ffi.wsync_layout_p()
    call(
        lib.wsync_layout_create_from_views, ctypes.byref(all_views), ctypes.byref(made)
    )
    return made


def _check_axes(name: str, axes: Sequence[Any]) -> None:
    if len(axes) > _ffi.WSYNC_DIM_COUNT_MAX:
        raise invalid(
            f"tensor {name!r} has {len(axes)} axes, at most "
            f"{_ffi.WSYNC_DIM_COUNT_MAX} are possible"
        )

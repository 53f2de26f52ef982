"""From arrays of any library to address, bytes, shape, strides, type and place."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Protocol, Union

from .enums import DTypeCode, MemoryKind
from .errors import CallerError, invalid


class DType(NamedTuple):
    """An element type as DLPack has it. An element is bits * lanes bits."""

    code: int
    bits: int
    lanes: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return self.bits * self.lanes // 8

    @classmethod
    def parse(cls, name: Union[str, DType, tuple[int, int, int]]) -> DType:
        """The type called `name` by a layout file, NumPy, ml_dtypes or torch."""
        if not isinstance(name, str):
            return cls(*name)
        try:
            return _BY_NAME[name.rpartition(".")[2].lower()]
        except KeyError:
            raise invalid(f"{name!r} is not an element type") from None


_BY_NAME: dict[str, DType] = {
    "bool": DType(DTypeCode.BOOL, 8),
    "bool_": DType(DTypeCode.BOOL, 8),
    "half": DType(DTypeCode.FLOAT, 16),
    "float": DType(DTypeCode.FLOAT, 32),
    "double": DType(DTypeCode.FLOAT, 64),
    "bf16": DType(DTypeCode.BFLOAT, 16),
    "bfloat16": DType(DTypeCode.BFLOAT, 16),
    "complex32": DType(DTypeCode.COMPLEX, 32),
    "complex64": DType(DTypeCode.COMPLEX, 64),
    "complex128": DType(DTypeCode.COMPLEX, 128),
    "float4_e2m1fn_x2": DType(DTypeCode.FLOAT4_E2M1FN, 4, 2),
}
for _bits in (8, 16, 32, 64):
    for _name in (f"int{_bits}", f"i{_bits}"):
        _BY_NAME[_name] = DType(DTypeCode.INT, _bits)
    for _name in (f"uint{_bits}", f"u{_bits}"):
        _BY_NAME[_name] = DType(DTypeCode.UINT, _bits)
    if _bits > 8:
        for _name in (f"float{_bits}", f"f{_bits}"):
            _BY_NAME[_name] = DType(DTypeCode.FLOAT, _bits)
for _code in DTypeCode:
    if _code.name.startswith("FLOAT8_"):
        _BY_NAME[_code.name.lower()] = DType(_code, 8)
        _BY_NAME[_code.name.lower().replace("float8", "f8")] = DType(_code, 8)


class SupportsDLPack(Protocol):
    """An array that DLPack can hand over."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...


class SupportsCudaArray(Protocol):
    """An array with `__cuda_array_interface__`."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Buffer:
    """Memory given by hand.

    ptr: its address. bytes: how many bytes there are. dtype: the element
    type, if it is to serve as a view. device: the number of a GPU, None for
    host memory. shape: elements along each axis; without it the memory is one
    row. strides: bytes between neighbours along each axis; without them there
    are no gaps. owner: whatever keeps the memory alive.
    """

    ptr: int
    bytes: int
    dtype: Union[str, DType, tuple[int, int, int]] = "uint8"
    device: Optional[int] = None
    shape: Optional[Sequence[int]] = None
    strides: Optional[Sequence[int]] = None
    pinned: bool = False
    readonly: bool = False
    owner: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Memory:
    """What the library needs to know about an array.

    address: of the element with all indices 0. shape: elements along each
    axis. strides: bytes between neighbours along each axis. memory: a
    MemoryKind. device: the GPU, or 0. keepalive: keeps the memory valid.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: DType
    memory: MemoryKind
    device: int
    readonly: bool
    keepalive: Any = field(repr=False)
    extra: int = 0

    @property
    def start(self) -> int:
        """Address of the lowest byte; below `address` for negative strides."""
        if 0 in self.shape:
            return self.address
        return self.address + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides) if s < 0
        )

    @property
    def bytes(self) -> int:
        """Bytes from the lowest to one past the highest, gaps included."""
        if self.extra:
            return self.extra
        if 0 in self.shape:
            return 0
        reach = sum((n - 1) * abs(s) for n, s in zip(self.shape, self.strides))
        return reach + self.dtype.bytes

    @property
    def contiguous(self) -> bool:
        """Whether there are no gaps and the last axis is innermost."""
        if 0 in self.shape:
            return True
        wanted = packed_strides(self.shape, self.dtype)
        return all(
            n == 1 or s == w for n, s, w in zip(self.shape, self.strides, wanted)
        )


def packed_strides(shape: Sequence[int], dtype: DType) -> tuple[int, ...]:
    """Bytes between neighbours without gaps, the last axis innermost."""
    strides: list[int] = []
    step = dtype.bytes
    for n in reversed(shape):
        strides.insert(0, step)
        step *= n
    return tuple(strides)


def describe(array: Any) -> Memory:
    """Where `array` lies and what is in it.

    Accepts, in this order: a Buffer, a torch tensor, a NumPy array, whatever
    supports DLPack, `__cuda_array_interface__` or the buffer protocol.
    """
    if isinstance(array, Memory):
        return array
    if isinstance(array, Buffer):
        return _from_buffer(array)
    torch = sys.modules.get("torch")
    # Another thread may be about to import it: then this is no tensor yet.
    if torch is not None and isinstance(array, getattr(torch, "Tensor", ())):
        return _checked(_from_torch(array, torch))
    if hasattr(array, "__array_interface__"):
        return _checked(_from_array_interface(array))
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _checked(_from_dlpack(array))
    if hasattr(array, "__cuda_array_interface__"):
        return _checked(_from_cuda_array(array))
    try:
        holder = _BufferHolder(array)
    except (TypeError, BufferError) as error:
        raise invalid(
            f"a {type(array).__name__} is not an array that shows its memory: {error}"
        ) from None
    return _checked(_from_holder(holder))


def _checked(memory: Memory) -> Memory:
    dtype = memory.dtype
    if dtype.lanes < 1 or dtype.bits * dtype.lanes % 8 or dtype.bytes == 0:
        raise invalid(
            f"an element of {dtype.bits} bits and {dtype.lanes} lanes is not whole bytes"
        )
    if memory.address == 0 and memory.bytes:
        raise invalid(f"an array of {memory.bytes} bytes has address 0")
    return memory


def _from_buffer(buffer: Buffer) -> Memory:
    dtype = DType.parse(buffer.dtype)
    if dtype.bytes == 0:
        raise invalid(f"{dtype} is less than a byte")
    if buffer.shape is None:
        if buffer.bytes % dtype.bytes:
            raise invalid(
                f"{buffer.bytes} bytes are no whole number of elements of {dtype.bytes}"
            )
        shape: tuple[int, ...] = (buffer.bytes // dtype.bytes,)
    else:
        shape = tuple(buffer.shape)
    strides = packed_strides(shape, dtype) if buffer.strides is None else tuple(buffer.strides)
    if len(strides) != len(shape):
        raise invalid(f"{len(strides)} strides for {len(shape)} axes")
    if buffer.pinned and buffer.device is not None:
        raise invalid("pinned memory is host memory, and has no device")
    memory = MemoryKind.PINNED_HOST if buffer.pinned else MemoryKind.HOST
    if buffer.device is not None:
        memory = MemoryKind.DEVICE
    made = Memory(
        buffer.ptr, shape, strides, dtype, memory, buffer.device or 0, buffer.readonly, buffer
    )
    if made.bytes > buffer.bytes:
        raise invalid(f"shape and strides reach {made.bytes} bytes of {buffer.bytes}")
    return _checked(
        Memory(
            buffer.ptr,
            shape,
            strides,
            dtype,
            memory,
            buffer.device or 0,
            buffer.readonly,
            buffer,
            # A buffer may be longer than the elements it is seen as.
            buffer.bytes if made.start == buffer.ptr else 0,
        )
    )


def _from_torch(tensor: Any, torch: Any) -> Memory:
    if tensor.layout is not torch.strided:
        raise invalid(f"a tensor with layout {tensor.layout} has no single range of memory")
    if tensor.is_conj() or tensor.is_neg():
        raise invalid("a lazily conjugated or negated tensor: call resolve_conj, resolve_neg")
    kind = tensor.device.type
    if kind == "cpu":
        # Asking for pinned memory would start CUDA where nobody has yet.
        pinned = torch.cuda.is_initialized() and tensor.is_pinned()
        memory, device = (MemoryKind.PINNED_HOST if pinned else MemoryKind.HOST), 0
    elif kind == "cuda":
        memory, device = MemoryKind.DEVICE, int(tensor.device.index or 0)
    else:
        raise invalid(f"memory of a {kind!r} device is not supported")
    dtype = DType.parse(str(tensor.dtype))
    size = tensor.element_size()
    if size != dtype.bytes:
        raise invalid(f"elements of {tensor.dtype} have {size} bytes, not {dtype.bytes}")
    return Memory(
        tensor.data_ptr(),
        tuple(tensor.shape),
        tuple(step * size for step in tensor.stride()),
        dtype,
        memory,
        device,
        False,
        tensor,
    )


def _dtype_of(array: Any, typestr: str) -> DType:
    """The type by its name, which alone tells bf16 from fp16; else by typestr."""
    if sys.byteorder == "little" and typestr[:1] == ">" and typestr[2:] not in ("", "1"):
        raise invalid(f"elements of type {typestr!r} are not in this machine's byte order")
    named = getattr(array, "dtype", None)
    name = getattr(named, "name", None) or (str(named) if named is not None else "")
    found = _BY_NAME.get(str(name).rpartition(".")[2].lower())
    size = int(typestr[2:] or 1)
    if found is None:
        kinds = {"b": "bool", "i": f"int{8 * size}", "u": f"uint{8 * size}"}
        kinds.update(f=f"float{8 * size}", c=f"complex{8 * size}")
        found = _BY_NAME.get(kinds.get(typestr[1:2], ""))
    if found is None or found.bytes != size:
        raise invalid(f"elements of type {name or typestr!r} are not supported")
    return found


def _from_array_interface(array: Any) -> Memory:
    shown = array.__array_interface__
    dtype = _dtype_of(array, shown["typestr"])
    shape = tuple(int(n) for n in shown["shape"])
    if shown.get("data") is None:
        raise invalid("an array interface without an address")
    address, readonly = shown["data"]
    strides = shown.get("strides") or packed_strides(shape, dtype)
    return Memory(
        int(address), shape, tuple(strides), dtype, MemoryKind.HOST, 0, bool(readonly), array
    )


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [
        ("tensor", _DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_DL_READ_ONLY = 1
_DL_PADDED_SUB_BYTE = 4
_DL_MEMORY = {
    1: MemoryKind.HOST,
    2: MemoryKind.DEVICE,
    3: MemoryKind.PINNED_HOST,
}

_is_capsule = ctypes.pythonapi.PyCapsule_IsValid
_is_capsule.restype = ctypes.c_int
_is_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _from_dlpack(array: Any) -> Memory:
    kind, device = (int(number) for number in array.__dlpack_device__())
    if kind not in _DL_MEMORY:
        raise invalid(f"memory of DLPack device type {kind} is not supported")
    # -1: no synchronisation, for the caller orders work by its stream.
    options: dict[str, Any] = {"stream": -1} if kind == 2 else {}
    try:
        try:
            capsule = array.__dlpack__(max_version=(1, 1), **options)
        except TypeError:
            capsule = array.__dlpack__(**options)
    except (BufferError, TypeError) as error:
        raise invalid(f"a {type(array).__name__} refuses DLPack: {error}") from None
    flags = 0
    if _is_capsule(capsule, b"dltensor_versioned"):
        versioned = _DLManagedTensorVersioned.from_address(
            _capsule_pointer(capsule, b"dltensor_versioned")
        )
        if versioned.major != 1:
            raise invalid(f"DLPack {versioned.major}.{versioned.minor} is not understood")
        flags, tensor = versioned.flags, versioned.tensor
    elif _is_capsule(capsule, b"dltensor"):
        tensor = _DLManagedTensor.from_address(_capsule_pointer(capsule, b"dltensor")).tensor
    else:
        raise invalid(f"__dlpack__ of a {type(array).__name__} gave no DLPack capsule")
    dtype = DType(tensor.code, tensor.bits, tensor.lanes)
    if dtype.bits % 8 and flags & _DL_PADDED_SUB_BYTE:
        raise invalid(f"elements of {dtype.bits} bits that are padded to bytes")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if dtype == (DTypeCode.FLOAT4_E2M1FN, 4, 1) and shape and shape[-1] % 2 == 0:
        # Two of them share a byte: a pair is one element of two lanes.
        dtype = DType(DTypeCode.FLOAT4_E2M1FN, 4, 2)
        if tensor.strides and not _packed(tensor, shape):
            raise invalid("elements of 4 bits with gaps between them")
        shape = (*shape[:-1], shape[-1] // 2)
        strides = packed_strides(shape, dtype)
    elif tensor.strides:
        strides = tuple(tensor.strides[i] * dtype.bytes for i in range(tensor.ndim))
    else:
        strides = packed_strides(shape, dtype)
    return Memory(
        (tensor.data or 0) + tensor.byte_offset,
        shape,
        strides,
        dtype,
        _DL_MEMORY[kind],
        device if kind == 2 else 0,
        bool(flags & _DL_READ_ONLY),
        # Its destructor gives the memory back, for it was not consumed.
        (array, capsule),
    )


def _packed(tensor: Any, shape: tuple[int, ...]) -> bool:
    step = 1
    for i in reversed(range(len(shape))):
        if shape[i] != 1 and tensor.strides[i] != step:
            return False
        step *= shape[i]
    return True


def _from_cuda_array(array: Any) -> Memory:
    shown = array.__cuda_array_interface__
    if shown.get("mask") is not None:
        raise invalid("masked arrays are not supported")
    dtype = _dtype_of(array, shown["typestr"])
    shape = tuple(int(n) for n in shown["shape"])
    address, readonly = shown["data"]
    strides = shown.get("strides") or packed_strides(shape, dtype)
    return Memory(
        int(address or 0),
        shape,
        tuple(strides),
        dtype,
        MemoryKind.DEVICE,
        _cuda_device(array, int(address or 0)),
        bool(readonly),
        array,
    )


def _cuda_device(array: Any, address: int) -> int:
    """The GPU: the array's own word, or the driver's, or an error; no guess."""
    device = getattr(array, "device", None)
    for number in (getattr(device, "id", None), getattr(device, "index", None), device):
        if isinstance(number, int):
            return number
    if address == 0:
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise invalid(
            f"no telling which GPU a {type(array).__name__} is on: pass a Buffer"
        ) from None
    ordinal = ctypes.c_int()
    device_ordinal = 9
    if driver.cuPointerGetAttribute(
        ctypes.byref(ordinal), ctypes.c_int(device_ordinal), ctypes.c_uint64(address)
    ):
        raise invalid(f"address {address:#x} is not memory of a GPU")
    return ordinal.value


class _PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.restype = ctypes.c_int
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.restype = None
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]
_FULL_READ_ONLY = 0x11C


class _BufferHolder:
    """An exported buffer: while it is held, a bytearray cannot be resized."""

    def __init__(self, exporter: Any) -> None:
        self.view = _PyBuffer()
        # Bound here, for at the end of the interpreter names are gone.
        self._release = _release_buffer
        self._held = False
        _get_buffer(exporter, ctypes.byref(self.view), _FULL_READ_ONLY)
        self._held = True

    def __del__(self) -> None:
        if getattr(self, "_held", False):
            self._held = False
            self._release(self.view)


def _from_holder(holder: _BufferHolder) -> Memory:
    view = holder.view
    if view.suboffsets and any(view.suboffsets[i] >= 0 for i in range(view.ndim)):
        raise invalid("a buffer of pointers to pointers is not supported")
    code = (view.format or b"B").decode("ascii", "replace")
    if code[:1] in ">!" and sys.byteorder == "little" and view.itemsize > 1:
        raise invalid(f"elements of type {code!r} are not in this machine's byte order")
    code = code.lstrip("@=<>!")
    bits = 8 * view.itemsize
    if code in ("c", "B") or (len(code) == 1 and code in "HILQN"):
        name = f"uint{bits}"
    elif len(code) == 1 and code in "bhilqn":
        name = f"int{bits}"
    elif code in ("e", "f", "d"):
        name = f"float{bits}"
    elif code in ("Zf", "Zd"):
        name = f"complex{bits}"
    else:
        name = "bool" if code == "?" else ""
    if name not in _BY_NAME:
        raise invalid(f"elements of buffer format {code!r} are not supported")
    dtype = _BY_NAME[name]
    shape = tuple(view.shape[i] for i in range(view.ndim)) if view.shape else ()
    if view.strides:
        strides = tuple(view.strides[i] for i in range(view.ndim))
    else:
        strides = packed_strides(shape, dtype)
    return Memory(
        view.buf or 0, shape, strides, dtype, MemoryKind.HOST, 0, bool(view.readonly), holder
    )


def destination(memory: Memory, name: str) -> Memory:
    """Refuses read-only memory, which nothing can be delivered to."""
    if memory.readonly:
        raise invalid(f"{name!r} is read-only and cannot be a destination")
    return memory


__all__ = [
    "Buffer",
    "CallerError",
    "DType",
    "Memory",
    "SupportsCudaArray",
    "SupportsDLPack",
    "describe",
    "destination",
    "packed_strides",
]

"""Arrays of all kinds: address, bytes, shape, strides, type, place."""

from __future__ import annotations

import array
import ctypes
import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from weightsync import Buffer, CallerError, DType, DTypeCode, MemoryKind, describe
from weightsync import _buffers


def test_numpy() -> None:
    a = np.zeros((3, 4), "i2")
    m = describe(a)
    assert (m.address, m.start, m.bytes) == (a.ctypes.data, a.ctypes.data, 24)
    assert (m.shape, m.strides, m.contiguous) == ((3, 4), (8, 2), True)
    assert m.dtype == (DTypeCode.INT, 16, 1)
    assert (m.memory, m.device, m.readonly) == (MemoryKind.HOST, 0, False)
    assert m.keepalive is a


def test_strides_are_kept() -> None:
    a = np.zeros((6, 8), "f4")
    m = describe(a[1:5:2, ::2])
    assert m.strides == (64, 8) and not m.contiguous
    assert m.bytes == 64 + 3 * 8 + 4
    m = describe(a[::-1])
    assert m.strides == (-32, 4)
    assert (m.start, m.bytes) == (a.ctypes.data, a.nbytes)
    assert m.address == a.ctypes.data + 5 * 32


def test_empty_and_scalar() -> None:
    assert describe(np.zeros((0, 4), "f4")).bytes == 0
    m = describe(np.zeros((), "f4"))
    assert (m.shape, m.bytes) == ((), 4)


@pytest.mark.parametrize(
    ("name", "code", "bits"),
    [
        ("bfloat16", DTypeCode.BFLOAT, 16),
        ("float8_e3m4", DTypeCode.FLOAT8_E3M4, 8),
        ("float8_e4m3", DTypeCode.FLOAT8_E4M3, 8),
        ("float8_e4m3b11fnuz", DTypeCode.FLOAT8_E4M3B11FNUZ, 8),
        ("float8_e4m3fn", DTypeCode.FLOAT8_E4M3FN, 8),
        ("float8_e4m3fnuz", DTypeCode.FLOAT8_E4M3FNUZ, 8),
        ("float8_e5m2", DTypeCode.FLOAT8_E5M2, 8),
        ("float8_e5m2fnuz", DTypeCode.FLOAT8_E5M2FNUZ, 8),
        ("float8_e8m0fnu", DTypeCode.FLOAT8_E8M0FNU, 8),
    ],
)
def test_ml_dtypes(name: str, code: DTypeCode, bits: int) -> None:
    m = describe(np.zeros((2, 3), getattr(ml_dtypes, name)))
    assert m.dtype == (code, bits, 1)
    assert m.bytes == 6 * bits // 8


@pytest.mark.parametrize("name", ["int4", "float4_e2m1fn", "float6_e2m3fn"])
def test_types_padded_to_bytes_are_refused(name: str) -> None:
    with pytest.raises(CallerError, match="not supported"):
        describe(np.zeros(4, getattr(ml_dtypes, name)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("?", (DTypeCode.BOOL, 8, 1)),
        ("u1", (DTypeCode.UINT, 8, 1)),
        ("i8", (DTypeCode.INT, 64, 1)),
        ("f2", (DTypeCode.FLOAT, 16, 1)),
        ("f8", (DTypeCode.FLOAT, 64, 1)),
        ("c8", (DTypeCode.COMPLEX, 64, 1)),
    ],
)
def test_all_ways_agree(name: str, dtype: tuple[int, int, int]) -> None:
    a = np.ones((2, 5), name)
    shown = describe(a)
    buffered = describe(memoryview(a))
    packed = describe(OnlyDLPack(a))
    for m in (shown, buffered, packed):
        assert m.dtype == dtype
        assert (m.address, m.bytes, m.shape, m.strides) == (
            a.ctypes.data,
            a.nbytes,
            a.shape,
            a.strides,
        )


class OnlyDLPack:
    """An array that only DLPack shows."""

    def __init__(self, inner: Any, old: bool = False) -> None:
        self.inner, self.old = inner, old

    def __dlpack__(self, **options: Any) -> Any:
        if self.old and "max_version" in options:
            raise TypeError("unknown argument")
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.inner.__dlpack_device__()


def test_dlpack_old_and_new_strided_and_read_only() -> None:
    a = np.zeros((4, 6), "f4")
    for old in (False, True):
        m = describe(OnlyDLPack(a[:, ::2], old))
        assert (m.address, m.strides) == (a.ctypes.data, (24, 8))
    a.flags.writeable = False
    assert describe(OnlyDLPack(a)).readonly
    with pytest.raises(CallerError, match="refuses DLPack"):
        describe(OnlyDLPack(a, old=True))


def test_dlpack_gives_the_memory_back() -> None:
    a = np.zeros(4, "f4")
    before = sys.getrefcount(a)
    m = describe(OnlyDLPack(a))
    assert sys.getrefcount(a) > before
    del m
    assert sys.getrefcount(a) == before


class HandMade:
    """A DLPack capsule with any type and device in it."""

    def __init__(self, device: tuple[int, int], dtype: tuple[int, int, int]) -> None:
        self.device, self.seen = device, {}
        self.memory = ctypes.create_string_buffer(64)
        self.shape = (ctypes.c_int64 * 2)(2, 4)
        self.managed = _buffers._DLManagedTensor()
        tensor = self.managed.tensor
        tensor.data, tensor.byte_offset = ctypes.addressof(self.memory), 8
        tensor.device_type, tensor.device_id = device
        tensor.ndim, tensor.shape = 2, self.shape
        tensor.code, tensor.bits, tensor.lanes = dtype

    def __dlpack__(self, **options: Any) -> Any:
        self.seen = options
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.managed), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_dlpack_types_and_devices() -> None:
    made = HandMade((2, 3), (DTypeCode.BFLOAT, 16, 1))
    m = describe(made)
    assert (m.memory, m.device) == (MemoryKind.DEVICE, 3)
    assert m.dtype == (DTypeCode.BFLOAT, 16, 1)
    assert m.address == ctypes.addressof(made.memory) + 8
    assert (m.shape, m.strides, m.bytes) == ((2, 4), (8, 2), 16)
    assert made.seen["stream"] == -1
    assert describe(HandMade((3, 0), (2, 32, 1))).memory is MemoryKind.PINNED_HOST
    assert describe(HandMade((1, 0), (10, 8, 1))).dtype == (DTypeCode.FLOAT8_E4M3FN, 8, 1)
    m = describe(HandMade((1, 0), (17, 4, 1)))
    assert (m.dtype, m.shape, m.bytes) == ((DTypeCode.FLOAT4_E2M1FN, 4, 2), (2, 2), 4)
    with pytest.raises(CallerError, match="device type 7"):
        describe(HandMade((7, 0), (2, 32, 1)))


class CudaArray:
    def __init__(self, **shown: Any) -> None:
        self.__cuda_array_interface__ = {"data": (4096, False), "version": 3, **shown}
        self.device = types.SimpleNamespace(id=1)


def test_cuda_array_interface() -> None:
    m = describe(CudaArray(shape=(2, 3), typestr="<f4"))
    assert (m.address, m.bytes, m.memory, m.device) == (4096, 24, MemoryKind.DEVICE, 1)
    m = describe(CudaArray(shape=(2, 3), typestr="<f4", strides=(16, 4)))
    assert (m.strides, m.bytes) == ((16, 4), 28)
    bf16 = CudaArray(shape=(2,), typestr="<f2")
    bf16.dtype = "torch.bfloat16"
    assert describe(bf16).dtype == (DTypeCode.BFLOAT, 16, 1)
    assert describe(CudaArray(shape=(0,), typestr="<f4", data=(0, False))).bytes == 0
    with pytest.raises(CallerError, match="address 0"):
        describe(CudaArray(shape=(1,), typestr="<f4", data=(0, False)))


def test_buffer_protocol() -> None:
    assert describe(b"abc").readonly
    m = describe(array.array("d", [1, 2]))
    assert (m.dtype, m.bytes, m.readonly) == ((DTypeCode.FLOAT, 64, 1), 16, False)
    grown = bytearray(8)
    held = describe(grown)
    with pytest.raises(BufferError):
        grown.append(1)
    del held
    grown.append(1)
    m = describe(memoryview(bytearray(12))[::3])
    assert (m.shape, m.strides) == ((4,), (3,))
    with pytest.raises(CallerError, match="shows its memory"):
        describe([1, 2, 3])


def test_foreign_byte_order_is_refused() -> None:
    with pytest.raises(CallerError, match="byte order"):
        describe(np.zeros(3, ">f4"))


def test_explicit_buffer() -> None:
    m = describe(Buffer(4096, 64, "bf16", device=2, shape=(4, 8)))
    assert (m.strides, m.bytes, m.memory, m.device) == ((16, 2), 64, MemoryKind.DEVICE, 2)
    assert describe(Buffer(4096, 64)).shape == (64,)
    assert describe(Buffer(4096, 64, pinned=True)).memory is MemoryKind.PINNED_HOST
    assert describe(Buffer(4096, 64, "float32", shape=(2,))).bytes == 64
    with pytest.raises(CallerError, match="reach 128 bytes of 64"):
        describe(Buffer(4096, 64, "bf16", shape=(8, 8)))
    with pytest.raises(CallerError, match="whole number"):
        describe(Buffer(4096, 7, "float32"))
    with pytest.raises(CallerError, match="not an element type"):
        DType.parse("float33")


class FakeTensor:
    """As much of a torch tensor as is looked at."""

    def __init__(self, dtype: str, kind: str = "cpu", index: Any = None, size: int = 2) -> None:
        self.dtype, self.shape, self.size = f"torch.{dtype}", (2, 3), size
        self.device = types.SimpleNamespace(type=kind, index=index)
        self.layout = "strided"

    def is_conj(self) -> bool:
        return False

    is_neg = is_pinned = is_conj

    def element_size(self) -> int:
        return self.size

    def stride(self) -> tuple[int, int]:
        return (4, 1)

    def data_ptr(self) -> int:
        return 8192


def test_torch_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = types.ModuleType("torch")
    torch.Tensor, torch.strided = FakeTensor, "strided"  # type: ignore[attr-defined]
    torch.cuda = types.SimpleNamespace(is_initialized=lambda: False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    m = describe(FakeTensor("bfloat16"))
    assert (m.dtype, m.strides, m.bytes) == ((DTypeCode.BFLOAT, 16, 1), (8, 2), 14)
    assert m.memory is MemoryKind.HOST
    m = describe(FakeTensor("float8_e4m3fn", "cuda", 5, 1))
    assert (m.dtype, m.memory, m.device) == ((10, 8, 1), MemoryKind.DEVICE, 5)
    assert describe(FakeTensor("float4_e2m1fn_x2", size=1)).dtype == (17, 4, 2)
    with pytest.raises(CallerError, match="'meta'"):
        describe(FakeTensor("bfloat16", "meta"))

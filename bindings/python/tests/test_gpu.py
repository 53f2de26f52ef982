"""GPU arrays, streams and communicators, on the stand-ins for CUDA and NCCL that are
part of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


CUDA = ["cudart.cc", "memory.cc", "stream.cc"]
NCCL = ["nccl.cc", "nccl_meet.cc", "nccl_run.cc", "nccl_wire.cc"]


def build(folder: Path, name: str, sources: list[str], standard: str) -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    paths = [ROOT / "tests/fake_gpu" / source for source in sources]
    if compiler is None or not all(path.exists() for path in paths):
        pytest.skip("the stand-ins for CUDA and NCCL cannot be built here")
    library = folder / name
    flags = f"-std={standard} -O1 -fPIC -shared -fvisibility=hidden -fno-strict-aliasing".split()
    include = ["-I", str(ROOT / "src/device/cuda/kernels"), f"-Wl,-soname,{name}"]
    command = [compiler, *flags, *include, *map(str, paths), "-o", str(library), "-lpthread"]
    subprocess.run(command, check=True)
    return str(library)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables that name the stand-ins, and let two ranks share a GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    cuda = build(folder, "libcudart.so.12", CUDA, "c++17")
    return dict(
        os.environ,
        WSYNC_CUDART_LIBRARY=cuda,
        WSYNC_CUDA_LIBRARY=cuda,
        WSYNC_NCCL_LIBRARY=build(folder, "libnccl.so.2", NCCL, "c++20"),
        NCCL_MULTI_RANK_GPU_ENABLE="1",
        NCCL_MAX_CTAS="4",
    )


@pytest.mark.parametrize("how", ["loopback", "id", "split", "direct"])
def test_arrays_on_a_gpu_are_delivered_in_the_order_of_the_callers_stream(
    how: str, environment: dict[str, str]
) -> None:
    """Over loopback, and over NCCL from a unique id and with a borrowed communicator."""
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_delivery.py"), how],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "delivered"

"""GPU arrays and streams, on the stand-in for CUDA that is part of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    sources = [ROOT / "tests/fake_gpu" / name for name in ("cudart.cc", "memory.cc", "stream.cc")]
    if compiler is None or not all(source.exists() for source in sources):
        pytest.skip("the stand-in for CUDA cannot be built here")
    library = tmp_path_factory.mktemp("cuda") / "libcudart.so.12"
    flags = "-std=c++17 -O1 -fPIC -shared -fvisibility=hidden -fno-strict-aliasing".split()
    include = ["-I", str(ROOT / "src/device/cuda/kernels")]
    command = [compiler, *flags, *include, *map(str, sources), "-o", str(library), "-lpthread"]
    subprocess.run(command, check=True)
    return str(library)


def test_arrays_on_a_gpu_are_delivered_in_the_order_of_the_callers_stream(cudart: str) -> None:
    environment = dict(os.environ, WSYNC_CUDART_LIBRARY=cudart, WSYNC_CUDA_LIBRARY=cudart)
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_delivery.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "delivered"

"""What the tests of the installed library share: one build, and what is made of it.

    cargo (zigbuild, glibc 2.17) ─► prefix ─► moved    consumers
                                 ─► deb, rpm, tarball  clean roots
                                 ─► wheel              fresh environments

tests/package/run puts the tools in place. All that is built stays in
target/package, so that a second run is quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Callable, Mapping, Sequence

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "package"
TOOLS = WORK / "venv" / "bin"
CARGO_TARGET = WORK / "cargo"
GLIBC = "2.17"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; left out with WSYNC_TEST_QUICK=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("WSYNC_TEST_QUICK"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="WSYNC_TEST_QUICK is set"))


def run(
    *command: str | Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    status: int | None = 0,
) -> str:
    """Runs a command; its output, or a failure that shows it."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    if status is not None and done.returncode != status:
        pytest.fail(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stdout}", False)
    return done.stdout


def environment() -> dict[str, str]:
    """The environment without what would lead to another library."""
    out = {k: v for k, v in os.environ.items() if not k.startswith("WSYNC_")}
    for name in ("LD_LIBRARY_PATH", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH", "PYTHONPATH"):
        out.pop(name, None)
    out["PATH"] = f"{TOOLS}:{out['PATH']}"
    return out


def free_address() -> str:
    """A TCP address at which nobody listens, of a port that none is given unasked."""
    for port in range(10_000 + os.getpid() * 131 % 20_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"
    raise OSError("every port is taken")


def deliver(launch: Callable[[str, str], Sequence[str]], env: Mapping[str, str] | None = None) -> None:
    """Runs a deliver example as three processes and checks what they say.

    `launch` gives the command of a rank from its number and an address.
    """
    address = free_address()
    ranks = [
        subprocess.Popen(
            [str(word) for word in launch(str(rank), address)],
            env={**environment(), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    for rank, process in enumerate(ranks):
        told = process.communicate(timeout=120)[0]
        assert process.returncode == 0, f"rank {rank}: {told}"
        assert told == "".join(f"rank {rank} has version {v}\n" for v in (1, 2, 3))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def configure(tree: Path, *options: str) -> Path:
    """A build tree that shares what cargo built with all others, and builds it."""
    run("cmake", "-S", ROOT / "cmake", "-B", tree, "-G", "Ninja", f"-DWEIGHTSYNC_GLIBC={GLIBC}",
        f"-DWEIGHTSYNC_CARGO_TARGET_DIR={CARGO_TARGET}", *options)  # fmt: skip
    run("cmake", "--build", tree, timeout=1800)
    return tree


@pytest.fixture(scope="session", autouse=True)
def source_before() -> str:
    """What git sees before anything is built."""
    return run("git", "status", "--porcelain", "--untracked-files=all")


@pytest.fixture(scope="session")
def tree(source_before: str) -> Path:
    """A build tree as somebody has it who installs from source."""
    return configure(WORK / "tree")


@pytest.fixture(scope="session")
def prefix(tree: Path) -> Path:
    """An installation that was moved after it was made, to a path with a space."""
    first, moved = WORK / "first", WORK / "moved here"
    for folder in (first, moved):
        shutil.rmtree(folder, ignore_errors=True)
    run("cmake", "--install", tree, "--prefix", first)
    first.rename(moved)
    return moved


@pytest.fixture(scope="session")
def library(prefix: Path) -> Path:
    return prefix / "lib" / "libweightsync.so.0"


@pytest.fixture(scope="session")
def version() -> str:
    """The version, from the one place that has it."""
    for line in (ROOT / "Cargo.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise AssertionError("Cargo.toml has no version")


@pytest.fixture
def scratch(request: pytest.FixtureRequest) -> Path:
    """An empty folder of this test's own, kept afterwards."""
    # Not every tool can bear the brackets of parameters.
    folder = WORK / "scratch" / re.sub(r"[^\w.-]+", "_", request.node.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder

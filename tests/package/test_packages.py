"""Debian packages, RPMs and a tarball: what they say, and their life in a clean root."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import GLIBC, ROOT, WORK, configure, deliver, run, sha256

DEBS = ["libweightsync0", "libweightsync-dev", "weightsync-tools", "python3-weightsync"]
RPMS = ["libweightsync0", "weightsync-devel", "weightsync-tools"]
C = ROOT / "tests/c/deliver.c"


def pack(tree: Path, kind: str) -> Path:
    folder = tree / kind.lower()
    shutil.rmtree(folder, ignore_errors=True)
    run("cpack", "-G", kind, "-B", folder, cwd=tree)
    return folder


@pytest.fixture(scope="module")
def debs() -> dict[str, Path]:
    folder = pack(configure(WORK / "deb", "-DCMAKE_INSTALL_PREFIX=/usr"), "DEB")
    return {path.name.split("_")[0]: path for path in folder.glob("*.deb")}


@pytest.fixture(scope="module")
def rpms() -> dict[str, Path]:
    options = "-DCMAKE_INSTALL_PREFIX=/usr", "-DCMAKE_INSTALL_LIBDIR=lib64"
    folder = pack(configure(WORK / "rpm", *options), "RPM")
    return {re.split(r"-\d", path.name)[0]: path for path in folder.glob("*.rpm")}


@pytest.fixture(scope="module")
def tarball(tree: Path) -> Path:
    (made,) = pack(tree, "TGZ").glob("*.tar.gz")
    return made


# ---- Debian ----------------------------------------------------------------------


def test_there_are_four_debian_packages(debs: dict[str, Path], version: str) -> None:
    assert sorted(debs) == sorted(DEBS)
    for name, path in debs.items():
        assert run("dpkg-deb", "-f", path, "Version").strip() == version, name


def test_lintian_finds_no_error(debs: dict[str, Path]) -> None:
    told = run("lintian", "--allow-root", "--fail-on", "error,warning", *debs.values())
    print(told)


def test_debian_packages_depend_on_no_engine(debs: dict[str, Path]) -> None:
    for name, path in debs.items():
        needed = run("dpkg-deb", "-f", path, "Depends", "Recommends").lower()
        assert "nccl" not in needed and "cuda" not in needed, name
    assert run("dpkg-deb", "-f", debs["libweightsync0"], "Depends") == f"libc6 (>= {GLIBC})\n"
    assert "libnccl2" in run("dpkg-deb", "-f", debs["libweightsync0"], "Suggests")


def files_below(root: Path) -> set[str]:
    """Every path of a root, but for what the package system writes for itself."""
    own = re.compile(r"^(proc|sys|dev|run|tmp|var/log|var/cache|var/lib/dpkg/.*-old|etc/ld\.so\.cache)")
    return {
        name
        for folder, folders, files in os.walk(root)
        for name in (os.path.relpath(os.path.join(folder, f), root) for f in folders + files)
        if not own.match(name)
    }


@pytest.fixture(scope="module")
def clean_root() -> Path:
    """A minimal Debian with a compiler and Python, as it is before we come."""
    if os.geteuid() != 0:
        pytest.skip("a clean root needs root: Debian packages were not installed")
    base = WORK / "clean-root.tar"
    if not base.exists():
        release = Path("/etc/os-release").read_text()
        name = re.findall(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)[0]
        sources = [p for p in Path("/etc/apt/sources.list.d").glob("*.sources")]
        sources += [p for p in [Path("/etc/apt/sources.list")] if p.exists()]
        run("mmdebstrap", "--variant=minbase", "--format=tar", "--include=gcc,libc6-dev,pkg-config,python3",
            name, f"{base}.part", *sources, timeout=1200)  # fmt: skip
        Path(f"{base}.part").rename(base)
    root = WORK / "clean-root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    run("tar", "-xf", base, "-C", root, "--exclude=./dev/*")
    (root / "dev/null").touch()
    return root


PYTHON_USES_IT = """
import threading
import weightsync as ws

layout = lambda rank: ws.Layout.from_json({
    "weightsync_layout": 1, "ranks": {"first": rank, "count": 1},
    "tensors": [{"name": "w", "shape": [8], "dtype": "u8"}],
})
plan = ws.Plan(layout(0), layout(1))
memory = [bytearray(range(8)), bytearray(8)]
transports = [ws.Transport.loopback(rank, 2) for rank in range(2)]
greetings = [t.greeting() for t in transports]

def run(rank):
    transports[rank].meet(greetings)
    with transports[rank], ws.Session(transports[rank]) as session:
        session.bind({"w": memory[rank]}, side=("source", "destination")[rank])
        request = session.request(session.load(plan))
        request.submit(1)
        request.wait()
        transports[rank].finalize()

thread = threading.Thread(target=run, args=(0,))
thread.start()
run(1)
thread.join()
assert memory[0] == memory[1]
from weightsync._loader import lib
print(lib._name, ws.library_version())
"""


@pytest.mark.slow
def test_debian_packages_live_and_die_in_a_clean_root(
    debs: dict[str, Path], clean_root: Path, version: str
) -> None:
    before = files_below(clean_root)
    packages = clean_root / "tmp/packages"
    packages.mkdir()
    for path in debs.values():
        shutil.copy(path, packages)

    def inside(script: str) -> str:
        return run("chroot", clean_root, "/bin/sh", "-euc", script)

    inside("dpkg -i /tmp/packages/*.deb")
    # A C program, a command and Python find it with no word about where it is.
    shutil.copy(C, clean_root / "tmp")
    inside("gcc -std=c99 -D_POSIX_C_SOURCE=200809L /tmp/deliver.c -o /tmp/deliver"
           " $(pkg-config --cflags --libs weightsync)")  # fmt: skip
    deliver(lambda rank, address: ["chroot", clean_root, "/tmp/deliver", rank, address])
    assert inside("weightsync --version") == f"weightsync {version}\n"
    assert "right" in inside("weightsync demo --transport loopback")
    (clean_root / "tmp/use.py").write_text(PYTHON_USES_IT)
    assert inside("python3 /tmp/use.py") == f"libweightsync.so.0 {version}\n"
    inside("gcc -std=c99 -D_POSIX_C_SOURCE=200809L /tmp/deliver.c -o /tmp/static"
           " -l:libweightsync.a -lpthread -ldl -lm -lrt -lutil -lgcc_s")  # fmt: skip
    # Removed without a trace, what Python compiled included.
    inside("dpkg -P " + " ".join(reversed(DEBS)))
    shutil.rmtree(packages)
    left = files_below(clean_root) - before
    assert not left
    assert before - files_below(clean_root) == set()


# ---- RPM --------------------------------------------------------------------------


def test_rpms_say_what_they_give_and_need(rpms: dict[str, Path]) -> None:
    assert sorted(rpms) == sorted(RPMS)
    provides = {name: run("rpm", "-qp", "--provides", path) for name, path in rpms.items()}
    assert "libweightsync.so.0()(64bit)" in provides["libweightsync0"]
    assert "pkgconfig(weightsync)" in provides["weightsync-devel"]
    for name, path in rpms.items():
        needs = run("rpm", "-qp", "--requires", path)
        assert "nccl" not in needs and "cuda" not in needs, name
        versions = re.findall(r"GLIBC_(\d+)\.(\d+)", needs)
        assert all((int(a), int(b)) <= (2, 17) for a, b in versions), name
    assert "libweightsync0 = " in run("rpm", "-qp", "--requires", rpms["weightsync-devel"])


def test_rpms_live_and_die_in_a_root_of_their_own(rpms: dict[str, Path], scratch: Path) -> None:
    root = scratch / "root"
    root.mkdir()
    # The root has no C library, so nothing can be depended on or run in it.
    rpm = ["rpm", "--root", str(root)]
    alone = ["--nodeps", "--noscripts", "--nosignature"]
    if Path("/etc/debian_version").exists():
        alone.append("--force-debian")
    run(*rpm, "--initdb")
    database = files_below(root)
    run(*rpm, "-i", *alone, *rpms.values())
    flags = run("pkg-config", "--cflags", "--libs", "weightsync",
                env={"PKG_CONFIG_PATH": str(root / "usr/lib64/pkgconfig")}).split()  # fmt: skip
    run("gcc", "-std=c99", "-D_POSIX_C_SOURCE=200809L", C, "-o", scratch / "deliver", *flags)
    found = {"LD_LIBRARY_PATH": str(root / "usr/lib64")}
    deliver(lambda rank, address: [scratch / "deliver", rank, address], env=found)
    assert "right" in run(root / "usr/bin/weightsync", "demo")
    run(*rpm, "-e", *alone[:2], *alone[3:], *RPMS)
    left = {f for f in files_below(root) - database if not f.startswith("var/lib/rpm")}
    assert all((root / f).is_dir() and not f.endswith("weightsync") for f in left), left


# ---- tarball, and all of them -------------------------------------------------------


def test_a_tarball_works_where_it_is_unpacked(tarball: Path, scratch: Path) -> None:
    with tarfile.open(tarball) as archive:
        archive.extractall(scratch)
    (prefix,) = scratch.glob("weightsync-*")
    build = scratch / "build"
    run("cmake", "-S", ROOT / "tests/package/consumers/find_package", "-B", build, "-G", "Ninja",
        f"-DCMAKE_PREFIX_PATH={prefix}")  # fmt: skip
    run("cmake", "--build", build, "--target", "cpp17")
    deliver(lambda rank, address: [build / "cpp17", rank, address])


def test_every_package_has_the_same_bytes(
    debs: dict[str, Path], rpms: dict[str, Path], tarball: Path, library: Path, scratch: Path
) -> None:
    for name in ("deb", "rpm", "tar"):
        (scratch / name).mkdir()
    run("dpkg-deb", "-x", debs["libweightsync0"], scratch / "deb")
    run("sh", "-c", 'rpm2cpio "$1" | cpio -id --quiet', "-", rpms["libweightsync0"], cwd=scratch / "rpm")
    with tarfile.open(tarball) as archive:
        archive.extractall(scratch / "tar")
    copies = [p for p in scratch.rglob("libweightsync.so.*") if not p.is_symlink()]
    assert len(copies) == 3
    assert {sha256(p) for p in copies} == {sha256(library)}

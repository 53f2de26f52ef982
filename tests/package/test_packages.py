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
    suggested = run("dpkg-deb", "-f", debs["libweightsync0"], "Suggests")
    assert "libnccl2 (>= 2.18)" in suggested and "libcudart12" in suggested


def files_below(root: Path) -> set[str]:
    """Every path of a root, but for what the package system writes for itself."""
    own = re.compile(r"^(proc|sys|dev|run|tmp|var/log|var/cache|var/lib/dpkg/.*-old|etc/ld\.so\.cache)")
    return {
        name
        for folder, folders, files in os.walk(root)
        for name in (os.path.relpath(os.path.join(folder, f), root) for f in folders + files)
        if not own.match(name)
    }


@pytest.fixture
def clean_root() -> Path:
    """A minimal Debian with a compiler and Python, as it is before we come."""
    if os.geteuid() != 0:
        pytest.skip("a clean root needs root: packages were not installed")
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


def inside(root: Path, script: str) -> str:
    return run("chroot", root, "/bin/sh", "-euc", script)


def a_c_program_runs(root: Path, flags: str, name: str = "deliver") -> None:
    """Built and run in `root`, with no word about where anything is but `flags`."""
    shutil.copy(C, root / "tmp")
    inside(root, f"gcc -std=c99 -D_POSIX_C_SOURCE=200809L /tmp/deliver.c -o /tmp/{name} {flags}")
    deliver(lambda rank, address: ["chroot", root, f"/tmp/{name}", rank, address])


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

    inside(clean_root, "dpkg -i /tmp/packages/*.deb")
    a_c_program_runs(clean_root, "$(pkg-config --cflags --libs weightsync)")
    a_c_program_runs(clean_root, "-l:libweightsync.a -lpthread -ldl -lm -lrt -lutil -lgcc_s", "static")
    assert inside(clean_root, "weightsync --version") == f"weightsync {version}\n"
    assert "right" in inside(clean_root, "weightsync demo --transport loopback")
    (clean_root / "tmp/use.py").write_text(PYTHON_USES_IT)
    assert inside(clean_root, "python3 /tmp/use.py") == f"libweightsync.so.0 {version}\n"
    # Removed without a trace, what Python compiled included.
    inside(clean_root, "dpkg -P " + " ".join(reversed(DEBS)))
    assert files_below(clean_root) == before


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
    suggested = run("rpm", "-qp", "--suggests", rpms["libweightsync0"])
    assert "libnccl >= 2.18" in suggested and "libcudart.so.12()(64bit)" in suggested


# What the package `filesystem` of an RPM system has, and a Debian lacks.
FILESYSTEM = [
    "usr/lib64/pkgconfig", "usr/lib64/cmake", "usr/share/bash-completion/completions",
    "usr/share/zsh/site-functions", "usr/share/fish/vendor_completions.d", "usr/share/man/man1",
]  # fmt: skip


@pytest.mark.slow
def test_rpms_live_and_die_in_a_clean_root(rpms: dict[str, Path], clean_root: Path, version: str) -> None:
    """The root is a Debian's, whose C library rpm does not know: hence --nodeps."""
    for folder in FILESYSTEM:
        (clean_root / folder).mkdir(parents=True, exist_ok=True)
    (clean_root / "etc/ld.so.conf.d/lib64.conf").write_text("/usr/lib64\n")
    rpm = ["rpm", "--root", str(clean_root)]
    debian = ["--force-debian"] if Path("/etc/debian_version").exists() else []
    run(*rpm, "--initdb")
    before = files_below(clean_root)
    run(*rpm, "-i", "--nodeps", "--nosignature", *debian, *rpms.values())
    # The scriptlet has told the loader.
    assert "libweightsync.so.0" in inside(clean_root, "ldconfig -p")
    a_c_program_runs(clean_root, "$(PKG_CONFIG_PATH=/usr/lib64/pkgconfig pkg-config --cflags --libs weightsync)")
    assert inside(clean_root, "weightsync --version") == f"weightsync {version}\n"
    assert "right" in inside(clean_root, "weightsync demo --transport loopback")
    run(*rpm, "-e", "--nodeps", *debian, *RPMS)
    assert "libweightsync" not in inside(clean_root, "ldconfig -p")
    left = files_below(clean_root) ^ before
    assert not {f for f in left if not f.startswith("var/lib/rpm")}


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


def test_what_has_machine_code_has_its_licences(
    debs: dict[str, Path], rpms: dict[str, Path], tarball: Path
) -> None:
    listings = {name: run("dpkg-deb", "-c", path) for name, path in debs.items()}
    listings |= {f"{name}.rpm": run("rpm", "-qpl", path) for name, path in rpms.items()}
    with tarfile.open(tarball) as archive:
        listings["tarball"] = "\n".join(archive.getnames())
    for name, listing in listings.items():
        assert "THIRD_PARTY_NOTICES" in listing, name


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

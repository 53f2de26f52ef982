"""The Python wheel and the source distribution, each in a fresh environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, TOOLS, WORK, deliver, run, sha256

EXAMPLE = ROOT / "bindings/python/examples/deliver.py"
SONAME = "libweightsync.so.0"
OLDEST_MINOR = 9


def pythons() -> dict[int, Path]:
    """Minor version and path of every Python 3 at hand that we support."""
    found: dict[int, Path] = {}
    versions = Path.home() / ".pyenv/versions"
    folders = [*versions.glob("3.*/bin"), *map(Path, os.environ["PATH"].split(":"))]
    for folder in folders:
        for path in folder.glob("python3.*"):
            name = re.fullmatch(r"python3\.(\d+)", path.name)
            # A name may be there of a version that is not: ask it.
            if name is None or int(name[1]) < OLDEST_MINOR or int(name[1]) in found:
                continue
            ask = [str(path), "-c", "import ensurepip, venv"]
            if subprocess.run(ask, capture_output=True, check=False).returncode == 0:
                found[int(name[1])] = path
    return found or {sys.version_info.minor: Path(sys.executable)}


PYTHONS = pythons()
ENDS = sorted({min(PYTHONS), max(PYTHONS)})


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    shutil.rmtree(tree / "dist", ignore_errors=True)
    run("cmake", "-S", ROOT / "cmake", "-B", tree, f"-DWEIGHTSYNC_PYTHON={TOOLS / 'python'}")
    run("cmake", "--build", tree, "--target", "wheel")
    (made,) = (tree / "dist").glob("*.whl")
    return made


def fresh(minor: int, name: str, *packages: str | Path) -> Path:
    """The Python of a new environment that has these packages."""
    folder = WORK / "scratch" / f"{name}-3.{minor}"
    shutil.rmtree(folder, ignore_errors=True)
    run(PYTHONS[minor], "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check",
        "--prefer-binary", *packages)  # fmt: skip
    return folder / "bin/python"


@pytest.fixture(scope="module", params=ENDS, ids=lambda minor: f"3.{minor}")
def python(request: pytest.FixtureRequest, wheel: Path) -> Path:
    """A fresh environment of the oldest and of the newest Python at hand."""
    return fresh(request.param, "wheel", wheel, "numpy")


def where(python: Path, **env: str) -> str:
    """The file of the library that the package takes."""
    ask = "from weightsync._loader import lib; print(lib._name)"
    return run(python, "-c", ask, env=env).strip()


def test_its_name_says_where_it_runs(wheel: Path, version: str) -> None:
    assert wheel.name.startswith(f"weightsync-{version}-py3-none-manylinux")
    assert "manylinux_2_17_" in wheel.name
    told = run(TOOLS / "python", "-m", "auditwheel", "show", wheel)
    print(told)
    assert 'consistent with the following platform tag: "manylinux_2_17' in " ".join(told.split())


def test_it_has_the_same_library_inside(wheel: Path, library: Path, scratch: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        inside = Path(archive.extract(f"weightsync/lib/{SONAME}", scratch))
    assert {"weightsync/py.typed", "weightsync/LICENSE", "weightsync/THIRD_PARTY_NOTICES"} <= set(names)
    assert not [n for n in names if n.startswith("weightsync.libs")]
    assert sha256(inside) == sha256(library)


def test_the_example_of_the_readme_runs(python: Path) -> None:
    deliver(lambda rank, address: [python, EXAMPLE, rank, address])


def test_it_loads_what_is_given_then_what_is_bundled_then_the_system(
    python: Path, library: Path, scratch: Path
) -> None:
    bundled = where(python)
    assert bundled.endswith(f"site-packages/weightsync/lib/{SONAME}")
    assert where(python, WSYNC_LIBRARY=str(library)) == str(library)
    # The same package without its library, as a distribution has it.
    shutil.copytree(Path(bundled).parents[1], scratch / "weightsync",
                    ignore=shutil.ignore_patterns("lib", "__pycache__"))  # fmt: skip
    system = {"PYTHONPATH": str(scratch), "LD_LIBRARY_PATH": str(library.parent)}
    assert where(python, **system) == SONAME
    ask = "import weightsync; print(weightsync.__file__)"
    missing = run(python, "-c", ask, env={"PYTHONPATH": str(scratch)}, status=1)
    for words in (f"cannot load {SONAME}", "by its name, for none is bundled",
                  str(scratch / "weightsync"), "set WSYNC_LIBRARY to the full path"):  # fmt: skip
        assert words in missing


def fake(scratch: Path, version: int, abi: int, all_functions: bool = True) -> Path:
    """A library that says it is of another version."""
    names = (ROOT / "include/weightsync.sym").read_text().split() if all_functions else []
    special = {"wsync_version": version, "wsync_abi_version": abi}
    source = "".join(f"unsigned {n}(void) {{ return {special.get(n, 0)}; }}\n"
                     for n in {*names, *special})  # fmt: skip
    (scratch / "fake.c").write_text(source)
    run("gcc", "-shared", "-fPIC", "-w", "-o", scratch / SONAME, scratch / "fake.c")
    return scratch / SONAME


def refused(python: Path, library: Path) -> str:
    return run(python, "-c", "import weightsync", env={"WSYNC_LIBRARY": str(library)}, status=1)


def test_a_library_that_does_not_fit_is_named(python: Path, scratch: Path, version: str) -> None:
    remedy = ["from WSYNC_LIBRARY", f"needs version {version} or newer with binary interface 0",
              "or unset it to take the bundled one"]  # fmt: skip
    for library, wrong in [
        (scratch / "nowhere.so", "cannot load"),
        (fake(scratch, 0x100, 7), "has binary interface 7"),
    ]:
        told = refused(python, library)
        for words in (str(library), wrong, *remedy):
            assert words in told, told
    assert "is of version 0.0.9" in refused(python, fake(scratch, 9, 0))
    assert "lacks wsync_" in refused(python, fake(scratch, 0x100, 0, all_functions=False))


def test_two_copies_in_one_process_are_told(python: Path, library: Path, scratch: Path) -> None:
    # LD_PRELOAD ends a path at a space.
    library = Path(shutil.copy(library, scratch))
    told = run(python, "-c", "import weightsync", env={"LD_PRELOAD": str(library)})
    assert "RuntimeWarning: two copies of libweightsync" in told
    assert os.path.realpath(library) in told
    assert f"set WSYNC_LIBRARY={os.path.realpath(library)}" in told
    same = {"LD_PRELOAD": str(library), "WSYNC_LIBRARY": str(library)}
    assert run(python, "-c", "import weightsync", env=same) == ""


def test_types_are_checked_for_who_uses_it(wheel: Path, scratch: Path) -> None:
    python = fresh(max(PYTHONS), "typed", wheel, "mypy>=1.10", "numpy")
    (scratch / "use.py").write_text(
        "import weightsync as ws\n"
        "plan: ws.Plan = ws.Plan.from_bytes(b'')\n"
        "reveal_type(plan.tensor_count)\n"
        "plan.no_such_thing\n"
    )
    told = run(python, "-m", "mypy", "--strict", scratch / "use.py", status=1)
    assert 'has no attribute "no_such_thing"' in told
    assert "Found 1 error" in told, told
    run(python, "-m", "mypy", "--strict", "-p", "weightsync")


def test_it_is_removed_without_a_trace(python: Path) -> None:
    site = Path(run(python, "-c", "import weightsync; print(weightsync.__file__)").strip()).parents[1]
    run(python, "-m", "pip", "uninstall", "-q", "-y", "weightsync")
    assert not list(site.glob("weightsync*"))


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    run("cmake", "-S", ROOT / "cmake", "-B", tree, f"-DWEIGHTSYNC_PYTHON={TOOLS / 'python'}")
    run("cmake", "--build", tree, "--target", "sdist")
    (made,) = (tree / "dist").glob("*.tar.gz")
    return made


@pytest.mark.slow
def test_a_source_distribution_builds(sdist: Path, scratch: Path, version: str) -> None:
    """With nothing but itself: cargo builds the library in it."""
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert f"weightsync-{version}/crate/Cargo.lock" in names
    assert not [n for n in names if n.endswith(".so.0") or "/target/" in n or "__pycache__" in n]
    # Quick to build; nothing that was built before is taken.
    built = WORK / "sdist-cargo"
    (built / "release/libweightsync.so").unlink(missing_ok=True)
    env = {"CARGO_TARGET_DIR": str(built), "CARGO_PROFILE_RELEASE_LTO": "off",
           "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}  # fmt: skip
    python = fresh(max(PYTHONS), "sdist", "numpy")
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", sdist, env=env,
        timeout=1800)  # fmt: skip
    deliver(lambda rank, address: [python, EXAMPLE, rank, address])

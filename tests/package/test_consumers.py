"""Programs of others, built against the installation that was moved."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, TOOLS, deliver, free_address, run

CONSUMERS = ROOT / "tests/package/consumers"
PROGRAMS = ["c99", "cpp17", "cpp20", "c99_static", "cpp17_static"]
C = ROOT / "tests/c/deliver.c"
CPP = ROOT / "bindings/cpp/examples/deliver.cc"


def linked(program: Path) -> str:
    """The libweightsync that the loader finds for a program; empty if none."""
    found = re.findall(r"libweightsync\.so\S* => (.*) \(0x", run("ldd", program))
    return os.path.realpath(found[0]) if found else ""


@pytest.fixture(scope="module")
def found_package(prefix: Path) -> Path:
    build = ROOT / "target/package/consumers"
    run("cmake", "-S", CONSUMERS / "find_package", "-B", build, "-G", "Ninja",
        f"-DCMAKE_PREFIX_PATH={prefix}")  # fmt: skip
    run("cmake", "--build", build)
    return build


@pytest.mark.parametrize("name", PROGRAMS)
def test_find_package(found_package: Path, prefix: Path, name: str) -> None:
    program = found_package / name
    deliver(lambda rank, address: [program, rank, address])
    wanted = "" if name.endswith("static") else os.path.realpath(prefix / "lib/libweightsync.so")
    assert linked(program) == wanted


@pytest.mark.parametrize("wanted", ["0.0.9", "0.2", "1.0"])
def test_a_wrong_version_is_refused(prefix: Path, scratch: Path, version: str, wanted: str) -> None:
    text = run("cmake", "-S", CONSUMERS / "find_package", "-B", scratch,
               f"-DCMAKE_PREFIX_PATH={prefix}", f"-DWANTED={wanted}", status=1)  # fmt: skip
    text = " ".join(text.split())
    assert f'compatible with requested version "{wanted}"' in text
    assert f"version: {version}" in text


def test_a_missing_component_is_named(prefix: Path, scratch: Path) -> None:
    project = "cmake_minimum_required(VERSION 3.18)\nproject(p C)\n"
    (scratch / "CMakeLists.txt").write_text(
        project + "find_package(weightsync REQUIRED COMPONENTS fortran)\n"
    )
    text = run("cmake", "-S", scratch, "-B", scratch / "b", f"-DCMAKE_PREFIX_PATH={prefix}", status=1)
    assert "fortran" in text


def pkg_config(prefix: Path, *options: str) -> list[str]:
    folder = str(prefix / "lib/pkgconfig")
    return shlex.split(run("pkg-config", *options, "weightsync", env={"PKG_CONFIG_PATH": folder}))


def test_pkg_config(prefix: Path, scratch: Path) -> None:
    flags = pkg_config(prefix, "--cflags", "--libs")
    program = scratch / "deliver"
    run("gcc", "-std=c99", "-D_POSIX_C_SOURCE=200809L", C, "-o", program, *flags,
        f"-Wl,-rpath,{prefix / 'lib'}")  # fmt: skip
    deliver(lambda rank, address: [program, rank, address])
    assert linked(program) == os.path.realpath(prefix / "lib/libweightsync.so")


def test_pkg_config_static(prefix: Path, scratch: Path) -> None:
    """What --static adds is enough for the archive; it is chosen by its name."""
    flags = pkg_config(prefix, "--static", "--cflags", "--libs")
    assert flags.index("-lweightsync") < flags.index("-ldl")
    flags = ["-l:libweightsync.a" if f == "-lweightsync" else f for f in flags]
    program = scratch / "deliver"
    run("gcc", "-std=c99", "-D_POSIX_C_SOURCE=200809L", C, "-o", program, *flags)
    deliver(lambda rank, address: [program, rank, address])
    assert linked(program) == ""


def test_pkg_config_refuses_a_newer_version(prefix: Path) -> None:
    folder = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    run("pkg-config", "--atleast-version=0.1", "weightsync", env=folder)
    text = run("pkg-config", "--print-errors", "weightsync >= 99", env=folder, status=1)
    assert "99" in text


@pytest.mark.parametrize("compiler, standard, source", [
    ("gcc", "c99", C), ("gcc", "c11", C), ("g++", "c++17", CPP), ("g++", "c++20", CPP),
])  # fmt: skip
def test_plain_flags(prefix: Path, scratch: Path, compiler: str, standard: str, source: Path) -> None:
    program = scratch / "deliver"
    run(compiler, f"-std={standard}", "-D_POSIX_C_SOURCE=200809L", source, "-o", program,
        f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", "-lweightsync")  # fmt: skip
    search = {"LD_LIBRARY_PATH": str(prefix / "lib")}
    deliver(lambda rank, address: [program, rank, address], env=search)
    # Without a way to the library the loader says which file it wants.
    text = run(program, status=127)
    assert "libweightsync.so.0: cannot open shared object file" in text


@pytest.mark.slow
def test_add_subdirectory_from_nothing_and_without_a_network(scratch: Path) -> None:
    """The source as a part of another project, which asks for nothing: it gets
    the library alone. Built where there is no network, from what cargo has."""
    build = scratch / "build"
    run("cmake", "-S", CONSUMERS / "subdirectory", "-B", build, "-G", "Ninja", "-DWEIGHTSYNC_PROFILE=dev")
    env = {"CARGO_NET_OFFLINE": "true", "RUSTFLAGS": "--print=native-static-libs",
           "CARGO_PROFILE_DEV_OPT_LEVEL": "0", "CARGO_PROFILE_DEV_DEBUG": "0"}  # fmt: skip
    told = run(*without_a_network(), "cmake", "--build", build, env=env, timeout=1800)
    # What a static link takes is what the compiler says, but for the C library.
    (needed,) = set(re.findall(r"native-static-libs: (.*)", told))
    assert set(needed.split()) - {"-lc"} == {f"-l{name}" for name in static_libraries()}
    for name in PROGRAMS:
        deliver(lambda rank, address: [build / name, rank, address])
    assert "weightsync/stage" in linked(build / "c99")
    assert not (build / "weightsync/stage/weightsync").exists()
    # It installs nothing of its own into somebody else's prefix.
    run("cmake", "--install", build, "--prefix", build / "nothing")
    assert not (build / "nothing").exists()


def static_libraries() -> list[str]:
    (names,) = re.findall(r"set\(weightsync_STATIC_LIBRARIES (.*)\)", (ROOT / "cmake/targets.cmake").read_text())
    return names.split()


def without_a_network() -> list[str]:
    """What runs a command where there is no network, if that is allowed here."""
    command = ["unshare", "--map-root-user", "--net"]
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    if not allowed:
        print("unshare is not allowed here: only cargo is told to be offline")
    return command if allowed else []


def test_languages_deliver_to_each_other(found_package: Path, prefix: Path) -> None:
    """The three examples of the README are the ranks of one delivery."""
    programs = [[TOOLS / "python", ROOT / "bindings/python/examples/deliver.py"],
                [found_package / "c99"], [found_package / "cpp17"]]  # fmt: skip
    python = {"PYTHONPATH": str(ROOT / "bindings/python/src"),
              "WSYNC_LIBRARY": str(prefix / "lib/libweightsync.so.0")}  # fmt: skip
    deliver(lambda rank, address: [*programs[int(rank)], rank, address], env=python)


# ---- an inference engine ------------------------------------------------------------

ENGINE = ROOT / "bindings/cpp/examples/engine"


@pytest.fixture(scope="module")
def engine(prefix: Path) -> Path:
    build = ROOT / "target/package/engine"
    run("cmake", "-S", ENGINE, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    return build


def serve(engine: Path, versions: int, *trainer_options: str) -> tuple[dict[int, int], str]:
    """Answers per version, and all that the engine and the trainer said."""
    address = free_address()
    script = '"$1/trainer" "$2" "$3" "$4" $5 & "$1/engine" "$2" "$3" "$4"; s=$?; wait $! && exit $s'
    told = run("bash", "-c", script, "-", engine, ENGINE, address, str(versions),
               " ".join(trainer_options), timeout=120)  # fmt: skip
    per_version = re.findall(r"^version (\d+): (\d+) answers$", told, re.MULTILINE)
    return {int(v): int(n) for v, n in per_version}, told


def test_an_engine_serves_every_version_while_the_next_one_comes(engine: Path) -> None:
    answers, told = serve(engine, 5)
    assert "serving version 5, 0 answers wrong" in told
    assert set(answers) == {1, 2, 3, 4, 5} and min(answers.values()) >= 5


def test_an_engine_keeps_serving_what_is_complete_when_the_trainer_dies(engine: Path) -> None:
    answers, told = serve(engine, 5, "3")
    assert "rank 1 died" in told
    last = int(re.findall(r"serving version (\d), 0 answers wrong", told)[0])
    # Version 3 may have come through as a whole before the end was seen.
    assert last in (2, 3) and answers[last] >= 5

"""What an installation consists of, how large it is, and how fast it loads."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from conftest import GLIBC, ROOT, configure, run

# Files and links below the prefix; {v} is the version.
INSTALLED = """
bin/weightsync
include/weightsync.h
include/weightsync/weightsync.hpp
lib/cmake/weightsync/weightsyncConfig.cmake
lib/cmake/weightsync/weightsyncConfigVersion.cmake
lib/libweightsync.a
lib/libweightsync.so -> libweightsync.so.0
lib/libweightsync.so.0 -> libweightsync.so.{v}
lib/libweightsync.so.{v}
lib/pkgconfig/weightsync.pc
share/bash-completion/completions/weightsync
share/doc/weightsync/LICENSE
share/doc/weightsync/THIRD_PARTY_NOTICES
share/fish/vendor_completions.d/weightsync.fish
share/zsh/site-functions/_weightsync
"""


def told(path: Path, prefix: Path) -> str:
    name = str(path.relative_to(prefix))
    return f"{name} -> {os.readlink(path)}" if path.is_symlink() else name


def test_everything_is_where_it_belongs(prefix: Path, version: str) -> None:
    files = (p for p in prefix.rglob("*") if p.is_symlink() or not p.is_dir())
    found = sorted(told(p, prefix) for p in files)
    manual = [f for f in found if f.startswith("share/man/man1/weightsync")]
    assert sorted(set(found) - set(manual)) == INSTALLED.format(v=version).split("\n")[1:-1]
    commands = run(prefix / "bin/weightsync", "--help")
    for command in re.findall(r"^  ([a-z]+)  ", commands, re.MULTILINE):
        if command != "help":
            assert f"share/man/man1/weightsync-{command}.1.gz" in manual


def test_the_library_is_a_file_that_nobody_executes(prefix: Path, version: str) -> None:
    mode = (prefix / f"lib/libweightsync.so.{version}").stat().st_mode
    assert stat.S_IMODE(mode) == 0o644


def test_nothing_names_the_place_where_it_was_built(prefix: Path) -> None:
    for path in (*prefix.rglob("*.cmake"), *prefix.rglob("*.pc")):
        text = path.read_text()
        assert str(ROOT) not in text and str(prefix.parent) not in text, path


def test_the_library_is_small(library: Path) -> None:
    size = library.stat().st_size
    print(f"libweightsync.so: {size / 1e6:.2f} MB stripped")
    assert size < 6_000_000
    assert ".symtab" not in run("readelf", "-SW", library)


def test_the_archive_has_no_bitcode(prefix: Path) -> None:
    archive = prefix / "lib/libweightsync.a"
    print(f"libweightsync.a: {archive.stat().st_size / 1e6:.1f} MB")
    assert archive.stat().st_size < 20_000_000


def test_old_systems_have_all_symbols(prefix: Path) -> None:
    for name in ("lib/libweightsync.so.0", "bin/weightsync"):
        symbols = run("objdump", "-T", prefix / name)
        newest = max(
            tuple(int(n) for n in v.split("."))
            for v in re.findall(r"GLIBC_([0-9.]+)", symbols)
        )
        print(f"{name}: needs glibc {'.'.join(map(str, newest))}")
        assert newest <= tuple(int(n) for n in GLIBC.split("."))


def test_it_needs_the_c_library_only(library: Path) -> None:
    dynamic = run("readelf", "-d", library)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert needed <= {"libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6",
                      "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libgcc_s.so.1"}  # fmt: skip
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["libweightsync.so.0"]
    assert "NODELETE" in dynamic


def test_loading_is_quick_starts_no_thread_and_allocates_nothing(
    library: Path, scratch: Path
) -> None:
    program = scratch / "load"
    run("gcc", "-O2", "-Wall", "-Werror", "-o", program, ROOT / "tests/package/load.c", "-ldl")
    answer = run(program, library)
    print(answer)
    numbers = dict(re.findall(r"^(\w+) (\d+)$", answer, re.MULTILINE))
    assert int(numbers["best_load_ns"]) < 5_000_000
    assert numbers["threads"] == "1"
    assert numbers["allocations"] == "0"


def test_the_command_works(prefix: Path, version: str) -> None:
    assert run(prefix / "bin/weightsync", "--version") == f"weightsync {version}\n"
    demo = run(prefix / "bin/weightsync", "demo")
    assert "bytes checked: right" in demo


def test_shells_complete_the_command(prefix: Path) -> None:
    script = prefix / "share/bash-completion/completions/weightsync"
    ask = """
        source "$1"
        COMP_WORDS=(weightsync ex) COMP_CWORD=1
        _weightsync weightsync ex weightsync
        echo "${COMPREPLY[@]}"
    """
    assert run("bash", "-c", ask, "-", script) == "explain\n"
    for shell, path in (("zsh", "zsh/site-functions/_weightsync"),
                        ("fish", "fish/vendor_completions.d/weightsync.fish")):  # fmt: skip
        run(shell, "-n", prefix / "share" / path)


def test_manual_pages_read_without_a_warning(prefix: Path) -> None:
    pages = sorted((prefix / "share/man/man1").glob("*.gz"))
    assert pages
    for page in pages:
        text = run("man", "--warnings", "-l", page, env={"MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
        assert "warning" not in text, text
        assert "SYNOPSIS" in text


def test_system_folders_are_respected(scratch: Path) -> None:
    tree = configure(scratch / "tree", "-DCMAKE_INSTALL_PREFIX=/usr", "-DCMAKE_INSTALL_LIBDIR=lib64")
    run("cmake", "--install", tree, env={"DESTDIR": str(scratch / "root")})
    usr = scratch / "root/usr"
    assert (usr / "lib64/libweightsync.so.0").exists()
    assert not (usr / "lib").exists()
    made = run("pkg-config", "--variable=libdir", "weightsync",
               env={"PKG_CONFIG_PATH": str(usr / "lib64/pkgconfig")}).strip()  # fmt: skip
    assert Path(made).resolve() == usr / "lib64"


def test_the_source_stays_clean(prefix: Path, source_before: str) -> None:
    """Builds are out of tree: nothing that git would see."""
    assert prefix.exists()
    assert run("git", "status", "--porcelain", "--untracked-files=all") == source_before


@pytest.mark.parametrize("missing, options, words", [
    ("cargo", [], "cargo, which is not found"),
    ("cargo-zigbuild", [f"-DWEIGHTSYNC_GLIBC={GLIBC}"], "cargo-zigbuild, which is not found"),
])  # fmt: skip
def test_a_missing_tool_is_named(scratch: Path, missing: str, options: list[str], words: str) -> None:
    tools = scratch / "bin"
    tools.mkdir()
    for tool in ("cmake", "ninja", "gcc", "cc", "ld", "ar", "as", "cargo"):
        if tool != missing:
            (tools / tool).symlink_to(run("which", tool).strip())
    text = run("cmake", "-S", ROOT / "cmake", "-B", scratch / "tree", "-G", "Ninja", *options, status=1,
               env={"PATH": str(tools), "HOME": "/nonexistent", "CARGO_HOME": "/nonexistent"})  # fmt: skip
    assert words in " ".join(text.split())

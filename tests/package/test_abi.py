"""What compiled callers rely on: the ABI does not change under them.

The committed baseline is what libabigail reads from a library that has every
function of the header, compiled by a C compiler: all types, values and
functions as C sees them. Within one ABI number functions, enum values and
trailing struct fields are only added. Whoever changes something else raises
ABI_VERSION in src/build.rs, writes under *ABI* in CHANGELOG.md what compiled
callers will see. Whoever adds or changes something makes a new baseline and reviews it:

    WSYNC_BLESS=1 tests/package/run -k that_of_the_baseline
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TOOLS, deliver, run

ABI = ROOT / "tests/package/abi"
BASELINE = ABI / "libweightsync.so.0.abi"
HEADER = (ROOT / "include/weightsync.h").read_text()


def changes(old: Path, new: Path) -> str:
    """What libabigail says of callers that would break; empty if none would.

    What is only added breaks nobody, and is not looked at.
    """
    told = run("abidiff", "--no-added-syms", "--non-reachable-types",
               "--suppressions", ABI / "additions.ini", old, new, status=None)  # fmt: skip
    counts = re.findall(r"summary: (\d+) removed, (\d+) changed", told, re.IGNORECASE)
    assert counts, told
    return told if any(int(n) for pair in counts for n in pair) else ""


def witness(header: str, folder: Path) -> Path:
    """A library that defines what the header declares, with debug information."""
    folder.mkdir(exist_ok=True)
    (folder / "weightsync.h").write_text(header)
    plain = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    declared = re.findall(r"^(\w[\w ]*?[ *]+)(wsync_\w+)\(([^{};]*)\);", plain, re.MULTILINE)
    source = '#include "weightsync.h"\n'
    for result, name, arguments in declared:
        body = "" if result.strip() == "void" else "return 0;"
        source += f"{result} {name}({arguments}) {{ {body} }}\n"
    (folder / "witness.c").write_text(source)
    library = folder / "libweightsync.so"
    run("gcc", "-g", "-w", "-std=c99", "-shared", "-fPIC", "-Wl,-soname,libweightsync.so.0",
        "-fno-eliminate-unused-debug-types", "-o", library, folder / "witness.c")  # fmt: skip
    return library


def test_the_abi_is_that_of_the_baseline(scratch: Path) -> None:
    library = witness(HEADER, scratch)
    if os.environ.get("WSYNC_BLESS"):
        run("abidw", "--no-show-locs", "--no-elf-needed", "--no-corpus-path",
            "--no-comp-dir-path", "--load-all-types", "--type-id-style", "hash", "--out-file", BASELINE, library)  # fmt: skip
        for name in ("include/weightsync.h", "tests/c/deliver.c", "tests/c/lifecycle.c", "tests/c/check.h"):
            shutil.copy(ROOT / name, ABI / "baseline")
    told = changes(BASELINE, library)
    assert told == "", f"compiled callers would break; see the top of this file\n{told}"


def test_the_baseline_has_every_function() -> None:
    """What is added is guarded from then on: see the top of this file."""
    listed = (ROOT / "include/weightsync.sym").read_text().split()
    assert sorted(baseline_functions()) == sorted(listed)


def baseline_functions() -> set[str]:
    return set(re.findall(r"<elf-symbol name='(\w+)'", BASELINE.read_text()))


def structs() -> dict[str, str]:
    """The structs of the header that have fields, and their fields."""
    plain = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    return dict(re.findall(r"^typedef struct (wsync_\w+) \{(.*?)^\}", plain, re.MULTILINE | re.DOTALL))


def test_every_struct_may_grow_or_never_does() -> None:
    """By additions.ini, or by the header's word."""
    (names,) = re.findall(r"name_regexp = \^wsync_\((.*)\)\$", (ABI / "additions.ini").read_text())
    may_grow = {f"wsync_{name}" for name in names.split("|")}
    (words,) = re.findall(r"These never grow: (.*?)\.", HEADER, re.DOTALL)
    never = set(re.findall(r"wsync_\w+", words))
    assert may_grow | never == set(structs())
    assert not may_grow & never
    assert not {name for name in never if "struct_size" in structs()[name]}


def test_the_witness_has_every_function(scratch: Path) -> None:
    told = run("nm", "-D", "--defined-only", witness(HEADER, scratch))
    listed = (ROOT / "include/weightsync.sym").read_text().split()
    assert sorted(re.findall(r" T (wsync_\w+)", told)) == sorted(listed)


def test_the_installed_library_has_every_symbol_of_the_baseline(library: Path) -> None:
    told = run("nm", "-D", "--defined-only", library)
    exported = set(re.findall(r" T (\w+)", told))
    assert baseline_functions() <= exported
    assert {name for name in exported if not name.startswith("wsync_")} == set()


CHANGES = {
    "a function is gone": (r"\nwsync_status wsync_plan_verify\(.*?\);", "", False),
    "a parameter is of another type": (
        r"(uint32_t wsync_plan_rank_count\(const struct )wsync_plan", r"\1wsync_layout", False),
    "a result is wider": (r"uint32_t wsync_plan_step_count\(", "uint64_t wsync_plan_step_count(", False),
    "a field in the middle": (r"(typedef struct wsync_tensor \{)", r"\1\n  uint64_t early;", False),
    "a value is another one": (r"WSYNC_ERR_BUSY = -5", "WSYNC_ERR_BUSY = -50", False),
    "an embedded struct grows": (r"(\n\} wsync_text;)", r"\n  uint64_t late;\1", False),
    "an element without a stride grows": (r"(\n\} wsync_pair;)", r"\n  uint32_t late;\1", False),
    "an output without a size grows": (r"(\n\} wsync_fingerprint;)", r"\n  uint8_t late[16];\1", False),
    "a field at the end": (r"(\n\} wsync_plan_options;)", r"\n  uint64_t late;\1", True),
    "an element with a stride grows": (r"(\n\} wsync_tensor;)", r"\n  uint64_t late;\1", True),
    "one more function": (r"(\nuint32_t wsync_version\(void\);)", r"\1\nuint32_t wsync_more(void);", True),
    "one more value": (r"(\n  WSYNC_ERR_BUSY = -5,)", r"\1\n  WSYNC_ERR_LATE = -9,", True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_comparison_sees_what_breaks_callers(scratch: Path, change: str) -> None:
    pattern, replacement, may_pass = CHANGES[change]
    header, count = re.subn(pattern, replacement, HEADER, count=1, flags=re.DOTALL)
    assert count == 1, "the header no longer has what this test changes"
    told = changes(witness(HEADER, scratch / "old"), witness(header, scratch / "new"))
    assert (told == "") is may_pass, told


@pytest.mark.parametrize("name", ["deliver", "lifecycle"])
def test_a_program_of_the_baseline_still_runs(prefix: Path, scratch: Path, name: str) -> None:
    """Compiled against the header of the baseline, run with the library of today."""
    program = scratch / name
    run("gcc", "-std=c99", "-D_POSIX_C_SOURCE=200809L", f"-I{ABI / 'baseline'}",
        ABI / f"baseline/{name}.c", "-o", program, f"-L{prefix / 'lib'}", "-lweightsync", "-pthread")  # fmt: skip
    env = {"LD_LIBRARY_PATH": str(prefix / "lib")}
    if name == "deliver":
        deliver(lambda rank, address: [program, rank, address], env=env)
    else:
        run(program, env=env)


def test_a_header_that_is_newer_is_told(prefix: Path, scratch: Path, version: str) -> None:
    """The message says which file was loaded, what was expected, and what to do."""
    newer = re.sub(r"#define WSYNC_VERSION \d+", "#define WSYNC_VERSION 0x630102", HEADER)
    (scratch / "weightsync.h").write_text(newer)
    (scratch / "main.cc").write_text(
        "#include <weightsync/weightsync.hpp>\n#include <cstdio>\n"
        "int main() try { weightsync::Layout::from_json(\"{}\"); }\n"
        "catch (const weightsync::Error &e) { std::puts(e.what());"
        " return e.status() == weightsync::Status::version_mismatch ? 0 : 1; }\n"
    )
    run("g++", "-std=c++17", f"-I{scratch}", f"-I{prefix / 'include'}", scratch / "main.cc",
        "-o", scratch / "main", f"-L{prefix / 'lib'}", "-lweightsync")  # fmt: skip
    told = run(scratch / "main", env={"LD_LIBRARY_PATH": str(prefix / "lib")})
    for words in ("99.1.2", str(prefix / "lib/libweightsync.so.0"), f"version {version}", "LD_LIBRARY_PATH"):
        assert words in told


def test_two_copies_in_one_process_are_told(library: Path, scratch: Path) -> None:
    """A handle of one is none of the other; the message names both files."""
    other = scratch / "libweightsync.so.0"
    shutil.copy(library, other)
    run("gcc", "-std=c99", "-Wall", "-Werror", f"-I{ROOT / 'include'}",
        ROOT / "tests/package/two_copies.c", "-o", scratch / "two_copies", "-ldl")  # fmt: skip
    told = run(scratch / "two_copies", library, other, env={"WSYNC_LOG": "warn"})
    for words in (str(library), str(other), "BAD_HANDLE", "two copies of the library are loaded"):
        assert words in told
    assert re.search(r"^weightsync\[\d+\] warn: two copies", told, re.MULTILINE)
    # One file twice is one copy.
    same = run(scratch / "two_copies", library, library, env={"WSYNC_LOG": "warn"})
    assert "OK" in same and "two copies" not in same


def test_there_is_one_version_number(prefix: Path, version: str) -> None:
    packed = int(re.findall(r"#define WSYNC_VERSION (\d+)", HEADER)[0])
    found = {
        "header": f"{packed >> 16}.{packed >> 8 & 255}.{packed & 255}",
        "command": run(prefix / "bin/weightsync", "--version").split()[1],
        "pkg-config": run("pkg-config", "--modversion", "weightsync",
                          env={"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}).strip(),
        "CMake": re.findall(r'PACKAGE_VERSION "([\d.]+)"',
                            (prefix / "lib/cmake/weightsync/weightsyncConfigVersion.cmake").read_text())[0],
        "Python": re.findall(r'__version__ = "(.*)"',
                             (ROOT / "bindings/python/src/weightsync/__init__.py").read_text())[0],
    }  # fmt: skip
    assert set(found.values()) == {version}, found
    abi = int(re.findall(r"ABI_VERSION: u32 = (\d+)", (ROOT / "src/build.rs").read_text())[0])
    assert f"#define WSYNC_ABI_VERSION {abi}\n" in HEADER
    assert f"\nABI = {abi}\n" in (ROOT / "bindings/python/hatch_build.py").read_text()


def test_the_changelog_says_what_compiled_callers_see(version: str) -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    release = changes.split(f"\n## {version}")[1].split("\n## ")[0]
    assert "### ABI\n" in release


# ---- what the library depends on -----------------------------------------------------


def deny(*checks: str, status: int | None = 0) -> str:
    return run(TOOLS / "cargo-deny", "--format", "json", "check", *checks, status=status)


def test_dependencies_have_fitting_licences_and_one_source() -> None:
    deny("licenses", "bans", "sources")


def test_no_dependency_has_a_known_vulnerability() -> None:
    told = deny("advisories", status=None)
    if "failed to fetch advisory database" in told:
        pytest.skip("NOBODY LOOKED FOR KNOWN VULNERABILITIES: the advisory database cannot be "
                    "reached from here; run `cargo deny check advisories` where there is a network")  # fmt: skip
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    errors = [l for l in lines if l.get("fields", {}).get("severity") == "error"]
    assert not errors, errors

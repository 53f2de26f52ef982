"""Guides and references: every block of code in docs/ and the READMEs is run, or is a part of what is run.

- `sh` blocks of a page run one after the other, with the installed command in the
  path, `$OUT` an empty folder and `$MODEL` a small checkpoint; a comment above
  one, `<!-- not run: why -->`, excuses it.
- Blocks in c, cpp, python, json, cmake and toml stand in some file of the
  repository that tests build or run; or they are whole programs, and run here.
- `text` blocks are what somebody saw.
"""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import CARGO_TARGET, GLIBC, ROOT, TOOLS, WORK, run

GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "bindings/python/README.md", *GUIDES]
LANGUAGES = {"c", "cpp", "python", "json", "cmake", "toml", "sh", "text"}


class Block(NamedTuple):
    language: str
    text: str
    excuse: str
    line: int


def blocks(page: Path) -> list[Block]:
    out: list[Block] = []
    lines = page.read_text().splitlines()
    start = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
            continue
        above = lines[start - 1] if start else ""
        excuse = re.findall(r"<!-- not run: (.+) -->", above)
        text = "\n".join(lines[start + 1 : i]) + "\n"
        out.append(Block(lines[start][3:].strip(), text, "".join(excuse), start + 1))
        start = None
    assert start is None, f"{page.name}: a block in line {start} does not end"
    return out


def repository() -> str:
    """All that tests build or run, each line without its indentation."""
    names = run("git", "ls-files", "-co", "--exclude-standard", "--", "*.c", "*.cc", "*.hpp", "*.py", "*.json",
                "*.toml", "*CMakeLists.txt", "*.cmake").split()  # fmt: skip
    texts = ((ROOT / name).read_text() for name in names if (ROOT / name).exists())
    return "\n".join(flat(text) for text in texts)


def flat(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}: {block.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_a_part_of_what_is_tested_or_runs_by_itself(
    page: Path, prefix: Path, scratch: Path
) -> None:
    source = repository()
    for block in blocks(page):
        if block.language in ("sh", "text") or block.excuse or flat(block.text) in source:
            continue
        where = f"{page.name}:{block.line}"
        if block.language in ("c", "cpp"):
            assert "int main" in block.text, f"{where}: neither a part of a file nor a program"
            program = scratch / f"line{block.line}.{ {'c': 'c', 'cpp': 'cc'}[block.language] }"
            program.write_text(block.text)
            run("gcc" if block.language == "c" else "g++", program, "-o", scratch / "program",
                f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", "-lweightsync",
                f"-Wl,-rpath,{prefix / 'lib'}", "-pthread")  # fmt: skip
            run(scratch / "program")
        elif block.language == "python":
            program = scratch / f"line{block.line}.py"
            program.write_text(block.text)
            run(TOOLS / "python", program, cwd=scratch, env=python_environment(prefix))
        else:
            pytest.fail(f"{where}: no file of the repository has this {block.language}")


def python_environment(prefix: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(ROOT / "bindings/python/src"),
        "WSYNC_LIBRARY": str(prefix / "lib/libweightsync.so.0"),
    }


def home(scratch: Path) -> dict[str, str]:
    """A home of the page's own, which pip installs into. Cargo keeps its real one,
    and caches theirs: a linker that lies elsewhere would have all built anew."""
    kept = {"CARGO_HOME": ".cargo", "RUSTUP_HOME": ".rustup", "XDG_CACHE_HOME": ".cache"}
    real = {name: os.environ.get(name, str(Path.home() / folder)) for name, folder in kept.items()}
    return {"HOME": str(scratch), "PIP_PREFIX": str(scratch / "site"), **real}


@pytest.fixture(scope="module")
def model() -> Path:
    """A checkpoint with the structure of Qwen3-30B-A3B and small widths."""
    folder = WORK / "model"
    write = """
import pathlib, sys, tiny
config = tiny.config("qwen3-30b-a3b")
tiny.write(pathlib.Path(sys.argv[1]), config, tiny.checkpoint(config))
"""
    run(TOOLS / "python", "-B", "-c", write, folder, env={"PYTHONPATH": str(ROOT / "tests/models")})
    return folder


# What a build from scratch would take minutes for is shared with the other tests:
# cmake builds where they do, and `cargo run --` runs the command they installed.
SHARED = {
    "cmake": f"""#!/bin/sh
        if [ "$1 $2" = "-S cmake" ]; then
            set -- "$@" -G Ninja -DWEIGHTSYNC_GLIBC={GLIBC} "-DWEIGHTSYNC_CARGO_TARGET_DIR={CARGO_TARGET}"
        fi
        exec {{real}} "$@"
        """,
    "cargo": """#!/bin/sh
        if [ "$1 $2" = "run --" ]; then shift 2; exec weightsync "$@"; fi
        exec {real} "$@"
        """,
}


def share(folder: Path) -> Path:
    """A folder of tools that share what is built, for the front of the path."""
    folder.mkdir()
    for name, script in SHARED.items():
        real = run("sh", "-c", f"command -v {name}").strip()
        (folder / name).write_text(textwrap.dedent(script).format(real=real))
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(page: Path, prefix: Path, model: Path, scratch: Path) -> None:
    script = "\n".join(b.text for b in blocks(page) if b.language == "sh" and not b.excuse)
    if not script:
        return
    path = f"{share(scratch / 'bin')}:{prefix / 'bin'}:{TOOLS}:" + run("sh", "-c", "echo $PATH").strip()
    # A page that installs does so beside; one that does not finds what is installed.
    installs = "cmake --install" in script
    env = {
        "PATH": path,
        "BUILD": str(scratch / "build"),
        "PREFIX": str(scratch / "prefix" if installs else prefix),
        "OUT": str(scratch),
        "MODEL": str(model),
        **home(scratch),
        **python_environment(prefix),
    }
    told = run("bash", "-euo", "pipefail", "-c", script, env=env, timeout=1800)
    print(textwrap.indent(told, "    "))
    # Drawings are the ones that the page shows, all of them.
    shown = set(re.findall(r"\]\(pictures/(\w+\.svg)\)", page.read_text()))
    assert {drawn.name for drawn in scratch.glob("*.svg")} == shown
    for name in shown:
        committed = ROOT / "docs/pictures" / name
        assert (scratch / name).read_text() == committed.read_text(), f"{committed} was drawn by another version"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_page_is_listed() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/README.md").read_text())
    assert sorted(listed) == sorted(page.name for page in GUIDES if page.name != "README.md")


# ---- references -----------------------------------------------------------------------


def test_the_reference_of_c_and_cpp_builds_without_a_warning(tree: Path) -> None:
    run("cmake", "--build", tree, "--target", "reference")
    pages = {path.name for path in (tree / "reference/html").glob("*.html")}
    assert "classweightsync_1_1v0_1_1Session.html" in pages
    text = (tree / "reference/html/weightsync_8h.html").read_text()
    for function in (ROOT / "include/weightsync.sym").read_text().split():
        assert function in text, f"{function} is not in the reference"


def test_the_rust_docs_build_without_a_warning() -> None:
    run("cargo", "doc", "--locked", "--no-deps", "--lib", "-q",
        env={"RUSTDOCFLAGS": "-D warnings"}, timeout=1800)  # fmt: skip


def test_everything_public_in_python_has_a_docstring(prefix: Path) -> None:
    ask = """
import inspect, weightsync
for name in weightsync.__all__:
    thing = getattr(weightsync, name)
    if not inspect.getdoc(thing): print(name)
    if inspect.isclass(thing) and thing.__module__.startswith("weightsync"):
        for method, value in vars(thing).items():
            value = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if inspect.isfunction(value) and not method.startswith("_") and not inspect.getdoc(value):
                print(f"{name}.{method}")
"""
    assert run(TOOLS / "python", "-c", ask, env=python_environment(prefix)) == ""

"""Puts the library into the wheel, and its source into the source distribution."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ABI = 0
HERE = Path(__file__).resolve().parent
# In a source distribution the crate lies inside, otherwise around us.
UNPACKED = HERE / "crate"
CRATE = UNPACKED if UNPACKED.is_dir() else HERE.parent.parent


def find_library() -> Path:
    """The library to ship: WSYNC_LIBRARY, one that is built, or a new build."""
    given = os.environ.get("WSYNC_LIBRARY")
    if given:
        path = Path(given)
        if not path.is_file():
            raise RuntimeError(f"WSYNC_LIBRARY is {given!r}, which is not a file")
        return path
    target = CRATE / os.environ.get("CARGO_TARGET_DIR", "target")
    for profile in ("release", "debug"):
        path = target / profile / "libweightsync.so"
        if path.is_file():
            return path
    cargo = shutil.which("cargo")
    if cargo is None or not (CRATE / "Cargo.toml").is_file():
        raise RuntimeError(
            "no libweightsync.so: set WSYNC_LIBRARY to its full path, or install cargo, which "
            f"builds it with `cargo build --release --lib --no-default-features` in {CRATE}"
        )
    subprocess.run(
        [cargo, "build", "--release", "--locked", "--lib", "--no-default-features"],
        cwd=CRATE,
        check=True,
    )
    return target / "release" / "libweightsync.so"


def crate_files() -> dict[str, str]:
    """What cargo needs to build the library, and where it goes in an sdist."""
    manifest = (CRATE / "Cargo.toml").read_text()
    # Cargo wants every target that the manifest names to be there.
    tests = re.findall(r'^\[\[test\]\]\nname = "(\w+)"', manifest, re.MULTILINE)
    names = ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "src", "sys", "include", "benches"]
    names += [f"tests/{test}.rs" for test in tests]
    return {str(CRATE / n): f"crate/{n}" for n in names if (CRATE / n).exists()}


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Copies the library to weightsync/lib before a wheel is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "sdist":
            build_data["force_include"].update(crate_files())
            return
        folder = HERE / "src" / "weightsync" / "lib"
        folder.mkdir(exist_ok=True)
        source, copy = find_library(), folder / f"libweightsync.so.{ABI}"
        if source.resolve() != copy.resolve():
            # A new file, so that a process that has the old one loaded keeps it.
            fresh = copy.with_suffix(".new")
            shutil.copyfile(source, fresh)
            fresh.replace(copy)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["force_include"][str(CRATE / "LICENSE")] = "weightsync/LICENSE"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

"""Puts a built libweightsync.so into the wheel and names its platform."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ABI = 0
HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent


def find_library() -> Path:
    """The library to ship: WSYNC_LIBRARY, one that is built, or a new build."""
    given = os.environ.get("WSYNC_LIBRARY")
    if given:
        path = Path(given)
        if not path.is_file():
            raise RuntimeError(f"WSYNC_LIBRARY is {given!r}, which is not a file")
        return path
    target = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target")
    for profile in ("release", "debug"):
        path = target / profile / "libweightsync.so"
        if path.is_file():
            return path
    cargo = shutil.which("cargo")
    if cargo is None or not (REPOSITORY / "Cargo.toml").is_file():
        raise RuntimeError(
            "no libweightsync.so: set WSYNC_LIBRARY to its full path, or build it with "
            f"`cargo build --release --lib --no-default-features` in {REPOSITORY}"
        )
    subprocess.run(
        [cargo, "build", "--release", "--lib", "--no-default-features"],
        cwd=REPOSITORY,
        check=True,
    )
    return target / "release" / "libweightsync.so"


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Copies the library to weightsync/lib before the wheel is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        folder = HERE / "src" / "weightsync" / "lib"
        folder.mkdir(exist_ok=True)
        source, copy = find_library(), folder / f"libweightsync.so.{ABI}"
        if source.resolve() != copy.resolve():
            # A new file, so that a process that has the old one loaded keeps it.
            fresh = copy.with_suffix(".new")
            shutil.copyfile(source, fresh)
            fresh.replace(copy)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

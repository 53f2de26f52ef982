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
    """The library to ship: WSYNC_LIBRARY, else what cargo makes of the source.

    Cargo is asked every time: it knows whether what was built is still true.
    """
    given = os.environ.get("WSYNC_LIBRARY")
    if given:
        path = Path(given)
        if not path.is_file():
            raise RuntimeError(f"WSYNC_LIBRARY is {given!r}, which is not a file")
        return path
    command = ["cargo", "build", "--release", "--locked", "--lib", "--no-default-features"]
    if shutil.which("cargo") is None:
        raise RuntimeError(
            "the wheel needs libweightsync.so: set WSYNC_LIBRARY to its full path, or install "
            f"cargo, which builds it with `{' '.join(command)}` in {CRATE}"
        )
    subprocess.run(command, cwd=CRATE, check=True)
    return CRATE / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "libweightsync.so"


def crate_files() -> dict[str, str]:
    """What cargo needs to build the library, and where it goes in an sdist."""
    manifest = (CRATE / "Cargo.toml").read_text()
    # Cargo wants every target that the manifest names to be there.
    tests = re.findall(r'^\[\[test\]\]\nname = "(\w+)"', manifest, re.MULTILINE)
    names = ["Cargo.toml", "Cargo.lock", "LICENSE", "THIRD_PARTY_NOTICES", "README.md", "src", "sys", "include", "benches"]
    names += [f"tests/{test}.rs" for test in tests]
    return {str(CRATE / n): f"crate/{n}" for n in names if (CRATE / n).exists()}


class LibraryHook(BuildHookInterface):  # type: ignore[type-arg]
    """Says which files beside the package go into a wheel, and into an sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        included = build_data["force_include"]
        if self.target_name == "sdist":
            included.update(crate_files())
            return
        included[str(find_library().resolve())] = f"weightsync/lib/libweightsync.so.{ABI}"
        for paper in ("LICENSE", "THIRD_PARTY_NOTICES"):
            included[str(CRATE / paper)] = f"weightsync/{paper}"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

"""What failures look like, and what a library that does not fit does."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import weightsync as ws
from weightsync import errors
from weightsync._loader import lib

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("status", list(ws.Status))
def test_every_failure_has_the_class_of_its_range(status: ws.Status) -> None:
    assert lib.wsync_status_name(status).decode() == status.name
    if status < 0:
        wanted = {
            0: ws.CallerError,
            1: ws.PlanMismatch,
            2: ws.EnvironmentProblem,
            3: ws.TransferFailed,
            4: ws.TransportLost,
            5: ws.InternalError,
        }[-status // 20]
        assert errors.error_class(status) is wanted
        assert bool(lib.wsync_status_is_transport_lost(status)) in (
            wanted is ws.TransportLost,
            status <= -100,
        )


def test_details_are_kept() -> None:
    with pytest.raises(ws.PlanMismatch) as caught:
        ws.Layout.from_json("{")
    error = caught.value
    assert error.status is ws.Status.LAYOUT_INVALID
    assert (error.rank, error.native_code, error.outcome) == (None, 0, None)
    assert str(error).startswith("LAYOUT_INVALID: ")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.status) == (type(error), str(error), error.status)
    assert issubclass(ws.CallerError, ValueError)


def test_an_unknown_status_stays_a_number() -> None:
    error = errors.error_class(-99)("later", -99)
    assert isinstance(error, ws.TransportLost) and error.status == -99
    assert str(error) == "-99: later"


def load(library: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WSYNC_LIBRARY": library}
    return subprocess.run(
        [sys.executable, "-c", "import weightsync"],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_library_that_is_missing_or_another_one() -> None:
    done = load("/nowhere/libweightsync.so.0")
    assert done.returncode and "cannot load /nowhere/libweightsync.so.0" in done.stderr
    assert "from WSYNC_LIBRARY" in done.stderr
    done = load("libc.so.6")
    assert done.returncode and "is not libweightsync" in done.stderr


def test_a_library_with_another_interface(tmp_path: Path) -> None:
    source = tmp_path / "other.c"
    source.write_text("unsigned wsync_abi_version(void) { return 7; }\n")
    other = tmp_path / "libother.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(other), str(source)], check=True)
    done = load(str(other))
    assert "has binary interface 7; the package in" in done.stderr
    source.write_text("unsigned wsync_abi_version(void) { return 0; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(other), str(source)], check=True)
    assert "lacks wsync_version: it is older than this package" in load(str(other)).stderr


def test_versions_are_equal() -> None:
    cargo = (REPOSITORY / "Cargo.toml").read_text()
    version = re.search(r'^version = "(.+)"$', cargo, flags=re.M)
    assert version is not None
    assert ws.__version__ == ws.library_version() == version.group(1)


def test_environment_and_log() -> None:
    known = {entry.name: entry for entry in ws.env()}
    assert "WSYNC_LOG" in known and known["WSYNC_LOG"].meaning
    lines: list[str] = []
    ws.set_log(lambda level, line: lines.append(line), "debug")
    ws.set_log(None)
    with pytest.raises(ValueError, match="LogLevel"):
        ws.set_log(None, "loud")


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match="-1 seconds"):
        with ws.Transport.loopback(0, 1) as transport:
            transport.meet([], timeout=-1)
    with pytest.raises(ws.CallerError):
        ws.Transport.loopback(5, 2)
    with pytest.raises(ValueError, match="NUL"):
        with ws.Transport.loopback(0, 1) as transport:
            transport.abort("a\0b")

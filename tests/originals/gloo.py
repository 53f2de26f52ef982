"""Processes that are ranks of torch.distributed, over gloo on this machine."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent

#: Seconds that ranks wait for each other, and that all of them may take.
COLLECTIVE, ALL = 120, 900


def join() -> int:
    """Makes this process the rank that `spawn` started it as."""
    import torch

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=COLLECTIVE)
    )
    return rank


def spawn(program: str, world: int, cases: dict[str, Any], folder: pathlib.Path) -> None:
    """Runs `world` ranks of `program` on the cases; their files go into `folder`."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(HERE / program), str(file), str(folder)]
    logs = [(folder / f"{rank}.log").open("w") for rank in range(world)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(r)}, stdout=log, stderr=log)
        for r, log in enumerate(logs)
    ]
    try:
        wait(ranks, [pathlib.Path(log.name) for log in logs])
    finally:
        for process, log in zip(ranks, logs):
            process.kill()
            process.wait()
            log.close()


def wait(ranks: list[subprocess.Popen[bytes]], logs: list[pathlib.Path]) -> None:
    """Until all have ended well; the first that did not is an error at once."""
    end = time.monotonic() + ALL
    while any(process.poll() is None for process in ranks):
        for rank, process in enumerate(ranks):
            if process.poll():
                raise AssertionError(f"rank {rank} ended with {process.poll()}: {tail(logs[rank])}")
        if time.monotonic() > end:
            late = [rank for rank, process in enumerate(ranks) if process.poll() is None]
            raise AssertionError(f"ranks {late} took more than {ALL} s: {tail(logs[late[0]])}")
        time.sleep(0.05)
    for rank, process in enumerate(ranks):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}: {tail(logs[rank])}"


def tail(log: pathlib.Path) -> str:
    return log.read_text()[-2000:]

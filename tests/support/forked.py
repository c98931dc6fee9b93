"""Run commands in processes that fork_server.py forks: they start at once, without 5 s of imports each.

tests/pipeline/test_processes.py and tests/training/test_fsdp.py start processes with a launcher, as users do.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.support import ROOT
from tests.support.helpers import HANG_SECONDS

Done = subprocess.CompletedProcess[str]


def free_port() -> int:
    """Return a free port below the range from which the system assigns ports to other tests."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port


def process_group(processes: int) -> list[dict[str, str]]:
    """Return the environment variables with which torchrun starts each of several processes on one machine."""
    count = str(processes)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": "1"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def forked(command: Sequence[object], folder: Path, processes: int = 1, **environment: str) -> Done:
    """Run [script, *arguments] or ["-m", module, *arguments] in `folder`; the exit code is the first that is not 0."""
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with tempfile.TemporaryDirectory() as scratch:
        output, errors = Path(scratch, "output"), Path(scratch, "errors")
        request = {
            "command": list(map(str, command)), "folder": str(folder), "output": str(output), "errors": str(errors),
            "environments": [
                {**inherited, **variables, **environment}
                for variables in (process_group(processes) if processes > 1 else [{}])
            ],
        }  # fmt: skip
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], HANG_SECONDS)[0]:
            server.kill()
            raise TimeoutError(f"{command} takes longer than {HANG_SECONDS} s")
        codes = json.loads(server.stdout.readline())
        return Done(request["command"], next(filter(None, codes), 0), output.read_text(), errors.read_text())


@cache
def _server() -> subprocess.Popen[str]:
    """Start the process that forks, with an empty cache folder: the libraries read HF_HOME when they are imported."""
    caches = tempfile.TemporaryDirectory()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server"], cwd=ROOT, text=True,
        env={**os.environ, "HF_HOME": caches.name}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def close() -> None:
        server.communicate(timeout=HANG_SECONDS)
        caches.cleanup()

    atexit.register(close)
    return server

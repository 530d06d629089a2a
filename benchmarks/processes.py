"""How a process of the benchmark is started, found listening, and ended for certain."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "HOST",
    "ROOT",
    "StartError",
    "free_port",
    "listening_ports",
    "output_of",
    "resident_kib",
    "running",
]

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
"""The checkout: `benchmarks` and `sidecar` are importable from here."""

_START_SECONDS = 15.0
_STOP_SECONDS = 3.0
_LOWEST_PORT = 20_000  # below the ephemeral range, so that no client's port is in the way
_HIGHEST_PORT = 32_000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TCP_LISTEN = "0A"  # TCP_LISTEN of net/tcp_states.h, as /proc/net/tcp prints it
_libc = ctypes.CDLL(None)


class StartError(Exception):
    """A process that ended, or did not listen in time.

    Args:
        name: Which.
        log: The file with its output.
    """

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(name, log)
        self.name = name
        self.log = log

    def __str__(self) -> str:
        """Say which, with the end of its output."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-2:]
        return f"{self.name} did not start: " + (" / ".join(lines) or "it printed nothing")


@contextmanager
def running(
    name: str, command: Sequence[str], directory: Path, ports: Iterable[int]
) -> Iterator[int]:
    """Run a process until the block ends; it dies with this one even on SIGKILL.

    Args:
        name: What to call it and its log file.
        command: With arguments.
        directory: Where its log goes.
        ports: Where it must listen before the block begins.

    Yields:
        Its process id.

    Raises:
        StartError: It ended, or did not listen within 15 s.
    """
    log = directory / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
        ) as process,
    ):
        try:
            wanted = set(ports)
            deadline = time.monotonic() + _START_SECONDS
            while not wanted <= listening_ports(Path("/proc/net/tcp").read_text("ascii")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StartError(name, log)
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """Return a port on which nothing listens, outside the ephemeral range."""
    while True:
        port = _LOWEST_PORT + randbelow(_HIGHEST_PORT - _LOWEST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


def listening_ports(proc_net_tcp: str) -> set[int]:
    """Return the IPv4 ports that are listened on.

    Args:
        proc_net_tcp: The text of /proc/net/tcp (proc_net_tcp.rst of the kernel's documentation).
    """
    fields = (line.split() for line in proc_net_tcp.splitlines()[1:])
    return {int(row[1].partition(":")[2], 16) for row in fields if row[3] == _TCP_LISTEN}


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process and its children, in KiB, exactly.

    From smaps_rollup: the figures of /proc/PID/status are rounded per processor.
    """
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Rss:"):
            total += int(line.split()[1])
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
        total += resident_kib(int(child))
    return total


def output_of(*command: str) -> str:
    """Return what a short command prints on both outputs; empty if it can't be run."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
            text=True,
            errors="replace",
        )
    except OSError:
        return ""
    return done.stdout

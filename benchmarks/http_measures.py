"""How each figure of `http` is measured at one proxy, and what the proxy's processor time is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from enum import Enum
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.http_client import BIG_BYTES, IN_FLIGHT, big_digest
from benchmarks.measures import MeasureError, figures_of, wrk_rate
from benchmarks.origins import HTTP_BODY
from benchmarks.processes import HOST, ROOT
from benchmarks.stats import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.http_client import Way

__all__ = [
    "BUSY",
    "COST",
    "FIGURES",
    "Measure",
    "big_file",
    "check",
    "cost",
    "take",
    "tree_seconds",
    "wrk_latency_us",
    "wrk_seconds",
]

_TICKS = os.sysconf("SC_CLK_TCK")
_TIMEOUT_SECONDS = 60  # 100 MiB take proxy.py ten
_PIECE = 1 << 20
_MICROSECONDS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000}


class Measure(Enum):
    """What --only chooses from."""

    KEEP_ALIVE = "keep-alive"
    CLOSE = "close"
    CONNECT = "connect"
    LATENCY = "latency"
    GET = "get"
    TUNNEL = "tunnel"

    @property
    def tunnels(self) -> bool:
        """Whether it takes a proxy that knows CONNECT."""
        return self in {Measure.CONNECT, Measure.TUNNEL}

    @property
    def needs_wrk(self) -> bool:
        """Whether wrk is its client."""
        return self in {Measure.KEEP_ALIVE, Measure.CLOSE}


FIGURES: dict[Measure, tuple[Figure, ...]] = {
    Measure.KEEP_ALIVE: (
        Figure("keep_alive", "keep-alive, requests/s", "more", 0),
        Figure("keep_alive_p50", "… p50 of them, µs", "less", 0),
        Figure("keep_alive_p99", "… p99 of them, µs", "less", 0),
    ),
    Measure.CLOSE: (
        Figure("close", "close, requests/s", "more", 0),
        Figure("close_p50", "… p50 of them, µs", "less", 0),
        Figure("close_p99", "… p99 of them, µs", "less", 0),
    ),
    Measure.CONNECT: (Figure("connect", "CONNECT set-ups/s", "more", 0),),
    Measure.LATENCY: (
        Figure("latency_p50", "one client, p50, µs", "less", 0),
        Figure("latency_p99", "one client, p99, µs", "less", 0),
    ),
    Measure.GET: (Figure("get", "100 MiB by GET, Gbit/s", "more", 1),),
    Measure.TUNNEL: (Figure("tunnel", "100 MiB in a tunnel, Gbit/s", "more", 1),),
}
"""What each measure gives, in its order."""

COST: dict[Measure, Figure] = {
    Measure.KEEP_ALIVE: Figure("keep_alive_cost", "… its processor time each, µs", "less", 0),
    Measure.CLOSE: Figure("close_cost", "… its processor time each, µs", "less", 0),
    Measure.CONNECT: Figure("connect_cost", "… its processor time each, µs", "less", 0),
    Measure.GET: Figure("get_cost", "… its processor time, ms", "less", 0),
    Measure.TUNNEL: Figure("tunnel_cost", "… its processor time, ms", "less", 0),
}
"""What one request, or 100 MiB, takes of the proxy's processor time."""

BUSY: dict[Measure, Figure] = {
    measure: Figure(f"{figures[0].key}_busy", "processor time of the proxy, %", "less", 0)
    for measure, figures in FIGURES.items()
}
"""The proxy's processor time during each, in percent of one processor's."""


def big_file(path: Path) -> str:
    """Write 100 MiB that no proxy could make up.

    Returns:
        Their SHA-256.
    """
    hashed = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(BIG_BYTES // _PIECE):
            piece = os.urandom(_PIECE)
            hashed.update(piece)
            file.write(piece)
    return hashed.hexdigest()


def check(way: Way, digest: str, *, tunnels: bool) -> None:
    """Prove that both pages come through as they are, by GET and, if it has any, in a tunnel.

    Raises:
        MeasureError: They don't.
    """
    connection = HTTPConnection(HOST, way.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", f"http://{way.origin}/", headers={"Host": way.origin})
        answer = connection.getresponse()
        if (answer.status, answer.read()) != (200, HTTP_BODY):
            raise MeasureError(f"status {answer.status}, or not the origin's page")
        for tunnel in [False, True] if tunnels else [False]:
            if big_digest(way, tunnel=tunnel) != digest:
                raise MeasureError(f"100 MiB {'in a tunnel' if tunnel else 'by GET'} differ")
    except (OSError, HTTPException) as error:
        raise MeasureError(f"does not proxy: {error}") from error
    finally:
        connection.close()


def take(
    measure: Measure, way: Way, pid: int | None, seconds: int, script: Path
) -> list[tuple[Figure, float]]:
    """Measure one proxy once.

    Args:
        measure: What.
        way: Through it.
        pid: Its process; None for no proxy.
        seconds: For how long.
        script: A file for wrk.

    Raises:
        MeasureError: There is no figure.
    """
    before = 0.0 if pid is None else tree_seconds(pid)
    if measure.needs_wrk:
        output = _wrk(way, seconds, script, close=measure is Measure.CLOSE)
        rate, elapsed = wrk_rate(output if way.lasts else _forgiven(output)), wrk_seconds(output)
        values = [rate, wrk_latency_us(output, 50), wrk_latency_us(output, 99)]
    else:
        elapsed, *values = _client(measure, way, seconds)
    figures = list(zip(FIGURES[measure], values, strict=True))
    if pid is not None:
        busy = (tree_seconds(pid) - before) / elapsed
        figures.append((BUSY[measure], 100 * busy))
        if measure in COST:
            figures.append((COST[measure], cost(measure, busy, values[0])))
    return figures


def cost(measure: Measure, busy: float, value: float) -> float:
    """Return the processor time of one request, in µs, or of 100 MiB, in ms.

    Args:
        measure: Which has one.
        busy: Processor seconds a second.
        value: Requests a second, or Gbit/s.
    """
    if measure in {Measure.GET, Measure.TUNNEL}:
        return busy * 1_000 * BIG_BYTES * 8 / (value * 1_000_000_000)
    return busy * 1_000_000 / value


def _wrk(way: Way, seconds: int, script: Path, *, close: bool) -> str:
    script.write_text(f"""\
wrk.path = "http://{way.origin}/"
wrk.headers["Host"] = "{way.origin}"
""")
    command = ["wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{seconds}s", "--latency", "-s", str(script)]
    if close:
        command += ["-H", "Connection: close"]
    return _output([*command, f"http://{HOST}:{way.port}/"], seconds)


def _forgiven(output: str) -> str:
    """Drop wrk's count of the connections that were over before the next request's answer."""
    return re.sub(r"Socket errors: connect 0, read \d+, write 0, timeout 0", "", output)


def _client(measure: Measure, way: Way, seconds: int) -> list[float]:
    described = json.dumps(asdict(way))
    command = [sys.executable, "-m", "benchmarks.http_client"]
    return figures_of(_output([*command, measure.value, described, str(seconds)], seconds))


def _output(command: Sequence[str], seconds: int) -> str:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + _TIMEOUT_SECONDS,
            cwd=ROOT,
            check=False,
            text=True,
            errors="replace",
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"not done in {error.timeout:.0f} s") from error


def wrk_latency_us(output: str, percent: int) -> float:
    """Return a percentile that wrk --latency printed, in µs.

    Raises:
        MeasureError: It printed none.
    """
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
    if found is None:
        raise MeasureError(f"wrk printed no {percent}%: {output[:100]!r}")
    return float(found[1]) * _MICROSECONDS[found[2]]


def wrk_seconds(output: str) -> float:
    """Return for how long wrk measured.

    Raises:
        MeasureError: It doesn't say.
    """
    found = re.search(r"requests in ([\d.]+)(us|ms|s|m),", output)
    if found is None:
        raise MeasureError(f"wrk printed no time: {output[:100]!r}")
    return float(found[1]) * _MICROSECONDS[found[2]] / _MICROSECONDS["s"]


def tree_seconds(pid: int) -> float:
    """Return the processor time of a process and its children, threads that ended included."""
    # proc_pid_stat(5): the name, in parentheses, may hold anything; utime and stime are 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    total = (int(fields[11]) + int(fields[12])) / _TICKS
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (thread / "children").read_text("ascii").split()
        except OSError:  # the thread has ended
            continue
        total += sum(tree_seconds(int(child)) for child in children)
    return total

"""How each figure is measured at one port (or of one process)."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

from benchmarks.origins import HTTP_BODY
from benchmarks.processes import HOST, ROOT, resident_kib
from benchmarks.stats import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BULK_FROM_SERVER",
    "BULK_TO_SERVER",
    "CONNECTION_RATE",
    "IDLE_MEMORY",
    "LATENCY_P50",
    "LATENCY_P99",
    "MeasureError",
    "bulk_gbits",
    "check_echo",
    "check_http",
    "client_figures",
    "connections_per_second",
    "figures_of",
    "idle_kib",
    "iperf_gbits",
    "latency_us",
    "raise_descriptor_limit",
    "wrk_rate",
]

BULK_TO_SERVER = Figure("bulk_to_server", "bulk to server, Gbit/s", "more", 1)
BULK_FROM_SERVER = Figure("bulk_from_server", "bulk from server, Gbit/s", "more", 1)
LATENCY_P50 = Figure("latency_p50", "request/response p50, µs", "less", 1)
LATENCY_P99 = Figure("latency_p99", "request/response p99, µs", "less", 1)
CONNECTION_RATE = Figure("connections", "connections/s", "more", 0)
IDLE_MEMORY = Figure("idle_memory", "KiB per idle connection", "less", 2)

_IN_FLIGHT = 32
_WARM_UP_CONNECTIONS = 200
_IDLE_CONNECTIONS = 2_000
_SETTLE_SECONDS = 0.3
_TIMEOUT_SECONDS = 10.0
_BUSY_RETRIES = 5
_CHUNK_BYTES = 16_384
_CHUNKS = 64


class MeasureError(Exception):
    """A measurement that gave no figure; the text says why."""


def check_echo(port: int) -> None:
    """Prove that 1 MiB comes back through a port unchanged.

    Raises:
        MeasureError: It doesn't.
    """
    try:
        with socket.create_connection((HOST, port), _TIMEOUT_SECONDS) as connection:
            for _ in range(_CHUNKS):
                sent = os.urandom(_CHUNK_BYTES)
                connection.sendall(sent)
                if _receive(connection, _CHUNK_BYTES) != sent:
                    raise MeasureError("what came back is not what was sent")
    except OSError as error:
        raise MeasureError(f"does not relay: {error}") from error


def check_http(port: int) -> None:
    """Prove that the HTTP origin answers through a port.

    Raises:
        MeasureError: It doesn't.
    """
    connection = HTTPConnection(HOST, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/", headers={"Connection": "close"})
        if connection.getresponse().read() != HTTP_BODY:
            raise MeasureError("the page is not the origin's")
    except (OSError, HTTPException) as error:
        raise MeasureError(f"does not relay HTTP: {error}") from error
    finally:
        connection.close()


def _receive(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionResetError("closed early")
        received += part
    return bytes(received)


def bulk_gbits(port: int, seconds: int, *, from_server: bool) -> float:
    """Measure one stream with iperf3, as received, in Gbit/s.

    Raises:
        MeasureError: iperf3 reports an error.
    """
    command = ["iperf3", "-c", HOST, "-p", str(port), "-t", str(seconds), "-J"]
    if from_server:
        command.append("-R")
    for attempt in range(_BUSY_RETRIES):
        output = _run(command, seconds)
        # The server is done with the last test a moment after its client is.
        if "server is busy" not in output or attempt == _BUSY_RETRIES - 1:
            break
        time.sleep(0.2)
    return iperf_gbits(output)


def iperf_gbits(output: str) -> float:
    """Return the rate at which iperf3's receiver received, in Gbit/s.

    Args:
        output: What `iperf3 -J` printed.

    Raises:
        MeasureError: It is a report of an error, or none.
    """
    try:
        report = json.loads(output)
        if "error" in report:
            raise MeasureError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, KeyError) as error:
        raise MeasureError(f"iperf3 printed no result: {output[:100]!r}") from error


def latency_us(port: int, seconds: int) -> tuple[float, float]:
    """Measure 64 bytes there and back on one connection.

    Returns:
        p50 and p99, in µs.

    Raises:
        MeasureError: The connection did not last.
    """
    output = _run([sys.executable, "-m", "benchmarks.ping", str(port), str(seconds)], seconds)
    try:
        report = json.loads(output)
        return report["p50"] / 1000, report["p99"] / 1000
    except (ValueError, KeyError) as error:
        raise MeasureError(f"the ping client failed: {output.strip()[-100:]!r}") from error


def client_figures(module: str, arguments: Sequence[str], seconds: int) -> list[float]:
    """Run a client of ours that prints its figures as a JSON list.

    Args:
        module: Which, in this package.
        arguments: Its arguments but for the last, the seconds.
        seconds: For how long it measures.

    Raises:
        MeasureError: It printed something else: the end of its traceback.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, str(seconds)]
    return figures_of(_run(command, seconds))


def figures_of(output: str) -> list[float]:
    """Read the figures that a client of ours printed.

    Raises:
        MeasureError: There are none.
    """
    try:
        return [float(figure) for figure in json.loads(output)]
    except (ValueError, TypeError) as error:
        last = output.strip().rpartition("\n")[2]
        raise MeasureError(f"the client failed: {last or 'it printed nothing'}") from error


def connections_per_second(port: int, seconds: int) -> float:
    """Measure short HTTP exchanges, one per connection, 32 in flight, with wrk.

    Raises:
        MeasureError: wrk met errors, or printed no result.
    """
    command = ["wrk", "-t1", f"-c{_IN_FLIGHT}", f"-d{seconds}s", "-H", "Connection: close"]
    return wrk_rate(_run([*command, f"http://{HOST}:{port}/"], seconds))


def wrk_rate(output: str) -> float:
    """Return the requests per second that wrk counted.

    Args:
        output: What it printed.

    Raises:
        MeasureError: It counted errors, or nothing.
    """
    for failure in ("Socket errors:.*", "Non-2xx or 3xx responses:.*", "unable to connect.*"):
        if found := re.search(failure, output):
            raise MeasureError(f"wrk: {found[0]}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", output)
    if found is None or not float(found[1]):
        raise MeasureError(f"wrk printed no result: {output[:100]!r}")
    return float(found[1])


def idle_kib(pid: int, port: int) -> float:
    """Measure a fresh proxy's growth in resident memory per idle connection, in KiB.

    Each connection has carried 64 bytes there and back before it idles. 200 others,
    opened first and kept open, pay for what a process allocates once.

    Args:
        pid: The proxy's process.
        port: Where it relays to the echo origin.

    Raises:
        MeasureError: It did not take all connections.
    """
    with ExitStack() as connections:
        try:
            _open_connections(connections, port, _WARM_UP_CONNECTIONS)
            before = resident_kib(pid)
            _open_connections(connections, port, _IDLE_CONNECTIONS)
            return (resident_kib(pid) - before) / _IDLE_CONNECTIONS
        except OSError as error:
            raise MeasureError(f"idle connections: {error}") from error


def _open_connections(stack: ExitStack, port: int, count: int) -> None:
    message = b"i" * 64
    for _ in range(count):
        connection = socket.create_connection((HOST, port), _TIMEOUT_SECONDS)
        stack.enter_context(connection)
        connection.sendall(message)
        _receive(connection, len(message))
    time.sleep(_SETTLE_SECONDS)


def raise_descriptor_limit() -> str | None:
    """Raise this process's limit on descriptors, and its children's, to what is allowed.

    Returns:
        What to do if that is too little for the idle connections; None if it isn't.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = 2 * (_IDLE_CONNECTIONS + _WARM_UP_CONNECTIONS) + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        return f"needs {needed} descriptors and {hard} are allowed: ulimit -Hn {needed}"
    return None


def _run(command: Sequence[str], seconds: int) -> str:
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
        raise MeasureError(f"{command[0]} was not done in {error.timeout:.0f} s") from error

"""The client of `http`: `python -m benchmarks.http_client MEASURE WAY SECONDS`.

A process of its own. MEASURE is `latency`, `connect`, `get` or `tunnel`; WAY the
attributes of a `Way`, as JSON. What is printed is a JSON list: how long it took, in seconds,
then the figures.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import select
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.origins import HTTP_BODY
from benchmarks.processes import HOST
from benchmarks.stats import percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BIG_BYTES",
    "BIG_PATH",
    "IN_FLIGHT",
    "Way",
    "big_digest",
    "connect_rate",
    "content_length",
    "latencies",
    "transfers",
]

BIG_PATH = "/big"
BIG_BYTES = 100 << 20
IN_FLIGHT = 32

_TIMEOUT_SECONDS = 20
_WARM_UP = 100
_HEAD_BYTES = 65_536
_PIECE_BYTES = 262_144
_SECOND = 1_000_000_000
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_LASTS = re.compile(rb"\AHTTP/1\.1 (?!.*\r\nconnection:[ \t]*close)", re.IGNORECASE | re.DOTALL)
_OK = re.compile(rb"\AHTTP/1\.[01] 200 ")


@dataclass(frozen=True, slots=True)
class Way:
    """How an origin is got to.

    Attributes:
        port: The proxy's, or the origin's own.
        origin: The origin's authority, as requests name it.
        proxied: Whether that is a proxy.
        lasts: Whether a connection that it doesn't announce to be over isn't.
    """

    port: int
    origin: str
    proxied: bool = True
    lasts: bool = True

    def get(self, path: str, *, close: bool) -> bytes:
        """Return a request for the proxy; nginx takes it too."""
        return self._request(f"http://{self.origin}{path}", close=close)

    def get_within(self, path: str) -> bytes:
        """Return a request for a tunnel's far end."""
        return self._request(path, close=True)

    def _request(self, target: str, *, close: bool) -> bytes:
        last = "Connection: close\r\n" if close else ""
        return f"GET {target} HTTP/1.1\r\nHost: {self.origin}\r\n{last}\r\n".encode()

    def connect(self) -> bytes:
        """Return the request for a tunnel."""
        return f"CONNECT {self.origin} HTTP/1.1\r\nHost: {self.origin}\r\n\r\n".encode()

    def open(self) -> socket.socket:
        """Connect to the proxy, or to the origin."""
        connection = socket.socket()
        # In the kernel: a Python timeout would cost a poll() per call.
        patience = _TIMEOUT_SECONDS.to_bytes(8, sys.byteorder) + bytes(8)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        connection.connect((HOST, self.port))
        return connection


def content_length(head: bytes) -> int | None:
    """Return the length that a head of status 200 announces; None: until the end.

    Raises:
        ConnectionError: Another status.
    """
    if not _OK.match(head):
        raise ConnectionError(f"the answer was {head[:80]!r}")
    found = _LENGTH.search(head)
    return int(found[1]) if found else None


def _receive_head(connection: socket.socket) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(_HEAD_BYTES)
        if not data:
            raise ConnectionError(f"closed after {received[:80]!r}")
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def latencies(way: Way, seconds: int) -> list[int]:
    """Ask for the small page again and again, on one connection where that lasts.

    Where the proxy ends it, what the next one takes is a part of the next answer's time.

    Returns:
        Each answer's nanoseconds, ascending.
    """
    request = way.get("/", close=False)
    times: list[int] = []
    connection: socket.socket | None = None
    gc.disable()
    end = perf_counter_ns() + seconds * _SECOND
    while True:
        before = perf_counter_ns()
        if connection is None:
            connection = way.open()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        head, body = _receive_head(connection)
        length = content_length(head)
        while length is None or len(body) < length:
            data = connection.recv(_HEAD_BYTES)
            if not data:
                break
            body += data
        now = perf_counter_ns()
        if body != HTTP_BODY:
            raise ConnectionError(f"the page was {body[:80]!r}")
        times.append(now - before)
        if length is None or not _LASTS.match(head) or not way.lasts:
            connection.close()
            connection = None
        if now >= end and len(times) > _WARM_UP:
            return sorted(times[_WARM_UP:])


def connect_rate(way: Way, seconds: int) -> tuple[float, float]:
    """Keep 32 connections in flight: connect, CONNECT, read 200, close.

    Without a proxy, a GET takes CONNECT's place: what the client itself can do.

    Returns:
        How long that took, in seconds, and how many ended a second.
    """
    request = way.connect() if way.proxied else way.get("/", close=False)
    poll = select.epoll()
    connections: dict[int, socket.socket] = {}

    def open_one() -> None:
        connection = way.open()
        connection.send(request)
        connections[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)

    gc.disable()
    began = perf_counter_ns()
    end = began + seconds * _SECOND
    for _ in range(IN_FLIGHT):
        open_one()
    count = 0
    while (now := perf_counter_ns()) < end or not count:
        ready = poll.poll(_TIMEOUT_SECONDS)
        if not ready:
            raise TimeoutError("no connection was answered")
        for descriptor, _ in ready:
            connection = connections.pop(descriptor)
            _receive_200(connection)
            connection.close()
            count += 1
            open_one()
    for connection in connections.values():
        connection.close()
    return (now - began) / _SECOND, count * _SECOND / (now - began)


def _receive_200(connection: socket.socket) -> bytes:
    head, rest = _receive_head(connection)
    content_length(head)
    return rest


@contextmanager
def _asked(way: Way, *, tunnel: bool) -> Iterator[tuple[socket.socket, bytes]]:
    """Ask for the 100 MiB: the connection, and what of the body is there."""
    with way.open() as connection:
        if tunnel and way.proxied:
            connection.sendall(way.connect())
            if _receive_200(connection):
                raise ConnectionError("the tunnel spoke first")
            connection.sendall(way.get_within(BIG_PATH))
        else:
            connection.sendall(way.get(BIG_PATH, close=True))
        head, body = _receive_head(connection)
        if content_length(head) != BIG_BYTES:
            raise ConnectionError(f"the answer was {head!r}")
        yield connection, body


def transfers(way: Way, seconds: int, *, tunnel: bool) -> tuple[float, float]:
    """Get 100 MiB, each time on a new connection, until the time is over.

    Args:
        way: Where.
        seconds: For at least how long; the last one is finished.
        tunnel: Through a tunnel (where there is a proxy).

    Returns:
        How long that took, in seconds, and Gbit/s.
    """
    buffer = bytearray(_PIECE_BYTES)
    count = 0
    began = perf_counter_ns()
    end = began + seconds * _SECOND
    while (now := perf_counter_ns()) < end or not count:
        with _asked(way, tunnel=tunnel) as (connection, body):
            received = len(body)
            while received < BIG_BYTES:
                got = connection.recv_into(buffer)
                if not got:
                    raise ConnectionError(f"closed after {received} bytes")
                received += got
        count += received
    return (now - began) / _SECOND, count * 8 / (now - began)


def big_digest(way: Way, *, tunnel: bool) -> str:
    """Return the SHA-256 of the 100 MiB as they come through."""
    with _asked(way, tunnel=tunnel) as (connection, body):
        hashed = hashlib.sha256(body)
        received = len(body)
        while received < BIG_BYTES and (data := connection.recv(_PIECE_BYTES)):
            hashed.update(data)
            received += len(data)
    return hashed.hexdigest()


def _main(measure: str, way_json: str, seconds: str) -> None:
    way, duration = Way(**json.loads(way_json)), int(seconds)
    figures: tuple[float, ...]
    if measure == "latency":
        times = latencies(way, duration)
        figures = (duration, percentile(times, 50) / 1000, percentile(times, 99) / 1000)
    elif measure == "connect":
        figures = connect_rate(way, duration)
    else:
        figures = transfers(way, duration, tunnel=measure == "tunnel")
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])

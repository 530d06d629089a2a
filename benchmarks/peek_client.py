"""The client of `peek`: `python -m benchmarks.peek_client rate|answer|bulk HOST PORT SECONDS`.

A process of its own. Each connection begins with the same ClientHello, the one that
this Python's OpenSSL makes for `NAME`; no handshake follows, so that what is measured
is the way to the origin and not cryptography. Prints its result as JSON.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import ssl
import sys
from time import perf_counter_ns

from benchmarks.stats import percentile

__all__ = ["ANSWER", "END", "IN_FLIGHT", "NAME", "answer_times", "bulk", "client_hello", "rate"]

NAME = "localhost"
"""What the hello asks for: the one name that every machine resolves without a server."""

ANSWER = b"ok\n"
"""What the origin says once it has read the hello, before it closes."""

END = 0xFF
"""The last byte of bulk, and no other's. The end of the stream is no sign: not every proxy
hands on one direction's end while the other is open."""

IN_FLIGHT = 32
_TIMEOUT_SECONDS = 5.0
_WARM_UP = 50
_CHUNK = bytes(1 << 18)
_READ_BYTES = 64
_SECOND = 1_000_000_000

_Address = tuple[str, int]


def client_hello() -> bytes:
    """Return a ClientHello for `NAME`, with ALPN as a browser's, in its TLS record."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("no handshake ends without a server")


def rate(address: _Address, seconds: int) -> float:
    """Keep 32 connections in flight, each until the origin has answered and closed.

    Returns:
        How many ended a second.
    """
    hello = client_hello()
    poll = select.epoll()
    connections: dict[int, tuple[socket.socket, bytearray]] = {}

    def open_one() -> None:
        connection = _open(address, hello)
        connections[connection.fileno()] = (connection, bytearray())
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
            connection, received = connections[descriptor]
            data = connection.recv(_READ_BYTES)
            if data:
                received += data
                continue
            _check(received)
            del connections[descriptor]
            connection.close()
            count += 1
            open_one()
    return count * _SECOND / (now - began)


def answer_times(address: _Address, seconds: int) -> list[int]:
    """Connect, one connection at a time, until the answer is there.

    Returns:
        Each one's nanoseconds, connecting included, ascending.
    """
    hello = client_hello()
    times: list[int] = []
    gc.disable()
    end = perf_counter_ns() + seconds * _SECOND
    while True:
        before = perf_counter_ns()
        with _open(address, hello) as connection:
            received = connection.recv(_READ_BYTES)
            now = perf_counter_ns()
            times.append(now - before)
            while data := connection.recv(_READ_BYTES):
                received += data
            _check(received)
        if now >= end and len(times) > _WARM_UP:
            return sorted(times[_WARM_UP:])


def bulk(address: _Address, seconds: int) -> float:
    """Send as much as possible after the hello, to `benchmarks.peek_sink`.

    Returns:
        Gbit/s, as received: until the sink has counted the last byte.
    """
    hello = client_hello()
    while hello[-1] == END:
        hello = client_hello()
    with _open(address, hello) as connection:
        began = perf_counter_ns()
        end = began + seconds * _SECOND
        while perf_counter_ns() < end:
            connection.sendall(_CHUNK)
        connection.sendall(bytes([END]))
        counted = int(connection.makefile("rb").read())
        return counted * 8 / (perf_counter_ns() - began)


def _open(address: _Address, hello: bytes) -> socket.socket:
    connection = socket.socket()
    # In the kernel: a Python timeout would cost a poll() per call.
    patience = int(_TIMEOUT_SECONDS).to_bytes(8, sys.byteorder) + bytes(8)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
    connection.connect(address)
    connection.send(hello)
    return connection


def _check(received: bytes | bytearray) -> None:
    if received != ANSWER:
        raise ConnectionError(f"the answer was {bytes(received)!r}")


def _main(measure: str, host: str, port: str, seconds: str) -> None:
    address, duration = (host, int(port)), int(seconds)
    if measure == "rate":
        figures = [rate(address, duration)]
    elif measure == "answer":
        times = answer_times(address, duration)
        figures = [percentile(times, 50) / 1000, percentile(times, 99) / 1000]
    else:
        figures = [bulk(address, duration)]
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])

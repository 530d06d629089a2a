"""A client that is denied in every way, and takes the time: from connecting to being told.

    python -m benchmarks.exec_denials HOST PORT TIMES

prints the milliseconds of each of `WAYS`, medians over so many times, as a JSON list. Whoever
is served, or hears nothing, is an error.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import time
from functools import cache, partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.peek_client import client_hello

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAME", "WAYS", "main"]

NAME = "denied.example"
_SERVER = ("127.0.0.53", 53)
_TIMEOUT = 10.0
_NXDOMAIN = 3
_ALERT = 21
# Times that don't count: the first finds a proxy that is just up.
_FIRST = 3

_Address = tuple[str, int]


def _connected(address: _Address, said: bytes) -> bytes:
    """What is answered up to the end; nothing if that is a reset."""
    heard = b""
    try:
        with socket.create_connection(address, _TIMEOUT) as connection:
            if said:
                connection.sendall(said)
            while part := connection.recv(65536):
                heard += part
    except ConnectionResetError:
        return b""
    if not heard:
        raise ConnectionError("closed without a word")
    return heard


@cache
def _hello() -> bytes:
    return client_hello()


def _http(address: _Address) -> None:
    request = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
    with socket.create_connection(address, _TIMEOUT) as connection:
        connection.sendall(request)
        heard = b""
        # It may leave the connection open, for another request.
        while not _is_whole(heard):
            part = connection.recv(65536)
            if not part:
                raise ConnectionError("no whole answer")
            heard += part
    if not heard.startswith(b"HTTP/1.1 403 "):
        raise ConnectionError("no 403")


def _is_whole(heard: bytes) -> bool:
    head, blank, body = heard.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(blank) and len(body) >= (int(length[1]) if length else 0)


def _tls(address: _Address) -> None:
    if _connected(address, _hello())[:1] != bytes([_ALERT]):
        raise ConnectionError("no alert")


def _reset(address: _Address, said: bytes) -> None:
    if _connected(address, said):
        raise ConnectionError("no reset")


def _question() -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
    # A recursive question for A, in IN: RFC 1035 §4.1.
    return struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)


def _check(answer: bytes) -> None:
    if answer[3] & 0xF != _NXDOMAIN:
        raise ConnectionError("no NXDOMAIN")


def _dns_udp(_: _Address) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_TIMEOUT)
        asking.connect(_SERVER)
        asking.send(_question())
        _check(asking.recv(4096))


def _dns_tcp(_: _Address) -> None:
    question = _question()
    with socket.create_connection(_SERVER, _TIMEOUT) as asking:
        asking.sendall(struct.pack(">H", len(question)) + question)
        asking.recv(2, socket.MSG_WAITALL)
        _check(asking.recv(4096))


def _libc(_: _Address) -> None:
    try:
        socket.getaddrinfo(NAME, 443, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return
    raise ConnectionError("the name has an address")


WAYS: dict[str, Callable[[_Address], None]] = {
    "http": _http,
    "tls": _tls,
    "other": partial(_reset, said=b"SSH-2.0-benchmark\r\n"),
    "silent": partial(_reset, said=b""),
    "dns_udp": _dns_udp,
    "dns_tcp": _dns_tcp,
    "getaddrinfo": _libc,
}


def main() -> int:
    """Be denied."""
    host, port, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    found = []
    for way in WAYS.values():
        taken = []
        for _ in range(_FIRST + times):
            began = time.perf_counter()
            way((host, port))
            taken.append((time.perf_counter() - began) * 1000)
        found.append(median(taken[_FIRST:]))
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Servers that sidecar relays to, each a few lines, in threads of the test's own process."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from integration.netns import DEADLINE

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from integration.netns import Namespace
    from typing_extensions import Self

__all__ = [
    "BULK_SIZE",
    "PAGE",
    "Origin",
    "answer_after_eof",
    "bulk",
    "bulk_digest",
    "bulk_source",
    "digest_of",
    "digest_sink",
    "echo",
    "http_page",
    "received",
    "some",
]

PAGE = "a page from an address that no listener names\n"

_BLOCK = 1024 * 1024
BULK_SIZE = 200 * _BLOCK
_SERIAL = 8  # bytes at the head of each block, so that no two blocks are alike


class Origin:
    """A TCP server on exactly one address, a thread per connection.

    Args:
        namespace: Where.
        address: On which address and port.
        handle: Talks on an accepted socket; the server closes it afterwards.

    Attributes:
        peers: From where each connection came, in order.
    """

    def __init__(
        self, namespace: Namespace, address: SocketAddress, handle: Callable[[socket.socket], None]
    ) -> None:
        self.peers: list[SocketAddress] = []
        self._handle = handle
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._listener = namespace.listen(address)
        # Shutting the listener down is what ends accept().
        self._listener.settimeout(None)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(DEADLINE)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE)
        if error is None and self._failures:
            raise self._failures[0]

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            connection.settimeout(DEADLINE)
            self.peers.append(SocketAddress.from_kernel(peer))
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._handle(connection)
            except BaseException as error:  # noqa: BLE001 - the test's thread raises it
                self._failures.append(error)


def received(connection: socket.socket) -> bytes:
    """Read to the end of what the peer sends."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def http_page(connection: socket.socket) -> None:
    """Answer one HTTP request with `PAGE`."""
    request = b""
    while b"\r\n\r\n" not in request:
        part = connection.recv(65536)
        if not part:
            return
        request += part
    body = PAGE.encode()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def echo(connection: socket.socket) -> None:
    """Send back whatever comes, until the peer ends or resets."""
    with suppress(ConnectionResetError, BrokenPipeError):
        while part := connection.recv(65536):
            connection.sendall(part)


def answer_after_eof(connection: socket.socket) -> None:
    """Say nothing until the peer has said all, then say what it was."""
    connection.sendall(b"you said: " + received(connection))


def bulk() -> Iterator[memoryview]:
    """Make `BULK_SIZE` bytes, the same in each call, in blocks of 1 MiB, no two of them alike."""
    block = bytearray(_noise())
    for serial in range(BULK_SIZE // _BLOCK):
        block[:_SERIAL] = serial.to_bytes(_SERIAL, "big")
        yield memoryview(block)


@cache
def _noise() -> bytes:
    # Seeded: server and client may both be the first to ask.
    return random.Random(_BLOCK).randbytes(_BLOCK)  # noqa: S311 - only has to be hard to compress


@cache
def bulk_digest() -> str:
    """Compute the SHA-256 of `bulk`."""
    digest = hashlib.sha256()
    for block in bulk():
        digest.update(block)
    return digest.hexdigest()


def some(size: int) -> bytes:
    """Make up to 1 MiB of the same bytes that `bulk` begins with."""
    return _noise()[:size]


def digest_of(connection: socket.socket) -> str:
    """Compute the SHA-256 of everything that the peer sends."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    while size := connection.recv_into(buffer):
        digest.update(buffer[:size])
    return digest.hexdigest()


def bulk_source(connection: socket.socket) -> None:
    """Send `bulk`."""
    for block in bulk():
        connection.sendall(block)


def digest_sink(connection: socket.socket) -> None:
    """Answer all that the peer sends with its SHA-256."""
    connection.sendall(digest_of(connection).encode())

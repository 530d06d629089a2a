"""The servers that clients are on their way to, and what they see."""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Kind", "Origin", "Visit"]

# linux/in6.h: bind to an address that is this host's by a route only.
_IPV6_FREEBIND = 78
# Seconds; no client here takes milliseconds.
_PATIENCE = 5.0
_CHUNK_OCTETS = 65536


class Kind(Enum):
    """What a server does."""

    HTTP = "http"
    """Answers any request with one page."""
    GREETING = "greeting"
    """Speaks first, then listens."""
    COUNT = "count"
    """Answers only once the client has ended its half of the connection."""


@dataclass(frozen=True)
class Visit:
    """One connection, as the server saw it.

    Attributes:
        peer: Who connected.
        by_proxy: Whether that socket was one of the proxy's.
        received: Octets that came.
        sent: Octets that went.
        text: What the server had to say, without the protocol round it.
    """

    peer: SocketAddress
    by_proxy: bool
    received: int
    sent: int
    text: str


class Origin:
    """A server in a thread of its own, serving one connection after the other.

    Args:
        kind: What it does.
        address: Where it listens.
        by_proxy: Told the two ends of a connection's far socket; says whether that
            is the proxy's.

    Attributes:
        kind: What it does.
        address: Where it listens.
    """

    def __init__(
        self,
        kind: Kind,
        address: SocketAddress,
        by_proxy: Callable[[SocketAddress, SocketAddress], bool],
    ) -> None:
        self.kind = kind
        self.address = address
        self._by_proxy = by_proxy
        self._visits: queue.SimpleQueue[Visit] = queue.SimpleQueue()
        self._listener = socket.socket(address.family, socket.SOCK_STREAM)
        if address.family == socket.AF_INET6:
            self._listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        self._listener.bind((address.host, address.port))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        with suppress(OSError):
            # Wakes accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def visits(self, wait: float = 0) -> list[Visit]:
        """The connections that have ended since the last call.

        Args:
            wait: Seconds to wait for the first one.
        """
        found = []
        with suppress(queue.Empty):
            found.append(self._visits.get(timeout=wait) if wait else self._visits.get_nowait())
            while True:
                found.append(self._visits.get_nowait())
        return found

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            # What the client did to make this fail is for the checks to say.
            with connection, suppress(OSError):
                connection.settimeout(_PATIENCE)
                self._visits.put(self._converse(connection, SocketAddress.from_kernel(peer)))

    def _converse(self, connection: socket.socket, peer: SocketAddress) -> Visit:
        by_proxy = self._by_proxy(peer, self.address)
        received = 0
        if self.kind is Kind.HTTP:
            received = _read(connection, until=b"\r\n\r\n")
            text = f"Hello from {self.address}! I was dialled by {peer}.\n"
            answer = (
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                f"Content-Length: {len(text)}\r\n\r\n{text}"
            )
        elif self.kind is Kind.GREETING:
            answer = text = f"220 {self.address} speaks first\n"
        else:
            received = _read(connection)
            answer = text = f"{received} octets came before you ended your half\n"
        connection.sendall(answer.encode("ascii"))
        connection.shutdown(socket.SHUT_WR)
        received += _read(connection)
        return Visit(peer, by_proxy, received, len(answer), text)


def _read(connection: socket.socket, until: bytes | None = None) -> int:
    """Read to the end, or until these octets have come; count."""
    data = b""
    while until is None or until not in data:
        chunk = connection.recv(_CHUNK_OCTETS)
        if not chunk:
            break
        data += chunk
    return len(data)

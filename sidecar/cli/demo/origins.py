"""The servers that there are in the demo's network, and what reaches them."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.cli.demo.names import answer_to, name_in
from sidecar.linux import pktinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

__all__ = ["Event", "Kind", "Server", "Servers"]

# linux/in6.h: bind to an address that is this host's by a route only.
_IPV6_FREEBIND = 78
# Seconds; no client here takes milliseconds.
_PATIENCE = 5.0
_CHUNK_OCTETS = 65536
_DNS_PORT = 53
_DNS_OCTETS = 4096


class Kind(Enum):
    """What a server does."""

    HTTP = "http"
    """Answers any request with one page."""
    HTTPS = "https"
    """The same within TLS."""
    GREETING = "greeting"
    """Speaks first."""
    DATAGRAMS = "datagrams"
    """Answers each datagram."""


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        kind: What it does.
        address: Where it listens.
        text: What it has to say.
    """

    kind: Kind
    address: SocketAddress
    text: str


@dataclass(frozen=True)
class Event:
    """Something that reached a server.

    Attributes:
        server: Which; None for the name server.
        name: What the name server was asked for; empty for others.
        by_sidecar: Whether a connection's other socket is sidecar's.
    """

    server: Server | None
    name: str = ""
    by_sidecar: bool = False


class Servers:
    """All servers, each in a thread of its own that ends with the process.

    Args:
        servers: Those for data.
        hosts: What the name server knows; it listens on every address.
        key_file: Key and certificate (PEM) of those that speak TLS.
        by_sidecar: Told the two ends of a connection's far socket; says whether that is
            sidecar's.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        hosts: Mapping[str, Sequence[IPv4Address | IPv6Address]],
        key_file: Path,
        by_sidecar: Callable[[SocketAddress, SocketAddress], bool],
    ) -> None:
        self._events: list[Event] = []
        self._hosts = hosts
        self._by_sidecar = by_sidecar
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(key_file)
        for server in servers:
            serve = self._answer if server.kind is Kind.DATAGRAMS else self._accept
            _start(serve, server, _open(server))
        _start(self._name, _open_name_server())

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        found, self._events = self._events, []
        return found

    def _accept(self, server: Server, listener: socket.socket) -> None:
        while True:
            connection, peer = listener.accept()
            # What the client did to make this fail is for the checks to say.
            with connection, suppress(OSError):
                connection.settimeout(_PATIENCE)
                ours = self._by_sidecar(SocketAddress.from_kernel(peer), server.address)
                self._events.append(Event(server, by_sidecar=ours))
                self._converse(server, connection)

    def _converse(self, server: Server, connection: socket.socket) -> None:
        text = f"{server.text}\n".encode()
        if server.kind is Kind.GREETING:
            connection.sendall(text)
        elif server.kind is Kind.HTTPS:
            with self._tls.wrap_socket(connection, server_side=True) as secret:
                _answer_request(secret, text)
                secret.unwrap()
        else:
            _answer_request(connection, text)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(_CHUNK_OCTETS):
            pass

    def _answer(self, server: Server, sock: socket.socket) -> None:
        while True:
            _, peer = sock.recvfrom(_CHUNK_OCTETS)
            self._events.append(Event(server))
            with suppress(OSError):
                sock.sendto(f"{server.text}\n".encode(), peer)

    def _name(self, sock: socket.socket) -> None:
        while True:
            question, ancillary, _, peer = sock.recvmsg(_DNS_OCTETS, pktinfo.SPACE)
            self._events.append(Event(None, name_in(question)))
            answer = answer_to(question, self._hosts)
            if answer is not None:
                # From the address that was asked.
                source = pktinfo.answer_from(pktinfo.destination(ancillary))
                with suppress(OSError):
                    sock.sendmsg([answer], source, 0, peer)


def _start(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _open(server: Server) -> socket.socket:
    address = server.address
    datagrams = server.kind is Kind.DATAGRAMS
    sock = socket.socket(address.family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
    if address.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    sock.bind((address.host, address.port))
    if not datagrams:
        sock.listen()
    return sock


def _open_name_server() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", _DNS_PORT))
    except OSError:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", _DNS_PORT))  # noqa: S104 - in a namespace of our own
    pktinfo.receive_destinations(sock)
    return sock


def _answer_request(connection: socket.socket, page: bytes) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        chunk = connection.recv(_CHUNK_OCTETS)
        if not chunk:
            return
        request += chunk
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(page)}\r\n\r\n"
    connection.sendall(head.encode() + page)

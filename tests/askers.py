"""Asking a name server as a client does: messages, datagrams, streams."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from twisted.names import dns
from zope.interface import implementer

from sidecar.dns.forwarding import Forwarder
from sidecar.dns.messages import Message
from sidecar.dns.service import RunningDNS, start_dns
from sidecar.interfaces import IDNSObserver
from sidecar.linux.pktinfo import receive_destinations
from sidecar.names.served import Served
from sidecar.policy import Choice, Default, Policy, parse_name_rule, parse_rule
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turning import Turning
    from typing_extensions import Self

    from sidecar.dns.asking import IAskingReactor
    from sidecar.dns.resolvconf import NameServer
    from sidecar.lookups import Lookup

__all__ = ["Seen", "Stage", "option", "policy", "query", "read"]


def policy(
    default: str = "public",
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    private_names: Sequence[str] = (),
    ech: str = "allow",
) -> Policy:
    return Policy(
        default=Default(default),
        allow=[parse_rule(each, "test") for each in allow],
        deny=[parse_rule(each, "test") for each in deny],
        private_names=[parse_name_rule(each, "test") for each in private_names],
        ech=Choice(ech),
    )


def query(
    name: str | bytes,
    kind: int = dns.A,
    *,
    ident: int = 0x1234,
    edns: int | None = None,
    dnssec: bool = False,
    authentic: bool = False,
    unchecked: bool = False,
    options: bytes = b"",
    version: int = 0,
    cls: int = dns.IN,
) -> bytes:
    """A client's question."""
    message = Message(ident, recDes=1, authenticData=authentic, checkingDisabled=unchecked)
    message.addQuery(name.encode() if isinstance(name, str) else name, kind, cls)
    if edns is not None:
        flags = version << 16 | (0x8000 if dnssec else 0)
        message.additional.append(
            dns.RRHeader(b"", dns.OPT, edns, flags, dns.UnknownRecord(options))
        )
    return message.toStr()


def option(message: Message, code: int) -> bytes | None:
    """An EDNS option of a message."""
    for opt in message.additional:
        if opt.type == dns.OPT:
            data = opt.payload.data  # type: ignore[union-attr]
            while data:
                found, length = struct.unpack_from("!HH", data)
                if found == code:
                    value: bytes = data[4 : 4 + length]
                    return value
                data = data[4 + length :]
    return None


def read(data: bytes) -> Message:
    message = Message()
    message.fromStr(data)
    return message


@implementer(IDNSObserver)
class Seen:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lookups: list[Lookup] = []

    def lookup_ended(self, lookup: Lookup) -> None:
        self.lookups.append(lookup)


@dataclass
class Stage:
    """A name server on loopback, and a client of it.

    Args:
        turning: Its reactor.
        rules: The policy.
        servers: Whom it asks.
        search: The domains that programs append to names.
        send_buffer: Bytes of a stream's; None for what the kernel thinks.
    """

    turning: Turning
    rules: Policy
    servers: list[NameServer]
    udp: list[socket.socket] = field(default_factory=list)
    tcp: list[socket.socket] = field(default_factory=list)
    search: list[str] = field(default_factory=list)
    send_buffer: int | None = None

    def __enter__(self) -> Self:
        self.seen = Seen()
        self.runtime = Runtime.make(self.turning.reactor)
        self.served = Served(self.turning.reactor)
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if not self.udp:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
            receive_destinations(udp)
            tcp = socket.create_server(("127.0.0.1", 0))
            self.udp, self.tcp = [udp], [tcp]
        self.udp_at = self.udp[0].getsockname()
        self.tcp_at = self.tcp[0].getsockname()
        if self.send_buffer is not None:
            self.tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        reactor = cast("IAskingReactor", self.turning.reactor)
        self.forwarder = Forwarder(reactor, self.runtime.poller, lambda: self.servers)
        self.running: RunningDNS = start_dns(
            self.runtime,
            lambda: self.rules,
            self.served,
            self.forwarder,
            lambda: self.search,
            udp=self.udp,
            tcp=self.tcp,
            observer=self.seen,
        )
        self.client.connect(self.udp_at)
        self.client.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        stopped = self.running.stop()
        self.turning.result(stopped)
        self.forwarder.close()
        self.turning.settle()
        self.runtime.close()

    def be_patient(self) -> None:
        """Have it wait for each server longer than a test does: what comes, comes without."""
        self.forwarder._deadline = 3600.0

    def send(self, data: bytes) -> bytes:
        """Send a datagram and take one back."""
        self.client.send(data)
        return self.receive()

    def receive(self) -> bytes:
        found: list[bytes] = []

        def look() -> bool:
            try:
                found.append(self.client.recv(65535))
            except BlockingIOError:
                return False
            return True

        self.turning.until(look, self.client)
        return found[0]

    def ask(self, name: str | bytes, kind: int = dns.A, **options: object) -> Message:
        """Ask over UDP."""
        return read(self.send(query(name, kind, **options)))  # type: ignore[arg-type]

    def connected(self) -> socket.socket:
        connection = socket.create_connection(self.tcp_at)
        connection.setblocking(False)
        return connection

    def read_stream(self, connection: socket.socket, count: int = 1) -> list[bytes]:
        """Read messages until there are so many, or the end."""
        data = b""
        over = False

        def whole() -> list[bytes]:
            return list(_split(data))

        def look() -> bool:
            nonlocal data, over
            try:
                got = connection.recv(65535)
            except BlockingIOError:
                return len(whole()) >= count
            except ConnectionResetError:
                got = b""
            data += got
            over = over or not got
            return over or len(whole()) >= count

        self.turning.until(look, connection)
        return whole()

    def ask_by_stream(self, name: str | bytes, kind: int = dns.A, **options: object) -> Message:
        """Ask over TCP."""
        with self.connected() as connection:
            sent = query(name, kind, **options)  # type: ignore[arg-type]
            connection.sendall(struct.pack("!H", len(sent)) + sent)
            (answer,) = self.read_stream(connection)
        self.turning.settle()
        return read(answer)


def _split(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        (length,) = struct.unpack_from("!H", data)
        if len(data) < 2 + length:
            return
        yield data[2 : 2 + length]
        data = data[2 + length :]

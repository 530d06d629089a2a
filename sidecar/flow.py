"""What is known of one connection, or one HTTP request, and how it ended.

A `Flow` is the only thing that the stages of a connection share: it starts with
two addresses, gains facts, gets one verdict, ends exactly once, and is then one
line in the access log. docs/reference/access-log.md says what each field means.
"""

from __future__ import annotations

import time
from enum import Enum
from functools import partial
from itertools import count
from os import urandom
from typing import TYPE_CHECKING

import msgspec

from sidecar.endings import FlowEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.addresses import SocketAddress
    from sidecar.interfaces import IFlowObserver

__all__ = [
    "DestinationSource",
    "Flow",
    "FlowEnd",
    "HostSource",
    "ListenerKind",
    "Process",
    "Protocol",
    "Verdict",
]


class ListenerKind(Enum):
    """Which way in a connection took."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    SNI_PROXY = "sni-proxy"
    FORWARD = "forward"
    HTTP_PROXY = "http-proxy"
    EXEC = "exec"
    HOST_PORT = "host-port"
    PUBLISH = "publish"


class DestinationSource(Enum):
    """Which step of knowing the destination answered (DESIGN §4)."""

    TPROXY = "tproxy"
    REDIRECT = "redirect"
    STATIC = "static"
    REQUEST = "request"
    CONNECT = "connect"


class Protocol(Enum):
    """What the client speaks, as far as its first bytes tell."""

    TLS = "tls"
    HTTP = "http"
    TCP = "tcp"


class HostSource(Enum):
    """Who named the host that a flow is for."""

    SNI = "sni"
    HOST = "host"
    CONNECT = "connect"
    DNS = "dns"  # the name that the address was answered for


class Verdict(Enum):
    """What was decided."""

    ALLOW = "allow"
    DENY = "deny"


class Process(msgspec.Struct, frozen=True, gc=False):
    """A program that runs.

    Attributes:
        pid: Its number, as this process sees it.
        name: What it is called; its own choice, so escape it before showing it.
    """

    pid: int
    name: str


# Ids tell flows of one process apart by the counter and processes by the prefix.
_process_prefix = urandom(4).hex()
_serial = count(1)


_next_serial = partial(next, _serial)


class Flow(msgspec.Struct, gc=True, weakref=False):
    """The facts of one connection, or of one request to the HTTP proxy.

    Attributes:
        listener: Which way in it took.
        source: The client's address; None where it has none (unix sockets).
        destination: Where the client wanted to go; None while unknown.
        destination_from: Who said so; None while unknown or if nobody did.
        protocol: What the client speaks; TCP where nobody looked.
        host: The host name that the flow is for, canonical; None if there is none.
        host_from: Who named it.
        names_known: Whether `host` and `ech` are final: the client's first bytes have
            been read, or it stayed silent.
        alpn: The protocols that the client offers in TLS, in its order.
        ja4: The fingerprint of its ClientHello.
        ech: Whether its ClientHello carries an encrypted one, so that `host` may be a
            front for another.
        problem: Why the client's first bytes can't be trusted to name a host, as a
            reason code; None while nothing is known to be wrong.
        to_proxy: The host, name or address, that a proxy is asked for: where the first
            request is CONNECT, or has an absolute target; None where it has neither.
        observer: Told of the end, once.
        started: Seconds since the epoch.
        started_monotonic: The same moment on the monotonic clock.
        serial: Counts the flows of this process.
        verdict, reason, rule: What was decided, why (a stable code), and by
            which rule's text; reason is "default" where no rule was asked.
        hint: With a denial, the text of an allow rule that would have allowed it; empty
            if none would.
        process: Who opened the connection; None where nobody looked, or it was gone.
        connection: With an HTTP request, the flow of the connection that it came on, where
            somebody wants to know; None for all others.
        upstream: The address dialled; None if none was.
        sent, received: Bytes from client to server, and back; known at the end.
        counts: Tells both while the flow is being relayed; None before and after.
        head_sent: Bytes of an HTTP request's head, which isn't its content, but may carry data
            all the same; 0 where nobody wants to know.
        end: How it ended; None while it lives.
        seconds: How long it lived; 0.0 while it does.
        method: An HTTP request's, as sent; None where no request was read.
        target: What an HTTP request asks the server for, path and query as sent; None
            for CONNECT, which has no other than the host.
        status: What an HTTP client was answered, by the server or by us; None if nothing.
    """

    listener: ListenerKind
    source: SocketAddress | None
    destination: SocketAddress | None
    destination_from: DestinationSource | None
    observer: IFlowObserver | None = None
    protocol: Protocol = Protocol.TCP
    host: str | None = None
    host_from: HostSource | None = None
    names_known: bool = False
    alpn: tuple[str, ...] = ()
    ja4: str | None = None
    ech: bool = False
    problem: str | None = None
    to_proxy: str | None = None
    started: float = msgspec.field(default_factory=time.time)
    started_monotonic: float = msgspec.field(default_factory=time.monotonic)
    serial: int = msgspec.field(default_factory=_next_serial)
    verdict: Verdict = Verdict.ALLOW
    reason: str = "default"
    rule: str | None = None
    hint: str = ""
    process: Process | None = None
    connection: Flow | None = None
    upstream: SocketAddress | None = None
    sent: int = 0
    received: int = 0
    counts: Callable[[], tuple[int, int]] | None = None
    head_sent: int = 0
    end: FlowEnd | None = None
    seconds: float = 0.0
    method: bytes | None = None
    target: bytes | None = None
    status: int | None = None

    @property
    def id(self) -> str:
        """8 hex digits of this process, a hyphen, the serial number in hex."""
        return f"{_process_prefix}-{self.serial:x}"

    def amounts(self) -> tuple[int, int]:
        """How many bytes it has carried by now: sent, received."""
        return (self.sent, self.received) if self.counts is None else self.counts()

    @property
    def connected(self) -> bool:
        """Whether there is a server already."""
        return self.counts is not None or self.upstream is not None

    def finish(self, end: FlowEnd) -> None:
        """End the flow and tell its observer; a second call changes nothing.

        The first ending is the cause; what follows it (the other side's reset,
        the service's shutdown) is consequence.
        """
        if self.end is not None:
            return
        self.end = end
        self.counts = None
        self.seconds = time.monotonic() - self.started_monotonic
        if self.observer is not None:
            self.observer.flow_ended(self)

    def deny(self, reason: str, end: FlowEnd = FlowEnd.DENIED) -> None:
        """Refuse the flow: set the verdict with its reason code, and finish it."""
        self.verdict = Verdict.DENY
        self.reason = reason
        self.finish(end)

"""One question to the host's name servers, until one of them has answered it.

Each attempt has a socket of its own, connected: the kernel picks the port at random, drops
what comes from anybody else, and tells if nobody is there. An earlier attempt stays open while
the next one runs, so a slow server is heard, too.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, cast

from twisted.internet.protocol import ClientFactory
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver

from sidecar.dns.messages import (
    BADVERS,
    MESSAGE_MAX,
    Message,
    edns_of,
    question_of,
    rcode_of,
    read_message,
    write_query,
)
from sidecar.relay.poller import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import (
        IAddress,
        IConnector,
        IDelayedCall,
        IReactorTCP,
        IReactorTime,
        ITCPTransport,
    )
    from twisted.python.failure import Failure

    from sidecar.dns.messages import Question
    from sidecar.dns.resolvconf import NameServer
    from sidecar.relay.poller import Poller

    class IAskingReactor(IReactorTime, IReactorTCP):
        """What asking needs of a reactor."""


__all__ = ["Asking", "Outcome", "Trouble"]

# How often each server is asked; datagrams get lost.
_ROUNDS = 2
# What another server might know better (RFC 1035 §4.1.1), or the same one without EDNS.
_SERVERS_OWN = frozenset({dns.EFORMAT, dns.ESERVER, dns.ENOTIMP, dns.EREFUSED, BADVERS})
_NO_EDNS = frozenset({dns.EFORMAT, dns.ENOTIMP, BADVERS})
_TRUNCATED, _RESPONSE = 0x02, 0x80


class Trouble(Enum):
    """Why there is no answer."""

    TIMEOUT = "no name server answered in time"
    UNREACHABLE = "no name server can be reached"
    BUSY = "too many questions wait for an answer"
    STOPPED = "sidecar is being stopped"


Outcome = Message | Trouble
"""What a name server said, or why none said anything."""


class Asking:
    """One question.

    Args:
        reactor: For the waits, and connections.
        poller: Watches the sockets.
        question: What to ask.
        servers: Whom, in this order; at least one.
        deadline: Seconds for everything.
        ended: Called once, with a server's answer or the trouble; not if stopped.
    """

    def __init__(
        self,
        reactor: IAskingReactor,
        poller: Poller,
        question: Question,
        servers: Sequence[NameServer],
        deadline: float,
        ended: Callable[[Outcome], None],
    ) -> None:
        self.reactor = reactor
        self.poller = poller
        self.question = question
        self._ended = ended
        self._servers = frozenset(servers)
        self._to_ask = deque([*servers] * _ROUNDS)
        self._interval = deadline / len(self._to_ask)
        self._failed: set[NameServer] = set()
        self._no_edns: set[NameServer] = set()
        self._last: Message | None = None
        self._open: set[_Datagram | _StreamFactory] = set()
        self._timer: IDelayedCall | None = None
        self._over = False

    def start(self) -> None:
        """Ask the first server."""
        self._next()

    def stop(self) -> None:
        """Give up; nobody is told."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for attempt in list(self._open):
            attempt.close()
        self._open.clear()

    def _next(self) -> None:
        self._timer = None
        while self._to_ask:
            server = self._to_ask.popleft()
            if server not in self._failed:
                self._timer = self.reactor.callLater(self._interval, self._next)
                self._ask(server)
                return
        self._finish(self._last or Trouble.TIMEOUT)

    def _ask(self, server: NameServer) -> None:
        try:
            attempt = _Datagram(self, server, edns=server not in self._no_edns)
        except OSError:
            # No route, no descriptor, a server that is known not to be there.
            self.failed(server)
        else:
            self._open.add(attempt)

    def _ask_by_stream(self, server: NameServer) -> None:
        attempt = _StreamFactory(self, server, edns=server not in self._no_edns)
        self._open.add(attempt)
        attempt.connect(self._interval)

    # What the attempts tell

    def matches(self, data: bytes, ident: int) -> Message | None:
        """The message, if it is an answer to what was asked; None if not."""
        message = read_message(data)
        if message is None or message.id != ident or not message.answer:
            return None
        asked = (self.question.name.lower(), self.question.type, dns.IN)
        return message if question_of(message) == asked else None

    def dropped(self, attempt: _Datagram | _StreamFactory) -> None:
        """An attempt is over."""
        self._open.discard(attempt)

    def truncated(self, server: NameServer) -> None:
        """A server has more to say than a datagram holds."""
        if not self._over:
            self._ask_by_stream(server)

    def answered(self, server: NameServer, message: Message) -> None:
        """A server has answered."""
        if self._over:
            return
        try:
            edns = edns_of(message)
        except ValueError:
            self.failed(server)
            return
        rcode = rcode_of(message, edns)
        if rcode not in _SERVERS_OWN:
            self._finish(message)
        elif rcode in _NO_EDNS and server not in self._no_edns:
            self._no_edns.add(server)
            self._ask(server)
        else:
            self.failed(server, message)

    def failed(self, server: NameServer, message: Message | None = None) -> None:
        """A server is of no use for this question; is there another?"""
        if self._over:
            return
        self._failed.add(server)
        self._last = message or self._last
        if self._failed == self._servers:
            self._finish(self._last or Trouble.UNREACHABLE)
            return
        if any(each not in self._failed for each in self._to_ask) and self._timer is not None:
            # From a clean stack: a list of servers that all fail at once is short, but whoever
            # called us is not done.
            self._timer.reset(0)

    def _finish(self, outcome: Outcome) -> None:
        if not self._over:
            self.stop()
            self._ended(outcome)


class _Datagram:
    """One attempt over UDP (Pollable)."""

    def __init__(self, asking: Asking, server: NameServer, *, edns: bool) -> None:
        self._asking = asking
        self._server = server
        self._ident = int.from_bytes(os.urandom(2), "big")
        self._socket = socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(server.sockaddr)
            self._socket.send(write_query(self._ident, asking.question, edns=edns))
        except OSError:
            self._socket.close()
            raise
        asking.poller.register(self._socket.fileno(), READ, self)

    def ready(self, events: int) -> None:  # noqa: ARG002 - errors show in recv()
        """Something has come."""
        try:
            data = self._socket.recv(MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            self._over()
            self._asking.failed(self._server)
            return
        message = self._asking.matches(data, self._ident)
        if self._is_truncated(data):
            self._over()
            self._asking.truncated(self._server)
        elif message is not None:
            self._over()
            self._asking.answered(self._server, message)

    def _is_truncated(self, data: bytes) -> bool:
        """Whether it is a cut answer to us; what is there of it may end anywhere."""
        ours = data[:2] == self._ident.to_bytes(2, "big")
        both = _TRUNCATED | _RESPONSE
        return ours and len(data) > 2 and data[2] & both == both  # noqa: PLR2004 - the flags

    def _over(self) -> None:
        self.close()
        self._asking.dropped(self)

    def close(self) -> None:
        """End."""
        fd = self._socket.fileno()
        if fd >= 0:
            self._asking.poller.forget(fd)
            self._socket.close()

    def failed(self) -> None:
        """A bug in `ready`: as if nothing had come."""
        self._over()

    def shut_down(self) -> None:
        """The process ends."""
        self.close()


class _StreamFactory(ClientFactory):
    """One attempt over TCP."""

    noisy = False

    def __init__(self, asking: Asking, server: NameServer, *, edns: bool) -> None:
        self._asking = asking
        self._server = server
        self.ident = int.from_bytes(os.urandom(2), "big")
        self.query = write_query(self.ident, asking.question, edns=edns)
        self._connector: IConnector | None = None
        self._protocol: _Stream | None = None

    def connect(self, timeout: float) -> None:
        """Begin."""
        self._connector = self._asking.reactor.connectTCP(
            self._server.text, self._server.port, self, timeout
        )

    def buildProtocol(self, addr: IAddress | None) -> _Stream:  # noqa: ARG002
        """Made once, or never."""
        self._protocol = _Stream(self)
        return self._protocol

    def received(self, data: bytes) -> None:
        """The server has answered something."""
        message = self._asking.matches(data, self.ident)
        self.close()
        self._asking.dropped(self)
        if message is None or message.trunc:
            self._asking.failed(self._server)
        else:
            self._asking.answered(self._server, message)

    def gone(self) -> None:
        """Not connected, or not any more."""
        if self._connector is not None:
            self._connector = None
            self._asking.dropped(self)
            self._asking.failed(self._server)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:  # noqa: ARG002
        """Not connected."""
        self.gone()

    def close(self) -> None:
        """End."""
        connector, self._connector = self._connector, None
        if self._protocol is not None and self._protocol.transport is not None:
            cast("ITCPTransport", self._protocol.transport).abortConnection()
        elif connector is not None:
            connector.stopConnecting()


class _Stream(Int16StringReceiver):
    """Asks once and reads one answer."""

    def __init__(self, factory: _StreamFactory) -> None:
        self._attempt = factory

    def connectionMade(self) -> None:
        """Ask."""
        self.sendString(self._attempt.query)  # type: ignore[no-untyped-call]

    def stringReceived(self, string: bytes) -> None:
        """The answer."""
        self._attempt.received(string)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: ARG002
        """Gone."""
        self._attempt.gone()

"""How is a client's connection paused, handed over, and closed so that its last answer is heard?"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

from sidecar.wire.http1.reading import RequestReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol as Typed

    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.flow import Flow
    from sidecar.protocols.http.exchange import Exchange
    from sidecar.protocols.http.shared import Shared
    from sidecar.protocols.http.upstream import Upstream
    from sidecar.relay.protocol import Stream

    class Taker(Typed):
        """Who has taken a connection over; it is told what a protocol is told."""

        def client_received(self, data: bytes) -> None: ...
        def client_ended(self) -> None: ...
        def client_write_ended(self) -> None: ...
        def client_lost(self, reason: Failure) -> None: ...
        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def look(self, now: float) -> None: ...


__all__ = ["Connection", "State"]

# Seconds for which a client that was answered early may go on sending: it would lose the
# answer to a reset otherwise (RFC 9112 §9.6).
_LINGER_SECONDS = 5.0


class State(Enum):
    """Where a connection stands; see `sidecar.protocols.http.downstream`."""

    WAITING = "waiting"
    EXCHANGING = "exchanging"
    LINGERING = "lingering"
    TAKEN = "taken"
    CLOSED = "closed"


_WAITING = State.WAITING
_LINGERING = State.LINGERING
_TAKEN = State.TAKEN
_CLOSED = State.CLOSED


class Connection:
    """One client's connection.

    Args:
        shared: What all connections of the factory share.
        source: The client; None where it has no IP address.
        closed: Called once, when all is over.

    Attributes:
        transport: Twisted's, or one of ours.
        congested: The client doesn't take what it is sent.
        ended: It has sent its last byte.
        pinned: A connection to a server that knows this client by it, and serves
            nobody else; None if there is none.
        since: When the present state began, as `time.monotonic`.
    """

    __slots__ = (
        "_closed",
        "_exchange",
        "_half_closes",
        "_kept",
        "_patience",
        "_paused",
        "_reader",
        "_state",
        "_taker",
        "congested",
        "ended",
        "pinned",
        "shared",
        "since",
        "source",
        "transport",
    )

    transport: Stream

    def __init__(
        self,
        shared: Shared,
        source: SocketAddress | None,
        closed: Callable[[Connection], None],
    ) -> None:
        self.shared = shared
        self.source = source
        self._closed = closed
        limits = shared.limits
        self._reader = RequestReader(
            max_head_bytes=limits.head_bytes, max_fields=limits.head_fields
        )
        self._state = _WAITING
        self._exchange: Exchange | None = None
        self._taker: Taker | None = None
        # What was sent ahead of its answers.
        self._kept = b""
        # Why the client isn't read, a bit each.
        self._paused = 0
        self._half_closes = True
        self._patience = 0.0
        self.congested = False
        self.ended = False
        self.pinned: Upstream | None = None
        self.since = time.monotonic()

    def look(self, now: float) -> None:
        """See whether the client takes too long (`Watched`)."""
        raise NotImplementedError

    @property
    def request(self) -> Flow | None:
        """The flow of the request that is under way; None between two."""
        return None if self._exchange is None else self._exchange.flow

    @property
    def sends_ahead(self) -> bool:
        """Whether bytes behind the present request are there."""
        return bool(self._kept) or self._reader.started

    def pause(self, why: int) -> None:
        """Read nothing from the client, for one more reason."""
        if not self._paused:
            self.transport.pauseProducing()
        self._paused |= why

    def resume(self, why: int) -> None:
        """Read on, if nothing else speaks against it."""
        if self._paused:
            self._paused &= ~why
            if not self._paused:
                self.transport.resumeProducing()

    # Closing

    def close(self) -> None:
        """Close once everything is written; the client isn't sending."""
        self._exchange = None
        if self._state is not _CLOSED:
            self._end(self.shared.limits.progress_timeout)
            self.transport.loseConnection()

    def linger(self) -> None:
        """Close, after a while in which the client may notice (RFC 9112 §9.6)."""
        if self.ended or not self._half_closes:
            self.close()
            return
        self._exchange = None
        if self._state is _CLOSED:
            return
        limits = self.shared.limits
        self._end(limits.progress_timeout if self.congested else _LINGER_SECONDS)
        self.transport.loseWriteConnection()
        self._paused = 0
        self.transport.resumeProducing()

    def _end(self, patience: float) -> None:
        self._state = _LINGERING
        self._kept = b""
        self._patience = patience
        self.since = time.monotonic()
        self.transport.unregisterProducer()

    def abort(self) -> None:
        """Reset: what the client was sent is not whole."""
        self._exchange = None
        if self._state is not _CLOSED:
            self._state = _LINGERING
            self.transport.abortConnection()

    def cut(self, *, orderly: bool) -> None:
        """End a response before its end, so that the client can't take it for whole.

        Args:
            orderly: The client knows how long it was to be.
        """
        if orderly and self._half_closes and not self.sends_ahead:
            self.close()
        else:
            self.abort()

    # Handing over

    def give_to(self, taker: Taker) -> bytes:
        """Be no HTTP connection any more.

        Args:
            taker: Told of everything from here on.

        Returns:
            What was read behind the request.
        """
        self._taker = taker
        return self.give_up()

    def give_up(self) -> bytes:
        """As `give_to`, for somebody who takes the transport as well."""
        self._exchange = None
        self._state = _TAKEN
        ahead = self._reader.rest() + self._kept
        self._kept = b""
        self.resume(~0)
        return ahead

    def leave(self) -> None:
        """The transport is about to lose its socket to somebody else."""
        self.shared.patrol.discard(self)
        self.transport.unregisterProducer()

    def left(self) -> None:
        """Whoever had the socket has closed it."""
        if self.pinned is not None:
            self.pinned.close()
        if self._state is not _CLOSED:
            self._state = _CLOSED
            self._taker = None
            self._closed(self)

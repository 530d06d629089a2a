"""One connection from the verdict to its end: dialled, joined, taken down."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.errors import DialError, ProxyLoopDetected
from sidecar.flow import Flow, FlowEnd, Verdict
from sidecar.protocols.connecting import Connecting, reach
from sidecar.relay import Joined, RelayProtocol, Side, start
from sidecar.relay.poller import ERROR
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from sidecar.dialing import Dial, Source
    from sidecar.loops import Ends
    from sidecar.protocols.attempts import Attempts
    from sidecar.protocols.late import LateWords
    from sidecar.relay import Totals
    from sidecar.relay.screened import Screened
    from sidecar.runtime import Runtime
    from sidecar.upstreams import Upstream

__all__ = ["Relaying"]


class Relaying:
    """One flow from its arrival to its end.

    Args:
        runtime: Shared by all.
        side: The client's connection.
        flow: Ended here, exactly once; what it has received already is added to.
        upstream: Where to; several addresses are tried in turn.
        source: Where from; None leaves it to the kernel.
        to_upstream: What has been read from the client already, delivered first.
        connected: The connection to `upstream`, the first of it, where it has been made
            already.
        ended: Called once the flow has ended, or is no longer relayed.
        words: Hears what the client says first, before the server does; None for nobody.
    """

    __slots__ = (
        "_ahead",
        "_connecting",
        "_ends",
        "_flow",
        "_joined",
        "_received",
        "_runtime",
        "_side",
        "_to_upstream",
        "_watched",
        "_when_ended",
        "_words",
    )

    def __init__(
        self,
        runtime: Runtime,
        side: Side,
        flow: Flow,
        upstream: Upstream | tuple[SocketAddress, ...],
        source: Source | None,
        to_upstream: bytes = b"",
        *,
        connected: socket.socket | None = None,
        ended: Callable[[], None] | None = None,
        words: LateWords | None = None,
    ) -> None:
        self._runtime = runtime
        self._side = side
        self._flow = flow
        self._to_upstream = to_upstream
        # Bytes of it that were sent before the two were joined.
        self._ahead = 0
        self._received = flow.received
        self._words = words
        self._when_ended = ended
        self._joined: Joined | None = None
        self._ends: Ends | None = None
        self._watched = False
        if isinstance(side, RelayProtocol):
            runtime.poller.wards.add(self)
        self._connecting: Dial | Attempts | Connecting | None = None
        if connected is not None:
            first = upstream[0] if isinstance(upstream, tuple) else upstream
            self._connected(connected, first if isinstance(first, SocketAddress) else None)
            return
        self._connecting = reach(runtime, upstream, source, self._connected)
        if self._connecting is not None:
            self._watch()

    # The upstream is being dialled

    def _watch(self) -> None:
        """Learn of the client's end while its upstream is being dialled."""
        side = self._side
        if isinstance(side, RelayProtocol):
            side.on_loss(self._client_lost)
        else:
            self._runtime.poller.register(side.fileno(), 0, self)
            self._watched = True

    def ready(self, events: int) -> None:
        """The client has gone."""
        if events & ERROR:
            self._give_up(FlowEnd.CLIENT_RESET)

    def failed(self) -> None:
        """A bug in `ready`, or when what was given back was judged."""
        if self._joined is not None and self._words is not None:
            self._words.failed()
        else:
            self._give_up(FlowEnd.PROTOCOL_ERROR)

    def shut_down(self) -> None:
        """The process ends."""
        if self._watched or self._joined is None:
            self._give_up(FlowEnd.SHUTDOWN)
            return
        self._joined.abort(FlowEnd.SHUTDOWN)
        # Twisted's transports close in a later turn, which may not come.
        totals = self._joined.totals
        if totals is None:
            self._ended(FlowEnd.SHUTDOWN)
        else:
            self._relayed(totals._replace(end=FlowEnd.SHUTDOWN))

    def looped(self) -> None:
        """The upstream connection came back to one of our own listeners."""
        self._flow.verdict = Verdict.DENY
        self._flow.reason = FlowEnd.PROXY_LOOP_DETECTED.value
        self._flow.rule = None
        if self._joined is None:
            self._give_up(FlowEnd.PROXY_LOOP_DETECTED)
        else:
            self._joined.abort(FlowEnd.PROXY_LOOP_DETECTED)

    def deny(self, reason: str, rule: str | None) -> None:
        """End a flow that a new policy denies."""
        self._flow.verdict = Verdict.DENY
        self._flow.reason = reason
        self._flow.rule = rule
        if self._joined is None:
            self._give_up(FlowEnd.DENIED)
        else:
            self._joined.abort(FlowEnd.DENIED)

    def _client_lost(self, _: Failure) -> None:
        self._give_up(FlowEnd.CLIENT_RESET)

    def _give_up(self, end: FlowEnd) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._refuse(end)

    def _refuse(self, end: FlowEnd) -> None:
        self._unwatch()
        side = self._side
        if isinstance(side, RelayProtocol):
            side.abort()
        else:
            reset(side)
        self._ended(end)

    def _unwatch(self) -> None:
        side = self._side
        if isinstance(side, RelayProtocol):
            side.on_loss(None)
        elif self._watched:
            self._watched = False
            self._runtime.poller.unregister(side.fileno())

    def _connected(self, outcome: Side | DialError, upstream: SocketAddress | None) -> None:
        self._connecting = None
        flow = self._flow
        if isinstance(outcome, ProxyLoopDetected):
            # Refused before anything was dialled.
            flow.verdict = Verdict.DENY
            flow.reason = outcome.end.value
            flow.rule = None
            self._refuse(outcome.end)
            return
        flow.upstream = upstream
        if isinstance(outcome, DialError):
            self._refuse(outcome.end)
            return
        self._unwatch()
        runtime = self._runtime
        if isinstance(outcome, socket.socket):
            self._ends = runtime.guard.track(outcome, upstream, self)
            if self._to_upstream:
                self._send_ahead(outcome)
        self._joined = Joined()
        flow.counts = self._counts
        start(
            runtime.engine,
            self._side,
            outcome,
            self._relayed,
            self._joined,
            to_upstream=self._to_upstream,
            screen=None if self._words is None else self,
        )

    def _send_ahead(self, upstream: socket.socket) -> None:
        """Send what was read already, while the buffer is empty: spares two turns of the poller.

        An error is the relay's to find: it knows what else there is to be saved.
        """
        if isinstance(self._side, socket.socket):
            with suppress(OSError):
                self._ahead = upstream.send(self._to_upstream)
                self._to_upstream = self._to_upstream[self._ahead :]

    # The two are joined

    def _counts(self) -> tuple[int, int]:
        totals = None if self._joined is None else self._joined.totals
        sent, received = (0, 0) if totals is None else (totals.sent, totals.received)
        return self._ahead + sent, self._received + received

    def heard(self, half: Screened, data: bytes) -> None:
        """The client says something for the first time (`Screen`)."""
        assert self._words is not None  # noqa: S101 - nobody asks otherwise
        self._words.heard(half, data)

    def given_back(self, upstream: socket.socket, received: int, *, spoken: bool) -> None:
        """It has to be judged for that again (`Screen`): this relaying is over, the flow isn't."""
        flow, words = self._flow, self._words
        assert words is not None  # noqa: S101 - likewise
        flow.counts = None
        flow.received = self._received + received
        self._runtime.guard.forget(self._ends)
        if self._when_ended is not None:
            self._when_ended()
        words.given_back(upstream, spoken=spoken)

    def _relayed(self, totals: Totals) -> None:
        flow = self._flow
        flow.sent = self._ahead + totals.sent
        flow.received = self._received + totals.received
        self._runtime.guard.forget(self._ends)
        self._ended(totals.end or FlowEnd.CLOSED)

    def _ended(self, end: FlowEnd) -> None:
        self._runtime.poller.wards.discard(self)
        if self._words is not None:
            self._words.forget()
        self._flow.finish(end)
        if self._when_ended is not None:
            self._when_ended()

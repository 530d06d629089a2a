"""What does a client say inside of its tunnel, and does that agree with what it asked for?

The tunnel is open; the client's first bytes are looked at before any of them is passed on.
What the server says is passed on meanwhile, so that one that speaks first isn't delayed,
and a client that stays silent is never waited for.

A client that asked for a name must not say another one inside (SNI, Host). One that asked
for an address may have to say a name, where only that could allow it: it is judged then,
as an intercepted one is.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.addresses import SocketAddress
from sidecar.errors import DialError, ProxyLoopDetected, VerificationError
from sidecar.flow import Flow, FlowEnd, Protocol, Verdict
from sidecar.peeking import Peek
from sidecar.policy import Outcome
from sidecar.protocols.connecting import reach
from sidecar.protocols.http import replies
from sidecar.protocols.http.tunnel import Tunnel
from sidecar.protocols.steps import objection
from sidecar.relay import RelayProtocol
from sidecar.relay.stream import ShutDown, SocketTransport

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from sidecar.dialing import Dial
    from sidecar.names.verifying import Addresses
    from sidecar.protocols.attempts import Attempts
    from sidecar.protocols.connecting import Connecting
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.relaying import Relaying
    from sidecar.relay import Side

__all__ = ["INSIDE", "Inside"]

INSIDE = 4
"""Why a client isn't read: what it says inside of its tunnel is being judged."""

# A fatal access_denied alert (RFC 8446 §6.2) in a TLS 1.2 record.
_ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))


@implementer(IProtocol, IHalfCloseableProtocol)
class Inside:
    """A tunnel until its client has said whom it is for.

    Args:
        downstream: The client's connection, taken over here.
        flow: With what was asked for: `host`, or only `destination`.
        upstream: A connection to the destination; None where the name decides whether
            there may be one.
        data: What the client has sent already.
    """

    _log = Logger()
    __slots__ = (
        "_asking",
        "_begun",
        "_client_ended",
        "_data",
        "_dial",
        "_downstream",
        "_flow",
        "_greeting",
        "_heard",
        "_judged_again",
        "_local",
        "_moved",
        "_over",
        "_peek",
        "_received",
        "_said",
        "_shared",
        "_timer",
        "_upstream",
    )

    def __init__(self, downstream: Downstream, flow: Flow, upstream: socket.socket | None) -> None:
        self._downstream = downstream
        self._shared = downstream.shared
        self._flow = flow
        self._judged_again = flow.host is None
        # What the client says; its flow stays what was asked for until that is known.
        self._said: Flow | None = None
        self._peek: Peek | None = None
        self._data = b""
        # When the client began to speak, when it has ended, and when anything was last
        # sent to it; as `time.monotonic`.
        self._begun = self._client_ended = 0.0
        self._moved = time.monotonic()
        self._greeting = b""
        self._received = 0
        self._over = False
        # Whether the client has said all that matters.
        self._heard = False
        self._asking: Deferred[None] | None = None
        self._dial: Dial | Attempts | Connecting | None = None
        self._timer: IDelayedCall | None = None
        self._upstream: SocketTransport | None = None
        self._local: SocketAddress | None = None
        runtime = self._shared.runtime
        if upstream is None:
            self._timer = runtime.reactor.callLater(self._shared.judge.silence, self._silent)
        else:
            if runtime.guard.tracks_upstreams:
                self._local = SocketAddress.from_kernel(upstream.getsockname())
                runtime.guard.add_upstream(self._local, self)
            SocketTransport(runtime.poller, upstream, self)
        if not self._judged_again and flow.destination is not None:
            self._shared.judge.relayed(flow, cast("Relaying", self))
        data = downstream.give_to(self)
        if data:
            self.client_received(data)
        elif downstream.ended:
            self.client_ended()

    # The client's side

    def client_received(self, data: bytes) -> None:
        """The client's first bytes, or what follows them before there is a verdict."""
        self._data += data
        if self._heard:
            self._downstream.pause(INSIDE)
            return
        if not self._begun:
            self._begun = time.monotonic()
            self._stop_waiting()
            self._said = Flow(self._flow.listener, None, None, None)
            self._peek = Peek(self._said)
        if cast("Peek", self._peek).feed(data):
            self._peeked()

    def client_ended(self) -> None:
        """It has sent its last byte: it will say no more."""
        if self._heard:
            return
        upstream = self._upstream
        if self._begun or self._judged_again or upstream is None:
            self._peeked()
            return
        # There is nothing to be held against it; what the server says is still passed on.
        self._client_ended = time.monotonic()
        upstream.loseWriteConnection()

    def client_write_ended(self) -> None:
        """We end nothing by halves before the two are joined."""

    def client_lost(self, reason: Failure) -> None:
        """It is gone."""
        shut_down = reason.check(ShutDown) is not None
        self._end(FlowEnd.SHUTDOWN if shut_down else FlowEnd.CLIENT_RESET)

    def pause(self) -> None:
        """The client doesn't take what the server says."""
        if self._upstream is not None:
            self._upstream.pauseProducing()

    def resume(self) -> None:
        """It has taken everything."""
        if self._upstream is not None:
            self._upstream.resumeProducing()

    def look(self, now: float) -> None:
        """See whether a client that has begun to speak gets to its name; and others' limits."""
        if self._heard:
            return
        limits = self._shared.runtime.limits
        idle, half_closed = limits.idle_timeout, limits.half_close_timeout
        if self._begun:
            if now - self._begun > self._shared.judge.patience:
                self.deny("peek_timeout")
        elif (idle is not None and now - self._moved > idle) or (
            half_closed is not None
            and self._client_ended
            and now - self._client_ended > half_closed
        ):
            self._end(FlowEnd.IDLE_TIMEOUT)
            self._downstream.abort()

    def _silent(self) -> None:
        self._timer = None
        if not self._heard:
            self._peeked()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The server's side

    def makeConnection(self, transport: object) -> None:
        """Here is the transport."""
        self._upstream = cast("SocketTransport", transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        """The destination is connected, which it was before."""

    def dataReceived(self, data: bytes) -> None:
        """The server speaks."""
        if not self._judged_again:
            # It may be talked to already; what the client says is still held against it.
            self._received += len(data)
            self._moved = time.monotonic()
            self._downstream.transport.write(data)
            return
        self._greeting += data
        if self._upstream is not None:
            self._upstream.pauseProducing()
        if not self._heard and not self._data:
            # It speaks first, so the client gives no name: judged as that.
            self._peeked()

    def readConnectionLost(self) -> None:
        """The server has sent its last byte."""
        if self._client_ended:
            self._upstream = None
            self._end(FlowEnd.CLOSED)
            self._downstream.close()
        elif not self._heard:
            self._peeked()

    def writeConnectionLost(self) -> None:
        """See `client_write_ended`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The server is gone."""
        if self._upstream is not None and not self._over:
            self._upstream = None
            shut_down = reason.check(ShutDown) is not None
            self._end(FlowEnd.SHUTDOWN if shut_down else FlowEnd.SERVER_RESET)
            self._downstream.abort()

    def looped(self) -> None:
        """The connection came back to one of our own listeners."""
        self.deny(FlowEnd.PROXY_LOOP_DETECTED.value, end=FlowEnd.PROXY_LOOP_DETECTED)

    # The verdict

    def _peeked(self) -> None:
        self._heard = True
        self._stop_waiting()
        flow, said = self._flow, self._said
        flow.names_known = True
        if said is not None:
            flow.protocol = said.protocol
            flow.alpn = said.alpn
            flow.ja4 = said.ja4
            flow.ech = said.ech
            if said.problem is not None:
                # Two readers could take it for two names.
                self.deny(said.problem)
                return
            if self._judged_again:
                flow.host = said.host
                flow.host_from = said.host_from
            elif said.host is not None and said.host != flow.host:
                self.deny("name_mismatch")
                return
        if flow.destination is None:
            # The next proxy alone knows it; the name was judged.
            self._join()
            return
        decision = self._shared.judge.policy.decide(flow)
        if decision.outcome is not Outcome.ALLOW:
            self.deny(decision.reason.value, decision.rule_with_place, decision.hint)
            return
        if not self._judged_again:
            self._join()
            return
        flow.reason = decision.reason.value
        flow.rule = decision.rule_with_place
        if not decision.by_name or flow.host is None:
            self._allowed((flow.destination,))
            return
        acceptable = partial(self._shared.judge.policy.accepts_address, flow)
        found: Addresses | Deferred[Addresses] = self._shared.judge.verifier.verify(
            flow.host, flow.destination, acceptable
        )
        if isinstance(found, Deferred):
            self._ask(found.addCallback(self._allowed))
        else:
            self._allowed(found)

    def _ask(self, asking: Deferred[Any]) -> None:
        self._asking = asking
        asking.addErrback(self._refused)

    def _refused(self, failure: Failure) -> None:
        self._asking = None
        if failure.check(CancelledError) is not None or self._over:
            return
        error = failure.value
        if isinstance(error, VerificationError):
            self.deny(error.reason, self._flow.rule, end=error.end)
        else:
            self._log.failure("bug while a tunnel was being judged; denied", failure)
            self.deny("internal_error")

    def _allowed(self, addresses: Addresses) -> None:
        judge = self._shared.judge
        if not judge.steps:
            self._go(addresses)
            return
        asked = objection(self._shared.runtime.reactor, judge.steps, self._flow, judge.deadline)
        self._ask(Deferred.fromCoroutine(asked).addCallback(self._objected, addresses))

    def _objected(self, reason: str | None, addresses: Addresses) -> None:
        self._asking = None
        if reason is None:
            self._go(addresses)
        else:
            self.deny(reason)

    # The upstream

    def _go(self, addresses: Addresses) -> None:
        if self._upstream is not None:
            if self._flow.destination in addresses:
                self._join()
                return
            self._drop_upstream()
        self._dial = reach(self._shared.runtime, addresses, None, self._dialled)

    def _dialled(self, outcome: Side | DialError, address: SocketAddress | None) -> None:
        self._dial = None
        self._flow.upstream = address
        if isinstance(outcome, ProxyLoopDetected):
            self._flow.upstream = None
            self.looped()
        elif isinstance(outcome, DialError):
            self._end(outcome.end)
            self._downstream.abort()
        elif not isinstance(outcome, RelayProtocol):
            self._join_to(outcome, b"")

    def _join(self) -> None:
        upstream = self._upstream
        if upstream is None or not upstream.connected:
            # It is about to say so.
            return
        self._upstream = None
        self._forget_local()
        self._join_to(upstream.detach(), self._greeting)

    def _join_to(self, upstream: socket.socket, greeting: bytes) -> None:
        self._over = True
        downstream = self._downstream
        downstream.resume(INSIDE)
        Tunnel(downstream, self._flow, upstream, self._data, greeting, received=self._received)

    # Ends

    def deny(
        self, reason: str, rule: str | None = None, hint: str = "", end: FlowEnd = FlowEnd.DENIED
    ) -> None:
        """Refuse, and tell the client in its own language."""
        flow, downstream = self._flow, self._downstream
        if self._said is not None:
            flow.protocol = self._said.protocol
        flow.verdict = Verdict.DENY
        flow.reason = reason
        flow.rule = rule
        self._end(end)
        if flow.protocol is Protocol.TCP:
            downstream.abort()
            return
        if flow.protocol is Protocol.TLS:
            downstream.transport.write(_ACCESS_DENIED)
        else:
            downstream.transport.write(replies.render(replies.denied(reason, hint)))
        downstream.linger()

    def _end(self, end: FlowEnd) -> None:
        if self._over:
            return
        self._over = self._heard = True
        self._stop_waiting()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._drop_upstream()
        self._flow.received = self._received
        self._flow.finish(end)
        self._shared.judge.ended(self._flow)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        self._forget_local()
        if upstream is not None:
            upstream.abortConnection()

    def _forget_local(self) -> None:
        if self._local is not None:
            self._shared.runtime.guard.remove_upstream(self._local)
            self._local = None

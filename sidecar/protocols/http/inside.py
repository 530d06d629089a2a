"""May a client go on with what it says inside of its tunnel?

A client that asked for a name must not say another one inside (SNI, Host). One that asked
for an address may have to say a name, where only that could allow it: it is judged then,
as an intercepted one is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from sidecar.errors import DialError, ProxyLoopDetected, VerificationError
from sidecar.flow import FlowEnd, Protocol, Verdict
from sidecar.policy import Outcome
from sidecar.protocols.connecting import reach
from sidecar.protocols.denials import ACCESS_DENIED
from sidecar.protocols.http import replies
from sidecar.protocols.http.overhearing import INSIDE, Overhearing
from sidecar.protocols.http.tunnel import Tunnel
from sidecar.protocols.steps import objection
from sidecar.relay import RelayProtocol

if TYPE_CHECKING:
    import socket

    from twisted.python.failure import Failure

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial
    from sidecar.flow import Flow
    from sidecar.names.verifying import Addresses
    from sidecar.protocols.attempts import Attempts
    from sidecar.protocols.connecting import Connecting
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.relaying import Relaying
    from sidecar.relay import Side

__all__ = ["Inside"]


class Inside(Overhearing):
    """A tunnel until its client has said whom it is for.

    Args: as `Overhearing`.
    """

    _log = Logger()
    __slots__ = ("_asking", "_dial")

    def __init__(self, downstream: Downstream, flow: Flow, upstream: socket.socket | None) -> None:
        self._asking: Deferred[None] | None = None
        self._dial: Dial | Attempts | Connecting | None = None
        super().__init__(downstream, flow, upstream)
        if not self._judged_again and flow.destination is not None:
            self._shared.judge.relayed(flow, cast("Relaying", self))
        data = downstream.give_to(self)
        if data:
            self.client_received(data)
        elif downstream.ended:
            self.client_ended()

    # The verdict

    def _peeked(self) -> None:
        self._heard = True
        self._stop_waiting()
        # As for one without a name, which doesn't matter any more.
        self._stop_asking()
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

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

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

    # A server that speaks first

    def _server_speaks(self) -> None:
        """May its client hear it? As one that gives no name, for now."""
        shared, flow = self._shared, self._flow
        destination = flow.destination
        if destination is None:
            return
        decision = shared.judge.policy.judge(
            destination.host, destination.port, protocol=Protocol.TCP
        )
        if decision.outcome is not Outcome.ALLOW:
            self.deny(decision.reason.value, decision.rule_with_place, decision.hint)
            return
        flow.reason = decision.reason.value
        flow.rule = decision.rule_with_place
        judge = shared.judge
        if not judge.steps:
            self._may_hear(None)
            return
        asked = objection(shared.runtime.reactor, judge.steps, flow, judge.deadline)
        self._ask(Deferred.fromCoroutine(asked).addCallback(self._may_hear))

    def _may_hear(self, reason: str | None) -> None:
        self._asking = None
        if self._over or self._heard or self._data:
            # The client has spoken meanwhile: judged by that.
            return
        if reason is not None:
            self.deny(reason)
            return
        self._server_spoke = True
        self._shared.judge.relayed(self._flow, cast("Relaying", self))
        greeting, self._greeting = self._greeting, b""
        self._pass_on(greeting)
        if self._upstream is not None:
            self._upstream.resumeProducing()

    # The upstream

    def _go(self, addresses: Addresses) -> None:
        if self._upstream is not None:
            if self._flow.destination in addresses:
                self._join()
                return
            if self._server_spoke:
                self.deny("server_spoke_first")
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
        self._forget_ends()
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
        flow.hint = hint
        self._end(end)
        if flow.protocol is Protocol.TCP:
            downstream.abort()
            return
        if flow.protocol is Protocol.TLS:
            downstream.transport.write(ACCESS_DENIED)
        else:
            downstream.transport.write(replies.render(replies.denied(reason, hint)))
        downstream.linger()

    def _end(self, end: FlowEnd) -> None:
        if self._over:
            return
        self._over = self._heard = True
        self._stop_waiting()
        self._stop_asking()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._drop_upstream()
        self._flow.received = self._received
        self._flow.finish(end)
        self._shared.judge.ended(self._flow)

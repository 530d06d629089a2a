"""How does a request that may go reach its server, and how does it end?

    ASKING ──► DIALLING ──► FORWARDING ──► DONE
       │           │             │
       └───────────┴─────────────┴── an answer of our own, or the client's connection cut

A tunnel is done once it is open: what is inside is others' (`inside`, `tunnel`).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from sidecar.errors import DialError, ProxyLoopDetected, TunnelRefused
from sidecar.flow import FlowEnd, Verdict
from sidecar.names.verifying import Off
from sidecar.protocols.connecting import reach
from sidecar.protocols.http import replies
from sidecar.protocols.http.asking import CONNECT, Asking
from sidecar.protocols.http.forwarding import own_answer, passed_through
from sidecar.protocols.http.inside import Inside
from sidecar.protocols.http.tunnel import Tunnel
from sidecar.protocols.http.upstream import Upstream
from sidecar.protocols.through import reach_proxy, reach_through
from sidecar.relay import RelayProtocol
from sidecar.wire.http1.messages import Framing

if TYPE_CHECKING:
    import socket

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial
    from sidecar.protocols.attempts import Attempts
    from sidecar.protocols.connecting import Connecting
    from sidecar.protocols.http.answer import Answer
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.http.replies import Reply
    from sidecar.protocols.through import Reaching
    from sidecar.relay import Side
    from sidecar.wire.http1.messages import RequestHead

__all__ = ["Phase", "Serving"]

# Methods that may be sent again where nothing says that they were not served (RFC 9110
# §9.2.2), without a body, so that there is nothing to be kept for it.
_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_OK = 200
_LOOP_DETECTED = 508


class Phase(Enum):
    """How far a request is."""

    ASKING = "asking"
    DIALLING = "dialling"
    FORWARDING = "forwarding"
    DONE = "done"


_ASKING = Phase.ASKING
_DIALLING = Phase.DIALLING
_DONE = Phase.DONE


class Serving(Asking):
    """One request on its way to a server, and to its end.

    Args: as `Asking`.

    Attributes:
        request_done: Whether all of the request has been read.
    """

    __slots__ = ("_answer", "_dial", "_phase", "_upstream", "request_done")

    def __init__(self, downstream: Downstream, head: RequestHead) -> None:
        super().__init__(downstream, head)
        self.request_done = False
        self._phase = _ASKING
        self._answer: Answer | None = None
        self._dial: Dial | Attempts | Connecting | Reaching | None = None
        self._upstream: Upstream | None = None

    def _forward(self, upstream: Upstream, *, repeatable: bool) -> None:
        """Go on: here is a connection to the server.

        Args:
            upstream: Serves this request alone, for now.
            repeatable: Whether the request may be sent again if it proves dead.
        """
        raise NotImplementedError

    # What came of asking

    def _no_further(self) -> None:
        goes_on = self.head.keep_alive and self.request_done
        self._phase = _DONE
        self.flow.status = _OK
        self._downstream.transport.write(own_answer(self.head, keep_alive=goes_on))
        self._finish(FlowEnd.CLOSED, goes_on)

    def _allowed(self) -> None:
        self._phase = _DIALLING
        head, pool = self.head, self._shared.pool
        if head.method != CONNECT:
            repeatable = head.framing is Framing.NONE and head.method in _REPEATABLE
            pinned = self._downstream.pinned
            if pinned is not None and pinned.key in (self.proxy, *self.addresses):
                self._downstream.pinned = None
                self._forward(pinned, repeatable=repeatable)
                return
            for key in (self.proxy,) if self.proxy else self.addresses:
                upstream = pool.take(key, repeatable=repeatable)
                if upstream is not None:
                    self._forward(upstream, repeatable=repeatable)
                    return
        self._dial_anew()

    def _name_needed(self) -> None:
        self._tunnel(None)

    # Dialling

    def _dial_anew(self) -> None:
        self._phase = _DIALLING
        runtime = self._shared.runtime
        proxy, resolver = self.proxy, self._shared.resolver
        if proxy is None:
            self._dial = reach(runtime, self.addresses, None, self._dialled)
        elif self.head.method == CONNECT:
            via = passed_through(self.head, self._shared.pseudonym.via)
            authority = self.place.authority
            self._dial = reach_through(runtime, resolver, proxy, authority, self._dialled, via=via)
        else:
            self._dial = reach_proxy(runtime, resolver, proxy, self._dialled)

    def _dialled(self, outcome: Side | DialError, address: SocketAddress | None) -> None:
        self._dial = None
        flow = self.flow
        if isinstance(outcome, ProxyLoopDetected) or _is_loop(outcome):
            self.fail(replies.LOOP)
            return
        flow.upstream = address
        if isinstance(outcome, DialError):
            self._unreachable(outcome)
        elif isinstance(outcome, RelayProtocol):
            # Addresses and proxies are reached by sockets alone.
            self.fail(replies.INTERNAL_ERROR)
        elif self.head.method == CONNECT:
            self._tunnel(outcome)
        else:
            upstream = Upstream(self._shared, outcome, address, self.proxy or address)
            self._forward(upstream, repeatable=False)

    def _unreachable(self, error: DialError) -> None:
        downstream, flow = self._downstream, self.flow
        if not downstream.routing.unseen or self.addresses != (flow.destination,):
            self.fail(replies.reply_to(error))
            return
        # What the client would feel if it had dialled itself, which it believes.
        self._stop()
        flow.finish(error.end)
        downstream.abort()

    def _tunnel(self, upstream: socket.socket | None) -> None:
        """Open the client's tunnel (RFC 9110 §9.3.6)."""
        self._phase = _DONE
        flow, downstream = self.flow, self._downstream
        flow.status = _OK
        downstream.transport.write(_ESTABLISHED)
        undecided = flow.host is None and not flow.names_known
        if upstream is not None and not undecided and isinstance(self._shared.judge.verifier, Off):
            # The client is believed, whatever it says inside.
            self._join(upstream, b"", b"")
        elif upstream is not None and flow.host is None and not undecided:
            self._join(upstream, b"", b"")
        else:
            Inside(downstream, flow, upstream)

    def _join(self, upstream: socket.socket, to_upstream: bytes, to_downstream: bytes) -> None:
        downstream = self._downstream
        ahead = downstream.give_up()
        Tunnel(
            downstream,
            self.flow,
            upstream,
            to_upstream + ahead,
            to_downstream,
            skipped=len(to_upstream),
        )

    # Ends

    def fail(self, reply: Reply, rule: str | None = None, challenge: bytes | None = None) -> None:
        """Answer in the server's place; where it has begun to answer, cut that off."""
        if self._phase is _DONE:
            return
        self._stop()
        flow, head, downstream = self.flow, self.head, self._downstream
        if self._answer is not None:
            flow.finish(reply.end)
            downstream.cut(orderly=self._answer.end_is_told)
            return
        if reply.denies:
            flow.verdict = Verdict.DENY
            flow.reason = reply.reason
            flow.rule = rule
            flow.hint = reply.hint
        flow.status = reply.status
        goes_on = head.keep_alive and self.request_done and not reply.closes
        if head.method == CONNECT:
            # What follows was meant for the tunnel, and may be there already: it must
            # not be read as requests.
            goes_on = False
            self.request_done = False
        downstream.transport.write(
            replies.render(
                reply,
                head=head.method == b"HEAD",
                minor_version=head.minor_version,
                keep_alive=goes_on,
                challenge=challenge,
            )
        )
        self._finish(reply.end, goes_on)

    def _finish(self, end: FlowEnd, goes_on: bool) -> None:
        flow, downstream = self.flow, self._downstream
        flow.finish(end)
        if goes_on:
            downstream.exchanged(flow.started_monotonic + flow.seconds)
        elif self.request_done and not downstream.sends_ahead:
            downstream.close()
        else:
            downstream.linger()

    def client_lost(self, end: FlowEnd) -> None:
        """The client is gone."""
        if self._phase is not _DONE:
            if self._phase is _ASKING:
                # Nobody has allowed it.
                self.flow.verdict = Verdict.DENY
                self.flow.reason = "not_judged"
                self.flow.rule = None
            self._stop()
            self.flow.finish(end)

    def shut_down(self) -> None:
        """The process ends, which the server's connection was told first."""
        self.client_lost(FlowEnd.SHUTDOWN)
        self._downstream.abort()

    def looped(self) -> None:
        """The connection upstream came back to one of our own listeners."""
        self._upstream = None
        self.fail(replies.LOOP)

    def _stop(self) -> None:
        self._phase = _DONE
        self._stop_asking()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._drop_upstream()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()


def _is_loop(outcome: Side | DialError) -> bool:
    """Whether the next proxy has found that the way leads back to it, or to us."""
    return isinstance(outcome, TunnelRefused) and outcome.status == _LOOP_DETECTED

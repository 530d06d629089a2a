"""One request and its response, or its tunnel: from the head to the log line.

ASKING ──► DIALLING ──► FORWARDING ──► DONE
│           │             │
└───────────┴─────────────┴── an answer of our own, or the client's connection cut
"""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from sidecar.errors import DialError, ProxyLoopDetected, TunnelRefused
from sidecar.flow import FlowEnd, Verdict
from sidecar.names.verifying import Off
from sidecar.protocols.connecting import reach
from sidecar.protocols.http import replies
from sidecar.protocols.http.answer import Answer, interim, switching
from sidecar.protocols.http.asking import CONNECT, Asking
from sidecar.protocols.http.forwarding import (
    names_connection,
    own_answer,
    passed_through,
    request,
    upgradable,
)
from sidecar.protocols.http.inside import Inside
from sidecar.protocols.http.tunnel import Tunnel
from sidecar.protocols.http.upstream import Upstream
from sidecar.protocols.through import reach_proxy, reach_through
from sidecar.relay import RelayProtocol
from sidecar.wire.http1.messages import (
    END,
    Framing,
    HttpMessageError,
    HttpMessageReason,
    ResponseHead,
    Trailers,
)
from sidecar.wire.http1.writing import LAST_CHUNK, chunk, trailers

if TYPE_CHECKING:
    import socket

    from sidecar.addresses import SocketAddress
    from sidecar.dialing import Dial
    from sidecar.protocols.attempts import Attempts
    from sidecar.protocols.connecting import Connecting
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.http.replies import Reply
    from sidecar.protocols.through import Reaching
    from sidecar.relay import Side
    from sidecar.wire.http1.messages import Event, RequestHead

__all__ = ["UPLOAD", "Exchange"]

UPLOAD = 2
"""Why a client isn't read: what it sends can't be passed on yet."""

# Bytes of a request's body that are kept while its server is being looked for; the rest
# waits in the kernel.
_EARLY_BYTES = 1 << 16
# Methods that may be sent again where nothing says that they were not served (RFC 9110
# §9.2.2), without a body, so that there is nothing to be kept for it.
_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_SWITCHING_PROTOCOLS = 101
_OK = 200
_PROXY_AUTHENTICATION_REQUIRED = 407
_LOOP_DETECTED = 508


def _is_loop(outcome: Side | DialError) -> bool:
    """Whether the next proxy has found that the way leads back to it, or to us."""
    return isinstance(outcome, TunnelRefused) and outcome.status == _LOOP_DETECTED


class Phase(Enum):
    """How far an exchange is."""

    ASKING = "asking"
    DIALLING = "dialling"
    FORWARDING = "forwarding"
    DONE = "done"


_ASKING = Phase.ASKING
_DIALLING = Phase.DIALLING
_FORWARDING = Phase.FORWARDING
_DONE = Phase.DONE


@implementer(IPushProducer)
class Exchange(Asking):
    """One request and its response.

    Args: as `Asking`.

    Attributes:
        request_done: Whether all of the request has been read.
    """

    __slots__ = (
        "_answer",
        "_checked",
        "_dial",
        "_interim",
        "_pending",
        "_phase",
        "_repeat",
        "_taken_down",
        "_taken_up",
        "_upload_paused",
        "_upstream",
        "_waiting_since",
        "request_done",
    )

    def __init__(self, downstream: Downstream, head: RequestHead) -> None:
        super().__init__(downstream, head)
        self.request_done = False
        self._phase = _ASKING
        self._pending = b""
        self._answer: Answer | None = None
        self._dial: Dial | Attempts | Connecting | Reaching | None = None
        self._upstream: Upstream | None = None
        self._repeat = b""
        # Whether the next END is that of a response which another one follows.
        self._interim = False
        self._upload_paused = False
        # For `look`: since when the response is waited for; when progress was checked
        # last, and what had been taken by then.
        self._waiting_since = self._checked = self.flow.started_monotonic
        self._taken_up = self._taken_down = 0

    def start(self, events: list[Event], error: HttpMessageError | None) -> None:
        """Begin.

        Args:
            events: The head, and what is there of the rest.
            error: What is wrong with what follows them.
        """
        self.request_done = events[-1] is END
        if not self._identify():
            return
        if self.head.framing is not Framing.NONE:
            limit = self._shared.limits.body_bytes
            if limit is not None and self.head.length > limit:
                self.fail(replies.CONTENT_TOO_LARGE)
                return
            self._pending = self._read(events[1:])
        if error is not None:
            self.malformed(error)
        if self._phase is not _DONE:
            self._ask()

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
            self.fail(replies.reply_to(outcome))
        elif isinstance(outcome, RelayProtocol):
            # Addresses and proxies are reached by sockets alone.
            self.fail(replies.INTERNAL_ERROR)
        elif self.head.method == CONNECT:
            self._tunnel(outcome)
        else:
            upstream = Upstream(self._shared, outcome, address, self.proxy or address)
            self._forward(upstream, repeatable=False)

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

    # Forwarding: the request

    def _forward(self, upstream: Upstream, *, repeatable: bool) -> None:
        self._phase = _FORWARDING
        self._upstream = upstream
        head, shared = self.head, self._shared
        self.flow.upstream = upstream.address
        data = request(head, self.target, self.place, shared.pseudonym.via, self.proxy)
        if self._pending:
            data += self._pending
            self._pending = b""
        if repeatable:
            self._repeat = data
        if not self.request_done:
            upstream.transport.registerProducer(self, True)
            self._downstream.resume(UPLOAD)
        upstream.send(self, head.method, data)

    def read(self, events: list[Event]) -> None:
        """More of the request is there."""
        data = self._read(events)
        if self._phase is _DONE:
            return
        upstream = self._upstream
        if upstream is not None:
            if data:
                upstream.transport.write(data)
            if self.request_done:
                self._waiting_since = time.monotonic()
                upstream.transport.unregisterProducer()
        else:
            self._pending += data
            if len(self._pending) > _EARLY_BYTES and not self.request_done:
                self._downstream.pause(UPLOAD)

    def _read(self, events: list[Event]) -> bytes:
        """Take down a part of the request.

        Returns:
            It, as it is sent on.
        """
        flow = self.flow
        chunked = self.head.framing is Framing.CHUNKED
        out = []
        section: Trailers | None = None
        for event in events:
            if isinstance(event, bytes):
                flow.sent += len(event)
                out.append(chunk(event) if chunked else event)
            elif event is END:
                self.request_done = True
                if chunked:
                    out.append(LAST_CHUNK if section is None else trailers(section.fields))
            elif isinstance(event, Trailers):
                section = event
        limit = self._shared.limits.body_bytes
        if limit is not None and flow.sent > limit:
            self.fail(replies.CONTENT_TOO_LARGE)
        return out[0] if len(out) == 1 else b"".join(out)

    def malformed(self, error: HttpMessageError) -> None:
        """What follows of the request is none."""
        self.request_done = False
        self.fail(replies.malformed_request(error))

    # Forwarding: the response

    def respond(self, events: list[Event]) -> None:
        """A part of the response is there."""
        out: list[bytes] = []
        ended = False
        for event in events:
            if isinstance(event, bytes):
                self.flow.received += len(event)
                out.append(cast("Answer", self._answer).piece(event))
            elif event is END:
                ended = not self._interim
                self._interim = False
            elif not self._take(event, out):
                return
        if ended:
            end = cast("Answer", self._answer).end()
            if end:
                out.append(end)
        if out:
            self._downstream.transport.write(out[0] if len(out) == 1 else b"".join(out))
        if ended:
            self._complete()

    def _take(self, event: Event, out: list[bytes]) -> bool:
        """Take a head, or trailers.

        Returns:
            Whether the exchange goes on as one.
        """
        if not isinstance(event, ResponseHead):
            if isinstance(event, Trailers):
                cast("Answer", self._answer).trailers = event.fields
            return True
        if event.status >= _OK:
            return self._begin_answer(event, out)
        if event.status == _SWITCHING_PROTOCOLS:
            self._switch(event, out)
            return False
        self._interim = True
        if self.head.minor_version:
            out.append(interim(event, self._shared.pseudonym.via))
        return True

    def _begin_answer(self, head: ResponseHead, out: list[bytes]) -> bool:
        if self.proxy is not None and head.status == _PROXY_AUTHENTICATION_REQUIRED:
            # Its password is ours to know, not the client's.
            self._drop_upstream()
            self.fail(replies.UPSTREAM_PROXY_REFUSED)
            return False
        self.flow.status = head.status
        upstream = self._upstream
        if upstream is not None and names_connection(self.head, head):
            upstream.owner = self._downstream
        self._answer = answer = Answer(
            self.head, head, self._shared.pseudonym.via, may_go_on=self.request_done
        )
        out.append(answer.head)
        return True

    def _switch(self, head: ResponseHead, out: list[bytes]) -> None:
        """From here on the two speak another protocol (RFC 9110 §7.8)."""
        upstream = self._upstream
        offered = upgradable(self.head)
        if offered is None or not self.request_done or upstream is None or head.upgrade is None:
            unasked = HttpMessageError(HttpMessageReason.UNSOLICITED, in_response=True)
            self.response_failed(unasked)
            return
        out.append(switching(head, self._shared.pseudonym.via))
        self._downstream.transport.write(b"".join(out))
        self.flow.status = head.status
        detached = upstream.detach()
        if detached is None:
            return
        self._phase = _DONE
        self._upstream = None
        rest, unwritten, sock = detached
        self._join(sock, unwritten, rest)

    def _complete(self) -> None:
        """The response is passed on."""
        upstream, answer = self._upstream, self._answer
        assert upstream is not None  # noqa: S101 - whose response it is
        assert answer is not None  # noqa: S101 - likewise
        self._phase = _DONE
        self._upstream = None
        if not self.request_done:
            upstream.abort()
        elif answer.upstream_goes_on:
            if self._downstream.congested:
                upstream.transport.resumeProducing()
            upstream.release()
        else:
            upstream.close()
        self._finish(FlowEnd.CLOSED, answer.goes_on)

    def response_failed(self, error: HttpMessageError) -> None:
        """What the server sends is no response, or not any more."""
        self._drop_upstream()
        self.fail(replies.malformed_response(error))

    def upstream_lost(self, error: HttpMessageError | None) -> None:
        """The server has closed the connection too early.

        Args:
            error: What that makes of the response; None for a reset.
        """
        if self._phase is not _FORWARDING:
            return
        upstream = self._upstream
        self._drop_upstream()
        if self._repeat and upstream is not None and upstream.reused and not upstream.heard:
            # It was closing when we took it for idle.
            self._repeat = b""
            if upstream.address is not None and self.proxy is None:
                self.addresses = (upstream.address,)
            self._dial_anew()
            return
        if error is None:
            self.fail(replies.reply_to_end(FlowEnd.SERVER_RESET) or replies.INTERNAL_ERROR)
        else:
            self.fail(replies.malformed_response(error))

    def shut_down(self) -> None:
        """The process ends, which the server's connection was told first."""
        self.client_lost(FlowEnd.SHUTDOWN)
        self._downstream.abort()

    def looped(self) -> None:
        """The connection upstream came back to one of our own listeners."""
        self._upstream = None
        self.fail(replies.LOOP)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

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

    def _stop(self) -> None:
        self._phase = _DONE
        self._stop_asking()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._drop_upstream()

    # Back-pressure: the client as a reader, and (IPushProducer) as a writer

    def pause(self) -> None:
        """The client doesn't take what it is sent."""
        if self._upstream is not None:
            self._upstream.transport.pauseProducing()

    def resume(self) -> None:
        """It has taken everything."""
        if self._upstream is not None:
            self._upstream.transport.resumeProducing()

    def pauseProducing(self) -> None:
        """The server doesn't take the request's body."""
        self._upload_paused = True
        self._downstream.pause(UPLOAD)

    def resumeProducing(self) -> None:
        """It has taken everything."""
        self._upload_paused = False
        self._downstream.resume(UPLOAD)

    def stopProducing(self) -> None:
        """It is gone; it says so itself."""

    # The patrol's side

    def look(self, now: float) -> None:
        """See whether somebody takes too long."""
        if self._phase is not _FORWARDING:
            # Whoever is asked or dialled has a deadline.
            return
        limits = self._shared.limits
        waiting = self._answer is None and self.request_done
        if waiting and now - self._waiting_since > limits.response_timeout:
            self.fail(replies.RESPONSE_TIMEOUT)
            return
        if now - self._checked < limits.progress_timeout:
            return
        self._checked = now
        flow, downstream, upstream = self.flow, self._downstream, self._upstream
        up = flow.sent - (0 if upstream is None else upstream.transport.unwritten)
        down = flow.received - getattr(downstream.transport, "unwritten", 0)
        slow_up = up - self._taken_up < limits.progress_bytes
        slow_down = down - self._taken_down < limits.progress_bytes
        self._taken_up, self._taken_down = up, down
        if downstream.congested and slow_down:
            self.client_lost(FlowEnd.IDLE_TIMEOUT)
            downstream.abort()
        elif not self.request_done and slow_up:
            # Whose fault is it?
            self.fail(replies.RESPONSE_TIMEOUT if self._upload_paused else replies.REQUEST_TIMEOUT)

"""How a request and its response are passed on, in pieces, as fast as both sides take them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from sidecar.flow import FlowEnd
from sidecar.protocols.http import replies
from sidecar.protocols.http.answer import Answer, interim, switching
from sidecar.protocols.http.forwarding import names_connection, request, upgradable
from sidecar.protocols.http.serving import Phase, Serving
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
    from sidecar.protocols.http.downstream import Downstream
    from sidecar.protocols.http.upstream import Upstream
    from sidecar.wire.http1.messages import Event, RequestHead

__all__ = ["UPLOAD", "Exchange"]

UPLOAD = 2
"""Why a client isn't read: what it sends can't be passed on yet."""

# Bytes of a request's body that are kept while its server is being looked for; the rest
# waits in the kernel.
_EARLY_BYTES = 1 << 16
_SWITCHING_PROTOCOLS = 101
_OK = 200
_PROXY_AUTHENTICATION_REQUIRED = 407

_FORWARDING = Phase.FORWARDING
_DONE = Phase.DONE


@implementer(IPushProducer)
class Exchange(Serving):
    """One request and its response.

    Args: as `Serving`.
    """

    __slots__ = (
        "_checked",
        "_interim",
        "_pending",
        "_repeat",
        "_taken_down",
        "_taken_up",
        "_upload_paused",
        "_waiting_since",
    )

    def __init__(self, downstream: Downstream, head: RequestHead) -> None:
        super().__init__(downstream, head)
        self._pending = b""
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

    # Forwarding: the request

    def _forward(self, upstream: Upstream, *, repeatable: bool) -> None:
        self._phase = _FORWARDING
        self._upstream = upstream
        head, shared = self.head, self._shared
        self.flow.upstream = upstream.address
        data = request(head, self.target, self.place, shared.pseudonym.via, self.proxy)
        if self.flow.connection is not None:
            # Somebody looks on.
            self.flow.counts = self.taken
            self.flow.head_sent = len(data)
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

    @property
    def answering(self) -> bool:
        """Whether the client has been sent a part of its answer."""
        return self._answer is not None

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

    def taken(self) -> tuple[int, int]:
        """How many bytes the server, and the client, have taken."""
        flow, upstream = self.flow, self._upstream
        # Heads may be unwritten, too.
        return (
            max(0, flow.sent - (0 if upstream is None else upstream.transport.unwritten)),
            max(0, flow.received - getattr(self._downstream.transport, "unwritten", 0)),
        )

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
        downstream = self._downstream
        up, down = self.taken()
        slow_up = up - self._taken_up < limits.progress_bytes
        slow_down = down - self._taken_down < limits.progress_bytes
        self._taken_up, self._taken_down = up, down
        if downstream.congested and slow_down:
            self.client_lost(FlowEnd.IDLE_TIMEOUT)
            downstream.abort()
        elif not self.request_done and slow_up:
            # Whose fault is it?
            self.fail(replies.RESPONSE_TIMEOUT if self._upload_paused else replies.REQUEST_TIMEOUT)

"""How is a server's response passed on to this client?

Its framing is made anew for the client: by length where that is known, chunked for clients
of HTTP/1.1, to the end of the connection for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.wire.http1.messages import Framing
from sidecar.wire.http1.writing import (
    LAST_CHUNK,
    chunk,
    forwardable,
    forwardable_lines,
    response_head,
    trailers,
)

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Fields, RequestHead, ResponseHead

__all__ = ["Answer", "interim", "switching"]

_UPGRADE_REQUIRED = 426
# As `response_head` would write it.
_PLAIN = b"HTTP/1.1 %d %b\r\n%bVia: %b\r\n%b"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


class Answer:
    """One response on its way to a client.

    Args:
        request: What it answers.
        response: The head as it was received.
        via: A line of Via for each version of HTTP/1.
        may_go_on: Whether the client's connection may be used again afterwards.

    Attributes:
        head: The head as it is sent.
        goes_on: Whether the client's connection may be used again afterwards, and the
            client was told so.
        end_is_told: Whether a client notices that a response is cut off, when its
            connection ends in good order.
        upstream_goes_on: Whether the server's connection may be used again afterwards.
        trailers: The fields behind the body, as they were received; set before `end`.
    """

    __slots__ = (
        "_chunked",
        "_wants_trailers",
        "end_is_told",
        "goes_on",
        "head",
        "trailers",
        "upstream_goes_on",
    )

    def __init__(
        self,
        request: RequestHead,
        response: ResponseHead,
        via: tuple[bytes, bytes],
        *,
        may_go_on: bool,
    ) -> None:
        framing, length = response.framing, response.content_length
        self.upstream_goes_on = response.keep_alive and framing is not Framing.CLOSE
        self._chunked = False
        if framing is Framing.CHUNKED or framing is Framing.CLOSE:
            self._chunked = bool(request.minor_version)
            framing = Framing.CHUNKED if self._chunked else Framing.CLOSE
        self._wants_trailers = request.trailers
        self.trailers: Fields | None = None
        self.end_is_told = framing is not Framing.CLOSE
        self.goes_on = goes_on = may_go_on and request.keep_alive and self.end_is_told
        connection = None
        if not goes_on:
            connection = b"close"
        elif not request.minor_version:
            connection = b"keep-alive"
        if connection is None and self.end_is_told and response.status != _UPGRADE_REQUIRED:
            # Nearly all are like this.
            end = b"\r\n" if length is None else b"Content-Length: %d\r\n\r\n" % length
            self.head = _PLAIN % (
                response.status,
                response.reason,
                forwardable_lines(response),
                via[response.minor_version],
                _CHUNKED if self._chunked else end,
            )
            return
        self.head = response_head(
            response.status,
            response.reason,
            forwardable(response.fields, response.options),
            framing,
            length,
            via=via[response.minor_version],
            connection=connection,
            upgrade=response.upgrade if response.status == _UPGRADE_REQUIRED else None,
        )

    def piece(self, data: bytes) -> bytes:
        """A piece of the body, as it is sent."""
        return chunk(data) if self._chunked else data

    def end(self) -> bytes:
        """What is sent at the end of the body."""
        if not self._chunked:
            return b""
        if self.trailers is None or not self._wants_trailers:
            return LAST_CHUNK
        return trailers(self.trailers)


def interim(response: ResponseHead, via: tuple[bytes, bytes]) -> bytes:
    """A response that another one follows (RFC 9110 §15.2), as it is sent."""
    return response_head(
        response.status,
        response.reason,
        forwardable(response.fields, response.options),
        Framing.NONE,
        via=via[response.minor_version],
    )


def switching(response: ResponseHead, via: tuple[bytes, bytes]) -> bytes:
    """The last words in HTTP before another protocol (RFC 9110 §7.8), as they are sent."""
    return response_head(
        response.status,
        response.reason,
        forwardable(response.fields, response.options),
        Framing.NONE,
        via=via[response.minor_version],
        upgrade=response.upgrade,
    )

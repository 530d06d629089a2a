"""Reaching destinations through an upstream proxy, with sockets rather than transports."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from sidecar.addresses import SocketAddress
from sidecar.errors import (
    ConnectionReset,
    DestinationUnroutable,
    DialError,
    ProxyLoopDetected,
    TunnelError,
    TunnelRefused,
    TunnelReplyMalformed,
    TunnelTimeout,
    TunnelUnauthorized,
)
from sidecar.relay.poller import READ, WRITE
from sidecar.wire.connect import ConnectReply, connect_request
from sidecar.wire.http1.errors import HttpMessageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from sidecar.addresses import Authority
    from sidecar.dialing import Dial
    from sidecar.names.resolving import INameResolver
    from sidecar.runtime import Runtime
    from sidecar.upstream_proxy import UpstreamProxy

    Done = Callable[[socket.socket | DialError, SocketAddress | None], None]

__all__ = ["Reaching", "reach_proxy", "reach_through", "refusal"]

# Of a proxy's name; each that is silent holds the client for as long as a dial may take.
_ADDRESSES = 4
# Bytes looked at at a time; replies to CONNECT have a hundred or two.
_PEEK = 4096
_BLANK_LINE = b"\r\n\r\n"
# RFC 9110 §15.5.8; and what tinyproxy answers to wrong credentials.
_UNAUTHORIZED = frozenset({407, 401})


def reach_proxy(
    runtime: Runtime, resolver: INameResolver, proxy: UpstreamProxy, done: Done
) -> Reaching | None:
    """Connect to a proxy, for requests in absolute form.

    Args:
        runtime: Whose dialer is used, and whose `limits.connect_timeout` for each address.
        resolver: Finds the proxy's addresses, if it has a name; they are tried in turn.
        proxy: Where to. Its `authorization` is the caller's to send, in every request.
        done: Called once, with the connected non-blocking socket, which is the
            callee's, or what went wrong; and with the address dialled last, if any was.
            Perhaps before this returns.

    Returns:
        What can be cancelled; None if `done` was called.
    """
    return _pending(Reaching(runtime, resolver, proxy, None, done))


def reach_through(
    runtime: Runtime,
    resolver: INameResolver,
    proxy: UpstreamProxy,
    authority: Authority,
    done: Done,
    *,
    via: bytes | None = None,
) -> Reaching | None:
    """Connect to a proxy and have it open a tunnel (CONNECT, RFC 9110 §9.3.6).

    Args:
        runtime, resolver, proxy: As `reach_proxy`. The proxy has another
            `limits.connect_timeout` for its answer.
        authority: Where the tunnel leads; a name is resolved by the proxy.
        done: As `reach_proxy`: a plain TCP socket, and the proxy's address. Everything
            that followed the proxy's reply is still in the socket, unread.
        via: As `connect_request`: without it, two proxies that are each other's next
            one would pass a request to and fro.

    Returns:
        What can be cancelled; None if `done` was called.
    """
    return _pending(Reaching(runtime, resolver, proxy, authority, done, via))


def _pending(reaching: Reaching) -> Reaching | None:
    return reaching if reaching.pending else None


def refusal(authority: str, proxy: str, status: int, *, with_credentials: bool) -> TunnelRefused:
    """Which error a status other than 2xx is.

    Args:
        authority, proxy: Who was to be reached, through whom.
        status: What the proxy answered.
        with_credentials: Whether it was given any.
    """
    if status in _UNAUTHORIZED:
        wants = "does not accept the credentials" if with_credentials else "wants credentials"
        return TunnelUnauthorized(authority, f"the proxy {proxy} {wants} ({status})", status)
    return TunnelRefused(authority, f"the proxy {proxy} answered {status}", status)


class Reaching:
    """The way to a proxy, or through it: its name resolved, dialled, asked.

    Args: as `reach_proxy` and `reach_through`; `authority` is None for the former.

    Attributes:
        pending: Whether `done` is yet to be called.
    """

    __slots__ = (
        "_attempt",
        "_authority",
        "_done",
        "_left",
        "_proxy",
        "_runtime",
        "_via",
        "pending",
    )
    _log = Logger()

    def __init__(
        self,
        runtime: Runtime,
        resolver: INameResolver,
        proxy: UpstreamProxy,
        authority: Authority | None,
        done: Done,
        via: bytes | None = None,
    ) -> None:
        self._runtime = runtime
        self._proxy = proxy
        self._authority = authority
        self._done = done
        self._via = via
        self._left: list[SocketAddress] = []
        self._attempt: Dial | _Asking | Deferred[tuple[str, ...]] | None = None
        self.pending = True
        if not isinstance(proxy.host, str):
            self._dial(SocketAddress(str(proxy.host), proxy.port))
            return
        resolving: Deferred[tuple[str, ...]] = resolver.resolve(proxy.host)
        self._attempt = resolving
        resolving.addCallbacks(self._resolved, self._not_resolved)
        resolving.addErrback(self._bug)

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self.pending = False
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()

    def _finish(self, outcome: socket.socket | DialError, address: SocketAddress | None) -> None:
        self._attempt = None
        self.pending = False
        self._done(outcome, address)

    # The name

    def _resolved(self, addresses: tuple[str, ...]) -> None:
        port = self._proxy.port
        first, *self._left = [SocketAddress(host, port) for host in addresses[:_ADDRESSES]]
        self._dial(first)

    def _not_resolved(self, failure: Failure) -> None:
        if not self.pending and failure.check(CancelledError) is not None:
            return
        error = failure.value
        if not isinstance(error, DialError):
            error = DestinationUnroutable(str(self._proxy), failure.getErrorMessage())
        self._finish(error, None)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("bug in who wanted a connection through a proxy", failure)

    # The connection

    def _dial(self, address: SocketAddress) -> None:
        self._attempt = None
        dial = self._runtime.dialer.dial(address, self._dialled)
        if dial is not None:
            self._attempt = dial

    def _dialled(self, outcome: socket.socket | DialError, address: SocketAddress) -> None:
        if isinstance(outcome, DialError):
            if self._left and not isinstance(outcome, ProxyLoopDetected):
                self._dial(self._left.pop(0))
            else:
                self._finish(outcome, address)
        elif self._authority is None:
            self._finish(outcome, address)
        else:
            self._attempt = _Asking(
                self._runtime,
                self._proxy,
                self._authority,
                outcome,
                address,
                self._finish,
                self._via,
            )


class _Asking:
    """A connection to a proxy that is asked for a tunnel.

    Only the reply is read, up to its last byte: what follows stays in the kernel, so
    the socket is as good as one to the destination itself.
    """

    __slots__ = (
        "_address",
        "_authority",
        "_done",
        "_ends",
        "_proxy",
        "_reply",
        "_runtime",
        "_sock",
        "_tail",
        "_timer",
        "_unsent",
    )

    def __init__(
        self,
        runtime: Runtime,
        proxy: UpstreamProxy,
        authority: Authority,
        sock: socket.socket,
        address: SocketAddress,
        done: Done,
        via: bytes | None,
    ) -> None:
        self._runtime = runtime
        self._proxy = proxy
        self._authority = str(authority)
        self._sock: socket.socket | None = sock
        self._address = address
        self._done = done
        self._reply = ConnectReply()
        self._tail = b""
        self._unsent = connect_request(self._authority.encode(), proxy.authorization, via)
        # Rules that catch our own connections bring this one back to us as well.
        self._ends = runtime.guard.track(sock, address, self)
        self._timer: IDelayedCall = runtime.reactor.callLater(
            runtime.limits.connect_timeout, self._expire
        )
        runtime.poller.register(sock.fileno(), READ | WRITE, self)

    # Pollable

    def ready(self, events: int) -> None:  # noqa: ARG002 - the socket itself is asked
        """The proxy takes our request, or answers."""
        try:
            if self._unsent and self._sock is not None:
                self._send(self._sock)
            while self._sock is not None and self._receive(self._sock):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            problem = f"the proxy {self._proxy}: {error.strerror or error}"
            self._fail(ConnectionReset(self._authority, problem))

    def failed(self) -> None:
        """A bug in `ready`, or in whoever was called: then the socket is theirs."""
        if self._sock is not None:
            self._fail(TunnelError(self._authority, "internal error"))

    def shut_down(self) -> None:
        """The process ends: whoever waits for us is told the same way."""
        self.cancel()

    def looped(self) -> None:
        """The connection came back to one of our own listeners."""
        self._fail(ProxyLoopDetected(str(self._address), "the connection came back to this proxy"))

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        if self._sock is not None:
            self._let_go(self._sock)
            self._sock.close()
            self._sock = None

    def _let_go(self, sock: socket.socket) -> None:
        self._runtime.poller.unregister(sock.fileno())
        self._runtime.guard.forget(self._ends)
        if self._timer.active():
            self._timer.cancel()

    def _fail(self, error: DialError) -> None:
        self.cancel()
        self._done(error, self._address)

    def _expire(self) -> None:
        timeout = self._runtime.limits.connect_timeout
        problem = f"the proxy {self._proxy} did not answer within {timeout:g} s"
        self._fail(TunnelTimeout(self._authority, problem))

    # The request and its reply

    def _send(self, sock: socket.socket) -> None:
        self._unsent = self._unsent[sock.send(self._unsent) :]
        if not self._unsent:
            self._runtime.poller.modify(sock.fileno(), READ)

    def _receive(self, sock: socket.socket) -> bool:
        """Read on, no further than to a head's end; whether there is more to read."""
        seen = self._tail + sock.recv(_PEEK, socket.MSG_PEEK)
        if len(seen) == len(self._tail):
            self._malformed("closed the connection instead of an answer")
            return False
        end = seen.find(_BLANK_LINE)
        stop = len(seen) if end < 0 else end + len(_BLANK_LINE)
        data = sock.recv(stop - len(self._tail))
        # The start of a blank line, perhaps; one that is complete is not seen again.
        self._tail = seen[-(len(_BLANK_LINE) - 1) :] if end < 0 else b""
        try:
            status = self._reply.feed(data)
        except HttpMessageError as error:
            self._malformed(f"sent no HTTP/1 response ({error.reason.value})")
            return False
        if status is None:
            return True
        if self._reply.rest():
            # A head that ended before its blank line, in the reader's eyes.
            self._malformed("sent a response of doubtful length")
        elif self._reply.opened:
            self._sock = None
            self._let_go(sock)
            self._done(sock, self._address)
        else:
            with_credentials = self._proxy.authorization is not None
            self._fail(
                refusal(
                    self._authority, str(self._proxy), status, with_credentials=with_credentials
                )
            )
        return False

    def _malformed(self, problem: str) -> None:
        self._fail(TunnelReplyMalformed(self._authority, f"the proxy {self._proxy} {problem}"))

"""Reaching an upstream, whichever kind it is: the attempts behind one outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Factory

from sidecar.addresses import SocketAddress
from sidecar.errors import (
    ConnectionRefused,
    ConnectionTimeout,
    DestinationUnroutable,
    DialError,
    NameNotResolved,
)
from sidecar.interfaces import ICancellable, IUpstream
from sidecar.protocols.attempts import Attempts
from sidecar.relay import RelayProtocol, Side
from sidecar.upstreams import HostPort, Upstream, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import (
        IAddress,
        IProtocol,
        IReactorPluggableNameResolver,
        IStreamClientEndpoint,
    )
    from twisted.python.failure import Failure

    from sidecar.dialing import Dial, Source
    from sidecar.runtime import Runtime

    Done = Callable[[Side | DialError, SocketAddress | None], None]

__all__ = ["Connecting", "reach"]


def reach(
    runtime: Runtime,
    upstream: Upstream | tuple[SocketAddress, ...],
    source: Source | None,
    done: Done,
) -> Dial | Attempts | Connecting | None:
    """Connect to an upstream.

    Args:
        runtime: Whose dialer is used.
        upstream: Where to. Several addresses, at least one, are tried in turn, and so
            are those of a host name.
        source: Where from; None leaves it to the kernel.
        done: Called once, with the connection, which is the callee's, or what went
            wrong, and with the address dialled last if that was one; perhaps before
            this returns.

    Returns:
        What can be cancelled; None if `done` was called.
    """
    if isinstance(upstream, SocketAddress):
        return runtime.dialer.dial(upstream, done, source)
    if isinstance(upstream, tuple):
        if len(upstream) == 1:
            return runtime.dialer.dial(upstream[0], done, source)
        attempts = Attempts(runtime, upstream, source, done)
        return attempts if attempts.pending else None
    connecting = Connecting(runtime, upstream, source, done)
    return connecting if connecting.pending else None


class Connecting:
    """The attempts to reach an upstream that is more than an address.

    Args: as `reach`.

    Attributes:
        pending: Whether `done` is yet to be called.
    """

    __slots__ = ("_attempt", "_done", "_runtime", "_source", "pending")

    def __init__(
        self,
        runtime: Runtime,
        upstream: HostPort | IUpstream | IStreamClientEndpoint,
        source: Source | None,
        done: Done,
    ) -> None:
        self._runtime = runtime
        self._source = source
        self._done = done
        self._attempt: Dial | Attempts | Connecting | ICancellable | Deferred[IProtocol] | None = (
            None
        )
        self.pending = True
        if isinstance(upstream, HostPort):
            self._resolve(upstream)
        elif IUpstream.providedBy(upstream):
            self._attempt = upstream.reach(self._finish)
        else:
            connecting = upstream.connect(_Upstream(self._endpoint_connected))
            self._attempt = connecting
            connecting.addErrback(self._endpoint_failed)

    def cancel(self) -> None:
        """Give up; `done` is not called."""
        self.pending = False
        if self._attempt is not None:
            self._attempt.cancel()

    def _finish(self, outcome: Side | DialError, address: SocketAddress | None) -> None:
        self._attempt = None
        if self.pending:
            self.pending = False
            self._done(outcome, address)

    # A name

    def _resolve(self, name: HostPort) -> None:
        def resolved(addresses: list[SocketAddress]) -> None:
            if not self.pending:
                return
            if not addresses:
                self._finish(NameNotResolved(str(name), "the name has no address"), None)
                return
            attempt = reach(self._runtime, tuple(addresses), self._source, self._finish)
            if self.pending:
                self._attempt = attempt

        resolve(cast("IReactorPluggableNameResolver", self._runtime.reactor), name, resolved)

    # An endpoint

    def _endpoint_connected(self, protocol: RelayProtocol) -> None:
        if self.pending:
            self._finish(protocol, None)
        else:
            protocol.abort()

    def _endpoint_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            return
        if isinstance(failure.value, DialError):
            # The endpoint is one of ours.
            self._finish(failure.value, None)
            return
        problem = failure.getErrorMessage()
        if failure.check(error.ConnectionRefusedError) is not None:
            self._finish(ConnectionRefused("endpoint", problem), None)
        elif failure.check(error.TimeoutError, error.TCPTimedOutError) is not None:
            self._finish(ConnectionTimeout("endpoint", problem), None)
        elif failure.check(error.DNSLookupError) is not None:
            self._finish(NameNotResolved("endpoint", problem), None)
        else:
            self._finish(DestinationUnroutable("endpoint", problem), None)


class _Upstream(Factory):
    """Builds the upstream's side of a relay."""

    noisy = False

    def __init__(self, made: Callable[[RelayProtocol], None]) -> None:
        self._made = made

    def buildProtocol(self, addr: IAddress | None) -> RelayProtocol:  # noqa: ARG002
        """One side."""
        return RelayProtocol(self._made)

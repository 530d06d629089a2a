"""What all connections of one proxy share: what is asked, what is kept, what is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface import implementer

from sidecar.interfaces import IFlowObserver, IOpeningObserver
from sidecar.protocols.http.forwarding import Pseudonym
from sidecar.protocols.http.patrol import Patrol
from sidecar.protocols.http.pool import Pool

if TYPE_CHECKING:
    from sidecar.config import HttpLimits
    from sidecar.flow import Flow
    from sidecar.names.resolving import INameResolver
    from sidecar.protocols.http.auth import Authenticator
    from sidecar.protocols.judge import Judge
    from sidecar.runtime import Runtime
    from sidecar.upstream_proxy import UpstreamProxy

__all__ = ["Shared"]


@implementer(IFlowObserver)
class Shared:
    """What all connections of one proxy share.

    Args: as `sidecar.protocols.http.factory.HTTPProxyFactory`.

    Attributes:
        pseudonym: What the proxy calls itself.
        pool: Idle connections to servers.
        patrol: Looks after the clients.
        opening: Told of requests that begin; None if nobody wants to know.
    """

    _log = Logger()

    def __init__(
        self,
        runtime: Runtime,
        judge: Judge,
        resolver: INameResolver,
        *,
        authenticator: Authenticator | None = None,
        upstream_proxy: UpstreamProxy | None = None,
        limits: HttpLimits,
    ) -> None:
        self.runtime = runtime
        self.judge = judge
        self.resolver = resolver
        self.authenticator = authenticator
        self.upstream_proxy = upstream_proxy
        self.limits = limits
        self.pseudonym = Pseudonym()
        self.pool = Pool(runtime.reactor, size=limits.pool_connections, timeout=limits.pool_timeout)
        self.patrol = Patrol(
            runtime.reactor,
            (
                limits.head_timeout,
                limits.keepalive_timeout,
                limits.response_timeout,
                limits.progress_timeout,
                judge.patience,
            ),
        )
        self._observer = runtime.observer
        self.opening: IOpeningObserver | None = IOpeningObserver(runtime.observer, None)

    def close(self) -> None:
        """Let go of idle connections and timers."""
        self.pool.close()
        self.patrol.close()

    def opened(self, flow: Flow) -> None:
        """Tell of a request that begins, if it came on a connection that was told of."""
        if self.opening is not None and flow.connection is not None:
            try:
                self.opening.flow_opened(flow)
            except Exception:  # noqa: BLE001 - an observer can't be allowed to stop traffic
                self._log.failure("bug in a flow observer")

    def flow_ended(self, flow: Flow) -> None:
        """Pass the word on, of each request (IFlowObserver)."""
        if self._observer is not None:
            try:
                self._observer.flow_ended(flow)
            except Exception:  # noqa: BLE001 - an observer can't be allowed to stop traffic
                self._log.failure("bug in a flow observer")

"""Which idle connection to an origin server may be used again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from sidecar.addresses import SocketAddress
    from sidecar.protocols.http.upstream import Upstream
    from sidecar.upstream_proxy import UpstreamProxy

    Key = SocketAddress | UpstreamProxy | None

__all__ = ["Pool"]

# Seconds. Servers close idle connections after five seconds or more, and what is on its
# way can't be seen: a request that can't be repeated gets a connection only if it was in
# use a moment ago.
_FRESH = 1.0


class _Idle(NamedTuple):
    upstream: Upstream
    since: float


class Pool:
    """Idle connections, by where they lead.

    The one used last is used first: its server is the least likely to have closed it.
    One that says anything, or ends, while it is here takes itself out.

    Args:
        clock: For the one timer.
        size: How many are kept; beyond it, the one that has been idle longest goes.
        timeout: Seconds for which each is kept.
    """

    def __init__(self, clock: IReactorTime, *, size: int, timeout: float) -> None:
        self._clock = clock
        self._size = size
        self._timeout = timeout
        self._idle: dict[Key, list[_Idle]] = {}
        # In the order in which they fell idle, which is that of their ends.
        self._order: dict[Upstream, float] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._order)

    def take(self, key: Key, *, repeatable: bool) -> Upstream | None:
        """Get a connection.

        Args:
            key: Where to: an address, or the next proxy.
            repeatable: Whether the request may be sent again if this one proves dead.

        Returns:
            The caller's; None if there is none.
        """
        idle = self._idle.get(key)
        if not idle:
            return None
        if not repeatable and idle[-1].since + _FRESH < time.monotonic():
            return None
        upstream = idle.pop().upstream
        del self._order[upstream]
        if not idle:
            del self._idle[key]
        return upstream

    def put(self, upstream: Upstream) -> None:
        """Keep a connection on which nothing is under way."""
        if not self._size:
            upstream.close()
            return
        if len(self._order) >= self._size:
            next(iter(self._order)).close()
        now = time.monotonic()
        self._order[upstream] = now
        idle = self._idle.get(upstream.key)
        if idle is None:
            self._idle[upstream.key] = [_Idle(upstream, now)]
        else:
            idle.append(_Idle(upstream, now))
        if self._timer is None:
            self._timer = self._clock.callLater(self._timeout, self._expire)

    def discard(self, upstream: Upstream) -> None:
        """Forget a connection, if it is here."""
        since = self._order.pop(upstream, None)
        if since is None:
            return
        idle = self._idle[upstream.key]
        idle.remove(_Idle(upstream, since))
        if not idle:
            del self._idle[upstream.key]

    def close(self) -> None:
        """Close them all."""
        for upstream in list(self._order):
            upstream.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        now = time.monotonic()
        while self._order:
            upstream, since = next(iter(self._order.items()))
            if since + self._timeout > now:
                self._timer = self._clock.callLater(since + self._timeout - now, self._expire)
                return
            upstream.close()
        self._timer = None

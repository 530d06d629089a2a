"""What all listeners and relays of one process share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.admission import Admission
from sidecar.dialing import CONNECT_TIMEOUT, KEEPALIVE, MARK, Dialer
from sidecar.flow import FlowEnd
from sidecar.loops import LoopGuard
from sidecar.relay.pipes import PipePool
from sidecar.relay.poller import Poller
from sidecar.relay.spliced import SplicedEngine

if TYPE_CHECKING:
    from sidecar.interfaces import IFlowObserver, IRelayReactor

__all__ = ["ACCEPTS_PER_WAKEUP", "Runtime"]

# Accepted before other descriptors get their turn. One is fair but costs a wake-up
# each; a hundred starve the connections that are open already.
ACCEPTS_PER_WAKEUP = 16


@dataclass(frozen=True, slots=True)
class Runtime:
    """What all listeners and relays of one process share; see `make`.

    Attributes:
        reactor: Whose timers and descriptors are used.
        poller: Watches all our sockets.
        admission: Limits how many connections are open.
        guard: Knows which connections would come back to us.
        dialer: Makes upstream connections.
        engine: Joins plain TCP sockets.
        observer: Told of each flow's end; None for nobody.
        mark: SO_MARK of our own sockets where permitted; None for none.
        keepalive: Seconds of silence before keepalive probes; None for none.
        accepts: Connections that a listener takes per wake-up.
    """

    reactor: IRelayReactor
    poller: Poller
    admission: Admission
    guard: LoopGuard
    dialer: Dialer
    engine: SplicedEngine
    observer: IFlowObserver | None
    mark: int | None
    keepalive: int | None
    accepts: int

    @classmethod
    def make(
        cls,
        reactor: IRelayReactor,
        observer: IFlowObserver | None = None,
        *,
        mark: int | None = MARK,
        keepalive: int | None = KEEPALIVE,
        connect_timeout: float = CONNECT_TIMEOUT,
        idle_timeout: float | None = None,
        half_close_timeout: float | None = None,
        max_connections: int | None = None,
        accepts: int = ACCEPTS_PER_WAKEUP,
    ) -> Runtime:
        """Build everything with its defaults.

        Args:
            reactor: Whose timers and descriptors are used, from now on.
            observer: Told of each flow's end.
            mark: SO_MARK, 1 to 2**32 - 1; None for none.
            keepalive: Seconds, 1 to 32767; None for none.
            connect_timeout: Seconds, more than 0.
            idle_timeout: Seconds; None for no limit.
            half_close_timeout: Seconds; None for no limit.
            max_connections: At least 1; None for 90 % of RLIMIT_NOFILE.
            accepts: At least 1.
        """
        poller = Poller(reactor)
        guard = LoopGuard()
        return cls(
            reactor=reactor,
            poller=poller,
            admission=Admission(reactor, max_connections),
            guard=guard,
            dialer=Dialer(
                reactor, poller, guard, mark=mark, timeout=connect_timeout, keepalive=keepalive
            ),
            engine=SplicedEngine(
                reactor,
                poller,
                PipePool(),
                idle_timeout=idle_timeout,
                half_close_timeout=half_close_timeout,
            ),
            observer=observer,
            mark=mark,
            keepalive=keepalive,
            accepts=accepts,
        )

    def close(self) -> None:
        """End everything that is open, each flow with `FlowEnd.SHUTDOWN`."""
        for pollable in self.poller.pollables():
            pollable.shut_down()
        self.dialer.close()
        self.admission.close()
        self.engine.pipes.close()
        self.poller.close()

"""What all listeners and relays of one process share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.admission import Admission
from sidecar.config import Limits
from sidecar.dialing import Dialer
from sidecar.linux import OWN_MARK
from sidecar.loops import LoopGuard
from sidecar.relay.pipes import PipePool
from sidecar.relay.poller import Poller
from sidecar.relay.spliced import SplicedEngine

if TYPE_CHECKING:
    from sidecar.interfaces import IFlowObserver, IRelayReactor

__all__ = ["Runtime"]


_DEFAULT_LIMITS = Limits()


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
        limits: What keeps everything bounded.
    """

    reactor: IRelayReactor
    poller: Poller
    admission: Admission
    guard: LoopGuard
    dialer: Dialer
    engine: SplicedEngine
    observer: IFlowObserver | None
    mark: int | None
    limits: Limits

    @classmethod
    def make(
        cls,
        reactor: IRelayReactor,
        observer: IFlowObserver | None = None,
        *,
        mark: int | None = OWN_MARK,
        limits: Limits = _DEFAULT_LIMITS,
    ) -> Runtime:
        """Build everything.

        Args:
            reactor: Whose timers and descriptors are used, from now on.
            observer: Told of each flow's end.
            mark: SO_MARK, 1 to 2**32 - 1; None for none.
            limits: What keeps everything bounded.
        """
        poller = Poller(reactor)
        guard = LoopGuard()
        return cls(
            reactor=reactor,
            poller=poller,
            admission=Admission(reactor, limits.max_connections),
            guard=guard,
            dialer=Dialer(
                reactor,
                poller,
                guard,
                mark=mark,
                timeout=limits.connect_timeout,
                keepalive=limits.keepalive,
            ),
            engine=SplicedEngine(
                reactor,
                poller,
                PipePool(),
                idle_timeout=limits.idle_timeout,
                half_close_timeout=limits.half_close_timeout,
            ),
            observer=observer,
            mark=mark,
            limits=limits,
        )

    def close(self) -> None:
        """End everything that is open, each flow with `FlowEnd.SHUTDOWN`."""
        for pollable in self.poller.pollables():
            pollable.shut_down()
        self.dialer.close()
        self.admission.close()
        self.engine.pipes.close()
        self.poller.close()

"""Putting the process that opened a connection among the facts of its flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from sidecar.interfaces import IOpeningObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.addresses import SocketAddress
    from sidecar.flow import Flow, Process

__all__ = ["ProcessNames"]


@implementer(IOpeningObserver)
class ProcessNames:
    """Names the process of each flow; belongs before the observers that show it.

    Args:
        find: Finds a process by its socket's own address and the peer's, at once and
            without raising (`sidecar.linux.processes.ProcessFinder.find`).
    """

    def __init__(self, find: Callable[[SocketAddress, SocketAddress], Process | None]) -> None:
        self._find = find

    def flow_opened(self, flow: Flow) -> None:
        """Look now: the process may be gone at the end."""
        if flow.connection is not None:
            # A request has its connection's.
            return
        if flow.source is not None and flow.destination is not None:
            flow.process = self._find(flow.source, flow.destination)

    def flow_ended(self, flow: Flow) -> None:
        """Nothing more to say."""

    def connection_closed(self, flow: Flow) -> None:
        """Likewise."""

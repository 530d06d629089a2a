"""What others may implement: the observers of flows, the takers of sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import (
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorSocket,
    IReactorTime,
)
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    import socket

    from sidecar.flow import Flow

__all__ = ["IFlowObserver", "IPeekedProtocol", "IRelayReactor", "ISocketFactory"]


class IRelayReactor(IReactorCore, IReactorTime, IReactorFDSet, IReactorSocket, IReactorFromThreads):
    """What sidecar needs of a reactor; every reactor of Twisted's on Linux has it."""


class IFlowObserver(Interface):
    """Somebody who is told how each flow ended (access log, metrics)."""

    def flow_ended(flow: Flow) -> None:
        """Take note of a flow that has just ended.

        Called once a flow, in the reactor thread; must not block and must not
        keep the flow's bytes. What it raises is logged and otherwise ignored.
        """


class ISocketFactory(Interface):
    """A factory that takes accepted sockets itself, without a transport.

    A listener that finds its factory providing this hands over the socket
    instead of calling ``buildProtocol``: the relay's bytes then never enter
    Python where the kernel can move them.
    """

    kind = Attribute("The `sidecar.flow.ListenerKind` that its flows are logged as.")
    runtime = Attribute("The `sidecar.runtime.Runtime` that listeners for it share.")

    def socket_accepted(connection: socket.socket, flow: Flow) -> None:
        """Own a connected socket from here on.

        Args:
            connection: Non-blocking, connected; the callee closes it.
            flow: Its source, destination and listener are set. The callee ends
                it, exactly once.
        """


class IPeekedProtocol(Interface):
    """A protocol that wants to know what its client asks for; see `PeekFactory`."""

    def peeked(flow: Flow) -> None:
        """Take note of the client's facts; called once, before `makeConnection`.

        Args:
            flow: protocol, host, host_from, alpn, ja4 and ech are final.
        """

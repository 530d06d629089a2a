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
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from sidecar.addresses import SocketAddress
    from sidecar.errors import DialError
    from sidecar.flow import Flow
    from sidecar.lookups import Lookup

__all__ = [
    "ICancellable",
    "IDNSObserver",
    "IDecisionStep",
    "IFlowObserver",
    "IManyFlowsFactory",
    "INamedObserver",
    "IOpeningObserver",
    "IPeekedProtocol",
    "IRelayReactor",
    "ISocketFactory",
    "IUpstream",
]


class IRelayReactor(IReactorCore, IReactorTime, IReactorFDSet, IReactorSocket, IReactorFromThreads):
    """What sidecar needs of a reactor; every reactor of Twisted's on Linux has it."""


class IFlowObserver(Interface):
    """Somebody who is told how each flow ended (access log, metrics)."""

    def flow_ended(flow: Flow) -> None:
        """Take note of a flow that has just ended.

        Called once a flow, in the reactor thread; must not block and must not
        keep the flow's bytes. What it raises is logged and otherwise ignored.
        """


class IOpeningObserver(IFlowObserver):
    """An observer that is told of connections and requests when they begin, too.

    Called in the reactor thread; must not block. What it raises is logged and otherwise
    ignored.
    """

    def flow_opened(flow: Flow) -> None:
        """Take note of a connection, or an HTTP request on it; nothing is decided yet.

        Called once a flow, before `flow_ended`. Not called for connections that are refused
        without a look, and requests that nobody can read.

        Args:
            flow: Its source and listener are set, and its destination where it is known. May
                be kept until it ends; `Flow.amounts` says how it gets on. A request's has a
                ``connection``; of that one only `connection_closed` will be told, then.
        """

    def connection_closed(flow: Flow) -> None:
        """Take note that there will be no more requests.

        Args:
            flow: The connection's; told in the place of `flow_ended`.
        """


class IDNSObserver(Interface):
    """Somebody who is told of each DNS question of a program (terminal view, log)."""

    def lookup_ended(lookup: Lookup) -> None:
        """Take note of a question that has just been answered, or refused.

        Called once a question, in the reactor thread; must not block. What it raises is
        logged and otherwise ignored.
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


class IManyFlowsFactory(ISocketFactory):
    """A taker of sockets on which many flows come one after the other (HTTP requests).

    Its ``socket_accepted`` gets a flow that stands for the connection alone: its
    ``finish`` counts the connection as closed and is told to no observer. The callee
    makes each request's flow itself, with the runtime's observer.
    """


class IUpstream(Interface):
    """An upstream that knows by itself how it is reached."""

    def reach(
        done: Callable[[socket.socket | DialError, SocketAddress | None], None],
    ) -> ICancellable | None:
        """Connect to it.

        Args:
            done: To be called once: with a connected, non-blocking socket, which is the
                callee's from then on, or with what went wrong; and with the address that
                was dialled, if any was.

        Returns:
            What can be cancelled, whereupon `done` is not called; None if it has been.
        """


class ICancellable(Interface):
    """Something that is under way."""

    def cancel() -> None:
        """Give up."""


class IPeekedProtocol(Interface):
    """A protocol that wants to know what its client asks for; see `PeekFactory`."""

    def peeked(flow: Flow) -> None:
        """Take note of the client's facts; called once, before `makeConnection`.

        Args:
            flow: protocol, host, host_from, alpn, ja4, ech and problem are final.
        """


class IDecisionStep(Interface):
    """Somebody who may object to a flow that the policy allows.

    A Twisted plugin that provides this and IPlugin is asked if the configuration names
    it (``steps = ["name"]`` in ``[policy]``). It can only refuse: what the policy
    denies stays denied.
    """

    name = Attribute("What the configuration calls it.")

    def judge(flow: Flow) -> str | Deferred[str | None] | None:
        """Say what speaks against a flow.

        Called once a flow, in the reactor thread, after its names are known where they
        matter and its address is verified; must not block.

        Args:
            flow: Its facts; not to be changed.

        Returns:
            None for nothing, or the reason code of the denial (1 to 64 lower-case
            letters, digits and underscores); or a Deferred of either. What it raises,
            and an answer that takes longer than ``limits.connect_timeout``, is a denial.
        """


class INamedObserver(IFlowObserver):
    """An observer of flows that a Twisted plugin adds.

    It is told of flows if the configuration names it (``observers = ["name"]``).
    """

    name = Attribute("What the configuration calls it.")

"""The name server as a whole: started on sockets that are handed over, and stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred, gatherResults, succeed

from sidecar.dns.forwarding import Forwarder
from sidecar.dns.resolvconf import NameServers
from sidecar.dns.server import Answerer
from sidecar.dns.tcp import StreamServerFactory
from sidecar.dns.udp import DatagramServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from twisted.internet.interfaces import IListeningPort

    from sidecar.dns.asking import IAskingReactor
    from sidecar.dns.resolvconf import NameServer
    from sidecar.interfaces import IDNSObserver
    from sidecar.names.served import Served
    from sidecar.policy import Policy
    from sidecar.runtime import Runtime

__all__ = ["RunningDNS", "start_dns"]


class RunningDNS:
    """A name server that answers; see `start_dns`."""

    def __init__(
        self,
        forwarder: Forwarder,
        datagrams: list[DatagramServer],
        streams: StreamServerFactory,
        ports: list[IListeningPort],
    ) -> None:
        self._forwarder = forwarder
        self._datagrams = datagrams
        self._streams = streams
        self._ports = ports

    def stop(self) -> Deferred[None]:
        """Answer no more, and close everything; before the runtime is closed.

        Returns:
            Fires when the listening sockets are closed.
        """
        for server in self._datagrams:
            server.shut_down()
        self._datagrams = []
        stopped = [port.stopListening() for port in self._ports]
        self._ports = []
        self._streams.close()
        self._forwarder.close()
        waiting = [each for each in stopped if isinstance(each, Deferred)]
        return gatherResults(waiting).addCallback(lambda _: None) if waiting else succeed(None)


def start_dns(
    runtime: Runtime,
    policy: Callable[[], Policy],
    served: Served,
    *,
    udp: Iterable[socket.socket],
    tcp: Iterable[socket.socket],
    observer: IDNSObserver | None = None,
    servers: Callable[[], Sequence[NameServer]] | None = None,
    search: Callable[[], Sequence[str]] | None = None,
) -> RunningDNS:
    """Begin to answer.

    Args:
        runtime: Of this process.
        policy: Tells which policy is in force.
        served: Takes note of every address that is given out.
        udp: Bound to port 53, of one family each, and telling where datagrams were sent to
            (`linux.pktinfo`): an answer's port is its socket's. Ours from here on.
        tcp: Listening. Ours from here on.
        observer: Told of every question.
        servers: Tells whom to ask; None for the host's (/etc/resolv.conf).
        search: Tells which domains programs append to names; None for the host's.
    """
    reactor = runtime.reactor
    host = NameServers()
    forwarder = Forwarder(cast("IAskingReactor", reactor), runtime.poller, servers or host)
    answerer = Answerer(reactor, policy, served, forwarder, search or host.search, observer)
    datagrams = [DatagramServer(runtime.poller, sock, answerer) for sock in udp]
    streams = StreamServerFactory(reactor, answerer)
    ports = []
    for sock in tcp:
        # The reactor takes a duplicate.
        with sock:
            sock.setblocking(False)
            ports.append(reactor.adoptStreamPort(sock.fileno(), sock.family, streams))
    return RunningDNS(forwarder, datagrams, streams, ports)

"""The name server as a whole: started on sockets that are handed over, and stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, gatherResults, succeed

from sidecar.dns.server import Answerer
from sidecar.dns.tcp import StreamServerFactory
from sidecar.dns.udp import DatagramServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from twisted.internet.interfaces import IListeningPort

    from sidecar.dns.forwarding import Forwarder
    from sidecar.interfaces import IDNSObserver
    from sidecar.names.served import Served
    from sidecar.policy import Policy
    from sidecar.runtime import Runtime

__all__ = ["RunningDNS", "start_dns"]


class RunningDNS:
    """A name server that answers; see `start_dns`."""

    def __init__(
        self,
        datagrams: list[DatagramServer],
        streams: StreamServerFactory,
        ports: list[IListeningPort],
    ) -> None:
        self._datagrams = datagrams
        self._streams = streams
        self._ports = ports

    def stop(self) -> Deferred[None]:
        """Answer no more, and close everything; before the forwarder and the runtime are closed.

        Returns:
            Fires when the listening sockets are closed.
        """
        for server in self._datagrams:
            server.shut_down()
        self._datagrams = []
        stopped = [port.stopListening() for port in self._ports]
        self._ports = []
        self._streams.close()
        waiting = [each for each in stopped if isinstance(each, Deferred)]
        return gatherResults(waiting).addCallback(lambda _: None) if waiting else succeed(None)


def start_dns(
    runtime: Runtime,
    policy: Callable[[], Policy],
    served: Served,
    forwarder: Forwarder,
    search: Callable[[], Sequence[str]],
    *,
    udp: Iterable[socket.socket],
    tcp: Iterable[socket.socket],
    observer: IDNSObserver | None = None,
) -> RunningDNS:
    """Begin to answer.

    Args:
        runtime: Of this process.
        policy: Tells which policy is in force.
        served: Takes note of every address that is given out.
        forwarder: Asks the host's name servers. The caller's to close.
        search: Tells which domains programs append to names.
        udp: Bound to port 53, of one family each, and telling where datagrams were sent to
            (`linux.pktinfo`): an answer's port is its socket's. Ours from here on.
        tcp: Listening. Ours from here on.
        observer: Told of every question.
    """
    reactor = runtime.reactor
    answerer = Answerer(reactor, policy, served, forwarder, search, observer)
    datagrams = [DatagramServer(runtime.poller, sock, answerer) for sock in udp]
    streams = StreamServerFactory(reactor, answerer)
    ports = []
    for sock in tcp:
        # The reactor takes a duplicate.
        with sock:
            sock.setblocking(False)
            ports.append(reactor.adoptStreamPort(sock.fileno(), sock.family, streams))
    return RunningDNS(datagrams, streams, ports)

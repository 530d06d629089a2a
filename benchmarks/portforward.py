"""The peer `portforward`: `python -m benchmarks.portforward LISTEN ORIGIN [LISTEN ORIGIN]…`.

twisted.protocols.portforward as it comes, on the default reactor, nothing logged.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.protocols.portforward import ProxyClientFactory, ProxyFactory

from benchmarks.processes import HOST

__all__ = ["serve"]

_BACKLOG = 1024


def serve(ports: list[int]) -> None:
    """Forward each first port of a pair to the second, for ever."""
    ProxyClientFactory.noisy = False  # a log line per connection is not what is compared
    for listen, origin in zip(ports[::2], ports[1::2], strict=True):
        factory = ProxyFactory(HOST, origin)
        reactor.listenTCP(listen, factory, _BACKLOG, HOST)  # type: ignore[arg-type]
    reactor.run()


if __name__ == "__main__":
    serve([int(argument) for argument in sys.argv[1:]])

"""The peer made of twisted.web.proxy: `python -m benchmarks.webproxy PORT ACCESS_LOG`.

As its documentation has it, on the default reactor; the log is twisted.web's own, a line
for each request.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.web.http import HTTPFactory
from twisted.web.proxy import Proxy, ProxyClientFactory

from benchmarks.processes import HOST

__all__ = ["serve"]

_BACKLOG = 1024


def serve(port: int, access_log: str) -> None:
    """Proxy for ever."""
    ProxyClientFactory.noisy = False
    factory = HTTPFactory(logPath=access_log.encode())
    factory.protocol = Proxy  # type: ignore[assignment,method-assign]
    reactor.listenTCP(port, factory, _BACKLOG, HOST)  # type: ignore[arg-type]
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])

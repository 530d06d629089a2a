"""The peers made of portforward: `python -m benchmarks.portforward [--quiet] LISTEN ORIGIN …`.

twisted.protocols.portforward as it comes, on the default reactor, with the text log
that twistd writes; or quiet, with no log at all.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.protocols.portforward import ProxyClientFactory, ProxyFactory

from benchmarks.processes import HOST

__all__ = ["serve"]

_BACKLOG = 1024


def serve(ports: list[int], *, quiet: bool) -> None:
    """Forward each first port of a pair to the second, for ever."""
    if quiet:
        ProxyClientFactory.noisy = False
    else:
        globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
    for listen, origin in zip(ports[::2], ports[1::2], strict=True):
        factory = ProxyFactory(HOST, origin)
        reactor.listenTCP(listen, factory, _BACKLOG, HOST)  # type: ignore[arg-type]
    reactor.run()


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--quiet"]
    serve([int(argument) for argument in arguments], quiet="--quiet" in sys.argv)

"""A third party's program on sidecar's endpoints: it says where it thinks it was reached.

Run as a program: ``teller.py ENDPOINT…``. Prints "listening" once it does.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol


class Teller(Protocol):
    """Tells the client what its transport says, then echoes."""

    def connectionMade(self) -> None:
        """Tell."""
        transport = self.transport
        assert transport is not None
        here, there = transport.getHost(), transport.getPeer()
        assert isinstance(here, IPv4Address | IPv6Address)
        assert isinstance(there, IPv4Address | IPv6Address)
        words = [type(here).__name__, here.type, here.host, here.port, there.host, there.port]
        transport.write(" ".join(map(str, words)).encode() + b"\n")

    def dataReceived(self, data: bytes) -> None:
        """Echo."""
        assert self.transport is not None
        self.transport.write(data)


def main() -> None:
    """Listen on every endpoint given."""
    factory = Factory.forProtocol(Teller)
    listening = [serverFromString(reactor, text).listen(factory) for text in sys.argv[1:]]
    started = gatherResults(listening, consumeErrors=True)
    started.addCallback(lambda _: print("listening", flush=True))
    started.addErrback(lambda failure: print(failure, file=sys.stderr))
    reactor.run()


if __name__ == "__main__":
    main()

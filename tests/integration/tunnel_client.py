"""Speaks TLS through an endpoint, as anybody's program would.

A program: ``tunnel_client.py ENDPOINT NAME CAFILE GREETING``. Says as much as fits into no one
record, and prints how many bytes of it came back, after a greeting, or what went wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import react

if TYPE_CHECKING:
    from twisted.internet.interfaces import ITCPTransport
    from twisted.python.failure import Failure

SAYS = b"ping" * 25_000


class Talk(Protocol):
    def __init__(self, done: Deferred[None], greeting: bytes) -> None:
        self._done = done
        self._greeting = greeting
        self._heard = b""

    def connectionMade(self) -> None:
        cast("ITCPTransport", self.transport).write(SAYS)

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        if len(self._heard) >= len(self._greeting + SAYS):
            cast("ITCPTransport", self.transport).loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        said = self._heard.removeprefix(self._greeting)
        print(len(said) if said == SAYS else reason.getErrorMessage())
        self._done.callback(None)


def main(reactor: object, endpoint: str, name: str, cafile: str, greeting: str) -> Deferred[None]:
    trusted = trustRootFromCertificates([Certificate.loadPEM(Path(cafile).read_bytes())])
    options = optionsForClientTLS(name, trusted)
    done: Deferred[None] = Deferred()
    tunnel = wrapClientTLS(options, clientFromString(reactor, endpoint))
    connectProtocol(tunnel, Talk(done, greeting.encode())).addErrback(done.errback)
    return done


if __name__ == "__main__":
    react(main, sys.argv[1:])

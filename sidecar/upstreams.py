"""What a fixed upstream may be: an address, a host name, or any client endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IResolutionReceiver, IStreamClientEndpoint
from zope.interface import implementer

from sidecar.addresses import SocketAddress, parse_ip, parse_port
from sidecar.errors import AddressError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IHostResolution, IReactorPluggableNameResolver

__all__ = ["HostPort", "Upstream", "parse_upstream", "resolve"]


class HostPort(msgspec.Struct, frozen=True):
    """A host name, resolved anew for every connection, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Upstream = SocketAddress | HostPort | IStreamClientEndpoint


def parse_upstream(reactor: object, description: str) -> Upstream:
    r"""Read a client endpoint string.

    ``tcp:HOST:PORT`` is dialled by sidecar itself (marked, guarded against loops,
    spliced); every other description by the endpoint that it names.

    Args:
        reactor: For the endpoint.
        description: As `twisted.internet.endpoints.clientFromString`; colons of an
            IPv6 address are escaped (``tcp:\:\:1:80``) or it stands in brackets.

    Raises:
        AddressError: A port that is none.
        ValueError: An endpoint string that doesn't parse.
    """
    name, _, rest = description.partition(":")
    if name == "tcp":
        host, colon, port = rest.replace("\\:", ":").rpartition(":")
        if colon and "=" not in rest:
            number = parse_port(port)
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
            try:
                return SocketAddress(str(parse_ip(host)), number)
            except AddressError:
                if ":" in host:
                    raise
                return HostPort(host, number)
    endpoint: IStreamClientEndpoint = clientFromString(reactor, description)
    return endpoint


def resolve(
    reactor: IReactorPluggableNameResolver,
    name: HostPort,
    done: Callable[[list[SocketAddress]], None],
) -> None:
    """Find a host name's addresses with the reactor's resolver.

    Args:
        reactor: Whose name resolver is asked; by default getaddrinfo in a thread.
        name: What to resolve.
        done: Called once with the addresses in the resolver's order; none on failure.
    """
    reactor.nameResolver.resolveHostName(
        _Addresses(name.port, done), name.host, portNumber=name.port
    )


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects a resolution's addresses."""

    def __init__(self, port: int, done: Callable[[list[SocketAddress]], None]) -> None:
        self._port = port
        self._done = done
        self._found: list[SocketAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing yet."""

    def addressResolved(self, address: object) -> None:
        """One more."""
        if isinstance(address, (IPv4Address, IPv6Address)):
            found = SocketAddress(str(parse_ip(address.host.partition("%")[0])), self._port)
            if found not in self._found:
                self._found.append(found)

    def resolutionComplete(self) -> None:
        """That was all."""
        self._done(self._found)

"""What a fixed upstream may be: an address, a host name, or any client endpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IResolutionReceiver, IStreamClientEndpoint
from zope.interface import implementer

from sidecar.addresses import SocketAddress, parse_host, parse_ip, parse_port
from sidecar.errors import AddressError
from sidecar.interfaces import IUpstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IHostResolution, IReactorPluggableNameResolver

__all__ = ["HostPort", "Upstream", "parse_upstream", "resolve"]

# A backslash takes a colon its meaning (twisted.internet.endpoints).
_SEPARATOR = re.compile(r"(?<!\\):")


class HostPort(msgspec.Struct, frozen=True):
    """A canonical host name, resolved for every connection, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Upstream = SocketAddress | HostPort | IUpstream | IStreamClientEndpoint


def parse_upstream(reactor: object, description: str) -> Upstream:
    r"""Read a client endpoint string.

    ``tcp:HOST:PORT`` is dialled by sidecar itself (marked, guarded against loops,
    spliced); every other description by the endpoint that it names.

    Args:
        reactor: For the endpoint.
        description: As `twisted.internet.endpoints.clientFromString`; colons of an
            IPv6 address are escaped (``tcp:\:\:1:80``) or it stands in brackets.

    Raises:
        AddressError: A host or a port that is none.
        ValueError: An endpoint string that doesn't parse.
    """
    name, _, rest = description.partition(":")
    if name == "tcp":
        host, port = _host_and_port(rest)
        if port:
            number = parse_port(port)
            found = parse_host(host)
            if isinstance(found, str):
                return HostPort(found, number)
            return SocketAddress(str(found), number)
    # Imported when there is something to parse: a third of all of Twisted comes with it.
    from twisted.internet.endpoints import clientFromString

    endpoint: IStreamClientEndpoint = clientFromString(reactor, description)
    return endpoint


def _host_and_port(arguments: str) -> tuple[str, str]:
    """The two arguments of a TCP endpoint, in order or by name; empty where there are others."""
    if "=" not in arguments:
        host, _, port = arguments.replace("\\:", ":").rpartition(":")
        return host, port
    given = {"host": "", "port": ""}
    for position, argument in enumerate(_SEPARATOR.split(arguments)):
        name, equals, value = argument.partition("=")
        if not equals:
            name, value = ("host", "port", "timeout", "bindAddress")[min(position, 3)], name
        given[name] = value.replace("\\:", ":")
    return (given["host"], given["port"]) if given.keys() == {"host", "port"} else ("", "")


def resolve(
    reactor: IReactorPluggableNameResolver,
    name: HostPort,
    done: Callable[[list[SocketAddress]], None],
) -> None:
    """Find a host name's addresses with the reactor's resolver.

    Args:
        reactor: Whose name resolver is asked: in twistd sidecar that of `names`,
            elsewhere by default getaddrinfo in a thread of the reactor's.
        name: What to resolve.
        done: Called once with the addresses in the resolver's order; none on failure.
    """
    try:
        name.host.encode("idna")
    except UnicodeError:
        # Twisted's resolver would never answer (RFC 1035 §2.3.4: empty and long labels).
        done([])
        return
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
            try:
                found = SocketAddress(str(parse_ip(address.host)), self._port)
            except AddressError:
                # What has a zone (fe80::1%eth0) is no address without it.
                return
            if found not in self._found:
                self._found.append(found)

    def resolutionComplete(self) -> None:
        """That was all."""
        self._done(self._found)

"""How do Twisted's own endpoints, which ask the reactor for names, ask our resolver?

The reactor's own resolver runs in its thread pool, ten threads that wait for silent
name servers as long as those please, while everything else that needs the pool waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from twisted.internet._idna import _idnaBytes
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, succeed
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
)
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.addresses import parse_host
from sidecar.errors import AddressError, SidecarError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IResolutionReceiver
    from twisted.python.failure import Failure

    from sidecar.names.resolving import INameResolver

__all__ = ["ReactorNames", "install"]


def install(reactor: object, resolver: INameResolver) -> Callable[[], None]:
    """Have a reactor ask this resolver from now on.

    Args:
        reactor: Provides `IReactorPluggableNameResolver`, as all of Twisted's do.
        resolver: Asked for the names.

    Returns:
        Gives the reactor back the resolver that it had, unless it has yet another.
    """
    pluggable = cast("IReactorPluggableNameResolver", reactor)
    ours = ReactorNames(resolver)
    before = pluggable.installNameResolver(ours)

    def uninstall() -> None:
        if pluggable.nameResolver is ours:
            pluggable.installNameResolver(before)

    return uninstall


@implementer(IHostnameResolver)
class ReactorNames:
    """A name resolver for reactors.

    Args:
        resolver: Asked for the names.
    """

    _log = Logger()

    def __init__(self, resolver: INameResolver) -> None:
        self._resolver = resolver

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Find a name's addresses (IHostnameResolver); a failure is none."""
        transport: Literal["TCP", "UDP"] = "UDP" if transportSemantics == "UDP" else "TCP"

        def answered(addresses: Iterable[object]) -> None:
            for host in map(str, addresses):
                kind = IPv6Address if ":" in host else IPv4Address
                if addressTypes is None or kind in addressTypes:
                    resolutionReceiver.addressResolved(kind(transport, host, portNumber))
            resolutionReceiver.resolutionComplete()

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError) is None:
                failure.trap(SidecarError)
                resolutionReceiver.resolutionComplete()

        try:
            asked = self._ask(hostName)
        except (AddressError, UnicodeError):
            asked = succeed(())
        resolution = _Resolution(hostName, asked)
        resolutionReceiver.resolutionBegan(resolution)
        asked.addCallbacks(answered, failed)
        asked.addErrback(lambda failure: self._log.failure("bug in who asked for a name", failure))
        return resolution

    def _ask(self, text: str) -> Deferred[Any]:
        # What HostnameEndpoint has decoded is encoded as it would; for the rest it
        # knows fewer names than we (those with underscores).
        host = parse_host(text if text.isascii() else _idnaBytes(text))
        return self._resolver.resolve(host) if isinstance(host, str) else succeed((host,))


@implementer(IHostResolution)
class _Resolution:
    """A name that is being resolved.

    Attributes:
        name: The name as it was asked for.
    """

    def __init__(self, name: str, asked: Deferred[Any]) -> None:
        self.name = name
        self._asked = asked

    def cancel(self) -> None:
        """Give up; the receiver is not called again."""
        self._asked.cancel()

"""Following the host's own addresses: what is dialled there comes back to this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from sidecar.linux.own_addresses import open_watch, own_addresses, something_changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFDSet
    from twisted.python.failure import Failure

__all__ = ["HostAddresses"]


@implementer(IReadDescriptor)
class HostAddresses:
    """The host's own addresses, kept up to date by the kernel's word.

    Args:
        reactor: Told when there is something to read.
        changed: Called whenever `current` has become another.

    Attributes:
        current: The addresses.

    Raises:
        OSError: The kernel doesn't say.
    """

    def __init__(self, reactor: IReactorFDSet, changed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._changed = changed
        # First, so that no change is missed.
        self._watch = open_watch()
        try:
            self.current = own_addresses()
        except OSError:
            self._watch.close()
            raise
        reactor.addReader(self)

    def close(self) -> None:
        """Follow them no more."""
        self._reactor.removeReader(self)
        self._watch.close()

    def fileno(self) -> int:
        """The descriptor."""
        return self._watch.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "host addresses"

    def doRead(self) -> None:
        """An address or a route has come or gone."""
        if not something_changed(self._watch):
            return
        current = own_addresses()
        if current != self.current:
            self.current = current
            self._changed()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops watching."""

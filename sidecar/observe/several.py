"""Telling several observers of the same flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from twisted.logger import Logger
from zope.interface import implementer

from sidecar.interfaces import IDNSObserver, IFlowObserver, IOpeningObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.flow import Flow
    from sidecar.lookups import Lookup

__all__ = ["Observers"]

_Fact = TypeVar("_Fact")


@implementer(IOpeningObserver, IDNSObserver)
class Observers:
    """Several observers as one; a bug in one keeps nothing from the others.

    Each is told of what it observes: connections, their beginnings, lookups.

    Args:
        observers: Told in this order.
    """

    _log = Logger()

    def __init__(self, observers: Sequence[IFlowObserver | IDNSObserver]) -> None:
        self._observers = tuple(each for each in observers if IFlowObserver.providedBy(each))
        self._opening = tuple(each for each in observers if IOpeningObserver.providedBy(each))
        self._asking = tuple(each for each in observers if IDNSObserver.providedBy(each))

    def flow_opened(self, flow: Flow) -> None:
        """Tell each that wants to know."""
        for observer in self._opening:
            self._tell(observer.flow_opened, flow)

    def flow_ended(self, flow: Flow) -> None:
        """Tell each."""
        for observer in self._observers:
            self._tell(observer.flow_ended, flow)

    def connection_closed(self, flow: Flow) -> None:
        """Tell each that was told of its beginning."""
        for observer in self._opening:
            self._tell(observer.connection_closed, flow)

    def lookup_ended(self, lookup: Lookup) -> None:
        """Tell each that wants to know."""
        for observer in self._asking:
            self._tell(observer.lookup_ended, lookup)

    def _tell(self, tell: Callable[[_Fact], None], fact: _Fact) -> None:
        try:
            tell(fact)
        except Exception:  # noqa: BLE001 - somebody else's code
            self._log.failure("bug in a flow observer")

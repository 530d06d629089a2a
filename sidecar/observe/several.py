"""Telling several observers of the same flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface import implementer

from sidecar.interfaces import IFlowObserver, IOpeningObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.flow import Flow

__all__ = ["Observers"]


@implementer(IOpeningObserver)
class Observers:
    """Several observers as one; a bug in one keeps nothing from the others.

    Args:
        observers: Told in this order.
    """

    _log = Logger()

    def __init__(self, observers: Sequence[IFlowObserver]) -> None:
        self._observers = tuple(observers)
        self._opening = tuple(each for each in observers if IOpeningObserver.providedBy(each))

    def flow_opened(self, flow: Flow) -> None:
        """Tell each that wants to know."""
        for observer in self._opening:
            self._tell(observer.flow_opened, flow)

    def flow_ended(self, flow: Flow) -> None:
        """Tell each."""
        for observer in self._observers:
            self._tell(observer.flow_ended, flow)

    def _tell(self, tell: Callable[[Flow], None], flow: Flow) -> None:
        try:
            tell(flow)
        except Exception:  # noqa: BLE001 - somebody else's code
            self._log.failure("bug in a flow observer")

"""Telling several observers of the same flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface import implementer

from sidecar.interfaces import IFlowObserver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.flow import Flow

__all__ = ["Observers"]


@implementer(IFlowObserver)
class Observers:
    """Several observers as one; a bug in one keeps nothing from the others.

    Args:
        observers: Told in this order.
    """

    _log = Logger()

    def __init__(self, observers: Sequence[IFlowObserver]) -> None:
        self._observers = tuple(observers)

    def flow_ended(self, flow: Flow) -> None:
        """Tell each."""
        for observer in self._observers:
            self._tell(observer, flow)

    def _tell(self, observer: IFlowObserver, flow: Flow) -> None:
        try:
            observer.flow_ended(flow)
        except Exception:  # noqa: BLE001 - somebody else's code
            self._log.failure("bug in a flow observer")

from __future__ import annotations

from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.flow import Flow, ListenerKind
from sidecar.interfaces import IDNSObserver, IFlowObserver, IOpeningObserver
from sidecar.lookups import Lookup
from sidecar.observe.several import Observers


@implementer(IFlowObserver)
class Recorder:
    """Records, or fails."""

    def __init__(self, *, broken: bool = False) -> None:
        self.flows: list[Flow] = []
        self._broken = broken

    def flow_ended(self, flow: Flow) -> None:
        """Take note."""
        self.flows.append(flow)
        if self._broken:
            raise ZeroDivisionError


def test_all_are_told() -> None:
    """Each observer is told, also after one that fails."""
    recorders = Recorder(), Recorder(broken=True), Recorder()
    observers = Observers(recorders)
    assert verifyObject(IFlowObserver, observers)
    flow = Flow(ListenerKind.OUTBOUND, None, None, None)
    observers.flow_ended(flow)
    assert [[flow]] * 3 == [recorder.flows for recorder in recorders]


@implementer(IOpeningObserver)
class EarlyRecorder(Recorder):
    """Wants to know of beginnings, too."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__(broken=broken)
        self.opened: list[Flow] = []
        self.closed: list[Flow] = []

    def flow_opened(self, flow: Flow) -> None:
        """Take note."""
        self.opened.append(flow)
        if self._broken:
            raise ZeroDivisionError

    def connection_closed(self, flow: Flow) -> None:
        """Take note."""
        self.closed.append(flow)
        if self._broken:
            raise ZeroDivisionError


def test_beginnings() -> None:
    """Who wants to know of beginnings is told, also after one that fails; others aren't."""
    early = EarlyRecorder(broken=True), EarlyRecorder()
    observers = Observers((early[0], Recorder(), early[1]))
    assert verifyObject(IOpeningObserver, observers)
    flow = Flow(ListenerKind.OUTBOUND, None, None, None)
    observers.flow_opened(flow)
    observers.connection_closed(flow)
    assert [[flow]] * 2 == [recorder.opened for recorder in early]
    assert [[flow]] * 2 == [recorder.closed for recorder in early]


@implementer(IDNSObserver)
class Listener:
    """Wants to know of lookups alone."""

    def __init__(self, *, broken: bool = False) -> None:
        self.lookups: list[Lookup] = []
        self._broken = broken

    def lookup_ended(self, lookup: Lookup) -> None:
        """Take note."""
        self.lookups.append(lookup)
        if self._broken:
            raise ZeroDivisionError


def test_lookups() -> None:
    """Who wants to know of lookups is told, also after one that fails, and of nothing else."""
    listeners = Listener(broken=True), Listener()
    observers = Observers((listeners[0], Recorder(), listeners[1]))
    assert verifyObject(IDNSObserver, observers)
    lookup = Lookup("a.example", "A", "NOERROR")
    observers.lookup_ended(lookup)
    observers.flow_ended(Flow(ListenerKind.OUTBOUND, None, None, None))
    assert [[lookup]] * 2 == [listener.lookups for listener in listeners]

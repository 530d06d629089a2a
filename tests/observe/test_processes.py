from __future__ import annotations

from typing import TYPE_CHECKING

from observe.flows import open_flow
from zope.interface.verify import verifyObject

from sidecar.flow import Flow, ListenerKind, Process
from sidecar.interfaces import IOpeningObserver
from sidecar.observe.processes import ProcessNames

if TYPE_CHECKING:
    from sidecar.addresses import SocketAddress


def test_named() -> None:
    """A flow is told its process when it begins, found by both its ends."""
    asked = []

    def find(*ends: SocketAddress) -> Process | None:
        asked.append(ends)
        return Process(7, "curl")

    names = ProcessNames(find)
    assert verifyObject(IOpeningObserver, names)
    flow = open_flow()
    names.flow_opened(flow)
    names.flow_ended(flow)
    assert Process(7, "curl") == flow.process
    assert [(flow.source, flow.destination)] == asked


def test_ends_unknown() -> None:
    """Without both ends nobody is asked."""
    names = ProcessNames(lambda *_: Process(7, "curl"))
    flow = Flow(ListenerKind.FORWARD, None, None, None)
    names.flow_opened(flow)
    assert flow.process is None


def test_requests() -> None:
    """A request has its connection's process: nobody looks again."""
    names = ProcessNames(lambda *_: Process(7, "curl"))
    connection = open_flow()
    request = open_flow(connection=connection)
    names.flow_opened(request)
    names.flow_ended(request)
    names.connection_closed(connection)
    assert request.process is None

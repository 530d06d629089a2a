from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, Flow, FlowEnd, ListenerKind, Verdict
from sidecar.interfaces import IFlowObserver

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENT = SocketAddress("192.0.2.7", 40000)
SERVER = SocketAddress("198.51.100.1", 443)


@implementer(IFlowObserver)
class Observer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Flow, FlowEnd | None]] = []

    def flow_ended(self, flow: Flow) -> None:
        self.told.append((flow, flow.end))


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def flow(observer: Observer) -> Flow:
    return Flow(ListenerKind.OUTBOUND, CLIENT, SERVER, DestinationSource.REDIRECT, observer)


class TestEnding:
    def test_observer(self, observer: Observer) -> None:
        """The fake above is a proper observer."""
        assert verifyObject(IFlowObserver, observer)

    @pytest.mark.parametrize("end", FlowEnd)
    def test_told_once(self, flow: Flow, observer: Observer, end: FlowEnd) -> None:
        """The observer is told of the end, when the flow already knows it."""
        assert [] == observer.told
        flow.finish(end)
        assert [(flow, end)] == observer.told

    @pytest.mark.parametrize("later", [FlowEnd.CLIENT_RESET, FlowEnd.SHUTDOWN, FlowEnd.CLOSED])
    def test_first_is_the_cause(self, flow: Flow, observer: Observer, later: FlowEnd) -> None:
        """A second end changes nothing and nobody is told."""
        flow.finish(FlowEnd.CLOSED)
        seconds = flow.seconds
        flow.finish(later)
        assert (FlowEnd.CLOSED, seconds) == (flow.end, flow.seconds)
        assert 1 == len(observer.told)

    def test_from_within_the_observer(self) -> None:
        """An observer that ends the flow again is not told again."""

        @implementer(IFlowObserver)
        class Eager(Observer):
            def flow_ended(self, flow: Flow) -> None:
                super().flow_ended(flow)
                flow.finish(FlowEnd.SHUTDOWN)

        eager = Eager()
        flow = Flow(ListenerKind.INBOUND, CLIENT, None, None, eager)
        flow.finish(FlowEnd.CLOSED)
        assert [(flow, FlowEnd.CLOSED)] == eager.told

    def test_seconds(self, flow: Flow) -> None:
        """How long it lived is measured on the monotonic clock."""
        assert 0.0 == flow.seconds
        flow.started_monotonic -= 2.5
        flow.started += 1000
        flow.finish(FlowEnd.CLOSED)
        assert pytest.approx(2.5, abs=1) == flow.seconds

    def test_nobody_to_tell(self) -> None:
        """A flow without an observer ends as well."""
        flow = Flow(ListenerKind.FORWARD, CLIENT, SERVER, DestinationSource.STATIC)
        flow.finish(FlowEnd.CLOSED)
        assert FlowEnd.CLOSED == flow.end


class TestDenial:
    def test_deny(self, flow: Flow, observer: Observer) -> None:
        """A denial sets verdict and reason before the observer is told."""
        flow.deny("no_destination")
        assert (Verdict.DENY, "no_destination", FlowEnd.DENIED) == (
            flow.verdict,
            flow.reason,
            flow.end,
        )
        assert 1 == len(observer.told)

    def test_deny_with_another_end(self, flow: Flow) -> None:
        """A denial may have an end of its own."""
        flow.deny("loop", FlowEnd.PROXY_LOOP_DETECTED)
        assert (Verdict.DENY, FlowEnd.PROXY_LOOP_DETECTED) == (flow.verdict, flow.end)

    def test_default(self, flow: Flow) -> None:
        """Without a rule a flow is allowed by default."""
        assert (Verdict.ALLOW, "default", None) == (flow.verdict, flow.reason, flow.rule)


class TestIds:
    def test_unique(self, flow: Flow) -> None:
        """No two flows of a process share an id."""
        ids = {_another(flow).id for _ in range(1000)}
        assert 1000 == len(ids)

    def test_another_process(self, flow: Flow) -> None:
        """Another process has another prefix."""
        command: Sequence[str] = [
            sys.executable,
            "-c",
            "from sidecar.flow import Flow; print(Flow(None, None, None, None).id)",
        ]
        other = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        assert flow.id.split("-")[0] != other.split("-")[0]


def _another(flow: Flow) -> Flow:
    return Flow(flow.listener, flow.source, flow.destination, flow.destination_from)

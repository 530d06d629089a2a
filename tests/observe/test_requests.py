from __future__ import annotations

import time
from typing import Any

import pytest
from observe.flows import denied_flow, ended_flow, open_flow
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.flow import Flow, FlowEnd, Process, Protocol, Verdict
from sidecar.interfaces import IFlowObserver, IOpeningObserver
from sidecar.observe.lines import Lines
from sidecar.observe.requests import KEPT_MAX, ByConnection, Requests
from sidecar.observe.styles import Look
from sidecar.observe.tally import Connections, Tally

A, B = "a.example", "b.example"
PORT = "198.51.100.1:80"
CURL = Process(4242, "curl")


@implementer(IOpeningObserver)
class Recorder:
    """Keeps what it is told of."""

    def __init__(self) -> None:
        self.opened: list[Flow] = []
        self.ended: list[Flow] = []
        self.closed: list[Flow] = []
        self.forgotten: list[Flow] = []

    def flow_opened(self, flow: Flow) -> None:
        self.opened.append(flow)

    def flow_ended(self, flow: Flow) -> None:
        self.ended.append(flow)

    def connection_closed(self, flow: Flow) -> None:
        self.closed.append(flow)

    def forget(self, flow: Flow) -> None:
        self.forgotten.append(flow)

    @property
    def told(self) -> list[tuple[str | None, int, bool, Verdict]]:
        """What of it matters."""
        return [
            (flow.host, flow.requests, flow.again, flow.verdict)
            for flow in self.ended
            if isinstance(flow, Requests)
        ]


class Play:
    """A connection, and who is told of its requests."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.view = ByConnection(self.recorder, self.recorder.forget)
        self.connection = open_flow(PORT, process=CURL)
        self.view.flow_opened(self.connection)

    def opened(self, host: str | None, **facts: Any) -> Flow:
        """A request begins."""
        facts |= {"process": CURL, "connection": self.connection}
        flow = open_flow(PORT, host, protocol=Protocol.HTTP, **facts)
        self.view.flow_opened(flow)
        return flow

    def ended(self, flow: Flow, end: FlowEnd = FlowEnd.CLOSED, **facts: Any) -> None:
        """It ends."""
        for name, value in facts.items():
            setattr(flow, name, value)
        flow.finish(end)
        self.view.flow_ended(flow)

    def allowed(self, host: str, **facts: Any) -> None:
        """A whole request."""
        self.ended(self.opened(host), **facts)

    def denied(self, host: str, **facts: Any) -> None:
        """One that is denied."""
        flow = self.opened(host)
        for name, value in facts.items():
            setattr(flow, name, value)
        flow.deny("default")
        self.view.flow_ended(flow)

    def closed(self) -> None:
        """No more will come."""
        self.view.connection_closed(self.connection)


@pytest.fixture
def play() -> Play:
    return Play()


def test_interfaces(play: Play) -> None:
    """It is told of beginnings, and so is whom it tells."""
    assert verifyObject(IOpeningObserver, play.view)
    assert verifyObject(IOpeningObserver, play.recorder)


def test_others() -> None:
    """What is no request is passed on as it is, also to who wants to know of ends alone."""
    recorder, tally = Recorder(), Tally()
    assert IFlowObserver.providedBy(tally)
    flow = ended_flow()
    for view in (ByConnection(recorder), ByConnection(tally)):
        view.flow_opened(flow)
        view.flow_ended(flow)
    assert ([flow], [flow]) == (recorder.opened, recorder.ended)
    assert 1 == tally.summary([], 0).total.connections


def test_together(play: Play) -> None:
    """Requests to one host are told of when their connection ends, all at once."""
    for host in (A, B, A):
        play.allowed(host, sent=1, received=10)
    assert [] == play.recorder.ended
    play.closed()
    assert [(A, 2, False, Verdict.ALLOW), (B, 1, False, Verdict.ALLOW)] == play.recorder.told
    first = play.recorder.ended[0]
    assert (2, 20, CURL, FlowEnd.CLOSED) == (first.sent, first.received, first.process, first.end)
    assert [play.connection] == play.recorder.forgotten
    assert play.recorder.opened[1:] == play.recorder.ended


def test_time(play: Play) -> None:
    """Idle time after the last request isn't theirs."""
    began = time.monotonic()
    play.ended(play.opened(A, started=7.0, started_monotonic=began - 100))
    play.ended(play.opened(A, started_monotonic=began - 50))
    play.closed()
    (flow,) = play.recorder.ended
    assert (7.0, began - 100) == (flow.started, flow.started_monotonic)
    ended = time.monotonic()
    assert 100 <= flow.seconds <= 100 + ended - began


def test_amounts(play: Play) -> None:
    """While they go on, what has passed by now is told."""
    play.allowed(A, sent=1, received=10)
    requests = play.recorder.opened[1]
    assert ((1, 10), True) == (requests.amounts(), requests.connected)
    flow = play.opened(A)
    flow.counts = lambda: (5, 50)
    assert (6, 60) == requests.amounts()
    flow.head_sent = 100
    assert (106, 60) == requests.amounts()
    play.ended(flow, sent=7, received=70)
    assert (108, 80) == requests.amounts()


def test_waiting(play: Play) -> None:
    """The first is waited for until there is a server."""
    flow = play.opened(A)
    requests = play.recorder.opened[1]
    assert not requests.connected
    flow.upstream = flow.destination
    assert requests.connected


def test_denied(play: Play) -> None:
    """A denial is told at once; its like when the connection ends."""
    play.denied(A)
    assert [(A, 1, False, Verdict.DENY)] == play.recorder.told
    play.allowed(A)
    for _ in range(3):
        play.denied(A)
    play.denied(A, rule="a.example (--deny)")
    assert [1, 1] == [requests for _, requests, _, _ in play.recorder.told]
    play.closed()
    assert [(A, 1, False, Verdict.ALLOW), (A, 3, True, Verdict.DENY)] == play.recorder.told[2:]
    # Nobody is left to be waited for.
    left = {flow.serial for flow in play.recorder.opened}
    left -= {flow.serial for flow in play.recorder.ended + play.recorder.forgotten}
    assert set() == left


def test_failed(play: Play) -> None:
    """So is what failed."""
    for _ in range(2):
        play.ended(play.opened(A), FlowEnd.CONNECTION_REFUSED)
    assert [(A, 1, False, Verdict.ALLOW)] == play.recorder.told
    play.closed()
    assert [FlowEnd.CONNECTION_REFUSED] * 2 == [flow.end for flow in play.recorder.ended]


def test_unread(play: Play) -> None:
    """What nobody could read ends without a beginning."""
    flow = denied_flow(PORT, reason="http_fields", connection=play.connection)
    play.view.flow_ended(flow)
    assert [(None, 1, False, Verdict.DENY)] == play.recorder.told
    assert [play.connection] == play.recorder.forgotten
    flow = ended_flow(PORT, connection=play.connection)
    play.view.flow_ended(flow)
    play.closed()
    assert 2 == len(play.recorder.ended)


def test_none(play: Play) -> None:
    """A connection without requests is forgotten."""
    play.closed()
    assert ([], [play.connection]) == (play.recorder.ended, play.recorder.forgotten)


def test_bounded(play: Play) -> None:
    """A connection to ever more hosts is told of in parts; nothing is kept after its end."""
    for number in range(3 * KEPT_MAX):
        play.allowed(f"h{number}.example")
        play.denied(f"d{number}.example")
    known = play.view._connections[play.connection.serial]
    assert KEPT_MAX == len(known.told)
    assert KEPT_MAX >= len(known.going_on)
    play.closed()
    assert {} == play.view._connections
    assert 6 * KEPT_MAX == len(play.recorder.ended)


def test_counted(play: Play) -> None:
    """A tally has connections once, and every byte once."""
    tally = Tally()
    play.view = ByConnection(tally)
    for _ in range(3):
        play.allowed(A, sent=1, received=10)
        play.denied(A, sent=100)
        play.ended(play.opened(B), FlowEnd.CONNECTION_REFUSED)
    play.closed()
    summary = tally.summary([], 0)
    expected = Connections(connections=3, allowed=2, denied=1, failed=1, sent=303, received=30)
    assert expected == summary.total
    assert [(A, 1, ["curl"])] == [
        (each.host, each.connections, each.processes) for each in summary.denied
    ]


def test_lines(play: Play) -> None:
    """Lines say how many they were."""
    lines = Lines(Look())
    for _ in range(3):
        play.allowed(A)
        play.denied(B, hint="b.example:80")
        play.ended(play.opened(B), FlowEnd.CONNECTION_REFUSED)
    goes_on = play.recorder.opened[1]
    assert "  3 requests  curl[4242]" in lines.progress(goes_on, 0.0)
    play.closed()
    denied, failed, allowed, more, again = map(lines.flow, play.recorder.ended)
    assert allowed.endswith("s  3 requests  curl[4242]")
    assert denied.endswith("no rule allows it; --allow b.example:80  curl[4242]")
    assert "http 2 more requests: no rule allows it" in more
    assert "request" not in failed
    assert "http 2 more requests: connection refused, " in again

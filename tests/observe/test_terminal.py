from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from observe.flows import denied_flow, ended_flow, open_flow
from observe.stopping import stop_writing
from support import wait_for
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from sidecar.flow import FlowEnd, Verdict
from sidecar.interfaces import IDNSObserver, IOpeningObserver
from sidecar.lookups import Lookup
from sidecar.observe.styles import Look
from sidecar.observe.terminal import PROGRESS_LINES, PROGRESS_MAX, TerminalView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.flow import Flow


class Shown:
    """A view, and what it shows."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.clock = Clock()
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.view = TerminalView(
            self._writing, self.clock, Look(verbose=verbose), self.clock.seconds
        )

    def opened(self, **facts: object) -> Flow:
        """A connection begins now."""
        flow = open_flow(**facts)  # type: ignore[arg-type]
        flow.started_monotonic = self.clock.seconds()
        self.view.flow_opened(flow)
        return flow

    def pass_time(self, seconds: int) -> list[str]:
        """Let time pass, and take what was shown."""
        for _ in range(seconds * 10):
            self.clock.advance(0.1)
        return self.take()

    def take(self) -> list[str]:
        """Take what was shown; the writer's thread may need a moment."""
        writer = self.view._console._writer
        self.clock.advance(0.1)
        wait_for(lambda: not writer.pending)
        try:
            return os.read(self.reading, 1 << 20).decode().splitlines()
        except BlockingIOError:
            return []

    def close(self) -> None:
        """The end."""
        stop_writing(self.view._console._writer, self.view.stop, self.clock)
        os.close(self.reading)
        os.close(self._writing)


@pytest.fixture
def shown() -> Iterator[Shown]:
    made = Shown()
    yield made
    made.close()


def test_interfaces(shown: Shown) -> None:
    """It is told of beginnings, ends and questions."""
    assert verifyObject(IOpeningObserver, shown.view)
    assert verifyObject(IDNSObserver, shown.view)


class TestFlows:
    def test_line_each(self, shown: Shown) -> None:
        """Each connection gets a line at its end, also one whose beginning nobody told."""
        flow = shown.opened()
        flow.finish(FlowEnd.CLOSED)
        shown.view.flow_ended(flow)
        shown.view.flow_ended(denied_flow())
        lines = shown.take()
        assert ["allow", "deny"] == [line.split()[1] for line in lines]

    def test_short_ones(self, shown: Shown) -> None:
        """What ends within a moment gets no other line, and nothing goes on after it."""
        flow = shown.opened()
        shown.view.flow_ended(ended_flow())
        flow.finish(FlowEnd.CLOSED)
        shown.view.flow_ended(flow)
        assert 2 == len(shown.take())
        assert [] == shown.pass_time(100)
        assert [] == shown.clock.getDelayedCalls()

    def test_forgotten(self, shown: Shown) -> None:
        """A connection that others stand for gets no line, and nothing goes on for it."""
        shown.view.forget(shown.opened())
        shown.view.connection_closed(shown.opened())
        assert [] == shown.pass_time(10)
        assert [] == shown.clock.getDelayedCalls()


class TestProgress:
    def test_growing_intervals(self, shown: Shown) -> None:
        """A long transfer is shown live, ever less often."""
        moved = [0]
        flow = shown.opened()
        flow.counts = lambda: (moved[0], 0)
        times = []
        for second in range(400):
            moved[0] += 1000
            if shown.pass_time(1):
                times.append(second + 1)
        gaps = [after - before for before, after in pairwise(times)]
        assert times[0] <= 3
        # A tick more or less.
        assert all(before - 2 <= after <= 2 * before + 2 for before, after in pairwise(gaps))
        assert abs(gaps[-1] - PROGRESS_MAX) < 10
        assert len(times) < 12

    def test_idle_ones(self, shown: Shown) -> None:
        """A connection that moves nothing is shown once."""
        flow = shown.opened()
        flow.counts = lambda: (5, 5)
        assert 1 == len(shown.pass_time(500))

    def test_waiting(self, shown: Shown) -> None:
        """One that takes long to be judged or reached is shown, too."""
        shown.opened()
        assert ["wait"] == [line.split()[1] for line in shown.pass_time(5)]

    def test_many(self, shown: Shown) -> None:
        """Of many at once the busiest are shown, and the number of the others."""
        for number in range(100):
            flow = shown.opened(address=f"198.51.100.{number}:443")
            flow.counts = lambda number=number: (number, 0)
        lines = shown.pass_time(3)
        assert [f"198.51.100.{number}:443" for number in range(99, 94, -1)] == [
            line.split()[2] for line in lines[:PROGRESS_LINES]
        ]
        assert ["sidecar and 95 more that are open"] == lines[PROGRESS_LINES:]


class TestLookups:
    def test_denied_once(self, shown: Shown) -> None:
        """A denied name gets one line, however often and in whichever case it is asked for."""
        for name in ("evil.example", "EVIL.example", "other.example"):
            for kind in ("A", "AAAA"):
                shown.view.lookup_ended(Lookup(name, kind, "REFUSED", Verdict.DENY))
        shown.view.lookup_ended(Lookup("fine.example", "A", "NOERROR"))
        assert ["evil.example", "other.example"] == [line.split()[2] for line in shown.take()]

    def test_failed_once(self, shown: Shown) -> None:
        """So does one that the name servers can't tell, for each reason."""
        for problem in ("too late", "too late", "nobody there"):
            for kind in ("A", "AAAA"):
                shown.view.lookup_ended(Lookup("a.example", kind, "SERVFAIL", problem=problem))
        lines = shown.take()
        assert ["fail", "fail"] == [line.split()[1] for line in lines]

    def test_bounded(self, shown: Shown) -> None:
        """Not all names are remembered."""
        for number in range(3000):
            shown.view.lookup_ended(Lookup(f"n{number}.example", "A", "REFUSED", Verdict.DENY))
        assert len(shown.view._told) < 2000

    def test_verbose(self) -> None:
        """A verbose view shows every question."""
        shown = Shown(verbose=True)
        for _ in range(2):
            shown.view.lookup_ended(Lookup("evil.example", "A", "REFUSED", Verdict.DENY))
        shown.view.lookup_ended(Lookup("fine.example", "A", "NOERROR"))
        assert ["deny", "deny", "allow"] == [line.split()[1] for line in shown.take()]
        shown.close()

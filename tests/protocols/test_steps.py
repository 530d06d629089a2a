from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.addresses import SocketAddress
from sidecar.flow import DestinationSource, Flow, ListenerKind
from sidecar.interfaces import IDecisionStep
from sidecar.protocols.steps import objection

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = str | None | Deferred[str | None]

FLOW = Flow(
    ListenerKind.OUTBOUND,
    SocketAddress("192.0.2.7", 40000),
    SocketAddress("198.51.100.1", 443),
    DestinationSource.TPROXY,
)


@implementer(IDecisionStep)
class Step:
    """Answers what it is told to, and counts."""

    def __init__(self, answer: Callable[[], Answer]) -> None:
        self.name = "step"
        self.asked: list[Flow] = []
        self._answer = answer

    def judge(self, flow: Flow) -> Answer:
        """Answer."""
        self.asked.append(flow)
        return self._answer()


def bug() -> Answer:
    """Raise, as somebody else's code may."""
    raise ZeroDivisionError


def ask(clock: Clock, *steps: Step) -> Deferred[str | None]:
    """Ask the steps, each of which has 5 seconds."""
    return Deferred.fromCoroutine(objection(clock, steps, FLOW, 5.0))


def test_interface() -> None:
    """The steps of these tests are what a plugin is to provide."""
    assert verifyObject(IDecisionStep, Step(lambda: None))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: None, None),
        (lambda: "closed", "closed"),
        (lambda: succeed(None), None),
        (lambda: succeed("closed"), "closed"),
    ],
)
def test_answer(answer: Callable[[], Answer], expected: str | None) -> None:
    """An answer counts whether it comes at once or by a Deferred."""
    results: list[str | None] = []
    ask(Clock(), Step(answer)).addCallback(results.append)
    assert [expected] == results


@pytest.mark.parametrize("answer", [bug, lambda: fail(ZeroDivisionError())])
def test_bug(answer: Callable[[], Answer]) -> None:
    """A step that fails denies."""
    results: list[str | None] = []
    ask(Clock(), Step(answer)).addCallback(results.append)
    assert ["step_failed"] == results


def test_too_late() -> None:
    """A step that takes longer than its deadline denies, and is cancelled."""
    clock = Clock()
    cancelled: list[object] = []
    answer: Deferred[str | None] = Deferred(cancelled.append)
    results: list[str | None] = []
    ask(clock, Step(lambda: answer)).addCallback(results.append)
    clock.advance(4.9)
    assert [] == results
    clock.advance(0.2)
    assert ["step_timeout"] == results
    assert [answer] == cancelled


def test_first_objection_ends_it() -> None:
    """Steps are asked in order, about the same flow, until one objects."""
    steps = Step(lambda: None), Step(lambda: "closed"), Step(lambda: None)
    results: list[str | None] = []
    ask(Clock(), *steps).addCallback(results.append)
    assert ["closed"] == results
    assert [[FLOW], [FLOW], []] == [step.asked for step in steps]

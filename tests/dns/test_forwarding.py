from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nameservers import Scripted, a
from support import wait_for
from turning import Turning, turning
from twisted.internet.task import Clock
from twisted.names import dns

from sidecar.dns.asking import Outcome, Trouble
from sidecar.dns.forwarding import Forwarder
from sidecar.dns.messages import Message, Question
from sidecar.relay.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.defer import Deferred

    from sidecar.dns.asking import IAskingReactor
    from sidecar.dns.resolvconf import NameServer


@pytest.fixture
def turn() -> Iterator[Turning]:
    with turning() as made:
        yield made


class Forwarding:
    """A forwarder, and what it has answered; a clock of the test's stands for the reactor's."""

    def __init__(
        self, turn: Turning, *servers: NameServer, clock: Clock | None = None, **options: float
    ) -> None:
        self.poller = Poller(turn.reactor)
        reactor: IAskingReactor = clock or turn.reactor  # type: ignore[assignment]
        self.forwarder = Forwarder(reactor, self.poller, lambda: servers, **options)  # type: ignore[arg-type]
        self.outcomes: list[Outcome] = []

    def ask(self, name: str) -> Deferred[Outcome]:
        waiting = self.forwarder.ask(Question(1, name.encode(), dns.A))
        waiting.addCallbacks(self.outcomes.append, lambda _: None)
        return waiting

    def close(self) -> None:
        self.forwarder.close()
        self.poller.close()


def test_bounds(turn: Turning) -> None:
    """So many at once, so many wait, the rest is told so at once."""
    with Scripted(a("x.example", "9.9.9.9"), fault=lambda *_: []) as far:
        # The reactor's own moves on between two questions.
        clock = Clock()
        forwarding = Forwarding(turn, far.server, clock=clock, at_once=2, queue=3, deadline=4)
        for number in range(7):
            forwarding.ask(f"n{number}.example")
        assert [Trouble.BUSY, Trouble.BUSY] == forwarding.outcomes
        wait_for(lambda: len(far.asked) == 2)
        # Those in the queue have waited as long as anybody may.
        clock.pump([2, 2])
        assert [Trouble.TIMEOUT] * 5 == forwarding.outcomes[2:]
        assert {"n0.example", "n1.example"} == {name for name, *_ in far.asked}
        forwarding.close()


def test_the_same_by_many(turn: Turning) -> None:
    """Those who wait for one answer are bounded, too; who leaves makes room."""
    with Scripted(fault=lambda *_: []) as far:
        forwarding = Forwarding(turn, far.server, at_once=1, queue=1)
        asked = [forwarding.ask("n1.example") for _ in range(9)]
        assert [Trouble.BUSY] == forwarding.outcomes
        asked[0].cancel()
        forwarding.ask("n1.example")
        assert [Trouble.BUSY] == forwarding.outcomes
        wait_for(lambda: len(far.asked) == 1)
        forwarding.close()
        assert [Trouble.BUSY, *[Trouble.STOPPED] * 8] == forwarding.outcomes


def test_queue(turn: Turning) -> None:
    """Those that wait are asked in their turn."""
    rows = [row for each in range(9) for row in a(f"n{each}.example", "9.9.9.9")]
    with Scripted(rows) as far:
        forwarding = Forwarding(turn, far.server, at_once=1, queue=9)
        for number in range(9):
            forwarding.ask(f"n{number}.example")
        turn.until(lambda: len(forwarding.outcomes) == 9)
        assert all(isinstance(each, Message) for each in forwarding.outcomes)
        assert [f"n{each}.example" for each in range(9)] == [name for name, *_ in far.asked]
        forwarding.close()


def test_abandoned(turn: Turning) -> None:
    """A question that nobody waits for is not asked any more; its place is free."""
    with Scripted(fault=lambda *_: []) as far:
        forwarding = Forwarding(turn, far.server, at_once=1, queue=2)
        one, two, three = (forwarding.ask(f"n{number}.example") for number in range(3))
        two.cancel()
        one.cancel()
        wait_for(lambda: [name for name, *_ in far.asked] == ["n0.example", "n2.example"])
        three.cancel()
        assert [] == forwarding.outcomes
        forwarding.close()


def test_closed(turn: Turning) -> None:
    """Who waits is told; so is who asks afterwards."""
    with Scripted(fault=lambda *_: []) as far:
        forwarding = Forwarding(turn, far.server, at_once=1)
        forwarding.ask("n1.example")
        forwarding.ask("n2.example")
        forwarding.close()
        forwarding.ask("n3.example")
        assert [Trouble.STOPPED] * 3 == forwarding.outcomes


def test_cut_answer(turn: Turning) -> None:
    """An answer that is cut within a record leads to TCP all the same."""

    def cut(_: Message, answer: Message, is_stream: bool) -> list[bytes]:
        if is_stream:
            return [answer.toStr()]
        answer.trunc = 1
        return [answer.toStr()[:-3]]

    with Scripted(a("x.example", "9.9.9.9"), cut) as far:
        forwarding = Forwarding(turn, far.server)
        forwarding.ask("x.example")
        turn.until(lambda: forwarding.outcomes)
        (answer,) = forwarding.outcomes
        assert isinstance(answer, Message)
        assert 1 == len(answer.answers)
        forwarding.close()


def test_late_answer(turn: Turning) -> None:
    """A server that needs longer than the others get is heard nevertheless."""
    held: list[bytes] = []

    def late(_: Message, answer: Message, __: bool) -> list[bytes]:
        held.append(answer.toStr())
        # The first attempt's answer, once the second has come; its own never.
        return [] if len(held) < 2 else [held[0]]

    with Scripted(a("x.example", "9.9.9.9"), late) as far:
        forwarding = Forwarding(turn, far.server, deadline=1.0)
        forwarding.ask("x.example")
        # It goes to the second attempt's port, so nobody takes it for an answer.
        turn.until(lambda: forwarding.outcomes)
        assert [Trouble.TIMEOUT] == forwarding.outcomes
        forwarding.close()

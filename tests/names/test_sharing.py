from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sidecar.names.sharing import Recent, Waiters


class Heard:
    """What one who waits has heard."""

    def __init__(self, waiting: Deferred[int]) -> None:
        self.all: list[object] = []
        self.waiting = waiting
        waiting.addCallbacks(self.all.append, lambda failure: self.all.append(failure.value))


class TestWaiters:
    def test_answer(self) -> None:
        """Everybody who waits gets the answer, in order."""
        waiters: Waiters[int] = Waiters(lambda: None)
        order: list[tuple[int, str]] = []

        def note(answer: int, who: str) -> None:
            order.append((answer, who))

        for who in "abc":
            waiters.join().addCallback(note, who)
        waiters.answer(7)
        assert [(7, "a"), (7, "b"), (7, "c")] == order
        assert 0 == len(waiters)

    def test_error(self) -> None:
        """An error is an answer."""
        waiters: Waiters[int] = Waiters(lambda: None)
        heard = [Heard(waiters.join()), Heard(waiters.join())]
        error = ValueError("x")
        waiters.answer(error)
        assert [[error], [error]] == [each.all for each in heard]

    def test_cancelled(self) -> None:
        """Who gives up is not answered; the others are."""
        abandoned: list[bool] = []
        waiters: Waiters[int] = Waiters(lambda: abandoned.append(True))
        one, other = Heard(waiters.join()), Heard(waiters.join())
        one.waiting.cancel()
        assert [] == abandoned
        waiters.answer(7)
        assert [7] == other.all
        assert [CancelledError] == [type(each) for each in one.all]

    def test_abandoned(self) -> None:
        """When the last one gives up, that is told, once."""
        abandoned: list[bool] = []
        waiters: Waiters[int] = Waiters(lambda: abandoned.append(True))
        heard = [Heard(waiters.join()), Heard(waiters.join())]
        for each in heard:
            each.waiting.cancel()
        assert [True] == abandoned

    def test_cancelled_meanwhile(self) -> None:
        """One who is told may make another give up, who is not answered then."""
        abandoned: list[bool] = []
        waiters: Waiters[int] = Waiters(lambda: abandoned.append(True))
        one, other = Heard(waiters.join()), Heard(waiters.join())
        one.waiting.addCallback(lambda _: other.waiting.cancel())
        waiters.answer(7)
        assert [CancelledError] == [type(each) for each in other.all]
        assert [] == abandoned

    def test_joins_meanwhile(self) -> None:
        """One who joins while others are told waits for the next answer."""
        waiters: Waiters[int] = Waiters(lambda: None)
        late: list[Heard] = []
        waiters.join().addCallback(lambda _: late.append(Heard(waiters.join())))
        waiters.answer(7)
        assert [[]] == [each.all for each in late]
        waiters.answer(8)
        assert [[8]] == [each.all for each in late]


class TestRecent:
    def test_age(self) -> None:
        """What is kept is there until it is too old, and then it is dropped."""
        clock = Clock()
        recent: Recent[str, int] = Recent(clock, seconds=5.0, size=9)
        recent.keep("a", 1)
        clock.advance(4.99)
        assert 1 == recent.get("a")
        clock.advance(0.01)
        assert recent.get("a") is None
        assert 0 == len(recent)

    def test_reading_keeps_nothing_young(self) -> None:
        """Age counts from the finding, however often it is asked for."""
        clock = Clock()
        recent: Recent[str, int] = Recent(clock, seconds=5.0, size=9)
        recent.keep("a", 1)
        for _ in range(6):
            recent.get("a")
            clock.advance(1)
        assert recent.get("a") is None

    def test_again(self) -> None:
        """What is found again is as young as new, and goes last."""
        clock = Clock()
        recent: Recent[str, int] = Recent(clock, seconds=5.0, size=2)
        recent.keep("a", 1)
        recent.keep("b", 2)
        clock.advance(4)
        recent.keep("a", 3)
        recent.keep("c", 4)
        clock.advance(4)
        assert [3, None, 4] == [recent.get(key) for key in "abc"]

    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_number(self, size: int) -> None:
        """Beyond the bound the oldest goes."""
        recent: Recent[int, int] = Recent(Clock(), seconds=5.0, size=size)
        for number in range(size + 1):
            recent.keep(number, number)
        assert size == len(recent)
        assert (None, size) == (recent.get(0), recent.get(size))

    def test_no_timer(self) -> None:
        """Nothing is left that would keep a reactor from stopping."""
        clock = Clock()
        Recent[int, int](clock, seconds=5.0, size=1).keep(1, 1)
        assert [] == clock.getDelayedCalls()

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("keep"), st.integers(0, 9)),
                st.tuples(st.just("get"), st.integers(0, 9)),
                st.tuples(st.just("wait"), st.integers(1, 3)),
            )
        )
    )
    def test_model(self, steps: list[tuple[str, int]]) -> None:
        """It never has more than it may, nothing too old, and nothing that wasn't kept."""
        clock = Clock()
        recent: Recent[int, float] = Recent(clock, seconds=5.0, size=3)
        kept: dict[int, float] = {}
        for step, number in steps:
            if step == "keep":
                recent.keep(number, clock.seconds())
                kept[number] = clock.seconds()
            elif step == "wait":
                clock.advance(number)
            elif (found := recent.get(number)) is not None:
                assert kept[number] == found
                assert clock.seconds() - found < 5
            assert len(recent) <= 3

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from turning import Turning, turning
from twisted.internet.defer import CancelledError

from sidecar.protocols.http.workers import Busy, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="turned")
def _turned() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture(name="workers")
def _workers(turned: Turning) -> Iterator[Workers]:
    made = Workers(turned.reactor, threads=2, queue=3)
    yield made
    made.close()


class TestRun:
    def test_in_a_thread(self, turned: Turning, workers: Workers) -> None:
        """A function is called in another thread, and its result comes back in ours."""
        assert threading.get_ident() != turned.result(workers.run(threading.get_ident))

    def test_error(self, turned: Turning, workers: Workers) -> None:
        """So does what it raises, without the frames that hold its secrets; the thread lives on."""

        def fails() -> object:
            raise ZeroDivisionError

        for _ in range(3):
            asked = workers.run(fails).addErrback(lambda each: (each.type, each.frames))
            assert (ZeroDivisionError, []) == turned.result(asked)
        assert 1 == turned.result(workers.run(lambda: 1))

    def test_bounds(self, turned: Turning, workers: Workers) -> None:
        """So many run at once, so many wait, and the next one is refused at once."""
        go = threading.Event()
        running = [workers.run(lambda: go.wait(10)) for _ in range(3)]
        refused: list[object] = []
        workers.run(bool).addErrback(lambda failure: refused.append(failure.type))
        assert [Busy] == refused
        assert 2 == workers._started
        go.set()
        assert [True] * 3 == [turned.result(each) for each in running]
        assert turned.result(workers.run(bool)) is False

    def test_cancelled(self, turned: Turning, workers: Workers) -> None:
        """Who gives up waiting is not answered; the next is."""
        go = threading.Event()
        told: list[object] = []
        asked = workers.run(lambda: go.wait(10))
        asked.addErrback(lambda failure: told.append(failure.type))
        asked.cancel()
        go.set()
        assert 1 == turned.result(workers.run(lambda: 1))
        assert [CancelledError] == told

    def test_closed(self, workers: Workers) -> None:
        """After its end nothing is taken any more."""
        workers.close()
        refused: list[object] = []
        workers.run(bool).addErrback(lambda failure: refused.append(failure.type))
        assert [Busy] == refused

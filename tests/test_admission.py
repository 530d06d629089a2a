from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING

import pytest
from turning import Turning, turning
from twisted.internet.task import Clock

from sidecar.admission import Admission, default_limit

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def log() -> Iterator[Turning]:
    """What is logged."""
    with turning() as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


EMFILE = OSError(errno.EMFILE, "Too many open files")


class TestDefaultLimit:
    @pytest.mark.parametrize(
        ("descriptors", "expected"),
        [(1, 1), (108, 45), (1032, 460), (resource.RLIM_INFINITY, 471855)],
    )
    def test_share(self, descriptors: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nine in ten free descriptors, two for each connection, and never none."""
        monkeypatch.setattr("sidecar.admission._open_descriptors", lambda: 0)
        monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
        assert expected == default_limit()
        assert expected == Admission(Clock()).limit


class TestLimit:
    def test_full(self, clock: Clock) -> None:
        """It is full at the limit."""
        admission = Admission(clock, 2)
        admission.opened()
        assert not admission.full
        admission.opened()
        assert admission.full
        admission.closed()
        assert not admission.full

    def test_resumes_with_some_room(self, clock: Clock, log: Turning) -> None:
        """Who pauses is called once, when a twentieth is free; not for every connection."""
        admission = Admission(clock, 100)
        resumed: list[str] = []
        for _ in range(100):
            admission.opened()
        admission.pause(lambda: resumed.append("first"))
        admission.pause(lambda: resumed.append("second"))
        assert 1 == len([line for line in log.logged if "100 connections are open" in line])
        for _ in range(4):
            admission.closed()
            assert [] == resumed
        admission.closed()
        assert ["first", "second"] == resumed
        admission.closed()
        assert ["first", "second"] == resumed

    def test_of_one(self, clock: Clock, log: Turning) -> None:
        """A limit of one works: pause at one, resume at none."""
        admission = Admission(clock, 1)
        resumed: list[bool] = []
        admission.opened()
        admission.pause(lambda: resumed.append(True))
        admission.closed()
        assert [True] == resumed

    def test_pausing_again(self, clock: Clock, log: Turning) -> None:
        """Who resumes may find itself pausing at once."""
        admission = Admission(clock, 1)
        resumed: list[bool] = []

        def resume() -> None:
            resumed.append(True)
            admission.opened()
            admission.pause(resume)

        admission.opened()
        admission.pause(resume)
        admission.closed()
        assert [True] == resumed
        admission.closed()
        assert [True, True] == resumed


class TestKernelRefused:
    def test_asks_again(self, clock: Clock, log: Turning) -> None:
        """When descriptors ran out it asks again after a second, with one line."""
        admission = Admission(clock, 100)
        resumed: list[bool] = []
        admission.pause(lambda: resumed.append(True), EMFILE)
        admission.pause(lambda: resumed.append(True), EMFILE)
        assert 1 == len([line for line in log.logged if "Too many open files" in line])
        clock.advance(0.9)
        assert [] == resumed
        clock.advance(0.2)
        assert ([True, True], []) == (resumed, clock.getDelayedCalls())

    def test_sooner(self, clock: Clock, log: Turning) -> None:
        """A connection of ours that ends frees some sooner; nobody is called twice."""
        admission = Admission(clock, 100)
        resumed: list[bool] = []
        admission.opened()
        admission.pause(lambda: resumed.append(True), EMFILE)
        admission.closed()
        clock.advance(5)
        assert ([True], []) == (resumed, clock.getDelayedCalls())

    def test_close(self, clock: Clock, log: Turning) -> None:
        """After closing nobody is called."""
        admission = Admission(clock, 100)
        resumed: list[bool] = []
        admission.pause(lambda: resumed.append(True), EMFILE)
        admission.close()
        clock.advance(5)
        admission.opened()
        admission.closed()
        assert ([], []) == (resumed, clock.getDelayedCalls())

"""How long is waited for what a command left under way."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sidecar.flow import DestinationSource, Flow, ListenerKind
from sidecar.relay.half import Half
from sidecar.sandbox import draining
from sidecar.sandbox.draining import STALLED, STANDSTILL, drained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.runtime import Runtime

STEP = 0.02


class Scene:
    """A connection that is left.

    Attributes:
        clock: Turns.
        written: Bytes that the relay has written.
        unsent: Bytes that the kernel has yet to send.
        blocked: Whether the relay has bytes that the server doesn't take.
        open: How many connections there are.
        interrupted: Whether somebody is impatient.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
        self.clock = Clock()
        self.written = self.unsent = 0
        self.open = 1
        self.blocked = self.interrupted = False
        flow = Flow(ListenerKind.EXEC, None, None, DestinationSource.TPROXY)
        flow.counts = lambda: (self.written, 0)
        monkeypatch.setattr(draining, "unacknowledged", lambda _: self.unsent)
        poller = SimpleNamespace(descriptors=lambda: [1], pollables=self._pollables)
        runtime: Any = SimpleNamespace(admission=self, poller=poller)
        self._drained = Deferred.fromCoroutine(
            drained(
                self.clock,
                cast("Runtime", runtime),
                lambda: [flow],
                [listener.fileno()],
                lambda: self.interrupted,
            )
        )

    def _pollables(self) -> list[object]:
        half = Half.__new__(Half)
        half.blocked = self.blocked
        return [half, object()]

    def pass_time(self, seconds: float) -> bool:
        """Let time pass; whether it is still waited."""
        self.clock.pump([STEP] * round(seconds / STEP))
        return not self._drained.called


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """One, whose listener has nobody waiting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Scene(monkeypatch, listener)


class TestDrained:
    def test_none(self, scene: Scene) -> None:
        """With the last connection it is over."""
        assert scene.pass_time(STANDSTILL / 2)
        scene.open = 0
        assert not scene.pass_time(STEP)

    def test_standstill(self, scene: Scene) -> None:
        """What stands still is given up."""
        assert scene.pass_time(STANDSTILL - STEP)
        assert not scene.pass_time(3 * STEP)

    def test_written(self, scene: Scene) -> None:
        """What is being written is waited for."""
        for _ in range(5):
            scene.written += 1
            assert scene.pass_time(STANDSTILL - 2 * STEP)
        assert not scene.pass_time(4 * STEP)

    def test_sent(self, scene: Scene) -> None:
        """So is what the kernel has and the server takes, though nothing is written meanwhile."""
        for unsent in range(5, 0, -1):
            scene.unsent = unsent
            assert scene.pass_time(STANDSTILL * 0.9)
        assert not scene.pass_time(STANDSTILL)

    def test_held(self, scene: Scene) -> None:
        """What only we have is waited for longer."""
        scene.blocked = True
        assert scene.pass_time(STALLED - STEP)
        assert not scene.pass_time(3 * STEP)

    def test_interrupted(self, scene: Scene) -> None:
        """Nothing is, if somebody says so."""
        assert scene.pass_time(STANDSTILL / 2)
        scene.interrupted = True
        assert not scene.pass_time(STEP)

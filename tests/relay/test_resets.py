from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from relay.transcripts import SMALL_BUFFER, Peer, tcp_pair
from support import arrived
from turning import Turning, turning
from twisted.internet.task import Clock

from sidecar.relay.poller import READ, Poller
from sidecar.relay.resets import ResetWhenSent, SendQueueWatch, reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def poller(turning: Turning) -> Iterator[Poller]:
    made = Poller(turning.reactor)
    yield made
    made.close()


def fill(sock: socket.socket) -> int:
    """Write until nobody takes more; return how much it was."""
    total = 0
    with suppress(BlockingIOError):
        while True:
            total += sock.send(bytes(1 << 16))
    return total


class Owner:
    """The former owner of a descriptor, not to be told any more."""

    def ready(self, events: int) -> None:
        raise AssertionError("told after handing over")

    def failed(self) -> None:
        raise AssertionError("told after handing over")

    def shut_down(self) -> None:
        raise AssertionError("told after handing over")


class TestReset:
    def test_reset(self, turning: Turning) -> None:
        """The peer gets RST, the socket is closed."""
        near, far = tcp_pair()
        reset(near)
        assert -1 == near.fileno()
        assert b"" == Peer(turning, far, 1).read_to_reset()
        far.close()

    def test_already_reset(self) -> None:
        """A connection that the peer has reset is only closed."""
        near, far = tcp_pair()
        reset(near)
        reset(far)
        assert -1 == far.fileno()


class TestSendQueueWatch:
    def test_nothing_sent(self) -> None:
        """With nothing to wait for the call comes at once."""
        near, far = tcp_pair()
        called: list[bool] = []
        SendQueueWatch(Clock(), near.fileno(), lambda: called.append(True))
        assert [True] == called
        near.close()
        far.close()

    def test_sent(self) -> None:
        """It comes once the peer has everything, and is asked for ever more seldom."""
        near, far = tcp_pair(SMALL_BUFFER)
        clock = Clock()
        called: list[bool] = []
        total = fill(near)
        SendQueueWatch(clock, near.fileno(), lambda: called.append(True))
        waits = []
        for _ in range(10):
            (call,) = clock.getDelayedCalls()
            waits.append(call.getTime() - clock.seconds())
            clock.advance(waits[-1])
            assert [] == called
        assert pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016]) == waits[:5]
        assert waits[-1] <= 0.25
        while total:
            with suppress(BlockingIOError):
                total -= len(far.recv(1 << 16))
        while not called:
            (call,) = clock.getDelayedCalls()
            clock.advance(call.getTime() - clock.seconds())
        assert ([True], []) == (called, clock.getDelayedCalls())
        near.close()
        far.close()

    def test_reset(self) -> None:
        """A peer that resets the connection is not waited for."""
        near, far = tcp_pair(SMALL_BUFFER)
        clock = Clock()
        called: list[bool] = []
        fill(near)
        SendQueueWatch(clock, near.fileno(), lambda: called.append(True))
        reset(far)
        arrived(near)
        clock.advance(0.001)
        assert ([True], []) == (called, clock.getDelayedCalls())
        near.close()

    def test_given_up(self) -> None:
        """A peer that reads nothing for five seconds is not waited for."""
        near, far = tcp_pair(SMALL_BUFFER)
        clock = Clock()
        called: list[bool] = []
        fill(near)
        SendQueueWatch(clock, near.fileno(), lambda: called.append(True))
        clock.pump([0.01] * 490)
        assert [] == called
        clock.pump([0.01] * 60)
        assert ([True], []) == (called, clock.getDelayedCalls())
        near.close()
        far.close()

    def test_cancel(self) -> None:
        """After cancelling nobody is called; twice does no harm."""
        near, far = tcp_pair(SMALL_BUFFER)
        clock = Clock()
        called: list[bool] = []
        fill(near)
        watch = SendQueueWatch(clock, near.fileno(), lambda: called.append(True))
        watch.cancel()
        watch.cancel()
        clock.advance(100)
        assert ([], []) == (called, clock.getDelayedCalls())
        near.close()
        far.close()


class TestResetWhenSent:
    def test_nothing_sent(self, turning: Turning, poller: Poller) -> None:
        """With nothing on its way the reset comes at once."""
        near, far = tcp_pair()
        done: list[bool] = []
        poller.register(near.fileno(), READ, Owner())
        ResetWhenSent(turning.reactor, poller, near, lambda: done.append(True))
        assert ([True], []) == (done, poller.pollables())
        assert b"" == Peer(turning, far, 1).read_to_reset()
        far.close()

    def test_after_everything(self, turning: Turning, poller: Poller) -> None:
        """Everything arrives first."""
        near, far = tcp_pair()
        done: list[bool] = []
        total = fill(near)
        poller.register(near.fileno(), READ, Owner())
        ResetWhenSent(turning.reactor, poller, near, lambda: done.append(True))
        assert [] == done
        assert total == len(Peer(turning, far, 1).read_to_reset())
        assert ([True], []) == (done, poller.pollables())
        far.close()

    def test_peer_resets(self, turning: Turning, poller: Poller) -> None:
        """A peer that resets is not waited for."""
        near, far = tcp_pair(SMALL_BUFFER)
        done: list[bool] = []
        fill(near)
        poller.register(near.fileno(), READ, Owner())
        ResetWhenSent(turning.reactor, poller, near, lambda: done.append(True))
        reset(far)
        turning.until(lambda: done)
        assert [] == poller.pollables()

    def test_shut_down(self, turning: Turning, poller: Poller) -> None:
        """When the process ends nobody is waited for; a second time does no harm."""
        near, far = tcp_pair(SMALL_BUFFER)
        done: list[bool] = []
        fill(near)
        poller.register(near.fileno(), READ, Owner())
        ending = ResetWhenSent(turning.reactor, poller, near, lambda: done.append(True))
        # Meant for the descriptor's former owner.
        ending.ready(READ)
        assert ([], [ending]) == (done, poller.pollables())
        ending.shut_down()
        ending.shut_down()
        assert [True] == done
        far.close()

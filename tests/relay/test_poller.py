from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE, open_descriptors
from turning import Turning, turning
from twisted.internet.interfaces import ILoggingContext, IReadDescriptor
from zope.interface.verify import verifyObject

from sidecar.relay.poller import ERROR, READ, WRITE, Poller
from sidecar.relay.resets import reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def poller(turning: Turning) -> Iterator[Poller]:
    made = Poller(turning.reactor)
    yield made
    made.close()


class Listener:
    """Takes note of what it is told, and does what a test wants it to."""

    def __init__(self, react: Callable[[], object] | None = None) -> None:
        self.told: list[int] = []
        self.failures = 0
        self._react = react

    def ready(self, events: int) -> None:
        self.told.append(events)
        if self._react is not None:
            self._react()

    def failed(self) -> None:
        self.failures += 1

    def shut_down(self) -> None:
        pass


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


class TestReadiness:
    def test_interface(self, poller: Poller) -> None:
        """The reactor gets what it expects of a reader."""
        assert verifyObject(IReadDescriptor, poller)
        assert verifyObject(ILoggingContext, poller)

    def test_read(
        self, turning: Turning, poller: Poller, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """Data makes a descriptor readable, for as long as it isn't read."""
        near, far = pair
        listener = Listener()
        poller.register(near.fileno(), READ, listener)
        turning.turn()
        assert [] == listener.told
        far.send(b"x")
        turning.until(lambda: listener.told)
        turning.turn(1)
        assert [READ, READ] == listener.told
        near.recv(1)
        turning.turn()
        assert [READ, READ] == listener.told

    def test_write(
        self, turning: Turning, poller: Poller, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """Room makes it writable."""
        listener = Listener()
        poller.register(pair[0].fileno(), READ | WRITE, listener)
        turning.until(lambda: listener.told)
        assert WRITE == listener.told[0]

    def test_error(self, turning: Turning, poller: Poller) -> None:
        """A reset is told whether asked for or not."""
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        with near:
            listener = Listener()
            poller.register(near.fileno(), 0, listener)
            reset(far)
            turning.until(lambda: listener.told)
            assert listener.told[0] & ERROR

    def test_modify(
        self, turning: Turning, poller: Poller, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """What is watched for can be changed."""
        near, far = pair
        listener = Listener()
        poller.register(near.fileno(), READ, listener)
        far.send(b"x")
        poller.modify(near.fileno(), 0)
        turning.settle()
        assert [] == listener.told
        poller.modify(near.fileno(), READ)
        turning.until(lambda: listener.told)

    def test_transfer(
        self, turning: Turning, poller: Poller, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """A descriptor can get another owner."""
        near, far = pair
        first, second = Listener(), Listener()
        poller.register(near.fileno(), 0, first)
        poller.transfer(near.fileno(), READ, second)
        far.send(b"x")
        turning.until(lambda: second.told)
        assert [] == first.told

    @pytest.mark.parametrize("how", ["unregister", "forget"])
    def test_no_longer(self, turning: Turning, poller: Poller, how: str) -> None:
        """Who is no longer watched is told nothing."""
        near, far = socket.socketpair()
        listener = Listener()
        poller.register(near.fileno(), READ, listener)
        far.send(b"x")
        getattr(poller, how)(near.fileno())
        if how == "forget":
            near.close()
        turning.settle()
        assert ([], []) == (listener.told, poller.pollables())
        near.close()
        far.close()

    def test_not_after_unregistering_in_the_same_batch(
        self, turning: Turning, poller: Poller
    ) -> None:
        """Who is taken out by another's reaction is not told either."""
        pairs = [socket.socketpair() for _ in range(2)]
        listeners: list[Listener] = []

        def take_others_out() -> None:
            for (near, _), listener in zip(pairs, listeners, strict=True):
                if not listener.told:
                    poller.unregister(near.fileno())

        for near, far in pairs:
            listener = Listener(take_others_out)
            listeners.append(listener)
            poller.register(near.fileno(), READ, listener)
            far.send(b"x")
        turning.turn()
        assert 1 == sum(len(listener.told) for listener in listeners)
        for near, far in pairs:
            near.close()
            far.close()

    def test_many(self, turning: Turning, poller: Poller) -> None:
        """More descriptors than a batch takes all get their turn."""
        pairs = [socket.socketpair() for _ in range(300)]
        listeners = []
        for near, far in pairs:
            listener = Listener()
            listeners.append(listener)
            poller.register(near.fileno(), READ, listener)
            far.send(b"x")
        turning.until(lambda: all(listener.told for listener in listeners))
        for near, far in pairs:
            near.close()
            far.close()


class TestBugs:
    def test_one_raises(self, turning: Turning, poller: Poller) -> None:
        """Who raises is told that it failed, the bug is logged, and the others go on."""

        def bug() -> None:
            raise ZeroDivisionError

        pairs = [socket.socketpair() for _ in range(3)]
        listeners = [Listener(), Listener(bug), Listener()]
        for (near, far), listener in zip(pairs, listeners, strict=True):
            poller.register(near.fileno(), READ, listener)
            far.send(b"x")
        turning.turn()
        assert [1, 1, 1] == [len(listener.told) for listener in listeners]
        assert [0, 1, 0] == [listener.failures for listener in listeners]
        assert "ZeroDivisionError" in turning.failures.pop()
        for near, far in pairs:
            near.close()
            far.close()


class TestSoon:
    def test_in_a_batch(
        self, turning: Turning, poller: Poller, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """What is due is called after everybody was told, in the same turn, in order."""
        order: list[str] = []

        def first() -> None:
            order.append("first")
            poller.soon(lambda: order.append("third"))

        def react() -> None:
            poller.soon(first)
            poller.soon(lambda: order.append("second"))
            order.append("told")
            near.recv(1)

        near, far = pair
        poller.register(near.fileno(), READ, Listener(react))
        far.send(b"x")
        turning.turn(PATIENCE)
        assert ["told", "first", "second", "third"] == order

    def test_outside(self, turning: Turning, poller: Poller) -> None:
        """Where there is no batch it is the reactor's next turn."""
        order: list[int] = []
        for number in range(3):
            poller.soon(partial(order.append, number))
        assert [] == order
        turning.turn()
        assert [0, 1, 2] == order
        poller.soon(lambda: order.append(3))
        turning.turn()
        assert [0, 1, 2, 3] == order

    def test_batch_before_the_turn(
        self, turning: Turning, poller: Poller, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """Whichever comes first, it is called once."""
        order: list[str] = []
        near, far = pair
        poller.register(near.fileno(), READ, Listener(lambda: near.recv(1)))
        poller.soon(lambda: order.append("soon"))
        far.send(b"x")
        poller.doRead()
        assert ["soon"] == order
        turning.turn()
        poller.soon(lambda: order.append("again"))
        turning.turn()
        assert ["soon", "again"] == order

    def test_bug(self, turning: Turning, poller: Poller) -> None:
        """What it raises is logged; the others are called."""
        order: list[int] = []

        def bug() -> None:
            raise ZeroDivisionError

        poller.soon(bug)
        poller.soon(lambda: order.append(1))
        turning.turn()
        assert [1] == order
        assert "ZeroDivisionError" in turning.failures.pop()

    def test_closing(self, turning: Turning) -> None:
        """At closing it is called."""
        order: list[int] = []
        poller = Poller(turning.reactor)
        poller.soon(lambda: order.append(1))
        poller.close()
        turning.turn()
        assert [1] == order


class TestClosing:
    def test_close(self, turning: Turning) -> None:
        """After closing nothing is watched; closing twice does no harm."""
        before = open_descriptors()
        poller = Poller(turning.reactor)
        poller.close()
        assert before == open_descriptors()
        poller.close()
        assert -1 == poller.fileno()
        turning.turn()

    def test_closed_by_somebody_in_the_same_batch(self, turning: Turning) -> None:
        """A reaction may close the poller; whoever comes after it is told nothing."""
        poller = Poller(turning.reactor)
        pairs = [socket.socketpair() for _ in range(2)]
        listeners = [Listener(poller.close) for _ in pairs]
        for (near, far), listener in zip(pairs, listeners, strict=True):
            poller.register(near.fileno(), READ, listener)
            far.send(b"x")
        turning.turn()
        assert 1 == sum(len(listener.told) for listener in listeners)
        for near, far in pairs:
            near.close()
            far.close()

    def test_pollables(self, poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
        """Everything that is watched can be asked for, to be ended."""
        listener = Listener()
        poller.register(pair[0].fileno(), READ, listener)
        assert [listener] == poller.pollables()

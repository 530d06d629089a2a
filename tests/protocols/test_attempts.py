from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from support import fill_queue
from turning import ByHand, Turning, turning

from sidecar.addresses import SocketAddress
from sidecar.config import Limits
from sidecar.dialing import Dial
from sidecar.errors import ConnectionRefused, ConnectionTimeout, DialError
from sidecar.protocols.attempts import Attempts
from sidecar.protocols.connecting import reach
from sidecar.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.interfaces import IRelayReactor
    from sidecar.relay import Side

# Seconds for all attempts together; they pass when a test says so.
TIMEOUT = 12.0


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    with turning() as made:
        yield made


@pytest.fixture
def clock(turning: Turning) -> ByHand:
    return ByHand(turning.reactor)


@pytest.fixture
def runtime(clock: ByHand) -> Iterator[Runtime]:
    reactor = cast("IRelayReactor", clock)
    made = Runtime.make(reactor, mark=None, limits=Limits(connect_timeout=TIMEOUT))
    yield made
    made.close()


@pytest.fixture
def stack(runtime: Runtime) -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


class Outcome:
    """Takes what the attempts end with."""

    def __init__(self) -> None:
        self.all: list[tuple[type, SocketAddress | None]] = []

    def __call__(self, outcome: Side | DialError, address: SocketAddress | None) -> None:
        self.all.append((type(outcome), address))
        if isinstance(outcome, socket.socket):
            outcome.close()


def answering(stack: ExitStack, host: str) -> SocketAddress:
    """Where somebody accepts."""
    return SocketAddress.from_kernel(
        stack.enter_context(socket.create_server((host, 0))).getsockname()
    )


def refusing(stack: ExitStack, host: str) -> SocketAddress:
    """Where nobody listens."""
    bound = stack.enter_context(socket.socket())
    bound.bind((host, 0))
    return SocketAddress.from_kernel(bound.getsockname())


def silent(stack: ExitStack, host: str) -> SocketAddress:
    """Where nobody answers: a listener whose queue is full drops what comes."""
    listener = stack.enter_context(socket.socket())
    listener.bind((host, 0))
    fill_queue(stack, listener)
    return SocketAddress.from_kernel(listener.getsockname())


@pytest.mark.usefixtures("at_once")
def test_first(stack: ExitStack, runtime: Runtime) -> None:
    """Where the first answers, the others are not dialled."""
    addresses = answering(stack, "127.0.0.2"), answering(stack, "127.0.0.3")
    outcome = Outcome()
    assert reach(runtime, addresses, None, outcome) is None
    assert [(socket.socket, addresses[0])] == outcome.all


def test_next(stack: ExitStack, turning: Turning, clock: ByHand, runtime: Runtime) -> None:
    """Whoever refuses or is silent is followed by the next; who answers is told."""
    addresses = (
        *(refusing(stack, "127.0.0.2"), silent(stack, "127.0.0.3")),
        *(refusing(stack, "127.0.0.4"), answering(stack, "127.0.0.5")),
    )
    outcome = Outcome()
    assert isinstance(reach(runtime, addresses, None, outcome), Attempts)
    turning.until(lambda: [each._address for each in runtime.dialer._waiting] == [addresses[1]])
    # A third of the time is the silent one's: two wait behind it.
    clock.advance(TIMEOUT / 3 - 1)
    assert [] == outcome.all
    clock.advance(1)
    turning.until(lambda: outcome.all)
    assert [(socket.socket, addresses[-1])] == outcome.all


@pytest.mark.usefixtures("at_once")
def test_none(stack: ExitStack, runtime: Runtime) -> None:
    """Where nobody answers, the last error counts."""
    addresses = refusing(stack, "127.0.0.2"), refusing(stack, "127.0.0.3")
    outcome = Outcome()
    assert reach(runtime, addresses, None, outcome) is None
    assert [(ConnectionRefused, addresses[1])] == outcome.all


def test_deadline(stack: ExitStack, clock: ByHand, runtime: Runtime) -> None:
    """All of them together have as long as one."""
    addresses = tuple(silent(stack, f"127.0.0.{number}") for number in range(2, 6))
    outcome = Outcome()
    reach(runtime, addresses, None, outcome)
    clock.pump([1] * (int(TIMEOUT) - 1))
    assert [] == outcome.all
    clock.advance(1)
    assert [(ConnectionTimeout, addresses[-1])] == outcome.all


def test_cancel(stack: ExitStack, turning: Turning, runtime: Runtime) -> None:
    """Who gives up is not told of anything, and nothing goes on."""
    addresses = silent(stack, "127.0.0.2"), answering(stack, "127.0.0.3")
    outcome = Outcome()
    attempts = reach(runtime, addresses, None, outcome)
    assert isinstance(attempts, Attempts)
    attempts.cancel()
    turning.settle()
    assert ([], False) == (outcome.all, attempts.pending)


def test_one(stack: ExitStack, runtime: Runtime) -> None:
    """A single address is dialled as it is."""
    address = silent(stack, "127.0.0.2")
    dial = reach(runtime, (address,), None, Outcome())
    assert isinstance(dial, Dial)
    dial.cancel()

from __future__ import annotations

import os
import pty
import select
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from observe.stopping import stop_writing
from support import PATIENCE
from twisted.internet.task import Clock

from sidecar.observe.console import (
    BURST_LINES,
    FLUSH_DELAY,
    HELD_MAX,
    LINES_PER_SECOND,
    Console,
)
from sidecar.observe.line_writer import STOP_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

_LFLAG = 3


class Screen:
    """A terminal, or a pipe, and what was written to it."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self.writing = writing
        self.text = ""

    def read(self, wanted: str = "", patience: float = PATIENCE) -> str:
        """All that has been written, once it has the wanted text."""
        deadline = time.monotonic() + patience
        while wanted not in self.text or not wanted:
            left = deadline - time.monotonic() if wanted else 0.05
            if left <= 0 or not select.select([self.reading], [], [], left)[0]:
                break
            self.text += os.read(self.reading, 1 << 16).decode()
        return self.text

    def set_mode(self, mode: int, *, on: bool) -> None:
        """Change how the terminal reads, as a program would."""
        modes = termios.tcgetattr(self.writing)
        modes[_LFLAG] = modes[_LFLAG] | mode if on else modes[_LFLAG] & ~mode
        termios.tcsetattr(self.writing, termios.TCSANOW, modes)


def opened(pair: tuple[int, int]) -> Iterator[Screen]:
    """A screen, closed in the end."""
    screen = Screen(*pair)
    yield screen
    os.close(screen.reading)
    os.close(screen.writing)


@pytest.fixture
def terminal() -> Iterator[Screen]:
    yield from opened(pty.openpty())


@pytest.fixture
def pipe() -> Iterator[Screen]:
    yield from opened(os.pipe())


@pytest.fixture
def clock() -> Clock:
    return Clock()


def console(screen: Screen, clock: Clock) -> Console:
    """A console on it."""
    return Console(screen.writing, clock, lambda number: f"{number} left out")


def stop(made: Console, clock: Clock) -> None:
    """Stop it, and wait until all is written."""
    stop_writing(made._writer, made.stop, clock)


class TestWriting:
    def test_soon(self, pipe: Screen, clock: Clock) -> None:
        """Lines come after a moment, together, each with its end."""
        made = console(pipe, clock)
        made.write("one")
        made.write("two\n  more")
        assert "" == pipe.read()
        clock.advance(FLUSH_DELAY)
        assert "one\ntwo\n  more\n" == pipe.read("more\n")
        stop(made, clock)

    def test_stop(self, pipe: Screen, clock: Clock) -> None:
        """At the end what waits is written, and nothing after it."""
        made = console(pipe, clock)
        made.write("one")
        stop(made, clock)
        made.write("two")
        assert "one\n" == pipe.read()
        stop(made, clock)

    def test_terminal(self, terminal: Screen, clock: Clock) -> None:
        """On a terminal each line begins at the left, whatever the command has done to it."""
        modes = termios.tcgetattr(terminal.writing)
        modes[1] &= ~termios.OPOST
        termios.tcsetattr(terminal.writing, termios.TCSANOW, modes)
        made = console(terminal, clock)
        made.write("one\n  more")
        clock.advance(FLUSH_DELAY)
        assert "one\r\n  more\r\n" == terminal.read("more\r\n")
        stop(made, clock)

    def test_nobody_reads(self, pipe: Screen, clock: Clock) -> None:
        """A reader that is stuck stops nobody, not even the end."""
        os.set_blocking(pipe.writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(pipe.writing, b"x" * 4096)
        made = console(pipe, clock)
        made.write("one")
        clock.advance(FLUSH_DELAY)
        stopped = made.stop()
        clock.pump([0.01] * round(STOP_TIMEOUT / 0.01 + 10))
        assert stopped.called
        # Of its writer's thread nothing is to be left.
        os.read(pipe.reading, 1 << 16)
        thread = made._writer._thread
        assert thread is not None
        thread.join(PATIENCE)
        assert not thread.is_alive()


class TestHeld:
    @pytest.mark.parametrize("mode", [termios.ICANON, termios.ECHO])
    def test_while_keys_are_read(self, terminal: Screen, clock: Clock, mode: int) -> None:
        """Lines wait while the command has the screen or asks for a password; then they come."""
        made = console(terminal, clock)
        terminal.set_mode(mode, on=False)
        made.write("one")
        for _ in range(10):
            clock.advance(0.3)
        assert "" == terminal.read()
        terminal.set_mode(mode, on=True)
        clock.advance(0.3)
        assert terminal.read("\n").startswith("one\r")
        stop(made, clock)

    def test_bounded(self, terminal: Screen, clock: Clock) -> None:
        """Not more than a few pages wait; the others are counted, and all comes at the end."""
        made = console(terminal, clock)
        terminal.set_mode(termios.ICANON, on=False)
        for _ in range(10):
            for _ in range(HELD_MAX // 4):
                made.write("held")
            clock.advance(30)
        terminal.set_mode(termios.ICANON, on=True)
        stop(made, clock)
        assert HELD_MAX == terminal.read(" left out").count("held")
        assert f"{10 * (HELD_MAX // 4) - HELD_MAX} left out" in terminal.text


def test_too_many(pipe: Screen, clock: Clock) -> None:
    """More lines than can be read are counted, and said once there is room."""
    made = console(pipe, clock)
    for _ in range(BURST_LINES + 7):
        made.write("x")
    clock.advance(FLUSH_DELAY)
    assert BURST_LINES == pipe.read("left out").count("x")
    assert pipe.text.endswith("\n7 left out\n")
    clock.advance(1)
    for _ in range(LINES_PER_SECOND):
        made.write("y")
    clock.advance(FLUSH_DELAY)
    pipe.read("y\n" * LINES_PER_SECOND)
    assert LINES_PER_SECOND == pipe.text.count("y")
    stop(made, clock)

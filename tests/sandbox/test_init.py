"""Pid 1 has time for everything, however many others there are."""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from sidecar.sandbox.handover import Channel, Word
from sidecar.sandbox.init import Alone, _Init

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND, OTHER = 4711, 4712


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """P's end, and pid 1's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


@pytest.fixture
def init(channels: tuple[Channel, Channel]) -> Iterator[_Init]:
    """It, whose command runs."""
    handler = signal.getsignal(signal.SIGCHLD)
    made = _Init(channels[1], Alone(mounts=True, pids=True, missing=[]))
    made._child = COMMAND
    yield made
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, handler)
    os.close(made._wake)
    os.close(made._waking)


class TestReap:
    def test_without_end(
        self,
        init: _Init,
        channels: tuple[Channel, Channel],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Who makes orphans faster than they are taken note of doesn't keep it from the rest."""

        def waitpid(pid: int, _: int) -> tuple[int, int]:
            return (OTHER, 0) if pid == -1 else (0, 0)

        monkeypatch.setattr(os, "waitpid", waitpid)
        assert init._reap()
        # It comes back without being woken by a signal.
        assert select.select([init._wake], [], [], 0)[0]
        with pytest.raises(BlockingIOError):
            channels[0].hear()

    def test_the_command_first(
        self,
        init: _Init,
        channels: tuple[Channel, Channel],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The command's end is seen, however many others end."""

        def waitpid(pid: int, _: int) -> tuple[int, int]:
            return (OTHER, 0) if pid == -1 else (COMMAND, 7 << 8)

        monkeypatch.setattr(os, "waitpid", waitpid)
        assert init._reap()
        assert (Word.EXITED, (7 << 8).to_bytes(4, "little")) == channels[0].hear()


def test_killed_before_it_begins(init: _Init, channels: tuple[Channel, Channel]) -> None:
    """A command that a signal ended before it was let go is no bug."""
    reading, init._go = os.pipe()
    os.close(reading)
    channels[0].tell(Word.GO)
    init._wait(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(init._go)

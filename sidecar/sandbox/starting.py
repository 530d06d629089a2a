"""P's side of the sandbox until Twisted is there: fork, wait, let go.

Imports as little as `sidecar.sandbox.inside` does: what is imported before the fork is
waited for twice.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sidecar.sandbox.handover import Channel, Word, failure, receive_listeners

if TYPE_CHECKING:
    from sidecar.sandbox.handover import Listeners

__all__ = ["HELD_SIGNALS", "Started", "start"]

HELD_SIGNALS = frozenset(
    {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)
"""Signals that are blocked from the fork on, and read in the reactor (`outside`).

A terminal sends them to the command as well; what is meant for it alone is passed on;
and we stop only when it has.
"""

_ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class Started:
    """A sandbox that is being made, then waits to be let go.

    Args:
        channel: To the set-up process, then to pid 1.
        pid: The set-up process.

    Attributes:
        listeners: What to serve; set by `wait`.
        init: The process id, here, of the sandbox's pid 1; set by `wait`.
        missing: What had to be done without, a line each; set by `wait`.
    """

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        self.listeners: Listeners | None = None
        self.init = -1
        self.missing: tuple[str, ...] = ()

    def wait(self) -> Listeners:
        """Wait until the command could be run.

        Raises:
            NamespaceError: There is no sandbox, and why. Nothing is left of it.
        """
        with ExitStack() as stack:
            stack.callback(self.abandon)
            self.listeners = receive_listeners(self.channel, self.pid)
            message = self.channel.hear_from()
            if message.word is not Word.READY:
                raise failure(message.body)
            stack.pop_all()
        self.init = message.sender
        self.missing = tuple(message.body.decode(errors="replace").splitlines())
        return self.listeners

    def pending(self) -> int | None:
        """The signal that arrived before the command could, and ends us; None for none."""
        pending = signal.sigpending()
        return next((number for number in _ENDING if number in pending), None)

    def go(self) -> None:
        """Let the command run."""
        self.channel.tell(Word.GO)

    def abandon(self) -> None:
        """Don't; take away what there is."""
        if self.listeners is not None:
            self.listeners.close()
        self.channel.close()
        os.waitpid(self.pid, 0)


def start(command: list[str]) -> Started:
    """Fork the set-up process, which begins at once.

    This process must have one thread. From here on `HELD_SIGNALS` are blocked in it.

    Args:
        command: What to run, at least one word.
    """
    signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_set_up(Channel(theirs), ours, parent, command, signal_mask)
    theirs.close()
    return Started(Channel(ours), pid)


def _be_set_up(
    channel: Channel,
    other: socket.socket,
    parent: int,
    command: list[str],
    signal_mask: set[signal.Signals | int],
) -> None:
    try:
        other.close()
        from sidecar.sandbox.inside import set_up

        set_up(channel, parent, command, signal_mask)
    except BaseException as error:  # noqa: BLE001 - two copies of a program must not go on
        cause = f"a bug in setting up the sandbox: {error!r}"
        channel.tell(Word.ERROR, f"{cause}\0report it".encode())
    finally:
        os._exit(125)

"""P's side of the sandbox until Twisted is there: fork, wait, let go.

Imports as little as `sidecar.sandbox.inside` does: what is imported before the fork is
waited for twice.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sidecar.sandbox.handover import Channel, Word, failure, receive_listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.sandbox.handover import Listeners

__all__ = ["HELD_SIGNALS", "Interrupted", "Started", "start"]

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

# Seconds. All takes a tenth of it, as a rule.
_LOOK_FOR_SIGNALS = 0.2
_ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal came before the command could be run, and ends us.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Started:
    """A sandbox that is being made, then waits to be let go.

    Args:
        channel: To the set-up process, then to pid 1.
        pid: The set-up process.
        host_ports: What `start` was given.
        signal_mask: The signals that were blocked before it.

    Attributes:
        listeners: What to serve; set by `wait`.
        init: The process id, here, of the sandbox's pid 1; set by `wait`.
        missing: What had to be done without, a line each; set by `wait`.
    """

    def __init__(
        self,
        channel: Channel,
        pid: int,
        host_ports: Sequence[int],
        signal_mask: set[signal.Signals | int],
    ) -> None:
        self.channel = channel
        self.pid = pid
        self.signal_mask = signal_mask
        self._host_ports = host_ports
        self.listeners: Listeners | None = None
        self.init = -1
        self.missing: tuple[str, ...] = ()

    def wait(self) -> Listeners:
        """Wait until the command could be run.

        Raises:
            NamespaceError: There is no sandbox, and why. Nothing is left of it.
            Interrupted: Likewise.
        """
        with ExitStack() as stack:
            stack.callback(self.abandon)
            self._wait_for_message()
            self.listeners = receive_listeners(self.channel, self.pid, self._host_ports)
            self._wait_for_message()
            message = self.channel.hear_from()
            if message.word is not Word.READY:
                raise failure(message.body)
            stack.pop_all()
        self.init = message.sender
        self.missing = tuple(message.body.decode(errors="replace").splitlines())
        return self.listeners

    def _wait_for_message(self) -> None:
        while True:
            ready, _, _ = select.select([self.channel.fileno()], [], [], _LOOK_FOR_SIGNALS)
            pending = signal.sigpending()
            for number in _ENDING:
                if number in pending:
                    raise Interrupted(number)
            if signal.SIGTSTP in pending:
                # There is nobody yet to stop with.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
            if ready:
                return

    def go(self) -> None:
        """Let the command run."""
        self.channel.tell(Word.GO)

    def abandon(self) -> None:
        """Don't; take away what there is."""
        if self.listeners is not None:
            self.listeners.close()
        self.channel.close()
        os.waitpid(self.pid, 0)


def start(command: list[str], host_ports: Sequence[int] = ()) -> Started:
    """Fork the set-up process, which begins at once.

    This process must have one thread. From here on `HELD_SIGNALS` are blocked in it.

    Args:
        command: What to run, at least one word.
        host_ports: The ports of loopback inside that are to lead to the host's.
    """
    # Who ignores it can't wait for its children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    for stream in (sys.stdout, sys.stderr):
        # None where it was closed when Python started.
        if stream is not None:
            stream.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_set_up(Channel(theirs), ours, parent, command, signal_mask, host_ports)
    theirs.close()
    return Started(Channel(ours), pid, host_ports, signal_mask)


def _be_set_up(
    channel: Channel,
    other: socket.socket,
    parent: int,
    command: list[str],
    signal_mask: set[signal.Signals | int],
    host_ports: Sequence[int],
) -> None:
    try:
        other.close()
        from sidecar.sandbox.inside import set_up

        set_up(channel, parent, command, signal_mask, host_ports)
    except BaseException as error:  # noqa: BLE001 - two copies of a program must not go on
        cause = f"a bug in setting up the sandbox: {error!r}"
        channel.tell(Word.ERROR, f"{cause}\0report it".encode())
    finally:
        os._exit(125)

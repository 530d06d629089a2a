"""Pid 1 of the sandbox: starts the command, reports on it, and leaves nobody behind.

It ends with P, whose end of the channel is all that keeps it: with it, as pid 1 of its
namespace, everybody inside.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from sidecar.errors import NamespaceError
from sidecar.linux.leases import be_told
from sidecar.linux.syscalls import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from sidecar.sandbox.command import FAILED, become
from sidecar.sandbox.handover import GUARDED_AT_ONCE, Word, answer_with_socket
from sidecar.sandbox.mounts import (
    mount_proc,
    protect_kernel_settings,
    writable_kernel_settings,
)
from sidecar.sandbox.privileges import give_up_privileges

if TYPE_CHECKING:
    from sidecar.sandbox.handover import Channel

__all__ = ["GRACE", "Alone", "end_descendants", "let_go_of_terminal", "run"]

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for processes that outlive the command."""

# Seconds until whoever has survived SIGKILL, being about to die, is looked at again; and
# until no more is tried, which only those can bring about who make others faster than
# one process can be found and ended (without a pid namespace).
_AGAIN = 0.01
_GIVE_UP = 10.0
# Ended children that are taken note of in one go: some may end faster than that.
_REAPED_AT_ONCE = 256
_STATUS = struct.Struct("=i")


class Alone:
    """What the sandbox has for itself, beside its network.

    Args:
        mounts, pids: Whether there are a mount and a pid namespace.
        missing: What had to be done without, a line each.
    """

    def __init__(self, *, mounts: bool, pids: bool, missing: list[str]) -> None:
        self.mounts = mounts
        self.pids = pids
        self.missing = missing


def run(
    channel: Channel,
    command: list[str],
    signal_mask: set[signal.Signals | int],
    alone: Alone,
) -> NoReturn:
    """Be pid 1.

    Args:
        channel: To P.
        command: What to run.
        signal_mask: The signals that the command starts with blocked.
        alone: What the sandbox has for itself.
    """
    try:
        _isolate(alone)
        # Only now: a change of privileges makes the kernel forget it. What kills pid 1
        # kills all; without a pid namespace the end of the channel has to do.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL if alone.pids else 0)
        init = _Init(channel, alone)
        init.start(command, signal_mask)
    except NamespaceError as error:
        channel.tell(Word.ERROR, f"{error.cause}\0{error.cure}".encode())
        os._exit(FAILED)
    except OSError as error:
        cause = f"setting up the sandbox failed: {error.strerror}"
        channel.tell(Word.ERROR, f"{cause}\0run `sidecar doctor` to see what is missing".encode())
        os._exit(FAILED)
    channel.tell(Word.READY, "\n".join(alone.missing).encode())
    init.serve()
    os._exit(0)


def let_go_of_terminal() -> None:
    """Hold none of the command's standard descriptors: their other ends should notice its end."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _isolate(alone: Alone) -> None:
    if alone.mounts and alone.pids:
        try:
            mount_proc()
        except OSError as error:
            alone.missing.append(f"/proc shows the processes outside: {error.strerror}")
    if os.geteuid() == 0:
        _protect_machine(mounts=alone.mounts)
    if not alone.pids:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    give_up_privileges()


def _protect_machine(*, mounts: bool) -> None:
    """See to it that root can't have the kernel run programs outside.

    Args:
        mounts: Whether there is a mount namespace.

    Raises:
        NamespaceError: It could; nothing may be run.
    """
    problem = "there is no mount namespace"
    if mounts:
        problem = "the kernel doesn't do it"
        try:
            protect_kernel_settings()
        except OSError as error:
            problem = error.strerror or str(error)
    writable = writable_kernel_settings()
    if writable:
        raise NamespaceError(
            f"root could change the kernel's settings from inside: {writable[0]} can't be made"
            f" read-only: {problem}",
            "run it as another user than root, or where mount namespaces can be made"
            " (`sidecar doctor` tells)",
        )


class _Init:
    """The loop of pid 1.

    Args:
        channel: To P.
        alone: What the sandbox has for itself.
    """

    def __init__(self, channel: Channel, alone: Alone) -> None:
        self._channel = channel
        self._pids = alone.pids
        self._child = -1
        self._go = -1
        self._stopped = False
        self._wake, self._waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGIO, self._touched)
        # Full, it wakes as well.
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)

    def start(self, command: list[str], signal_mask: set[signal.Signals | int]) -> None:
        """Fork the command's process, which waits to be let go."""
        wait, self._go = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            become(command, wait, signal_mask)
        os.close(wait)
        if not self._pids:
            # Nothing else keeps us from what is sent to the command's group (kill 0), by
            # whom then nobody who left it would be ended. A session, not a group alone:
            # to a parent in its own, the kernel would look for whether the command's
            # group may be stopped.
            os.setsid()
        let_go_of_terminal()

    def serve(self) -> None:
        """Do as P says until the command and all that it left are gone, or P is."""
        while self._child > 0:
            self._wait(None)
            self._reap()
        self._end_others()

    def _wait(self, timeout: float | None) -> None:
        channel = self._channel.fileno()
        ready, _, _ = select.select([channel, self._wake], [], [], timeout)
        if self._wake in ready:
            with suppress(BlockingIOError):
                os.read(self._wake, 512)
        if channel in ready:
            self._obey()

    def _obey(self) -> None:
        try:
            message = self._channel.hear_from(GUARDED_AT_ONCE)
        except NamespaceError:
            # P is gone.
            self._kill_everybody()
            os._exit(FAILED)
        word, body = message.word, message.body
        if word is Word.GUARD:
            for descriptor in message.descriptors:
                be_told(descriptor)
                os.close(descriptor)
        elif word is Word.GO:
            # It may have been killed, by a signal that was passed on.
            with suppress(BrokenPipeError):
                os.write(self._go, b"!")
            os.close(self._go)
        elif word is Word.SOCKET:
            answer_with_socket(self._channel, body)
        elif word is Word.SIGNAL and self._child > 0:
            self._reap()
            # Who continues a group has continued the command with it.
            if body[0] != signal.SIGCONT or self._stopped:
                _kill(self._child, body[0])
        elif word is Word.SIGNAL:
            self._kill_all(body[0])

    def _touched(self, *_: object) -> None:
        """A guarded file is about to be written to; that waits until we are gone, and P."""
        self._channel.tell(Word.GUARD)
        self._kill_everybody()
        os._exit(FAILED)

    def _reap(self) -> bool:
        """Take note of what children did.

        Returns:
            Whether there are any left.
        """
        options = os.WNOHANG | os.WUNTRACED | os.WCONTINUED
        # However many others there are.
        while self._child > 0:
            pid, status = os.waitpid(self._child, options)
            if pid == 0:
                break
            self._changed(status)
        for _ in range(_REAPED_AT_ONCE):
            try:
                pid, status = os.waitpid(-1, options)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._changed(status)
        with suppress(BlockingIOError):
            os.write(self._waking, b"!")
        return True

    def _changed(self, status: int) -> None:
        """The command was stopped, goes on or has ended."""
        self._stopped = os.WIFSTOPPED(status)
        if os.WIFCONTINUED(status):
            self._channel.tell(Word.CONTINUED)
        elif self._stopped:
            self._channel.tell(Word.STOPPED, bytes([os.WSTOPSIG(status)]))
        else:
            self._child = 0
            self._channel.tell(Word.EXITED, _STATUS.pack(status))

    def _end_others(self) -> None:
        """End whoever is still there: SIGTERM, some grace, SIGKILL."""
        if not self._reap():
            return
        self._channel.tell(Word.ENDED_OTHERS)
        self._kill_all(signal.SIGTERM)
        # A stopped process would not hear of it.
        self._kill_all(signal.SIGCONT)
        deadline = time.monotonic() + GRACE
        while self._reap() and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
        self._kill_everybody()

    def _kill_everybody(self) -> None:
        if self._pids:
            # The end of pid 1 is that of all the others, whatever they do, and it is over
            # only when they are (pid_namespaces(7)).
            return
        deadline = time.monotonic() + _GIVE_UP
        while self._reap():
            self._kill_all(signal.SIGKILL)
            if time.monotonic() > deadline:
                self._channel.tell(Word.LEFT_OTHERS)
                return
            time.sleep(_AGAIN)

    def _kill_all(self, number: int) -> None:
        """Send everybody inside a signal; without a pid namespace, all our descendants.

        Whose parents are gone is a child of ours.
        """
        if self._pids:
            _kill(-1, number)
            return
        for pid in _descendants():
            _kill(pid, number)


def end_descendants() -> None:
    """Kill all that this process has started and they have, and wait for that; not for ever."""
    deadline = time.monotonic() + _GIVE_UP
    while _any_left() and time.monotonic() < deadline:
        for pid in _descendants():
            _kill(pid, signal.SIGKILL)
        time.sleep(_AGAIN)


def _any_left() -> bool:
    for _ in range(_REAPED_AT_ONCE):
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return True
        except ChildProcessError:  # noqa: PERF203 - seldom more than two
            return False
    return True


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - numbers, no paths
        if name.isdigit():
            # Of /proc/PID/stat, the fields after the name, which may have anything in it.
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(name))
    found = children.get(os.getpid(), [])
    # Grows meanwhile.
    for pid in found:
        found += children.get(pid, [])
    return found

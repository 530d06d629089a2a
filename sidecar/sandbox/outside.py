"""The sandbox as the reactor sees it: signals one way, the command's fate the other."""

from __future__ import annotations

import os
import signal
import struct
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.errors import NamespaceError
from sidecar.linux.syscalls import signal_descriptor
from sidecar.sandbox.foreground import Foreground
from sidecar.sandbox.handover import Word
from sidecar.sandbox.starting import HELD_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFDSet
    from twisted.python.failure import Failure

    from sidecar.sandbox.handover import Message
    from sidecar.sandbox.sockets import SocketsInside
    from sidecar.sandbox.starting import Started

__all__ = ["Sandbox", "exit_status"]

# sys/signalfd.h: struct signalfd_siginfo; its first number, and its third.
_SIGINFO = struct.Struct("=Iii116x")
# asm-generic/siginfo.h: the kernel sent it, which for these signals is the terminal.
_SI_KERNEL = 0x80
_STATUS = struct.Struct("=i")
_BY_SIGNAL = 128
_FOR_TERMINAL = frozenset({signal.SIGTTIN, signal.SIGTTOU})
_STOPPING = _FOR_TERMINAL | {signal.SIGTSTP}


def exit_status(wait_status: int) -> int:
    """What a shell makes of a wait status: the exit status, or 128 and the signal."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else _BY_SIGNAL - code


class Sandbox:
    """A sandbox whose command runs, or is about to.

    Args:
        reactor: Where it belongs.
        started: Let go, or about to be; ours from here on.
        sockets: Told of the sockets that come; None where none are asked for.

    Attributes:
        status: What the command ended with, as `exit_status` has it; None while it
            runs, and for good if nobody could tell.
        ended: Fires with None once nobody is left inside.
        outlived: Whether processes outlived the command and were ended.
        left: Whether some of them could not be.
        touched: Whether it was ended because somebody was about to write to a guarded file.
        interrupted: The signal by which somebody wanted us to end since then; None for none.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorFDSet, started: Started, sockets: SocketsInside | None = None
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._channel = started.channel
        self._pid = started.pid
        self.status: int | None = None
        self.outlived = False
        self.left = False
        self.touched = False
        self.interrupted: int | None = None
        self._running = True
        self._foreground = Foreground()
        self.ended: Deferred[None] = Deferred()
        self._channel.sock.setblocking(False)
        self._signals = signal_descriptor(HELD_SIGNALS)
        self._signal_mask = started.signal_mask
        self._hearing = _Reader(self._channel.fileno(), self._heard)
        self._watching = _Reader(self._signals, self._signalled)
        reactor.addReader(self._hearing)
        reactor.addReader(self._watching)

    def let_go_of_signals(self) -> None:
        """From here on signals do to us what they do to everybody; call once it has ended."""
        self._reactor.removeReader(self._watching)
        os.close(self._signals)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            # Not as KeyboardInterrupt.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._signal_mask)

    def _heard(self) -> None:
        stopped_by: int | None = None
        while True:
            try:
                message = self._channel.hear_from()
            except BlockingIOError:
                break
            except NamespaceError:
                # The other side is gone.
                self._over()
                return
            if message.word is Word.STOPPED:
                stopped_by = message.body[0]
            elif message.word is Word.CONTINUED:
                # Before we came to hear of it.
                stopped_by = None
            else:
                self._told(message)
        if stopped_by is not None:
            number = signal.Signals(stopped_by)
            # What reads after a shell that was in between is not in the background.
            if number not in _FOR_TERMINAL or not self._foreground.take_back():
                self._stop(number)
            self._channel.tell(Word.SIGNAL, bytes([signal.SIGCONT]))

    def _told(self, message: Message) -> None:
        word, body = message.word, message.body
        if word is Word.SOCKET and self._sockets is not None:
            self._sockets.answered(message)
            return
        for descriptor in message.descriptors:
            # Nobody has asked for it.
            os.close(descriptor)
        if word is Word.EXITED:
            self.status = exit_status(_STATUS.unpack(body)[0])
        elif word is Word.ENDED_OTHERS:
            self.outlived = True
        elif word is Word.LEFT_OTHERS:
            self.left = True
        elif word is Word.GUARD:
            self.touched = True
        elif word is Word.ERROR:
            self._log.error("the sandbox: {text}", text=body.decode(errors="replace"))

    def _signalled(self) -> None:
        try:
            raw = os.read(self._signals, _SIGINFO.size * len(HELD_SIGNALS))
        except BlockingIOError:
            return
        for number, _, code in _SIGINFO.iter_unpack(raw):
            if not self._running:
                self._signalled_late(signal.Signals(number))
            # The terminal's, the command has got itself, being in the same group. And
            # we stop when it does, not before: a full-screen program tidies up first.
            elif code != _SI_KERNEL and number not in _STOPPING:
                self._channel.tell(Word.SIGNAL, bytes([number]))

    def _signalled_late(self, number: signal.Signals) -> None:
        """There is no command any more whom it could be meant for."""
        if number in _STOPPING:
            self._stop(number)
        elif self.interrupted is None:
            self.interrupted = number

    def _stop(self, number: signal.Signals) -> None:
        """Stop as the command did, so that who waits for us sees what happened; then go on."""
        if number in _STOPPING:
            # Blocked, it would wait; what the terminal sent us meanwhile is the same one.
            os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        elif self._foreground.is_ours():
            os.kill(os.getpid(), signal.SIGSTOP)

    def _over(self) -> None:
        # What has come by now was the command's.
        self._signalled()
        self._running = False
        self._reactor.removeReader(self._hearing)
        self._channel.close()
        if self._sockets is not None:
            self._sockets.close()
        # It ends with the sandbox, or has.
        os.waitpid(self._pid, 0)
        self._foreground.take_back()
        self.ended.callback(None)


@implementer(IReadDescriptor)
class _Reader:
    """A descriptor that is watched.

    Args:
        descriptor: Non-blocking.
        read: Called when there is something to read.
    """

    def __init__(self, descriptor: int, read: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._read = read

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "sandbox"

    def doRead(self) -> None:
        """Read."""
        self._read()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops watching."""

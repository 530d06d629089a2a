"""How P gets sockets of the sandbox's network namespace while the command runs.

Pid 1 makes one whenever it is asked for one, and answers in the order of the questions.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING

from twisted.logger import Logger
from zope.interface import implementer

from sidecar.errors import NamespaceError
from sidecar.interfaces import ICancellable
from sidecar.sandbox.handover import ask_for_socket, serial_of, take_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.sandbox.handover import Channel, Message

    Done = Callable[[socket.socket | OSError], None]

__all__ = ["ASKED_MAX", "SocketsInside"]

ASKED_MAX = 32
"""Questions that wait for an answer at once: some of the channel's buffer, which signals
need as well. Other askers wait their turn."""

_SERIALS = 1 << 32


class SocketsInside:
    """Asks pid 1 for sockets.

    Args:
        channel: To pid 1; its socket has SO_PASSCRED and is non-blocking.
        init: The process id, here, of pid 1.
        like: A socket of the sandbox's network namespace.
    """

    _log = Logger()

    def __init__(self, channel: Channel, init: int, like: socket.socket) -> None:
        self._channel = channel
        self._init = init
        # Of our own, for that one may be closed.
        self._like = like.dup()
        self._serial = 0
        self._waiting: deque[_Question] = deque()
        self._asked: dict[int, _Question] = {}
        self._over = False

    def ask(self, family: socket.AddressFamily, done: Done) -> ICancellable:
        """Ask for a TCP socket.

        Args:
            family: Of the socket.
            done: Called once, later or now, with the socket, which is the callee's, or
                with why there is none.

        Returns:
            What can be cancelled, whereupon `done` is not called.
        """
        question = _Question(family, done)
        self._waiting.append(question)
        self._ask()
        return question

    def answered(self, message: Message) -> None:
        """Take an answer (`handover.Word.SOCKET`)."""
        question = self._asked.pop(serial_of(message), None)
        try:
            family = socket.AF_INET if question is None else question.family
            outcome: socket.socket | OSError = take_socket(message, self._init, family, self._like)
        except NamespaceError as error:
            self._log.error("{text}", text=str(error))
            outcome = OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        except OSError as error:
            outcome = error
        if question is not None:
            question.end(outcome)
        elif isinstance(outcome, socket.socket):
            outcome.close()
        self._ask()

    def close(self) -> None:
        """The sandbox is over: there is nobody to answer."""
        self._over = True
        self._like.close()
        asked = [*self._asked.values(), *self._waiting]
        self._asked.clear()
        self._waiting.clear()
        for question in asked:
            question.end(_gone())

    def _ask(self) -> None:
        while self._waiting and len(self._asked) < ASKED_MAX:
            question = self._waiting.popleft()
            if question.cancelled:
                continue
            if self._over:
                question.end(_gone())
                continue
            self._serial = (self._serial + 1) % _SERIALS
            self._asked[self._serial] = question
            try:
                ask_for_socket(self._channel, self._serial, question.family)
            except OSError as error:
                del self._asked[self._serial]
                question.end(error)


def _gone() -> OSError:
    return OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


@implementer(ICancellable)
class _Question:
    """Somebody who wants a socket.

    Args:
        family: Of the socket.
        done: Told of it.
    """

    __slots__ = ("_done", "family")

    def __init__(self, family: socket.AddressFamily, done: Done) -> None:
        self.family = family
        self._done: Done | None = done

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self._done is None

    def cancel(self) -> None:
        """Want it no more; one that comes nevertheless is closed."""
        self._done = None

    def end(self, outcome: socket.socket | OSError) -> None:
        """Tell the outcome, once."""
        done, self._done = self._done, None
        if done is not None:
            done(outcome)
        elif isinstance(outcome, socket.socket):
            outcome.close()

"""What does the client say first, and when has it said enough?

What is there already is read before anything is waited for: nearly every client that
speaks first has spoken by the time that its connection is accepted, and needs neither
the poller nor a timer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.flow import FlowEnd
from sidecar.peeking import Peek
from sidecar.relay.poller import ERROR, READ

if TYPE_CHECKING:
    import socket

    from twisted.internet.interfaces import IDelayedCall

    from sidecar.flow import Flow
    from sidecar.runtime import Runtime

__all__ = ["Hearing"]

# Bytes taken from the client at a time. A post-quantum ClientHello is 1.8 KB.
_READ_SIZE = 1 << 14


class Hearing:
    """One flow whose client is being listened to.

    Args:
        runtime: Shared by all.
        connection: The client's.
        flow: Gains what the client says.
    """

    __slots__ = (
        "_connection",
        "_data",
        "_fd",
        "_flow",
        "_patience",
        "_peek",
        "_runtime",
        "_timer",
        "_watched",
    )

    def __init__(self, runtime: Runtime, connection: socket.socket, flow: Flow) -> None:
        self._runtime = runtime
        self._connection = connection
        self._fd = connection.fileno()
        self._flow = flow
        # What has been read, all of it.
        self._data = b""
        # While the client is being listened to.
        self._peek: Peek | None = None
        self._patience = 0.0
        self._timer: IDelayedCall | None = None
        self._watched = False

    # What comes of it

    def _heard(self) -> None:
        """Go on: the flow has all the facts that it will have."""
        raise NotImplementedError

    def _ran_out(self) -> None:
        """Go on: the client began to speak, and took too long."""
        raise NotImplementedError

    def _gone(self, end: FlowEnd) -> None:
        """End: the client has gone, or the process ends."""
        raise NotImplementedError

    def failed(self) -> None:
        """End: there was a bug."""
        raise NotImplementedError

    # The client's words

    def _listen(self, silence: float, patience: float) -> None:
        """Hear what is there; wait for more if that isn't enough.

        Args:
            silence: Seconds that the client may say nothing.
            patience: Seconds from its first byte to its last that matters.
        """
        self._peek = peek = Peek(self._flow)
        self._patience = patience
        self._read(peek)
        if self._peek is peek:
            self._watch(READ)
            wait = patience if self._data else silence
            self._timer = self._runtime.reactor.callLater(wait, self._waited)

    def _read(self, peek: Peek) -> None:
        try:
            data = self._connection.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._gone(FlowEnd.CLIENT_RESET)
            return
        if self._data:
            self._data += data
        else:
            self._data = data
            if self._timer is not None and data:
                # It speaks: from now on what counts is when it has said its name.
                self._timer.reset(self._patience)
        if peek.feed(data):
            self._peeked()

    def _waited(self) -> None:
        self._timer = None
        peek = self._peek
        if peek is None:
            return
        if self._data:
            self._peek = None
            self._ran_out()
        else:
            self._peeked()

    def _peeked(self) -> None:
        self._let_go()
        self._peek = None
        self._flow.names_known = True
        self._heard()

    # The poller's side

    def ready(self, events: int) -> None:
        """The client has something to say, or is gone."""
        if events & READ and self._peek is not None:
            self._read(self._peek)
        elif events & ERROR:
            self._gone(FlowEnd.CLIENT_RESET)

    def shut_down(self) -> None:
        """The process ends."""
        if self._watched:
            self._gone(FlowEnd.SHUTDOWN)

    def _watch(self, events: int) -> None:
        if self._watched:
            self._runtime.poller.modify(self._fd, events)
        else:
            self._watched = True
            self._runtime.poller.register(self._fd, events, self)

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._runtime.poller.unregister(self._fd)

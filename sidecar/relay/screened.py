"""How what a client says first is read by somebody before its server gets any of it.

Of such a relay only the client's first bytes are held back. What the server says is
relayed all the while, by the kernel where that pays, and so is the client's once they are
passed on. Otherwise both sockets are given back, as if they had never been joined: when
the client has what the server has said so far, so that nothing is lost or overtaken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Protocol as Typed

from sidecar.relay.half import Half

if TYPE_CHECKING:
    import socket

    from sidecar.relay.spliced import SplicedRelay

__all__ = ["Screen", "Screened"]

# Bytes taken from the client at a time. A post-quantum ClientHello is 1.8 KB.
_READ_SIZE = 1 << 14


class Screen(Typed):
    """Who reads what the client says first."""

    def heard(self, half: Screened, data: bytes) -> None:
        """The client has said something.

        Args:
            half: To be told, once enough is heard, to `pass_on` or to `give_back`: as the
                last that is done here, or later.
            data: What follows in the stream; empty for its end.
        """

    def given_back(self, upstream: socket.socket, received: int, *, spoken: bool) -> None:
        """The relay is no more; both sockets are open, and nobody's.

        Args:
            upstream: The server's.
            received: Bytes that the client got.
            spoken: Whether the server has said anything at all, be it that it is done.
        """

    def failed(self) -> None:
        """End at once: there was a bug after the sockets were given back."""


class Screened(Half):
    """The client's socket of a relay whose first bytes are screened."""

    __slots__ = ("_giving_back", "_screen")

    def __init__(
        self, relay: SplicedRelay, sock: socket.socket, pending: bytes, screen: Screen
    ) -> None:
        super().__init__(relay, sock, pending)
        self._screen: Screen | None = screen
        self._giving_back = False

    # What becomes of what was heard

    def pass_on(self, data: bytes) -> None:
        """Relay what was heard, and all that follows.

        Args:
            data: All that was heard.
        """
        self._screen = None
        if not data:
            return
        peer = self.peer
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            peer.unwritable()
            return
        peer.written += sent
        if sent != len(data):
            peer.keep(data[sent:])

    def give_back(self) -> None:
        """End the relay, and give both sockets to the screen; soon, if the client reads."""
        if self.dead:
            # Nobody is left who could be told anything.
            self.relay.broken(self)
            return
        self._giving_back = True
        self.held = self.peer.held = True
        if self.blocked:
            self.update()
            self.peer.update()
        else:
            self._give_back()

    def _give_back(self) -> None:
        screen, server = self._screen, self.peer
        assert screen is not None  # noqa: S101 - it asked for them
        self.relay.let_go()
        screen.given_back(server.sock, self.written, spoken=self.written > 0 or server.eof)

    # As every half, but for the client's first bytes

    def failed(self) -> None:
        """A bug in `ready`, or in whoever was called there."""
        if self._giving_back and not self.watched and self._screen is not None:
            self._screen.failed()
        else:
            super().failed()

    def _pump(self, *, copying: bool = False) -> None:
        while (screen := self._screen) is not None:
            if self._giving_back:
                # Only a client that was reset is read on now; what it said is nobody's.
                self.relay.broken(self)
                return
            try:
                data = self.sock.recv(_READ_SIZE)
            except BlockingIOError:
                if not self.watched:
                    self.relay.broken(self)
                return
            except OSError:
                self.relay.broken(self)
                return
            watched = self.watched
            screen.heard(self, data)
            # Where it is watched, the poller comes back for more.
            if watched or self.relay.end is not None:
                return
        super()._pump(copying=copying)

    def _flush(self) -> None:
        super()._flush()
        if self._giving_back and self.relay.end is None and not self.blocked:
            self._give_back()

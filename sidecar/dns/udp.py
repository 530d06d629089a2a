"""How questions come in datagrams, and answers go back from the address that was asked."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.dns.messages import MAX_QUERY
from sidecar.dns.server import Asked
from sidecar.linux.pktinfo import SPACE, answer_from, destination
from sidecar.relay.poller import READ

if TYPE_CHECKING:
    from sidecar.dns.server import Answerer
    from sidecar.relay.poller import Poller

__all__ = ["DatagramServer"]

# Datagrams taken at a time; others get their turn in between. What doesn't fit into the
# socket's buffer meanwhile is lost, and asked again by its sender.
_PER_WAKEUP = 64
# Bytes, where the kernel allows it (net.core.rmem_max). A question takes some 800 of it.
_BUFFER = 1 << 20


class DatagramServer:
    """One socket (Pollable).

    Args:
        poller: Watches it.
        sock: Bound, telling destinations (`linux.pktinfo`); ours from here on.
        answerer: Answers.
    """

    def __init__(self, poller: Poller, sock: socket.socket, answerer: Answerer) -> None:
        self._poller = poller
        self._socket = sock
        self._answerer = answerer
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        poller.register(sock.fileno(), READ, self)

    def ready(self, events: int) -> None:  # noqa: ARG002 - errors show in recvmsg()
        """Take what waits."""
        for _ in range(_PER_WAKEUP):
            try:
                # One byte more than is accepted, so that what is longer shows.
                data, ancillary, _, sockaddr = self._socket.recvmsg(MAX_QUERY + 1, SPACE)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier answer, whose client has gone.
                continue
            packed = destination(ancillary)
            asked = Asked(
                partial(self._send, packed, sockaddr),
                stream=False,
                server=_text(packed),
                source=SocketAddress.from_kernel(sockaddr),
            )
            self._answerer.ask(data, asked)

    def _send(self, packed: bytes | None, sockaddr: tuple[str, int], data: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.sendmsg([data], answer_from(packed), 0, sockaddr)
        except OSError:
            # A full buffer or a client that can't be reached: it asks again.
            return

    def failed(self) -> None:
        """A bug cost one question; the server goes on."""

    def shut_down(self) -> None:
        """Answer no more."""
        fd = self._socket.fileno()
        if fd >= 0:
            self._poller.unregister(fd)
            self._socket.close()


def _text(packed: bytes | None) -> str | None:
    if packed is None:
        return None
    family = socket.AF_INET if len(packed) == _OCTETS_V4 else socket.AF_INET6
    return SocketAddress.from_kernel((socket.inet_ntop(family, packed), 0)).host


_OCTETS_V4 = 4

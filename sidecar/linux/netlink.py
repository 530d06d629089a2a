"""How requests reach the kernel over netlink, and how its answers come back.

Plain blocking sockets, opened for one exchange in the network namespace of the
calling thread. Written here and not taken from pyroute2, whose nf_tables messages
can't express `fib … type` (it encodes the result as a bit set), take 150 ms to import
and 20 ms to encode, and whose sockets run an asyncio loop of their own, which fails
inside a running one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import NamedTuple

__all__ = ["Message", "Reply", "dump", "split", "transact"]

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ROOT_MATCH = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_DUMP_INTR = 0x10
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
# Enough for some ten thousand networks in one transaction; the kernel may grant less.
_BUFFER_OCTETS = 8 * 1024 * 1024
_DUMP_ATTEMPTS = 5


# Named tuples: a dataclass takes 10 ms to import, which every sandbox would wait for.
class Message(NamedTuple):
    """A request: its type, its flags beside NLM_F_REQUEST, and its body.

    Attributes:
        subject: What it is about, in words, for an error's text.
    """

    kind: int
    flags: int
    body: bytes
    subject: str = ""

    def encode(self, sequence: int) -> bytes:
        """The message with its header, padded."""
        length = _HEADER.size + len(self.body)
        flags = self.flags | NLM_F_REQUEST
        return _HEADER.pack(length, self.kind, flags, sequence, 0) + self.body + bytes(-length % 4)


class Reply(NamedTuple):
    """One message of an answer."""

    kind: int
    flags: int
    sequence: int
    body: bytes


class RequestError(OSError):
    """The kernel refused a message; errno says why.

    Args:
        number: The errno.
        subject: What the message was about.
    """

    def __init__(self, number: int, subject: str) -> None:
        super().__init__(number, os.strerror(number))
        self.subject = subject


def transact(protocol: int, messages: list[Message]) -> None:
    """Send messages in one datagram and wait for the kernel's verdict on all.

    Args:
        protocol: NETLINK_ROUTE or NETLINK_NETFILTER.
        messages: At least one with NLM_F_ACK.

    Raises:
        RequestError: The first refusal. For a netfilter batch, nothing is done then.
        OSError: The exchange itself failed.
    """
    with _open(protocol) as sock:
        sock.send(b"".join(each.encode(number) for number, each in enumerate(messages, 1)))
        # The kernel answers within send(), so all there will ever be is there.
        while True:
            try:
                replies = split(sock.recv(_RECEIVE_OCTETS, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return
            for reply in replies:
                if reply.kind == NLMSG_ERROR:
                    number = -_ERROR.unpack_from(reply.body)[0]
                    if number:
                        index = min(max(reply.sequence - 1, 0), len(messages) - 1)
                        raise RequestError(number, messages[index].subject)


def dump(protocol: int, message: Message, *, strict: bool = False) -> list[Reply]:
    """Ask for a list.

    Args:
        protocol: NETLINK_ROUTE, NETLINK_SOCK_DIAG or NETLINK_NETFILTER.
        message: What for.
        strict: Whether what the message's header says is to be a filter. Kernels before 4.20
            give everything nevertheless.

    Raises:
        RequestError: The kernel refused.
        OSError: The exchange itself failed.
    """
    for _ in range(_DUMP_ATTEMPTS):
        with _open(protocol) as sock:
            if strict:
                with contextlib.suppress(OSError):
                    sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            sock.send(message.encode(1))
            replies = _collect(sock, message)
        if not any(reply.flags & NLM_F_DUMP_INTR for reply in replies):
            break
    return replies


_RECEIVE_OCTETS = 256 * 1024


def _collect(sock: socket.socket, message: Message) -> list[Reply]:
    found: list[Reply] = []
    while True:
        for reply in split(sock.recv(_RECEIVE_OCTETS)):
            if reply.kind == NLMSG_DONE:
                return found
            if reply.kind == NLMSG_ERROR:
                number = -_ERROR.unpack_from(reply.body)[0]
                if number:
                    raise RequestError(number, message.subject)
                return found
            found.append(reply)


def split(datagram: bytes) -> list[Reply]:
    """Take apart what the kernel sent at once; what is cut short is left out."""
    replies = []
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            break
        body = datagram[offset + _HEADER.size : offset + length]
        replies.append(Reply(kind, flags, sequence, body))
        offset += length + (-length % 4)
    return replies


def _open(protocol: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if error.errno in {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT}:
            raise RequestError(errno.EPROTONOSUPPORT, "this kind of netlink") from None
        raise
    try:
        for plain, forced in (
            (socket.SO_SNDBUF, _SO_SNDBUFFORCE),
            (socket.SO_RCVBUF, _SO_RCVBUFFORCE),
        ):
            sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_OCTETS)
            with contextlib.suppress(OSError):
                # Beyond net.core.wmem_max only the host's own root may go.
                sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_OCTETS)
        # Errors carry the refused message's header only, not all of it.
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock

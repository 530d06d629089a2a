"""What the processes of the sandbox tell each other, and how listeners change hands.

One pair of SOCK_SEQPACKET sockets, P's end and the inside's: first the set-up process
has the other end, then pid 1 of the sandbox. One message each; the first octet says
what it is::

    to P      L names…        the listeners, as SCM_RIGHTS, in the order of the names
              R notes…        all is ready; what had to be done without, a line each
              E cause NUL cure   it can't be done
              X status        the command has ended: a wait status, 4 octets
              T signal        the command was stopped
              C               and goes on
              K               some processes outlived the command; they are being ended
              F               some of them could not be
              N serial error  a socket, as SCM_RIGHTS, or why there is none
              W               somebody was about to write to a guarded file; all is ended
    from P    W               files to guard, as SCM_RIGHTS: leases (`guarding`)
              G               run the command
              S signal        pass a signal on to the command
              N serial family make a TCP socket; answered in the order of asking

The end of the stream says that the other side is gone, and with it whatever it kept.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from contextlib import ExitStack, suppress
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from sidecar.errors import NamespaceError
from sidecar.linux.sockopt import TCP_CLOSE, tcp_state
from sidecar.sandbox.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "GUARDED_AT_ONCE",
    "Channel",
    "Listeners",
    "Message",
    "Word",
    "answer_with_socket",
    "ask_for_socket",
    "failure",
    "receive_listeners",
    "send_listeners",
    "serial_of",
    "take_socket",
]

GUARDED_AT_ONCE = 250
"""Descriptors in one message; the kernel takes no more than 253 (SCM_MAX_FD)."""

_T = TypeVar("_T")

# asm-generic/socket.h
_SO_COOKIE = 57
_SO_NETNS_COOKIE = 71
# struct ucred
_CREDENTIALS = struct.Struct("=iII")
# A socket that is asked for: serial number, family; and the answer: serial number, errno.
_REQUEST = struct.Struct("=II")
_REPLY = struct.Struct("=Ii")
_U64 = struct.Struct("=Q")
_MESSAGE_OCTETS = 65536
# One more than there ever are, but for bridges, so that too many are seen for what they are.
_DESCRIPTORS_MAX = 9
# linux/netlink.h
_NETLINK_SOCK_DIAG = 4


class Word(Enum):
    """What a message is."""

    LISTENERS = b"L"
    READY = b"R"
    ERROR = b"E"
    EXITED = b"X"
    STOPPED = b"T"
    CONTINUED = b"C"
    ENDED_OTHERS = b"K"
    LEFT_OTHERS = b"F"
    SOCKET = b"N"
    GUARD = b"W"
    GO = b"G"
    SIGNAL = b"S"


class Listeners:
    """The sockets that were made inside, for P to serve.

    Args:
        tcp: Accepts whatever is connected to inside; ``getsockname`` of an accepted
            socket is where it was to go. IPv6, for IPv4 as well; IPv4 on a kernel
            without IPv6.
        dns_tcp: Likewise for port 53 of whatever address, the sandbox's own included.
        dns_udp: Likewise, one for each family; tell, with each datagram, to which address
            it was sent, and take the one to send from (`linux.pktinfo`).
        diag: NETLINK_SOCK_DIAG inside; asks about sockets there.
        host_ports: For each port that leads to the host's, one at 127.0.0.1 and one at
            ::1, if there is IPv6.
    """

    __slots__ = ("diag", "dns_tcp", "dns_udp", "host_ports", "tcp")

    def __init__(
        self,
        tcp: socket.socket,
        dns_tcp: tuple[socket.socket, ...],
        dns_udp: tuple[socket.socket, ...],
        diag: socket.socket,
        host_ports: tuple[socket.socket, ...] = (),
    ) -> None:
        self.tcp = tcp
        self.dns_tcp = dns_tcp
        self.dns_udp = dns_udp
        self.diag = diag
        self.host_ports = host_ports

    def named(self) -> list[tuple[str, socket.socket]]:
        """Each with its name, of which some may be several's."""
        dns = [("dns_tcp", each) for each in self.dns_tcp]
        dns += [("dns_udp", each) for each in self.dns_udp]
        bridges = [("host_port", each) for each in self.host_ports]
        return [("tcp", self.tcp), *dns, ("diag", self.diag), *bridges]

    def close(self) -> None:
        """Close all."""
        for _, sock in self.named():
            sock.close()


class Message:
    """A message with what came with it.

    Args:
        word, body: What it is, and what it says.
        descriptors: Ours to close.
        sender: The process id of who sent it, as the kernel says.
        cut_short: Whether something was left out: octets or descriptors.
    """

    def __init__(
        self, word: Word, body: bytes, descriptors: list[int], sender: int, *, cut_short: bool
    ) -> None:
        self.word = word
        self.body = body
        self.descriptors = descriptors
        self.sender = sender
        self.cut_short = cut_short


class Channel:
    """One end of the pair.

    Args:
        sock: SOCK_SEQPACKET; ours from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close this end."""
        self.sock.close()

    def tell(self, word: Word, body: bytes = b"") -> None:
        """Send a message; nobody there to read it is no error."""
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.sock.send(word.value + body)

    def hear_from(self, descriptors_max: int = _DESCRIPTORS_MAX) -> Message:
        """Receive a message with everything that comes with it; `Message` says what.

        Args:
            descriptors_max: How many there is room for.

        Raises:
            NamespaceError: The other side is gone.
            BlockingIOError: There is none, on a non-blocking socket.
        """
        item = array.array("i").itemsize
        room = socket.CMSG_SPACE(descriptors_max * item) + socket.CMSG_SPACE(_CREDENTIALS.size)
        received, ancillary, flags, _ = self._despite_reset(
            lambda: self.sock.recvmsg(_MESSAGE_OCTETS, room, socket.MSG_CMSG_CLOEXEC)
        )
        descriptors = array.array("i")
        sender = 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % item])
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = _CREDENTIALS.unpack(data)[0]
        cut_short = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
        if not received:
            raise NamespaceError(
                "the sandbox ended while it was made", "the kernel's log may say why"
            )
        word, body = Word(received[:1]), received[1:]
        return Message(word, body, list(descriptors), sender, cut_short=cut_short)

    def hear(self) -> tuple[Word, bytes] | None:
        """Receive a message.

        Returns:
            What it is and its body; None if the other side is gone.

        Raises:
            BlockingIOError: There is none, on a non-blocking socket.
        """
        received = self._despite_reset(lambda: self.sock.recv(_MESSAGE_OCTETS))
        return (Word(received[:1]), received[1:]) if received else None

    @staticmethod
    def _despite_reset(receive: Callable[[], _T]) -> _T:
        """Receive what the other side said before it closed with something of ours unread.

        That is an error, told once and before what is there to be received (unix(7):
        ECONNRESET).
        """
        try:
            return receive()
        except ConnectionResetError:
            return receive()


def send_listeners(channel: Channel, listeners: Listeners) -> None:
    """Hand the listeners over; the caller's own descriptors stay open."""
    named = listeners.named()
    names = " ".join(name for name, _ in named).encode()
    descriptors = array.array("i", [sock.fileno() for _, sock in named])
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
    channel.sock.sendmsg([Word.LISTENERS.value + names], [rights])


def receive_listeners(channel: Channel, sender: int, host_ports: Sequence[int] = ()) -> Listeners:
    """Take the listeners over, if they are what they should be.

    Args:
        channel: Its socket has SO_PASSCRED.
        sender: The process id that must have sent them.
        host_ports: The ports that lead to the host's.

    Returns:
        The sockets; closed on exec, non-blocking.

    Raises:
        NamespaceError: The sender says why there are none; or the message is not
            what was agreed on. No descriptor of it stays open.
    """
    with ExitStack() as stack:
        message = channel.hear_from(_DESCRIPTORS_MAX + len(LOOPBACK) * len(host_ports))
        for descriptor in message.descriptors:
            stack.callback(os.close, descriptor)
        if message.word is Word.ERROR:
            raise failure(message.body)
        if message.word is not Word.LISTENERS:
            raise _strange("something else came first")
        if message.cut_short:
            raise _strange("the message is cut short")
        if message.sender != sender:
            raise _strange(f"process {message.sender} handed them over, not {sender}")
        listeners = _check(message.body.decode("ascii", "replace").split(), message.descriptors)
        try:
            _check_host_ports(listeners, host_ports)
        except NamespaceError:
            for _, sock in listeners.named():
                sock.detach()
            raise
        stack.pop_all()
    return listeners


def ask_for_socket(channel: Channel, serial: int, family: socket.AddressFamily) -> None:
    """Ask pid 1 for a TCP socket.

    Raises:
        OSError: It can't be told.
    """
    channel.sock.send(Word.SOCKET.value + _REQUEST.pack(serial, family))


def answer_with_socket(channel: Channel, request: bytes) -> None:
    """Be pid 1 that is asked: make the socket and hand it over."""
    serial, family = _REQUEST.unpack(request)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))
            channel.sock.sendmsg([Word.SOCKET.value + _REPLY.pack(serial, 0)], [rights])
    except OSError as error:
        channel.tell(Word.SOCKET, _REPLY.pack(serial, error.errno or errno.EIO))


def take_socket(
    message: Message, sender: int, family: socket.AddressFamily, like: socket.socket
) -> socket.socket:
    """Take over the socket that was asked for, if it is what it should be.

    Args:
        message: A `Word.SOCKET`, as pid 1 answers.
        sender: The process id that must have sent it.
        family: That was asked for.
        like: A socket of the namespace in which it must be.

    Returns:
        Not connected; closed on exec, non-blocking.

    Raises:
        NamespaceError: It is something else. No descriptor of the message stays open.
        OSError: The sender says why there is none.
    """
    with ExitStack() as stack:
        for descriptor in message.descriptors:
            stack.callback(os.close, descriptor)
        if message.sender != sender:
            raise _strange(f"process {message.sender} handed one over, not {sender}")
        if len(message.body) != _REPLY.size:
            raise _strange("an answer is none")
        _, number = _REPLY.unpack(message.body)
        if number and not message.descriptors:
            raise OSError(number, os.strerror(number))
        if message.cut_short or len(message.descriptors) != 1:
            raise _strange(f"one was asked for, {len(message.descriptors)} came")
        sock = _socket("outgoing", message.descriptors[0])
        try:
            if sock.family != family or _namespace_of(sock) != _namespace_of(like):
                raise _strange("outgoing is of another kind or place")
            if tcp_state(sock) != TCP_CLOSE or sock.getsockname()[1]:
                raise _strange("outgoing is in use already")
        except NamespaceError:
            sock.detach()
            raise
        stack.pop_all()
    return sock


def serial_of(message: Message) -> int:
    """Which question a `Word.SOCKET` answers; -1 if it is malformed."""
    if len(message.body) != _REPLY.size:
        return -1
    serial: int = _REPLY.unpack(message.body)[0]
    return serial


def failure(body: bytes) -> NamespaceError:
    """What an `Word.ERROR` says."""
    cause, _, cure = body.decode(errors="replace").partition("\0")
    return NamespaceError(cause, cure)


def _strange(problem: str) -> NamespaceError:
    return NamespaceError(
        f"the sandbox's listeners are not to be trusted: {problem}", "report this"
    )


_EXPECTED = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP, True),
    "dns_tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP, True),
    "dns_udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP, False),
    "diag": (socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG, False),
    "host_port": (socket.SOCK_STREAM, socket.IPPROTO_TCP, True),
    "outgoing": (socket.SOCK_STREAM, socket.IPPROTO_TCP, False),
}


def _check(names: list[str], descriptors: list[int]) -> Listeners:
    """Make sockets of descriptors; which stay the caller's to close if one is not as it should be.

    Raises:
        NamespaceError: That is the case.
    """
    if len(names) != len(descriptors):
        raise _strange(f"{len(names)} were announced, {len(descriptors)} came")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        home = _namespace_of(probe)
    cookies = set()
    found: dict[str, list[socket.socket]] = {name: [] for name in _EXPECTED}
    with ExitStack() as stack:
        for name, descriptor in zip(names, descriptors, strict=True):
            sock = _socket(name, descriptor)
            stack.callback(sock.detach)
            if home is not None and _namespace_of(sock) == home:
                raise _strange(f"{name} is in our own network namespace")
            found[name].append(sock)
            cookies.add(_number(sock, _SO_COOKIE))
        if len(cookies) != len(names):
            raise _strange("one came twice")
        one_each = len(found["tcp"]) == len(found["diag"]) == 1
        if not one_each or not found["dns_tcp"] or not found["dns_udp"]:
            raise _strange("some are missing, or there are too many")
        stack.pop_all()
    return Listeners(
        found["tcp"][0],
        tuple(found["dns_tcp"]),
        tuple(found["dns_udp"]),
        found["diag"][0],
        tuple(found["host_port"]),
    )


def _check_host_ports(listeners: Listeners, ports: Sequence[int]) -> None:
    """See that those listen where it was asked for, and nowhere else.

    Raises:
        NamespaceError: They don't.
    """
    hosts = LOOPBACK if listeners.tcp.family == socket.AF_INET6 else LOOPBACK[:1]
    wanted = sorted((host, port) for host in hosts for port in ports)
    if wanted != sorted(each.getsockname()[:2] for each in listeners.host_ports):
        raise _strange("those for the host's ports are others than asked for")


def _socket(name: str, descriptor: int) -> socket.socket:
    if name not in _EXPECTED:
        raise _strange(f"nobody knows {name!r}")
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        raise _strange(f"{name} is no socket") from None
    found = (
        sock.type,
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL),
        bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)),
    )
    if found != _EXPECTED[name]:
        sock.detach()
        raise _strange(f"{name} is something else")
    sock.setblocking(False)
    return sock


def _namespace_of(sock: socket.socket) -> int | None:
    """The number of the network namespace that a socket is in; None before Linux 5.14."""
    try:
        return _number(sock, _SO_NETNS_COOKIE)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise


def _number(sock: socket.socket, option: int) -> int:
    number: int = _U64.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _U64.size))[0]
    return number

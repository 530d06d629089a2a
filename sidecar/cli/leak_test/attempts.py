"""What an attempt to get out is, what the outside looks like to it, and what it says.

Attempts run inside of the sandbox. They import little, use no privileges that they have
not got, and do nothing that would hurt if it worked: what a kernel setting would do is not
tried once it could be opened for writing.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = [
    "Attempt",
    "Expected",
    "NotHereError",
    "Outside",
    "call",
    "converse",
    "say",
    "send_datagram",
]

# Seconds for an answer; on loopback there is one at once, or none.
ANSWER = 0.4


@dataclass(frozen=True, slots=True)
class Outside:
    """Where the listeners are that nothing must reach.

    Attributes:
        ipv4, ipv6: Addresses that they answer at; every other of the namespace's would do.
        host: The address of the machine that the sandbox is on.
        allowed: A name that the policy allows.
        port: The port of all but DNS.
        abstract: The name of unix sockets, without the leading zero.
        path: The path of one.
        netlink: The port of a netlink socket.
        init: The sandbox's first process, 1; 0 where there is no sandbox.
        victim: The process id of a process of the same user.
        sidecar: The process id of sidecar itself; 0 where there is none.
    """

    ipv4: str
    ipv6: str
    host: str
    allowed: str
    port: int
    abstract: str
    path: str
    netlink: int
    init: int
    victim: int
    sidecar: int


class Expected(Enum):
    """What should become of an attempt."""

    NOTHING_ARRIVES = "nothing arrives"
    REFUSED = "refused"
    """The kernel must not even let it be done."""
    ARRIVES = "arrives"
    """What the policy allows: it shows that the listeners hear."""
    UNPROTECTED = "unprotected"
    """What exec doesn't claim to stop."""


class NotHereError(Exception):
    """What an attempt needs is not on this machine."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way out.

    Attributes:
        name: Of its own, for JSON and tests.
        title: What is tried, in a few words.
        run: Tries it; returns what came of it. Raises OSError where it was refused, and
            `NotHereError` where there is nothing to try.
        expected: What should become of it.
        control: Whether it is to get out without exec, tried beforehand.
    """

    name: str
    title: str
    run: Callable[[Outside], str]
    expected: Expected = Expected.NOTHING_ARRIVES
    control: bool = True


def say(outside: Outside) -> bytes:
    """What is sent: nothing that could be taken for HTTP, TLS or DNS."""
    return b"\x01leak-test to " + outside.ipv4.encode() + b"\n"


def converse(sock: socket.socket, to: tuple[str, int], data: bytes) -> str:
    """Connect, send, and wait for what happens.

    Returns:
        What did.

    Raises:
        OSError: It was refused.
    """
    with sock:
        sock.settimeout(ANSWER)
        sock.connect(to)
        sock.sendall(data)
        return _hear(sock)


def send_datagram(sock: socket.socket, to: tuple[str, int], data: bytes) -> str:
    """Send a datagram and wait for what happens.

    Returns:
        What did.

    Raises:
        OSError: It was refused, maybe by ICMP.
    """
    with sock:
        sock.settimeout(ANSWER)
        sock.connect(to)
        sock.send(data)
        return _hear(sock)


def _hear(sock: socket.socket) -> str:
    try:
        answer = sock.recv(512)
    except TimeoutError:
        return "no answer"
    return f"answered with {len(answer)} octets" if answer else "closed without an answer"


def call(number: int, *arguments: int | bytes | None) -> int:
    """Do a system call that Python has no function for.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *passed)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

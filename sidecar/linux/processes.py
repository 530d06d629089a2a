"""Which process opened a TCP connection, as the kernel has it: cheaply, or not at all.

inet_diag tells a connection's inode, and ``/proc/PID/fd`` who holds it. The first is
asked for in the network namespace in which the netlink socket was made, wherever the
asker is; the second is read of one process and its descendants only
(``/proc/PID/task/TID/children``, which every distribution's kernel has).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import closing, suppress
from itertools import count
from typing import TYPE_CHECKING

from sidecar.flow import Process
from sidecar.linux.netlink import NETLINK_SOCK_DIAG, Message, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.addresses import SocketAddress

__all__ = ["BUDGET", "BURST", "SHARE", "ProcessFinder", "belongs_to", "open_diag"]

BUDGET = 0.02
"""Seconds of the processor that one lookup may take: some thousand descriptors."""
SHARE = 0.05
"""Of all time, what lookups may take of a processor's in the long run; beyond it they find
nothing."""
BURST = 0.25
"""Seconds of the processor for lookups at once, before SHARE counts."""
# Sockets seen on the way to another: more than a busy program has, 100 bytes each.
_SEEN_MAX = 8192

# linux/sock_diag.h, linux/inet_diag.h: struct inet_diag_req_v2, struct inet_diag_msg
_SOCK_DIAG_BY_FAMILY = 20
_ANY_STATE = 0xFFFFFFFF
_REQUEST = struct.Struct("=BBBxI")
_PORTS = struct.Struct(">HH")
_ANY_INTERFACE_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_PORTS_OFFSET = 4
_INODE = struct.Struct("=I")
_INODE_OFFSET = 68
_ANSWER_OCTETS = 4096

_sequence = count(1)


def open_diag() -> socket.socket:
    """Make a socket that asks about connections in the calling thread's network namespace.

    Returns:
        The caller's to close. It goes on asking there, whichever process has it.

    Raises:
        OSError: The kernel has no NETLINK_SOCK_DIAG.
    """
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)


def belongs_to(pid: int, local: SocketAddress, remote: SocketAddress) -> bool:
    """Whether a process holds the socket with these two ends, in this namespace.

    Args:
        pid: A process that this one may look into.
        local: The socket's own address.
        remote: Its peer's.
    """
    with closing(open_diag()) as diag:
        inode = _inode(diag, local, remote)
    return inode is not None and any(inode == held for held in _held(pid))


class ProcessFinder:
    """Finds the processes of one tree by their connections.

    Args:
        diag: From `open_diag`, in the network namespace of the tree; closed by `close`.
        root: The tree's first process.
        clock: Tells seconds.
        used: Tells how many of them this thread has had a processor.
    """

    def __init__(
        self,
        diag: socket.socket,
        root: int,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self._diag = diag
        self._root = root
        self._clock = clock
        # A busy machine that makes us wait is no reason to find nothing.
        self._used = used
        self._credit = BURST
        self._credited = clock()
        # The process that was found last, which mostly is the next as well.
        self._last = root
        # Who holds sockets that nobody has asked for yet, by inode.
        self._seen: dict[int, int] = {}
        # How many descriptors of a process the last lookup had time for.
        self._interrupted: dict[int, int] = {}

    def find(self, local: SocketAddress, remote: SocketAddress) -> Process | None:
        """Find who opened a connection.

        Args:
            local: The socket's own address.
            remote: Its peer's.

        Returns:
            None if it is closed already, or its process can't be looked into, or that
            would take too long (`BUDGET`, `SHARE`). Never raises.
        """
        now, began = self._clock(), self._used()
        self._credit = min(BURST, self._credit + SHARE * (now - self._credited))
        self._credited = now
        if self._credit <= 0:
            return None
        try:
            inode = _inode(self._diag, local, remote)
            pid = None if inode is None else self._owner(inode, began + BUDGET)
            return None if pid is None else Process(pid, _name(pid))
        except OSError:
            # It has ended meanwhile, or we have been closed.
            return None
        finally:
            self._credit -= self._used() - began

    def close(self) -> None:
        """Find nothing any more."""
        self._diag.close()

    def _owner(self, inode: int, deadline: float) -> int | None:
        seen = self._seen
        pid = seen.pop(inode, None)
        if pid is not None:
            return pid
        asked = set()
        for pid in self._candidates():
            if pid in asked:
                continue
            asked.add(pid)
            with suppress(OSError):
                if self._holds(pid, inode, deadline):
                    self._last = pid
                    return pid
            if self._used() > deadline:
                break
        while len(seen) > _SEEN_MAX:
            # The one that was seen first.
            del seen[next(iter(seen))]
        return None

    def _holds(self, pid: int, inode: int, deadline: float) -> bool:
        """Look through a process's descriptors, and go on there the next time if it takes long."""
        skipped = self._interrupted.pop(pid, 0)
        for looked, held in enumerate(_held(pid, skipped), 1):
            if held == inode:
                return True
            if held is not None:
                self._seen[held] = pid
            if self._used() > deadline:
                # One such process is normal; there are never many.
                self._interrupted = {pid: skipped + looked}
                break
        return False

    def _candidates(self) -> Iterator[int]:
        yield self._last
        waiting = [self._root]
        while waiting:
            pid = waiting.pop()
            yield pid
            waiting += _children(pid)


def _inode(diag: socket.socket, local: SocketAddress, remote: SocketAddress) -> int | None:
    """Ask for the inode of the one socket with these ends; None if there is none."""
    # For the one: /proc/net/tcp is a walk through all of the namespace's.
    ports = _PORTS.pack(local.port, remote.port)
    body = (
        _REQUEST.pack(local.family, socket.IPPROTO_TCP, 0, _ANY_STATE)
        + ports
        + local.ip.packed.ljust(16, b"\0")
        + remote.ip.packed.ljust(16, b"\0")
        + _ANY_INTERFACE_NO_COOKIE
    )
    sequence = next(_sequence) & 0xFFFFFFFF
    diag.sendto(Message(_SOCK_DIAG_BY_FAMILY, 0, body).encode(sequence), (0, 0))
    # The kernel answers within sendto(): what there will ever be is there.
    while True:
        try:
            answer = diag.recv(_ANSWER_OCTETS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        for reply in split(answer):
            if reply.sequence != sequence:
                continue
            if reply.kind != _SOCK_DIAG_BY_FAMILY:
                return None
            # Where there is no connection, the kernel answers with a listener.
            same = reply.body.startswith(ports, _PORTS_OFFSET)
            inode: int = _INODE.unpack_from(reply.body, _INODE_OFFSET)[0]
            # A socket that its process has closed has none.
            return inode if same and inode else None


def _held(pid: int, skipped: int = 0) -> Iterator[int | None]:
    """The inodes of the sockets that a process holds, the newest first, as a rule.

    None stands for a descriptor of another kind: looking at it took time, too. The first
    may be skipped; they come last then.

    Raises:
        OSError: It has ended, or may not be looked into.
    """
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are all that is needed
        names.reverse()
        for name in names[skipped:] + names[:skipped]:
            # Some may be closed meanwhile.
            with suppress(FileNotFoundError):
                target = os.readlink(name, dir_fd=directory)
                yield int(target[8:-1]) if target.startswith("socket:[") else None
    finally:
        os.close(directory)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - likewise
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    return found


def _name(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").removesuffix(b"\n").decode("utf-8", "backslashreplace")


def _read(path: str) -> bytes:
    # A quarter of the time that pathlib takes.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)

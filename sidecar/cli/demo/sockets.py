"""Which process holds a TCP connection's socket, as the kernel has it."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.linux.netfilter.netlink import (
    NETLINK_SOCK_DIAG,
    NLM_F_ACK,
    Message,
    RequestError,
    dump,
)

if TYPE_CHECKING:
    from sidecar.addresses import SocketAddress

__all__ = ["belongs_to"]

# linux/sock_diag.h, linux/inet_diag.h: struct inet_diag_req_v2, struct inet_diag_msg
_SOCK_DIAG_BY_FAMILY = 20
_ANY_STATE = 0xFFFFFFFF
_REQUEST = struct.Struct("=BBBxI")
_PORTS = struct.Struct(">HH")
_ANY_INTERFACE_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_INODE = struct.Struct("=I")
_INODE_OFFSET = 68


def belongs_to(pid: int, local: SocketAddress, remote: SocketAddress) -> bool:
    """Whether a process holds the socket with these two ends.

    Args:
        pid: A process that this one may look into.
        local: The socket's own address.
        remote: Its peer's.
    """
    inode = _inode(local, remote)
    return inode is not None and f"socket:[{inode}]" in _descriptors(pid)


def _inode(local: SocketAddress, remote: SocketAddress) -> int | None:
    # Asked for the one socket: /proc/net/tcp is a walk through all of the host's.
    request = (
        _REQUEST.pack(local.family, socket.IPPROTO_TCP, 0, _ANY_STATE)
        + _PORTS.pack(local.port, remote.port)
        + local.ip.packed.ljust(16, b"\0")
        + remote.ip.packed.ljust(16, b"\0")
        + _ANY_INTERFACE_NO_COOKIE
    )
    message = Message(_SOCK_DIAG_BY_FAMILY, NLM_F_ACK, request, "sock_diag (inet_diag)")
    try:
        replies = dump(NETLINK_SOCK_DIAG, message)
    except RequestError:
        return None
    for reply in replies:
        inode: int = _INODE.unpack_from(reply.body, _INODE_OFFSET)[0]
        return inode
    return None


def _descriptors(pid: int) -> frozenset[str]:
    found = set()
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):  # noqa: PTH208 - names are all that is needed
        # Some may be closed meanwhile.
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"{directory}/{name}"))  # noqa: PTH115 - no path
    return frozenset(found)

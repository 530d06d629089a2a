"""What tests of several modules need."""

from __future__ import annotations

import select
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

__all__ = ["PATIENCE", "arrived", "fill_queue", "open_descriptors", "queued", "wait_for"]

# Seconds to wait for what a thread or process does; a busy machine needs some.
PATIENCE = 30.0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a thread or process has brought a condition about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.002)


def arrived(sock: socket.socket, events: int = 0) -> None:
    """Wait until the kernel says of a socket what a peer has brought about; nothing else goes on.

    Args:
        sock: Nobody reads from it meanwhile.
        events: POLLIN for data or an end; 0 for a reset, which is told in any case.
    """
    poll = select.poll()
    poll.register(sock, events)
    assert poll.poll(PATIENCE * 1000), "did not arrive"


def queued(listener: socket.socket) -> int:
    """How many connections wait to be accepted."""
    # tcpi_unacked of struct tcp_info, which has another meaning for listeners (linux/tcp.h).
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int.from_bytes(info[24:], sys.byteorder)


def fill_queue(stack: ExitStack, listener: socket.socket) -> None:
    """Have a listener that drops what comes: nobody accepts, and there is room for one.

    Args:
        stack: Closes the one.
        listener: Bound.
    """
    listener.listen(0)
    stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE))
    # The one is connected before it is in the queue.
    wait_for(lambda: queued(listener) == 1)


def open_descriptors() -> dict[int, str]:
    """This process's descriptors, and what each leads to."""
    # All are listed before the first is read: the listing's own is gone by then.
    entries = list(Path("/proc/self/fd").iterdir())
    return {int(entry.name): str(entry.readlink()) for entry in entries if entry.is_symlink()}

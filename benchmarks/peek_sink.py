"""The origin of peek's bulk measure: `python -m benchmarks.peek_sink PORT HOST…`.

Reads a connection to its `END` byte, counts, and says how many bytes there were. One at a time.
"""

from __future__ import annotations

import select
import socket
import sys

from benchmarks.peek_client import END

__all__ = ["serve"]

_BUFFER_BYTES = 1 << 20


def serve(port: int, hosts: list[str]) -> None:
    """Count whatever comes, for ever."""
    poll = select.epoll()
    listeners = {}
    for host in hosts:
        listener = socket.create_server((host, port))
        listeners[listener.fileno()] = listener
        poll.register(listener, select.EPOLLIN)
    buffer = bytearray(_BUFFER_BYTES)
    while True:
        for descriptor, _ in poll.poll():
            connection, _ = listeners[descriptor].accept()
            with connection:
                _count(connection, buffer)


def _count(connection: socket.socket, buffer: bytearray) -> None:
    counted = 0
    try:
        while read := connection.recv_into(buffer):
            counted += read
            if buffer[read - 1] == END:
                break
        connection.sendall(b"%d\n" % counted)
    except OSError:
        return  # a client that gave up


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])

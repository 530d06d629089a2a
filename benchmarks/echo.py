"""The origin of the latency and memory measures: `python -m benchmarks.echo PORT`.

One process, one thread, level-triggered epoll, one shared buffer: the least that
can answer thousands of connections.
"""

from __future__ import annotations

import select
import socket
import sys

from benchmarks.processes import HOST

__all__ = ["serve"]

_READ_BYTES = 65_536
_BACKLOG = 1024


def serve(port: int) -> None:
    """Echo whatever comes, for ever."""
    listener = socket.create_server((HOST, port), backlog=_BACKLOG)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    buffer = memoryview(bytearray(_READ_BYTES))
    while True:
        for descriptor, _ in poll.poll():
            connection = connections.get(descriptor)
            if connection is None:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
                continue
            try:
                count = connection.recv_into(buffer)
                connection.sendall(buffer[:count])
            except OSError:
                count = 0
            if not count:
                del connections[descriptor]
                connection.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))

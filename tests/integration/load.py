"""Thousands of connections: an echo server and two clients, each a process of its own.

Run as a program in a namespace: ``load.py echo HOST PORT``, ``load.py hold HOST PORT
COUNT``, ``load.py churn HOST PORT COUNT``. Prints a line for every step it has done;
`hold` keeps its connections until its standard input ends.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
from contextlib import suppress

__all__ = ["main"]

# A connection of `churn` lives as long as this many are opened after it.
_IN_FLIGHT = 64
_TIMEOUT = 60.0  # seconds until a connection counts as stuck
_MESSAGE = b"are you there?"


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    role, host, port, *count = arguments
    address = (host, int(port))
    if role == "echo":
        _echo(address)
    elif role == "hold":
        _hold(address, int(count[0]))
    else:
        _churn(address, int(count[0]))


def _say(line: str) -> None:
    print(line, flush=True)


def _echo(address: tuple[str, int]) -> None:
    """Echo on any number of connections, for ever."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    poll = select.epoll()
    connections: dict[int, socket.socket] = {}
    with socket.create_server(address, family=family, backlog=4096) as listener:
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)
        _say("listening")
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == listener.fileno():
                    with suppress(BlockingIOError):
                        while True:
                            accepted, _ = listener.accept()
                            connections[accepted.fileno()] = accepted
                            poll.register(accepted, select.EPOLLIN)
                    continue
                connection = connections[descriptor]
                try:
                    data = connection.recv(4096)
                except ConnectionResetError:
                    data = b""
                if data:
                    connection.send(data)
                else:
                    del connections[descriptor]
                    connection.close()


def _open(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=_TIMEOUT)
    connection.sendall(_MESSAGE)
    return connection


def _finish(connection: socket.socket) -> None:
    answer = connection.recv(len(_MESSAGE))
    if answer != _MESSAGE:
        raise SystemExit(f"{connection.getsockname()} got {answer!r}")


def _hold(address: tuple[str, int], count: int) -> None:
    """Open many connections, use each, use each again once they are all open, close them."""
    held = [_open(address) for _ in range(count)]
    for connection in held:
        _finish(connection)
    _say("open")
    for connection in held:
        connection.sendall(_MESSAGE)
    for connection in held:
        _finish(connection)
    _say("used")
    sys.stdin.read()
    for connection in held:
        connection.close()
    _say("closed")


def _churn(address: tuple[str, int], count: int) -> None:
    """Open, use and close many connections, a few at a time."""
    for start in range(0, count, _IN_FLIGHT):
        batch = [_open(address) for _ in range(min(_IN_FLIGHT, count - start))]
        for connection in batch:
            _finish(connection)
            connection.close()
    _say("closed")


if __name__ == "__main__":
    main(sys.argv[1:])

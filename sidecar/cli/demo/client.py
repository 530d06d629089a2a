"""The demo's own clients, where there is no other program for it; knows Python alone.

python3 client.py get [--connect-to ::ADDRESS:] URL   fetch a page, as curl does
                  hear HOST PORT                      print what a server says first
                  look-up NAME                        print a name's address
                  escape HOST PORT                    send by UDP, by raw and packet sockets
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds; none of the demo's servers takes milliseconds.
PATIENCE = 10


def get(*arguments: str) -> str:
    """Fetch a page."""
    url = urlsplit(arguments[-1])
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    address = host
    if arguments[0] == "--connect-to":
        address = arguments[1].strip(":")
    sock = socket.create_connection((address, port), PATIENCE)
    if url.scheme == "https":
        sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    connection = http.client.HTTPConnection(host, port)
    connection.sock = sock
    connection.request("GET", url.path or "/")
    return connection.getresponse().read().decode()


def hear(host: str, port: str) -> str:
    """Print what a server says first."""
    with socket.create_connection((host, int(port)), PATIENCE) as sock:
        return sock.recv(200).decode()


def look_up(name: str) -> str:
    """Print a name's address."""
    return f"{socket.getaddrinfo(name, None)[0][4][0]}\n"


def escape(host: str, port: str) -> str:
    """Send otherwise than by TCP; fails if all of it does."""
    problems = []
    for name, send in (("UDP", _datagram), ("raw", _raw), ("packet", _packet)):
        try:
            return f"{name}: {send(host, int(port))}"
        except OSError as error:  # noqa: PERF203 - a few
            problems.append(f"{name}: {error.strerror or error}")
    raise OSError(", ".join(problems))


def _datagram(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((host, port))
        sock.send(b"a secret")
        return sock.recv(200).decode()


def _raw(host: str, _: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        return f"{sock.sendto(b'a secret', (host, 0))} octets\n"


def _packet(_: str, __: int) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
        return "opened\n"


def main() -> None:
    """Do what the first argument says."""
    what, *arguments = sys.argv[1:]
    clients: dict[str, Callable[..., str]] = {
        "get": get,
        "hear": hear,
        "look-up": look_up,
        "escape": escape,
    }
    try:
        sys.stdout.write(clients[what](*arguments))
    except OSError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error.strerror or error}")  # noqa: PTH119


if __name__ == "__main__":
    main()

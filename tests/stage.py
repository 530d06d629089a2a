"""Runs a listing of the documentation in a network namespace of its own.

A program: started by test_docs.py as ``stage.py LISTING SCENE``, prints what the scene
found as JSON. The listing's own output is a part of that.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from sidecar.linux.namespaces import set_up_loopback
from sidecar.linux.netfilter.alive import listens
from sidecar.linux.netfilter.lifecycle import apply
from sidecar.linux.netfilter.model import Mode, RuleSet
from sidecar.sandbox.users import enter_network_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 20.0
PORT = 15001
SERVER = "198.51.100.7"


def intercepted(process: subprocess.Popen[str]) -> str:
    """Dial an address that is nobody's, as an intercepted client."""
    wait_for_listener(process)
    with socket.create_connection((SERVER, 99), PATIENCE) as client:
        return client.recv(99).decode()


def peeked(process: subprocess.Popen[str]) -> str:
    """Say hello in TLS, as an intercepted client, to something that answers in plain text."""
    wait_for_listener(process)
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    hello = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="api.example.org")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    said = hello.read()
    with socket.create_connection((SERVER, 443), PATIENCE) as client:
        client.sendall(said)
        heard = client.recv(99).decode()
    return heard.replace(str(len(said)), "all")


def relayed(process: subprocess.Popen[str]) -> str:
    """Dial a server, as an intercepted client."""
    wait_for_listener(process)
    with serve(99, lambda _, __: b"12345", asks=False):
        with socket.create_connection((SERVER, 99), PATIENCE) as client:
            heard = client.recv(99).decode()
            assert not client.recv(1)
        # The log of its end.
        assert process.stdout is not None
        return heard + " / " + process.stdout.readline()


def dialled(process: subprocess.Popen[str]) -> str:
    """Be dialled."""
    with serve(7, lambda asked, peer: asked + b"you are " + peer[0].encode() + b"\n"):
        process.wait(PATIENCE)
    return ""


def tunnelled(process: subprocess.Popen[str]) -> str:
    """Be asked for a tunnel, as a proxy, and have the server speak at once."""

    def answer(asked: bytes, _: tuple[str, int]) -> bytes:
        method, authority, *rest = asked.split()
        assert method == b"CONNECT", rest
        return b"HTTP/1.1 200 OK\r\n\r\nfrom " + authority + b": it is late\n"

    with serve(3128, answer):
        process.wait(PATIENCE)
    return ""


def finished(process: subprocess.Popen[str]) -> str:
    """Only run to the end, in good order."""
    assert process.wait(PATIENCE) == 0
    return ""


def wait_for_listener(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not listens(PORT, version=4, transparent=True):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def serve(
    port: int, answer: Callable[[bytes, tuple[str, int]], bytes], *, asks: bool = True
) -> socket.socket:
    """Serve one connection on SERVER: read if it is one that asks, answer, close."""
    listener = socket.create_server((SERVER, port))

    def converse() -> None:
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            asked = connection.recv(99) if asks else b""
            connection.sendall(answer(asked, peer))

    threading.Thread(target=converse, daemon=True).start()
    return listener


SCENES = {
    scene.__name__: scene for scene in (intercepted, peeked, relayed, dialled, tunnelled, finished)
}


def main(listing: str, scene: str) -> None:
    """Set the stage, play, and tell."""
    enter_network_namespace()
    set_up_loopback(
        [ip_address("192.0.2.1")], [ip_network("198.51.100.0/24"), ip_network("203.0.113.0/24")]
    )
    if scene in {"intercepted", "peeked", "relayed"}:
        apply(RuleSet(mode=Mode.TPROXY, inbound_port=None))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, listing], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            heard = SCENES[scene](process)
        finally:
            process.kill()
        assert process.stdout is not None
        printed = process.stdout.read()
    print(json.dumps({"heard": heard, "printed": printed}))


if __name__ == "__main__":
    main(*sys.argv[1:])

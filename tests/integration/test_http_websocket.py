"""WebSockets (RFC 6455) through the HTTP proxy: by Upgrade, and in tunnels as browsers do it."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from integration.http_origins import Conversation, Request, head, scripted
from integration.http_stage import PROXY, HttpStage, facts, http_stage, needs
from integration.origins import some

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.proxy import Sidecar

_TEXT, _BINARY, _CLOSE = 0x81, 0x82, 0x88  # RFC 6455 §5.2, each the last of its message
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3

_programs = needs("nginx")


@pytest.fixture(scope="module", name="stage")
def _stage(
    _namespaces: None, _programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpStage]:
    with http_stage(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture(scope="module", name="sidecar")
def _sidecar(stage: HttpStage) -> Iterator[Sidecar]:
    with stage.proxied() as made:
        yield made


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """Write one (RFC 6455 §5.2)."""
    flag = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        start = struct.pack("!BB", opcode, flag | size)
    elif size < 1 << 16:
        start = struct.pack("!BBH", opcode, flag | 126, size)
    else:
        start = struct.pack("!BBQ", opcode, flag | 127, size)
    if mask:
        repeated = (mask * (size // 4 + 1))[:size]
        mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        payload = mixed.to_bytes(size, "big")
    return start + mask + payload


def read_frame(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Read one, without its mask."""
    opcode, size = read(2)
    masked, size = size & 0x80, size & 0x7F
    if size > 125:
        size = int.from_bytes(read(2 if size == 126 else 8), "big")
    mask = read(4) if masked else bytes(4)
    payload = read(size)
    repeated = (mask * (size // 4 + 1))[:size]
    plain = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return opcode, plain.to_bytes(size, "big")


def echo(conversation: Conversation, request: Request) -> None:
    """Shake hands (RFC 6455 §4.2.2), say something first, echo, and close when asked to."""
    assert ["websocket", "Upgrade"] == [request.one("upgrade"), request.one("connection")]
    key = request.one("sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()  # noqa: S324
    conversation.send(
        head(
            "101 Switching Protocols",
            *("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"),
        ),
        frame(_TEXT, b"welcome"),
    )
    opcode = 0
    while opcode != _CLOSE:
        opcode, payload = read_frame(conversation.heard)
        conversation.send(frame(opcode, payload))


@pytest.mark.parametrize("tunnel", [False, True])
def test_echo(stage: HttpStage, sidecar: Sidecar, *, tunnel: bool) -> None:
    """Frames pass both ways after 101, the first of them in the same packet."""
    host, address = stage.host(), stage.address()
    authority = f"{host}:{address.port}"
    key = base64.b64encode(os.urandom(16)).decode()
    messages = [(_TEXT, b"hello"), (_BINARY, some(1000)), (_BINARY, some(1 << 20))]
    with (
        scripted(stage.namespace, address, echo, once=True) as requests,
        stage.namespace.connect(SocketAddress("127.0.0.1", PROXY)) as client,
        client.makefile("rb") as heard,
    ):
        target = f"http://{authority}/chat"
        if tunnel:
            target = "/chat"
            client.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert heard.readline().startswith(b"HTTP/1.1 200 ")
            assert b"\r\n" == heard.readline()
        client.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert heard.readline().startswith(b"HTTP/1.1 101 ")
        fields = list(iter(heard.readline, b"\r\n"))
        assert b"Upgrade: websocket\r\n" in fields
        assert (_TEXT, b"welcome") == read_frame(heard.read)
        for opcode, payload in messages:
            sender = threading.Thread(
                target=client.sendall, args=(frame(opcode, payload, os.urandom(4)),)
            )
            sender.start()
            assert (opcode, payload) == read_frame(heard.read)
            sender.join()
        client.sendall(frame(_CLOSE, b"\x03\xe8", os.urandom(4)))
        assert (_CLOSE, b"\x03\xe8") == read_frame(heard.read)
        # The server closes first (RFC 6455 §7.1.1).
        assert b"" == heard.read()
        client.shutdown(socket.SHUT_WR)
    [request] = requests
    assert [authority, "GET /chat HTTP/1.1"] == [request.one("host"), request.line]
    status, method = (200, "CONNECT") if tunnel else (101, "GET")
    line = sidecar.line(host=host)
    assert [status, method, "closed"] == facts(line, "status", "method", "end")
    assert line["sent"] >= sum(len(payload) for _, payload in messages)

from __future__ import annotations

import socket

import pytest
from relay.transcripts import tcp_pair

from sidecar.flow import Protocol
from sidecar.protocols.denials import refuse

EXPLANATION = "sidecar: denied: default; to allow it: example.org:443"
FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\n"
    b"Content-Type: text/plain; charset=us-ascii\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Content-Length: 55\r\n"
    b"Connection: close\r\n\r\n"
    b"sidecar: denied: default; to allow it: example.org:443\n"
)


def heard(client: socket.socket) -> bytes:
    """Read to the end."""
    client.setblocking(True)
    data = b""
    with client:
        while part := client.recv(65536):
            data += part
    return data


class TestRefuse:
    @pytest.mark.parametrize("unread", [b"", b"x" * 50_000], ids=["read", "unread"])
    @pytest.mark.parametrize(
        ("protocol", "answer"),
        [
            (Protocol.TLS, bytes((21, 3, 3, 0, 2, 2, 49))),
            (Protocol.HTTP, FORBIDDEN),
        ],
    )
    def test_answer(self, protocol: Protocol, answer: bytes, unread: bytes) -> None:
        """A client is answered in its language and heard out: an orderly end, no reset."""
        client, connection = tcp_pair()
        client.sendall(unread)
        refuse(connection, protocol, EXPLANATION)
        assert -1 == connection.fileno()
        assert answer == heard(client)

    def test_reset(self) -> None:
        """What is no TLS or HTTP is reset."""
        client, connection = tcp_pair()
        refuse(connection, Protocol.TCP, EXPLANATION)
        assert -1 == connection.fileno()
        with pytest.raises(ConnectionResetError):
            heard(client)

    @pytest.mark.parametrize("protocol", list(Protocol))
    def test_gone(self, protocol: Protocol) -> None:
        """A client that is gone already is no error."""
        client, connection = tcp_pair()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        refuse(connection, protocol, EXPLANATION)
        assert -1 == connection.fileno()

    def test_ascii(self) -> None:
        """Whatever the explanation has, the answer's length is right and its text ASCII."""
        client, connection = tcp_pair()
        refuse(connection, Protocol.HTTP, "caf\u00e9")
        head, _, body = heard(client).partition(b"\r\n\r\n")
        assert b"caf?\n" == body
        assert b"Content-Length: 5\r\n" in head

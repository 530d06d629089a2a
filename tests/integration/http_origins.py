"""HTTP servers that the tests script themselves: what is sent when, and what was received."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from integration.origins import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from integration.netns import Namespace

    from sidecar.addresses import SocketAddress

__all__ = ["Conversation", "Request", "git_backend", "head", "scripted"]

_CHUNK = 65536


@dataclass
class Request:
    """What came.

    Attributes:
        line: The request line.
        fields: In order, names in lower case.
        trailers: Likewise, once the content is read.
    """

    line: str
    fields: list[tuple[str, str]]
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Give the values of all fields of this name."""
        return [value for each, value in self.fields if each == name]

    def one(self, name: str) -> str | None:
        """Give the value of the one such field; None for none."""
        values = self.all(name)
        assert len(values) < 2, self
        return values[0] if values else None


class Conversation:
    """One connection of a client's, from the server's side.

    Args:
        connection: Read through a buffer of ours from here on.
        seen: Gains every request.
    """

    def __init__(self, connection: socket.socket, seen: list[Request]) -> None:
        self.connection = connection
        self._seen = seen
        self._file = connection.makefile("rb")

    def request(self) -> Request | None:
        """Read a request's head; None at the connection's end."""
        line = self._line()
        if not line:
            return None
        request = Request(line, self._fields())
        self._seen.append(request)
        return request

    def content(self, request: Request) -> Iterator[bytes]:
        """Read a request's content, piece by piece: chunks as they were made."""
        if request.one("transfer-encoding") == "chunked":
            while size := int(self._line(), 16):
                yield self._exactly(size)
                assert "" == self._line()
            request.trailers = self._fields()
            return
        left = int(request.one("content-length") or 0)
        while left:
            piece = self._exactly(min(left, _CHUNK))
            left -= len(piece)
            yield piece

    def send(self, *pieces: bytes | str) -> None:
        """Send everything, in one piece."""
        data = b"".join(
            each.encode("latin-1") if isinstance(each, str) else each for each in pieces
        )
        self.connection.sendall(data)

    def heard(self, size: int) -> bytes:
        """Read what is no HTTP; less than `size` at the end."""
        return self._file.read(size)

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        assert len(data) == size, "the client has broken off"
        return data

    def _line(self) -> str:
        line = self._file.readline()
        assert not line or line.endswith(b"\r\n"), line
        return line.removesuffix(b"\r\n").decode("latin-1")

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while line := self._line():
            name, _, value = line.partition(":")
            fields.append((name.lower(), value.strip()))
        return fields


def head(status: str, *fields: str) -> str:
    """Write a response's head."""
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""])


@contextmanager
def scripted(
    namespace: Namespace,
    address: SocketAddress,
    answer: Callable[[Conversation, Request], None],
    *,
    certificate: str | None = None,
    once: bool = False,
) -> Iterator[list[Request]]:
    """Serve HTTP.

    Args:
        namespace: Where.
        address: On which address and port.
        answer: Reads the content and answers.
        certificate: A file with key and certificate; None for no TLS.
        once: Close the connection after the first answer.

    Yields:
        The requests, as they come.
    """
    seen: list[Request] = []
    opened: list[socket.socket] = []
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        conversation = Conversation(connection, seen)
        while request := conversation.request():
            answer(conversation, request)
            if once:
                return

    def handle(connection: socket.socket) -> None:
        # Clients close without TLS's goodbye.
        with suppress(ConnectionError, ssl.SSLError):
            if context is None:
                opened.append(connection)
                serve(connection)
                return
            with context.wrap_socket(connection, server_side=True) as tls:
                opened.append(tls)
                serve(tls)

    with Origin(namespace, address, handle):
        try:
            yield seen
        finally:
            # A proxy may keep them for long.
            for connection in opened:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def git_backend(repositories: Path) -> Callable[[Conversation, Request], None]:
    """Serve git's own protocol, as `git http-backend` speaks it to its server (CGI, RFC 3875)."""

    def answer(conversation: Conversation, request: Request) -> None:
        method, target, _ = request.line.split(" ")
        if request.one("expect") == "100-continue":
            conversation.send(head("100 Continue"))
        path, _, query = target.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(repositories),
            "GIT_PROJECT_ROOT": str(repositories),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": "127.0.0.1",
            **_from_fields(request),
        }
        content = b"".join(conversation.content(request))
        environment["CONTENT_LENGTH"] = str(len(content))
        done = subprocess.run(
            ["git", "http-backend"], input=content, capture_output=True, env=environment, check=True
        )
        fields, _, body = done.stdout.partition(b"\r\n\r\n")
        lines = fields.decode("latin-1").split("\r\n")
        status = "200 OK"
        for line in [line for line in lines if line.startswith("Status: ")]:
            status = line.removeprefix("Status: ")
            lines.remove(line)
        # In chunks, as servers send what a program makes.
        pieces = [body[at : at + _CHUNK] for at in range(0, len(body), _CHUNK)]
        conversation.send(head(status, *lines, "Transfer-Encoding: chunked"))
        for piece in pieces:
            conversation.send(f"{len(piece):x}\r\n", piece, "\r\n")
        conversation.send("0\r\n\r\n")

    return answer


def _from_fields(request: Request) -> Mapping[str, str]:
    names = {
        "content-type": "CONTENT_TYPE",
        "content-encoding": "HTTP_CONTENT_ENCODING",
        "git-protocol": "GIT_PROTOCOL",
    }
    return {names[name]: value for name, value in request.fields if name in names}

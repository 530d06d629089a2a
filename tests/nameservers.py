"""A name server of the tests' own, in a thread: records, faults, and what it was asked."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from support import PATIENCE
from twisted.names import dns

from sidecar.dns.messages import Message
from sidecar.dns.resolvconf import NameServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Scripted", "a", "aaaa", "cname", "raw", "record"]

Rows = dict[str, "list[dns.RRHeader]"]


def record(name: str, payload: dns.IEncodableRecord, ttl: int = 60) -> dns.RRHeader:
    return dns.RRHeader(name.encode(), payload.TYPE, ttl=ttl, payload=payload)


def raw(name: str, kind: int, data: bytes, ttl: int = 60) -> dns.RRHeader:
    return dns.RRHeader(name.encode(), kind, ttl=ttl, payload=dns.UnknownRecord(data))


def a(name: str, *addresses: str, ttl: int = 60) -> list[dns.RRHeader]:
    return [record(name, dns.Record_A(each), ttl) for each in addresses]


def aaaa(name: str, *addresses: str, ttl: int = 60) -> list[dns.RRHeader]:
    return [record(name, dns.Record_AAAA(each), ttl) for each in addresses]


def cname(name: str, target: str) -> dns.RRHeader:
    return record(name, dns.Record_CNAME(target.encode()))


class Scripted:
    """Answers over UDP and TCP, on one port of 127.0.0.1.

    Args:
        records: Everything that there is, CNAMEs followed; other names don't exist.
        fault: Given the query, the answer and whether it is a stream's, returns what to
            send instead, in order.
        family: AF_INET or AF_INET6.
        port: 0 for any that is free.

    Attributes:
        asked: Name as it came, type and whether over TCP, in order.
        queries: The messages themselves.
        ports: The clients' ports.
    """

    def __init__(
        self,
        records: Iterable[dns.RRHeader] = (),
        fault: Callable[[Message, Message, bool], list[bytes]] | None = None,
        family: socket.AddressFamily = socket.AF_INET,
        port: int = 0,
    ) -> None:
        self._records = list(records)
        self._fault = fault
        self._family = family
        self._wanted = port
        self.asked: list[tuple[str, int, bool]] = []
        self.queries: list[Message] = []
        self.ports: list[int] = []
        self.host = "127.0.0.1" if family == socket.AF_INET else "::1"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._listen()
            stack.enter_context(self._tcp)
            stack.enter_context(self._udp)
            self._threads = [
                threading.Thread(target=serve, daemon=True)
                for serve in (self._serve_udp, self._serve_tcp)
            ]
            for thread in self._threads:
                thread.start()
            self._stack = stack.pop_all()
        return self

    def _listen(self) -> None:
        """Take a port that nobody has over either; somebody may have it over UDP."""
        while True:
            self._tcp = socket.create_server((self.host, self._wanted), family=self._family)
            self.port: int = self._tcp.getsockname()[1]
            self._udp = socket.socket(self._family, socket.SOCK_DGRAM)
            try:
                self._udp.bind((self.host, self.port))
            except OSError:
                self._udp.close()
                self._tcp.close()
                if self._wanted:
                    raise
            else:
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for sock in (self._udp, self._tcp):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self._stack.close()

    @property
    def server(self) -> NameServer:
        """As a forwarder takes it."""
        found = NameServer.parse(self.host, self.port)
        assert found is not None
        return found

    def _serve_udp(self) -> None:
        while True:
            try:
                data, source = self._udp.recvfrom(65535)
            except OSError:
                return
            if not data:
                return
            self.ports.append(source[1])
            for answer in self._answers(data, is_stream=False):
                with suppress(OSError):
                    self._udp.sendto(answer, source)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            with connection, suppress(OSError, struct.error):
                (length,) = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))
                data = connection.recv(length, socket.MSG_WAITALL)
                for answer in self._answers(data, is_stream=True):
                    connection.sendall(struct.pack("!H", len(answer)) + answer)
                connection.recv(1)

    def _answers(self, data: bytes, *, is_stream: bool) -> list[bytes]:
        query = Message()
        query.fromStr(data)
        (question,) = query.queries
        name = question.name.name.decode("latin-1")
        self.asked.append((name, question.type, is_stream))
        self.queries.append(query)
        answer = self._answer(query, name, question.type)
        if self._fault is not None:
            return self._fault(query, answer, is_stream)
        opt = [each for each in query.additional if each.type == dns.OPT]
        room = 0 if is_stream else (opt[0].cls if opt else 512)
        answer.maxSize = 0
        written = answer.toStr()
        if room and len(written) > room:
            answer.answers.clear()
            answer.trunc = 1
            written = answer.toStr()
        return [written]

    def _answer(self, query: Message, name: str, kind: int) -> Message:
        answer = Message(query.id, 1, recDes=1, recAv=1)
        answer.queries = query.queries
        current, seen = name.lower(), 0
        found = exists = False
        while seen < 20:
            seen += 1
            rows = [each for each in self._records if each.name.name.decode().lower() == current]
            exists = exists or bool(rows)
            answer.answers += [
                each for each in rows if each.type in {kind, dns.CNAME} or kind == 255
            ]
            found = any(each.type == kind for each in rows)
            target = [each.payload.name.name for each in rows if each.type == dns.CNAME]  # type: ignore[union-attr]
            if found or not target:
                break
            current = target[0].decode().lower()
        if not exists:
            answer.rCode = dns.ENAME
        if any(each.type == dns.OPT for each in query.additional):
            answer.additional.append(dns.RRHeader(b"", dns.OPT, 4096, 0, dns.UnknownRecord(b"")))
        return answer

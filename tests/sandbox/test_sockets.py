"""Sockets that are made inside: each goes to who asked for it, or nowhere."""

from __future__ import annotations

import array
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from support import open_descriptors

from sidecar.sandbox import handover
from sidecar.sandbox.handover import Channel, Word, answer_with_socket
from sidecar.sandbox.sockets import ASKED_MAX, SocketsInside

if TYPE_CHECKING:
    from collections.abc import Iterator

INET, INET6 = socket.AF_INET, socket.AF_INET6


class Ends:
    """P and pid 1, in one process and one namespace.

    Attributes:
        inside: Pid 1's end of the channel.
        sockets: P's side.
        got: What P was given, in order.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        theirs.setblocking(False)
        self._outside = Channel(ours)
        self.inside = Channel(theirs)
        with socket.socket() as like:
            self.sockets = SocketsInside(self._outside, os.getpid(), like)
        self.got: list[socket.socket | OSError] = []

    def questions(self) -> list[bytes]:
        """What pid 1 has been asked and has not read yet."""
        found: list[bytes] = []
        while True:
            try:
                message = self.inside.hear()
            except BlockingIOError:
                return found
            assert message is not None
            assert Word.SOCKET is message[0]
            found.append(message[1])

    def answer(self) -> int:
        """Answer all questions; how many there were."""
        questions = self.questions()
        for each in questions:
            answer_with_socket(self.inside, each)
        return len(questions)

    def send(self, body: bytes, *descriptors: int) -> None:
        """Have pid 1 say anything."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        self.inside.sock.sendmsg([Word.SOCKET.value + body], [rights] if descriptors else [])

    def hear(self) -> None:
        """Have P take all the answers."""
        while True:
            try:
                message = self._outside.hear_from()
            except BlockingIOError:
                return
            self.sockets.answered(message)

    def errors(self) -> list[str]:
        """What P was given; no sockets."""
        assert not any(isinstance(each, socket.socket) for each in self.got)
        return [str(each) for each in self.got]

    def close(self) -> None:
        """Close all."""
        self.sockets.close()
        self._outside.close()
        self.inside.close()
        for each in self.got:
            if isinstance(each, socket.socket):
                each.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    """At the end no descriptor is left."""
    before = open_descriptors()
    made = Ends()
    yield made
    made.close()
    assert before == open_descriptors()


class TestAsked:
    def test_families(self, ends: Ends) -> None:
        """What was asked for comes: closed on exec, non-blocking."""
        for family in (INET6, INET, INET6):
            ends.sockets.ask(family, ends.got.append)
        assert 3 == ends.answer()
        ends.hear()
        found = [each for each in ends.got if isinstance(each, socket.socket)]
        assert [INET6, INET, INET6] == [each.family for each in found]
        assert {socket.SOCK_STREAM} == {each.type for each in found}
        assert not any(each.get_inheritable() or each.getblocking() for each in found)

    def test_cancelled(self, ends: Ends) -> None:
        """Who wants it no more isn't told; others get their own."""
        one = ends.sockets.ask(INET, lambda _: pytest.fail("was cancelled"))
        ends.sockets.ask(INET6, ends.got.append)
        one.cancel()
        ends.answer()
        ends.hear()
        (got,) = ends.got
        assert isinstance(got, socket.socket)
        assert INET6 == got.family

    def test_bounded(self, ends: Ends) -> None:
        """So many at once; who is cancelled while waiting is never asked for."""
        questions = [ends.sockets.ask(INET, ends.got.append) for _ in range(2 * ASKED_MAX + 5)]
        for question in questions[ASKED_MAX : ASKED_MAX + 5]:
            question.cancel()
        for expected in (ASKED_MAX, ASKED_MAX, 0):
            assert expected == ends.answer()
            ends.hear()
        assert 2 * ASKED_MAX == len(ends.got)

    def test_none_to_be_had(self, ends: Ends) -> None:
        """Pid 1 says why."""
        ends.sockets.ask(INET, ends.got.append)
        (question,) = ends.questions()
        serial, _ = struct.unpack("=II", question)
        answer_with_socket(ends.inside, struct.pack("=II", serial, 9999))
        ends.hear()
        assert ["[Errno 97] Address family not supported by protocol"] == ends.errors()

    def test_over(self, ends: Ends) -> None:
        """When the sandbox ends, all who wait are told, and who comes later."""
        ends.sockets.ask(INET, ends.got.append)
        ends.answer()
        ends.sockets.close()
        ends.sockets.ask(INET, ends.got.append)
        assert ["[Errno 111] Connection refused"] * 2 == ends.errors()

    def test_nobody_there(self, ends: Ends) -> None:
        """Pid 1 that has gone is no bug."""
        ends.inside.close()
        ends.sockets.ask(INET, ends.got.append)
        assert ["[Errno 32] Broken pipe"] == ends.errors()


class TestRefused:
    """What is not as it should be: refused, said so, and no descriptor of it stays open."""

    def refused(self, ends: Ends, *descriptors: int, body: bytes | None = None) -> None:
        ends.sockets.ask(INET, ends.got.append)
        (question,) = ends.questions()
        serial, _ = struct.unpack("=II", question)
        ends.send(struct.pack("=Ii", serial, 0) if body is None else body, *descriptors)
        ends.hear()
        assert ["[Errno 71] Protocol error"] == ends.errors()

    def test_somebody_else(self, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process than pid 1 is not believed."""
        monkeypatch.setattr(ends.sockets, "_init", 1)
        with socket.socket() as sock:
            self.refused(ends, sock.fileno())

    def test_none(self, ends: Ends) -> None:
        """Nothing came."""
        self.refused(ends)

    def test_two(self, ends: Ends) -> None:
        """One too many came."""
        with socket.socket() as one, socket.socket() as two:
            self.refused(ends, one.fileno(), two.fileno())

    def test_too_many(self, ends: Ends) -> None:
        """More than there is room for."""
        with socket.socket() as sock:
            self.refused(ends, *[sock.fileno()] * 30)

    def test_no_socket(self, ends: Ends) -> None:
        """A file."""
        with open(os.devnull) as file:  # noqa: PTH123 - a descriptor is all that is wanted
            self.refused(ends, file.fileno())

    def test_family(self, ends: Ends) -> None:
        """Not the one that was asked for."""
        with socket.socket(INET6) as sock:
            self.refused(ends, sock.fileno())

    def test_type(self, ends: Ends) -> None:
        """A datagram socket."""
        with socket.socket(INET, socket.SOCK_DGRAM) as sock:
            self.refused(ends, sock.fileno())

    def test_listening(self, ends: Ends) -> None:
        """A listener."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.refused(ends, sock.fileno())

    def test_bound(self, ends: Ends) -> None:
        """One with an address."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.refused(ends, sock.fileno())

    def test_connected(self, ends: Ends) -> None:
        """One with a peer."""
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as sock,
        ):
            self.refused(ends, sock.fileno())

    def test_elsewhere(self, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
        """One of another network namespace."""
        monkeypatch.setattr(handover, "_namespace_of", lambda sock: sock.fileno())
        with socket.socket() as sock:
            self.refused(ends, sock.fileno())

    def test_malformed(self, ends: Ends) -> None:
        """An answer to nothing is thrown away, with what came with it."""
        ends.sockets.ask(INET, ends.got.append)
        with socket.socket() as sock:
            ends.send(b"?", sock.fileno())
            ends.send(struct.pack("=Ii", 4711, 0), sock.fileno())
        ends.hear()
        assert [] == ends.got
        assert 1 == ends.answer()
        ends.hear()
        assert 1 == len(ends.got)

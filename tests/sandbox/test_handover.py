"""Listeners change hands whole and unharmed, or not at all."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

import pytest
from support import open_descriptors

from sidecar.errors import NamespaceError
from sidecar.sandbox import handover
from sidecar.sandbox.handover import Channel, Listeners, Word, receive_listeners, send_listeners

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """P's end and the inside's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listeners]:
    """Such as they should be; that they are in our own namespace is overlooked."""
    monkeypatch.setattr(handover, "_namespace_of", lambda sock: sock.fileno())
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    made = Listeners(
        socket.create_server(("127.0.0.1", 0)),
        (socket.create_server(("127.0.0.1", 0)),),
        (socket.socket(socket.AF_INET, datagram), socket.socket(socket.AF_INET, datagram)),
        socket.socket(socket.AF_NETLINK, datagram, 4),
    )
    assert stream == made.tcp.type
    yield made
    made.close()


def cookie(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, 57, 8)


def send(channel: Channel, names: str, descriptors: list[int]) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    channel.sock.sendmsg([Word.LISTENERS.value + names.encode()], [rights] if descriptors else [])


class TestReceived:
    def test_whole(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """What is sent comes, in its place: closed on exec, non-blocking."""
        ours, theirs = ends
        send_listeners(theirs, listeners)
        got = receive_listeners(ours, os.getpid())
        try:
            assert [(name, cookie(sock)) for name, sock in listeners.named()] == [
                (name, cookie(sock)) for name, sock in got.named()
            ]
            for _, sock in got.named():
                assert not sock.get_inheritable()
                assert not sock.getblocking()
        finally:
            got.close()


class TestRefused:
    @pytest.fixture(autouse=True)
    def _nothing_left(self, listeners: Listeners, ends: tuple[Channel, Channel]) -> Iterator[None]:
        """Whatever is wrong, no descriptor of it stays open."""
        before = open_descriptors()
        yield
        assert before == open_descriptors()

    def refused(self, channel: Channel, sender: int | None = None) -> str:
        with pytest.raises(NamespaceError) as caught:
            receive_listeners(channel, sender or os.getpid())
        return caught.value.cause

    def test_somebody_else(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """Another process than the one that we started is not believed."""
        send_listeners(ends[1], listeners)
        assert "handed them over" in self.refused(ends[0], sender=1)

    def test_too_many(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """More descriptors than there is room for: the kernel cuts them off and says so."""
        descriptors = [listeners.tcp.fileno()] * 30
        send(ends[1], " ".join(["tcp"] * 30), descriptors)
        assert "cut short" in self.refused(ends[0])

    def test_unannounced(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """One more than there are names."""
        named = listeners.named()
        names = " ".join(name for name, _ in named)
        extra = [*(sock.fileno() for _, sock in named), listeners.tcp.fileno()]
        send(ends[1], names, extra)
        assert "5 were announced, 6 came" in self.refused(ends[0])

    def test_none(self, ends: tuple[Channel, Channel]) -> None:
        """Names without descriptors."""
        send(ends[1], "tcp dns_tcp dns_udp diag", [])
        assert "4 were announced, 0 came" in self.refused(ends[0])

    def test_missing(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """One of the necessary ones is not there."""
        send(ends[1], "tcp", [listeners.tcp.fileno()])
        assert "some are missing" in self.refused(ends[0])

    def test_twice(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """The same socket for two purposes."""
        named = [*listeners.named(), ("dns_tcp", listeners.tcp)]
        send(ends[1], " ".join(name for name, _ in named), [sock.fileno() for _, sock in named])
        assert "one came twice" in self.refused(ends[0])

    def test_wrong_type(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """A datagram socket is no listener."""
        send(ends[1], "tcp", [listeners.dns_udp[0].fileno()])
        assert "tcp is something else" in self.refused(ends[0])

    def test_not_listening(self, ends: tuple[Channel, Channel]) -> None:
        """A stream socket that doesn't listen is none either."""
        with socket.socket() as sock:
            send(ends[1], "tcp", [sock.fileno()])
            assert "tcp is something else" in self.refused(ends[0])

    def test_no_socket(self, ends: tuple[Channel, Channel]) -> None:
        """A file is no socket."""
        with open(os.devnull) as file:  # noqa: PTH123 - a descriptor is all that is wanted
            send(ends[1], "tcp", [file.fileno()])
            assert "tcp is no socket" in self.refused(ends[0])

    def test_unknown_name(self, ends: tuple[Channel, Channel], listeners: Listeners) -> None:
        """A purpose that nobody knows."""
        send(ends[1], "ftp", [listeners.tcp.fileno()])
        assert "nobody knows 'ftp'" in self.refused(ends[0])

    def test_own_namespace(
        self,
        ends: tuple[Channel, Channel],
        listeners: Listeners,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A listener in our own network namespace is not the sandbox's."""
        monkeypatch.setattr(handover, "_namespace_of", lambda _: 1)
        send_listeners(ends[1], listeners)
        assert "tcp is in our own network namespace" in self.refused(ends[0])

    def test_error(self, ends: tuple[Channel, Channel]) -> None:
        """What the sender couldn't do is what is raised."""
        ends[1].tell(Word.ERROR, b"no such thing\0get one")
        with pytest.raises(NamespaceError) as caught:
            receive_listeners(ends[0], os.getpid())
        assert ("no such thing", "get one") == (caught.value.cause, caught.value.cure)

    def test_other_word(self, ends: tuple[Channel, Channel]) -> None:
        """Something else in its place is not waited out."""
        ends[1].tell(Word.READY)
        assert "something else came first" in self.refused(ends[0])

    def test_gone(self, ends: tuple[Channel, Channel]) -> None:
        """A sender that ended without a word is an error of its own."""
        ends[1].sock.shutdown(socket.SHUT_RDWR)
        assert "the sandbox ended" in self.refused(ends[0])


class TestChannel:
    def test_words(self, ends: tuple[Channel, Channel]) -> None:
        """Each message comes as it was sent, and then the end."""
        ours, theirs = ends
        theirs.tell(Word.STOPPED, b"\x14")
        theirs.tell(Word.CONTINUED)
        assert (Word.STOPPED, b"\x14") == ours.hear()
        assert (Word.CONTINUED, b"") == ours.hear()
        theirs.sock.shutdown(socket.SHUT_RDWR)
        assert ours.hear() is None

    def test_nobody_there(self, ends: tuple[Channel, Channel]) -> None:
        """Telling somebody who has gone is no error."""
        ends[1].close()
        ends[0].tell(Word.GO)

    @pytest.mark.parametrize("asked", ["hear", "hear_from"])
    def test_last_words(self, ends: tuple[Channel, Channel], asked: str) -> None:
        """What was said before the end is heard, though ours was not."""
        ours, theirs = ends
        ours.tell(Word.SIGNAL, b"x")
        theirs.tell(Word.EXITED, b"y")
        theirs.close()
        if asked == "hear":
            assert (Word.EXITED, b"y") == ours.hear()
            assert ours.hear() is None
        else:
            assert Word.EXITED is ours.hear_from().word
            with pytest.raises(NamespaceError):
                ours.hear_from()

from __future__ import annotations

import datetime as dt
import select
import socket
import ssl
import struct
import threading
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from names.authority import Authority, Server, serving, serving_tls
from support import PATIENCE, fill_queue, wait_for
from twisted.internet.defer import CancelledError, Deferred

from sidecar.addresses import SocketAddress
from sidecar.dialing import Dialer
from sidecar.errors import (
    CertificateMismatch,
    CertificateUnavailable,
    ConnectionRefused,
    ConnectionTimeout,
    ProxyLoopDetected,
)
from sidecar.loops import LoopGuard
from sidecar.names.certificates import trust
from sidecar.names.identity import CertificateProber
from sidecar.relay.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from turning import Turning
    from twisted.internet.task import Clock

    Make = Callable[..., CertificateProber]

NAME = "www.allowed.example"
DAY = dt.timedelta(days=1)


@pytest.fixture
def guard() -> LoopGuard:
    return LoopGuard()


@pytest.fixture
def make(turning: Turning, clock: Clock, guard: LoopGuard, authority: Authority) -> Iterator[Make]:
    """Makes a prober that trusts the tests' authority."""
    poller = Poller(turning.reactor)
    # Longer than the probe's own deadline, which is what is tested.
    dialer = Dialer(clock, poller, guard, mark=None, timeout=60.0, keepalive=60)
    made: list[CertificateProber] = []

    def prober(**options: Any) -> CertificateProber:
        context = options.pop("context", None) or trust(authority.cafile)
        made.append(CertificateProber(clock, poller, dialer, context, **options))
        return made[-1]

    yield prober
    for each in made:
        each.close()
    assert [] == poller.pollables()
    dialer.close()
    poller.close()


@pytest.fixture
def prober(make: Make) -> CertificateProber:
    return make()


@pytest.fixture
def good(authority: Authority) -> str:
    return authority.issue(x509.DNSName(NAME))


@pytest.fixture
def silent() -> Iterator[SocketAddress]:
    """An address that never answers: nobody accepts, and the backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        fill_queue(stack, listener)
        yield SocketAddress.from_kernel(listener.getsockname())


class Heard:
    """What one who asked has heard."""

    def __init__(self, probing: Deferred[None]) -> None:
        self.all: list[object] = []
        self.probing = probing
        probing.addCallbacks(self.all.append, lambda failure: self.all.append(failure.value))

    @property
    def error(self) -> object:
        """The one failure."""
        (error,) = self.all
        return error


class TestProven:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
    def test_right_name(
        self,
        turning: Turning,
        prober: CertificateProber,
        good: str,
        host: str,
        version: ssl.TLSVersion,
    ) -> None:
        """A server with the name's certificate; it sees the name, no ALPN, and no data."""
        with serving_tls(good, host, version=version) as server:
            assert turning.result(prober.probe(NAME, server.address)) is None
            turn_until(turning, lambda: server.after)
        assert ([NAME], [None], [b""]) == (server.names, server.protocols, server.after)

    @pytest.mark.parametrize(
        ("names", "host"),
        [
            (("*.allowed.example",), NAME),
            (("other.example", NAME), NAME),
            (("WWW.Allowed.EXAMPLE",), NAME),
            (("xn--bcher-kva.example",), "xn--bcher-kva.example"),
            (("_x.allowed.example",), "_x.allowed.example"),
            (("localhost",), "localhost"),
        ],
    )
    def test_names(
        self,
        turning: Turning,
        prober: CertificateProber,
        authority: Authority,
        names: tuple[str, ...],
        host: str,
    ) -> None:
        """One of several names; a wildcard for one label; in whatever case."""
        with serving_tls(authority.issue(*map(x509.DNSName, names))) as server:
            assert turning.result(prober.probe(host, server.address)) is None

    def test_slow(self, turning: Turning, prober: CertificateProber, good: str) -> None:
        """A server whose every byte comes alone is still understood."""
        with serving_tls(good) as server:

            def relay(_: Server, connection: socket.socket) -> None:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                behind = (server.address.host, server.address.port)
                with socket.create_connection(behind, PATIENCE) as upstream:
                    while True:
                        for sock in select.select([connection, upstream], [], [])[0]:
                            if not (data := sock.recv(1 << 16)):
                                return
                            if sock is connection:
                                upstream.sendall(data)
                                continue
                            for byte in data:
                                connection.send(bytes((byte,)))

            with serving(relay) as before:
                assert turning.result(prober.probe(NAME, before.address)) is None


class TestMismatch:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"names": ["other.example"]}, "other names"),
            ({"names": ["allowed.example"]}, "other names"),
            ({"names": ["*.example"]}, "no usable name"),
            ({"names": ["*.www.allowed.example"]}, "other names"),
            ({"names": ["www.allowed.example.evil.example"]}, "other names"),
            ({"names": ["w*.allowed.example"]}, "other names"),
            ({"names": ["*"]}, "no usable name"),
            ({"names": []}, "no usable name"),
            ({"names": [], "common_name": NAME}, "no usable name"),
            ({"names": ["other.example"], "common_name": NAME}, "other names"),
            ({"names": [ip_address("127.0.0.1")]}, "other names"),
            ({"names": [NAME], "start": -2 * DAY, "end": -DAY}, "has expired"),
            ({"names": [NAME], "start": DAY, "end": 2 * DAY}, "not valid yet"),
            ({"names": [NAME], "self_signed": True}, "self-signed"),
            ({"names": [NAME], "purpose": ExtendedKeyUsageOID.CLIENT_AUTH}, "for servers"),
        ],
        ids=str,
    )
    def test_certificate(
        self,
        turning: Turning,
        prober: CertificateProber,
        authority: Authority,
        options: dict[str, Any],
        problem: str,
    ) -> None:
        """A certificate that is not valid for the name proves nothing, and it is said why."""
        names = [
            x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name)
            for name in options["names"]
        ]
        others = {key: value for key, value in options.items() if key != "names"}
        with (
            serving_tls(authority.issue(*names, **others)) as server,
            pytest.raises(CertificateMismatch, match=problem) as caught,
        ):
            turning.result(prober.probe(NAME, server.address))
        assert (NAME, str(server.address)) == (caught.value.host, caught.value.address)

    def test_other_authority(self, turning: Turning, make: Make, good: str) -> None:
        """The platform's authorities do not vouch for the tests'."""
        prober = make(context=trust())
        with (
            serving_tls(good) as server,
            pytest.raises(CertificateMismatch, match="its authority is not known"),
        ):
            turning.result(prober.probe(NAME, server.address))

    def test_unreadable_names(
        self, turning: Turning, prober: CertificateProber, authority: Authority
    ) -> None:
        """A name that no parser can read proves nothing, and is no bug."""
        with (
            serving_tls(authority.issue(more=[raw_name(b"\xff\xfe.example")])) as server,
            pytest.raises(CertificateMismatch, match="can't be read"),
        ):
            turning.result(prober.probe(NAME, server.address))

    def test_nul(self, turning: Turning, prober: CertificateProber, authority: Authority) -> None:
        """A NUL in a certificate's name ends nothing."""
        hostile = raw_name(NAME.encode() + b"\0.evil.example")
        with (
            serving_tls(authority.issue(more=[hostile])) as server,
            pytest.raises(CertificateMismatch),
        ):
            turning.result(prober.probe(NAME, server.address))


def raw_name(name: bytes) -> x509.UnrecognizedExtension:
    """A subjectAltName with one DNS name of whatever bytes."""
    entry = bytes((0x82, len(name))) + name
    sequence = bytes((0x30, len(entry))) + entry
    return x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, sequence)


def turn_until(turning: Turning, condition: Callable[[], object]) -> None:
    """Turn until a thread has brought a condition about."""

    def holds() -> bool:
        turning.turn()
        return bool(condition())

    wait_for(holds)


def reset(_: Server, connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def plain_text(_: Server, connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example ESMTP\r\n")
    connection.recv(1 << 16)


def half_a_record(_: Server, connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(bytes((22, 3, 3, 0x40, 0)) + bytes(100))


def stall(server: Server, connection: socket.socket) -> None:
    server.hellos.append(connection.recv(1 << 16))
    server.release.wait()


class TestUnavailable:
    @pytest.mark.parametrize(
        "serve", [reset, plain_text, half_a_record, lambda *_: None], ids=lambda f: f.__name__
    )
    def test_no_tls(
        self,
        turning: Turning,
        prober: CertificateProber,
        serve: Callable[[Server, socket.socket], None],
    ) -> None:
        """A server that resets, speaks something else or ends shows no certificate."""
        with serving(serve) as server, pytest.raises(CertificateUnavailable, match="no TLS"):
            turning.result(prober.probe(NAME, server.address))

    def test_alert(self, turning: Turning, prober: CertificateProber, good: str) -> None:
        """A server that does not want to be the name says so, and that is passed on."""
        with (
            serving_tls(good, refuse=True) as server,
            pytest.raises(CertificateUnavailable, match="unrecognized name"),
        ):
            turning.result(prober.probe(NAME, server.address))

    def test_stall(self, turning: Turning, clock: Clock, prober: CertificateProber) -> None:
        """A server that accepts and says nothing is given up after ten seconds."""
        with serving(stall) as server:
            heard = Heard(prober.probe(NAME, server.address))
            turn_until(turning, lambda: server.hellos)
            clock.advance(9.9)
            assert [] == heard.all
            clock.advance(0.1)
            assert isinstance(heard.error, CertificateUnavailable)
            assert "no certificate within 10 s" == heard.error.problem

    def test_drip(self, turning: Turning, clock: Clock, prober: CertificateProber) -> None:
        """One that sends a byte now and then, too: the deadline is for the whole."""

        def drip(server: Server, connection: socket.socket) -> None:
            server.hellos.append(connection.recv(1 << 16))
            connection.sendall(bytes((22, 3, 3, 0x40)))
            server.release.wait()

        with serving(drip) as server:
            heard = Heard(prober.probe(NAME, server.address))
            turn_until(turning, lambda: server.hellos)
            clock.advance(10)
            assert isinstance(heard.error, CertificateUnavailable)


class TestNotReached:
    def test_refused(self, turning: Turning, prober: CertificateProber) -> None:
        """Nobody listens: the dialler's error."""
        with pytest.raises(ConnectionRefused):
            turning.result(prober.probe(NAME, SocketAddress("127.0.0.1", 1)))

    def test_silent(self, clock: Clock, prober: CertificateProber, silent: SocketAddress) -> None:
        """Nobody answers: a timeout."""
        heard = Heard(prober.probe(NAME, silent))
        clock.advance(10)
        assert isinstance(heard.error, ConnectionTimeout)

    def test_loop(self, turning: Turning, prober: CertificateProber, guard: LoopGuard) -> None:
        """One of our own listeners is not probed."""
        address = SocketAddress("127.0.0.1", 15001)
        guard.add_listener(address)
        with pytest.raises(ProxyLoopDetected):
            turning.result(prober.probe(NAME, address))

    def test_not_kept(self, turning: Turning, prober: CertificateProber, good: str) -> None:
        """A server that is back is seen at once."""
        # Nobody else takes a port of this address meanwhile.
        with serving_tls(good, "127.0.8.1") as server:
            address = server.address
        with pytest.raises(ConnectionRefused):
            turning.result(prober.probe(NAME, address))
        with socket.create_server((address.host, address.port)):
            heard = Heard(prober.probe(NAME, address))
            turning.settle()
            assert [] == heard.all
            heard.probing.cancel()


class TestKept:
    def test_good(
        self, turning: Turning, clock: Clock, prober: CertificateProber, good: str
    ) -> None:
        """A proof holds for five minutes."""
        with serving_tls(good) as server:
            for wait, probes in ((0, 1), (299.9, 1), (0.1, 2)):
                clock.advance(wait)
                turning.result(prober.probe(NAME, server.address))
                assert probes == len(server.peers)

    def test_bad(
        self, turning: Turning, clock: Clock, prober: CertificateProber, authority: Authority
    ) -> None:
        """A mismatch holds for ten seconds; each who asks gets an error of its own."""
        errors = []
        with serving_tls(authority.issue(x509.DNSName("other.example"))) as server:
            for wait, probes in ((0, 1), (9.9, 1), (0.1, 2)):
                clock.advance(wait)
                with pytest.raises(CertificateMismatch) as caught:
                    turning.result(prober.probe(NAME, server.address))
                errors.append(caught.value)
                assert probes == len(server.peers)
        assert 3 == len({id(error) for error in errors})
        assert 1 == len({str(error) for error in errors})

    def test_own_question(
        self, turning: Turning, prober: CertificateProber, authority: Authority
    ) -> None:
        """What one name or address has shown says nothing of another."""
        certificate = authority.issue(x509.DNSName(NAME))
        with serving_tls(certificate) as server, serving_tls(certificate, "127.0.0.2") as other:
            turning.result(prober.probe(NAME, server.address))
            with pytest.raises(CertificateMismatch):
                turning.result(prober.probe("other.example", server.address))
            turning.result(prober.probe(NAME, other.address))
        assert (2, 1) == (len(server.peers), len(other.peers))

    def test_number(self, turning: Turning, make: Make, authority: Authority) -> None:
        """Of good results and of bad ones only so many are kept; bad ones drive out no good."""
        prober = make(kept=2)
        with serving_tls(authority.issue(x509.DNSName("*.allowed.example"))) as server:
            address = server.address
            turning.result(prober.probe(NAME, address))
            for number in range(5):
                with pytest.raises(CertificateMismatch):
                    turning.result(prober.probe(f"{number}.other.example", address))
            turning.result(prober.probe(NAME, address))
            assert 6 == len(server.peers)
            for number in range(2):
                turning.result(prober.probe(f"{number}.allowed.example", address))
            turning.result(prober.probe(NAME, address))
            assert 9 == len(server.peers)
        assert (2, 2) == (len(prober._proven), len(prober._failed))


class TestAtOnce:
    def test_one_for_all(self, turning: Turning, prober: CertificateProber, good: str) -> None:
        """All who ask the same meanwhile get one handshake's result."""
        with serving_tls(good) as server:
            heard = [Heard(prober.probe(NAME, server.address)) for _ in range(5)]
            turn_until(turning, lambda: all(each.all for each in heard))
        assert [[None]] * 5 == [each.all for each in heard]
        assert 1 == len(server.peers)

    def test_one_gives_up(self, turning: Turning, prober: CertificateProber, good: str) -> None:
        """Who gives up doesn't spoil it for the others."""
        begin = threading.Event()
        with serving_tls(good, begin=begin) as server:
            one, other = (Heard(prober.probe(NAME, server.address)) for _ in range(2))
            one.probing.cancel()
            begin.set()
            turn_until(turning, other.all.__len__)
        assert [None] == other.all
        assert isinstance(one.error, CancelledError)

    def test_all_give_up(self, turning: Turning, prober: CertificateProber) -> None:
        """A probe that nobody waits for is ended, and is no result."""
        ended: list[bytes] = []

        def serve(_: Server, connection: socket.socket) -> None:
            while data := connection.recv(1 << 16):
                ended.append(data)
            ended.append(b"")

        with serving(serve) as server:
            heard = Heard(prober.probe(NAME, server.address))
            turn_until(turning, lambda: ended)
            heard.probing.cancel()
            turn_until(turning, lambda: b"" in ended)
            again = Heard(prober.probe(NAME, server.address))
            turn_until(turning, lambda: len(server.peers) == 2)
            again.probing.cancel()

    def test_give_up_dialling(
        self, clock: Clock, prober: CertificateProber, silent: SocketAddress
    ) -> None:
        """Likewise while it is being dialled; the fixtures see that nothing is left."""
        heard = Heard(prober.probe(NAME, silent))
        heard.probing.cancel()
        assert isinstance(heard.error, CancelledError)

    def test_places(self, turning: Turning, make: Make, good: str, silent: SocketAddress) -> None:
        """Beyond so many at once the next ones wait until one is over, in order."""
        prober = make(at_once=1)
        first = Heard(prober.probe(NAME, silent))
        with serving_tls(good) as server, serving_tls(good, "127.0.0.2") as other:
            second = Heard(prober.probe(NAME, server.address))
            third = Heard(prober.probe(NAME, other.address))
            turning.settle()
            assert ([], []) == (server.peers, other.peers)
            first.probing.cancel()
            turn_until(turning, lambda: third.all)
            assert ([None], [None]) == (second.all, third.all)

    def test_waits_in_vain(
        self, clock: Clock, make: Make, silent: SocketAddress, good: str
    ) -> None:
        """Waiting counts: the deadline is the same, and it is no result of the address's."""
        prober = make(at_once=1)
        first = Heard(prober.probe(NAME, silent))
        with serving_tls(good) as server:
            clock.advance(1)
            second = Heard(prober.probe(NAME, server.address))
            # The first would still be at it, were its own deadline not as long.
            clock.pump([8.9, 0.1])
            assert isinstance(first.error, ConnectionTimeout)
            second.probing.cancel()
        assert 0 == len(prober._failed)

    def test_full(self, make: Make, silent: SocketAddress) -> None:
        """Beyond so many that wait, the next one is refused at once; those asked join in."""
        prober = make(at_once=1, queue=1)
        waiting = [Heard(prober.probe(f"{n}.example", silent)) for n in (0, 0, 1, 1)]
        refused = Heard(prober.probe("2.example", silent))
        assert isinstance(refused.error, CertificateUnavailable)
        assert [[]] * 4 == [each.all for each in waiting]
        for each in waiting:
            each.probing.cancel()
        again = Heard(prober.probe("2.example", silent))
        assert [] == again.all
        again.probing.cancel()


class TestClosing:
    def test_close(self, turning: Turning, make: Make, silent: SocketAddress) -> None:
        """Everything that waits fails, in whatever state; nothing new begins."""
        prober = make(at_once=2)
        with serving(stall) as server:
            heard = [
                Heard(prober.probe(NAME, server.address)),
                Heard(prober.probe(NAME, silent)),
                Heard(prober.probe("other.example", silent)),
            ]
            turn_until(turning, lambda: server.peers)
            prober.close()
        assert [CertificateUnavailable] * 3 == [type(each.error) for each in heard]
        assert isinstance(Heard(prober.probe("x.example", silent)).error, CertificateUnavailable)

    def test_process_ends(self, turning: Turning, prober: CertificateProber) -> None:
        """When the process ends it is the flows' own end that counts, not the probe's."""
        with serving(stall) as server:
            heard = Heard(prober.probe(NAME, server.address))
            turn_until(turning, lambda: server.hellos)
            (probe,) = prober._poller.pollables()
            probe.shut_down()
            assert [] == heard.all
            heard.probing.cancel()
            assert [] == prober._poller.pollables()

    def test_asked_while_closing(self, make: Make, silent: SocketAddress) -> None:
        """Who asks again when told gets no further."""
        prober = make()
        again: list[Heard] = []
        prober.probe(NAME, silent).addErrback(
            lambda _: again.append(Heard(prober.probe(NAME, silent)))
        )
        prober.close()
        assert isinstance(again[0].error, CertificateUnavailable)

    def test_bug(self, turning: Turning, prober: CertificateProber) -> None:
        """A handler that raises proves nothing."""
        with serving(stall) as server:
            heard = Heard(prober.probe(NAME, server.address))
            turn_until(turning, lambda: server.hellos)
            (probe,) = prober._probes.values()
            probe.failed()
            probe.ready(0)
        assert isinstance(heard.error, CertificateUnavailable)

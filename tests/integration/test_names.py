"""Connections judged by the names that they are for, with real clients, servers, certificates.

The servers' addresses are public ones, on a wire that leads nowhere else; `allowed.example`
is at RIGHT, `other.example` at WRONG (`names_stage`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from integration import clients, netns, origins
from integration.names_stage import (
    ALLOWED,
    HOME,
    OTHER,
    RIGHT,
    RIGHT6,
    WRONG,
    Stage,
    page_from,
    plain_page,
    proxied,
    raw_hello_client,
    say,
    set_up,
    tls_origin,
)
from integration.origins import Origin
from integration.proxy import ISTIO, OUTBOUND, ROOT, eventually
from names.authority import Authority
from wire import hello_maker

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from integration.netns import Pair
    from integration.proxy import Line, Sidecar

pytestmark = pytest.mark.thorough

# Generous waits, so that only a wait that must end by itself does.
_NAMES = """
[limits]
silence = 20.0
[policy]
default = "deny"
allow = ["allowed.example", "mixed.example", "home.example", "db.corp.example"]
private_names = ["*.corp.example"]
"""
_REQUEST = "GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n"
_NO_TLS_NOR_HTTP = b"\x00\x01\x02\x03"


@pytest.fixture(scope="module")
def stage(pair: Pair, outside: Path) -> Stage:
    return set_up(pair, outside)


@pytest.fixture(scope="module")
def own(stage: Stage) -> Iterator[Stage]:
    """Another pair of hosts, for tests that run a sidecar of their own."""
    with netns.pair("own") as pair:
        yield set_up(pair, stage.directory)


@pytest.fixture(scope="module")
def by_name(stage: Stage) -> Iterator[Sidecar]:
    """A sidecar whose policy has rules for names alone."""
    with proxied(stage, _NAMES, name="by_name.toml") as sidecar:
        yield sidecar


def _curl(
    stage: Stage, url: str, address: SocketAddress, *flags: str
) -> subprocess.CompletedProcess[str]:
    host = url.split("/")[2].rsplit(":", 1)[0]
    at = f"[{address.host}]" if ":" in address.host else address.host
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "15"]
    command += ["--cacert", stage.authority.cafile, "--resolve", f"{host}:{address.port}:{at}"]
    return stage.near.run([*command, *flags, url], check=False)


def _s_client(
    stage: Stage, server: SocketAddress, *flags: str, name: str = ALLOWED
) -> subprocess.CompletedProcess[str]:
    command = ["openssl", "s_client", "-connect", str(server), "-servername", name]
    command += ["-CAfile", stage.authority.cafile, "-ign_eof", "-verify_return_error", *flags]
    return stage.near.run(command, stdin=_REQUEST, check=False)


def _gnutls(
    stage: Stage, server: SocketAddress, *flags: str, name: str = ALLOWED
) -> subprocess.CompletedProcess[str]:
    command = ["gnutls-cli", "--port", str(server.port), "--sni-hostname", name]
    command += ["--verify-hostname", name, "--x509cafile", stage.authority.cafile]
    return stage.near.run([*command, *flags, server.host], stdin=_REQUEST, check=False)


def _whole(hello: bytes) -> list[bytes]:
    return [hello]


def _bytewise(hello: bytes) -> list[bytes]:
    return [hello[at : at + 1] for at in range(len(hello))]


def _split_at(offset: int) -> Callable[[bytes], list[bytes]]:
    return lambda hello: [hello[:offset], hello[offset:]]


def _over_records(size: int) -> Callable[[bytes], list[bytes]]:
    def cut(hello: bytes) -> list[bytes]:
        handshake = hello[5:]
        return [hello_maker.in_records(handshake, [size] * (len(handshake) // size))]

    return cut


def _over_records_bytewise(hello: bytes) -> list[bytes]:
    (records,) = _over_records(50)(hello)
    return _bytewise(records)


def _fact(line: Line, *keys: str) -> list[object]:
    return [line[key] for key in keys]


# A hello of OpenSSL 3.5's (pyOpenSSL 26), with an X25519MLKEM768 key share.
_POST_QUANTUM = Path(__file__).parents[1] / "wire" / "hellos" / "pyopenssl-mlkem.hex"


def _renamed(hello: bytes, old: bytes, new: str) -> bytes:
    """A captured hello in one record, for another name."""
    name = hello.index(old)
    more = len(new) - len(old)
    changed = bytearray(hello[:name] + new.encode() + hello[name + len(old) :])
    suites = 44 + hello[43]
    methods = suites + 2 + int.from_bytes(hello[suites : suites + 2], "big")
    extensions = methods + 1 + hello[methods]
    lengths = {3: 2, 6: 3, extensions: 2, name - 7: 2, name - 5: 2, name - 2: 2}
    for at, size in lengths.items():
        length = int.from_bytes(hello[at : at + size], "big") + more
        changed[at : at + size] = length.to_bytes(size, "big")
    return bytes(changed)


class TestClients:
    """Real clients, unknowing, get their page; what they asked for is in the log."""

    @pytest.mark.parametrize(
        ("flags", "alpn", "ja4"),
        [
            ((), ["h2", "http/1.1"], "t13d"),
            (("--http1.1",), ["http/1.1"], "t13d"),
            (("--no-alpn",), [], "t13d"),
            (("--tls-max", "1.2"), ["h2", "http/1.1"], "t12d"),
        ],
        ids=["default", "http1.1", "no-alpn", "tls1.2"],
    )
    def test_curl(
        self,
        stage: Stage,
        by_name: Sidecar,
        port: int,
        flags: tuple[str, ...],
        alpn: list[str],
        ja4: str,
    ) -> None:
        """Curl gets the page of the name; SNI, ALPN and version are logged."""
        server = SocketAddress(RIGHT, port)
        with tls_origin(stage, server, ALLOWED):
            done = _curl(stage, f"https://{ALLOWED}:{port}/", server, *flags)
            assert (0, page_from(RIGHT)) == (done.returncode, done.stdout), done
        line = by_name.line(destination=server)
        assert ["tls", ALLOWED, "sni", alpn, "allow", "rule", str(server)] == _fact(
            line, "protocol", "host", "host_from", "alpn", "verdict", "reason", "upstream"
        )
        assert ja4 == line["ja4"][:4]
        assert line["rule"].startswith(f"{ALLOWED} (")
        assert line["rule"].endswith("by_name.toml:7)")

    @pytest.mark.parametrize("version", ["tls1", "tls1_1", "tls1_2", "tls1_3"])
    @pytest.mark.parametrize("alpn", [(), ("-alpn", "http/1.1,http/1.0")], ids=["bare", "alpn"])
    def test_openssl(
        self, stage: Stage, by_name: Sidecar, port: int, version: str, alpn: tuple[str, ...]
    ) -> None:
        """Each version of TLS that OpenSSL speaks, with and without ALPN."""
        server = SocketAddress(RIGHT, port)
        flags = [f"-{version}", *alpn]
        if version in {"tls1", "tls1_1"}:
            flags += ["-cipher", "DEFAULT@SECLEVEL=0"]
        with tls_origin(stage, server, ALLOWED):
            done = _s_client(stage, server, *flags)
        assert page_from(RIGHT).strip() in done.stdout, done
        line = by_name.line(destination=server)
        offered = alpn[1].split(",") if alpn else []
        assert ["tls", ALLOWED, "sni", offered] == _fact(
            line, "protocol", "host", "host_from", "alpn"
        )
        short = {"tls1": "t10", "tls1_1": "t11", "tls1_2": "t12", "tls1_3": "t13"}[version]
        assert short == line["ja4"][:3]

    @pytest.mark.parametrize("priority", ["NORMAL", "NORMAL:-VERS-TLS1.3"])
    @pytest.mark.parametrize("alpn", [(), ("--alpn", "http/1.1")], ids=["bare", "alpn"])
    def test_gnutls(
        self, stage: Stage, by_name: Sidecar, port: int, priority: str, alpn: tuple[str, ...]
    ) -> None:
        """GnuTLS' client likewise."""
        server = SocketAddress(RIGHT, port)
        with tls_origin(stage, server, ALLOWED):
            done = _gnutls(stage, server, "--priority", priority, *alpn)
        assert page_from(RIGHT).strip() in done.stdout, done
        line = by_name.line(destination=server)
        assert ["tls", ALLOWED, "sni", list(alpn[1:])] == _fact(
            line, "protocol", "host", "host_from", "alpn"
        )

    @pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")], ids=["bare", "alpn"])
    def test_python(self, stage: Stage, by_name: Sidecar, port: int, alpn: tuple[str, ...]) -> None:
        """Python's ssl, whose certificate check passes: nobody is in between."""
        server = SocketAddress(RIGHT, port)
        context = ssl.create_default_context(cafile=stage.authority.cafile)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        with tls_origin(stage, server, ALLOWED):
            connection = stage.near.connect(server)
            with context.wrap_socket(connection, server_hostname=ALLOWED) as tls:
                tls.sendall(_REQUEST.encode())
                page = origins.received(tls)
        assert page.decode().endswith(page_from(RIGHT))
        line = by_name.line(destination=server)
        assert [ALLOWED, "sni", list(alpn)] == _fact(line, "host", "host_from", "alpn")

    def test_post_quantum(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A hello with an ML-KEM key share, longer than a segment, is read like any other."""
        server = SocketAddress(RIGHT, port)
        hello = _renamed(bytes.fromhex(_POST_QUANTUM.read_text()), b"pq.example.org", ALLOWED)
        with tls_origin(stage, server, ALLOWED), stage.near.connect(server) as connection:
            connection.sendall(hello)
            # A ServerHello: the server has understood it.
            assert 22 == connection.recv(1)[0]
        line = by_name.line(destination=server)
        assert [ALLOWED, "sni", "allow"] == _fact(line, "host", "host_from", "verdict")

    def test_ipv6(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """Over IPv6 as over IPv4."""
        server = SocketAddress(RIGHT6, port)
        with tls_origin(stage, server, ALLOWED):
            done = _curl(stage, f"https://{ALLOWED}:{port}/", server)
            assert page_from(RIGHT6) == done.stdout, done
        line = by_name.line(destination=server)
        assert [ALLOWED, str(server)] == _fact(line, "host", "upstream")

    def test_plain_http(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """Without TLS, the Host field names the host; the port in it is not judged."""
        server = SocketAddress(RIGHT, port)
        with Origin(stage.far, server, plain_page(RIGHT)):
            done = _curl(stage, f"http://{ALLOWED}:{port}/", server)
        assert page_from(RIGHT) == done.stdout, done
        line = by_name.line(destination=server)
        assert ["http", ALLOWED, "host", [], None, "allow"] == _fact(
            line, "protocol", "host", "host_from", "alpn", "ja4", "verdict"
        )

    def test_redirect(self, own: Stage, port: int) -> None:
        """With REDIRECT, and as an ordinary user, it is all the same."""
        server, wrong = SocketAddress(RIGHT, port), SocketAddress(WRONG, port)
        with (
            proxied(own, _NAMES, mode="redirect", identity=ISTIO, name="redirect.toml") as side,
            tls_origin(own, server, ALLOWED),
            tls_origin(own, wrong, OTHER),
        ):
            done = _curl(own, f"https://{ALLOWED}:{port}/", server)
            assert page_from(RIGHT) == done.stdout, done
            line = side.line(destination=server)
            assert ["redirect", ALLOWED, "allow"] == _fact(
                line, "destination_from", "host", "verdict"
            )
            assert 35 == _curl(own, f"https://{OTHER}:{port}/", wrong).returncode
            line = side.line(destination=wrong)
            assert ["redirect", OTHER, "deny"] == _fact(line, "destination_from", "host", "verdict")


@pytest.fixture(scope="module")
def whole(stage: Stage, by_name: Sidecar) -> list[object]:
    """What a hello says in one piece."""
    return _fetch_cut(stage, by_name, SocketAddress(RIGHT, 19999), _whole)


class TestCut:
    """However a hello is cut, what is known of it and what is answered is the same."""

    @pytest.mark.parametrize(
        "cut",
        [
            _bytewise,
            *(_split_at(offset) for offset in (1, 3, 5, 6, 9, 43, 100, 200)),
            *(_over_records(size) for size in (1, 3, 4, 50, 200)),
            _over_records_bytewise,
        ],
        ids=[
            "bytewise",
            *(f"split-{offset}" for offset in (1, 3, 5, 6, 9, 43, 100, 200)),
            *(f"records-{size}" for size in (1, 3, 4, 50, 200)),
            "records-bytewise",
        ],
    )
    def test_same(
        self,
        stage: Stage,
        by_name: Sidecar,
        port: int,
        whole: list[object],
        cut: Callable[[bytes], list[bytes]],
    ) -> None:
        """Byte by byte, in two parts, over several records: one answer, one set of facts."""
        assert whole == _fetch_cut(stage, by_name, SocketAddress(RIGHT, port), cut)
        assert [page_from(RIGHT), "tls", ALLOWED, "sni"] == whole[:4]

    @pytest.mark.parametrize("cut", [_whole, _bytewise, _over_records(50)])
    def test_same_denial(
        self, stage: Stage, by_name: Sidecar, port: int, cut: Callable[[bytes], list[bytes]]
    ) -> None:
        """A denied name is denied, however it is cut."""
        server = SocketAddress(WRONG, port)
        with tls_origin(stage, server, OTHER) as origin:
            said = raw_hello_client(stage, server, OTHER, cut)
        assert "TLSV1_ALERT_ACCESS_DENIED" == said
        assert [] == origin.peers
        line = by_name.line(destination=server)
        assert [OTHER, "deny", "default", "denied"] == _fact(
            line, "host", "verdict", "reason", "end"
        )


def _fetch_cut(
    stage: Stage, sidecar: Sidecar, server: SocketAddress, cut: Callable[[bytes], list[bytes]]
) -> list[object]:
    with tls_origin(stage, server, ALLOWED):
        page = raw_hello_client(stage, server, ALLOWED, cut)
    line = sidecar.line(destination=server)
    keys = ("protocol", "host", "host_from", "alpn", "ja4", "verdict", "reason")
    return [page, *_fact(line, *keys)]


class TestSpoof:
    """A client that claims `allowed.example` and dials the address of another."""

    def test_redial(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """`redial`: it gets to allowed.example's own server, whatever it dialled."""
        right, wrong = SocketAddress(RIGHT, port), SocketAddress(WRONG, port)
        with tls_origin(stage, right, ALLOWED) as real, tls_origin(stage, wrong, OTHER) as other:
            done = _curl(stage, f"https://{ALLOWED}:{port}/", wrong)
            assert (0, page_from(RIGHT)) == (done.returncode, done.stdout), done
        line = by_name.line(destination=wrong)
        assert [ALLOWED, "allow", str(right)] == _fact(line, "host", "verdict", "upstream")
        assert (1, []) == (len(real.peers), other.peers)

    def test_redial_http(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """Likewise with a Host field."""
        right, wrong = SocketAddress(RIGHT, port), SocketAddress(WRONG, port)
        with (
            Origin(stage.far, right, plain_page(RIGHT)),
            Origin(stage.far, wrong, plain_page(WRONG)) as other,
        ):
            done = _curl(stage, f"http://{ALLOWED}:{port}/", wrong)
            assert page_from(RIGHT) == done.stdout, done
        assert str(right) == by_name.line(destination=wrong)["upstream"]
        assert [] == other.peers

    def test_certificate(self, own: Stage, port: int) -> None:
        """`certificate`: denied where the address shows another's, passed where its own."""
        right, wrong = SocketAddress(RIGHT, port), SocketAddress(WRONG, port)
        seen: list[str | None] = []
        with (
            proxied(own, f'{_NAMES}verify = "certificate"\n', name="certificate.toml") as sidecar,
            tls_origin(own, right, ALLOWED),
            tls_origin(own, wrong, OTHER, seen) as other,
        ):
            done = _curl(own, f"https://{ALLOWED}:{port}/", wrong)
            assert 35 == done.returncode, done
            assert "access denied" in done.stderr
            line = sidecar.line(destination=wrong)
            assert [ALLOWED, "deny", "certificate_mismatch", None, "denied"] == _fact(
                line, "host", "verdict", "reason", "upstream", "end"
            )
            # Our own probe, and nothing of the client's.
            assert ([ALLOWED], 1) == (seen, len(other.peers))
            done = _curl(own, f"https://{ALLOWED}:{port}/", right)
            assert page_from(RIGHT) == done.stdout, done
            line = sidecar.line(destination=right)
            assert ["allow", str(right)] == _fact(line, "verdict", "upstream")

    def test_certificate_ca_file(self, own: Stage, port: int) -> None:
        """`ca_file`: its authorities count, and the platform's don't."""
        right = SocketAddress(RIGHT, port)
        (own.directory / "corp").mkdir()
        corp = Authority(own.directory / "corp")
        settings = f'{_NAMES}verify = "certificate"\nca_file = "{corp.cafile}"\n'
        corps = {ALLOWED: corp.issue(x509.DNSName(ALLOWED))}
        with proxied(own, settings, name="ca_file.toml") as sidecar:
            with tls_origin(own, right, ALLOWED):
                # By an authority that SSL_CERT_FILE names, and curl trusts.
                assert 35 == _curl(own, f"https://{ALLOWED}:{port}/", right).returncode
                sidecar.line(destination=right, reason="certificate_mismatch")
            os.kill(sidecar.pid, signal.SIGHUP)
            sidecar.wait_until(lambda: any("policy reloaded" in text for text in sidecar.printed))
            with tls_origin(replace(own, certificates=corps), right, ALLOWED):
                done = _curl(own, f"https://{ALLOWED}:{port}/", right, "--insecure")
                assert page_from(RIGHT) == done.stdout, done
                sidecar.line(destination=right, verdict="allow", upstream=right)

    def test_certificate_refused(self, own: Stage, port: int) -> None:
        """`certificate`: where no one listens, the flow ends as one refused."""
        server = SocketAddress(RIGHT, port)
        settings = f'{_NAMES}verify = "certificate"\n'
        with proxied(own, settings, name="refused.toml") as sidecar:
            assert 35 == _curl(own, f"https://{ALLOWED}:{port}/", server).returncode
            line = sidecar.line(destination=server)
        assert ["deny", "connection_refused", "connection_refused"] == _fact(
            line, "verdict", "reason", "end"
        )

    def test_off(self, own: Stage, port: int) -> None:
        """`off`: the client is believed, and gets where it dialled."""
        wrong = SocketAddress(WRONG, port)
        with (
            proxied(own, f'{_NAMES}verify = "off"\n', name="off.toml") as sidecar,
            tls_origin(own, wrong, OTHER),
        ):
            done = _curl(own, f"https://{ALLOWED}:{port}/", wrong, "--insecure")
            assert page_from(WRONG) == done.stdout, done
            line = sidecar.line(destination=wrong)
        assert [ALLOWED, "allow", str(wrong)] == _fact(line, "host", "verdict", "upstream")


class TestDenials:
    """What a client that is denied is told, in its own language."""

    @pytest.mark.parametrize("version", ["tls1", "tls1_2", "tls1_3"])
    def test_tls_alert(self, stage: Stage, by_name: Sidecar, port: int, version: str) -> None:
        """OpenSSL sees the alert access_denied (49), in every version."""
        server = SocketAddress(WRONG, port)
        flags = [f"-{version}"]
        if version == "tls1":
            flags += ["-cipher", "DEFAULT@SECLEVEL=0"]
        done = _s_client(stage, server, *flags, name=OTHER)
        assert "alert access denied" in done.stderr, done
        assert "SSL alert number 49" in done.stderr, done
        line = by_name.line(destination=server)
        assert [OTHER, "deny", "default", None, None, "denied"] == _fact(
            line, "host", "verdict", "reason", "rule", "upstream", "end"
        )

    def test_tls_curl(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """Curl says so."""
        server = SocketAddress(WRONG, port)
        done = _curl(stage, f"https://{OTHER}:{port}/", server)
        assert 35 == done.returncode
        assert "access denied" in done.stderr
        by_name.line(destination=server, verdict="deny")

    def test_gnutls(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """GnuTLS says so."""
        server = SocketAddress(WRONG, port)
        done = _gnutls(stage, server, name=OTHER)
        assert "Access was denied" in done.stdout + done.stderr, done
        by_name.line(destination=server, verdict="deny")

    def test_http(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A 403 with the reason, and the rule that would allow it."""
        server = SocketAddress(WRONG, port)
        done = _curl(stage, f"http://{OTHER}:{port}/", server, "--write-out", "%{http_code}")
        hint = f"sidecar: denied: default; to allow it: {OTHER}:{port}\n403"
        assert hint == done.stdout
        line = by_name.line(destination=server)
        assert ["http", OTHER, "host", "deny", "default"] == _fact(
            line, "protocol", "host", "host_from", "verdict", "reason"
        )

    def test_http_upload(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A client that sends more than its head gets the answer as well."""
        server = SocketAddress(WRONG, port)
        with stage.near.connect(server) as connection:
            head = f"POST / HTTP/1.1\r\nHost: {OTHER}\r\nContent-Length: 8000\r\n\r\n"
            connection.sendall(head.encode() + bytes(8000))
            answer = connection.recv(12)
        assert b"HTTP/1.1 403" == answer
        by_name.line(destination=server, verdict="deny")

    def test_raw(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """What is neither gets a reset."""
        server = SocketAddress(WRONG, port)
        assert (b"", True) == say(stage, server, _NO_TLS_NOR_HTTP)
        line = by_name.line(destination=server)
        assert ["tcp", None, None, "deny", "no_name", "denied"] == _fact(
            line, "protocol", "host", "host_from", "verdict", "reason", "end"
        )

    def test_no_sni(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A hello without a name, where only one could allow it: `no_name`."""
        server = SocketAddress(RIGHT, port)
        done = _curl(stage, f"https://{RIGHT}:{port}/", server)
        assert 35 == done.returncode
        assert "access denied" in done.stderr
        line = by_name.line(destination=server)
        assert ["tls", None, "deny", "no_name"] == _fact(
            line, "protocol", "host", "verdict", "reason"
        )

    @pytest.mark.parametrize("choice", ["allow", "deny"])
    def test_ech(self, own: Stage, port: int, choice: str) -> None:
        """An encrypted hello, whose name may be a front, is what `ech` says."""
        hello = hello_maker.hello(
            hello_maker.server_name(ALLOWED.encode()), hello_maker.ech(7), hello_maker.alpn(b"h2")
        )
        server = SocketAddress(RIGHT, port)
        heard: list[bytes] = []

        def listen(connection: socket.socket) -> None:
            heard.append(origins.received(connection))

        with (
            proxied(own, f'{_NAMES}ech = "{choice}"\n', name="ech.toml") as sidecar,
            Origin(own.far, server, listen),
            own.near.connect(server) as connection,
        ):
            connection.sendall(hello)
            connection.shutdown(socket.SHUT_WR)
            answer = origins.received(connection)
            line = sidecar.line(destination=server)
        allowed = choice == "allow"
        assert (b"" if allowed else bytes((21, 3, 3, 0, 2, 2, 49))) == answer
        assert ([hello] if allowed else []) == heard
        assert [ALLOWED, choice, "rule" if allowed else "ech"] == _fact(
            line, "host", "verdict", "reason"
        )

    @pytest.mark.parametrize(
        ("data", "protocol", "reason"),
        [
            (b"\x16\x03\x01\x00\x00", "tls", "hello_record_empty"),
            (b"\x16\x03\x01\xff\xff", "tls", "hello_record_too_long"),
            (b"\x17\x03\x03\x00\x01x", "tls", "hello_not_handshake"),
            (hello_maker.hello(hello_maker.server_name(b"a..b")), "tls", "invalid_host"),
            (hello_maker.hello(hello_maker.server_name(b"allowed.example\0")), "tls", None),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "http", None),
        ],
        ids=["empty", "long", "type", "dots", "nul", "hosts"],
    )
    def test_malformed(
        self,
        stage: Stage,
        by_name: Sidecar,
        port: int,
        data: bytes,
        protocol: str,
        reason: str | None,
    ) -> None:
        """What can't be trusted to name a host is denied with what is wrong with it."""
        server = SocketAddress(RIGHT, port)
        with Origin(stage.far, server, origins.echo) as origin:
            answer, was_reset = say(stage, server, data)
        start = b"\x15\x03\x03\x00\x02\x02\x31" if protocol == "tls" else b"HTTP/1.1 403"
        assert (start, False) == (answer[: len(start)], was_reset)
        assert [] == origin.peers
        line = by_name.line(destination=server)
        assert [protocol, "deny", None] == _fact(line, "protocol", "verdict", "host")
        assert line["reason"] == (reason or line["reason"])
        assert line["reason"].startswith(("hello_", "http_", "invalid_host"))

    def test_dripping(self, own: Stage, port: int) -> None:
        """A client that never says all of its hello is denied in the end."""
        settings = _NAMES.replace("silence = 20.0", "silence = 20.0\npatience = 0.3")
        server = SocketAddress(RIGHT, port)
        hello = hello_maker.hello(hello_maker.server_name(ALLOWED.encode()))
        with (
            proxied(own, settings, name="patience.toml") as sidecar,
            own.near.connect(server) as connection,
        ):
            for byte in hello[:-1]:
                if select.select([connection], [], [], 0.01)[0]:
                    break
                connection.send(bytes([byte]))
            assert bytes((21, 3, 3, 0, 2, 2, 49)) == connection.recv(99)
            line = sidecar.line(destination=server)
        assert ["tls", "deny", "peek_timeout", "denied"] == _fact(
            line, "protocol", "verdict", "reason", "end"
        )

    def test_reset_while_peeking(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A client that goes in the midst of its hello is a line."""
        server = SocketAddress(RIGHT, port)
        connection = stage.near.connect(server)
        connection.sendall(b"\x16\x03\x01\x02")
        clients.reset(connection)
        line = by_name.line(destination=server)
        assert ["client_reset", "not_judged", None, 0] == _fact(
            line, "end", "reason", "upstream", "sent"
        )

    def test_end_while_peeking(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A client that ends in the midst of its hello has no name."""
        server = SocketAddress(RIGHT, port)
        with stage.near.connect(server) as connection:
            connection.sendall(b"\x16\x03\x01\x02")
            connection.shutdown(socket.SHUT_WR)
            assert bytes((21, 3, 3, 0, 2, 2, 49)) == origins.received(connection)
        line = by_name.line(destination=server)
        assert ["tls", "no_name", "denied"] == _fact(line, "protocol", "reason", "end")


_GREETINGS = {
    "smtp": b"220 mail.example ESMTP\r\n",
    "mysql": b"\x4a\x00\x00\x00\x0a8.0.36\x00",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("greeting", _GREETINGS.values(), ids=_GREETINGS)
class TestServerFirst:
    """Servers that speak first are heard, though their clients say nothing."""

    @staticmethod
    def _hear(stage: Stage, server: SocketAddress, greeting: bytes) -> bytes:
        def greet(connection: socket.socket) -> None:
            connection.sendall(greeting)
            origins.echo(connection)

        with Origin(stage.far, server, greet), stage.near.connect(server) as connection:
            heard = connection.recv(len(greeting), socket.MSG_WAITALL)
            return heard + clients.exchange(connection, b"and I\n")

    def test_no_name_rules(self, own: Stage, port: int, greeting: bytes) -> None:
        """Where no rule is for a name nothing is waited for: the client never said a byte."""
        settings = (
            "[limits]\nsilence = 3600.0\npatience = 3600.0\n"
            f'[policy]\ndefault = "deny"\nallow = ["{RIGHT}/24"]\n'
        ).replace(f"{RIGHT}/24", "9.9.9.0/24")
        server = SocketAddress(RIGHT, port)
        with proxied(own, settings, name="addresses.toml") as sidecar:
            assert greeting + b"and I\n" == self._hear(own, server, greeting)
            line = sidecar.line(destination=server)
        assert ["tcp", None, "allow", "rule", str(server)] == _fact(
            line, "protocol", "host", "verdict", "reason", "upstream"
        )

    def test_deny_rules_for_names(self, own: Stage, port: int, greeting: bytes) -> None:
        """Where a name could be denied, the server's greeting ends the peek, not the clock."""
        settings = (
            "[limits]\nsilence = 3600.0\npatience = 3600.0\n"
            '[policy]\ndefault = "allow"\ndeny = ["other.example"]\n'
        )
        server = SocketAddress(RIGHT, port)
        with proxied(own, settings, name="denying.toml") as sidecar:
            assert greeting + b"and I\n" == self._hear(own, server, greeting)
            line = sidecar.line(destination=server)
        assert ["tcp", None, "allow"] == _fact(line, "protocol", "host", "verdict")

    def test_names_alone(self, own: Stage, port: int, greeting: bytes) -> None:
        """Where only a name could allow it, silence is no name, and is denied after `silence`."""
        settings = _NAMES.replace("silence = 20.0", "silence = 0.25")
        server = SocketAddress(RIGHT, port)
        with (
            proxied(own, settings, name="silence.toml") as sidecar,
            Origin(own.far, server, lambda made: made.sendall(greeting)) as origin,
        ):
            with own.near.connect(server) as connection:
                assert clients.Outcome(b"", reset=True) == clients.outcome_of_reading(connection)
            line = sidecar.line(destination=server)
            assert [] == origin.peers
        assert ["tcp", "deny", "no_name", "denied"] == _fact(
            line, "protocol", "verdict", "reason", "end"
        )

    def test_no_name_allowed(self, own: Stage, port: int, greeting: bytes) -> None:
        """With `no_name = "allow"` the server is heard at once."""
        settings = _NAMES.replace("silence = 20.0", "silence = 3600.0") + 'no_name = "allow"\n'
        server = SocketAddress(RIGHT, port)
        with proxied(own, settings, name="nameless.toml") as sidecar:
            assert greeting + b"and I\n" == self._hear(own, server, greeting)
            line = sidecar.line(destination=server)
        assert ["tcp", "allow", "no_name"] == _fact(line, "protocol", "verdict", "reason")


class TestAnswers:
    """Names that resolve to what the policy doesn't let them lead to."""

    def test_mixed(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """Of a public and a private answer only the public one is ever dialled."""
        dialled, public = SocketAddress(RIGHT, port), SocketAddress(WRONG, port)
        private = SocketAddress(HOME, port)
        with (
            Origin(stage.far, public, plain_page(WRONG)),
            Origin(stage.far, private, plain_page(HOME)) as inside,
        ):
            done = _curl(stage, f"http://mixed.example:{port}/", dialled)
            assert page_from(WRONG) == done.stdout, done
            assert str(public) == by_name.line(destination=dialled)["upstream"]
            done = _curl(stage, f"http://mixed.example:{port}/", private)
            assert "sidecar: denied: private_address" in done.stdout
            by_name.line(destination=private, verdict="deny", reason="private_address")
        assert [] == inside.peers

    def test_rebound(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A name with private answers alone leads nowhere."""
        server = SocketAddress(RIGHT, port)
        with Origin(stage.far, SocketAddress(HOME, port), plain_page(HOME)) as inside:
            done = _curl(stage, f"http://home.example:{port}/", server)
        assert "sidecar: denied: address_refused" in done.stdout
        assert [] == inside.peers
        by_name.line(destination=server, verdict="deny", reason="address_refused", end="denied")

    def test_private_name(self, stage: Stage, by_name: Sidecar, port: int) -> None:
        """A name that may be private leads to its private address."""
        server, home = SocketAddress(RIGHT, port), SocketAddress(HOME, port)
        with Origin(stage.far, home, plain_page(HOME)):
            done = _curl(stage, f"http://db.corp.example:{port}/", server)
            assert page_from(HOME) == done.stdout, done
        by_name.line(destination=server, verdict="allow", upstream=home)


class TestReload:
    """SIGHUP puts another policy into force."""

    def test_reload(self, own: Stage, port: int) -> None:
        """New flows are judged by the new policy, open ones live; a broken file changes nothing."""
        server = SocketAddress(RIGHT, port)
        before = '[policy]\ndefault = "deny"\nallow = ["9.9.9.1"]\n'
        listener = f'outbound = "transparent:{OUTBOUND}"\n'
        file = own.directory / "reload.toml"
        with (
            proxied(own, before, name="reload.toml") as sidecar,
            Origin(own.far, server, origins.echo),
            own.near.connect(server) as long_lived,
        ):
            assert b"one" == clients.exchange(long_lived, b"one")

            file.write_text(f'{listener}[policy]\ndefault = "deny"\n', encoding="ascii")
            _hang_up(sidecar, "policy reloaded", 1)
            assert (b"", True) == say(own, server, b"hello")
            sidecar.line(destination=server, verdict="deny", reason="default")
            assert b"two" == clients.exchange(long_lived, b"two")

            file.write_text(f"{listener}[policy\n", encoding="ascii")
            _hang_up(sidecar, "the policy in force stays", 1)
            file.write_text(f'{listener}[policy]\nallow = ["a..b"]\n', encoding="ascii")
            _hang_up(sidecar, "the policy in force stays", 2)
            (told,) = [text for text in sidecar.messages() if "a..b" in text]
            assert "reload.toml:3: policy.allow[0]" in told
            assert (b"", True) == say(own, server, b"hello")
            assert 2 == len(sidecar.wait_for_lines(2, destination=server, verdict="deny"))

            file.write_text(f"{listener}{before}", encoding="ascii")
            _hang_up(sidecar, "policy reloaded", 2)
            with own.near.connect(server) as again:
                assert b"three" == clients.exchange(again, b"three")
            assert b"four" == clients.exchange(long_lived, b"four")
            sidecar.line(destination=server, sent=5, end="closed")
        sidecar.line(destination=server, sent=10)

    def test_close(self, own: Stage, port: int) -> None:
        """With `open_flows = "close"` open flows that are denied now are ended."""
        server = SocketAddress(RIGHT, port)
        file = own.directory / "close.toml"
        with (
            proxied(own, '[policy]\ndefault = "allow"\n', name="close.toml") as sidecar,
            Origin(own.far, server, origins.echo),
            own.near.connect(server) as long_lived,
        ):
            assert b"one" == clients.exchange(long_lived, b"one")
            file.write_text(
                f'outbound = "transparent:{OUTBOUND}"\n'
                '[policy]\ndefault = "deny"\nopen_flows = "close"\n',
                encoding="ascii",
            )
            _hang_up(sidecar, "policy reloaded", 1)
            assert clients.Outcome(b"", reset=True) == clients.outcome_of_reading(long_lived)
            sidecar.line(
                destination=server,
                verdict="deny",
                reason="default",
                sent=3,
                received=3,
                end="denied",
            )


def _hang_up(sidecar: Sidecar, said: str, count: int) -> None:
    os.kill(sidecar.pid, signal.SIGHUP)
    sidecar.wait_until(lambda: sum(said in text for text in sidecar.printed) == count)


class TestSNIProxy:
    """`--sni-proxy`: to the name itself, on the listener's own port."""

    @pytest.fixture
    def sidecar(self, own: Stage, port: int) -> Iterator[Sidecar]:
        flags = ("--sni-proxy", f"tcp:{port}:interface={own.pair.near.ipv4}")
        with proxied(
            own, _NAMES, *flags, listener=None, ports=(port,), name="sni_proxy.toml"
        ) as made:
            yield made

    def test_sni(self, own: Stage, sidecar: Sidecar, port: int) -> None:
        """A TLS client is relayed to the name in its SNI, other names are denied."""
        listener, right = own.pair.near.at("ipv4", port), SocketAddress(RIGHT, port)
        with tls_origin(own, right, ALLOWED):
            command = ["curl", "-sS", "--cacert", own.authority.cafile, "--resolve"]
            done = own.far.run(
                [*command, f"{ALLOWED}:{port}:{listener.host}", f"https://{ALLOWED}:{port}/"]
            )
        assert page_from(RIGHT) == done.stdout
        line = sidecar.line(listener="sni-proxy")
        assert [ALLOWED, "sni", str(right), "allow", "rule", ALLOWED] == [
            *_fact(line, "host", "host_from", "upstream", "verdict", "reason"),
            line["rule"].split()[0],
        ]

    def test_host(self, own: Stage, sidecar: Sidecar, port: int) -> None:
        """An HTTP client is relayed to the name in its Host."""
        listener, right = own.pair.near.at("ipv4", port), SocketAddress(RIGHT, port)
        with Origin(own.far, right, plain_page(RIGHT)):
            command = ["curl", "-sS", "--header", f"Host: {ALLOWED}"]
            done = own.far.run([*command, f"http://{listener}/"])
        assert page_from(RIGHT) == done.stdout
        line = sidecar.line(listener="sni-proxy")
        assert [ALLOWED, "host", str(right)] == _fact(line, "host", "host_from", "upstream")

    def test_refused(self, own: Stage, sidecar: Sidecar, port: int) -> None:
        """Without a name, or with one that isn't allowed, it leads nowhere."""
        listener = own.pair.near.at("ipv4", port)
        done = own.far.run(["curl", "-sS", f"http://{listener}/"])
        assert "sidecar: denied: no_name\n" == done.stdout
        sidecar.line(verdict="deny", reason="no_name", host=None)
        wrong = SocketAddress(WRONG, port)
        with Origin(own.far, wrong, plain_page(WRONG)) as origin:
            done = own.far.run(["curl", "-sS", "-H", f"Host: {OTHER}", f"http://{listener}/"])
        assert done.stdout.startswith("sidecar: denied: "), done
        assert [] == origin.peers
        line = sidecar.line(verdict="deny", host=OTHER)
        assert [None, "denied"] == _fact(line, "upstream", "end")


def test_nothing_is_left(own: Stage, port: int) -> None:
    """Whatever happens to flows, each is one line, and no descriptor stays open."""
    right, wrong = SocketAddress(RIGHT, port), SocketAddress(WRONG, port)
    with (
        proxied(own, _NAMES, name="left.toml", identity=ROOT) as sidecar,
        tls_origin(own, right, ALLOWED),
    ):

        def round_of_all() -> int:
            assert page_from(RIGHT) == raw_hello_client(own, right, ALLOWED, _whole)
            # Spoofed, denied by name, malformed, raw, and given up.
            assert page_from(RIGHT) == raw_hello_client(own, wrong, ALLOWED, _bytewise)
            raw_hello_client(own, wrong, OTHER, _whole)
            say(own, wrong, b"\x16\x03\x01\x00\x00")
            say(own, wrong, _NO_TLS_NOR_HTTP)
            gone = own.near.connect(wrong)
            gone.sendall(b"\x16\x03")
            clients.reset(gone)
            return 6

        count = round_of_all()
        sidecar.wait_for_lines(count)
        before = sidecar.idle_descriptors()
        for _ in range(3):
            count += round_of_all()
        sidecar.wait_for_lines(count)
        eventually(before, sidecar.descriptors)
    assert count == len(sidecar.lines())
    assert count == len({line["id"] for line in sidecar.lines()})

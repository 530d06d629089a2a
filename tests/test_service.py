from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from cryptography import x509
from names.authority import Authority, serving_tls
from turning import Turning, turning
from twisted.internet.defer import maybeDeferred

from sidecar.addresses import SocketAddress
from sidecar.config import Config, HttpConfig, PolicyConfig, Verify
from sidecar.errors import CertificateMismatch, ConfigError
from sidecar.names.verifying import Certificate, Off, Redial
from sidecar.policy import Default, parse_rule
from sidecar.protocols.http.access import Access
from sidecar.service import SidecarService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.address import IPv4Address

DENY = Config(policy=PolicyConfig(default=Default.DENY))
ALLOW = Config(policy=PolicyConfig(default=Default.DENY, allow=(parse_rule("example.org"),)))
NAME = "allowed.example"
BROKEN = ConfigError("sidecar.toml", "policy.allow[0]", "a..b", "empty label")


@pytest.fixture(name="turning")
def _turning() -> Iterator[Turning]:
    before = signal.getsignal(signal.SIGHUP)
    with turning(threads=True) as made:
        yield made
    signal.signal(signal.SIGHUP, before)


def by_certificate(ca_file: str) -> Config:
    """Names are verified by certificates from these authorities."""
    return Config(policy=PolicyConfig(verify=Verify.CERTIFICATE, ca_file=ca_file))


class Loader:
    """A configuration file that changes."""

    def __init__(self) -> None:
        self.next: Config | Exception = DENY

    def __call__(self) -> Config:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next


class TestReload:
    @pytest.fixture
    def loader(self) -> Loader:
        return Loader()

    @pytest.fixture
    def service(self, turning: Turning, loader: Loader) -> Iterator[SidecarService]:
        made = SidecarService(turning.reactor, DENY, loader)
        made.privilegedStartService()
        made.startService()
        yield made
        turning.result(made.stopService())
        turning.settle()

    def test_signal(self, turning: Turning, service: SidecarService, loader: Loader) -> None:
        """SIGHUP puts what the file says now into force, and says so."""
        judge = service._judge
        assert judge is not None
        loader.next = ALLOW
        os.kill(os.getpid(), signal.SIGHUP)
        turning.until(lambda: judge.policy.allow)
        assert ALLOW.policy.allow == judge.policy.allow
        assert "policy reloaded: 1 allow and 0 deny rules" in turning.logged

    def test_broken(self, turning: Turning, service: SidecarService, loader: Loader) -> None:
        """What can't be used leaves the policy in force, with one line that says why."""
        judge = service._judge
        assert judge is not None
        before = judge.policy
        loader.next = BROKEN
        service.reload()
        assert before is judge.policy
        assert [f"the policy in force stays: {BROKEN}"] == turning.logged[-1:]
        assert 1 == len(turning.failures)
        turning.failures.clear()

    def test_verify(self, turning: Turning, service: SidecarService, loader: Loader) -> None:
        """How names are verified is part of the policy, and changes with it."""
        judge = service._judge
        assert judge is not None
        for verify, kind in (
            (Verify.REDIAL, Redial),
            (Verify.OFF, Off),
            (Verify.CERTIFICATE, Certificate),
        ):
            loader.next = Config(policy=PolicyConfig(verify=verify))
            service.reload()
            assert kind is type(judge.verifier)

    def test_earlier_probers(
        self, turning: Turning, service: SidecarService, loader: Loader, tmp_path: Path
    ) -> None:
        """However often a reload makes a new prober, only those stay that somebody waits for."""
        loader.next = by_certificate(Authority(tmp_path).cafile)
        service.reload()
        judge = service._judge
        assert judge is not None
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = SocketAddress.from_kernel(silent.getsockname())
            waiting = maybeDeferred(judge.verifier.verify, NAME, address, lambda _: True)
            for _ in range(3):
                service.reload()
            assert [True, False] == [each.busy for each in service._probers]
            waiting.addErrback(lambda _: None).cancel()
            service.reload()
            assert [False] == [each.busy for each in service._probers]

    def test_stopped(self, turning: Turning, loader: Loader) -> None:
        """A signal to a service that has stopped changes nothing."""
        service = SidecarService(turning.reactor, DENY, loader)
        service.privilegedStartService()
        turning.result(service.stopService())
        service.reload()
        assert service._judge is None
        turning.settle()


@pytest.mark.parametrize(
    ("verify", "kind"),
    [(Verify.REDIAL, Redial), (Verify.CERTIFICATE, Certificate), (Verify.OFF, Off)],
)
def test_verifier(turning: Turning, verify: Verify, kind: type) -> None:
    """Names are verified in the way that the configuration says."""
    config = Config(policy=PolicyConfig(verify=verify))
    service = SidecarService(turning.reactor, config, lambda: config)
    service.privilegedStartService()
    assert service._judge is not None
    assert kind is type(service._judge.verifier)
    turning.result(service.stopService())
    turning.settle()


class TestAuthorities:
    """`ca_file`: whose certificates prove a name."""

    @pytest.fixture
    def authorities(self, tmp_path: Path) -> tuple[Authority, Authority]:
        """Two, the second of which nobody trusts at first."""
        made = []
        for name in ("ours", "other"):
            (tmp_path / name).mkdir()
            made.append(Authority(tmp_path / name))
        return made[0], made[1]

    @pytest.fixture
    def file(self, tmp_path: Path, authorities: tuple[Authority, Authority]) -> Path:
        path = tmp_path / "authorities.pem"
        path.write_bytes(Path(authorities[0].cafile).read_bytes())
        return path

    @pytest.fixture
    def service(self, turning: Turning, file: Path) -> Iterator[SidecarService]:
        made = SidecarService(turning.reactor, by_certificate(str(file)), source="sidecar.toml")
        made.privilegedStartService()
        yield made
        turning.result(made.stopService())
        turning.settle()

    def verify(self, turning: Turning, service: SidecarService, address: SocketAddress) -> None:
        """Have the policy in force verify the address of a server; raises what is wrong."""
        judge = service._judge
        assert judge is not None
        turning.result(maybeDeferred(judge.verifier.verify, NAME, address, lambda _: True))

    def test_trusted(
        self,
        turning: Turning,
        service: SidecarService,
        authorities: tuple[Authority, Authority],
    ) -> None:
        """A certificate proves a name if it comes from the file's authority, and only then."""
        ours, other = (each.issue(x509.DNSName(NAME)) for each in authorities)
        with serving_tls(ours) as server:
            self.verify(turning, service, server.address)
        with serving_tls(other) as server, pytest.raises(CertificateMismatch):
            self.verify(turning, service, server.address)

    def test_reload(
        self,
        turning: Turning,
        service: SidecarService,
        file: Path,
        authorities: tuple[Authority, Authority],
    ) -> None:
        """A reload reads the file again; what can't be used leaves the old ones trusted."""
        ours, other = authorities
        content = file.read_bytes()
        with serving_tls(ours.issue(x509.DNSName(NAME))) as server:
            self.verify(turning, service, server.address)
            for broken in (b"nothing", content + content[: len(content) // 2]):
                file.write_bytes(broken)
                service.reload()
                assert (
                    f"the policy in force stays: sidecar.toml: policy.ca_file = {str(file)!r}: "
                    "has no certificate in PEM format, or a broken one"
                ) == turning.logged[-1]
                self.verify(turning, service, server.address)
            turning.failures.clear()
            file.write_bytes(Path(other.cafile).read_bytes())
            service.reload()
            with pytest.raises(CertificateMismatch):
                self.verify(turning, service, server.address)
            file.write_bytes(content + Path(other.cafile).read_bytes())
            service.reload()
            self.verify(turning, service, server.address)

    @pytest.mark.parametrize("verify", Verify)
    def test_missing(
        self, turning: Turning, capfd: pytest.CaptureFixture[str], verify: Verify
    ) -> None:
        """A file that isn't there is found at start, also where it isn't needed yet."""
        policy = PolicyConfig(verify=verify, ca_file="/nowhere/x.pem")
        service = SidecarService(turning.reactor, Config(policy=policy), source="sidecar.toml")
        with pytest.raises(SystemExit):
            service.privilegedStartService()
        turning.result(service.stopService())
        turning.settle()


class TestHttpProxy:
    def test_life(self, turning: Turning) -> None:
        """The HTTP proxy asks for passwords, and what it keeps ends with the service."""
        http = HttpConfig(auth=("memory:alice:sesame",), realm="here")
        config = Config(http_proxy="tcp:0:interface=127.0.0.1", http=http, mark=0)
        service = SidecarService(turning.reactor, config)
        service.privilegedStartService()
        service.startService()
        listening = cast("IPv4Address", service._ports[0].getHost())
        with socket.create_connection(("127.0.0.1", listening.port)) as client:
            client.sendall(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
            client.setblocking(False)
            heard = b""

            def answered() -> bool:
                nonlocal heard
                with suppress(BlockingIOError):
                    heard += client.recv(4096)
                return b"\r\n\r\n" in heard

            turning.until(answered, client)
            assert heard.startswith(b"HTTP/1.1 407 ")
            assert b'Basic realm="here"' in heard
        turning.settle()
        turning.result(service.stopService())
        turning.settle()

    def test_reload(self, turning: Turning) -> None:
        """SIGHUP has every password checked anew."""
        http = HttpConfig(auth=("memory:alice:sesame",))
        config = Config(http_proxy="tcp:0:interface=127.0.0.1", http=http, mark=0)
        service = SidecarService(turning.reactor, config)
        service.privilegedStartService()
        authenticator = service._authenticator
        assert authenticator is not None
        fields = [(b"Proxy-Authorization", b"Basic YWxpY2U6c2VzYW1l")]
        assert Access.GRANTED is authenticator.authenticate(fields)
        assert 1 == len(authenticator._recent)
        service.reload()
        assert 0 == len(authenticator._recent)
        turning.result(service.stopService())

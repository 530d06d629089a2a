"""Through other people's proxies: tinyproxy and squid, with TLS inside, and without."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import pytest
from certificates import Identity, make_identity
from integration.netns import DEADLINE, Namespace
from integration.origins import Origin, bulk, bulk_digest, echo, http_page
from integration.proxy import Program, running
from turning import Turning, turning
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone

from sidecar.addresses import SocketAddress, parse_authority
from sidecar.errors import DialError, TunnelRefused, TunnelUnauthorized
from sidecar.names.resolving import SystemResolver
from sidecar.protocols.through import reach_through
from sidecar.runtime import Runtime
from sidecar.upstream_proxy import UpstreamProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IStreamClientEndpoint, ITCPTransport
    from twisted.python.failure import Failure

pytestmark = pytest.mark.thorough

PORT = 3128
_CLIENT = Path(__file__).with_name("tunnel_client.py")
BANNER = b"220 who speaks first\r\n"
USER, PASSWORD = "me", "a secret: this one"
# Tinyproxy takes letters and digits alone, of a configuration.
_PLAIN = "asecretthisone"
# Both refuse it.
FORBIDDEN = "127.0.0.1:25"


@dataclass(frozen=True)
class Proxy:
    """How one of them is run.

    Attributes:
        command: Without its configuration's path.
        configuration: With places for the password file and what it takes to want it.
        credentials: What makes it want a user and a password.
    """

    command: tuple[str, ...]
    configuration: str
    credentials: str


# Neither has IPv6 turned off, nor a cache.
PROXIES = {
    "tinyproxy": Proxy(
        ("tinyproxy", "-d", "-c"),
        f"Port {PORT}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nAllow 127.0.0.1\n"
        "ConnectPort 443\nConnectPort 80\nConnectPort 22\n{credentials}",
        f"BasicAuth {USER} {_PLAIN}\n",
    ),
    "squid": Proxy(
        ("squid", "-N", "-f"),
        f"http_port 127.0.0.1:{PORT}\npid_filename none\ncache deny all\naccess_log none\n"
        "cache_log {directory}/cache.log\nvisible_hostname proxy.example\n"
        "shutdown_lifetime 0 seconds\ndns_timeout 1 second\ncoredump_dir none\n"
        "max_filedescriptors 1024\n"
        "acl refused port 25\nhttp_access deny refused\n{credentials}http_access allow all\n",
        "auth_param basic program /usr/lib/squid/basic_ncsa_auth {directory}/users\n"
        "acl known proxy_auth REQUIRED\nhttp_access deny !known\n",
    ),
}


def password_for(name: str) -> str:
    return _PLAIN if name == "tinyproxy" else PASSWORD


@contextmanager
def proxy(namespace: Namespace, name: str, *, credentials: bool = False) -> Iterator[None]:
    """Run one of them, on 127.0.0.1."""
    # Squid gives up root, and pytest closes its own directories to others.
    with TemporaryDirectory() as directory:
        yield from _proxy(namespace, PROXIES[name], name, Path(directory), credentials)


def _proxy(
    namespace: Namespace, kind: Proxy, name: str, directory: Path, credentials: bool
) -> Iterator[None]:
    directory.chmod(0o777)
    users = directory / "users"
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", "-stdin"],
        input=password_for(name),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    users.write_text(f"{USER}:{hashed}")
    users.chmod(0o644)
    wants = kind.credentials.format(directory=directory) if credentials else ""
    configuration = directory / f"{name}.conf"
    configuration.write_text(kind.configuration.format(credentials=wants, directory=directory))
    program = Program(namespace, [*kind.command, str(configuration)], cwd=directory)
    try:
        program.wait_until(lambda: listens(namespace))
        yield
    finally:
        program.kill()


def listens(namespace: Namespace) -> bool:
    done = namespace.run(["ss", "-Htln", f"sport = :{PORT}"])
    return str(PORT) in done.stdout


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    if missing := [name for name in PROXIES if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def namespace(_namespaces: None) -> Iterator[Namespace]:
    made = Namespace("up")
    yield made
    made.remove()


@pytest.fixture(scope="module", params=list(PROXIES))
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def started(namespace: Namespace, name: str) -> Iterator[str]:
    """A proxy without credentials; its name."""
    with proxy(namespace, name):
        yield name


@pytest.fixture(name="turning")
def _turning(namespace: Namespace) -> Iterator[Turning]:
    with namespace.entered(), turning(threads=True) as made:
        yield made


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


class Talk(Protocol):
    """Says one thing, and keeps what it hears."""

    def __init__(self, says: bytes = b"") -> None:
        self._says = says
        self.heard = b""
        self.lost: Deferred[None] = Deferred()

    @property
    def tcp(self) -> ITCPTransport:
        return cast("ITCPTransport", self.transport)

    def connectionMade(self) -> None:
        if self._says:
            self.tcp.write(self._says)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


def talk(turning: Turning, endpoint: IStreamClientEndpoint, says: bytes, hears: bytes) -> None:
    """Connect, say something, hear what is expected, and close."""
    protocol = Talk(says)
    turning.result(connectProtocol(endpoint, protocol))
    turning.until(lambda: len(protocol.heard) >= len(hears))
    assert hears == protocol.heard
    protocol.tcp.loseConnection()
    turning.result(protocol.lost)


@contextmanager
def origin(
    namespace: Namespace, at: str, handle: Callable[[socket.socket], None]
) -> Iterator[Origin]:
    with Origin(namespace, SocketAddress.parse(at), handle) as made:
        yield made


def greet(connection: socket.socket) -> None:
    """Speak first, then listen."""
    connection.sendall(BANNER)
    echo(connection)


def in_tls(identity: Identity) -> Callable[[socket.socket], None]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(identity.keyfile)

    def handle(connection: socket.socket) -> None:
        # Clients may not like the certificate.
        with suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(BANNER)
            echo(tls)

    return handle


class TestEndpoint:
    @pytest.mark.parametrize("destination", ["127.0.0.1:22", "[::1]:22"])
    def test_server_speaks_first(
        self, turning: Turning, namespace: Namespace, started: str, destination: str
    ) -> None:
        """The protocol hears all that the server says, from its first byte."""
        with origin(namespace, destination, greet):
            text = f"connect:127.0.0.1:{PORT}:{destination}"
            for _ in range(20):
                endpoint = clientFromString(turning.reactor, text)
                talk(turning, endpoint, b"ping", BANNER + b"ping")

    def test_name(self, turning: Turning, namespace: Namespace, started: str) -> None:
        """A name is resolved by the proxy."""
        with origin(namespace, "127.0.0.1:22", greet):
            text = f"connect:localhost:{PORT}:localhost:22"
            talk(turning, clientFromString(turning.reactor, text), b"ping", BANNER + b"ping")

    @pytest.mark.parametrize(
        ("certified", "expected"), [("localhost", "100000"), ("other.example", "Verif")]
    )
    def test_tls(
        self, namespace: Namespace, started: str, identity: Identity, certified: str, expected: str
    ) -> None:
        """TLS goes round it as round any endpoint, and the certificate is the server's."""
        endpoint = f"connect:127.0.0.1:{PORT}:localhost:443"
        arguments = [endpoint, certified, identity.cafile, BANNER.decode()]
        with origin(namespace, "127.0.0.1:443", in_tls(identity)):
            done = namespace.run([sys.executable, str(_CLIENT), *arguments])
        assert expected in done.stdout

    @pytest.mark.parametrize("destination", [FORBIDDEN, "127.0.0.1:80", "no-such-name.invalid:80"])
    def test_refused(self, turning: Turning, started: str, destination: str) -> None:
        """What the proxy doesn't reach, or doesn't want to, is an error with its status."""
        endpoint = clientFromString(turning.reactor, f"connect:127.0.0.1:{PORT}:{destination}")
        with pytest.raises(TunnelRefused) as caught:
            turning.result(connectProtocol(endpoint, Talk()))
        statuses = {403} if destination == FORBIDDEN else {500, 502, 503, 504}
        assert caught.value.status in statuses

    def test_forward(self, namespace: Namespace, started: str, outside: Path) -> None:
        """`--forward` to a connect: endpoint, and a client that knows nothing of it."""
        arguments = ["--forward", f"tcp:8080 connect:127.0.0.1:{PORT}:127.0.0.1:80"]
        with (
            origin(namespace, "127.0.0.1:80", http_page),
            running(namespace, arguments, cwd=outside, ports=[8080]),
        ):
            done = namespace.run(["curl", "-sS", "http://127.0.0.1:8080/"])
            assert "a page from" in done.stdout


@pytest.mark.parametrize("name", list(PROXIES))
def test_credentials(tmp_path: Path, name: str) -> None:
    """A proxy that wants credentials gets them; others, or none, are its 407."""
    file = tmp_path / "password"
    file.write_text(password_for(name) + "\n")
    tunnel = f"connect:127.0.0.1:{PORT}:127.0.0.1:22"
    right = f"{tunnel}:user={USER}:password-file={file}"
    namespace = Namespace("uc")
    try:
        with (
            proxy(namespace, name, credentials=True),
            origin(namespace, "127.0.0.1:22", greet),
            namespace.entered(),
            turning(threads=True) as reactor,
        ):
            talk(reactor, clientFromString(reactor.reactor, right), b"ping", BANNER + b"ping")
            for wrong in (tunnel, f"{tunnel}:user={USER}:password=wrong"):
                endpoint = clientFromString(reactor.reactor, wrong)
                with pytest.raises(TunnelUnauthorized, match=r"40[17]"):
                    reactor.result(connectProtocol(endpoint, Talk()))
    finally:
        namespace.remove()


class TestSockets:
    def reached(self, turning: Turning, runtime: Runtime, authority: str) -> socket.socket:
        resolver = SystemResolver(turning.reactor, turning.reactor)
        outcomes: list[socket.socket | DialError] = []
        reach_through(
            runtime,
            resolver,
            UpstreamProxy.parse(f"http://localhost:{PORT}"),
            parse_authority(authority),
            lambda outcome, _: outcomes.append(outcome),
        )
        turning.until(lambda: outcomes)
        resolver.close()
        (outcome,) = outcomes
        if isinstance(outcome, DialError):
            raise outcome
        outcome.settimeout(DEADLINE)
        return outcome

    @pytest.fixture
    def runtime(self, turning: Turning) -> Iterator[Runtime]:
        made = Runtime.make(turning.reactor, mark=None)
        yield made
        made.close()

    def test_server_speaks_first(
        self, turning: Turning, runtime: Runtime, namespace: Namespace, started: str
    ) -> None:
        """The socket has all that the server says."""
        with (
            origin(namespace, "127.0.0.1:22", greet),
            self.reached(turning, runtime, "127.0.0.1:22") as sock,
        ):
            assert BANNER == sock.recv(len(BANNER), socket.MSG_WAITALL)
            sock.sendall(b"ping")
            assert b"ping" == sock.recv(4, socket.MSG_WAITALL)

    def test_bulk(
        self, turning: Turning, runtime: Runtime, namespace: Namespace, started: str
    ) -> None:
        """Many bytes come through as they are, the first of them included."""

        def send(connection: socket.socket) -> None:
            for block in bulk():
                connection.sendall(block)

        digest = hashlib.sha256()
        with (
            origin(namespace, "127.0.0.1:80", send),
            self.reached(turning, runtime, "127.0.0.1:80") as sock,
        ):
            while data := sock.recv(1 << 20):
                digest.update(data)
        assert bulk_digest() == digest.hexdigest()

    def test_refused(self, turning: Turning, runtime: Runtime, started: str) -> None:
        """What the proxy doesn't want is an error with its status."""
        with pytest.raises(TunnelRefused) as caught:
            self.reached(turning, runtime, FORBIDDEN)
        assert 403 == caught.value.status

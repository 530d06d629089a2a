"""Names, addresses and certificates on a wire, and a sidecar that judges by them."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from cryptography import x509
from integration.origins import Origin, received
from integration.proxy import OUTBOUND, ROOT, Identity, applied, running
from names.authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from integration.netns import Namespace, Pair
    from integration.proxy import Sidecar

    from sidecar.addresses import SocketAddress

__all__ = [
    "ALLOWED",
    "HOME",
    "OTHER",
    "RIGHT",
    "RIGHT6",
    "WRONG",
    "Stage",
    "page_from",
    "plain_page",
    "proxied",
    "raw_hello_client",
    "say",
    "set_up",
    "tls_origin",
]

# Public addresses, on a wire that leads nowhere else.
RIGHT, WRONG, RIGHT6 = "9.9.9.1", "9.9.9.2", "2620:fe::1"
# A private one: the far host's own.
HOME = "10.71.0.2"
ALLOWED, OTHER = "allowed.example", "other.example"
_HOSTS = f"""\
127.0.0.1 localhost
{RIGHT} {ALLOWED}
{RIGHT6} {ALLOWED}
{WRONG} {OTHER}
{HOME} mixed.example
{WRONG} mixed.example
{HOME} home.example
{HOME} db.corp.example
"""
# In a mount namespace of its own, another /etc/hosts; and several addresses per name.
_WITH_HOSTS = (
    'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/host.conf" /etc/host.conf && exec "$@"'
)


@dataclass(frozen=True)
class Stage:
    """Two hosts, of which the far one has all the addresses.

    Attributes:
        pair: The hosts.
        directory: Which everybody may read.
        authority: Whom sidecar trusts.
        certificates: The file with key and certificate of each name.
    """

    pair: Pair
    directory: Path
    authority: Authority
    certificates: dict[str, str]

    @property
    def near(self) -> Namespace:
        """Where client and sidecar are."""
        return self.pair.near.namespace

    @property
    def far(self) -> Namespace:
        """Where the servers are."""
        return self.pair.far.namespace


def set_up(pair: Pair, directory: Path) -> Stage:
    """Give the far host its addresses, and write the files."""
    for address in (f"{RIGHT}/32", f"{WRONG}/32", f"{RIGHT6}/128"):
        pair.far.namespace.ip("addr", "add", address, "dev", "lo")
    # One for each module: their namespaces have one name, in turn.
    made = Path(mkdtemp(prefix=pair.near.namespace.name, dir=directory))
    made.chmod(0o755)
    (made / "hosts").write_text(_HOSTS, encoding="ascii")
    (made / "host.conf").write_text("multi on\n", encoding="ascii")
    authority = Authority(made)
    names = (ALLOWED, OTHER)
    return Stage(
        pair, made, authority, {name: authority.issue(x509.DNSName(name)) for name in names}
    )


@contextmanager
def proxied(
    stage: Stage,
    settings: str,
    *flags: str,
    mode: str = "tproxy",
    identity: Identity = ROOT,
    listener: str | None = f'outbound = "transparent:{OUTBOUND}"',
    ports: Sequence[int] = (OUTBOUND,),
    name: str = "sidecar.toml",
) -> Iterator[Sidecar]:
    """Run a sidecar with these settings, and intercept what the near host sends.

    Args:
        stage: Where.
        settings: TOML below the listener.
        flags: For `twistd sidecar`.
        mode: How connections are intercepted.
        identity: As whom it runs.
        listener: TOML; without an outbound one nothing is intercepted.
        ports: Where it listens.
        name: The configuration's file.
    """
    file = stage.directory / name
    file.write_text(f"{listener or ''}\n{settings}", encoding="utf-8")
    wrapper = [
        *("env", f"SSL_CERT_FILE={stage.authority.cafile}"),
        *("unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(stage.directory)),
    ]
    exclusion = {
        "tproxy": ("--exclude-mark", "0x539"),
        "redirect": ("--exclude-uid", str(identity.uid)),
    }[mode]
    with ExitStack() as stack:
        sidecar = stack.enter_context(
            running(
                stage.near,
                ("--config", str(file), *flags),
                cwd=stage.directory,
                ports=ports,
                identity=identity,
                wrapper=wrapper,
            )
        )
        if listener is not None and "outbound" in listener:
            stack.enter_context(applied(stage.near, "--mode", mode, *exclusion))
        yield sidecar


def page_from(host: str) -> str:
    """What the server at an address answers."""
    return f"a page from {host}\n"


def _answer(connection: socket.socket, host: str) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        part = connection.recv(65536)
        if not part:
            return
        request += part
    body = page_from(host).encode()
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def plain_page(host: str) -> Callable[[socket.socket], None]:
    """Answer HTTP with the page."""
    return lambda connection: _answer(connection, host)


def tls_origin(
    stage: Stage, address: SocketAddress, name: str, seen: list[str | None] | None = None
) -> Origin:
    """An HTTPS server that takes every version of TLS.

    Args:
        stage: Where.
        address: On which address and port.
        name: Whose certificate it shows.
        seen: Gets the SNI of each handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stage.certificates[name])
    context.set_ciphers("ALL:@SECLEVEL=0")
    with _deprecated():
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_alpn_protocols(["http/1.1"])

    def named(_: object, sni: str | None, __: object) -> None:
        if seen is not None:
            seen.append(sni)

    context.sni_callback = named

    def handle(connection: socket.socket) -> None:
        # Probes and refused clients break off.
        with (
            suppress(ssl.SSLError, ConnectionError),
            context.wrap_socket(connection, server_side=True) as tls,
        ):
            _answer(tls, address.host)
            # Hears the client out: closing with bytes unread would be a reset.
            tls.unwrap()

    return Origin(stage.far, address, handle)


@contextmanager
def _deprecated() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def raw_hello_client(
    stage: Stage,
    server: SocketAddress,
    sni: str | None,
    cut: Callable[[bytes], list[bytes]],
    *,
    alpn: Sequence[str] = ("h2", "http/1.1"),
) -> str:
    """Fetch a page over TLS with a ClientHello that is cut into pieces.

    Args:
        stage: Where.
        server: Where to.
        sni: The name; its certificate is checked.
        cut: Makes the pieces, each sent on its own.
        alpn: What is offered.

    Returns:
        The page, or what the alert said.
    """
    context = ssl.create_default_context(cafile=stage.authority.cafile)
    context.check_hostname = sni is not None
    context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=sni)
    with stage.near.connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        for piece in cut(outgoing.read()):
            connection.sendall(piece)
        text = b""
        asked = False
        while True:
            try:
                tls.do_handshake()
                if not asked:
                    tls.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    asked = True
                while part := tls.read(65536):
                    text += part
                break
            except ssl.SSLWantReadError:
                _pump(connection, incoming, outgoing)
            except ssl.SSLEOFError:
                break
            except ssl.SSLError as error:
                return error.reason or str(error)
    return text.partition(b"\r\n\r\n")[2].decode()


def _pump(connection: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
    """Send what TLS has to say, and wait for what it is told."""
    if data := outgoing.read():
        connection.sendall(data)
    if part := connection.recv(65536):
        incoming.write(part)
    else:
        incoming.write_eof()


def say(stage: Stage, server: SocketAddress, data: bytes) -> tuple[bytes, bool]:
    """Say something; return what comes back and whether the end was a reset."""
    try:
        # A denial by address may come before connect() has looked.
        with stage.near.connect(server) as connection:
            connection.sendall(data)
            return received(connection), False
    except ConnectionResetError:
        return b"", True

"""A certificate authority of the tests' own, and TLS servers with its certificates."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import PATIENCE

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Authority", "Server", "serving", "serving_tls"]

_NOW = dt.datetime.now(dt.timezone.utc)
_DAY = dt.timedelta(days=1)

# What Python 3.13 asks of an authority by default (VERIFY_X509_STRICT; RFC 5280 §4.2.1.3).
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Issues certificates.

    Args:
        directory: For its files.

    Attributes:
        cafile: Its own certificate (PEM).
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("test authority")
        builder = _builder(self._name, self._name, self._key, _NOW - _DAY, _NOW + _DAY)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.cafile = str(directory / "authority.pem")
        (directory / "authority.pem").write_bytes(_pem(certificate))

    def issue(
        self,
        *names: x509.GeneralName,
        common_name: str = "test server",
        start: dt.timedelta = -_DAY,
        end: dt.timedelta = _DAY,
        purpose: x509.ObjectIdentifier | None = None,
        self_signed: bool = False,
        more: Sequence[x509.UnrecognizedExtension] = (),
    ) -> str:
        """Make a certificate and its key.

        Args:
            names: The subjectAltName; none for no such extension.
            common_name: The subject's.
            start, end: The validity, from now.
            purpose: The only extended key usage.
            self_signed: Signed by its own key instead of the authority's.
            more: Other extensions.

        Returns:
            The path of a file with both (PEM).
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _common_name(common_name)
        issuer = subject if self_signed else self._name
        builder = _builder(subject, issuer, key, _NOW + start, _NOW + end)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        issuer_key = (key if self_signed else self._key).public_key()
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())
        path = self._directory / f"{certificate.serial_number:x}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.write_bytes(private + _pem(certificate))
        return str(path)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass
class Server:
    """A server in a thread.

    Attributes:
        address: Where it listens.
        peers: Who connected, in order.
        names: The SNI of each handshake.
        protocols: What ALPN agreed on in each handshake that came to its end.
        after: What each client sent after it.
        hellos: What each client said first, to servers that keep that.
        release: Set when the test is over, for servers that stall.
    """

    address: SocketAddress
    peers: list[tuple[str, int]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    protocols: list[str | None] = field(default_factory=list)
    after: list[bytes] = field(default_factory=list)
    hellos: list[bytes] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(
    serve: Callable[[Server, socket.socket], None], host: str = "127.0.0.1"
) -> Iterator[Server]:
    """Serve one connection after another in a thread.

    Args:
        serve: Given each connection, which is closed afterwards; OSErrors are its end.
        host: An address of lo.
    """
    with socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as listener:
        server = Server(SocketAddress.from_kernel(listener.getsockname()))

        def run() -> None:
            while True:
                try:
                    connection, peer = listener.accept()
                except OSError:
                    return
                server.peers.append(peer[:2])
                with connection, suppress(OSError):
                    connection.settimeout(PATIENCE)
                    serve(server, connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            # Ends accept(), which closing alone doesn't.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def serving_tls(
    certificate: str,
    host: str = "127.0.0.1",
    *,
    version: ssl.TLSVersion | None = None,
    refuse: bool = False,
    begin: threading.Event | None = None,
) -> Iterator[Server]:
    """Serve TLS.

    Args:
        certificate: A file with certificate and key.
        host: An address of lo.
        version: The only one spoken.
        refuse: Answer every name with the alert unrecognized_name.
        begin: When to answer anybody; None for at once.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        context.minimum_version = context.maximum_version = version

    def serve(server: Server, connection: socket.socket) -> None:
        def named(_: object, name: str | None, __: object) -> int | None:
            server.names.append(name)
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if refuse else None

        if begin is not None:
            begin.wait(PATIENCE)
        context.sni_callback = named
        with context.wrap_socket(connection, server_side=True) as tls:
            server.protocols.append(tls.selected_alpn_protocol())
            # As TLS alone sees it: an alert would be an SSLError, not an end.
            with suppress(ConnectionResetError, ssl.SSLEOFError):
                server.after.append(tls.recv(1))
                return
            server.after.append(b"")

    with serving(serve, host) as server:
        yield server

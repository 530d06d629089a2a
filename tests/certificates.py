"""A certificate for localhost that the tests make for themselves."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.ssl import CertificateOptions, PrivateCertificate

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Identity", "make_identity"]


@dataclass(frozen=True)
class Identity:
    """A TLS server's key and certificate.

    Attributes:
        cafile: The certificate, for who is to trust it (PEM).
        keyfile: Key and certificate (PEM).
        options: The same for Twisted.
    """

    cafile: str
    keyfile: str
    options: CertificateOptions


def make_identity(directory: Path) -> Identity:
    """Make a self-signed certificate for localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    cafile = directory / "certificate.pem"
    cafile.write_bytes(public)
    keyfile = directory / "key.pem"
    keyfile.write_bytes(private + public)
    options = PrivateCertificate.loadPEM(private + public).options()
    return Identity(str(cafile), str(keyfile), options)

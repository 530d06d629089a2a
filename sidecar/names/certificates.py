"""Which certificates are valid for a name?

OpenSSL checks the chain against the trusted authorities, that the server has the key,
and the dates; service-identity checks the name (RFC 6125, RFC 9525: DNS names of the
subjectAltName only, a wildcard only as the whole leftmost label). Revocation is not
checked.
"""

from __future__ import annotations

import os
import re
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from OpenSSL import SSL
from service_identity.cryptography import verify_certificate_hostname
from service_identity.exceptions import CertificateError
from service_identity.exceptions import VerificationError as NameDiffers

from sidecar.errors import TrustError

if TYPE_CHECKING:
    from OpenSSL.crypto import X509

__all__ = ["fault_of_chain", "fault_of_names", "trust"]

# What OpenSSL looks for in a directory (openssl-rehash(1)).
_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+\Z")
# openssl/x509_vfy.h
_WORDS = {
    SSL.X509VerificationCodes.ERR_CERT_NOT_YET_VALID: "it is not valid yet",
    SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED: "it has expired",
    SSL.X509VerificationCodes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is self-signed",
    SSL.X509VerificationCodes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "its authority is not trusted",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT: "its authority is not known",
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "its authority is not known",
    SSL.X509VerificationCodes.ERR_INVALID_CA: "it is signed by what is no authority",
    SSL.X509VerificationCodes.ERR_INVALID_PURPOSE: "it is not for servers",
}


def trust(path: str | None = None) -> SSL.Context:
    """Load certificate authorities, once for all handshakes.

    Args:
        path: A file of them (PEM), the only ones that count; None for the platform's.

    Raises:
        TrustError: The file can't be read, or has no certificate.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER, _verified)
    if path is None:
        _trust_as_platform_does(context)
        return context
    try:
        # OpenSSL's own errors for files are riddles.
        with open(path, "rb"):  # noqa: PTH123 - as the message quotes it
            pass
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise TrustError(path, f"can't be read: {problem}") from None
    except SSL.Error:
        raise TrustError(path, "has no certificate in PEM format, or a broken one") from None
    return context


def _trust_as_platform_does(context: SSL.Context) -> None:
    """Load all that OpenSSL would look for later, file by file, in its directory.

    Who may write there later (``SSL_CERT_DIR`` may be anybody's) makes nobody trusted.
    """
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        # Other systems' usual places.
        context.set_default_verify_paths()
        return
    files = [] if paths.cafile is None else [paths.cafile]
    if paths.capath is not None:
        with suppress(OSError):
            files += [each.path for each in os.scandir(paths.capath) if _HASHED.match(each.name)]
    for file in files:
        # One that can't be read, or has none, is no reason to trust nobody; as in OpenSSL.
        with suppress(SSL.Error):
            context.load_verify_locations(file)


def _verified(connection: SSL.Connection, _: X509, code: int, depth: int, good: int) -> bool:
    """Take note of what OpenSSL found wrong with a chain; it is the judge of that."""
    if not good and connection.get_app_data() is None:
        words = _WORDS.get(code, f"OpenSSL's verification error {code}")
        connection.set_app_data(words if depth == 0 else f"above it: {words}")
    return bool(good)


def fault_of_chain(connection: SSL.Connection) -> str | None:
    """What OpenSSL found wrong with the chain that a connection's handshake has shown."""
    fault: str | None = connection.get_app_data()
    return fault


def fault_of_names(certificate: X509, host: str) -> str | None:
    """What is wrong with a certificate's names.

    Args:
        certificate: The server's, whose chain is good.
        host: Which name it should have; canonical.
    """
    try:
        verify_certificate_hostname(certificate.to_cryptography(), host)
    except NameDiffers:
        return "it is for other names"
    except CertificateError:
        return "it has no usable name"
    except Exception as error:  # noqa: BLE001 - what no parser can read proves nothing
        return f"its names can't be read: {type(error).__name__}"
    return None

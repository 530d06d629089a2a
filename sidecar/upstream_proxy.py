"""Which HTTP proxy our own connections go through: what ``--upstream-proxy`` names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from sidecar.addresses import Authority, parse_authority
from sidecar.errors import AddressError
from sidecar.no_proxy import NoProxy
from sidecar.wire.basic import basic_authorization

if TYPE_CHECKING:
    from sidecar.addresses import HostName, IPAddress

__all__ = ["UpstreamProxy"]

_FORM = "write http://proxy.example:3128 or http://user:password@proxy.example:3128"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
# RFC 3986 §3.2.1. Everything else is percent-encoded, the @ above all: what follows the
# first is the host for some programs, what follows the last for others.
_USER_INFO = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """An HTTP proxy that is dialled in place of destinations.

    Attributes:
        host: A name, which is resolved for every connection, or an address.
        port: 1 to 65535.
        authorization: The value of Proxy-Authorization for it; None for none. Shown by
            neither `str` nor `repr`.
        no_proxy: Which destinations are dialled without it.
    """

    host: HostName | IPAddress
    port: int
    authorization: bytes | None = field(default=None, repr=False)
    no_proxy: NoProxy = field(default_factory=NoProxy)

    @classmethod
    def parse(cls, url: str, no_proxy: str = "") -> UpstreamProxy:
        """Read ``http://[USER[:PASSWORD]@]HOST:PORT``.

        Args:
            url: User and password percent-encoded (RFC 3986 §2.1), in UTF-8; no path
                but ``/``. The port is needed: programs differ in what they assume.
            no_proxy: As `NoProxy`.

        Raises:
            AddressError: Not in that form, or no host or port; for `no_proxy` likewise.
                Shows no password.
        """
        scheme, _, rest = url.partition("://")
        user_info, at, place = rest.removesuffix("/").rpartition("@")
        shown = f"{scheme}://{'***@' if at else ''}{place}"
        if not _SCHEME.fullmatch(scheme) or not rest:
            # Without a scheme, what comes first may be a user's name and password.
            raise AddressError(url.rpartition("@")[2], f"not a proxy's URL ({_FORM})")
        if scheme.lower() != "http":
            problem = (
                "only http:// proxies are supported: TLS to the server passes through them"
                f" unchanged ({_FORM})"
            )
            raise AddressError(shown, problem)
        if re.search(r"[/?#]", place):
            raise AddressError(shown, f"a proxy has no path and no query ({_FORM})")
        try:
            authority = parse_authority(place)
        except AddressError as error:
            raise AddressError(shown, f"{error.problem}; {_FORM}") from None
        authorization = None
        if at:
            authorization = _authorization(user_info, shown)
        return cls(authority.host, authority.port, authorization, NoProxy(no_proxy))

    @property
    def authority(self) -> Authority:
        """Where it is."""
        return Authority(self.host, self.port)

    def is_for(self, authority: Authority) -> bool:
        """Whether a destination is reached through it, rather than directly."""
        return not self.no_proxy.covers(authority)

    def __str__(self) -> str:
        return f"http://{self.authority}"


def _authorization(user_info: str, shown: str) -> bytes:
    if not _USER_INFO.fullmatch(user_info):
        problem = "user and password must be percent-encoded (%40 for @, %2F for /, %25 for %)"
        raise AddressError(shown, problem)
    user, _, password = user_info.partition(":")
    try:
        return basic_authorization(
            unquote_to_bytes(user).decode(), unquote_to_bytes(password).decode()
        )
    except UnicodeDecodeError:
        raise AddressError(shown, "user and password must be in UTF-8") from None
    except ValueError as error:
        raise AddressError(shown, str(error)) from None

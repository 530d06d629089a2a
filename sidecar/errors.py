"""Which operational errors sidecar raises, and what each one carries.

An operational error is one that a user can act on: `__str__` says what is wrong
and what to do, in one line, and the facts are attributes.

    SidecarError
    ├── AddressError            text that is not an address, port or network
    ├── ConfigError             a configuration value, with its place
    ├── ListenError             a listener that can't be opened
    │   └── ListenPrivilegeError    … for want of a capability
    ├── DialError               an upstream that can't be reached; knows its FlowEnd
    │   ├── ConnectionRefused
    │   ├── ConnectionReset
    │   ├── ConnectionTimeout
    │   ├── DestinationUnroutable
    │   ├── NameNotResolved
    │   │   └── ResolverBusy        … for want of a free place in the queue
    │   ├── ProxyLoopDetected
    │   ├── ResolveTimeout
    │   └── TunnelError             a proxy on the way that opens no tunnel; knows its status
    │       ├── TunnelReplyMalformed    … since it doesn't answer in HTTP, or not to the end
    │       ├── TunnelTimeout           … in time
    │       └── TunnelRefused           … and says so
    │           └── TunnelUnauthorized      … for want of the right credentials
    ├── VerificationError       an address not shown to belong to a name; knows its reason
    │   ├── AddressRefused
    │   ├── CertificateMismatch
    │   ├── CertificateUnavailable
    │   └── VerificationImpossible  … for want of an answer; knows the DialError
    ├── RulesError              interception rules that can't be made or removed
    │   └── RulesPrivilegeError     … for want of a capability
    ├── NamespaceError          a namespace that can't be made; knows the cure
    ├── ExtensionError          a plugin that is asked for and not installed
    ├── SummaryError            a summary that can't be written to its file
    ├── TrustError              a file of certificate authorities that can't be used
    └── CheckerError            a password checker that can't be used
"""

from __future__ import annotations

from typing import ClassVar

from sidecar.endings import FlowEnd

__all__ = [
    "AddressError",
    "AddressRefused",
    "CertificateMismatch",
    "CertificateUnavailable",
    "CheckerError",
    "ConfigError",
    "ConnectionRefused",
    "ConnectionReset",
    "ConnectionTimeout",
    "DestinationUnroutable",
    "DialError",
    "ExtensionError",
    "ListenError",
    "ListenPrivilegeError",
    "NameNotResolved",
    "NamespaceError",
    "ProxyLoopDetected",
    "ResolveTimeout",
    "ResolverBusy",
    "RulesError",
    "RulesPrivilegeError",
    "SidecarError",
    "SummaryError",
    "TrustError",
    "TunnelError",
    "TunnelRefused",
    "TunnelReplyMalformed",
    "TunnelTimeout",
    "TunnelUnauthorized",
    "VerificationError",
    "VerificationImpossible",
]


class SidecarError(Exception):
    """The root of every operational error."""


class AddressError(SidecarError, ValueError):
    """Text that is not the address, port or network it should be.

    Args:
        text: What was given.
        problem: What is wrong with it and what is accepted, without the text.
    """

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text, problem)
        self.text = text
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.text!r}: {self.problem}"


class ConfigError(SidecarError):
    """A configuration value that can't be used.

    Args:
        source: The file's path, or "command line".
        key: The dotted key (``limits.connect_timeout``) or the flag
            (``--outbound``); None where the whole source is at fault.
        value: What was given, None where nothing was.
        problem: What is wrong and what to write instead.
    """

    def __init__(self, source: str, key: str | None, value: object, problem: str) -> None:
        super().__init__(source, key, value, problem)
        self.source = source
        self.key = key
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        place = self.source if self.key is None else f"{self.source}: {self.key}"
        shown = "" if self.value is None else f" = {self.value!r}"
        return f"{place}{shown}: {self.problem}"


class ListenError(SidecarError):
    """A listener that can't be opened.

    Args:
        where: The endpoint as the user wrote it, or its address.
        problem: The cause and the cure.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        return f"can't listen on {self.where}: {self.problem}"


class ListenPrivilegeError(ListenError):
    """A listener that needs a capability this process doesn't have."""


class DialError(SidecarError):
    """An upstream that was not reached.

    Args:
        upstream: Where it was dialled, as ``ip:port``.
        problem: The cause.

    Attributes:
        end: How a flow that fails with this error ends.
    """

    end: ClassVar[FlowEnd] = FlowEnd.DESTINATION_UNROUTABLE

    def __init__(self, upstream: str, problem: str) -> None:
        super().__init__(upstream, problem)
        self.upstream = upstream
        self.problem = problem

    def __str__(self) -> str:
        return f"can't reach {self.upstream}: {self.problem}"


class ConnectionRefused(DialError):
    """The upstream answered with a reset (ECONNREFUSED)."""

    end = FlowEnd.CONNECTION_REFUSED


class ConnectionReset(DialError):
    """The upstream accepted and reset at once (ECONNRESET), without a byte."""

    end = FlowEnd.SERVER_RESET


class ConnectionTimeout(DialError):
    """The upstream did not answer within the deadline."""

    end = FlowEnd.CONNECTION_TIMEOUT


class DestinationUnroutable(DialError):
    """No way leads there: no route, no address family, no descriptor."""

    end = FlowEnd.DESTINATION_UNROUTABLE


class NameNotResolved(DialError):
    """The upstream's host name has no address."""

    end = FlowEnd.DNS_ERROR


class ResolverBusy(NameNotResolved):
    """So many names wait to be resolved that this one was not even asked for."""


class ResolveTimeout(DialError):
    """Nobody could say in time which addresses the upstream's host name has."""

    end = FlowEnd.DNS_TIMEOUT


class ProxyLoopDetected(DialError):
    """Dialling would come back to this very process."""

    end = FlowEnd.PROXY_LOOP_DETECTED


class TunnelError(DialError):
    """The proxy on the way was reached, and opened no tunnel to the upstream.

    Args:
        upstream: Where the tunnel should have led, as ``host:port``.
        problem: The cause; names the proxy.
        status: What the proxy answered; None where that was no answer.
    """

    def __init__(self, upstream: str, problem: str, status: int | None = None) -> None:
        super().__init__(upstream, problem)
        self.args = (upstream, problem, status)
        self.status = status


class TunnelReplyMalformed(TunnelError):
    """What the proxy sent is no HTTP/1 response, too long for one, or ended before its end."""


class TunnelTimeout(TunnelError):
    """The proxy did not answer in time."""

    end = FlowEnd.CONNECTION_TIMEOUT


class TunnelRefused(TunnelError):
    """The proxy answered with a status other than 2xx."""


class TunnelUnauthorized(TunnelRefused):
    """The proxy wants credentials, or others than it was given (407; tinyproxy: 401)."""


class VerificationError(SidecarError):
    """An address that was not shown to belong to the name that a client claims for it.

    Args:
        host: The name.
        address: The client's address, as ``ip:port``.
        problem: What was found instead.

    Attributes:
        reason: The stable code of the denial.
        end: How a flow that fails with this error ends.
    """

    reason: str = "not_verified"
    end: FlowEnd = FlowEnd.DENIED

    def __init__(self, host: str, address: str, problem: str) -> None:
        super().__init__(host, address, problem)
        self.host = host
        self.address = address
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.address} is not dialled for {self.host}: {self.problem}"


class AddressRefused(VerificationError):
    """No address may be dialled for the name: the policy refuses each."""

    reason = "address_refused"


class CertificateMismatch(VerificationError):
    """The address shows a certificate that is not valid for the name."""

    reason = "certificate_mismatch"


class CertificateUnavailable(VerificationError):
    """The address was reached, but no TLS handshake came about."""

    reason = "certificate_unavailable"


class VerificationImpossible(VerificationError):
    """The name was not resolved, or the address not reached.

    Args:
        host: The name.
        address: The client's address, as ``ip:port``.
        cause: What went wrong; gives reason and end.
    """

    def __init__(self, host: str, address: str, cause: DialError) -> None:
        super().__init__(host, address, cause.problem)
        self.args = (host, address, cause)
        self.cause = cause
        self.end = cause.end
        self.reason = cause.end.value


class RulesError(SidecarError):
    """Interception rules that can't be made, checked or removed."""


class RulesPrivilegeError(RulesError):
    """Rules need CAP_NET_ADMIN over the network namespace."""


class NamespaceError(SidecarError):
    """A namespace that can't be made.

    Args:
        cause: What refused, in words.
        cure: The one command or setting that mends it.
    """

    def __init__(self, cause: str, cure: str) -> None:
        super().__init__(cause, cure)
        self.cause = cause
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.cause}; {self.cure}"


class ExtensionError(SidecarError):
    """A decision step or observer that is asked for by name and not installed.

    Args:
        name: What was asked for.
        known: What is installed.
    """

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = known

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no plugin is called {self.name!r} (installed: {known})"


class SummaryError(SidecarError):
    """A summary that can't be written to the file that it is wanted in.

    Args:
        path: The file.
        problem: What is wrong with it.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"--summary-file {self.path}: {self.problem}"


class TrustError(SidecarError):
    """A file of certificate authorities that can't be used.

    Args:
        path: The file.
        problem: What is wrong with it.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class CheckerError(SidecarError):
    """A password checker (strcred) that can't be used.

    Args:
        problem: What is wrong with it, without any password.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem

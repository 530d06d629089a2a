"""What can be configured, with which types, bounds and defaults."""

from __future__ import annotations

from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from sidecar.config.http import HttpConfig
from sidecar.linux import OWN_MARK
from sidecar.policy import NOT_BY_NAME, AddressClass, Choice, Default, NameRule, Policy, Rule

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = [
    "DEFAULT_HTTP_PROXY",
    "Config",
    "Forward",
    "InboundSource",
    "Limits",
    "OpenFlows",
    "PolicyConfig",
    "Verify",
]

DEFAULT_HTTP_PROXY = "tcp:3128:interface=127.0.0.1"
"""Where the proxy listens if nothing else is said: squid's port, for this host alone."""

# What a description says is what the error says: "expected " + description.
_Endpoint = Annotated[
    str, Meta(min_length=1, description='an endpoint string, like "transparent:15001"')
]
_Path = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")]
_ConnectTimeout = Annotated[
    float, Meta(gt=0, le=3600, description="a number of seconds, above 0 and at most 3600")
]
_Timeout = Annotated[
    float,
    Meta(
        gt=0,
        le=31_536_000,
        description="a number of seconds, above 0 and at most 31536000 (leave it out for no limit)",
    ),
]


class Forward(Struct, frozen=True, forbid_unknown_fields=True):
    """One static relay.

    Attributes:
        listen: Server endpoint string.
        connect: Client endpoint string.
    """

    listen: _Endpoint
    connect: _Endpoint


class InboundSource(Struct, frozen=True, forbid_unknown_fields=True):
    """From which address inbound connections reach the application.

    Interception rules let these addresses pass, so what sidecar hands to the
    application is not intercepted again (Istio's pass-through sources).

    Attributes:
        enabled: False to dial the application from whatever address the kernel picks.
        ipv4, ipv6: The source by family.
    """

    enabled: Annotated[bool, Meta(description="true or false")] = True
    ipv4: Annotated[IPv4Address, Meta(description='an IPv4 address, like "127.0.0.6"')] = (
        IPv4Address("127.0.0.6")
    )
    ipv6: Annotated[IPv6Address, Meta(description='an IPv6 address, like "::6"')] = IPv6Address(
        "::6"
    )


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps one process bounded.

    Attributes:
        connect_timeout: Seconds until an upstream that does not answer is given up.
        silence: Seconds that a client may stay silent, where its name matters, before
            it is taken for one whose server speaks first.
        patience: Seconds from a client's first byte to its name, where that matters.
        idle_timeout: Seconds without a byte either way until a flow is ended; None
            for no limit, where keepalive finds the dead ones.
        half_close_timeout: Seconds that one direction may stay open after the
            other has ended; None for no limit.
        max_connections: Flows at once, then accepting pauses; None for 90 % of
            RLIMIT_NOFILE.
        keepalive: Seconds of silence until the kernel's first keepalive probe.
        accepts_per_wakeup: How many connections one listener takes before others
            get their turn.
        access_log_backlog: Access log lines kept while the log can't be written;
            beyond it lines are dropped and counted.
    """

    connect_timeout: _ConnectTimeout = 10.0
    # More than a round trip round the world, less than a person notices.
    silence: _ConnectTimeout = 0.25
    patience: _ConnectTimeout = 5.0
    idle_timeout: _Timeout | None = None
    half_close_timeout: _Timeout | None = None
    max_connections: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=10_000_000,
                description="a number of connections from 1 to 10000000 "
                "(leave it out for 90 % of the descriptor limit)",
            ),
        ]
        | None
    ) = None
    # Below the idle limits of common NAT devices and cloud load balancers (350 s).
    # The bound is the kernel's: MAX_TCP_KEEPIDLE, net/tcp.h.
    keepalive: Annotated[
        int, Meta(ge=1, le=32767, description="a whole number of seconds from 1 to 32767")
    ] = 60
    # One is fair but costs a wake-up each; a hundred starve the connections that are
    # open already.
    accepts_per_wakeup: Annotated[
        int, Meta(ge=1, le=1024, description="a number of connections from 1 to 1024")
    ] = 16
    # About 400 bytes a line: 13 MB, or 4 s of 8000 connections a second.
    access_log_backlog: Annotated[
        int, Meta(ge=1, le=10_000_000, description="a number of lines from 1 to 10000000")
    ] = 32_768


class Verify(Enum):
    """How an address is shown to belong to the name that an allow rests on."""

    REDIAL = "redial"
    CERTIFICATE = "certificate"
    OFF = "off"


class OpenFlows(Enum):
    """What a reload does to open flows that the new policy denies."""

    LEAVE = "leave"
    CLOSE = "close"


_Rules = Annotated[
    tuple[Annotated[Rule, Meta(description='a rule, like "pypi.org:443" or "10.0.0.0/8"')], ...],
    Meta(description='a list of rules, like ["*.example.org:443", "10.0.0.0/8:5432"]'),
]


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which connections may be made.

    Attributes:
        default: What happens to what no rule matches; None to leave that to who runs:
            the proxy allows, `sidecar exec` allows what is public.
        allow, deny: Rules, with their places. Deny beats allow.
        private_names: Names that allow rules may lead to addresses that are not public.
        verify: How a name is held against the address.
        ca_file: Authorities (PEM) that `Verify.CERTIFICATE` trusts; None for the platform's.
        ech: What happens where the name matters and may be a front for another.
        no_name: What happens where a name matters and the client gives none.
        open_flows: What a reload does to flows that it denies.
        steps: Names of Twisted plugins that are asked of every flow that is allowed.
    """

    default: Annotated[Default, Meta(description='"allow", "deny" or "public"')] | None = None
    allow: _Rules = ()
    deny: _Rules = ()
    private_names: Annotated[
        tuple[Annotated[NameRule, Meta(description='a name, like "*.corp.example"')], ...],
        Meta(description='a list of names, like ["*.corp.example"]'),
    ] = ()
    verify: Annotated[Verify, Meta(description='"redial", "certificate" or "off"')] = Verify.REDIAL
    ca_file: Annotated[_Path, Meta(description="a file's path")] | None = None
    ech: Annotated[Choice, Meta(description='"allow" or "deny"')] = Choice.ALLOW
    no_name: Annotated[Choice, Meta(description='"allow" or "deny"')] = Choice.DENY
    open_flows: Annotated[OpenFlows, Meta(description='"leave" or "close"')] = OpenFlows.LEAVE
    steps: Annotated[
        tuple[Annotated[str, Meta(description="a plugin's name")], ...],
        Meta(description='a list of names of decision steps, like ["office-hours"]'),
    ] = ()

    def build(
        self,
        default: Default = Default.ALLOW,
        own: Container[bytes] = frozenset(),
        not_by_name: frozenset[AddressClass] = NOT_BY_NAME,
    ) -> Policy:
        """Make the policy that decides.

        Args:
            default: What an unset `default` means here.
            own: The host's own addresses, as `Policy` takes them.
            not_by_name: Likewise.
        """
        return Policy(
            default=self.default or default,
            allow=self.allow,
            deny=self.deny,
            private_names=self.private_names,
            ech=self.ech,
            no_name=self.no_name,
            own=own,
            not_by_name=not_by_name,
        )


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be configured.

    Attributes:
        outbound: Server endpoint string for what programs here connect to.
        inbound: Server endpoint string for what connects to programs here.
        sni_proxy: Server endpoint string for clients that are relayed to the host that
            their TLS or HTTP names.
        http_proxy: Server endpoint string for clients of the HTTP proxy.
        forward: Static relays.
        observers: Names of Twisted plugins that are told of each flow's end.
        access_log: A path, "-" for standard output, None for no log.
        log_paths: Whether the log has HTTP requests' paths and queries.
        mark: The fwmark of outgoing sockets (SO_MARK); 0 for none.
        inbound_source: From where the application sees inbound connections come.
        limits: What keeps the process bounded.
        policy: Which connections may be made.
        http: The HTTP proxy's own settings.
    """

    outbound: _Endpoint | None = None
    inbound: _Endpoint | None = None
    sni_proxy: _Endpoint | None = None
    http_proxy: _Endpoint | None = None
    forward: Annotated[
        tuple[
            Annotated[Forward, Meta(description='a table with listen = "…" and connect = "…"')],
            ...,
        ],
        Meta(description="[[forward]] tables, each with listen and connect"),
    ] = ()
    observers: Annotated[
        tuple[Annotated[str, Meta(description="a plugin's name")], ...],
        Meta(description='a list of names of flow observers, like ["statsd"]'),
    ] = ()
    access_log: Annotated[_Path, Meta(description='a path, or "-" for standard output')] | None = (
        None
    )
    log_paths: Annotated[bool, Meta(description="true or false")] = False
    mark: Annotated[
        int, Meta(ge=0, le=2**32 - 1, description="a whole number from 0 to 0xffffffff")
    ] = OWN_MARK
    inbound_source: Annotated[InboundSource, Meta(description="a table: [inbound_source]")] = (
        InboundSource()
    )
    limits: Annotated[Limits, Meta(description="a table: [limits]")] = Limits()
    policy: Annotated[PolicyConfig, Meta(description="a table: [policy]")] = PolicyConfig()
    http: Annotated[HttpConfig, Meta(description="a table: [http]")] = HttpConfig()

    @property
    def listens(self) -> bool:
        """Whether there is anything to listen on."""
        return bool(
            self.outbound or self.inbound or self.sni_proxy or self.http_proxy or self.forward
        )

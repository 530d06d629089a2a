"""What can be configured of the HTTP proxy, with which types, bounds and defaults."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["HttpConfig", "HttpLimits"]

_Seconds = Annotated[
    float, Meta(gt=0, le=3600, description="a number of seconds, above 0 and at most 3600")
]
_Connections = Annotated[
    int,
    Meta(
        ge=1,
        le=10_000_000,
        description="a number of connections from 1 to 10000000 (leave it out for no limit)",
    ),
]


class HttpLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """What keeps the HTTP proxy bounded, besides `sidecar.config.Limits`.

    Attributes:
        head_bytes: Of a request's or response's head, and of its trailers.
        head_fields: Field lines of either.
        head_timeout: Seconds from a request's first byte to its head's end; absolute.
        keepalive_timeout: Seconds that a client may be silent before a request.
        response_timeout: Seconds from a request's end to its response's head.
        body_bytes: Of a request's content; None for no limit.
        progress_timeout: Seconds in which whoever owes or is owed bytes must move
            `progress_bytes` of them.
        progress_bytes: See there.
        client_connections: From one address at once; None for no limit.
        pool_connections: To servers, kept idle for the next request.
        pool_timeout: Seconds for which they are.
    """

    # What servers take is 8 to 64 KiB and a hundred fields.
    head_bytes: Annotated[
        int, Meta(ge=1024, le=1_048_576, description="a number of bytes from 1024 to 1048576")
    ] = 65_536
    head_fields: Annotated[
        int, Meta(ge=10, le=1000, description="a number of fields from 10 to 1000")
    ] = 100
    head_timeout: _Seconds = 10.0
    # Longer than browsers pause, shorter than NAT devices forget (RFC 5382: 124 min;
    # some 60 s).
    keepalive_timeout: _Seconds = 60.0
    # Long polls take a minute or two.
    response_timeout: _Seconds = 300.0
    body_bytes: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=2**53,
                description="a number of bytes from 0 to 9007199254740992 "
                "(leave it out for no limit)",
            ),
        ]
        | None
    ) = None
    progress_timeout: _Seconds = 60.0
    # 17 bytes a second: slower than any network, faster than who wants to hold us.
    progress_bytes: Annotated[
        int, Meta(ge=1, le=1_048_576, description="a number of bytes from 1 to 1048576")
    ] = 1024
    client_connections: _Connections | None = None
    pool_connections: Annotated[
        int, Meta(ge=0, le=65_536, description="a number of connections from 0 to 65536")
    ] = 128
    # Shorter than servers wait: nginx 75 s, Apache 5 s; a request that meets a server's
    # goodbye must be repeated, or fails.
    pool_timeout: _Seconds = 15.0


class HttpConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP proxy, but for where it listens.

    Attributes:
        auth: Password checkers (strcred); without one, everybody may.
        realm: What the password is for, shown to people.
        upstream_proxy: URL of the HTTP proxy that is dialled in place of servers; may
            have a password in it.
        no_proxy: Which servers are dialled nevertheless.
        limits: What keeps it bounded.
    """

    auth: Annotated[
        tuple[
            Annotated[str, Meta(min_length=1, description='a checker, like "file:/etc/htpasswd"')],
            ...,
        ],
        Meta(description='a list of checkers, like ["file:/etc/htpasswd"]'),
    ] = ()
    realm: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            pattern="^[ -~]+$",
            description="1 to 200 printable ASCII characters",
        ),
    ] = "sidecar"
    upstream_proxy: (
        Annotated[
            str, Meta(min_length=1, description="a proxy's URL, like http://proxy.example:3128")
        ]
        | None
    ) = None
    no_proxy: Annotated[
        tuple[Annotated[str, Meta(description="a host, like .corp.example or 10.0.0.0/8")], ...],
        Meta(description='a list of hosts, like [".corp.example", "10.0.0.0/8"]'),
    ] = ()
    limits: Annotated[HttpLimits, Meta(description="a table: [http.limits]")] = HttpLimits()

"""In which words the rules are said: a small closed set of matches and statements.

Three renderers know all of them: nft.py, iptables.py and expressions.py.

Matches: Tcp, Family, LoopbackInterface, Mark, ConnectionMark, ConnectionReply,
    ConnectionInvalid, Owner, Destination, LocalAddress, Ports, NewConnection,
    SocketTransparent, SocketBound.
Statements: Return, Drop, Accept, SetMark, SetConnectionMark, Redirect, Tproxy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.linux.netfilter.model import IPNetwork, PortRange

__all__ = [
    "ADMITS",
    "OWNER_COMMENTS",
    "Accept",
    "Chain",
    "ConnectionInvalid",
    "ConnectionMark",
    "ConnectionReply",
    "Destination",
    "Drop",
    "Family",
    "Hook",
    "Kind",
    "LocalAddress",
    "LoopbackInterface",
    "Mark",
    "Match",
    "NewConnection",
    "Owner",
    "OwnerKind",
    "Ports",
    "Redirect",
    "Return",
    "Rule",
    "SetConnectionMark",
    "SetMark",
    "Side",
    "SocketBound",
    "SocketTransparent",
    "Statement",
    "Tcp",
    "Tproxy",
]

ADMITS = "intercept"
"""The comment on rules that take new connections. Removing them, and only them,
drains: what was taken before is still carried to its end."""

OWNER_COMMENTS = ("excluded user", "excluded group")
"""The comments on rules that let users' and groups' connections pass."""


class Kind(Enum):
    """What a base chain does (nft's chain type)."""

    NAT = "nat"
    ROUTE = "route"
    FILTER = "filter"


class Hook(Enum):
    """Where in the kernel a chain runs; the value is linux/netfilter.h's number."""

    PREROUTING = 0
    OUTPUT = 3
    POSTROUTING = 4


class Side(Enum):
    """Which end of a packet a match looks at."""

    SOURCE = "source"
    DESTINATION = "destination"


class OwnerKind(Enum):
    """Whose number an Owner match compares."""

    USER = "uid"
    GROUP = "gid"


@dataclass(frozen=True, slots=True)
class Tcp:
    """The packet is TCP."""

    negated: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """The packet is IPv4 (4) or IPv6 (6)."""

    version: int


@dataclass(frozen=True, slots=True)
class LoopbackInterface:
    """The packet came from (source) or leaves by (destination) the interface lo."""

    side: Side
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """The packet has this mark."""

    value: int


@dataclass(frozen=True, slots=True)
class ConnectionMark:
    """The packet's connection has this mark."""

    value: int


@dataclass(frozen=True, slots=True)
class ConnectionReply:
    """The packet goes against (or, negated, along) its connection's first packet.

    Without a connection (INVALID, untracked) it matches neither way.
    """

    negated: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionInvalid:
    """Conntrack can't place the packet, so NAT will not touch it."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The sending socket was made by one of these users or groups. Output only."""

    kind: OwnerKind
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination is in (or, negated, in none of) these networks of one family.

    Implies the family, negated or not.
    """

    networks: tuple[IPNetwork, ...]
    negated: bool = False

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.networks[0].version


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """The address is one of this host's."""

    side: Side
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP port is one of these. Implies TCP."""

    side: Side
    ranges: tuple[PortRange, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class NewConnection:
    """SYN without ACK, RST and FIN: a connection's first packet. Implies TCP."""

    negated: bool = False


@dataclass(frozen=True, slots=True)
class SocketTransparent:
    """The socket that will get the packet is transparent. Prerouting only."""


@dataclass(frozen=True, slots=True)
class SocketBound:
    """A socket bound to the packet's very destination address will get it.

    That is every established connection, and no wildcard listener.
    """


Match = (
    Tcp
    | Family
    | LoopbackInterface
    | Mark
    | ConnectionMark
    | ConnectionReply
    | ConnectionInvalid
    | Owner
    | Destination
    | LocalAddress
    | Ports
    | NewConnection
    | SocketTransparent
    | SocketBound
)


@dataclass(frozen=True, slots=True)
class Return:
    """This chain has no say in the packet."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet is dealt with, as far as this chain goes."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet goes nowhere."""


@dataclass(frozen=True, slots=True)
class SetMark:
    """Mark the packet."""

    value: int


@dataclass(frozen=True, slots=True)
class SetConnectionMark:
    """Mark the packet's connection; nothing where there is none."""

    value: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """NAT to this port of the host."""

    port: int


@dataclass(frozen=True, slots=True)
class Tproxy:
    """Give the packet to its transparent socket, else to the listener on this port.

    Accepts where there is one; where there is none, the next rule decides.

    Attributes:
        port: The listener's.
        mark: What to mark the packet with, so that it is routed to this host.
    """

    port: int
    mark: int | None = None


Statement = Return | Accept | Drop | SetMark | SetConnectionMark | Redirect | Tproxy


@dataclass(frozen=True, slots=True)
class Rule:
    """If all matches hold, carry out the statements, in order.

    Attributes:
        comment: What the rule is for, shown by nft and iptables; ADMITS marks the
            rules that take new connections. ASCII, no quotes, at most 127 octets.
    """

    matches: tuple[Match, ...]
    statements: tuple[Statement, ...]
    comment: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: its hook's priority is "mangle", or "dstnat" for NAT chains."""

    name: str
    kind: Kind
    hook: Hook
    rules: tuple[Rule, ...]

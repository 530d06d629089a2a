"""Which options name a rule set, and how their texts are read."""

from __future__ import annotations

import argparse
import grp
import pwd
from ipaddress import IPv4Network, IPv6Network, ip_network

from sidecar.addresses import parse_port
from sidecar.errors import AddressError, RulesError
from sidecar.linux.netfilter.model import (
    INBOUND_PORT,
    OUTBOUND_PORT,
    OWN_MARK,
    TPROXY_MARK,
    TPROXY_REVERSED_MARK,
    IPNetwork,
    Mode,
    PortRange,
    RuleSet,
)

__all__ = ["RULE_OPTIONS", "add_rule_options", "endpoint", "rule_set_from", "seconds"]

RULE_OPTIONS = (
    "mode",
    "outbound_port",
    "inbound_port",
    "exclude_uid",
    "exclude_gid",
    "exclude_mark",
    "include_cidr",
    "exclude_cidr",
    "include_port",
    "exclude_port",
    "exclude_inbound_port",
    "syn_only",
    "forwarded",
)
_ID_MAX = 0xFFFFFFFE
_MARK_MAX = 0xFFFFFFFF


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that describe a rule set."""
    add = parser.add_argument
    add(
        "--mode",
        choices=[mode.value for mode in Mode],
        help="redirect (the default, for the proxy then needs no capability): NAT to the "
        "proxy's ports; tproxy: no NAT, needs CAP_NET_ADMIN or CAP_NET_RAW for the proxy",
    )
    none = "; none leaves that direction alone"
    add(
        "--outbound-port",
        metavar="PORT",
        type=_port_or_none,
        help=f"where connections opened here go (default {OUTBOUND_PORT}{none})",
    )
    add(
        "--inbound-port",
        metavar="PORT",
        type=_port_or_none,
        help=f"where connections from other hosts go (default {INBOUND_PORT}{none})",
    )
    several = "may be given several times"
    add(
        "--exclude-uid",
        metavar="USER",
        action="append",
        type=_user,
        help=f"user whose connections pass, by number or name; {several}",
    )
    add(
        "--exclude-gid",
        metavar="GROUP",
        action="append",
        type=_group,
        help=f"group whose connections pass, by number or name; {several}",
    )
    add(
        "--exclude-mark",
        metavar="MARK",
        type=_mark,
        help=f"mark of packets that pass (default {OWN_MARK:#x}, which sidecar sets on its own)",
    )
    for flag, meaning in (("include", "intercept only"), ("exclude", "let pass")):
        add(
            f"--{flag}-cidr",
            metavar="CIDR",
            action="append",
            type=_networks,
            help=f"{meaning} outbound connections to these networks or addresses, "
            f"separated by commas; {several}",
        )
        add(
            f"--{flag}-port",
            metavar="PORTS",
            action="append",
            type=_ports,
            help=f"{meaning} outbound connections to these ports: 80,443,8000-8999; {several}",
        )
    add(
        "--exclude-inbound-port",
        metavar="PORTS",
        action="append",
        type=_ports,
        help=f"let pass inbound connections to these ports; {several}",
    )
    add(
        "--syn-only",
        action="store_true",
        default=None,
        help="leave connections alone that are alive when the rules are applied; on a host "
        "in use. Without it, they break, but an intercepted one outlives a conntrack flush",
    )
    add(
        "--forwarded",
        action="store_true",
        default=None,
        help="intercept, as outbound, what this host routes for others too; on a gateway",
    )
    parser.set_defaults(refuse=parser.error)


def rule_set_from(arguments: argparse.Namespace) -> RuleSet:
    """The rule set that the options mean, each its default where not given.

    Raises:
        RulesError: Options that exclude each other.
    """
    given = {
        "mode": None if arguments.mode is None else Mode(arguments.mode),
        "exclude_mark": arguments.exclude_mark,
        "syn_only": arguments.syn_only,
        "forwarded": arguments.forwarded,
        "exclude_uids": _tuple(arguments.exclude_uid),
        "exclude_gids": _tuple(arguments.exclude_gid),
        "include_cidrs": _flat(arguments.include_cidr),
        "exclude_cidrs": _flat(arguments.exclude_cidr),
        "include_ports": _flat(arguments.include_port),
        "exclude_ports": _flat(arguments.exclude_port),
        "exclude_inbound_ports": _flat(arguments.exclude_inbound_port),
    }
    values: dict[str, object] = {name: each for name, each in given.items() if each is not None}
    for direction in ("outbound", "inbound"):
        port = getattr(arguments, f"{direction}_port")
        if port is not None:
            values[f"{direction}_port"] = None if port == "none" else port
    return RuleSet(**values)  # type: ignore[arg-type]


def _tuple(given: list[int] | None) -> tuple[int, ...] | None:
    return None if given is None else tuple(given)


def _flat(given: list[tuple[object, ...]] | None) -> tuple[object, ...] | None:
    return None if given is None else tuple(item for each in given for item in each)


def _bad(text: str, problem: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}: {problem}")


def _port_or_none(text: str) -> int | str:
    if text == "none":
        return text
    try:
        return parse_port(text)
    except AddressError:
        raise _bad(text, "not a port (write a number from 1 to 65535, or none)") from None


def _ports(text: str) -> tuple[PortRange, ...]:
    ranges = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            ranges.append(PortRange(parse_port(first), parse_port(last if dash else first)))
        except (AddressError, RulesError):
            raise _bad(
                text, f"{part!r} is no port or range from 1 to 65535 (write 80,443,8000-8999)"
            ) from None
    return tuple(ranges)


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(_network(part, text) for part in text.split(","))


def _network(part: str, text: str) -> IPv4Network | IPv6Network:
    cure = "(write 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32)"
    if "%" in part or not part.isascii() or part.partition("/")[2].count("."):
        raise _bad(text, f"{part!r} is no network {cure}")
    try:
        network = ip_network(part)
    except ValueError:
        try:
            meant = ip_network(part, strict=False)
        except ValueError:
            raise _bad(text, f"{part!r} is no network {cure}") from None
        raise _bad(text, f"{part!r} has bits beyond its prefix (write {meant})") from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise _bad(text, f"{part!r} is IPv4 in IPv6's clothes (write the IPv4 network)")
    return network


def _user(text: str) -> int:
    if text.isascii() and text.isdigit():
        return _number(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise _bad(text, "no such user (write a number, or a name of /etc/passwd)") from None


def _group(text: str) -> int:
    if text.isascii() and text.isdigit():
        return _number(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise _bad(text, "no such group (write a number, or a name of /etc/group)") from None


def _number(text: str) -> int:
    if len(text) > len(str(_ID_MAX)) or int(text) > _ID_MAX:
        raise _bad(text, f"out of range (write a number from 0 to {_ID_MAX}, or a name)")
    return int(text)


def _mark(text: str) -> int:
    problem = "not a mark (write a number from 0x1 to 0xffffffff)"
    try:
        value = int(text, 0)
    except ValueError:
        raise _bad(text, problem) from None
    if not 1 <= value <= _MARK_MAX or "_" in text:
        raise _bad(text, problem)
    if value in {TPROXY_MARK, TPROXY_REVERSED_MARK}:
        raise _bad(text, "a mark of intercepted packets (write another number)")
    return value


def seconds(text: str) -> float:
    """Read a time: seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _bad(text, "not a number of seconds (write 30, or nothing to wait for ever)")
    return value


def endpoint(text: str) -> object:
    """Read the destination of a trial connection, as a SocketAddress."""
    from sidecar.addresses import SocketAddress

    try:
        return SocketAddress.parse(text)
    except AddressError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

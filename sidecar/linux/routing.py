"""How packets marked for TPROXY are routed to this host: one rule, one route, per family.

Equal to, for both families::

    ip rule add priority 1338 fwmark 0x53a lookup 1338
    ip route add local default dev lo table 1338
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from pathlib import Path

from sidecar.errors import RulesError, RulesPrivilegeError
from sidecar.linux import TPROXY_MARK, netlink
from sidecar.linux.attributes import parse, u32
from sidecar.linux.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_ROOT_MATCH,
    Message,
    RequestError,
)

__all__ = [
    "ROUTE_TABLE",
    "RULE_PRIORITY",
    "add_tproxy_routing",
    "commands",
    "families",
    "missing_tproxy_routing",
    "remove_tproxy_routing",
]

ROUTE_TABLE = TPROXY_MARK
"""1338, the mark's number; Istio's is 133."""

RULE_PRIORITY = 1338
"""After "local" (0), before "main" (32766) and what VPNs usually put before it."""

# linux/rtnetlink.h and linux/fib_rules.h
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_ACTION_TO_TABLE = 1
_RTPROT_STATIC = 4
_RT_SCOPE_HOST = 254
_RTN_LOCAL = 2
_RTA_OIF, _RTA_TABLE = 4, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_EXACT = 0xFFFFFFFF
# Of netdevice(7), and linux/if.h:
_SIOCGIFFLAGS = 0x8913
_IFREQ = struct.Struct("=16sH22x")
_IFF_UP = 0x1
# struct rtmsg, whose shape struct fib_rule_hdr shares: the lengths of destination and
# source come second and third, the table fifth, a route's protocol and scope next.
_HEADER = struct.Struct("=BBBBBBBBI")
_U32 = struct.Struct("=I")


def families() -> tuple[socket.AddressFamily, ...]:
    """The IP families that have an address in this network namespace.

    IPv4 is always one. IPv6 is none where the module is absent or disable_ipv6 has
    taken away every address.
    """
    try:
        six = Path("/proc/thread-self/net/if_inet6").read_text(encoding="ascii")
    except OSError:
        six = ""
    return (socket.AF_INET, socket.AF_INET6) if six.strip() else (socket.AF_INET,)


def commands() -> tuple[str, ...]:
    """The same as shell commands, for people who load the rules by other means."""
    return tuple(
        f"ip {family} {words}"
        for family in ("-4", "-6")
        for words in (
            f"rule add priority {RULE_PRIORITY} fwmark {TPROXY_MARK:#x} lookup {ROUTE_TABLE}",
            f"route add local default dev lo table {ROUTE_TABLE}",
        )
    )


def add_tproxy_routing() -> None:
    """Add the rule and the route for both families; again does nothing.

    IPv6 is left out where the kernel won't have it and no address uses it. (Should it
    appear later, the rules drop what they mark, until applied again.)

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: lo is down, or the kernel has no policy routing.
    """
    if not _loopback_is_up():
        raise RulesError("intercepted packets come back over lo, which is down: ip link set lo up")
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    in_use = families()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            # The route first: a rule without it would send marked packets elsewhere.
            for message in (_route(_NEWROUTE, family, flags), _rule(_NEWRULE, family, flags)):
                _do(message, fine=(errno.EEXIST,))
        except RulesPrivilegeError:  # noqa: PERF203 - twice
            raise
        except RulesError:
            if family in in_use:
                raise


def remove_tproxy_routing() -> bool:
    """Take away the rule and the route, where they are.

    Returns:
        Whether any was there.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel refused.
    """
    found = False
    for family in (socket.AF_INET, socket.AF_INET6):
        if _has_rule(family):
            absent = (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
            found |= _do(_rule(_DELRULE, family, NLM_F_ACK), fine=absent)
        if _has_route(family):
            gone = (errno.ESRCH, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
            found |= _do(_route(_DELROUTE, family, NLM_F_ACK), fine=gone)
    return found


def missing_tproxy_routing() -> tuple[str, ...]:
    """What of the rule and the route is not there, in words; empty where nothing is amiss."""
    missing = []
    for family in families():
        name = "IPv4" if family == socket.AF_INET else "IPv6"
        if not _has_rule(family):
            missing.append(f"the {name} policy-routing rule for mark {TPROXY_MARK:#x}")
        if not _has_route(family):
            missing.append(f"the {name} local route in table {ROUTE_TABLE}")
    return tuple(missing)


def _loopback_is_up() -> bool:
    # The kernel takes a route through a lo that is down, but carries nothing over it.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
    return bool(_IFREQ.unpack(answer)[1] & _IFF_UP)


def _rule(kind: int, family: socket.AddressFamily, flags: int) -> Message:
    header = _HEADER.pack(family, 0, 0, 0, 0, 0, 0, _ACTION_TO_TABLE, 0)
    body = (
        u32(_FRA_PRIORITY, RULE_PRIORITY),
        u32(_FRA_FWMARK, TPROXY_MARK),
        u32(_FRA_FWMASK, _EXACT),
        u32(_FRA_TABLE, ROUTE_TABLE),
    )
    return Message(kind, flags, header + b"".join(body), "a policy-routing rule")


def _route(kind: int, family: socket.AddressFamily, flags: int) -> Message:
    header = _HEADER.pack(family, 0, 0, 0, 0, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    body = u32(_RTA_TABLE, ROUTE_TABLE) + u32(_RTA_OIF, socket.if_nametoindex("lo"))
    return Message(kind, flags, header + body, "a local route through lo")


def _do(message: Message, fine: tuple[int, ...]) -> bool:
    """Send a request; False where the kernel's answer is one of the fine refusals."""
    try:
        netlink.transact(NETLINK_ROUTE, [message])
    except RequestError as error:
        if error.errno in fine:
            return False
        if error.errno == errno.EPERM:
            raise RulesPrivilegeError(
                "policy routing needs CAP_NET_ADMIN over this network namespace: run as root, "
                "or in a namespace of your own (unshare --user --map-root-user --net)"
            ) from None
        # EACCES here is IPv6 switched off on lo (disable_ipv6), not a lack of privilege.
        raise RulesError(f"the kernel refused {message.subject}: {error.strerror}") from None
    return True


def _has_rule(family: socket.AddressFamily) -> bool:
    for header, attributes in _dump(_GETRULE, family):
        wanted = {
            _FRA_PRIORITY: RULE_PRIORITY,
            _FRA_FWMARK: TPROXY_MARK,
            _FRA_TABLE: ROUTE_TABLE,
        }
        if header[7] == _ACTION_TO_TABLE and all(
            _number(attributes.get(number)) == value for number, value in wanted.items()
        ):
            return True
    return False


def _has_route(family: socket.AddressFamily) -> bool:
    loopback = socket.if_nametoindex("lo")
    for header, attributes in _dump(_GETROUTE, family):
        if (
            header[1] == 0
            and header[7] == _RTN_LOCAL
            and _number(attributes.get(_RTA_TABLE)) == ROUTE_TABLE
            and _number(attributes.get(_RTA_OIF)) == loopback
        ):
            return True
    return False


def _dump(kind: int, family: int) -> list[tuple[tuple[int, ...], dict[int, bytes]]]:
    message = Message(kind, NLM_F_ROOT_MATCH, _HEADER.pack(family, *([0] * 8)), "routing")
    try:
        replies = netlink.dump(NETLINK_ROUTE, message)
    except RequestError:
        # A family or policy routing that the kernel doesn't have: nothing there.
        return []
    found = []
    for reply in replies:
        header = _HEADER.unpack_from(reply.body)
        # Without IPv6 the kernel answers for all families instead.
        if header[0] == family:
            found.append((header, parse(reply.body[_HEADER.size :])))
    return found


def _number(payload: bytes | None) -> int | None:
    return None if payload is None else int(_U32.unpack(payload)[0])

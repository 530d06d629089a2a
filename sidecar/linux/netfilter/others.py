"""Whose NAT rules may hide ours: iptables-legacy's, iptables-nft's, anybody's.

Several NAT chains on one hook all run, but the first to translate a connection
decides, and by the same token hides it from the rest.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from sidecar.errors import RulesError
from sidecar.linux.netfilter.readback import other_nat_chains

__all__ = ["hiding"]

# linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h: SO_GET_INFO,
# and struct ipt_getinfo.
_SO_GET_INFO = 64
_GET_INFO = struct.Struct("=32sI5I5III")
# An empty nat table: four policies, and the mark of its end.
_EMPTY_NAT_ENTRIES = 5
_LEGACY = (
    ("iptables-legacy", "ip_tables_names", socket.AF_INET, socket.SOL_IP),
    ("ip6tables-legacy", "ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6),
)


def hiding() -> tuple[str, ...]:
    """What of other tools' may get at connections before our rules do, a sentence each.

    Looks only, and at nothing that is not there already: asking after a legacy table
    that isn't loaded would load it.
    """
    try:
        found = [
            f"chain {chain.name} of table {chain.family} {chain.table} translates addresses "
            f"too: what it redirects first never reaches sidecar "
            f"(look: nft list table {chain.family} {chain.table})"
            for chain in other_nat_chains()
        ]
    except RulesError:
        # Whoever may not look may not install either, and is told so then.
        return ()
    for tool, names, family, level in _LEGACY:
        if _legacy_nat_rules(names, family, level):
            found.append(
                f"{tool} has rules in its nat table: what they redirect first never reaches "
                f"sidecar (look: {tool}-save -t nat)"
            )
    return tuple(found)


def _legacy_nat_rules(names: str, family: socket.AddressFamily, level: int) -> bool:
    try:
        tables = (Path("/proc/thread-self/net") / names).read_text(encoding="ascii").split()
        if "nat" not in tables:
            return False
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            asked = _GET_INFO.pack(b"nat", *([0] * 13))
            # The buffer goes in as well as out, which getsockopt() of Python's
            # can't do; libc's can.
            return _entries(sock, level, asked) > _EMPTY_NAT_ENTRIES
    except OSError:
        return False


def _entries(sock: socket.socket, level: int, asked: bytes) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(asked, len(asked))
    length = ctypes.c_uint(len(asked))
    status = libc.getsockopt(sock.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(length))
    if status:
        number = ctypes.get_errno()
        raise OSError(number, "getsockopt")
    entries: int = _GET_INFO.unpack(buffer.raw)[12]
    return entries

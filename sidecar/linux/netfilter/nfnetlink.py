"""How nf_tables is asked and told: batches, dumps, and what its refusals mean."""

from __future__ import annotations

import errno
import struct

from sidecar.errors import RulesError, RulesPrivilegeError
from sidecar.linux import netlink
from sidecar.linux.attributes import parse
from sidecar.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_ROOT_MATCH,
    Message,
    RequestError,
)

__all__ = [
    "ask",
    "comment_in",
    "commit",
    "dump",
    "family_header",
    "kind_of",
    "message",
    "name_in",
    "user_data",
]

# linux/netfilter/nfnetlink.h
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
NFPROTO_UNSPEC, _NFPROTO_INET = 0, 1
# libnftnl/udata.h: a comment's number, on tables and on rules.
UDATA_COMMENT = 0
FAMILY_HEADER = struct.Struct(">BBH")


def kind_of(message: int) -> int:
    """A message's type, of its number among nf_tables' messages."""
    return _SUBSYSTEM << 8 | message


def family_header(family: int = _NFPROTO_INET, resource: int = 0) -> bytes:
    """What every message begins with (struct nfgenmsg)."""
    return FAMILY_HEADER.pack(family, 0, resource)


def message(kind: int, flags: int, body: tuple[bytes, ...], subject: str) -> Message:
    """A message about the inet family.

    Args:
        kind: Its number among nf_tables' messages.
        flags: Netlink's.
        body: Its attributes.
        subject: What a refusal is about, and the kernel module it takes.
    """
    return Message(kind_of(kind), flags, family_header() + b"".join(body), subject)


def user_data(number: int, value: bytes) -> bytes:
    """What only nft reads: type, length, value. At most 255 octets."""
    return bytes([number, len(value)]) + value


def comment_in(user_data: bytes | None) -> str | None:
    """The comment in user data: type, length, value, repeated (libnftnl/udata.h)."""
    rest = user_data or b""
    while len(rest) > 2:  # noqa: PLR2004 - type and length
        number, length = rest[0], rest[1]
        value, rest = rest[2 : 2 + length], rest[2 + length :]
        if number == UDATA_COMMENT:
            return value.rstrip(b"\0").decode(errors="replace")
    return None


def name_in(payload: bytes | None) -> str:
    """A string attribute's text; empty where there is none."""
    return (payload or b"").rstrip(b"\0").decode(errors="replace")


def dump(kind: int, *attributes: bytes) -> list[dict[int, bytes]]:
    """List what there is of the inet family; nothing where its table is not there.

    Raises:
        RulesPrivilegeError: Not allowed to look.
        RulesError: The kernel has no nf_tables.
    """
    body = family_header() + b"".join(attributes)
    replies = ask(Message(kind_of(kind), NLM_F_ROOT_MATCH, body, "nf_tables"))
    return [parse(reply[FAMILY_HEADER.size :]) for reply in replies]


def ask(message: Message) -> list[bytes]:
    """Put a question, and take the answers with their headers (struct nfgenmsg).

    Raises:
        RulesPrivilegeError: Not allowed to look.
        RulesError: The kernel has no nf_tables.
    """
    try:
        return [reply.body for reply in netlink.dump(NETLINK_NETFILTER, message)]
    except RequestError as error:
        if error.errno == errno.ENOENT:
            return []
        raise _explain(error) from None


def commit(messages: list[Message]) -> None:
    """Carry out messages as one transaction: all of them or, on any error, none.

    Raises:
        RulesPrivilegeError: No CAP_NET_ADMIN over this network namespace.
        RulesError: The kernel refused; says what, and which module it takes.
    """
    last = messages[-1]
    acknowledged = Message(last.kind, last.flags | NLM_F_ACK, last.body, last.subject)
    batch = [
        Message(_BATCH_BEGIN, 0, family_header(NFPROTO_UNSPEC, _SUBSYSTEM), "nf_tables"),
        *messages[:-1],
        acknowledged,
        Message(_BATCH_END, 0, family_header(NFPROTO_UNSPEC, _SUBSYSTEM), "nf_tables"),
    ]
    try:
        netlink.transact(NETLINK_NETFILTER, batch)
    except RequestError as error:
        raise _explain(error) from None
    except OSError as error:
        if error.errno in {errno.EMSGSIZE, errno.ENOBUFS}:
            raise RulesError(
                "too many networks or ports for one transaction: raise net.core.wmem_max, "
                "or give fewer --include-cidr and --exclude-cidr"
            ) from None
        raise


def _explain(error: RequestError) -> RulesError:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return RulesPrivilegeError(
            "interception rules need CAP_NET_ADMIN over this network namespace: run as root, "
            "or in a namespace of your own (unshare --user --map-root-user --net)"
        )
    missing = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}
    if error.errno in missing:
        return RulesError(
            f"this kernel lacks {error.subject}: load the module named, or use a kernel that has it"
        )
    return RulesError(f"the kernel refused {error.subject}: {error.strerror}")

"""What is known of one DNS question, once it is answered."""

from __future__ import annotations

import msgspec

from sidecar.addresses import SocketAddress  # noqa: TC001 - msgspec looks at it
from sidecar.flow import Verdict

__all__ = ["LEADING", "Lookup"]

LEADING = frozenset({"A", "AAAA", "CNAME", "HTTPS", "PTR", "SRV", "SVCB"})
"""The types of what a program asks for on its way to an address."""


class Lookup(msgspec.Struct, frozen=True):
    """A question that a program asked, and what it was told.

    Attributes:
        name: In presentation format (RFC 1035 §5.1): printable ASCII, other bytes as
            backslash and three digits, at most 1004 characters; ``.`` for the root. As it was
            asked, in upper or lower case.
        type: ``A``, ``AAAA``, ``HTTPS``, …; ``TYPE999`` for what has no name (RFC 3597 §5).
        rcode: ``NOERROR``, ``NXDOMAIN``, ``SERVFAIL``, …; ``RCODE22`` for what has no name.
        verdict: DENY if the policy let the question not be sent, or withheld an address and
            nothing else was left; not for what programs make of a name that the policy lets
            be asked for.
        reason: Why, as a reason code; "default" where no rule was asked.
        rule: The rule that decided, with its place; None if none did.
        hint: The text of a rule that would allow it; empty if none would.
        addresses: The addresses that were answered, canonical.
        withheld: The addresses that were not passed on.
        problem: Why the host's name servers could tell nothing, not even that there is nothing,
            in words; empty if they could, or weren't asked.
        forwarded: Whether the policy let it be sent, and it was; not what was answered here.
        made_of: Of such, the names that a program may have made this one of: without a domain
            of the search list, without what HTTP clients put before it.
        chain: The names that the answer led through (CNAME), likewise in presentation format.
        stream: Whether it was asked over TCP.
        server: The address that was asked, canonical; None if it is not known.
        source: Who asked, inside of the namespace; None if it is not known.
        seconds: From the question to the answer.
    """

    name: str
    type: str
    rcode: str
    verdict: Verdict = Verdict.ALLOW
    reason: str = "default"
    rule: str | None = None
    hint: str = ""
    addresses: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    problem: str = ""
    forwarded: bool = True
    made_of: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    stream: bool = False
    server: str | None = None
    source: SocketAddress | None = None
    seconds: float = 0.0

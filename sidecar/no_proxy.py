"""Which destinations are reached directly, though there is an upstream proxy.

The list that curl, wget, requests and many others take from ``no_proxy``:

    example.org             this name and every name below it
    .example.org            the same
    *.example.org           only the names below it
    192.0.2.1  ::1          this address
    10.0.0.0/8              this network
    …:8080                  only on this port; IPv6 in brackets then: [::1]:8080
    *                       everything

An address matches a host that is written as an address: names are not resolved.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sidecar.addresses import pack
from sidecar.policy.index import RuleIndex
from sidecar.policy.rules import HostKind, Rule, parse_rule

if TYPE_CHECKING:
    from sidecar.addresses import Authority

__all__ = ["NoProxy"]

# curl takes blanks for commas; so do people.
_SEPARATORS = re.compile(r"[,\s]+")


class NoProxy:
    """A list of destinations that go without the proxy. A value: never changed.

    Args:
        text: Entries, separated by commas or white space, in any case; as fast to ask
            with thousands as with ten.

    Raises:
        AddressError: An entry that is none, by its text.
    """

    __slots__ = ("_index", "text")

    def __init__(self, text: str = "") -> None:
        self.text = text
        self._index = RuleIndex(_entry(word) for word in _SEPARATORS.split(text) if word)

    def covers(self, authority: Authority) -> bool:
        """Whether this destination is on the list."""
        host, port = authority.host, authority.port
        if isinstance(host, str):
            found = self._index.names.match(host, port) or self._index.match_any(port)
        else:
            found = self._index.match_address(pack(str(host)), port)
        return found is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoProxy):
            return NotImplemented
        return self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"


def _entry(text: str) -> Rule:
    rule = parse_rule(text, "no_proxy")
    if rule.kind is not HostKind.NAME:
        return rule
    return Rule(text, HostKind.DOMAIN, rule.host, rule.ports, rule.place)

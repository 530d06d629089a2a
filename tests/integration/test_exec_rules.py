"""The sandbox's rules, as nft reads them in a namespace of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from integration.netns import Namespace

from sidecar.sandbox.rules import install_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = """
		ip daddr 127.0.0.0/8 accept comment "the sandbox's own"
		ip daddr 192.0.2.1 accept comment "the sandbox's own"
		ip6 daddr ::1 accept comment "the sandbox's own"
		ip6 daddr 2001:db8::5:1dec:a2 accept comment "the sandbox's own"
		ip6 daddr fd5d:ec0a:2a2::1 accept comment "the sandbox's own"
""".strip("\n")

RULES = f"""\
table inet sidecar {{
	chain intercept {{
		type filter hook prerouting priority mangle; policy accept;
		meta l4proto != tcp accept comment "not TCP"
		tcp dport 53 accept comment "DNS"
{OWN}
		tcp flags != syn / fin,syn,rst,ack socket wildcard 0 accept comment "already alive"
		tproxy to :61453 accept comment "intercept"
		drop comment "no proxy listens"
	}}

	chain admit {{
		type filter hook input priority filter; policy accept;
		meta l4proto tcp accept comment "see intercept"
{OWN}
		udp dport 53 accept comment "DNS"
		udp sport 53 accept comment "DNS answers"
		reject comment "neither TCP nor DNS"
	}}
}}
"""


@pytest.fixture
def namespace(_namespaces: None) -> Iterator[Namespace]:
    """An empty one."""
    made = Namespace("rules")
    yield made
    made.remove()


def test_rules(namespace: Namespace) -> None:
    """Nft shows what the module's docstring promises."""
    with namespace.entered():
        install_rules()
    assert RULES == namespace.run(["nft", "list", "ruleset"]).stdout

"""Policy routing for TPROXY, against the kernel."""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from sidecar.errors import RulesError
from sidecar.linux import routing

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000  # linux/sched.h


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace, which the test runs in."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name = f"routing{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert libc.setns(there, _CLONE_NEWNET) == 0
        yield name
    finally:
        assert libc.setns(home, _CLONE_NEWNET) == 0
        os.close(home)
        os.close(there)
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)


def _ip(*arguments: str) -> str:
    done = subprocess.run(
        ["ip", *arguments], check=False, capture_output=True, text=True, timeout=20
    )
    return done.stdout


def _everything() -> list[str]:
    return [_ip(family, *what) for family in ("-4", "-6") for what in _LOOKS]


_LOOKS = (("rule",), ("route", "show", "table", "all"))


def test_added_once_and_removed(namespace: str) -> None:
    """Twice is as once; removal leaves what was there before; then there is nothing to remove."""
    _ip("link", "set", "lo", "up")
    before = _everything()
    assert len(routing.missing_tproxy_routing()) == 4
    routing.add_tproxy_routing()
    once = _everything()
    routing.add_tproxy_routing()
    assert _everything() == once
    assert routing.missing_tproxy_routing() == ()
    assert routing.remove_tproxy_routing()
    assert _everything() == before
    assert not routing.remove_tproxy_routing()


def test_the_commands_mean_the_same(namespace: str) -> None:
    """What iptables users are told to type is what apply does."""
    _ip("link", "set", "lo", "up")
    for command in routing.commands():
        subprocess.run(command.split(), check=True, timeout=20)
    assert routing.missing_tproxy_routing() == ()
    typed = _everything()
    for command in routing.commands():
        subprocess.run(command.replace(" add ", " del ").split(), check=True, timeout=20)
    routing.add_tproxy_routing()
    # `ip` leaves out that a route's origin is "boot"; ours is "static".
    assert [each.replace(" proto static", "") for each in _everything()] == typed


def test_what_is_missing_is_named(namespace: str) -> None:
    """A rule or a route that somebody took away."""
    _ip("link", "set", "lo", "up")
    routing.add_tproxy_routing()
    _ip("-6", "rule", "del", "priority", str(routing.RULE_PRIORITY))
    _ip("-4", "route", "flush", "table", str(routing.ROUTE_TABLE))
    missing = routing.missing_tproxy_routing()
    assert missing == (
        "the IPv4 local route in table 1338",
        "the IPv6 policy-routing rule for mark 0x53a",
    )
    routing.add_tproxy_routing()
    assert routing.missing_tproxy_routing() == ()


def test_foreign_rules_stay(namespace: str) -> None:
    """Another rule at our priority, another route in our table."""
    _ip("link", "set", "lo", "up")
    _ip("rule", "add", "priority", "1338", "fwmark", "0x1", "lookup", "77")
    _ip("route", "add", "blackhole", "198.51.100.0/24", "table", "1338")
    before = _everything()
    routing.add_tproxy_routing()
    routing.remove_tproxy_routing()
    assert _everything() == before


def test_a_loopback_that_is_down_is_named(namespace: str) -> None:
    """With the command that mends it."""
    before = _everything()
    with pytest.raises(RulesError, match="ip link set lo up"):
        routing.add_tproxy_routing()
    assert _everything() == before

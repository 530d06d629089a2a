"""The three renderers say the same: the kernel and the tools themselves are asked."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.errors import RulesError
from sidecar.linux.netfilter import iptables, nft, readback, table
from sidecar.linux.netfilter.model import Mode, PortRange, RuleSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.mark import ParameterSet

pytestmark = pytest.mark.thorough

FILTERS: dict[str, dict[str, object]] = {
    "none": {},
    "owners": {"exclude_uids": (0, 1337, 4294967294), "exclude_gids": (1337,)},
    "ports": {
        "include_ports": (PortRange(80, 80), PortRange(8000, 8999), PortRange(60000, 65535)),
        "exclude_ports": (PortRange(8192, 8193),),
        "exclude_inbound_ports": (PortRange(22, 22), PortRange(25, 25)),
    },
    "many ports": {
        "include_ports": tuple(PortRange(port, port + port % 2) for port in range(100, 200, 3)),
        "exclude_ports": tuple(PortRange(port, port) for port in range(1, 64, 2)),
    },
    "networks": {
        "include_cidrs": tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.1", "2001:db8::/32"))),
        "exclude_cidrs": tuple(map(ip_network, ("10.1.0.0/16", "10.2.0.0/15", "fd00::1"))),
    },
    "edges": {
        "include_cidrs": tuple(map(ip_network, ("0.0.0.0/1", "192.0.0.0/2", "8000::/1"))),
        "exclude_cidrs": tuple(map(ip_network, ("::/1", "255.255.255.255", "0.0.0.0"))),
    },
    "everything": {
        "include_cidrs": (ip_network("0.0.0.0/0"),),
        "exclude_cidrs": (ip_network("::/0"),),
        "include_ports": (PortRange(1, 65535),),
        "exclude_mark": 0xFFFFFFFF,
    },
}
PORTS = {"both": (15001, 15006), "outbound": (4140, None), "inbound": (None, 4143)}


def _matrix() -> Iterator[ParameterSet]:
    for mode, ports, filters, syn_only, forwarded in itertools.product(
        Mode, PORTS, FILTERS, (False, True), (False, True)
    ):
        if forwarded and PORTS[ports][0] is None:
            continue
        name = f"{mode.value}-{ports}-{filters}{'-syn' * syn_only}{'-forwarded' * forwarded}"
        yield pytest.param(
            RuleSet(
                mode=mode,
                outbound_port=PORTS[ports][0],
                inbound_port=PORTS[ports][1],
                syn_only=syn_only,
                forwarded=forwarded,
                **FILTERS[filters],  # type: ignore[arg-type]
            ),
            id=name,
        )


class Namespaces:
    """Two scratch network namespaces."""

    def __init__(self) -> None:
        self.names = [f"rules{os.getpid()}{letter}" for letter in "ab"]
        for name in self.names:
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)

    def run(self, which: int, *command: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[which], *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}\n{stdin}"
        return done.stdout


@pytest.fixture(scope="module")
def namespaces() -> Iterator[Namespaces]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Namespaces()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def inside(namespaces: Namespaces) -> Iterator[Namespaces]:
    """The first namespace is the process's own for the module's duration."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespaces.names[0]}", os.O_RDONLY)
    assert libc.setns(there, 0x40000000) == 0
    yield namespaces
    libc.setns(home, 0x40000000)
    os.close(home)
    os.close(there)


def _agree(rules: RuleSet, inside: Namespaces) -> None:
    shown = nft.render(rules)
    table.install(rules)
    assert inside.run(0, "nft", "list", "ruleset") == shown
    applied = readback.read()
    assert applied is not None
    assert applied.fingerprint == readback.fingerprint_of(rules)
    assert (applied.mode, applied.outbound_port, applied.inbound_port, applied.forwarded) == (
        rules.mode,
        rules.outbound_port,
        rules.inbound_port,
        rules.forwarded,
    )
    inside.run(1, "nft", "flush", "ruleset")
    inside.run(1, "nft", "-f", "-", stdin=shown)
    assert inside.run(1, "nft", "list", "ruleset") == shown


@pytest.mark.parametrize("rules", list(_matrix()))
def test_nft_lists_what_was_shown(rules: RuleSet, inside: Namespaces) -> None:
    """Applied over netlink or loaded by nft -f, nft list prints exactly what show printed."""
    _agree(rules, inside)


@pytest.mark.parametrize("rules", list(_matrix()))
def test_iptables_restore_accepts(rules: RuleSet, inside: Namespaces) -> None:
    """Both families' files, by both of iptables' kernels where they are installed."""
    for version, name in ((4, "iptables"), (6, "ip6tables")):
        text = iptables.render(rules, version)
        for tool in (f"{name}-nft-restore", f"{name}-legacy-restore"):
            if shutil.which(tool):
                inside.run(1, tool, "--test", "--noflush", stdin=text)


_networks = st.one_of(
    st.builds(
        lambda a, n: ip_network((a, n), strict=False),
        st.ip_addresses(v=4).map(int),
        st.integers(0, 32),
    ),
    st.builds(
        lambda a, n: ip_network((a, n), strict=False),
        st.ip_addresses(v=6).map(lambda a: a),
        st.integers(0, 128),
    ),
)
_port = st.integers(1, 65535)
_ranges = st.lists(
    st.tuples(_port, _port).map(lambda ends: PortRange(min(ends), max(ends)))
    | _port.map(lambda port: PortRange(port, port)),
    max_size=8,
).map(tuple)
_ids = st.lists(st.integers(0, 0xFFFFFFFE), max_size=4).map(tuple)


@st.composite
def _rule_sets(draw: st.DrawFn) -> RuleSet:
    outbound = draw(st.none() | st.integers(1, 30000))
    inbound = draw(st.integers(30001, 65535) | (st.none() if outbound else st.nothing()))
    return RuleSet(
        mode=draw(st.sampled_from(Mode)),
        outbound_port=outbound,
        inbound_port=inbound,
        exclude_uids=draw(_ids),
        exclude_gids=draw(_ids),
        exclude_mark=draw(st.integers(1, 0x539) | st.integers(0x53C, 0xFFFFFFFF)),
        include_cidrs=draw(st.lists(_networks, max_size=6).map(tuple)),
        exclude_cidrs=draw(st.lists(_networks, max_size=6).map(tuple)),
        include_ports=draw(_ranges),
        exclude_ports=draw(_ranges),
        exclude_inbound_ports=draw(_ranges),
        syn_only=draw(st.booleans()),
        forwarded=draw(st.booleans()) if outbound else False,
    )


@given(rules=_rule_sets())
@example(rules=RuleSet(exclude_cidrs=(ip_network("::ffff:0:0/96"), ip_network("::7f00:0/104"))))
@settings(deadline=None)
def test_any_rule_set(rules: RuleSet, inside: Namespaces) -> None:
    """Whatever the options, text, kernel and iptables agree."""
    _agree(rules, inside)
    for version, tool in ((4, "iptables-nft-restore"), (6, "ip6tables-nft-restore")):
        inside.run(1, tool, "--test", "--noflush", stdin=iptables.render(rules, version))


def test_ten_thousand_networks(inside: Namespaces) -> None:
    """A long list is still one transaction."""
    base = int(ip_network("10.0.0.0/8").network_address)
    networks = tuple(ip_network((base + 512 * number, 24)) for number in range(10_000))
    table.install(RuleSet(exclude_cidrs=networks))
    applied = readback.read()
    assert applied is not None
    assert applied.fingerprint == readback.fingerprint_of(RuleSet(exclude_cidrs=networks))


@pytest.mark.parametrize(
    "options",
    [
        {"outbound_port": None, "inbound_port": None},
        {"outbound_port": 1, "inbound_port": 1},
        {"outbound_port": None, "forwarded": True},
        {"outbound_port": 65536},
        {"exclude_mark": 0x53A},
        {"exclude_mark": 0x53B},
        {"exclude_mark": 0},
        {"exclude_uids": (-1,)},
        {"exclude_gids": (0xFFFFFFFF,)},
    ],
)
def test_contradictions_are_refused(options: dict[str, object]) -> None:
    """With words, and before anything is made of them."""
    with pytest.raises(RulesError):
        RuleSet(**options)  # type: ignore[arg-type]


def test_equal_meaning_is_equal_value() -> None:
    """Order, repetition and overlap make no difference."""
    one = RuleSet(
        exclude_uids=(5, 1, 5),
        exclude_ports=(PortRange(90, 99), PortRange(80, 89), PortRange(85, 92)),
        include_cidrs=tuple(map(ip_network, ("10.128.0.0/9", "10.0.0.0/9", "10.1.1.1"))),
    )
    other = RuleSet(
        exclude_uids=(1, 5),
        exclude_ports=(PortRange(80, 99),),
        include_cidrs=(ip_network("10.0.0.0/8"),),
    )
    assert one == other

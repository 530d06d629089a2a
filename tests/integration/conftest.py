"""What all integration tests share: they need root, a place outside the checkout, hosts."""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING

import pytest
from integration import netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Above everything that sidecar, Istio and Linkerd listen on.
_ports = itertools.count(20000)


# In Debian: bind9-dnsutils conntrack curl iproute2 iptables netcat-openbsd nftables
# util-linux wget.
_PROGRAMS = (
    *("conntrack", "curl", "dig", "ip", "ip6tables-restore", "iptables-restore"),
    *("nc", "nft", "prlimit", "setpriv", "wget"),
)


@pytest.fixture(scope="session", autouse=True)
def _namespaces() -> None:
    """Skip where no namespace can be made, or nothing be done in it."""
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if reason := netns.why_impossible():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is not in the checkout and that every user may enter."""
    directory = tmp_path_factory.mktemp("outside")
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def pair(_namespaces: None) -> Iterator[netns.Pair]:
    """Two hosts on a wire; tests of one module share them."""
    with netns.pair() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(_namespaces: None) -> Iterator[netns.Gateway]:
    """Client, router and server; tests of one module share them."""
    with netns.gateway() as made:
        yield made


@pytest.fixture(params=netns.FAMILIES)
def family(request: pytest.FixtureRequest) -> netns.Family:
    """Each address family in turn."""
    family: netns.Family = request.param
    return family


@pytest.fixture
def port() -> int:
    """A port that no other test uses, so that a destination names its test in the log."""
    return next(_ports)

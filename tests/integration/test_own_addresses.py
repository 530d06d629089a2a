"""The host's own addresses are known, and are nothing that just any program may reach."""

from __future__ import annotations

import select
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration.exec_stage import Stage
from integration.netns import DEADLINE, Namespace
from integration.origins import PAGE, Origin, http_page
from integration.proxy import eventually

from sidecar.addresses import SocketAddress, pack
from sidecar.linux.own_addresses import open_watch, own_addresses, something_changed

if TYPE_CHECKING:
    from collections.abc import Iterator

# They stand for those of a machine that is in reach of all the world.
PUBLIC = {socket.AF_INET: "8.8.8.8", socket.AF_INET6: "2a00:1450::1"}
BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
FAMILIES = pytest.mark.parametrize("family", PUBLIC, ids=lambda family: family.name)


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host whose own addresses are its loopback's."""
    made = Namespace("own")
    yield made
    made.remove()


def add(host: Namespace, family: socket.AddressFamily) -> str:
    """Give the host its public address."""
    address = PUBLIC[family]
    host.ip("addr", "add", f"{address}/{BITS[family]}", "dev", "lo", "nodad")
    # For IPv6 a worker of the kernel's makes the route, and tells who watches.
    version = "-6" if family == socket.AF_INET6 else "-4"
    eventually(
        True, lambda: address in host.ip(version, "route", "show", "table", "local", address)
    )
    return address


class TestKernel:
    @FAMILIES
    def test_all(self, host: Namespace, family: socket.AddressFamily) -> None:
        """Those that came are among them, those that went are not."""
        with host.entered():
            before = own_addresses()
        loopback = {socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")}
        assert loopback == before
        packed = socket.inet_pton(family, add(host, family))
        with host.entered():
            assert {*loopback, packed} == own_addresses()

    def test_point_to_point(self, host: Namespace) -> None:
        """The other end's is not the host's."""
        # On lo it would be.
        host.ip("link", "add", "here", "type", "veth", "peer", "name", "there")
        host.ip("link", "set", "here", "up")
        host.ip("addr", "add", "10.1.1.1", "peer", "10.1.1.2", "dev", "here")
        with host.entered():
            found = own_addresses()
        assert socket.inet_aton("10.1.1.1") in found
        assert socket.inet_aton("10.1.1.2") not in found

    @pytest.mark.parametrize(
        ("network", "inside", "outside"),
        [
            ("8.8.8.8/32", ["8.8.8.8"], ["8.8.8.7", "8.8.8.9"]),
            ("8.8.4.0/22", ["8.8.4.0", "8.8.7.255"], ["8.8.3.255", "8.8.8.0", "::808:505"]),
            ("2a00:1450::7/128", ["2a00:1450::7"], ["2a00:1450::6"]),
            ("2a00:1450::/64", ["2a00:1450::", "2a00:1450::ffff:0:0:1"], ["2a00:1450:0:1::"]),
        ],
    )
    def test_local_by_route(
        self, host: Namespace, network: str, inside: list[str], outside: list[str]
    ) -> None:
        """What a route makes local is among them, with no interface that has it; until it goes."""
        with host.entered():
            before = own_addresses()
        host.ip("route", "add", "local", network, "dev", "lo", "proto", "66")
        with host.entered():
            found = own_addresses()
        assert before != found
        assert [True] * len(inside) == [pack(each) in found for each in inside]
        assert [False] * len(outside) == [pack(each) in found for each in outside]
        host.ip("route", "del", "local", network, "dev", "lo")
        with host.entered():
            assert before == own_addresses()

    def test_no_local_routes(self, host: Namespace) -> None:
        """Loopback, what only marked packets go by, what intercepts all, and where others are."""
        with host.entered():
            before = own_addresses()
        host.ip("route", "add", "local", "127.5.0.0/16", "dev", "lo")
        for family in ("-4", "-6"):
            host.ip(family, "route", "add", "local", "default", "dev", "lo")
            host.ip(family, "route", "add", "local", "default", "dev", "lo", "table", "1338")
        host.ip("route", "add", "local", "8.8.0.0/16", "dev", "lo", "table", "100")
        host.ip("route", "add", "unreachable", "9.9.0.0/16")
        host.ip("route", "add", "broadcast", "9.8.255.255", "dev", "lo", "table", "local")
        host.ip("route", "add", "unreachable", "2620:fe::/48")
        with host.entered():
            assert before == own_addresses()

    @pytest.mark.parametrize("network", ["8.8.4.0/22", "2a00:1450::/64"])
    def test_watch_routes(self, host: Namespace, network: str) -> None:
        """Local ones count, when they come and when they go; others don't."""
        with host.entered():
            watch = open_watch()
        with watch:
            for kind, device in (("unreachable", ()), ("local", ("dev", "lo"))):
                for way in ("add", "del"):
                    host.ip("route", way, kind, network, *device)
                    assert [watch] == select.select([watch], [], [], DEADLINE)[0]
                    assert something_changed(watch) is (kind == "local")

    @FAMILIES
    def test_watch(self, host: Namespace, family: socket.AddressFamily) -> None:
        """It can be read when something has changed, and then is silent again."""
        with host.entered():
            watch = open_watch()
        with watch:
            assert not something_changed(watch)
            add(host, family)
            assert [watch] == select.select([watch], [], [], DEADLINE)[0]
            assert something_changed(watch)
            assert not something_changed(watch)


class TestExec:
    @pytest.fixture
    def stage(self, host: Namespace) -> Iterator[Stage]:
        """Nobody, on the host, with the default policy."""
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            directory.chmod(0o777)
            yield Stage(host, directory, "nobody", options=[], patiently=True)

    @FAMILIES
    def test_denied(
        self, stage: Stage, host: Namespace, family: socket.AddressFamily, port: int
    ) -> None:
        """The default, which allows what is public, doesn't allow it; a rule for it does."""
        server = SocketAddress(add(host, family), port)
        curl = ("curl", "-sS", "--globoff", "--max-time", "10", f"http://{server}/")
        with Origin(host, server, http_page):
            denied = stage.run(*curl)
            allowed = stage.run(*curl, options=["--allow", str(server)])
        (entry,) = denied.log
        assert ("deny", "private_address") == (entry["verdict"], entry["reason"])
        assert f"--allow {server}" in denied.output or f"to allow it: {server}" in denied.output
        assert PAGE == allowed.output

    @pytest.mark.parametrize("network", ["8.8.8.0/24", "2a00:1450::/64"])
    def test_by_route(self, stage: Stage, host: Namespace, network: str, port: int) -> None:
        """Nor what a route makes local."""
        host.ip("route", "add", "local", network, "dev", "lo")
        server = SocketAddress(network.partition("/")[0].replace(".0", ".7"), port)
        denied = stage.run("curl", "-sS", "-g", "--max-time", "10", f"http://{server}/")
        (entry,) = denied.log
        assert ("deny", "private_address") == (entry["verdict"], entry["reason"])

    @FAMILIES
    def test_comes_later(
        self, stage: Stage, host: Namespace, family: socket.AddressFamily, port: int
    ) -> None:
        """An address that the host gets while the command runs is its own from then on."""
        server = SocketAddress(PUBLIC[family], port)
        script = f"echo ready; read line; curl -sS -g --max-time 10 http://{server}/; echo"
        process = stage.start("sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            add(host, family)
            with Origin(host, server, http_page):
                output, _ = process.communicate("go\n", timeout=DEADLINE)
        assert f"to allow it: {server}" in output

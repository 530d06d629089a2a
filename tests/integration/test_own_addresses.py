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

from sidecar.addresses import SocketAddress
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
        assert {socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")} == before
        packed = socket.inet_pton(family, add(host, family))
        with host.entered():
            assert before | {packed} == own_addresses()

    def test_point_to_point(self, host: Namespace) -> None:
        """The other end's is not the host's."""
        host.ip("addr", "add", "10.1.1.1", "peer", "10.1.1.2", "dev", "lo")
        with host.entered():
            found = own_addresses()
        assert socket.inet_aton("10.1.1.1") in found
        assert socket.inet_aton("10.1.1.2") not in found

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

"""Namespaces are made here, in child processes, and refused for every reason we can bring about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from identities import NO_UNSHARE, as_nobody, in_user_namespace, needs_root, without_capabilities

# What a child process does; tells what it found as JSON.
ENTER = """
import json, os, socket, sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from sidecar.errors import NamespaceError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.sandbox.users import enter_network_namespace

kinds = ["net", "user"]
before = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
try:
    enter_network_namespace()
    versions = set_up_loopback(
        [ip_address("192.0.2.1"), ip_address("2001:db8::1")],
        [ip_network("198.51.100.0/24"), ip_network("2001:db8:1::/64")],
    )
except NamespaceError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()

def connect(family, host):
    listener = socket.socket(family)
    listener.setsockopt(socket.IPPROTO_IPV6, 78, 1) if family == socket.AF_INET6 else None
    listener.bind((host, 80))
    listener.listen()
    client = socket.create_connection((host, 80))
    return client.getsockname()[0]

print(json.dumps({
    "new": [kind for kind in kinds if os.readlink(f"/proc/self/ns/{kind}") != before[kind]],
    "uid": os.geteuid(),
    "gid": os.getegid(),
    "uid_map": Path("/proc/self/uid_map").read_text().split(),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "versions": sorted(versions),
    "sources": [
        connect(socket.AF_INET, "198.51.100.7"), connect(socket.AF_INET6, "2001:db8:1::7")
    ],
}))
"""


def python(program: str) -> list[str]:
    """The command that runs a program with the modules that this process has."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"]


def tell(command: list[str]) -> dict[str, Any]:
    """Run a command that prints JSON."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "" == done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


WHOLE = {
    "new": ["net", "user"],
    "interfaces": ["lo"],
    "versions": [4, 6],
    "sources": ["192.0.2.1", "2001:db8::1"],
}


@needs_root
class TestEnter:
    """A network whose lo is up and leads to what was made local; nobody becomes another."""

    def test_root(self) -> None:
        """Root is itself inside, and everybody else is who they were."""
        everybody = Path("/proc/self/uid_map").read_text().split()
        uid_map = [everybody[0], everybody[0], everybody[2]]
        assert {**WHOLE, "uid": 0, "gid": 0, "uid_map": uid_map} == tell(python(ENTER))

    def test_root_without_user_namespaces(self) -> None:
        """Where there can be none, root needs none."""
        found = tell(in_user_namespace({"max_user_namespaces": "0"}, python(ENTER)))
        assert {**WHOLE, "new": ["net"]}.items() <= found.items()

    def test_root_that_may_not_map_itself(self) -> None:
        """Nor where it may not be root inside (CAP_SETFCAP, Linux 5.12)."""
        found = tell(
            without_capabilities(python(ENTER), keep=["sys_admin", "net_admin", "net_bind_service"])
        )
        assert {**WHOLE, "new": ["net"]}.items() <= found.items()

    def test_root_in_a_container(self) -> None:
        """Root without CAP_SETUID maps itself alone."""
        found = tell(without_capabilities(python(ENTER)))
        assert {**WHOLE, "uid": 0, "gid": 0, "uid_map": ["0", "0", "1"]} == found

    def test_ordinary_user(self, tmp_path: Path) -> None:
        """So does any user."""
        found = tell(as_nobody(python(ENTER), tmp_path))
        uid_map = ["65534", "65534", "1"]
        assert {**WHOLE, "uid": 65534, "gid": 65534, "uid_map": uid_map} == found

    def test_nested(self) -> None:
        """So does root of a user namespace."""
        assert ["net", "user"] == tell(in_user_namespace({}, python(ENTER)))["new"]


@needs_root
class TestRefused:
    def test_no_user_namespaces(self) -> None:
        """A limit of 0 user namespaces is named, with the sysctl that raises it."""
        command = without_capabilities(python(ENTER))
        found = tell(in_user_namespace({"max_user_namespaces": "0"}, command))
        assert {
            "refused": "user.max_user_namespaces is 0, so no user namespace can be made here; run"
            " with CAP_SYS_ADMIN and CAP_NET_ADMIN, or allow some:"
            " sysctl -w user.max_user_namespaces=15000"
        } == found

    def test_no_network_namespaces(self) -> None:
        """A limit of 0 network namespaces likewise; root is no way round it."""
        limits = {"max_user_namespaces": "0", "max_net_namespaces": "0"}
        found = tell(in_user_namespace(limits, python(ENTER)))
        assert {
            "refused": "user.max_net_namespaces is 0, so no network namespace can be made here;"
            " allow some: sysctl -w user.max_net_namespaces=15000"
        } == found

    def test_limit_further_out(self) -> None:
        """A limit that an outer user namespace sets shows no number: it says so."""
        found = tell(in_user_namespace({"max_net_namespaces": "0"}, python(ENTER)))
        assert "user.max_net_namespaces) is reached, here or further out" in found["refused"]

    def test_root_that_may_not_map_itself(self) -> None:
        """Root without CAP_SETFCAP can't be root of a user namespace (Linux 5.12)."""
        found = tell(without_capabilities(python(ENTER), keep=()))
        assert "needs CAP_SETFCAP" in found["refused"]
        assert "run as another user" in found["refused"]

    @pytest.mark.parametrize("keep", [["setfcap"], None])
    def test_seccomp(self, keep: list[str] | None) -> None:
        """A seccomp filter is named, with what a container needs."""
        command = python(NO_UNSHARE + ENTER)
        found = tell(command if keep is None else without_capabilities(command, keep=keep))
        assert found["refused"].startswith("a seccomp filter, as containers have one")
        assert "--security-opt seccomp=unconfined" in found["refused"]

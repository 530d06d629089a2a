"""Interception rules against the kernel: what they catch, what they leave alone, how they go.

A plain listener stands for the proxy; what it does with a connection is tested elsewhere.
"""

from __future__ import annotations

import codecs
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import time
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from integration.netns import DEADLINE, FAMILIES, Namespace
from integration.proxy import eventually

from sidecar.addresses import SocketAddress
from sidecar.cli import main
from sidecar.linux.netfilter import lifecycle
from sidecar.linux.netfilter.lifecycle import Removal, RemovalState
from sidecar.linux.netfilter.model import Mode, PortRange, RuleSet
from sidecar.linux.sockopt import original_destination, set_mark, set_transparent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.netns import Family, Gateway, Pair

pytestmark = pytest.mark.thorough

OUTBOUND, INBOUND = 15001, 15006
# Seconds after which a connection that must not come counts as not coming.
NEVER = 0.7

MODES = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
SYN_ONLY = pytest.mark.parametrize("syn_only", [False, True], ids=["plain", "syn_only"])


def apply(namespace: Namespace, **options: object) -> RuleSet:
    rules = RuleSet(**options)  # type: ignore[arg-type]
    with namespace.entered():
        lifecycle.apply(rules)
    return rules


def remove(namespace: Namespace, *, now: bool = False) -> Removal:
    with namespace.entered():
        return lifecycle.remove(now=now)


def state_of(namespace: Namespace) -> list[str]:
    """Everything that rules could leave behind."""
    looks = (
        ["nft", "list", "ruleset"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
    )
    return [namespace.run(command).stdout for command in looks]


@contextmanager
def clean(*namespaces: Namespace) -> Iterator[None]:
    """No rules afterwards, and proof that nothing else is left either."""
    before = [state_of(each) for each in namespaces]
    try:
        yield
    finally:
        for each in namespaces:
            remove(each, now=True)
    assert before == [state_of(each) for each in namespaces]


@contextmanager
def proxy(
    namespace: Namespace, port: int, mode: Mode, mark: int | None = 0x539
) -> Iterator[socket.socket]:
    """A dual-stack listener, transparent in tproxy mode."""
    with ExitStack() as stack:
        listener = stack.enter_context(namespace.tcp_socket(socket.AF_INET6))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if mode is Mode.TPROXY:
            set_transparent(listener)
        if mark is not None:
            set_mark(listener, mark)
        listener.bind(("::", port))
        listener.listen(64)
        listener.settimeout(5)
        yield listener


def accepted_from(listener: socket.socket, mode: Mode) -> tuple[socket.socket, SocketAddress]:
    """Accept, and find out as a proxy would where the connection was going."""
    connection, peer = listener.accept()
    connection.settimeout(5)
    if mode is Mode.TPROXY:
        return connection, SocketAddress.from_kernel(connection.getsockname())
    ipv4 = SocketAddress.from_kernel(peer).family == socket.AF_INET
    return connection, original_destination(connection, peer_is_ipv4=ipv4)


def talk(one: socket.socket, other: socket.socket) -> None:
    """Bytes go both ways."""
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"x" * 5000)
        received = b""
        while len(received) < 5000:
            data = receiver.recv(65536)
            assert data
            received += data


def comes_nothing(listener: socket.socket) -> None:
    listener.settimeout(NEVER)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.settimeout(5)


def refused_or_silent(namespace: Namespace, to: SocketAddress) -> None:
    """A connection that can't be made."""
    with namespace.tcp_socket(to.family) as sock:
        sock.settimeout(NEVER)
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            sock.connect((to.host, to.port))


@MODES
@SYN_ONLY
@pytest.mark.parametrize("mark", [0x539, None], ids=["marked", "unmarked"])
def test_outbound(
    pair: Pair, family: Family, port: int, mode: Mode, syn_only: bool, mark: int | None
) -> None:
    """What a program opens arrives at the outbound port, with where it was going."""
    near, to = pair.near.namespace, pair.far.at(family, port)
    with clean(near), proxy(near, OUTBOUND, mode, mark) as listener:
        apply(near, mode=mode, syn_only=syn_only)
        with near.connect(to) as client:
            connection, destination = accepted_from(listener, mode)
            with connection:
                assert destination == to
                talk(client, connection)


@MODES
@SYN_ONLY
@pytest.mark.parametrize("mark", [0x539, None], ids=["marked", "unmarked"])
def test_inbound(
    pair: Pair, family: Family, port: int, mode: Mode, syn_only: bool, mark: int | None
) -> None:
    """What comes from another host arrives at the inbound port, not at the application."""
    near, to = pair.near.namespace, pair.near.at(family, port)
    with clean(near), proxy(near, INBOUND, mode, mark) as listener, near.listen(to) as application:
        apply(near, mode=mode, syn_only=syn_only, exclude_uids=() if mark else (0,))
        with pair.far.namespace.connect(to) as client:
            connection, destination = accepted_from(listener, mode)
            with connection:
                assert destination == to
                talk(client, connection)
        comes_nothing(application)


@MODES
@SYN_ONLY
@pytest.mark.parametrize("mark", [0x539, None], ids=["marked", "unmarked"])
def test_forwarded(
    gateway: Gateway, family: Family, port: int, mode: Mode, syn_only: bool, mark: int | None
) -> None:
    """What a gateway routes for others arrives at its outbound port, if asked for."""
    middle, to = gateway.router.namespace, gateway.server.at(family, port)
    with clean(middle), proxy(middle, OUTBOUND, mode, mark) as listener:
        apply(middle, mode=mode, syn_only=syn_only, forwarded=True)
        with gateway.client.namespace.connect(to) as client:
            connection, destination = accepted_from(listener, mode)
            with connection:
                assert destination == to
                talk(client, connection)


@MODES
def test_forwarded_only_if_asked_for(
    gateway: Gateway, family: Family, port: int, mode: Mode
) -> None:
    """Without it, what is routed for others passes."""
    middle, to = gateway.router.namespace, gateway.server.at(family, port)
    with clean(middle), gateway.server.namespace.listen(to) as server:
        apply(middle, mode=mode)
        with gateway.client.namespace.connect(to) as client, server.accept()[0] as connection:
            talk(client, connection)


@MODES
@SYN_ONLY
def test_own_mark_and_excluded_user_pass(
    pair: Pair, family: Family, port: int, mode: Mode, syn_only: bool
) -> None:
    """The proxy's connections, known by mark or by user, go where they are meant to."""
    near, to = pair.near.namespace, pair.far.at(family, port)
    with clean(near), pair.far.namespace.listen(to) as server:
        apply(near, mode=mode, syn_only=syn_only, exclude_uids=(1337,), exclude_gids=(1338,))
        for who in ("mark", "uid", "gid"):
            with ExitStack() as stack:
                if who == "uid":
                    os.seteuid(1337)
                    stack.callback(os.seteuid, 0)
                if who == "gid":
                    os.setegid(1338)
                    stack.callback(os.setegid, 0)
                with near.entered() if who == "mark" else _as_is():
                    client = _socket_in(near, to.family, who)
            with client:
                client.connect((to.host, to.port))
                with server.accept()[0] as connection:
                    talk(client, connection)


@contextmanager
def _as_is() -> Iterator[None]:
    yield


def _socket_in(namespace: Namespace, family: socket.AddressFamily, who: str) -> socket.socket:
    # Entering a namespace needs root, the socket must be the other user's: so the
    # effective user changes in between.
    uid, gid = os.geteuid(), os.getegid()
    os.seteuid(0)
    with namespace.entered():
        os.setegid(gid)
        os.seteuid(uid)
        client = socket.socket(family, socket.SOCK_STREAM)
        os.seteuid(0)
    client.settimeout(5)
    if who == "mark":
        set_mark(client, 0x539)
    return client


@MODES
def test_loopback_passes(pair: Pair, mode: Mode, port: int) -> None:
    """Loopback destinations are never intercepted."""
    near = pair.near.namespace
    with clean(near):
        apply(near, mode=mode)
        for host in ("127.0.0.1", "127.8.8.8", "::1"):
            to = SocketAddress(host, port)
            with (
                near.listen(to) as server,
                near.connect(to) as client,
                server.accept()[0] as connection,
            ):
                talk(client, connection)


@MODES
@SYN_ONLY
def test_filters(pair: Pair, port: int, mode: Mode, syn_only: bool) -> None:
    """Included and excluded networks and ports, outbound and inbound, both families."""
    near, far = pair.near, pair.far
    options = {
        "mode": mode,
        "syn_only": syn_only,
        "exclude_ports": (PortRange(port, port), PortRange(port + 2, port + 3)),
        "exclude_inbound_ports": (PortRange(port, port), PortRange(port + 2, port + 3)),
    }
    passing: list[tuple[dict[str, object], int]] = [
        (options, port),
        (options, port + 3),
        ({"mode": mode, "exclude_cidrs": tuple(map(ip_network, ("10.71.0.0/24", "fd71::2")))}, 80),
        ({"mode": mode, "include_cidrs": tuple(map(ip_network, ("10.9.0.0/16", "fd9::/64")))}, 80),
        ({"mode": mode, "include_ports": (PortRange(1, 79), PortRange(81, 90))}, 80),
    ]
    for number, (given, at) in enumerate(passing):
        for family in FAMILIES:
            ways = [(near, far, far.at(family, at))]
            if number < 2:
                ways.append((far, near, near.at(family, at)))
            for client_host, server_host, to in ways:
                with clean(near.namespace), server_host.namespace.listen(to) as server:
                    apply(near.namespace, **given)
                    client = client_host.namespace.connect(to)
                    with client, server.accept()[0] as connection:
                        talk(client, connection)
    included = {
        "mode": mode,
        "include_cidrs": tuple(map(ip_network, ("10.71.0.2", "10.9.0.0/16", "fd71::/64"))),
        "include_ports": (PortRange(80, 80), PortRange(8000, 8999)),
    }
    for family in FAMILIES:
        with clean(near.namespace), proxy(near.namespace, OUTBOUND, mode) as listener:
            apply(near.namespace, **included)
            with near.namespace.connect(far.at(family, 8500)):
                connection, destination = accepted_from(listener, mode)
                connection.close()
                assert destination == far.at(family, 8500)


@MODES
@SYN_ONLY
def test_dialling_the_proxy_reaches_it_unintercepted(
    pair: Pair, family: Family, mode: Mode, syn_only: bool
) -> None:
    """So that it can tell, and refuse."""
    near = pair.near.namespace
    with clean(near), ExitStack() as stack:
        apply(near, mode=mode, syn_only=syn_only)
        for port in (OUTBOUND, INBOUND):
            listener = stack.enter_context(proxy(near, port, mode))
            with pair.far.namespace.connect(pair.near.at(family, port)):
                connection, destination = accepted_from(listener, mode)
                with connection:
                    assert destination == pair.near.at(family, port)


@SYN_ONLY
@pytest.mark.parametrize("way", ["outbound", "inbound", "forwarded"])
def test_tproxy_without_a_proxy_fails_closed(
    gateway: Gateway, family: Family, port: int, syn_only: bool, way: str
) -> None:
    """Nothing connects, and nothing of it reaches the server."""
    middle = gateway.router.namespace
    client, to = {
        "outbound": (middle, gateway.server.at(family, port)),
        "inbound": (gateway.client.namespace, gateway.router.at(family, port)),
        "forwarded": (gateway.client.namespace, gateway.server.at(family, port)),
    }[way]
    server = middle if way == "inbound" else gateway.server.namespace
    with clean(middle), server.listen(to) as real:
        apply(middle, mode=Mode.TPROXY, syn_only=syn_only, forwarded=True)
        refused_or_silent(client, to)
        comes_nothing(real)


@MODES
def test_no_way_round_a_proxy_that_is_killed(
    pair: Pair, family: Family, port: int, mode: Mode
) -> None:
    """Listener gone: the next connection fails, the real server sees nothing."""
    near, to = pair.near.namespace, pair.far.at(family, port)
    with clean(near), pair.far.namespace.listen(to) as real:
        apply(near, mode=mode)
        with proxy(near, OUTBOUND, mode) as listener, near.connect(to):
            accepted_from(listener, mode)[0].close()
        refused_or_silent(near, to)
        comes_nothing(real)


def test_marked_packets_never_leave_without_the_route(
    pair: Pair, family: Family, port: int
) -> None:
    """Somebody deletes the policy-routing rule: connections fail, none escapes."""
    near, to = pair.near.namespace, pair.far.at(family, port)
    with pair.far.namespace.listen(to) as real, proxy(near, OUTBOUND, Mode.TPROXY), clean(near):
        apply(near, mode=Mode.TPROXY)
        for version in ("-4", "-6"):
            near.ip(version, "rule", "del", "priority", "1338")
        refused_or_silent(near, to)
        comes_nothing(real)


@MODES
def test_again_changes_nothing_and_modes_replace_each_other(pair: Pair, mode: Mode) -> None:
    """Applying is idempotent, over itself, over the other mode, over a draining table."""
    near = pair.near.namespace
    other = Mode.REDIRECT if mode is Mode.TPROXY else Mode.TPROXY
    with clean(near):
        apply(near, mode=mode)
        once = state_of(near)
        apply(near, mode=mode)
        assert state_of(near) == once
        apply(near, mode=other, forwarded=True)
        assert state_of(near) != once
        apply(near, mode=mode)
        assert state_of(near) == once


@MODES
def test_others_are_left_alone(pair: Pair, mode: Mode) -> None:
    """A foreign table, foreign rules and routes are the same before, during and after."""
    near = pair.near.namespace
    foreign = "table ip other {\n chain c {\n type nat hook output priority -100;\n"
    foreign += " tcp dport 1 redirect to :2\n }\n}\n"
    near.run(["nft", "-f", "-"], stdin=foreign)
    near.ip("rule", "add", "priority", "77", "fwmark", "0x539", "lookup", "77")
    try:
        before = near.run(["nft", "list", "table", "ip", "other"]).stdout
        with clean(near):
            apply(near, mode=mode, forwarded=True)
            assert near.run(["nft", "list", "table", "ip", "other"]).stdout == before
            assert "77:\tfrom all fwmark 0x539 lookup 77" in near.ip("rule")
    finally:
        near.run(["nft", "delete", "table", "ip", "other"])
        near.ip("rule", "del", "priority", "77")


@MODES
@pytest.mark.parametrize("way", ["outbound", "inbound", "forwarded"])
def test_syn_only_spares_live_connections(
    gateway: Gateway, family: Family, port: int, mode: Mode, way: str
) -> None:
    """Rules that come while a direct connection is alive leave it alive; the next is caught."""
    middle = gateway.router.namespace
    client_in, server_in, to, at = {
        "outbound": (middle, gateway.server.namespace, gateway.server.at(family, port), OUTBOUND),
        "inbound": (gateway.client.namespace, middle, gateway.router.at(family, port), INBOUND),
        "forwarded": (
            gateway.client.namespace,
            gateway.server.namespace,
            gateway.server.at(family, port),
            OUTBOUND,
        ),
    }[way]
    with (
        clean(middle),
        server_in.listen(to) as server,
        client_in.connect(to) as client,
        server.accept()[0] as connection,
        proxy(middle, at, mode) as listener,
    ):
        talk(client, connection)
        apply(middle, mode=mode, syn_only=True, forwarded=True)
        talk(client, connection)
        talk(connection, client)
        with client_in.connect(to) as later:
            taken, destination = accepted_from(listener, mode)
            with taken:
                assert destination == to
                talk(later, taken)
        talk(client, connection)


@MODES
@SYN_ONLY
@pytest.mark.parametrize("way", ["outbound", "inbound", "forwarded"])
@pytest.mark.parametrize("mark", [0x539, None], ids=["marked", "unmarked"])
def test_remove_drains(
    gateway: Gateway,
    family: Family,
    port: int,
    mode: Mode,
    syn_only: bool,
    way: str,
    mark: int | None,
) -> None:
    """What is relayed lives on, what is new goes direct, and in the end nothing is left."""
    middle = gateway.router.namespace
    client_in, server_in, to, at = {
        "outbound": (middle, gateway.server.namespace, gateway.server.at(family, port), OUTBOUND),
        "inbound": (gateway.client.namespace, middle, gateway.router.at(family, port), INBOUND),
        "forwarded": (
            gateway.client.namespace,
            gateway.server.namespace,
            gateway.server.at(family, port),
            OUTBOUND,
        ),
    }[way]
    with clean(middle), proxy(middle, at, mode, mark) as listener, server_in.listen(to) as server:
        before = state_of(middle)
        apply(middle, mode=mode, syn_only=syn_only, forwarded=True)
        with client_in.connect(to) as client:
            relayed, _ = accepted_from(listener, mode)
            with relayed:
                talk(client, relayed)
                assert remove(middle) == Removal(RemovalState.DRAINING, 1)
                for _ in range(2):
                    talk(client, relayed)
                    talk(relayed, client)
                    with client_in.connect(to) as later, server.accept()[0] as direct:
                        talk(later, direct)
                    assert remove(middle) == Removal(RemovalState.DRAINING, 1)
        until = time.monotonic() + DEADLINE
        while (removal := remove(middle)).state is RemovalState.DRAINING:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert removal == Removal(RemovalState.REMOVED, 0)
        assert remove(middle) == Removal(RemovalState.ABSENT, 0)
        assert state_of(middle) == before


def test_inbound_tproxy_needs_no_draining(pair: Pair, family: Family, port: int) -> None:
    """Alone, its rules go at once, and what is relayed never notices."""
    near, to = pair.near.namespace, pair.near.at(family, port)
    with clean(near), proxy(near, INBOUND, Mode.TPROXY) as listener:
        apply(near, mode=Mode.TPROXY, outbound_port=None)
        with pair.far.namespace.connect(to) as client:
            relayed, _ = accepted_from(listener, Mode.TPROXY)
            with relayed:
                talk(client, relayed)
                assert remove(near) == Removal(RemovalState.REMOVED, 0)
                talk(client, relayed)
                talk(relayed, client)


@MODES
@pytest.mark.parametrize("way", ["outbound", "inbound"])
@pytest.mark.parametrize("first", ["client", "proxy"])
def test_flushing_conntrack_is_survived(
    pair: Pair, family: Family, port: int, mode: Mode, way: str, first: str
) -> None:
    """Plain rules heal an intercepted connection whose conntrack entry is gone."""
    near = pair.near.namespace
    client_in, to, at = {
        "outbound": (near, pair.far.at(family, port), OUTBOUND),
        "inbound": (pair.far.namespace, pair.near.at(family, port), INBOUND),
    }[way]
    with clean(near), proxy(near, at, mode) as listener:
        apply(near, mode=mode)
        with client_in.connect(to) as client:
            relayed, _ = accepted_from(listener, mode)
            with relayed:
                talk(client, relayed)
                near.run(["conntrack", "-F"], check=False)
                if first == "proxy":
                    relayed.sendall(b"y")
                    if mode is Mode.REDIRECT:
                        # What NAT can't recognize waits for the client to speak.
                        time.sleep(0.1)
                        client.sendall(b"z")
                        assert relayed.recv(1) == b"z"
                    assert client.recv(1) == b"y"
                talk(client, relayed)
                talk(relayed, client)


def as_nobody(work: Callable[[], str]) -> str:
    """What a function says in a child process of uid 65534, which imports nothing more."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def _in_own_namespaces(mode: Mode) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000):  # CLONE_NEWUSER | CLONE_NEWNET
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    with socket.socket() as sock:
        up = struct.pack("16sh22x", b"lo", 0x49)  # IFF_UP | IFF_LOOPBACK | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, up)  # SIOCSIFFLAGS
    started = time.perf_counter()
    lifecycle.apply(RuleSet(mode=mode, exclude_uids=(1337,)))
    milliseconds = (time.perf_counter() - started) * 1e3
    return f"{lifecycle.remove().state.value} after being applied in {milliseconds:.1f} ms"


@MODES
def test_rootless(mode: Mode) -> None:
    """As nobody, in a user and network namespace of one's own, with no program's help."""
    codecs.lookup("ascii")  # nobody may not read where it is imported from
    said = as_nobody(lambda: _in_own_namespaces(mode))
    print(said)
    assert said.startswith("removed after being applied in "), said


@MODES
def test_without_privilege_is_one_line(pair: Pair, mode: Mode) -> None:
    """Whoever may not is told what to do."""

    def refused() -> str:
        lifecycle.apply(RuleSet(mode=mode))
        return "applied"

    with pair.near.namespace.entered():
        said = as_nobody(refused)
    assert said.startswith("RulesPrivilegeError: ")
    assert "CAP_NET_ADMIN" in said
    assert "\n" not in said


@pytest.mark.parametrize("how", ["down", "disabled"])
def test_without_ipv6(how: str) -> None:
    """A host whose IPv6 is switched off, or whose lo is down, is served or told."""
    with ExitStack() as stack:
        namespace = Namespace("six")
        stack.callback(namespace.remove)
        if how == "down":
            namespace.ip("link", "set", "lo", "down")
            with pytest.raises(Exception, match="ip link set lo up"):
                apply(namespace, mode=Mode.TPROXY)
            apply(namespace, mode=Mode.REDIRECT)
            return
        namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")
        namespace.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
        namespace.ip("route", "add", "default", "dev", "lo")
        with clean(namespace), proxy_v4(namespace) as listener:
            apply(namespace, mode=Mode.TPROXY)
            with namespace.connect(SocketAddress("203.0.113.9", 80)):
                connection, destination = accepted_from(listener, Mode.TPROXY)
                connection.close()
                assert destination == SocketAddress("203.0.113.9", 80)


@contextmanager
def proxy_v4(namespace: Namespace) -> Iterator[socket.socket]:
    with namespace.tcp_socket(socket.AF_INET) as listener:
        set_transparent(listener)
        listener.bind(("0.0.0.0", OUTBOUND))
        listener.listen()
        listener.settimeout(5)
        yield listener


def test_timing(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """How long it takes, for the record."""
    near = pair.near.namespace
    with suppress(OSError), clean(near):
        for mode in Mode:
            rules = RuleSet(mode=mode, exclude_uids=(1337,))
            with near.entered():
                started = time.perf_counter()
                lifecycle.apply(rules)
                milliseconds = (time.perf_counter() - started) * 1e3
            with capsys.disabled():
                print(f"[{mode.value}: applied in {milliseconds:.1f} ms]", end=" ")


def say(
    namespace: Namespace, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Run `sidecar rules` in this process, in the namespace."""
    with namespace.entered():
        status = main(["rules", *arguments])
    said = capsys.readouterr()
    return status, said.out + said.err


@MODES
@SYN_ONLY
@pytest.mark.parametrize("forwarded", [False, True], ids=["local", "forwarded"])
def test_check_succeeds(
    pair: Pair, mode: Mode, syn_only: bool, forwarded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules in force, proxy listening: every direction is shown by a connection."""
    near = pair.near.namespace
    options = ["--mode", mode.value, *["--syn-only"] * syn_only, *["--forwarded"] * forwarded]
    links = near.ip("link")
    with clean(near), proxy(near, OUTBOUND, mode), proxy(near, INBOUND, mode):
        assert say(near, capsys, "apply", *options)[0] == 0
        for arguments in ([], options):
            status, said = say(near, capsys, "check", *arguments)
            assert (status, "FAILED" in said, "note" in said) == (0, False, False), said
            ways = ("outbound", "inbound", "forwarded")[: 3 if forwarded else 2]
            for way in ways:
                for version in (4, 6):
                    assert f"ok: {way} IPv{version}: a connection" in said
    assert near.ip("link") == links


@MODES
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("no rules", "there is no table inet sidecar here"),
        ("no proxy", "the rules work"),
        ("draining", "the rules are draining"),
        ("excluded", "user 0 (group 0) is excluded"),
        ("other options", "is not what these options say"),
        ("edited", "is not what these options say"),
        ("hidden", "outbound IPv4: a connection to 198.51.100.1:443 was"),
        ("not sidecar's", "is not one that sidecar made"),
        ("no route", "no address family has a route"),
        ("rule deleted", "the IPv4 policy-routing rule for mark 0x53a is missing"),
        (
            "address excluded",
            "outbound IPv6: a connection to [2001:db8::1]:443 was not intercepted",
        ),
    ],
)
def test_check_says_what_is_wrong(  # noqa: C901, PLR0912 - a line per way to break it
    pair: Pair, mode: Mode, broken: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1 and the reason in words."""
    near = pair.near.namespace
    if broken == "rule deleted" and mode is Mode.REDIRECT:
        return
    options = ["--mode", mode.value]
    applied = list(options)
    if broken == "excluded":
        applied += ["--exclude-uid", "0", "--exclude-uid", "7"]
    if broken == "address excluded":
        applied += ["--exclude-cidr", "2001:db8::/32"]
    with clean(near), ExitStack() as stack:
        if broken != "no rules":
            assert say(near, capsys, "apply", *applied)[0] == 0
        if broken != "no proxy":
            listener = stack.enter_context(proxy(near, OUTBOUND, mode))
            stack.enter_context(proxy(near, INBOUND, mode))
        given = []
        if broken == "other options":
            given = [*options, "--exclude-port", "22"]
        if broken == "draining":
            stack.enter_context(near.connect(pair.far.at("ipv4", 7)))
            stack.enter_context(accepted_from(listener, mode)[0])
            assert remove(near).state is RemovalState.DRAINING
        if broken == "edited":
            given = options
            near.run(["nft", "insert rule inet sidecar outbound tcp dport 22 return"])
        if broken == "hidden":
            hide = "table ip other {\n chain c {\n type nat hook output priority -101;\n"
            near.run(
                ["nft", "-f", "-"], stdin=f"{hide} tcp dport 443 dnat to 127.0.0.1:9\n }}\n}}\n"
            )
            stack.callback(near.run, ["nft", "delete table ip other"])
        if broken == "not sidecar's":
            near.run(["nft", "delete table inet sidecar; add table inet sidecar"])
        if broken == "no route":
            for version, host in (("-4", pair.far.ipv4), ("-6", pair.far.ipv6)):
                near.ip(version, "route", "del", "default")
                stack.callback(near.ip, version, "route", "add", "default", "via", host)
        if broken == "rule deleted":
            near.ip("rule", "del", "priority", "1338")
        status, heard = say(near, capsys, "check", *given)
        assert status == 1
        assert said in heard


def test_nothing_escapes_a_check(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Without effective rules, no packet of the trial gets past the first router."""
    near, far = pair.near.namespace, pair.far.namespace
    far.run(["nft", "-f", "-"], stdin=_COUNT_FORWARDED)
    try:
        with clean(near):
            assert say(near, capsys, "apply", "--exclude-port", "443")[0] == 0
            status, heard = say(near, capsys, "check")
            assert (status, heard.count("was not intercepted by the rules")) == (1, 2)
            assert "counter packets 0 bytes 0" in far.run(["nft", "list", "ruleset"]).stdout
    finally:
        far.run(["nft", "delete", "table", "inet", "count"])


_COUNT_FORWARDED = """table inet count {
 chain c {
  type filter hook forward priority 0;
  meta l4proto tcp counter
 }
}
"""


_DRAINING = (
    "draining: new connections go direct; 1 connection still relayed. Run this again when they "
    "have ended, or with --wait or --now\n"
)


@MODES
def test_what_the_commands_say(
    pair: Pair, mode: Mode, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Apply, remove while a connection lives, wait for it, remove once more."""
    near, to = pair.near.namespace, pair.far.at("ipv4", port)
    with clean(near), proxy(near, OUTBOUND, mode) as listener:
        assert say(near, capsys, "apply", "--mode", mode.value) == (
            0,
            f"applied: {mode.value} mode, outbound to port 15001, inbound to port 15006\n",
        )
        with near.connect(to):
            relayed, _ = accepted_from(listener, mode)
            with relayed:
                assert say(near, capsys, "remove") == (
                    0,
                    _DRAINING,
                )
                status, said = say(near, capsys, "remove", "--wait", "0.3")
                assert (status, said.splitlines()[0]) == (
                    1,
                    "draining: waiting for 1 connection to end",
                )
        status, said = say(near, capsys, "remove", "--wait")
        assert (status, said.splitlines()[-1]) == (
            0,
            "removed: nothing of sidecar's rules is left",
        )
        assert say(near, capsys, "remove") == (
            0,
            "nothing to remove: there are no rules of sidecar's here\n",
        )


@MODES
@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy", "ip6tables-legacy"])
def test_others_rules_are_warned_of(
    mode: Mode, tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """NAT rules of iptables, of either kind, are named before ours are installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    with ExitStack() as stack:
        namespace = Namespace("oth")
        stack.callback(namespace.remove)
        # The lock is one for all namespaces.
        rule = ["-w", "-p", "tcp", "--dport", "80", "-j", "REDIRECT", "--to-ports", "81"]
        added = namespace.run([tool, "-t", "nat", "-A", "OUTPUT", *rule], check=False)
        if added.returncode:
            pytest.skip(f"{tool} does not work here: {added.stderr.strip()}")
        status, said = say(namespace, capsys, "apply", "--mode", mode.value)
        assert status == 0
        named = "chain OUTPUT of table ip nat" if tool == "iptables-nft" else f"{tool} has rules"
        assert said.count("warning: ") == 1
        assert named in said
        namespace.run([tool, "-t", "nat", "-F", "OUTPUT"])
        assert "warning" not in say(namespace, capsys, "apply", "--mode", mode.value)[1]
        remove(namespace)


_COUNT_RESETS = """table ip count {
 chain c {
  type filter hook input priority -400;
  tcp flags & rst == rst counter
 }
}
"""


@pytest.mark.parametrize("guarded", [True, False], ids=["rules", "without_the_guard"])
def test_invalid_packets_stay_away_from_the_application(
    pair: Pair, port: int, guarded: bool
) -> None:
    """One that conntrack can't place is not translated; the application would reset it."""
    near, far = pair.near.namespace, pair.far.namespace
    to = pair.near.at("ipv4", port)
    far.run(["nft", "-f", "-"], stdin=_COUNT_RESETS)
    try:
        with ExitStack() as stack:
            stack.enter_context(clean(near))
            listener = stack.enter_context(proxy(near, INBOUND, Mode.REDIRECT))
            stack.enter_context(near.listen(to))
            # With outbound rules the reset would itself be INVALID, and dropped.
            apply(near, mode=Mode.REDIRECT, outbound_port=None)
            if not guarded:
                near.run(["nft", "delete chain inet sidecar inbound_invalid"])
            client = stack.enter_context(far.connect(to))
            connection = stack.enter_context(accepted_from(listener, Mode.REDIRECT)[0])
            talk(client, connection)
            source = SocketAddress.from_kernel(client.getsockname())
            _send_out_of_window(far, source, to)
            # What is answered to them was on the wire before this.
            talk(client, connection)
            if guarded:
                time.sleep(0.2)
                counted = far.run(["nft", "list", "ruleset"]).stdout
                assert "counter packets 0 " in counted
            else:
                eventually(
                    False,
                    lambda: "counter packets 0 " in far.run(["nft", "list", "ruleset"]).stdout,
                )
            talk(client, connection)
    finally:
        far.run(["nft", "delete table ip count"])


def _send_out_of_window(namespace: Namespace, source: SocketAddress, to: SocketAddress) -> None:
    """ACKs with numbers from nowhere.

    From every quarter of the number space: conntrack takes those behind the window for
    repetitions, and only those beyond it for INVALID.
    """
    with namespace.entered():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        raw.bind((source.host, 0))
        for sequence in range(0, 1 << 32, 1 << 30):
            for acknowledged in range(0, 1 << 32, 1 << 30):
                raw.sendto(_acknowledgement(source, to, sequence, acknowledged), (to.host, 0))


def _acknowledgement(
    source: SocketAddress, to: SocketAddress, sequence: int, acknowledged: int
) -> bytes:
    numbers = (source.port, to.port, sequence, acknowledged, 5 << 4, 0x10, 1000)
    bare = struct.pack(">HHIIBBHHH", *numbers, 0, 0)
    pseudo = source.ip.packed + to.ip.packed + struct.pack(">HH", socket.IPPROTO_TCP, len(bare))
    total = sum(struct.unpack(">16H", pseudo + bare))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return bare[:16] + struct.pack(">H", ~total & 0xFFFF) + bare[18:]

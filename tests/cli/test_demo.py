"""The demo does what it says, as whoever runs it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from identities import as_nobody, in_user_namespace, needs_root, without_capabilities
from support import wait_for

from sidecar.addresses import SocketAddress
from sidecar.cli.demo import MODES, proxy
from sidecar.cli.demo.checks import Happened, faults
from sidecar.cli.demo.origins import Visit
from sidecar.cli.demo.proxy import LogLine, Proxy, ProxyError
from sidecar.cli.demo.scenes import Meets, Scene, origins, scenes

# Seconds. "Well under ten" on a machine that has something else to do as well.
PATIENCE = 60
BOTH = frozenset({4, 6})
PLAYED = len(scenes(BOTH))


def demo(*arguments: str) -> list[str]:
    """The command, with the modules that this process has."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from sidecar.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, "demo", *arguments]


class Marked:
    """An environment by which all that a command starts can be found again."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.environment = {**os.environ, "SIDECAR_TEST": self._mark}

    def alive(self) -> list[int]:
        """The processes that have it."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark in (directory / "environ").read_text(errors="replace"):
                    found.append(int(directory.name))
        return found


def play(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a demo to its end, and see that nothing of it is left."""
    marked = Marked()
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**marked.environment, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert [] == marked.alive()
    return done


def assert_all_as_claimed(done: subprocess.CompletedProcess[str]) -> None:
    """It succeeded, and says so."""
    assert "" == done.stderr
    assert 0 == done.returncode, done.stdout
    assert f"\nAll {PLAYED} as claimed, in " in done.stdout
    assert PLAYED == done.stdout.count("\n   checked ")
    assert "WRONG" not in done.stdout
    (raw,) = re.findall(r"^   raw     (.*)$", done.stdout, re.MULTILINE)
    assert "198.51.100.10:80" == json.loads(raw)["destination"]


class TestDemo:
    @needs_root
    @pytest.mark.parametrize("mode", MODES)
    def test_root(self, mode: str, tmp_path: Path) -> None:
        """As root, in either mode: everything is as claimed; no file is left behind."""
        done = play(demo("--mode", mode), tmp_path, TMPDIR=str(tmp_path), HOME=str(tmp_path))
        assert_all_as_claimed(done)
        assert f"(told by {mode})" in done.stdout
        assert "a network namespace of root's" in done.stdout
        assert [] == list(tmp_path.iterdir())

    @needs_root
    @pytest.mark.parametrize("mode", MODES)
    def test_ordinary_user(self, mode: str, tmp_path: Path) -> None:
        """As any user who may make user namespaces."""
        done = play(as_nobody(demo("--mode", mode), tmp_path), tmp_path)
        assert_all_as_claimed(done)
        assert "in a user namespace of user 65534's" in done.stdout

    @needs_root
    def test_root_in_a_container(self, tmp_path: Path) -> None:
        """As root without the capabilities to do it directly."""
        assert_all_as_claimed(play(without_capabilities(demo()), tmp_path))

    @needs_root
    def test_default_mode(self, tmp_path: Path) -> None:
        """Without curl and wget, Python's clients stand in; without --mode, it is tproxy."""
        done = play(demo(), tmp_path, PATH=str(tmp_path))
        assert_all_as_claimed(done)
        assert "(told by tproxy)" in done.stdout
        assert not re.search(r"\$ (curl|wget)", done.stdout)

    @needs_root
    def test_misleading_environment(self, tmp_path: Path) -> None:
        """Proxies and settings of the user's own don't lead clients elsewhere."""
        (tmp_path / ".curlrc").write_text("proxy = http://192.0.2.99:3128\n")
        (tmp_path / ".wgetrc").write_text("http_proxy = http://192.0.2.99:3128\n")
        elsewhere = {"http_proxy": "http://192.0.2.99:3128", "HTTP_PROXY": "http://192.0.2.99:3128"}
        assert_all_as_claimed(play(demo(), tmp_path, HOME=str(tmp_path), **elsewhere))

    @needs_root
    @pytest.mark.parametrize(
        ("sabotage", "fault"),
        [
            ("import sidecar.linux.netfilter.lifecycle as it; it.apply = print", "no line of it"),
            ("import sidecar.cli.demo.proxy as it; it.Proxy.holds = print", "no socket of the"),
        ],
    )
    def test_not_as_claimed(self, sabotage: str, fault: str, tmp_path: Path) -> None:
        """Where interception doesn't work, it says what is wrong, and status 1."""
        inside = "from sidecar.cli.demo.inside import main; import os"
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; {sabotage}; {inside}; "
            "sys.argv[1:] = ['tproxy', str(os.getppid())]; sys.exit(main())"
        )
        done = play([sys.executable, "-c", program], tmp_path)
        assert 1 == done.returncode
        assert re.search(rf"^   WRONG   .*{fault}", done.stdout, re.MULTILINE)
        assert re.search(r"^\d of 8 not as claimed", done.stdout, re.MULTILINE)

    @needs_root
    def test_refused(self, tmp_path: Path) -> None:
        """Where no namespace can be made: one line that says what to do, and status 1."""
        settings = {"max_user_namespaces": "0"}
        done = play(in_user_namespace(settings, without_capabilities(demo())), tmp_path)
        assert 1 == done.returncode
        assert "" == done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith("sidecar demo: user.max_user_namespaces is 0")
        assert line.endswith("sysctl -w user.max_user_namespaces=15000")

    @needs_root
    def test_reader_leaves(self, tmp_path: Path) -> None:
        """When nobody reads on, it ends, and says nothing more."""
        marked = Marked()
        with subprocess.Popen(
            demo(),
            cwd=tmp_path,
            env=marked.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert "" == process.stderr.read()
            assert 1 == process.wait(PATIENCE)
        assert [] == marked.alive()

    @needs_root
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_ended_from_outside(self, number: signal.Signals, tmp_path: Path) -> None:
        """Whatever ends it, it takes its processes (and so its namespace) along."""
        marked = Marked()
        with subprocess.Popen(
            demo(), cwd=tmp_path, env=marked.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            # Servers, rules and proxy are up.
            while not process.stdout.readline().startswith("Proxy"):
                assert process.poll() is None
            assert len(marked.alive()) > 2
            process.send_signal(number)
            process.wait(PATIENCE)
        wait_for(lambda: not marked.alive())

    def test_help(self, tmp_path: Path) -> None:
        """--help says what is done to the machine, and what the exit status means."""
        done = play(demo("--help"), tmp_path)
        assert 0 == done.returncode
        for words in ("--mode {tproxy,redirect}", "leaves nothing behind", "exit status: 0"):
            assert words in done.stdout


class TestScenes:
    def test_every_family(self) -> None:
        """Without IPv6, what is left is IPv4 alone, with a server for each client."""
        for versions in (BOTH, frozenset({4})):
            places = {address for _, address in origins(versions)}
            played = scenes(versions)
            assert versions == {scene.dialled.ip.version for scene in played}
            assert set() == {
                scene.dialled for scene in played if scene.meets is Meets.ORIGIN
            }.difference(places)
            assert Meets.NOBODY is played[-1].meets

    def test_shown(self) -> None:
        """Commands are shown as they would be typed."""
        assert "$ python3 -c 'import socket" in f"$ {scenes(BOTH)[3].shown}"


VISIT = Visit(SocketAddress("192.0.2.1", 4001), by_proxy=True, received=10, sent=20, text="Hello\n")
FIELDS = {
    "listener": "outbound",
    "source": "192.0.2.1:4000",
    "destination": "198.51.100.10:80",
    "destination_from": "tproxy",
    "upstream": "198.51.100.10:80",
    "verdict": "allow",
    "reason": "default",
    "sent": 10,
    "received": 20,
    "end": "closed",
}


def happened(visits: tuple[Visit, ...] = (VISIT,), **fields: Any) -> Happened:
    """What becomes of a client that is relayed as it should be, but for these fields."""
    return Happened(0, "Hello\n", "", LogLine("", {**FIELDS, **fields}), visits)


class TestFaults:
    SCENE = Scene("", ("curl",), SocketAddress("198.51.100.10", 80))

    def found(self, happened: Happened, meets: Meets = Meets.ORIGIN) -> list[str]:
        return faults(replace(self.SCENE, meets=meets), happened, "tproxy")

    def test_none(self) -> None:
        """What is as claimed has no fault."""
        assert [] == self.found(happened())

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("listener", "inbound"),
            ("destination", "198.51.100.10:81"),
            ("destination_from", "redirect"),
            ("upstream", None),
            ("verdict", "deny"),
            ("sent", 11),
            ("received", 0),
            ("end", "client_reset"),
        ],
    )
    def test_log(self, key: str, value: Any) -> None:
        """Every key that is claimed to be right is looked at."""
        (fault,) = self.found(happened(**{key: value}))
        assert f"the log's {key} is {value!r}, not {FIELDS[key]!r}" == fault

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (happened(visits=()), "saw 0 connections"),
            (happened(visits=(VISIT, VISIT)), "saw 2 connections"),
            (happened(visits=(replace(VISIT, by_proxy=False),)), "no socket of the proxy's"),
            (happened(source="192.0.2.1:4001"), "saw the client itself"),
            (replace(happened(), output="Hell"), "something else"),
            (replace(happened(), status=7), "status 7"),
            (replace(happened(), line=None), "no line"),
        ],
    )
    def test_client_and_server(self, wrong: Happened, words: str) -> None:
        """So is what client and server saw."""
        assert words in "; ".join(self.found(wrong))

    RESET = Happened(1, "", "ConnectionResetError: …", None, ())

    def test_refused(self) -> None:
        """A refusal is a reset, without a server, and a line that says so."""
        fields = {**FIELDS, "sent": 0, "received": 0, "end": "connection_refused"}
        right = replace(self.RESET, line=LogLine("", fields))
        assert [] == self.found(right, Meets.REFUSAL)
        for wrong in (
            replace(right, complaint="empty answer"),
            replace(right, status=0),
            replace(right, visits=(VISIT,)),
            replace(right, line=None),
            replace(right, line=LogLine("", FIELDS)),
        ):
            assert [] != self.found(wrong, Meets.REFUSAL)

    def test_denied(self) -> None:
        """A denial likewise."""
        denied = {"verdict": "deny", "reason": "not_intercepted", "end": "denied"}
        fields = {**FIELDS, "sent": 0, "received": 0, **denied}
        right = replace(self.RESET, line=LogLine("", fields))
        assert [] == self.found(right, Meets.DENIAL)
        assert [] != self.found(replace(right, line=LogLine("", FIELDS)), Meets.DENIAL)

    def test_without_a_proxy(self) -> None:
        """Without a proxy there is no answer, no server and no line."""
        right = replace(self.RESET, complaint="TimeoutError: timed out")
        assert [] == self.found(right, Meets.NOBODY)
        for wrong in (
            happened(),
            replace(right, visits=(VISIT,)),
            replace(right, line=LogLine("", FIELDS)),
            replace(right, complaint="ConnectionRefusedError"),
        ):
            assert [] != self.found(wrong, Meets.NOBODY)


class TestProxy:
    def test_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that ends tells why in its own words."""
        arguments = ("-n", "--pidfile=", "sidecar", "--outbound", "nonsense")
        monkeypatch.setattr(proxy, "ARGUMENTS", arguments)
        # Where nobody listens, whatever else runs here.
        monkeypatch.setattr(proxy, "PORT", 1)
        started = Proxy()
        try:
            with pytest.raises(ProxyError, match="--outbound = 'nonsense'"):
                started.wait_until_it_listens()
        finally:
            started.kill()

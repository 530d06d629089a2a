from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from privileges import without_capabilities
from support import PATIENCE
from turning import Turning, turning
from twisted.application.service import IService, IServiceMaker, ServiceMaker
from twisted.plugin import IPlugin, getPlugins
from twisted.python.usage import UsageError
from zope.interface.verify import verifyObject

import sidecar
from sidecar.config import Config, Forward
from sidecar.errors import ListenError
from sidecar.service import SidecarService
from sidecar.tap import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = str(Path(sidecar.__file__).parent.parent)
_ENVIRONMENT = {**os.environ, "PYTHONPATH": _CHECKOUT, "PYTHONUNBUFFERED": "1"}
_COMMAND = [str(Path(sys.executable).parent / "twistd"), "--nodaemon", "--pidfile=", "sidecar"]


def twistd(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run twistd to its end."""
    return subprocess.run(
        [*_COMMAND, *arguments],
        cwd=directory,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@contextmanager
def running(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run twistd until it says that it listens; kill it afterwards."""
    with subprocess.Popen(
        [*_COMMAND, *arguments],
        cwd=directory,
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "listens on" in line:
                    break
            yield process
        finally:
            process.kill()


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that only who asks for it gets, and allows others to have it (SO_REUSEADDR)."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def response(client: socket.socket) -> bytes:
    """A response's head; its body is left out."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(4096)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        part = client.recv(4096)
        assert part, body
        body += part
    return head + b"\r\n\r\n"


def parsed(*arguments: str) -> Options:
    """Read a command line."""
    options = Options()
    options.parseOptions(arguments)  # type: ignore[no-untyped-call]
    return options


class TestPlugin:
    def test_discovered(self) -> None:
        """Twistd finds the service among its plugins, once, as what it expects."""
        (found,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "sidecar"]
        assert isinstance(found, ServiceMaker)
        assert verifyObject(IServiceMaker, found)
        assert verifyObject(IPlugin, found)
        assert Options is found.options


class TestOptions:
    def test_flags(self) -> None:
        """Flags are the configuration."""
        config = parsed(
            *("--outbound", "transparent:15001", "--inbound", "transparent:15006"),
            *("--forward", "tcp:8001 tcp:10.0.0.1:80", "--forward", "tcp:8002 tcp:10.0.0.1:81"),
            *("--access-log", "-"),
        ).to_config()
        expected = Config(
            outbound="transparent:15001",
            inbound="transparent:15006",
            forward=(
                Forward("tcp:8001", "tcp:10.0.0.1:80"),
                Forward("tcp:8002", "tcp:10.0.0.1:81"),
            ),
            access_log="-",
        )
        assert expected == config

    def test_file(self, tmp_path: Path) -> None:
        """A file's configuration is the flags' ground."""
        file = tmp_path / "sidecar.toml"
        file.write_text('outbound = "transparent:1"\nmark = 7\n')
        config = parsed("--config", str(file), "--outbound", "transparent:2").to_config()
        assert Config(outbound="transparent:2", mark=7) == config

    def test_nothing(self, tmp_path: Path) -> None:
        """With nothing to listen on, it is an HTTP proxy for this host."""
        assert Config(http_proxy="tcp:3128:interface=127.0.0.1") == parsed().to_config()
        file = tmp_path / "sidecar.toml"
        file.write_text("mark = 7\n")
        config = parsed("--config", str(file), "--access-log", "-").to_config()
        assert "tcp:3128:interface=127.0.0.1" == config.http_proxy
        assert parsed("--sni-proxy", "tcp:443").to_config().http_proxy is None

    def test_http(self) -> None:
        """The flags of the HTTP proxy are configuration as well."""
        config = parsed(
            *("--http-proxy", "tcp:1", "--log-paths", "--upstream-proxy", "http://p.example:1"),
            *("--proxy-auth", "memory:a:b", "--proxy-auth", "unix", "--no-proxy", "a,b"),
        ).to_config()
        assert ("tcp:1", True) == (config.http_proxy, config.log_paths)
        assert (("memory:a:b", "unix"), "http://p.example:1", ("a,b",)) == (
            config.http.auth,
            config.http.upstream_proxy,
            config.http.no_proxy,
        )

    def test_unknown_flag(self) -> None:
        """A flag that there isn't is a usage error."""
        with pytest.raises(UsageError):
            parsed("--outbund", "transparent:1")


class TestService:
    @pytest.fixture(name="turning")
    def _turning(self) -> Iterator[Turning]:
        with turning() as made:
            yield made

    def test_life(self, turning: Turning, free_port: int) -> None:
        """It listens as soon as it is started with privileges, and stops without a trace."""
        forward = Forward(f"tcp:{free_port}:interface=127.0.0.1", "tcp:127.0.0.1:1")
        config = Config(outbound="transparent:0:interface=127.0.0.1", forward=(forward,), mark=0)
        service = SidecarService(turning.reactor, config)
        assert verifyObject(IService, service)
        service.privilegedStartService()
        service.startService()
        with socket.create_connection(("127.0.0.1", free_port), PATIENCE) as client:
            client.setblocking(False)
            turning.settle()
        turning.result(service.stopService())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free_port), PATIENCE)

    def test_forward_to_name(self, turning: Turning, free_port: int) -> None:
        """The name of a forward's upstream is resolved by us: the reactor has no threads here."""
        with socket.create_server(("127.0.0.1", 0)) as origin:
            upstream = f"tcp:localhost:{origin.getsockname()[1]}"
            forward = Forward(f"tcp:{free_port}:interface=127.0.0.1", upstream)
            service = SidecarService(turning.reactor, Config(forward=(forward,), mark=0))
            service.privilegedStartService()
            origin.settimeout(0)
            with socket.create_connection(("127.0.0.1", free_port), PATIENCE) as client:
                client.sendall(b"hello")
                turning.until(lambda: select.select([origin], [], [], 0)[0])
                far, _ = origin.accept()
                with far:
                    turning.until(lambda: select.select([far], [], [], 0)[0], far)
                    assert b"hello" == far.recv(5)
            turning.settle()
            turning.result(service.stopService())

    def test_stopped_before_started(self, turning: Turning) -> None:
        """One that was never started can be stopped."""
        service = SidecarService(turning.reactor, Config(outbound="transparent:1"))
        turning.result(service.stopService())

    def test_taken(
        self, turning: Turning, free_port: int, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A port that is taken ends the process with one line and status 1."""
        with socket.create_server(("127.0.0.1", free_port)):
            config = Config(outbound=f"transparent:{free_port}:interface=127.0.0.1")
            service = SidecarService(turning.reactor, config)
            with pytest.raises(SystemExit) as caught:
                service.privilegedStartService()
            turning.result(service.stopService())
        assert 1 == caught.value.code
        assert ListenError.__name__ not in capfd.readouterr().err


class TestProcess:
    def test_help(self, tmp_path: Path) -> None:
        """--help lists every flag."""
        done = twistd(tmp_path, "--help")
        assert 0 == done.returncode
        for flag in (
            "--config",
            "--outbound",
            "--inbound",
            "--forward",
            "--http-proxy",
            "--proxy-auth",
        ):
            assert flag in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--http-proxy", "nonsense"], "command line: --http-proxy = 'nonsense'"),
            (["--proxy-auth", "file:missing"], "--proxy-auth: missing can't be used: No such file"),
            (["--proxy-auth", "memory:sesame"], "--proxy-auth: memory can't be used: expected"),
            (["--proxy-auth", "sesam"], "--proxy-auth: no checker is called 'sesam'"),
            (["--upstream-proxy", "https://a:sesame@b:1"], "--upstream-proxy = 'https://***@b:1'"),
            (["--no-proxy", "a..b"], "--no-proxy = 'a..b'"),
            (["--no-proxy", "a"], "--no-proxy: is for --upstream-proxy, which isn't given"),
            (
                ["--sni-proxy", "tcp:1", "--proxy-auth", "memory:a:sesame"],
                "--proxy-auth: is for --http-proxy, which isn't given",
            ),
            (
                ["--sni-proxy", "tcp:1", "--upstream-proxy", "http://a:sesame@b:1"],
                "--upstream-proxy: is for --http-proxy, which isn't given",
            ),
            (["--outbound", "nonsense"], "command line: --outbound = 'nonsense'"),
            (["--outbound", "transparent:http"], "port=http"),
            (["--outbound", "tcp:15001"], "expected transparent:PORT"),
            (["--inbound", ""], "--inbound"),
            (["--forward", "tcp:8001"], 'expected two endpoint strings, "LISTEN CONNECT"'),
            (["--forward", "tcp:8001 nonsense:1"], "--forward"),
            (["--forward", "tcp:8001 tcp:10.0.0.1:0"], "--forward"),
            (["--config", "missing.toml"], "missing.toml: can't be read"),
            (["--outbound", "transparent:1", "--access-log", "/nowhere/log"], "/nowhere/log"),
        ],
    )
    def test_bad_configuration(self, tmp_path: Path, arguments: list[str], said: str) -> None:
        """A bad configuration is one line that names the place, and status 1."""
        done = twistd(tmp_path, *arguments)
        assert 1 == done.returncode
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("twistd sidecar: ")
        assert said in line
        # No password comes back.
        assert "sesame" not in line

    def test_bad_file(self, tmp_path: Path) -> None:
        """Likewise in a file: its name, the key, the value."""
        (tmp_path / "sidecar.toml").write_text('outbound = "transparent:15001:mode=x"\n')
        done = twistd(tmp_path, "--config", "sidecar.toml")
        assert 1 == done.returncode
        (line,) = done.stderr.strip().splitlines()
        assert "sidecar.toml: outbound = 'transparent:15001:mode=x': mode=x" in line

    def test_bad_authorities(self, tmp_path: Path) -> None:
        """Likewise for authorities that can't be read."""
        text = 'outbound = "transparent:15001"\n[policy]\nca_file = "missing.pem"\n'
        (tmp_path / "sidecar.toml").write_text(text)
        done = twistd(tmp_path, "--config", "sidecar.toml")
        assert 1 == done.returncode
        assert (
            "twistd sidecar: sidecar.toml: policy.ca_file = 'missing.pem': "
            "can't be read: No such file or directory\n"
        ) == done.stderr

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('auth = ["unknown:sesame"]', "http.auth[0]: no checker is called 'unknown'"),
            ('upstream_proxy = "http://a:sesame@b"', "http.upstream_proxy = 'http://***@b'"),
            ('no_proxy = ["a", "b..c"]\nupstream_proxy="http://a:1"', "http.no_proxy = 'b..c'"),
        ],
    )
    def test_bad_http(self, tmp_path: Path, text: str, said: str) -> None:
        """Likewise for what the HTTP proxy needs; passwords are not shown."""
        (tmp_path / "sidecar.toml").write_text(f"[http]\n{text}\n")
        done = twistd(tmp_path, "--config", "sidecar.toml")
        assert 1 == done.returncode
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith(f"twistd sidecar: sidecar.toml: {said}")
        assert "sesame" not in line

    @pytest.mark.parametrize("flag", ["--outbound", "--forward"])
    def test_taken(self, tmp_path: Path, flag: str) -> None:
        """A port that is taken is one line, and status 1, whoever's endpoint it is."""
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            values = {
                "--outbound": f"transparent:{port}:interface=127.0.0.1:mode=redirect",
                "--forward": f"tcp:{port}:interface=127.0.0.1 tcp:127.0.0.1:1",
            }
            done = twistd(tmp_path, flag, values[flag])
        assert 1 == done.returncode
        lines = [line for line in done.stderr.splitlines() if "twistd sidecar: " in line]
        assert 1 == len(lines)
        assert str(port) in lines[0]
        assert "Traceback" not in done.stdout + done.stderr

    def test_http_proxy(self, tmp_path: Path, free_port: int) -> None:
        """The HTTP proxy lets in who has the password, and logs one line a request."""
        arguments = [
            *("--http-proxy", f"tcp:{free_port}:interface=127.0.0.1", "--log-paths"),
            *("--proxy-auth", "memory:alice:sesame", "--access-log", "access.log"),
        ]
        with socket.create_server(("127.0.0.1", 0)) as origin:
            host = f"127.0.0.1:{origin.getsockname()[1]}"
            start = f"GET http://{host}/a?b HTTP/1.1\r\nHost: {host}\r\n".encode()
            with (
                running(tmp_path, *arguments) as process,
                socket.create_connection(("127.0.0.1", free_port), PATIENCE) as client,
            ):
                client.sendall(start + b"\r\n")
                refused = response(client)
                client.sendall(start + b"Proxy-Authorization: Basic YWxpY2U6c2VzYW1l\r\n\r\n")
                far, _ = origin.accept()
                with far:
                    asked = far.recv(4096)
                    far.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                    answered = response(client)
                process.send_signal(signal.SIGTERM)
                assert process.stdout is not None
                said = process.stdout.read()
        assert refused.startswith(b"HTTP/1.1 407 ")
        assert b'Proxy-Authenticate: Basic realm="sidecar", charset="UTF-8"\r\n' in refused
        assert asked.startswith(b"GET /a?b HTTP/1.1\r\n")
        assert b"YWxp" not in asked
        assert answered.startswith(b"HTTP/1.1 204 ")
        text = (tmp_path / "access.log").read_text()
        denied, allowed = map(json.loads, text.splitlines())
        assert ("authentication_required", "http_request_error", 407) == (
            denied["reason"],
            denied["end"],
            denied["status"],
        )
        assert ("http-proxy", "GET", "/a?b", 204, "closed") == (
            *(allowed["listener"], allowed["method"], allowed["path"]),
            *(allowed["status"], allowed["end"]),
        )
        assert "Traceback" not in said
        assert not any(secret in text + said for secret in ("sesame", "YWxp"))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signal(self, tmp_path: Path, free_port: int, number: signal.Signals) -> None:
        """A signal ends it: flows are reset, their lines written, nothing is left."""
        with socket.socket() as origin:
            origin.bind(("127.0.0.1", 0))
            origin.listen()
            target = origin.getsockname()[1]
            text = f"tcp:{free_port}:interface=127.0.0.1 tcp:127.0.0.1:{target}"
            with running(tmp_path, "--forward", text, "--access-log", "access.log") as process:
                address = ("127.0.0.1", free_port)
                with socket.create_connection(address, PATIENCE) as client:
                    far, _ = origin.accept()
                    client.sendall(b"hello")
                    assert b"hello" == far.recv(5)
                    process.send_signal(number)
                    process.wait(PATIENCE)
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
                    far.close()
                assert process.stdout is not None
                assert "Traceback" not in process.stdout.read()
        (line,) = (tmp_path / "access.log").read_text().splitlines()
        flow = json.loads(line)
        assert ("shutdown", 5) == (flow["end"], flow["sent"])

    def test_no_privilege(self, free_port: int) -> None:
        """A missing capability is one line that names it, and status 1."""
        done = without_capabilities(
            "import sys; from twisted.scripts.twistd import run;"
            f"sys.argv = ['twistd', '-n', '--pidfile=', '--logfile=/dev/null', 'sidecar',"
            f" '--outbound', 'transparent:{free_port}:mode=tproxy']; run()"
        )
        assert 1 == done.returncode
        (line,) = [line for line in done.stderr.splitlines() if "twistd sidecar" in line]
        assert "CAP_NET_ADMIN or CAP_NET_RAW" in line

"""Three origins, as lenient as they can be, that write down what they see; a proxy before them."""

from __future__ import annotations

import itertools
import shutil
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Protocol

import pytest
from integration.netns import DEADLINE, Namespace
from integration.proxy import Program, eventually, running

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.proxy import Sidecar

__all__ = [
    "APACHE",
    "DENIED",
    "NGINX",
    "ORIGINS",
    "PROXY",
    "PYTHON",
    "Answer",
    "Seen",
    "SmugglingStage",
    "answers",
    "smuggling_stage",
]

PROXY = SocketAddress("127.0.0.1", 3128)
NGINX, APACHE, PYTHON = 8001, 8002, 8003
ORIGINS = {"nginx": NGINX, "apache": APACHE, "python": PYTHON}
# The policy lets nobody ask for it, though it is where all are.
DENIED = "denied.test"

_NAMES = ["nginx.test", "apache.test", "python.test", "scripted.test", DENIED]
_WITH_HOSTS = 'mount --bind "$0/hosts" /etc/hosts && exec "$@"'
_NGINX = """\
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.error;
events {{ worker_connections 512; }}
http {{
  log_format seen escape=none '$request|$http_host|$status';
  access_log {directory}/nginx.seen seen;
  client_body_temp_path {directory}/temp; proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/temp; uwsgi_temp_path {directory}/temp;
  scgi_temp_path {directory}/temp;
  ignore_invalid_headers off;
  underscores_in_headers on;
  merge_slashes off;
  server {{
    listen 127.0.0.1:{port};
    location / {{ add_header X-Path $request_uri always; return 200 "a page\\n"; }}
  }}
}}
"""
_APACHE = """\
ServerRoot {directory}
ServerName apache.test
PidFile {directory}/apache.pid
ErrorLog {directory}/apache.error
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule alias_module {modules}/mod_alias.so
StartServers 1
ServerLimit 1
ThreadsPerChild 32
MaxRequestWorkers 32
MaxSpareThreads 32
ThreadLimit 32
HttpProtocolOptions Unsafe LenientMethods Allow0.9
LogFormat "%r|%{{Host}}i|%>s" seen
CustomLog {directory}/apache.seen seen
DocumentRoot {directory}/www
AliasMatch "^.*$" {directory}/www/page
Header always set X-Path "expr=%{{REQUEST_URI}}"
<Directory {directory}/www>
  Require all granted
</Directory>
"""
_APACHE_MODULES = "/usr/lib/apache2/modules"


@dataclass(frozen=True)
class Seen:
    """What an origin saw of a request.

    Attributes:
        line: The request line.
        host: The Host field.
    """

    line: str
    host: str


@dataclass
class Request:
    """What the origin in Python saw, which is everything.

    Attributes:
        line: The request line.
        fields: Names as they came, with values, in order.
        body: The content.
    """

    line: str
    fields: list[tuple[str, str]]
    body: bytes = b""


class Origin(Protocol):
    """Tells what it saw."""

    def seen(self) -> list[Seen]:
        """All requests so far, in the order of their ends."""


class _Logged:
    """An origin that has an access log."""

    def __init__(self, log: Path) -> None:
        self._log = log.open(encoding="latin-1", newline="\n")
        self._unfinished = ""
        self._seen: list[Seen] = []

    def seen(self) -> list[Seen]:
        *lines, self._unfinished = (self._unfinished + self._log.read()).split("\n")
        for line in lines:
            said, host, _ = line.rsplit("|", 2)
            self._seen.append(Seen(said, host))
        return self._seen

    def close(self) -> None:
        self._log.close()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    requests: list[Request]

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was reset: nobody needs to know."""


class _Handler(BaseHTTPRequestHandler):
    """Takes any method, and any chunks that it can make sense of."""

    protocol_version = "HTTP/1.1"
    timeout = DEADLINE
    server: _Server

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        fields = [(name, str(value)) for name, value in self.headers.items()]
        request = Request(self.requestline, fields)
        # Before the body: a request that isn't whole has been seen, too.
        self.server.requests.append(request)
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            request.body = self._chunks()
        else:
            request.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"" if self.command == "HEAD" else b"a page\n"
        self.send_response(200)
        self.send_header("X-Path", self.path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class PythonOrigin:
    """Python's own server, in threads of the test's own process."""

    def __init__(self, namespace: Namespace) -> None:
        listener = namespace.listen(SocketAddress("127.0.0.1", PYTHON))
        listener.settimeout(None)
        self._server = _Server(("127.0.0.1", PYTHON), _Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.requests = []
        self._seen: list[Seen] = []
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def requests(self) -> list[Request]:
        """What came, in the order of arrival."""
        return self._server.requests

    def seen(self) -> list[Seen]:
        """As `Origin.seen`."""
        for each in self.requests[len(self._seen) :]:
            hosts = [value for name, value in each.fields if name.lower() == "host"]
            self._seen.append(Seen(each.line, ", ".join(hosts)))
        return self._seen

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join(DEADLINE)
        self._server.server_close()


@dataclass(frozen=True)
class Answer:
    """A response as a client gets it.

    Attributes:
        status: Its status.
        head: Its head.
        body: Its content, unchunked.
        whole: Whether all of it was there.
    """

    status: int
    head: bytes
    body: bytes
    whole: bool = True

    def field(self, name: bytes) -> bytes | None:
        """Find a field's value."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower():
                return value.strip()
        return None


def answers(data: bytes, *, head: bool = False) -> list[Answer]:
    """Take apart what a client got to the end of its connection.

    Args:
        data: All of it.
        head: Whether HEAD was what it asked.

    Raises:
        AssertionError: It isn't HTTP.
    """
    found: list[Answer] = []
    while data:
        section, end, data = data.partition(b"\r\n\r\n")
        assert section.startswith(b"HTTP/1.1 "), section
        status = int(section[9:12])
        answer = Answer(status, section, b"", whole=bool(end))
        length = answer.field(b"content-length")
        body, whole = b"", bool(end)
        if status < 200 or status in {204, 304} or head:
            pass
        elif answer.field(b"transfer-encoding") == b"chunked":
            body, data, whole = _unchunked(data)
        elif length is None:
            body, data = data, b""
        else:
            body, data = data[: int(length)], data[int(length) :]
            whole = len(body) == int(length)
        found.append(Answer(status, section, body, whole=whole))
    return found


def _unchunked(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return body, b"", False
        size = int(line, 16)
        if not size:
            break
        body += data[:size]
        if data[size : size + 2] != b"\r\n":
            return body, b"", False
        data = data[size + 2 :]
    while data:
        line, end, data = data.partition(b"\r\n")
        if not line:
            return body, data, bool(end)
    return body, b"", False


@dataclass(frozen=True)
class SmugglingStage:
    """Where all of them are: on one loopback.

    Attributes:
        namespace: In which everything runs.
        directory: Its files.
        sidecar: The proxy.
        origins: By name; each is at NAME.test and its port.
        python: The one that knows bodies.
    """

    namespace: Namespace
    directory: Path
    sidecar: Sidecar
    origins: dict[str, Origin]
    python: PythonOrigin
    _serial: Iterator[int] = field(default_factory=itertools.count)

    def serial(self) -> int:
        """Give a number that no other request has."""
        return next(self._serial)

    def connect(self) -> socket.socket:
        """Be a client of the proxy."""
        return self.namespace.connect(PROXY)

    def tell(self, *pieces: bytes, pause: float = 0.005, finish: bool = False) -> bytes:
        """Send pieces to the proxy, and read to the connection's end.

        Args:
            pieces: With a pause between each two.
            pause: Seconds.
            finish: Whether to close our side then; otherwise the proxy has to.

        Raises:
            TimeoutError: It didn't.
        """
        with self.connect() as client:
            return talk(client, *pieces, pause=pause, finish=finish)

    def fence(self, name: str) -> None:
        """Have a request served after which no earlier one is still under way.

        It goes through the proxy, so it is this one that gets the wrong answer if a
        connection to the origin is out of step; and directly.

        Raises:
            AssertionError: It got another's answer, or none.
        """
        port = ORIGINS[name]
        path = f"/fence/{self.serial()}"
        host = f"{name}.test:{port}"
        got = self.tell(
            f"GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), finish=True
        )
        paths = [(each.status, each.field(b"X-Path")) for each in answers(got)]
        assert [(200, path.encode())] == paths, got
        eventually(
            True, lambda: any(f" {path} " in each.line for each in self.origins[name].seen())
        )

    def seen(self, name: str, part: str, count: int = 0) -> list[Seen]:
        """Tell which requests an origin saw that have this in their lines.

        Args:
            name: The origin's.
            part: Of the lines.
            count: For how many to wait: origins log a request when its answer is on its
                way, and those of different connections in any order.
        """

        def found() -> list[Seen]:
            return [each for each in self.origins[name].seen() if part in each.line]

        eventually(True, lambda: len(found()) >= count)
        return found()


def talk(
    client: socket.socket, *pieces: bytes, pause: float = 0.005, finish: bool = False
) -> bytes:
    """Send pieces, and read to the connection's end; a reset is an end."""
    with suppress(ConnectionResetError, BrokenPipeError):
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            client.sendall(piece)
        if finish:
            client.shutdown(socket.SHUT_WR)
    got = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            got += part
    return got


@contextmanager
def _nginx(namespace: Namespace, directory: Path) -> Iterator[Origin]:
    configuration = directory / "nginx.conf"
    configuration.write_text(_NGINX.format(directory=directory, port=NGINX), encoding="ascii")
    command = ["nginx", "-c", str(configuration), "-p", str(directory), "-g", "daemon off;"]
    program = Program(namespace, command, cwd=directory)
    try:
        program.wait_until(lambda: program.listens(NGINX))
        with closing(_Logged(directory / "nginx.seen")) as logged:
            yield logged
    finally:
        program.stop()


@contextmanager
def _apache(namespace: Namespace, directory: Path) -> Iterator[Origin]:
    configuration = directory / "apache.conf"
    configuration.write_text(
        _APACHE.format(directory=directory, port=APACHE, modules=_APACHE_MODULES), encoding="ascii"
    )
    # It listens before it opens its log.
    (directory / "apache.seen").touch()
    command = ["apache2", "-f", str(configuration), "-D", "FOREGROUND"]
    program = Program(namespace, command, cwd=directory)
    try:
        program.wait_until(lambda: program.listens(APACHE))
        with closing(_Logged(directory / "apache.seen")) as logged:
            yield logged
    finally:
        program.stop()


@contextmanager
def smuggling_stage(directory: Path, settings: str = "") -> Iterator[SmugglingStage]:
    """Set the stage, and clear it.

    Args:
        directory: For files of the stage's own.
        settings: TOML for sidecar, besides listener and policy.
    """
    if missing := [name for name in ("nginx", "apache2") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    directory.chmod(0o755)
    for name in ("www", "temp"):
        (directory / name).mkdir()
    (directory / "www" / "page").write_text("a page\n", encoding="ascii")
    (directory / "hosts").write_text(
        "\n".join(f"127.0.0.1 {name}" for name in ["localhost", *_NAMES]) + "\n", encoding="ascii"
    )
    (directory / "sidecar.toml").write_text(
        f'http_proxy = "tcp:{PROXY.port}:interface={PROXY.host}"\nlog_paths = true\n'
        f'[policy]\ndefault = "allow"\ndeny = ["{DENIED}"]\n{settings}\n',
        encoding="ascii",
    )
    with ExitStack() as stack:
        namespace = Namespace("smug")
        stack.callback(namespace.remove)
        origins: dict[str, Origin] = {
            "nginx": stack.enter_context(_nginx(namespace, directory)),
            "apache": stack.enter_context(_apache(namespace, directory)),
        }
        origins["python"] = python = PythonOrigin(namespace)
        stack.callback(python.close)
        sidecar = stack.enter_context(
            running(
                namespace,
                ("--config", str(directory / "sidecar.toml")),
                cwd=directory,
                ports=(PROXY.port,),
                wrapper=["unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(directory)],
            )
        )
        yield SmugglingStage(namespace, directory, sidecar, origins, python)

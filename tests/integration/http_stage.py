"""A namespace with nginx, names, certificates, and sidecar as its clients' HTTP proxy."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from integration.netns import DEADLINE, Namespace
from integration.proxy import Program, eventually, running
from names.authority import Authority

from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from integration.proxy import Line, Sidecar

__all__ = [
    "HTTP",
    "HTTPS",
    "PAGE",
    "PROXY",
    "PROXY_URL",
    "PUBLIC",
    "PUBLIC_NAME",
    "Curled",
    "HttpStage",
    "environment",
    "facts",
    "http_stage",
    "needs",
]

# The textbook's: `http_proxy=localhost:8001 wget localhost:8002`.
PROXY, HTTP, HTTPS = 8001, 8002, 8443
PAGE = "a page of nginx's\n"
PROXY_URL = f"http://127.0.0.1:{PROXY}"

# A public address, on a loopback that leads nowhere else.
PUBLIC, PUBLIC_NAME = "9.9.9.1", "public.origin.test"
_NAMES = [f"t{number:02}.origin.test" for number in range(64)]
_FACTS = "facts: "  # how curl's lines of them begin
# In a mount namespace of its own, another /etc/hosts.
_WITH_HOSTS = 'mount --bind "$0/hosts" /etc/hosts && exec "$@"'
_NGINX = """\
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format seen escape=none '$request|$http_host|$http_via|$http_proxy_connection|$connection';
  access_log {directory}/seen.log seen;
  client_body_temp_path {directory}/temp; proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/temp; uwsgi_temp_path {directory}/temp;
  scgi_temp_path {directory}/temp;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{http}; listen [::1]:{http};
    listen 127.0.0.1:{https} ssl; listen [::1]:{https} ssl;
    ssl_certificate {certificate}; ssl_certificate_key {certificate};
    root {directory}/www;
    location /kept/ {{ dav_methods PUT; create_full_put_path on; }}
    location /npm/ {{ default_type application/json; }}
    location = /204 {{ return 204; }}
    location = /moved {{ return 301 http://$http_host/page; }}
  }}
}}
"""


@dataclass(frozen=True)
class Curled:
    """What curl says of a request.

    Attributes:
        exit: Its exit status.
        head: All heads that it got, those of proxies included.
        body: What it got, all of it in a row.
        facts: What `--write-out` was asked for, of each request in turn.
        errors: What it printed besides.
    """

    exit: int
    head: str
    body: str
    facts: list[str]
    errors: str


@dataclass(frozen=True)
class HttpStage:
    """Where clients, sidecar and origins are: on one loopback.

    Attributes:
        namespace: In which everything runs.
        directory: Its files; what nginx serves is in `www`.
        authority: Whom clients of HTTPS are to trust.
        certificate: Key and certificate for `host()`, localhost and 127.0.0.1.
    """

    namespace: Namespace
    directory: Path
    authority: Authority
    certificate: str
    _names: Iterator[str] = field(default_factory=lambda: iter(_NAMES))
    _ports: Iterator[int] = field(default_factory=lambda: itertools.count(9000))

    def host(self) -> str:
        """Give a name of 127.0.0.1 that no other test has, so that it names its test's lines."""
        return next(self._names)

    def address(self, host: str = "127.0.0.1") -> SocketAddress:
        """Give an address to listen on that no other test has."""
        return SocketAddress(host, next(self._ports))

    def seen(self) -> list[list[str]]:
        """Tell what nginx saw: request line, Host, Via, Proxy-Connection, connection."""
        text = (self.directory / "seen.log").read_text(encoding="utf-8")
        return [line.split("|") for line in text.splitlines()]

    def seen_of(self, host: str, count: int = 1) -> list[list[str]]:
        """Wait for what nginx saw with this Host, without its port."""

        def found() -> list[list[str]]:
            return [line for line in self.seen() if line[1].partition(":")[0] == host]

        eventually(True, lambda: len(found()) >= count)
        return found()

    @contextmanager
    def proxied(
        self,
        *flags: str,
        listener: str | None = f"tcp:{PROXY}:interface=127.0.0.1",
        ports: Sequence[int] = (PROXY,),
    ) -> Iterator[Sidecar]:
        """Run sidecar, by default as HTTP proxy on `PROXY`."""
        with running(
            self.namespace,
            (*(() if listener is None else ("--http-proxy", listener)), *flags),
            cwd=self.directory,
            ports=ports,
            wrapper=["unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(self.directory)],
        ) as sidecar:
            yield sidecar

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        cwd: Path | None = None,
        timeout: float = DEADLINE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client, with nothing of our own environment but what it needs."""
        everything = environment(self.directory, **(env or {}))
        return self.namespace.run(
            command, env=everything, check=check, cwd=cwd or self.directory, timeout=timeout
        )

    def curl(self, *arguments: str, facts: str = "", proxy: str | None = PROXY_URL) -> Curled:
        """Run curl through the proxy, to its end; several at once would share files."""
        head = self.directory / "curl.head"
        head.write_bytes(b"")
        command = ["curl", "-q", "--silent", "--show-error", "--globoff", "--max-time", "15"]
        command += ["--cacert", self.authority.cafile, "--dump-header", str(head)]
        command += ["--write-out", f"%{{stderr}}{_FACTS}{facts}\n"]
        if proxy is not None:
            command += ["--proxy", proxy]
        done = self.run(*command, *arguments, check=False)
        told = [line for line in done.stderr.splitlines() if line.startswith(_FACTS)]
        return Curled(
            done.returncode,
            head.read_bytes().decode("latin-1"),
            done.stdout,
            [fact for line in told for fact in line.removeprefix(_FACTS).split()],
            "\n".join(line for line in done.stderr.splitlines() if line not in told),
        )


def environment(home: Path, **more: str) -> dict[str, str]:
    """Make an environment in which no proxy is named, and no configuration is found."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", **more}


def needs(*programs: str) -> Callable[[], None]:
    """Make a fixture that skips where a program is missing."""

    @pytest.fixture(scope="module", autouse=True)
    def _programs() -> None:
        if missing := [name for name in programs if shutil.which(name) is None]:
            pytest.skip(f"not installed: {', '.join(missing)}")

    return _programs


def facts(line: Line, *keys: str) -> list[object]:
    """Pick values of an access log line."""
    return [line.get(key) for key in keys]


@contextmanager
def http_stage(directory: Path) -> Iterator[HttpStage]:
    """Set the stage, with nginx on it, and clear it."""
    directory.chmod(0o755)
    (directory / "www").mkdir()
    (directory / "temp").mkdir()
    for name in ("page", "index.html"):
        (directory / "www" / name).write_text(PAGE, encoding="ascii")
    (directory / "www" / "kept").mkdir()
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{PUBLIC} {PUBLIC_NAME}"]
    lines += [f"127.0.0.1 {name}" for name in _NAMES]
    (directory / "hosts").write_text("\n".join([*lines, ""]), encoding="ascii")
    authority = Authority(directory)
    certificate = authority.issue(x509.DNSName("*.origin.test"), x509.DNSName("localhost"))
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(directory=directory, certificate=certificate, http=HTTP, https=HTTPS)
    )
    namespace = Namespace("http")
    try:
        namespace.reach(PUBLIC)
        command = ["nginx", "-c", str(configuration), "-p", str(directory), "-g", "daemon off;"]
        nginx = Program(namespace, command, cwd=directory)
        try:
            nginx.wait_until(lambda: nginx.listens(HTTP) and nginx.listens(HTTPS))
            yield HttpStage(namespace, directory, authority, certificate)
        finally:
            nginx.stop()
    finally:
        namespace.remove()

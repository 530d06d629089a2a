"""What `http` compares: forward proxies, and how each is configured and started.

One process each with one thread of work, but for tinyproxy, which has a thread for each
connection. docs/reference/benchmarks.md shows and justifies the configurations.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import PEERS
from benchmarks.processes import HOST, output_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OURS", "PROXIES", "SQUID", "Proxy", "nginx_origin", "policy"]

OURS = "sidecar"
SQUID = "squid"
_SIDECAR = next(peer for peer in PEERS if peer.name == OURS)
_BUFFER_BYTES = 1 << 20
_POLICY = """\
[policy]
default = "deny"
allow = [
    "*.example.org:443",
    "registry.example.com",
    "10.0.0.0/8:80,443",
    "{host}",
]
deny = ["metadata", "*.blocked.example"]
private_names = ["*.corp.example", "{host}"]
"""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy.

    Attributes:
        name: Its column.
        missing: Says what isn't installed, and the cure; None if nothing is.
        version: Its version, in a few words.
        command: Writes configuration into a directory, for a port and the origin's host; what
            to run.
        tunnels: Whether it knows CONNECT.
        lasts: False if it ends connections without announcing that.
    """

    name: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    command: Callable[[Path, int, str], list[str]]
    tunnels: bool = True
    lasts: bool = True


def _nothing_missing() -> None:
    return None


def _sidecar(directory: Path, port: int, host: str) -> list[str]:
    configuration = directory / "sidecar.toml"
    configuration.write_text(policy(host))
    twistd = Path(sysconfig.get_path("scripts")) / "twistd"
    command = [sys.executable, str(twistd), "-n", "--pidfile=", "sidecar"]
    command += ["--config", str(configuration), "--access-log", str(directory / "access.log")]
    return [*command, "--http-proxy", f"tcp:{port}:interface={HOST}"]


def policy(host: str) -> str:
    """Return the rules by which sidecar judges every request: one of several allows the origin."""
    text = _POLICY.format(host=host)
    # An address is no name: that it is allowed says that it may be private.
    return text.replace(f', "{host}"]', "]") if host == HOST else text


def _squid_missing() -> str | None:
    return None if shutil.which("squid") else "squid is not installed: apt-get install squid"


def _squid_version() -> str:
    return output_of("squid", "-v").partition("\n")[0]


def _squid(directory: Path, port: int, _: str) -> list[str]:
    configuration = directory / "squid.conf"
    configuration.write_text(f"""\
http_port {HOST}:{port}
http_access allow all
cache deny all
cache_mem 8 MB
access_log stdio:{directory}/access.log
buffered_logs on
cache_log {directory}/cache.log
cache_store_log none
client_db off
forwarded_for delete
via on
max_filedescriptors 16384
pid_filename none
pinger_enable off
netdb_filename none
coredump_dir none
visible_hostname localhost
dns_nameservers {HOST}
shutdown_lifetime 0 seconds
""")
    command = ["squid", "-N", "-f", str(configuration)]
    # As root it would want another user, whose is neither the directory nor, in a user
    # namespace, any place. In one of its own it is nobody, who may what this process may.
    return ["unshare", "--user", *command] if os.geteuid() == 0 else command


def _tinyproxy_missing() -> str | None:
    if shutil.which("tinyproxy"):
        return None
    return "tinyproxy is not installed: apt-get install tinyproxy-bin"


def _tinyproxy_version() -> str:
    return output_of("tinyproxy", "-v").strip()


def _tinyproxy(directory: Path, port: int, _: str) -> list[str]:
    configuration = directory / "tinyproxy.conf"
    configuration.write_text(f"""\
Port {port}
Listen {HOST}
Timeout 600
MaxClients 1024
LogFile "{directory}/tinyproxy.log"
LogLevel Warning
PidFile "{directory}/tinyproxy.pid"
""")
    return ["tinyproxy", "-d", "-c", str(configuration)]


def _proxy_py_version() -> str:
    return f"proxy.py {output_of('proxy', '--version').strip()}"


def _proxy_py_missing() -> str | None:
    # Other programs are called that, too.
    if shutil.which("proxy") and "proxy.py" in output_of("proxy", "--help"):
        return None
    return "proxy.py is not on PATH or --path: python -m pip install proxy.py"


def _proxy_py(directory: Path, port: int, _: str) -> list[str]:
    command = ["proxy", "--hostname", HOST, "--port", str(port)]
    command += ["--num-acceptors", "1", "--num-workers", "1", "--threadless"]
    command += ["--local-executor", "1", "--backlog", "1024", "--open-file-limit", "16384"]
    command += ["--data-dir", str(directory), "--log-file", str(directory / "access.log")]
    for buffer in ("server-recvbuf", "client-recvbuf", "max-sendbuf"):
        command += [f"--{buffer}-size", str(_BUFFER_BYTES)]
    return command


def _twisted_web(directory: Path, port: int, _: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.webproxy", str(port), str(directory / "access.log")]


def _twisted_version() -> str:
    return next(peer.version() for peer in PEERS if peer.name == "portforward")


def _mitmdump_missing() -> str | None:
    if shutil.which("mitmdump"):
        return None
    return "mitmdump is not on PATH or --path: python -m pip install mitmproxy"


def _mitmdump_version() -> str:
    return output_of("mitmdump", "--version").partition("\n")[0]


def _mitmdump(directory: Path, port: int, _: str) -> list[str]:
    command = ["mitmdump", "--quiet", "--listen-host", HOST, "--listen-port", str(port)]
    for option in (f"confdir={directory}", "flow_detail=0", "stream_large_bodies=1m"):
        command += ["--set", option]
    return command


def _loopbacks() -> list[str]:
    """Return where a name of this host may lead."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return [HOST]
    return [HOST, "[::1]"]


def nginx_origin(directory: Path, port: int, page: str) -> list[str]:
    """Configure the origin: a small page, and a big one from the directory `files`.

    Args:
        directory: Where its files are.
        port: Where it listens, on the loopback addresses that there are.
        page: The small page's text, one line.
    """
    temporary = "".join(
        f"    {kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    listen = "".join(f"        listen {host}:{port} backlog=1024;\n" for host in _loopbacks())
    configuration = directory / "nginx.conf"
    # "user root": in a user namespace there is nobody else.
    configuration.write_text(f"""\
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
{temporary}\
    server {{
{listen}\
        root {directory}/files;
        location = / {{
            return 200 "{page}\\n";
        }}
    }}
}}
""")
    return ["nginx", "-e", f"{directory}/error.log", "-c", str(configuration)]


PROXIES = (
    Proxy(OURS, _nothing_missing, _SIDECAR.version, _sidecar),
    Proxy(SQUID, _squid_missing, _squid_version, _squid),
    Proxy("tinyproxy", _tinyproxy_missing, _tinyproxy_version, _tinyproxy, lasts=False),
    Proxy("proxy.py", _proxy_py_missing, _proxy_py_version, _proxy_py),
    Proxy("twisted.web", _nothing_missing, _twisted_version, _twisted_web, tunnels=False),
    Proxy("mitmdump", _mitmdump_missing, _mitmdump_version, _mitmdump),
)
"""Every proxy, in the order of the table's columns."""

"""What `peek` compares: proxies that find the origin by the name in a ClientHello.

One process for each way to an origin, configured as docs/reference/benchmarks.md says.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peek_client import ANSWER, NAME
from benchmarks.peers import HAPROXY, PEERS, Route, nginx_stream_module
from benchmarks.processes import HOST, output_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "BARE",
    "INTERCEPTED",
    "PROXIES",
    "SNI_HOST",
    "Dialled",
    "Proxy",
    "nginx_origin",
]

SNI_HOST = "127.0.0.2"
"""Where --sni-proxy listens: it relays to its own port, which the origin has at 127.0.0.1."""

INTERCEPTED = "198.51.100.1"
"""The origin's other address, connections to which are intercepted."""

BARE = "sidecar"
_TIMES = "timeout connect 5s\n    timeout client 1h\n    timeout server 1h"
_POLICY = f"""\
[policy]
default = "deny"
allow = ["{NAME}"]
private_names = ["{NAME}"]
verify = "redial"
"""


class Dialled(Enum):
    """What the client dials to get to the origin through a proxy."""

    LISTENER = "its own port"
    ORIGIN_PORT = "the origin's port at SNI_HOST"
    ORIGIN = "the origin; netfilter brings the connection to the proxy"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy.

    Attributes:
        name: Its column.
        missing: Says what isn't installed, and the cure; None if nothing is.
        version: Its version, in a few words.
        command: Writes configuration into a directory; what to run.
        dialled: How a client gets there.
    """

    name: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    command: Callable[[Path, Route], list[str]]
    dialled: Dialled = Dialled.LISTENER


_OTHERS = {peer.name: peer for peer in PEERS}


def _sidecar(directory: Path, arguments: Sequence[str], policy: str = "") -> list[str]:
    configuration = directory / "sidecar.toml"
    configuration.write_text(policy)
    twistd = Path(sysconfig.get_path("scripts")) / "twistd"
    command = [sys.executable, str(twistd), "-n", "--pidfile=", "sidecar"]
    log = ["--access-log", str(directory / "access.log")]
    return [*command, "--config", str(configuration), *arguments, *log]


def _bare(directory: Path, route: Route) -> list[str]:
    listen = f"tcp:{route.listen}:interface={HOST}"
    return _sidecar(directory, ["--forward", f"{listen} tcp:{HOST}:{route.origin}"])


def _sni(directory: Path, route: Route) -> list[str]:
    listen = f"tcp:{route.origin}:interface={SNI_HOST}"
    return _sidecar(directory, ["--sni-proxy", listen], _POLICY)


def _transparent(directory: Path, route: Route) -> list[str]:
    return _sidecar(directory, ["--outbound", f"transparent:{route.listen}"])


def _transparent_peek(directory: Path, route: Route) -> list[str]:
    return _sidecar(directory, ["--outbound", f"transparent:{route.listen}"], _POLICY)


def _haproxy(directory: Path, route: Route) -> list[str]:
    configuration = directory / "haproxy.cfg"
    configuration.write_text(f"""\
global
    nbthread 1
    maxconn 4000
    tune.pipesize 1048576
defaults
    mode tcp
    maxconn 4000
    option splice-auto
    option splice-request
    option splice-response
    {_TIMES}
frontend names
    bind {HOST}:{route.listen} backlog 1024
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    tcp-request content reject
    use_backend origin if {{ req.ssl_sni -i {NAME} }}
backend origin
    server origin {HOST}:{route.origin}
""")
    return ["haproxy", "-db", "-f", str(configuration)]


def _nginx_text(directory: Path, stream: str) -> str:
    # "user root": in a user namespace there is nobody else.
    return f"""\
{nginx_stream_module(output_of("nginx", "-V"))}\
user root;
daemon off;
worker_processes 1;
worker_rlimit_nofile 8100;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{
    worker_connections 8000;
}}
stream {{
{stream}}}
"""


def _nginx(directory: Path, route: Route) -> list[str]:
    stream = f"""\
    proxy_timeout 1h;
    proxy_buffer_size 64k;
    map $ssl_preread_server_name $origin {{
        {NAME} {HOST}:{route.origin};
    }}
    server {{
        listen {HOST}:{route.listen} backlog=1024;
        ssl_preread on;
        proxy_pass $origin;
    }}
"""
    return _nginx_command(directory, stream)


def nginx_origin(directory: Path, port: int, hosts: Sequence[str]) -> list[str]:
    """Configure the origin: reads a ClientHello, answers, closes.

    Args:
        directory: For its files.
        port: Where it listens.
        hosts: On which addresses.

    Returns:
        What to run.
    """
    listen = "\n".join(f"        listen {host}:{port} backlog=1024;" for host in hosts)
    stream = f"""\
    server {{
{listen}
        ssl_preread on;
        return "{ANSWER.decode().strip()}\\n";
    }}
"""
    return _nginx_command(directory, stream)


def _nginx_command(directory: Path, stream: str) -> list[str]:
    configuration = directory / "nginx.conf"
    configuration.write_text(_nginx_text(directory, stream))
    return ["nginx", "-e", f"{directory}/error.log", "-c", str(configuration)]


def _sniproxy_missing() -> str | None:
    if shutil.which("sniproxy"):
        return None
    return "sniproxy is not installed: apt-get install sniproxy"


def _sniproxy_version() -> str:
    return output_of("sniproxy", "-V").strip()


def _sniproxy(directory: Path, route: Route) -> list[str]:
    configuration = directory / "sniproxy.conf"
    configuration.write_text(f"""\
user root
pidfile {directory}/sniproxy.pid
error_log {{
    filename {directory}/error.log
}}
listener {HOST}:{route.listen} {{
    protocol tls
    table names
}}
table names {{
    {NAME} {HOST}:{route.origin}
}}
""")
    return ["sniproxy", "-f", "-n", "65536", "-c", str(configuration)]


def _ours(
    name: str, command: Callable[[Path, Route], list[str]], dialled: Dialled = Dialled.LISTENER
) -> Proxy:
    sidecar = _OTHERS[BARE]
    return Proxy(name, sidecar.missing, sidecar.version, command, dialled)


PROXIES = (
    _ours(BARE, _bare),
    _ours("sidecar-sni", _sni, Dialled.ORIGIN_PORT),
    _ours("transparent", _transparent, Dialled.ORIGIN),
    _ours("transparent-peek", _transparent_peek, Dialled.ORIGIN),
    Proxy(HAPROXY, _OTHERS[HAPROXY].missing, _OTHERS[HAPROXY].version, _haproxy),
    Proxy("nginx", _OTHERS["nginx"].missing, _OTHERS["nginx"].version, _nginx),
    Proxy("sniproxy", _sniproxy_missing, _sniproxy_version, _sniproxy),
)
"""Every proxy, in the order of the table's columns."""

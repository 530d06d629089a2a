"""What is compared, and how each is configured and started.

Every proxy is one process with one thread of work, relays three ports of the
loopback address to three origins, and writes its files into a directory that it
is given. docs/reference/benchmarks.md shows and justifies the configurations.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
import sysconfig
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import HOST, ROOT, free_port, output_of, running
from twisted import __version__ as twisted_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "DIRECT",
    "HAPROXY",
    "PEERS",
    "Origin",
    "Peer",
    "Route",
    "nginx_stream_module",
    "serving",
]

HAPROXY = "haproxy"
DIRECT = "direct"
_CONNECTIONS = 4_000  # HAProxy wants 2.5 descriptors for each, and will not start without
_PIPE_BYTES = 1_048_576  # as ours


class Origin(Enum):
    """A server behind the proxies."""

    IPERF = "iperf3"
    ECHO = "echo"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class Route:
    """A port to listen on and the origin's port behind it."""

    listen: int
    origin: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy.

    Attributes:
        name: Its column.
        missing: Says what isn't installed, and the cure; None if nothing is.
        version: Its version, in a few words.
        command: Writes configuration for the routes into a directory; what to run.
    """

    name: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    command: Callable[[Path, Sequence[Route]], list[str]]


@contextmanager
def serving(
    peer: Peer, directory: Path, origins: Mapping[Origin, int]
) -> Iterator[tuple[int, Mapping[Origin, int]]]:
    """Run a proxy until the block ends.

    Args:
        peer: Which.
        directory: For its files; made here.
        origins: The origins' ports.

    Yields:
        Its process id and its ports.

    Raises:
        StartError: It doesn't come up.
    """
    directory.mkdir()
    ports = {origin: free_port() for origin in origins}
    routes = [Route(ports[origin], origins[origin]) for origin in origins]
    command = peer.command(directory, routes)
    with running(peer.name, command, directory, ports.values()) as pid:
        yield pid, ports


def _nothing_missing() -> None:
    return None


def _sidecar_version() -> str:
    described = output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty").strip()
    return f"{described or 'no commit'}, {_twisted_version()}"


def _sidecar_command(directory: Path, routes: Sequence[Route]) -> list[str]:
    twistd = Path(sysconfig.get_path("scripts")) / "twistd"
    command = [sys.executable, str(twistd), "-n", "--pidfile=", "sidecar"]
    for route in routes:
        listen = f"tcp:{route.listen}:interface={HOST}"
        command += ["--forward", f"{listen} tcp:{HOST}:{route.origin}"]
    return [*command, "--access-log", str(directory / "access.log")]


def _haproxy_missing() -> str | None:
    return None if shutil.which("haproxy") else "haproxy is not installed: apt-get install haproxy"


def _haproxy_version() -> str:
    return output_of("haproxy", "-v").partition("\n")[0]


def _haproxy_spliced_command(directory: Path, routes: Sequence[Route]) -> list[str]:
    options = "option splice-auto\n    option splice-request\n    option splice-response"
    return _haproxy_command(directory, routes, options)


def _haproxy_auto_command(directory: Path, routes: Sequence[Route]) -> list[str]:
    return _haproxy_command(directory, routes, "option splice-auto")


def _haproxy_command(directory: Path, routes: Sequence[Route], options: str) -> list[str]:
    text = f"""\
global
    nbthread 1
    maxconn {_CONNECTIONS}
    tune.pipesize {_PIPE_BYTES}
defaults
    mode tcp
    maxconn {_CONNECTIONS}
    {options}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"""
    for route in routes:
        text += f"""\
listen port{route.listen}
    bind {HOST}:{route.listen} backlog 1024
    server origin {HOST}:{route.origin}
"""
    configuration = directory / "haproxy.cfg"
    configuration.write_text(text)
    return ["haproxy", "-db", "-f", str(configuration)]


def nginx_stream_module(configure_arguments: str) -> str | None:
    """Return the configuration line that loads nginx's stream module.

    Args:
        configure_arguments: What `nginx -V` prints.

    Returns:
        Empty if it is compiled in; None if there is none.
    """
    if re.search(r"--with-stream(\s|$)", configure_arguments):
        return ""
    path = re.search(r"--modules-path=(\S+)", configure_arguments)
    if path is None:
        return None
    module = Path(path[1]) / "ngx_stream_module.so"
    return f"load_module {module};\n" if module.exists() else None


def _nginx_missing() -> str | None:
    if shutil.which("nginx") is None:
        return "nginx is not installed: apt-get install nginx libnginx-mod-stream"
    if nginx_stream_module(output_of("nginx", "-V")) is None:
        return "nginx has no stream module: apt-get install libnginx-mod-stream"
    return None


def _nginx_version() -> str:
    return output_of("nginx", "-v").strip()


def _nginx_command(directory: Path, routes: Sequence[Route]) -> list[str]:
    text = f"""\
{nginx_stream_module(output_of("nginx", "-V"))}\
daemon off;
worker_processes 1;
worker_rlimit_nofile {2 * _CONNECTIONS + 100};
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{
    worker_connections {2 * _CONNECTIONS};
}}
stream {{
    proxy_timeout 1h;
    proxy_buffer_size 64k;
"""
    for route in routes:
        text += f"""\
    server {{
        listen {HOST}:{route.listen} backlog=1024;
        proxy_pass {HOST}:{route.origin};
    }}
"""
    configuration = directory / "nginx.conf"
    configuration.write_text(text + "}\n")
    return ["nginx", "-e", f"{directory}/error.log", "-c", str(configuration)]


def _twisted_version() -> str:
    return f"Twisted {twisted_version}, Python {platform.python_version()}"


def _portforward_command(_: Path, routes: Sequence[Route]) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.portforward"]
    for route in routes:
        command += [str(route.listen), str(route.origin)]
    return command


def _quiet_portforward_command(directory: Path, routes: Sequence[Route]) -> list[str]:
    return [*_portforward_command(directory, routes), "--quiet"]


PEERS = (
    Peer("sidecar", _nothing_missing, _sidecar_version, _sidecar_command),
    Peer(HAPROXY, _haproxy_missing, _haproxy_version, _haproxy_spliced_command),
    Peer("haproxy-auto", _haproxy_missing, _haproxy_version, _haproxy_auto_command),
    Peer("nginx", _nginx_missing, _nginx_version, _nginx_command),
    Peer("portforward", _nothing_missing, _twisted_version, _portforward_command),
    Peer("portforward-quiet", _nothing_missing, _twisted_version, _quiet_portforward_command),
)
"""Every proxy, in the order of the table's columns."""

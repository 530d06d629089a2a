"""The servers behind the proxies: which are installed, and how each is started."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.peers import Origin
from benchmarks.processes import HOST, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["HTTP_BODY", "missing", "origin"]

HTTP_BODY = b"ok\n"


def missing(wanted: Origin) -> str | None:
    """Say what isn't installed, and the cure; None if nothing is."""
    if wanted is Origin.IPERF and shutil.which("iperf3") is None:
        return "iperf3 is not installed: apt-get install iperf3"
    if wanted is Origin.HTTP:
        for program in ("wrk", "nginx"):
            if shutil.which(program) is None:
                return f"{program} is not installed: apt-get install {program}"
    return None


@contextmanager
def origin(wanted: Origin, directory: Path, host: str = HOST) -> Iterator[int]:
    """Run an origin until the block ends.

    Args:
        wanted: Which.
        directory: For its files.
        host: The address that it listens on; the echo is on `HOST` alone.

    Yields:
        Its port.

    Raises:
        StartError: It doesn't come up.
    """
    port = free_port()
    if wanted is Origin.IPERF:
        command = ["iperf3", "-s", "-B", host, "-p", str(port)]
    elif wanted is Origin.ECHO:
        command = [sys.executable, "-m", "benchmarks.echo", str(port)]
    else:
        command = _http_command(directory, host, port)
    with running(f"origin-{wanted.value}", command, directory, [port]):
        yield port


def _http_command(directory: Path, host: str, port: int) -> list[str]:
    temporary = "".join(
        f"    {kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = directory / "origin.conf"
    configuration.write_text(f"""\
daemon off;
worker_processes 1;
pid {directory}/origin.pid;
error_log {directory}/origin-error.log;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
{temporary}\
    server {{
        listen {host}:{port} backlog=1024;
        return 200 "{HTTP_BODY.decode().strip()}\\n";
    }}
}}
""")
    return ["nginx", "-e", f"{directory}/origin-error.log", "-c", str(configuration)]

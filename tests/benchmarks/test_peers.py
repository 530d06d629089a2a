"""What the benchmarks find out about the machine and about peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import nginx_stream_module
from benchmarks.processes import listening_ports

if TYPE_CHECKING:
    from pathlib import Path

PROC_NET_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11
   1: 0100007F:4E21 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 12
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13
"""


def test_only_listeners_are_listening_ports() -> None:
    """A connection's local port is not one, whatever its number."""
    assert {20000, 22} == listening_ports(PROC_NET_TCP)


def test_nginx_with_stream_compiled_in_loads_no_module() -> None:
    """`--with-stream`, alone or last."""
    assert nginx_stream_module("configure arguments: --with-stream --with-threads") == ""
    assert nginx_stream_module("configure arguments: --with-stream\n") == ""


def test_nginx_with_a_stream_module_loads_it(tmp_path: Path) -> None:
    """Debian's: `--with-stream=dynamic`, the module in a package of its own."""
    arguments = f"--modules-path={tmp_path} --with-stream=dynamic --with-stream_ssl_module"
    assert nginx_stream_module(arguments) is None
    module = tmp_path / "ngx_stream_module.so"
    module.touch()
    assert f"load_module {module};\n" == nginx_stream_module(arguments)


def test_nginx_without_stream_has_none() -> None:
    """Neither compiled in nor a module."""
    assert nginx_stream_module("configure arguments: --with-http_ssl_module") is None

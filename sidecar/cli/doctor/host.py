"""What the host gives: limits, pipes, conntrack's table, name servers, a user's privileges."""

from __future__ import annotations

import fcntl
import os
import resource
import secrets
import socket
import struct
import time
from pathlib import Path

from sidecar.cli.doctor.findings import Finding, State
from sidecar.dns.resolvconf import NameServer, parse_name_servers
from sidecar.errors import RulesError
from sidecar.linux.netfilter import readback
from sidecar.linux.sockopt import set_transparent

__all__ = ["conntrack_room", "descriptor_limits", "name_server", "pipes", "privileges"]

# Descriptors: what a thousand connections take, two sockets and maybe a pipe each.
_DESCRIPTORS = 4096
# Octets: what the relay asks for (F_SETPIPE_SZ).
_PIPE_OCTETS = 1 << 20
# Of conntrack's table; new connections are dropped when it is full.
_FULL = 0.9
# Seconds for all servers together, as the proxy waits.
_DNS_PATIENCE = 5.0
_MILLI = 1000
_RESOLV_CONF = Path("/etc/resolv.conf")
_CONNTRACK = Path("/proc/sys/net/netfilter")
# RFC 1035 §4.1: recursion desired, one question: the root's name servers. It tells
# nobody anything, and every resolver has the answer.
_FLAGS, _NS, _IN = 0x0100, 2, 1
_HEADER = struct.Struct(">6H")


def descriptor_limits() -> Finding:
    """How many descriptors may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft}, at most {hard}"
    if hard < _DESCRIPTORS:
        mend = f"prlimit --nofile={_DESCRIPTORS} --pid $$  (as root; LimitNOFILE= in a unit)"
        return Finding(State.NOT, f"{found}: few", mend)
    return Finding(State.OK, found)


def pipes() -> Finding:
    """Whether bytes can be moved in the kernel, and how many at once."""
    if not hasattr(os, "splice"):
        return Finding(State.NOT, "this Python has no os.splice", "use Python 3.10 or later")
    reading, writing = os.pipe()
    try:
        octets = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_OCTETS)
        os.write(writing, b"!")
        other = os.pipe()
        try:
            os.splice(reading, other[1], 1)
        finally:
            for descriptor in other:
                os.close(descriptor)
    except PermissionError:
        mend = f"sysctl -w fs.pipe-max-size={_PIPE_OCTETS}"
        return Finding(State.NOT, f"no pipe of {_PIPE_OCTETS} octets is allowed", mend)
    except OSError as error:
        return Finding(State.NOT, f"splice: {error.strerror}", "use another kernel")
    finally:
        os.close(reading)
        os.close(writing)
    return Finding(State.OK, f"spliced, through a pipe of {octets} octets")


def conntrack_room(directory: Path = _CONNTRACK) -> Finding:
    """How full conntrack's table is in this network namespace."""
    try:
        count, most = (
            int((directory / name).read_text(encoding="ascii"))
            for name in ("nf_conntrack_count", "nf_conntrack_max")
        )
    except (OSError, ValueError):
        return Finding(State.OK, "not in use here yet")
    found = f"{count} of {most} connections"
    if count > _FULL * most:
        mend = f"sysctl -w net.netfilter.nf_conntrack_max={2 * most}"
        return Finding(State.NOT, f"{found}: nearly full", mend)
    return Finding(State.OK, found)


def privileges() -> Finding:
    """What this user may do in this network namespace, looking only."""
    lacking = []
    try:
        readback.read()
    except RulesError:
        lacking.append("apply rules")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            set_transparent(sock)
        except OSError:
            lacking.append("open TPROXY listeners")
    if lacking:
        mend = "run these as root (setpriv --ambient-caps +net_raw is enough for listeners)"
        return Finding(State.NOT, f"user {os.geteuid()} may not {' or '.join(lacking)}", mend)
    return Finding(State.OK, f"user {os.geteuid()} may apply rules and open TPROXY listeners")


def name_server(path: Path = _RESOLV_CONF, patience: float = _DNS_PATIENCE) -> Finding:
    """Whether one of the host's name servers answers.

    Args:
        path: A file in the format of resolv.conf(5).
        patience: Seconds for all of them together.
    """
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    servers = parse_name_servers(text)
    problems = []
    for server in servers:
        began = time.monotonic()
        try:
            _ask(server, patience / len(servers))
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror
            problems.append(f"{server.text}: {reason}")
        else:
            milliseconds = (time.monotonic() - began) * _MILLI
            return Finding(State.OK, f"{server.text} answered in {milliseconds:.0f} ms")
    mend = f"name a resolver that answers: echo nameserver ADDRESS > {path}"
    return Finding(State.NOT, "; ".join(problems), mend)


def _ask(server: NameServer, patience: float) -> None:
    """Ask one question; any answer to it will do.

    Raises:
        OSError: There is none.
    """
    number = secrets.randbits(16)
    question = b"\0" + struct.pack(">2H", _NS, _IN)
    deadline = time.monotonic() + patience
    with socket.socket(server.family, socket.SOCK_DGRAM) as sock:
        sock.connect(server.sockaddr)
        sock.send(_HEADER.pack(number, _FLAGS, 1, 0, 0, 0) + question)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            answer = sock.recv(4096)
            if len(answer) >= _HEADER.size and _HEADER.unpack_from(answer)[0] == number:
                return

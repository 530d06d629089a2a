"""`python -m benchmarks hello`: ClientHellos parsed beside mitmproxy's parser.

No sockets: the same bytes, whole, in one process, in interleaved rounds.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.options import positive, say
from benchmarks.processes import ROOT
from benchmarks.stats import Figure, Samples, rotated, table
from sidecar import __version__
from sidecar.wire.client_hello import ClientHelloReader
from sidecar.wire.ja4 import ja4

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["add_parser", "made_hellos"]

_HELLOS = ROOT / "tests" / "wire" / "hellos"
_COUNT = 500
_SEED = 4
_RATE = Figure("hellos", "hellos/s", "more", 0)
_SIDECAR = "sidecar"
_SIDECAR_JA4 = "sidecar with JA4"
_MITMPROXY = "mitmproxy"

# What a parser makes of the whole bytes of a hello: the name, and the ALPN list, as it gives them.
_Facts = tuple["bytes | str | None", "Sequence[bytes]"]


@dataclass(frozen=True, slots=True)
class _Column:
    """One of those compared: how it reads a hello."""

    name: str
    parse: Callable[[bytes], _Facts]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `hello` and its options."""
    parser = commands.add_parser("hello", help="ClientHellos parsed, beside mitmproxy's parser")
    parser.add_argument("--rounds", type=positive, default=15, help="how often (15)")
    parser.add_argument(
        "--passes", type=positive, default=4, help=f"over the {_COUNT} hellos, per sample (4)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here too")
    parser.set_defaults(run=_run)


def made_hellos(count: int = _COUNT) -> list[bytes]:
    """Return hellos made from those captured from clients, in turn, the same every time.

    Each has a random, a session id (where the client sends one) and a server name
    (likewise) of its own.
    """
    chance = random.Random(_SEED)  # noqa: S311 - not for secrets
    files = sorted(_HELLOS.glob("*.hex"))
    captured = [bytes.fromhex(file.read_text(encoding="ascii")) for file in files]
    return [_varied(captured[number % len(captured)], number, chance) for number in range(count)]


def _varied(data: bytes, number: int, chance: random.Random) -> bytes:
    """Change the values of a hello that is in one record."""
    hello = ClientHelloReader().feed(data)
    assert hello is not None
    session = data[43]
    start = 44 + session
    head = data[9:11] + chance.randbytes(32) + bytes([session]) + chance.randbytes(session)
    suites = int.from_bytes(data[start : start + 2], "big")
    methods = start + 2 + suites
    extensions = methods + 1 + data[methods]
    content = data[extensions + 2 :]
    if hello.sni is not None:
        letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz-", k=chance.randrange(1, 30)))
        content = _renamed(content, hello.sni, f"h{letters}{number}.example.org".encode("ascii"))
    body = head + data[start:extensions] + len(content).to_bytes(2, "big") + content
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return data[:3] + len(message).to_bytes(2, "big") + message


def _renamed(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace the name in the server_name among some extensions."""
    entry = _server_name(old)
    assert content.count(entry) == 1
    return content.replace(entry, _server_name(new))


def _server_name(name: bytes) -> bytes:
    lengths = [(len(name) + more).to_bytes(2, "big") for more in (5, 3, 0)]
    return b"\0\0" + lengths[0] + lengths[1] + b"\0" + lengths[2] + name


def _ours(data: bytes) -> _Facts:
    hello = ClientHelloReader().feed(data)
    assert hello is not None
    return hello.sni, hello.protocols


def _ours_with_ja4(data: bytes) -> _Facts:
    hello = ClientHelloReader().feed(data)
    assert hello is not None
    ja4(hello)
    return hello.sni, hello.protocols


def _mitmproxy() -> _Column | None:
    """How mitmproxy's TLS layer reads a hello; None, with a word to the user, if it isn't there."""
    try:
        layer: Any = import_module("mitmproxy.proxy.layers.tls")
    except ImportError as error:
        say(
            f"without mitmproxy: {error}. In an environment of its own, since it pins "
            "cryptography and others: python -m venv BENCH && BENCH/bin/pip install mitmproxy "
            "twisted zope.interface msgspec && BENCH/bin/python -m benchmarks hello"
        )
        return None
    parse_client_hello = layer.parse_client_hello

    def parse(data: bytes) -> _Facts:
        hello = parse_client_hello(data)
        return hello.sni, hello.alpn_protocols

    return _Column(_MITMPROXY, parse)


def _run(arguments: argparse.Namespace) -> int:
    hellos = made_hellos()
    columns = [_Column(_SIDECAR, _ours), _Column(_SIDECAR_JA4, _ours_with_ja4)]
    other = _mitmproxy()
    if other is not None:
        columns.append(other)
    failures = [
        f"{column.name} reads hello {number} otherwise"
        for column in columns
        for number, hello in enumerate(hellos)
        if _plain(column.parse(hello)) != _plain(_ours(hello))
    ]
    samples = Samples()
    by_name = {column.name: column for column in columns}
    for number in range(arguments.rounds):
        for name in rotated(list(by_name), number):
            samples.add(_RATE, name, _rate(by_name[name], hellos, arguments.passes))
    base = _MITMPROXY if other is not None else _SIDECAR
    lengths = sorted(len(hello) for hello in hellos)
    versions = f"sidecar {__version__}" + (f", mitmproxy {version('mitmproxy')}" if other else "")
    sizes = f"{lengths[0]} to {lengths[-1]} bytes (median {lengths[len(lengths) // 2]})"
    rounds = f"{arguments.rounds} interleaved rounds of {arguments.passes} passes"
    machine = f"machine: Linux {platform.release()}, {os.cpu_count()} processors"
    lines = [
        f"Medians of {rounds} over {len(hellos)} hellos of {sizes}; ratios to {base}.",
        "",
        table(samples, [_RATE], list(by_name), base),
        "",
        f"{machine}; Python {platform.python_version()}; {versions}",
        *(f"failed: {failure}" for failure in failures),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json is not None:
        values = {name: samples.of(_RATE, name) for name in by_name}
        arguments.json.write_text(json.dumps({"versions": versions, "hellos": values}))
    return 1 if failures else 0


def _plain(facts: _Facts) -> tuple[str | None, list[bytes]]:
    name, protocols = facts
    return name.decode("ascii") if isinstance(name, bytes) else name, list(protocols)


def _rate(column: _Column, hellos: Sequence[bytes], passes: int) -> float:
    parse = column.parse
    gc.collect()  # what the one before left is not this one's to clear
    began = time.perf_counter()
    for _ in range(passes):
        for hello in hellos:
            parse(hello)
    return passes * len(hellos) / (time.perf_counter() - began)

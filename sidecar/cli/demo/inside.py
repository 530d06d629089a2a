"""The stage: a network with servers in it; then scene after scene."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sys
import textwrap
import time
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sidecar.cli.demo import airgap, checks, children, client
from sidecar.cli.demo.certificates import make_certificate
from sidecar.cli.demo.origins import Servers
from sidecar.cli.demo.playing import INDENT, Player
from sidecar.cli.demo.scenes import SERVERS, hosts, scenes
from sidecar.cli.streams import complain, ending
from sidecar.errors import SidecarError
from sidecar.linux.namespaces import set_up_loopback
from sidecar.linux.processes import belongs_to
from sidecar.sandbox.addresses import EVERYWHERE
from sidecar.sandbox.mounts import mask_name_services

if TYPE_CHECKING:
    from sidecar.cli.demo.scenes import Scene

__all__ = ["main"]

_WIDTH = 96
_BETWEEN = "\n"
# For documentation (RFC 5737, RFC 3849): nobody's.
_HOST = ("203.0.113.1", "2001:db8:2::1")
_NAME_SERVER = "203.0.113.53"
# Seconds in which what is under way arrives: all is on loopback.
_SETTLING = 0.05
_BY_SIGNAL = 128
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Play the demo in this process and its children.

    sys.argv has an empty directory, which is removed, and the parent's process id.

    Returns:
        The exit status.
    """
    directory, parent = Path(sys.argv[1]), int(sys.argv[2])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What commands say is passed on as it is.
        sys.stdout.reconfigure(errors="surrogateescape")
    for number in _ENDING:
        signal.signal(number, _end)
    try:
        return ending("sidecar demo", partial(_play, directory, parent))
    except (SidecarError, OSError) as error:
        complain(f"sidecar demo: {error}")
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _end(number: int, _: object) -> NoReturn:
    # What is tidied up from here on is tidied up to the end. (Not SIG_IGN: of a signal that
    # has come already, Python would complain.)
    for each in _ENDING:
        signal.signal(each, lambda *_: None)
    raise SystemExit(_BY_SIGNAL + number)


def _play(directory: Path, parent: int) -> int:
    began = time.monotonic()
    airgap.enter()
    # Only now: a new user namespace forgets such wishes.
    children.die_with(parent)
    versions = set_up_loopback([ip_address(each) for each in _HOST], EVERYWHERE)
    if not _has_sockets(socket.AF_INET6):
        versions -= {6}
    if airgap.use_name_server(directory, _NAME_SERVER):
        # Whom they ask knows other names.
        mask_name_services()
    places = hosts(versions)
    ca_file, key_file = make_certificate(directory, sorted(places))
    shutil.copy(client.__file__, directory / "client.py")
    player = Player(directory, ca_file)
    servers = Servers(
        [each for each in SERVERS if ip_address(each.address.host).version in versions],
        {name: [ip_address(each.address.host) for each in there] for name, there in places.items()},
        key_file,
        lambda local, remote: belongs_to(player.pid, local, remote),
    )
    _introduce()
    faulty = 0
    played = scenes(versions)
    for number, scene in enumerate(played, 1):
        print(f"{_BETWEEN if number > 1 else ''}{number}. {scene.title}")
        found = _one(scene, directory, player, servers)
        faulty += bool(found)
        for each in found:
            _say("WRONG", each)
        if not found:
            _say("checked", scene.claim)
    return _sum_up(len(played), faulty, time.monotonic() - began)


def _has_sockets(family: socket.AddressFamily) -> bool:
    # A filter may forbid what the kernel has (systemd's RestrictAddressFamilies=).
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _one(scene: Scene, directory: Path, player: Player, servers: Servers) -> list[str]:
    without = player.play_without(scene)
    time.sleep(_SETTLING)
    found = checks.faults_without(scene, checks.Happened(without, servers.events(), ()))
    _show(f"$ sidecar {' '.join(scene.arguments)}".encode())
    played = player.play(scene, _show)
    time.sleep(_SETTLING)
    try:
        log = (directory / scene.log).read_text(encoding="ascii")
    except FileNotFoundError:
        log = ""
    lines = [json.loads(line) for line in log.splitlines()]
    lines = [each for each in lines if each["listener"] != "dns"]
    return found + checks.faults(scene, checks.Happened(played, servers.events(), lines))


def _introduce() -> None:
    print(
        f"As user {os.geteuid()}, in a network of the demo's own: it has servers, and no way out."
    )


def _show(line: bytes) -> None:
    text = line.decode(sys.stdout.encoding, "surrogateescape")
    print(f"{INDENT}{text}".rstrip(), flush=True)


def _say(label: str, text: str) -> None:
    print(_filled(text, f"{INDENT}{label}: ", INDENT), flush=True)


def _filled(text: str, first: str = "", others: str = "") -> str:
    # 0 is what terminals say that know nothing; Python 3.10 passes it on.
    width = min(shutil.get_terminal_size((_WIDTH, 0)).columns or _WIDTH, _WIDTH)
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sum_up(played: int, faulty: int, seconds: float) -> int:
    if faulty:
        wrong = f"{faulty} of {played} not as claimed (WRONG, above)."
        print(f"\n{wrong} Please report it, with all this.")
        return 1
    print(
        f"\nAll as claimed, in {seconds:.1f} s. Nothing is left behind. Next, with a command of"
        " yours:\n   $ sidecar exec --learn policy.toml -- COMMAND"
    )
    return 0

"""What a person sees of `sidecar exec`: in a real terminal, compared with what the docs show.

    SIDECAR_CAPTURE=1 pytest tests/integration/test_terminal_view.py

writes the captures in docs/reference/terminal.md anew.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration import netns
from integration.origins import Origin
from nameservers import Scripted, a

import sidecar
from sidecar.addresses import SocketAddress

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_INSTALLED = Path(sidecar.__file__).parent.parent
PAGE = Path(__file__).parent.parent.parent / "docs/reference/terminal.md"
WRITING = os.environ.get("SIDECAR_CAPTURE") == "1"

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="not installed: tmux"),
]

ADDRESSES = {
    "registry.example": "9.9.9.1",
    "objects.cdn.example": "9.9.9.2",
    "tracker.example": "9.9.9.3",
}
FILES = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": "127.0.0.1 localhost\n",
    # What is shown: some connections, denials of three kinds, one long transfer.
    "build.sh": """\
get() {
    curl -4 -sS -A curl -m 20 -o /dev/null "$@"
    # Until what is shown of it is there; whoever runs us says when.
    number=$((number + 1))
    while [ "$SHOWN" ] && [ ! -e "$SHOWN$number" ]; do sleep 0.02; done
    sleep 0.2
}
echo "fetching the index"
get http://registry.example/index
get http://registry.example/left-pad
get http://tracker.example/ping
get http://169.254.169.254/latest/meta-data/
get http://10.0.0.5:8080/
get http://registry.example:81/
echo "fetching objects"
get http://objects.cdn.example/layer
echo "built"
""",
    "chatty.sh": """\
for number in $(seq 100 199); do
    curl -sS -m 20 -o /dev/null http://registry.example/index &
    echo "this is line $number of what the command writes"
    echo "and this is line $number of its complaints" >&2
done
wait
""",
    "editor.sh": """\
stty -icanon -echo
curl -sS -m 20 -o /dev/null http://registry.example/index
sleep 0.5
echo "the editor's last line"
stty icanon echo
while [ ! -e "$SHOWN" ]; do sleep 0.02; done
echo "the shell's line"
""",
}
_WITH_FILES = (
    "for each in resolv.conf nsswitch.conf hosts;"
    ' do mount --bind "$0/$each" "/etc/$each" || exit 99; done; exec "$@"'
)
# Bytes; and seconds that a transfer pauses in its middle.
_INDEX = 345_000
_LAYER = 12_000_000
_PAUSE = 4.0
# On the screen once sidecar has ended.
_OVER = "-- over --"


def answer(connection: socket.socket, *, size: int, pause: float = 0.0) -> None:
    """Answer one request, and take a while over it."""
    connection.recv(65536)
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    with suppress(OSError):
        connection.sendall(head + bytes(size // 2))
        time.sleep(pause)
        connection.sendall(bytes(size - size // 2))


class Machine:
    """Where the command runs, and its terminal.

    Args:
        namespace: With all the servers that there are.
        directory: Has FILES, and what else is needed.
    """

    def __init__(self, namespace: netns.Namespace, directory: Path) -> None:
        self.namespace = namespace
        self.directory = directory
        self._number = 0

    def tmux(self, *words: str) -> str:
        """Tell the terminal something."""
        return self.namespace.run(
            [
                *("unshare", "--mount", "sh", "-c", _WITH_FILES, str(self.directory)),
                *("tmux", "-u", "-f", "/dev/null", "-S", str(self.directory / "tmux"), *words),
            ],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONPATH": str(_INSTALLED),
                "LANG": "C.UTF-8",
            },
            cwd=self.directory,
        ).stdout

    def start(self, options: str, script: str, *, width: int = 80, setting: str = "") -> Terminal:
        """Run `sidecar exec OPTIONS -- sh SCRIPT` as if it had been typed."""
        self._number += 1
        words = f"{options} -- sh {script}".strip()
        typed = f"printf '%s\\n' {shlex.quote(f'$ sidecar exec {words}')}"
        command = f"{setting} {shlex.quote(sys.executable)} -m sidecar.cli exec {words}"
        name = f"t{self._number}"
        self.tmux(
            *("new-session", "-d", "-s", name, "-x", str(width), "-y", "400"),
            f"{typed}; {command}; echo {_OVER}; sleep 60",
        )
        return Terminal(self, name)


class Terminal:
    """A terminal with a command that runs.

    Args:
        machine: Where.
        name: The session's.

    Attributes:
        is_over: Whether sidecar had ended when its screen was looked at last.
    """

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self._name = name
        self.is_over = False

    def screen(self, *, color: bool = False) -> str:
        """What is to be seen; with colours as escape sequences."""
        options = ["-p", "-e"] if color else ["-p"]
        shown = self._machine.tmux("capture-pane", *options, "-t", self._name)
        # tmux may come to read what was written last only now.
        shown, over, _ = shown.partition(f"{_OVER}\n")
        self.is_over = bool(over)
        return re.sub(r"(\n|\x1b\[[\d;]*m)+$", "", shown) + "\n"

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until something is to be seen so many times."""
        deadline = time.monotonic() + netns.DEADLINE
        while (screen := self.screen()).count(text) < count:
            assert time.monotonic() < deadline, screen
            time.sleep(0.05)

    def wait(self) -> None:
        """Wait until sidecar has ended, and close the terminal in the end."""
        deadline = time.monotonic() + 3 * netns.DEADLINE
        while (screen := self.screen()) and not self.is_over:
            assert time.monotonic() < deadline, screen
            time.sleep(0.05)

    def close(self) -> None:
        """Take it away."""
        self._machine.tmux("kill-session", "-t", self._name)


@pytest.fixture(scope="module")
def machine(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("terminal")
    for name, text in FILES.items():
        (directory / name).write_text(text, encoding="ascii")
    namespace = netns.Namespace("tty")
    with ExitStack() as stack:
        stack.callback(namespace.remove)
        for address in ADDRESSES.values():
            namespace.reach(address)
        with namespace.entered():
            records = [each for name, address in ADDRESSES.items() for each in a(name, address)]
            stack.enter_context(Scripted(records, port=53))
        for name, handle in (
            ("registry.example", partial(answer, size=_INDEX)),
            ("objects.cdn.example", partial(answer, size=_LAYER, pause=_PAUSE)),
        ):
            stack.enter_context(Origin(namespace, SocketAddress(ADDRESSES[name], 80), handle))
        made = Machine(namespace, directory)
        # Outlives the sessions of the single tests.
        made.tmux("new-session", "-d", "-s", "base", "sleep 600")
        stack.callback(made.tmux, "kill-server")
        yield made


def comparable(text: str) -> str:
    """Without what differs from run to run: times, process ids, and how wide they are."""
    # Curl's complaint and ours come in any order; what it finds of a reset is luck.
    complaint = r"(?m)^((?:\x1b|\\e|\[[\d;]*m)*)curl: \((\d+)\) .*\n"
    complaints = [code for _, code in re.findall(complaint, text)]
    text = re.sub(complaint, r"\1", text)
    text += "".join(f"curl: {'reset' if code in {'55', '56'} else code}\n" for code in complaints)
    # On a slow machine it is told once more that a transfer goes on.
    opened = r"[^\n]*open[^\n]*objects\.cdn[^\n]*\n"
    text = re.sub(rf"({opened})(?:{opened})+", r"\1", text)
    text = re.sub(r"\d+\.\d\ds", "0.00s", text)
    text = re.sub(r"\[\d+\]", "[1]", text)
    return re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "00:00:00.000", text)


def visible(text: str) -> str:
    """Escape characters as the docs have them."""
    return text.replace("\x1b", "\\e")


class Captures:
    """The captures in a page: indented, between a comment with the name and one that ends it."""

    def __init__(self, page: Path) -> None:
        self._page = page

    def _pattern(self, name: str) -> re.Pattern[str]:
        return re.compile(rf"(<!-- capture: {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)

    def read(self, name: str) -> str:
        """One of them."""
        found = self._pattern(name).search(self._page.read_text(encoding="utf-8"))
        assert found is not None
        lines = found[2][1:-1].splitlines(keepends=True)
        return "".join(line[4:] if line.strip() else line for line in lines)

    def write(self, name: str, text: str) -> None:
        """Write it anew."""
        lines = text.splitlines(keepends=True)
        shown = "".join(f"    {line}" if line.strip() else line for line in lines)
        page = self._page.read_text(encoding="utf-8")
        page = self._pattern(name).sub(lambda match: f"{match[1]}\n{shown}\n{match[3]}", page)
        self._page.write_text(page, encoding="utf-8")


CAPTURES = {
    "plain": ("--deny tracker.example", 80, "NO_COLOR=1", False),
    "color": ("--deny tracker.example", 80, "", True),
    "wide": ("--deny tracker.example", 120, "", False),
    "verbose": ("-v --summary none --deny tracker.example", 100, "", False),
    "quiet": ("-q --deny tracker.example", 80, "", False),
}


# What is shown, and how often, when each of the steps of build.sh is over.
STEPS = (
    ("sidecar allow registry.example:80", 1),
    ("sidecar allow registry.example:80", 2),
    ("sidecar deny  tracker.example", 1),
    ("sidecar deny  169.254.169.254:80", 1),
    ("sidecar deny  10.0.0.5:8080", 1),
    ("sidecar fail  registry.example:81", 1),
    ("sidecar allow objects.cdn.example:80", 1),
)


@pytest.mark.parametrize("name", CAPTURES)
def test_capture(machine: Machine, name: str) -> None:
    """The first ten seconds look as the docs show; long transfers are shown while they last."""
    options, width, setting, color = CAPTURES[name]
    ready = machine.directory / f"{name}."
    setting = f"{setting} SHOWN={ready}"
    terminal = machine.start(options, "build.sh", width=width, setting=setting)
    shown_live: list[str] = []
    told = 0
    while not terminal.is_over and len(shown_live) < 1000:
        shown_live.append(screen := terminal.screen())
        # Each of the command's steps has its line before the next begins.
        while told < len(STEPS):
            text, count = STEPS[told]
            if name != "quiet" and screen.count(text) < count:
                break
            told += 1
            Path(f"{ready}{told}").touch()
        time.sleep(0.1)
    terminal.wait()
    screen = visible(terminal.screen(color=color))
    terminal.close()
    captures = Captures(PAGE)
    if WRITING:
        captures.write(name, screen)
    assert comparable(captures.read(name)) == comparable(screen)
    if name != "quiet":
        live = [each for each in shown_live if "sidecar open  objects.cdn.example:80" in each]
        assert live
        assert "built" not in live[0]
        assert "sidecar allow objects.cdn.example:80" not in live[0]


@pytest.mark.parametrize(
    ("options", "setting", "wanted"),
    [
        ("", "", True),
        ("", "NO_COLOR=1", False),
        ("", "TERM=dumb", False),
        ("--color never", "", False),
        ("--color always", "NO_COLOR=1", True),
    ],
)
def test_color(machine: Machine, options: str, setting: str, wanted: bool) -> None:
    """Colours where they can be seen and nobody minds."""
    terminal = machine.start(options, "-c 'curl -s -o /dev/null registry.example'", setting=setting)
    terminal.wait()
    screen = terminal.screen(color=True)
    terminal.close()
    assert "registry.example" in screen
    assert wanted == ("\x1b[" in screen)


def test_another_width(machine: Machine) -> None:
    """Lines fit into the terminal as it is when they are made, not as it was at the start."""
    script = "-c 'stty cols 60; curl -s -m 20 http://169.254.169.254/'"
    terminal = machine.start("--summary none", script, width=120)
    terminal.wait()
    lines = terminal.screen().splitlines()
    terminal.close()
    (number,) = [number for number, line in enumerate(lines) if "sidecar deny" in line]
    assert f"{' ' * 14}a cloud's metadata address; --allow 169.254.169.254:80" == lines[number + 1]


def test_nothing_is_torn(machine: Machine) -> None:
    """Neither the command's lines nor ours are torn, however many there are at once."""
    terminal = machine.start("--summary none", "chatty.sh")
    terminal.wait()
    lines = terminal.screen().splitlines()
    terminal.close()
    theirs = [line for line in lines[1:] if not line.startswith("sidecar ")]
    wanted = [
        text.format(number)
        for number in range(100, 200)
        for text in (
            "this is line {} of what the command writes",
            "and this is line {} of its complaints",
        )
    ]
    assert wanted == theirs
    ours = [line for line in lines if line.startswith("sidecar ")]
    assert 100 == len(ours)
    for line in ours:
        assert re.fullmatch(
            r"sidecar allow registry\.example:80      tcp    ↑\d\dB ↓345kB  \d\.\d\ds"
            # Who opened it is found out only as long as it is cheap.
            r"(  curl\[\d+\])?",
            line,
        )


def test_full_screen(machine: Machine) -> None:
    """A program that has the screen to itself isn't disturbed; lines come after it."""
    shown = machine.directory / "editor.shown"
    terminal = machine.start("--summary none", "editor.sh", setting=f"SHOWN={shown}")
    terminal.wait_for("sidecar allow regist")
    shown.touch()
    terminal.wait()
    lines = [line[:20].rstrip() for line in terminal.screen().splitlines()[1:]]
    terminal.close()
    assert ["the editor's last li", "sidecar allow regist", "the shell's line"] == lines


def test_no_terminal(machine: Machine) -> None:
    """Without a terminal there are whole lines without colours, for grep."""
    terminal = machine.start("--deny tracker.example", "build.sh 2> seen")
    terminal.wait()
    terminal.close()
    seen = (machine.directory / "seen").read_text(encoding="utf-8")
    assert "\x1b" not in seen
    assert "\r" not in seen
    (denied,) = re.findall(r"^sidecar deny  169.*$", seen, re.MULTILINE)
    assert "http a cloud's metadata address; --allow 169.254.169.254:80" in denied

from __future__ import annotations

import argparse
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from twisted.internet.task import Clock

from sidecar.cli import viewing
from sidecar.cli.viewing import add_arguments, make_view
from sidecar.errors import SummaryError
from sidecar.flow import Process
from sidecar.observe.processes import ProcessNames
from sidecar.observe.requests import ByConnection

if TYPE_CHECKING:
    from sidecar.observe.styles import Look


def parse(*options: str) -> argparse.Namespace:
    """Options as they are typed."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def look(descriptor: int, *options: str, **environment: str) -> Look:
    """How it would look."""
    return viewing._look(parse(*options), descriptor, environment)


def shown(descriptor: int, *options: str, **environment: str) -> tuple[bool, int | None]:
    """Whether it would be in colour, and how wide."""
    found = look(descriptor, *options, **environment)
    return found.color, found.width


def test_no_terminal() -> None:
    """Without a terminal there are no colours, unless asked for, and no width."""
    reading, writing = os.pipe()
    try:
        assert (False, None) == shown(writing, TERM="xterm")
        assert (True, None) == shown(writing, "--color", "always")
    finally:
        os.close(reading)
        os.close(writing)


def test_terminal() -> None:
    """On a terminal its width counts, and colours are as it can and the user wants."""
    controlling, terminal = pty.openpty()
    try:
        subprocess.run(["stty", "cols", "93"], stdin=terminal, check=True)
        assert (True, 93) == shown(terminal, TERM="xterm")
        assert not look(terminal, TERM="dumb").color
        assert not look(terminal, TERM="xterm", NO_COLOR="1").color
        assert not look(terminal, "--color=never", TERM="xterm").color
        subprocess.run(["stty", "cols", "0"], stdin=terminal, check=True)
        assert look(terminal).width is None
    finally:
        os.close(controlling)
        os.close(terminal)


def test_another_width() -> None:
    """A terminal may become wider or narrower at any time."""
    controlling, terminal = pty.openpty()
    try:
        subprocess.run(["stty", "cols", "120"], stdin=terminal, check=True)
        once = look(terminal)
        assert 120 == once.width
        subprocess.run(["stty", "cols", "60"], stdin=terminal, check=True)
        assert 60 == once.width
    finally:
        os.close(controlling)
        os.close(terminal)


def test_loudness() -> None:
    """-q and -v are no company for each other."""
    assert parse("-v").verbose
    assert parse("-q").quiet
    with pytest.raises(SystemExit):
        parse("-q", "-v")


def test_view() -> None:
    """The view has who it takes to do what is asked for."""
    assert 1 == len(make_view(parse("-q"), Clock()).observers)
    view = make_view(parse(), Clock(), lambda *_: Process(1, "x"))
    assert [ProcessNames, ByConnection] == [type(each) for each in view.observers]
    view.stop()


def test_check(tmp_path: Path) -> None:
    """Whether the summary can be written is found out before anything is run."""
    viewing.check(parse())
    arguments = parse("--summary-file", str(tmp_path / "new"))
    viewing.check(arguments)
    os.close(arguments.summary_descriptor)
    assert "" == (tmp_path / "new").read_text(encoding="utf-8")
    with pytest.raises(SummaryError, match="No such file or directory"):
        viewing.check(parse("--summary-file", str(tmp_path / "no" / "file")))
    with pytest.raises(SummaryError, match="there is nothing to write"):
        viewing.check(parse("--summary-file", str(tmp_path / "none"), "--summary", "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(SummaryError, match=r"^--summary-file '': no file's name; is a"):
        viewing.check(parse("--summary-file", ""))


def test_light() -> None:
    """The options are there without anything that takes long to import."""
    program = (
        "import argparse, sys\n"
        "before = set(sys.modules)\n"
        "from sidecar.cli.viewing import add_arguments\n"
        "add_arguments(argparse.ArgumentParser())\n"
        "print({'sidecar.observe', 'rich', 'twisted.internet', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(viewing.__file__).parents[2],
    )
    assert "set()\n" == done.stdout

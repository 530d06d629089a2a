from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from observe.flows import denied_flow, ended_flow, open_flow
from observe.stopping import stop_writing
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from sidecar.errors import SummaryError
from sidecar.flow import Process, Verdict
from sidecar.interfaces import IDNSObserver, IOpeningObserver
from sidecar.lookups import Lookup
from sidecar.observe.several import Observers
from sidecar.observe.styles import Look
from sidecar.observe.summary import Format
from sidecar.observe.view import SummaryFile, View

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Pipe:
    """What is shown."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def read(self) -> str:
        """All of it; nobody writes any more."""
        os.close(self.writing)
        self.writing = -1
        with open(self.reading, encoding="utf-8", closefd=False) as file:
            return file.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    if made.writing >= 0:
        os.close(made.writing)


def run(pipe: Pipe, form: Format = Format.TEXT, **options: Any) -> View:
    """Show one of each, and finish."""
    clock = Clock()
    view = View(pipe.writing, clock, Look(color=options.pop("color", False)), form, **options)
    observers = Observers(view.observers)
    flow = open_flow()
    observers.flow_opened(flow)
    flow.observer = observers
    flow.deny("metadata")
    observers.flow_ended(ended_flow(host="a.example"))
    view.lookup_ended(Lookup("evil.example", "A", "REFUSED", Verdict.DENY))
    if view._terminal is None:
        assert view.stop().called
    else:
        stop_writing(view._terminal._console._writer, view.stop, clock)
    view.finish(["make"], 2)
    return view


def test_shows(pipe: Pipe) -> None:
    """Lines first, then the summary; processes are named before anybody shows them."""
    view = run(pipe, find_process=lambda *_: Process(7, "curl"))
    assert verifyObject(IDNSObserver, view)
    assert IOpeningObserver.providedBy(view.observers[0])
    text = pipe.read()
    assert ["deny", "allow", "deny", "2"] == [
        line.split()[1] for line in text.splitlines() if line.startswith("sidecar ")
    ]
    assert text.startswith("sidecar deny  198.51.100.1:443 ")
    assert text.splitlines()[0].endswith("curl[7]")
    assert view.tally.anything_denied


def test_quiet(pipe: Pipe) -> None:
    """Quiet is the summary alone; with none of it, nothing."""
    run(pipe, quiet=True)
    assert pipe.read().startswith("sidecar 2 connections to 2 destinations, 1 denied, 1 DNS")


def test_silent(pipe: Pipe) -> None:
    """Without a summary, too, nothing is said."""
    run(pipe, Format.NONE, quiet=True)
    assert "" == pipe.read()


def test_file(pipe: Pipe, tmp_path: Path) -> None:
    """A summary may go to a file, at its end and without colour; lines still are shown."""
    path = tmp_path / "summary"
    path.write_text("before\n", encoding="utf-8")
    file = SummaryFile(os.open(path, os.O_WRONLY | os.O_APPEND), str(path))
    # Whatever becomes of the name.
    path.rename(tmp_path / "moved")
    path.mkdir()
    run(pipe, Format.MARKDOWN, file=file, color=True)
    path = tmp_path / "moved"
    assert path.read_text(encoding="utf-8").startswith("before\n\n### sidecar: `make`\n")
    assert "\x1b" not in path.read_text(encoding="utf-8")
    assert "###" not in pipe.read()


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        (Format.MARKDOWN, "", "### sidecar: `make`\n"),
        (Format.MARKDOWN, "text", "text\n### sidecar: `make`\n"),
        (Format.TEXT, "", "sidecar 2 connections"),
        (Format.TEXT, "text\n", "text\n\nsidecar 2 connections"),
        (Format.JSON, "{}\n", '{}\n{"v":1,'),
    ],
)
def test_file_with_something(
    pipe: Pipe, tmp_path: Path, form: Format, before: str, after: str
) -> None:
    """What is in the file already stays apart; of JSON each run has a line."""
    path = tmp_path / "summary"
    path.write_text(before, encoding="utf-8")
    run(pipe, form, file=SummaryFile(os.open(path, os.O_WRONLY | os.O_APPEND), str(path)))
    assert path.read_text(encoding="utf-8").startswith(after)


def test_json(pipe: Pipe) -> None:
    """JSON has the command and its status."""
    run(pipe, Format.JSON, quiet=True)
    written = json.loads(pipe.read())
    assert (["make"], 2) == (written["command"], written["status"])


def test_bad_file(pipe: Pipe) -> None:
    """A file that can't be written is an error that names it."""
    file = SummaryFile(os.open("/dev/full", os.O_WRONLY), "/dev/full")
    with pytest.raises(SummaryError, match=r"^--summary-file /dev/full: No space left"):
        run(pipe, file=file)


def test_nobody_reads(pipe: Pipe) -> None:
    """A reader that has gone changes nothing."""
    os.close(pipe.reading)
    run(pipe, quiet=True)
    pipe.reading = os.open(os.devnull, os.O_RDONLY)


def test_non_blocking(pipe: Pipe) -> None:
    """A terminal that the command has made non-blocking gets all of it."""
    os.set_blocking(pipe.writing, False)
    clock = Clock()
    view = View(pipe.writing, clock, Look(), Format.JSON, quiet=True)
    for number in range(1000):
        view.tally.flow_ended(denied_flow(f"198.51.100.{number % 250}:{number + 1}"))
    finishing = threading.Thread(target=view.finish, args=(["make"], 0))
    finishing.start()
    with open(pipe.reading, encoding="utf-8", closefd=False) as file:
        line = file.readline()
    finishing.join()
    assert 1000 == len(json.loads(line)["hosts"])

"""What fails in `sidecar exec` itself is never taken for the command's failure."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sidecar.cli import exec as exec_command

if TYPE_CHECKING:
    import pytest


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run it where it meets what nobody expected."""

    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(exec_command, "_run", fail)
    parser = argparse.ArgumentParser()
    exec_command.add_arguments(parser)
    return exec_command.run(parser.parse_args([*words, "--", "true"]))


def test_unexpected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that nobody foresaw is a line and 125; 1 may be the command's own."""
    assert 125 == run(monkeypatch)
    assert (
        "sidecar exec: unexpected OSError: [Errno 24] Too many open files (-v says where)\n"
    ) == capsys.readouterr().err


def test_verbose(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With -v there is what is needed for a report."""
    assert 125 == run(monkeypatch, "-v")
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert "sidecar exec: unexpected OSError: [Errno 24] Too many open files" == first
    assert "Traceback (most recent call last):" == second

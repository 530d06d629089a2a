"""What is made of the sandbox's news."""

from __future__ import annotations

import os
import signal

import pytest

from sidecar.sandbox.outside import exit_status


@pytest.mark.parametrize("code", [0, 1, 255])
def test_exit_status(code: int) -> None:
    """An exit status is what it is."""
    assert code == exit_status(code << 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_signal(number: signal.Signals) -> None:
    """A signal is 128 and its number, a dumped core or not."""
    assert 128 + number == exit_status(number) == exit_status(number | 0x80)
    assert os.WCOREDUMP(number | 0x80)

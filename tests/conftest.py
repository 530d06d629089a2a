"""What all tests share: under CI a skipped test is a failure; hypothesis profiles."""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator

# Last, so that an installed sidecar (in tox: the wheel) comes before the checkout;
# `benchmarks` is in no distribution.
sys.path.append(str(Path(__file__).parent.parent))

# fast: in tox and by default. deep: HYPOTHESIS_PROFILE=deep, by hand, for hours.
# Deadlines are off: other work on a small machine would trip them.
# So is the check that examples are made fast: a second for ten, by the clock on the wall.
_FAST = hypothesis.settings(
    max_examples=50, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("fast", _FAST)
hypothesis.settings.register_profile("deep", _FAST, max_examples=20_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

_CI = os.environ.get("CI", "").lower() not in {"", "0", "false"}


# A shell starts background jobs with both ignored, and programs leave it so; what we start
# is to hear of them as from a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes over loopback are over, one way or the other, when the dialler looks.

    They mostly are; a busy kernel may put them off.
    """
    from support import arrived

    from sidecar import dialing
    from sidecar.linux.sockopt import tcp_state

    def wait_and_look(sock: socket.socket) -> int:
        arrived(sock, select.POLLOUT)
        return tcp_state(sock)

    monkeypatch.setattr(dialing, "tcp_state", wait_and_look)


def pytest_configure(config: pytest.Config) -> None:
    """Leave the slow packaging tests to those who name them by ``-m``."""
    if not config.option.markexpr:
        config.option.markexpr = "not packaging"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where nothing may be missing."""
    report = yield
    if _CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nUnder CI (environment variable CI) a skip is a failure."
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Likewise for a module that skips itself."""
    report = yield
    if _CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = (
            f"{report.longrepr}\nUnder CI (environment variable CI) a skip is a failure."
        )
    return report

"""What `sidecar exec` says of options that are probably not what was meant."""

from __future__ import annotations

import argparse

import pytest

from sidecar.cli.exec import add_arguments
from sidecar.cli.exec.plan import Plan


def plan(*words: str) -> Plan:
    """What the options come to."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Plan.of(parser.parse_args([*words, "--", "true"]), None)


@pytest.mark.parametrize(
    "rule", ["localhost:5432", "db.localhost", "127.0.0.1:5432", "127.0.0.0/8", "[::1]", "loopback"]
)
def test_loopback(rule: str) -> None:
    """A rule for loopback opens nothing: it is told what does."""
    expected = (
        f"--allow {rule}: loopback inside is the command's own, and needs no rule;"
        " --host-port PORT leads to the host's"
    )
    assert [expected] == plan("--allow", rule).remarks


def test_others() -> None:
    """Others are as good as any."""
    rules = ["*", "private", "localhost.example", "10.0.0.0/8", "0.0.0.0/0:53"]
    words = [word for rule in rules for word in ("--allow", rule)]
    assert [] == plan(*words, "--deny", "loopback").remarks

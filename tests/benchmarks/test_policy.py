"""The rules that verdicts are timed with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.policy import rules_toml
from sidecar.config import load
from sidecar.policy.rules import HostKind

if TYPE_CHECKING:
    from pathlib import Path


def test_rules(tmp_path: Path) -> None:
    """As many as were asked for, all different, names with and without what is below them."""
    file = tmp_path / "sidecar.toml"
    file.write_text(rules_toml(100, 50), encoding="ascii")
    rules = load(str(file)).policy.allow
    assert 150 == len({str(rule) for rule in rules})
    kinds = [rule.kind for rule in rules]
    assert [50, 50] == [kinds.count(kind) for kind in (HostKind.NAME, HostKind.BELOW)]

"""docs/reference/policy.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.policy import Reason
from sidecar.policy.ranges import _RANGES, AddressClass

TEXT = (Path(__file__).parents[2] / "docs/reference/policy.md").read_text(encoding="utf-8")


def test_reasons() -> None:
    """The table has every reason that there is, and no other."""
    table = TEXT[TEXT.index("\n## Reasons\n") :]
    assert {reason.value for reason in Reason} == set(
        re.findall(r"^\| `(\w+)` \| (?:allow|deny)", table, re.MULTILINE)
    )


@pytest.mark.parametrize("kind", AddressClass)
def test_classes(kind: AddressClass) -> None:
    """Each class has its row, which names all of its ranges."""
    row = re.search(rf"^\| `{kind.value}` \|.*$", TEXT, re.MULTILINE)
    assert row is not None
    rest = {"2000::/3"} if kind is AddressClass.PUBLIC else {"::/0"}
    named = set(re.findall(r"(?<![\w:.])[0-9a-f]*[:.][0-9a-f:.]*[0-9a-f:](?:/\d+)?", row[0]))
    single = {each.removesuffix("/32").removesuffix("/128") for each in _RANGES[kind]}
    assert (
        set() == {text for text in single if text not in named and f"{text}/32" not in named} - rest
    )

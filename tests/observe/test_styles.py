from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sidecar.observe.styles import (
    ColorWhen,
    Look,
    Style,
    amount,
    duration,
    printable,
    wants_color,
)


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1.0kB"),
        (9949, "9.9kB"),
        (9950, "10kB"),
        (999_499, "999kB"),
        (999_500, "1.0MB"),
        (123_456_789, "123MB"),
        (5 * 10**12, "5.0TB"),
    ],
)
def test_amounts(octets: int, text: str) -> None:
    """Bytes in decimal units, two figures at least."""
    assert text == amount(octets)


@given(some.integers(0, 10**20))
def test_amounts_are_short(octets: int) -> None:
    """No amount is wider than its column."""
    assert len(amount(octets)) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00s"),
        (9.994, "9.99s"),
        (9.996, "10.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (245, "4m05s"),
        (3599.6, "1h00m"),
        (3720, "1h02m"),
        (360000, "100h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Times in what people count in."""
    assert text == duration(seconds)


@given(some.floats(0, 3e8))
def test_durations_are_short(seconds: float) -> None:
    """No time is wider than its column."""
    assert len(duration(seconds)) <= 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("npm ci", "npm ci"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\x00", "a\\x0ab\\x00"),
        ("caf\xe9\x9b", "caf\\xe9\\x9b"),
        ("\u202e\U0001f600", "\\u202e\\U0001f600"),
        ("x" * 41, "x" * 37 + "..."),
        ("x" * 40, "x" * 40),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """What others chose is escaped, and cut."""
    assert shown == printable(text, 40)


@given(some.text(), some.integers(4, 50))
def test_printable_is_harmless(text: str, limit: int) -> None:
    """Whatever it is, printable ASCII comes out, and not more than is wanted."""
    shown = printable(text, limit)
    assert re.fullmatch("[ -~]*", shown)
    assert len(shown) <= limit


class TestColor:
    @pytest.mark.parametrize(
        ("when", "environment", "is_terminal", "wanted"),
        [
            (ColorWhen.AUTO, {"TERM": "xterm"}, True, True),
            (ColorWhen.AUTO, {"TERM": "xterm"}, False, False),
            (ColorWhen.AUTO, {"TERM": "dumb"}, True, False),
            (ColorWhen.AUTO, {}, True, False),
            (ColorWhen.AUTO, {"TERM": "xterm", "NO_COLOR": "1"}, True, False),
            (ColorWhen.AUTO, {"TERM": "xterm", "NO_COLOR": ""}, True, True),
            (ColorWhen.ALWAYS, {"TERM": "dumb", "NO_COLOR": "1"}, False, True),
            (ColorWhen.NEVER, {"TERM": "xterm"}, True, False),
        ],
    )
    def test_when(
        self, when: ColorWhen, environment: dict[str, str], is_terminal: bool, wanted: bool
    ) -> None:
        """On a terminal that can, unless somebody minds; what is asked for outweighs all."""
        assert wanted == wants_color(when, environment, is_terminal=is_terminal)

    def test_paint(self) -> None:
        """Only with colour is there anything but text; and each colour ends."""
        assert "deny" == Look(color=False).paint("deny", Style.BAD)
        assert "deny" == Look(color=True).paint("deny", Style.PLAIN)
        assert "\x1b[1;31mdeny\x1b[0m" == Look(color=True).paint("deny", Style.BAD)

    def test_arrows(self) -> None:
        """Without UTF-8 there are no arrows."""
        assert ("↑", "↓") == (Look().up, Look().down)
        assert (">", "<") == (Look(arrows=False).up, Look(arrows=False).down)

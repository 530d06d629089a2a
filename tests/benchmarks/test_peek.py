"""What peek's client sends, and how what it prints is read."""

from __future__ import annotations

import pytest

from benchmarks.measures import MeasureError, figures_of
from benchmarks.peek_client import NAME, client_hello
from sidecar.wire.client_hello import ClientHelloReader


def test_hello_is_one_for_the_name() -> None:
    """Whole, in one record, nothing behind it."""
    sent = client_hello()
    reader = ClientHelloReader()
    hello = reader.feed(sent)
    assert hello is not None
    assert reader.size == len(sent)
    assert hello.sni == NAME.encode()
    assert hello.protocols == (b"h2", b"http/1.1")


def test_figures_are_a_json_list() -> None:
    """In the order of the measure's figures."""
    assert figures_of("[1.5, 2]") == [1.5, 2.0]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Traceback …\nTimeoutError: no connection was answered\n", "TimeoutError: no connection"),
        ("", "printed nothing"),
        ("7", "7"),
    ],
)
def test_anything_else_is_a_failure(output: str, reason: str) -> None:
    """The last line of a traceback says what happened."""
    with pytest.raises(MeasureError, match=reason):
        figures_of(output)

"""The fields that a screened section consists of.

llhttp takes them apart, from behind a request line of ours: what it makes of methods and
targets differs with its version. It must come to as many fields as there are lines, so
that two parsers agree on each message that is forwarded. Its own checks of framing come
after ours, which tell their reasons in a stable way; so it refuses only what we overlooked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from sidecar.wire.http1.errors import HttpMessageError, HttpMessageReason

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Fields

__all__ = ["split_fields", "split_fields_alone"]

_START = b"GET / HTTP/1.1\r\n"
_END = b"\r\n"
_BLANKS = b" \t"


class _Sink:
    """Where llhttp puts fields."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def split_fields(section: bytes) -> Fields | None:
    """Take a section apart as llhttp does.

    Args:
        section: Screened field lines, each with its end; no blank line.

    Returns:
        The fields; None if llhttp refuses the section or sees another number of them.
    """
    sink = _Sink()
    try:
        HttpRequestParser(sink).feed_data(_START + section + _END)
    except HttpParserUpgrade:
        pass
    except HttpParserError:
        return None
    fields = sink.fields
    if len(fields) != section.count(b"\n"):
        return None
    if b" \r" in section or b"\t\r" in section:  # llhttp strips what is before a value only
        return [(name, value.rstrip(_BLANKS)) for name, value in fields]
    return fields


def split_fields_alone(section: bytes) -> Fields:
    """Take a section apart that llhttp refuses, to see which rule of ours it breaks."""
    fields = []
    for line in section.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        fields.append((name, value.strip(_BLANKS)))
    return fields


def refused() -> HttpMessageError:
    """Return the error for a section that llhttp refuses and we do not."""
    return HttpMessageError(HttpMessageReason.FIELDS)

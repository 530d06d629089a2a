"""The fields that a screened section consists of.

llhttp takes them apart, from behind a status line of ours: what it makes of methods, of
targets and of what follows a head differs with its version, and nothing of that is
asked of it. It must come to as many fields as there are lines, so that two parsers agree
on each message that is forwarded. Where it refuses a section, our own rules are to say
why, in their stable way; so `split_fields_alone`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from sidecar.wire.http1.messages import Fields

__all__ = ["split_fields", "split_fields_alone"]

# To 304 nothing belongs but its head, whatever that says (RFC 9112 §6.3): so llhttp is
# ready for the next one at once.
_START = b"HTTP/1.1 304 \r\n"
_END = b"\r\n"
_BLANKS = b" \t"
_MAX_SPARE = 4


class _Splitter:
    """llhttp, and where it puts fields."""

    __slots__ = ("feed", "fields")

    def __init__(self) -> None:
        self.fields: Fields = []
        parser = HttpResponseParser(_Callbacks(self.fields))
        # Each section is a message of its own; no connection is closed.
        parser.set_dangerous_leniencies(lenient_keep_alive=True)
        self.feed = parser.feed_data


class _Callbacks:
    """What llhttp calls."""

    __slots__ = ("on_header",)

    def __init__(self, fields: Fields) -> None:
        append = fields.append

        def on_header(name: bytes, value: bytes) -> None:
            append((name, value))

        self.on_header = on_header


# Splitters that are not in use. Making one costs as much as using it twice.
_spare: list[_Splitter] = []


def split_fields(section: bytes) -> Fields | None:
    """Take a section apart as llhttp does.

    Args:
        section: Screened field lines, each with its end; no blank line.

    Returns:
        The fields; None if llhttp refuses the section or sees another number of them.
    """
    splitter = _spare.pop() if _spare else _Splitter()
    fields = splitter.fields
    try:
        splitter.feed(_START + section + _END)
    except HttpParserUpgrade:
        found = fields
    except HttpParserError:
        return None
    else:
        found = fields.copy()
        fields.clear()
        if len(_spare) < _MAX_SPARE:
            _spare.append(splitter)
    if len(found) != section.count(b"\n"):
        return None
    # llhttp strips what is before a value only.
    if section.find(b" \r") >= 0 or section.find(b"\t\r") >= 0:
        return [(name, value.rstrip(_BLANKS)) for name, value in found]
    return found


def split_fields_alone(section: bytes) -> Fields:
    """Take a section apart that llhttp refuses, to see which rule of ours it breaks."""
    fields = []
    for line in section.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        fields.append((name, value.strip(_BLANKS)))
    return fields

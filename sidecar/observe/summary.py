"""How the summary of a run is written: for a terminal, for programs, for a CI job's page."""

from __future__ import annotations

import shlex
from enum import Enum
from textwrap import wrap
from typing import TYPE_CHECKING

import msgspec

from sidecar.observe.lines import PREFIX, allowing, why
from sidecar.observe.styles import Style, amount, duration, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.observe.styles import Look
    from sidecar.observe.tables import Tables
    from sidecar.observe.tally import Denial, Host, Summary

__all__ = ["ROWS_MAX", "Format", "write_summary"]

ROWS_MAX = 40
"""Hosts, and denials, that are shown to people; JSON has them all."""
_COMMAND_MAX = 200
_PROCESSES_MAX = 60
# Stands for a space where a line is not to be broken.
_UNBROKEN = "\N{NO-BREAK SPACE}"
# Columns. In fewer a table leaves names no room.
_TABLE_MIN = 60
# Likewise: most words are shorter.
_TEXT_MIN = 13
_INDENT = 4
# Options that are worth a line to be copied; more belong into a file.
_OPTIONS_MAX = 8


class Format(Enum):
    """How (``--summary``)."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    NONE = "none"


def write_summary(summary: Summary, form: Format, look: Look) -> str:
    """Write a summary.

    Args:
        summary: From `sidecar.observe.tally.Tally.summary`.
        form: How.
        look: Colours and width, for text.

    Returns:
        Whole lines; nothing for `Format.NONE`.
    """
    if form is Format.NONE:
        return ""
    if form is Format.JSON:
        return msgspec.json.encode(summary).decode() + "\n"
    if form is Format.MARKDOWN:
        return _markdown(summary)
    return _text(summary, look)


def _headline(summary: Summary) -> str:
    """What it amounted to, in a line."""
    total = summary.total
    parts = ["no connections"]
    if total.connections:
        hosts = "more than " if summary.others.connections else ""
        hosts += _number(len(summary.hosts), "destination")
        parts = [f"{_number(total.connections, 'connection')} to {hosts}"]
    if total.denied:
        parts.append(f"{total.denied} denied")
    if summary.lookups_denied:
        parts.append(f"{_number(summary.lookups_denied, 'DNS question')} denied")
    if total.failed:
        parts.append(f"{total.failed} failed")
    if summary.lookups_failed:
        parts.append(f"{_number(summary.lookups_failed, 'DNS question')} failed")
    if total.connections:
        parts.append(f"{amount(total.sent)} sent, {amount(total.received)} received")
        parts.append(f"in {duration(summary.seconds)}")
    return ", ".join(parts)


def _number(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _name(host: str | None, port: int | None) -> str:
    if host is None:
        return "unknown"
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _count(host: Host) -> str:
    """How many connections, and what became of them, unless all went well."""
    return f"{host.connections}{_notes(host)}"


def _notes(host: Host) -> str:
    notes = []
    if host.denied:
        notes.append(f"{host.denied} denied")
    if host.failed:
        notes.append(f"{host.failed} failed")
    return f" ({', '.join(notes)})" if notes else ""


def _facts(host: Host) -> str:
    """What a table has of a host in its columns."""
    facts = [
        host.protocol.value,
        _number(host.connections, "connection") + _notes(host),
        f"{amount(host.sent)} sent",
        f"{amount(host.received)} received",
    ]
    if host.processes:
        facts.append(f"by {_names(host.processes)}")
    return ", ".join(facts)


def _how_often(denial: Denial) -> str:
    often = denial.connections + denial.lookups
    return f"{often}, DNS" if denial.lookups and not denial.connections else str(often)


def _names(names: list[str]) -> str:
    return printable(", ".join(names), _PROCESSES_MAX)


def _options(denials: Iterable[Denial]) -> list[str]:
    """What would allow all that could be allowed, each once."""
    return list(dict.fromkeys(allowing(each.allow) for each in denials if each.allow))


def _to_allow(denial: Denial) -> str:
    return allowing(denial.allow or "") or "no --allow outweighs it"


# For a terminal


def _text(summary: Summary, look: Look) -> str:
    headline = _headline(summary)
    # Nothing to fit into: whole, for grep.
    width = look.width
    lines = [headline] if width is None else _wrapped(headline, width - len(PREFIX))
    head = look.paint(PREFIX, Style.QUIET) + f"\n{' ' * len(PREFIX)}".join(lines) + "\n"
    if not (summary.hosts or summary.denied):
        return head
    # A tenth of a second to import: for output that needs it, and after the command.
    from sidecar.observe.tables import Tables

    tables = Tables(look)
    _show_hosts(summary, tables)
    if summary.denied:
        _show_denied(summary, tables)
    text = head + tables.text
    options = _options(summary.denied)
    if 1 < len(options) <= _OPTIONS_MAX:
        text += f"\nTo allow all of it: {' '.join(options)}\n"
    return text


def _wrapped(text: str, width: int) -> list[str]:
    """Break a line between its parts; within them only where one would not fit."""
    width = max(width, _TEXT_MIN)
    if max(map(len, text.split(", "))) < width:
        text = ", ".join(part.replace(" ", _UNBROKEN) for part in text.split(", "))
    return [line.replace(_UNBROKEN, " ") for line in wrap(text, width)]


def _show_hosts(summary: Summary, tables: Tables) -> None:
    rows = [
        (
            _name(each.host, each.port),
            each.protocol.value,
            _count(each),
            amount(each.sent),
            amount(each.received),
            _names(each.processes),
        )
        for each in summary.hosts[:ROWS_MAX]
    ]
    titles = ("destination", "", "connections", "sent", "received", "by")
    if rows and (tables.width >= _TABLE_MIN or tables.fits(rows, titles)):
        tables.table(rows, titles, styles=("", "", "", "", "", "dim"), right={3, 4})
    elif rows:
        # Names would be folded until nobody can read them.
        tables.line(("destinations", "dim"))
        for each in summary.hosts[:ROWS_MAX]:
            tables.line(_name(each.host, each.port))
            for line in _wrapped(_facts(each), tables.width - _INDENT):
                tables.line(f"{' ' * _INDENT}{line}")
    if rest := len(summary.hosts[ROWS_MAX:]):
        tables.line(f"and {_number(rest, 'more destination')}")
    if summary.others.connections:
        tables.line(f"and {_number(summary.others.connections, 'connection')} elsewhere")


def _show_denied(summary: Summary, tables: Tables) -> None:
    rows = [
        (
            _name(each.host, each.port),
            _how_often(each),
            why(each.reason, each.rule),
            _to_allow(each),
        )
        for each in summary.denied[:ROWS_MAX]
    ]
    tables.line()
    titles = ("denied", "times", "why", "to allow it")
    if tables.fits(rows, titles):
        tables.table(rows, titles, styles=("red", "", "yellow", ""))
    else:
        # An option that is broken in two can't be copied.
        tables.line(("denied", "dim"))
        for name, often, reason, option in rows:
            tables.line((name, "red"), (f" ({often}) ", ""), (reason, "yellow"))
            tables.line((f"{' ' * _INDENT}{option}", ""))
    if rest := len(summary.denied[ROWS_MAX:]):
        tables.line(f"and {rest} more; --summary json has all")


# For a CI job's page


def _markdown(summary: Summary) -> str:
    lines = [f"### sidecar: {_code(_shown(summary.command))}", ""]
    status = "" if summary.status is None else f"; exit status {summary.status}"
    headline = _headline(summary)
    lines += [f"{headline[0].upper()}{headline[1:]}{status}.", ""]
    if summary.denied:
        lines += ["| denied | times | why | to allow it |", "|---|--:|---|---|"]
        lines += [
            f"| {_code(_name(each.host, each.port))} | {_how_often(each)} "
            f"| {_plain(why(each.reason, each.rule))} "
            f"| {_code(allowing(each.allow)) if each.allow else _to_allow(each)} |"
            for each in summary.denied[:ROWS_MAX]
        ]
        if rest := len(summary.denied[ROWS_MAX:]):
            lines += ["", f"… and {rest} more."]
        lines += [""]
    if summary.hosts:
        lines += ["| destination | | connections | sent | received | by |"]
        lines += ["|---|---|--:|--:|--:|---|"]
        lines += [
            f"| {_code(_name(each.host, each.port))} | {each.protocol.value} | {_count(each)} "
            f"| {amount(each.sent)} | {amount(each.received)} "
            f"| {_code(_names(each.processes)) if each.processes else ''} |"
            for each in summary.hosts[:ROWS_MAX]
        ]
        rest = len(summary.hosts[ROWS_MAX:])
        if rest or summary.others.connections:
            more = sum(each.connections for each in summary.hosts[ROWS_MAX:])
            more += summary.others.connections
            lines += ["", f"… and {_number(more, 'connection')} elsewhere."]
        lines += [""]
    return "\n".join(lines)


def _shown(command: list[str]) -> str:
    return printable(shlex.join(command), _COMMAND_MAX)


def _code(text: str) -> str:
    """As code in a table: nothing in it is markup (GFM §4.10: a bar ends a cell even there)."""
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _plain(text: str) -> str:
    """As words in a table."""
    for character in "\\`*_[]<>|&#":
        text = text.replace(character, f"\\{character}")
    return text

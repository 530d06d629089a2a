"""How one connection, or one denied DNS question, looks as a line for people.

    sidecar allow registry.npmjs.org:443       tls  ↑1.2kB ↓345kB 0.23s  npm ci[4242]
    sidecar deny  169.254.169.254:80           http metadata address, allow with --allow …
    sidecar open  deb.debian.org:443           tls  ↑5.0kB  ↓12MB 2.01s  apt[4250]

docs/reference/terminal.md says what each column is.
"""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from sidecar.flow import Verdict
from sidecar.observe.requests import FAILURES, Requests
from sidecar.observe.styles import Style, amount, duration, printable

if TYPE_CHECKING:
    from sidecar.addresses import SocketAddress
    from sidecar.flow import Flow, Process
    from sidecar.lookups import Lookup
    from sidecar.observe.styles import Look

__all__ = [
    "HOST_MAX",
    "PREFIX",
    "Lines",
    "allowing",
    "goal",
    "process_name",
    "why",
]

PREFIX = "sidecar "
"""What each line starts with, so that it can be told from the command's."""
HOST_MAX = 253
"""Characters; a longer one is no host name."""

# Columns. Most names with their port are shorter, and a line then fits into 80.
_HOST_WIDTH = 24
# What there is room for makes them wider; what is longer still moves nobody's columns.
_HOST_WIDTH_MAX = 44
# Of a line, but for the name.
_OTHERS_WIDTH = 56
_PROCESS_MAX = 24
_RULE_MAX = 120
_INDENT = " " * 14

_WORDS = {
    "default": "no rule allows it",
    "no_name": "gave no name, and only names are allowed",
    "ech": "its name may hide another (ECH)",
    "private_address": "not a public address",
    "metadata": "a cloud's metadata address",
    "unknown_destination": "nobody knows where to",
    "proxy_request": "asks for a proxy: what that would allow can't be judged",
    "http_version": "speaks HTTP/2 without TLS, whose names can't be read",
    "server_spoke_first": "named a host only after its server had spoken",
    "not_judged": "left before it was judged",
    "not_intercepted": "dialled sidecar itself",
}


class Lines:
    """Writes lines, one under the other.

    Args:
        look: How they are to look.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        # Of the longest name so far.
        self._host_width = _HOST_WIDTH

    def flow(self, flow: Flow) -> str:
        """A connection that has ended."""
        if flow.verdict is Verdict.DENY:
            text = _again(flow) + _denial(flow.reason, flow.rule, flow.hint)
            line = self._denied(goal(flow), flow.protocol.value, text, flow.process)
        elif flow.end in FAILURES:
            words = flow.end.value.replace("_", " ")
            start = self._start("fail", Style.ODD, goal(flow))
            text = f"{_again(flow)}{words}, {duration(flow.seconds)}"
            line = self._joined(start, f"{flow.protocol.value:4} {text}", flow.process)
        else:
            start = self._start("allow", Style.GOOD, goal(flow))
            counts = self._counts(flow.sent, flow.received, flow.seconds) + _times(flow)
            line = self._joined(start, f"{flow.protocol.value:4} {counts}", flow.process)
        return line + self._more(flow)

    def progress(self, flow: Flow, now: float) -> str:
        """A connection that goes on.

        Args:
            flow: Its facts.
            now: What the monotonic clock says.
        """
        verdict = "open" if flow.connected else "wait"
        start = self._start(verdict, Style.BUSY, goal(flow))
        sent, received = flow.amounts()
        counts = self._counts(sent, received, now - flow.started_monotonic) + _times(flow)
        return self._joined(start, f"{flow.protocol.value:4} {counts}", flow.process)

    def lookup(self, lookup: Lookup) -> str:
        """A DNS question that was answered or refused."""
        name = printable(lookup.name, HOST_MAX)
        kind = printable(lookup.type, 10)
        # Of these two a program asks for both.
        asked = "" if kind in {"A", "AAAA"} else f"{kind}: "
        if lookup.verdict is Verdict.DENY:
            text = asked + _denial(lookup.reason, lookup.rule, lookup.hint)
            return self._denied(name, "dns", text, None)
        if lookup.problem:
            text = f"{printable(lookup.problem, _RULE_MAX)}, {duration(lookup.seconds)}"
            return self._joined(self._start("fail", Style.ODD, name), f"dns  {asked}{text}", None)
        answers = ", ".join(lookup.addresses) or printable(lookup.rcode, 12)
        start = self._start("allow", Style.GOOD, name)
        text = f"{kind}: {printable(answers, _RULE_MAX)}, {duration(lookup.seconds)}"
        return self._joined(start, f"dns  {text}", None)

    def remark(self, text: str) -> str:
        """Something else."""
        return self._look.paint(f"{PREFIX}{text}", Style.QUIET)

    def _start(self, verdict: str, style: Style, host: str) -> str:
        look = self._look
        columns = look.width
        self._host_width = max(self._host_width, min(len(host), _HOST_WIDTH_MAX))
        room = _HOST_WIDTH_MAX if columns is None else columns - _OTHERS_WIDTH
        width = min(self._host_width, max(room, _HOST_WIDTH))
        prefix, shown = look.paint(PREFIX, Style.QUIET), look.paint(f"{verdict:5}", style)
        return f"{prefix}{shown} {host:{width}}"

    def _joined(self, start: str, rest: str, process: Process | None) -> str:
        """A line, or two where one would be broken by the terminal."""
        by = "" if process is None else f"  {process_name(process, _PROCESS_MAX)}"
        shown = rest + self._look.paint(by, Style.QUIET)
        width = self._look.width
        if width is None or _columns(start) + 1 + len(rest) + len(by) <= width:
            return f"{start} {shown}"
        return f"{start.rstrip()}\n{_INDENT}{shown}"

    def _counts(self, sent: int, received: int, seconds: float) -> str:
        look = self._look
        up, down = look.up + amount(sent), look.down + amount(received)
        return f"{up:>6} {down:>6} {duration(seconds):>6}"

    def _denied(self, host: str, protocol: str, text: str, process: Process | None) -> str:
        start = self._start("deny", Style.BAD, host) + f" {protocol:4}"
        by = "" if process is None else f"  {process_name(process, _PROCESS_MAX)}"
        width = self._look.width
        shown = self._look.paint(text, Style.ODD)
        by_shown = self._look.paint(by, Style.QUIET)
        if width is None or _columns(start) + 1 + len(text) + len(by) <= width:
            return f"{start} {shown}{by_shown}"
        if _columns(start.rstrip()) + len(by) > width:
            return f"{start.rstrip()}\n{_INDENT}{shown}{by_shown}"
        return f"{start.rstrip()}{by_shown}\n{_INDENT}{shown}"

    def _more(self, flow: Flow) -> str:
        """The second line of a verbose view: when, exactly how much, why, how it ended."""
        if not self._look.verbose:
            return ""
        seconds = flow.started
        milliseconds = int(seconds % 1 * 1000)
        facts = [time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{milliseconds:03}"]
        if flow.verdict is Verdict.ALLOW:
            facts.append(f"{flow.sent} B sent, {flow.received} B received")
            if flow.rule is not None:
                facts.append(f"by {printable(flow.rule, _RULE_MAX)}")
            else:
                facts.append(f"by {printable(flow.reason, _RULE_MAX)}")
            if flow.upstream is not None and goal(flow) != str(flow.upstream):
                facts.append(f"to {flow.upstream}")
        else:
            facts.append(printable(flow.reason, _RULE_MAX))
            if flow.host is not None and flow.destination is not None:
                facts.append(f"to {flow.destination}")
        if flow.end is not None:
            facts.append(flow.end.value)
        return "\n" + self._look.paint(_INDENT + "; ".join(facts), Style.QUIET)


def goal(flow: Flow) -> str:
    """Where a connection goes: the name if there is one, and the port."""
    destination: SocketAddress | None = flow.destination
    if flow.host is None:
        return "?" if destination is None else str(destination)
    host = printable(flow.host, HOST_MAX)
    return host if destination is None else f"{host}:{destination.port}"


def _times(flow: Flow) -> str:
    """How many requests it was, where it was more than one."""
    if isinstance(flow, Requests) and flow.requests > 1:
        return f"  {flow.requests} requests"
    return ""


def _again(flow: Flow) -> str:
    """How many more requests it was than were told of at once."""
    if isinstance(flow, Requests) and flow.again:
        return f"{flow.requests} more {'requests' if flow.requests > 1 else 'request'}: "
    return ""


def process_name(process: Process, limit: int) -> str:
    """A process for people: what it is called, and its number."""
    return f"{printable(process.name, limit)}[{process.pid}]"


def why(reason: str, rule: str | None) -> str:
    """Say why something was denied.

    Args:
        reason: The reason code; what is no word of ours is shown as it is.
        rule: The rule that decided, with its place.
    """
    text = _WORDS.get(reason)
    if reason == "denied_by_rule" and rule is not None:
        return f"denied by {printable(rule, _RULE_MAX)}"
    if text is None:
        return printable(reason, 64)
    if rule is not None:
        return f"{text}, whatever {printable(rule, _RULE_MAX)} says"
    return text


def allowing(hint: str) -> str:
    """The option that would allow what was denied, as a shell takes it; empty if none."""
    return f"--allow {shlex.quote(hint)}" if hint else ""


def _denial(reason: str, rule: str | None, hint: str) -> str:
    """Why something was denied, and what would allow it."""
    option = allowing(printable(hint, HOST_MAX + 8))
    return f"{why(reason, rule)}; {option}" if option else why(reason, rule)


def _columns(line: str) -> int:
    """How wide a line is on the terminal."""
    columns = 0
    coloured = False
    for character in line:
        if character == "\x1b":
            coloured = True
        elif coloured:
            coloured = character != "m"
        else:
            columns += 1
    return columns

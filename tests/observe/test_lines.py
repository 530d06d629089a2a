from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as some
from observe.flows import denied_flow, ended_flow, open_flow

from sidecar.addresses import SocketAddress
from sidecar.flow import Flow, FlowEnd, ListenerKind, Process, Protocol, Verdict
from sidecar.lookups import Lookup
from sidecar.observe.lines import Lines, allowing, goal, why
from sidecar.observe.requests import FAILURES
from sidecar.observe.styles import Look

CURL = Process(4242, "curl")
PLAIN = Look()


def visible(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


class TestFlows:
    def test_allowed(self) -> None:
        """Verdict, name and port, protocol, bytes both ways, time, process."""
        flow = ended_flow(host="pypi.org", sent=1234, received=345_000, process=CURL)
        assert (
            "sidecar allow pypi.org:443             tls  ↑1.2kB ↓345kB  0.25s  curl[4242]"
            == Lines(PLAIN).flow(flow)
        )

    def test_aligned(self) -> None:
        """Lines have their columns below one another."""
        lines = Lines(PLAIN)
        shown = [
            lines.flow(ended_flow(host=host, sent=sent, process=CURL))
            for host, sent in (("a.example", 0), ("registry.npmjs.org", 999_000), ("b", 5))
        ]
        assert 1 == len({line.index("↓0B") for line in shown})
        assert 1 == len({line.index("tls") for line in shown})

    @pytest.mark.parametrize("end", sorted(FAILURES, key=str))
    def test_failed(self, end: FlowEnd) -> None:
        """What was allowed but didn't come about says why."""
        line = Lines(PLAIN).flow(ended_flow(end=end))
        assert line.startswith("sidecar fail  198.51.100.1:443 ")
        assert line.endswith(f"{end.value.replace('_', ' ')}, 0.25s")

    def test_denied(self) -> None:
        """A denial says why, and which option would allow it."""
        flow = denied_flow(reason="private_address", protocol=Protocol.TCP, process=CURL)
        assert (
            "sidecar deny  198.51.100.1:443         tcp  not a public address;"
            " --allow 198.51.100.1:443  curl[4242]" == Lines(PLAIN).flow(flow)
        )

    def test_denied_by_rule(self) -> None:
        """What no option allows names the rule that would have to go."""
        flow = denied_flow(reason="denied_by_rule", hint="", rule="*:25 (--deny)")
        assert Lines(PLAIN).flow(flow).endswith("tls  denied by *:25 (--deny)")

    def test_progress(self) -> None:
        """One that goes on shows what it has moved; one that isn't relayed yet waits."""
        flow = open_flow()
        lines = Lines(PLAIN)
        now = flow.started_monotonic + 2
        assert lines.progress(flow, now).startswith("sidecar wait ")
        flow.counts = lambda: (5, 12_000_000)
        shown = lines.progress(flow, now)
        assert shown.startswith("sidecar open ")
        assert shown.endswith("   ↑5B  ↓12MB  2.00s")

    def test_nothing_known(self) -> None:
        """Without a destination there is a line all the same."""
        flow = Flow(ListenerKind.OUTBOUND, None, None, None)
        flow.deny("unknown_destination")
        assert "?" == goal(flow)
        assert "nobody knows where to" in Lines(PLAIN).flow(flow)

    def test_verbose(self) -> None:
        """A second line has the time of day, exact bytes, why, where to, and how it ended."""
        lines = Lines(Look(verbose=True))
        flow = ended_flow(host="a.example", sent=1234, rule="*.example (--allow)")
        flow.upstream = SocketAddress("203.0.113.1", 443)
        more = lines.flow(flow).split("\n")[1]
        pattern = (
            r" {14}\d\d:\d\d:\d\d\.\d{3}; 1234 B sent, 0 B received; "
            r"by \*\.example \(--allow\); to 203\.0\.113\.1:443; closed"
        )
        assert re.fullmatch(pattern, more)
        denied = lines.flow(denied_flow(host="a.example")).split("\n")[1]
        assert re.fullmatch(r" {14}[\d:.]{12}; default; to 198\.51\.100\.1:443; denied", denied)


class TestLookups:
    def test_denied(self) -> None:
        """A denied question says why and what would allow it; the usual types aren't told apart."""
        lookup = Lookup("evil.example", "A", "REFUSED", Verdict.DENY, hint="evil.example")
        lines = Lines(PLAIN)
        assert (
            "sidecar deny  evil.example             dns  no rule allows it; --allow evil.example"
            == lines.lookup(lookup)
        )
        lookup = Lookup("evil.example", "TXT", "REFUSED", Verdict.DENY)
        assert lines.lookup(lookup).endswith("dns  TXT: no rule allows it")

    def test_failed(self) -> None:
        """One that the name servers didn't answer says why."""
        lookup = Lookup("a.example", "A", "SERVFAIL", problem="no name server answered in time")
        assert (
            "sidecar fail  a.example                dns  no name server answered in time, 0.00s"
            == Lines(PLAIN).lookup(lookup)
        )

    def test_answered(self) -> None:
        """Others show what was answered."""
        lookup = Lookup("a.example", "A", "NOERROR", addresses=("192.0.2.1", "192.0.2.2"))
        assert Lines(PLAIN).lookup(lookup).endswith("dns  A: 192.0.2.1, 192.0.2.2, 0.00s")
        assert Lines(PLAIN).lookup(Lookup("x", "A", "NXDOMAIN")).endswith("dns  A: NXDOMAIN, 0.00s")


class TestWidth:
    @pytest.mark.parametrize("width", [76, 80, 100, 132])
    @pytest.mark.parametrize("host", ["pypi.org", "objects.githubusercontent.com"])
    @pytest.mark.parametrize("color", [False, True])
    def test_fits(self, width: int, host: str, color: bool) -> None:
        """Lines are broken where they can be, not by the terminal; colours take no room."""
        lines = Lines(Look(color=color, columns=lambda: width))
        process = Process(424242, "npm ci")
        flows = [
            ended_flow(host=host, process=process),
            ended_flow(host=host, end=FlowEnd.CONNECTION_REFUSED, process=process),
            denied_flow(host=host, hint=f"{host}:443", process=process),
        ]
        shown = [lines.flow(flow) for flow in flows]
        shown += [lines.progress(flow, 1e9) for flow in flows]
        for line in "\n".join(shown).split("\n"):
            assert len(visible(line)) <= width

    def test_usual_lines_are_one(self) -> None:
        """What is usual fits into 80 columns."""
        line = Lines(Look(columns=lambda: 80)).flow(
            ended_flow(host="registry.npmjs.org", sent=999_000, process=Process(42424, "npm ci"))
        )
        assert "\n" not in line

    def test_another_width(self) -> None:
        """Each line fits into the terminal as it is when the line is made."""
        widths = [132, 60, 132]
        lines = Lines(Look(columns=lambda: widths[0]))
        flow = denied_flow(host="objects.githubusercontent.com", hint="x:443", process=CURL)
        shown = []
        while widths:
            shown.append(lines.flow(flow))
            del widths[0]
        assert 1 == len(shown[0].splitlines())
        assert max(map(len, shown[1].splitlines())) <= 60
        assert shown[0] == shown[2]

    @pytest.mark.parametrize("width", [None, 76, 80])
    def test_color_changes_nothing_else(self, width: int | None) -> None:
        """Without its colours, a coloured line is the plain one."""
        for flow in (ended_flow(process=CURL), denied_flow(process=CURL)):
            plain = Lines(Look(columns=lambda: width)).flow(flow)
            coloured = Lines(Look(color=True, columns=lambda: width)).flow(flow)
            assert plain != coloured
            assert plain == visible(coloured)


class TestWords:
    def test_known(self) -> None:
        """Common reasons are in words, others are their code, to be looked up."""
        assert "a cloud's metadata address" == why("metadata", None)
        assert "certificate_mismatch" == why("certificate_mismatch", None)
        assert "not a public address, whatever *.corp (f:1) says" == why(
            "private_address", "*.corp (f:1)"
        )

    @pytest.mark.parametrize("hint", ["a.example:443", "[2001:db8::1]:443", "*:80"])
    def test_option(self, hint: str) -> None:
        """The option is what a shell makes two words of, whatever files there are."""
        assert ["--allow", hint] == shlex.split(allowing(hint))
        assert not set("[*") & set(allowing(hint)) or "'" in allowing(hint)

    def test_no_option(self) -> None:
        """No hint, no option."""
        assert "" == allowing("")


@given(some.text(), some.text(), some.text(), some.text())
def test_harmless(name: str, reason: str, rule: str, host: str) -> None:
    """Whatever others choose, what is shown is printable; lines are only ours."""
    lines = Lines(Look(verbose=True))
    process = Process(1, name)
    shown = [
        lines.flow(ended_flow(host=host, process=process, rule=rule)),
        lines.flow(denied_flow(host=host, reason=reason, rule=rule, hint=host, process=process)),
        lines.lookup(Lookup(host, name, rule, Verdict.DENY, reason, rule, hint=name)),
        lines.lookup(Lookup(host, name, rule, addresses=(reason,))),
        lines.progress(open_flow(host=host, process=process), 1e9),
    ]
    for text in shown:
        assert re.fullmatch(r"[ -~↑↓]+(\n {14}[ -~]+)?", text)

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from observe.flows import denied_flow, ended_flow

from sidecar.flow import FlowEnd, Process, Verdict
from sidecar.lookups import Lookup
from sidecar.observe.styles import Look
from sidecar.observe.summary import ROWS_MAX, Format, write_summary
from sidecar.observe.tally import Summary, Tally

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/reference/summary.schema.json").read_text(encoding="utf-8")
)
METADATA = "169.254.169.254:80"
EVIL = "\x1b[2J`|<b>\n"


def some_run() -> Summary:
    """One of each."""
    tally = Tally()
    npm = Process(42, "npm ci")
    for _ in range(3):
        tally.flow_ended(
            ended_flow(host="registry.npmjs.org", sent=1000, received=99_000, process=npm)
        )
    tally.flow_ended(ended_flow("10.0.0.1:5432", end=FlowEnd.CONNECTION_REFUSED, process=npm))
    tally.flow_ended(
        denied_flow("169.254.169.254:80", reason="metadata", hint="169.254.169.254:80")
    )
    tally.flow_ended(
        denied_flow("[2001:db8::1]:25", reason="denied_by_rule", hint="", rule="*:25 (--deny)")
    )
    tally.lookup_ended(Lookup("evil.example", "A", "REFUSED", Verdict.DENY, hint="evil.example"))
    summary = tally.summary(["npm", "ci"], 1)
    summary.seconds = 2.5
    return summary


def hostile_run() -> Summary:
    """One whose every text is somebody else's."""
    tally = Tally()
    process = Process(1, EVIL)
    tally.flow_ended(denied_flow(host=EVIL, reason=EVIL, rule=EVIL, hint=EVIL, process=process))
    tally.lookup_ended(Lookup(EVIL, EVIL, EVIL, Verdict.DENY, EVIL, EVIL, EVIL))
    return tally.summary([EVIL], 0)


def many_run(number: int = 1000) -> Summary:
    """One with more hosts than are shown."""
    tally = Tally(hosts_max=number - 10)
    for each in range(number):
        tally.flow_ended(denied_flow(f"198.51.{each // 250}.{each % 250}:443", hint=f"h{each}"))
    return tally.summary(["scan"], 0)


HEADLINE = (
    "6 connections to 4 destinations, 2 denied, 1 DNS question denied, 1 failed, "
    "3.0kB sent, 297kB received, in 2.50s"
)
TEXT = f"""\
sidecar {HEADLINE}
destination                  connections    sent  received  by
registry.npmjs.org:443  tls  3             3.0kB     297kB  npm ci
10.0.0.1:5432           tls  1 (1 failed)     0B        0B  npm ci
169.254.169.254:80      tls  1 (1 denied)     0B        0B
[2001:db8::1]:25        tls  1 (1 denied)     0B        0B

denied              times   why                         to allow it
169.254.169.254:80  1       a cloud's metadata address  --allow 169.254.169.254:80
[2001:db8::1]:25    1       denied by *:25 (--deny)     no --allow outweighs it
evil.example        1, DNS  no rule allows it           --allow evil.example

To allow all of it: --allow 169.254.169.254:80 --allow evil.example
"""
VERY_NARROW = """\
sidecar 6 connections to 4 destinations,
        2 denied, 1 DNS question denied,
        1 failed, 3.0kB sent,
        297kB received, in 2.50s
destinations
registry.npmjs.org:443
    tls, 3 connections, 3.0kB sent,
    297kB received, by npm ci
10.0.0.1:5432
    tls, 1 connection (1 failed),
    0B sent, 0B received, by npm ci
"""
MARKDOWN = f"""\
### sidecar: `npm ci`

{HEADLINE}; exit status 1.

| denied | times | why | to allow it |
|---|--:|---|---|
| `169.254.169.254:80` | 1 | a cloud's metadata address | `--allow 169.254.169.254:80` |
| `[2001:db8::1]:25` | 1 | denied by \\*:25 (--deny) | no --allow outweighs it |
| `evil.example` | 1, DNS | no rule allows it | `--allow evil.example` |

| destination | | connections | sent | received | by |
|---|---|--:|--:|--:|---|
| `registry.npmjs.org:443` | tls | 3 | 3.0kB | 297kB | `npm ci` |
| `10.0.0.1:5432` | tls | 1 (1 failed) | 0B | 0B | `npm ci` |
| `169.254.169.254:80` | tls | 1 (1 denied) | 0B | 0B |  |
| `[2001:db8::1]:25` | tls | 1 (1 denied) | 0B | 0B |  |
"""


class TestText:
    def test_whole(self) -> None:
        """What there was, what was denied and what would allow it."""
        assert TEXT == write_summary(some_run(), Format.TEXT, Look())

    def test_nothing(self) -> None:
        """Nothing to tell takes one line, and no table."""
        assert "sidecar no connections\n" == write_summary(
            Tally().summary(["true"], 0), Format.TEXT, Look()
        )

    def test_failed_lookup(self) -> None:
        """That no name was to be had is something to tell."""
        tally = Tally()
        tally.lookup_ended(Lookup("a.example", "A", "SERVFAIL", problem="x"))
        text = write_summary(tally.summary(["true"], 0), Format.TEXT, Look())
        assert "sidecar no connections, 1 DNS question failed\n" == text

    def test_color(self) -> None:
        """Colours, and nothing else."""
        coloured = write_summary(some_run(), Format.TEXT, Look(color=True, columns=lambda: 120))
        assert "\x1b[31m" in coloured
        plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
        assert [line.split() for line in TEXT.splitlines()] == [
            line.split() for line in plain.splitlines()
        ]

    def test_very_narrow(self) -> None:
        """Where a table would leave names no room there is none."""
        text = write_summary(some_run(), Format.TEXT, Look(columns=lambda: 40))
        assert VERY_NARROW == text[: len(VERY_NARROW)]

    @pytest.mark.parametrize("width", [1, 20, 59])
    def test_names_are_whole(self, width: int) -> None:
        """However narrow it is, names are in one piece; and everything else fits, if it can."""
        text = write_summary(some_run(), Format.TEXT, Look(columns=lambda: width))
        for host in some_run().hosts:
            assert f"\n{host.host}:{host.port}\n" in text.replace("[", "").replace("]", "")
        hosts = text.partition("\n\n")[0].splitlines()
        assert max(len(each) for each in hosts if each.startswith("  ")) <= max(width, 8 + 13)

    def test_narrow_but_fitting(self) -> None:
        """A table that fits is one however narrow the terminal is."""
        tally = Tally()
        tally.flow_ended(ended_flow(host="a.example"))
        text = write_summary(tally.summary(["true"], 0), Format.TEXT, Look(columns=lambda: 55))
        assert "\ndestination         connections  sent  received  by\n" in text

    @pytest.mark.parametrize("width", [60, 80])
    def test_narrow(self, width: int) -> None:
        """On a narrow terminal options are still in one piece, and all else fits."""
        text = write_summary(some_run(), Format.TEXT, Look(columns=lambda: width))
        head, _, options = text.partition("To allow all of it:")
        assert "    --allow 169.254.169.254:80\n" in head or width >= 80
        for line in head.splitlines():
            assert len(line) <= width
        assert options

    def test_options_work(self) -> None:
        """The last line is what a shell takes as options."""
        text = write_summary(some_run(), Format.TEXT, Look())
        last = text.rstrip().rpartition("To allow all of it: ")[2]
        assert ["--allow", "169.254.169.254:80", "--allow", "evil.example"] == shlex.split(last)

    def test_many(self) -> None:
        """Of very many the first are shown, the others counted."""
        text = write_summary(many_run(), Format.TEXT, Look())
        assert len(text.splitlines()) < 2 * ROWS_MAX + 10
        assert "and 950 more destinations\nand 10 connections elsewhere\n" in text

    @pytest.mark.parametrize("width", [None, 80])
    def test_hostile(self, width: int | None) -> None:
        """Others' text is harmless, and no markup."""
        assert re.fullmatch(
            r"[ -~\n]*", write_summary(hostile_run(), Format.TEXT, Look(columns=lambda: width))
        )


class TestMarkdown:
    def test_whole(self) -> None:
        """Two tables for a job's page."""
        assert MARKDOWN == write_summary(some_run(), Format.MARKDOWN, Look())

    def test_nothing(self) -> None:
        """Nothing to tell takes a heading and a sentence."""
        text = write_summary(Tally().summary(["true"], 0), Format.MARKDOWN, Look())
        assert "### sidecar: `true`\n\nNo connections; exit status 0.\n" == text

    def test_hostile(self) -> None:
        """Others' text ends no cell and is no markup."""
        text = write_summary(hostile_run(), Format.MARKDOWN, Look())
        assert re.fullmatch(r"[ -~…\n]*", text)
        assert "<b>" not in re.sub(r"`[^`]*`|\\.", "", text)
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert [5, 7] == sorted({len(re.findall(r"(?<!\\)\|", row)) for row in rows})

    def test_many(self) -> None:
        """As in text."""
        text = write_summary(many_run(), Format.MARKDOWN, Look())
        assert len(text.splitlines()) < 2 * ROWS_MAX + 20
        assert "… and 960 connections elsewhere." in text


class TestJson:
    @pytest.mark.parametrize("run", [some_run, hostile_run, many_run])
    def test_schema(self, run: Any) -> None:
        """What is written is one line, and what the schema says."""
        text = write_summary(run(), Format.JSON, Look())
        assert 1 == text.count("\n")
        jsonschema.validate(json.loads(text), SCHEMA)

    def test_schema_is_strict(self) -> None:
        """The schema knows every key, and wants each."""
        written = json.loads(write_summary(some_run(), Format.JSON, Look()))
        for part in (written, written["total"], written["hosts"][0], written["denied"][0]):
            for key in list(part):
                value = part.pop(key)
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(written, SCHEMA)
                part[key] = value
            part["more"] = 1
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(written, SCHEMA)
            del part["more"]


def test_none() -> None:
    """None is nothing."""
    assert "" == write_summary(some_run(), Format.NONE, Look())


def test_rich_is_not_imported_early() -> None:
    """Rich takes a tenth of a second: only a table is worth that."""
    program = (
        "import sys, sidecar.observe.view\n"
        "from sidecar.observe.summary import *\n"
        "from sidecar.observe.tally import Tally\n"
        "from sidecar.observe.styles import Look\n"
        "for form in Format: write_summary(Tally().summary(['true'], 0), form, Look())\n"
        "print('rich' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "False\n" == done.stdout


def test_unknown_port() -> None:
    """What was denied without a port known is a DNS question only if it was one."""
    tally = Tally()
    flow = denied_flow(reason="not_intercepted", hint="")
    flow.destination = None
    tally.flow_ended(flow)
    text = write_summary(tally.summary(["x"], 0), Format.TEXT, Look())
    assert "unknown" in text
    assert "DNS" not in text

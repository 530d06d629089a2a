"""The documentation is true: listings run, commands parse, tables are complete, links lead on."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import msgspec
import pytest
from identities import needs_root
from twisted.internet.testing import MemoryReactorClock
from twisted.scripts._twistd_unix import ServerOptions

from sidecar import config, endpoint_strings
from sidecar.errors import DialError, VerificationError, VerificationImpossible
from sidecar.flow import FlowEnd
from sidecar.policy import Reason
from sidecar.protocols.http import replies
from sidecar.tap import Options
from sidecar.wire.client_hello import HelloReason
from sidecar.wire.http1.errors import HttpMessageReason
from sidecar.wire.http_head import HttpHeadReason

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path.relative_to(ROOT) for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
]
PATIENCE = 60


def read(name: str | Path) -> str:
    """A document."""
    return (ROOT / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced listing."""

    document: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    """All listings of a language, in order."""
    pattern = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(str(document), *match.groups())
        for document in DOCUMENTS
        for match in pattern.finditer(read(document))
        if match[1] == language
    ]


def test_languages() -> None:
    """Every fenced listing is of a kind that a test here knows."""
    found = {
        language
        for document in DOCUMENTS
        for language in re.findall(r"^```(\w*)\n.*?^```$", read(document), re.MULTILINE | re.DOTALL)
    }
    # nft: tests/cli/test_rules.py compares it with what the command prints.
    assert set() == found - {"python", "sh", "toml", "json", "yaml", "nft"}


class TestLinks:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=str)
    def test_resolve(self, document: Path) -> None:
        """Links between files lead to a file, and to a heading in it."""
        broken = []
        for target in re.findall(r"\]\(([^)\s]+)\)", read(document)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (ROOT / document).parent / name if name else ROOT / document
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(target)
        assert [] == broken

    def test_index(self) -> None:
        """The index names every document."""
        linked = {
            (ROOT / "docs" / target).resolve()
            for target in re.findall(r"\]\(([^)#\s]+)\)", read("docs/README.md"))
        }
        assert set() == {
            document
            for document in DOCUMENTS
            if (ROOT / document).resolve() not in linked and document.name != "README.md"
        }


def anchors(path: Path) -> set[str]:
    """A document's headings as they are linked to."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Which scene shows each Python listing, what a client hears and what the listing prints.
PYTHON = [
    ("README.md", "intercepted", "you dialled 198.51.100.7, port 99\n", ""),
    (
        # What the plugins do: tests/test_extensions.py.
        "docs/howto/extend.md",
        "finished",
        "",
        "",
    ),
    (
        "docs/howto/peek-factory.md",
        "peeked",
        "all octets\n",
        "tls for api.example.org, offers h2, http/1.1\n",
    ),
    (
        "docs/howto/twisted-program.md",
        "intercepted",
        "220 198.51.100.7 ready\r\n",
        "192.0.2.1 looks for 198.51.100.7:99\n",
    ),
    (
        "docs/howto/twisted-program.md",
        "relayed",
        "12345 / 198.51.100.7:99: 5 octets, closed\n",
        "",
    ),
    ("docs/howto/twisted-program.md", "dialled", "", "who am I?\nyou are 203.0.113.9\n"),
    ("docs/howto/twisted-program.md", "tunnelled", "", "from time.example:13: it is late\n"),
    ("docs/reference/rules.md", "finished", "", ""),
]


class TestPython:
    def test_all_are_run(self) -> None:
        """Every Python listing has a scene."""
        assert [name for name, *_ in PYTHON] == [block.document for block in blocks("python")]

    @needs_root
    @pytest.mark.parametrize("index", range(len(PYTHON)))
    def test_does_what_it_says(self, index: int, tmp_path: Path) -> None:
        """The listing, whole and unchanged, does what the text says it does."""
        _, scene, heard, printed = PYTHON[index]
        listing = tmp_path / "listing.py"
        listing.write_text(blocks("python")[index].text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, ROOT / "tests/stage.py", listing, scene],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=PATIENCE,
        )
        assert "" == done.stderr
        assert {"heard": heard, "printed": printed} == json.loads(done.stdout)


def parse_sidecar(arguments: list[str]) -> None:
    """Have the command's own parsers read a command line."""
    parser = argparse.ArgumentParser(prog="sidecar", exit_on_error=False)
    subparsers = parser.add_subparsers(required=True)
    for name in ("rules", "policy", "demo", "doctor", "exec"):
        import_module(f"sidecar.cli.{name}").add_arguments(
            subparsers.add_parser(name, description=name)
        )
    try:
        parser.parse_args(arguments)
    except SystemExit:
        # What was wrong is on standard error.
        raise AssertionError(arguments) from None


def parse_twistd(arguments: list[str]) -> None:
    """Have twistd's own parsers, and ours, read a command line."""
    options = ServerOptions()
    options.parseOptions(arguments)
    assert "sidecar" == options.subCommand
    ours: Options = options.subOptions
    if ours["config"] is None:
        ours.check_endpoints(MemoryReactorClock(), ours.to_config())


def check_command(words: list[str]) -> bool:
    """Parse a command if it is one of ours, whoever runs it; says whether it is."""
    for index, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in {"sidecar", "twistd"}:
            (parse_sidecar if name == "sidecar" else parse_twistd)(words[index + 1 :])
            return True
    return False


def commands(text: str) -> list[list[str]]:
    """A shell listing's commands, in words, without what they are piped into."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||;", line):
            words = shlex.split(part, comments=True)
            if words:
                found.append(words)
    return found


class TestCommands:
    @pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.document)
    def test_shell(self, block: Block) -> None:
        """Every flag and value of a shell listing is one that the programs accept."""
        for words in commands(block.text):
            check_command(words)

    @pytest.mark.parametrize("document", DOCUMENTS, ids=str)
    def test_indented(self, document: Path) -> None:
        """Likewise in listings that are indented, but for forms and abbreviations."""
        # What terminals show is not for typing: tests/integration/test_terminal_view.py.
        text = re.sub(r"<!-- capture: .*?<!-- end -->", "", read(document), flags=re.DOTALL)
        for line in re.findall(r"^    ((?:sidecar|twistd) .*)$", text, re.MULTILINE):
            if not re.search(r"[\[…]", line):
                for words in commands(line):
                    check_command(words)

    @pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.document)
    def test_kubernetes(self, block: Block) -> None:
        """So is that of a pod's containers."""
        found = re.findall(r"command: (\[.*\])", block.text)
        assert [] != found
        assert all(check_command(json.loads(command)) for command in found)

    def test_the_two(self) -> None:
        """The README has the two commands that do all of their own set-up."""
        lines = "\n".join(block.text for block in blocks("sh") if block.document == "README.md")
        make = "python3 -m venv .venv && .venv/bin/pip install"
        assert f"{make} . && .venv/bin/sidecar demo\n" in lines
        assert f"{make} tox && .venv/bin/tox\n" in lines

    def test_wrong_ones_are_found(self) -> None:
        """What the programs would refuse is refused here."""
        for wrong in (
            ["sidecar", "rules", "apply", "--mod", "x"],
            ["twistd", "-n", "sidecar", "--outbond", "transparent:1"],
            ["twistd", "-n", "sidecar", "--outbound", "transparnt:1"],
            ["twistd", "-n", "sidecar", "--outbound", "transparent:1", "--allow", "*.org:x"],
            ["sidecar", "policy", "why"],
        ):
            with pytest.raises((SystemExit, Exception)):
                check_command(wrong)


def rows(document: str, heading: str | None = None) -> list[list[str]]:
    """The cells of the first table below a heading, code marks taken off; without its head."""
    text = read(document)
    if heading is not None:
        text = text[text.index(f"\n{heading}\n") :]
    table = re.search(r"(^\|.*\|\n)+", text, re.MULTILINE)
    assert table is not None
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table[0].splitlines()[2:]]
    return [[cell.strip("|` ") for cell in row] for row in cells]


class TestTwistd:
    def test_every_flag(self) -> None:
        """The table has all flags that there are, and no others."""
        methods = {
            f"--{name[4:]}".replace("_", "-") for name in dir(Options) if name.startswith("opt_")
        }
        there = {
            *(f"--{row[0]}" for row in Options.optParameters),
            *(f"-{row[1]}" for row in Options.optParameters if row[1]),
            *(f"--{row[0]}" for row in Options.optFlags),
            *methods,
        }
        named = {
            flag
            for row in rows("docs/reference/twistd.md")
            for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row[0])
        }
        assert there == named


TABLES: dict[str, type[msgspec.Struct]] = {
    "## Top level": config.Config,
    "## `[inbound_source]`": config.InboundSource,
    "## `[limits]`": config.Limits,
    "## `[policy]`": config.PolicyConfig,
    "## `[http]`": config.HttpConfig,
    "## `[http.limits]`": config.HttpLimits,
    "## `[[forward]]`": config.Forward,
}


class TestConfiguration:
    @pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.document)
    def test_toml(self, block: Block, tmp_path: Path) -> None:
        """Every TOML listing is a configuration."""
        path = tmp_path / "sidecar.toml"
        path.write_text(block.text, encoding="utf-8")
        config.load_file(str(path))

    def test_toml_is_complete(self, tmp_path: Path) -> None:
        """The example has every key."""
        (block,) = [each for each in blocks("toml") if each.document.endswith("configuration.md")]
        missing = [
            name
            for kind in TABLES.values()
            for name in kind.__struct_fields__
            if not re.search(rf"^\[*{name}\b", block.text, re.MULTILINE)
        ]
        assert [] == missing

    @pytest.mark.parametrize(("heading", "kind"), TABLES.items())
    def test_tables(self, heading: str, kind: type[msgspec.Struct]) -> None:
        """Each table has every key, with its default."""
        expected = {
            field.name: written(field)
            for field in msgspec.structs.fields(kind)
            if field.name not in {"forward", "http", "inbound_source", "limits", "policy"}
        }
        found = rows("docs/reference/configuration.md", heading)
        assert expected == {key: default for key, _, default, _ in found}

    @pytest.mark.parametrize(
        "bound",
        ["3600", "31536000", "10000000", "32767", "1024", "1048576", "65536", "9007199254740992"],
    )
    def test_bounds(self, bound: str) -> None:
        """The bounds that the code has are in the text."""
        fields = [
            *msgspec.structs.fields(config.Limits),
            *msgspec.structs.fields(config.HttpLimits),
        ]
        assert bound in repr([field.type for field in fields])
        assert bound in read("docs/reference/configuration.md")


def written(field: Any) -> str:
    """A key's default as the tables have it."""
    if field.default is msgspec.NODEFAULT:
        return "needed"
    if field.default is None:
        return "none"
    if field.name == "mark":
        return f"{field.default:#x}"
    if field.default == ():
        return "[]"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, Enum):
        return f'"{field.default.value}"'
    return str(field.default) if isinstance(field.default, int | float) else f'"{field.default}"'


_Error = TypeVar("_Error", DialError, VerificationError)


def subclasses(kind: type[_Error]) -> set[type[_Error]]:
    """A class of errors, and all below it."""
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


_BAD_GATEWAY = 502


def reasons_in_source() -> set[str]:
    """Every reason code that a flow can get."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "sidecar").glob("**/*.py")
    )
    written = re.findall(
        r"""(?:\b[dD]en(?:y|ial)\(\s*|\bproblem = |\breason = |return (?="step_))"([a-z_]+)\"""",
        source,
    )
    return {
        *written,
        *(reason.value for reason in Reason),
        *(f"hello_{reason.value}" for reason in HelloReason if reason.value != "not_tls"),
        *(f"http_{reason.value}" for reason in HttpHeadReason if reason.value != "not_http"),
        # What only servers can do is no reason of a flow's.
        *(f"http_{reason.value}" for reason in HttpMessageReason if reason.status != _BAD_GATEWAY),
        *(reply.reason for reply in vars(replies).values() if isinstance(reply, replies.Reply)),
        *(reply.reason for reply in map(replies.reply_to_end, FlowEnd) if reply is not None),
        # A name's verification gives up with these.
        *(kind.end.value for kind in subclasses(DialError)),
    }


class TestReasons:
    def test_every_code(self) -> None:
        """The tables have all codes that a flow can get, each once, and no others."""
        listed = re.findall(r"^\| `(\w+)` \|", read("docs/reference/reasons.md"), re.MULTILINE)
        assert sorted(listed) == sorted(reasons_in_source())

    def test_verification(self) -> None:
        """The errors of verification, whose codes are found by their text, are all there."""
        text = read("docs/reference/reasons.md")
        found = subclasses(VerificationError) - {VerificationError, VerificationImpossible}
        assert all(f"| `{kind.reason}` | deny |" in text for kind in found)

    def test_verdicts(self) -> None:
        """Every row has a verdict and a meaning."""
        text = read("docs/reference/reasons.md")
        for row in re.findall(r"^\| `.*$", text, re.MULTILINE):
            _, _, verdict, meaning, _ = row.split("|", 4)
            assert verdict.strip() in {"allow", "deny", "either"}
            assert meaning.strip()


class TestReference:
    def test_endings(self) -> None:
        """The relay's table has every end reason, each with its cause."""
        assert {end.value for end in FlowEnd} == {
            row[0] for row in rows("docs/reference/relay.md", "## How a flow ends")
        }

    def test_endpoint_strings(self) -> None:
        """The forms are those that the parsers' errors name."""
        text = read("docs/reference/endpoints.md")
        assert f"\n    {endpoint_strings._SERVER_FORM}\n" in text
        assert f"\n    {endpoint_strings._CLIENT_FORM}\n" in text
        assert f"\n    {endpoint_strings._CONNECT_FORM}\n" in text

    def test_layout(self) -> None:
        """The design names every module and package that is there."""
        text = read("docs/design.md")
        there = {
            path.name if path.suffix else f"{path.name}/"
            for path in (ROOT / "sidecar").iterdir()
            if not path.name.startswith("_") and path.suffix in {"", ".py"}
        }
        assert [] == sorted(name for name in there if name not in text)

    @pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.document)
    def test_log_lines(self, block: Block) -> None:
        """Log lines that are shown are valid ones."""
        schema = json.loads(read("docs/reference/access-log.schema.json"))
        jsonschema.validate(json.loads(block.text), schema)

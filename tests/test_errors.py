from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

from sidecar import errors
from sidecar.flow import FlowEnd

EVERY = [getattr(errors, name) for name in errors.__all__]
EXAMPLES: list[tuple[str, Exception]] = [
    ("'x': not a port", errors.AddressError("x", "not a port")),
    (
        "sidecar.toml: limits.connect_timeout = 'ten': expected a number of seconds",
        errors.ConfigError(
            "sidecar.toml", "limits.connect_timeout", "ten", "expected a number of seconds"
        ),
    ),
    ("command line: --x: missing", errors.ConfigError("command line", "--x", None, "missing")),
    ("a.toml: not TOML", errors.ConfigError("a.toml", None, None, "not TOML")),
    ("can't listen on tcp:80: taken", errors.ListenError("tcp:80", "taken")),
    ("can't reach 192.0.2.1:80: refused", errors.ConnectionRefused("192.0.2.1:80", "refused")),
    ("no user namespaces; allow them", errors.NamespaceError("no user namespaces", "allow them")),
]


def test_tree_in_the_docstring() -> None:
    """The tree drawn at the module's top is the tree there is."""
    drawn: list[tuple[str, str]] = []
    line_of: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?:  .*)?$", line):
            depth = len(match["indent"])
            line_of[depth] = match["name"]
            parents = [name for at, name in sorted(line_of.items()) if at < depth]
            drawn.append((match["name"], parents[-1] if parents else "Exception"))
            line_of = {at: name for at, name in line_of.items() if at <= depth}
    assert sorted((kind.__name__, kind.__base__.__name__) for kind in EVERY) == sorted(drawn)


@pytest.mark.parametrize("kind", EVERY)
def test_documented(kind: type[Exception]) -> None:
    """Every error says in a docstring of its own what it means."""
    assert vars(kind).get("__doc__")


@pytest.mark.parametrize(("expected", "error"), EXAMPLES)
def test_one_line(expected: str, error: Exception) -> None:
    """An error's text is one line that says what is wrong with what."""
    assert expected == str(error)


@pytest.mark.parametrize("error", [error for _, error in EXAMPLES])
def test_copies(error: Any) -> None:
    """An error survives being sent to another process, with its facts."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(error), str(error), vars(error)) == (type(copy), str(copy), vars(copy))


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (FlowEnd.CONNECTION_REFUSED, errors.ConnectionRefused),
        (FlowEnd.CONNECTION_TIMEOUT, errors.ConnectionTimeout),
        (FlowEnd.DESTINATION_UNROUTABLE, errors.DestinationUnroutable),
        (FlowEnd.DESTINATION_UNROUTABLE, errors.DialError),
        (FlowEnd.PROXY_LOOP_DETECTED, errors.ProxyLoopDetected),
    ],
)
def test_dial_errors_know_their_end(end: FlowEnd, kind: type[errors.DialError]) -> None:
    """An upstream that was not reached implies how the flow ends."""
    assert end == kind("192.0.2.1:80", "x").end


def test_address_errors_are_value_errors() -> None:
    """Code that knows only the standard library can catch bad addresses."""
    assert issubclass(errors.AddressError, ValueError)

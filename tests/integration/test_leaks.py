"""Nothing gets out of exec, whoever runs it: every attempt of the leak test, one by one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from identities import NOBODY, as_nobody, in_user_namespace, without_capabilities
from integration.doctors import doctor, read, run
from integration.netns import Namespace

from sidecar.cli.leak_test.attempts import Attempt, Expected
from sidecar.cli.leak_test.inside import ATTEMPTS
from sidecar.cli.leak_test.outcomes import Came, Outcome, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

SCHEMA = "leak-test.schema.json"
IDENTITIES = ("root", "nobody", "container")
OTHERS = ("late", "killed_by_group", "killed_by_outside")
NAMES = (*(each.name for each in ATTEMPTS), *OTHERS)
# What gets out of any Linux without exec; other attempts need what not every kernel has.
SHOWN = {
    *("allowed", "tcp", "tcp_ipv6", "tcp_mapped", "tcp_host", "tcp_loopback", "tcp_source_port"),
    *("tcp_free_source", "tcp_transparent", "tcp_mark", "tcp_fast_open", "udp", "quic", "udp_ipv6"),
    *("multicast", "raw_icmp", "raw", "raw_ipv6", "packet", "dns", "dns_tcp", "dns_configured"),
    *("dns_stub", "dns_below_allowed", "dns_garbage", "families", "abstract", "abstract_datagram"),
    *("netlink", "path", "environ", "memory", "descriptors", "pidfd", "signal"),
}


@pytest.fixture(scope="module")
def alone() -> Iterator[Namespace]:
    """A namespace with nothing but loopback, where the test runs."""
    namespace = Namespace("leak")
    yield namespace
    namespace.remove()


@pytest.fixture(scope="module", params=IDENTITIES)
def document(
    request: pytest.FixtureRequest, alone: Namespace, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the leak test finds as each of the three."""
    command = doctor("--leak-test", "--json")
    if request.param == "nobody":
        command = as_nobody(command, tmp_path_factory.mktemp("stash"))
    elif request.param == "container":
        # Root as most containers have it.
        command = without_capabilities(command)
    before = leftovers()
    done = run(alone, command)
    assert before == leftovers()
    found = read(done, SCHEMA)
    assert (NOBODY if request.param == "nobody" else 0) == found["uid"]
    out = {"leaked", "faulty"} & {each["verdict"] for each in found["attempts"]}
    assert (1 if out else 0) == done.returncode
    return found


def leftovers() -> set[Path]:
    """What the leak test has in the temporary directory."""
    return set(Path(tempfile.gettempdir()).glob("sidecar-leak-*"))


def test_all_are_made(document: dict[str, Any]) -> None:
    """Every attempt is in the report, with every packet looked at."""
    assert list(NAMES) == [each["name"] for each in document["attempts"]]
    assert document["sees_packets"]


def test_listeners_hear(document: dict[str, Any]) -> None:
    """Without exec the same attempts get out: what doesn't arrive is held by it."""
    out = {each["name"] for each in document["attempts"] if each["gets_out_without_exec"]}
    assert set() == SHOWN - out


@pytest.mark.parametrize("name", NAMES)
def test_attempt(document: dict[str, Any], name: str) -> None:
    """It doesn't get out; what the policy allows does."""
    (attempt,) = [each for each in document["attempts"] if each["name"] == name]
    expected = {"unprotected"} if name == "path" else {"held", "absent"}
    assert attempt["verdict"] in expected, attempt


def test_what_is_allowed_goes_through_the_proxy(document: dict[str, Any]) -> None:
    """The name is asked of the name server outside, and what is said arrives there."""
    (allowed,) = [each for each in document["attempts"] if each["name"] == "allowed"]
    assert {"DNS", "TCP"} <= {each.partition(":")[0] for each in allowed["arrived"]}


def test_lines(alone: Namespace) -> None:
    """Without --json: a line each, and what to think of it all."""
    done = run(alone, doctor("--leak-test"))
    assert "" == done.stderr
    titles = [each[7:57].strip() for each in done.stdout.splitlines()]
    for attempt in ATTEMPTS:
        assert 1 == titles.count(attempt.title), attempt.title
    assert f"{len(NAMES)} attempts, " in done.stdout
    assert "Not protected, and not claimed to be: unix sockets by their path" in done.stdout


def test_no_namespaces(alone: Namespace) -> None:
    """Where no sandbox can be made, that is said; nothing is claimed."""
    command = without_capabilities(doctor("--leak-test"))
    done = run(alone, in_user_namespace({"max_user_namespaces": "0"}, command))
    assert (1, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("sidecar doctor --leak-test: user.max_user_namespaces is 0")
    assert 1 == done.stderr.count("\n")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        # As root of a user namespace, who needs no other.
        ("max_user_namespaces", set()),
        # Processes outside are then in sight, which is documented; nothing more.
        ("max_pid_namespaces", {"signal"}),
        # Kernel settings can't be protected then: uid 0 must not run anything.
        ("max_mnt_namespaces", set()),
    ],
)
def test_without_some_namespaces(alone: Namespace, setting: str, expected: set[str]) -> None:
    """Where exec does without, nothing gets out either."""
    done = run(alone, in_user_namespace({setting: "0"}, doctor("--leak-test", "--json")))
    if done.stdout:
        found = json.loads(done.stdout)["attempts"]
        leaks = {each["name"] for each in found if each["verdict"] in {"leaked", "faulty"}}
        assert expected == leaks, [each for each in found if each["name"] in leaks]
    else:
        # Refused is as good.
        assert done.returncode == 1


class TestJudging:
    @staticmethod
    def verdict(expected: Expected, came: Came, *arrived: str) -> Verdict:
        attempt = Attempt("name", "title", lambda _: "", expected)
        return judge(attempt, Outcome(came, "", arrived), None).verdict

    @pytest.mark.parametrize("came", Came)
    @pytest.mark.parametrize("expected", [Expected.NOTHING_ARRIVES, Expected.REFUSED])
    def test_what_arrives_is_a_leak(self, expected: Expected, came: Came) -> None:
        """Whatever the attempt itself says."""
        assert Verdict.LEAKED is self.verdict(expected, came, "something")

    def test_what_must_be_refused_is_a_leak_when_done(self) -> None:
        """Even if nothing arrives."""
        assert Verdict.LEAKED is self.verdict(Expected.REFUSED, Came.DONE)
        assert Verdict.HELD is self.verdict(Expected.NOTHING_ARRIVES, Came.DONE)

    def test_a_broken_attempt_shows_nothing(self) -> None:
        """It is not counted as held."""
        assert Verdict.FAULTY is self.verdict(Expected.NOTHING_ARRIVES, Came.BROKE)
        assert Verdict.FAULTY is self.verdict(Expected.REFUSED, Came.BROKE)

    def test_what_is_allowed_must_arrive(self) -> None:
        """Or the listeners are deaf."""
        assert Verdict.HELD is self.verdict(Expected.ARRIVES, Came.DONE, "something")
        assert Verdict.FAULTY is self.verdict(Expected.ARRIVES, Came.DONE)
        assert Verdict.FAULTY is self.verdict(Expected.ARRIVES, Came.BROKE, "something")

    def test_what_is_not_here(self) -> None:
        """What there is nothing of to try is neither."""
        assert Verdict.ABSENT is self.verdict(Expected.REFUSED, Came.NOT_HERE)

    def test_what_is_not_protected(self) -> None:
        """It is shown, and not counted as a leak."""
        assert Verdict.UNPROTECTED is self.verdict(Expected.UNPROTECTED, Came.DONE, "something")
        assert Verdict.HELD is self.verdict(Expected.UNPROTECTED, Came.REFUSED)

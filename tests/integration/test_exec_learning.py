"""`sidecar exec --learn FILE`, and the same command under the policy that came of it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from integration import netns
from integration.origins import Origin, http_page
from nameservers import Scripted, a, record
from twisted.names import dns

import sidecar
from sidecar.addresses import SocketAddress
from sidecar.config import load_file
from sidecar.policy import Default

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

_CHECKOUT = str(Path(sidecar.__file__).parent.parent)
# Twins have one address, as many names of one provider do.
HERE, THERE, PRIVATE = "9.9.9.1", "9.9.9.2", "10.9.9.9"
RECORDS = [
    *a("one.example.com", HERE),
    *a("two.example.com", HERE),
    *a("three.example.com", HERE),
    *a("db.corp.example", PRIVATE),
    *a("short.home.example", HERE),
    record("text.example.com", dns.Record_TXT(b"hello")),
]
PORT = 8080
_WITH_FILES = (
    "for each in resolv.conf nsswitch.conf hosts;"
    ' do mount --bind "$0/$each" "/etc/$each" || exit 99; done; exec "$@"'
)
_FILES = {
    "resolv.conf": "nameserver 127.0.0.1\nsearch home.example\noptions timeout:5 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": f"127.0.0.1 localhost\n{THERE} fromfile.example\n",
}
# Everything that a build may do: names of which the last that was looked up is not the one
# that is meant, addresses, names that are only looked up, what doesn't answer.
BUILD = f"""
set -e
getent ahostsv4 one.example.com two.example.com three.example.com >/dev/null
for each in one.example.com two.example.com fromfile.example {THERE}; do
    curl -sS -o /dev/null --max-time 10 "http://$each:{PORT}/"
done
dig +short TXT text.example.com | grep -q hello
if curl -s -o /dev/null http://{HERE}:9/; then exit 1; fi
"""
# Both look up what isn't there.
APT = """
set -e
/usr/lib/apt/apt-helper -q -o APT::Sandbox::User=root \\
    download-file http://one.example.com/ "$0/page" >/dev/null
test -s "$0/page"
if getent ahosts gone.example.com; then exit 1; fi
"""
PRIVATE_BUILD = f"curl -sS -o /dev/null --max-time 10 http://db.corp.example:{PORT}/"


@dataclass
class Machine:
    """A machine with servers and a name server of its own."""

    namespace: netns.Namespace
    directory: Path
    name_server: Scripted

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `sidecar exec WORDS`."""
        return self.namespace.run(
            [
                *("unshare", "--mount", "sh", "-c", _WITH_FILES, str(self.directory)),
                *(sys.executable, "-m", "sidecar.cli", "exec", "-q", "--summary", "none", *words),
            ],
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": _CHECKOUT},
        )


@pytest.fixture(scope="module")
def machine(_namespaces: None, outside: Path) -> Iterator[Machine]:
    namespace = netns.Namespace("learn")
    with ExitStack() as stack:
        stack.callback(namespace.remove)
        for name, text in _FILES.items():
            (outside / name).write_text(text, encoding="ascii")
        with namespace.entered():
            name_server = stack.enter_context(Scripted(RECORDS, port=53))
        for address in (HERE, THERE, PRIVATE):
            namespace.reach(address)
        stack.enter_context(Origin(namespace, SocketAddress(HERE, 80), http_page))
        for address in (HERE, THERE, PRIVATE):
            stack.enter_context(Origin(namespace, SocketAddress(address, PORT), http_page))
        yield Machine(namespace, outside, name_server)


def test_second_run_passes(machine: Machine, tmp_path: Path) -> None:
    """What a run did is allowed by what was learned from it; nothing else is."""
    policy = tmp_path / "policy.toml"
    first = machine.exec("--learn", str(policy), "--", "sh", "-c", BUILD)
    assert (0, f"sidecar exec: learned 5 rules into {policy}\n") == (first.returncode, first.stderr)
    learned = load_file(str(policy)).policy
    assert Default.DENY is learned.default
    assert [
        f"one.example.com:{PORT}",
        "text.example.com:53",
        "three.example.com:53",
        # Its address was dialled, too; that nobody answers there is no reason to deny it.
        f"two.example.com:9,{PORT}",
        f"fromfile.example:{PORT}",
    ] == [each.text for each in learned.allow]
    second = machine.exec("--policy", str(policy), "--fail-on-deny", "--", "sh", "-c", BUILD)
    assert (0, "") == (second.returncode, second.stderr)
    other = f"curl -sS -o /dev/null --max-time 10 http://three.example.com:{PORT}/"
    denied = machine.exec("--policy", str(policy), "--fail-on-deny", "--", "sh", "-c", other)
    assert 77 == denied.returncode


def test_short_name(machine: Machine, tmp_path: Path) -> None:
    """A name that is one by the search list alone is learned as the program has it."""
    policy = tmp_path / "policy.toml"
    command = ("--", "curl", "-sS", "-o", "/dev/null", "--max-time", "10", f"http://short:{PORT}/")
    first = machine.exec("--learn", str(policy), *command)
    assert (0, f"sidecar exec: learned 1 rule into {policy}\n") == (first.returncode, first.stderr)
    assert [f"short:{PORT}"] == [each.text for each in load_file(str(policy)).policy.allow]
    second = machine.exec("--policy", str(policy), "--fail-on-deny", *command)
    assert (0, "") == (second.returncode, second.stderr)
    other = machine.exec("--policy", str(policy), "--", "getent", "hosts", "other.home.example")
    assert 2 == other.returncode
    assert "other.home.example" not in {name for name, *_ in machine.name_server.asked}


def test_nothing_found(machine: Machine, tmp_path: Path) -> None:
    """Nor is a lookup a denial that found nothing; what apt makes of a name never is one."""
    policy = tmp_path / "policy.toml"
    command = ("--", "sh", "-c", APT, str(tmp_path))
    first = machine.exec("--learn", str(policy), *command)
    assert (0, f"sidecar exec: learned 2 rules into {policy}\n") == (first.returncode, first.stderr)
    services = "_http._tcp.one.example.com"
    assert services in {name for name, *_ in machine.name_server.asked}
    learned = [each.text for each in load_file(str(policy)).policy.allow]
    assert ["gone.example.com:53", "one.example.com:80"] == learned
    machine.name_server.asked.clear()
    second = machine.exec("--policy", str(policy), "--fail-on-deny", *command)
    assert (0, "") == (second.returncode, second.stderr)
    assert services not in {name for name, *_ in machine.name_server.asked}
    by_hand = ("--default", "deny", "--allow", "one.example.com:80", "--fail-on-deny")
    third = machine.exec(*by_hand, "--allow", "gone.example.com:53", *command)
    assert (0, "") == (third.returncode, third.stderr)


def test_again(machine: Machine, tmp_path: Path) -> None:
    """The same run teaches nothing new: the file stays as it is."""
    policy = tmp_path / "policy.toml"
    machine.exec("--learn", str(policy), "--", "sh", "-c", BUILD)
    text = policy.read_text()
    again = machine.exec("--learn", str(policy), "--", "sh", "-c", BUILD)
    assert f"sidecar exec: {policy} has every rule that this run needs\n" == again.stderr
    assert text == policy.read_text()


def test_added(machine: Machine, tmp_path: Path) -> None:
    """Another run adds to the file, under the policy that the options say."""
    policy = tmp_path / "policy.toml"
    policy.write_text('# ours\n[policy]\ndefault = "deny"\nallow = ["a.example"] # first\n')
    words = ("--policy", str(policy), "--learn", str(policy), "--", "sh", "-c", PRIVATE_BUILD)
    refused = machine.exec(*words)
    assert refused.returncode
    assert "what is denied is not learned" in refused.stderr
    allowed = machine.exec("--allow", "private", *words)
    assert 0 == allowed.returncode
    expected = '# ours\n[policy]\ndefault = "deny"\nallow = ["a.example",\n'
    assert expected == policy.read_text().partition("    ")[0]
    found = load_file(str(policy)).policy
    assert ["a.example", f"db.corp.example:{PORT}"] == [each.text for each in found.allow]
    assert ["db.corp.example"] == [each.text for each in found.private_names]
    second = machine.exec(
        *("--policy", str(policy), "--fail-on-deny", "--", "sh", "-c", PRIVATE_BUILD)
    )
    assert (0, "") == (second.returncode, second.stderr)


def test_made_meanwhile(machine: Machine, tmp_path: Path) -> None:
    """A file that comes to be while the command runs is added to; also by several at once."""
    policy = tmp_path / "policy.toml"
    made = f"test -e {policy} || printf '[policy]\\ndefault = \"deny\"\\n' > {policy}"
    fetch = f"curl -sS -o /dev/null --max-time 10 http://$0.example.com:{PORT}/"
    words = ("--learn", str(policy), "--", "sh", "-c", f"{made}; {fetch}")
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(machine.exec, *words, name) for name in ("one", "two", "three")]
        done = [run.result() for run in runs]
    learned = f"sidecar exec: learned 1 rule into {policy}\n"
    assert [(0, learned)] * 3 == [(each.returncode, each.stderr) for each in done]
    assert 3 == len(load_file(str(policy)).policy.allow)


@pytest.mark.parametrize(
    ("text", "expected"), [("[policy", "not valid TOML"), (None, "there is no directory")]
)
def test_unfit(machine: Machine, tmp_path: Path, text: str | None, expected: str) -> None:
    """If a file can't be learned into, the command is not run."""
    policy = tmp_path / "none" / "policy.toml"
    if text is not None:
        policy = tmp_path / "policy.toml"
        policy.write_text(text)
    done = machine.exec("--learn", str(policy), "--", "touch", str(tmp_path / "ran"))
    assert 125 == done.returncode
    assert expected in done.stderr
    assert not (tmp_path / "ran").exists()

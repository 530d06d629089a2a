"""`sidecar rules`: what its options mean, and what it says to those it can't use."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.linux.netfilter import iptables, nft
from sidecar.linux.netfilter.model import Mode, PortRange, RuleSet


def _shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["rules", "show", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Without options: redirect mode, both directions, nft text."""
    assert _shown(capsys) == nft.render(RuleSet())


def test_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option finds its place in the rule set."""
    arguments = (
        *("--mode", "tproxy", "--outbound-port", "4140", "--inbound-port", "4143"),
        *("--exclude-uid", "1337", "--exclude-uid", "root", "--exclude-gid", "root"),
        *("--exclude-mark", "0x77", "--include-cidr", "10.0.0.0/8,2001:db8::/32"),
        *("--exclude-cidr", "10.1.0.0/16", "--exclude-cidr", "10.2.3.4"),
        *("--include-port", "80,443,8000-8999", "--exclude-port", "8443"),
        *("--exclude-inbound-port", "22", "--syn-only", "--forwarded"),
    )
    expected = RuleSet(
        mode=Mode.TPROXY,
        outbound_port=4140,
        inbound_port=4143,
        exclude_uids=(0, 1337),
        exclude_gids=(0,),
        exclude_mark=0x77,
        include_cidrs=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
        exclude_cidrs=(ip_network("10.1.0.0/16"), ip_network("10.2.3.4")),
        include_ports=(PortRange(80, 80), PortRange(443, 443), PortRange(8000, 8999)),
        exclude_ports=(PortRange(8443, 8443),),
        exclude_inbound_ports=(PortRange(22, 22),),
        syn_only=True,
        forwarded=True,
    )
    assert _shown(capsys, *arguments) == nft.render(expected)
    for name, version in (("iptables", 4), ("ip6tables", 6)):
        shown = _shown(capsys, *arguments, "--format", name)
        assert shown == iptables.render(expected, version)


@pytest.mark.parametrize(
    ("flag", "rules"),
    [
        ("--outbound-port", RuleSet(outbound_port=None)),
        ("--inbound-port", RuleSet(inbound_port=None)),
    ],
)
def test_one_direction_alone(capsys: pytest.CaptureFixture[str], flag: str, rules: RuleSet) -> None:
    """`none` leaves a direction alone."""
    assert _shown(capsys, flag, "none") == nft.render(rules)


def test_routing_is_in_comments(capsys: pytest.CaptureFixture[str]) -> None:
    """Where iptables' text is not all that is needed, the rest is there as commands."""
    four = _shown(capsys, "--mode", "tproxy", "--format", "iptables")
    assert "#   ip -4 rule add priority 1338 fwmark 0x53a lookup 1338\n" in four
    assert "#   ip -4 route add local default dev lo table 1338\n" in four
    assert "ip -6" not in four
    assert "ip -4" not in _shown(capsys, "--format", "iptables")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "magic"], "--mode: invalid choice: 'magic'"),
        (["--outbound-port", "0"], "--outbound-port: '0': not a port (write a number from 1"),
        (["--outbound-port", "+80"], "--outbound-port: '+80': not a port"),
        (["--inbound-port", "65536"], "--inbound-port: '65536': not a port"),
        (["--exclude-port", "80-"], "--exclude-port: '80-': '80-' is no port or range"),
        (["--exclude-port", "90-80"], "'90-80' is no port or range"),
        (["--include-port", "80,,81"], "'' is no port or range"),
        (["--include-cidr", "10.0.0.1/8"], "has bits beyond its prefix (write 10.0.0.0/8)"),
        (["--include-cidr", "10.1"], "'10.1' is no network (write 10.0.0.0/8"),
        (["--exclude-cidr", "10.0.0.0/255.0.0.0"], "is no network"),
        (["--exclude-cidr", "fe80::1%eth0"], "is no network"),
        (["--exclude-cidr", "::ffff:10.0.0.0/104"], "write the IPv4 network"),
        (["--exclude-uid", "no-such-user"], "--exclude-uid: 'no-such-user': no such user"),
        (["--exclude-uid", "4294967295"], "out of range"),
        (["--exclude-gid", "-1"], "--exclude-gid: "),
        (["--exclude-mark", "0"], "--exclude-mark: '0': not a mark"),
        (["--exclude-mark", "0x53a"], "a mark of intercepted packets"),
        (["--exclude-mark", "blue"], "not a mark (write a number from 0x1 to 0xffffffff)"),
        (["--outbound-port", "none", "--inbound-port", "none"], "neither outbound nor inbound"),
        (["--outbound-port", "9", "--inbound-port", "9"], "can't share port 9"),
        (["--outbound-port", "none", "--forwarded"], "forwarded connections go to the outbound"),
    ],
)
def test_bad_values(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """Exit status 2, and the flag, the value and what to write instead; nothing on stdout."""
    with pytest.raises(SystemExit) as exited:
        main(["rules", "show", *arguments])
    captured = capsys.readouterr()
    assert (exited.value.code, captured.out) == (2, "")
    assert said in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [["rules"], ["rules", "remove", "--wait", "-1"], ["rules", "remove", "--wait", "--now"]],
)
def test_bad_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Likewise for actions."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert capsys.readouterr().err


def test_the_reference_shows_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The listing in docs/reference/rules.md is the command's output."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "rules.md"
    text = page.read_text(encoding="utf-8")
    command = next(
        line for line in text.splitlines() if line.startswith("    sidecar rules show -")
    )
    listing = text.partition("```nft\n")[2].partition("```")[0]
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out == listing

"""`sidecar policy`: check a file's rules; say what they do with a connection, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.addresses import parse_authority, parse_ip
from sidecar.cli.exec import plan as exec_plan
from sidecar.cli.streams import complain
from sidecar.config import COMMAND_LINE, Verify, load, load_file
from sidecar.errors import AddressError, ConfigError
from sidecar.policy import Choice, Decision, Default, Outcome, Reason
from sidecar.policy.explain import matches_name, matching
from sidecar.policy.review import review

if TYPE_CHECKING:
    import argparse

    from sidecar.config import PolicyConfig
    from sidecar.policy import Rule

__all__ = ["add_arguments", "run"]

_VERIFICATION = {
    Verify.REDIAL: "redial: sidecar resolves the name, and dials its own answer if the "
    "client's address is not among them",
    Verify.CERTIFICATE: "certificate: the address must show a certificate that is valid for "
    "the name",
    Verify.OFF: "off: the client's word is taken for it",
}
_REASONS = {
    Reason.DEFAULT: "no rule decides",
    Reason.RULE: "an allow rule matches",
    Reason.DENIED_BY_RULE: "a deny rule matches, and deny beats allow",
    Reason.NO_NAME: "the client gives no name, and a rule for names could have decided",
    Reason.ECH: "the name may hide another",
    Reason.PRIVATE_ADDRESS: "the address is not public, and no address rule allows it",
    Reason.METADATA: "the address is a cloud's metadata service, and no address rule allows it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their options."""
    parser.description = f"{parser.description}. Nothing is resolved or dialled."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check", help="find errors, and rules that are probably not what was meant; exit 0 or 1"
    )
    check.add_argument("file", metavar="FILE", help="TOML, as for twistd sidecar --config")
    why = actions.add_parser("why", help="judge a connection; exit 0 if allowed, 1 if denied")
    why.add_argument("target", metavar="HOST:PORT", help="a name or an address, and a port")
    why.add_argument("--address", metavar="IP", help="where the name leads")
    why.add_argument("--policy", metavar="FILE", help="TOML, as for twistd sidecar --config")
    why.add_argument("--allow", metavar="RULE", action="append", default=[], help="one more rule")
    why.add_argument("--deny", metavar="RULE", action="append", default=[], help="one more rule")
    why.add_argument("--default", metavar="WHAT", help="allow, deny or public")
    why.add_argument(
        "--for",
        dest="whose",
        choices=["twistd", "exec"],
        default="twistd",
        help="which command judges; without a default it is allow, or exec's public (twistd)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the chosen action.

    Returns:
        0; 1 for a file with errors, or a connection that is denied; 2 where a connection
        can't be judged.
    """
    if arguments.action == "check":
        return _check(arguments.file)
    try:
        return _why(arguments)
    except ConfigError as error:
        complain(f"sidecar policy: {error}")
        return 2


def _check(path: str) -> int:
    bad_rules: list[ConfigError] = []
    try:
        config = load_file(path, bad_rules).policy
    except ConfigError as error:
        _report_errors([*bad_rules, error])
        return 1
    # Nothing is said of a default that the file leaves open.
    remarks = review(config.build(Default.DENY))
    for remark in remarks:
        print(_plain(f"warning: {remark}"))
    if bad_rules:
        _report_errors(bad_rules)
        return 1
    rules = len(config.allow) + len(config.deny)
    print(_plain(f"{path}: {_count(rules, 'rule')}, {_count(len(remarks), 'warning')}"))
    return 0


def _report_errors(errors: list[ConfigError]) -> None:
    for error in errors:
        complain(_plain(f"error: {error}"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _why(arguments: argparse.Namespace) -> int:
    try:
        target = parse_authority(arguments.target)
    except AddressError as error:
        raise ConfigError(COMMAND_LINE, "HOST:PORT", arguments.target, error.problem) from None
    address = None
    if arguments.address is not None:
        try:
            address = str(parse_ip(arguments.address))
        except AddressError as error:
            raise ConfigError(COMMAND_LINE, "--address", arguments.address, error.problem) from None
    config = load(
        arguments.policy,
        allow=arguments.allow,
        deny=arguments.deny,
        default=arguments.default,
    ).policy
    host = target.host if isinstance(target.host, str) else None
    if host is None:
        if address not in {None, str(target.host)}:
            raise ConfigError(
                COMMAND_LINE, "--address", address, f"{target.host} is another address"
            )
        address = str(target.host)
    for_exec = arguments.whose == "exec"
    inquiry = _Inquiry(config, host, address, target.port, for_exec=for_exec)
    for line in inquiry.report(str(target)):
        print(_plain(line))
    return 0 if inquiry.allowed else 1


class _Inquiry:
    """One question, judged and explained.

    Args:
        config: The policy.
        host: The name, if one is asked for.
        address: The address, if it is known; one of the two is.
        port: The port.
        for_exec: Whether `sidecar exec` judges.
    """

    def __init__(
        self,
        config: PolicyConfig,
        host: str | None,
        address: str | None,
        port: int,
        *,
        for_exec: bool = False,
    ) -> None:
        self._config = config
        self._for_exec = for_exec
        if for_exec:
            self._policy = config.build(exec_plan.DEFAULT, not_by_name=exec_plan.NOT_BY_NAME)
        else:
            self._policy = config.build()
        self._host = host
        self._address = address
        self._port = port
        self._conditions: list[str] = []
        self._decision = self._judge()
        self.allowed = self._decision.outcome is Outcome.ALLOW

    def _judge(self) -> Decision:
        if self._address is not None:
            return self._judge_address(self._address)
        assert self._host is not None  # noqa: S101 - one of the two is known
        decision = self._policy.judge_name(self._host, self._port)
        if decision.outcome is not Outcome.NEED_MORE:
            return decision
        return self._judge_any_address(self._host, decision)

    def _judge_address(self, address: str) -> Decision:
        policy, port = self._policy, self._port
        early = policy.judge(address, port, names_known=False)
        if early.outcome is not Outcome.NEED_MORE:
            return early
        if self._host is None:
            self._conditions.append(
                "judged as a TLS or HTTP client that gives no name; a name could change this"
            )
        elif policy.ech is Choice.DENY:
            self._conditions.append('the client must not use ECH (ech = "deny")')
        return policy.judge(address, port, host=self._host)

    def _judge_any_address(self, host: str, decision: Decision) -> Decision:
        """Judge a name whose address decides, by the address it probably has."""
        policy, port = self._policy, self._port
        denied = [rule for rule in policy.deny if not rule.is_for_names and rule.match(port)]
        allowed = [rule for rule in policy.allow if not rule.is_for_names and rule.match(port)]
        rule = decision.rule
        by_default = policy.default is not Default.DENY
        if rule is None and not by_default:
            return self._only_by_address(host, allowed)
        named = rule if rule is not None and rule.is_for_names else None
        by_name = named is not None and not by_default
        if by_name and policy.ech is Choice.DENY:
            self._conditions.append('the client must not use ECH (ech = "deny")')
        private = any(matches_name(each, host) for each in policy.private_names)
        if by_name and private:
            self._conditions.append("its address may be private (private_names)")
        elif named is not None and private:
            self._conditions.append(
                f"its address must be public, or verified to be the name's ({named.text})"
            )
        elif by_name or (rule is named and policy.default is Default.PUBLIC):
            self._conditions.append("its address must be public" + _or_match(allowed))
        if by_default and named is not None:
            rule = None
        if denied:
            self._conditions.append(f"its address must not match {_listed(denied)}")
        reason = Reason.DEFAULT if rule is None else Reason.RULE
        return Decision(Outcome.ALLOW, reason, rule, by_name=by_name)

    def _only_by_address(self, host: str, allowed: list[Rule]) -> Decision:
        self._conditions.append(f"allowed only at an address that matches {_listed(allowed)}")
        return Decision(Outcome.DENY, Reason.DEFAULT, hint=f"{host}:{self._port}")

    def report(self, target: str) -> list[str]:
        """The answer, its grounds, and every rule that matches."""
        decision = self._decision
        at = f" at {self._address}" if self._host is not None and self._address else ""
        lines = [f"{decision.outcome.value}  {target}{at}"]
        lines.append(f"reason: {decision.reason.value} ({_REASONS[decision.reason]})")
        if decision.rule is not None:
            lines.append(f"rule: {decision.rule_with_place}")
        if self.allowed and decision.by_name:
            lines.append(f"verify: {_VERIFICATION[self._config.verify]}")
        lines += [f"condition: {each}" for each in self._conditions]
        if decision.hint:
            lines.append(f"would be allowed by: {decision.hint}")
        return [*lines, *self._rules()]

    def _rules(self) -> list[str]:
        policy = self._policy
        lines = []
        for name, rules, hidden in (("deny", policy.deny, True), ("allow", policy.allow, False)):
            found = matching(
                rules, self._port, host=self._host, address=self._address, hidden=hidden
            )
            lines.append(f"{name}: {_count(len(rules), 'rule')} tried, {len(found)} matching")
            for rule in found:
                mark = "->" if rule is self._decision.rule else "  "
                lines.append(f"  {mark} {rule.text} ({rule.place})")
        return [*lines, f"default: {policy.default.value}{self._whose_default()}"]

    def _whose_default(self) -> str:
        if self._config.default is not None:
            return ""
        if self._for_exec:
            return " (sidecar exec's own)"
        return f" (twistd sidecar's own; sidecar exec's is {exec_plan.DEFAULT.value}: --for exec)"


def _or_match(rules: list[Rule]) -> str:
    return f", or match {_listed(rules)}" if rules else ""


_LISTED = 5


def _listed(rules: list[Rule]) -> str:
    """Name a few rules."""
    texts = [rule.text for rule in rules[:_LISTED]]
    if len(rules) > _LISTED:
        texts.append(f"{len(rules) - _LISTED} more")
    return " or ".join(texts)


def _plain(text: str) -> str:
    """Take everything out of a text that a terminal could act on."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )

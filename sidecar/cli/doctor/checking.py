"""Which checks there are, in which order, and how each is made."""

from __future__ import annotations

import os
import re
import time
from functools import partial
from typing import TYPE_CHECKING

from sidecar.cli.doctor import host, kernel
from sidecar.cli.doctor.findings import Check, Finding, Form, Result, State
from sidecar.cli.doctor.trial import Outcome, attempt, in_namespace
from sidecar.errors import NamespaceError
from sidecar.linux.namespaces import has_capabilities
from sidecar.linux.syscalls import PR_SET_DUMPABLE, prctl
from sidecar.sandbox.handover import Word
from sidecar.sandbox.starting import start
from sidecar.sandbox.users import enter_user_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["checks", "examine"]

_BOTH = (Form.EXEC, Form.TRANSPARENT)
_ANOTHER_KERNEL = "use a kernel that has it"
_NOBODY = 65534
# linux/capability.h
_CAP_SETUID, _CAP_SETGID = 7, 6
_MILLI = 1000


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which one needs the other."""
    six = partial(kernel.tproxy, 6)
    load = "modprobe -a {}".format
    return (
        Check("user namespaces", "exec without root", (Form.EXEC,), _user_namespace, False),
        *([_as_others()] if _may_become_others() else []),
        Check(
            "network namespaces",
            "exec and demo",
            (Form.EXEC,),
            _tried(kernel.network_namespace),
            False,
        ),
        Check(
            "mount namespaces",
            "exec: to hide name services' sockets, and to protect kernel settings from root",
            (),
            _tried(kernel.mount_namespace),
        ),
        Check(
            "pid namespaces",
            "exec: to hide the processes outside",
            (),
            _tried(kernel.pid_namespace),
        ),
        Check(
            "seccomp filters",
            "exec: to refuse other kinds of sockets",
            (Form.EXEC,),
            _tried(kernel.seccomp),
        ),
        Check(
            "TPROXY",
            "exec",
            (Form.EXEC,),
            _tried(partial(kernel.tproxy, 4), load("nft_tproxy")),
        ),
        Check("IPv6 TPROXY", "the same for IPv6", (), _tried(six, load("nft_tproxy"))),
        Check(
            "TPROXY rules",
            "rules --mode tproxy",
            (),
            _tried(partial(kernel.tproxy_of_others, 4), load("nft_tproxy nft_socket nft_fib_inet")),
        ),
        Check(
            "IP_TRANSPARENT",
            "listeners of rules --mode tproxy",
            (Form.EXEC,),
            _tried(kernel.transparent_socket),
        ),
        Check(
            "REDIRECT",
            "rules --mode redirect",
            (Form.TRANSPARENT,),
            _tried(partial(kernel.redirect, 4), load("nft_redir")),
        ),
        Check(
            "IPv6 REDIRECT",
            "the same for IPv6",
            (),
            _tried(partial(kernel.redirect, 6), load("nft_redir")),
        ),
        Check(
            "SO_ORIGINAL_DST",
            "listeners of rules --mode redirect",
            (Form.TRANSPARENT,),
            _tried(kernel.find_original_destination, load("nf_conntrack")),
        ),
        Check("SO_MARK", "rules, to know sidecar's own packets", (), _tried(kernel.mark)),
        Check(
            "socket diagnosis",
            "exec: to name the process of a connection",
            (),
            _tried(kernel.diagnose_sockets, load("inet_diag")),
        ),
        Check("sandbox", "exec", (Form.EXEC,), _outcome_of(_whole_sandbox)),
        Check("conntrack's table", "rules --mode redirect", (), host.conntrack_room, False),
        Check("privileges", "rules, TPROXY listeners", (), host.privileges, False),
        Check("splice", "speed", (), host.pipes, False),
        Check("descriptors", "many connections at once", (), host.descriptor_limits, False),
        Check("name server", "names", (), host.name_server, False),
    )


def examine(all_checks: tuple[Check, ...]) -> Iterator[Result]:
    """Make the checks, one after the other.

    Yields:
        What each found; those that need a namespace are not tried where there is none.
    """
    possible = True
    for check in all_checks:
        if check.in_namespace and not possible:
            yield Result(check, Finding(State.UNTRIED, "not tried: no namespace to try it in"))
            continue
        finding = check.look()
        if finding.state is not State.OK and check.name in {
            "user namespaces",
            "network namespaces",
        }:
            possible = False
        yield Result(check, finding)


def _tried(function: Callable[[], object], mend: str = _ANOTHER_KERNEL) -> Callable[[], Finding]:
    return _outcome_of(in_namespace(function), mend)


def _outcome_of(
    function: Callable[[], object], mend: str = _ANOTHER_KERNEL
) -> Callable[[], Finding]:
    def look() -> Finding:
        return _finding(attempt(function), mend)

    return look


def _finding(outcome: Outcome, mend: str) -> Finding:
    if outcome.problem is None:
        return Finding(State.OK, str(outcome.value))
    return Finding(State.NOT, outcome.problem, _command(outcome.mend or mend))


def _command(cure: str) -> str:
    """The one command in a text that says what to do, if it has one."""
    found = re.search(r"sysctl -w \S+", cure)
    return found[0] if found else cure


def _user_namespace() -> Finding:
    outcome = attempt(enter_user_namespace)
    if outcome.value is False:
        return Finding(State.OK, "none to be had; not needed with CAP_SYS_ADMIN")
    if outcome.problem is None:
        return Finding(State.OK, f"made one, as user {os.geteuid()}")
    return _finding(outcome, "run as root")


def _may_become_others() -> bool:
    return os.geteuid() == 0 and has_capabilities(_CAP_SETGID, _CAP_SETUID)


def _as_others() -> Check:
    return Check(
        "for other users",
        "exec by users who are not root",
        (),
        _outcome_of(_as_nobody, "run as root"),
        False,
    )


def _as_nobody() -> str:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # After a change of user /proc/self is root's, the files of the mapping included.
    prctl(PR_SET_DUMPABLE, 1)
    enter_user_namespace()
    return f"made one, as user {_NOBODY}"


def _whole_sandbox() -> str:
    """Make a sandbox as exec does, and run a command in it.

    Raises:
        NamespaceError: It can't be made, or the command did not end well.
    """
    began = time.monotonic()
    started = start(["true"])
    started.wait().close()
    milliseconds = (time.monotonic() - began) * _MILLI
    started.go()
    status = None
    while True:
        heard = started.channel.hear()
        if heard is None:
            break
        word, body = heard
        if word is Word.EXITED:
            status = os.waitstatus_to_exitcode(int.from_bytes(body, "little", signed=True))
    os.waitpid(started.pid, 0)
    if status != 0:
        raise NamespaceError(f"a command in it ended with {status}", "report this")
    without = f"; {'; '.join(started.missing)}" if started.missing else ""
    return f"made in {milliseconds:.0f} ms{without}"

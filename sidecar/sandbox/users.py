"""How a process gets a network namespace of its own, in which everybody is who they were.

It comes with a new user namespace (user_namespaces(7), network_namespaces(7)). A process
without privileges can map its own user and group there, and nobody else. Root may map all
that it sees itself, but only from outside: a helper, forked before, does that.
"""

from __future__ import annotations

import os

from sidecar.errors import NamespaceError
from sidecar.linux.namespaces import explain_refusal, has_capabilities
from sidecar.linux.syscalls import CLONE_NEWNET, CLONE_NEWUSER, unshare

__all__ = ["enter_network_namespace", "enter_user_namespace"]

# linux/capability.h
_CAP_SETGID, _CAP_SETUID = 6, 7
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_CAP_SETFCAP = 31


def enter_network_namespace() -> None:
    """Move this process into a new network namespace that it has all capabilities over.

    And into a new user namespace first; who may make the other without is spared it where
    there can be none. There is no way back. The process must have one thread.

    Raises:
        NamespaceError: Refused; says by what, and what to do. The process may have got
            half-way and is best ended.
    """
    enter_user_namespace()
    try:
        unshare(CLONE_NEWNET)
    except OSError as error:
        raise explain_refusal(error.errno or 0, user=False) from None


def enter_user_namespace() -> bool:
    """Move this process into a new user namespace, with all capabilities there.

    Returns:
        Whether it did: who may make the other namespaces without is spared it where
        there can be none.

    Raises:
        NamespaceError: Refused, and needed; says by what, and what to do.
    """
    uid, gid = os.geteuid(), os.getegid()
    spared = has_capabilities(_CAP_SYS_ADMIN, _CAP_NET_ADMIN)
    if uid == 0 and not has_capabilities(_CAP_SETFCAP):
        # Since Linux 5.12: root of the inner namespace could give files capabilities.
        if spared:
            return False
        raise NamespaceError(
            "root without CAP_SYS_ADMIN and CAP_NET_ADMIN needs CAP_SETFCAP to make namespaces",
            "run as another user, or with these capabilities",
        )
    helper = None
    if uid == 0 and has_capabilities(_CAP_SETUID, _CAP_SETGID):
        helper = _Helper(os.getpid())
    try:
        unshare(CLONE_NEWUSER)
    except OSError as error:
        if helper is not None:
            helper.cancel()
        if spared:
            return False
        raise explain_refusal(error.errno or 0, user=True) from None
    try:
        if helper is not None:
            helper.write()
        else:
            _write_own(uid, gid)
    except OSError as error:
        # AppArmor lets everybody make a user namespace, but without capabilities.
        raise explain_refusal(error.errno or 0, user=True) from None
    return True


class _Helper:
    """A process that stays outside and maps, when told to, whoever it sees.

    Args:
        target: Whose user namespace to write the mapping of.
    """

    def __init__(self, target: int) -> None:
        ready, self._begin = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._begin)
            number = 0
            if os.read(ready, 1):
                try:
                    _write_all(target)
                except OSError as error:
                    number = error.errno or 1
            os._exit(number)
        os.close(ready)

    def cancel(self) -> None:
        """End it."""
        os.close(self._begin)
        os.waitpid(self._pid, 0)

    def write(self) -> None:
        """Have it write, and wait for that.

        Raises:
            OSError: The kernel refused.
        """
        os.write(self._begin, b"!")
        os.close(self._begin)
        _, status = os.waitpid(self._pid, 0)
        number = os.waitstatus_to_exitcode(status)
        if number > 0:
            raise OSError(number, os.strerror(number))


def _write_own(uid: int, gid: int) -> None:
    # Whoever may leave groups could get at files that a group is barred from: the
    # kernel wants this given up first (user_namespaces(7)).
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _write_all(target: int) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:  # noqa: PTH123
            ranges = [line.split() for line in file]
        _write(
            f"/proc/{target}/{name}",
            "".join(f"{first} {first} {count}\n" for first, _, count in ranges),
        )


def _write(path: str, text: str) -> None:
    # One write: the kernel takes no second one.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

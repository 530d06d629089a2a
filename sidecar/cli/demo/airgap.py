"""A network of a command's own: a namespace with no way out, in which every address is here."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.cli.doctor.trial import enter_namespaces
from sidecar.linux.namespaces import explain_refusal, has_capabilities
from sidecar.linux.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    mount,
    unshare,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["enter", "use_name_server"]

# linux/capability.h
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_RESOLV_CONF = "/etc/resolv.conf"


def enter() -> None:
    """Move this process into a new network namespace, as the user that we are.

    Root stays who it is, without a user namespace: exec has different ways for it. The
    process must have one thread.

    Raises:
        NamespaceError: Refused; says by what, and what to do.
    """
    if not has_capabilities(_CAP_SYS_ADMIN, _CAP_NET_ADMIN):
        enter_namespaces()
        return
    try:
        unshare(CLONE_NEWNET)
    except OSError as error:
        raise explain_refusal(error.errno or 0, user=False) from None


def use_name_server(directory: Path, address: str) -> bool:
    """Have programs here ask one name server; where that can't be, they ask the host's.

    Which is an address like any other: what is sent there stays here.

    Args:
        directory: A file is made there.
        address: The name server's.

    Returns:
        Whether this process has a mount namespace now.
    """
    path = directory / "resolv.conf"
    path.write_text(f"nameserver {address}\n", encoding="ascii")
    try:
        unshare(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_SLAVE)
    except OSError:
        return False
    with suppress(OSError):
        mount(str(path), _RESOLV_CONF, None, MS_BIND)
    return True

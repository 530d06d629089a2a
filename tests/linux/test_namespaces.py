"""Refusals of namespaces that only other systems bring about, told by what procfs shows."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from sidecar.linux.namespaces import explain_refusal

if TYPE_CHECKING:
    from pathlib import Path


class TestExplained:
    """Refusals that only other systems bring about, told by what their procfs shows."""

    @pytest.fixture
    def proc(self, tmp_path: Path) -> Path:
        """A procfs of a system that restricts nothing."""
        (tmp_path / "sys/kernel").mkdir(parents=True)
        (tmp_path / "self").mkdir()
        (tmp_path / "self/status").write_text("Name:\tpython\nSeccomp:\t0\n")
        return tmp_path

    def test_apparmor(self, proc: Path) -> None:
        """Ubuntu's restriction is named, with the sysctl that lifts it."""
        (proc / "sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
        error = explain_refusal(errno.EPERM, user=True, proc=proc)
        assert (
            "kernel.apparmor_restrict_unprivileged_userns is 1, so only root may make namespaces"
            == error.cause
        )
        assert error.cure.endswith("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")

    def test_debian(self, proc: Path) -> None:
        """Likewise that of Debian's older kernels."""
        (proc / "sys/kernel/unprivileged_userns_clone").write_text("0\n")
        error = explain_refusal(errno.EPERM, user=True, proc=proc)
        assert "kernel.unprivileged_userns_clone is 0" in error.cause
        assert error.cure.endswith("sysctl -w kernel.unprivileged_userns_clone=1")

    def test_lifted(self, proc: Path) -> None:
        """A restriction that isn't in force is not blamed."""
        (proc / "sys/kernel/unprivileged_userns_clone").write_text("1\n")
        (proc / "sys/kernel/apparmor_restrict_unprivileged_userns").write_text("0\n")
        error = explain_refusal(errno.EPERM, user=True, proc=proc)
        assert "the kernel forbids this user to make namespaces" == error.cause

    @pytest.mark.parametrize(
        ("number", "user", "cause"),
        [
            (errno.EINVAL, True, "this kernel has no user namespaces (CONFIG_USER_NS)"),
            (errno.ENOSYS, False, "this kernel has no network namespaces (CONFIG_NET_NS)"),
            (errno.ENOMEM, False, "the kernel refused a network namespace: "),
            (errno.EUSERS, True, "the limit of user namespaces (user.max_user_namespaces)"),
        ],
    )
    def test_other_errors(self, proc: Path, number: int, user: bool, cause: str) -> None:
        """Every errno has a cause in words, and a cure."""
        error = explain_refusal(number, user=user, proc=proc)
        assert error.cause.startswith(cause)
        assert "" != error.cure
        assert f"{error.cause}; {error.cure}" == str(error)
        assert "\n" not in str(error)

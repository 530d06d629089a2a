"""Names shown by certificates (``verify = "certificate"``): imported only where asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.names.certificates import trust
from sidecar.names.identity import CertificateProber
from sidecar.names.verifying import Certificate

if TYPE_CHECKING:
    from sidecar.config import PolicyConfig
    from sidecar.runtime import Runtime

__all__ = ["certificates"]


def certificates(policy: PolicyConfig, runtime: Runtime) -> Certificate:
    """Make the verifier.

    Args:
        policy: Names the file of authorities, or none.
        runtime: Shared by all.

    Raises:
        TrustError: The file can't be used.
    """
    context = trust(policy.ca_file)
    return Certificate(CertificateProber(runtime.reactor, runtime.poller, runtime.dialer, context))

"""sidecar: an interception proxy for Twisted.

Importing this package does nothing. Start from `sidecar.endpoints` (where
connections come from), `sidecar.protocols` (what is done with them) or the two
composition roots, `sidecar.tap` (``twistd sidecar``) and `sidecar.cli`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"

"""What isn't HTTP, but is to servers that look less closely than the RFCs?"""

from __future__ import annotations

import re

__all__ = ["is_nearly_http"]

# Servers leave out blanks at the beginning, take others for the one space behind the method
# (RFC 9112 §2.2, §3), and read fields also behind a request line without a version.
is_nearly_http = re.compile(
    rb"[\t-\r\x1c-\x20\x85\xa0]"
    rb"|[A-Za-z]{3,32}[\t\x0b-\r\x1c-\x1f\x85\xa0]"
    rb"|[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} +(?:/|https?://)"
    rb"|[^\n]{0,65536}HTTP/",
    re.IGNORECASE,
).match
"""Looks at a client's first bytes, which are neither TLS nor HTTP."""

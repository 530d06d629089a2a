"""Requests that two readers could take for different ones: how they are framed, and what they hide.

CASES §5, M1 to M4, M7, M8 and M10. Each is named after what it was found in or what it
tries; the status is what that section asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHUNKS", "FRAMINGS", "HEADS", "HIDDEN", "LINES", "Framing", "bodies"]

# A second request, as an origin takes it and as a proxy does. The proxy may take it for
# one, where it is behind a request that is whole; then it is denied like any other.
HIDDEN = (
    b"GET /smuggled/%(serial)d HTTP/1.1\r\nHost: denied.test\r\n\r\n",
    b"GET http://denied.test:%(port)d/smuggled/%(serial)d HTTP/1.1\r\nHost: denied.test\r\n\r\n",
)
_CHUNKED = b"Transfer-Encoding: chunked\r\n"


@dataclass(frozen=True)
class Framing:
    """Field lines that say where a request ends, and what must come of them.

    Attributes:
        name: Of the test.
        fields: With `%(n)d`, `%(n)x` in place of the number of bytes that follow.
        status: What the client must be told.
        version: Of HTTP.
    """

    name: str
    fields: bytes
    status: int = 400
    version: bytes = b"1.1"


def _lengths() -> list[Framing]:
    """M1: lengths that are none, or too many."""
    values = {
        "plus": b"+%(n)d",
        "minus": b"-%(n)d",
        "hex": b"0x%(n)x",
        "octal": b"0o%(n)d",
        "underscore": b"%(n)d_0",
        "float": b"%(n)d.0",
        "exponent": b"%(n)de0",
        "list": b"%(n)d,%(n)d",
        "list-blank": b"%(n)d, %(n)d",
        "list-zero": b"0, %(n)d",
        "list-open": b"%(n)d,",
        "two-words": b"%(n)d %(n)d",
        "word-behind": b"%(n)d x",
        "semicolon": b"%(n)d;",
        "quoted": b'"%(n)d"',
        "vt-before": b"\x0b%(n)d",
        "ff-before": b"\x0c%(n)d",
        "vt-behind": b"%(n)d\x0b",
        "nul-before": b"\x00%(n)d",
        "nul-behind": b"%(n)d\x00",
        "nbsp": b"%(n)d\xa0",
        "cr-behind": b"%(n)d\r",
        "arabic": "\u0665".encode(),
        "fullwidth": "\uff15".encode(),
        "empty": b"",
        "blank": b"   ",
        "nan": b"nan",
        "2-63": b"9223372036854775808",
        "2-64": b"18446744073709551616",
        "2-64-plus": b"184467440737095516%(n)d",
        "2-32-long": b"0000000000000000000000000%(n)d",
        "folded": b"\r\n %(n)d",
        "folded-behind": b"%(n)d\r\n 0",
    }
    found = [
        Framing(f"cl-{name}", b"Content-Length: %b\r\n" % value) for name, value in values.items()
    ]
    length = b"Content-Length: %(n)d\r\n"
    found += [
        Framing("cl-twice", length * 2),
        Framing("cl-twice-spelt-otherwise", length + b"content-length: 0%(n)d\r\n"),
        Framing("cl-then-zero", length + b"Content-Length: 0\r\n"),
        Framing("zero-then-cl", b"Content-Length: 0\r\n" + length),
        Framing("cl-then-empty", length + b"Content-Length:\r\n"),
        Framing("cl-blank-before-colon", b"Content-Length : %(n)d\r\n"),
        Framing("cl-tab-before-colon", b"Content-Length\t: %(n)d\r\n"),
        Framing("cl-vt-before-colon", b"Content-Length\x0b: %(n)d\r\n"),
        Framing("cl-nul-in-name", b"Content-\x00Length: %(n)d\r\n"),
        Framing("cl-nul-before", b"\x00Content-Length: %(n)d\r\n"),
        Framing("cl-blank-before", b" Content-Length: %(n)d\r\n"),
        Framing("cl-folded-into", b"X: 1\r\n Content-Length: %(n)d\r\n"),
        Framing("cl-behind-lf", b"X: 1\nContent-Length: %(n)d\r\n"),
        Framing("cl-behind-cr", b"X: 1\rContent-Length: %(n)d\r\n"),
        Framing("cl-behind-crcr", b"X: 1\r\rContent-Length: %(n)d\r\n"),
        Framing("cl-8bit-name", b"Content-Length\xa0: %(n)d\r\n"),
        Framing("cl-no-colon", b"Content-Length %(n)d\r\n"),
        # haproxy CVE-2021-40346: a name of more than 255 bytes.
        Framing("cl-long-name", b"Content-Length0" + b"a" * 255 + b":\r\n" + length * 2),
        # haproxy CVE-2023-25725: an empty name hides what follows.
        Framing("cl-behind-empty-name", b": \r\n" + length),
    ]
    return found


def _codings() -> list[Framing]:
    """M2: transfer codings that not everybody would take for chunked, or for none."""
    values = {
        "x": (b" xchunked", 400),
        "behind": (b" chunkedx", 400),
        "identity": (b" identity", 400),
        "chunked-identity": (b" chunked, identity", 400),
        "identity-chunked": (b" identity, chunked", 501),
        "gzip-chunked": (b" gzip, chunked", 501),
        "chunked-chunked": (b" chunked, chunked", 400),
        "chunked-gzip": (b" chunked, gzip", 400),
        "open-list": (b" chunked,", 400),
        "open-list-before": (b" ,chunked", 400),
        "parameter": (b" chunked;q=1", 400),
        "semicolon": (b" chunked;", 400),
        "quoted": (b' "chunked"', 400),
        "quoted-singly": (b" 'chunked'", 400),
        "vt": (b" \x0bchunked", 400),
        "vt-only": (b"\x0bchunked", 400),
        "ff": (b" \x0cchunked", 400),
        "vt-behind": (b" chunked\x0b", 400),
        "nul": (b" \x00chunked", 400),
        "nul-behind": (b" chunked\x00", 400),
        "del": (b" chunked\x7f", 400),
        "8bit": (b" \xffchunked", 400),
        "nbsp": (b"\xa0chunked", 400),
        "two-words": (b" chunked x", 400),
        "in-two": (b" chun ked", 400),
        "dotted": (" chunKed".replace("K", "\u212a").encode(), 400),
        "empty": (b"", 400),
        "blank": (b"   ", 400),
        "folded": (b"\r\n chunked", 400),
        "folded-tab": (b"\r\n\tchunked", 400),
        "folded-behind": (b" chunked\r\n x", 400),
        "behind-lf": (b"\n chunked", 400),
        "cr-behind": (b" chunked\r", 400),
        "url": (b" chunked%0d%0a".replace(b"%", b"%%"), 400),
    }
    alone = [
        Framing(f"te-{name}", b"Transfer-Encoding:%b\r\n" % value, status)
        for name, (value, status) in values.items()
    ]
    alone += [
        Framing("te-twice", _CHUNKED * 2),
        Framing("te-then-identity", _CHUNKED + b"Transfer-Encoding: identity\r\n"),
        Framing("te-then-empty", _CHUNKED + b"Transfer-Encoding:\r\n"),
        Framing("te-behind-identity", b"Transfer-Encoding: identity\r\n" + _CHUNKED),
        Framing("te-twice-apart", _CHUNKED + b"X: 1\r\ntransfer-encoding: cow\r\n"),
        Framing("te-blank-before-colon", b"Transfer-Encoding : chunked\r\n"),
        Framing("te-tab-before-colon", b"Transfer-Encoding\t: chunked\r\n"),
        Framing("te-vt-before-colon", b"Transfer-Encoding\x0b: chunked\r\n"),
        Framing("te-nul-in-name", b"Transfer-\x00Encoding: chunked\r\n"),
        Framing("te-8bit-name", b"Transfer-Encoding\xa0: chunked\r\n"),
        Framing("te-blank-before", b" Transfer-Encoding: chunked\r\n"),
        Framing("te-folded-into", b"X: 1\r\n Transfer-Encoding: chunked\r\n"),
        Framing("te-behind-lf", b"X: 1\nTransfer-Encoding: chunked\r\n"),
        Framing("te-behind-cr", b"X: 1\rTransfer-Encoding: chunked\r\n"),
        Framing("te-behind-crcr", b"X: 1\r\r\nTransfer-Encoding: chunked\r\n"),
        Framing("te-in-two-lines", b"Transfer-\r\nEncoding: chunked\r\n"),
        Framing("te-behind-nothing", b": 1\r\nTransfer-Encoding: chunked\r\n"),
        Framing("te-no-colon", b"Transfer-Encoding chunked\r\n"),
        Framing("te-old", _CHUNKED, version=b"1.0"),
        Framing("te-old-kept", _CHUNKED + b"Connection: keep-alive\r\n", version=b"1.0"),
    ]
    length = b"Content-Length: %(n)d\r\n"
    both = [
        Framing(f"{each.name}-{where}", fields, 400, each.version)
        for each in [Framing("te", _CHUNKED), *alone]
        for where, fields in (("cl", each.fields + length), ("behind-cl", length + each.fields))
    ]
    return alone + both


FRAMINGS = [*_lengths(), *_codings()]

# M3: (name, what stands in place of chunks). Behind it comes the hidden request.
CHUNKS: list[tuple[str, bytes]] = [
    ("minus", b"-1\r\n"),
    ("plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("hex", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
    ("blank", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("blank-before", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("tab", b"5\t\r\nhello\r\n0\r\n\r\n"),
    ("vt", b"\x0b5\r\nhello\r\n0\r\n\r\n"),
    ("nul", b"5\x00\r\nhello\r\n0\r\n\r\n"),
    ("none", b"\r\nhello\r\n0\r\n\r\n"),
    ("no-digit", b"g\r\nhello\r\n0\r\n\r\n"),
    ("overflow-64", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("overflow-32", b"1000000000000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("largest", b"ffffffffffffffff1\r\n"),
    ("long", b"0" * 20_000 + b"5\r\nhello\r\n0\r\n\r\n"),
    ("lf", b"5\nhello\r\n0\r\n\r\n"),
    ("cr", b"5\rhello\r\n0\r\n\r\n"),
    ("lf-behind-data", b"5\r\nhello\n0\r\n\r\n"),
    ("cr-behind-data", b"5\r\nhello\r0\r\n\r\n"),
    ("nothing-behind-data", b"5\r\nhello0\r\n\r\n"),
    ("two-more-behind-data", b"5\r\nhelloXX0\r\n\r\n"),
    ("extension-lf", b"5;ext\nhello\r\n0\r\n\r\n"),
    ("extension-cr", b"5;ext\rx\r\nhello\r\n0\r\n\r\n"),
    ("extension-nul", b"5;ext\x00\r\nhello\r\n0\r\n\r\n"),
    ("extension-lf-quoted", b'5;a="\n"\r\nhello\r\n0\r\n\r\n'),
    ("no-semicolon", b"5 ext\r\nhello\r\n0\r\n\r\n"),
    ("last-lf", b"0\n\n"),
    ("last-lf-only", b"0\n"),
    ("last-crlf-lf", b"0\r\n\n"),
    ("last-cr", b"0\r\r\n"),
    ("last-x", b"0\r\nX\r\n\r\n"),
    ("trailer-length", b"0\r\nContent-Length: 50\r\n\r\n"),
    ("trailer-coding", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("trailer-host", b"0\r\nHost: denied.test\r\n\r\n"),
    ("trailer-blank", b"0\r\nX : 1\r\n\r\n"),
    ("trailer-folded", b"0\r\nX: 1\r\n 2\r\n\r\n"),
    ("trailer-lf", b"0\r\nX: 1\n\r\n"),
    ("trailer-nul", b"0\r\nX: \x00\r\n\r\n"),
]

# M4, M8, M11: (name, field lines, status). Nothing to do with lengths.
HEADS: list[tuple[str, bytes, int]] = [
    ("blank-before-colon", b"X : 1\r\n", 400),
    ("empty-name", b": 1\r\n", 400),
    ("no-colon", b"X\r\n", 400),
    ("folded", b"X: 1\r\n 2\r\n", 400),
    ("folded-first", b" X: 1\r\n", 400),
    ("nul", b"X: \x00\r\n", 400),
    ("nul-in-name", b"X\x00: 1\r\n", 400),
    ("cr", b"X: 1\rY: 2\r\n", 400),
    ("cr-only-end", b"X: 1\r\r\n", 400),
    ("lf", b"X: 1\nY: 2\r\n", 400),
    ("lf-lf", b"X: 1\n\nGET /smuggled/%(serial)d HTTP/1.1\r\nHost: denied.test\r\n", 400),
    ("cr-cr", b"X: 1\r\rGET /smuggled/%(serial)d HTTP/1.1\r\nHost: denied.test\r\n", 400),
    ("two-hosts", b"Host: denied.test\r\n", 400),
    ("two-hosts-case", b"hOST: denied.test\r\n", 400),
    ("host-folded", b"X: 1\r\n Host: denied.test\r\n", 400),
    ("host-blank", b"Host : denied.test\r\n", 400),
    ("many", b"X: 1\r\n" * 500, 431),
    ("large", b"X: " + b"x" * 70_000 + b"\r\n", 431),
    ("large-name", b"X" * 70_000 + b": 1\r\n", 431),
    ("expect", b"Expect: 200-ok\r\n", 417),
]

# M4, M8, M10: (name, all of a head, status).
LINES: list[tuple[str, bytes, int]] = [
    ("blank-lines", b"\r\n\r\n\r\nGET %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("lf-lines", b"\n\nGET %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("two-blanks", b"GET  %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("blank-behind", b"GET %(url)b HTTP/1.1 \r\nHost: %(host)b\r\n\r\n", 400),
    ("tab", b"GET\t%(url)b\tHTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("blank-in-url", b"GET %(url)b /x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("two-versions", b"GET %(url)b HTTP/1.1 HTTP/1.0\r\nHost: %(host)b\r\n\r\n", 400),
    ("lf-only", b"GET %(url)b HTTP/1.1\nHost: %(host)b\n\n", 400),
    ("cr-in-url", b"GET %(url)b\rX HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("nul-in-url", b"GET %(url)b\x00 HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("fragment", b"GET %(url)b#f HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("no-version", b"GET %(url)b\r\n\r\n", 400),
    ("small-version", b"GET %(url)b http/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("long-version", b"GET %(url)b HTTP/1.10\r\nHost: %(host)b\r\n\r\n", 400),
    ("zero-version", b"GET %(url)b HTTP/01.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("version-2", b"GET %(url)b HTTP/2.0\r\nHost: %(host)b\r\n\r\n", 505),
    ("version-0", b"GET %(url)b HTTP/0.9\r\nHost: %(host)b\r\n\r\n", 505),
    ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("method-quoted", b'"GET" %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n', 400),
    ("method-blank", b" GET %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("method-long", b"G" * 33 + b" %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 501),
    ("no-host", b"GET %(url)b HTTP/1.1\r\n\r\n", 400),
    ("empty-host", b"GET %(url)b HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ("bad-host", b"GET %(url)b HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("host-list", b"GET %(url)b HTTP/1.1\r\nHost: %(host)b, denied.test\r\n\r\n", 400),
    ("origin-form", b"GET /judged/%(serial)d HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("asterisk-get", b"GET * HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("authority-get", b"GET %(host)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("two-slashes", b"GET //%(host)b/x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("no-slashes", b"GET http:%(host)b/x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("no-authority", b"GET http:///x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("user", b"GET http://u@%(host)b/x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("https", b"GET https://%(host)b/x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 501),
    ("ftp", b"GET ftp://%(host)b/x HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 501),
    ("connect-path", b"CONNECT / HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("connect-no-port", b"CONNECT nginx.test HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    ("connect-url", b"CONNECT %(url)b HTTP/1.1\r\nHost: %(host)b\r\n\r\n", 400),
    (
        "connect-lf",
        b"CONNECT %(host)b\nX: 1 HTTP/1.1\r\nHost: %(host)b\r\n\r\n",
        400,
    ),
    (
        "connect-encoded",
        b"CONNECT %(host)b%%0d%%0aX:1 HTTP/1.1\r\nHost: %(host)b\r\n\r\n",
        400,
    ),
    (
        "connect-length",
        b"CONNECT %(host)b HTTP/1.1\r\nHost: %(host)b\r\nContent-Length: 50\r\n\r\n",
        400,
    ),
    (
        "connect-chunked",
        b"CONNECT %(host)b HTTP/1.1\r\nHost: %(host)b\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
]


def bodies(hidden: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Hide a request in all places that a body has.

    Returns:
        By name: what follows the head up to where Content-Length is to end, and the rest.
    """
    return {
        # By length all is a body; by chunks the last one is over before it.
        "behind-the-last-chunk": (b"0\r\n\r\n" + hidden, b""),
        # By chunks all is a body; by length it is over after the first line.
        "in-a-chunk": (b"%x\r\n" % len(hidden), hidden + b"\r\n0\r\n\r\n"),
        # Both are over: what follows is another request.
        "behind-both": (b"0\r\n\r\n", hidden),
        # As if there were no body.
        "at-once": (hidden, b""),
        # In trailers, which some don't read.
        "in-trailers": (b"0\r\n", hidden),
        # Where only a reader that takes LF for the end of a chunk's line finds it.
        "in-an-extension": (b"3;\n" + hidden[:3] + b"\r\n0\r\n\r\n", hidden),
    }

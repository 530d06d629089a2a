from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turning import Turning, turning
from twisted.cred.checkers import ANONYMOUS, FilePasswordDB, ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from sidecar.errors import CheckerError
from sidecar.protocols.http import auth
from sidecar.protocols.http.access import Access
from sidecar.protocols.http.auth import MAX_VALUE_BYTES, Authenticator, make_authenticator
from sidecar.protocols.http.workers import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from twisted.logger import ILogObserver

# alice, sesame.
RIGHT = b"Basic YWxpY2U6c2VzYW1l"


def basic(text: str | bytes, scheme: bytes = b"Basic ") -> bytes:
    """The header's value."""
    return scheme + b64encode(text.encode() if isinstance(text, str) else text)


def fields(*values: bytes, name: bytes = b"Proxy-Authorization") -> list[tuple[bytes, bytes]]:
    """A request's fields."""
    return [(b"Host", b"a.example"), *((name, value) for value in values), (b"Accept", b"*/*")]


@implementer(ICredentialsChecker)
class Checker:
    """Answers as it is told, and remembers whom it was asked for."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: Callable[[Any], object]) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def requestAvatarId(self, credentials: IUsernamePassword) -> Any:
        self.asked.append(credentials)
        return self.answer(credentials)


def refuse(_: object) -> None:
    raise UnauthorizedLogin


def raises(error: Exception) -> Callable[[object], None]:
    def answer(_: object) -> None:
        raise error

    return answer


def knows(credentials: Any) -> bytes:
    if (b"alice", b"sesame") == (credentials.username, credentials.password):
        return b"alice"
    raise UnauthorizedLogin


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """All that is logged, with all its values."""
    found: list[str] = []

    def observe(event: Any) -> None:
        found.append(repr(event) + str(event.get("log_failure")))

    globalLogPublisher.addObserver(cast("ILogObserver", observe))
    yield found
    globalLogPublisher.removeObserver(cast("ILogObserver", observe))


class TestHeader:
    @pytest.fixture(name="authenticator")
    def _authenticator(self, clock: Clock) -> Authenticator:
        return Authenticator([Checker(knows)], clock)

    @pytest.mark.parametrize(
        "value", [RIGHT, b"basic YWxpY2U6c2VzYW1l", b"BASIC   YWxpY2U6c2VzYW1l"]
    )
    @pytest.mark.parametrize("name", [b"Proxy-Authorization", b"proxy-authorization"])
    def test_right(self, authenticator: Authenticator, value: bytes, name: bytes) -> None:
        """The right password gets in, however scheme and name are written."""
        assert Access.GRANTED is authenticator.authenticate(fields(value, name=name))

    @pytest.mark.parametrize(
        "values",
        [
            (),
            (b"",),
            (RIGHT, RIGHT),
            (basic("alice:wrong"),),
            (basic("alice:"),),
            (basic(":sesame"),),
            (basic("alice"),),
            (basic(b"alice:sesame\xff"),),
            (basic("alice:sesame\0"),),
            (basic("alice:ses\name"),),
            (RIGHT.replace(b" ", b"\t"),),
            (RIGHT + b"=",),
            (RIGHT + b" ",),
            (RIGHT[:-1] + b"-",),
            (b"Bearer YWxpY2U6c2VzYW1l",),
            (b"YWxpY2U6c2VzYW1l",),
            (b"Basic" + b" " * MAX_VALUE_BYTES + RIGHT[6:],),
        ],
    )
    def test_wrong(self, authenticator: Authenticator, values: tuple[bytes, ...]) -> None:
        """None, two, a wrong one, and what isn't RFC 7617's form: all refused."""
        assert Access.REFUSED is authenticator.authenticate(fields(*values))

    def test_colon_in_password(self, clock: Clock) -> None:
        """A user name ends at the first colon; passwords may have some."""
        checker = Checker(lambda _: b"x")
        Authenticator([checker], clock).authenticate(fields(basic("a:b:c")))
        assert [(b"a", b"b:c")] == [(each.username, each.password) for each in checker.asked]

    @given(value=st.binary(max_size=200) | st.binary(max_size=100).map(basic))
    def test_any_bytes(self, value: bytes) -> None:
        """Whatever stands in the header is an answer, and only the right one is right."""
        found = Authenticator([Checker(knows)], Clock()).authenticate(fields(value))
        assert (found is Access.GRANTED) == (
            value[6:] == RIGHT[6:] and value[:6].lower() == b"basic "
        )

    def test_server_password(self, authenticator: Authenticator) -> None:
        """A password for the server is none for the proxy."""
        value = fields(RIGHT, name=b"Authorization")
        assert Access.REFUSED is authenticator.authenticate(value)


class TestChallenge:
    @pytest.mark.parametrize(
        ("realm", "expected"),
        [
            ("sidecar", b'Basic realm="sidecar", charset="UTF-8"'),
            ('a "b" \\c', b'Basic realm="a \\"b\\" \\\\c", charset="UTF-8"'),
        ],
    )
    def test_realm(self, clock: Clock, realm: str, expected: bytes) -> None:
        """The realm is a quoted string (RFC 9110 §5.6.4)."""
        assert expected == Authenticator([], clock, realm=realm).challenge

    @pytest.mark.parametrize("realm", ["", "a\r\nb", "caf\u00e9", "a\0"])
    def test_bad_realm(self, clock: Clock, realm: str) -> None:
        """What can't stand in a header is refused."""
        with pytest.raises(ValueError, match="realm"):
            Authenticator([], clock, realm=realm)


class TestCheckers:
    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            ([], Access.REFUSED),
            ([refuse], Access.REFUSED),
            ([refuse, knows], Access.GRANTED),
            ([knows, refuse], Access.GRANTED),
            ([lambda _: ANONYMOUS], Access.REFUSED),
            ([lambda _: None], Access.REFUSED),
            ([lambda _: "alice"], Access.GRANTED),
            ([raises(Busy())], Access.BUSY),
            ([raises(Busy()), knows], Access.GRANTED),
            ([raises(ValueError("sesame"))], Access.UNAVAILABLE),
            ([raises(ValueError("sesame")), knows], Access.GRANTED),
            ([raises(ValueError("sesame")), refuse], Access.UNAVAILABLE),
        ],
    )
    def test_any_of_them(
        self, clock: Clock, answers: list[Callable[[Any], object]], expected: Access
    ) -> None:
        """Who one checker knows gets in; one that fails lets nobody in, and stops no other."""
        found = Authenticator([Checker(each) for each in answers], clock)
        assert expected is found.authenticate(fields(RIGHT))

    def test_later(self, clock: Clock) -> None:
        """A checker may take its time; then all who wait are answered by one question."""
        answer: Deferred[bytes] = Deferred()
        checker = Checker(lambda _: answer)
        authenticator = Authenticator([checker], clock)
        asked = [authenticator.authenticate(fields(RIGHT)) for _ in range(3)]
        found: list[Access] = []
        for each in asked:
            assert isinstance(each, Deferred)
            each.addCallback(found.append)
        assert [] == found
        answer.callback(b"alice")
        assert [Access.GRANTED] * 3 == found
        assert 1 == len(checker.asked)
        assert Access.GRANTED is authenticator.authenticate(fields(RIGHT))
        assert ({}, []) == (authenticator._asked, clock.getDelayedCalls())

    def test_never(self, clock: Clock, logged: list[str]) -> None:
        """One that doesn't answer is given up, and reported."""
        authenticator = Authenticator([Checker(lambda _: Deferred())], clock)
        asked = authenticator.authenticate(fields(RIGHT))
        assert isinstance(asked, Deferred)
        found: list[Access] = []
        asked.addCallback(found.append)
        clock.advance(auth._DEADLINE)
        assert [Access.UNAVAILABLE] == found
        assert 1 == sum("passwords can't be checked" in each for each in logged)
        assert ({}, []) == (authenticator._asked, clock.getDelayedCalls())

    def test_cancelled(self, clock: Clock, logged: list[str]) -> None:
        """Whoever leaves leaves the others waiting; after the last one nothing is left."""
        gone: list[object] = []
        authenticator = Authenticator([Checker(lambda _: Deferred(gone.append))], clock)
        one, other = (authenticator.authenticate(fields(RIGHT)) for _ in range(2))
        assert isinstance(one, Deferred)
        assert isinstance(other, Deferred)
        ends: list[object] = []
        for each in (one, other):
            each.addErrback(lambda failure: ends.append(failure.type))
            assert [] == gone
            each.cancel()
        assert 1 == len(gone)
        assert [CancelledError] * 2 == ends
        assert ({}, [], []) == (authenticator._asked, clock.getDelayedCalls(), logged)

    def test_plain_comparison(self, tmp_path: Path, clock: Clock) -> None:
        """Checkers of Twisted's that compare by the credentials find the right password."""
        path = tmp_path / "plain"
        path.write_bytes(b"alice:sesame\n")
        authenticator = Authenticator([FilePasswordDB(str(path))], clock)
        assert Access.GRANTED is authenticator.authenticate(fields(RIGHT))
        assert Access.REFUSED is authenticator.authenticate(fields(basic("alice:wrong")))

    def test_credentials(self) -> None:
        """What checkers get compares text as well as bytes, and shows nothing."""
        credentials = auth._Credentials(b"alice", "f\u00fc".encode())
        assert verifyObject(IUsernamePassword, credentials)
        assert credentials.checkPassword("f\u00fc")
        assert credentials.checkPassword("f\u00fc".encode())
        assert not credentials.checkPassword("fu")
        assert "alice" not in repr(credentials)


class TestMemory:
    def test_right(self, clock: Clock) -> None:
        """A right password is asked for once, until its time is over."""
        checker = Checker(knows)
        authenticator = Authenticator([checker], clock, kept_seconds=60)
        for _ in range(3):
            assert Access.GRANTED is authenticator.authenticate(fields(RIGHT))
        assert 1 == len(checker.asked)
        clock.advance(60)
        assert Access.GRANTED is authenticator.authenticate(fields(RIGHT))
        assert 2 == len(checker.asked)

    def test_not_prolonged(self, clock: Clock) -> None:
        """Being asked for doesn't prolong it: a password that is taken away ends in time."""
        checker = Checker(knows)
        authenticator = Authenticator([checker], clock, kept_seconds=60)
        authenticator.authenticate(fields(RIGHT))
        clock.advance(59)
        authenticator.authenticate(fields(RIGHT))
        checker.answer = refuse
        clock.advance(1)
        assert Access.REFUSED is authenticator.authenticate(fields(RIGHT))

    def test_wrong(self, clock: Clock) -> None:
        """A wrong one is asked for every time: it may be right by now."""
        checker = Checker(refuse)
        authenticator = Authenticator([checker], clock)
        assert Access.REFUSED is authenticator.authenticate(fields(RIGHT))
        checker.answer = knows
        assert Access.GRANTED is authenticator.authenticate(fields(RIGHT))

    def test_forget(self, clock: Clock) -> None:
        """What was right can be forgotten, also while it is being found out."""
        answer: Deferred[bytes] = Deferred()
        checker = Checker(lambda _: answer)
        authenticator = Authenticator([checker], clock)
        authenticator.authenticate(fields(RIGHT))
        authenticator.forget()
        answer.callback(b"alice")
        checker.answer = refuse
        assert Access.REFUSED is authenticator.authenticate(fields(RIGHT))

    def test_bounded(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """So many are remembered, and no more."""
        monkeypatch.setattr(auth, "_KEPT", 3)
        authenticator = Authenticator([Checker(lambda _: b"x")], clock)
        for number in range(10):
            authenticator.authenticate(fields(basic(f"user{number}:x")))
        assert 3 == len(authenticator._recent)

    def test_no_password_is_kept(self, clock: Clock) -> None:
        """What is remembered has neither the password nor the header in it."""
        authenticator = Authenticator([Checker(knows)], clock)
        authenticator.authenticate(fields(RIGHT))
        kept = repr(authenticator._recent._kept)
        assert "sesame" not in kept
        assert RIGHT[6:].decode() not in kept


class TestLog:
    def test_no_password(self, clock: Clock, logged: list[str]) -> None:
        """A checker that fails is reported once a minute, without what it said."""
        authenticator = Authenticator([Checker(raises(ValueError("sesame", RIGHT)))], clock)
        for _ in range(5):
            authenticator.authenticate(fields(RIGHT))
        assert 1 == len(logged)
        assert "Checker" in logged[0]
        assert "ValueError" in logged[0]
        assert "sesame" not in logged[0]
        assert "YWxp" not in logged[0]
        clock.advance(auth._REPORT_INTERVAL)
        authenticator.authenticate(fields(RIGHT))
        assert 2 == len(logged)


class TestMake:
    @pytest.fixture(name="turned")
    def _turned(self) -> Iterator[Turning]:
        with turning() as made:
            yield made

    def test_of_strings(self, turned: Turning, tmp_path: Path) -> None:
        """Several strings make one authenticator; hashes are checked in a thread, once."""
        path = tmp_path / "htpasswd"
        path.write_bytes(b"bob:$2y$05$UAHJ/guYkbYcoF8Wf0ICM.FasDOBth1uvI6.1LDJ18K5ACuhZyBwC\n")
        texts = ["memory:alice:sesame", f"file:{path}"]
        authenticator = make_authenticator(texts, turned.reactor, turned.reactor)
        assert Access.GRANTED is authenticator.authenticate(fields(RIGHT))
        for text, expected in (("bob:wrong", Access.REFUSED), ("bob:sesame", Access.GRANTED)):
            asked = authenticator.authenticate(fields(basic(text)))
            assert isinstance(asked, Deferred)
            assert expected is turned.result(asked)
        assert Access.GRANTED is authenticator.authenticate(fields(basic("bob:sesame")))
        authenticator.close()

    def test_unusable(self, turned: Turning) -> None:
        """One that can't be used is an error."""
        with pytest.raises(CheckerError):
            make_authenticator(["memory:alice"], turned.reactor, turned.reactor)

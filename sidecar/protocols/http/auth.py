"""Who may use the proxy: Proxy-Authorization, Basic (RFC 7617), against `twisted.cred`.

Every request is checked, never a connection: one may carry many users' requests. What
was right a moment ago is remembered by a keyed hash of the header, so that a slow
password hash costs once a minute and not once a request. Passwords are neither kept
nor logged, nor are they in any error's text.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64decode
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import Unauthorized
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from zope.interface import implementer

from sidecar.names.sharing import Recent, Waiters
from sidecar.protocols.http.access import Access
from sidecar.protocols.http.checkers import make_checker
from sidecar.protocols.http.passwords import equal
from sidecar.protocols.http.workers import Busy, Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from twisted.cred.checkers import ICredentialsChecker
    from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
    from twisted.python.failure import Failure

__all__ = ["MAX_VALUE_BYTES", "Authenticator", "make_authenticator"]

MAX_VALUE_BYTES = 4096
"""How long the header's value may be; a user name and a password are a hundred bytes."""

# Seconds for which a right password is remembered, and one that is taken away still
# works.
_KEPT_SECONDS = 60.0
# How many are remembered, some 200 bytes each.
_KEPT = 4096
# Seconds that all checkers together have; a database or directory may be asked.
_DEADLINE = 10.0
# Seconds between two reports of a checker that fails.
_REPORT_INTERVAL = 60.0

_NAME = b"proxy-authorization"
# RFC 4648 §4: padded, and nothing but what belongs there.
_basic = re.compile(
    rb"basic +((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)", re.IGNORECASE
).fullmatch
_control = re.compile(rb"[\x00-\x1f\x7f]").search
_REALM_TEXT = re.compile(r"[ -~]+").fullmatch


@implementer(IUsernamePassword)
class _Credentials:
    """A user name and a password, for checkers.

    Those that hold plain passwords (``memory:``, Twisted's FilePasswordDB) leave the
    comparison to `checkPassword`. Those that compare hashes by themselves take a time
    that tells of the hash, which who guesses can't steer.
    """

    __slots__ = ("password", "username")

    def __init__(self, username: bytes, password: bytes) -> None:
        self.username = username
        self.password = password

    def checkPassword(self, password: bytes | str) -> bool:
        """Whether it is this password, in constant time."""
        if isinstance(password, str):
            password = password.encode("utf-8", "surrogateescape")
        return equal(self.password, password)

    def __repr__(self) -> str:
        return "<credentials>"


class Authenticator:
    """Says whether a request comes from somebody who may use the proxy.

    Args:
        checkers: Of IUsernamePassword; who one of them knows may. At least one.
        clock: For deadlines and ages.
        realm: What the password is for, shown to people; printable ASCII.
        kept_seconds: For how long a right password is remembered.
        workers: Closed with the authenticator.

    Attributes:
        challenge: The value of Proxy-Authenticate (RFC 7617 §2).

    Raises:
        ValueError: A realm that can't be written.
    """

    _log = Logger()

    def __init__(
        self,
        checkers: Sequence[ICredentialsChecker],
        clock: IReactorTime,
        *,
        realm: str = "sidecar",
        kept_seconds: float = _KEPT_SECONDS,
        workers: Workers | None = None,
    ) -> None:
        if not _REALM_TEXT(realm):
            raise ValueError("a realm is printable ASCII")
        escaped = realm.replace("\\", "\\\\").replace('"', '\\"')
        self.challenge = f'Basic realm="{escaped}", charset="UTF-8"'.encode("ascii")
        self._checkers = tuple(checkers)
        self._clock = clock
        self._workers = workers
        self._key = secrets.token_bytes(32)
        self._recent: Recent[bytes, Access] = Recent(clock, seconds=kept_seconds, size=_KEPT)
        self._asked: dict[bytes, Waiters[Access]] = {}
        self._report_after = 0.0

    def authenticate(self, fields: Iterable[tuple[bytes, bytes]]) -> Access | Deferred[Access]:
        """Check a request's credentials.

        Args:
            fields: All fields of its head, names as received.

        Returns:
            The answer, if it is known at once; else a Deferred, which fails only with
            CancelledError if it is cancelled: that gives up waiting.
        """
        value = None
        for name, content in fields:
            if len(name) == len(_NAME) and name.lower() == _NAME:
                if value is not None:
                    # Two that disagree could be two users.
                    return Access.REFUSED
                value = content
        if value is None or len(value) > MAX_VALUE_BYTES:
            return Access.REFUSED
        digest = blake2b(value, key=self._key, digest_size=32).digest()
        if self._recent.get(digest) is not None:
            return Access.GRANTED
        waiters = self._asked.get(digest)
        if waiters is not None:
            # A client opens its connections all at once.
            return waiters.join()
        credentials = _read(value)
        if credentials is None:
            return Access.REFUSED
        return self._ask(digest, credentials)

    def forget(self) -> None:
        """Check everybody anew from now on."""
        self._recent.clear()
        # What is being asked was asked of what was.
        self._key = secrets.token_bytes(32)

    def close(self) -> None:
        """Let go of threads."""
        if self._workers is not None:
            self._workers.close()

    def _ask(self, digest: bytes, credentials: _Credentials) -> Access | Deferred[Access]:
        asking = Deferred.fromCoroutine(self._check(credentials))
        asking.addTimeout(_DEADLINE, self._clock).addErrback(self._failed)
        waiters = self._asked[digest] = Waiters(asking.cancel)
        waiting = waiters.join()

        def answered(access: Access) -> None:
            del self._asked[digest]
            if access is Access.GRANTED:
                self._recent.keep(digest, access)
            waiters.answer(access)

        asking.addCallback(answered)
        if not waiting.called:
            return waiting
        found: list[Access] = []
        waiting.addCallback(found.append)
        return found[0]

    async def _check(self, credentials: _Credentials) -> Access:
        outcome = Access.REFUSED
        for checker in self._checkers:
            asked: Deferred[Any] = maybeDeferred(checker.requestAvatarId, credentials)
            try:
                avatar = await asked
            except Unauthorized:
                continue
            except Busy:
                outcome = Access.BUSY
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a plugin's: refused, which is safe
                self._report(checker, type(error))
                outcome = Access.UNAVAILABLE
            else:
                # ANONYMOUS is an empty tuple.
                if avatar:
                    return Access.GRANTED
        return outcome

    def _failed(self, failure: Failure) -> Access:
        # Cancelled: nobody waits any more.
        if failure.check(CancelledError) is None:
            self._report(self, failure.type)
        return Access.UNAVAILABLE

    def _report(self, checker: object, kind: type[BaseException] | None) -> None:
        now = self._clock.seconds()
        if now >= self._report_after:
            self._report_after = now + _REPORT_INTERVAL
            # Not its text, nor its traceback: either may have the password.
            self._log.error(
                "passwords can't be checked: {checker}: {error}",
                checker=type(checker).__name__,
                error=getattr(kind, "__name__", None),
            )


def make_authenticator(
    descriptions: Iterable[str],
    reactor: IReactorFromThreads,
    clock: IReactorTime,
    *,
    realm: str = "sidecar",
) -> Authenticator:
    """Make an authenticator of strcred strings.

    Args:
        descriptions: As `sidecar.protocols.http.checkers.make_checker` takes them.
        reactor: Takes the results of threads.
        clock: Usually the reactor.
        realm: What the password is for.

    Raises:
        CheckerError: One that can't be used.
    """
    workers = Workers(reactor)
    checkers = [make_checker(each, workers) for each in descriptions]
    return Authenticator(checkers, clock, realm=realm, workers=workers)


def _read(value: bytes) -> _Credentials | None:
    """Read the header's value (RFC 7617 §2); None if it isn't Basic's."""
    found = _basic(value)
    if found is None:
        return None
    text = b64decode(found[1])
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    user, colon, password = text.partition(b":")
    if not (user and colon and password) or _control(text):
        return None
    return _Credentials(user, password)

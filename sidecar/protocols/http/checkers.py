"""Which `twisted.cred` checker does a strcred string mean, and is it fit for use?

``file:`` is read by a reader of our own. Twisted's takes every line for a plain
password: a hash's own text would open the door that the password doesn't; and it reads
the whole file for every request.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import InvalidAuthType, findCheckerFactories, makeChecker
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sidecar.errors import CheckerError
from sidecar.protocols.http.passwords import fault, is_slow, matches

if TYPE_CHECKING:
    from sidecar.protocols.http.workers import Workers

__all__ = ["PasswordFile", "make_checker"]

# Bytes. A hundred thousand users are some 7 MB.
_FILE_SIZE_MAX = 16 * 1024 * 1024
# How many bad lines an error shows.
_SHOWN = 3


def make_checker(description: str, workers: Workers) -> ICredentialsChecker:
    """Make the checker that a strcred string describes.

    Args:
        description: As `twisted.cred.strcred.makeChecker`: ``file:PATH``,
            ``memory:USER:PASSWORD``, ``unix``, and what plugins add.
        workers: Run what takes long.

    Returns:
        A checker of IUsernamePassword, for credentials in bytes.

    Raises:
        CheckerError: It can't be used. Says why, without any password.
    """
    kind, _, argument = description.partition(":")
    if kind == "file":
        if not argument:
            raise CheckerError("expected file:PATH")
        return PasswordFile(argument, workers)
    if kind == "unix":
        _need_crypt()
    try:
        checker: Any = makeChecker(description)
    except InvalidAuthType:
        known = ", ".join(sorted({factory.authType for factory in findCheckerFactories()}))
        raise CheckerError(f"no checker is called {kind!r} (there are: {known})") from None
    except Exception as error:  # noqa: BLE001 - a plugin's; its text may have a password
        problem = "expected memory:USER:PASSWORD" if kind == "memory" else type(error).__name__
        raise CheckerError(f"{kind} can't be used: {problem}") from None
    if IUsernamePassword not in checker.credentialInterfaces:
        raise CheckerError(f"{kind} doesn't check user names and passwords")
    if kind == "unix":
        return _Threaded(checker, workers)
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        # Its plugin makes text of what the wire has as bytes, and finds nobody.
        checker.users = {_bytes(user): _bytes(word) for user, word in checker.users.items()}
        if not checker.users or b"" in checker.users or b"" in checker.users.values():
            raise CheckerError("expected memory:USER:PASSWORD, neither of them empty")
    found: ICredentialsChecker = checker
    return found


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _need_crypt() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import crypt  # noqa: F401
            import spwd  # noqa: F401
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise CheckerError(
            f"unix can't be used: Python {version} can't read the system's passwords; "
            "use file:PATH with htpasswd"
        ) from None


@implementer(ICredentialsChecker)
class PasswordFile:
    """Checks against a file of ``USER:PASSWORD`` lines, as ``htpasswd`` makes them.

    Empty lines and those that start with # are skipped. A file that changes is read
    again when somebody logs in; lines that can't be used let nobody in then, nor does
    a file that can't be read.

    Args:
        path: The file.
        workers: Run what takes long.

    Raises:
        CheckerError: The file can't be read, or a line can't be used.
    """

    credentialInterfaces = (IUsernamePassword,)
    _log = Logger()

    def __init__(self, path: str, workers: Workers) -> None:
        # twistd changes its directory after this.
        self._path = os.path.abspath(path)  # noqa: PTH100 - Path.resolve follows links, which may move
        self._workers = workers
        try:
            self._state, self._users, faults = self._read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CheckerError(f"{path} can't be used: {reason}") from None
        if faults:
            more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise CheckerError(f"{path}: {', '.join(faults[:_SHOWN])}{more}")
        if not self._users:
            raise CheckerError(f"{path} has no users")

    def requestAvatarId(self, credentials: IUsernamePassword) -> Deferred[bytes | tuple[()]]:
        """Say who it is; fails with UnauthorizedLogin, or Busy of the workers'."""
        self._refresh()
        user = credentials.username
        stored = self._users.get(user)
        # Who doesn't exist takes as long as who does.
        against = next(iter(self._users.values()), None) if stored is None else stored
        if against is None:
            return fail(UnauthorizedLogin())
        check = partial(matches, against, credentials.password)
        known = stored is not None

        def checked(same: bool) -> bytes | tuple[()]:
            if same and known:
                return user
            raise UnauthorizedLogin

        asked = self._workers.run(check) if is_slow(against) else succeed(check())
        return asked.addCallback(checked)

    def _refresh(self) -> None:
        try:
            state = _state(self._path)
            if state == self._state:
                return
            self._state, self._users, faults = self._read()
        except (OSError, ValueError) as error:
            if self._users:
                reason = getattr(error, "strerror", None) or str(error)
                self._log.error(
                    "{path}: nobody can log in: {reason}", path=self._path, reason=reason
                )
            self._state, self._users = None, {}
            return
        for each in faults:
            self._log.error("{path}: {fault}", path=self._path, fault=each)

    def _read(self) -> tuple[tuple[int, ...] | None, dict[bytes, bytes], list[str]]:
        state = _state(self._path)
        with Path(self._path).open("rb") as file:
            content = file.read(_FILE_SIZE_MAX + 1)
        if len(content) > _FILE_SIZE_MAX:
            raise ValueError(f"longer than {_FILE_SIZE_MAX} bytes")
        users: dict[bytes, bytes] = {}
        faults: list[str] = []
        for number, line in enumerate(content.split(b"\n"), 1):
            text = line.strip()
            if not text or text.startswith(b"#"):
                continue
            user, colon, rest = text.partition(b":")
            stored, more, _ = rest.partition(b":")
            problem = "no user" if not (user and colon) else fault(stored)
            if problem is None and more and not is_slow(stored) and not stored.startswith(b"{"):
                problem = "a colon in a plain password; make the line with htpasswd -B"
            if problem is None and user in users:
                problem = "the user is there already"
            if problem is None:
                users[user] = stored
            else:
                faults.append(f"line {number}: {problem}")
        # The dearest first: it stands for users that there aren't.
        ordered = dict(sorted(users.items(), key=lambda each: _price(each[1]), reverse=True))
        return state, ordered, faults


def _price(stored: bytes) -> bytes:
    """What sorts after others takes longer: plain, {SHA}, MD5, bcrypt by its cost."""
    if stored.startswith(b"$2"):
        return b"3" + stored[4:6]
    return b"2" if is_slow(stored) else b"1"


def _state(path: str) -> tuple[int, ...]:
    """What changes with a file."""
    found = Path(path).stat()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev, found.st_ctime_ns


@implementer(ICredentialsChecker)
class _Threaded:
    """Asks a checker that blocks and answers at once, in a thread.

    Args:
        checker: Its Deferreds have fired when it returns.
        workers: Have the threads.
    """

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, checker: ICredentialsChecker, workers: Workers) -> None:
        self._checker = checker
        self._workers = workers

    def requestAvatarId(self, credentials: IUsernamePassword) -> Deferred[bytes | tuple[()]]:
        """As the checker's."""
        return self._workers.run(partial(self._ask, credentials))

    def _ask(self, credentials: IUsernamePassword) -> bytes | tuple[()]:
        asked = self._checker.requestAvatarId(credentials)
        found: list[Any] = []
        asked.addBoth(found.append)
        (result,) = found
        if isinstance(result, Failure):
            result.raiseException()
        avatar: bytes | tuple[()] = result
        return avatar

"""Imports, and libraries, while the command runs: from memory, or not at all.

The command may write what its user may, and that mostly includes the files that sidecar
and its dependencies are installed in (a virtual environment, ``~/.local``, the current
directory). A module imported now would be the command's own program, run outside. So
all is imported before; what takes long and is seldom needed, its files are read.

The C library loads libraries of its own accord, from where its loader looks: that may be the
user's, too (LD_LIBRARY_PATH, the interpreter's own DT_RPATH). What it would load is loaded
before, or not asked for: names (nsswitch.conf's modules), users and groups, other encodings.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from importlib import import_module
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, SourceFileLoader
from importlib.util import cache_from_source, find_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

__all__ = ["Kept", "seal"]

# Where a module's code is in a .pyc, behind the magic number, flags, time and size (PEP 552).
_FLAGS = slice(4, 8)
_TIME_AND_SIZE = slice(8, 16)


class Kept:
    """Modules whose files were read, to be imported later."""

    def __init__(self) -> None:
        self._packages: dict[str, str | None] = {}
        self._loader_of: dict[str, _FromMemory] = {}

    def keep(self, name: str) -> None:
        """Read a module's file; of a package, those of all its modules.

        Args:
            name: In full. What it is in is imported. What there is no source file of
                (extension modules, archives) is imported, too.
        """
        spec = find_spec(name)
        if spec is None or spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
            import_module(name)
        else:
            self._read(name, spec.origin, is_package=spec.submodule_search_locations is not None)

    def _read(self, name: str, path: str, *, is_package: bool) -> None:
        directory = os.path.dirname(path) if is_package else None  # noqa: PTH120 - a quarter of the time
        if name not in sys.modules:
            self._loader_of[name] = _FromMemory(name, path)
            self._packages[name] = directory
        if directory is None:
            return
        for entry in os.scandir(directory):
            inner = f"{name}.{entry.name.removesuffix('.py')}"
            if entry.is_dir():
                init = f"{entry.path}/__init__.py"
                if os.path.exists(init):  # noqa: PTH110 - likewise
                    self._read(inner, init, is_package=True)
            elif entry.name.endswith(".py") and entry.name != "__init__.py":
                self._read(inner, entry.path, is_package=False)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - as Python calls it
        target: ModuleType | None = None,  # noqa: ARG002 - likewise
    ) -> ModuleSpec | None:
        """Find what was kept."""
        loader = self._loader_of.get(fullname)
        if loader is None:
            return None
        directory = self._packages[fullname]
        return spec_from_file_location(
            fullname,
            loader.path,
            loader=loader,
            submodule_search_locations=None if directory is None else [directory],
        )


def _read(path: str) -> bytes:
    # A third of the time that pathlib takes.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


class _FromMemory(SourceFileLoader):
    """Loads what its files said when this was made.

    Args:
        fullname, path: As for SourceFileLoader.

    Raises:
        OSError: There is no file.
    """

    def __init__(self, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self._stats = super().path_stats(path)
        compiled = cache_from_source(path)
        try:
            data = _read(compiled)
        except OSError:
            data = b""
        self._data = {compiled: data} if self._is_current(data) else {path: super().get_data(path)}

    def _is_current(self, data: bytes) -> bool:
        """Whether the compiled file is the source file's, by time and size."""
        low = 0xFFFFFFFF
        wanted = [int(self._stats["mtime"]) & low, int(self._stats["size"]) & low]
        found = data[_TIME_AND_SIZE]
        return not any(data[_FLAGS]) and found == b"".join(
            each.to_bytes(4, "little") for each in wanted
        )

    def path_stats(self, path: str) -> Mapping[str, Any]:  # noqa: ARG002 - the one
        """As they were."""
        return self._stats

    def get_data(self, path: str) -> bytes:
        """As it was."""
        try:
            return self._data[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def set_data(self, path: str, data: object, *, _mode: int = 0) -> None:
        """Leave the files alone."""


class _Refusing:
    """Says why a module isn't found."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - as Python calls it
        target: ModuleType | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: Always.
        """
        problem = f"{fullname} was not imported before the command ran, and can't be any more"
        raise ModuleNotFoundError(problem, name=fullname)


def seal(kept: Kept) -> None:
    """From here on, import nothing but what was kept, and what is part of Python's executable."""
    # pthread_exit(3) would, by which a daemon thread that is left over ends when Python does.
    with suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, kept, _Refusing()]

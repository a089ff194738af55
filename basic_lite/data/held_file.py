"""A data file as it was when it was scanned: positions found in it never point into another text."""

import io
import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO

from basic_lite.errors import UserError
from basic_lite.outside import open_file, read_file

# Bytes. A file up to this size is read once and kept, so that it may be edited while a run goes on.
_KEPT = 64 << 20


class HeldFile:
    """The bytes of a file. A small one is kept, and pickled; a larger one is mapped, and its time and size watched.

    Raises:
        UserError: a larger one has changed, when bytes of it are asked for.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._state = self._now()
        self.size = self._state[0]
        try:
            self._bytes = read_file(path) if self.size <= _KEPT else None
            open_file(path).close()
        except OSError as error:
            raise UserError(
                f"{name}: the file can't be read ({error.strerror or error}); give one that can be, or change its "
                "permissions"
            ) from error
        if self._bytes is not None:
            self.size = len(self._bytes)
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def open(self) -> BinaryIO:
        """The file from its start, to read on."""
        return io.BytesIO(self._bytes) if self._bytes is not None else open_file(self.path)

    def bytes(self, start: int, end: int) -> bytes:
        """The bytes from one position up to another."""
        if self._bytes is not None:
            return self._bytes[start:end]
        self.require_same()
        if self._map is None:
            with open_file(self.path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map[start:end]

    def require_same(self) -> None:
        """Refuse a mapped file that has changed: what is at a position is another text, or there is none.

        Raises:
            UserError: it has changed.
        """
        if self._bytes is None and self._now() != self._state:
            raise UserError(
                f"{self.name}: the file has changed since the start; put it back as it was and continue with "
                "--resume, or start again."
            )

    def _now(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

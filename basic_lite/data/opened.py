"""Open every picture once, before step 0. Which ones are whole is remembered, so the next start takes seconds."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from filelock import FileLock, Timeout

from basic_lite.console import Say
from basic_lite.data.images import ImageRef, require_whole
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Record
from basic_lite.outside import read_file

# Opening that took less is simply done again: no file is kept for it.
_WORTH_KEEPING_S = 3.0
# A start that is killed loses no more than this.
_KEEP_EVERY_S = 60.0
# Of one image folder, 8 bytes each. Beyond it only those of the present data stay.
_MOST_KEYS = 4_000_000
_MOST_FILES = 64
# Below it, processes that start together (those of a launcher) each open all pictures.
_WORTH_WAITING = 1_000
# Pictures in memory or waiting at a time.
_AT_ONCE = 512


class Unopened(NamedTuple):
    """A picture that isn't known to be whole.

    Attributes:
        key: as ``picture_key`` gives it.
        record: index of a record that has it.
        place: which of that record's pictures it is.
        image: None for a picture that is in a table: it is read again, not carried about.
        folder: the image folder; empty for pictures in tables.
    """

    key: int
    record: int
    place: int
    image: ImageRef | None
    folder: str


def cache_folder() -> Path | None:
    """Where the user's programs keep what they can make again; None: this system names no such place."""
    home = None
    with suppress(RuntimeError):
        home = Path.home()
    if sys.platform == "win32":
        given, usual = os.environ.get("LOCALAPPDATA"), home and home / "AppData" / "Local"
    elif sys.platform == "darwin":
        given, usual = None, home and home / "Library" / "Caches"
    else:
        given, usual = os.environ.get("XDG_CACHE_HOME"), home and home / ".cache"
    base = Path(given) if given else usual
    return base / "basic-lite" / "pictures" if base is not None else None


@dataclass
class OpenedBefore:
    """The pictures of some image folders that were found whole, here or in an earlier start.

    A file for each folder holds their keys, sorted. It is replaced as a whole, so a reader sees the old one or the new
    one; a damaged file counts as none. At most 64 folders and 4 million pictures each are remembered (32 MB).

    Attributes:
        cache: folder of those files; None: nothing is remembered.
        known: keys of whole pictures.
    """

    cache: Path | None
    known: frozenset[int] = frozenset()

    def load(self, folders: Iterable[str]) -> None:
        """Read what is remembered of these folders."""
        self.known = self.known.union(*(_read(self._file(folder)).tolist() for folder in folders))

    def keep(self, whole: dict[str, list[int]]) -> None:
        """Remember more pictures of each folder.

        Raises:
            OSError: the file can't be written.
        """
        if self.cache is None:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        for folder, keys in whole.items():
            path, fresh = self._file(folder), np.array(keys, dtype=np.uint64)
            merged = np.union1d(_read(path), fresh)
            _write(path, merged if len(merged) <= _MOST_KEYS else np.unique(fresh))
        files = []
        for file in self.cache.glob("*.keys"):
            with suppress(FileNotFoundError):  # another program makes room, too
                files.append((file.stat().st_mtime, file))
        for _, old in sorted(files)[:-_MOST_FILES]:
            old.unlink(missing_ok=True)

    @contextmanager
    def alone(self, folders: Sequence[str], say: Say) -> Iterator[None]:
        """One program at a time opens the pictures of these folders: the others wait, and then find them remembered."""
        with ExitStack() as stack:
            path = self._file(min(folders))
            # Where nothing can be written, nothing is remembered, and nobody waits.
            with suppress(OSError):
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lock = FileLock(path.with_suffix(".lock"))
                    try:
                        stack.enter_context(lock.acquire(timeout=0))
                    except Timeout:
                        say("another process is opening these pictures; this one waits, to open none twice")
                        stack.enter_context(lock.acquire())
            self.load(folders)
            yield

    def _file(self, folder: str) -> Path | None:
        name = hashlib.blake2b(folder.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return self.cache / f"{name}.keys" if self.cache is not None else None


def _head() -> bytes:
    """What must be the same for a file to count: its form, and what decodes pictures."""
    heif = importlib.util.find_spec("pillow_heif") is not None
    return f"basic-lite pictures 1, PIL {PIL.__version__}, HEIF {heif}".encode()


def _seal(keys: bytes) -> bytes:
    return hashlib.blake2b(_head() + keys, digest_size=16).digest()


def _read(path: Path | None) -> np.ndarray:
    """Keys in a file [n] uint64; none where it is missing, damaged, or of another version."""
    try:
        data = read_file(path) if path is not None else b""
    except OSError:
        data = b""
    seal, keys = data[:16], data[16:]
    return np.frombuffer(keys, dtype="<u8") if seal == _seal(keys) else np.array([], dtype="<u8")


def _write(path: Path | None, keys: np.ndarray) -> None:
    assert path is not None
    data = keys.astype("<u8").tobytes()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as scratch:
        try:
            scratch.write(_seal(data) + data)
            scratch.close()
            os.replace(scratch.name, path)
        except OSError:
            Path(scratch.name).unlink(missing_ok=True)
            raise


def open_all(
    records: Sequence[Record],
    unopened: Sequence[Unopened],
    before: OpenedBefore,
    say: Say,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, BadImage]:
    """Decode each picture once, in threads, and remember those that are whole. Gives the problem of each other key.

    PIL decodes without Python's lock, so threads cost no more than processes. Measured with JPEGs of 640 × 480 (79 kB,
    in the system's memory): 1,100 a second of CPU time, 770 if they were decoded whole. So 665,000 are about 10 minutes
    of one core and 80 s of eight that are free, where the disk gives 90 MB/s for each; that may well be the limit. To
    see that all are known, at the next start, takes 8 s of one core.
    """
    one_each: dict[int, Unopened] = {}
    for one in unopened:
        one_each.setdefault(one.key, one)
    with ExitStack() as stack:
        if len(one_each) >= _WORTH_WAITING:
            stack.enter_context(before.alone(sorted({one.folder for one in one_each.values()}), say))
        order = [one for one in one_each.values() if one.key not in before.known]
        if len(order) >= _WORTH_WAITING:
            say(f"opening {len(order):,} pictures to see that they are whole (data.check_images)")
        found: dict[int, BadImage] = {}
        whole: dict[str, list[int]] = {}
        started = kept = time.monotonic()
        try:
            for done, (one, problem) in enumerate(_opened(records, order), 1):
                if problem is None:
                    whole.setdefault(one.folder, []).append(one.key)
                else:
                    found[one.key] = problem
                if progress is not None and (done % _AT_ONCE == 0 or done == len(order)):
                    progress(done, len(order))
                if time.monotonic() - kept >= _KEEP_EVERY_S:
                    _keep(before, whole, say)
                    kept = time.monotonic()
        finally:  # what an opening that is interrupted has found, too
            if time.monotonic() - started >= _WORTH_KEEPING_S:
                _keep(before, whole, say)
    return found


def _keep(before: OpenedBefore, whole: dict[str, list[int]], say: Say) -> None:
    try:
        before.keep(whole)
    except OSError as error:
        before.cache = None  # said once
        say(f"note: which pictures are whole can't be remembered for the next start ({error})")


def _opened(records: Sequence[Record], order: list[Unopened]) -> Iterator[tuple[Unopened, BadImage | None]]:
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(order), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            # Tables are read by this thread alone.
            images = [one.image or records[one.record].images[one.place] for one in part]
            yield from zip(part, pool.map(_problem_of, images), strict=True)


def _problem_of(image: ImageRef) -> BadImage | None:
    try:
        require_whole(image)
    except BadImage as problem:
        return problem
    return None

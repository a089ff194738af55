"""Files of a run: JSON, and folders that appear only when they are whole. Nothing heavy is imported here."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from basic_lite.errors import UserError
from basic_lite.outside import open_file
from basic_lite.training.places import HELD, OLD, UNFINISHED
from basic_lite.whole_file import PART, write_whole

# Libraries in Rust put the number of the system's error into their text: Linux's and macOS's, Windows'.
_FULL = re.compile(r"os error (28|112)\b")


@contextmanager
def written_whole(folder: Path, fix: str) -> Iterator[Path]:
    """Give a scratch folder that is renamed to ``folder`` when it is complete; an older one is deleted then.

    Args:
        fix: what to do where the disk is full or can't be written.

    Raises:
        UserError: the disk is full, or can't be written.
    """
    scratch = folder.with_name(folder.name + PART)
    old = folder.with_name(folder.name + OLD)
    with saving(folder, fix):
        try:
            for left in (scratch, old):
                discard(left)
            scratch.mkdir(parents=True)
            yield scratch
            if os.path.lexists(folder):
                os.replace(folder, old)
            os.replace(scratch, folder)
            discard(old)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # what an error left


@contextmanager
def new_folder(folder: Path, fix: str) -> Iterator[Path]:
    """Give a scratch folder that becomes ``folder`` when it is complete. Nothing that was there before is touched.

    It is locked meanwhile, so that `clean` sees that it isn't one that a kill has left.

    Args:
        folder: an absolute path where nothing is, or an empty folder.
        fix: what to do where the disk is full or can't be written.

    Raises:
        UserError: the disk is full, or can't be written.
    """
    with saving(folder, fix):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
        lock = FileLock(scratch / HELD)
        try:
            give_usual_rights(scratch)
            with suppress(OSError):  # some network disks have no locks
                lock.acquire(timeout=0)
            yield scratch
            lock.release()  # Windows removes and renames nothing that is open
            (scratch / HELD).unlink(missing_ok=True)
            if folder.exists():
                folder.rmdir()  # refuses one that isn't empty
            os.replace(scratch, folder)
        finally:
            lock.release()
            shutil.rmtree(scratch, ignore_errors=True)  # what an error left


def give_usual_rights(path: Path) -> None:
    """Let other users read what a library has made for its user alone: it is no secret, and a server may be another."""
    lacking = os.umask(0)
    os.umask(lacking)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~lacking)


@contextmanager
def saving(path: Path, fix: str) -> Iterator[None]:
    """Around writing ``path``: a disk that is full or can't be written becomes an error for the user.

    Raises:
        UserError: says so, and ``fix``.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error))
        # transformers raises OSError without a number for what isn't the system's doing.
        of_system = isinstance(error, OSError) and error.errno is not None
        if not full and not of_system and not isinstance(error, SafetensorError):
            raise
        why = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} could not be saved: {why}. {fix}") from error


def remove(path: Path) -> None:
    """Delete a file, a folder or a link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def discard(path: Path) -> None:
    """As ``remove``, where it may be that nothing is there, or that it stays."""
    with suppress(OSError):
        remove(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with a newline at the end. What was there stays until the new file is whole."""
    write_whole(path, json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that UTF-8 can hold, with letters of all languages as they are."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # A name of a file that isn't UTF-8 has halves of characters in it, which JSON can write and UTF-8 can't.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""The lock of a run's folder, without torch: while it is held, nobody else trains or deletes there."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from basic_lite.errors import UserError
from basic_lite.training.places import LOCK

# Seconds that a lock is waited for: whoever only looks whether it is held, as `basic-lite runs`, holds it for a moment.
_WAIT_S = 0.5


class InUse(UserError):
    """Another process trains in a run folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another process trains in {path} now. Wait until it ends, or choose another folder with name=… or "
            "output=…"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Own a run folder. The lock goes with the process, however that ends.

    Raises:
        InUse: another process owns it.
        UserError: it can't be locked.
    """
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout as error:
        raise InUse(path) from error
    except OSError as error:  # some network disks have no locks
        raise UserError(
            f"{path / LOCK} can't be locked against other processes ({error.strerror or error}); remove that file, or "
            "choose a folder on a disk of this machine with output=…"
        ) from error
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no file that is open; the library does it there, afterwards
            (path / LOCK).unlink(missing_ok=True)  # while it is still ours
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file. That it is there doesn't say so: a kill leaves it."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout:
        return True
    except OSError:  # another user's folder
        return False
    lock.release()
    return False

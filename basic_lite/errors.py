"""The exceptions that are meant for the user."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from basic_lite.printable import MOST, message

_NO_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")


# Between the texts of one error: the command line has `error: ` before the first.
_NEXT = "\nerror: "
# Such an error may be so many times longer than one text.
_MANY = 5


class UserError(Exception):
    """Something the user can fix: says what was found, why it can't work, and which key or command fixes it.

    The command line prints the text alone, without a traceback, and exits with status 2. Whatever names of files and
    data are in it, it is fit to print, and not long.

    Args:
        limit: the most characters.
    """

    def __init__(self, text: str = "", limit: int = MOST) -> None:
        super().__init__(message(text, limit))


def in_one(texts: Iterable[str]) -> UserError:
    """One error of several texts, each on lines of its own. A further line that they share stands below the last.

    It may be longer than others: what is left out can't be mended in one go.
    """
    each = [text.split("\n") for text in texts]
    for place, lines in enumerate(each):
        later = {line for other in each[place + 1 :] for line in other}
        lines[1:] = [line for line in lines[1:] if line not in later]
    return UserError(_NEXT.join("\n".join(lines) for lines in each), _MANY * MOST)


def each_of(error: UserError) -> list[str]:
    """The texts of such an error."""
    return str(error).split(_NEXT)


def all_at_once(*looks: Callable[[], Any]) -> list[Any]:
    """What each look finds. What several of them refuse is told in one error, so that it can be mended in one go.

    Raises:
        UserError: of the one look that fails, or with the texts of all that do, each on lines of its own.
    """
    found, refused = [], []
    for look in looks:
        try:
            found.append(look())
        except UserError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise in_one(map(str, refused))
    return found


class StoppedElsewhere(UserError):
    """Another process reports the error, so this one ends silently."""


def reason_of(error: BaseException) -> str:
    """The first line of what an exception says; its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class OutOfMemory(Exception):
    """A device ran out of memory. Code that can estimate the need turns this error into advice.

    Args:
        when: what was done, as in "in step 3 with a micro-batch of 1".
        found: the library's own message.
    """

    def __init__(self, when: str, found: str) -> None:
        first = found.strip().splitlines()[0] if found.strip() else ""
        super().__init__(f"out of memory {when}" + (f": {first}" if first else ""))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the host, had no memory left.

    Only torch's allocator raises a type of its own. Libraries that ask the driver themselves (cuBLAS, cuDNN,
    bitsandbytes) say it in words.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class NoMemory(UserError):
    """Memory ran out, and the text says which option mends it."""


@contextmanager
def enough_memory(mend: str, when: str = "") -> Iterator[None]:
    """Around work that may run out of memory: whoever does is told what mends it.

    Args:
        mend: which option, as in "lower --batch".
        when: what was done, as in "with 16 questions at once".

    Raises:
        NoMemory: memory ran out, also where a checkpoint was read and that is told as an error of its own.
    """
    try:
        yield
    except (RuntimeError, MemoryError, UserError) as error:
        found = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(error, NoMemory) or found is None or not is_out_of_memory(found):
            raise
        raise NoMemory(" ".join(filter(None, ["out of memory", when])) + f"; {mend}") from error


class Interrupted(Exception):
    """A run that was stopped on purpose (Ctrl-C, SIGTERM) after it saved its state; not an error.

    The command line says so in one line with the command that continues, and exits with status 130.

    Args:
        checkpoint: folder of the checkpoint written, or None where the run stopped before its first step.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__(f"stopped, saved in {checkpoint}" if checkpoint else "stopped before the first step")
        self.checkpoint = checkpoint

"""A file that is written whole: what was there stays until the new one is complete. Nothing is written through a link.

Every file that this program makes in a folder that may be a stranger's is written here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# What the name of a file or folder ends in that isn't whole yet.
PART = ".part"


@contextmanager
def whole_file(path: Path, end: str = PART) -> Iterator[BinaryIO]:
    """Give a new file beside ``path`` that takes its name when it is complete.

    Where ``path`` is a link, the file takes the link's place, and what the link leads to stays as it is. The same holds
    for what somebody has put where the new file begins.

    Args:
        end: what the name ends in until then.

    Raises:
        OSError: the file can't be written.
    """
    scratch = path.with_name(path.name + end)
    scratch.unlink(missing_ok=True)
    # "x" makes the file and follows no link.
    file = open(scratch, "xb")  # noqa: SIM115
    try:
        with file:  # what is written last may find the disk full
            yield file
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: str | bytes, end: str = PART) -> None:
    """Write a text as UTF-8, or bytes, in the same way.

    Raises:
        OSError: the file can't be written.
    """
    with whole_file(path, end) as file:
        file.write(data.encode() if isinstance(data, str) else data)

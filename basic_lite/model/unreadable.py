"""A checkpoint that can't be read: one message for its configuration, weights, tokenizer and image processor."""

from __future__ import annotations

from pathlib import Path

from basic_lite.errors import UserError


def unreadable(name: str, key: str, error: Exception, what: str = "checkpoint") -> UserError:
    """The error for the file of a checkpoint that a library refused.

    Args:
        name: folder or hub name, as the recipe has it.
        key: recipe key that names it.
        error: what the library raised.
        what: what was read.
    """
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != 2):
        return UserError(
            f"{key}: there is no folder {name}; give {key} a folder with a transformers checkpoint, or a hub name"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = "the folder holds no readable one" if folder.is_dir() else "no such folder, and not found on the hub"
    return UserError(
        f"{key}: can't read the {what} {name} ({where}): {reason}\n"
        f"  mend: give {key} a folder with a transformers checkpoint, or fetch it first: hf download {name}"
    )

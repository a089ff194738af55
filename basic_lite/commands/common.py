"""What several commands share: the types of their arguments, and notes to the user. Nothing heavy is imported here."""

import shutil
import sys
import textwrap
from typing import Annotated, Literal

import typer

from basic_lite.printable import printable

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What it runs on.")]
Template = Literal["plain", "v1", "tokenizer"]
RecipeName = Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change: key.path=value, as in training.micro_batch=2.", show_default=False),
]


def note(text: str) -> None:
    """Print a note to stderr, apart from the results; on a terminal, lines break between words."""
    text = printable(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(_wrapped(line, width) for line in text.splitlines())
    print(text, file=sys.stderr, flush=True)


def _wrapped(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

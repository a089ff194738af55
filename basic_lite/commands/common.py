"""What several commands share: the types of their arguments, and notes to the user. Nothing heavy is imported here."""

import shutil
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from basic_lite.outside import at_home
from basic_lite.printable import printable
from basic_lite.signals import stop_in_order
from basic_lite.wrapping import wrapped

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What it runs on.")]
NumberType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Number type of a model that isn't a run; auto: bfloat16 on a GPU that has it."),
]
Template = Literal["plain", "v1", "tokenizer"]
RecipeName = Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change: key.path=value, as in training.micro_batch=2.", show_default=False),
]


def with_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command for which `~` at the start of a path is the home folder. Shells leave it in `--out=~/x`.

    Where Ctrl-C stops it, that is told: typer would end it without a word. Before that, ``__main__`` ends the program.
    """

    @wraps(command)
    def run(**given: Any) -> Any:
        try:
            stop_in_order()
            return command(**{name: _expanded(value) for name, value in given.items()})
        except KeyboardInterrupt as stopped:
            raise typer.Abort from stopped

    return run


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(one) for one in value]
    return at_home(value) if isinstance(value, Path) else value


def note(text: str) -> None:
    """Print a note to stderr, apart from the results; on a terminal, lines break between words, in no command."""
    text = printable(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(wrapped(text.rstrip("\n"), width))
    print(text, file=sys.stderr, flush=True)

"""What several commands share: the types of their arguments, and notes to the user. Nothing heavy is imported here."""

import sys
from typing import Annotated, Literal

import typer

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What it runs on.")]
Template = Literal["plain", "v1", "tokenizer"]
RecipeName = Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change: key.path=value, as in training.micro_batch=2.", show_default=False),
]


def note(text: str) -> None:
    """Print a note to stderr, apart from the results."""
    print(text, file=sys.stderr, flush=True)

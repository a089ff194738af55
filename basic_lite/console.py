"""What the libraries and the program say on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Say = Callable[[str], None]


def speaker(console: Console) -> Say:
    """``say(text)``: one line as it is, without markup, never broken into several where it is piped."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=not console.is_terminal)

    return say


def note(text: str) -> None:
    """Say on stderr what is no result; on a terminal, lines break between words."""
    if text:
        speaker(Console(stderr=True))(text.rstrip("\n"))


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, gone when it is full. Gives a function that takes how many more are done."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def quiet_libraries() -> None:
    """Switch off transformers' loading bars and reports: the part table says the same better."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # The hub client reports each retry without a network; the error at the end is enough.
    huggingface_hub.utils.logging.set_verbosity_error()

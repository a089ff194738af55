"""What the libraries and the program say on a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

Say = Callable[[str], None]


def speaker(console: Console) -> Say:
    """``say(text)``: one line as it is, without markup, never broken into several where it is piped."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)

    return say


def quiet_libraries() -> None:
    """No loading bars and load reports of transformers: what they say, the part table says better."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # retries without a network; the error at the end says it all

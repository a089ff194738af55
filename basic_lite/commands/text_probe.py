"""``text-probe``."""

from pathlib import Path
from typing import Annotated

import typer

from basic_lite.commands.common import Device


def text_probe(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.", show_default=False)], device: Device = "auto"
) -> None:
    """Say what of its ability with text the LLM has lost.

    By the training of its LoRA, or won by it.

    The LLM reads short texts of several kinds, and questions with one right and some wrong continuations, without
    pictures and without a chat template: once as it was loaded, with its LoRA switched off, and once with it. It says
    how many bits a byte the texts take, and how many questions have the right continuation as the likeliest one, with
    95 % intervals of the differences. Of a run that went on from another one it is the base LLM against now.

    A run does the same at its end (training.text_probe). The result is kept in the run folder for its report.
    """
    from basic_lite.training.bundle_files import find_bundle

    find_bundle(run)
    from basic_lite.tools.text_probe import probe_run

    probe_run(run, device=device)

"""``chat`` and ``eval``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.commands.common import Device, Template, note
from basic_lite.errors import UserError


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Questions with answers: LLaVA JSON or JSONL.", show_default=False)],
    image_dir: Annotated[Path | None, typer.Option(help="Folder of the images; default: beside the data.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    out: Annotated[Path | None, typer.Option(help="File for the predictions (JSONL); default: in the run.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first so many questions.")] = None,
    device: Device = "auto",
    template: Annotated[Template | None, typer.Option(help="Format of the questions; default: as trained.")] = None,
) -> None:
    """Answer a file of questions and score the answers.

    One question a record: its last one, what comes before is context. Greedy decoding; exact match, overall and by the
    records' `question_type` where they have one; predictions as JSON lines.
    """
    from basic_lite.tools.evaluate import evaluate_run

    evaluate_run(
        run, data, image_dir=image_dir, batch_size=batch, out=out, limit=limit, device=device, template=template
    )


def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="Run folder, bundle, exported folder, or llava-hf model (folder or hub name).", show_default=False
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE|QUESTION",
            help="Pictures to ask about, then perhaps a question. Without one, questions are read until an empty line.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="One question; then all that stands before it is pictures.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0: always the likeliest token. Above: drawn, the more freely the higher.")
    ] = 0.0,
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Number type of a model that isn't a run; auto: bfloat16 on a GPU that has it."),
    ] = "auto",
    web: Annotated[
        bool, typer.Option("--web", help="Open a page instead (needs the extra `web`); only this machine sees it.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the page; default: a free one from 7860 on.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
) -> None:
    """Ask a model about pictures: one question, a conversation, or a page.

    In a conversation, /image PATH adds a picture to the next question, /clear starts again, /help lists what else there
    is. Ctrl-C stops an answer. Answers go to stdout, all else to stderr.
    """
    if not web and (port is not None or no_browser):
        raise UserError("--port and --no-browser are for the page; add --web")
    from basic_lite.tools.chat.command import chat as converse

    try:
        converse(
            model,
            words or [],
            question=question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            device=device,
            dtype=dtype,
            web=web,
            port=port,
            browser=not no_browser,
        )
    except KeyboardInterrupt:  # typer would end without a word
        note("stopped")
        raise typer.Exit(130) from None

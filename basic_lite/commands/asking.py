"""``chat`` and ``eval``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from basic_lite.choices import require_place, require_questions_named
from basic_lite.commands.common import Device, NumberType, Template
from basic_lite.errors import UserError

Metric = Literal["exact", "vqa", "textvqa", "relaxed", "yes_no", "choice", "anls"]
MetricOption = Annotated[
    Metric | None,
    typer.Option(help="How answers are scored. Default: as the benchmark does it, else exact.", show_default=False),
]
Controls = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1_000_000_000,
        help="The most questions asked again, without their own picture. Default: 500.",
        show_default=False,
    ),
]
NoControls = Annotated[
    bool, typer.Option("--no-controls", help="Ask each question once, with its picture; a third of the time.")
]
BenchmarkName = Annotated[
    str | None,
    typer.Option(
        help="The benchmark that --data is of. Only LLaVA's list of ScienceQA isn't known by itself.",
        show_default=False,
    ),
]
Annotations = Annotated[
    Path | None, typer.Option(help="VQAv2's file of answers; default: beside that of the questions.")
]
Instruction = Annotated[
    str | None, typer.Option(help="Added to a benchmark's questions; default: what LLaVA-1.5 adds. '' adds nothing.")
]
Batch = Annotated[int, typer.Option(min=1, max=100_000, help="Questions answered at once.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "--max-tokens",
        min=1,
        max=1_000_000,
        help="The most tokens of an answer. Default: as the longest answer in the data, and 8 more.",
        show_default=False,
    ),
]


def _asked_again(controls: int | None, no_controls: bool) -> int:
    from basic_lite.scoring.controls import MOST_ASKED_AGAIN

    if no_controls and controls is not None:
        raise UserError("--controls says how many are asked again, and --no-controls that none is; give one of both")
    return 0 if no_controls else MOST_ASKED_AGAIN if controls is None else controls


def _look_first(run: Path, data: Path | None, held_out: bool) -> None:
    """What names alone tell is told before seconds of imports."""
    require_questions_named(data=data is not None, held_out=held_out)
    from basic_lite.training.bundle_files import find_bundle

    find_bundle(run)
    if data is not None:
        require_place(data)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder or bundle.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Questions with their answers: in any format of training data, or a benchmark's published file.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Instead of --data: the records that the run kept for evaluation.")
    ] = False,
    image_dir: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: around the data, or the recipe's.")
    ] = None,
    batch: Batch = 16,
    max_new_tokens: MaxNewTokens = None,
    out: Annotated[Path | None, typer.Option(help="File for the predictions (JSONL); default: in the run.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Take only the first so many questions.")
    ] = None,
    device: Device = "auto",
    template: Annotated[Template | None, typer.Option(help="Format of the questions; default: as trained.")] = None,
    metric: MetricOption = None,
    controls: Controls = None,
    no_controls: NoControls = False,
    benchmark: BenchmarkName = None,
    annotations: Annotations = None,
    instruction: Instruction = None,
) -> None:
    """Let a run answer questions, and score the answers.

    One question a record: its last one; what comes before is its context. Answers are the model's likeliest (greedy).

    Does it look at the picture? Questions are also asked with another record's picture, and without any:
    "62 % [55, 69]; 58 % with another picture; 31 % without one". In brackets are 95 % intervals. The difference is
    judged question by question, and a line says what follows from it. That takes three times as long, so of a large set
    a fixed sample of 500 questions is asked again (--controls).

    The score is exact match, if nothing else is chosen: the share of answers that are the record's own, word for word.
    Both are compared in lower case, with single spaces and without full stops at the end. Nothing else is forgiven: "a
    cat" isn't "cat". So it suits short answers, and says little of captions and long ones. Other metrics are those of
    benchmarks: vqa and textvqa (agreement with ten people), relaxed (charts: numbers may be 5 % off), yes_no (POPE,
    with precision, recall and F1), choice (of options A, B, …), anls (documents: letters in common).

    The published files of VQAv2, TextVQA, GQA, POPE, MMBench, ScienceQA, ChartQA and DocVQA are read as they are, and
    scored as each benchmark does it. MMBench's questions are asked once for every order of their options.

    Pictures that the run was trained on, or one that it started from, are known by what is in their files, also under
    another name; one that was resized or saved anew isn't recognised. Where there are such, the table has both scores:
    go by "not trained on". Beside each is its 95 % interval, wide where they are few.
    Where records have a `question_type`, there is a row for each type: the share among its questions. The row `all` is
    over all questions that have an answer in the data, each counted once.

    Answers are kept as they come. After Ctrl-C or a crash the same command goes on where it stopped.
    Predictions are written as JSON lines, with the pictures and with "cut": true where an answer was cut off; beside
    them a summary with the scores and all settings. A file of predictions is replaced only if it has the same settings,
    the same model and the same data, and nobody has changed it since. Any other is kept: the new file gets a number
    (`…_2.jsonl`), and a line says why; a name that you gave with --out is refused.
    """
    _look_first(run, data, held_out)
    from basic_lite.tools.evaluate import evaluate_run

    evaluate_run(
        run,
        data,
        held_out=held_out,
        image_dir=image_dir,
        batch_size=batch,
        max_new_tokens=max_new_tokens,
        out=out,
        limit=limit,
        device=device,
        template=template,
        metric=metric,
        controls=_asked_again(controls, no_controls),
        benchmark=benchmark,
        annotations=annotations,
        instruction=instruction,
    )


def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="Run folder, bundle, exported folder, or a vision-language model (folder or hub name).",
            show_default=False,
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
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", "--max-tokens", min=1, max=1_000_000, help="The most tokens of an answer."),
    ] = 256,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, max=100.0, help="0: always the likeliest token. Above: drawn, the more freely the higher."
        ),
    ] = 0.0,
    device: Device = "auto",
    dtype: NumberType = "auto",
    web: Annotated[
        bool, typer.Option("--web", help="Open a page instead (needs the extra `web`); only this machine sees it.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the page; default: a free one from 7860 on.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the page's address.")] = False,
) -> None:
    """Ask a model about pictures.

    One question, a conversation, or a page in the browser.

    In a conversation, /image PATH adds a picture to the next question, /clear starts again, /help lists what else there
    is. Ctrl-C stops an answer. Answers go to stdout, all else to stderr.
    """
    if not web and (port is not None or no_browser):
        raise UserError("--port and --no-browser are for the page; add --web")
    from basic_lite.tools.chat.words import split_words
    from basic_lite.tools.model_place import look_at_model

    look_at_model(model, "chat")
    if not web:
        split_words(words or [], question, model)
    from basic_lite.tools.chat.command import chat as converse

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

"""The command ``basic-lite``: one function a command, each a few lines that call the code that does the work.

Whatever is heavy (torch, pydantic) is imported inside the commands, so ``--help`` answers at once. Results go
to stdout; notes and errors to stderr. Exit status: 0 done, 2 something the user can fix, 130 stopped by
Ctrl-C; anything else is a bug and shows its traceback. ``BASIC_LITE_DEBUG=1`` shows tracebacks of all errors.
"""

import atexit
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from basic_lite import __version__
from basic_lite.errors import Interrupted, StoppedElsewhere, UserError

# Plain help text: rich markup would double the time `--help` takes.
app = typer.Typer(
    name="basic-lite",
    help="Train LLaVA-style vision-language models with BASIC's losses on one graphics card.",
    epilog="Start with `basic-lite demo`: a whole training in a few minutes, without GPU or download.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What it runs on.")]
Template = Literal["plain", "v1", "tokenizer"]
RecipeName = Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys to change: key.path=value, as in training.micro_batch=2.", show_default=False),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"basic-lite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    checkpoint: Annotated[
        int | None,
        typer.Option(min=1, metavar="STEP", help="With --resume: from this step's checkpoint, not the newest."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, model configs and data, show the plan, and stop.")
    ] = False,
) -> None:
    """Train one stage as a recipe says."""
    from basic_lite.recipe import find_recipe, load_recipe

    overrides = overrides or []
    if checkpoint is not None and not resume:
        raise UserError("--checkpoint chooses the checkpoint for --resume; add --resume")
    loaded = load_recipe(recipe, overrides)
    if not Path(recipe).is_file():
        note(f"using the shipped recipe {find_recipe(recipe)}")
    if dry_run:
        if resume:
            raise UserError("--dry-run starts nothing, so there is nothing to --resume; leave one of the two out")
        from basic_lite.tools.dry_run import dry_run as show_plan

        show_plan(loaded)
        return
    from basic_lite.run import train as train_recipe

    try:
        train_recipe(loaded, resume=resume, checkpoint=checkpoint)
    except Interrupted as stopped:
        # A launcher's processes all come here, and the first one speaks.
        if os.environ.get("RANK", "0") == "0":
            again = shlex.join([*_command(), "train", recipe, *overrides, "--resume"])
            note(f"{stopped}; continue with: {again}" if stopped.checkpoint else str(stopped))
        raise typer.Exit(130) from None


@app.command()
def estimate(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[float, typer.Option(help="Memory of the card in GiB, as nvidia-smi shows it free.")] = 24.0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run two real steps on this machine's GPU and compare.")
    ] = False,
) -> None:
    """Say how much memory a recipe needs, whether a card has that much, and what to change.

    Rehearses the training step from the models' configurations alone, without a GPU, in 10 to 20 s for 7B.
    The exit status is 0 whether it fits or not.
    """
    from basic_lite.recipe import load_recipe
    from basic_lite.tools.estimate import estimate as rehearse_and_show

    rehearse_and_show(load_recipe(recipe, overrides or []), gpu_gib=gpu, measure=measure)


@app.command("eval")
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's world and runs.")] = Path("runs", "demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world, the weights and the order.")] = 0,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Train the demo's vision encoder and LLM again instead of using the shipped ones (long)."
        ),
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Compare BASIC off, DAS alone, SDS alone and both, over several seeds.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds --ablate takes.")] = 3,
) -> None:
    """Run both stages and an evaluation on a tiny world.

    Needs no GPU and no download, and takes a few minutes on two CPU cores.
    """
    from basic_lite.demo.run import demo as run_demo

    try:
        run_demo(out, seed=seed, rebuild=rebuild, ablate=ablate, seeds=seeds)
    except Interrupted:
        note("stopped; run the same command to continue")
        raise typer.Exit(130) from None


@app.command()
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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or bundle.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.", show_default=False)],
    merge_into: Annotated[
        Literal["original", "quantized"] | None,
        typer.Option(
            help="What LoRA is added to: the original weights, or the NF4 weights it was trained on, dequantised. "
            "Default: as trained.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; auto: the LLM's own."),
    ] = "auto",
    check: Annotated[bool, typer.Option(help="Compare the exported model with the trained one.")] = True,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Records of the run's data that the check takes. Default: 16.", show_default=False),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Most mean KL (nats a token) that passes. Default: 0.01 for quantized, 0.5 for original.",
            show_default=False,
        ),
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Also write GGUF files, for llama.cpp and Ollama.")] = False,
    gguf_type: Annotated[
        Literal["f32", "f16", "q8_0"] | None,
        typer.Option(help="With --gguf: type of the LLM's matrices. Default: f16.", show_default=False),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(help="With --gguf: llama.cpp's source; its converter then writes the LLM.", show_default=False),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write a trained model as a folder that transformers and vLLM open.

    LoRA is merged, the projector and the vision encoder lie beside it. The exit status is 1 where the exported model
    doesn't answer as the trained one did.
    """
    from basic_lite.tools.export.command import export as write

    if not gguf and (llama_cpp is not None or gguf_type is not None):
        raise UserError("--llama-cpp and --gguf-type are for GGUF files; add --gguf")
    if not check and (samples is not None or limit is not None):
        raise UserError("--samples and --limit are for the check; leave out --no-check")
    try:
        passed = write(
            run,
            out,
            merge_into=merge_into,
            dtype=dtype,
            samples=(samples or 16) if check else 0,
            limit=limit,
            gguf=(gguf_type or "f16") if gguf else None,
            llama_cpp=llama_cpp,
            device=device,
        )
    except KeyboardInterrupt:
        note("stopped; nothing was written")
        raise typer.Exit(130) from None
    if not passed:
        raise typer.Exit(1)


@app.command()
def keys(
    prefix: Annotated[str, typer.Argument(help="Only this key or section, as in `training`.", show_default=False)] = "",
) -> None:
    """List every recipe key: type, default, what it does."""
    from basic_lite.recipe import describe_keys, nearest_key

    rows = describe_keys(prefix)
    if not rows:
        meant, _ = nearest_key(tuple(prefix.split(".")))
        raise UserError(f"there is no recipe key or section {prefix!r}; the nearest is {meant!r}")
    for row in rows:
        default = row.default if row.default == "required" else f"default {row.default}"
        print(f"{row.name}  ({row.type}; {default})\n    {row.doc}")


def note(text: str) -> None:
    """Print a note to stderr, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def _interrupt_once(number: int, frame: FrameType | None) -> NoReturn:
    """The first Ctrl-C stops; more of them, by an impatient hand, don't break into the stopping."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit; the entry point of ``basic-lite`` and ``python -m basic_lite``."""
    for stream in (sys.stdout, sys.stderr):
        # A Windows console, or a pipe in another encoding, shows '?' for λ; it must not stop a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with suppress(ValueError):  # not in the main thread: the caller owns the signals
        signal.signal(signal.SIGINT, _interrupt_once)
    try:
        status = _status(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # while the last words were printed
        status = 130
    # Registered last, so called first: one more Ctrl-C would only break into Python's own leaving.
    for number in (signal.SIGINT, signal.SIGTERM):
        atexit.register(signal.signal, number, signal.SIG_IGN)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    result = app(args=arguments, prog_name="basic-lite", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _status(arguments: list[str]) -> int:
    if os.environ.get("BASIC_LITE_DEBUG", "") not in ("", "0"):
        return _run(arguments)
    try:
        return _run(arguments)
    except UserError as error:
        if not isinstance(error, StoppedElsewhere):
            note(f"error: {error}")
        return 2
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "basic-lite"
        text = error.format_message()
        note(f"error: {text}{_hint(command, text)}\nSee `{command} --help`.")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        note("stopped")
        return 130


def _command() -> list[str]:
    """How this program was started: alone, or by a launcher in several processes."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return ["basic-lite"]
    return ["accelerate", "launch", "--multi_gpu", "--num_processes", count, "-m", "basic_lite"]


def _hint(command: str, text: str) -> str:
    if command.endswith((" train", " estimate")) and "Missing argument" in text:
        from basic_lite.recipe import shipped_recipes

        return f"\nShipped recipes: {', '.join(path.stem for path in shipped_recipes())}; or the path of your own."
    if command.endswith(" train") and "option" in text.lower():
        return "\nRecipe keys are changed without dashes: key.path=value, as in training.learning_rate=1e-4."
    return ""

"""The command ``basic-lite``. The commands themselves are in ``commands``.

Whatever is heavy (torch, pydantic) is imported inside the commands, so ``--help`` answers at once. Results go
to stdout; notes and errors to stderr. Exit status: 0 done, 2 something the user can fix, 130 stopped by
Ctrl-C or SIGTERM; anything else is a bug and shows its traceback. ``BASIC_LITE_DEBUG=1`` shows those of all errors.
"""

import atexit
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from basic_lite.commands.asking import chat, evaluate
from basic_lite.commands.check import check
from basic_lite.commands.common import note, with_home
from basic_lite.commands.compare import compare
from basic_lite.commands.data import data
from basic_lite.commands.demo import demo
from basic_lite.commands.doctor import doctor
from basic_lite.commands.export import export
from basic_lite.commands.inspect import inspect
from basic_lite.commands.run import run
from basic_lite.commands.runs import clean, report, runs
from basic_lite.commands.spare import Command, meant_by_option
from basic_lite.commands.text_probe import text_probe
from basic_lite.commands.training import estimate, keys, train
from basic_lite.commands.wording import reworded
from basic_lite.errors import StoppedElsewhere, UserError, enough_memory
from basic_lite.printable import message
from basic_lite.signals import STOPPING
from basic_lite.version import __version__

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


# In the order in which help lists them.
commands = (demo, data, check, train, estimate, run, chat, inspect, report, export, runs, compare, clean, keys, doctor)
for command in commands:
    app.command(cls=Command)(with_home(command))
app.command("eval", cls=Command)(with_home(evaluate))
app.command("text-probe", cls=Command)(with_home(text_probe))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # A Windows console, or a pipe in another encoding, shows '?' for λ; it must not stop a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):  # questions may come in any encoding
        sys.stdin.reconfigure(errors="replace")
    try:
        status = _status(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # while the last words were printed
        status = 130
    # Registered last, so called first: one more Ctrl-C would only break into Python's own leaving.
    for number in STOPPING:
        atexit.register(signal.signal, number, signal.SIG_IGN)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    result = app(args=arguments, prog_name="basic-lite", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _status(arguments: list[str]) -> int:
    if os.environ.get("BASIC_LITE_DEBUG", "") not in ("", "0"):
        return _run(arguments)
    try:
        with enough_memory("close other programs that use it, or give --device cpu where the command has it"):
            return _run(arguments)
    except UserError as error:
        if not isinstance(error, StoppedElsewhere):
            note(f"error: {error}")
        return 2
    except TyperException as error:
        context = getattr(error, "ctx", None)
        # Of an option without its value, typer doesn't say which command it belongs to: that is the first word.
        first = [word for word in arguments[:1] if not word.startswith("-")]
        command = context.command_path if context is not None else " ".join(["basic-lite", *first])
        text = message(reworded(error))
        note(f"error: {text}{_hint(command, text)}\nSee `{command} --help`.")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        note("stopped")
        return 130
    except OSError as error:
        # Of any path: no program looks at its length before it is used.
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None:
            note(
                f"error: {message(str(error.filename))} can't be read or written here; allow it, or name another place"
            )
            return 2
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" of {message(str(error.filename))}" if error.filename is not None else ""
            note(f"error: the disk{place} is full (or your share of it); make room, and give the same command again")
            return 2
        if error.errno != errno.ENAMETOOLONG:
            raise
        note(f"error: {message(str(error.filename))}: the name is longer than file systems take; shorten it")
        return 2


def _hint(command: str, text: str) -> str:
    """A line more on a wrong command line; empty: there is none."""
    said, command = "", command.rpartition(" ")[2]
    if text.lower().startswith("no such option"):
        said = meant_by_option(command, text.partition(": ")[2].split(" ")[0])
    elif command in ("train", "estimate", "run") and "Missing argument" in text:
        from basic_lite.recipe import shipped_recipes

        said = f"Shipped recipes: {', '.join(path.stem for path in shipped_recipes())}; or the path of your own."
    elif command == "eval" and "'--data'" in text:
        said = "Give it a file of questions with their answers: --data questions.json"
    return said and f"\n{said}"

"""Words of a command line that are refused before heavy imports: what they were meant for, and how that is written."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from basic_lite.choices import require_place
from basic_lite.endings import RECIPE_ENDINGS, ends_as_picture
from basic_lite.errors import UserError
from basic_lite.printable import one_line
from basic_lite.training.places import holds_bundle

_LEAVE_OUT = "leave it out"
_PICTURES = "Pictures stand behind the model, and then the question, without options."
# Options that people look for in commands which do that in another way.
_NO_OPTION = {
    **{("chat", name): _PICTURES for name in ("--image", "--picture", "-i")},
    ("clean", "--dry-run"): "`clean` shows what would go, and asks before it deletes.",
    ("report", "--out"): "The page is report.html in the run's folder.",
}


class Command(TyperCommand):
    """A command that says what was meant by a word too many."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Typer's, with an error of ours.

        Raises:
            UserError: there are more words than the command takes.
        """
        ctx.allow_extra_args = True
        spare = super().parse_args(ctx, args)
        if spare and not ctx.resilient_parsing:
            mend = _mend(str(ctx.info_name), ctx.params, spare)
            raise UserError(f"`{ctx.info_name}` has no place for {one_line(spare[0], 100)}; {mend}")
        return spare


def require_place_and_keys(command: str, path: Path, following: Sequence[str], base: str) -> None:
    """Refuse a place of data where nothing is, a recipe behind it where keys with their values stand, or a wrong key.

    Args:
        command: that has both, for the message.
        base: the recipe whose keys they are.

    Raises:
        UserError: with what mends it.
    """
    stray = next((word for word in following if "=" not in word and word.lower().endswith(RECIPE_ENDINGS)), None)
    if stray is not None and os.path.exists(path):
        what = {"data": ("file for the recipe", "--out"), "check": ("recipe", "--recipe")}[command]
        again = _line(command, path, what[1], stray)
        raise UserError(f"{one_line(stray, 100)}: a {what[0]} is named with {what[1]}; write {again}")
    require_place(path, following)
    from basic_lite.recipe.load import require_keys

    require_keys(base, following)


def meant_by_option(command: str, option: str) -> str:
    """What to do instead of an option that a command doesn't have; empty: nobody knows."""
    if command in ("train", "run", "estimate", "check", "data"):
        return "Recipe keys are changed without dashes: key.path=value, as in training.learning_rate=1e-4."
    return _NO_OPTION.get((command, option), "")


def require_no_card(recipe: str, overrides: Sequence[str]) -> None:
    """Refuse a card or its memory where keys with their values stand.

    Raises:
        UserError: one is there.
    """
    for word in overrides:
        if "=" not in word and _names_card(word):
            again = _line("estimate", recipe, "--gpu", word)
            raise UserError(f"{one_line(word, 100)}: a card, or its memory, is named with --gpu; write {again}")


def _names_card(word: str) -> bool:
    from basic_lite.asked_card import asked_card

    try:
        asked_card(word)
    except UserError:
        return False
    return True


def _mend(command: str, given: Mapping[str, Any], words: Sequence[str]) -> str:
    """What to do about the first word too many.

    Args:
        given: what the command has taken, by the names of its arguments.
    """
    word = words[0]
    if command == "eval":
        return _of_eval(given, words)
    if command == "report" and word.lower().endswith((".html", ".htm")):
        return f"the page is report.html in the run's folder; {_LEAVE_OUT}"
    if command in ("report", "text-probe"):
        return f"it takes one run; give the command again for each: {_line(command, word)}"
    if command == "keys":
        return f"it takes one key or section; give the command again for each: {_line(command, word)}"
    if command == "runs":
        above = os.path.dirname(os.path.normpath(word)) or "."
        return f"it takes one folder; give that which holds them all: {_line(command, above)}"
    if command == "export":
        kind = word.lower().lstrip(".")
        if kind in ("gguf", "f32", "f16", "q8_0"):
            of_kind = [] if kind == "gguf" else ["--gguf-type", kind]
            return f"write {_line(command, given['run'], given['out'], '--gguf', *of_kind)}"
        return "it takes a run and a new folder; give the command again for another run"
    if command == "demo" and os.path.exists(word):
        return f"it has pictures of its own; make a recipe for yours: {_line('data', word)}"
    return _LEAVE_OUT


def _of_eval(given: Mapping[str, Any], words: Sequence[str]) -> str:
    run, word = given["run"], words[0]
    if word.lower().replace("_", "-") in ("held-out", "heldout"):
        return f"write {_line('eval', run, '--held-out')}"
    if ends_as_picture(word):
        return f"it asks all questions of a file; ask about a picture with {_line('chat', run, *words)}"
    if "=" in word or given["data"] is not None or given["held_out"]:
        return _LEAVE_OUT
    if not holds_bundle(Path(word)):
        return f"questions are named with --data; write {_line('eval', run, '--data', word)}"
    if holds_bundle(run):
        return f"it takes one run; give the command again for each: {_line('eval', word, '--data', 'FILE')}"
    return f"the run goes first, and questions are named with --data; write {_line('eval', word, '--data', run)}"


def _line(command: str, *words: object) -> str:
    from basic_lite.console import command_line

    return command_line(["basic-lite", command, *(one_line(str(word), 100) for word in words)])

"""The last lines of ``basic-lite data``: what was written, and what to type next."""

from pathlib import Path

from rich.console import Console

from basic_lite.console import Say, command_line
from basic_lite.data.check import DataReport, key_of, policy
from basic_lite.data.held_out import hold_out
from basic_lite.data.prompts import prompts_of
from basic_lite.data.record import IMAGE_PLACEHOLDER
from basic_lite.data.records import Records
from basic_lite.printable import printable
from basic_lite.recipe.rules import steps_of
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.sizes import number_of
from basic_lite.training.sanity import few_steps

_ASKED = "What is this?"
_LONGEST_QUESTION = 60
# Three short answers to a held-out question take as long as a training step takes for so many samples: 100 questions as
# long as 5 steps of 32, measured on a CPU in the demo (docs/TRAINING.md).
_SAMPLES_A_QUESTION = 1.6


def say_next(recipe: Recipe, records: Records, report: DataReport, target: Path, say: Say, console: Console) -> None:
    """Say what was written, and what to type next."""
    assert isinstance(recipe.data.train, SourceSection)
    prompts = prompts_of(recipe.data.train)
    say(f"wrote {target}")
    if prompts:
        say(
            f"the pictures come with no questions, so one of these is asked before each text (change them under "
            f"`prompt` in {target.name}): {' | '.join(prompts)}"
        )
    training = recipe.training
    held_out = held_out_count(report, recipe.data.held_out or 0.0, recipe.seed)
    trained = len(report.kept) - held_out
    steps = steps_of(recipe, trained)
    passes = "" if training.max_steps else f", {training.epochs:g} passes over {number_of(trained, 'record')}"
    say(f"training is {number_of(steps, 'step')} of {number_of(training.global_batch, 'sample')}{passes}")
    if few := few_steps(recipe, trained, steps):
        say(f"note: {few}")
    if held_out:
        every = "step" if training.eval_every == 1 else f"{training.eval_every} steps"
        are = "is" if held_out == 1 else "are"
        say(f"{number_of(held_out, 'record')} {are} kept for evaluation, every {every} (`data.held_out`)")
    if asked := asking(recipe, report):
        say(f"`training.eval_generate`: {asked}")
    refusing = sorted({key_of(one) for one in report.problems if policy(one, recipe.data) == "refuse"})
    if refusing:
        keys = " and ".join(f"`{key.removeprefix('data.')}: drop`" for key in refusing)
        again = command_line(["basic-lite", "train", target.as_posix(), *(f"{key}=drop" for key in refusing)])
        say(
            f"note: `train` won't start until the records above are mended; or leave them out: write {keys} below "
            f"`data` in {target.name}, or type {again}"
        )
    run, file = (command_line([path.as_posix()]) for path in (recipe.run_path, target))
    say("next:")
    for line in (
        f"  basic-lite check {file}   (looks for copies, answers that need no picture, and more; trains nothing)",
        f"  basic-lite train {file} --dry-run   (shows the plan, and trains nothing)",
        f"  basic-lite train {file}",
        f"  basic-lite chat {run} {_first_question(records, report, prompts)}",
    ):
        console.print(printable(line), soft_wrap=True, markup=False)


def asking(recipe: Recipe, report: DataReport) -> str:
    """What ``training.eval_generate`` does with the records that are held out, and costs; empty: nothing."""
    training = recipe.training
    held_out = held_out_count(report, recipe.data.held_out or 0.0, recipe.seed)
    asked = min(held_out, training.eval_generate)
    if not asked or not training.eval_every:
        return ""
    trained = len(report.kept) - held_out
    steps = steps_of(recipe, trained)
    cost = asked * _SAMPLES_A_QUESTION * -(-steps // training.eval_every)
    share = cost / (cost + steps * training.global_batch)
    return (
        f"at each evaluation the model answers {asked} of the held-out questions, and the step that answers best is "
        f"kept as best/ beside final/; predicted to take {share:.0%} of the run's time, 0 turns it off"
    )


def held_out_count(report: DataReport, share: float, seed: int) -> int:
    """Records that a run would keep for evaluation.

    Raises:
        UserError: they hang together by their pictures, so none can be kept.
    """
    return len(hold_out(report, share, seed)[1].kept) if share else 0


def _first_question(records: Records, report: DataReport, prompts: tuple[str, ...]) -> str:
    """A picture and a question to try the trained model with, as they are typed."""
    for index in report.kept:
        record = records[int(index)]
        image = next((image for image in record.images if image.blob is None), None)
        if image is not None:
            asked = next((turn.text for turn in record.turns if turn.role == "human"), "")
            asked = prompts[0] if prompts else " ".join(asked.replace(IMAGE_PLACEHOLDER, " ").split())
            asked = asked if 0 < len(asked) <= _LONGEST_QUESTION else _ASKED
            return command_line([_shown(Path(image.folder, image.name)), asked])
    return command_line(["PICTURE", _ASKED])


def _shown(path: Path) -> str:
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()

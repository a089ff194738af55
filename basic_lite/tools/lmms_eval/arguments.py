"""What lmms-eval's command line and its tasks ask of a model: taken, or refused in a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from basic_lite.data.problems import nearest, shorten
from basic_lite.errors import UserError
from basic_lite.tools.chat.dialogue import MAX_NEW_TOKENS

MODEL_ARGS = ("run", "device")
# lmms-eval's own models name the model so.
_OTHER_NAMES = {"pretrained": "run", "model": "run", "model_path": "run", "path": "run"}
# What a task may ask that changes nothing in the likeliest answer, and what each of them must be then.
_NO_EFFECT = ("top_p", "top_k", "seed")
_ONE = ("num_beams", "num_return_sequences", "repetition_penalty")
_GREEDY = "--gen_kwargs temperature=0,do_sample=False"


@dataclass(frozen=True)
class Opening:
    """How a run is opened.

    Attributes:
        device: auto, cpu or cuda.
        batch_size: questions answered at once.
    """

    run: str
    device: str
    batch_size: int


def opening(given: Mapping[str, Any], options: Mapping[str, Any]) -> Opening:
    """Read the command line.

    Args:
        given: what `--model_args` says, as lmms-eval reads it.
        options: lmms-eval's own options; None is one that nobody gave.

    Raises:
        UserError: an argument is missing or unknown, or can't be used.
    """
    for name in given:
        if name in ("batch_size", "max_batch_size"):
            raise UserError(f"--model_args {name}: that is lmms-eval's own option; give --batch_size N instead")
        if name not in MODEL_ARGS:
            meant = f"; did you mean {_OTHER_NAMES[name]}?" if name in _OTHER_NAMES else nearest(name, MODEL_ARGS)
            raise UserError(f"--model_args has {shorten(name)}, and the model basic_lite takes run and device{meant}")
    if not (run := given.get("run")):
        raise UserError("--model_args names no run; give --model_args run=runs/NAME, a run folder or a bundle")
    if not isinstance(run, str):
        raise UserError(f"--model_args run={run}: lmms-eval reads no folder there; write run=./{run}")
    if options.get("max_batch_size") is not None:
        raise UserError("--max_batch_size belongs to --batch_size auto, which isn't done here; give --batch_size N")
    if "device" in given and options.get("device") not in (None, given["device"]):
        raise UserError("--device and --model_args device= name two devices; give one of them")
    device, size = given.get("device") or options.get("device") or "auto", options.get("batch_size")
    return Opening(run, str(device), _batch_size(1 if size is None else size))


def _batch_size(value: object) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"--batch_size is {shorten(value)}; give a number of questions answered at once, such as 16")
    return int(text)


@dataclass(frozen=True)
class Generation:
    """How a task wants answers: the likeliest ones.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        until: texts that end an answer; they aren't part of it.
        note: what the user should know; may be empty.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()
    note: str = ""

    def ended(self, text: str) -> str | None:
        """The answer up to the first of the texts that end it; None: there is none in it."""
        places = [place for one in self.until if (place := text.find(one)) >= 0]
        return text[: min(places)].rstrip() if places else None


def generation(asked: Mapping[str, Any], place: str) -> Generation:
    """Read a task's `generation_kwargs`, with what `--gen_kwargs` changes in them.

    Args:
        place: how messages name the task.

    Raises:
        UserError: it wants what isn't done here, or there is no such argument.
    """
    _require_greedy(asked, place)
    notes = []
    for name, value in asked.items():
        if name in _ONE and value not in (None, 1):
            raise UserError(
                f"{place} has {name}={shorten(value)}, and a run answers with its likeliest words alone; "
                f"--gen_kwargs {name}=1 asks for that, and its score is then another one than the task's"
            )
        if name == "image_aspect_ratio" and value is not None:
            notes.append(f"note: {place} has {name}={value}; the run's own data.image_fit is used")
        elif name not in (
            *_NO_EFFECT,
            *_ONE,
            "image_aspect_ratio",
            "until",
            "max_new_tokens",
            "temperature",
            "do_sample",
        ):
            raise UserError(
                f"{place} has the generation argument {shorten(name)}, which a run can't follow; take it out of "
                "generation_kwargs in a copy of the task, and name the copy's folder with --include_path"
            )
    most = asked.get("max_new_tokens")
    if most is None:
        most = MAX_NEW_TOKENS
        notes.append(
            f"note: {place} doesn't say how long answers are: {most} tokens at most (--gen_kwargs max_new_tokens=N)"
        )
    if isinstance(most, bool) or not isinstance(most, Integral) or most < 1:
        raise UserError(f"{place} has max_new_tokens={shorten(most)}; give a whole number, at least 1")
    return Generation(int(most), _until(asked.get("until"), place), "\n".join(notes))


def _require_greedy(asked: Mapping[str, Any], place: str) -> None:
    temperature, drawn = asked.get("temperature"), asked.get("do_sample")
    if temperature is not None and not isinstance(temperature, Real):
        raise UserError(f"{place} has temperature={shorten(temperature)}; give 0")
    # As transformers reads it: without do_sample nothing is drawn, whatever the temperature. lmms-eval's own models
    # draw at any temperature above 0, so that a task which says nothing else means it.
    if drawn is False or temperature == 0 or not (drawn or temperature):
        return
    raise UserError(
        f"{place} has temperature={temperature} do_sample={drawn}, so its answers are drawn, and a run gives its "
        f"likeliest answer; {_GREEDY} asks for that, and its score is then another one than the task's"
    )


def _until(value: object, place: str) -> tuple[str, ...]:
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
        raise UserError(f"{place} has until={shorten(value)}; give a text, or a list of texts")
    return tuple(one for one in texts if one)

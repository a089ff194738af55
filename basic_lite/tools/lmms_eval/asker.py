"""A run is asked the questions of lmms-eval's tasks, by the code that `basic-lite eval` asks with."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from basic_lite.console import counting, note, quiet_libraries
from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record, Turn
from basic_lite.errors import UserError
from basic_lite.model.device import tell_device
from basic_lite.model.load import pick_device
from basic_lite.scoring.questions import most_tokens, require_room
from basic_lite.tools.chat.of_run import RunSpeaker
from basic_lite.tools.lmms_eval.arguments import Generation, Opening
from basic_lite.tools.lmms_eval.likelihood import Likelihood, likelihoods
from basic_lite.tools.lmms_eval.pictures import references, shown_by
from basic_lite.training.answer import answer, enough_for
from basic_lite.training.bundle_files import find_bundle
from basic_lite.training.places import MANIFEST

# Stands in a record for a picture that is read only when the question is asked.
_LATER = ImageRef("(of the task)")


@dataclass(frozen=True)
class Asked:
    """A question of a task.

    Attributes:
        place: how messages name it.
        text: its words; `<image>` may say where pictures go, else they stand before it.
        visuals: gives what the task shows with it, each time anew: all pictures of a task may not fit into memory.
    """

    place: str
    text: str
    visuals: Callable[[], object]


class Asker:
    """An opened run. Notes, and a bar on a terminal, go to stderr."""

    def __init__(self, opening: Opening) -> None:
        """
        Raises:
            UserError: there is no usable run, or the device isn't there.
        """
        _require_one_process()
        quiet_libraries()
        place = Path(opening.run).expanduser()
        _require_no_export(place)
        find_bundle(place, "--model_args run")
        device = pick_device(opening.device, "--device")
        tell_device(device, opening.device, note)
        self._run, self._batch_size = RunSpeaker(place, device), opening.batch_size
        bundle = self._run.bundle
        note(f"evaluating {bundle.folder} (step {bundle.step} of {bundle.manifest['total_steps']})")
        note(self._run.note)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._run.loaded.parts.device

    def answers(self, questions: Sequence[Asked], wanted: Sequence[Generation]) -> list[str]:
        """The likeliest answer to each question.

        Args:
            wanted: of each question, how its answer is wanted.

        Raises:
            UserError: a question can't be asked, or memory runs out.
        """
        records = [self._record(one) for one in questions]
        self._require_room(records)
        for text in dict.fromkeys(one.note for one in wanted):
            note(text)
        texts, cut = [""] * len(questions), 0
        with self._working("answering", len(questions)) as progress:
            for most in sorted({one.max_new_tokens for one in wanted}):
                chosen = [n for n, one in enumerate(wanted) if one.max_new_tokens == most]
                cut += self._answer(questions, records, wanted, chosen, texts, progress)
        if cut:
            note(f"{cut:,} of {len(texts):,} answers were cut at the most tokens that the task allows")
        return texts

    def _answer(
        self,
        questions: Sequence[Asked],
        records: Sequence[Record],
        wanted: Sequence[Generation],
        chosen: Sequence[int],
        texts: list[str],
        progress: Callable[[int], None],
    ) -> int:
        """Answer the chosen questions, which want equally many tokens; returns how many answers were cut."""
        cut_ones: list[int] = []
        asked = [records[n] for n in chosen]

        def made(index: int, text: str, cut: bool) -> None:
            ended = wanted[chosen[index]].ended(text)
            texts[chosen[index]] = text if ended is None else ended
            if cut and ended is None:
                cut_ones.append(index)

        answer(
            self._run.loaded,
            self._run.chat,
            asked,
            image_fit=self._run.recipe.data.image_fit,
            batch_size=self._batch_size,
            max_new_tokens=self._room(asked, wanted[chosen[0]].max_new_tokens),
            images=lambda index: _pictures(questions[chosen[index]]),
            progress=progress,
            made=made,
        )
        return len(cut_ones)

    def likelihoods(self, questions: Sequence[Asked], answers: Sequence[str]) -> list[Likelihood]:
        """How likely each answer is to its question.

        Raises:
            UserError: a question can't be asked, an answer is empty, or memory runs out.
        """
        records = [self._record(one, Turn("gpt", text.strip())) for one, text in zip(questions, answers, strict=True)]
        self._require_room(records)
        with self._working("weighing answers", len(questions)) as progress:
            return likelihoods(
                self._run.loaded,
                self._run.chat,
                records,
                image_fit=self._run.recipe.data.image_fit,
                batch_size=self._batch_size,
                images=lambda index: _pictures(questions[index]),
                progress=progress,
            )

    def _record(self, one: Asked, *more: Turn) -> Record:
        count = len(shown_by(one.visuals(), one.place))
        return Record(0, "", "", (_LATER,) * count, (Turn("human", one.text), *more), at=one.place)

    def _require_room(self, records: Sequence[Record]) -> None:
        require_room(self._run.loaded.frontend, records, lambda record: len(self._run.chat.prompt(record)))

    def _room(self, records: Sequence[Record], most: int) -> int:
        """As many tokens as are wanted, or as many as the model reads beyond the longest question."""
        limit = most_tokens(self._run.loaded.frontend.config.text_config)
        if limit is None:
            return most
        room: int = limit - max(len(self._run.chat.prompt(record)) for record in records)
        if room < most:
            note(f"note: answers have {room:,} tokens at most, not {most:,}: this model reads {limit:,} in all")
        return min(most, room)

    @contextmanager
    def _working(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        enough = enough_for(self._batch_size, "--batch_size", "add device=cpu to --model_args")
        with enough, counting(Console(stderr=True), what, total) as progress:
            yield progress


def _pictures(one: Asked) -> tuple[ImageRef, ...]:
    return references(one.visuals(), one.place)


def _require_no_export(place: Path) -> None:
    if os.path.isfile(place / "config.json") and not os.path.isfile(place / MANIFEST):
        raise UserError(
            f"--model_args run={place}: that is a model that transformers opens (an export?) and no run; give the run "
            f"that it was exported from, or take lmms-eval's own: --model llava_hf --model_args pretrained={place}"
        )


def _require_one_process() -> None:
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"this is one of {count} processes, and a run is evaluated by one; start `python -m lmms_eval` without "
            "`accelerate launch` or torchrun"
        )

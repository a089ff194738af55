"""A model of ours speaks: a run or a bundle, asked exactly as it was trained."""

from collections.abc import Sequence
from pathlib import Path

import torch

from basic_lite.data.batches import Collator
from basic_lite.data.pixels import pixels
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import IMAGE_PLACEHOLDER, Record, Turn
from basic_lite.errors import UserError
from basic_lite.scoring.questions import most_tokens
from basic_lite.tools.chat.dialogue import Message, pictures_of
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner, room_for_answer
from basic_lite.training.answer import asked_otherwise, chat_format, generation_options
from basic_lite.training.bundle import load_trained
from basic_lite.training.places import MANIFEST


class RunSpeaker:
    """The model of a run folder or bundle."""

    def __init__(self, place: Path, device: torch.device) -> None:
        """
        Raises:
            UserError: no usable bundle.
        """
        self.loaded, self.bundle = load_trained(place, device)
        self.recipe = self.bundle.recipe
        self.chat = chat_format(self.recipe, self.loaded.frontend)
        self.name = str(place)
        step, total = self.bundle.step, self.bundle.manifest["total_steps"]
        is_run = not (place / MANIFEST).is_file()  # whoever names a checkpoint knows that it isn't the end
        unfinished = f"not finished: step {step} of {total}" if is_run and step < total else ""
        self.note = "\n".join(filter(None, [unfinished, asked_otherwise(self.recipe, self.chat)]))
        self._limit = most_tokens(self.loaded.frontend.config.text_config)

    def reply(self, messages: Sequence[Message], manner: Manner) -> Reply:
        """See ``Speaker``.

        Raises:
            UserError: the conversation is too long, or can't be written in the run's format.
        """
        record = record_of(messages)
        try:
            prompt = self.chat.prompt(record)
        except RecordProblem as problem:
            raise UserError(f"this conversation can't be asked: {problem.what}") from problem
        room = room_for_answer(manner, len(prompt), self._limit)
        model, inputs = self.loaded.model, self.inputs(record, prompt)
        options = {**generation_options(self.loaded, self.chat), **manner.options()}
        return Reply(
            self.loaded.tokenizer,
            lambda streaming: model.generate(**inputs, **options, **streaming),
            max_new_tokens=room,
            end_ids=self.chat.stop_token_ids,
        )

    def inputs(self, record: Record, ids: list[int]) -> dict[str, torch.Tensor]:
        """A batch of one: the ids of ``record`` [1, T] and its pictures, on the model's device."""
        sample: dict[str, object] = {"input_ids": ids}
        if record.images:
            sample["pixel_values"] = pixels(
                record.images, self.loaded.frontend.image_processor, self.recipe.data.image_fit
            )
        batch = Collator(int(self.loaded.tokenizer.pad_token_id))([sample])
        device = self.loaded.parts.device
        return {name: tensor.to(device) for name, tensor in batch.items()}


def record_of(messages: Sequence[Message]) -> Record:
    """A conversation as a record of training data. Pictures stand before the text that doesn't place them."""
    turns = []
    for message in messages:
        text = message.text
        if message.pictures and IMAGE_PLACEHOLDER not in text:
            text = IMAGE_PLACEHOLDER * len(message.pictures) + f"\n{text}"
        turns.append(Turn("human" if message.role == "user" else "gpt", text))
    return Record(1, "", "chat", pictures_of(messages), tuple(turns))

"""Records made into a model's inputs by its own processor and chat template, one at a time, so nothing is padded."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from basic_lite.console import Say
from basic_lite.data.conversation import IMAGE, conversation
from basic_lite.data.images import ImageRef, open_image
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record, Records, Turn
from basic_lite.errors import UserError
from basic_lite.supervision.separators import without_separators
from basic_lite.tools.inspect.of_folder import OpenModel
from basic_lite.tools.written import Writer

# As many as a run looks at.
SAMPLES = 64
# What is asked about a picture that comes without a text.
QUESTION = "Describe this picture in one sentence."
# Tokens of a description at most.
DESCRIBED = 64
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass
class Conversations:
    """Makes samples. It counts the visual tokens of each picture, and knows the names of the last one's."""

    opened: OpenModel
    tokens: list[float] = field(default_factory=list)  # a picture's, the mean of its sample
    names: list[str] = field(default_factory=list)

    @cached_property
    def writer(self) -> Writer:
        """What writes them."""
        placeholder = self.opened.tokenizer.convert_ids_to_tokens(self.opened.parts.image_token_id)
        return Writer(self.opened.processor, self.opened.name, self.opened.family, [str(placeholder)])

    def samples(self, records: Records, count: int, say: Say) -> Iterator[dict[str, Tensor]]:
        """``count`` samples with pictures, always the same ones. Records that can't be read are left out, and told.

        Raises:
            UserError: none can be used.
        """
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
        made, problems = 0, []
        for index in order:
            if made == count:
                break
            try:
                record = records[index]
                if record.images:
                    yield self.sample(record)
                    made += 1
            except RecordProblem as problem:
                problems.append(problem)
        if problems:
            say(f"warning: {len(problems)} of {made + len(problems)} records left out, as {problems[0]}")
        if not made:
            raise UserError("the data has no record with a picture that can be read, so there is nothing to look at")

    def sample(self, record: Record) -> dict[str, Tensor]:
        """The model's inputs, [1, T] and so on, on its device.

        Raises:
            RecordProblem: no usable conversation, or a picture that can't be read.
        """
        turns = conversation(record)
        pictures = [open_image(image) for image in record.images]
        prefix = self.opened.family.prefix
        batch = self._prefixed(turns, pictures) if prefix else self._template(turns, pictures, answered=True)
        parts = self.opened.parts
        separator = self.opened.family.separator_row(parts.model)
        batch = without_separators(parts, batch, separator)
        visual = batch.get("visual", batch["input_ids"] == parts.image_token_id)
        self.tokens.append(int(visual.sum()) / len(pictures))
        self.names = [image.name for image in record.images]
        return batch

    @torch.no_grad()
    def described(self, image: ImageRef) -> Record:
        """A record of a picture with the model's own description, its likeliest words.

        Raises:
            RecordProblem: the picture can't be read.
        """
        asked = Turn("human", f"{IMAGE}\n{QUESTION}")
        inputs = self._prompt(asked, open_image(image))
        tokenizer, length = self.opened.tokenizer, inputs["input_ids"].shape[1]
        ids = self.opened.parts.model.generate(**inputs, max_new_tokens=DESCRIBED, do_sample=False)
        text = str(tokenizer.decode(ids[0, length:], skip_special_tokens=True)).strip()
        turns = (Turn("human", f"<image>\n{QUESTION}"), Turn("gpt", text or "-"))
        return Record(1, "", image.name, (image,), turns, at=image.name)

    def _prompt(self, asked: Turn, picture: Any) -> dict[str, Tensor]:
        if self.opened.family.prefix:
            inputs = self._processed(images=[picture], text=self._with_marks([asked]))
            return {name: tensor for name, tensor in inputs.items() if name != "labels"}
        return self._template([asked], [picture], answered=False)

    def _template(self, turns: list[Turn], pictures: list[Any], *, answered: bool) -> dict[str, Tensor]:
        """What the chat template makes of a conversation."""
        left = iter(pictures)
        messages = [{"role": _ROLES[turn.role], "content": list(self._content(turn.text, left))} for turn in turns]
        return self._moved(self.writer.inputs(messages, answered=answered))

    def _content(self, text: str, pictures: Iterator[Any]) -> Iterator[dict[str, Any]]:
        """A turn's texts and pictures."""
        first, *rest = text.split(IMAGE)
        if first.strip():
            yield {"type": "text", "text": self.writer.plain(first)}
        for part in rest:
            yield {"type": "image", "image": next(pictures)}
            if part.strip():
                yield {"type": "text", "text": self.writer.plain(part.removeprefix("\n"))}

    def _prefixed(self, turns: list[Turn], pictures: list[Any]) -> dict[str, Tensor]:
        """A prompt with its answer; all that is asked and said before the last answer is the prompt."""
        *asked, answer = turns
        return self._processed(images=pictures, text=self._with_marks(asked), suffix=answer.text)

    def _with_marks(self, asked: list[Turn]) -> str:
        """The turns as one prompt with the processor's mark for each picture, and no line break after a picture."""
        text = "\n".join(self.writer.plain(turn.text) for turn in asked)
        return text.replace(f"{IMAGE}\n", IMAGE).replace(IMAGE, self.opened.processor.image_token)

    def _processed(self, **given: Any) -> dict[str, Tensor]:
        return self._moved(self.writer.processed(**given))

    def _moved(self, made: Any) -> dict[str, Tensor]:
        # Only numbers with a fraction change their type.
        return dict(made.to(self.opened.device, self.opened.parts.model.dtype))

"""Any model that transformers opens as image-text-to-text speaks: an exported folder, or one of other families."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from basic_lite.data.images import open_image
from basic_lite.data.records import IMAGE_PLACEHOLDER
from basic_lite.errors import UserError
from basic_lite.model.checks import require_rows_for_tokens, require_sizes
from basic_lite.model.families import known_family
from basic_lite.model.frontend import read_config
from basic_lite.model.load import pick_dtype, read_checkpoint
from basic_lite.scoring.questions import most_tokens
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner, room_for_answer
from basic_lite.tools.written import Writer, read_processor

KEY = "MODEL"
# Of a model whose prompts are a picture and a text.
_ALONE = "{} knows no conversation: each question is asked alone, about the last pictures"


class FolderSpeaker:
    """A model and its processor as transformers reads them, without code of ours."""

    def __init__(self, name: str, device: torch.device, dtype: str) -> None:
        """
        Args:
            name: folder or hub name.
            dtype: ``auto``, or the name of one.

        Raises:
            UserError: it can't be read, or it isn't such a model.
        """
        self.name = name
        config = read_config(name, KEY)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise UserError(
                f"{name} is a {config.model_type} model, and transformers knows none of these that sees pictures; "
                "give a vision-language model, or a run that was trained from it"
            )
        require_sizes(config.get_text_config(), name, KEY)
        family = known_family(config)
        self.alone = family is not None and family.prefix
        self.note = "" if family is None or not self.alone else _ALONE.format(family.name)
        # Before the weights, which take long.
        self.processor: Any = read_processor(name, family)
        self.writer = Writer(self.processor, name, family)
        if not self.alone:
            self.writer.require_template()
        # What has no room on a card goes to the host.
        place: Any = "auto" if device.type == "cuda" else {"": device}
        options = {"dtype": pick_dtype(dtype, device), "device_map": place}
        self.model: Any = read_checkpoint(AutoModelForImageTextToText, name, KEY, **options).eval()
        self._limit = most_tokens(self.model.config.get_text_config())
        tokenizer, rows = self.processor.tokenizer, self.model.get_input_embeddings().weight.shape[0]
        require_rows_for_tokens(tokenizer, rows, name, KEY, added=False)
        self._ends: list[int] = self.model.generation_config.eos_token_id or [tokenizer.eos_token_id]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._ends[0]
        self._options = {"eos_token_id": self._ends, "pad_token_id": pad, "suppress_tokens": self._marks()}

    def _marks(self) -> list[int] | None:
        """Ids that stand for pictures: an answer has none. None: the configuration names none."""
        config, rows = self.model.config, self.model.get_input_embeddings().weight.shape[0]
        named = {getattr(config, name, None) for name in ("image_token_id", "image_token_index", "video_token_id")}
        return sorted(one for one in named if isinstance(one, int) and 0 <= one < rows) or None

    def reply(self, messages: Sequence[Message], manner: Manner) -> Reply:
        """See ``Speaker``.

        Raises:
            UserError: the conversation is too long, or has no picture where the model needs one.
        """
        made = self._asked_alone(messages) if self.alone else self._conversation(messages)
        inputs = made.to(self.model.device, self.model.dtype)  # only numbers with a fraction change their type
        room = room_for_answer(manner, inputs["input_ids"].shape[1], self._limit)
        options = {**self._options, **manner.options()}
        return Reply(
            self.processor.tokenizer,
            lambda streaming: self.model.generate(**inputs, **options, **streaming),
            max_new_tokens=room,
            end_ids=self._ends,
        )

    def _conversation(self, messages: Sequence[Message]) -> Any:
        return self.writer.inputs([self._as_chat(message) for message in messages], answered=False)

    def _asked_alone(self, messages: Sequence[Message]) -> Any:
        """The last question with the pictures that were shown last."""
        shown = next((message.pictures for message in reversed(messages) if message.pictures), ())
        if not shown:
            raise UserError(f"{self.name} answers questions about a picture alone; give one with the question")
        text = self.writer.plain(messages[-1].text.replace(IMAGE_PLACEHOLDER, "").strip())
        return self.writer.processed(
            images=[open_image(one) for one in shown], text=self.writer.mark * len(shown) + text
        )

    def _as_chat(self, message: Message) -> dict[str, Any]:
        """The message with its content as a list of texts and pictures."""
        images = [{"type": "image", "image": open_image(picture)} for picture in message.pictures]
        texts = message.text.split(IMAGE_PLACEHOLDER) if message.role == "user" else [message.text]
        if len(texts) == 1:
            content = [*images, self._text(texts[0])]
        else:
            content = [self._text(texts[0])]
            for image, text in zip(images, texts[1:], strict=True):
                content += [image, self._text(text)]
        return {"role": message.role, "content": [part for part in content if part.get("text") != ""]}

    def _text(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": self.writer.plain(text)}

"""Any model that transformers opens as image-text-to-text speaks: an exported folder, or one of other families."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from basic_lite.data.images import open_image
from basic_lite.data.records import IMAGE_PLACEHOLDER
from basic_lite.errors import UserError
from basic_lite.model.families import known_family
from basic_lite.model.frontend import unreadable
from basic_lite.model.hub import local_only
from basic_lite.model.load import pick_dtype
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner, room_for_answer
from basic_lite.tools.written import Writer, read_processor

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
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local_only(name))
        except Exception as error:  # files of others may be wrong in any way
            raise unreadable(name, "MODEL", error, what="model") from error
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise UserError(
                f"{name} is a {config.model_type} model, and transformers knows none of these that sees pictures; "
                "give a vision-language model, or a run that was trained from it"
            )
        family = known_family(config)
        self.alone = family is not None and family.prefix
        self.note = "" if family is None or not self.alone else _ALONE.format(family.name)
        # Before the weights, which take long.
        self.processor: Any = read_processor(name, family)
        self.writer = Writer(self.processor, name, family)
        if not self.alone:
            self.writer.require_template()
        try:
            # What has no room on a card goes to the host.
            place: Any = "auto" if device.type == "cuda" else {"": device}
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                name,
                dtype=pick_dtype(dtype, device),
                device_map=place,
                trust_remote_code=False,
                local_files_only=local_only(name),
            ).eval()
        except Exception as error:
            raise unreadable(name, "MODEL", error, what="model") from error
        self._limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def reply(self, messages: Sequence[Message], manner: Manner) -> Reply:
        """See ``Speaker``."""
        made = self._asked_alone(messages) if self.alone else self._conversation(messages)
        inputs = made.to(self.model.device, self.model.dtype)  # only numbers with a fraction change their type
        room = room_for_answer(manner, inputs["input_ids"].shape[1], self._limit)
        ends = self.model.generation_config.eos_token_id
        return Reply(
            self.processor.tokenizer,
            lambda streaming: self.model.generate(**inputs, **manner.options(), **streaming),
            max_new_tokens=room,
            end_ids=ends if isinstance(ends, list) else [ends],
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

"""Any model that transformers opens as image-text-to-text speaks: an exported folder, or a llava-hf one."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from basic_lite.data.images import open_image
from basic_lite.data.records import IMAGE_PLACEHOLDER
from basic_lite.errors import UserError
from basic_lite.model.frontend import unreadable
from basic_lite.model.hub import local_only
from basic_lite.model.load import pick_dtype
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.reply import Reply
from basic_lite.tools.chat.speaker import Manner, room_for_answer


class FolderSpeaker:
    """A model and its processor as transformers reads them, without code of ours."""

    note = ""

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
            # torchvision is no dependency, and resizes in another way.
            self.processor: Any = AutoProcessor.from_pretrained(
                name, backend="pil", trust_remote_code=False, local_files_only=local_only(name)
            )
            # What has no room on a card goes to the host.
            place: Any = "auto" if device.type == "cuda" else {"": device}
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                name,
                dtype=pick_dtype(dtype, device),
                device_map=place,
                trust_remote_code=False,
                local_files_only=local_only(name),
            ).eval()
        except Exception as error:  # files of others may be wrong in any way
            raise unreadable(name, "MODEL", error, what="model") from error
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"{name} has no chat template for pictures (chat_template.jinja, or processor_config.json), so it "
                "can't be asked; export the run again, or add the template of its authors"
            )
        self._image_token = str(getattr(self.processor, "image_token", IMAGE_PLACEHOLDER))
        self._limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def reply(self, messages: Sequence[Message], manner: Manner) -> Reply:
        """See ``Speaker``."""
        try:
            inputs = self.processor.apply_chat_template(
                [self._as_chat(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        except Exception as error:  # a template is a program: it raises whatever it calls raises
            reason = " ".join(str(error).split())
            raise UserError(f"the chat template of {self.name} refuses this conversation: {reason}") from error
        inputs = inputs.to(self.model.device, self.model.dtype)  # only numbers with a fraction change their type
        room = room_for_answer(manner, inputs["input_ids"].shape[1], self._limit)
        ends = self.model.generation_config.eos_token_id
        return Reply(
            self.processor.tokenizer,
            lambda streaming: self.model.generate(**inputs, **manner.options(), **streaming),
            max_new_tokens=room,
            end_ids=ends if isinstance(ends, list) else [ends],
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
        # Written out in a text, the token would be counted as a picture.
        token = self._image_token
        return {"type": "text", "text": text.replace(token, f"{token[0]} {token[1:]}")}

"""Processors without their part for videos, which exists with torchvision alone: pictures need none of it.

transformers reads a processor's parts from the names in its ``__init__``.
"""

from typing import Any

from transformers import (
    InternVLProcessor,
    LlavaOnevisionProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
)


class InternVLPictures(InternVLProcessor):
    """InternVL's, for pictures."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, image_seq_length: int = 256, chat_template: Any = None
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template)


class LlavaOnevisionPictures(LlavaOnevisionProcessor):
    """LLaVA-OneVision's, for pictures."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: Any = None,
        image_token: str = "<image>",
        vision_aspect_ratio: str = "anyres_max_9",
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            None,
            num_image_tokens,
            vision_feature_select_strategy,
            chat_template,
            image_token,
            vision_aspect_ratio=vision_aspect_ratio,
        )


class Qwen2_5_VLPictures(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's, for pictures."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template)


class Qwen3VLPictures(Qwen3VLProcessor):
    """That of Qwen3-VL and Qwen3.5, for pictures."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template)


class SmolVLMPictures(SmolVLMProcessor):
    """SmolVLM's, for pictures."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, image_seq_len: int = 169, chat_template: Any = None
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_len, chat_template)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As other processors do: SmolVLM's own asks its part for videos for their defaults."""
        return ProcessorMixin.apply_chat_template(self, *args, **kwargs)

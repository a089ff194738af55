"""Conversations as any vision-language model of transformers reads them: its processor, and its own chat template."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from transformers import AutoProcessor

from basic_lite.data.time_limit import TookTooLong, at_most
from basic_lite.errors import UserError
from basic_lite.model.families.family import Family
from basic_lite.model.frontend import unreadable
from basic_lite.model.growth import require_bounded_growth
from basic_lite.model.hub import local_only

# A message of a conversation: a role, and a list of texts and pictures.
Message = dict[str, Any]
# A template may loop. Pictures of many tiles take some seconds.
_MOST_SECONDS = 60
# How a template takes a message: pictures among its parts, texts alone as parts, or one text.
Style = Literal["parts", "texts", "text"]


def read_processor(name: str, family: Family | None) -> Any:
    """A model's processor, made for pictures without torchvision.

    Args:
        family: None: it is of none that is known here.

    Raises:
        UserError: it can't be read, needs a package that isn't here, or its tokenizer makes long texts of short ones.
    """
    kind = AutoProcessor if family is None else family.processor
    try:
        # torchvision is no dependency, and resizes in another way.
        processor = kind.from_pretrained(
            name, backend="pil", trust_remote_code=False, local_files_only=local_only(name)
        )
    except Exception as error:  # files of others may be wrong in any way
        if "num2words" in str(error):
            raise UserError(f'the processor of {name} needs num2words: pip install -e ".[inspect]"') from error
        if "torchvision" in str(error).lower():
            raise UserError(
                f"transformers has no processor for {family.name if family else name} without torchvision, which isn't "
                "installed here; install it from the index that your torch is from: another build of it breaks both"
            ) from error
        raise unreadable(name, "MODEL", error, what="processor") from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UserError(
            f"{name} has no processor for texts and pictures (a {type(processor).__name__} was found); fetch its "
            "preprocessor_config.json and tokenizer as its authors publish them"
        )
    require_bounded_growth(processor.tokenizer, name, "MODEL")
    return processor


class Writer:
    """Writes conversations with a model's chat template and processor.

    Where the template takes texts only, as those of language models do, pictures are written into the texts as the
    mark that the processor makes visual tokens of.

    Args:
        name: of the model, for messages.
        marks: other texts that would be counted as pictures.
    """

    def __init__(self, processor: Any, name: str, family: Family | None = None, marks: Sequence[str] = ()) -> None:
        self.processor, self.name = processor, name
        own = str(getattr(processor, "image_token", "<image>"))
        self.mark = family.mark if family is not None and family.mark else own
        self._marks = list(dict.fromkeys([own, *marks]))

    def plain(self, text: str) -> str:
        """A text without marks of pictures: written out, they would be counted as pictures."""
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def require_template(self) -> None:
        """See that there is a chat template.

        Raises:
            UserError: there is none.
        """
        if not getattr(self.processor, "chat_template", None):
            raise UserError(
                f"{self.name} has no chat template for pictures (chat_template.jinja, or processor_config.json), so "
                "conversations can't be written as it knows them; add the template of its authors"
            )

    def inputs(self, messages: Sequence[Message], *, answered: bool) -> Any:
        """A conversation as the model's inputs, on the host.

        Args:
            messages: contents are lists of ``{"type": "text", "text": …}`` and ``{"type": "image", "image": …}``.
            answered: it ends with an answer; else the prompt of one is written.

        Raises:
            UserError: the template or the processor refuses it.
        """
        self.require_template()
        if self._style == "parts":
            return self._made(messages, answered=answered, tokenize=True, return_dict=True, return_tensors="pt")
        pictures = [part["image"] for one in messages for part in one["content"] if part["type"] == "image"]
        written = [{**one, "content": self._as_text(one["content"])} for one in messages]
        text = self._made(written, answered=answered, tokenize=False)
        start = self.processor.tokenizer.bos_token
        special = {"add_special_tokens": False} if start and text.startswith(start) else {}
        return self.processed(text=text, **({"images": pictures} if pictures else {}), **special)

    def processed(self, **given: Any) -> Any:
        """What the processor makes of pictures and a text.

        Raises:
            UserError: it refuses them.
        """
        try:
            return self.processor(**given, return_tensors="pt")
        except Exception as error:  # the model's own, with its own reasons
            raise UserError(f"the processor of {self.name} refuses a conversation: {_reason(error)}") from error

    @cached_property
    def _style(self) -> Style:
        """How the template takes a message, seen from small ones.

        Raises:
            UserError: in no way.
        """
        asked, shown = {"type": "text", "text": "question"}, {"type": "image", "image": "picture"}
        alone, first = self._trial([asked])
        both, _ = self._trial([shown, asked])
        if both and both != alone:
            return "parts"
        if alone:
            return "texts"
        if self._trial("question")[0]:
            return "text"
        raise UserError(f"the chat template of {self.name} writes out no question: {first or 'it leaves its text out'}")

    def _trial(self, content: Any) -> tuple[str, str]:
        """What the template writes, if the question is in it as it is; and why it can't."""
        try:
            text = str(self._made([{"role": "user", "content": content}], answered=False, tokenize=False))
        except UserError as error:
            return "", str(error)
        # A template for texts may write a list as Python does.
        return (text, "") if "question" in text and "'text'" not in text else ("", "")

    def _as_text(self, parts: Sequence[dict[str, Any]]) -> Any:
        text = "".join(part["text"] if part["type"] == "text" else f"{self.mark}\n" for part in parts)
        return text if self._style == "text" else [{"type": "text", "text": text}]

    def _made(self, messages: Sequence[Message], *, answered: bool, **options: Any) -> Any:
        try:
            with at_most(_MOST_SECONDS):
                return self.processor.apply_chat_template(list(messages), add_generation_prompt=not answered, **options)
        except TookTooLong as error:
            raise UserError(
                f"the chat template of {self.name} comes to no end with a conversation; take another"
            ) from error
        except Exception as error:  # a template is a program: it raises whatever it calls raises
            raise UserError(f"the chat template of {self.name} refuses this conversation: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())

"""The three prompt formats, each as pieces (marked text, supervised?).

Supervised is an answer together with the token that ends it, and nothing else.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any, Protocol

from transformers.utils.chat_template_utils import render_jinja_template

from basic_lite.data.conversation import END, IMAGE, START
from basic_lite.data.problems import TemplateRefused, TemplateStopped
from basic_lite.data.records import Turn
from basic_lite.data.time_limit import TookTooLong, at_most, at_most_bytes
from basic_lite.data.tokens import Tokens
from basic_lite.errors import NoMemory, UserError
from basic_lite.recipe.schema import Template
from basic_lite.sizes import GIB

Pieces = list[tuple[str, bool]]

# LLaVA-1.5's `conv_vicuna_v1` (haotian-liu/LLaVA, llava/conversation.py), used by its `--version v1`.
V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# Templates write today's date unless they are given one (Llama 3's takes `date_string`, SmolLM3's and Mistral Small's
# take none); a resumed run, and an exported folder next year, must see the same text.
_DAY = date(2024, 7, 26)
DATE = f"{_DAY:%d %b %Y}"
_TODAY = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1)[^\\])*)\1\s*\)""")
# Seconds that a template may take, and for each turn: real ones take less than a millisecond.
_LIMIT_S, _LIMIT_OF_TURN_S = 10.0, 0.01
# What makes a text of gigabytes in one instruction, which nothing breaks off.
_CODE = re.compile(r"\{[{%].*?[}%]\}", re.DOTALL)
_HUGE = re.compile(r"\d\s*\*\*\s*\d|\*\s*\d{5}|\d{5}\s*\*")
# Memory that a template may take, and characters that it may write besides the turns.
_MOST_BYTES, _MOST_WRITTEN = 2 * GIB, 1_000_000
# So many conversations may take too long. Each costs seconds, and with all of a data set's records that would be days.
_MOST_BREAKS = 3
_MEND = "set data.template to v1 or plain, or give the tokenizer another chat template"


class Format(Protocol):
    """A prompt format."""

    end_of_turn: str

    def pieces(self, turns: list[Turn]) -> Pieces:
        """Pieces of a conversation that ends with a gpt turn.

        Answers that are blank or not ``learned`` are not supervised. An unsupervised piece, possibly empty, stands
        before each answer.
        """
        ...


class Plain:
    """LLaVA's format for projector pre-training: the images, then each answer and a line break, no other text.

    Tokenizers without a line break (word-level ones) get the end-of-text token in its place.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.end_of_turn = "\n" if tokens.raw("a\n") != tokens.raw("a") else _eos(tokens, "plain")

    def pieces(self, turns: list[Turn]) -> Pieces:
        images = sum(turn.text.count(IMAGE) for turn in turns)
        answers = [turn for turn in turns if turn.role == "gpt"]
        pieces: Pieces = [(IMAGE * images, False)]
        for turn in answers:
            pieces.append(("", False))
            # Apart: joined with a full stop, the line break may become one token, which wouldn't end a generation.
            pieces.append((self.tokens.harmless(turn.text), _supervised(turn)))
            pieces.append((self.end_of_turn, _supervised(turn)))
        return pieces


class V1:
    """Vicuna's format as LLaVA-1.5 trains: `system USER: question ASSISTANT: answer</s>USER: …`."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.end_of_turn = _eos(tokens, "v1")

    def pieces(self, turns: list[Turn]) -> Pieces:
        pieces: Pieces = []
        prompt = V1_SYSTEM + " "
        for turn in turns:
            text = self.tokens.harmless(turn.text)
            if turn.role == "system":
                prompt = text + " "
            elif turn.role == "human":
                prompt += f"USER: {text} ASSISTANT:"
            else:
                pieces += [(prompt, False), (f" {text}{self.end_of_turn}", _supervised(turn))]
                prompt = ""
        return pieces


def _supervised(turn: Turn) -> bool:
    return turn.learned and bool(turn.text.strip())


def _eos(tokens: Tokens, template: str) -> str:
    eos = tokens.tokenizer.eos_token
    if not eos or tokens.raw(eos) != [tokens.tokenizer.eos_token_id]:
        raise UserError(
            f"data.template: {template} ends each answer with the end-of-text token, and this tokenizer has none; "
            "set its eos_token, or data.template=tokenizer"
        )
    return str(eos)


class OwnTemplate:
    """The tokenizer's chat template. Answers are found by marks that are put around them while it is rendered.

    Each record is checked: all marks are still there, and without them the text is what the template writes without
    them. What a template itself marks as an answer (`{% generation %}`) isn't asked: it may begin before the answer
    (SmolLM3's has the role in it), and end before the end of the turn or behind it.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        try:
            source = str(tokens.tokenizer.get_chat_template())
        except (ValueError, AttributeError) as error:
            raise UserError(
                "data.template is tokenizer, but this tokenizer has no chat template; set data.template=v1, or plain."
            ) from error
        if any(map(_HUGE.search, _CODE.findall(source))):
            raise UserError(f"the tokenizer's chat template multiplies by huge numbers, as none needs to; {_MEND}.")
        try:
            self.source = _TODAY.sub(lambda found: json.dumps(_DAY.strftime(found[2])), source)
        except ValueError as error:  # Windows knows fewer forms than Linux
            raise UserError(
                f"the tokenizer's chat template writes a date in a form that isn't known here ({error}); {_MEND}."
            ) from error
        if "strftime_now(" in self.source:
            raise UserError(f"the tokenizer's chat template writes today's date, so each day another text; {_MEND}.")
        self.in_parts, self.breaks = False, 0
        self.end_of_turn, self.lead = "", ""
        self._probe()

    def _probe(self) -> None:
        """Learn from a small dialogue how the template ends an answer; see that answers can be found."""
        dialogue = [Turn("human", "question"), Turn("gpt", "answer")]
        try:
            (text,) = self._render(dialogue, True)
            if "question" not in text:
                # Templates of multimodal models want a list of parts where those of LLMs want a string.
                self.in_parts = True
                (text,) = self._render(dialogue, True)
            (prompt,) = self._render(dialogue[:1], True, generation=True)
        except TemplateRefused as error:
            raise UserError(f"the tokenizer's chat template can't be used: {error.what}; {_MEND}.") from error
        if "question" not in text or text.count(START) != 1 or text.count(END) != 1:
            raise UserError(f"the tokenizer's chat template does not write out what it is given; {_MEND}.")
        before, rest = text.split(START)
        tail = rest.split(END)[1]
        special = self.tokens.leading_special.match(tail)
        self.end_of_turn = special.group() if special else tail.rstrip() or tail
        if not self.end_of_turn:
            raise UserError(
                f"the tokenizer's chat template writes nothing after an answer, so the model would never "
                f"learn to stop; {_MEND}."
            )
        # Space before an answer that the prompt of a generation does not have is the model's to write.
        if before.startswith(prompt) and before[len(prompt) :].isspace():
            self.lead = before[len(prompt) :]

    def pieces(self, turns: list[Turn]) -> Pieces:
        """See ``Format``.

        Raises:
            TemplateRefused: the template refuses the turns, changes an answer's text, or leaves the system turn out.
        """
        harmless = [replace(turn, text=self.tokens.harmless(turn.text)) for turn in turns]
        text, marked = self._render(harmless, False, True)
        answers = [turn for turn in turns if turn.role == "gpt" and turn.text.strip()]
        whole = re.sub(f"[^{START}{END}]", "", marked) == (START + END) * len(answers)
        if not whole or marked.replace(START, "").replace(END, "") != text:
            raise TemplateRefused(
                "the chat template changes an answer's text, so which tokens are the answer is unknown", _MEND
            )
        # Not rendered without it: some templates write one of their own then, which a record's may equal.
        other = [replace(harmless[0], text=f"{harmless[0].text} other"), *harmless[1:]]
        if turns[0].role == "system" and turns[0].text.strip() and [text] == self._render(other, False):
            raise TemplateRefused(
                "the chat template leaves the system turn out, as Mistral's does where an answer follows",
                "put its text into the first question, or set data.template=v1",
            )
        return self._from_marks(marked, [turn.learned for turn in answers])

    def _from_marks(self, text: str, learned: list[bool]) -> Pieces:
        pieces: Pieces = []
        prompt, *answers = text.split(START)
        for answer, is_learned in zip(answers, learned, strict=True):
            inside, _, after = answer.partition(END)
            if self.lead and prompt.endswith(self.lead):
                prompt, inside = prompt[: -len(self.lead)], self.lead + inside
            ending = self.end_of_turn if after.startswith(self.end_of_turn) else ""
            if not ending and (special := self.tokens.leading_special.match(after)):
                ending = special.group()
            pieces += [(prompt, False), (inside + ending, is_learned)]
            prompt = after[len(ending) :]
        return [*pieces, (prompt, False)]

    def _messages(self, turns: list[Turn], marked: bool) -> list[dict[str, Any]]:
        names = {"human": "user", "gpt": "assistant", "system": "system"}
        messages: list[dict[str, Any]] = []
        for turn in turns:
            # Space around an answer carries nothing, and templates differ in whether they strip it.
            text = turn.text.strip() if turn.role == "gpt" else turn.text
            if marked and turn.role == "gpt" and text:
                text = START + text + END
            content: Any = [{"type": "text", "text": text}] if self.in_parts else text
            messages.append({"role": names[turn.role], "content": content})
        return messages

    def _render(self, turns: list[Turn], *marked: bool, generation: bool = False) -> list[str]:
        """The conversation's text for each of ``marked``: with marks around its answers, or without."""
        variables: dict[str, Any] = dict(self.tokens.tokenizer.special_tokens_map)
        variables["date_string"] = DATE
        limit_s = _LIMIT_S + len(turns) * _LIMIT_OF_TURN_S
        try:
            with at_most_bytes(_MOST_BYTES), at_most(limit_s):
                texts, _ = render_jinja_template(
                    conversations=[self._messages(turns, one) for one in marked],
                    chat_template=self.source,
                    add_generation_prompt=generation,
                    **variables,
                )
        except TookTooLong:
            what = f"the tokenizer's chat template hasn't written this conversation in {limit_s:.0f} s"
            raise self._broken_off(what) from None
        except MemoryError:
            raise self._broken_off("the tokenizer's chat template fills the memory") from None
        except NoMemory as error:
            what = f"the tokenizer's chat template wasn't rendered: {error}"
            raise NoMemory(f"{what}; if that doesn't help, {_MEND}.") from error
        # A template is a program: it raises jinja's errors, and those of whatever it calls.
        except Exception as error:
            raise TemplateRefused(
                f"the tokenizer's chat template refuses this conversation ({' '.join(str(error).split())})",
                "change its turns (some templates take no system turn), or set data.template=v1",
            ) from error
        most = _MOST_WRITTEN + 100 * sum(len(turn.text) for turn in turns)
        if (longest := max(map(len, texts))) > most:
            what = f"the tokenizer's chat template makes {longest:,} characters of this conversation"
            raise TemplateRefused(what, _MEND)
        return [str(text) for text in texts]

    def _broken_off(self, what: str) -> UserError:
        """The error for a conversation in which the template was stopped; after some, for the template itself."""
        self.breaks += 1
        if self.breaks < _MOST_BREAKS:
            return TemplateRefused(what, _MEND)
        return TemplateStopped(f"{what}, and {_MOST_BREAKS - 1} times before it wasn't done either; {_MEND}.")


FORMATS: dict[Template, Callable[[Tokens], Format]] = {"plain": Plain, "v1": V1, "tokenizer": OwnTemplate}

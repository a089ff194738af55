"""Chat templates for programs that read GGUF: llama.cpp's Jinja, and Ollama's Go template in a Modelfile."""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from basic_lite.errors import UserError

_MARKER = ("<__media_", "__>")  # in between stands what differs from server to server

_PARTS = """\
{{%- set media = namespace(turns=[], parts=[], marker='') -%}}
{{%- for message in messages -%}}
  {{%- if message['content'] is string and {before} in message['content'] -%}}
    {{%- set media.parts = [] -%}}
    {{%- for piece in message['content'].split({before}) -%}}
      {{%- set text = piece -%}}
      {{%- if not loop.first -%}}
        {{%- set media.marker = {before} + piece.split({after})[0] + {after} -%}}
        {{%- set media.parts = media.parts + [{{'type': 'image'}}] -%}}
        {{%- set text = piece.split({after})[1:] | join({after}) -%}}
      {{%- endif -%}}
      {{%- if text -%}}
        {{%- set media.parts = media.parts + [{{'type': 'text', 'text': text}}] -%}}
      {{%- endif -%}}
    {{%- endfor -%}}
    {{%- set media.turns = media.turns + [{{'role': message['role'], 'content': media.parts}}] -%}}
  {{%- else -%}}
    {{%- set media.turns = media.turns + [message] -%}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- set messages = media.turns -%}}
{{%- set prompt -%}}
"""
_MARKED = """\
{{% endset %}}
{{{{- prompt | replace({image}, media.marker) if media.marker else prompt -}}}}
"""

_ASKED, _ANSWERED, _SYSTEM, _AGAIN = "\x02asked", "\x02answered", "\x02system", "\x02again"


class Rendered:
    """A folder's chat template, and what it writes for small dialogues.

    Args:
        tokenizer: of the folder.
        image_token: the token that stands for a picture.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_token: str) -> None:
        self.source = str(tokenizer.get_chat_template())
        self.image_token = image_token
        self._tokenizer = tokenizer
        ids = tokenizer.encode("a")
        self._bos = str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""

    def text(self, *turns: tuple[str, Any]) -> str:
        """The prompt of a dialogue up to where the next answer starts, without the token that a tokenizer adds."""
        messages = [{"role": role, "content": content} for role, content in turns]
        prompt = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return prompt.removeprefix(self._bos)

    def after_picture(self) -> str:
        """What stands between a picture and the question after it.

        Raises:
            UserError: the template doesn't write a picture where a message has one.
        """
        parts = [{"type": "image"}, {"type": "text", "text": _ASKED}]
        found = re.search(f"{re.escape(self.image_token)}(.*?)(?:{_ASKED}|$)", self.text(("user", parts)), re.DOTALL)
        if found is None:
            raise UserError("the folder's chat template leaves a message's picture out; export the run again")
        return found.group(1)

    def starts_special(self) -> bool:
        """Whether a prompt starts with a special token."""
        special = tuple(token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)
        return (self._bos + self.text(("user", _ASKED))).startswith(special)


def for_llama_cpp(rendered: Rendered, lead: str = "") -> str:
    """The chat template of the GGUF file: the folder's own, with what llama.cpp does otherwise around it.

    llama.cpp hands a message with pictures over as one text, in which a marker of its own stands for each picture and
    the question follows at once. It becomes parts again, as transformers hands them over, so the folder's template
    decides what stands between them. Then the image token is exchanged for the marker.

    Args:
        lead: text that must stand before a prompt that doesn't start with a special token.
    """
    marks = {"before": json.dumps(_MARKER[0]), "after": json.dumps(_MARKER[1])}
    image = json.dumps(rendered.image_token, ensure_ascii=False)
    source = rendered.source.removesuffix("\n")
    opening = f"{{{{- {json.dumps(lead)} -}}}}" if lead and not rendered.starts_special() else ""
    return opening + _PARTS.format(**marks) + source + _MARKED.format(image=image)


def for_ollama(rendered: Rendered) -> tuple[str, str] | None:
    """Ollama's template of the same dialogues and the usual system text; None where its language can't say it.

    It knows a turn as `.System`, `.Prompt` and `.Response` and repeats the template for each. So the folder's template
    must write every turn in the same way, whatever stands before it.
    """
    try:
        start, ask = _parts(rendered.text(("user", _ASKED)), _ASKED)
        dialogue = rendered.text(("user", _ASKED), ("assistant", _ANSWERED), ("user", _AGAIN))
        to_answer, rest = _parts(dialogue, _ANSWERED)
        between, _ = _parts(rest, _AGAIN)
    except Exception:  # a template is a program, and may refuse a dialogue in any way
        return None
    opening, closing = _around_system(rendered)
    turn = _common_end(start, between, *([closing] if opening is not None else []))
    usual, after = start.removesuffix(turn), between.removesuffix(turn)
    # Space before an answer that a prompt doesn't end with: the model writes it, and programs trim it.
    gap = to_answer.partition(_ASKED + ask)[2]
    if dialogue != f"{usual}{turn}{_ASKED}{ask}{gap}{_ANSWERED}{after}{turn}{_AGAIN}{ask}" or gap.strip():
        return None
    system = ""
    if opening is not None:
        closing = closing.removesuffix(turn)
        system = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{closing}{{{{ end }}}}"
        if usual:
            if not (usual.startswith(opening) and usual.endswith(closing)):
                return None
            usual = usual[len(opening) : len(usual) - len(closing)]
    elif usual:
        return None
    answer = f"{{{{ if .Response }}}}{gap}{{{{ .Response }}}}{{{{ end }}}}" if gap else "{{ .Response }}"
    template = f"{system}{{{{ if .Prompt }}}}{turn}{{{{ .Prompt }}}}{ask}{{{{ end }}}}{answer}{after}"
    if '"""' in template + usual or "{{" in turn + ask + after + usual + (opening or "") + closing:
        return None
    return template, usual


def _parts(text: str, mark: str) -> tuple[str, str]:
    """What stands before and after a mark that must be there once."""
    before, after = text.split(mark)
    return before, after


def _around_system(rendered: Rendered) -> tuple[str | None, str]:
    """What stands before a system text, and between it and the question; None where the template takes none."""
    try:
        text = rendered.text(("system", _SYSTEM), ("user", _ASKED))
        opening, rest = _parts(text, _SYSTEM)
        return opening, _parts(rest, _ASKED)[0]
    except Exception:  # many templates refuse a system turn, each in its own way
        return None, ""


def _common_end(*texts: str) -> str:
    lengths = range(min(map(len, texts)), -1, -1)
    return next(texts[0][len(texts[0]) - n :] for n in lengths if len({text[len(text) - n :] for text in texts}) == 1)


def modelfile(ollama: tuple[str, str] | None, stops: list[str]) -> str:
    """The text of a Modelfile beside `text.gguf` and `mmproj.gguf`."""
    lines = ["FROM ./text.gguf", "FROM ./mmproj.gguf"]
    if ollama is not None:
        template, system = ollama
        lines.append(f'TEMPLATE """{template}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])

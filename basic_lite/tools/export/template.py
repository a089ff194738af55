"""The exported chat template: Jinja that writes for messages what training wrote for records.

Contents may be strings with ``<image>`` in them or lists of parts. Either becomes marked text first, by the rules of
``data.conversation``: an image that is alone in its message goes to the front, and a line break follows it.
"""

import json
import re
from typing import Any

from basic_lite.data.chat import ChatFormat
from basic_lite.data.conversation import IMAGE
from basic_lite.data.records import Turn
from basic_lite.data.templates import DATE, V1_SYSTEM, OwnTemplate

# `messages` → `ns.turns`, each with a role and a string as its content.
_NORMALISE = """\
{%- set ns = namespace(turns=[], text='', images=0) -%}
{%- for message in messages -%}
  {%- set ns.text = '' -%}{%- set ns.images = 0 -%}
  {%- if message['content'] is string -%}
    {%- set ns.text = message['content'] -%}
    {%- set ns.images = message['content'].split(image_text) | length - 1 -%}
  {%- elif message['content'] -%}
    {%- for content in message['content'] -%}
      {%- if content['type'] != 'text' -%}
        {%- set ns.text = ns.text + image_text -%}
        {%- set ns.images = ns.images + 1 -%}
      {%- elif ns.images > 1 and ns.text == image_text * ns.images and content['text'] | trim == content['text'] -%}
        {%- set ns.text = ns.text + '\\n' + content['text'] -%}
      {%- else -%}
        {%- set ns.text = ns.text + content['text'] -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {%- set ns.text = ns.text | trim -%}
  {%- elif message['role'] == 'user' and ns.images == 1 -%}
    {%- set ns.text = ns.text.replace(image_text, '') | trim -%}
    {%- set ns.text = image_text + ('\\n' + ns.text if ns.text else '') -%}
  {%- endif -%}
  {%- set ns.turns = ns.turns + [{'role': message['role'], 'content': ns.text}] -%}
{%- endfor -%}
"""

_PLAIN = """\
{{- bos_text -}}
{%- for turn in ns.turns if turn['role'] == 'user' -%}
  {{- image_text * (turn['content'].split(image_text) | length - 1) -}}
{%- endfor -%}
{%- for turn in ns.turns if turn['role'] == 'assistant' -%}
  {{- turn['content'] + end_text -}}
{%- endfor -%}
"""

_V1 = """\
{{- bos_text -}}
{%- if not ns.turns or ns.turns[0]['role'] != 'system' -%}{{- system_text + ' ' -}}{%- endif -%}
{%- for turn in ns.turns -%}
  {%- if turn['role'] == 'system' -%}
    {{- turn['content'] + ' ' -}}
  {%- elif turn['role'] == 'user' -%}
    {{- 'USER: ' + turn['content'] + ' ASSISTANT:' -}}
  {%- else -%}
    {{- ' ' + turn['content'] + end_text -}}
  {%- endif -%}
{%- endfor -%}
"""


def chat_template(chat: ChatFormat) -> str:
    """The template for a model that was trained in this format."""
    end = chat.format.end_of_turn
    text = {"image_text": chat.tokens.image_text, "bos_text": bos_text(chat)}
    if chat.template == "plain":
        return _set(text | {"end_text": end}) + _NORMALISE + _PLAIN
    if chat.template == "v1":
        return _set(text | {"end_text": end, "system_text": V1_SYSTEM}) + _NORMALISE + _V1
    assert isinstance(chat.format, OwnTemplate)
    return _set(text | {"date_string": DATE}) + _NORMALISE + _own(chat.format, bos_text(chat))


def bos_text(chat: ChatFormat) -> str:
    """What the tokenizer put at the start of each text in training; empty for most newer tokenizers."""
    return "".join(chat.tokenizer.convert_ids_to_tokens(chat.tokens.bos))


def _own(form: OwnTemplate, bos: str) -> str:
    """The LLM's own template, on the turns as they were made alike."""
    turns = "{%- set messages = ns.turns -%}\n"
    if form.in_parts:
        turns = (
            "{%- set own = namespace(turns=[]) -%}{%- for turn in ns.turns -%}{%- set own.turns = own.turns + "
            "[{'role': turn['role'], 'content': [{'type': 'text', 'text': turn['content']}]}] -%}{%- endfor -%}"
            "{%- set messages = own.turns -%}\n"
        )
    # Only transformers knows this tag.
    source = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", form.source)
    source = re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", source)
    writes_bos = form.pieces([Turn("human", "a"), Turn("gpt", "a")])[0][0].startswith(bos)
    return turns + ("" if writes_bos else "{{- bos_text -}}") + source


def _set(values: dict[str, str | None]) -> str:
    """Jinja that sets strings. JSON's escapes are Jinja's too."""
    return "".join(
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in values.items()
    )


def messages_of(turns: list[Turn]) -> list[dict[str, Any]]:
    """Marked turns (see ``data.conversation``) as messages with lists of parts, as chat programs send them."""
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = []
    for turn in turns:
        pieces = re.split(f"({IMAGE})", turn.text)
        parts = [{"type": "image"} if piece == IMAGE else {"type": "text", "text": piece} for piece in pieces if piece]
        messages.append({"role": names[turn.role], "content": parts})
    return messages

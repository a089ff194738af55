"""The exported chat template: Jinja that writes for messages what training wrote for records.

Contents may be strings with ``<image>`` in them or lists of parts. Either becomes marked text first, by the rules of
``data.conversation``: an image that is alone in its message goes to the front, and a line break follows it; messages of
one role in a row become one turn; a system message after a question joins the next one; and an answer before the first
question is left out.
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
{%- set ns = namespace(turns=[], text='', images=0, asked=false, pending='') -%}
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
  {%- if message['role'] == 'user' and ns.images == 1 -%}
    {%- set ns.text = ns.text.replace(image_text, '') | trim -%}
    {%- set ns.text = image_text + ('\\n' + ns.text if ns.text else '') -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {%- set ns.text = ns.pending + ns.text -%}{%- set ns.pending = '' -%}{%- set ns.asked = true -%}
  {%- endif -%}
  {%- if message['role'] == 'system' and ns.asked -%}
    {%- set ns.pending = ns.pending + ns.text + '\\n' -%}
  {%- elif ns.turns and ns.turns[-1]['role'] == message['role'] -%}
    {%- set ns.text = ns.turns[-1]['content'] + '\\n' + ns.text -%}
    {%- set ns.turns = ns.turns[:-1] + [{'role': message['role'], 'content': ns.text}] -%}
  {%- elif message['role'] != 'assistant' or ns.asked -%}
    {%- set ns.turns = ns.turns + [{'role': message['role'], 'content': ns.text}] -%}
  {%- endif -%}
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
    return _own(chat, chat.format, _set(text | {"date_string": DATE}) + _NORMALISE)


def bos_text(chat: ChatFormat) -> str:
    """What the tokenizer put at the start of each text in training; empty for most newer tokenizers.

    Some tokenizers put a space before a text's first word, but not after a start token that is written out. There the
    space is written out too.
    """
    tokens = chat.tokens
    bos = "".join(tokens.tokenizer.convert_ids_to_tokens(tokens.bos))
    first = chat.format.pieces([Turn("human", "a"), Turn("gpt", "a")])[0][0]
    as_trained = tokens.bos + tokens.raw(first)
    return bos + " " if tokens.raw(bos + first) != as_trained == tokens.raw(bos + " " + first) else bos


def _own(chat: ChatFormat, form: OwnTemplate, head: str) -> str:
    """The LLM's own template, applied to ``ns.turns``.

    Where training wrote more before an answer than the template does for a generation, that is written here (Qwen 3's
    empty thought).
    """
    content = "turn['content'] | trim if turn['role'] == 'assistant' else turn['content']"
    if form.in_parts:
        content = "[{'type': 'text', 'text': " + content + "}]"
    head += (
        "{%- set own = namespace(turns=[]) -%}{%- for turn in ns.turns -%}{%- set own.turns = own.turns + "
        "[{'role': turn['role'], 'content': " + content + "}] -%}{%- endfor -%}"
        "{%- set messages = own.turns -%}\n"
    )
    prompt = form.pieces([Turn("human", "a"), Turn("gpt", "a")])[0][0]
    if not prompt.startswith(bos_text(chat).rstrip()):
        head += "{{- bos_text -}}"
        prompt = bos_text(chat) + prompt
    # Only transformers knows this tag.
    source = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", form.source)
    source = re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", source)
    asked, unasked = (
        chat.tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}],
            chat_template=head + source,
            tokenize=False,
            add_generation_prompt=generation,
        )
        for generation in (True, False)
    )
    if asked == prompt or not prompt.startswith(unasked):
        return head + source
    before_answer = _set({"before_answer": prompt.removeprefix(unasked)})
    switch = "{%- set asked = add_generation_prompt -%}{%- set add_generation_prompt = false -%}\n"
    return before_answer + head + switch + source + "{%- if asked -%}{{- before_answer -}}{%- endif -%}"


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


def as_strings(messages: list[dict[str, Any]], image_text: str) -> list[dict[str, Any]]:
    """The same messages with strings as contents, the image token at each picture's place."""
    return [
        {**message, "content": "".join(part.get("text", image_text) for part in message["content"])}
        for message in messages
    ]

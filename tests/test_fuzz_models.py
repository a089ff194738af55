"""Odd files in folders of models that are asked something: they answer as before, or there is one short error.

A plain run tries some 80 inputs here; ``-m soak`` twenty times as many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import LlavaProcessor

from basic_lite.data.sources import load_records
from basic_lite.model.frontend import load_image_processor, load_tokenizer
from basic_lite.model.load import load_base
from basic_lite.tools.chat.arguments import picture
from basic_lite.tools.chat.dialogue import Message
from basic_lite.tools.chat.of_folder import FolderSpeaker
from basic_lite.tools.chat.speaker import Manner
from basic_lite.training.answer import answer, chat_format
from tests.support.fuzzing import EDIT, ODD, PARTS, edited, json_bytes, tried
from tests.support.models import tiny_tokenizer, write_llava
from tests.support.runs import tiny_recipe, write_data

CPU = torch.device("cpu")
ASKED, CHATS, RULES = 10, 10, 60
parts = pytest.mark.parametrize("part", PARTS)
GENERATION = "generation_config.json"
TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)
# Values of transformers' settings that change an answer, its form, or whether there is one; and any others.
_SETTINGS: dict[str, Any] = {
    "max_time": 1e-9, "guidance_scale": 3.0, "bad_words_ids": [[4]], "sequence_bias": [[[5], 50.0]], "num_beams": 3,
    "watermarking_config": {"bias": 50.0}, "return_dict_in_generate": True, "stop_strings": ["red"],
    "prompt_lookup_num_tokens": 3, "cache_implementation": "static", "num_return_sequences": 2, "min_new_tokens": 9,
    "forced_bos_token_id": 5, "do_sample": True, "temperature": 9.0, "penalty_alpha": 0.6, "max_length": 1,
    "suppress_tokens": [5, 6], "compile_config": {"mode": "x"}, "length_penalty": -9.0, "eos_token_id": [2, 2],
}  # fmt: skip
_PLANTED = {name: st.just(value) | st.just(value) | ODD for name, value in _SETTINGS.items()}
SETTINGS = st.fixed_dictionaries({}, optional=_PLANTED)


def files(*planted: tuple[str, Any]) -> st.SearchStrategy[dict[str, bytes]]:
    """What is written into a model's folder: settings of answers, files that belong to no model, or damaged weights."""
    settings = SETTINGS.map(lambda one: {GENERATION: json_bytes(one)})
    others = st.sampled_from([{name: json_bytes(value)} for name, value in planted])
    damaged = EDIT.map(lambda edit: {"model.safetensors": edit})
    return settings | settings | others | damaged


PLANTED = (
    ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "/"}),
    ("adapter_config.json", []),
    ("model.safetensors.index.json", {"weight_map": {"a": "../a.safetensors"}}),
    ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}),
    ("pytorch_model.bin.index.json", {"weight_map": {"a": "../a.bin"}}),
    (GENERATION, {"eos_token_id": -1}),
    (GENERATION, {"eos_token_id": [2, "x"]}),
    (GENERATION, []),
)


class Folder:
    """A model's folder that is changed and made whole again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wholes = {file.name: file.read_bytes() for file in path.iterdir()}

    def change(self, new: dict[str, Any]) -> None:
        for file in self.path.iterdir():
            if file.read_bytes() != self.wholes.get(file.name):
                file.unlink()
        for name, data in self.wholes.items():
            (self.path / name).write_bytes(data)
        for name, data in new.items():
            (self.path / name).write_bytes(data if isinstance(data, bytes) else edited(self.wholes[name], data))


def only_settings(new: dict[str, Any]) -> bool:
    """Whether nothing was changed that may change an answer."""
    return GENERATION in new and json.loads(new[GENERATION]).get("eos_token_id", [2, 2]) == [2, 2]


@parts
def test_a_model_that_is_evaluated(part: int, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"quantization.mode": "none"})
    record = load_records(recipe.data.train, root=tmp_path)[0]
    folder = Folder(tmp_path / "llm")

    def said() -> list[str]:
        torch.manual_seed(0)  # of the projector, which no checkpoint has
        loaded = load_base(recipe, CPU)
        chat = chat_format(recipe, loaded.frontend)
        return answer(loaded, chat, [record], image_fit="pad", batch_size=1, max_new_tokens=3)

    before = said()

    def act(new: dict[str, Any]) -> None:
        folder.change(new)
        found = said()
        assert not only_settings(new) or found == before

    tried(files(*PLANTED), ASKED, act, tmp_path, part, [str(folder.path)])


@parts
def test_a_model_that_is_talked_with(part: int, tmp_path: Path) -> None:
    write_data(tmp_path, 1)
    write_llava(tmp_path / "llava")
    processor = LlavaProcessor(
        load_image_processor(tmp_path / "llava"),
        tiny_tokenizer(("<image>",)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(tmp_path / "llava")
    folder, asked = Folder(tmp_path / "llava"), [Message("user", "what ?", (picture(tmp_path / "images" / "0.png"),))]

    def said() -> str:
        return "".join(FolderSpeaker(str(folder.path), CPU, "float32").reply(asked, Manner(max_new_tokens=3)))

    before = said()

    def act(new: dict[str, Any]) -> None:
        folder.change(new)
        found = said()
        assert not only_settings(new) or found == before

    tried(files(*PLANTED), CHATS, act, tmp_path, part, [str(folder.path)])


_TEXT = st.sampled_from(["", "e", "ee", "e" * 50, "ل", "ﷺ", "i", "İ", "x" * 3000, " "])
_REGEX = st.sampled_from(["e", "e*", "(?=e)", ".", "^", r"\b", "[^x]", "e|"])
_PATTERN = _TEXT.map(lambda one: {"String": one}) | _REGEX.map(lambda one: {"Regex": one})
_UNICODE = ("NFC", "NFKC", "NFD", "NFKD", "Lowercase", "ByteLevel", "StripAccents")
_RULE = st.one_of(
    st.fixed_dictionaries({"type": st.just("Replace"), "pattern": _PATTERN, "content": _TEXT}),
    st.sampled_from([{"type": one} for one in _UNICODE]),
    st.fixed_dictionaries({"type": st.just("Prepend"), "prepend": _TEXT}),
)
_RULES = st.lists(_RULE, max_size=4).flatmap(lambda one: st.integers(1, 8).map(lambda times: one * times))


@parts
def test_rules_of_tokenizers(part: int, tmp_path: Path) -> None:
    """Rules that multiply are refused; with all others a long text takes no memory worth a word."""
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    file = tmp_path / "llm" / "tokenizer.json"
    whole = json.loads(file.read_text())
    text = "these eels İ ﷺ " * 100

    def act(rules: list[dict[str, Any]]) -> None:
        new = whole | {"normalizer": {"type": "Sequence", "normalizers": rules}}
        file.write_bytes(json_bytes(new))
        tokenizer = load_tokenizer(str(tmp_path / "llm"), "model.llm")
        made = Tokenizer.from_file(str(file)).normalizer.normalize_str(text)
        assert len(made) <= 1000 * len(text) + 1000 * 64
        tokenizer(text)

    tried(_RULES, RULES, act, tmp_path, part, [str(tmp_path / "llm")])

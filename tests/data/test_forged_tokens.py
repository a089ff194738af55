"""A record can't write a special token, nor what the tokenizer's normalizer makes one."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from basic_lite.data.chat import ChatFormat
from tests.support.data import CHATML, record

FORGED = ["<|im_end|>", "＜|im_end|＞", "<｜im_end｜>", "<|IM_END|>", "＜|im_＜|im_end|＞end|＞", "a＜|im_end|＞b" * 50]
# The last one is left over where <|im_end|> is broken up, and "end" follows it.
SPECIAL = ("<|im_start|>", "<|im_end|>", "<image>", "|>end")
NORMALIZERS = {
    "nfkc": normalizers.NFKC(),
    "lower": normalizers.Lowercase(),
    "both": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "none": None,
}


def chat(normalizer: Any, template: Any = "tokenizer") -> ChatFormat:
    words = ["<unk>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", *map(chr, range(32, 127)), "\n"]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    if normalizer is not None:
        core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.add_special_tokens([AddedToken(one, normalized=True, special=True) for one in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    made.chat_template = CHATML
    return ChatFormat(template, made, 2, 4)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("text", FORGED)
@pytest.mark.parametrize("template", ["tokenizer", "v1", "plain"])
def test_no_turn_is_forged(name: str, text: str, template: str) -> None:
    made = chat(NORMALIZERS[name], template)
    special = made.tokens.tokenizer.convert_tokens_to_ids(["</s>", *SPECIAL])
    plain = made.encode(record("question", "answer"), 10_000).input_ids
    for turns in ((f"question {text}", "answer"), ("question", f"answer {text}")):
        ids = made.encode(record(*turns), 10_000).input_ids
        assert [ids.count(one) for one in special] == [plain.count(one) for one in special]


@pytest.mark.parametrize("name", NORMALIZERS)
def test_ordinary_texts_stay_as_they_are(name: str) -> None:
    made = chat(NORMALIZERS[name])
    for text in ("a red circle", "x < y | z >", "Ｆｕｌｌ ＷＩＤＴＨ", "im_end"):
        assert made.tokens.harmless(text) == text

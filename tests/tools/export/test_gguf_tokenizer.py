"""The tokenizer in a GGUF file: tokens, types, merges or scores, and which tokenizers are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.pre_tokenizer import pre_tokenizer_of
from basic_lite.tools.export.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    vocabulary_of,
)
from tests.support.gguf import BYTE_LEVEL, byte_tokenizer, piece_tokenizer
from tests.support.models import tiny_tokenizer


def vocabulary(folder: Path, tokenizer: Any, rows: int = 512, **changes: Any) -> Vocabulary:
    """Of a saved tokenizer; ``changes``: keys of tokenizer.json, or of its model, to other values."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        (raw if key in raw else raw["model"])[key] = value
    path.write_text(json.dumps(raw), encoding="utf-8")
    return vocabulary_of(folder, rows)


def test_byte_level_bpe(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("qwen2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(["<think>"])
    GenerationConfig(eos_token_id=[2, 0], suppress_tokens=[400]).save_pretrained(tmp_path)
    got = vocabulary(tmp_path, tokenizer)
    fields = got.fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "qwen2"
    assert len(tokens) == len(types) == len(set(tokens)) == 512
    inside = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[: len(tokenizer)] == inside and tokens[len(tokenizer)] == f"[PAD{len(tokenizer)}]"
    assert types[:3] == [CONTROL] * 3 and types[400:402] == [CONTROL, USER_DEFINED]
    assert set(types[3:400]) == {NORMAL} and set(types[402:]) == {UNUSED}
    merges = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]]
    assert all(len(pair) == 2 and "".join(pair) in tokens for pair in merges)
    assert fields["tokenizer.ggml.eos_token_id"] == 2 and fields["tokenizer.ggml.eot_token_id"] == 0
    assert fields["tokenizer.ggml.suppress_tokens"] == [400]
    assert "tokenizer.ggml.bos_token_id" not in fields and not fields["tokenizer.ggml.add_bos_token"]
    assert got.lead == "" and any("NFC" in note for note in got.notes)


@pytest.mark.parametrize(
    ("scheme", "everywhere", "lead"), [("first", False, " "), ("always", True, ""), ("never", False, "")]
)
def test_sentencepiece_bpe(tmp_path: Path, scheme: str, everywhere: bool, lead: str) -> None:
    tokenizer = piece_tokenizer(tmp_path / "pieces", scheme)
    got = vocabulary(tmp_path, tokenizer)
    fields = got.fields
    types, scores = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.scores"]
    assert fields["tokenizer.ggml.model"] == "llama" and fields["tokenizer.ggml.add_bos_token"]
    assert fields["tokenizer.ggml.add_space_prefix"] is everywhere and got.lead == lead
    ids = tokenizer.get_vocab()
    assert types[ids["<unk>"]] == UNKNOWN and types[ids["<s>"]] == types[ids["</s>"]] == CONTROL
    assert types.count(BYTE) == 256 and types[ids["<0x0A>"]] == BYTE
    # SentencePiece numbers its merged pieces in the order of their scores.
    merged = [row for row in range(512) if scores[row] > -1e6]
    assert len(merged) > 50 and [scores[row] for row in merged] == [-float(n) for n in range(len(merged))]


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_each_rule_has_its_name(tmp_path: Path, pre: str) -> None:
    got = vocabulary(tmp_path, byte_tokenizer(pre))
    assert got.fields["tokenizer.ggml.pre"] == pre
    assert any("combining" in note for note in got.notes) == (pre in ("tekken", "gpt-4o"))


def test_the_rule_of_transformers_own_qwen2() -> None:
    ours = Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    assert pre_tokenizer_of(json.loads(ours.backend_tokenizer.to_str())) == "qwen2"


def test_phi3_drops_spaces_where_llama_cpp_can(tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(tmp_path / "pieces")
    user = AddedToken("<|user|>", rstrip=True, special=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [user]})
    tokenizer.save_pretrained(tmp_path / "a")
    got = vocabulary_of(tmp_path / "a", 512)
    assert not got.rstrip and any("<|user|> drop the space after" in note for note in got.notes)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(tmp_path / "b")
    got = vocabulary_of(tmp_path / "b", 512)
    assert got.rstrip and got.notes == []


SPLIT = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"pre_tokenizer": SPLIT}, r"in a way that GGUF files are not written for here \(x\+\); give --llama-cpp"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"ignore_merges": True}, "byte level with GPT-2's rule"),
        ({"normalizer": {"type": "Lowercase"}}, "doesn't do: normalizer .*Lowercase"),
        ({"dropout": 0.1}, "doesn't do: dropout"),
        ({"end_of_word_suffix": "</w>"}, "doesn't do: end_of_word_suffix"),
    ],
)
def test_byte_level_tokenizers_that_are_refused(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError, match=found):
        vocabulary(tmp_path, byte_tokenizer("gpt-2"), **changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"ignore_merges": True}, "ignore_merges"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer .*NFKC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer .*Whitespace"),
    ],
)
def test_sentencepiece_tokenizers_that_are_refused(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError, match=found):
        vocabulary(tmp_path, piece_tokenizer(tmp_path / "pieces"), **changes)


def test_merges_that_are_not_sentencepieces_are_refused(tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(tmp_path / "pieces")
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ways: dict[str, list[Any]] = {}
    for pair in merges:
        ways.setdefault("".join(pair), []).append(pair)
    several = next(pairs for pairs in ways.values() if len(pairs) > 1)
    with pytest.raises(UserError, match="never merges"):
        vocabulary(tmp_path, tokenizer, merges=[pair for pair in merges if pair != several[0]])
    with pytest.raises(UserError, match="not in SentencePiece's order"):
        vocabulary(tmp_path, tokenizer, merges=[pair for pair in merges if pair != several[0]] + [several[0]])


def test_bytes_without_a_token_are_refused(tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(tmp_path / "pieces")
    vocab = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    vocab["<gone>"] = vocab.pop("<0x41>")
    with pytest.raises(UserError, match="1 bytes without a token"):
        vocabulary(tmp_path, tokenizer, vocab=vocab)


def test_a_word_level_tokenizer_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"WordLevel model.*llama\.cpp has no word-level tokenizer at all"):
        vocabulary(tmp_path, tiny_tokenizer())


def test_a_tokenizer_larger_than_the_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="400 tokens and the embedding table 300 rows"):
        vocabulary(tmp_path, byte_tokenizer("gpt-2"), rows=300)


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        vocabulary_of(tmp_path, 10)


def test_a_tokenizer_with_a_bos_token_says_so(tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer("llama-bpe")
    tokenizer.bos_token = "<|im_start|>"
    assert not vocabulary(tmp_path, tokenizer).fields["tokenizer.ggml.add_bos_token"]


def test_a_prompt_has_no_end_whatever_the_tokenizer_adds(tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer("llama-bpe")
    end = tokenizer.eos_token
    added = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=False), added])
    assert tokenizer.encode("a")[-1] == tokenizer.eos_token_id
    assert vocabulary(tmp_path, tokenizer).fields["tokenizer.ggml.add_eos_token"] is False

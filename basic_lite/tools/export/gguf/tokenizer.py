"""A transformers tokenizer as fields of a GGUF file: tokens, their types, and merges or scores."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.converter import OTHERWISE
from basic_lite.tools.export.gguf.pre_tokenizer import INEXACT, pre_tokenizer_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens."""

SPACE = "\u2581"
"""Stands for a space in SentencePiece's tokens."""

_PHI3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for GGUF.

    Attributes:
        fields: what the file says of it, without the chat template.
        lead: text that a chat template must begin with, since llama.cpp doesn't add it.
        rstrip: whether llama.cpp must drop the space after control tokens, as Phi-3's tokenizer does.
        notes: where llama.cpp's tokenizer differs.
    """

    fields: dict[str, Any]
    lead: str
    rstrip: bool
    notes: list[str]


def vocabulary_of(folder: Path, rows: int) -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
        rows: rows of the embedding table; those beyond the tokenizer are named and marked as unused.

    Raises:
        UserError: GGUF can't hold it.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{folder} has no tokenizer.json, which GGUF's vocabulary is read from; {OTHERWISE}")
    raw = json.loads(file.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens and the embedding table {rows} rows; export again")
    _check_model(raw)
    tokens, types = _tokens(raw, tokenizer, rows)
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    lead, notes = "", _attribute_notes(tokenizer)
    if raw["model"].get("byte_fallback"):
        scores = _scores(raw["model"], types, rows)
        everywhere, first = _added_spaces(tokenizer)
        lead = " " if first and not everywhere else ""
        fields |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": everywhere,
        }
    else:
        fields |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre_tokenizer_of(raw),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(raw["model"])],
        }
        if fields["tokenizer.ggml.pre"] in INEXACT:
            notes.append(
                "llama.cpp cuts words with combining marks (Thai, Hindi, …) in other places than this tokenizer does."
            )
    return Vocabulary(fields | _special_fields(folder, tokenizer), lead, _strips_right(tokenizer), notes)


def _check_model(raw: dict[str, Any]) -> None:
    model = raw["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"the tokenizer is a {model['type']} model, and GGUF files are written here for byte-pair encoding only "
            f"(byte-level, or SentencePiece's with byte fallback)"
            + (
                ": llama.cpp has no word-level tokenizer at all; leave --gguf out, or train with another language model"
                if model["type"] == "WordLevel"
                else f"; {OTHERWISE}"
            )
        )
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    normalizer = raw.get("normalizer")
    if model.get("byte_fallback"):
        if model.get("ignore_merges"):
            odd.append("ignore_merges")
        if normalizer not in _SENTENCEPIECE_NORMALIZERS:
            odd.append(f"normalizer {normalizer}")
        if not _cuts_nothing(raw.get("pre_tokenizer")):
            odd.append(f"pre_tokenizer {raw['pre_tokenizer']}")
        if missing := _BYTE_TOKENS - model["vocab"].keys():
            odd.append(f"{len(missing)} bytes without a token")
    elif normalizer not in (None, {"type": "NFC"}):
        odd.append(f"normalizer {normalizer}")
    if odd:
        raise UserError(f"the tokenizer has what llama.cpp doesn't do: {', '.join(odd)}; {OTHERWISE}")


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SENTENCEPIECE_NORMALIZERS: tuple[Any, ...] = (
    None,
    _REPLACE,
    {"type": "Sequence", "normalizers": [_REPLACE]},
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, _REPLACE]},
)


def _cuts_nothing(step: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer leaves a text whole once its spaces are replaced."""
    if step is None:
        return True
    if step["type"] == "Metaspace":
        return step["replacement"] == SPACE and not step.get("split", True)
    return bool(step["type"] == "Split" and step["pattern"] == {"String": " "})


def _tokens(raw: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """Every row's text and type. Added tokens stand as they are matched, without SentencePiece's mark."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [UNUSED] * rows
    fallback = bool(raw["model"].get("byte_fallback"))
    for text, row in raw["model"]["vocab"].items():
        tokens[row] = text
        types[row] = BYTE if fallback and text in _BYTE_TOKENS else NORMAL
    for row, token in tokenizer.added_tokens_decoder.items():
        tokens[row] = token.content if token.special else token.content.replace(SPACE, " ")
        types[row] = CONTROL if token.special else USER_DEFINED
    if fallback and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    return tokens, types


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of tokens in the order in which they are merged. Older files write a pair as one text."""
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    return [(left, right) for left, right in pairs]


def _scores(model: dict[str, Any], types: list[int], rows: int) -> list[float]:
    """SentencePiece's scores: a token that is merged earlier has a higher one.

    llama.cpp merges any two neighbours whose joint text is a token. So the merges must name every way in which a
    token is two others, and have all ways of one token in a row.

    Raises:
        UserError: they don't, so llama.cpp would cut texts into other tokens.
    """
    vocabulary = model["vocab"]
    merges = _merges(model)
    made = list(dict.fromkeys(left + right for left, right in merges))
    changes = sum(one[0] + one[1] != other[0] + other[1] for one, other in pairwise(merges))
    known = set(merges)
    normal = (text for text, row in vocabulary.items() if types[row] == NORMAL)
    for text in normal:
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in known and all(part in vocabulary and types[vocabulary[part]] == NORMAL for part in pair):
                raise UserError(
                    f"the tokenizer never merges {pair[0]!r} and {pair[1]!r}, and llama.cpp would; {OTHERWISE}"
                )
    if merges and changes != len(made) - 1:
        raise UserError(
            f"the tokenizer's merges are not in SentencePiece's order, which llama.cpp follows; {OTHERWISE}"
        )
    scores = [-1e6] * rows
    for order, text in enumerate(made):
        scores[vocabulary[text]] = -float(order)
    return scores


def _added_spaces(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether a space is put before a text after a special token too, and at the very start."""
    special = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    starts = [
        tokenizer.convert_ids_to_tokens(tokenizer.encode(before + "a", add_special_tokens=False))[at].startswith(SPACE)
        for before, at in ((special, 1), ("", 0))
    ]
    return starts[0], starts[1]


def _special_fields(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Ids of special tokens, and whether the tokenizer begins a text with one by itself.

    A prompt ends with none, whatever the tokenizer does with other texts.
    """
    fields: dict[str, Any] = {}
    for name, field in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            fields[f"tokenizer.ggml.{field}_token_id"] = int(token)
    ids = tokenizer.encode("a")
    fields["tokenizer.ggml.add_bos_token"] = bool(ids) and ids[0] == tokenizer.bos_token_id
    fields["tokenizer.ggml.add_eos_token"] = False
    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder)
        ends = settings.eos_token_id
        others = [
            end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, tokenizer.eos_token_id)
        ]
        if others:
            fields["tokenizer.ggml.eot_token_id"] = int(others[0])
        if settings.suppress_tokens:
            fields["tokenizer.ggml.suppress_tokens"] = [int(one) for one in settings.suppress_tokens]
    return fields


def _strips_right(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether special tokens drop the space after them, and llama.cpp can do so: it looks for Phi-3's four by name."""
    tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
    return any(token.rstrip for token in tokens.values()) and tokens.keys() >= _PHI3


def _attribute_notes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    notes = []
    odd = [token.content for token in tokenizer.added_tokens_decoder.values() if token.lstrip or token.single_word]
    stripped = [token.content for token in tokenizer.added_tokens_decoder.values() if token.rstrip]
    if stripped and not _strips_right(tokenizer):
        notes.append(f"The tokens {', '.join(stripped)} drop the space after them; in llama.cpp they keep it.")
    if odd:
        notes.append(f"The tokens {', '.join(odd)} drop the space before them; in llama.cpp they keep it.")
    if getattr(tokenizer.backend_tokenizer, "normalizer", None) is not None and "NFC" in repr(
        tokenizer.backend_tokenizer.normalizer
    ):
        notes.append("The tokenizer composes accents (NFC) before it cuts a text; llama.cpp takes a text as it comes.")
    return notes

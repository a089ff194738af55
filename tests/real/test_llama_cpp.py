"""llama.cpp computes from our GGUF files what transformers computes from the folder: tiny models of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from basic_lite.tools.export.gguf import write_gguf
from basic_lite.tools.export.gguf.notes import as_llama_cpp_sees
from tests.support.gguf import BYTE_LEVEL, LINES, byte_tokenizer, piece_tokenizer, write_llava
from tests.support.llama_cpp import LlamaCpp

pytest.importorskip("xllamacpp", reason='llama.cpp in process is the package xllamacpp: pip install ".[real]"')
pytestmark = pytest.mark.real

ROWS = 512
EXACT, GELU = 2e-4, 1e-2
"""Bounds of log-probabilities. llama.cpp looks GELU up in a table of 16-bit values: towers, projector, and Gemma."""
RULE = {"qwen2": "qwen2", "qwen3": "qwen2", "mistral": "tekken", "phi3": "dbrx", "llama": "llama-bpe"}
NO_WINDOW = {"sliding_window": None}
TEXTS = (
    *LINES,
    *("a", " a", "  two", "x   ", "a\n\n\n b  ", "\t\tx\r\n", "1234567 12.5", "I'M we'Ve", "🦘🦘 ok", "          "),
    "camelCASE XMLHttp/Req/ok/\n/",
)


def noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def asking(*images: Image.Image, text: str = "What is this?") -> list[dict[str, Any]]:
    pictures = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


class Pair:
    """One folder in both programs."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.files = write_gguf(folder, folder / "gguf", say=lambda line: None, **{"kind": "f32", **options})
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.say = self.tokenizer.encode("a")[-1]

    @torch.no_grad()
    def text_difference(self, context: int = 512) -> float:
        """Largest difference of a log-probability after beginnings of a text, over the whole vocabulary."""
        program = LlamaCpp(self.folder / "gguf", vision=False, context=context)
        ids = self.tokenizer.encode(" ".join(LINES))[:60]
        ours = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)  # [T, V]
        return max(
            _difference(program.after(ids[:n], say=self.say, likeliest=ROWS), ours[n - 1])
            for n in (1, 2, 7, 25, len(ids))
        )

    def picture_difference(
        self, messages: list[dict[str, Any]], model: Callable[[dict[str, Tensor]], Tensor] | None = None
    ) -> float:
        """The same for the first token of an answer. Both must count as many tokens in the prompt.

        Args:
            model: inputs → logits [T, V]; None: the folder's own.
        """
        theirs = LlamaCpp(self.folder / "gguf").asked(messages, say=self.say, likeliest=ROWS)
        inputs = self.inputs(messages)
        assert theirs.prompt_tokens == inputs["input_ids"].shape[1]
        ours = (model or self.logits)(inputs)
        return _difference(theirs.logprobs[0], ours[-1].log_softmax(-1))

    def inputs(self, messages: list[dict[str, Any]]) -> dict[str, Tensor]:
        processor = AutoProcessor.from_pretrained(self.folder, backend="pil")
        found: dict[str, Tensor] = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        return found

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor], pixel_values: Tensor | None = None) -> Tensor:
        """[T, V] of transformers; ``pixel_values``: others than the inputs'."""
        changed = {} if pixel_values is None else {"pixel_values": pixel_values}
        found: Tensor = self.model(**{**inputs, **changed}).logits[0]
        return found


def _difference(theirs: dict[int, float], ours: Tensor) -> float:
    assert len(theirs) == ROWS
    return max(abs(value - float(ours[token])) for token, value in theirs.items())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "phi3"])
def test_families(tmp_path: Path, kind: str) -> None:
    changes = NO_WINDOW if kind in ("mistral", "phi3") else {}
    pair = Pair(write_llava(tmp_path / kind, byte_tokenizer(RULE.get(kind, "gpt-2")), kind=kind, text=changes))
    assert pair.text_difference() < (GELU if kind.startswith("gemma") else EXACT)
    assert pair.picture_difference(asking(noise(0))) < GELU
    # What is compared sees the picture.
    other = pair.inputs(asking(noise(1)))["pixel_values"]
    assert pair.picture_difference(asking(noise(0)), lambda inputs: pair.logits(inputs, other)) > 10 * GELU


ROPE = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
}


@pytest.mark.parametrize("scaling", ROPE)
def test_scaled_positions(tmp_path: Path, scaling: str) -> None:
    rope = {"rope_parameters": {"rope_theta": 10_000.0, **ROPE[scaling]}}
    assert Pair(write_llava(tmp_path / scaling, byte_tokenizer("llama-bpe"), text=rope)).text_difference() < EXACT


@pytest.mark.parametrize("context", [128, 512])
def test_phi3_with_a_long_context(tmp_path: Path, context: int) -> None:
    """With a context larger than the original one llama.cpp takes the factors for long texts for all."""
    factors = {"short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [2.0 + n for n in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 256, **factors}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 256, **NO_WINDOW}
    pair = Pair(write_llava(tmp_path / "phi3", byte_tokenizer("dbrx"), kind="phi3", text=changes))
    assert (pair.text_difference(context) < EXACT) == (context <= 256)
    assert any("--ctx-size" in note for note in pair.files.notes)


def test_windows_of_gemma3_in_another_order(tmp_path: Path) -> None:
    layers = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    folder = write_llava(tmp_path / "g", byte_tokenizer("gpt-2"), kind="gemma3", text={"layer_types": layers})
    assert Pair(folder).text_difference() < GELU


def test_windows_that_are_left_out_make_the_difference_that_is_noted(tmp_path: Path) -> None:
    pair = Pair(write_llava(tmp_path / "mistral", byte_tokenizer("tekken"), kind="mistral"))
    assert pair.text_difference() > 0.1 and any("no more than 12" in note for note in pair.files.notes)


@pytest.mark.parametrize(("kind", "bound"), [("f16", 0.02), ("q8_0", 1.0)])
def test_smaller_types_stay_near(tmp_path: Path, kind: Any, bound: float) -> None:
    pair = Pair(write_llava(tmp_path / kind, byte_tokenizer("qwen2"), kind="qwen2"), kind=kind)
    assert EXACT < pair.text_difference() < bound


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"layer": -1}, 1),
        ({"layer": 2}, 1),
        ({"fit": "pad"}, 1),
        ({"vision": {"intermediate_size": 64}}, 1),
        ({"template": "v1"}, 1),
        ({}, 2),
    ],
    ids=["last layer", "second layer", "padded", "equal widths", "v1", "two pictures"],
)
def test_towers_and_templates(tmp_path: Path, options: dict[str, Any], images: int) -> None:
    pair = Pair(write_llava(tmp_path / "m", byte_tokenizer("gpt-2"), **options))
    assert pair.picture_difference(asking(*(noise(n) for n in range(images)))) < GELU


@pytest.mark.parametrize("template", ["tokenizer", "v1", "plain"])
def test_prompts_of_dialogues(tmp_path: Path, template: Any) -> None:
    """llama.cpp's own Jinja writes what transformers' writes."""
    pair = Pair(write_llava(tmp_path / "m", byte_tokenizer("gpt-2"), template=template))
    dialogue = [("system", "Be brief."), ("user", "One?"), ("assistant", " yes "), ("user", "Two?")]
    turns = [{"role": role, "content": text} for role, text in dialogue]
    program = LlamaCpp(pair.folder / "gguf")
    for messages in (turns, turns[1:], turns[1:2]):
        truth = pair.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert program.prompt(messages) == truth


SIZES = {"wide": (90, 50), "tall": (30, 200), "small": (20, 10)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["square", "pad"])
def test_pictures_are_resized_as_we_say(tmp_path: Path, fit: Any, size: str) -> None:
    """`as_llama_cpp_sees` is what it does. The path without padding leans on how it chooses parts of a picture."""
    pair = Pair(write_llava(tmp_path / "m", byte_tokenizer("gpt-2"), fit=fit))
    processor = AutoProcessor.from_pretrained(pair.folder, backend="pil").image_processor
    mean, std = (torch.tensor(getattr(processor, f"image_{name}")).view(3, 1, 1) for name in ("mean", "std"))
    image = noise(0, SIZES[size])
    seen = torch.from_numpy(np.array(as_llama_cpp_sees(image, 48, fit == "pad"))).permute(2, 0, 1) / 255
    pixels = ((seen - mean) / std)[None]
    assert pair.picture_difference(asking(image), lambda inputs: pair.logits(inputs, pixels)) < GELU


def test_only_padding_moves_pictures(tmp_path: Path) -> None:
    square = Pair(write_llava(tmp_path / "square", byte_tokenizer("gpt-2")))
    assert square.picture_difference(asking(noise(0, SIZES["wide"]))) < GELU
    padded = Pair(write_llava(tmp_path / "padded", byte_tokenizer("gpt-2"), fit="pad"))
    assert padded.picture_difference(asking(noise(0, SIZES["wide"]))) > 2 * GELU
    assert any("then pads" in note for note in padded.files.notes)


def test_a_clip_tower_gives_what_the_bug_explains(tmp_path: Path) -> None:
    """With the class token last, positions in that order, and rows 1 to N taken, ours and llama.cpp's agree."""
    pair = Pair(write_llava(tmp_path / "m", byte_tokenizer("gpt-2"), tower="clip"))
    messages = asking(noise(0))
    mended = "llama.cpp has no bug with CLIP towers any more: drop the note of the export, and this test"
    assert pair.picture_difference(messages) > 5 * GELU, mended
    embeddings = pair.model.model.vision_tower.embeddings

    def embedded(pixel_values: Tensor, **_: Any) -> Tensor:
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [1, N, D]
        last = torch.cat([patches, embeddings.class_embedding.expand(1, 1, -1)], dim=1)
        return last + embeddings.position_embedding(embeddings.position_ids)

    def as_the_bug_does(inputs: dict[str, Tensor]) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embeddings, "forward", embedded)
            return pair.logits(inputs)  # LLaVA drops row 0, here the first patch

    assert pair.picture_difference(messages, as_the_bug_does) < GELU


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], list[str]]:
    """Tokenizer → the texts that llama.cpp cuts otherwise."""

    def different(tokenizer: Any, before: str = "") -> list[str]:
        folder = write_llava(tmp_path_factory.mktemp("tokenizer") / "m", tokenizer)
        write_gguf(folder, folder / "gguf", say=lambda line: None)
        program = LlamaCpp(folder / "gguf", vision=False)
        own = AutoTokenizer.from_pretrained(folder)
        return [text for text in TEXTS if program.tokens(before + text) != own.encode(text)]

    return different


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_tokenizers(tokenized: Any, pre: str) -> None:
    """The classes of case in two rules are approximated, which Hindi in the third line shows: see the notes."""
    assert tokenized(byte_tokenizer(pre)) == ([LINES[2]] if pre in ("tekken", "gpt-4o") else [])


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_sentencepiece_tokenizers(tokenized: Any, tmp_path: Path, scheme: str) -> None:
    """Where a space is put before a text, llama.cpp puts one before a space too, and transformers doesn't."""
    different = tokenized(piece_tokenizer(tmp_path, scheme), " " if scheme == "first" else "")
    assert different == ([] if scheme == "never" else [text for text in TEXTS if text.startswith(" ")])


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_sentencepiece_prompts(tmp_path: Path, scheme: str) -> None:
    pair = Pair(write_llava(tmp_path / "m", piece_tokenizer(tmp_path / "pieces", scheme)))
    assert pair.picture_difference(asking(noise(0))) < GELU

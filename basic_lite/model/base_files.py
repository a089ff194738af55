"""Digests of the files that a model is loaded from, by which a run that continues knows whether it is still the same.

Of each file of weights only pieces are read, however large it is. A model that was trained on has other numbers in many
tensors, which a piece shows. A change of the same size within one tensor may stay unseen.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from basic_lite.model.checks import read_weight_map
from basic_lite.model.hub import file_of
from basic_lite.outside import as_object, open_file, read_json_file
from basic_lite.recipe.schema import ModelSection

# Of each file of weights, evenly spread from its first byte to its last.
_PIECES, _PIECE_BYTES = 64, 4096
# What a configuration says of who wrote it.
_OF_THE_WRITER = ("transformers_version", "_name_or_path")


def digests_of_models(section: ModelSection) -> dict[str, str]:
    """A digest for each model that a recipe names, by its key: of weights, configuration and image processor.

    Nothing is fetched: a file that isn't on this machine isn't counted. The tokenizer isn't either, since the
    fingerprint of the data has what it does.
    """
    named = {"model.base": section.base, "model.vision": section.vision, "model.llm": section.llm}
    return {key: _digest(name, key) for key, name in named.items() if name is not None}


def _digest(name: str, key: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in (CONFIG_NAME, *(() if key == "model.llm" else (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME))):
        if (place := file_of(name, file, fetch=False)) is not None:
            digest.update(file.encode() + _settings(Path(place)))
    for path in _weights(name, key):
        with open_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{path.name} {size}".encode())
            for piece in range(_PIECES):
                stream.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()


def _settings(path: Path) -> bytes:
    """What a file of settings says, in one order. One that is no JSON may be there where another is read instead."""
    try:
        settings = as_object(read_json_file(path))
    except ValueError:
        with open_file(path) as stream:
            return stream.read()
    return json.dumps({k: v for k, v in settings.items() if k not in _OF_THE_WRITER}, sort_keys=True).encode()


def _weights(name: str, key: str) -> Iterator[Path]:
    """The files of weights that transformers takes, in its order."""
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        files = [whole]
        if file_of(name, whole, fetch=False) is None and (path := file_of(name, index, fetch=False)) is not None:
            files = sorted(set(read_weight_map(Path(path), name, key).values()))
        found = [path for file in files if (path := file_of(name, file, fetch=False)) is not None]
        if found:
            yield from map(Path, found)
            return

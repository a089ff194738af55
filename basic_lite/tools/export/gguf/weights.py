"""Tensors of a llava-hf folder, written into a GGUF file one at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from basic_lite.errors import UserError
from basic_lite.tools.export.tensors import tensor_names, tensor_shape

GgufType = Literal["f32", "f16", "q8_0"]

FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7}
"""llama.cpp's number for what most of a file's weights are."""

_BLOCK = 32
"""Values of a row that share one scale in q8_0."""
_ROWS = 4096
"""Rows that are read and converted at once."""


class Weights:
    """The tensors of a folder's safetensors files, read when they are asked for.

    A file is closed after each read: the pages of an open one would count as this process's memory.

    Raises:
        UserError: the folder lacks a file of weights.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        files = {SAFE_WEIGHTS_NAME}
        if index.is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        self._files: dict[str, Path] = {}
        for path in (folder / file for file in sorted(files)):
            if not path.is_file():
                raise UserError(f"{folder} has no {path.name}; export the run again")
            self._files.update(dict.fromkeys(tensor_names(path), path))

    def names(self, prefix: str) -> list[str]:
        """Names under a prefix, in the order of the files."""
        return [name for name in self._files if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tensor_shape(self._files[name], name)

    def whole(self, name: str) -> Tensor:
        """A tensor in float32, in memory of its own."""
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.to(torch.float32, copy=True)

    def rows(self, name: str) -> Iterator[Tensor]:
        """A matrix in float32, some thousand rows at a time."""
        with safe_open(self._files[name], framework="pt") as file:
            part = file.get_slice(name)
            for start in range(0, part.get_shape()[0], _ROWS):
                yield part[start : start + _ROWS].to(torch.float32, copy=True)


@dataclass(frozen=True)
class Entry:
    """One tensor of a GGUF file.

    Attributes:
        name: its name there.
        shape: its shape there, outermost first.
        kind: how its values are stored.
        source: its name in the folder, or the tensor itself.
        change: what is done to it; None: nothing, and then a matrix is never in memory as a whole in float32.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgufType
    source: str | Tensor
    change: Callable[[Tensor], Tensor] | None = None

    def pieces(self, weights: Weights) -> Iterator[Tensor]:
        """Its values in float32, piece by piece along the first dimension."""
        if isinstance(self.source, Tensor):
            yield self.source
        elif self.change is not None:
            yield self.change(weights.whole(self.source))
        elif len(self.shape) == 2:
            yield from weights.rows(self.source)
        else:
            yield weights.whole(self.source).reshape(self.shape)


def stored_as(kind: GgufType, shape: Sequence[int]) -> GgufType:
    """How a weight of this shape is stored in a file of this kind: norms and biases always in float32."""
    if len(shape) < 2:
        return "f32"
    return "f16" if kind == "q8_0" and shape[-1] % _BLOCK else kind


def write_file(path: Path, fields: Mapping[str, Any], entries: Sequence[Entry], weights: Weights) -> None:
    """Write a GGUF file: the fields, then tensor after tensor.

    Memory: one tensor as it is stored and some thousand of its rows in float32; those that are changed whole.

    Raises:
        UserError: a value is not finite, or too large for float16.
    """
    import gguf

    writer = gguf.GGUFWriter(path, str(fields["general.architecture"]))
    for key, value in fields.items():
        if key != "general.architecture":  # the writer has it
            _add_field(writer, key, value)
    buffers = []
    for entry in entries:
        kind = gguf.GGMLQuantizationType[entry.kind.upper()]
        shape = gguf.quants.quant_shape_to_byte_shape(entry.shape, kind) if entry.kind == "q8_0" else entry.shape
        dtype = np.dtype({"f32": np.float32, "f16": np.float16, "q8_0": np.uint8}[entry.kind])
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        writer.add_tensor_info(entry.name, shape, dtype, size, raw_dtype=kind)
        buffers.append((entry, kind, shape, dtype))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, kind, shape, dtype in buffers:
            out = np.empty(shape, dtype)
            at = 0
            for piece in entry.pieces(weights):
                out[at : at + len(piece)] = _converted(piece.contiguous().numpy(), kind, entry.name)
                at += len(piece)
            assert at == len(out), f"{entry.name} has {at} rows of {len(out)}"
            writer.write_tensor_data(out)
    finally:
        writer.close()


def _converted(piece: np.ndarray[Any, Any], kind: Any, name: str) -> np.ndarray[Any, Any]:
    import gguf

    with np.errstate(over="ignore"):
        out: np.ndarray[Any, Any] = gguf.quants.quantize(piece, kind)
    if np.isfinite(piece if kind.name == "Q8_0" else out).all():
        return out
    if np.isfinite(piece).all():
        raise UserError(f"{name} holds {np.abs(piece).max():.3g}, which {kind.name.lower()} can't; write it as f32")
    raise UserError(f"{name} holds values that aren't finite; export another checkpoint")


def _add_field(writer: Any, key: str, value: Any) -> None:
    """A whole number is unsigned 32 bit, and a float 32 bit, as llama.cpp reads them."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)

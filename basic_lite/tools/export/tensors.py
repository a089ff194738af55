"""Tensors of checkpoints, read one at a time, and written shard by shard: no model is ever whole in memory."""

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file

from basic_lite.errors import UserError
from basic_lite.model.checks import read_weight_map
from basic_lite.model.device import dtype_name
from basic_lite.model.frontend import unreadable
from basic_lite.model.hub import local_only
from basic_lite.sizes import GIB
from basic_lite.training.files import write_json
from basic_lite.training.tensor_files import save_tensors

SHARD_BYTES = GIB
"""Most bytes of one written file, and so of what is in memory at once; a larger tensor has a file of its own."""


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def tensor_shape(path: Path, name: str) -> tuple[int, ...]:
    """The shape of a tensor in a safetensors file, without reading it."""
    with safe_open(path, framework="pt") as file:
        return tuple(file.get_slice(name).get_shape())


def read_tensor(path: Path, name: str) -> Tensor:
    """A tensor of a safetensors file, in memory of its own; the pages of a file that stays open would count as ours."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


class Checkpoint:
    """The tensors of a transformers checkpoint by name, safetensors or PyTorch's own format, in one file or several."""

    def __init__(self, name: str, key: str) -> None:
        """
        Args:
            name: folder or hub name.
            key: recipe key that names it.

        Raises:
            UserError: it has no weights here.
        """
        self.name = name
        self.key = key
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        self._files = self._list()

    def _file(self, name: str) -> Path | None:
        try:
            alone = local_only(self.name)
            path = cached_file(self.name, name, local_files_only=alone, _raise_exceptions_for_missing_entries=False)
        except OSError as error:  # no such folder, and the hub can't be reached
            raise unreadable(self.name, self.key, error) from error
        return None if path is None else Path(path)

    def _list(self) -> dict[str, Path]:
        # In transformers' order.
        for index, whole in ((SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME), (WEIGHTS_INDEX_NAME, WEIGHTS_NAME)):
            if (path := self._file(whole)) is not None:
                return dict.fromkeys(self._names(path), path)
            if (path := self._file(index)) is not None:
                places = read_weight_map(path, self.name, self.key)
                files = {place: self._shard(place) for place in sorted(set(places.values()))}
                return {name: files[place] for name, place in places.items()}
        raise UserError(f"{self.key}: {self.name} has no weights (no {SAFE_WEIGHTS_NAME}); fetch it: hf download NAME")

    def _shard(self, name: str) -> Path:
        path = self._file(name)
        if path is None:
            raise UserError(f"{self.key}: {self.name} lacks {name}: the download is incomplete; fetch it again")
        return path

    def _names(self, path: Path) -> list[str]:
        if path.suffix != ".safetensors":
            return list(self._unpickled(path))
        try:
            return tensor_names(path)
        except (SafetensorError, OSError) as error:
            raise unreadable(self.name, self.key, error) from error

    def _unpickled(self, path: Path) -> dict[str, Tensor]:
        """A file of PyTorch's own format, mapped and not read. Only tensors are taken from it, no code."""
        if path not in self._pickled:
            try:
                mapped = zipfile.is_zipfile(path)  # the oldest files aren't, and are read whole
                self._pickled = {path: torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)}
            except Exception as error:  # a damaged file may raise anything
                raise unreadable(self.name, self.key, error) from error
        return self._pickled[path]

    def find(self, names: Iterable[str]) -> str | None:
        """The first of ``names`` that it has."""
        return next((name for name in names if name in self._files), None)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor, without reading it.

        Raises:
            UserError: its file, of PyTorch's own format, can't be read.
        """
        path = self._files[name]
        if path.suffix != ".safetensors":
            return self._unpickled(path)[name].dtype
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name)[:0].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it.

        Raises:
            UserError: as in ``dtype``.
        """
        path = self._files[name]
        if path.suffix != ".safetensors":
            return tuple(self._unpickled(path)[name].shape)
        return tensor_shape(path, name)

    def read(self, name: str) -> Tensor:
        """A tensor of this name, in memory of its own.

        Raises:
            UserError: its file can't be read.
        """
        path = self._files[name]
        if path.suffix != ".safetensors":
            return self._unpickled(path)[name].clone()
        try:
            return read_tensor(path, name)
        except (SafetensorError, OSError) as error:
            raise unreadable(self.name, self.key, error) from error


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def size_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize


def shards_of(plan: list[Planned], most_bytes: int = SHARD_BYTES) -> list[list[Planned]]:
    """The plan in its order, cut where a file would have more than ``most_bytes``."""
    shards: list[list[Planned]] = []
    size = 0
    for tensor in plan:
        if not shards or size + tensor.size_bytes > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size_bytes
    return shards


def write_shards(
    folder: Path,
    plan: list[Planned],
    make: Callable[[str], Tensor],
    progress: Callable[[int], None] = lambda done: None,
    *,
    most_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``model*.safetensors`` and, for several files, their index.

    Peak extra bytes: ``most_bytes``, and what ``make`` takes for one tensor.

    Args:
        make: name → tensor, of the planned shape; it is cast to the planned type.
        progress: called with the bytes of each tensor that was made.

    Raises:
        UserError: a value is too large for its planned type.
    """
    shards = shards_of(plan, most_bytes)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = SAFE_WEIGHTS_NAME if len(shards) == 1 else several
        made: dict[str, Tensor] = {}
        for tensor in shard:
            made[tensor.name] = _cast(make(tensor.name), tensor)
            progress(tensor.size_bytes)
        save_tensors(made, folder / file)
        places |= dict.fromkeys(made, file)
    if len(shards) > 1:
        total = sum(tensor.size_bytes for tensor in plan)
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": places})


def _cast(made: Tensor, planned: Planned) -> Tensor:
    out = made.to("cpu", planned.dtype)
    if out.dtype != made.dtype and not bool(out.isfinite().all()):
        raise UserError(
            f"{planned.name} holds {made.abs().max():.3g}, which {dtype_name(out.dtype)} can't; "
            "choose --dtype bfloat16 or float32"
        )
    return out
